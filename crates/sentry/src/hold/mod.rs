//! The waiter: what the shim's long-lived question for a container does beside waiting.
//!
//! One process of the wrapper (`wait`) lives exactly as long as each container does, as a child of the shim. That makes it
//! the one place for two things that a hibernation needs:
//!
//! * The shim hands a container's pipes to `runsc start`, and the sentry alone keeps them. When the sentry ends they would
//!   close: the shim would take the container's output for finished, and a restored container would have none. So they
//!   are put by with the waiter.
//! * A guest that is made again must be the shim's descendant, in the node's namespaces and with the shim's rights, like
//!   the one before, and not the agent's, which is confined and may be restarted at any time. So the waiter calls runsc,
//!   the way the shim called it for this container.
//!
//! One request per connection, one packet each way, root only. A connection without a request says that the pod's record has
//! changed: an inotify instance for each waiter would say so, too, but root has 128 of them on a node, kubelet's and
//! everybody's included, and a waiter that cannot have one would be of no use.

mod packet;
mod server;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dormouse_core::Reason;

use crate::ids::{ContainerId, SandboxId};
use crate::run_dir::RunDir;
use packet::{Answer, Packet};

pub use server::{HoldServer, Run};

/// The most descriptors that are put by: input, output, error.
pub const STREAMS: usize = 3;

/// How long putting by may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// A container's streams, by number; `None` where there is none.
pub type Streams = [Option<OwnedFd>; STREAMS];

/// A call of runsc for the waiter's container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunscCall {
    /// Save the sandbox into an image and leave it there; only the pod sandbox's waiter.
    Checkpoint {
        /// The empty directory.
        image: PathBuf,
    },
    /// Make the container again, as the shim had it made.
    Create,
    /// Begin to fill the created sandbox out of an image; only the pod sandbox's waiter.
    Restore {
        /// The image's directory.
        image: PathBuf,
    },
    /// Start the container with the streams that were put by: in a sandbox that is being restored this restores it.
    Start,
    /// Forget the container, whatever its state. Never of a sandbox that is stopped: that hangs.
    Delete,
}

impl RunscCall {
    /// runsc's word.
    #[must_use]
    pub const fn verb(&self) -> &'static str {
        match self {
            Self::Checkpoint { .. } => "checkpoint",
            Self::Create => "create",
            Self::Restore { .. } => "restore",
            Self::Start => "start",
            Self::Delete => "delete",
        }
    }

    /// The directory of the image, where there is one.
    #[must_use]
    pub fn image(&self) -> Option<&Path> {
        match self {
            Self::Checkpoint { image } | Self::Restore { image } => Some(image),
            Self::Create | Self::Start | Self::Delete => None,
        }
    }
}

/// The waiter did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// Nobody waits for the container.
    #[error(
        "nobody waits for container {container} on the shim's behalf; has it ended, or was it started by a wrapper of another version?"
    )]
    NobodyWaits {
        /// The container.
        container: ContainerId,
    },
    /// The connection failed.
    #[error("cannot {verb} with the waiter of container {container}: {source}")]
    Io {
        /// What was tried.
        verb: &'static str,
        /// The container.
        container: ContainerId,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The other side answered something else.
    #[error("the waiter of container {container} did not understand; is it of another version?")]
    Garbage {
        /// The container.
        container: ContainerId,
    },
    /// runsc, or the waiter, said no.
    #[error("runsc {verb} of container {container} failed: {words}")]
    Failed {
        /// What was tried.
        verb: &'static str,
        /// The container.
        container: ContainerId,
        /// What it said.
        words: String,
    },
}

impl HoldError {
    /// The stable code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::NobodyWaits { .. } => Reason::WrapperMissing,
            Self::Failed { .. } => Reason::RuntimeCallFailed,
            Self::Io { .. } | Self::Garbage { .. } => Reason::Internal,
        }
    }
}

/// The way to the waiter of one container.
#[derive(Debug)]
pub struct Holder<'a> {
    path: PathBuf,
    container: &'a ContainerId,
}

impl<'a> Holder<'a> {
    /// Names it; touches nothing.
    #[must_use]
    pub fn of(dir: &RunDir, sandbox: &SandboxId, container: &'a ContainerId) -> Self {
        Self {
            path: dir.hold_path(sandbox, container),
            container,
        }
    }

    /// Puts streams by; the waiter has copies of its own afterwards.
    ///
    /// # Errors
    /// [`HoldError`]
    pub fn put(&self, streams: &[Option<BorrowedFd<'_>>; STREAMS]) -> Result<(), HoldError> {
        let raw = streams.map(|s| s.map(|fd| fd.as_raw_fd()));
        self.ask("put streams by", &Packet::Put, &raw, PATIENCE)
    }

    /// Has the waiter close what was put by: the guest has them again.
    ///
    /// # Errors
    /// [`HoldError`]
    pub fn release(&self) -> Result<(), HoldError> {
        self.ask("close streams", &Packet::Drop, &[None; STREAMS], PATIENCE)
    }

    /// Has the waiter call runsc for its container, and waits until runsc is done.
    ///
    /// # Errors
    /// [`HoldError::Failed`] with runsc's own words; others.
    pub fn call(&self, call: RunscCall, within: Duration) -> Result<(), HoldError> {
        let verb = call.verb();
        self.ask(verb, &Packet::Call(call), &[None; STREAMS], within)
    }

    /// Has the waiter look at the pod's record again, which has changed. Nobody is waited for: a waiter with something else to
    /// do finds this when it is done with it.
    pub(crate) fn nudge(&self) {
        // Coming is all there is to say, and a waiter with a full queue looks in any case.
        let _ = packet::knock(&self.path);
    }

    fn ask(
        &self,
        verb: &'static str,
        request: &Packet,
        streams: &[Option<RawFd>; STREAMS],
        within: Duration,
    ) -> Result<(), HoldError> {
        let io = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => HoldError::NobodyWaits {
                container: self.container.clone(),
            },
            _ => HoldError::Io {
                verb,
                container: self.container.clone(),
                source,
            },
        };
        let socket = packet::connect(&self.path, within).map_err(io)?;
        request.send(&socket, streams).map_err(io)?;
        match Answer::receive(&socket).map_err(io)? {
            Some(Answer::Done) => Ok(()),
            Some(Answer::Failed(words)) => Err(HoldError::Failed {
                verb,
                container: self.container.clone(),
                words,
            }),
            None => Err(HoldError::Garbage {
                container: self.container.clone(),
            }),
        }
    }
}
