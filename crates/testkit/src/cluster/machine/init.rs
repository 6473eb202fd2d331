//! How a machine is made, from outside and from inside.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::supervisor::{self, Supervisor};
use super::{MachineSpec, init_file, own, socket};
use crate::host::{ProcessId, mounts};

/// Directories of this host that a machine sees, and changes for itself alone.
const OVERLAYS: &[&str] = &["/etc", "/opt", "/usr", "/usr/local", "/var/lib", "/var/log"];

/// Directories that are the machine's own: below `own` in its directory. They hide what this host has there.
const OWN: &[&str] = &[
    "/etc/cni",
    "/etc/containerd",
    "/etc/dormouse",
    "/etc/kubernetes",
    "/var/lib/cni",
    "/var/lib/containerd",
    "/var/lib/dormouse",
    "/var/lib/etcd",
    "/var/lib/kubelet",
    "/var/log/containers",
    "/var/log/pods",
];

/// Settings of the whole kernel that kubelet would change: it reads and writes files of the machine instead.
const SETTINGS: &[(&str, &str)] = &[
    ("/proc/sys/vm/overcommit_memory", "1\n"),
    ("/proc/sys/vm/panic_on_oom", "0\n"),
    ("/proc/sys/kernel/panic", "10\n"),
    ("/proc/sys/kernel/panic_on_oops", "1\n"),
    ("/proc/sys/kernel/keys/root_maxkeys", "1000000\n"),
    ("/proc/sys/kernel/keys/root_maxbytes", "25000000\n"),
];

/// Settings of the machine's network namespace.
const NETWORK: &[(&str, &str)] = &[
    ("/proc/sys/net/ipv4/ip_forward", "1"),
    // Packets between two pods of one bridge have to pass the service rules, too.
    ("/proc/sys/net/bridge/bridge-nf-call-iptables", "1"),
];

/// Makes what the mounts need in the machine's directory.
pub(super) fn make_folders(spec: &MachineSpec) -> Result<()> {
    let overlays = OVERLAYS.iter().flat_map(|path| {
        let overlay = overlay(&spec.dir, path);
        [overlay.join("upper"), overlay.join("work")]
    });
    let folders = OWN
        .iter()
        .map(|path| own(&spec.dir, path))
        .chain(overlays)
        .chain([spec.dir.join("log"), spec.dir.join("settings")]);
    for folder in folders {
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    }
    Ok(())
}

fn overlay(dir: &Path, path: &str) -> PathBuf {
    dir.join("overlay")
        .join(path.trim_start_matches('/').replace('/', "-"))
}

fn read(spec_file: &Path) -> Result<MachineSpec> {
    let text = fs::read(spec_file).with_context(|| format!("read {}", spec_file.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is no machine's", spec_file.display()))
}

/// The helper: makes the namespaces that a first process has to be born into, starts it, writes down which it is, and ends when it ends.
///
/// # Errors
/// When the kernel refuses, or the first process cannot be started.
pub fn outside(spec_file: &Path) -> Result<()> {
    let spec = read(spec_file)?;
    unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS)
        .context("make the machine's namespaces")?;
    let mut init = Command::new(std::env::current_exe().context("find this program's file")?)
        .arg("init")
        .arg(spec_file)
        .spawn()
        .context("start the machine's first process")?;
    let id = i32::try_from(init.id())
        .ok()
        .and_then(ProcessId::of)
        .context("the machine's first process ended as soon as it had started")?;
    let file = init_file(&spec.dir);
    let partial = file.with_extension("partial");
    fs::write(&partial, format!("{} {}\n", id.pid, id.start))
        .with_context(|| format!("write {}", partial.display()))?;
    fs::rename(&partial, &file).with_context(|| format!("write {}", file.display()))?;
    init.wait().context("wait for the machine's first process")?;
    Ok(())
}

/// The first process: mounts what the machine sees, and then starts, reaps and restarts what it is told.
///
/// # Errors
/// When something cannot be mounted.
pub fn inside(spec_file: &Path) -> Result<Infallible> {
    let spec = read(spec_file)?;
    mount_all(&spec)?;
    for (file, value) in NETWORK {
        // A kernel may lack the one for bridges.
        let _ = fs::write(file, value);
    }
    write_systemctl(&spec)?;
    nix::unistd::sethostname(&spec.name).context("set the host name")?;
    let supervisor = Arc::new(Supervisor::new(spec.dir.clone()));
    supervisor::listen(&socket(&spec.dir), &supervisor)?;
    supervisor.reap()
}

/// An installer restarts containerd with it. It hides what this host has under the name, which would look for a systemd.
fn write_systemctl(spec: &MachineSpec) -> Result<()> {
    let program = std::env::current_exe().context("find this program's file")?;
    let path = Path::new("/usr/bin/systemctl");
    let text = format!(
        "#!/bin/sh\nexec '{}' systemctl '{}' \"$@\"\n",
        program.display(),
        spec.dir.display()
    );
    // Of an earlier life, or this host's own.
    let _ = fs::remove_file(path);
    fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("make {} executable", path.display()))
}

