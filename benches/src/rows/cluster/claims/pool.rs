//! Pools, their templates, and claims.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dormouse_testkit::host::wait;
use kube::api::{DeleteParams, DynamicObject, ListParams};
use serde_json::{Value, json};

use crate::rows::cluster::site::{SPACE, Site, create, is, sandbox};
use crate::rows::cluster::watched::Watched;

/// How long a pool may take until all its standbys wait as they are to, and until all of them are gone.
const LONG: Duration = Duration::from_secs(900);
/// A watch ends after 290 s, and is begun again.
const WATCH: Duration = Duration::from_secs(280);
/// How long to wait between looks at thousands of objects.
const LOOK: Duration = Duration::from_millis(250);
/// Objects that are asked for at once.
const PAGE: u32 = 500;

const VERSION: &str = "extensions.agents.x-k8s.io/v1beta1";

/// A pool with a template of its own, of the same name.
pub(super) struct Pool<'a> {
    site: &'a Site,
    pub(super) name: String,
    replicas: u32,
    /// The rung on which its standbys wait; `None`: they run.
    rung: Option<&'static str>,
}

/// The pod template of a Python program under gVisor, with limits for a guest of so many MiB.
pub(super) fn pod_template(mib: u32, program: &str) -> Value {
    let mut object = sandbox("template", mib, &json!({}));
    let mut template = object["spec"]["podTemplate"].take();
    template["spec"]["containers"][0]["command"][2] = json!(program);
    template
}

/// A claim of a pool's standby.
pub(super) fn claim(name: &str, pool: &str) -> Value {
    json!({
        "apiVersion": VERSION, "kind": "SandboxClaim",
        "metadata": {"name": name, "namespace": SPACE}, "spec": {"warmPoolRef": {"name": pool}},
    })
}

impl<'a> Pool<'a> {
    /// Makes one; `rung`: on which its standbys sleep, `None` to have them run; `more` of its specification.
    pub(super) async fn make(
        site: &'a Site,
        name: &str,
        pod_template: &Value,
        replicas: u32,
        rung: Option<&'static str>,
        more: &Value,
    ) -> Result<Self> {
        let template = json!({
            "apiVersion": VERSION, "kind": "SandboxTemplate",
            "metadata": {"name": name, "namespace": SPACE},
            // The policy that is made otherwise lets nobody in but the router.
            "spec": {"networkPolicyManagement": "Unmanaged", "podTemplate": pod_template},
        });
        create(&site.templates(), &template).await?;
        let mut pool = json!({
            "apiVersion": VERSION, "kind": "SandboxWarmPool",
            "metadata": {"name": name, "namespace": SPACE},
            "spec": {
                "replicas": replicas, "sandboxTemplateRef": {"name": name},
                "standby": rung.unwrap_or("Running"),
            },
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            pool["spec"][key] = value.clone();
        }
        create(&site.pools(), &pool).await?;
        Ok(Self {
            site,
            name: name.to_owned(),
            replicas,
            rung,
        })
    }

    /// Waits until the pool says that all its standbys are ready.
    pub(super) async fn ready(&self) -> Result<()> {
        let what = format!("pool {} to be full", self.name);
        wait::until(&what, LONG, async || {
            let mut seen = Watched::begin(self.site.pools(), &self.name).await?;
            let is_full = |pool: &DynamicObject| pool.data["status"]["readyReplicas"] == self.replicas;
            seen.until_within(WATCH, "to be full", is_full).await.map(drop)
        })
        .await
    }

    /// Waits until all its standbys are ready and wait on their rung, and nothing goes that was a claim's.
    pub(super) async fn settled(&self) -> Result<()> {
        self.ready().await?;
        let what = format!("standbys of {} to wait as they are to", self.name);
        wait::until(&what, LONG, async || {
            tokio::time::sleep(LOOK).await;
            let sandboxes = all(&self.site.sandboxes()).await?;
            let standbys: Vec<_> = sandboxes.iter().filter(|sandbox| self.owns(sandbox)).collect();
            let waiting = standbys.iter().filter(|standby| self.waits(standby)).count();
            let wanted = usize::try_from(self.replicas)?;
            // Each claim has its sandbox, and that its pod.
            let kept = wanted + all(&self.site.claims()).await?.len();
            let (sandboxes, pods) = (sandboxes.len(), all(&self.site.pods()).await?.len());
            ensure!(
                waiting == wanted && standbys.len() == wanted && sandboxes == kept && pods == kept,
                "{waiting} of {} wait; there are {sandboxes} Sandboxes and {pods} pods, and {kept} are to be",
                standbys.len()
            );
            Ok(())
        })
        .await
    }

    fn waits(&self, standby: &DynamicObject) -> bool {
        let conditions = standby.data["status"]["conditions"].as_array();
        let asleep_on = conditions
            .into_iter()
            .flatten()
            .find(|it| it["type"] == "Dormant" && it["status"] == "True")
            .and_then(|it| it["reason"].as_str());
        is(standby, "Ready", "True") && asleep_on == self.rung
    }

    /// Whether a Sandbox is one of its standbys.
    fn owns(&self, sandbox: &DynamicObject) -> bool {
        let owners = sandbox.metadata.owner_references.iter().flatten();
        let mut pools = owners.filter(|owner| owner.kind == "SandboxWarmPool");
        pools.any(|owner| owner.name == self.name)
    }

    /// Removes it and all claims, and waits until no pod is left.
    pub(super) async fn remove(self) -> Result<()> {
        let params = DeleteParams::background();
        let pools = self.site.pools();
        pools.delete(&self.name, &params).await.context("delete a pool")?;
        // The API server gives a request a minute, which thousands of claims may not be enough for.
        wait::until("all claims to be deleted", LONG, async || {
            let claims = self.site.claims();
            let deleted = claims.delete_collection(&params, &ListParams::default()).await;
            deleted.map(drop).context("delete all claims")
        })
        .await?;
        wait::until("all pods to be gone", LONG, async || {
            tokio::time::sleep(LOOK).await;
            let (pods, sandboxes) = (
                all(&self.site.pods()).await?.len(),
                all(&self.site.sandboxes()).await?.len(),
            );
            ensure!(
                pods == 0 && sandboxes == 0,
                "{pods} pods and {sandboxes} Sandboxes are left"
            );
            Ok(())
        })
        .await?;
        let templates = self.site.templates();
        templates
            .delete(&self.name, &params)
            .await
            .map(drop)
            .context("delete a template")
    }
}

/// All objects of a kind.
pub(super) async fn all(api: &kube::Api<DynamicObject>) -> Result<Vec<DynamicObject>> {
    let (mut found, mut params) = (Vec::new(), ListParams::default().limit(PAGE));
    loop {
        let page = api.list(&params).await.context("list")?;
        found.extend(page.items);
        match page.metadata.continue_.filter(|more| !more.is_empty()) {
            Some(more) => params = params.continue_token(&more),
            None => return Ok(found),
        }
    }
}
