//! One connection to a control socket.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::{PeerCredentials, SendTimeout};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, getsockopt, recv, send,
    sendmsg, setsockopt, socket,
};
use nix::sys::stat::Mode;
use nix::sys::time::{TimeVal, TimeValLike};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::ControlError;
use super::scan::{ObjectEnd, Scan};

/// How much is read at once, in bytes.
const CHUNK: usize = 64 << 10;

/// The most that is kept of a guest's error text, in characters.
const ERR_LIMIT: usize = 512;

/// One connection to a control socket, over which calls are made one after the other.
///
/// After any error but [`ControlError::Refused`] the connection is of no more use.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    path: PathBuf,
}

#[derive(Serialize)]
struct Call<'a, A> {
    method: &'a str,
    arg: &'a A,
}

#[derive(Deserialize)]
struct Answer {
    success: bool,
    #[serde(default)]
    err: String,
    #[serde(default)]
    result: Option<Box<RawValue>>,
}

impl Connection {
    /// Connects to the socket at `path`.
    pub(super) fn open(path: &Path, deadline: Instant) -> Result<Self, ControlError> {
        const METHOD: &str = "connect";
        let failed = |verb, errno: Errno| match errno {
            Errno::ENOENT | Errno::ECONNREFUSED => ControlError::Missing {
                path: path.to_owned(),
            },
            Errno::EAGAIN | Errno::ETIMEDOUT => ControlError::Timeout { method: METHOD },
            e => ControlError::Io {
                verb,
                path: path.to_owned(),
                source: e.into(),
            },
        };
        // A socket's address has 108 bytes and runsc's roots are longer than that: the name goes through a
        // descriptor of the socket itself, which also makes sure that it is one.
        let node = open(
            path,
            OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .map_err(|e| failed("open", e))?;
        let node = std::fs::File::from(node);
        let kind = node
            .metadata()
            .map_err(|source| io_error("stat", path, source))?
            .file_type();
        if !kind.is_socket() {
            return Err(ControlError::Missing {
                path: path.to_owned(),
            });
        }
        let address = UnixAddr::new(format!("/proc/self/fd/{}", node.as_raw_fd()).as_str())
            .map_err(|e| failed("name", e))?;
        let socket = socket(
            AddressFamily::Unix,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .map_err(|e| failed("make a socket for", e))?;
        // A connect to a full backlog waits; this bounds it (and nothing else: sends do not wait).
        let left = remaining(deadline).ok_or(ControlError::Timeout { method: METHOD })?;
        let left = TimeVal::microseconds(i64::try_from(left.as_micros()).unwrap_or(i64::MAX).max(1));
        setsockopt(&socket, SendTimeout, &left).map_err(|e| failed("set up", e))?;
        connect(socket.as_raw_fd(), &address).map_err(|e| failed("connect to", e))?;
        let peer = getsockopt(&socket, PeerCredentials).map_err(|e| failed("look at the peer of", e))?;
        // runsc makes the socket, as root or as the user that runs it, before the sentry drops its rights.
        if peer.uid() != 0 && peer.uid() != nix::unistd::geteuid().as_raw() {
            return Err(ControlError::Foreign {
                path: path.to_owned(),
                uid: peer.uid(),
            });
        }
        Ok(Self {
            socket,
            path: path.to_owned(),
        })
    }

    /// Makes one call; the answer may have up to `limit` bytes.
    pub(super) fn call<A: Serialize>(
        &mut self,
        method: &'static str,
        arg: &A,
        limit: usize,
        deadline: Instant,
    ) -> Result<Box<RawValue>, ControlError> {
        self.call_with(method, arg, &[], limit, deadline)
    }

    /// Makes one call and passes descriptors with it, in this order; the answer may have up to `limit` bytes.
    pub(super) fn call_with<A: Serialize>(
        &mut self,
        method: &'static str,
        arg: &A,
        files: &[BorrowedFd<'_>],
        limit: usize,
        deadline: Instant,
    ) -> Result<Box<RawValue>, ControlError> {
        self.request(method, arg, files, deadline)?;
        self.take_answer(method, limit, deadline)
    }

    /// Sends a call and does not wait for its answer.
    pub(super) fn ask<A: Serialize>(
        &self,
        method: &'static str,
        arg: &A,
        deadline: Instant,
    ) -> Result<(), ControlError> {
        self.request(method, arg, &[], deadline)
    }

    fn request<A: Serialize>(
        &self,
        method: &'static str,
        arg: &A,
        files: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> Result<(), ControlError> {
        let request = serde_json::to_vec(&Call { method, arg }).map_err(|_| ControlError::Garbage {
            method,
            what: "an argument that is no JSON",
        })?;
        let sent = self.send_with(method, &request, files, deadline)?;
        self.send(method, request.get(sent..).unwrap_or_default(), deadline)
    }

    /// The answer to the call that was sent.
    pub(super) fn take_answer(
        &mut self,
        method: &'static str,
        limit: usize,
        deadline: Instant,
    ) -> Result<Box<RawValue>, ControlError> {
        let answer = self.receive(method, limit, deadline)?;
        let answer: Answer = serde_json::from_slice(&answer).map_err(|_| ControlError::Garbage {
            method,
            what: "no JSON answer",
        })?;
        if !answer.success {
            return Err(ControlError::Refused {
                method,
                err: answer.err.chars().take(ERR_LIMIT).collect(),
            });
        }
        // An empty Go slice is written as null, which is a result too.
        Ok(answer.result.unwrap_or_else(|| RawValue::NULL.to_owned()))
    }

    /// Sends the first piece of a request, which carries the descriptors; returns how much of it was sent.
    fn send_with(
        &self,
        method: &'static str,
        request: &[u8],
        files: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> Result<usize, ControlError> {
        if files.is_empty() {
            return Ok(0);
        }
        let raw: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let (rights, data) = ([ControlMessage::ScmRights(&raw)], [IoSlice::new(request)]);
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        loop {
            match sendmsg::<UnixAddr>(self.socket.as_raw_fd(), &data, &rights, flags, None) {
                Ok(n) => return Ok(n),
                Err(Errno::EAGAIN) => self.wait(method, PollFlags::POLLOUT, deadline)?,
                Err(Errno::EINTR) => {}
                Err(e) => return Err(self.broken("write to", method, e)),
            }
        }
    }

    fn send(&self, method: &'static str, mut rest: &[u8], deadline: Instant) -> Result<(), ControlError> {
        while !rest.is_empty() {
            match send(
                self.socket.as_raw_fd(),
                rest,
                MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
            ) {
                Ok(n) => rest = rest.get(n..).unwrap_or_default(),
                Err(Errno::EAGAIN) => self.wait(method, PollFlags::POLLOUT, deadline)?,
                Err(Errno::EINTR) => {}
                Err(e) => return Err(self.broken("write to", method, e)),
            }
        }
        Ok(())
    }

    fn receive(
        &self,
        method: &'static str,
        limit: usize,
        deadline: Instant,
    ) -> Result<Vec<u8>, ControlError> {
        let mut data = Vec::new();
        let mut scan = ObjectEnd::default();
        let mut chunk = vec![0_u8; CHUNK.min(limit.max(1))];
        loop {
            match recv(self.socket.as_raw_fd(), &mut chunk, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return Err(ControlError::Closed { method }),
                Ok(n) => {
                    let bytes = chunk.get(..n).unwrap_or_default();
                    data.extend_from_slice(bytes);
                    match scan.feed(bytes) {
                        Scan::End(end) if end == data.len() && end <= limit => return Ok(data),
                        Scan::End(end) if end < data.len() => {
                            return Err(ControlError::Garbage {
                                method,
                                what: "more than one answer",
                            });
                        }
                        Scan::NoObject => {
                            return Err(ControlError::Garbage {
                                method,
                                what: "something that is no JSON object",
                            });
                        }
                        Scan::More | Scan::End(_) if data.len() > limit => {
                            return Err(ControlError::Garbage {
                                method,
                                what: "more than such an answer may have",
                            });
                        }
                        Scan::More | Scan::End(_) => {}
                    }
                }
                Err(Errno::EAGAIN) => self.wait(method, PollFlags::POLLIN, deadline)?,
                Err(Errno::EINTR) => {}
                Err(e) => return Err(self.broken("read from", method, e)),
            }
        }
    }

    /// Waits until the socket is ready, or the deadline has passed.
    fn wait(&self, method: &'static str, what: PollFlags, deadline: Instant) -> Result<(), ControlError> {
        loop {
            let left = remaining(deadline).ok_or(ControlError::Timeout { method })?;
            // Rounded up, so that the last part of a millisecond is waited for and not spun through.
            let ms = u16::try_from(left.as_millis().saturating_add(1)).unwrap_or(u16::MAX);
            let mut fds = [PollFd::new(self.socket.as_fd(), what)];
            match poll(&mut fds, PollTimeout::from(ms)) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(e) => return Err(self.broken("wait for", method, e)),
            }
        }
    }

    fn broken(&self, verb: &'static str, method: &'static str, errno: Errno) -> ControlError {
        match errno {
            Errno::EPIPE | Errno::ECONNRESET => ControlError::Closed { method },
            e => io_error(verb, &self.path, e.into()),
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn io_error(verb: &'static str, path: &Path, source: io::Error) -> ControlError {
    ControlError::Io {
        verb,
        path: path.to_owned(),
        source,
    }
}

/// What is left until `deadline`; `None` when it has passed.
fn remaining(deadline: Instant) -> Option<Duration> {
    deadline
        .checked_duration_since(Instant::now())
        .filter(|d| !d.is_zero())
}
