//! What is written for templates, against a small API server.

use std::sync::Arc;
use std::time::Duration;

use dormouse_api::extensions::{NetworkPolicyManagement, SandboxTemplate};
use dormouse_api::names::{labels, name_hash};
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyEgressRule};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::runtime::controller::Action;
use kube::runtime::reflector;

use super::tests::{made, template};
use super::{TemplateContext, TemplateError, on_error, reconcile};
use crate::cache::Cache;
use crate::objects;
use crate::test_server::Server;

const POLICIES: &str = "networkpolicies";
const TEMPLATES: &str = "sandboxtemplates";

struct Controller {
    server: Server,
    context: Arc<TemplateContext>,
}

impl Controller {
    /// With this template, at an API server that has it.
    fn of(template: &SandboxTemplate) -> Self {
        let server = Server::empty();
        let context = TemplateContext {
            client: server.client(),
            templates: Arc::new(Cache::new(reflector::store().0, |_: &SandboxTemplate| None)),
        };
        let this = Self {
            server,
            context: Arc::new(context),
        };
        this.change(template);
        this
    }

    /// Somebody writes the template, and the watch shows it.
    fn change(&self, template: &SandboxTemplate) {
        self.server.put(TEMPLATES, template);
        let mut templates: Vec<SandboxTemplate> = self.server.all(TEMPLATES);
        self.context.templates.wrote(templates.remove(0));
    }

    async fn look(&self) -> Result<Action, TemplateError> {
        reconcile(Arc::new(template()), Arc::clone(&self.context)).await
    }

    /// Looks, and says what was written for it.
    async fn writes(&self) -> Vec<String> {
        self.server.log();
        assert_eq!(self.look().await.unwrap(), Action::await_change());
        self.written()
    }

    fn written(&self) -> Vec<String> {
        let mut log = self.server.log();
        log.retain(|entry| !entry.starts_with("get "));
        log
    }

    fn policy(&self) -> Option<NetworkPolicy> {
        self.server.all(POLICIES).pop()
    }

    /// The template as it is, but for whether its policy is managed.
    fn manage(&self, management: NetworkPolicyManagement) {
        let mut templates: Vec<SandboxTemplate> = self.server.all(TEMPLATES);
        let mut template = templates.remove(0);
        template.spec.network_policy_management = management;
        self.change(&template);
    }
}

#[tokio::test]
async fn a_template_gets_its_label_and_its_policy_and_then_nothing() {
    let controller = Controller::of(&template());
    let first = controller.writes().await;
    assert_eq!(
        first,
        [
            "patch sandboxtemplates template",
            "post networkpolicies template-network-policy"
        ]
    );
    let templates: Vec<SandboxTemplate> = controller.server.all(TEMPLATES);
    let hash = name_hash("template");
    assert_eq!(
        objects::label(&templates[0].metadata, labels::TEMPLATE_REF_HASH),
        Some(hash.as_str())
    );
    assert_eq!(controller.policy().unwrap().spec, made(&template()).spec);
    assert_eq!(controller.writes().await, [""; 0]);
}

#[tokio::test]
async fn what_somebody_has_changed_of_the_rules_is_put_right_and_what_is_beside_them_stays() {
    let controller = Controller::of(&template());
    controller.writes().await;
    let mut policy = controller.policy().unwrap();
    policy.spec.as_mut().unwrap().egress = Some(vec![NetworkPolicyEgressRule::default()]);
    policy.metadata.labels = Some([("team".to_owned(), "a".to_owned())].into());
    controller.server.put(POLICIES, &policy);
    assert_eq!(
        controller.writes().await,
        ["put networkpolicies template-network-policy"]
    );
    let policy = controller.policy().unwrap();
    assert_eq!(policy.spec, made(&template()).spec);
    assert_eq!(objects::label(&policy.metadata, "team"), Some("a"));
    assert_eq!(controller.writes().await, [""; 0]);
    // And what somebody has deleted is made again.
    controller.server.remove(POLICIES, "template-network-policy");
    assert_eq!(
        controller.writes().await,
        ["post networkpolicies template-network-policy"]
    );
}

#[tokio::test]
async fn unmanaged_the_policy_goes_and_managed_again_it_comes_back() {
    let controller = Controller::of(&template());
    controller.writes().await;
    controller.manage(NetworkPolicyManagement::Unmanaged);
    assert_eq!(
        controller.writes().await,
        ["delete networkpolicies template-network-policy"]
    );
    assert_eq!(controller.policy(), None);
    assert_eq!(controller.writes().await, [""; 0]);
    controller.manage(NetworkPolicyManagement::Managed);
    controller.writes().await;
    assert_eq!(controller.policy().unwrap().spec, made(&template()).spec);
}

#[tokio::test]
async fn a_policy_of_somebody_elses_is_left_as_it_is_and_looked_at_again() {
    let controller = Controller::of(&template());
    let mut foreign = made(&template());
    foreign.metadata.owner_references = None;
    foreign.spec = None;
    controller.server.put(POLICIES, &foreign);
    let error = controller.look().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "refusing to update NetworkPolicy \"template-network-policy\" as it is not controlled by SandboxTemplate \
         \"template\""
    );
    assert_eq!(controller.written(), ["patch sandboxtemplates template"]);
    assert_eq!(controller.policy().unwrap().spec, None);
    let again = on_error(Arc::new(template()), &error, Arc::clone(&controller.context));
    assert_eq!(again, Action::requeue(Duration::from_secs(5)));
    // Whose it is, is nothing to a template that wants none.
    controller.manage(NetworkPolicyManagement::Unmanaged);
    assert_eq!(controller.writes().await, [""; 0]);
    assert!(controller.policy().is_some());
}

#[tokio::test]
async fn nothing_is_made_for_a_template_that_goes_and_its_policy_goes_with_it() {
    let controller = Controller::of(&template());
    controller.writes().await;
    controller.server.remove(TEMPLATES, "template");
    controller.server.collect_garbage();
    assert_eq!(controller.policy(), None);

    let mut going = template();
    going.metadata.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
    going.metadata.finalizers = Some(vec!["somebody.example/holds-it".to_owned()]);
    let controller = Controller::of(&going);
    assert_eq!(controller.writes().await, [""; 0]);
    // One that nobody knows any more.
    controller
        .context
        .templates
        .gone("ns", "template", "template-uid");
    assert_eq!(controller.writes().await, [""; 0]);
}
