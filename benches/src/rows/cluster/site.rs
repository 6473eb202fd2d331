//! A cluster with Dormouse, and what is asked of it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dormouse_testkit::cluster::Cluster;
use dormouse_testkit::cluster::release::{self, HostSwap};
use dormouse_testkit::guest::remembers_a_word;
use dormouse_testkit::host::wait;
use dormouse_testkit::{PYTHON, http};
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::{Api, Client, Config};
use procfs::process::Process;
use serde_json::{Value, json};

use super::watched::Watched;
use crate::ask::LIMIT;

/// Where the sandboxes are.
pub(super) const SPACE: &str = "bench";

/// One client wakes everybody here, as often as it likes.
const EAGER: &str = "\
[packets]
wakes_per_source_per_minute = 1000000
wakes_per_node_per_minute = 1000000
";

/// How long nothing may be written before it is believed that nothing more will be.
const SETTLED: Duration = Duration::from_secs(3);

/// Where the controller says its numbers.
const METRICS: u16 = 8080;

/// Sleepers sink by order alone.
fn values() -> String {
    release::values(HostSwap::Brought, EAGER)
}

/// A cluster with Dormouse.
pub(super) struct Site {
    pub(super) cluster: Cluster,
    client: Client,
}

impl Site {
    /// Installs Dormouse on it.
    pub(super) async fn install(cluster: Cluster, settings: &[&str]) -> Result<Self> {
        release::install(&cluster, &values(), settings).await?;
        let file = cluster.kubeconfig();
        let config = Kubeconfig::read_from(&file).with_context(|| format!("read {}", file.display()))?;
        let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default())
            .await
            .context("the cluster's kubeconfig")?;
        let client = dormouse_apiserver::builder(config)
            .context("a client of the cluster")?
            .build();
        let site = Self { cluster, client };
        site.cluster
            .apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE}}))
            .await?;
        let account = "serviceaccount/default";
        site.cluster
            .kubectl(&["wait", "--for=create", account, "-n", SPACE, "--timeout=60s"])
            .await?;
        Ok(site)
    }

    /// Changes the installation.
    pub(super) async fn upgrade(&self, settings: &[&str]) -> Result<()> {
        release::upgrade(&self.cluster, &values(), settings).await
    }

    /// Adds to an error what the parts say.
    pub(super) async fn explain<T>(&self, outcome: Result<T>) -> Result<T> {
        match outcome {
            Ok(value) => Ok(value),
            Err(error) => {
                let words = release::words(&self.cluster).await;
                Err(error.context(words))
            }
        }
    }

    pub(super) fn down(self) -> Result<()> {
        self.cluster.down()
    }

    pub(super) fn sandboxes(&self) -> Api<DynamicObject> {
        self.objects(SPACE, "agents.x-k8s.io", "v1beta1", "Sandbox", "sandboxes")
    }

    pub(super) fn claims(&self) -> Api<DynamicObject> {
        let group = "extensions.agents.x-k8s.io";
        self.objects(SPACE, group, "v1beta1", "SandboxClaim", "sandboxclaims")
    }

    pub(super) fn pools(&self) -> Api<DynamicObject> {
        let group = "extensions.agents.x-k8s.io";
        self.objects(SPACE, group, "v1beta1", "SandboxWarmPool", "sandboxwarmpools")
    }

    pub(super) fn templates(&self) -> Api<DynamicObject> {
        let group = "extensions.agents.x-k8s.io";
        self.objects(SPACE, group, "v1beta1", "SandboxTemplate", "sandboxtemplates")
    }

    pub(super) fn pods(&self) -> Api<DynamicObject> {
        self.objects(SPACE, "", "v1", "Pod", "pods")
    }

    /// Objects of Dormouse's own namespace.
    pub(super) fn installed(&self, kind: &str, plural: &str) -> Api<DynamicObject> {
        self.objects(release::NAMESPACE, "", "v1", kind, plural)
    }

    fn objects(
        &self,
        space: &str,
        group: &str,
        version: &str,
        kind: &str,
        plural: &str,
    ) -> Api<DynamicObject> {
        let kind = GroupVersionKind::gvk(group, version, kind);
        let resource = ApiResource::from_gvk_with_plural(&kind, plural);
        Api::namespaced_with(self.client.clone(), space, &resource)
    }

    /// Makes a Sandbox.
    pub(super) async fn create(&self, object: &Value) -> Result<()> {
        create(&self.sandboxes(), object).await
    }

    /// Tells a Sandbox to run, or not to.
    pub(super) async fn operate(&self, name: &str, mode: &str) -> Result<()> {
        let patch = json!({"spec": {"operatingMode": mode}});
        self.sandboxes()
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .map(drop)
            .with_context(|| format!("patch Sandbox {name}"))
    }

    /// Makes a Sandbox and waits until it is ready and answers; where it does, and what.
    pub(super) async fn start(&self, name: &str, object: &Value) -> Result<(SocketAddr, String)> {
        self.create(object).await?;
        let mut seen = Watched::begin(self.sandboxes(), name).await?;
        let ready = seen.until("to be ready", |it| is(it, "Ready", "True")).await?;
        let address = address(&ready.object)?;
        let word = wait::until("its first answer", LIMIT, async || {
            http::get(address, "/", Duration::from_secs(5)).await
        })
        .await?;
        Ok((address, word.body))
    }

    /// Where the controller says its numbers; not the one that is to go.
    async fn controller(&self) -> Result<SocketAddr> {
        let listed = self
            .cluster
            .kubectl(&[
                "get",
                "pods",
                "--namespace",
                release::NAMESPACE,
                "--selector=app=agent-sandbox-controller",
                "--output=json",
            ])
            .await?;
        let listed: Value = serde_json::from_str(&listed)?;
        let pods = listed["items"].as_array().context("a list without items")?;
        let ip = pods
            .iter()
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .find_map(|pod| pod["status"]["podIP"].as_str())
            .context("no controller has an address")?;
        let ip: Ipv4Addr = ip.parse().context("the controller's address")?;
        Ok((ip, METRICS).into())
    }

    /// The numbers of the controller.
    pub(super) async fn metrics(&self) -> Result<String> {
        let answer = http::get(self.controller().await?, "/metrics", Duration::from_secs(10)).await?;
        ensure!(
            answer.status == 200,
            "the controller's numbers: {}",
            answer.status
        );
        Ok(answer.body)
    }

    /// How often the controller has written what, by verb and resource; Leases, which it writes in any case, apart.
    pub(super) async fn writes(&self) -> Result<BTreeMap<String, u64>> {
        Ok(written(&self.metrics().await?))
    }

    /// The same, once nothing is written any more.
    pub(super) async fn settled(&self) -> Result<BTreeMap<String, u64>> {
        let mut last = self.writes().await?;
        let mut since = Instant::now();
        wait::until("the controller to write nothing", LIMIT, async || {
            let now = self.writes().await?;
            if now != last {
                last = now;
                since = Instant::now();
            }
            ensure!(since.elapsed() >= SETTLED, "it wrote {:?} ago", since.elapsed());
            Ok(last.clone())
        })
        .await
    }

    /// Resident memory of a program that runs once in this cluster, with its children of the same name, bytes.
    pub(super) fn resident(&self, program: &str) -> Result<u64> {
        let mut bytes = 0;
        let mut parents = BTreeMap::new();
        for id in self.cluster.processes(program) {
            let status = Process::new(id.pid)?.status()?;
            bytes += status.vmrss.unwrap_or_default() << 10;
            parents.insert(status.pid, status.ppid);
        }
        let runs = parents.values().filter(|parent| !parents.contains_key(parent));
        let runs = runs.count();
        ensure!(runs == 1, "{program} runs {runs} times");
        Ok(bytes)
    }
}

