//! Cutting a guest off from the wire, at its own packet sockets.
//!
//! A guest that is stopped for a save still has a network stack that runs: it would go on acknowledging
//! data that the image lacks. So its packet sockets get a filter that drops everything, from outside:
//! whoever may trace the process may have a second descriptor for its sockets.
//!
//! Nothing has to be remembered. The filter that was there before stands, unreachable, behind the one that
//! drops everything, so any process can put it back at any time.
//!
//! # Order of calls
//! [`WireMode::Cut`](crate::WireMode) first, so that what the guest no longer gets is held; then
//! [`GuestSockets::find`], [`cut`](GuestSockets::cut), [`settle`](GuestSockets::settle), and a wait until
//! [`drained`](GuestSockets::drained): what came before the cut has then been read. After the save, either
//! the guest is killed, or [`uncut`](GuestSockets::uncut) and
//! [`release_held`](crate::WireLoop::release_held).

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::Path;

use dormouse_core::Reason;
use nix::errno::Errno;

use crate::filter::Instruction;
use crate::sys;

/// Loads a number that no other program loads first and then drops everything.
const MARK: [Instruction; 2] = [
    Instruction {
        code: 0,
        jt: 0,
        jf: 0,
        k: 0x000d_043e,
    },
    Instruction {
        code: 6,
        jt: 0,
        jf: 0,
        k: 0,
    },
];

/// A sentry has one packet socket per network channel; more than this is not one.
const MAX_SOCKETS: usize = 64;

/// Why a guest's packet sockets could not be found or cut.
#[derive(Debug, thiserror::Error)]
pub enum GuestSocketError {
    /// The process is gone.
    #[error("process {0} is gone, and its sockets with it")]
    Gone(u32),
    /// The process has no packet socket.
    #[error("process {0} has no packet socket: it is not a sentry with a network stack of its own")]
    None(u32),
    /// The process has more packet sockets than a sentry has.
    #[error("process {0} has more than {MAX_SOCKETS} packet sockets: it is not a sentry")]
    TooMany(u32),
    /// A socket is filtered by a program that cannot be read and put back.
    #[error("a packet socket of process {0} has a filter that cannot be read, so it could not be put back")]
    ForeignFilter(u32),
    /// The descriptors of the process cannot be listed.
    #[error("cannot list the descriptors of process {pid}: {source}")]
    List {
        /// The process.
        pid: u32,
        /// The cause.
        source: io::Error,
    },
    /// A system call failed.
    #[error("cannot {doing} process {pid}: {source}; the agent needs CAP_SYS_PTRACE")]
    Call {
        /// What was tried.
        doing: &'static str,
        /// The process.
        pid: u32,
        /// The cause.
        source: Errno,
    },
}

impl GuestSocketError {
    /// The stable reason code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Gone(_) => Reason::GuestGone,
            Self::None(_) | Self::TooMany(_) | Self::ForeignFilter(_) => Reason::NetworkUnsupported,
            Self::List { .. } | Self::Call { .. } => Reason::Internal,
        }
    }
}

/// The packet sockets of one guest. Keeps them open, and with them the network namespace, until dropped.
#[derive(Debug)]
pub struct GuestSockets {
    pid: u32,
    process: OwnedFd,
    sockets: Vec<OwnedFd>,
}

impl GuestSockets {
    /// Finds the packet sockets of the process `pid`. A process that took the number over meanwhile is not
    /// mistaken for it.
    ///
    /// # Errors
    /// See [`GuestSocketError`].
    pub fn find(pid: u32) -> Result<Self, GuestSocketError> {
        let process = sys::pidfd_open(pid).map_err(|errno| call(pid, "get hold of", errno))?;
        Self::of(pid, process)
    }

    /// The same for a process that the caller has got hold of already; `pid` is its number.
    ///
    /// # Errors
    /// See [`GuestSocketError`].
    pub fn of(pid: u32, process: OwnedFd) -> Result<Self, GuestSocketError> {
        let mut sockets = Vec::new();
        for descriptor in socket_descriptors(pid)? {
            // The numbers may be another process's by now; this asks the one that is held.
            let socket = match sys::pidfd_getfd(process.as_fd(), descriptor) {
                Ok(socket) => socket,
                // Closed meanwhile.
                Err(Errno::EBADF) => continue,
                Err(errno) => return Err(call(pid, "get a second descriptor for a socket of", errno)),
            };
            if sys::is_packet_socket(socket.as_fd()) {
                if sockets.len() >= MAX_SOCKETS {
                    return Err(GuestSocketError::TooMany(pid));
                }
                sockets.push(socket);
            }
        }
        let this = Self {
            pid,
            process,
            sockets,
        };
        if !this.is_alive() {
            Err(GuestSocketError::Gone(pid))
        } else if this.sockets.is_empty() {
            Err(GuestSocketError::None(pid))
        } else {
            Ok(this)
        }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.sockets.len()
    }

