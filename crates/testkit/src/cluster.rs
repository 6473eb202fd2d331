//! A real Kubernetes cluster on this machine, from nothing in seconds: etcd, the control plane and CoreDNS on a machine of their own, and
//! nodes with containerd, runc, gVisor, kubelet and kube-proxy on others. A [`Machine`] is made of namespaces.
//!
//! This host reaches machines, pods and services by their addresses. Everything of a cluster is below one directory, one cgroup and one
//! bridge, so that several run side by side, and each can be removed without a trace, also after a crash ([`Cluster::sweep`]).

mod client;
mod control;
pub mod fake;
pub mod machine;
mod network;
mod node;
mod pki;
mod record;
pub mod release;
mod slot;
mod teardown;

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use procfs::process::Process;
use serde_json::{Map, Value};
use tokio::net::{TcpStream, UnixStream};

use crate::built::Built;
use crate::host::{ProcessId, process, wait};
use client::Client;
use control::Users;
use machine::{Machine, MachineSpec, UnitStatus};
use pki::Pki;
use record::Record;
use slot::Slot;

/// What runs on the machines: names of units, of programs and of logs.
pub mod part {
    /// On the control plane's machine.
    pub const ETCD: &str = "etcd";
    /// On the control plane's machine.
    pub const APISERVER: &str = "kube-apiserver";
    /// On the control plane's machine.
    pub const CONTROLLER_MANAGER: &str = "kube-controller-manager";
    /// On the control plane's machine.
    pub const SCHEDULER: &str = "kube-scheduler";
    /// The cluster's name service, on the control plane's machine.
    pub const DNS: &str = "coredns";
    /// What pretends to be nodes, on the control plane's machine, with [`fake_nodes`](super::ClusterOptions::fake_nodes).
    pub const FAKE_NODES: &str = "kwok";
    /// On every node.
    pub const CONTAINERD: &str = "containerd";
    /// On every node.
    pub const KUBELET: &str = "kubelet";
    /// On every node.
    pub const PROXY: &str = "kube-proxy";
}

/// Nodes have an octet of the pods' addresses; more do not fit on a machine anyway.
const MOST_NODES: u8 = 8;
/// How long the API server may take: seconds, or a minute on a machine that compiles meanwhile.
const API_LIMIT: Duration = Duration::from_secs(120);
/// The same as kubectl takes it.
const WAIT: &str = "--timeout=120s";
const CONTAINERD_LIMIT: Duration = Duration::from_secs(60);
const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";

/// What a cluster is like.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// How many nodes, from 1 to 8.
    pub nodes: u8,
    /// Run kwok, for nodes that are annotated `kwok.x-k8s.io/node: fake`.
    pub fake_nodes: bool,
    /// More arguments of kube-apiserver.
    pub apiserver: Vec<String>,
    /// More arguments of kube-controller-manager.
    pub controller_manager: Vec<String>,
    /// More arguments of kube-scheduler.
    pub scheduler: Vec<String>,
    /// More of the kubelets' configuration, in the place of what the cluster says.
    pub kubelet: Map<String, Value>,
    /// It stays when this process ends, until [`take_down`] or [`Cluster::down`].
    pub detached: bool,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            nodes: 1,
            fake_nodes: false,
            apiserver: Vec::new(),
            controller_manager: Vec::new(),
            scheduler: Vec::new(),
            kubelet: Map::new(),
            detached: false,
        }
    }
}

/// Something that had been done when the cluster came up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Phase {
    /// What.
    pub what: &'static str,
    /// When, from the beginning.
    pub at: Duration,
}

/// A running cluster. Dropping it removes everything, unless it is detached.
#[derive(Debug)]
pub struct Cluster {
    built: Built,
    slot: Slot,
    options: ClusterOptions,
    record: Record,
    client: Client,
    admin_token: String,
    control: Machine,
    nodes: Vec<Machine>,
    phases: Vec<Phase>,
    removed: bool,
}

/// What has been made so far, for the error if it is not enough.
struct Made {
    machines: Vec<Machine>,
    phases: Vec<Phase>,
    began: Instant,
}

impl Made {
    fn phase(&mut self, what: &'static str) {
        self.phases.push(Phase {
            what,
            at: self.began.elapsed(),
        });
    }

