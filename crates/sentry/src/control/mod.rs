//! The sentry's control socket.
//!
//! JSON over a stream socket: `{"method":…,"arg":…}` one way, `{"success":…,"err":…,"result":…}` the other.
//! The sentry runs the guest's code beside its own, so what it answers is read like a stranger's: within a
//! deadline, up to a limit, into types.

mod connection;
mod scan;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use dormouse_core::Reason;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

pub use connection::Connection;

use crate::ids::ContainerId;
use crate::stacks::{self, Picture};

/// The most that an answer with nothing in it may have, in bytes.
const SMALL: usize = 64 << 10;
/// The most that an answer about one container may have, in bytes.
const MEDIUM: usize = 1 << 20;
/// The most that a stack dump may have, in bytes: some 20,000 goroutines.
const LARGE: usize = 32 << 20;

/// A call over the control socket failed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// There is no such socket, or nobody listens on it.
    #[error("no control socket at {}; the guest is not there (yet, or any more)", path.display())]
    Missing {
        /// The socket.
        path: PathBuf,
    },
    /// The socket belongs to somebody else.
    #[error("the control socket {} is served by uid {uid}, not by root's sentry", path.display())]
    Foreign {
        /// The socket.
        path: PathBuf,
        /// Who serves it.
        uid: u32,
    },
    /// No answer in time.
    #[error("the guest did not answer {method} in time; its sentry hangs, or is frozen")]
    Timeout {
        /// The call.
        method: &'static str,
    },
    /// The connection ended before the answer did.
    #[error("the guest closed the control connection during {method}")]
    Closed {
        /// The call.
        method: &'static str,
    },
    /// The answer is none.
    #[error("the guest answered {method} with something that is no answer: {what}")]
    Garbage {
        /// The call.
        method: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The guest said no.
    #[error("the guest refused {method}: {err}")]
    Refused {
        /// The call.
        method: &'static str,
        /// Its words, shortened.
        err: String,
    },
    /// The kernel refused.
    #[error("cannot {verb} the control socket {}: {source}", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl ControlError {
    /// The stable code.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Missing { .. } => Reason::ControlSocketMissing,
            Self::Timeout { .. } => Reason::ControlSocketTimeout,
            Self::Closed { .. } | Self::Garbage { .. } | Self::Foreign { .. } | Self::Io { .. } => {
                Reason::ControlSocketGarbage
            }
            // In the words of Go's `syscall.ENOSPC`: it writes its image by itself.
            Self::Refused { err, .. } if err.contains("no space left on device") => Reason::DiskFull,
            Self::Refused { .. } => Reason::GuestRefused,
        }
    }

    /// Whether it is certain that the call was not carried out.
    #[must_use]
    pub const fn surely_not_done(&self) -> bool {
        // A refusal comes instead of the call or out of it; Pause itself cannot fail, and Resume fails only
        // in what comes after the continuing. So only what failed before anything was sent is certain.
        matches!(self, Self::Missing { .. } | Self::Foreign { .. })
    }
}

/// What the sentry says of a container (`boot.ContainerRuntimeState`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerRuntimeState {
    /// Created and not started.
    Creating,
    /// Its first process runs.
    Running,
    /// Its first process has ended, or the sentry knows no such container.
    Stopped,
}

/// A container's statistics, as `runsc events` gets them.
#[derive(Debug, Clone, Deserialize)]
pub struct ContainerEvent {
    /// The event, in the sentry's own words.
    pub event: Box<RawValue>,
    /// CPU time by container, in ns, by the sentry's own account.
    #[serde(rename = "containerUsage", default)]
    pub cpu_usage: Option<BTreeMap<String, u64>>,
}

