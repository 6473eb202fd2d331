//! Network namespaces for tests: made with `ip`, entered by threads, deleted on drop.
#![allow(dead_code, unreachable_pub, unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socket};

/// Whether the test may make namespaces; says so if not.
pub fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: this test makes network namespaces and so needs root");
    }
    root
}

/// Runs `ip` with the arguments of one line.
#[track_caller]
pub fn ip(line: &str) {
    try_ip(line).unwrap_or_else(|error| panic!("ip {line}: {error}"));
}

pub fn try_ip(line: &str) -> Result<(), String> {
    let out = Command::new("ip")
        .args(line.split_whitespace())
        .stdin(Stdio::null())
        .output();
    let out = out.map_err(|e| e.to_string())?;
    if out.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&out.stderr).trim().to_owned())
    }
}

/// What `ip` says.
#[track_caller]
pub fn ip_output(line: &str) -> String {
    let out = Command::new("ip").args(line.split_whitespace()).output().unwrap();
    assert!(
        out.status.success(),
        "ip {line}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).unwrap()
}

/// A network namespace of this test's own.
pub struct Netns {
    pub name: String,
}

impl Netns {
    pub fn new(role: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("dmt{}-{n}-{role}", std::process::id());
        ip(&format!("netns add {name}"));
        let this = Self { name };
        // What the kernel would send by itself (router solicitations, duplicate address detection) would
        // only blur what the tests count.
        this.run(|| {
            for what in ["default", "all"] {
                for (key, value) in [("accept_dad", "0"), ("accept_ra", "0"), ("addr_gen_mode", "1")] {
                    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{what}/{key}"), value);
                }
            }
        });
        this
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Runs `ip` within the namespace.
    #[track_caller]
    pub fn ip(&self, line: &str) {
        ip(&format!("-n {} {line}", self.name));
    }

    /// Runs `act` in a thread inside the namespace.
    pub fn run<R: Send>(&self, act: impl FnOnce() -> R + Send) -> R {
        let file = File::open(self.path()).unwrap();
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(&file, CloneFlags::CLONE_NEWNET).unwrap();
                    act()
                })
                .join()
                .unwrap()
        })
    }

    /// A socket that sends whole frames out of an interface of this namespace.
    pub fn sender(&self, interface: &str) -> FrameSender {
        self.run(|| {
            let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None).unwrap();
            // SAFETY: all zeroes is a valid `sockaddr_ll`.
            let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_ifindex = i32::try_from(if_nametoindex(interface).unwrap()).unwrap();
            // SAFETY: the pointer and the length describe `address`.
            let bound = unsafe {
                libc::bind(
                    fd.as_raw_fd(),
                    std::ptr::from_ref(&address).cast(),
                    u32::try_from(size_of::<libc::sockaddr_ll>()).unwrap(),
                )
            };
            assert_eq!(bound, 0, "{}", io::Error::last_os_error());
            FrameSender(fd)
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = try_ip(&format!("netns del {}", self.name));
    }
}

pub struct FrameSender(OwnedFd);

impl FrameSender {
    #[track_caller]
    pub fn send(&self, frame: &[u8]) {
        assert_eq!(
            send(self.0.as_raw_fd(), frame, MsgFlags::empty()).unwrap(),
            frame.len()
        );
    }
}
