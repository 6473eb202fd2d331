//! The node's swap. Parsing and judging are pure.

use std::path::{Path, PathBuf};

use super::Check;
use crate::view::units::mib;

/// What a swap area is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Compressed RAM: never leaves the machine's memory.
    Zram,
    /// A device-mapper target of type crypt.
    Encrypted,
    /// A disk, partition or file that anybody who gets hold of the disk can read.
    Plain,
}

/// An active swap area.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Area {
    pub(super) path: PathBuf,
    pub(super) kind: Kind,
    pub(super) total: u64,
    pub(super) used: u64,
}

/// A line of /proc/swaps: path, whether it is a file, size and use in bytes.
///
/// Source: Linux, mm/swapfile.c; the path's blanks are written as octal escapes.
pub(super) fn parse_line(line: &str) -> Option<(PathBuf, bool, u64, u64)> {
    let mut fields = line.split_whitespace();
    let path = fields.next()?.replace("\\040", " ");
    let file = fields.next()? == "file";
    let total = fields.next()?.parse::<u64>().ok()?.checked_mul(1024)?;
    let used = fields.next()?.parse::<u64>().ok()?.checked_mul(1024)?;
    path.starts_with('/')
        .then(|| (PathBuf::from(path), file, total, used))
}

/// What a swap device is, by its name and the UUID that device mapper gives it.
pub(super) fn kind_of(path: &Path, file: bool, dm_uuid: Option<&str>) -> Kind {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    if !file && name.starts_with("zram") {
        Kind::Zram
    } else if !file && dm_uuid.is_some_and(|uuid| uuid.starts_with("CRYPT-")) {
        Kind::Encrypted
    } else {
        Kind::Plain
    }
}

/// Whether there is swap, and whether it may be used.
pub(super) fn judge(areas: &[Area], agent_brings_own: bool, allow_plain: bool) -> Check {
    const NAME: &str = "swap";
    let total: u64 = areas.iter().map(|area| area.total).sum();
    let free: u64 = areas
        .iter()
        .map(|area| area.total.saturating_sub(area.used))
        .sum();
    if areas.is_empty() {
        return if agent_brings_own {
            Check::warn(
                NAME,
                "none is active; the agent is configured to bring its own",
                "start dormouse-agent",
            )
        } else {
            Check::fail(
                NAME,
                "none is active, so no pod can doze (they can be frozen)",
                "activate encrypted swap, or let the agent bring its own: section [swap] of agent.toml",
            )
        };
    }
    let list: Vec<String> = areas
        .iter()
        .map(|area| {
            let kind = match area.kind {
                Kind::Zram => "zram",
                Kind::Encrypted => "encrypted",
                Kind::Plain => "plain",
            };
            format!("{} ({kind}, {})", area.path.display(), mib(area.total))
        })
        .collect();
    let found = format!("{}; {} free of {}", list.join(", "), mib(free), mib(total));
    if areas.iter().any(|area| area.kind == Kind::Plain) && !allow_plain {
        return Check::fail(
            NAME,
            found,
            "plain swap is not used: a guest's secrets would be readable on the disk; encrypt it, or set \
             swap.allow_plain_swap in agent.toml",
        );
    }
    if free < total / 10 {
        return Check::warn(NAME, found, "it is nearly full: pods will stay Frozen; add swap");
    }
    Check::ok(NAME, found)
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn area(kind: Kind, used: u64) -> Area {
        Area {
            path: "/swap".into(),
            kind,
            total: 100 << 20,
            used: used << 20,
        }
    }

    #[test]
    fn lines() {
        let line = "/swap\\040file                              file\t\t4194300\t\t1024\t\t-2";
        assert_eq!(
            parse_line(line),
            Some(("/swap file".into(), true, 4_194_300 * 1024, 1 << 20))
        );
        for bad in [
            "",
            "Filename Type Size Used Priority",
            "/x file x 1 1",
            "x file 1 1 1",
        ] {
            assert_eq!(parse_line(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn kinds() {
        assert_eq!(kind_of(Path::new("/dev/zram0"), false, None), Kind::Zram);
        assert_eq!(kind_of(Path::new("/home/zram0"), true, None), Kind::Plain);
        assert_eq!(
            kind_of(Path::new("/dev/dm-0"), false, Some("CRYPT-PLAIN-x")),
            Kind::Encrypted
        );
        assert_eq!(kind_of(Path::new("/dev/dm-0"), false, Some("LVM-x")), Kind::Plain);
        assert_eq!(kind_of(Path::new("/dev/vdb"), false, None), Kind::Plain);
    }

    #[test]
    fn verdicts() {
        for (areas, own, allow, verdict) in [
            (vec![], false, false, Verdict::Fail),
            (vec![], true, false, Verdict::Warn),
            (
                vec![area(Kind::Zram, 0), area(Kind::Encrypted, 0)],
                false,
                false,
                Verdict::Ok,
            ),
            (vec![area(Kind::Plain, 0)], false, false, Verdict::Fail),
            (vec![area(Kind::Plain, 0)], false, true, Verdict::Ok),
            (vec![area(Kind::Zram, 95)], false, false, Verdict::Warn),
        ] {
            assert_eq!(judge(&areas, own, allow).verdict, verdict, "{areas:?}");
        }
    }
}
