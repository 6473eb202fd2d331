//! A private containerd with its own state, sockets, network and cgroup.

mod config;
mod containerd;
mod record;
mod slot;
mod teardown;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;
use tonic::transport::Channel;

use crate::built::Built;
use crate::host::ProcessId;
use crate::pod::{Pod, PodSpec};
use record::Record;
use slot::Slot;
pub(crate) use slot::home;

/// How pods get their network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Cni {
    /// A bridge of this stack's own, which is also the pods' gateway.
    #[default]
    Bridge,
    /// One veth per pod, no bridge.
    Ptp,
    /// Sub-interfaces of a host link; the host itself cannot reach such a pod through that link.
    Ipvlan {
        /// The host link.
        master: String,
    },
}

/// What a stack is like.
#[derive(Debug, Clone)]
pub struct StackOptions {
    /// How pods get their network.
    pub cni: Cni,
    /// Pods have an IPv6 address, too, and one of its default routes.
    pub dual_stack: bool,
    /// The MTU of the pods' interfaces, where it is not the plugin's own choice.
    pub mtu: Option<u32>,
    /// More destinations that the pods have a route to over their gateway.
    pub routes: Vec<String>,
    /// How often containerd asks every pod for its statistics (`stats_collect_period`; its own default is 1 s).
    pub stats_collect_period: Duration,
    /// One shim process per pod instead of one per container (gVisor's `grouping`).
    pub shim_grouping: bool,
    /// Offer [`crate::DORMOUSE_GVISOR`]; needs the built `dormouse-runsc`.
    pub wrapper: bool,
    /// More `[runsc_config]` entries for both gVisor handlers, for example `("debug", "true")`.
    pub runsc_config: Vec<(String, String)>,
    /// Another wrapper binary than the built one.
    pub wrapper_binary: Option<PathBuf>,
    /// More of the wrapper's configuration, in the place of what the stack says.
    pub wrapper_config: serde_json::Map<String, serde_json::Value>,
}

impl Default for StackOptions {
    fn default() -> Self {
        Self {
            cni: Cni::default(),
            dual_stack: false,
            mtu: None,
            routes: Vec::new(),
            stats_collect_period: Duration::from_secs(10),
            shim_grouping: false,
            wrapper: true,
            runsc_config: Vec::new(),
            wrapper_binary: None,
            wrapper_config: serde_json::Map::new(),
        }
    }
}

/// A running stack. Dropping it removes everything, the hard way; [`Stack::stop`] is the orderly way.
#[derive(Debug)]
pub struct Stack {
    built: Built,
    slot: Slot,
    options: StackOptions,
    record: Record,
    channel: Channel,
    removed: bool,
}

impl Stack {
    /// Starts a stack. Earlier stacks whose process is gone are cleaned up first.
    ///
    /// # Errors
    /// When something is not built, or containerd does not come up; nothing is left over then.
    pub async fn start(options: StackOptions) -> Result<Self> {
        Self::sweep();
        let built = Built::find()?;
        let slot = Slot::take()?;
        let mut record = Record::new(&slot);
        let started = Self::bring_up(&built, &slot, &options, &mut record).await;
        match started {
            Ok(channel) => Ok(Self {
                built,
                slot,
                options,
                record,
                channel,
                removed: false,
            }),
            Err(error) => {
                let log = fs::read_to_string(slot.dir.join("containerd.log")).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(10).collect();
                let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
                let _ = teardown::remove(&record);
                Err(error.context(format!(
                    "the stack did not start; containerd's last words:\n{tail}"
                )))
            }
        }
    }

