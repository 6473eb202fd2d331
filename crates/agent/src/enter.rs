//! From a container into the node.
//!
//! An agent in a pod does its work where a service of the node would: in the node's mount, network and cgroup namespaces.
//! There the paths that containerd, the shims and the wrapper speak of are what they are for them, mounts that are made
//! later are there, other ends of pods' interfaces can be found, and the node's own tools can be started. Hardly a part of
//! the node would not have to be mounted into the container otherwise, each at its own place.
//!
//! What the pod is given stays in reach by open descriptors: its ServiceAccount, the authorities, and its network, where the
//! agent is served, so that NetworkPolicies count for it.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;

use anyhow::Context as _;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::Config;

/// Where a pod finds its ServiceAccount.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The pod's network namespace, once the process has left it.
static POD_NETWORK: OnceLock<File> = OnceLock::new();

/// Why the agent cannot work on the node from its container.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// Process 1 is not the node's.
    #[error(
        "process 1 has the same mount namespace as this container, so it is not the node's first process; give the pod hostPID: true"
    )]
    NotTheNode,
    /// A namespace or directory cannot be opened.
    #[error("cannot open {}: {source}; the container has to be privileged, with hostPID: true", path.display())]
    Open {
        /// What.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A namespace cannot be entered.
    #[error("cannot enter the node's {kind} namespace: {source}; the container has to be privileged")]
    Enter {
        /// Which one.
        kind: &'static str,
        /// The kernel's answer.
        source: nix::errno::Errno,
    },
    /// The API server's address is not known.
    #[error("the API server's address is not known; the pod needs a ServiceAccount: {0}")]
    Api(#[source] kube::config::InClusterError),
}

/// Says to a process that another one stays in the container for it.
const INNER: &str = "DORMOUSE_INNER";

/// Runs this program again, and waits for it, if this process is the container's first one; `None` if it is the other.
///
/// The first process stays in the container: whatever is executed there (`kubectl exec`) is put into its namespaces, and
/// would find itself on the node otherwise, where the image's programs are not. It hands signals on, and the two end together.
///
/// # Errors
/// It cannot be started.
pub fn stay_outside() -> anyhow::Result<Option<ExitCode>> {
    if std::env::var_os(INNER).is_some() {
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)
            .context("cannot end with the container's first process")?;
        return Ok(None);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut words = std::env::args_os();
        let mut inner = tokio::process::Command::new("/proc/self/exe");
        if let Some(name) = words.next() {
            // Whoever looks for the agent's processes finds both.
            inner.arg0(name);
        }
        let mut inner = inner
            .args(words)
            .env(INNER, "1")
            .spawn()
            .context("cannot start this program again")?;
        let pid = inner
            .id()
            .and_then(|pid| i32::try_from(pid).ok())
            .map(Pid::from_raw);
        loop {
            let told = tokio::select! {
                status = inner.wait() => {
                    let code = status?.code().and_then(|code| u8::try_from(code).ok());
                    return Ok(Some(code.map_or(ExitCode::FAILURE, ExitCode::from)));
                }
                _ = terminate.recv() => Signal::SIGTERM,
                _ = interrupt.recv() => Signal::SIGINT,
            };
            if let Some(pid) = pid {
                // It has ended otherwise, which is seen next.
                let _ = kill(pid, told);
            }
        }
    })
}

