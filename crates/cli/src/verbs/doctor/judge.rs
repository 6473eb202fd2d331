//! Judges what was found, one function per prerequisite. Pure.

use std::path::Path;

use dormouse_core::ENDS_SOON;
use dormouse_rpc::v1::get_node_response::Runsc;

use super::Check;
use crate::sys::Support;

/// The agent's configuration, as far as the doctor needs it. The agent itself is the judge of the rest.
#[derive(Debug, Default, serde::Deserialize)]
pub(super) struct AgentConfig {
    #[serde(default)]
    pub(super) swap: AgentSwap,
}

#[derive(Debug, Default, serde::Deserialize)]
pub(super) struct AgentSwap {
    #[serde(default)]
    zram: Option<toml::Table>,
    #[serde(default)]
    file: Option<toml::Table>,
    #[serde(default)]
    pub(super) allow_plain_swap: bool,
}

impl AgentSwap {
    /// Whether the agent is to bring swap of its own.
    pub(super) const fn brings_own(&self) -> bool {
        self.zram.is_some() || self.file.is_some()
    }
}

pub(super) fn root(uid: u32) -> Check {
    const NAME: &str = "root";
    if uid == 0 {
        Check::ok(NAME, "uid 0")
    } else {
        Check::fail(
            NAME,
            format!("uid {uid}"),
            "run as root: the sockets of the agent and of containerd are root's",
        )
    }
}

/// `text`: the file's text, or why it cannot be read; `None` if there is none.
pub(super) fn agent_config(path: &Path, text: Option<&Result<String, String>>) -> (Check, AgentConfig) {
    const NAME: &str = "agent configuration";
    let shown = path.display();
    match text {
        None => (
            Check::ok(NAME, format!("no {shown}: defaults")),
            AgentConfig::default(),
        ),
        Some(Err(error)) => (
            Check::fail(NAME, format!("{shown}: {error}"), "make it readable for root"),
            AgentConfig::default(),
        ),
        Some(Ok(text)) => match toml::from_str::<AgentConfig>(text) {
            Ok(config) => (Check::ok(NAME, shown.to_string()), config),
            Err(error) => {
                let line = error.message().lines().next().unwrap_or_default().to_owned();
                (
                    Check::fail(
                        NAME,
                        format!("{shown}: {line}"),
                        "correct it; the agent does not start with it",
                    ),
                    AgentConfig::default(),
                )
            }
        },
    }
}

/// The wrapper's configuration.
#[derive(Debug, serde::Deserialize)]
pub(super) struct WrapperConfig {
    pub(super) runsc: std::path::PathBuf,
}

pub(super) fn wrapper_config(
    path: &Path,
    text: Option<&Result<String, String>>,
) -> (Check, Option<WrapperConfig>) {
    const NAME: &str = "wrapper configuration";
    let shown = path.display();
    match text {
        None => (
            Check::warn(
                NAME,
                format!("no {shown}"),
                "write it as {\"runsc\": \"/path/of/runsc\"}, unless it lies beside the wrapper as <wrapper>.json",
            ),
            None,
        ),
        Some(Err(error)) => (
            Check::fail(NAME, format!("{shown}: {error}"), "make it readable for root"),
            None,
        ),
        Some(Ok(text)) => match serde_json::from_str::<WrapperConfig>(text) {
            Ok(config) => (Check::ok(NAME, shown.to_string()), Some(config)),
            Err(error) => (
                Check::fail(
                    NAME,
                    format!("{shown}: {error}"),
                    "correct it; no pod of the handler can start",
                ),
                None,
            ),
        },
    }
}

/// What a file on the node is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileFacts {
    pub(super) uid: u32,
    pub(super) mode: u32,
    pub(super) directory: bool,
}

pub(super) fn runsc(path: &Path, facts: Result<FileFacts, String>) -> Check {
    const NAME: &str = "runsc";
    let shown = path.display();
    match facts {
        Err(error) => Check::fail(
            NAME,
            format!("{shown}: {error}"),
            "install it, or correct the wrapper's configuration",
        ),
        Ok(_) if !path.is_absolute() => Check::fail(NAME, shown.to_string(), "name it by its absolute path"),
        Ok(facts) if facts.uid != 0 || facts.mode & 0o022 != 0 => Check::fail(
            NAME,
            format!("{shown}: uid {}, mode {:04o}", facts.uid, facts.mode & 0o7777),
            "it has to belong to root and be writable for nobody else",
        ),
        Ok(facts) if facts.mode & 0o111 == 0 => {
            Check::fail(NAME, format!("{shown} is not executable"), "chmod 0755 it")
        }
        Ok(_) => Check::ok(NAME, shown.to_string()),
    }
}

