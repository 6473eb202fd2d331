//! Doing something inside a network namespace without the caller's threads leaving theirs.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use dormouse_core::Reason;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{fstat, stat};

/// Why a pod's network namespace could not be entered.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The network namespace cannot be opened.
    #[error("cannot open the network namespace {path}: {source}; is the pod still there?")]
    Open {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The namespace is the caller's own: the pod uses the host's network.
    #[error(
        "{0} is the node's own network namespace: the addresses and packets of a pod that uses the host \
         network are not its own"
    )]
    HostNetwork(PathBuf),
    /// The namespace cannot be entered.
    #[error("cannot enter the network namespace {path}: {source}; CAP_SYS_ADMIN is needed")]
    Enter {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: Errno,
    },
    /// The helper thread could not be started, or died.
    #[error("cannot run the thread that enters a network namespace: {0}")]
    Thread(io::Error),
}

impl NamespaceError {
    /// The stable reason code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Open { .. } => Reason::PodGone,
            Self::HostNetwork(_) | Self::Enter { .. } => Reason::NetworkUnsupported,
            Self::Thread(_) => Reason::Internal,
        }
    }
}

/// A network namespace, whatever path it is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NamespaceId {
    device: u64,
    inode: u64,
}

impl NamespaceId {
    pub(crate) fn at(path: &Path) -> Result<Self, Errno> {
        stat(path).map(|s| Self {
            device: s.st_dev,
            inode: s.st_ino,
        })
    }
}

/// An open network namespace of a pod; never the caller's own.
#[derive(Debug)]
pub(crate) struct Namespace {
    file: File,
    path: PathBuf,
    id: NamespaceId,
}

impl Namespace {
    pub(crate) fn open(path: &Path) -> Result<Self, NamespaceError> {
        let failed = |source| NamespaceError::Open {
            path: path.into(),
            source,
        };
        let file = File::open(path).map_err(failed)?;
        let stat = fstat(&file).map_err(|errno| failed(errno.into()))?;
        let id = NamespaceId {
            device: stat.st_dev,
            inode: stat.st_ino,
        };
        if NamespaceId::at(Path::new("/proc/self/ns/net")) == Ok(id) {
            return Err(NamespaceError::HostNetwork(path.into()));
        }
        Ok(Self {
            file,
            path: path.into(),
            id,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) const fn id(&self) -> NamespaceId {
        self.id
    }

    /// Runs `act` inside, in a thread of its own that ends with it.
    pub(crate) fn run<R, E>(&self, act: impl FnOnce() -> Result<R, E> + Send) -> Result<R, E>
    where
        R: Send,
        E: From<NamespaceError> + Send,
    {
        let inside = || {
            setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|source| NamespaceError::Enter {
                path: self.path.clone(),
                source,
            })?;
            act()
        };
        thread::scope(|scope| {
            thread::Builder::new()
                .name("netns".to_owned())
                .stack_size(256 * 1024)
                .spawn_scoped(scope, inside)
                .map_err(NamespaceError::Thread)?
                .join()
                .map_err(|_| NamespaceError::Thread(io::Error::other("it panicked")))?
        })
    }
}