    async fn bring_up(
        built: &Built,
        slot: &Slot,
        options: &StackOptions,
        record: &mut Record,
    ) -> Result<Channel> {
        // Written before anything is made, so that a crash at any point can be swept.
        fs::create_dir_all(&slot.dir).with_context(|| format!("create {}", slot.dir.display()))?;
        record.save()?;
        crate::host::cgroup::create(&format!("{}/kubepods/burstable", slot.cgroup))?;
        let run = slot.run_dir();
        fs::create_dir_all(&run).with_context(|| format!("create {}", run.display()))?;
        // As /run is on a node: in memory.
        mount(
            Some("tmpfs"),
            &run,
            Some("tmpfs"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
            Some("mode=0700"),
        )
        .with_context(|| format!("mount a tmpfs on {}", run.display()))?;
        config::write(built, slot, options)?;
        let channel = containerd::start(built, slot, record).await?;
        containerd::import_images(built, slot).await?;
        Ok(channel)
    }

    /// Removes what stacks of processes that are gone have left behind.
    pub fn sweep() {
        for slot in slot::abandoned() {
            if let Some(record) = Record::load(&slot) {
                // What will not go now is tried again by the next sweep.
                let _ = teardown::remove(&record);
            }
        }
        crate::swap::sweep();
    }

    /// Starts a pod and waits until its containers run.
    ///
    /// # Errors
    /// When containerd refuses; the half-made pod is removed.
    pub async fn run_pod(&self, spec: PodSpec) -> Result<Pod> {
        crate::pod::run(self, spec).await
    }

    /// Starts a pod without its containers: `Pod::add_container` starts them.
    ///
    /// # Errors
    /// When containerd refuses; the half-made pod is removed.
    pub async fn run_sandbox(&self, spec: PodSpec) -> Result<Pod> {
        crate::pod::sandbox(self, spec).await
    }

    /// The cgroup of the pod with that UID, absolute within each hierarchy.
    #[must_use]
    pub fn pod_cgroup(&self, uid: &str) -> String {
        format!("{}/kubepods/burstable/pod{uid}", self.cgroup_root())
    }

    /// A CRI client on a shared connection.
    #[must_use]
    pub fn cri(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone())
    }

