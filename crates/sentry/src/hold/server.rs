//! The waiter's end of its socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use nix::sys::socket::{Backlog, SockFlag, UnixAddr, accept4, bind, listen};

use super::packet::{Answer, Packet, patient, seqpacket};
use super::{PATIENCE, RunscCall, Streams};
use crate::ids::{ContainerId, SandboxId};
use crate::run_dir::RunDir;

/// Calls runsc, with these streams for a start, and says what it said where it failed.
pub type Run<'a> = dyn FnMut(&RunscCall, &Streams) -> Result<(), String> + 'a;

/// The waiter's socket, and what it keeps.
#[derive(Debug)]
pub struct HoldServer {
    listener: OwnedFd,
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
        let listener = seqpacket(SockFlag::SOCK_NONBLOCK)?;
        bind(listener.as_raw_fd(), &UnixAddr::new(&path)?)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        listen(&listener, Backlog::new(8)?)?;
        Ok(Self {
            listener,
            path,
            held: Streams::default(),
        })
    }

    /// Serves whoever has connected; never waits for somebody to come. What a peer does wrong ends its connection.
    pub fn serve(&mut self, run: &mut Run<'_>) {
        while let Some(peer) = self.accept() {
            if patient(&peer, PATIENCE).is_ok() {
                self.serve_one(&peer, run);
            }
        }
    }

    fn accept(&self) -> Option<OwnedFd> {
        let raw = accept4(self.listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC).ok()?;
        // SAFETY: the kernel has just made this descriptor for this process, and nobody else knows it.
        #[allow(unsafe_code)]
        Some(unsafe { OwnedFd::from_raw_fd(raw) })
    }

    fn serve_one(&mut self, peer: &OwnedFd, run: &mut Run<'_>) {
        let Ok(Some((request, streams))) = Packet::receive(peer) else {
            return;
        };
        let answer = match request {
            Packet::Put => {
                self.held = streams;
                Answer::Done
            }
            Packet::Drop => {
                self.held = Streams::default();
                Answer::Done
            }
            Packet::Call(call) => match run(&call, &self.held) {
                Ok(()) => Answer::Done,
                Err(words) => Answer::Failed(words),
            },
        };
        // Whoever asked may be gone by now; what was done is done.
        let _ = answer.send(peer);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hold::{HoldError, Holder};
    use std::io::{Read, Write};
    use std::time::Duration;

    #[test]
    fn streams_are_put_by_used_and_dropped() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = RunDir::new(tmp.path().join("run")).unwrap();
        dir.prepare().unwrap();
        let (sandbox, container): (SandboxId, ContainerId) = ("s1".parse().unwrap(), "c1".parse().unwrap());
        let holder = Holder::of(&dir, &sandbox, &container);
        assert!(matches!(holder.release(), Err(HoldError::NobodyWaits { .. })));
        let mut server = HoldServer::bind(&dir, &sandbox, &container).unwrap();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let mut run = |call: &RunscCall, streams: &Streams| match call {
                RunscCall::Start => {
                    let fd = streams[1].as_ref().unwrap().try_clone().unwrap();
                    std::fs::File::from(fd).write_all(b"hello").unwrap();
                    Ok(())
                }
                other => Err(format!("no {}", other.verb())),
            };
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                let mut fds = [nix::poll::PollFd::new(
                    server.as_fd(),
                    nix::poll::PollFlags::POLLIN,
                )];
                nix::poll::poll(&mut fds, 20_u16).unwrap();
                server.serve(&mut run);
            }
        });
        let (mut reader, writer) = io::pipe().unwrap();
        holder.put(&[None, Some(writer.as_fd()), None]).unwrap();
        drop(writer);
        holder.call(RunscCall::Start, Duration::from_secs(5)).unwrap();
        let mut text = [0; 5];
        reader.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"hello");
        let refused = holder
            .call(RunscCall::Delete, Duration::from_secs(5))
            .unwrap_err();
        assert!(refused.to_string().contains("no delete"), "{refused}");
        holder.release().unwrap();
        // The last copy is gone: the pipe has ended.
        assert_eq!(reader.read(&mut text).unwrap(), 0);
        stop.send(()).unwrap();
        thread.join().unwrap();
    }
}
