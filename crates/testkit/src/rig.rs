//! A stack with an agent on it and a client of the agent: what tests, the demo and measurements start from.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use dormouse_core::{Reason, Rung};
use dormouse_rpc::{NodeClient, v1};

use crate::agent::{Agent, AgentOptions, AgentPaths};
use crate::host::{log, wait};
use crate::stack::{Stack, StackOptions};
use crate::{Pod, PodSpec};

/// What a rig is like.
#[derive(Debug, Clone, Default)]
pub struct RigOptions {
    /// The stack.
    pub stack: StackOptions,
    /// The agent.
    pub agent: AgentOptions,
    /// More of the agent's configuration, TOML; tables and dotted keys.
    pub config: String,
    /// More lines of its `[snapshots]` table, beside the test's own directory; a `dir` of its own takes that one's place.
    pub snapshots: String,
}

/// A stack, its agent, and a client of the agent.
#[derive(Debug)]
pub struct Rig {
    /// The client.
    pub client: NodeClient,
    /// The agent.
    pub agent: Agent,
    /// The stack.
    pub stack: Stack,
}

/// The configuration of a rig's agent: private paths, plain test swap allowed, no HTTP unless asked for.
#[must_use]
pub fn config(paths: &AgentPaths, more: &str, snapshots: &str) -> String {
    let http = if more.contains("[http]") {
        ""
    } else {
        "[http]\nlisten = \"off\"\n"
    };
    let swap = if more.contains("[swap]") {
        ""
    } else {
        "[swap]\nallow_plain_swap = true\n"
    };
    let log = if more.contains("[log]") {
        ""
    } else {
        "[log]\nlevel = \"debug,h2=info,hyper=info,tower=info\"\n"
    };
    let snapshots = if more.contains("[snapshots]") {
        String::new()
    } else {
        let dir = if snapshots.contains("dir =") {
            String::new()
        } else {
            format!("dir = \"{}\"\n", paths.state_dir.join("snapshots").display())
        };
        // A test's disk may be nearly full, and its images are small.
        format!("[snapshots]\nkeep_free_percent = 1\n{dir}{snapshots}")
    };
    format!(
        "version = 1\nruntime_endpoint = \"unix://{}\"\nrun_dir = \"{}\"\nstate_dir = \"{}\"\nwrapper_config = \"{}\"\n[api]\nsocket = \"{}\"\n{http}{swap}{log}{snapshots}{more}",
        paths.containerd.display(),
        paths.run_dir.display(),
        paths.state_dir.display(),
        paths.wrapper_config.display(),
        paths.socket.display(),
    )
}

impl Rig {
    /// Starts everything and waits until the agent answers.
    ///
    /// # Errors
    /// When a part does not come up.
    pub async fn start(options: RigOptions) -> Result<Self> {
        let stack = Stack::start(options.stack).await?;
        let agent = Agent::start(&stack, options.agent, |paths| {
            config(paths, &options.config, &options.snapshots)
        })
        .await?;
        let client = dormouse_rpc::connect(&agent.paths().socket).await?;
        Ok(Self { client, agent, stack })
    }

    /// Starts everything as it comes.
    ///
    /// # Errors
    /// When a part does not come up.
    pub async fn plain() -> Result<Self> {
        Self::start(RigOptions::default()).await
    }

