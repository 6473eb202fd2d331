//! Claims that bring an environment to standbys that sleep, on a real cluster with Dormouse installed.

use dormouse_testkit::Cluster;
use dormouse_testkit::host::wait;
use serde_json::{Value, json};

use crate::installed::installed;
use crate::memory::address;
use crate::pools::{name, owned_by, pool, ready, template, until};
use crate::support::{LIMIT, ask, namespace};

/// What a shell has to give back to the byte.
const VALUE: &str = "it's \"$HOME\" `x` \\\n second line";

/// A template whose pods take environments; the command leaves a note of what it was given.
fn taking(space: &str, command: &str) -> Value {
    let mut template = template(space);
    template["spec"]["envVarsInjectionPolicy"] = json!("Allowed");
    template["spec"]["podTemplate"]["metadata"]["annotations"] = json!({
        "dormouse.dev/late-env": "/tmp/claim/env",
        "dormouse.dev/late-env-exec": json!(["/bin/sh", "-c", command]).to_string(),
    });
    template
}

async fn start(space: &str, command: &str) -> std::sync::Arc<Cluster> {
    let cluster = installed().await;
    namespace(&cluster, space).await;
    cluster.apply(&taking(space, command)).await.unwrap();
    cluster.apply(&pool(space, 1, "Frozen", 1)).await.unwrap();
    cluster
}

async fn claim(cluster: &Cluster, space: &str) -> Value {
    cluster
        .apply(&json!({
            "apiVersion": "extensions.agents.x-k8s.io/v1beta1", "kind": "SandboxClaim",
            "metadata": {"name": "claim", "namespace": space},
            "spec": {"warmPoolRef": {"name": "pool"}, "env": [{"name": "TOKEN", "value": VALUE}]},
        }))
        .await
        .unwrap();
    ready(cluster, space, "claim").await
}

async fn printed(cluster: &Cluster, space: &str, pod: &str, script: &str) -> String {
    cluster
        .kubectl(&["exec", "-n", space, pod, "--", "/bin/sh", "-c", script])
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_standby_has_the_environment_when_its_claim_is_ready() {
    let space = "late-env";
    let cluster = start(space, "printf %s \"$TOKEN\" >/tmp/noted").await;
    let awake = until(&cluster, space, &[("Running", 1)]).await.remove(0);
    let word = ask(address(&awake)).await;
    crate::pools::change(&cluster, space, &json!({"awake": 0})).await;
    until(&cluster, space, &[("Frozen", 1)]).await;

    let claimed = claim(&cluster, space).await;
    assert_eq!(name(&claimed), name(&awake));
    // With all that it had loaded.
    assert_eq!(ask(address(&claimed)).await, word);
    let pod = name(&claimed);
    let read = printed(&cluster, space, &pod, ". /tmp/claim/env; printf %s \"$TOKEN\"").await;
    assert_eq!(read, VALUE);
    assert_eq!(printed(&cluster, space, &pod, "cat /tmp/noted").await, VALUE);
    // Later pods are started with it.
    let env = &claimed["spec"]["podTemplate"]["spec"]["containers"][0]["env"];
    assert_eq!(*env, json!([{"name": "TOKEN", "value": VALUE}]));
    cluster
        .kubectl(&["delete", "pod", &pod, "-n", space, "--wait=true"])
        .await
        .unwrap();
    wait::until("a pod with the environment from its start", LIMIT, async || {
        let read = cluster
            .kubectl(&[
                "exec",
                "-n",
                space,
                &pod,
                "--",
                "/bin/sh",
                "-c",
                "printf %s \"$TOKEN\"",
            ])
            .await?;
        anyhow::ensure!(read == VALUE, "it has {read:?}");
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_whose_command_fails_is_replaced_by_a_sandbox_of_the_claims_own() {
    let space = "late-env-refused";
    let cluster = start(space, "exit 3").await;
    until(&cluster, space, &[("Running", 1)]).await;
    let claimed = claim(&cluster, space).await;
    assert_eq!(
        (name(&claimed).as_str(), owned_by(&claimed, "SandboxClaim")),
        ("claim", Some("claim"))
    );
    let read = printed(&cluster, space, "claim", "printf %s \"$TOKEN\"").await;
    assert_eq!(read, VALUE);
    let claim = cluster.get("sandboxclaim", space, "claim").await.unwrap();
    let why = claim["metadata"]["annotations"]["dormouse.dev/late-env-refused"].as_str();
    assert!(
        why.is_some_and(|why| why.contains("ended with status 3")),
        "{why:?}"
    );
    // The pool is whole again.
    until(&cluster, space, &[("Running", 1)]).await;
}
