//! What goes over a waiter's socket: one packet each way.
//!
//! | byte | meaning |
//! |---|---|
//! | 0 | which request or answer |
//! | 1 | which of the three streams come with it, a bit each |
//! | 2 … | a path, or words |

use std::ffi::OsStr;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::sockopt::{ReceiveTimeout, SendTimeout};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    connect as connect_to, recv, recvmsg, sendmsg, setsockopt, socket,
};
use nix::sys::time::TimeVal;

use super::{RunscCall, STREAMS, Streams};

/// The largest packet, in bytes: a path, or some lines of runsc's.
const LIMIT: usize = 6 << 10;

/// The most descriptors that the kernel lets come with one packet (its `SCM_MAX_FD`). There has to be room for all of
/// them: those that do not fit could not be told from none, and those that do would stay open.
const MAX_DESCRIPTORS: usize = 253;

/// The most words of a failure, in bytes.
pub(super) const WORDS: usize = 4 << 10;

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Packet {
    /// Keep the streams that come with it.
    Put,
    /// Close what is kept.
    Drop,
    /// Call runsc.
    Call(RunscCall),
}

/// What is answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Done,
    Failed(String),
}

impl Packet {
    const fn kind(&self) -> u8 {
        match self {
            Self::Put => b'P',
            Self::Drop => b'D',
            Self::Call(RunscCall::Checkpoint { .. }) => b'V',
            Self::Call(RunscCall::Create) => b'C',
            Self::Call(RunscCall::Restore { .. }) => b'R',
            Self::Call(RunscCall::Start) => b'S',
            Self::Call(RunscCall::Delete) => b'X',
        }
    }

    fn read(kind: u8, rest: &[u8]) -> Option<Self> {
        let image = || {
            let path = PathBuf::from(OsStr::from_bytes(rest));
            path.is_absolute().then_some(path)
        };
        Some(match kind {
            b'P' => Self::Put,
            b'D' => Self::Drop,
            b'V' => Self::Call(RunscCall::Checkpoint { image: image()? }),
            b'C' => Self::Call(RunscCall::Create),
            b'R' => Self::Call(RunscCall::Restore { image: image()? }),
            b'S' => Self::Call(RunscCall::Start),
            b'X' => Self::Call(RunscCall::Delete),
            _ => return None,
        })
    }

    pub(super) fn send(&self, socket: &OwnedFd, streams: &[Option<RawFd>; STREAMS]) -> io::Result<()> {
        let rest = match self {
            Self::Call(call) => call.image().map_or(&[][..], |p| p.as_os_str().as_bytes()),
            Self::Put | Self::Drop => &[],
        };
        send(socket, self.kind(), rest, streams)
    }

    /// The next request; `None` for what is none.
    pub(super) fn receive(socket: &OwnedFd) -> io::Result<Option<(Self, Streams)>> {
        let Some((kind, rest, streams)) = receive(socket)? else {
            return Ok(None);
        };
        Ok(Self::read(kind, &rest).map(|request| (request, streams)))
    }
}

impl Answer {
    pub(super) fn send(&self, socket: &OwnedFd) -> io::Result<()> {
        match self {
            Self::Done => send(socket, b'k', &[], &[None; STREAMS]),
            Self::Failed(words) => {
                let words = words.as_bytes();
                let words = words.get(..words.len().min(WORDS)).unwrap_or_default();
                send(socket, b'e', words, &[None; STREAMS])
            }
        }
    }

    pub(super) fn receive(socket: &OwnedFd) -> io::Result<Option<Self>> {
        Ok(receive(socket)?.and_then(|(kind, rest, _)| match kind {
            b'k' => Some(Self::Done),
            b'e' => Some(Self::Failed(String::from_utf8_lossy(&rest).into_owned())),
            _ => None,
        }))
    }
}

/// Connects to a waiter, which has `within` to answer.
pub(super) fn connect(path: &Path, within: Duration) -> io::Result<OwnedFd> {
    let fd = seqpacket(SockFlag::empty())?;
    patient(&fd, within)?;
    let address = UnixAddr::new(path)?;
    uninterrupted(|| connect_to(fd.as_raw_fd(), &address))?;
    Ok(fd)
}

/// Connects to a waiter and goes again, without waiting for anything.
pub(super) fn knock(path: &Path) -> io::Result<()> {
    let fd = seqpacket(SockFlag::SOCK_NONBLOCK)?;
    Ok(connect_to(fd.as_raw_fd(), &UnixAddr::new(path)?)?)
}

pub(super) fn seqpacket(flags: SockFlag) -> nix::Result<OwnedFd> {
    let flags = flags | SockFlag::SOCK_CLOEXEC;
    socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)
}

pub(super) fn patient(fd: &OwnedFd, within: Duration) -> io::Result<()> {
    let limit = TimeVal::new(
        i64::try_from(within.as_secs()).unwrap_or(i64::MAX),
        within.subsec_micros().into(),
    );
    setsockopt(fd, ReceiveTimeout, &limit)?;
    Ok(setsockopt(fd, SendTimeout, &limit)?)
}

