//! The demo on a cluster: Kubernetes from nothing, Dormouse by helm, sandboxes that sleep by themselves, by kubectl, as a
//! snapshot, as standbys of a pool, and through the drain of their node.

mod pool;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dormouse_testkit::cluster::release::{self, HostSwap};
use dormouse_testkit::guest::remembers_a_word;
use dormouse_testkit::host::wait;
use dormouse_testkit::swap::TestSwap;
use dormouse_testkit::{Cluster, ClusterOptions, PYTHON, http};
use serde_json::{Value, json};

use crate::say;
use crate::words::{self, at};

/// Nothing here takes longer unless it hangs.
const LIMIT: Duration = Duration::from_secs(120);

/// How long a frozen sandbox is knocked at before it counts as silent.
const KNOCK: Duration = Duration::from_secs(2);

const SPACE: &str = "default";
const PORT: u16 = 8080;

/// Compressed swap in RAM, more than all sleepers here have together; it is the node's as well as this machine's.
const SWAP_BYTES: u64 = 2 << 30;

/// All of it; the cluster is gone afterwards, whatever happens.
pub(crate) async fn show() -> Result<()> {
    let began = Instant::now();
    say::line(&words::machine()?);
    let swap = TestSwap::zram(SWAP_BYTES, "lz4", 100)?;
    say::heading("1. A Kubernetes of its own");
    let cluster = say::step(
        "etcd, control plane, a node with kubelet, containerd and gVisor",
        Cluster::up(ClusterOptions::default()),
    )
    .await?;
    for phase in cluster.phases() {
        say::block(&format!("{} after {}", phase.what, words::seconds(phase.at)));
    }
    let told = acts(&cluster).await;
    if told.is_err() {
        say::complain(&release::words(&cluster).await);
    }
    say::heading("Clean up");
    let removed = say::step("the cluster", async { cluster.down() }).await;
    // Swap is not taken away before what may be in it.
    drop(swap);
    told?;
    removed?;
    say::blank();
    say::line(&format!("Done in {}.", words::seconds(began.elapsed())));
    Ok(())
}

async fn acts(cluster: &Cluster) -> Result<()> {
    install(cluster).await?;
    let word = sandbox(cluster).await?;
    wakes(cluster, &word).await?;
    suspends(cluster, &word).await?;
    let other = hibernates(cluster).await?;
    pool::show(cluster).await?;
    drains(cluster, &[("agent-1", word), ("agent-2", other)]).await
}

async fn install(cluster: &Cluster) -> Result<()> {
    say::heading("2. Dormouse, by helm");
    // Standbys doze when they are told to.
    let values = release::values(HostSwap::Brought, "");
    let installed = release::install(cluster, &values, &[]);
    say::step("helm install dormouse daemonset/chart/dormouse", installed).await?;
    wait::until("the agent's word on its node", LIMIT, async || {
        let nodes: Value = serde_json::from_str(&plugin(cluster, &["node", "ls", "-o", "json"]).await?)?;
        ensure!(at(&nodes, "/0/ready") == "True", "{nodes}");
        Ok(())
    })
    .await?;
    shown(cluster, &["node", "ls"]).await
}

/// Makes the sandbox and its Service; returns the word that it remembers.
async fn sandbox(cluster: &Cluster) -> Result<String> {
    say::heading("3. A sandbox that may sleep when it was idle for 3 s");
    let spec = json!({"idleTimeout": "3s", "suspensionStrategy": {"type": "Freeze"}});
    let ready = say::step("sandbox agent-1, with a Service", async {
        make(cluster, "agent-1", &spec).await?;
        let object = until_ready(cluster, "agent-1").await?;
        service(cluster, &object).await?;
        Ok(object)
    })
    .await?;
    let word = ask(address(&ready)?).await?.body;
    say::block(&format!("it remembers the word {word}, in memory alone"));
    Ok(word)
}

async fn wakes(cluster: &Cluster, word: &str) -> Result<()> {
    say::heading("4. Nobody asks it for anything: it falls asleep. A request to its Service wakes it");
    say::step("asleep by itself", until_state(cluster, "agent-1", "Frozen")).await?;
    shown(cluster, &["ps"]).await?;
    let service = cluster.get("service", SPACE, "agent-1-front").await?;
    let service: Ipv4Addr = at(&service, "/spec/clusterIP")
        .as_str()
        .context("the Service has no address")?
        .parse()?;
    let answer = ask(service).await?;
    ensure!(answer.body == word, "it has forgotten {word}: {}", answer.body);
    say::good(&format!(
        "GET http://{service}:{PORT}/: {} after {}, and it knows its word",
        answer.status,
        words::millis(answer.total)
    ));
    until_state(cluster, "agent-1", "Running").await?;
    shown(cluster, &["why", "agent-1"]).await
}