    /// Makes a client anew, after the agent was restarted.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub async fn reconnect(&mut self) -> Result<()> {
        self.client = dormouse_rpc::connect(&self.agent.paths().socket).await?;
        Ok(())
    }

    /// Kills the agent, starts it again, and connects.
    ///
    /// # Errors
    /// When it does not come up again.
    pub async fn crash_and_restart(&mut self) -> Result<()> {
        self.agent.kill()?;
        self.agent.restart(&self.stack, None).await?;
        self.reconnect().await
    }

    /// Runs a pod and waits until the agent may put it to sleep.
    ///
    /// # Errors
    /// When the pod does not start, or the agent finds that it cannot be put to sleep.
    pub async fn run_pod(&self, spec: PodSpec) -> Result<Pod> {
        let pod = self.stack.run_pod(spec).await?;
        self.wait_able(&pod).await?;
        Ok(pod)
    }

    /// Waits until the agent may put a pod to sleep.
    ///
    /// # Errors
    /// When it finds that it cannot, or does not know the pod.
    pub async fn wait_able(&self, pod: &Pod) -> Result<()> {
        let what = format!("the agent to know pod {}", pod.name);
        wait::until(&what, Duration::from_secs(20), async || {
            let view = self.get(pod).await?;
            let freeze = view
                .capabilities
                .iter()
                .find(|c| c.name == "freeze")
                .context("no word on freezing")?;
            if freeze.available {
                Ok(())
            } else {
                bail!("it cannot be frozen: {} {}", freeze.reason, freeze.message)
            }
        })
        .await
    }

    /// Runs a pod that is filled from a snapshot: with a grant for its UID, and the annotation that asks for it.
    ///
    /// # Errors
    /// When the agent refuses, or the pod does not start, or cannot be put to sleep.
    pub async fn run_clone(&self, snapshot: &str, spec: PodSpec) -> Result<Pod> {
        let spec = self.granted(snapshot, spec).await?;
        self.run_pod(spec).await
    }

    /// A pod with leave to be filled from a snapshot.
    ///
    /// # Errors
    /// When the agent refuses.
    pub async fn granted(&self, snapshot: &str, mut spec: PodSpec) -> Result<PodSpec> {
        let uid = spec.uid.get_or_insert_with(|| uuid::Uuid::new_v4().to_string());
        let request = v1::GrantRestoreRequest {
            id: snapshot.to_owned(),
            pod_uid: uid.clone(),
            namespace: spec.namespace.clone(),
            containers: spec
                .containers
                .iter()
                .map(|container| v1::grant_restore_request::Container {
                    name: container.name.clone(),
                    image: String::new(),
                })
                .collect(),
            ..Default::default()
        };
        let granted = self.client.clone().grant_restore(request).await?.into_inner();
        Ok(spec.annotation(dormouse_core::ANNOTATION_RESTORE_FROM, granted.snapshot_id))
    }

    /// What the agent says of a pod.
    ///
    /// # Errors
    /// When it knows none.
    pub async fn get(&self, pod: &Pod) -> Result<v1::Pod> {
        let answer = self
            .client
            .clone()
            .get(v1::GetRequest {
                pod: Some(reference(pod)),
            })
            .await?;
        answer
            .into_inner()
            .pod
            .context("the agent answered without a pod")
    }

    /// What the agent tells from now on, after what there is.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn watch(&self) -> Result<tonic::Streaming<v1::WatchResponse>, tonic::Status> {
        let answer = self.client.clone().watch(v1::WatchRequest::default()).await?;
        Ok(answer.into_inner())
    }

    /// The rung on which the agent says a pod stands.
    ///
    /// # Errors
    /// When it knows no such pod.
    pub async fn rung(&self, pod: &Pod) -> Result<Rung> {
        self.get(pod)
            .await?
            .rung()
            .to_core()
            .context("a pod without a rung")
    }

    /// Waits until a pod stands on a rung and nothing is under way.
    ///
    /// # Errors
    /// When it does not within `limit`.
    pub async fn wait_rung(&self, pod: &Pod, rung: Rung, limit: Duration) -> Result<v1::Pod> {
        wait::until(&format!("pod {} to be {rung}", pod.name), limit, async || {
            let view = self.get(pod).await?;
            let (now, moving) = (view.rung().to_core(), view.moving_to().to_core());
            if now == Some(rung) && moving.is_none() {
                Ok(view)
            } else {
                bail!(
                    "it is {now:?}, moving to {moving:?}: {} {}",
                    view.reason,
                    view.message
                )
            }
        })
        .await
    }

    /// What woke a pod last, once the agent has written it down: the guest may answer before that.
    ///
    /// # Errors
    ///
    /// If the pod does not run within `limit`, or the agent knows of no wake.
    pub async fn woken(&self, pod: &Pod, limit: Duration) -> Result<v1::LastWake> {
        let view = self.wait_rung(pod, Rung::Running, limit).await?;
        view.last_wake
            .with_context(|| format!("the agent knows of no wake of pod {}", pod.name))
    }

    /// Waits until a shell stands by for a hibernated pod, or none does, and nothing is under way.
    ///
    /// # Errors
    /// When it does not within `limit`.
    pub async fn wait_shell(&self, pod: &Pod, stands: bool, limit: Duration) -> Result<v1::Pod> {
        let what = format!(
            "pod {} to have {} shell",
            pod.name,
            if stands { "a" } else { "no" }
        );
        wait::until(&what, limit, async || {
            let view = self.get(pod).await?;
            if view.shell.is_some() == stands {
                Ok(view)
            } else {
                bail!("{:?}; {} {}", view.shell, view.reason, view.message)
            }
        })
        .await
    }

    /// Replaces a pod's policy.
    ///
    /// # Errors
    /// As the agent says.
    pub async fn set_policy(
        &self,
        pod: &Pod,
        policy: &dormouse_core::Policy,
    ) -> Result<v1::Pod, tonic::Status> {
        let policy_generation = self.get(pod).await.map_or(0, |view| view.policy_generation) + 1;
        let request = v1::SetPolicyRequest {
            pod: Some(reference(pod)),
            policy: Some(policy.into()),
            policy_generation,
            ..Default::default()
        };
        let answer = self.client.clone().set_policy(request).await?;
        Ok(answer.into_inner().pod.unwrap_or_default())
    }

    /// Orders a freeze.
    ///
    /// # Errors
    /// As the agent says.
    pub async fn freeze(&self, pod: &Pod) -> Result<v1::Outcome, tonic::Status> {
        let request = v1::FreezeRequest {
            pod: Some(reference(pod)),
            ..Default::default()
        };
        Ok(self
            .client
            .clone()
            .freeze(request)
            .await?
            .into_inner()
            .outcome
            .unwrap_or_default())
    }

    /// Orders a doze.
    ///
    /// # Errors
    /// As the agent says.
    pub async fn doze(&self, pod: &Pod) -> Result<v1::Outcome, tonic::Status> {
        let request = v1::DozeRequest {
            pod: Some(reference(pod)),
            ..Default::default()
        };
        Ok(self
            .client
            .clone()
            .doze(request)
            .await?
            .into_inner()
            .outcome
            .unwrap_or_default())
    }

    /// Orders a hibernation.
    ///
    /// # Errors
    /// As the agent says.
    pub async fn hibernate(&self, pod: &Pod) -> Result<v1::Outcome, tonic::Status> {
        let request = v1::HibernateRequest {
            pod: Some(reference(pod)),
            ..Default::default()
        };
        Ok(self
            .client
            .clone()
            .hibernate(request)
            .await?
            .into_inner()
            .outcome
            .unwrap_or_default())
    }

    /// Orders a snapshot of a pod that goes on.
    ///
    /// # Errors
    /// As the agent says.
    pub async fn snapshot(&self, pod: &Pod) -> Result<v1::Snapshot, tonic::Status> {
        let request = v1::CreateSnapshotRequest {
            pod: Some(reference(pod)),
            ..Default::default()
        };
        Ok(self
            .client
            .clone()
            .create_snapshot(request)
            .await?
            .into_inner()
            .snapshot
            .unwrap_or_default())
    }

    /// Orders a wake.
    ///
    /// # Errors
    /// As the agent says.
    pub async fn wake(&self, pod: &Pod) -> Result<v1::Outcome, tonic::Status> {
        let request = v1::WakeRequest {
            pod: Some(reference(pod)),
            ..Default::default()
        };
        Ok(self
            .client
            .clone()
            .wake(request)
            .await?
            .into_inner()
            .outcome
            .unwrap_or_default())
    }

    /// Ends the agent with TERM and takes the stack down in order.
    ///
    /// # Errors
    /// When a part does not end, or leaves something behind.
    pub async fn stop(mut self) -> Result<()> {
        let status = self.agent.stop(Duration::from_secs(15)).await?;
        if !status.success() {
            bail!("the agent ended with {status}; its log:\n{}", self.agent.log());
        }
        self.stack.close().await
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // A test that fails says what the agent saw; it is gone with the stack in a moment.
        if std::thread::panicking() {
            for line in log::condensed(&self.agent.log(), 120) {
                eprintln!("agent: {line}");
            }
            for line in log::condensed(&self.stack.containerd_log(), 40) {
                eprintln!("containerd: {line}");
            }
        }
    }
}

/// How the API names a pod.
#[must_use]
pub fn reference(pod: &Pod) -> v1::PodRef {
    v1::PodRef {
        sandbox_id: pod.id.clone(),
        ..Default::default()
    }
}

/// The stable reason code of a refusal.
#[must_use]
pub fn reason(status: &tonic::Status) -> Option<Reason> {
    dormouse_rpc::reason_of(status)
}
