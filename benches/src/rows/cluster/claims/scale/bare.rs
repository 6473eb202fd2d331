//! What the API server takes of the patches that claims need, when nobody but the client is there.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dormouse_testkit::cluster::release;
use dormouse_testkit::host::wait;
use futures::{StreamExt, TryStreamExt, stream};
use kube::Api;
use kube::api::{DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};

use super::WORKERS;
use crate::rows::cluster::site::Site;
use crate::samples::{Samples, ms};

const CONTROLLER: &str = "deployment/agent-sandbox-controller";
const PROGRAM: &str = "dormouse-controller";
const LONG: Duration = Duration::from_secs(60);

/// What came of it.
pub(super) struct Bare {
    /// Claims whose two patches were made.
    pub(super) per_second: f64,
    /// Of the two patches of a claim, one after the other, ms.
    pub(super) latencies: Samples,
    /// Memory of the controller before it was sent away, bytes.
    pub(super) resident: u64,
}

/// Patches each of these claims and its Sandbox once, as the controller does to hand a standby over, while no controller
/// runs; one runs again afterwards.
pub(super) async fn measure(site: &Site, claims: &[String]) -> Result<Bare> {
    let resident = site.resident(PROGRAM)?;
    scale(site, 0).await?;
    wait::until("the controller to be gone", LONG, async || {
        let left = site.cluster.processes(PROGRAM).len();
        ensure!(left == 0, "{left} run");
        Ok(())
    })
    .await?;
    let done = patch_all(site, claims).await;
    scale(site, 1).await?;
    site.cluster
        .kubectl(&[
            "rollout",
            "status",
            CONTROLLER,
            "--namespace",
            release::NAMESPACE,
            "--timeout=120s",
        ])
        .await?;
    let (took, latencies) = done?;
    Ok(Bare {
        per_second: claims.len() as f64 / took.as_secs_f64(),
        latencies,
        resident,
    })
}

async fn scale(site: &Site, replicas: u8) -> Result<()> {
    let replicas = format!("--replicas={replicas}");
    let arguments = ["scale", CONTROLLER, "-n", release::NAMESPACE, &replicas];
    site.cluster.kubectl(&arguments).await.map(drop)
}

async fn patch_all(site: &Site, claims: &[String]) -> Result<(Duration, Samples)> {
    let (claims_api, sandboxes) = (site.claims(), site.sandboxes());
    let pairs: Vec<(DynamicObject, DynamicObject)> = stream::iter(claims)
        .map(async |name| {
            let claim = claims_api.get(name).await.context("get a claim")?;
            let sandbox = claim.data["status"]["sandbox"]["name"].as_str();
            let sandbox = sandbox.with_context(|| format!("claim {name} has no Sandbox"))?;
            let sandbox = sandboxes.get(sandbox).await.context("get its Sandbox")?;
            anyhow::Ok((claim, sandbox))
        })
        .buffer_unordered(WORKERS)
        .try_collect()
        .await?;
    let began = Instant::now();
    let latencies = stream::iter(&pairs)
        .map(async |(claim, sandbox)| {
            let began = Instant::now();
            patch(&sandboxes, sandbox, &of_sandbox(sandbox), false).await?;
            patch(&claims_api, claim, &of_claim(claim), true).await?;
            anyhow::Ok(ms(began.elapsed()))
        })
        .buffer_unordered(WORKERS)
        .try_collect()
        .await?;
    Ok((began.elapsed(), Samples(latencies)))
}

async fn patch(
    api: &Api<DynamicObject>,
    object: &DynamicObject,
    patch: &Value,
    is_status: bool,
) -> Result<()> {
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let (params, patch) = (PatchParams::default(), Patch::Merge(patch));
    let patched = if is_status {
        api.patch_status(name, &params, &patch).await
    } else {
        api.patch(name, &params, &patch).await
    };
    patched.map(drop).with_context(|| format!("patch {name}"))
}

/// With a condition on the version, owner, labels, annotations and the pod's, as when a standby becomes a claim's.
fn of_sandbox(sandbox: &DynamicObject) -> Value {
    let meta = &sandbox.metadata;
    json!({
        "metadata": {
            "resourceVersion": meta.resource_version,
            "ownerReferences": meta.owner_references,
            "labels": {
                "bench.dormouse.dev/claim-uid": meta.uid, "bench.dormouse.dev/launch-type": "warm",
                "bench.dormouse.dev/template": null,
            },
            "annotations": {"bench.dormouse.dev/pod-name": meta.name},
        },
        "spec": {"podTemplate": {"metadata": {"labels": {"bench.dormouse.dev/claim-uid": meta.uid}}}},
    })
}

/// With a condition on the version, the conditions, and the sandbox with its addresses.
fn of_claim(claim: &DynamicObject) -> Value {
    let mut status = claim.data["status"].clone();
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        condition["message"] = json!("written by the bench");
    }
    json!({"metadata": {"resourceVersion": claim.metadata.resource_version}, "status": status})
}

#[cfg(test)]
mod tests {
    use kube::api::DynamicObject;
    use serde_json::json;

    use super::{of_claim, of_sandbox};

    #[test]
    fn each_patch_changes_something_and_is_bound_to_the_version() {
        let object: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Any",
            "metadata": {"name": "one", "uid": "u", "resourceVersion": "7"},
            "status": {"conditions": [{"type": "Ready", "message": "before"}], "sandbox": {"name": "box"}},
        }))
        .unwrap();
        let (sandbox, claim) = (of_sandbox(&object), of_claim(&object));
        assert_eq!(sandbox["metadata"]["resourceVersion"], "7");
        assert_eq!(claim["metadata"]["resourceVersion"], "7");
        assert_ne!(claim["status"], object.data["status"]);
        assert_eq!(claim["status"]["sandbox"]["name"], "box");
    }
}
