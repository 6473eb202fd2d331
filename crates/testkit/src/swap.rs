//! Swap for tests: a file or a zram device, taken away when the value is dropped, or by the next sweep.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::host::command;
use crate::memory;
use crate::stack::home;

/// Swap for as long as a test of this process holds it; tests that run at once share it: a zram device of 4 GiB.
///
/// # Errors
/// When the kernel has no zram, or refuses.
pub fn shared() -> Result<Arc<TestSwap>> {
    static SHARED: Mutex<Weak<TestSwap>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(swap) = shared.upgrade() {
        return Ok(swap);
    }
    let swap = Arc::new(TestSwap::zram(4 << 30, "lz4", 100)?);
    *shared = Arc::downgrade(&swap);
    Ok(swap)
}

/// A swap area that belongs to a test.
#[derive(Debug)]
pub struct TestSwap {
    /// The file or device that was given to `swapon`.
    pub path: PathBuf,
    marker: PathBuf,
    /// Held while the area is in use; its release tells the next sweep that the owner is gone.
    _lock: File,
}

impl TestSwap {
    /// A swap file of `bytes` on the disk.
    ///
    /// # Errors
    /// When the disk is full or swap is refused.
    pub fn file(bytes: u64, priority: i32) -> Result<Self> {
        let name = uuid::Uuid::new_v4().simple().to_string();
        let path = home().join(format!("swap-{name}"));
        let swap = Self::mark(&name, &path)?;
        let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        nix::fcntl::posix_fallocate(&file, 0, i64::try_from(bytes)?)
            .with_context(|| format!("reserve {bytes} bytes in {}", path.display()))?;
        swap.on(priority)
    }

    /// A zram device of `bytes` (uncompressed), compressed with `algorithm` (`"lz4"`, `"zstd"`, ...).
    ///
    /// # Errors
    /// When the kernel has no zram, or refuses.
    pub fn zram(bytes: u64, algorithm: &str, priority: i32) -> Result<Self> {
        let number = fs::read_to_string("/sys/class/zram-control/hot_add")
            .context("add a zram device: does the kernel have zram?")?;
        let number: u32 = number.trim().parse().context("the kernel named no zram device")?;
        let path = PathBuf::from(format!("/dev/zram{number}"));
        let swap = Self::mark(&format!("zram{number}"), &path)?;
        let device = zram_dir(&path);
        fs::write(device.join("comp_algorithm"), algorithm)
            .with_context(|| format!("zram compression {algorithm}"))?;
        fs::write(device.join("disksize"), bytes.to_string()).context("set the zram device's size")?;
        swap.on(priority)
    }

    /// The device's figures, for a zram area.
    #[must_use]
    pub fn zram_stat(&self) -> Option<memory::Zram> {
        memory::zram_stat(&zram_dir(&self.path))
    }

    /// Notes whose it is before it exists.
    fn mark(name: &str, path: &Path) -> Result<Self> {
        let home = home();
        fs::create_dir_all(&home).with_context(|| format!("create {}", home.display()))?;
        let marker = home.join(format!("{name}.swap"));
        let partial = home.join(format!("{name}.partial"));
        fs::write(&partial, path.as_os_str().as_encoded_bytes())
            .with_context(|| format!("write {}", partial.display()))?;
        let lock = File::open(&partial).context("open the marker")?;
        lock.lock().context("lock the marker")?;
        // Under its final name only once it is locked, so that no sweep takes it for abandoned.
        fs::rename(&partial, &marker).context("put the marker in place")?;
        Ok(Self {
            path: path.to_path_buf(),
            marker,
            _lock: lock,
        })
    }

    fn on(self, priority: i32) -> Result<Self> {
        command::capture(Command::new("mkswap").arg(&self.path))?;
        command::capture(
            Command::new("swapon")
                .args(["--priority", &priority.to_string()])
                .arg(&self.path),
        )?;
        Ok(self)
    }
}

impl Drop for TestSwap {
    fn drop(&mut self) {
        if let Err(error) = take_away(&self.path, &self.marker) {
            tracing::error!("{error:#}");
        }
    }
}

fn zram_dir(device: &Path) -> PathBuf {
    Path::new("/sys/block").join(device.file_name().unwrap_or_default())
}

fn take_away(path: &Path, marker: &Path) -> Result<()> {
    remove(path)?;
    fs::remove_file(marker).with_context(|| format!("remove {}", marker.display()))
}

fn remove(path: &Path) -> Result<()> {
    // By its name: what was switched on in another mount namespace is listed without `/dev`.
    if memory::swaps()?
        .iter()
        .any(|swap| swap.path.file_name() == path.file_name())
    {
        command::capture(Command::new("swapoff").arg(path))?;
    }
    let device = zram_dir(path);
    if path.starts_with("/dev") {
        if device.exists() {
            fs::write(device.join("reset"), "1").context("reset the zram device")?;
            let number = path.to_string_lossy().trim_start_matches("/dev/zram").to_owned();
            fs::write("/sys/class/zram-control/hot_remove", number).context("remove the zram device")?;
        }
    } else if path.exists() {
        fs::remove_file(path).with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(())
}

/// What is needed here of an agent's record of its swap.
#[derive(Deserialize)]
struct Brought {
    parts: Vec<Part>,
}

/// A zram device, or, without a number, something else.
#[derive(Deserialize)]
struct Part {
    index: Option<u32>,
}

/// Takes away the zram that the agent of a node brought, as its record says, when the node is gone: the kernel that has it is this
/// host's. The record goes with it.
///
/// # Errors
/// When it is in use, or the record is none.
pub(crate) fn take_brought_away(record: &Path) -> Result<()> {
    let text = match fs::read_to_string(record) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("read {}", record.display())),
    };
    let brought: Brought = serde_json::from_str(&text).context("the agent's record of its swap")?;
    for index in brought.parts.iter().filter_map(|part| part.index) {
        remove(Path::new(&format!("/dev/zram{index}")))?;
    }
    fs::remove_file(record).with_context(|| format!("remove {}", record.display()))
}

/// Takes away areas whose owner is gone.
pub fn sweep() {
    let home = home();
    for entry in fs::read_dir(&home).into_iter().flatten().flatten() {
        let marker = entry.path();
        if marker.extension().is_none_or(|extension| extension != "swap") {
            continue;
        }
        let Ok(lock) = File::open(&marker) else { continue };
        if lock.try_lock().is_err() {
            continue;
        }
        let Ok(text) = fs::read_to_string(&marker) else {
            continue;
        };
        let path = PathBuf::from(text);
        // Only what this module can have made.
        if path.starts_with(&home) || path.to_string_lossy().starts_with("/dev/zram") {
            // What will not go now is tried again by the next sweep.
            let _ = take_away(&path, &marker);
        }
    }
}
