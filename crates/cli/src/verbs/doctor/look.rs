//! Looks at the node. Everything is read only, and nothing that cannot be read stops the rest.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use dormouse_cri::Runtime;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};

use super::judge::{self, Cgroups, FileFacts};
use super::{Check, swap};
use crate::agent::Agent;
use crate::args::{DoctorArgs, Global};
use crate::error::CliError;
use crate::sys;

/// The largest configuration file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

pub(super) async fn all(global: &Global, args: &DoctorArgs) -> Vec<Check> {
    let mut checks = vec![judge::root(nix::unistd::geteuid().as_raw())];
    checks.extend(agent(global).await);
    let (check, config) = judge::agent_config(&args.config, read(&args.config).as_ref());
    checks.push(check);
    let run_dir = global
        .socket
        .parent()
        .unwrap_or_else(|| Path::new("/run/dormouse"));
    let tmpfs = statfs(run_dir).is_ok_and(|fs| fs.filesystem_type() == TMPFS_MAGIC);
    checks.push(judge::run_dir(run_dir, facts(run_dir).ok(), tmpfs));

    checks.extend(containerd(args).await);
    let (check, wrapper) = judge::wrapper_config(&args.wrapper_config, read(&args.wrapper_config).as_ref());
    checks.push(check);
    if let Some(wrapper) = wrapper {
        checks.push(judge::runsc(
            &wrapper.runsc,
            facts(&wrapper.runsc).map_err(|error| error.to_string()),
        ));
    }

    let cgroups = cgroups();
    checks.push(judge::cgroups(&cgroups));
    checks.push(judge::swap_limits(&cgroups, &swap_limits()));
    let areas = swap_areas();
    checks.push(swap::judge(
        &areas,
        config.swap.brings_own(),
        config.swap.allow_plain_swap,
    ));
    checks.push(judge::kubelet(
        &args.kubelet_config,
        read(&args.kubelet_config).as_ref(),
        !areas.is_empty(),
        config.swap.brings_own(),
    ));
    checks.push(judge::page_out(sys::process_madvise()));
    checks.push(judge::pressure(fs::read("/proc/pressure/memory").is_ok()));
    let year = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| 1970 + now.as_secs() / 31_556_952);
    checks.push(judge::clock(year, sys::clock_synchronised()));
    checks
}

/// The agent, and what it says it cannot do.
async fn agent(global: &Global) -> Vec<Check> {
    const NAME: &str = "agent";
    let node = match Agent::connect(global).await {
        Ok(agent) => agent.node().await,
        Err(error) => Err(error),
    };
    match node {
        Ok(node) => {
            let mut checks = vec![Check::ok(NAME, format!("version {}", node.agent_version))];
            checks.extend(node.runscs.iter().filter_map(judge::release));
            checks.extend(
                node.capabilities
                    .into_iter()
                    .filter(|capability| !capability.available)
                    .map(|capability| {
                        Check::warn(
                            "agent's node",
                            format!("{} is off: {}", capability.name, capability.reason),
                            capability.message,
                        )
                    }),
            );
            checks
        }
        Err(error @ CliError::Agent(_)) => {
            vec![Check::fail(
                NAME,
                error.full_text(),
                "start dormouse-agent, or name its socket with --socket",
            )]
        }
        Err(error) => vec![Check::fail(NAME, error.full_text(), "see the agent's log")],
    }
}

/// containerd and the runtime handler.
async fn containerd(args: &DoctorArgs) -> Vec<Check> {
    const NAME: &str = "containerd";
    let runtime = match Runtime::lazy(&args.runtime.runtime_endpoint) {
        Ok(runtime) => runtime,
        Err(error) => return vec![Check::fail(NAME, error.to_string(), "correct --runtime-endpoint")],
    };
    match runtime.version().await {
        Ok(version) => {
            let mut checks = vec![judge::containerd(&version)];
            checks.push(match runtime.handlers().await {
                Ok(handlers) => judge::handler(&args.handler, &handlers),
                Err(error) => Check::warn("runtime handler", error.to_string(), "see containerd's log"),
            });
            checks
        }
        Err(error) => vec![Check::fail(
            NAME,
            format!("{}: {error}", runtime.socket().display()),
            "start containerd, or name its socket with --runtime-endpoint",
        )],
    }
}

/// A configuration file; `None` if there is none.
fn read(path: &Path) -> Option<Result<String, String>> {
    let text = fs::File::open(path).and_then(|file| {
        let mut text = String::new();
        file.take(MAX_FILE).read_to_string(&mut text)?;
        Ok(text)
    });
    match text {
        Ok(text) => Some(Ok(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => Some(Err(error.to_string())),
    }
}

fn facts(path: &Path) -> io::Result<FileFacts> {
    let metadata = fs::metadata(path)?;
    Ok(FileFacts {
        uid: metadata.uid(),
        mode: metadata.mode(),
        directory: metadata.is_dir(),
    })
}

fn cgroups() -> Cgroups {
    let mut cgroups = Cgroups::default();
    let Ok(process) = procfs::process::Process::myself() else {
        return cgroups;
    };
    let Ok(mounts) = process.mountinfo() else {
        return cgroups;
    };
    for mount in mounts {
        match mount.fs_type.as_str() {
            "cgroup" => cgroups.v1.extend(mount.super_options.into_keys()),
            "cgroup2" => {
                let controllers =
                    fs::read_to_string(mount.mount_point.join("cgroup.controllers")).unwrap_or_default();
                cgroups.v2 = Some(controllers.split_whitespace().map(str::to_owned).collect());
                cgroups.reclaim = has_reclaim(&mount.mount_point);
            }
            _ => {}
        }
    }
    cgroups
}

/// Whether any cgroup below the root has `memory.reclaim`; the root itself has only since Linux 6.x.
fn has_reclaim(root: &Path) -> bool {
    let below = fs::read_dir(root)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    std::iter::once(root.to_owned())
        .chain(below)
        .any(|path| path.join("memory.reclaim").exists())
}

/// `memory.swap.max` of the cgroups in which pods are: kubelet's, containerd's and our own.
fn swap_limits() -> Vec<(String, String)> {
    const PARENTS: [&str; 8] = [
        "kubepods",
        "kubepods/burstable",
        "kubepods/besteffort",
        "kubepods.slice",
        "kubepods.slice/kubepods-burstable.slice",
        "kubepods.slice/kubepods-besteffort.slice",
        "dormouse",
        "dormouse.slice",
    ];
    PARENTS
        .iter()
        .filter_map(|parent| {
            let path = PathBuf::from("/sys/fs/cgroup")
                .join(parent)
                .join("memory.swap.max");
            let value = fs::read_to_string(&path).ok()?;
            Some((format!("/{parent}"), value.trim().to_owned()))
        })
        .collect()
}

fn swap_areas() -> Vec<swap::Area> {
    let text = fs::read_to_string("/proc/swaps").unwrap_or_default();
    text.lines()
        .skip(1)
        .filter_map(swap::parse_line)
        .map(|(path, file, total, used)| {
            let device = fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
            let dm_uuid = device
                .file_name()
                .and_then(|name| fs::read_to_string(Path::new("/sys/block").join(name).join("dm/uuid")).ok());
            swap::Area {
                kind: swap::kind_of(&device, file, dm_uuid.as_deref()),
                path,
                total,
                used,
            }
        })
        .collect()
}