async fn suspends(cluster: &Cluster, word: &str) -> Result<()> {
    say::heading("5. Suspended and resumed by kubectl");
    let before = pod_uid(cluster, "agent-1").await?;
    shown(cluster, &["suspend", "agent-1"]).await?;
    let object = get(cluster, "agent-1").await?;
    let knock = http::get(SocketAddr::from((address(&object)?, PORT)), "/", KNOCK).await;
    ensure!(knock.is_err(), "a suspended sandbox answers: {knock:?}");
    say::good("it answers nobody now");
    shown(cluster, &["resume", "agent-1"]).await?;
    let answer = ask(address(&get(cluster, "agent-1").await?)?).await?;
    ensure!(answer.body == word, "it has forgotten {word}: {}", answer.body);
    ensure!(
        pod_uid(cluster, "agent-1").await? == before,
        "its pod is another one"
    );
    say::good("the same pod, the same word");
    shown(cluster, &["events", "agent-1"]).await
}

/// Returns the word that the sandbox remembers.
async fn hibernates(cluster: &Cluster) -> Result<String> {
    say::heading("6. Suspended as a snapshot: the pod goes, the memory stays");
    let spec = json!({"suspensionStrategy": {"type": "Hibernate"}});
    let ready = say::step("sandbox agent-2", async {
        make(cluster, "agent-2", &spec).await?;
        until_ready(cluster, "agent-2").await
    })
    .await?;
    let word = ask(address(&ready)?).await?.body;
    shown(cluster, &["suspend", "agent-2"]).await?;
    shown(cluster, &["snapshot", "ls"]).await?;
    let asleep = get(cluster, "agent-2").await?;
    let snapshot = at(&asleep, "/status/snapshot/name").as_str().unwrap_or_default();
    ensure!(!snapshot.is_empty(), "it has no snapshot: {asleep}");
    let arguments = ["snapshot", "inspect", snapshot];
    let inspected = release::dormouse(cluster, &arguments).await?;
    say::block(&format!("$ dormouse {}", arguments.join(" ")));
    say::block(inspected.trim_end());
    shown(cluster, &["resume", "agent-2"]).await?;
    let answer = ask(address(&get(cluster, "agent-2").await?)?).await?;
    ensure!(answer.body == word, "it has forgotten {word}: {}", answer.body);
    say::good("another pod, the same word");
    Ok(word)
}

async fn drains(cluster: &Cluster, words: &[(&str, String)]) -> Result<()> {
    say::heading("8. Its node is drained: nobody is evicted before its memory is a snapshot");
    let node = at(&get(cluster, "agent-2").await?, "/status/nodeName").clone();
    let node = node.as_str().context("the sandbox has no node")?;
    let arguments = [
        "drain",
        node,
        "--ignore-daemonsets",
        // The controller stays: this cluster has no other node for it.
        "--pod-selector=agents.x-k8s.io/sandbox-name-hash",
    ];
    let drained = say::step(&format!("kubectl {}", arguments.join(" ")), async {
        cluster.kubectl(&arguments).await
    })
    .await?;
    say::block(drained.trim_end());
    shown(cluster, &["ps"]).await?;
    shown(cluster, &["why", "agent-2"]).await?;
    cluster.kubectl(&["uncordon", node]).await?;
    say::good(&format!("kubectl uncordon {node}"));
    for (name, word) in words {
        let back = until_ready(cluster, name).await?;
        let answer = ask(address(&back)?).await?;
        ensure!(
            answer.body == *word,
            "{name} has forgotten {word}: {}",
            answer.body
        );
    }
    say::good("both are back, each with its word");
    Ok(())
}

