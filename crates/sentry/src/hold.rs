//! Who keeps a container's standard streams while its pod is hibernated.
//!
//! The shim hands a container's pipes to `runsc start`, and the sentry alone keeps them. When the sentry ends they would
//! close: the shim would take the container's output for finished, and a restored container would have none. So they are
//! put by with the process that waits for the container on the shim's behalf (the wrapper's `wait`), which lives exactly
//! as long as the container does, and fetched there again for the wake.
//!
//! One request per connection, one byte each way: `P` puts by the descriptors that come with it, `F` fetches copies of
//! them, `D` drops them; `k` says that it is done, and carries them after an `F`.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use dormouse_core::Reason;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};

use crate::ids::{ContainerId, SandboxId};
use crate::run_dir::RunDir;

/// The most descriptors that are put by: input, output, error.
pub const STREAMS: usize = 3;

/// How long the other side of a connection may take.
const PATIENCE: Duration = Duration::from_secs(2);

const PUT: u8 = b'P';
const FETCH: u8 = b'F';
const DROP: u8 = b'D';
const DONE: u8 = b'k';

/// A container's streams, by number; `None` where there is none.
pub type Streams = [Option<OwnedFd>; STREAMS];

/// Streams could not be put by or fetched.
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
    #[error("cannot {verb} the streams of container {container}: {source}")]
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
}

impl HoldError {
    /// The stable code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::NobodyWaits { .. } => Reason::WrapperMissing,
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
        // Which of the three there are, in the byte that follows.
        let mut present = 0_u8;
        let mut raw: Vec<RawFd> = Vec::with_capacity(STREAMS);
        for (bit, stream) in streams.iter().enumerate() {
            if let Some(fd) = stream {
                present |= 1 << bit;
                raw.push(fd.as_raw_fd());
            }
        }
        let socket = self.connect()?;
        self.send(&socket, &[PUT, present], &raw)?;
        self.answer(&socket).map(drop)
    }

    /// Copies of the streams that were put by.
    ///
    /// # Errors
    /// [`HoldError`]
    pub fn fetch(&self) -> Result<Streams, HoldError> {
        let socket = self.connect()?;
        self.send(&socket, &[FETCH, 0], &[])?;
        self.answer(&socket)
    }

    /// Has the waiter close what was put by: the guest has them again.
    ///
    /// # Errors
    /// [`HoldError`]
    pub fn release(&self) -> Result<(), HoldError> {
        let socket = self.connect()?;
        self.send(&socket, &[DROP, 0], &[])?;
        self.answer(&socket).map(drop)
    }

    fn connect(&self) -> Result<UnixStream, HoldError> {
        let io = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => HoldError::NobodyWaits {
                container: self.container.clone(),
            },
            _ => self.io("reach", source),
        };
        let socket = UnixStream::connect(&self.path).map_err(io)?;
        let patient = socket
            .set_read_timeout(Some(PATIENCE))
            .and_then(|()| socket.set_write_timeout(Some(PATIENCE)));
        patient.map_err(|e| self.io("reach", e))?;
        Ok(socket)
    }

    fn send(&self, socket: &UnixStream, request: &[u8; 2], fds: &[RawFd]) -> Result<(), HoldError> {
        send(socket, request, fds).map_err(|e| self.io("put by", e))
    }

    fn answer(&self, socket: &UnixStream) -> Result<Streams, HoldError> {
        match receive(socket).map_err(|e| self.io("fetch", e))? {
            Some((DONE, streams)) => Ok(streams),
            _ => Err(HoldError::Garbage {
                container: self.container.clone(),
            }),
        }
    }

    fn io(&self, verb: &'static str, source: io::Error) -> HoldError {
        HoldError::Io {
            verb,
            container: self.container.clone(),
            source,
        }
    }
}

/// The waiter's end.
#[derive(Debug)]
pub struct HoldServer {
    listener: UnixListener,
    path: PathBuf,
    held: Streams,
}

