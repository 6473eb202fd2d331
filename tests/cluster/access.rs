//! Who may do what.

use dormouse_testkit::Cluster;
use dormouse_testkit::host::wait;
use dormouse_tls::{Name, Request};
use k8s_openapi::ByteString;
use kube::api::PostParams;
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};

use crate::installed::{NAMESPACE, installed, pod_of};
use crate::support::{LIMIT, namespace, shared};

/// What no controller may do. `OWN` is its own namespace.
const CONTROLLER_MUST_NOT: &[&str] = &[
    // Secrets and settings of others, and of its own namespace those that are not its own.
    "GET /api/v1/secrets",
    "GET /api/v1/namespaces/kube-system/secrets/any",
    "GET /api/v1/namespaces/OWN/secrets",
    "GET /api/v1/namespaces/OWN/secrets/any",
    "PATCH /api/v1/namespaces/OWN/secrets/any",
    "DELETE /api/v1/namespaces/OWN/secrets/dormouse-authority",
    "POST /api/v1/namespaces/default/secrets",
    "GET /api/v1/namespaces/kube-system/configmaps/any",
    "POST /api/v1/namespaces/default/configmaps",
    "DELETE /api/v1/namespaces/OWN/configmaps/dormouse-authorities",
    // Nodes, and what is reached through their kubelets.
    "POST /api/v1/nodes",
    "PATCH /api/v1/nodes/node-1",
    "PATCH /api/v1/nodes/node-1/status",
    "DELETE /api/v1/nodes/node-1",
    "GET /api/v1/nodes/node-1/proxy/pods",
    // What is inside of pods, and where they go.
    "POST /api/v1/namespaces/default/pods/any/exec?command=id",
    "GET /api/v1/namespaces/default/pods/any/exec?command=id",
    "POST /api/v1/namespaces/default/pods/any/attach",
    "GET /api/v1/namespaces/default/pods/any/attach",
    "POST /api/v1/namespaces/default/pods/any/portforward",
    "GET /api/v1/namespaces/default/pods/any/log",
    "GET /api/v1/namespaces/default/pods/any/proxy/",
    "PATCH /api/v1/namespaces/default/pods/any/ephemeralcontainers",
    "PUT /api/v1/namespaces/default/pods/any/ephemeralcontainers",
    "POST /api/v1/namespaces/default/pods/any/eviction",
    "POST /api/v1/namespaces/default/pods/any/binding",
    // Rights of its own or of others, and what is done in others' names.
    "POST /apis/rbac.authorization.k8s.io/v1/namespaces/default/roles",
    "POST /apis/rbac.authorization.k8s.io/v1/namespaces/OWN/rolebindings",
    "POST /apis/rbac.authorization.k8s.io/v1/clusterroles",
    "POST /apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "PATCH /apis/rbac.authorization.k8s.io/v1/clusterroles/agent-sandbox-controller",
    "POST /api/v1/namespaces/OWN/serviceaccounts/dormouse-agent/token",
    "POST /api/v1/namespaces/kube-system/serviceaccounts/default/token",
    // What it runs as, and what watches over the agents.
    "PATCH /apis/apps/v1/namespaces/OWN/daemonsets/dormouse-agent",
    "DELETE /apis/apps/v1/namespaces/OWN/daemonsets/dormouse-agent",
    "POST /apis/apps/v1/namespaces/OWN/daemonsets",
    "PATCH /apis/apps/v1/namespaces/OWN/deployments/agent-sandbox-controller",
    "POST /apis/batch/v1/namespaces/default/jobs",
    "DELETE /apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/dormouse-agent-own-node",
    "PATCH /apis/apiextensions.k8s.io/v1/customresourcedefinitions/sandboxes.agents.x-k8s.io",
    // Certificates are asked for by agents, and its lease is the only one.
    "POST /apis/certificates.k8s.io/v1/certificatesigningrequests",
    "DELETE /apis/certificates.k8s.io/v1/certificatesigningrequests/any",
    "GET /apis/coordination.k8s.io/v1/namespaces/kube-system/leases",
    "PATCH /apis/coordination.k8s.io/v1/namespaces/kube-system/leases/kube-scheduler",
    "PATCH /apis/coordination.k8s.io/v1/namespaces/OWN/leases/any",
    "PATCH /apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/node-1",
    // What agents say, and what people want.
    "POST /apis/dormouse.dev/v1alpha1/sandboxnodes",
    "PATCH /apis/dormouse.dev/v1alpha1/sandboxnodes/node-1",
    "PATCH /apis/dormouse.dev/v1alpha1/sandboxnodes/node-1/status",
    "DELETE /apis/dormouse.dev/v1alpha1/sandboxnodes/node-1",
    "PATCH /apis/dormouse.dev/v1alpha1/snapshotstores/any",
    "PATCH /apis/dormouse.dev/v1alpha1/namespaces/default/standbyquotas/any",
    "PATCH /apis/extensions.agents.x-k8s.io/v1beta1/namespaces/default/sandboxwarmpools/any",
    "POST /apis/extensions.agents.x-k8s.io/v1beta1/namespaces/default/sandboxclaims",
    "POST /apis/extensions.agents.x-k8s.io/v1beta1/namespaces/default/sandboxtemplates",
    "DELETE /api/v1/namespaces/default",
    "POST /api/v1/persistentvolumes",
];