    fn control(&self) -> Result<&Machine> {
        self.machines.first().context("no control plane")
    }

    fn nodes(&self) -> &[Machine] {
        self.machines.get(1..).unwrap_or_default()
    }
}

impl Cluster {
    /// Brings a cluster up, until its nodes are ready and pods can be made. Earlier clusters whose process is gone are removed first.
    ///
    /// # Errors
    /// When something is not built, or a part does not come up; nothing is left over then.
    pub async fn up(options: ClusterOptions) -> Result<Self> {
        ensure!(
            (1..=MOST_NODES).contains(&options.nodes),
            "a cluster has 1 to {MOST_NODES} nodes, not {}",
            options.nodes
        );
        Self::sweep();
        let built = Built::find()?;
        built.cluster_bin()?;
        let slot = Slot::take()?;
        let mut record = Record::new(&slot, &built, options.detached);
        let names: Vec<String> = (1..=options.nodes).map(node::name).collect();
        let users = Users::new(&names);
        let client = Client {
            bin: built.cluster_bin()?,
            dir: slot.dir.clone(),
        };
        let mut made = Made {
            machines: Vec::new(),
            phases: Vec::new(),
            began: Instant::now(),
        };
        let up = bring_up(&built, &slot, &options, &users, &client, &mut record, &mut made).await;
        if let Err(error) = up {
            let words = last_words(&made.machines);
            let _ = teardown::remove(&record);
            return Err(error.context(format!("the cluster did not come up\n{words}")));
        }
        let mut machines = made.machines.into_iter();
        let control = machines.next().context("no control plane")?;
        Ok(Self {
            built,
            slot,
            options,
            record,
            client,
            admin_token: users.admin.token,
            control,
            nodes: machines.collect(),
            phases: made.phases,
            removed: false,
        })
    }

    /// Removes what clusters of processes that are gone have left behind.
    pub fn sweep() {
        for slot in slot::abandoned() {
            // What will not go now is tried again by the next sweep.
            let _ = teardown::remove(&Record::of_abandoned(&slot));
        }
    }

    /// What had been done when, while it came up.
    #[must_use]
    pub fn phases(&self) -> &[Phase] {
        &self.phases
    }

