//! Pages that can be pushed out and looked at again: a file on a tmpfs, charged to a cgroup of its own.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::Command;

use dormouse_testkit::host::command::capture;

/// A tmpfs file whose pages are charged to `cgroup`.
pub(super) struct Pages {
    pub(super) cgroup: PathBuf,
    mount: PathBuf,
    content: Vec<u8>,
}

impl Pages {
    /// `mib` MiB, half random, half a marker that is easy to find on a disk.
    pub(super) fn new(name: &str, mib: usize) -> Self {
        let cgroup = PathBuf::from(format!("/sys/fs/cgroup/{name}"));
        fs::create_dir(&cgroup).unwrap();
        let mount = PathBuf::from(format!("/tmp/{name}"));
        fs::create_dir(&mount).unwrap();
        capture(
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", "size=2G", "tmpfs"])
                .arg(&mount),
        )
        .unwrap();
        let mut random = vec![0_u8; 4 << 20];
        fs::File::open("/dev/urandom")
            .unwrap()
            .read_exact(&mut random)
            .unwrap();
        let half = mib << 19;
        let mut content: Vec<u8> = random.iter().copied().cycle().take(half).collect();
        content.extend_from_slice(MARKER.repeat(half / MARKER.len()).as_bytes());
        let pages = Self {
            cgroup,
            mount,
            content,
        };
        // Who touches a page first pays for it: a child that is in the cgroup before it writes.
        // Never on a disk, where the marker is looked for later.
        let source = PathBuf::from(format!("/dev/shm/{name}"));
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&source)
            .unwrap()
            .write_all(&pages.content)
            .unwrap();
        let line = format!(
            "echo 0 >{}/cgroup.procs && cat {} >{}",
            pages.cgroup.display(),
            source.display(),
            pages.file().display()
        );
        capture(Command::new("sh").args(["-c", &line])).unwrap();
        fs::remove_file(source).unwrap();
        pages
    }

    fn file(&self) -> PathBuf {
        self.mount.join("pages")
    }

    pub(super) fn charged(&self) -> u64 {
        self.number("memory.current")
    }

    pub(super) fn swapped(&self) -> u64 {
        self.number("memory.swap.current")
    }

    fn number(&self, file: &str) -> u64 {
        fs::read_to_string(self.cgroup.join(file))
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    }

    /// Asks the kernel to reclaim; it may give up early with EAGAIN.
    pub(super) fn reclaim(&self, bytes: u64) -> std::io::Result<()> {
        fs::write(self.cgroup.join("memory.reclaim"), bytes.to_string())
    }

    /// Reads everything back and compares.
    pub(super) fn assert_intact(&self) {
        assert!(
            fs::read(self.file()).unwrap() == self.content,
            "the pages came back different"
        );
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        capture(Command::new("umount").arg(&self.mount)).unwrap();
        // Pages that are on their way keep the cgroup for a moment as a zombie, which harms nobody.
        let _ = fs::remove_dir(&self.cgroup);
    }
}

/// What is looked for on the disk. Its length divides a page's, so that every page of it begins with it.
pub(super) const MARKER: &str = "DORMOUSE-SECRET-0123456789abcdef";