/// What no agent may do. `OWN` is its own namespace.
const AGENTS_MUST_NOT: &[&str] = &[
    "GET /api/v1/pods",
    "GET /api/v1/namespaces/OWN/pods",
    "POST /api/v1/namespaces/default/pods",
    "PATCH /api/v1/namespaces/default/pods/any",
    "PATCH /api/v1/namespaces/default/pods/any/status",
    "PATCH /api/v1/namespaces/default/pods/any/resize",
    "DELETE /api/v1/namespaces/default/pods/any",
    "POST /api/v1/namespaces/default/pods/any/exec?command=id",
    "POST /api/v1/namespaces/default/pods/any/eviction",
    "GET /apis/agents.x-k8s.io/v1beta1/sandboxes",
    "POST /apis/agents.x-k8s.io/v1beta1/namespaces/default/sandboxes",
    "PATCH /apis/agents.x-k8s.io/v1beta1/namespaces/default/sandboxes/any",
    "PATCH /apis/agents.x-k8s.io/v1beta1/namespaces/default/sandboxes/any/status",
    "GET /apis/extensions.agents.x-k8s.io/v1beta1/sandboxclaims",
    "PATCH /apis/dormouse.dev/v1alpha1/namespaces/default/sandboxsnapshots/any/status",
    "GET /api/v1/nodes/node-1",
    "PATCH /api/v1/nodes/node-1",
    "PATCH /api/v1/nodes/node-1/status",
    "GET /api/v1/secrets",
    "GET /api/v1/namespaces/OWN/secrets/dormouse-authority",
    "GET /api/v1/namespaces/default/configmaps",
    "PATCH /api/v1/namespaces/OWN/configmaps/dormouse-authorities",
    "POST /api/v1/namespaces/OWN/serviceaccounts/agent-sandbox-controller/token",
    "GET /apis/certificates.k8s.io/v1/certificatesigningrequests",
    "PATCH /apis/certificates.k8s.io/v1/certificatesigningrequests/any/approval",
    "PATCH /apis/certificates.k8s.io/v1/certificatesigningrequests/any/status",
    "DELETE /apis/certificates.k8s.io/v1/certificatesigningrequests/any",
    "GET /apis/coordination.k8s.io/v1/namespaces/OWN/leases/a3317529.agent-sandbox.x-k8s.io",
    "PATCH /apis/coordination.k8s.io/v1/namespaces/OWN/leases/a3317529.agent-sandbox.x-k8s.io",
    "POST /apis/coordination.k8s.io/v1/namespaces/OWN/leases",
    "PATCH /apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/node-1",
    "GET /apis/dormouse.dev/v1alpha1/sandboxnodes",
    "GET /apis/dormouse.dev/v1alpha1/sandboxnodes/node-1",
    "DELETE /apis/dormouse.dev/v1alpha1/sandboxnodes/node-1",
    "DELETE /apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/dormouse-agent-own-node",
    "POST /apis/events.k8s.io/v1/namespaces/default/events",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_service_account_may_do_what_its_role_says_and_nothing_else() {
    let cluster = shared().await;
    let space = "access";
    namespace(&cluster, space).await;
    cluster
        .apply(&json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "reader", "namespace": space}},
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
             "metadata": {"name": "reader", "namespace": space},
             "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}]},
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
             "metadata": {"name": "reader", "namespace": space},
             "subjects": [{"kind": "ServiceAccount", "name": "reader", "namespace": space}],
             "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"}},
        ]}))
        .await
        .unwrap();
    let token = cluster
        .kubectl(&["create", "token", "reader", "-n", space])
        .await
        .unwrap();
    let token = format!("--token={}", token.trim());
    cluster
        .kubectl(&[&token, "get", "pods", "-n", space])
        .await
        .unwrap();
    for refused in [
        ["get", "secrets", "-n", space],
        ["get", "pods", "-n", "kube-system"],
        ["delete", "pod/any", "-n", space],
    ] {
        let mut arguments = vec![token.as_str()];
        arguments.extend(refused);
        let error = cluster.kubectl(&arguments).await.unwrap_err().to_string();
        assert!(error.contains("Forbidden"), "{arguments:?}: {error}");
    }
}

