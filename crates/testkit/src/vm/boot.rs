//! One run of QEMU.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::VmOptions;
use super::image::Guest;

/// The most of the console that is kept, in bytes.
const MAX_CONSOLE: usize = 16 << 20;

/// Size of the empty disk at `/scratch` (`/dev/vdc`), which tests may read raw.
const BLANK_BYTES: u64 = 512 << 20;

/// What came out of a run.
#[derive(Debug)]
pub(super) struct Raw {
    pub(super) console: Vec<u8>,
    pub(super) results: String,
    pub(super) took: Duration,
    /// It was ended because it took too long.
    pub(super) timed_out: bool,
    pub(super) qemu_said: String,
}

/// Ends QEMU when a run is given up.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when it has ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Boots the guest and waits until it powers off. Its root disk is not changed.
pub(super) fn boot(guest: &Guest, payload: &Path, scratch: &Path, options: VmOptions) -> Result<Raw> {
    let results = scratch.join("results");
    let errors = scratch.join("qemu.err");
    let blank = scratch.join("blank.ext4");
    let empty = scratch.join("empty");
    fs::create_dir(&empty).context("make an empty directory")?;
    super::image::make_disk(&empty, &blank, BLANK_BYTES)?;
    let drive =
        |path: &Path, more: &str| format!("file={},if=virtio,format=raw,cache=unsafe{more}", path.display());
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"])
        .args(["-smp", &options.cpus.to_string(), "-m", &format!("{}M", options.memory_mib)])
        .args(["-nodefaults", "-display", "none", "-no-reboot", "-nic", "none"])
        .args(["-serial", "stdio", "-serial", &format!("file:{}", results.display())])
        .arg("-kernel")
        .arg(guest.kernel())
        .arg("-initrd")
        .arg(guest.initrd())
        .args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off"])
        .args(["-drive", &drive(&guest.root(), ",snapshot=on")])
        .args(["-drive", &drive(payload, ",readonly=on")])
        .args(["-drive", &drive(&blank, "")])
        // What the guest writes to its root goes there.
        .env("TMPDIR", scratch)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(fs::File::create(&errors).context("create QEMU's log")?);
    let began = Instant::now();
    let mut running = Running(
        qemu.spawn()
            .context("start qemu-system-x86_64 (Debian package qemu-system-x86)")?,
    );
    let mut pipe = running.0.stdout.take().context("QEMU has no output")?;
    let echo = std::env::var_os("DORMOUSE_VM_VERBOSE").is_some();
    let mut console = Vec::new();
    let mut timed_out = false;
    let mut buffer = vec![0_u8; 64 << 10];
    loop {
        let Some(left) = options.limit.checked_sub(began.elapsed()) else {
            timed_out = true;
            break;
        };
        let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], wait) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(error).context("wait for the guest's console"),
        }
        let read = pipe.read(&mut buffer).context("read the guest's console")?;
        if read == 0 {
            break;
        }
        let new = buffer.get(..read).unwrap_or_default();
        if echo {
            // Only for a person who watches.
            let _ = std::io::stderr().write_all(new);
        }
        if console.len() < MAX_CONSOLE {
            console.extend_from_slice(new);
        }
    }
    drop(running);
    Ok(Raw {
        console,
        results: fs::read_to_string(&results).unwrap_or_default(),
        took: began.elapsed(),
        timed_out,
        qemu_said: fs::read_to_string(&errors).unwrap_or_default(),
    })
}
