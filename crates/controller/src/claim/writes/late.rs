//! Claims that bring an environment, and standbys that take it.

use std::collections::BTreeMap;

use dormouse_api::names::annotations;
use dormouse_core::{ANNOTATION_LATE_ENV, Reason, Rung};
use tokio::time::Instant;

use super::sleepers::guest;
use super::*;
use crate::test_agent::Agent;

/// A template that takes environments, as of when its pods were made.
fn taking() -> SandboxTemplate {
    let mut template = template();
    template.spec.env_vars_injection_policy = InjectionPolicy::Allowed;
    let meta = template.spec.pod_template.metadata.get_or_insert_default();
    meta.annotations
        .get_or_insert_default()
        .insert(ANNOTATION_LATE_ENV.to_owned(), "/run/claim/env".to_owned());
    template
}

fn takers(names: &[&str]) -> Vec<Sandbox> {
    let all = names.iter().map(|name| {
        let mut taker = standby(&pool(), name, true);
        taker.spec.pod_template = taking().spec.pod_template;
        taker
    });
    all.collect()
}

fn server(standbys: &[Sandbox]) -> Server {
    let server = Server::new(standbys);
    let mut claim = claim();
    claim.spec.env = vec![ClaimEnv {
        name: "TOKEN".to_owned(),
        value: "hunter2".to_owned(),
        container_name: None,
    }];
    server.put("sandboxclaims", &claim);
    server
}

/// A controller that knows the pods of these, on a node whose agent this is.
async fn controller(server: &Server, agent: Option<&Agent>, names: &[&str]) -> Controller {
    let controller = Controller::with_guests(server, None, names).await;
    controller.known.templates.wrote(taking());
    if let Some(agent) = agent {
        let guests: Vec<_> = names.iter().map(|name| guest(name, Rung::Running)).collect();
        let client = agent.client().await;
        controller.known.agents.link("node-1", client, &guests);
    }
    controller
}

fn noted(server: &Server) -> BTreeMap<String, String> {
    server.claim().metadata.annotations.unwrap_or_default()
}

/// The environment that later pods of a sandbox are started with.
fn started_with(server: &Server, name: &str) -> Vec<(String, String)> {
    let all = server.all::<Sandbox>("sandboxes");
    let sandbox = all
        .iter()
        .find(|sandbox| objects::name(&sandbox.metadata) == name);
    let env = sandbox.unwrap().spec.pod_template.spec.containers[0].env.clone();
    let pairs = env.unwrap().into_iter();
    pairs
        .map(|variable| (variable.name, variable.value.unwrap()))
        .collect()
}