/// One of our components to the API server, with a token like its own: of its ServiceAccount, bound to its pod.
struct Component {
    user: String,
    client: Client,
    /// The same one, who says that it is somebody else.
    disguised: Client,
}

impl Component {
    async fn of(cluster: &Cluster, account: &str, label: &str) -> Self {
        let pod = pod_of(cluster, label).await;
        let pod = pod["metadata"]["name"].as_str().unwrap();
        let bound = format!("--bound-object-name={pod}");
        let token = cluster
            .kubectl(&[
                "create",
                "token",
                account,
                "--namespace",
                NAMESPACE,
                "--bound-object-kind=Pod",
                &bound,
            ])
            .await
            .unwrap();
        let config = Kubeconfig::read_from(cluster.kubeconfig()).unwrap();
        let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await;
        let mut config = config.unwrap();
        // Nothing of the administrator's but the address.
        config.auth_info = AuthInfo::default();
        config.auth_info.token = Some(token.trim().to_owned().into());
        let client = Client::try_from(config.clone()).unwrap();
        config.auth_info.impersonate = Some("system:serviceaccount:kube-system:default".to_owned());
        Self {
            user: format!("system:serviceaccount:{NAMESPACE}:{account}"),
            client,
            disguised: Client::try_from(config).unwrap(),
        }
    }

    /// What the API server says to `VERB PATH`.
    async fn asks(&self, what: &str, body: &Value) -> Result<(), (u16, String)> {
        ask(&self.client, what, body).await
    }

    /// That all of these are refused, for who it is. What they are about need not be there: that is looked for later.
    async fn is_refused(&self, all: &[&str]) {
        let mut wrong = Vec::new();
        for what in all {
            match self.asks(what, &json!({})).await {
                Err((403, said)) if said.contains(&format!("User \"{}\" cannot", self.user)) => {}
                said => wrong.push(format!("{what}: {said:?}")),
            }
        }
        assert!(wrong.is_empty(), "{} may:\n{}", self.user, wrong.join("\n"));
        let said = ask(&self.disguised, "GET /api/v1/namespaces", &json!({})).await;
        let (code, said) = said.unwrap_err();
        assert_eq!(code, 403, "{said}");
        assert!(said.contains("cannot impersonate"), "{said}");
    }
}

/// Real requests, as somebody would make them who has got hold of the token: what is refused by admission is seen too, which a
/// SelfSubjectAccessReview knows nothing of. They are dry runs, so that a right too many does no harm here.
async fn ask(client: &Client, what: &str, body: &Value) -> Result<(), (u16, String)> {
    let (verb, path) = what.split_once(' ').unwrap();
    let path = path.replace("OWN", NAMESPACE);
    let path = match (verb, path.contains('?')) {
        ("GET", _) => path,
        (_, false) => format!("{path}?dryRun=All"),
        (_, true) => format!("{path}&dryRun=All"),
    };
    let body = if verb == "GET" {
        Vec::new()
    } else {
        body.to_string().into_bytes()
    };
    let mut request = kube::core::Request::new("/")
        .create(&PostParams::default(), body)
        .unwrap();
    *request.method_mut() = verb.parse().unwrap();
    *request.uri_mut() = path.parse().unwrap();
    let kind = match verb {
        "PATCH" => "application/merge-patch+json",
        _ => "application/json",
    };
    request
        .headers_mut()
        .insert("content-type", kind.parse().unwrap());
    match client.request_text(request).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) => Err((status.code, status.message.clone())),
        Err(error) => panic!("{what}: {error}"),
    }
}

/// A request for a certificate from a signer.
fn certificate(name: &str, signer: &str, usages: &[&str]) -> Value {
    let request = Request::new(&Name::of_node("node-1").unwrap()).unwrap();
    json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name},
        "spec": {
            "request": ByteString(request.request.into_bytes()), "signerName": signer, "usages": usages,
        },
    })
}