/// A release of runsc that the agent knows of; `None` where there is nothing to be said.
pub(super) fn release(runsc: &Runsc) -> Option<Check> {
    const NAME: &str = "runsc release";
    let needed = format!("{} snapshots and {} pods need it", runsc.snapshots, runsc.pods);
    let refused = runsc.restore.as_ref().filter(|restore| !restore.available);
    if let Some(restore) = refused {
        if runsc.snapshots + runsc.pods == 0 && runsc.origin != "Current" {
            return None;
        }
        let found = format!("{}: {}; {needed}", runsc.version, restore.reason);
        return Some(Check::warn(NAME, found, restore.message.clone()));
    }
    let days = runsc.days_left.filter(|days| *days <= ENDS_SOON)?;
    Some(Check::warn(
        NAME,
        format!(
            "{}: guests are restored with it for {days} days more, until {}; {needed}",
            runsc.version, runsc.until
        ),
        "wake or delete the pods that are hibernated under it and make them anew, or give it a later day in \"allowed_versions\" of the wrapper's configuration",
    ))
}

pub(super) fn containerd(version: &dormouse_cri::RuntimeVersion) -> Check {
    const NAME: &str = "containerd";
    let found = format!("{} {}", version.name, version.version);
    if version.name != "containerd" {
        return Check::fail(NAME, found, "Dormouse works with containerd only");
    }
    match version.major() {
        Some(major) if major >= 2 => Check::ok(NAME, found),
        Some(_) => Check::warn(
            NAME,
            found,
            "it works, but changes of pods are noticed up to a second later; use 2.x",
        ),
        None => Check::warn(NAME, found, "its version cannot be read; 2.x is what is tested"),
    }
}

/// `handlers`: what containerd is configured with; empty if it does not tell.
pub(super) fn handler(wanted: &str, handlers: &[String]) -> Check {
    const NAME: &str = "runtime handler";
    if handlers.iter().any(|handler| handler == wanted) {
        Check::ok(NAME, wanted.to_owned())
    } else if handlers.is_empty() {
        Check::warn(
            NAME,
            "containerd does not tell its handlers",
            format!("see that {wanted} is configured"),
        )
    } else {
        Check::fail(
            NAME,
            format!("{wanted} is not configured; there are: {}", handlers.join(", ")),
            format!(
                "add runtimes.{wanted} with runtime_type io.containerd.runsc.v1 and binary_name = the wrapper to \
                 containerd's configuration, and restart containerd; or name another with --handler"
            ),
        )
    }
}

/// The cgroup file systems of the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Cgroups {
    /// Controllers of v1 hierarchies.
    pub(super) v1: Vec<String>,
    /// Controllers of the v2 hierarchy's root; `None` if it is not mounted.
    pub(super) v2: Option<Vec<String>>,
    /// Whether the v2 root's children can be reclaimed (Linux 5.19).
    pub(super) reclaim: bool,
}

pub(super) fn cgroups(cgroups: &Cgroups) -> Check {
    const NAME: &str = "cgroups";
    let has = |list: &[String], name: &str| list.iter().any(|controller| controller == name);
    if has(&cgroups.v1, "memory") {
        return if has(&cgroups.v1, "freezer") {
            Check::ok(NAME, "v1 with memory and freezer")
        } else {
            Check::fail(
                NAME,
                "v1 without the freezer",
                "mount the freezer hierarchy, or boot with cgroup v2",
            )
        };
    }
    match &cgroups.v2 {
        Some(controllers) if has(controllers, "memory") => {
            if cgroups.reclaim {
                Check::ok(NAME, "v2 with memory, its reclaim and the freezer")
            } else {
                Check::fail(
                    NAME,
                    "v2 without memory.reclaim",
                    "pods cannot doze; use Linux 5.19 or later",
                )
            }
        }
        Some(_) => Check::fail(
            NAME,
            "v2 without the memory controller",
            "enable it: cgroup_enable=memory",
        ),
        None => Check::fail(
            NAME,
            "no cgroups are mounted",
            "mount cgroup v2 at /sys/fs/cgroup",
        ),
    }
}

/// `limits`: `memory.swap.max` of the cgroups above the pods, with their paths.
pub(super) fn swap_limits(cgroups: &Cgroups, limits: &[(String, String)]) -> Check {
    const NAME: &str = "memory.swap.max";
    if cgroups.v1.iter().any(|controller| controller == "memory") {
        return Check::ok(NAME, "not on cgroup v1");
    }
    let closed: Vec<&str> = limits
        .iter()
        .filter(|(_, value)| value == "0")
        .map(|(path, _)| path.as_str())
        .collect();
    if closed.is_empty() {
        Check::ok(NAME, "no level above the pods forbids swap")
    } else {
        Check::fail(
            NAME,
            format!("0 at {}", closed.join(", ")),
            "the agent raises it on the pods' own levels only; raise it there (systemd: MemorySwapMax=)",
        )
    }
}