impl HoldServer {
    /// Makes the socket, in the place of one that an earlier waiter left.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn bind(dir: &RunDir, sandbox: &SandboxId, container: &ContainerId) -> io::Result<Self> {
        let path = dir.hold_path(sandbox, container);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            path,
            held: Streams::default(),
        })
    }

    /// Serves whoever has connected; never waits for somebody to come. What a peer does wrong ends its connection.
    pub fn serve(&mut self) {
        while let Ok((peer, _)) = self.listener.accept() {
            let patient = peer
                .set_nonblocking(false)
                .and_then(|()| peer.set_read_timeout(Some(PATIENCE)))
                .and_then(|()| peer.set_write_timeout(Some(PATIENCE)));
            if patient.is_ok() {
                self.serve_one(&peer);
            }
        }
    }

    fn serve_one(&mut self, peer: &UnixStream) {
        let Ok(Some((request, streams))) = receive(peer) else {
            return;
        };
        match request {
            PUT => {
                self.held = streams;
                let _ = send(peer, &[DONE, 0], &[]);
            }
            FETCH => {
                let mut present = 0_u8;
                let mut raw = Vec::with_capacity(STREAMS);
                for (bit, stream) in self.held.iter().enumerate() {
                    if let Some(fd) = stream {
                        present |= 1 << bit;
                        raw.push(fd.as_raw_fd());
                    }
                }
                let _ = send(peer, &[DONE, present], &raw);
            }
            DROP => {
                self.held = Streams::default();
                let _ = send(peer, &[DONE, 0], &[]);
            }
            _ => {}
        }
    }
}

impl AsFd for HoldServer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for HoldServer {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn send(socket: &UnixStream, message: &[u8; 2], fds: &[RawFd]) -> io::Result<()> {
    let data = [IoSlice::new(message)];
    let rights = [ControlMessage::ScmRights(fds)];
    let rights: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
    let sent = sendmsg::<UnixAddr>(socket.as_raw_fd(), &data, rights, MsgFlags::MSG_NOSIGNAL, None)?;
    if sent == message.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

/// A message and its descriptors; `None` where the other side has hung up or sent something else.
fn receive(socket: &UnixStream) -> io::Result<Option<(u8, Streams)>> {
    let mut message = [0_u8; 2];
    let mut space = nix::cmsg_space!([RawFd; STREAMS]);
    let mut data = [IoSliceMut::new(&mut message)];
    let received = recvmsg::<UnixAddr>(
        socket.as_raw_fd(),
        &mut data,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_WAITALL,
    )?;
    let mut fds = Vec::new();
    for control in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just made these descriptors for this process, and nobody else knows them.
            #[allow(unsafe_code)]
            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let whole = received.bytes == message.len();
    let [kind, present] = message;
    if !whole || present.count_ones() as usize != fds.len() || present >= 1 << STREAMS {
        return Ok(None);
    }
    let mut fds = fds.into_iter();
    let mut streams = Streams::default();
    for (bit, stream) in streams.iter_mut().enumerate() {
        if present & (1 << bit) != 0 {
            *stream = fds.next();
        }
    }
    Ok(Some((kind, streams)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn streams_are_put_by_fetched_and_dropped() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = RunDir::new(tmp.path().join("run")).unwrap();
        dir.prepare().unwrap();
        let (sandbox, container): (SandboxId, ContainerId) = ("s1".parse().unwrap(), "c1".parse().unwrap());
        let holder = Holder::of(&dir, &sandbox, &container);
        assert!(matches!(holder.fetch(), Err(HoldError::NobodyWaits { .. })));
        dir.make_pod_dir(&sandbox).unwrap();
        let mut server = HoldServer::bind(&dir, &sandbox, &container).unwrap();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                let mut fds = [nix::poll::PollFd::new(
                    server.as_fd(),
                    nix::poll::PollFlags::POLLIN,
                )];
                nix::poll::poll(&mut fds, 20_u16).unwrap();
                server.serve();
            }
        });
        let (mut reader, writer) = io::pipe().unwrap();
        holder.put(&[None, Some(writer.as_fd()), None]).unwrap();
        drop(writer);
        let [none, fetched, nothing] = holder.fetch().unwrap();
        assert!(none.is_none() && nothing.is_none());
        std::fs::File::from(fetched.unwrap()).write_all(b"hello").unwrap();
        let mut text = [0; 5];
        reader.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"hello");
        holder.release().unwrap();
        // The last copy is gone: the pipe has ended.
        assert_eq!(reader.read(&mut text).unwrap(), 0);
        assert!(holder.fetch().unwrap().iter().all(Option::is_none));
        stop.send(()).unwrap();
        thread.join().unwrap();
    }
}