    /// Whether the process still runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        sys::pidfd_is_alive(self.process.as_fd())
    }

    /// Lets no further frame in, on any of them or none. A frame that arrives at this very moment may still
    /// get in: see [`Self::settle`].
    ///
    /// # Errors
    /// See [`GuestSocketError`].
    pub fn cut(&self) -> Result<(), GuestSocketError> {
        let result = self.sockets.iter().try_for_each(|socket| self.cut_one(socket));
        if result.is_err() {
            // What failed is what the caller has to know.
            let _ = self.uncut();
        }
        result
    }

    fn cut_one(&self, socket: &OwnedFd) -> Result<(), GuestSocketError> {
        let before = self.filter(socket)?;
        if before.starts_with(&MARK) {
            return Ok(());
        }
        let program: Vec<Instruction> = MARK.into_iter().chain(before).collect();
        sys::attach_filter(socket.as_fd(), &program)
            .map_err(|errno| call(self.pid, "filter a packet socket of", errno))
    }

    /// Lets frames in again, as before [`Self::cut`]; harmless if they are let in.
    ///
    /// # Errors
    /// See [`GuestSocketError`]; the other sockets are let go nevertheless.
    pub fn uncut(&self) -> Result<(), GuestSocketError> {
        let mut result = Ok(());
        for socket in &self.sockets {
            let one = self.uncut_one(socket);
            if result.is_ok() {
                result = one;
            }
        }
        result
    }

    fn uncut_one(&self, socket: &OwnedFd) -> Result<(), GuestSocketError> {
        let program = self.filter(socket)?;
        let restored = match program.strip_prefix(&MARK) {
            None => return Ok(()),
            Some([]) => sys::detach_filter(socket.as_fd()),
            Some(before) => sys::attach_filter(socket.as_fd(), before),
        };
        restored.map_err(|errno| call(self.pid, "take the filter off a packet socket of", errno))
    }

    /// Whether all of them are cut.
    ///
    /// # Errors
    /// See [`GuestSocketError`].
    pub fn is_cut(&self) -> Result<bool, GuestSocketError> {
        for socket in &self.sockets {
            if !self.filter(socket)?.starts_with(&MARK) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Waits until every frame that met the filter that was there before the cut is in its queue: one grace
    /// period of the kernel, usually some milliseconds.
    ///
    /// # Errors
    /// See [`GuestSocketError`].
    pub fn settle(&self) -> Result<(), GuestSocketError> {
        sys::wait_for_other_processors()
            .map_err(|errno| call(self.pid, "wait for frames on their way to", errno))
    }

    /// Whether the guest has read every frame that it got.
    ///
    /// # Errors
    /// See [`GuestSocketError`].
    pub fn drained(&self) -> Result<bool, GuestSocketError> {
        for socket in &self.sockets {
            let waiting = sys::first_waiting(socket.as_fd())
                .map_err(|errno| call(self.pid, "look into the queue of a packet socket of", errno))?;
            if waiting != 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn filter(&self, socket: &OwnedFd) -> Result<Vec<Instruction>, GuestSocketError> {
        sys::filter(socket.as_fd()).map_err(|errno| match errno {
            // Not a classic program.
            Errno::EACCES => GuestSocketError::ForeignFilter(self.pid),
            errno => call(self.pid, "read the filter of a packet socket of", errno),
        })
    }
}

fn call(pid: u32, doing: &'static str, source: Errno) -> GuestSocketError {
    match source {
        Errno::ESRCH => GuestSocketError::Gone(pid),
        source => GuestSocketError::Call { doing, pid, source },
    }
}

/// The numbers of all sockets of a process.
fn socket_descriptors(pid: u32) -> Result<Vec<RawFd>, GuestSocketError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => GuestSocketError::Gone(pid),
        _ => GuestSocketError::List { pid, source },
    };
    let directory = Path::new("/proc").join(pid.to_string()).join("fd");
    let mut descriptors = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let number = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<RawFd>().ok());
        // An entry without a target has been closed meanwhile.
        let is_socket = fs::read_link(entry.path())
            .is_ok_and(|target| target.to_str().is_some_and(|t| t.starts_with("socket:[")));
        descriptors.extend(number.filter(|_| is_socket));
    }
    Ok(descriptors)
}