    /// The connection to containerd, for its other services (namespace `k8s.io`).
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Everything of this stack is below this directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.slot.dir
    }

    /// containerd's socket (CRI and all else).
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.slot.socket()
    }

    /// The stack's stand-in for `/run/dormouse`: on a tmpfs, known to the wrapper.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.slot.run_dir()
    }

    /// runsc's state directory: files of namespace `k8s.io` and control sockets.
    #[must_use]
    pub fn runsc_root(&self) -> PathBuf {
        self.slot.dir.join("rr/k8s.io")
    }

    /// The wrapper's configuration.
    #[must_use]
    pub fn wrapper_config(&self) -> PathBuf {
        config::wrapper_config(&self.slot)
    }

    /// Changes keys of the wrapper's configuration, as an administrator does: by rename.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn configure_wrapper(&self, changes: &serde_json::Value) -> Result<()> {
        let path = self.wrapper_config();
        let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let mut config: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&text)?;
        for (key, value) in changes.as_object().into_iter().flatten() {
            config.insert(key.clone(), value.clone());
        }
        let fresh = path.with_extension("json.new");
        fs::write(&fresh, serde_json::to_string_pretty(&config)?)?;
        fs::rename(&fresh, &path).with_context(|| format!("replace {}", path.display()))
    }

    /// The parent of all pods' cgroups, absolute within each hierarchy.
    #[must_use]
    pub fn cgroup_root(&self) -> &str {
        &self.slot.cgroup
    }

    /// The bridge's name and this host's address on it, with [`Cni::Bridge`].
    #[must_use]
    pub fn bridge(&self) -> (String, std::net::Ipv4Addr) {
        (self.slot.bridge.clone(), self.slot.gateway())
    }

    /// What was built, and where.
    #[must_use]
    pub fn built(&self) -> &Built {
        &self.built
    }

    /// What this stack is like.
    #[must_use]
    pub fn options(&self) -> &StackOptions {
        &self.options
    }

    /// containerd's process.
    #[must_use]
    pub fn containerd(&self) -> Option<ProcessId> {
        self.record.containerd
    }

    /// What containerd has logged so far.
    #[must_use]
    pub fn containerd_log(&self) -> String {
        fs::read_to_string(self.slot.dir.join("containerd.log")).unwrap_or_default()
    }

    /// Restarts containerd: `Signal::SIGTERM` for an orderly one, `SIGKILL` for a crash. Pods stay.
    ///
    /// # Errors
    /// When it does not come back.
    pub async fn restart_containerd(&mut self, signal: Signal) -> Result<()> {
        if let Some(old) = self.record.containerd {
            old.signal(signal);
            crate::host::wait::until("containerd to end", Duration::from_secs(20), async || {
                anyhow::ensure!(!old.alive(), "pid {} is still there", old.pid);
                Ok(())
            })
            .await?;
        }
        self.channel = containerd::start(&self.built, &self.slot, &mut self.record).await?;
        Ok(())
    }

    /// Gives pods that are made from now on routes to other destinations than those before have; containerd is restarted
    /// for that.
    ///
    /// # Errors
    /// When the configuration cannot be written, or containerd does not come back.
    pub async fn set_routes(&mut self, destinations: &[&str]) -> Result<()> {
        self.options.routes = destinations.iter().map(|d| (*d).to_owned()).collect();
        config::network(&self.slot, &self.options)?;
        self.restart_containerd(Signal::SIGTERM).await
    }

    /// Says what the first wrapper that comes to a fail point does there: `kill`, or `halt FILE`, as the wrapper's own
    /// `failpoints.rs` has it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn arm_wrapper(&self, point: &str, what: &str) -> Result<()> {
        fs::write(self.wrapper_arms(), format!("{point} {what}\n")).context("arm the wrapper")
    }

    /// Whether no wrapper has come to that point yet; nothing happens there any more.
    #[must_use]
    pub fn disarm_wrapper(&self) -> bool {
        fs::remove_file(self.wrapper_arms()).is_ok()
    }

    /// Whether no wrapper has come to its fail point yet.
    #[must_use]
    pub fn is_wrapper_armed(&self) -> bool {
        self.wrapper_arms().exists()
    }

    fn wrapper_arms(&self) -> PathBuf {
        self.slot.dir.join("w/dormouse-runsc.failpoints")
    }

    /// The machine loses its power and comes back, as far as this stack is concerned: every process is gone, and all
    /// that was in memory; then containerd starts. The agent is the caller's to kill and to start again.
    ///
    /// # Errors
    /// When something does not go, or containerd does not come back.
    pub async fn reboot(&mut self) -> Result<()> {
        let in_memory = [
            self.slot.dir.join("state"),
            self.slot.run_dir(),
            self.slot.dir.join("rr"),
        ];
        teardown::lose_power(&self.record, &in_memory)?;
        self.channel = containerd::start(&self.built, &self.slot, &mut self.record).await?;
        Ok(())
    }

    /// Adds a process that is to be ended with the stack.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub(crate) fn adopt(&self, process: ProcessId) -> Result<()> {
        Record::adopt(&self.slot, process)
    }

    /// Stops and removes all pods through the CRI, then everything else.
    ///
    /// # Errors
    /// Names everything that is left over.
    pub async fn stop(mut self) -> Result<()> {
        self.close().await
    }

    /// The same for whoever holds the stack inside something else; nothing works on it afterwards.
    ///
    /// # Errors
    /// As [`Self::stop`].
    pub async fn close(&mut self) -> Result<()> {
        let pods = crate::pod::remove_all(self).await;
        self.removed = true;
        teardown::remove(&self.record)?;
        pods.context("the pods could not be removed through the CRI (they were removed the hard way)")
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if !self.removed
            && let Err(error) = teardown::remove(&self.record)
        {
            tracing::error!("{error:#}");
        }
    }
}
