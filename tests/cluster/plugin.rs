//! `kubectl dormouse`, run as a process on a real cluster with Dormouse installed.

use std::process::Output;
use std::time::Duration;

use dormouse_testkit::Cluster;
use dormouse_testkit::host::wait;
use serde_json::{Value, json};

use crate::installed::installed;
use crate::memory::{address, rememberer};
use crate::sandboxes::{gone, sandbox, until};
use crate::support::{LIMIT, ask, namespace};

/// Runs it as kubectl's users do: kubectl finds it in PATH.
async fn run(cluster: &Cluster, arguments: &[&str]) -> Output {
    let plugin = cluster.built().own("kubectl-dormouse").unwrap();
    let path = format!(
        "{}:{}",
        plugin.parent().unwrap().display(),
        std::env::var("PATH").unwrap_or_default()
    );
    let mut command = tokio::process::Command::from(cluster.kubectl_command());
    command.env("PATH", path).arg("dormouse").args(arguments);
    command.kill_on_drop(true);
    tokio::time::timeout(LIMIT, command.output())
        .await
        .unwrap()
        .unwrap()
}

/// What it prints when it does what it is told.
pub(crate) async fn said(cluster: &Cluster, arguments: &[&str]) -> String {
    let output = run(cluster, arguments).await;
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) async fn value(cluster: &Cluster, arguments: &[&str]) -> Value {
    let text = said(cluster, &[arguments, &["-o", "json"]].concat()).await;
    serde_json::from_str(&text).unwrap()
}