    /// Everything of this cluster on this host is below this directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.slot.dir
    }

    /// The administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.client.kubeconfig()
    }

    /// The API server's URL.
    #[must_use]
    pub fn server(&self) -> String {
        control::server(&self.slot)
    }

    /// The administrator's token.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.admin_token
    }

    /// The certificate of the cluster's authority, PEM.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.slot.dir.join("pki/ca.crt")
    }

    /// This host's address for the machines and the pods.
    #[must_use]
    pub fn host_address(&self) -> Ipv4Addr {
        self.slot.host()
    }

    /// The bridge that connects the machines with this host.
    #[must_use]
    pub fn bridge(&self) -> &str {
        &self.slot.bridge
    }

    /// The parent of all pods' cgroups of all nodes, absolute within each hierarchy.
    #[must_use]
    pub fn cgroup(&self) -> &str {
        &self.slot.cgroup
    }

    /// The control plane's machine.
    #[must_use]
    pub fn control(&self) -> &Machine {
        &self.control
    }

    /// The nodes; a machine's name is its node's.
    #[must_use]
    pub fn nodes(&self) -> &[Machine] {
        &self.nodes
    }

    /// The node of that name.
    ///
    /// # Errors
    /// When there is none.
    pub fn node(&self, name: &str) -> Result<&Machine> {
        self.nodes
            .iter()
            .find(|node| node.name() == name)
            .with_context(|| format!("there is no node {name}"))
    }

    /// The parent of that node's pods' cgroups.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn node_cgroup(&self, name: &str) -> Result<String> {
        self.node(name)?;
        Ok(format!("{}/{name}", self.slot.cgroup))
    }

    /// The processes of that program in this cluster's pods.
    #[must_use]
    pub fn processes(&self, program: &str) -> Vec<ProcessId> {
        let named = |argv: &[String]| {
            let path = argv.first();
            path.is_some_and(|path| path.rsplit('/').next() == Some(program))
        };
        // One that ends meanwhile is none.
        let ours = |id: ProcessId| {
            let groups = Process::new(id.pid).and_then(|process| process.cgroups());
            groups.is_ok_and(|groups| {
                groups
                    .into_iter()
                    .any(|group| group.pathname.contains(&self.slot.cgroup))
            })
        };
        let found = process::find(named).into_iter().map(|running| running.id);
        found.filter(|id| ours(*id)).collect()
    }

    /// What was built, and where.
    #[must_use]
    pub fn built(&self) -> &Built {
        &self.built
    }

    /// What this cluster is like.
    #[must_use]
    pub fn options(&self) -> &ClusterOptions {
        &self.options
    }

    /// Runs kubectl as administrator (or, with `--token`, as somebody else), and returns what it printed.
    ///
    /// # Errors
    /// When it fails; the error holds what it said.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.client.kubectl(arguments, None).await
    }

    /// The command `kubectl`, for other uses of it.
    #[must_use]
    pub fn kubectl_command(&self) -> std::process::Command {
        self.client.command("kubectl")
    }

    /// A program that speaks to the cluster as administrator and has nothing of the settings that the person at this host may have
    /// for that; `kubectl` in its PATH is the cluster's.
    #[must_use]
    pub fn client_command(&self, program: &Path) -> std::process::Command {
        self.client.command_of(program)
    }

    /// Runs helm as administrator, and returns what it printed.
    ///
    /// # Errors
    /// As [`Self::kubectl`].
    pub async fn helm(&self, arguments: &[&str]) -> Result<String> {
        self.client.run("helm", arguments, None).await
    }

    /// Applies an object, or a `List` of objects.
    ///
    /// # Errors
    /// When the API server refuses one.
    pub async fn apply(&self, object: &Value) -> Result<String> {
        self.client
            .kubectl(&["apply", "-f", "-"], Some(object.to_string().as_bytes()))
            .await
    }

    /// What the API server has under that name.
    ///
    /// # Errors
    /// When it has nothing.
    pub async fn get(&self, kind: &str, namespace: &str, name: &str) -> Result<Value> {
        let text = self
            .kubectl(&["get", kind, name, "--namespace", namespace, "--output=json"])
            .await?;
        serde_json::from_str(&text).with_context(|| format!("{kind} {namespace}/{name} is no JSON"))
    }

    /// Waits until a pod is Ready, and returns its address.
    ///
    /// # Errors
    /// When it is not within `limit`; the error says what the pod's status and its events are.
    pub async fn wait_ready(&self, namespace: &str, pod: &str, limit: Duration) -> Result<Ipv4Addr> {
        let target = format!("pod/{pod}");
        let limit = format!("--timeout={}s", limit.as_secs().max(1));
        let arguments = [
            "wait",
            "--for=condition=Ready",
            &target,
            "--namespace",
            namespace,
            &limit,
        ];
        if let Err(error) = self.kubectl(&arguments).await {
            let told = self
                .kubectl(&["describe", &target, "--namespace", namespace])
                .await
                .unwrap_or_default();
            return Err(error.context(told));
        }
        let path = ["status", "podIP"];
        let view = self.get("pod", namespace, pod).await?;
        path.iter()
            .try_fold(&view, |value, key| value.get(key))
            .and_then(Value::as_str)
            .and_then(|address| address.parse().ok())
            .with_context(|| format!("pod {namespace}/{pod} is ready and has no address"))
    }

    /// Imports an image into every node's containerd, from a file as `docker save` or `crane` write it.
    ///
    /// # Errors
    /// When containerd refuses it.
    pub async fn import_image(&self, file: &Path) -> Result<()> {
        let imports = self.nodes.iter().map(|node| import(node, file));
        futures::future::try_join_all(imports).await.map(drop)
    }

    /// Restarts the API server, and waits until it is ready again.
    ///
    /// # Errors
    /// When it does not come back.
    pub async fn restart_apiserver(&self) -> Result<()> {
        self.control.restart(part::APISERVER)?;
        self.wait_api().await
    }

    /// Waits until the API server says that it is ready.
    ///
    /// # Errors
    /// When it does not in time.
    pub async fn wait_api(&self) -> Result<()> {
        wait_api(&self.slot, &self.client).await
    }

    /// A node loses its power and comes back: every process is gone, and all that was in memory; what was on its disk is there. The pods
    /// are kubelet's to start again.
    ///
    /// # Errors
    /// When there is no such node, or it does not come back.
    pub async fn reboot(&mut self, name: &str) -> Result<()> {
        self.power_off(name)?;
        self.power_on(name).await
    }

    /// A node loses its power.
    ///
    /// # Errors
    /// When there is no such node, or a process of it does not go.
    pub fn power_off(&mut self, name: &str) -> Result<()> {
        let number = self.number(name)?;
        let cgroup = node::cgroup(&self.slot, number);
        self.node(name)?.end(&cgroup)?;
        let _ = crate::host::cgroup::remove(&cgroup);
        network::unplug(&self.slot, number);
        Ok(())
    }

    /// A node that has lost its power comes back.
    ///
    /// # Errors
    /// When there is no such node, or it does not come back.
    pub async fn power_on(&mut self, name: &str) -> Result<()> {
        let number = self.number(name)?;
        crate::host::cgroup::create(&node::cgroup(&self.slot, number))?;
        let fresh = start_machine(&self.built, &self.slot, &self.options, number, &mut self.record).await?;
        network::plug(&self.slot, &fresh, number)?;
        network::routes(&self.slot, Some(&fresh), self.options.nodes)?;
        network::routes(&self.slot, None, self.options.nodes)?;
        fresh.start_unit(node::containerd())?;
        wait_containerd(&fresh).await?;
        fresh.start_unit(node::kubelet(&self.slot, number))?;
        fresh.start_unit(node::proxy(number))?;
        if let Some(node) = self.nodes.iter_mut().find(|node| node.name() == name) {
            *node = fresh;
        }
        Ok(())
    }

    fn number(&self, name: &str) -> Result<u8> {
        let place = self.nodes.iter().position(|node| node.name() == name);
        let place = place.with_context(|| format!("there is no node {name}"))?;
        Ok(u8::try_from(place + 1)?)
    }

    /// Removes everything.
    ///
    /// # Errors
    /// Names everything that is left over.
    pub fn down(mut self) -> Result<()> {
        self.close()
    }

    /// The same for whoever holds the cluster inside something else; nothing works on it afterwards.
    ///
    /// # Errors
    /// As [`Self::down`].
    pub fn close(&mut self) -> Result<()> {
        self.removed = true;
        teardown::remove(&self.record)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.removed || self.options.detached {
            return;
        }
        if std::thread::panicking() {
            // A test that fails says what the parts said; they are gone in a moment.
            eprintln!("{}", last_words(&self.nodes));
        }
        if let Err(error) = teardown::remove(&self.record) {
            eprintln!("{error:#}");
        }
    }
}

