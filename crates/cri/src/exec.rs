//! Commands that are run in containers: those of probes, and those that somebody waits for.
//!
//! The CRI's `ExecSync` leaves it to containerd how the session is called, and then nobody can tell a probe's from one that
//! somebody wanted. So the same is done through containerd's own services, under a name that says what it is: the index
//! tells nobody of a probe's session, and the wrapper does not wake a sleeper for it. Any other is use of the pod.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use containerd_client::services::v1 as ctrd;
use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use dormouse_core::PROBE_EXEC_PREFIX;
use prost_types::Any;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::error::{AnswerError, CallError};
use crate::runtime::{Runtime, namespaced};

/// How long containerd and its shim may take for what does not wait for the command.
const DEADLINE: Duration = Duration::from_secs(5);

/// How long a command that was killed may take to end.
const KILLED: Duration = Duration::from_secs(2);

const SIGKILL: u32 = 9;

/// By which containerd knows the type of what describes a process.
const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// What the names of sessions begin with that are no probe's.
const EXEC_PREFIX: &str = "dormouse-exec-";

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecEnd {
    /// By itself, with this status.
    Exited(u32),
    /// It took too long, and was killed.
    TimedOut,
}

impl Runtime {
    /// Runs a command in a container, as the container's user and in its environment, and waits for its end. Nobody hears
    /// of it but the caller, and a pod that sleeps is not woken for it.
    ///
    /// Does not end early when it is dropped: what was begun is tidied up at its end.
    ///
    /// # Errors
    /// containerd fails, or the command cannot be started; then nothing is known about the container.
    pub async fn probe_exec(
        &self,
        container_id: &str,
        command: &[String],
        limit: Duration,
    ) -> Result<ExecEnd, CallError> {
        self.run_session(session_name(PROBE_EXEC_PREFIX), container_id, command, &[], limit)
            .await
    }

    /// The same as use of the pod: it is woken for it, and not put to sleep under it. `env` is beside the container's
    /// environment, and in place of what has the same name there; it is in no log and no event.
    ///
    /// Does not end early when it is dropped, either.
    ///
    /// # Errors
    /// containerd fails, or the command cannot be started.
    pub async fn exec(
        &self,
        container_id: &str,
        command: &[String],
        env: &[(String, String)],
        limit: Duration,
    ) -> Result<ExecEnd, CallError> {
        self.run_session(session_name(EXEC_PREFIX), container_id, command, env, limit)
            .await
    }

    async fn run_session(
        &self,
        exec_id: String,
        container_id: &str,
        command: &[String],
        env: &[(String, String)],
        limit: Duration,
    ) -> Result<ExecEnd, CallError> {
        let process = self.container_process(container_id).await?;
        let spec = with_command(process, command, env).ok_or_else(|| CallError::BadAnswer {
            call: "Containers.Get",
            subject: container_id.to_owned(),
            what: AnswerError::Missing("spec.process"),
        })?;
        let exec = ctrd::ExecProcessRequest {
            container_id: container_id.to_owned(),
            spec: Some(Any {
                type_url: PROCESS.to_owned(),
                value: spec,
            }),
            exec_id: exec_id.clone(),
            ..Default::default()
        };
        self.within("Tasks.Exec", container_id, DEADLINE, async {
            self.tasks().exec(namespaced(exec)).await
        })
        .await?;
        let end = self.start_and_wait(container_id, &exec_id, limit).await;
        // Whatever became of it: containerd would keep it as long as the container.
        let delete = ctrd::DeleteProcessRequest {
            container_id: container_id.to_owned(),
            exec_id,
        };
        let deleted = self
            .within("Tasks.DeleteProcess", container_id, DEADLINE, async {
                self.tasks().delete_process(namespaced(delete)).await
            })
            .await;
        if let Err(error) = deleted {
            // It goes with the container, which may be why it went.
            tracing::debug!("a session was not removed: {error}");
        }
        end
    }

