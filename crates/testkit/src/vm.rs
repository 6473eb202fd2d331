//! A guest with the kernel that this machine has not got: cgroup v2 only, with all controllers, device mapper,
//! ipvlan, and swap off at boot. QEMU emulates it (TCG), so no KVM is needed; it boots in a few seconds.
//!
//! The guest is Debian's cloud kernel and a handful of Debian packages, downloaded by apt and unpacked below
//! `target/vm`, never installed on the host. It is made once per set of package versions. What is to be tried goes
//! in on a second disk, at `/payload`; results come out on a serial port of their own, so that kernel messages
//! cannot garble them:
//!
//! ```text
//! DORMOUSE-VM-UP <seconds since power-on>
//! DORMOUSE-VM-RESULT <suite> ok|fail <seconds> <detail>
//! DORMOUSE-VM-END
//! ```

mod boot;
mod image;
mod packages;
mod payload;
mod result;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

pub use payload::Payload;
pub use result::{Outcome, Report};

/// Where the payload is in the guest.
pub const PAYLOAD: &str = "/payload";
/// An empty ext4 disk of 512 MiB in the guest; its device is `/dev/vdc`.
pub const SCRATCH: &str = "/scratch";
/// Set to `1` for everything that runs in the guest.
pub const GUEST_VARIABLE: &str = "DORMOUSE_VM_GUEST";

/// One thing to try in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suite {
    /// Its name in the report: letters, digits, `-`, `_` and `:`.
    pub name: String,
    /// A shell command (busybox `sh`); its exit status is the result.
    pub command: String,
    /// Killed after this time, which is the guest's own and runs with the host's.
    pub limit: Duration,
}

/// What the guest is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VmOptions {
    /// RAM in MiB.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub cpus: u32,
    /// From power-on to power-off.
    pub limit: Duration,
}

impl Default for VmOptions {
    fn default() -> Self {
        Self {
            memory_mib: 3072,
            cpus: 2,
            limit: Duration::from_secs(600),
        }
    }
}

/// True in the guest.
#[must_use]
pub fn in_guest() -> bool {
    std::env::var_os(GUEST_VARIABLE).is_some_and(|value| value == "1")
}

/// The build directory's `vm` folder.
#[must_use]
pub fn home() -> PathBuf {
    crate::built::target_dir().join("vm")
}

/// Makes the guest if it is not there yet, boots it once, and runs the suites one after the other.
///
/// # Errors
/// When the guest cannot be made or does not come up. A suite that fails is no error but part of the report.
pub fn run(payload: &Payload, suites: &[Suite], options: VmOptions) -> Result<Report> {
    let guest = image::ensure(&home())?;
    // Removed at the end; the console's log is copied out before.
    let scratch = tempfile::Builder::new()
        .prefix("run-")
        .tempdir_in(home())
        .context("make a directory for this run")?;
    let disk = payload.write_disk(suites, scratch.path())?;
    let raw = boot::boot(&guest, &disk, scratch.path(), options)?;
    let console = home().join("console.log");
    std::fs::write(&console, &raw.console).with_context(|| format!("write {}", console.display()))?;
    result::read(&raw, suites, console)
}

/// Makes the guest if it is not there yet and says where it is.
///
/// # Errors
/// When packages cannot be downloaded, or a tool is missing.
pub fn prepare() -> Result<PathBuf> {
    image::ensure(&home()).map(|guest| guest.dir)
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}
