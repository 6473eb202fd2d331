//! The guest's kernel, initial file system and root disk, made once per set of package versions.

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::packages::{self, Selection};
use super::{PAYLOAD, SCRATCH, file_name};
use crate::host::command::capture;

/// Part of the guest's identity: raised when this file changes what a guest is.
const RECIPE: u32 = 2;
const INIT: &str = include_str!("init.sh");
const INITRD_INIT: &str = include_str!("initrd.sh");
/// Modules without which the root disk cannot be read, with what they stand on.
const BOOT_MODULES: &[&str] = &[
    "virtio",
    "virtio_ring",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "virtio_blk",
];
/// Programs that have to find all their libraries in the guest.
const CHECKED: &[&str] = &[
    "cryptsetup",
    "dmsetup",
    "mkswap",
    "swapon",
    "ip",
    "nsenter",
    "unshare",
];
/// The root disk's size; sparse, so it costs what is in it.
const ROOT_BYTES: u64 = 8 << 30;

/// A guest that can be booted.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) dir: PathBuf,
}

impl Guest {
    pub(super) fn kernel(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    pub(super) fn initrd(&self) -> PathBuf {
        self.dir.join("initrd")
    }

    pub(super) fn root(&self) -> PathBuf {
        self.dir.join("root.ext4")
    }
}

/// Makes the guest if it is not there yet.
pub(super) fn ensure(home: &Path) -> Result<Guest> {
    fs::create_dir_all(home).with_context(|| format!("create {}", home.display()))?;
    // One at a time: two test runs may start together.
    let lock = File::create(home.join("lock")).context("create the guest's lock")?;
    lock.lock().context("lock the guest")?;
    let selection = match packages::select() {
        Ok(selection) => selection,
        // Without the archive an earlier guest still serves.
        Err(error) => return newest(home).ok_or(error),
    };
    let mut hash = DefaultHasher::new();
    (RECIPE, INIT, INITRD_INIT, BOOT_MODULES, &selection.identity).hash(&mut hash);
    let dir = home.join(format!("guest-{:016x}", hash.finish()));
    if !dir.join("ready").exists() {
        remove_others(home)?;
        make(&selection, &dir).with_context(|| format!("make the guest in {}", dir.display()))?;
    }
    Ok(Guest { dir })
}

fn guests(home: &Path) -> Vec<PathBuf> {
    fs::read_dir(home)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| file_name(path).starts_with("guest-"))
        .collect()
}

fn newest(home: &Path) -> Option<Guest> {
    let made = |path: &PathBuf| path.join("ready").metadata().and_then(|m| m.modified()).ok();
    guests(home)
        .into_iter()
        .filter(|path| made(path).is_some())
        .max_by_key(made)
        .map(|dir| Guest { dir })
}

/// Earlier guests, and a half-made one of the same name.
fn remove_others(home: &Path) -> Result<()> {
    for old in guests(home) {
        fs::remove_dir_all(&old).with_context(|| format!("remove {}", old.display()))?;
    }
    Ok(())
}

fn make(selection: &Selection, dir: &Path) -> Result<()> {
    let root = dir.join("root");
    fs::create_dir_all(&root).context("create the root directory")?;
    selection.unpack(&dir.join("packages"), &root)?;
    let busybox = root.join("bin/busybox");
    ensure!(busybox.is_file(), "busybox-static has no bin/busybox");
    let modules = packages::find(&root.join("lib/modules"), "")?;
    let version = file_name(&modules);
    fs::rename(root.join(format!("boot/vmlinuz-{version}")), dir.join("vmlinuz"))
        .context("take the kernel")?;

    initrd(&root, &busybox, &version, dir)?;
    furnish(&root, &busybox, &version)?;
    check_libraries(&root)?;

    let disk = dir.join("root.ext4");
    make_disk(&root, &disk, ROOT_BYTES)?;
    // What the disk was made from is not needed any more.
    for part in ["root", "packages", "initrd.d"] {
        fs::remove_dir_all(dir.join(part)).with_context(|| format!("remove {part}"))?;
    }
    fs::write(dir.join("ready"), &version).context("mark the guest as ready")
}

/// Fills a new ext4 disk from a directory, without mounting anything.
pub(super) fn make_disk(from: &Path, disk: &Path, bytes: u64) -> Result<()> {
    File::create(disk)
        .and_then(|file| file.set_len(bytes))
        .with_context(|| format!("create {}", disk.display()))?;
    capture(
        Command::new("/usr/sbin/mkfs.ext4")
            .args([
                "-q",
                "-F",
                "-m",
                "0",
                "-O",
                "^has_journal",
                "-E",
                "lazy_itable_init=1",
                "-d",
            ])
            .arg(from)
            .arg(disk),
    )
    .map(drop)
    .context("make a disk (e2fsprogs)")
}