/// The guest's memory, in bytes, by the sentry's account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct GuestMemory {
    /// All of it.
    pub total: u64,
    /// What it did not account for in detail.
    pub unknown: u64,
    /// What is mapped from files of the node.
    pub mapped: u64,
    /// What the sentry itself keeps for the guest.
    #[serde(default)]
    pub system: u64,
    /// What processes have allocated.
    #[serde(default)]
    pub anonymous: u64,
    /// What was read from files and is kept.
    #[serde(default)]
    pub page_cache: u64,
    /// Files that are in memory: those that were written to the root file system, and volumes in the sandbox.
    #[serde(default)]
    pub tmpfs: u64,
    /// The same in a RAM disk.
    #[serde(default)]
    pub ramdiskfs: u64,
}

/// A sentry's control socket.
#[derive(Debug, Clone)]
pub struct ControlSocket {
    path: PathBuf,
}

#[derive(Serialize)]
struct Nothing {}

/// The three files of an uncompressed image, empty and open for reading and writing.
#[derive(Debug, Clone, Copy)]
pub struct ImageFiles<'a> {
    /// `checkpoint.img`: the header and the sentry's state.
    pub state: BorrowedFd<'a>,
    /// `pages_meta.img`: which pages there are.
    pub pages_metadata: BorrowedFd<'a>,
    /// `pages.img`: the pages.
    pub pages: BorrowedFd<'a>,
}

/// What a save does with pages that hold nothing but zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZeroPages {
    /// Every page is looked at, and those are left out of the image. Who has the time: it takes longer, where there are
    /// many of them.
    LeaveOut,
    /// Those that the sentry knows to be in memory are written like any other.
    Write,
}

/// `control.SaveOpts`, as far as it differs from Go's zero values.
#[derive(Serialize)]
struct SaveOptions {
    metadata: BTreeMap<&'static str, &'static str>,
    app_mf_exclude_committed_zero_pages: bool,
    have_pages_file: bool,
    #[serde(rename = "Resume")]
    resume: bool,
}

impl SaveOptions {
    fn new(zeros: ZeroPages) -> Self {
        Self {
            metadata: BTreeMap::from([("compression", "none")]),
            app_mf_exclude_committed_zero_pages: zeros == ZeroPages::LeaveOut,
            have_pages_file: true,
            resume: true,
        }
    }
}

impl ControlSocket {
    /// Names the socket; touches nothing.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where the socket is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a connection, over which calls can be made one after the other.
    ///
    /// # Errors
    /// [`ControlError::Missing`], [`ControlError::Foreign`], [`ControlError::Timeout`], [`ControlError::Io`]
    pub fn connect(&self, deadline: Instant) -> Result<Connection, ControlError> {
        Connection::open(&self.path, deadline)
    }

    /// Stops the application; returns when every task is stopped. Counted: two of these need two resumes.
    /// To be called only by [`crate::Held`], which keeps the count.
    pub(crate) fn pause(&self, deadline: Instant) -> Result<(), ControlError> {
        self.connect(deadline)?
            .call("containerManager.Pause", &Nothing {}, SMALL, deadline)
            .map(drop)
    }

    /// Continues the application. One of these too many panics the sentry: only [`crate::Held`] may call it.
    pub(crate) fn resume(&self, deadline: Instant) -> Result<(), ControlError> {
        self.connect(deadline)?
            .call("containerManager.Resume", &Nothing {}, SMALL, deadline)
            .map(drop)
    }

    /// Whether the application is stopped, by the sentry's stack dump. Changes nothing.
    ///
    /// # Errors
    /// [`ControlError`]
    pub fn stop_state(&self, deadline: Instant) -> Result<Picture, ControlError> {
        let raw = self
            .connect(deadline)?
            .call("debug.Stacks", &Nothing {}, LARGE, deadline)?;
        let dump: String = typed("debug.Stacks", &raw)?;
        Ok(stacks::read(&dump))
    }

    /// Saves the guest's whole state into the files of an image and leaves the guest as it is: stopped, if it was
    /// stopped by a Pause. Pauses are counted, so the save's own does no harm.
    ///
    /// Never without leaving the guest there: gVisor kills a guest whose save fails otherwise.
    ///
    /// # Errors
    /// [`ControlError`]; the guest is there as before, the files are of no use.
    pub fn checkpoint(
        &self,
        image: &ImageFiles<'_>,
        zeros: ZeroPages,
        deadline: Instant,
    ) -> Result<(), ControlError> {
        let files = [image.state, image.pages_metadata, image.pages];
        self.connect(deadline)?
            .call_with(
                "containerManager.Checkpoint",
                &SaveOptions::new(zeros),
                &files,
                SMALL,
                deadline,
            )
            .map(drop)
    }

