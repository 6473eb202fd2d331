//! A strict, bounded reader of `/proc/PID/smaps`.
//!
//! The text is the kernel's, but a pod chooses what it maps and under which names, so every line is checked and
//! an odd one is an error, never a guess.

use crate::kernel::Range;

/// The page size that address ranges are checked against.
const PAGE: u64 = 4096;
/// A process with more mappings than this (the kernel's default limit is 65,530) is not looked at.
const MAX_MAPPINGS: usize = 1 << 17;

/// One mapping of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// Where it lies.
    pub range: Range,
    /// What of it is in memory and mapped, in bytes.
    pub resident: u64,
    /// What of it belongs to no file: private memory, also copied pages of a private file mapping, in bytes.
    pub anonymous: u64,
    /// What of it is in swap, in bytes; for shared memory the file's share below this mapping.
    pub swapped: u64,
    /// Where its first page lies in the file below it, in bytes; 0 without one.
    pub offset: u64,
    /// The file's inode; 0 without one.
    pub inode: u64,
    /// What it is.
    pub kind: Kind,
    /// The kernel keeps it in memory whatever is said (`mlock`, huge TLB pages, device memory).
    pub pinned: bool,
}

/// What a mapping is backed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Private memory without a file: heap, stack, arenas.
    Anonymous,
    /// A file in memory that processes hold by descriptor: memfd, `/dev/shm`.
    MemoryFile,
    /// Shared memory without a descriptor: `/dev/zero`, System V segments.
    SharedAnonymous,
    /// A file; its clean pages can be dropped and read again.
    File,
    /// The kernel's own pages: `[vdso]`, `[vvar]`, `[vsyscall]`.
    Special,
}

impl Mapping {
    /// Whether page-out can gain anything here.
    ///
    /// Clean pages of files are left to the reclaim: they cost no swap, and the runtime's own text is shared
    /// with every other pod of the node.
    #[must_use]
    pub fn can_page_out(&self) -> bool {
        if self.pinned || self.resident == 0 {
            return false;
        }
        match self.kind {
            Kind::Anonymous | Kind::MemoryFile | Kind::SharedAnonymous => true,
            Kind::File => self.anonymous > 0,
            Kind::Special => false,
        }
    }

    /// Whether advice can bring anything back here. Memory files are brought back as files.
    #[must_use]
    pub fn can_prefetch(&self) -> bool {
        !self.pinned && self.swapped > 0 && !matches!(self.kind, Kind::Special | Kind::MemoryFile)
    }
}

/// The text is not what the kernel writes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MapsError {
    /// A line does not have the kernel's form.
    #[error("line {line} of the memory map has an unknown form")]
    Malformed {
        /// Its number, from 1.
        line: usize,
    },
    /// The address ranges are not in rising order.
    #[error("the address ranges overlap or fall at line {line} of the memory map")]
    Unordered {
        /// The line's number, from 1.
        line: usize,
    },
    /// There are more mappings than the kernel allows by default.
    #[error("the memory map has more than {MAX_MAPPINGS} mappings")]
    TooMany,
}

/// Reads the text of `/proc/PID/smaps`.
///
/// # Errors
/// [`MapsError`] for any text that the kernel would not write.
pub fn parse(text: &str) -> Result<Vec<Mapping>, MapsError> {
    let mut mappings: Vec<Mapping> = Vec::new();
    let mut end = 0;
    for (index, line) in text.lines().enumerate() {
        let number = index.saturating_add(1);
        let malformed = || MapsError::Malformed { line: number };
        // Only header lines begin with a lower-case hexadecimal digit; fields begin with a capital.
        if line
            .as_bytes()
            .first()
            .is_some_and(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b))
        {
            let mapping = header(line).ok_or_else(malformed)?;
            if mapping.range.start < end {
                return Err(MapsError::Unordered { line: number });
            }
            end = mapping.range.start.saturating_add(mapping.range.len);
            if mappings.len() == MAX_MAPPINGS {
                return Err(MapsError::TooMany);
            }
            mappings.push(mapping);
        } else {
            let mapping = mappings.last_mut().ok_or_else(malformed)?;
            field(line, mapping).ok_or_else(malformed)?;
        }
    }
    Ok(mappings)
}

/// Reads `START-END PERMS OFFSET MAJOR:MINOR INODE [PATH]`.
fn header(line: &str) -> Option<Mapping> {
    let mut words = line.splitn(6, ' ');
    let (start, end) = words.next()?.split_once('-')?;
    let (start, end) = (hex(start)?, hex(end)?);
    let perms = words.next()?.as_bytes();
    let &[r, w, x, share] = perms else { return None };
    let known = matches!(r, b'r' | b'-') && matches!(w, b'w' | b'-') && matches!(x, b'x' | b'-');
    if !known || !matches!(share, b'p' | b's') {
        return None;
    }
    let offset = hex(words.next()?)?;
    let (major, minor) = words.next()?.split_once(':')?;
    hex(major)?;
    hex(minor)?;
    let inode: u64 = decimal(words.next()?)?;
    let path = words.next().unwrap_or("").trim_start_matches(' ');
    if start >= end || start % PAGE != 0 || end % PAGE != 0 {
        return None;
    }
    Some(Mapping {
        range: Range {
            start,
            len: end - start,
        },
        resident: 0,
        anonymous: 0,
        swapped: 0,
        offset,
        inode,
        kind: kind(path, inode, share == b's'),
        pinned: false,
    })
}