async fn bring_up(
    built: &Built,
    slot: &Slot,
    options: &ClusterOptions,
    users: &Users,
    client: &Client,
    record: &mut Record,
    made: &mut Made,
) -> Result<()> {
    // Written before anything is made, so that a crash at any point can be swept.
    fs::create_dir_all(&slot.dir).with_context(|| format!("create {}", slot.dir.display()))?;
    record.save()?;
    let pki_dir = slot.dir.join("pki");
    let authority = tokio::task::spawn_blocking(move || Pki::new(pki_dir));
    for number in 1..=options.nodes {
        crate::host::cgroup::create(&node::cgroup(slot, number))?;
    }
    network::bridge(slot)?;
    for number in 0..=options.nodes {
        let machine = start_machine(built, slot, options, number, record).await?;
        network::plug(slot, &machine, number)?;
        made.machines.push(machine);
    }
    network::routes(slot, None, options.nodes)?;
    for machine in &made.machines {
        network::routes(slot, Some(machine), options.nodes)?;
    }
    made.phase("machines");

    let control = made.control()?;
    control.start_unit(control::etcd())?;
    let pki = authority.await.context("make the certificate authority")??;
    control::certificates(slot, &pki)?;
    control::write(slot, &pki, users, &machine_dir(slot, 0))?;
    control.start_unit(control::apiserver(slot, &options.apiserver))?;
    let ca = pki.file("ca.crt");
    let admin = control::kubeconfig(slot, &users.admin, &ca.display().to_string());
    let kubeconfig = client.kubeconfig();
    fs::write(&kubeconfig, admin).with_context(|| format!("write {}", kubeconfig.display()))?;
    for number in 1..=options.nodes {
        node::write(
            slot,
            &pki,
            users,
            number,
            &machine_dir(slot, number),
            &options.kubelet,
        )?;
    }
    made.phase("certificates and configuration");

    let images = built.stack.join("images");
    let prepared = made.nodes().iter().map(|node| prepare(node, &images));
    let (prepared, api) = futures::join!(futures::future::try_join_all(prepared), wait_api(slot, client));
    prepared?;
    api?;
    made.phase("API server and images");

    let control = made.control()?;
    control.start_unit(control::controller_manager(&options.controller_manager))?;
    control.start_unit(control::scheduler(&options.scheduler))?;
    control.start_unit(control::dns())?;
    if options.fake_nodes {
        control.start_unit(control::fake_nodes())?;
    }
    for (number, machine) in (1..=options.nodes).zip(made.nodes()) {
        machine.start_unit(node::kubelet(slot, number))?;
        machine.start_unit(node::proxy(number))?;
    }
    create(client, &control::objects(slot)).await?;
    made.phase("name service and runtime classes");

    for number in 1..=options.nodes {
        let target = format!("node/{}", node::name(number));
        client
            .kubectl(&["wait", "--for=create", &target, WAIT], None)
            .await?;
        client
            .kubectl(&["wait", "--for=condition=Ready", &target, WAIT], None)
            .await?;
    }
    made.phase("nodes Ready");
    // Without it no pod is admitted.
    client
        .kubectl(&["wait", "--for=create", "serviceaccount/default", WAIT], None)
        .await?;
    made.phase("default ServiceAccount");
    Ok(())
}

