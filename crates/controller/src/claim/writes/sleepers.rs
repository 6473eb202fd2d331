//! Standbys that sleep: what is written and ordered until their claims are ready.

use std::time::Duration;

use dormouse_core::{Policy, Reason, Rung};
use tokio::sync::Barrier;
use tokio::time::{Instant, timeout};

use super::bad_days::pod;
use super::*;
use crate::agents::Guest;
use crate::claim::tests::asleep;
use crate::test_agent::Agent;

pub(super) fn guest(name: &str, rung: Rung) -> Guest {
    Guest {
        uid: format!("{name}-pod"),
        namespace: "ns".to_owned(),
        pod: name.to_owned(),
        node: "node-1".to_owned(),
        managed: true,
        rung,
        moving_to: None,
        policy: Policy::default(),
        generation: 0,
        snapshot: None,
        woken: None,
        reason: String::new(),
        message: String::new(),
        probes: None,
        resident: 0,
        resident_before: 0,
    }
}

pub(super) fn sleepers(names: &[&str]) -> Vec<Sandbox> {
    let all = names.iter();
    all.map(|name| asleep(standby(&pool(), name, true), "Frozen"))
        .collect()
}

impl Controller {
    /// One that has heard of the pods, and of their guests where the agent can be reached.
    pub(super) async fn with_guests(server: &Server, agent: Option<&Agent>, names: &[&str]) -> Self {
        let controller = Self::of(server);
        for name in names {
            controller.known.pods.wrote(pod(name, Some("node-1")));
        }
        if let Some(agent) = agent {
            let guests: Vec<Guest> = names.iter().map(|name| guest(name, Rung::Frozen)).collect();
            controller
                .known
                .agents
                .link("node-1", agent.client().await, &guests);
        }
        controller
    }
}

#[tokio::test]
async fn the_agent_is_given_one_order_and_the_api_server_two_writes() {
    let server = Server::new(&sleepers(&["a", "b"]));
    let agent = Agent::default();
    let controller = Controller::with_guests(&server, Some(&agent), &["a", "b"]).await;
    controller.look().await.unwrap();
    assert_eq!(server.log(), HANDED_OVER);
    assert_eq!(agent.log(), ["wake"]);
    assert!(is_ready(&server.claim()) && told(&server.claim()).as_deref() == Some("a"));
    // That its Sandbox does not say so yet does not make it unready again.
    controller.hear(&server);
    controller.look().await.unwrap();
    assert_eq!((server.log(), agent.log()), (vec![], vec![]));
}

/// Neither the API server nor the agent answers before the other one has been asked.
#[tokio::test(start_paused = true)]
async fn the_order_to_wake_and_the_first_write_are_under_way_at_the_same_time() {
    let server = Server::new(&sleepers(&["a"]));
    let agent = Agent::default();
    let controller = Controller::with_guests(&server, Some(&agent), &["a"]).await;
    let meeting = Arc::new(Barrier::new(2));
    server.0.lock().unwrap().meets = Some(Arc::clone(&meeting));
    agent.0.lock().unwrap().meets = Some(meeting);
    // This clock stands still as long as anybody can get on, and runs to the next deadline when nobody can.
    let begun = Instant::now();
    let looked = timeout(Duration::from_secs(60), controller.look()).await;
    assert!(matches!(looked, Ok(Ok(()))), "one waits for the other");
    assert!(begun.elapsed() < Duration::from_secs(1), "the wake was given up");
    assert_eq!(
        (server.log(), agent.log()),
        (HANDED_OVER.map(str::to_owned).to_vec(), vec!["wake".to_owned()])
    );
    assert!(is_ready(&server.claim()) && told(&server.claim()).as_deref() == Some("a"));
}

#[tokio::test]
async fn a_claim_whose_sandbox_is_not_woken_keeps_it_and_is_not_ready() {
    for (refuses, hangs) in [(Some(Reason::InsufficientMemory), false), (None, true)] {
        let server = Server::new(&sleepers(&["a", "b"]));
        let agent = Agent::default();
        {
            let mut store = agent.0.lock().unwrap();
            (store.refuses, store.hangs) = (refuses, hangs);
        }
        let controller = Controller::with_guests(&server, Some(&agent), &["a", "b"]).await;
        let begun = Instant::now();
        controller.look().await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(5));
        assert_eq!(
            (own(&server), is_ready(&server.claim())),
            (vec!["a".to_owned()], false)
        );
        let condition = server.claim().status.unwrap().conditions.remove(0);
        assert_eq!(condition.reason, "SandboxNotReady");
        // Another controller finds the same one, and says so once it is woken.
        let heir = Controller::with_guests(&server, Some(&agent), &["a", "b"]).await;
        heir.look().await.unwrap();
        assert_eq!(
            (own(&server), is_ready(&server.claim())),
            (vec!["a".to_owned()], false)
        );
        let client = agent.client().await;
        heir.known
            .agents
            .link("node-1", client, &[guest("a", Rung::Running)]);
        heir.look().await.unwrap();
        assert!(is_ready(&server.claim()));
    }
}

#[tokio::test]
async fn one_whose_agent_cannot_be_reached_is_left_for_one_that_is_awake() {
    let mut standbys = sleepers(&["a"]);
    standbys.push(standby(&pool(), "b", false));
    let server = Server::new(&standbys);
    let controller = Controller::with_guests(&server, None, &["a", "b"]).await;
    controller.look().await.unwrap();
    assert_eq!(own(&server), ["b"]);
    // Where there is no other, one is made.
    let server = Server::new(&sleepers(&["a"]));
    let controller = Controller::with_guests(&server, None, &["a"]).await;
    controller.look().await.unwrap();
    assert_eq!(own(&server), ["claim"]);
}