/// Makes an object.
pub(super) async fn create(api: &Api<DynamicObject>, object: &Value) -> Result<()> {
    let object: DynamicObject = serde_json::from_value(object.clone())?;
    api.create(&PostParams::default(), &object)
        .await
        .map(drop)
        .with_context(|| format!("create {}", object.metadata.name.unwrap_or_default()))
}

/// Requests of the controller that write, without those for its Lease.
fn written(metrics: &str) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for line in metrics.lines() {
        let Some(rest) = line.strip_prefix("dormouse_controller_api_requests_total{") else {
            continue;
        };
        let Some((labels, value)) = rest.split_once('}') else {
            continue;
        };
        let label = |key: &str| {
            labels
                .split(',')
                .find_map(|pair| pair.strip_prefix(key)?.strip_prefix("=\"")?.strip_suffix('"'))
                .unwrap_or_default()
        };
        let (verb, resource) = (label("verb"), label("resource"));
        if matches!(verb, "get" | "list") || resource == "leases" {
            continue;
        }
        let count: u64 = value.trim().parse().unwrap_or_default();
        *all.entry(format!("{verb} {resource}")).or_default() += count;
    }
    all
}

/// Whether a condition is so.
pub(super) fn is(object: &DynamicObject, type_: &str, status: &str) -> bool {
    let conditions = object.data["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|it| it["type"] == type_ && it["status"] == status))
}

/// Where a ready Sandbox's program listens.
pub(super) fn address(object: &DynamicObject) -> Result<SocketAddr> {
    let ip = &object.data["status"]["podIPs"][0];
    let ip: Ipv4Addr = ip
        .as_str()
        .and_then(|ip| ip.parse().ok())
        .with_context(|| format!("a ready Sandbox without an address: {}", object.data["status"]))?;
    Ok((ip, 8080).into())
}

/// A Sandbox under gVisor that fills a block of memory, makes up a word, and answers with it.
pub(super) fn sandbox(name: &str, mib: u32, spec: &Value) -> Value {
    let program = remembers_a_word(mib);
    let limit = format!("{}Mi", mib * 2 + 256);
    let mut object = json!({
        "apiVersion": "agents.x-k8s.io/v1beta1", "kind": "Sandbox",
        "metadata": {"name": name, "namespace": SPACE},
        "spec": {"service": true, "podTemplate": {"spec": {
            "runtimeClassName": "dormouse-gvisor", "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "main", "image": PYTHON, "imagePullPolicy": "Never",
                "command": ["python3", "-c", program],
                "ports": [{"containerPort": 8080}],
                "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": limit}},
            }],
        }}},
    });
    if let Some(more) = spec.as_object() {
        for (key, value) in more {
            object["spec"][key] = value.clone();
        }
    }
    object
}

