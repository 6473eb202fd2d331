//! What pools write where quotas refuse standbys or their pods, and of their claims, against a small API server.

use super::quota;
use crate::objects::{self, condition};
use crate::pool::tests::known::{context, nothing};
use crate::pool::tests::*;
use crate::pool::{Exceeded, Known, PoolContext, reconcile};
use crate::test_server::Server;

struct Controller {
    context: Arc<PoolContext>,
    known: Known,
}

impl Controller {
    fn of(server: &Server) -> Self {
        let known = nothing();
        known.pools.wrote(pool(4));
        known.templates.wrote(template());
        server.put("sandboxwarmpools", &pool(4));
        let context = context(server, &known);
        Self { context, known }
    }

    /// Looks at the pool; when it asks to be looked at again, in milliseconds.
    async fn look(&self) -> Option<u128> {
        for sandbox in self.known.sandboxes.group("ns", "pool-uid") {
            self.known
                .state
                .saw_sandbox(objects::uid(&sandbox.metadata), true);
        }
        let action = reconcile(Arc::new(pool(4)), Arc::clone(&self.context))
            .await
            .unwrap();
        // The library shows it to nobody but in this way.
        let text = format!("{action:?}");
        let wait = text.split("Some(").nth(1)?.split(')').next()?;
        let (number, unit) = wait.split_at(wait.find(|letter: char| letter.is_alphabetic())?);
        let scale = if unit == "s" { 1000.0 } else { 1.0 };
        Some((number.parse::<f64>().unwrap() * scale).round() as u128)
    }

    fn said(&self) -> Option<Condition> {
        let status = self.known.pools.get("ns", "pool")?.status.clone()?;
        condition(&status.conditions, "QuotaExceeded").cloned()
    }
}

fn posts(server: &Server) -> (usize, usize) {
    let log = server.log();
    let count = |what: &str| log.iter().filter(|entry| entry.starts_with(what)).count();
    (count("post sandboxes "), count("post events "))
}

#[tokio::test]
async fn what_a_resource_quota_refuses_is_said_and_tried_again_ever_less_often() {
    let server = Server::empty();
    server.0.lock().unwrap().most_sandboxes = 2;
    let controller = Controller::of(&server);
    assert_eq!(controller.look().await, Some(100));
    let said = controller.said().unwrap();
    assert_eq!(
        (said.status.as_str(), said.reason.as_str()),
        ("True", "ResourceQuotaExceeded")
    );
    let begins = "a standby was refused, and is tried again: exceeded quota: few, requested: ";
    assert!(said.message.starts_with(begins), "{}", said.message);
    // One was made, then of two the second was refused; and one event is written.
    assert_eq!(posts(&server), (3, 1));
    // Looks that come for other reasons make nothing.
    let key = ("ns".to_owned(), "pool".to_owned());
    let exceeded = Exceeded::resource_quota("exceeded quota: few");
    let state = &controller.known.state;
    let mut wait = Duration::ZERO;
    for _ in 0..9 {
        wait = state.refused(&key, exceeded.clone(), Timestamp::now());
    }
    assert_eq!(wait, Duration::from_millis(51_200));
    for _ in 0..10 {
        assert!(controller.look().await.unwrap() > 30_000);
    }
    assert_eq!(posts(&server), (0, 0));
    // Its time has come, and it is refused again.
    state.refused(&key, exceeded.clone(), Timestamp::UNIX_EPOCH);
    assert_eq!(controller.look().await, Some(60_000));
    assert_eq!(posts(&server), (1, 0));
    assert_eq!(
        controller.said().unwrap().last_transition_time,
        said.last_transition_time
    );
    // It is raised.
    server.0.lock().unwrap().most_sandboxes = 9;
    state.refused(&key, exceeded, Timestamp::UNIX_EPOCH);
    controller.look().await;
    assert_eq!((controller.said(), posts(&server)), (None, (2, 0)));
    controller.look().await;
    assert_eq!((controller.said(), posts(&server)), (None, (0, 0)));
}

#[tokio::test]
async fn a_standby_quota_is_said_beside_what_is_made() {
    let server = Server::empty();
    let controller = Controller::of(&server);
    controller
        .known
        .quotas
        .wrote((*quota("q", Some(3), None)).clone());
    controller.look().await;
    // The test's store of pools is empty: the one that is looked at need not be in it.
    assert_eq!(posts(&server), (3, 1));
    assert_eq!(controller.said().unwrap().reason, "StandbyQuotaExceeded");
    controller.known.quotas.gone("ns", "q", "q-uid");
    controller.look().await;
    assert_eq!((controller.said(), posts(&server)), (None, (1, 0)));
}

