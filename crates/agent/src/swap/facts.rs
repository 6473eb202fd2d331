//! What is true on this node, as far as swap is concerned. Only data and parsers; reading is in `gather`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use super::kubelet::KubeletFacts;
use super::record::SwapRecord;

/// The most lines of `/proc/swaps` that are looked at; the kernel's own bound is 32 areas.
const MAX_AREAS: usize = 64;

/// How well an area keeps a guest's memory from whoever gets hold of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum Protection {
    /// It never leaves RAM (zram without a backing device).
    Ram,
    /// It goes to disk through dm-crypt.
    Encrypted,
    /// It goes to disk as it is, or this could not be ruled out.
    Plain,
}

/// One line of `/proc/swaps`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwapLine {
    /// Device or file.
    pub path: PathBuf,
    /// Whether it is a file and no block device.
    pub is_file: bool,
    /// Size in bytes.
    pub bytes: u64,
    /// Occupied bytes.
    pub used: u64,
    /// Priority; higher is used first. Negative where the kernel chose.
    pub priority: i32,
}

/// An active swap area and what it stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActiveSwap {
    /// The line of `/proc/swaps`.
    pub line: SwapLine,
    /// What keeps it from prying eyes.
    pub protection: Protection,
    /// Number of the zram device, if it is one.
    pub zram: Option<u32>,
    /// Name of the device-mapper mapping, if it is one.
    pub mapping: Option<String>,
}

/// What the kernel's zram offers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ZramFacts {
    /// Whether new devices can be made (`/sys/class/zram-control/hot_add`).
    pub hot_add: bool,
    /// Devices that are there and have no size, so nobody uses them.
    pub idle: Vec<u32>,
}

impl ZramFacts {
    /// Whether a device can be had.
    #[must_use]
    pub const fn available(&self) -> bool {
        self.hot_add || !self.idle.is_empty()
    }
}

/// Why swap cannot be encrypted here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncryptionLack {
    /// `/dev/mapper/control` is missing.
    #[error("the kernel has no device mapper (module dm_mod)")]
    NoDeviceMapper,
    /// No loop device.
    #[error("the kernel has no loop devices (module loop)")]
    NoLoop,
    /// cryptsetup cannot be used.
    #[error("cryptsetup cannot be used: {0}")]
    NoCryptsetup(String),
}

/// The file system that is to hold the swap file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryFacts {
    /// Bytes that root may still use.
    pub free: u64,
    /// Size of the file system in bytes.
    pub total: u64,
    /// Name of the file system, if swap files work on it; otherwise why not.
    pub suitable: Result<&'static str, String>,
}

/// What is true on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Identifies the boot (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// RAM in bytes.
    pub ram_total: u64,
    /// `MemAvailable` in bytes.
    pub ram_available: u64,
    /// Active areas.
    pub swaps: Vec<ActiveSwap>,
    /// The kubelet's word.
    pub kubelet: KubeletFacts,
    /// zram, if the kernel has it.
    pub zram: Option<ZramFacts>,
    /// Whether a file can be encrypted.
    pub encryption: Result<(), EncryptionLack>,
    /// Whether `mkswap` can be used; otherwise why not.
    pub mkswap: Result<(), String>,
    /// Where the file is to go; `None` if no file is configured.
    pub directory: Option<Result<DirectoryFacts, String>>,
    /// What the agent itself brought earlier.
    pub record: Option<SwapRecord>,
}

/// `/proc/swaps` or `/proc/meminfo` is not as the kernel writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// A line of `/proc/swaps`.
    #[error("line {0} of /proc/swaps is not understood")]
    SwapLine(usize),
    /// More lines than the kernel can have.
    #[error("/proc/swaps has more than {MAX_AREAS} lines")]
    TooMany,
    /// A field of `/proc/meminfo`.
    #[error("{0} is missing in /proc/meminfo")]
    Meminfo(&'static str),
}

/// Parses `/proc/swaps`.
///
/// # Errors
/// [`ParseError`] if a line is not as the kernel writes it.
pub fn parse_swaps(text: &str) -> Result<Vec<SwapLine>, ParseError> {
    let mut out = Vec::new();
    for (i, line) in text.lines().enumerate().skip(1) {
        if out.len() == MAX_AREAS {
            return Err(ParseError::TooMany);
        }
        out.push(swap_line(line).ok_or(ParseError::SwapLine(i + 1))?);
    }
    Ok(out)
}