    /// The guest's memory; with `full`, by kind: then the sentry looks which of its pages are there.
    ///
    /// # Errors
    /// [`ControlError`]
    pub fn usage(&self, full: bool, deadline: Instant) -> Result<GuestMemory, ControlError> {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Options {
            full: bool,
        }
        let raw = self
            .connect(deadline)?
            .call("Usage.Collect", &Options { full }, SMALL, deadline)?;
        typed("Usage.Collect", &raw)
    }

    /// What the sentry says of a container.
    ///
    /// # Errors
    /// [`ControlError`]
    pub fn container_state(
        &self,
        container: &ContainerId,
        deadline: Instant,
    ) -> Result<ContainerRuntimeState, ControlError> {
        self.connect(deadline)?.container_state(container, deadline)
    }
}

impl Connection {
    /// What the sentry says of a container.
    ///
    /// # Errors
    /// [`ControlError`]
    pub fn container_state(
        &mut self,
        container: &ContainerId,
        deadline: Instant,
    ) -> Result<ContainerRuntimeState, ControlError> {
        const METHOD: &str = "containerManager.ContainerRuntimeState";
        let raw = self.call(METHOD, container, SMALL, deadline)?;
        match typed::<u64>(METHOD, &raw)? {
            1 => Ok(ContainerRuntimeState::Creating),
            2 => Ok(ContainerRuntimeState::Running),
            3 => Ok(ContainerRuntimeState::Stopped),
            _ => Err(ControlError::Garbage {
                method: METHOD,
                what: "an unknown container state",
            }),
        }
    }

    /// Asks for the end of a container's first process. The sentry answers when it has ended.
    ///
    /// # Errors
    /// [`ControlError`]
    pub fn ask_for_end(
        self,
        container: &ContainerId,
        deadline: Instant,
    ) -> Result<EndQuestion, ControlError> {
        self.ask(WAIT, container, deadline)?;
        Ok(EndQuestion(self))
    }

    /// A container's statistics, as the sentry has them.
    ///
    /// # Errors
    /// [`ControlError`]
    pub fn event(
        &mut self,
        container: &ContainerId,
        deadline: Instant,
    ) -> Result<ContainerEvent, ControlError> {
        const METHOD: &str = "containerManager.Event";
        let raw = self.call(METHOD, container, MEDIUM, deadline)?;
        typed(METHOD, &raw)
    }

    /// A container's processes, as the sentry has them: an array of objects.
    ///
    /// # Errors
    /// [`ControlError`]
    pub fn processes(
        &mut self,
        container: &ContainerId,
        deadline: Instant,
    ) -> Result<Box<RawValue>, ControlError> {
        self.call("containerManager.Processes", container, MEDIUM, deadline)
    }
}

const WAIT: &str = "containerManager.Wait";

/// A question for the end of a container that the sentry has not answered yet. Poll the descriptor for reading.
#[derive(Debug)]
pub struct EndQuestion(Connection);

impl EndQuestion {
    /// The status of the container's first process, as `wait(2)` encodes it.
    ///
    /// # Errors
    /// [`ControlError::Closed`] when the sentry has ended instead, [`ControlError::Refused`] for a container that it does
    /// not know; others.
    pub fn answer(&mut self, deadline: Instant) -> Result<u32, ControlError> {
        let raw = self.0.take_answer(WAIT, SMALL, deadline)?;
        typed(WAIT, &raw)
    }
}

impl AsFd for EndQuestion {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn typed<'a, T: Deserialize<'a>>(method: &'static str, raw: &'a RawValue) -> Result<T, ControlError> {
    serde_json::from_str(raw.get()).map_err(|_| ControlError::Garbage {
        method,
        what: "a result of another type",
    })
}