/// Starts the `number`th machine (0 is the control plane's), with nothing on it.
async fn start_machine(
    built: &Built,
    slot: &Slot,
    options: &ClusterOptions,
    number: u8,
    record: &mut Record,
) -> Result<Machine> {
    let (name, address) = match number {
        0 => (control::NAME.to_owned(), slot.control()),
        number => (node::name(number), slot.node(number)),
    };
    let programs = |bin: &Path| bin.parent().map(Path::to_path_buf);
    let spec = MachineSpec {
        name,
        dir: machine_dir(slot, number),
        programs: [Some(built.stack.clone()), programs(&built.cluster_bin()?)]
            .into_iter()
            .flatten()
            .collect(),
        without_mounts_in: vec![slot::home(), crate::stack::home()],
    };
    let hold = if options.detached {
        Some(slot.share()?)
    } else {
        None
    };
    Machine::start(&built.own("dormouse-cluster")?, spec, address, hold, |helper| {
        record.helpers.push(helper);
        record.save()
    })
    .await
}

fn machine_dir(slot: &Slot, number: u8) -> PathBuf {
    let name = if number == 0 {
        control::NAME.to_owned()
    } else {
        node::name(number)
    };
    record::machines(&slot.dir).join(name)
}

/// Starts a node's containerd, and gives it the test images.
async fn prepare(node: &Machine, images: &Path) -> Result<()> {
    node.start_unit(node::containerd())?;
    wait_containerd(node).await?;
    for image in ["pause.tar", "busybox.tar", "python.tar"] {
        import(node, &images.join(image)).await?;
    }
    Ok(())
}

async fn wait_containerd(node: &Machine) -> Result<()> {
    let socket = node.path(CONTAINERD_SOCKET);
    wait::until("containerd's socket", CONTAINERD_LIMIT, async || {
        UnixStream::connect(&socket).await?;
        Ok(())
    })
    .await
}