#[tokio::test]
async fn what_a_resource_quota_refuses_is_tried_again_where_there_is_a_standby_quota_too() {
    let server = Server::empty();
    server.0.lock().unwrap().most_sandboxes = 0;
    let controller = Controller::of(&server);
    controller
        .known
        .quotas
        .wrote((*quota("q", Some(3), None)).clone());
    let wait = controller.look().await.unwrap();
    assert_eq!(controller.said().unwrap().reason, "ResourceQuotaExceeded");
    // What was refused takes up no room.
    assert_eq!(controller.known.state.usage("ns").standbys, 0);
    server.0.lock().unwrap().most_sandboxes = usize::MAX;
    tokio::time::sleep(Duration::from_millis(u64::try_from(wait).unwrap())).await;
    controller.look().await;
    assert_eq!(controller.known.state.usage("ns").standbys, 3);
    controller.look().await;
    assert_eq!(controller.said().unwrap().reason, "StandbyQuotaExceeded");
}

#[tokio::test]
async fn what_cannot_be_made_takes_up_no_room_of_a_quota() {
    let server = Server::empty();
    server.0.lock().unwrap().full = true;
    let controller = Controller::of(&server);
    controller
        .known
        .quotas
        .wrote((*quota("q", Some(4), None)).clone());
    for _ in 0..2 {
        let looked = reconcile(Arc::new(pool(4)), Arc::clone(&controller.context)).await;
        assert!(looked.is_err());
        assert_eq!(controller.known.state.usage("ns").standbys, 0);
    }
}

#[tokio::test]
async fn what_the_api_server_does_not_keep_is_not_written_over_and_over() {
    let server = Server::empty();
    {
        let mut state = server.0.lock().unwrap();
        state.prunes = true;
        state.most_sandboxes = 2;
    }
    let controller = Controller::of(&server);
    let claimed = || {
        let state = &controller.known.state;
        state.claimed("ns", "pool", false, Timestamp::now());
    };
    claimed();
    controller.look().await;
    controller.look().await;
    server.log();
    for _ in 0..5 {
        claimed();
        controller.look().await;
        let log = server.log();
        assert!(!log.iter().any(|entry| entry.contains("status")), "{log:?}");
    }
}

#[tokio::test]
async fn what_claims_ask_for_goes_with_what_is_written_anyway() {
    let server = Server::empty();
    let controller = Controller::of(&server);
    controller.look().await;
    controller.look().await;
    server.log();
    let told = || {
        controller
            .known
            .pools
            .get("ns", "pool")
            .unwrap()
            .status
            .clone()
            .unwrap()
            .demand
    };
    assert_eq!(told(), None);
    // The first is said at once.
    let state = &controller.known.state;
    let claimed = || state.claimed("ns", "pool", false, Timestamp::now());
    claimed();
    controller.look().await;
    assert_eq!(server.log(), ["patch sandboxwarmpools/status pool"]);
    claimed();
    controller.look().await;
    assert_eq!((server.log(), told().unwrap().claims), (vec![], 1));
    // One is gone, and the status is written for that.
    let standby = &controller.known.sandboxes.group("ns", "pool-uid")[0];
    let meta = &standby.metadata;
    controller
        .known
        .sandboxes
        .gone("ns", objects::name(meta), objects::uid(meta));
    controller.look().await;
    let log = server.log();
    assert!(
        log.contains(&"patch sandboxwarmpools/status pool".to_owned()),
        "{log:?}"
    );
    assert_eq!(told().unwrap().claims, 2);
}

#[test]
fn standbys_whose_pods_a_quota_refuses_are_kept_and_no_others_are_made() {
    let mut refused = standby("a", false, 1000);
    refused.status.get_or_insert_default().conditions[0].message =
        "Error seen: failed to create pod: pods \"a\" is forbidden: exceeded quota: few, requested: pods=1, used: \
         pods=3, limited: pods=3\nmore"
            .to_owned();
    let next = decide(&with(pool(3), vec![refused.clone()]));
    assert_eq!((next.make, deleted(&next)), (0, vec![]));
    let said = next.exceeded.unwrap();
    assert_eq!(said.reason, "ResourceQuotaExceeded");
    let ends = "exceeded quota: few, requested: pods=1, used: pods=3, limited: pods=3";
    assert!(said.message.ends_with(ends), "{}", said.message);
    assert_eq!(next.requeue, Some(Duration::from_secs(60)));
    // Too many are too many.
    let next = decide(&with(pool(0), vec![refused]));
    assert_eq!(deleted(&next), [("a", Why::Excess)]);
}