    async fn start_and_wait(
        &self,
        container_id: &str,
        exec_id: &str,
        limit: Duration,
    ) -> Result<ExecEnd, CallError> {
        let until = Instant::now() + limit;
        let start = ctrd::StartRequest {
            container_id: container_id.to_owned(),
            exec_id: exec_id.to_owned(),
        };
        self.within("Tasks.Start", container_id, limit.max(DEADLINE), async {
            self.tasks().start(namespaced(start)).await
        })
        .await?;
        let left = until.saturating_duration_since(Instant::now());
        match self.wait_for(container_id, exec_id, left).await {
            Err(CallError::Timeout { .. }) => {}
            result => return result.map(ExecEnd::Exited),
        }
        let kill = ctrd::KillRequest {
            container_id: container_id.to_owned(),
            exec_id: exec_id.to_owned(),
            signal: SIGKILL,
            all: false,
        };
        let killed = self
            .within("Tasks.Kill", container_id, DEADLINE, async {
                self.tasks().kill(namespaced(kill)).await
            })
            .await;
        match killed {
            // It ended at the last moment, which was too late.
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
        self.wait_for(container_id, exec_id, KILLED).await?;
        Ok(ExecEnd::TimedOut)
    }

    async fn wait_for(&self, container_id: &str, exec_id: &str, limit: Duration) -> Result<u32, CallError> {
        let wait = ctrd::WaitRequest {
            container_id: container_id.to_owned(),
            exec_id: exec_id.to_owned(),
        };
        self.within("Tasks.Wait", container_id, limit, async {
            self.tasks().wait(namespaced(wait)).await
        })
        .await
        .map(|answer| answer.exit_status)
    }

    fn tasks(&self) -> TasksClient<tonic::transport::Channel> {
        TasksClient::new(self.channel())
    }

    /// What containerd's record says of the container's first process.
    async fn container_process(&self, container_id: &str) -> Result<Value, CallError> {
        let request = namespaced(ctrd::GetContainerRequest {
            id: container_id.to_owned(),
        });
        let answer = self
            .within("Containers.Get", container_id, DEADLINE, async {
                ContainersClient::new(self.channel()).get(request).await
            })
            .await?;
        let spec = answer.container.and_then(|container| container.spec);
        let mut spec: Value = spec
            .and_then(|spec| serde_json::from_slice(&spec.value).ok())
            .unwrap_or_default();
        Ok(spec.get_mut("process").map(Value::take).unwrap_or_default())
    }
}

/// The container's first process with another command and more of an environment, and without a terminal; `None` if that is
/// not known.
fn with_command(mut process: Value, command: &[String], env: &[(String, String)]) -> Option<Vec<u8>> {
    let fields = process.as_object_mut()?;
    if !env.is_empty() {
        let there = fields.entry("env").or_insert_with(|| json!([]));
        let there = there.as_array_mut()?;
        there.retain(|variable| {
            let name = variable.as_str().and_then(|text| text.split('=').next());
            !env.iter().any(|(other, _)| Some(other.as_str()) == name)
        });
        there.extend(env.iter().map(|(name, value)| json!(format!("{name}={value}"))));
    }
    fields.insert("args".to_owned(), json!(command));
    fields.insert("terminal".to_owned(), json!(false));
    fields.remove("consoleSize");
    fields.remove("commandLine");
    serde_json::to_vec(&process).ok()
}

/// A name that no session before has, of an agent before this one neither.
fn session_name(prefix: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}{:x}-{count:x}", now.as_nanos())
}

/// Whether a session is a probe's.
pub(crate) fn is_probes(exec_id: &str) -> bool {
    exec_id.starts_with(PROBE_EXEC_PREFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_run_as_the_container_is() {
        let process = json!({
            "terminal": true, "consoleSize": {"height": 1, "width": 1}, "user": {"uid": 7, "gid": 8},
            "args": ["serve"], "env": ["A=b"], "cwd": "/w", "noNewPrivileges": true,
        });
        let spec = with_command(process, &["cat".to_owned(), "/alive".to_owned()], &[]).unwrap();
        let spec: Value = serde_json::from_slice(&spec).unwrap();
        let expected = json!({
            "terminal": false, "user": {"uid": 7, "gid": 8}, "args": ["cat", "/alive"], "env": ["A=b"], "cwd": "/w",
            "noNewPrivileges": true,
        });
        assert_eq!(spec, expected);
        assert_eq!(with_command(Value::Null, &[], &[]), None);
    }

    #[test]
    fn the_environment_is_the_containers_but_for_what_is_given() {
        let given = [
            ("A".to_owned(), "x=y".to_owned()),
            ("NEW".to_owned(), String::new()),
        ];
        let env = |process: Value| {
            let spec = with_command(process, &[], &given).unwrap();
            serde_json::from_slice::<Value>(&spec).unwrap()["env"].clone()
        };
        let there = json!({"env": ["A=b", "AA=c", "PATH=/bin"]});
        assert_eq!(env(there), json!(["AA=c", "PATH=/bin", "A=x=y", "NEW="]));
        assert_eq!(env(json!({})), json!(["A=x=y", "NEW="]));
    }

    #[test]
    fn sessions_have_names_of_their_own() {
        let (one, other) = (session_name(PROBE_EXEC_PREFIX), session_name(PROBE_EXEC_PREFIX));
        assert_ne!(one, other);
        assert!(is_probes(&one) && !is_probes("0a1b2c") && !is_probes(&session_name(EXEC_PREFIX)));
        // containerd's identifiers.
        assert!(one.len() <= 76 && one.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'));
    }
}