async fn import(node: &Machine, file: &Path) -> Result<()> {
    let mut command = node.command("ctr");
    command
        .args(["--address", CONTAINERD_SOCKET, "--namespace", "k8s.io"])
        .args(["images", "import", "--local"])
        .arg(file)
        .stdin(Stdio::null());
    let output = tokio::process::Command::from(command)
        .output()
        .await
        .context("start ctr")?;
    ensure!(
        output.status.success(),
        "{}: {} was refused: {}",
        node.name(),
        file.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

async fn wait_api(slot: &Slot, client: &Client) -> Result<()> {
    wait::until("the API server", API_LIMIT, async || {
        // Cheaper than a kubectl that finds nobody.
        TcpStream::connect((slot.control(), 6443)).await?;
        client.kubectl(&["get", "--raw", "/readyz"], None).await
    })
    .await
    .map(drop)
}

/// Creates the first objects. Some of what they need is made by the API server itself, a moment after it is ready.
async fn create(client: &Client, objects: &Value) -> Result<()> {
    let text = objects.to_string();
    wait::until("the first objects", API_LIMIT, async || {
        client
            .kubectl(
                &["apply", "--server-side", "--validate=false", "-f", "-"],
                Some(text.as_bytes()),
            )
            .await
    })
    .await
    .map(drop)
}

fn last_words(machines: &[Machine]) -> String {
    let mut text = String::new();
    for machine in machines {
        for unit in machine.units().unwrap_or_default() {
            text.push_str(&format!(
                "{}: {}, started {} times, last exit {:?}; its last words:\n{}\n",
                machine.name(),
                unit.name,
                unit.starts,
                unit.last_exit,
                machine.last_words(&unit.name)
            ));
        }
    }
    text
}

/// A cluster that some process has made, found by its place on this host.
#[derive(Debug)]
pub struct Found {
    /// Its place.
    pub index: u8,
    /// It stays until it is taken down; the others end with the process that has made them.
    pub detached: bool,
    client: Client,
    record: Record,
}

/// All clusters that run on this host.
#[must_use]
pub fn found() -> Vec<Found> {
    slot::occupied()
        .into_iter()
        .filter_map(|index| {
            let record = Record::read(index)?;
            Some(Found {
                index,
                detached: record.detached,
                client: Client {
                    bin: record.cluster.join("bin"),
                    dir: record.dir.clone(),
                },
                record,
            })
        })
        .collect()
}

impl Found {
    /// The administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.client.kubeconfig()
    }

    /// A command of the administrator's, with one of the cluster's programs: kubectl, helm.
    #[must_use]
    pub fn command(&self, program: &str) -> std::process::Command {
        self.client.command(program)
    }

    /// Its machines, and what runs there.
    #[must_use]
    pub fn machines(&self) -> Vec<(String, Result<Vec<UnitStatus>>)> {
        self.record
            .machines()
            .into_iter()
            .map(|dir| {
                let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
                (name, machine::units_of(&dir))
            })
            .collect()
    }

    /// A command on one of its machines.
    ///
    /// # Errors
    /// When there is no such machine.
    pub fn enter(&self, machine: &str, program: &str) -> Result<std::process::Command> {
        let dir = record::machines(&self.record.dir).join(machine);
        let init = machine::init_of(&dir)
            .filter(|init: &ProcessId| init.alive())
            .with_context(|| format!("no machine {machine} runs"))?;
        Ok(machine::enter(init, program))
    }
}

/// Removes a cluster that another process has made.
///
/// # Errors
/// When it belongs to a process that still runs, or names what is left over.
pub fn take_down(index: u8) -> Result<()> {
    let held = || format!("the cluster in place {index} belongs to a process that runs");
    let record = Record::read(index);
    if let Some(record) = record.filter(|record| record.detached) {
        // Its machines hold its place: they have to go first.
        let mut processes = record.helpers.clone();
        processes.extend(record.machines().iter().filter_map(|dir| machine::init_of(dir)));
        ensure!(
            machine::end(&processes, &record.cgroup),
            "the machines in place {index} do not end"
        );
    }
    // The kernel gives the lock back when the last of them is gone for good, which is a moment after it has ended.
    let mut slot = None;
    let mut failed = None;
    let _ = wait::until_true(Duration::from_secs(5), || match Slot::claim(index) {
        Ok(claimed) => {
            slot = claimed;
            slot.is_some()
        }
        Err(error) => {
            failed = Some(error);
            true
        }
    });
    match (slot, failed) {
        (Some(slot), _) => teardown::remove(&Record::of_abandoned(&slot)),
        (None, Some(error)) => Err(error),
        (None, None) => bail!(held()),
    }
}
