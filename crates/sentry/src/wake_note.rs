//! How the wrapper tells the agent that it woke a pod.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use dormouse_core::WakeSource;
use serde::{Deserialize, Serialize};

use crate::ids::{ContainerId, SandboxId};
use crate::run_dir::RunDir;

/// The largest note, in bytes.
const NOTE_LIMIT: usize = 2048;

/// The note could not be sent, or what came is no note.
#[derive(Debug, thiserror::Error)]
pub enum WakeNoteError {
    /// The agent does not listen.
    #[error("the agent does not listen on {}", path.display())]
    NobodyListens {
        /// The agent's socket.
        path: PathBuf,
    },
    /// The socket could not be made or used.
    #[error("cannot {verb} {}: {source}", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// The agent's socket.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// What came is no note.
    #[error("received a wake note that cannot be read: {0}")]
    Garbage(serde_json::Error),
}

/// A pod was woken, or is about to be deleted.
///
/// It is news and no order: the guest has been woken already, and nobody waits for an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WakeNote {
    /// The pod sandbox.
    pub sandbox_id: SandboxId,
    /// The container that the verb was for.
    pub container_id: ContainerId,
    /// What asked for the wake.
    pub source: WakeSource,
    /// The verb, as in `exec`.
    pub verb: String,
    /// Whether the guest had to be woken; `false`: it ran.
    pub woken: bool,
    /// How long the wake took, in µs.
    pub wake_us: u64,
    /// The record's count of wakes after it.
    pub wakes: u64,
}

impl WakeNote {
    /// Tells the agent, without waiting for it: with nobody there, or nobody reading, the note is dropped.
    ///
    /// # Errors
    /// [`WakeNoteError`] says why it was dropped; the agent finds the wake in the record as well.
    pub fn send(&self, dir: &RunDir) -> Result<(), WakeNoteError> {
        let path = dir.wake_socket();
        let io = |verb| {
            let path = path.clone();
            move |source: io::Error| match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    WakeNoteError::NobodyListens { path }
                }
                _ => WakeNoteError::Io { verb, path, source },
            }
        };
        let socket = UnixDatagram::unbound().map_err(io("make a socket for"))?;
        socket.set_nonblocking(true).map_err(io("set up"))?;
        let note = serde_json::to_vec(self).map_err(WakeNoteError::Garbage)?;
        socket.send_to(&note, &path).map_err(io("send to"))?;
        Ok(())
    }
}

/// The agent's end.
#[derive(Debug)]
pub struct WakeListener {
    socket: UnixDatagram,
    path: PathBuf,
}

impl WakeListener {
    /// Makes the agent's socket in the run directory, in place of one that an earlier agent left.
    ///
    /// # Errors
    /// [`WakeNoteError::Io`]
    pub fn bind(dir: &RunDir) -> Result<Self, WakeNoteError> {
        let path = dir.wake_socket();
        let io = |verb| {
            let path = path.clone();
            move |source| WakeNoteError::Io { verb, path, source }
        };
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io("remove")(e)),
            _ => {}
        }
        let socket = UnixDatagram::bind(&path).map_err(io("bind"))?;
        // The directory is 0700 already; this is for a directory that somebody opened up.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
            .map_err(io("set the mode of"))?;
        socket.set_nonblocking(true).map_err(io("set up"))?;
        Ok(Self { socket, path })
    }

    /// The next note; `None` where none is waiting. Never blocks: wait on the descriptor for reading.
    ///
    /// # Errors
    /// [`WakeNoteError::Garbage`] for a datagram that is no note (the next call goes on with the next).
    pub fn receive(&self) -> Result<Option<WakeNote>, WakeNoteError> {
        let mut buffer = [0_u8; NOTE_LIMIT];
        match self.socket.recv(&mut buffer) {
            Ok(n) => serde_json::from_slice(buffer.get(..n).unwrap_or_default())
                .map(Some)
                .map_err(WakeNoteError::Garbage),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(source) => Err(WakeNoteError::Io {
                verb: "read",
                path: self.path.clone(),
                source,
            }),
        }
    }
}

impl AsFd for WakeListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