fn mount_all(spec: &MachineSpec) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("make the mount namespace")?;
    // What this host unmounts goes here, too, and nothing that is mounted here is seen there.
    change("/", MsFlags::MS_SLAVE)?;
    for dir in &spec.without_mounts_in {
        // Mounts of other clusters and stacks would be held by this one.
        let _ = mounts::unmount_below(dir);
    }
    // Containers may ask for mounts that propagate, as on any node.
    change("/", MsFlags::MS_SHARED)?;

    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount_fs("proc", "/proc", safe | MsFlags::MS_NOEXEC, None)?;
    mount_fs("tmpfs", "/run", safe, Some("mode=0755".as_ref()))?;
    for path in OVERLAYS {
        let mut lower = OsString::new();
        if *path == "/usr/local" {
            for programs in &spec.programs {
                lower.push(escaped(programs));
                lower.push(":");
            }
        }
        lower.push(path);
        let own = overlay(&spec.dir, path);
        let mut options = OsString::from("lowerdir=");
        options.push(lower);
        options.push(",upperdir=");
        options.push(escaped(&own.join("upper")));
        options.push(",workdir=");
        options.push(escaped(&own.join("work")));
        mount_fs("overlay", path, MsFlags::empty(), Some(&options))?;
    }
    for path in OWN {
        fs::create_dir_all(path).with_context(|| format!("create {path}"))?;
        bind(&own(&spec.dir, path), Path::new(path))?;
    }
    for (file, value) in SETTINGS {
        if Path::new(file).exists() {
            let stand_in = spec
                .dir
                .join("settings")
                .join(file.trim_start_matches('/').replace('/', "-"));
            fs::write(&stand_in, value).with_context(|| format!("write {}", stand_in.display()))?;
            bind(&stand_in, Path::new(file))?;
        }
    }
    Ok(())
}

/// overlayfs splits its options at commas and its lower directories at colons.
fn escaped(path: &Path) -> OsString {
    let mut bytes = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        if matches!(byte, b':' | b',' | b'\\') {
            bytes.push(b'\\');
        }
        bytes.push(*byte);
    }
    OsString::from_vec(bytes)
}

fn change(path: &str, propagation: MsFlags) -> Result<()> {
    mount(
        None::<&str>,
        path,
        None::<&str>,
        propagation | MsFlags::MS_REC,
        None::<&str>,
    )
    .with_context(|| format!("change how mounts of {path} propagate"))
}

fn mount_fs(kind: &str, path: &str, flags: MsFlags, options: Option<&OsStr>) -> Result<()> {
    mount(Some(kind), path, Some(kind), flags, options)
        .with_context(|| format!("mount {kind} on {path} ({options:?})"))
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("bind {} to {}", from.display(), to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_escaped_for_overlayfs() {
        assert_eq!(escaped(Path::new("/a/b")), "/a/b");
        assert_eq!(escaped(Path::new("/a:b,c\\d")), "/a\\:b\\,c\\\\d");
    }
}