/// Tries again after a signal, which ends a call with a time limit even where it would be restarted otherwise. The limit
/// begins anew; nobody sends signals faster than that for long.
fn uninterrupted<T>(mut call: impl FnMut() -> nix::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result.map_err(io::Error::from),
        }
    }
}

fn send(socket: &OwnedFd, kind: u8, rest: &[u8], streams: &[Option<RawFd>; STREAMS]) -> io::Result<()> {
    let mut present = 0_u8;
    for (bit, stream) in streams.iter().enumerate() {
        present |= u8::from(stream.is_some()) << bit;
    }
    let fds: Vec<RawFd> = streams.iter().copied().flatten().collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let rights: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
    let head = [kind, present];
    let data = [IoSlice::new(&head), IoSlice::new(rest)];
    uninterrupted(|| sendmsg::<UnixAddr>(socket.as_raw_fd(), &data, rights, MsgFlags::MSG_NOSIGNAL, None))?;
    Ok(())
}

/// A packet and its descriptors; `None` where the other side has hung up or sent something else.
fn receive(socket: &OwnedFd) -> io::Result<Option<(u8, Vec<u8>, Streams)>> {
    let mut message = vec![0_u8; LIMIT];
    let mut space = nix::cmsg_space!([RawFd; MAX_DESCRIPTORS]);
    let mut data = [IoSliceMut::new(&mut message)];
    // Waited for apart, because what the message is read into cannot be lent twice.
    uninterrupted(|| {
        let mut byte = [0];
        recv(socket.as_raw_fd(), &mut byte, MsgFlags::MSG_PEEK)
    })?;
    let received = recvmsg::<UnixAddr>(
        socket.as_raw_fd(),
        &mut data,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let (length, whole) = (
        received.bytes,
        !received
            .flags
            .intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC),
    );
    let mut fds = Vec::new();
    for control in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just made these descriptors for this process, and nobody else knows them.
            #[allow(unsafe_code)]
            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    message.truncate(length);
    let (Some(&kind), Some(&present)) = (message.first(), message.get(1)) else {
        return Ok(None);
    };
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
    Ok(Some((kind, message.split_off(2), streams)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_descriptors_than_streams_are_refused_and_closed() {
        let (ours, theirs) = nix::sys::socket::socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap();
        for count in [STREAMS + 1, MAX_DESCRIPTORS] {
            let (reader, writer) = nix::unistd::pipe().unwrap();
            let fds = vec![writer.as_raw_fd(); count];
            let sent = sendmsg::<UnixAddr>(
                theirs.as_raw_fd(),
                &[IoSlice::new(b"P\x07")],
                &[ControlMessage::ScmRights(&fds)],
                MsgFlags::MSG_NOSIGNAL,
                None,
            );
            assert_eq!(sent, Ok(2));
            drop(writer);
            assert!(Packet::receive(&ours).unwrap().is_none());
            // Nobody has the other end any more.
            assert_eq!(nix::unistd::read(&reader, &mut [0]), Ok(0));
        }
    }

    #[test]
    #[allow(unsafe_code)]
    fn a_signal_does_not_end_the_waiting() {
        extern "C" fn nothing(_: libc::c_int) {}
        let action = nix::sys::signal::SigAction::new(
            nix::sys::signal::SigHandler::Handler(nothing),
            nix::sys::signal::SaFlags::SA_RESTART,
            nix::sys::signal::SigSet::empty(),
        );
        // SAFETY: the handler does nothing.
        unsafe { nix::sys::signal::sigaction(nix::sys::signal::Signal::SIGUSR1, &action) }.unwrap();
        let (ours, theirs) = nix::sys::socket::socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap();
        patient(&ours, Duration::from_secs(60)).unwrap();
        let waiting = std::thread::spawn(move || Answer::receive(&ours));
        for _ in 0..50 {
            let thread = std::os::unix::thread::JoinHandleExt::as_pthread_t(&waiting);
            // SAFETY: the thread was not joined yet.
            assert_eq!(unsafe { libc::pthread_kill(thread, libc::SIGUSR1) }, 0);
            std::thread::sleep(Duration::from_millis(1));
        }
        Answer::Done.send(&theirs).unwrap();
        assert_eq!(waiting.join().unwrap().unwrap(), Some(Answer::Done));
    }

    #[test]
    fn requests_come_back_as_they_were() {
        let image = PathBuf::from("/var/lib/image");
        for call in [
            RunscCall::Checkpoint { image: image.clone() },
            RunscCall::Create,
            RunscCall::Restore { image },
            RunscCall::Start,
            RunscCall::Delete,
        ] {
            let packet = Packet::Call(call.clone());
            let rest = call.image().map_or(&[][..], |p| p.as_os_str().as_bytes());
            assert_eq!(Packet::read(packet.kind(), rest), Some(packet));
        }
        assert_eq!(Packet::read(b'R', b"not/absolute"), None);
        assert_eq!(Packet::read(b'R', b""), None);
        assert_eq!(Packet::read(b'?', b""), None);
    }
}