fn furnish(root: &Path, busybox: &Path, version: &str) -> Result<()> {
    for dir in [
        "dev", "proc", "sys", "run", "tmp", "root", "var/lib", "var/tmp", "var/run", "etc", PAYLOAD, SCRATCH,
    ] {
        fs::create_dir_all(root.join(dir.trim_start_matches('/')))
            .with_context(|| format!("create {dir}"))?;
    }
    fs::set_permissions(root.join("var/tmp"), fs::Permissions::from_mode(0o1777))?;
    // Debian's own programs stay; busybox stands in for all others.
    let applets = capture(Command::new(busybox).arg("--list"))?;
    for applet in applets.lines() {
        let taken = ["bin", "sbin", "usr/bin", "usr/sbin"]
            .iter()
            .any(|dir| root.join(dir).join(applet).symlink_metadata().is_ok());
        if !taken {
            symlink("busybox", root.join("bin").join(applet)).with_context(|| format!("link {applet}"))?;
        }
    }
    // The agent asks for it at its usual place.
    symlink("../bin/busybox", root.join("sbin/modprobe")).context("link modprobe")?;
    capture(
        Command::new(busybox)
            .arg("depmod")
            .arg("-b")
            .arg(root)
            .arg(version),
    )
    .context("index the modules")?;
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\n")?;
    // containerd copies it into every pod.
    fs::write(root.join("etc/resolv.conf"), "")?;
    fs::write(root.join("etc/hosts"), "127.0.0.1 localhost\n")?;
    let init = root.join("init");
    fs::write(&init, INIT)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).context("make /init executable")
}

fn initrd(root: &Path, busybox: &Path, version: &str, dir: &Path) -> Result<()> {
    let tree = dir.join("initrd.d");
    for part in ["bin", "dev", "proc", "newroot"] {
        fs::create_dir_all(tree.join(part)).with_context(|| format!("create {part}"))?;
    }
    fs::copy(busybox, tree.join("bin/busybox")).context("copy busybox")?;
    let modules = root.join("lib/modules").join(version);
    for name in BOOT_MODULES {
        let found = find_module(&modules, &format!("{name}.ko"))
            .with_context(|| format!("the kernel has no module {name}"))?;
        let to = tree.join(found.strip_prefix(root).context("a module outside the root")?);
        fs::create_dir_all(to.parent().context("a module without a directory")?)?;
        fs::copy(&found, &to).with_context(|| format!("copy {name}"))?;
    }
    capture(
        Command::new(busybox)
            .arg("depmod")
            .arg("-b")
            .arg(&tree)
            .arg(version),
    )?;
    let init = tree.join("init");
    fs::write(&init, INITRD_INIT)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    let names = capture(Command::new("find").arg(".").current_dir(&tree))?;
    let list = dir.join("initrd.list");
    fs::write(&list, names)?;
    let archive = File::create(dir.join("initrd")).context("create the initial file system")?;
    let status = Command::new(busybox)
        .args(["cpio", "-o", "-H", "newc"])
        .current_dir(&tree)
        .stdin(File::open(&list)?)
        .stdout(archive)
        .stderr(Stdio::null())
        .status()
        .context("start cpio")?;
    ensure!(status.success(), "cpio failed: {status}");
    Ok(())
}

fn find_module(dir: &Path, name: &str) -> Option<PathBuf> {
    let mut open = vec![dir.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).ok()?.flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(path);
            } else if file_name(&path) == name {
                return Some(path);
            }
        }
    }
    None
}

/// Asks the guest's own loader, so that a missing library is found now and not in the guest.
fn check_libraries(root: &Path) -> Result<()> {
    let loader = root.join("lib64/ld-linux-x86-64.so.2");
    let path = format!(
        "{0}/lib/x86_64-linux-gnu:{0}/usr/lib/x86_64-linux-gnu",
        root.display()
    );
    for program in CHECKED {
        let place = ["bin", "sbin", "usr/bin", "usr/sbin"]
            .iter()
            .map(|dir| root.join(dir).join(program))
            .find(|path| path.is_file());
        let place = place.with_context(|| format!("the guest has no {program}"))?;
        let output = Command::new(&loader)
            .env_clear()
            .args(["--library-path", &path, "--list"])
            .arg(&place)
            .output()
            .with_context(|| format!("start {}", loader.display()))?;
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        if !output.status.success() || said.contains("not found") {
            bail!("{program} lacks libraries in the guest: {said}");
        }
    }
    Ok(())
}
