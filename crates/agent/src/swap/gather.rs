//! Looking at a real node.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{self, FsType};

use super::config::SwapConfig;
use super::effects::GatherError;
use super::facts::{
    ActiveSwap, DirectoryFacts, EncryptionLack, Facts, Protection, SwapLine, ZramFacts, parse_meminfo,
    parse_swaps,
};
use super::kubelet::read_kubelet;
use super::record::SwapRecord;
use super::tools::{self, Tool, ToolError};

/// Reading it makes a new zram device.
pub(super) const ZRAM_HOT_ADD: &str = "/sys/class/zram-control/hot_add";
/// Writing a number to it removes a zram device.
pub(super) const ZRAM_HOT_REMOVE: &str = "/sys/class/zram-control/hot_remove";

/// How deep devices may stand on one another (partition on LVM on RAID on dm-crypt ...).
const MAX_DEPTH: u8 = 8;
/// The most zram devices that are looked at.
const MAX_ZRAM: usize = 256;
/// Magic of xfs; nix does not know it.
const XFS_MAGIC: FsType = FsType(0x5846_5342);

fn read(path: &str) -> Result<String, GatherError> {
    fs::read_to_string(path).map_err(|source| GatherError::Read {
        path: path.into(),
        source,
    })
}

pub(super) fn gather(config: &SwapConfig, record: Option<SwapRecord>) -> Result<Facts, GatherError> {
    let (ram_total, ram_available) = parse_meminfo(&read("/proc/meminfo")?)?;
    Ok(Facts {
        boot_id: read("/proc/sys/kernel/random/boot_id")?.trim().to_owned(),
        ram_total,
        ram_available,
        swaps: lines()?.into_iter().map(classify).collect(),
        kubelet: read_kubelet(config, kubelet_runs),
        zram: zram(),
        encryption: encryption(),
        mkswap: tools::find(Tool::Mkswap).map(drop).map_err(|e| e.to_string()),
        directory: config.file.as_ref().map(|f| directory(&f.directory)),
        record,
    })
}

/// The active areas.
pub(super) fn lines() -> Result<Vec<SwapLine>, GatherError> {
    match fs::read_to_string("/proc/swaps") {
        Ok(text) => Ok(parse_swaps(&text)?),
        // A kernel built without swap has no such file.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(GatherError::Read {
            path: "/proc/swaps".into(),
            source,
        }),
    }
}

/// Finds out what an area stands on. What cannot be found out counts as plain.
pub(super) fn classify(line: SwapLine) -> ActiveSwap {
    let mut zram = None;
    let mut mapping = None;
    let protection = fs::metadata(&line.path).map_or(Protection::Plain, |meta| {
        if line.is_file {
            return file_protection(&meta);
        }
        let (major, minor) = split(meta.rdev());
        let block = block(major, minor);
        zram = zram_index(&block);
        mapping = fs::read_to_string(block.join("dm/name"))
            .ok()
            .map(|s| s.trim_end().to_owned());
        device_protection(major, minor, MAX_DEPTH)
    });
    ActiveSwap {
        line,
        protection,
        zram,
        mapping,
    }
}

const fn split(dev: u64) -> (u64, u64) {
    (libc::major(dev) as u64, libc::minor(dev) as u64)
}

fn block(major: u64, minor: u64) -> PathBuf {
    let link = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    link.canonicalize().unwrap_or(link)
}

fn zram_index(block: &Path) -> Option<u32> {
    block.file_name()?.to_str()?.strip_prefix("zram")?.parse().ok()
}

/// A file is as well kept as the device of its file system.
fn file_protection(meta: &fs::Metadata) -> Protection {
    let (major, minor) = split(meta.dev());
    if major != 0 {
        return device_protection(major, minor, MAX_DEPTH);
    }
    // File systems like btrfs show an anonymous number; the mount table names the device.
    let wanted = format!("{major}:{minor}");
    let source = procfs::process::Process::myself()
        .and_then(|p| p.mountinfo())
        .ok()
        .and_then(|mounts| mounts.into_iter().find(|m| m.majmin == wanted)?.mount_source);
    source
        .and_then(|s| fs::metadata(s).ok())
        .map_or(Protection::Plain, |m| {
            let (major, minor) = split(m.rdev());
            if major == 0 {
                Protection::Plain
            } else {
                device_protection(major, minor, MAX_DEPTH)
            }
        })
}