fn wanted() -> Vec<(String, String)> {
    [("THERE", "1"), ("TOKEN", "hunter2")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

#[tokio::test]
async fn a_standby_gets_the_environment_before_its_claim_is_ready() {
    let server = server(&takers(&["a", "b"]));
    let agent = Agent::default();
    let controller = controller(&server, Some(&agent), &["a", "b"]).await;
    controller.look().await.unwrap();
    assert_eq!(server.log(), HANDED_OVER);
    assert_eq!(agent.log(), ["deliver main"]);
    assert!(is_ready(&server.claim()) && told(&server.claim()).as_deref() == Some("a"));
    assert_eq!(noted(&server)[annotations::LATE_ENV_DELIVERED], "a-pod");
    assert_eq!(started_with(&server, "a"), wanted());
    let delivered = agent.0.lock().unwrap().environments.remove(0);
    assert_eq!(delivered.pod.unwrap().uid, "a-pod");
    let variable = &delivered.variables[0];
    assert_eq!(
        (variable.name.as_str(), variable.value.as_str()),
        ("TOKEN", "hunter2")
    );
    // The claim asked its pool for a standby.
    assert_eq!(controller.known.demand.claims("ns", "pool"), (1, 0));
    // Nor does another controller have anything left to do.
    for heir in [
        controller,
        self::controller(&server, Some(&agent), &["a", "b"]).await,
    ] {
        heir.hear(&server);
        heir.look().await.unwrap();
        assert_eq!((server.log(), agent.log()), (vec![], vec![]));
    }
}

#[tokio::test]
async fn wherever_the_controller_ends_the_environment_is_there_when_the_claim_is_ready() {
    for writes in 0..=3 {
        let server = server(&takers(&["a", "b"]));
        let agent = Agent::default();
        server.takes(writes);
        let _ = controller(&server, Some(&agent), &["a", "b"]).await.look().await;
        server.takes(usize::MAX);
        let heir = controller(&server, Some(&agent), &["a", "b"]).await;
        // What was told before it died was true.
        assert!(!is_ready(&server.claim()) || !agent.0.lock().unwrap().environments.is_empty());
        heir.look().await.unwrap();
        assert_eq!(own(&server), ["a"], "after {writes} writes");
        assert!(is_ready(&server.claim()), "after {writes} writes");
        assert_eq!(noted(&server)[annotations::LATE_ENV_DELIVERED], "a-pod");
        assert_eq!(started_with(&server, "a"), wanted());
        let delivered = agent.0.lock().unwrap().environments.len();
        // Once more where nobody knew of it any more: the claim had not been told.
        assert_eq!(
            delivered,
            if writes == 1 { 2 } else { 1 },
            "after {writes} writes"
        );
    }
}

#[tokio::test]
async fn wherever_the_controller_ends_a_claim_whose_environment_is_refused_gets_one_of_its_own() {
    for writes in 0..=6 {
        let server = server(&takers(&["a", "b"]));
        let agent = Agent::default();
        agent.0.lock().unwrap().refuses_environments = Some(Reason::EnvironmentNotDelivered);
        server.takes(writes);
        let _ = controller(&server, Some(&agent), &["a", "b"]).await.look().await;
        assert!(!is_ready(&server.claim()), "after {writes} writes");
        server.takes(usize::MAX);
        let heir = controller(&server, Some(&agent), &["a", "b"]).await;
        heir.look().await.unwrap();
        assert_eq!(own(&server), ["claim"], "after {writes} writes");
        assert_eq!(started_with(&server, "claim"), wanted());
        assert_eq!(told(&server.claim()).as_deref(), Some("claim"));
        assert!(noted(&server)[annotations::LATE_ENV_REFUSED].contains("EnvironmentNotDelivered"));
        // It has cost one standby and no more.
        let left: Vec<String> = server
            .all::<Sandbox>("sandboxes")
            .iter()
            .map(|sandbox| objects::name(&sandbox.metadata).to_owned())
            .collect();
        assert_eq!(left, ["b", "claim"], "after {writes} writes");
        server.log();
        heir.look().await.unwrap();
        assert_eq!(server.log(), [""; 0]);
    }
}

#[tokio::test]
async fn an_agent_that_does_not_know_environments_costs_one_standby_for_a_while() {
    let server = server(&takers(&["a", "b"]));
    let agent = Agent::default();
    agent.0.lock().unwrap().is_old = true;
    let controller = controller(&server, Some(&agent), &["a", "b"]).await;
    controller.look().await.unwrap();
    assert_eq!(own(&server), ["claim"]);
    // The next claim on the template takes none.
    let mut next = server.claim();
    next.metadata.uid = Some("next-uid".to_owned());
    next.metadata.annotations = None;
    next.status = None;
    server.remove("sandboxes", "claim");
    server.put("sandboxclaims", &next);
    controller.known.sandboxes.gone("ns", "claim", "claim-uid");
    controller.hear(&server);
    server.log();
    controller.look().await.unwrap();
    assert_eq!(server.log()[0], "post sandboxes claim");
}

#[tokio::test]
async fn while_the_agent_is_away_the_claim_waits_and_keeps_its_sandbox() {
    let server = server(&takers(&["a"]));
    let controller = controller(&server, None, &["a"]).await;
    controller.look().await.unwrap();
    assert_eq!(
        (own(&server), is_ready(&server.claim())),
        (vec!["a".to_owned()], false)
    );
    let condition = server.claim().status.unwrap().conditions.remove(0);
    assert_eq!(condition.reason, "SandboxNotReady");
    assert!(
        condition.message.contains("cannot be reached"),
        "{}",
        condition.message
    );
    let agent = Agent::default();
    let guests = [guest("a", Rung::Running)];
    let client = agent.client().await;
    controller.known.agents.link("node-1", client, &guests);
    controller.hear(&server);
    controller.look().await.unwrap();
    assert!(is_ready(&server.claim()));
    assert_eq!(agent.log(), ["deliver main"]);
}

#[tokio::test]
async fn a_command_that_takes_its_time_keeps_no_worker_and_is_not_run_twice() {
    let server = server(&takers(&["a"]));
    let agent = Agent::default();
    agent.0.lock().unwrap().hangs_on_environments = true;
    let controller = controller(&server, Some(&agent), &["a"]).await;
    let begun = Instant::now();
    for _ in 0..2 {
        controller.look().await.unwrap();
        controller.hear(&server);
    }
    assert!(begun.elapsed() < Duration::from_secs(8));
    assert_eq!(
        (own(&server), is_ready(&server.claim())),
        (vec!["a".to_owned()], false)
    );
    assert_eq!(agent.log(), ["hangs"]);
}

#[tokio::test]
async fn a_pod_that_is_made_anew_has_it_and_is_not_given_it_again() {
    let server = server(&takers(&["a"]));
    let agent = Agent::default();
    server.takes(1);
    let _ = controller(&server, Some(&agent), &["a"]).await.look().await;
    server.takes(usize::MAX);
    agent.log();
    let heir = controller(&server, Some(&agent), &["a"]).await;
    let mut pod = bad_days::pod("a", Some("node-1"));
    pod.metadata.uid = Some("another-pod".to_owned());
    heir.known.pods.wrote(pod);
    heir.look().await.unwrap();
    assert!(is_ready(&server.claim()));
    assert_eq!(agent.log(), [""; 0]);
    assert!(!noted(&server).contains_key(annotations::LATE_ENV_DELIVERED));
}

#[tokio::test]
async fn standbys_that_were_made_before_the_template_took_environments_are_left_alone() {
    let server = server(&standbys());
    let agent = Agent::default();
    let controller = controller(&server, Some(&agent), &["a", "b", "c", "d"]).await;
    controller.look().await.unwrap();
    assert_eq!(own(&server), ["claim"]);
    assert_eq!(agent.log(), [""; 0]);
}