/// Error output and exit code of what it does not do.
async fn refused(cluster: &Cluster, arguments: &[&str]) -> (String, Option<i32>) {
    let output = run(cluster, arguments).await;
    let said = String::from_utf8(output.stderr).unwrap();
    (said, output.status.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plugin_suspends_and_resumes_and_says_why() {
    let space = "plugin";
    let cluster = installed().await;
    namespace(&cluster, space).await;
    let spec = json!({"suspensionStrategy": {"type": "Freeze"}});
    cluster.apply(&rememberer(space, "box", &spec)).await.unwrap();
    until(&cluster, space, "box", "Ready", "True", "DependenciesReady").await;
    let node = cluster.nodes()[0].name().to_owned();

    let listed = value(&cluster, &["ps", "-n", space]).await;
    assert_eq!(listed[0]["name"], "box");
    assert_eq!(listed[0]["rung"], "Running");
    assert_eq!(listed[0]["node"], node.as_str());
    assert_eq!(listed[0]["pod"], "box");
    assert_eq!(listed[0]["suspensionStrategy"], "Freeze");

    let suspended = value(&cluster, &["suspend", "-n", space, "box"]).await;
    assert_eq!(suspended[0]["ok"], true, "{suspended}");
    assert_eq!(suspended[0]["changed"], true);
    assert!(suspended[0]["tookMs"].as_f64().unwrap() > 0.0);
    let state = suspended[0]["state"].as_str().unwrap().to_owned();
    assert!(["Frozen", "Dozing"].contains(&state.as_str()), "{state}");
    let again = said(&cluster, &["suspend", &format!("{space}/box")]).await;
    assert!(again.contains(" already"), "{again}");

    let why = said(&cluster, &["why", "-n", space, "box"]).await;
    for part in [
        "operatingMode is Suspended".to_owned(),
        "suspensionStrategy.type is Freeze".to_owned(),
        format!("on node {node}"),
        "RuntimeClass dormouse-gvisor".to_owned(),
        format!("kubectl dormouse resume -n {space} box"),
    ] {
        assert!(why.contains(&part), "lacks {part}: {why}");
    }

    let resumed = said(&cluster, &["resume", "-n", space, "--all"]).await;
    assert!(resumed.contains("box  Running"), "{resumed}");

    // What it cost is written down behind the answer.
    wait::until("what the moves have cost", LIMIT, async || {
        let why = value(&cluster, &["why", "-n", space, "box"]).await;
        let past = why["past"].as_array().cloned().unwrap_or_default();
        let costs: Vec<&Value> = past.iter().filter(|past| past["hasCost"] == true).collect();
        anyhow::ensure!(costs.len() >= 2, "{why}");
        Ok(())
    })
    .await
    .unwrap();
    let events = value(&cluster, &["events", "-n", space, "box"]).await;
    let events = events.as_array().unwrap();
    let has = |about: &str, reason: &str| {
        events
            .iter()
            .any(|event| event["about"] == about && event["reason"] == reason)
    };
    assert!(
        has("Sandbox/box", "Suspended") && has("Sandbox/box", "Resumed"),
        "{events:?}"
    );
    assert!(has("Pod/box", "Started"), "{events:?}");

    let top = value(&cluster, &["top", "-n", space]).await;
    assert_eq!(top["sandboxes"][0]["templateBytes"], 64 << 20);
    assert!(top["sandboxes"][0]["requestedBytes"].is_u64(), "{top}");
    // There is no metrics-server, and nothing is invented.
    assert_eq!(top["sandboxes"][0]["usedBytes"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plugin_shows_what_nodes_can_do() {
    let cluster = installed().await;
    let node = cluster.nodes()[0].name().to_owned();
    let nodes = wait::until("the agent's word on its node", LIMIT, async || {
        let nodes = value(&cluster, &["node", "ls"]).await;
        anyhow::ensure!(nodes[0]["ready"] == "True", "{nodes}");
        Ok(nodes)
    })
    .await
    .unwrap();
    assert_eq!(nodes[0]["name"], node.as_str());
    assert_eq!(nodes[0]["kubeletReady"], true);
    let text = said(&cluster, &["node", "describe", &node]).await;
    assert!(text.contains("gvisor: yes"), "{text}");
    let versions = value(&cluster, &["version"]).await;
    assert_eq!(versions["controller"], versions["cli"]);
    assert!(
        versions["kubernetes"]
            .as_str()
            .is_some_and(|version| version.starts_with('v'))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plugin_says_what_is_wrong() {
    let space = "plugin-errors";
    let cluster = installed().await;
    namespace(&cluster, space).await;
    let (said, code) = refused(&cluster, &["why", "-n", space, "nobody"]).await;
    assert!(
        said.contains("NotFound: get sandboxes.agents.x-k8s.io nobody"),
        "{said}"
    );
    assert_eq!(code, Some(1));
    let (said, code) = refused(&cluster, &["ps", "-n", space, "--as", "stranger"]).await;
    assert!(
        said.contains("Forbidden: ") && said.contains("verb \"list\" on \"sandboxes\""),
        "{said}"
    );
    assert_eq!(code, Some(1));
    let (said, code) = refused(&cluster, &["ps", "--context", "nowhere"]).await;
    assert!(said.contains("ClusterUnreachable: "), "{said}");
    assert_eq!(code, Some(3));

    // A pod that finds no node is not waited for longer than was asked.
    let spec = json!({"operatingMode": "Suspended"});
    let mut object = sandbox(space, "homeless", None, &spec);
    object["spec"]["podTemplate"]["spec"]["nodeSelector"] = json!({"no": "such-node"});
    cluster.apply(&object).await.unwrap();
    until(&cluster, space, "homeless", "Suspended", "True", "PodTerminated").await;
    let began = std::time::Instant::now();
    let (said, code) = refused(&cluster, &["resume", "-n", space, "homeless", "--timeout", "3s"]).await;
    assert!(said.contains("DeadlineExceeded: not running within 3s"), "{said}");
    assert_eq!(code, Some(1));
    assert!(began.elapsed() < Duration::from_secs(30));
    let why = wait::until("the scheduler's word", LIMIT, async || {
        let output = run(&cluster, &["why", "-n", space, "homeless"]).await;
        let why = String::from_utf8(output.stdout)?;
        anyhow::ensure!(why.contains("Unschedulable"), "{why}");
        Ok(why)
    })
    .await
    .unwrap();
    assert!(
        why.contains("is Starting on no node") && why.contains("no=such-node"),
        "{why}"
    );
}

/// Namespace and name of each that is listed.
fn named(listed: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = listed.as_array().unwrap().iter();
    all.map(|one| (text(&one["namespace"]), text(&one["name"])))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plugin_lists_what_is_meant_and_looks_after_snapshots() {
    let (space, elsewhere) = ("plugin-snapshots", "plugin-elsewhere");
    let cluster = installed().await;
    namespace(&cluster, space).await;
    namespace(&cluster, elsewhere).await;
    let spec = json!({"suspensionStrategy": {"type": "Hibernate"}});
    let mut object = rememberer(space, "box", &spec);
    object["metadata"]["labels"] = json!({"plugin": "chosen"});
    cluster.apply(&object).await.unwrap();
    let spec = json!({"operatingMode": "Suspended"});
    let mut other = sandbox(elsewhere, "other", None, &spec);
    other["metadata"]["labels"] = json!({"plugin": "left"});
    cluster.apply(&other).await.unwrap();
    let up = until(&cluster, space, "box", "Ready", "True", "DependenciesReady").await;
    let word = ask(address(&up)).await;
    let node = cluster.nodes()[0].name();
    let suspended = value(&cluster, &["suspend", "-n", space, "box"]).await;
    assert_eq!(suspended[0]["state"], "Hibernated", "{suspended}");

    let chosen = (space.to_owned(), "box".to_owned());
    let left = (elsewhere.to_owned(), "other".to_owned());
    let all = named(&value(&cluster, &["ps", "-A"]).await);
    assert!(all.contains(&chosen) && all.contains(&left), "{all:?}");
    let one = value(&cluster, &["ps", "-n", space]).await;
    assert_eq!(named(&one), std::slice::from_ref(&chosen));
    assert_eq!(one[0]["rung"], "Hibernated");
    let snapshot = one[0]["snapshot"].as_str().unwrap().to_owned();
    for (selector, wanted) in [
        ("plugin=chosen", &[chosen.clone()][..]),
        ("plugin,plugin!=chosen", &[left]),
        ("plugin=nobody", &[]),
    ] {
        let found = named(&value(&cluster, &["ps", "-A", "-l", selector]).await);
        assert_eq!(found, wanted, "{selector}");
    }
    let text = said(&cluster, &["ps", "-A", "-l", "plugin=chosen"]).await;
    assert!(
        text.contains("NAMESPACE") && text.contains("Hibernated"),
        "{text}"
    );

    // What the suspend has made, as the only memory that there is.
    let kept = wait::until("the snapshot's object", LIMIT, async || {
        let kept = value(&cluster, &["snapshot", "ls", "-n", space]).await;
        anyhow::ensure!(kept[0]["ready"] == "True", "{kept}");
        Ok(kept)
    })
    .await
    .unwrap();
    assert_eq!(named(&kept), [(space.to_owned(), snapshot.clone())]);
    assert_eq!(
        (&kept[0]["sandbox"], &kept[0]["node"]),
        (&json!("box"), &json!(node))
    );
    assert_eq!(kept[0]["origin"], "Suspend");
    let of_other = said(&cluster, &["snapshot", "ls", "-n", space, "other"]).await;
    assert_eq!(of_other.trim(), "no snapshots");
    let everywhere = named(&value(&cluster, &["snapshot", "ls", "-A"]).await);
    assert!(everywhere.contains(&(space.to_owned(), snapshot.clone())));
    let described = said(&cluster, &["snapshot", "describe", "-n", space, &snapshot]).await;
    for part in [
        &format!("{space}/{snapshot}"),
        "Ready=True SnapshotReady",
        "Suspend",
        node,
        "gvisor/",
    ] {
        assert!(described.contains(part), "lacks {part}: {described}");
    }
    let told = said(&cluster, &["snapshot", "rm", "-n", space, &snapshot, "--no-wait"]).await;
    assert!(told.contains(&format!("{space}/{snapshot}  told")), "{told}");
    wait::until("the word that it is needed", LIMIT, async || {
        let kept = value(&cluster, &["snapshot", "ls", "-n", space, "box"]).await;
        anyhow::ensure!(kept[0]["reason"] == "HoldsMemory", "{kept}");
        Ok(())
    })
    .await
    .unwrap();
    let again = ["snapshot", "rm", "-n", space, &snapshot, "--timeout", "1s"];
    let (kept, code) = refused(&cluster, &again).await;
    assert!(
        kept.contains("DeadlineExceeded: ") && kept.contains("HoldsMemory"),
        "{kept}"
    );
    assert_eq!(code, Some(1));
    said(&cluster, &["resume", "-n", space, "box"]).await;
    let up = until(&cluster, space, "box", "Ready", "True", "DependenciesReady").await;
    assert_eq!(ask(address(&up)).await, word);
    gone(&cluster, "sandboxsnapshot.dormouse.dev", space, &snapshot).await;

    // One that is asked for, and stays until it is removed.
    let asked = [
        "snapshot", "create", "-n", space, "box", "--name", "held", "--pin",
    ];
    let made = value(&cluster, &asked).await;
    assert_eq!(
        (&made["name"], &made["ready"], &made["pinned"]),
        (&json!("held"), &json!("True"), &json!(true))
    );
    assert!(made["sizeBytes"].as_u64().unwrap() > 1 << 20, "{made}");
    let described = said(&cluster, &["snapshot", "describe", &format!("{space}/held")]).await;
    assert!(described.contains("until it is removed (pinned)"), "{described}");
    assert_eq!(ask(address(&up)).await, word, "it runs on");
    let removed = said(&cluster, &["snapshot", "rm", "-n", space, "held"]).await;
    assert!(removed.contains(&format!("{space}/held  removed")), "{removed}");
    let (missing, code) = refused(&cluster, &["snapshot", "describe", "-n", space, "held"]).await;
    assert!(missing.contains("NotFound"), "{missing}");
    assert_eq!(code, Some(1));
}