/// Encrypted is what stands on dm-crypt with everything that it stands on.
fn device_protection(major: u64, minor: u64, depth: u8) -> Protection {
    let Some(depth) = depth.checked_sub(1) else {
        return Protection::Plain;
    };
    let mut at = block(major, minor);
    if zram_index(&at).is_some() {
        // zram with a backing device writes idle pages to a disk.
        let to_disk = fs::read_to_string(at.join("backing_dev")).is_ok_and(|b| b.trim() != "none");
        return if to_disk {
            Protection::Plain
        } else {
            Protection::Ram
        };
    }
    if at.join("partition").exists() {
        // A partition has no slaves of its own; its disk does.
        let Some(disk) = at.parent() else {
            return Protection::Plain;
        };
        at = disk.to_path_buf();
    }
    if fs::read_to_string(at.join("dm/uuid")).is_ok_and(|u| u.starts_with("CRYPT-")) {
        return Protection::Encrypted;
    }
    if let Ok(backing) = fs::read_to_string(at.join("loop/backing_file")) {
        let path = backing.trim_end_matches('\n');
        return fs::metadata(path).map_or(Protection::Plain, |m| {
            let (major, minor) = split(m.dev());
            if major == 0 {
                Protection::Plain
            } else {
                device_protection(major, minor, depth)
            }
        });
    }
    let below: Vec<(u64, u64)> = fs::read_dir(at.join("slaves"))
        .map(|dir| {
            dir.flatten()
                .filter_map(|e| numbers(&e.path().join("dev")))
                .collect()
        })
        .unwrap_or_default();
    let all = !below.is_empty()
        && below
            .iter()
            .all(|&(major, minor)| device_protection(major, minor, depth) == Protection::Encrypted);
    if all {
        Protection::Encrypted
    } else {
        Protection::Plain
    }
}

fn numbers(dev: &Path) -> Option<(u64, u64)> {
    let text = fs::read_to_string(dev).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Whether a kubelet runs: a root process of that name outside every container. A pod that gives one of its
/// processes this name is not meant to be able to switch swap off.
pub(super) fn kubelet_runs() -> bool {
    let Ok(all) = procfs::process::all_processes() else {
        return true;
    };
    all.flatten().any(|p| {
        p.status()
            .is_ok_and(|s| s.name == "kubelet" && s.euid == 0 && s.nspid.as_ref().is_none_or(|n| n.len() < 2))
    })
}

/// What the kernel's zram offers.
pub(super) fn zram() -> Option<ZramFacts> {
    let hot_add = Path::new(ZRAM_HOT_ADD).exists();
    let mut idle: Vec<u32> = fs::read_dir("/sys/block")
        .ok()?
        .flatten()
        .filter(|e| fs::read_to_string(e.path().join("disksize")).is_ok_and(|s| s.trim() == "0"))
        .filter_map(|e| zram_index(&e.path()))
        .take(MAX_ZRAM)
        .collect();
    idle.sort_unstable();
    (hot_add || !idle.is_empty()).then_some(ZramFacts { hot_add, idle })
}

fn encryption() -> Result<(), EncryptionLack> {
    // The device mapper loads its crypt target by itself when it is asked for it.
    if !Path::new("/dev/mapper/control").exists() {
        return Err(EncryptionLack::NoDeviceMapper);
    }
    if !Path::new("/dev/loop-control").exists() {
        return Err(EncryptionLack::NoLoop);
    }
    tools::find(Tool::Cryptsetup)
        .map(drop)
        .map_err(|e: ToolError| EncryptionLack::NoCryptsetup(e.to_string()))
}

fn directory(path: &Path) -> Result<DirectoryFacts, String> {
    // Its last component may still be missing; then the one above tells about the file system.
    let at = if path.exists() {
        path
    } else {
        path.parent().unwrap_or(path)
    };
    let fs = statfs::statfs(at).map_err(|e| format!("{}: {e}", at.display()))?;
    let unit = u64::try_from(fs.block_size()).unwrap_or(0);
    let suitable = match fs.filesystem_type() {
        statfs::EXT4_SUPER_MAGIC => Ok("ext4"),
        XFS_MAGIC => Ok("xfs"),
        statfs::BTRFS_SUPER_MAGIC => Ok("btrfs"),
        statfs::TMPFS_MAGIC => {
            Err("it is a tmpfs, so swap in it would fill the RAM that it is to free".to_owned())
        }
        statfs::OVERLAYFS_SUPER_MAGIC => {
            Err("it is an overlay (the agent's own container?); name a directory of the node".to_owned())
        }
        other => Err(format!(
            "its file system (magic {:#x}) is not known to take swap files; use ext4, xfs or btrfs",
            other.0
        )),
    };
    Ok(DirectoryFacts {
        free: fs.blocks_available().saturating_mul(unit),
        total: fs.blocks().saturating_mul(unit),
        suitable,
    })
}