/// Runs `kubectl dormouse`.
async fn plugin(cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    let program = cluster.built().own("kubectl-dormouse")?;
    let dir = program.parent().context("a program without a directory")?;
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = tokio::process::Command::from(cluster.kubectl_command());
    command
        .env("PATH", format!("{}:{path}", dir.display()))
        .arg("dormouse")
        .args(arguments)
        .kill_on_drop(true);
    let output = tokio::time::timeout(LIMIT, command.output())
        .await
        .with_context(|| format!("kubectl dormouse {arguments:?} does not end"))?
        .context("start kubectl")?;
    ensure!(
        output.status.success(),
        "kubectl dormouse {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// Runs `kubectl dormouse`, and shows command and answer.
async fn shown(cluster: &Cluster, arguments: &[&str]) -> Result<()> {
    let answer = plugin(cluster, arguments).await?;
    say::block(&format!("$ kubectl dormouse {}", arguments.join(" ")));
    say::block(answer.trim_end());
    Ok(())
}

async fn make(cluster: &Cluster, name: &str, more: &Value) -> Result<()> {
    let mut spec = json!({"podTemplate": {"spec": pod_spec(&remembers_a_word(24))}});
    if let (Some(spec), Some(more)) = (spec.as_object_mut(), more.as_object()) {
        spec.extend(more.clone());
    }
    let object = json!({
        "apiVersion": "agents.x-k8s.io/v1beta1", "kind": "Sandbox",
        "metadata": {"name": name, "namespace": SPACE}, "spec": spec,
    });
    cluster.apply(&object).await.map(drop)
}

/// A pod that runs such a Python program.
fn pod_spec(program: &str) -> Value {
    json!({
        "runtimeClassName": "dormouse-gvisor", "automountServiceAccountToken": false,
        "terminationGracePeriodSeconds": 1,
        "containers": [{
            "name": "main", "image": PYTHON, "imagePullPolicy": "Never",
            "command": ["python3", "-c", program],
            "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
        }],
    })
}

/// A Service with an address of its own in front of a sandbox's pod.
async fn service(cluster: &Cluster, sandbox: &Value) -> Result<()> {
    let selector = at(sandbox, "/status/selector").as_str().unwrap_or_default();
    let (key, value) = selector.split_once('=').context("the sandbox says no selector")?;
    let object = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "agent-1-front", "namespace": SPACE},
        "spec": {"selector": {key: value}, "ports": [{"port": PORT}]},
    });
    cluster.apply(&object).await.map(drop)
}

async fn get(cluster: &Cluster, name: &str) -> Result<Value> {
    cluster.get("sandbox.agents.x-k8s.io", SPACE, name).await
}

async fn pod_uid(cluster: &Cluster, name: &str) -> Result<Value> {
    let pod = cluster.get("pod", SPACE, name).await?;
    Ok(at(&pod, "/metadata/uid").clone())
}

async fn until_ready(cluster: &Cluster, name: &str) -> Result<Value> {
    wait::until("the sandbox to be ready", LIMIT, async || {
        let object = get(cluster, name).await?;
        ensure!(is_ready(&object), "{}", at(&object, "/status"));
        Ok(object)
    })
    .await
}

fn is_ready(object: &Value) -> bool {
    let conditions = at(object, "/status/conditions").as_array();
    conditions.is_some_and(|all| {
        all.iter()
            .any(|one| at(one, "/type") == "Ready" && at(one, "/status") == "True")
    })
}

/// Waits until `kubectl dormouse ps` says that the sandbox stands so.
async fn until_state(cluster: &Cluster, name: &str, state: &str) -> Result<()> {
    wait::until(&format!("{name} to be {state}"), LIMIT, async || {
        let listed: Value = serde_json::from_str(&plugin(cluster, &["ps", "-o", "json"]).await?)?;
        let all = listed.as_array().cloned().unwrap_or_default();
        let found = all.iter().find(|sandbox| at(sandbox, "/name") == name);
        ensure!(
            found.is_some_and(|sandbox| at(sandbox, "/state") == state),
            "{found:?}"
        );
        Ok(())
    })
    .await
}

fn address(sandbox: &Value) -> Result<Ipv4Addr> {
    let address = at(sandbox, "/status/podIPs/0").as_str();
    Ok(address.context("the sandbox has no address")?.parse()?)
}

/// Asks until there is an answer: a new address is known everywhere only a moment later.
async fn ask(address: Ipv4Addr) -> Result<http::Answer> {
    let address = SocketAddr::from((address, PORT));
    wait::until("an answer", LIMIT, async || {
        let answer = http::get(address, "/", LIMIT).await?;
        ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
        Ok(answer)
    })
    .await
}
