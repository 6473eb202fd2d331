//! Somebody who writes all the time to what the controller works on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dormouse_testkit::ClusterOptions;
use kube::Api;
use kube::api::{DynamicObject, Patch, PatchParams};
use serde_json::json;
use tokio::task::JoinSet;

use super::{Keeper, SPACE, client, cluster, nobody_panicked, objects, writes};

/// How often both sandboxes go to sleep and come back.
const ROUNDS: u64 = 3;

/// Most writes of the controller for a transition, all told. It is six of them without a storm.
const MOST: u64 = 12;

/// Changes an object as fast as the API server takes it. That it is not there at the moment, or is somebody else's version by now,
/// is nothing to wait for.
async fn storm(api: Api<DynamicObject>, name: &'static str, made: Arc<AtomicU64>) {
    let mut round = 0_u64;
    loop {
        round += 1;
        let patch = json!({"metadata": {
            "annotations": {"storm": round.to_string()}, "labels": {"storm": format!("{}", round % 7)},
        }});
        let patched = api
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await;
        if patched.is_ok() {
            made.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn others_who_write_all_the_time_delay_and_multiply_nothing() {
    let cluster = cluster(ClusterOptions::default()).await;
    let frozen = Keeper::start(&cluster, "frozen", "Freeze").await;
    let saved = Keeper::start(&cluster, "saved", "Hibernate").await;
    let client = client(&cluster, None).await;
    let sandboxes = objects(&client, SPACE, "agents.x-k8s.io", "v1beta1", "Sandbox");
    let pods = objects(&client, SPACE, "", "v1", "Pod");
    let made = Arc::new(AtomicU64::new(0));
    let before = writes(&cluster).await;
    let mut storms = JoinSet::new();
    for api in [&sandboxes, &pods] {
        for keeper in [&frozen, &saved] {
            storms.spawn(storm(api.clone(), keeper.name, Arc::clone(&made)));
        }
    }
    for round in 0..ROUNDS {
        for keeper in [&frozen, &saved] {
            keeper.suspend(&cluster).await;
        }
        for keeper in [&frozen, &saved] {
            keeper.asleep(&cluster).await;
        }
        for keeper in [&frozen, &saved] {
            keeper.resume(&cluster).await;
        }
        for keeper in [&frozen, &saved] {
            keeper
                .awake(&cluster, &format!("in a storm, round {round}"))
                .await;
        }
    }
    storms.shutdown().await;
    let made = made.load(Ordering::Relaxed);
    let after = writes(&cluster).await;
    let own: u64 = after.values().sum::<u64>() - before.values().sum::<u64>();
    eprintln!("{own} writes of the controller, {made} of others: {before:?} {after:?}");
    let transitions = 2 * 2 * ROUNDS;
    assert!(made > 10 * transitions, "no storm: {made} writes");
    assert!(
        own <= MOST * transitions,
        "{own} writes for {transitions} transitions, {made} of others: {before:?} {after:?}"
    );
    nobody_panicked(&cluster).await;
    cluster.down().unwrap();
}