/// What the kubelet's configuration says.
#[derive(Debug, serde::Deserialize)]
struct KubeletConfig {
    #[serde(rename = "failSwapOn", default = "yes")]
    fail_swap_on: bool,
}

const fn yes() -> bool {
    true
}

pub(super) fn kubelet(
    path: &Path,
    text: Option<&Result<String, String>>,
    swap_is_on: bool,
    agent_brings_own: bool,
) -> Check {
    const NAME: &str = "kubelet and swap";
    let shown = path.display();
    let text = match text {
        None => {
            return Check::ok(
                NAME,
                format!("no {shown}: no kubelet, or its configuration is elsewhere"),
            );
        }
        Some(Err(error)) => {
            return Check::warn(NAME, format!("{shown}: {error}"), "make it readable for root");
        }
        Some(Ok(text)) => text,
    };
    match serde_saphyr::from_str::<KubeletConfig>(text) {
        Err(error) => {
            let line = error.to_string().lines().next().unwrap_or_default().to_owned();
            Check::warn(
                NAME,
                format!("{shown}: {line}"),
                "the agent brings no swap before it can be read",
            )
        }
        Ok(KubeletConfig { fail_swap_on: false }) => Check::ok(NAME, "failSwapOn: false"),
        Ok(_) if swap_is_on || agent_brings_own => Check::fail(
            NAME,
            "failSwapOn is true, the default: with swap on, the kubelet's next start fails",
            format!("set failSwapOn: false in {shown}"),
        ),
        Ok(_) => Check::warn(
            NAME,
            "failSwapOn is true, the default",
            format!("set failSwapOn: false in {shown} before there is swap"),
        ),
    }
}

pub(super) fn page_out(support: Support) -> Check {
    const NAME: &str = "page-out";
    match support {
        Support::Yes => Check::ok(NAME, "the kernel has process_madvise"),
        Support::No => Check::fail(
            NAME,
            "the kernel lacks process_madvise",
            "use Linux 5.10 or later",
        ),
        Support::Forbidden => Check::warn(
            NAME,
            "process_madvise is not allowed here",
            "run as root; a seccomp profile may forbid it",
        ),
    }
}

pub(super) fn pressure(readable: bool) -> Check {
    const NAME: &str = "memory pressure";
    if readable {
        Check::ok(NAME, "/proc/pressure/memory")
    } else {
        Check::warn(
            NAME,
            "no /proc/pressure/memory",
            "boot with psi=1; until then only MemAvailable is looked at",
        )
    }
}

pub(super) fn run_dir(path: &Path, facts: Option<FileFacts>, tmpfs: bool) -> Check {
    const NAME: &str = "run directory";
    let shown = path.display();
    match facts {
        None => Check::warn(NAME, format!("no {shown}"), "the agent makes it when it starts"),
        Some(facts) if !facts.directory => Check::fail(
            NAME,
            format!("{shown} is no directory"),
            "remove it and restart the agent",
        ),
        Some(facts) if facts.uid != 0 || facts.mode & 0o022 != 0 => Check::fail(
            NAME,
            format!("{shown}: uid {}, mode {:04o}", facts.uid, facts.mode & 0o7777),
            format!("others can forge the pods' records: chown root {shown} && chmod 0700 {shown}"),
        ),
        Some(_) if !tmpfs => Check::warn(
            NAME,
            format!("{shown} is not on a tmpfs"),
            "records of pods would outlive a reboot; put it below /run",
        ),
        Some(facts) => Check::ok(NAME, format!("{shown}, mode {:04o}", facts.mode & 0o7777)),
    }
}

/// `synchronised`: what the kernel says; `None` if it does not.
pub(super) fn clock(year: u64, synchronised: Option<bool>) -> Check {
    const NAME: &str = "clock";
    /// Before this version was written.
    const TOO_EARLY: u64 = 2026;
    if year < TOO_EARLY {
        return Check::fail(
            NAME,
            format!("the year is {year}"),
            "set the clock: certificates and events depend on it",
        );
    }
    match synchronised {
        Some(true) => Check::ok(NAME, "synchronised"),
        Some(false) => Check::warn(
            NAME,
            "not synchronised",
            "run a time service; sleeping and waking do not depend on it, the times in events do",
        ),
        None => Check::ok(NAME, "plausible"),
    }
}

#[cfg(test)]
mod tests;