/// What a client waits for until a Sandbox answers, from `began`; it has to say the same word as ever if it is known.
pub(super) async fn first_answer(at: SocketAddr, began: Instant, word: Option<&str>) -> Result<Duration> {
    let answer = wait::until("an answer", LIMIT, async || {
        http::get(at, "/", Duration::from_secs(2)).await
    })
    .await?;
    let took = began.elapsed();
    if let Some(word) = word {
        ensure!(answer.body == word, "it has lost its memory: {}", answer.body);
    }
    Ok(took)
}

#[cfg(test)]
mod tests {
    use super::written;

    #[test]
    fn writes_are_told_from_reads() {
        let text = "\
dormouse_controller_api_requests_total{verb=\"patch\",resource=\"sandboxes/status\",code=\"200\"} 3
dormouse_controller_api_requests_total{verb=\"patch\",resource=\"sandboxes/status\",code=\"409\"} 1
dormouse_controller_api_requests_total{verb=\"list\",resource=\"pods\",code=\"200\"} 7
dormouse_controller_api_requests_total{verb=\"update\",resource=\"leases\",code=\"200\"} 9
";
        let all = written(text);
        assert_eq!(
            all.into_iter().collect::<Vec<_>>(),
            [("patch sandboxes/status".to_owned(), 4)]
        );
    }
}