/// Enters the node. Has to be called before any thread is started: a thread cannot leave the mounts that it shares.
///
/// Changes the configuration where it names files of the pod, and returns how the API server is reached, if the pod has a
/// ServiceAccount.
///
/// # Errors
/// See [`EnterError`].
pub fn enter(config: &mut Config) -> Result<Option<kube::Config>, EnterError> {
    let api = match open_dir(Path::new(SERVICE_ACCOUNT)) {
        Ok(dir) => {
            let mut api = kube::Config::incluster().map_err(EnterError::Api)?;
            let dir = keep(dir);
            api.root_cert_file = Some(dir.join("ca.crt"));
            api.auth_info.token_file = Some(dir.join("token").display().to_string());
            Some(api)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(source) => {
            return Err(EnterError::Open {
                path: SERVICE_ACCOUNT.into(),
                source,
            });
        }
    };
    let authorities = &config.cluster.authorities_file;
    if let (Some(dir), Some(name)) = (authorities.parent(), authorities.file_name())
        && let Ok(open) = open_dir(dir)
    {
        config.cluster.authorities_file = keep(open).join(name);
    }
    let own = open("/proc/self/ns/net")?;
    enter_namespaces()?;
    // Set once: the process enters once.
    let _ = POD_NETWORK.set(own);
    Ok(api)
}

/// Enters the node's mount, network and cgroup namespaces.
///
/// # Errors
/// See [`EnterError`].
pub fn enter_namespaces() -> Result<(), EnterError> {
    let mounts = open("/proc/1/ns/mnt")?;
    if is_same(&mounts, &open("/proc/self/ns/mnt")?) {
        return Err(EnterError::NotTheNode);
    }
    let spaces = [
        ("cgroup", open("/proc/1/ns/cgroup")?, CloneFlags::CLONE_NEWCGROUP),
        ("network", open("/proc/1/ns/net")?, CloneFlags::CLONE_NEWNET),
        // Last: what is opened from here on is the node's.
        ("mount", mounts, CloneFlags::CLONE_NEWNS),
    ];
    for (kind, file, flag) in spaces {
        setns(file, flag).map_err(|source| EnterError::Enter { kind, source })?;
    }
    Ok(())
}

/// A path by which a file of the container is reached after the node was entered.
///
/// # Errors
/// Its directory cannot be opened.
pub fn in_reach(file: &Path) -> Result<PathBuf, EnterError> {
    let (Some(dir), Some(name)) = (file.parent(), file.file_name()) else {
        return Ok(file.to_owned());
    };
    let open = open_dir(dir).map_err(|source| EnterError::Open {
        path: dir.to_owned(),
        source,
    })?;
    Ok(keep(open).join(name))
}

/// Listens where the pod is reached: in its network namespace, if the process has left it.
///
/// # Errors
/// The address cannot be had.
pub(crate) async fn listen(address: SocketAddr) -> io::Result<tokio::net::TcpListener> {
    let Some(network) = POD_NETWORK.get() else {
        return tokio::net::TcpListener::bind(address).await;
    };
    // A socket belongs to the namespace that it was made in, wherever it is used.
    let bound =
        std::thread::Builder::new()
            .name("listen".to_owned())
            .spawn(move || -> io::Result<TcpListener> {
                setns(network, CloneFlags::CLONE_NEWNET)?;
                let listener = TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                Ok(listener)
            })?;
    let listener = bound
        .join()
        .map_err(|_| io::Error::other("the thread that listens died"))??;
    tokio::net::TcpListener::from_std(listener)
}

/// A way to the directory for as long as this process lives, whatever is mounted where.
fn keep(dir: File) -> PathBuf {
    let path = format!("/proc/self/fd/{}", dir.as_raw_fd());
    // Never closed.
    std::mem::forget(dir);
    path.into()
}

fn open_dir(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_DIRECTORY | OFlag::O_CLOEXEC).bits())
        .open(path)
}

fn open(path: &str) -> Result<File, EnterError> {
    File::open(path).map_err(|source| EnterError::Open {
        path: path.into(),
        source,
    })
}

fn is_same(a: &File, b: &File) -> bool {
    match (a.metadata(), b.metadata()) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_directory_is_reached_by_its_descriptor() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("1")).unwrap();
        std::fs::write(dir.path().join("1/ca.crt"), "one").unwrap();
        std::os::unix::fs::symlink("1", dir.path().join("..data")).unwrap();
        std::os::unix::fs::symlink("..data/ca.crt", dir.path().join("ca.crt")).unwrap();
        let path = keep(open_dir(dir.path()).unwrap()).join("ca.crt");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one");
        // As kubelet does it: everything is exchanged by one link.
        std::fs::create_dir(dir.path().join("2")).unwrap();
        std::fs::write(dir.path().join("2/ca.crt"), "two").unwrap();
        std::fs::remove_file(dir.path().join("..data")).unwrap();
        std::os::unix::fs::symlink("2", dir.path().join("..data")).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
    }

    #[test]
    fn a_process_in_the_nodes_own_namespaces_has_nothing_to_enter() {
        let here = open("/proc/self/ns/mnt").unwrap();
        assert!(is_same(&here, &open("/proc/self/ns/mnt").unwrap()));
        assert!(!is_same(&here, &open("/proc/self/ns/net").unwrap()));
    }
}