const CERTIFICATES: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const SANDBOX_NODES: &str = "/apis/dormouse.dev/v1alpha1/sandboxnodes";

#[tokio::test(flavor = "multi_thread")]
async fn the_controllers_token_opens_nothing_that_is_not_the_controllers() {
    let cluster = installed().await;
    let controller = Component::of(
        &cluster,
        "agent-sandbox-controller",
        "app=agent-sandbox-controller",
    )
    .await;
    // It is the controller's, and good for what the controller does.
    for may in [
        "GET /apis/agents.x-k8s.io/v1beta1/sandboxes",
        "GET /api/v1/namespaces/OWN/secrets/dormouse-authority",
        "GET /apis/dormouse.dev/v1alpha1/sandboxnodes",
    ] {
        controller.asks(may, &json!({})).await.unwrap();
    }
    controller.is_refused(CONTROLLER_MUST_NOT).await;

    // RBAC lets it approve and sign, and admission for which signer. Those of Kubernetes itself would make it anybody.
    for (name, signer, usage) in [
        (
            "access-user",
            "kubernetes.io/kube-apiserver-client",
            "client auth",
        ),
        ("access-other", "access.example/signer", "server auth"),
    ] {
        let request = certificate(name, signer, &["digital signature", usage]);
        cluster.apply(&request).await.unwrap();
        let condition = |type_: &str| {
            json!({"status": {"conditions": [
                {"type": type_, "status": "True", "reason": "Tried", "message": "tried"},
            ]}})
        };
        for (subresource, type_, verb) in [("approval", "Approved", "approve"), ("status", "Failed", "sign")]
        {
            let what = format!("PATCH {CERTIFICATES}/{name}/{subresource}");
            let (code, said) = controller.asks(&what, &condition(type_)).await.unwrap_err();
            assert_eq!(code, 403, "{what}: {said}");
            assert!(
                said.contains(&format!("not permitted to {verb}")),
                "{what}: {said}"
            );
        }
        cluster
            .kubectl(&["delete", "certificatesigningrequest", name])
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agents_token_opens_nothing_beyond_its_node() {
    let cluster = installed().await;
    let agent = Component::of(&cluster, "dormouse-agent", "app.kubernetes.io/component=agent").await;
    agent.is_refused(AGENTS_MUST_NOT).await;

    // Certificates are to be had from our signer, and from none that would make it somebody else.
    let create = format!("POST {CERTIFICATES}");
    let ours = certificate(
        "access-agent",
        "dormouse.dev/agent",
        &["digital signature", "server auth"],
    );
    agent.asks(&create, &ours).await.unwrap();
    for (signer, usage) in [
        ("kubernetes.io/kube-apiserver-client", "client auth"),
        ("kubernetes.io/kubelet-serving", "server auth"),
        ("dormouse.dev/other", "server auth"),
    ] {
        let theirs = certificate("access-agent", signer, &["digital signature", usage]);
        let (code, said) = agent.asks(&create, &theirs).await.unwrap_err();
        assert_eq!(code, 403, "{signer}: {said}");
        assert!(said.contains("and no other signer"), "{signer}: {said}");
    }

    // What it says of a node is taken of its own alone.
    let other = "zz-access";
    let object = |name: &str| {
        json!({
            "apiVersion": "dormouse.dev/v1alpha1", "kind": "SandboxNode", "metadata": {"name": name}, "spec": {},
        })
    };
    cluster.apply(&object(other)).await.unwrap();
    wait::until("the agent's word on its node", LIMIT, async || {
        cluster.get("sandboxnode", "default", "node-1").await
    })
    .await
    .unwrap();
    let label = json!({"metadata": {"labels": {"access": "tried"}}});
    let status = json!({"status": {"conditions": [], "snapshots": []}});
    agent
        .asks(&format!("PATCH {SANDBOX_NODES}/node-1"), &label)
        .await
        .unwrap();
    for (what, body) in [
        (format!("POST {SANDBOX_NODES}"), object("zz-access-new")),
        (format!("PATCH {SANDBOX_NODES}/{other}"), label),
        (format!("PATCH {SANDBOX_NODES}/{other}/status"), status),
    ] {
        let (code, said) = agent.asks(&what, &body).await.unwrap_err();
        assert_eq!(code, 403, "{what}: {said}");
        assert!(said.contains("of its own node"), "{what}: {said}");
    }
    cluster.kubectl(&["delete", "sandboxnode", other]).await.unwrap();
}