fn kind(path: &str, inode: u64, shared: bool) -> Kind {
    const MEMORY_FILE: [&str; 2] = ["/memfd:", "/dev/shm/"];
    const SHARED: [&str; 3] = ["/dev/zero", "/SYSV", "[anon_shmem:"];
    match path {
        "[vdso]" | "[vsyscall]" => Kind::Special,
        p if p.starts_with("[vvar") => Kind::Special,
        // `[heap]`, `[stack]`, `[anon:…]`, `[anon_shmem:…]` and no name at all.
        p if inode == 0 && (p.is_empty() || p.starts_with('[')) => {
            if shared {
                Kind::SharedAnonymous
            } else {
                Kind::Anonymous
            }
        }
        p if MEMORY_FILE.iter().any(|s| p.starts_with(s)) => Kind::MemoryFile,
        p if SHARED.iter().any(|s| p.starts_with(s)) => Kind::SharedAnonymous,
        _ => Kind::File,
    }
}

/// Reads `Name:   N kB`, `Name:  N`, or `VmFlags: xx yy`, and keeps what is of use.
fn field(line: &str, mapping: &mut Mapping) -> Option<()> {
    let (name, value) = line.split_once(':')?;
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return None;
    }
    match name {
        "Rss" => mapping.resident = kilobytes(value)?,
        "Anonymous" => mapping.anonymous = kilobytes(value)?,
        "Swap" => mapping.swapped = kilobytes(value)?,
        // io: device memory; pf: page frames without pages; ht: huge TLB; lo: locked.
        "VmFlags" => {
            mapping.pinned = value
                .split_ascii_whitespace()
                .any(|f| matches!(f, "io" | "pf" | "ht" | "lo"));
        }
        _ => {}
    }
    Some(())
}

fn kilobytes(value: &str) -> Option<u64> {
    decimal(value.trim().strip_suffix(" kB")?)?.checked_mul(1024)
}

fn hex(text: &str) -> Option<u64> {
    // `from_str_radix` alone would take a leading plus.
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
    plain.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

fn decimal(text: &str) -> Option<u64> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SAMPLE: &str = "\
c000000000-c000400000 rw-p 00000000 00:00 0                              [anon: Go: heap]
Size:               4096 kB
Rss:                3000 kB
Anonymous:          3000 kB
Swap:                 96 kB
VmFlags: rd wr mr mw me ac sd
7f0000000000-7f0040000000 rw-s 00004000 00:01 1029                       /memfd:runsc-memory (deleted)
Rss:              524288 kB
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd wr sh mr mw me ms sd
7f5000000000-7f5000001000 r-xp 00000000 fe:00 99                         /usr/bin/a name with spaces
Rss:                   4 kB
VmFlags: rd ex mr mw me sd
7f5000002000-7f5000003000 r--p 00000000 00:00 0                          [vvar]
Rss:                   4 kB
VmFlags: rd mr pf io de dd
7f5000004000-7f5000005000 rw-p 00000000 00:00 0 
Rss:                   4 kB
VmFlags: rd wr lo
";

    #[test]
    fn reads_what_the_kernel_writes() {
        let m = parse(SAMPLE).unwrap();
        assert_eq!(m.len(), 5);
        assert_eq!(m[0].kind, Kind::Anonymous);
        assert_eq!((m[0].resident, m[0].swapped), (3000 << 10, 96 << 10));
        assert_eq!((m[1].kind, m[1].inode), (Kind::MemoryFile, 1029));
        assert_eq!((m[0].offset, m[1].offset), (0, 0x4000));
        assert_eq!(
            m[1].range,
            Range {
                start: 0x7f00_0000_0000,
                len: 1 << 30
            }
        );
        assert_eq!(m[2].kind, Kind::File);
        let out: Vec<bool> = m.iter().map(Mapping::can_page_out).collect();
        assert_eq!(out, [true, true, false, false, false]);
    }

    #[test]
    fn reads_our_own() {
        let own = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let m = parse(&own).unwrap();
        assert!(m.iter().any(Mapping::can_page_out));
    }

    #[test]
    fn refuses_what_it_would_not() {
        for bad in [
            "Rss: 4 kB\n",
            "1000-2000 rw-p 0 0:0 0\nRss: 4 MB\n",
            "1000-2000 rw-p 0 0:0 0\nRss: -4 kB\n",
            "1000-2000 rw-p 0 0:0 0\nRss: 99999999999999999999 kB\n",
            "2000-1000 rw-p 0 0:0 0\n",
            "1001-2000 rw-p 0 0:0 0\n",
            "1000-2000 rwp 0 0:0 0\n",
            "1000-2000 rw-p 0 00 0\n",
            "1000-2000 rw-p 0 0:0\n",
            "1000-3000 rw-p 0 0:0 0\n2000-4000 rw-p 0 0:0 0\n",
            "1000-2000 rw-p 0 0:0 0\n?\n",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC*") {
            let _ = parse(&text);
        }

        #[test]
        fn never_panics_on_mutations(at in 0..SAMPLE.len(), with in any::<u8>()) {
            let mut bytes = SAMPLE.as_bytes().to_vec();
            bytes[at] = with;
            if let Ok(text) = String::from_utf8(bytes) {
                let _ = parse(&text);
            }
        }
    }
}