fn swap_line(line: &str) -> Option<SwapLine> {
    let mut fields = line.split_ascii_whitespace();
    let path = PathBuf::from(unescape(fields.next()?));
    // A swapped-on file that was removed is shown as "/path\040(deleted)": one field still.
    let is_file = match fields.next()? {
        "file" => true,
        "partition" => false,
        _ => return None,
    };
    let kib = |s: &str| s.parse::<u64>().ok()?.checked_mul(1024);
    Some(SwapLine {
        path,
        is_file,
        bytes: kib(fields.next()?)?,
        used: kib(fields.next()?)?,
        priority: fields.next()?.parse().ok()?,
    })
}

/// Undoes the kernel's octal escapes (space, tab, newline, backslash).
fn unescape(field: &str) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut bytes = field.bytes().peekable();
    while let Some(b) = bytes.next() {
        if b == b'\\' {
            let rest: Vec<u8> = bytes.clone().take(3).collect();
            if rest.len() == 3
                && let Some(code) = std::str::from_utf8(&rest)
                    .ok()
                    .and_then(|s| u8::from_str_radix(s, 8).ok())
            {
                out.push(code);
                bytes.by_ref().take(3).for_each(drop);
                continue;
            }
        }
        out.push(b);
    }
    OsString::from_vec(out)
}

/// Reads `MemTotal` and `MemAvailable` out of `/proc/meminfo`, in bytes.
///
/// # Errors
/// [`ParseError::Meminfo`] names the field that is missing.
pub fn parse_meminfo(text: &str) -> Result<(u64, u64), ParseError> {
    let field = |name: &'static str| {
        text.lines()
            .find_map(|l| {
                l.strip_prefix(name)?
                    .strip_prefix(':')?
                    .trim()
                    .strip_suffix(" kB")?
                    .trim()
                    .parse()
                    .ok()
            })
            .and_then(|kib: u64| kib.checked_mul(1024))
            .ok_or(ParseError::Meminfo(name))
    };
    Ok((field("MemTotal")?, field("MemAvailable")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swaps_as_the_kernel_writes_them() {
        let text = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
                    /dev/zram0                              partition\t1048572\t\t12\t\t32000\n\
                    /var/my\\040swap\\134x                 file\t\t65532\t\t0\t\t-2\n";
        let lines = parse_swaps(text).unwrap();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].bytes, 1_048_572 * 1024);
        assert_eq!(lines[0].used, 12 * 1024);
        assert_eq!(lines[0].priority, 32000);
        assert!(!lines[0].is_file);
        assert_eq!(lines[1].path, PathBuf::from("/var/my swap\\x"));
        assert_eq!(lines[1].priority, -2);
        assert!(lines[1].is_file);
        assert_eq!(parse_swaps("Filename Type Size Used Priority\n"), Ok(vec![]));
        assert_eq!(parse_swaps(""), Ok(vec![]));
    }

    #[test]
    fn broken_lines_are_refused() {
        for line in [
            "/x",
            "/x disk 1 2 3",
            "/x file a 2 3",
            "/x file 1 2",
            "/x file 99999999999999999999 2 3",
            "",
        ] {
            assert_eq!(
                parse_swaps(&format!("h\n{line}\n")),
                Err(ParseError::SwapLine(2)),
                "{line}"
            );
        }
        let many = format!("h\n{}", "/x file 1 2 3\n".repeat(MAX_AREAS + 1));
        assert_eq!(parse_swaps(&many), Err(ParseError::TooMany));
    }

    #[test]
    fn escapes_at_the_edge() {
        assert_eq!(unescape("a\\04"), "a\\04");
        assert_eq!(unescape("\\040"), " ");
        assert_eq!(unescape("\\999"), "\\999");
        assert_eq!(unescape("\\\\040"), "\\ ");
    }

    #[test]
    fn meminfo() {
        let text = "MemTotal:       24563456 kB\nMemFree: 1 kB\nMemAvailable:   20000000 kB\n";
        assert_eq!(parse_meminfo(text), Ok((24_563_456 * 1024, 20_000_000 * 1024)));
        assert_eq!(
            parse_meminfo("MemTotal: 5 kB\n"),
            Err(ParseError::Meminfo("MemAvailable"))
        );
        assert_eq!(parse_meminfo(""), Err(ParseError::Meminfo("MemTotal")));
    }
}
