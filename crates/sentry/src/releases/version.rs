//! What a runsc calls itself: asked once for each file, and remembered on the tmpfs.

use std::fs::Metadata;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::file::{read_bounded, write_atomic};
use crate::process::{has_ended, pidfd_open};
use crate::run_dir::RunDir;

/// The format of what is remembered.
const VERSION: u32 = 2;

/// How many files are remembered.
const MAX_KNOWN: usize = 32;

/// The largest memory, in bytes.
const SIZE_LIMIT: usize = 32 << 10;

/// The longest version, in bytes.
const MAX_VERSION: usize = 64;

/// How often a file is tried again that somebody has open for writing: a process that is just being started beside this
/// one has copies of its descriptors until its `exec`.
const BUSY: u32 = 100;

/// How long that takes.
const AGAIN: Duration = Duration::from_millis(5);

/// How long one may take to say its version: twenty times as long as one on a busy node, and less than anybody who waits
/// for this is given.
const ANSWERS: Duration = Duration::from_secs(2);

/// Which file something is: another one at the same path differs in at least one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    /// The device that it is on.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
    /// Its size, in bytes.
    pub size: u64,
    /// When it was last written, in ns since 1970.
    pub modified_ns: i128,
}

impl FileIdentity {
    /// Of an open or named file.
    #[must_use]
    pub fn of(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified_ns: i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec()),
        }
    }

    /// Of what is at `path` now; `None` where there is nothing.
    #[must_use]
    pub fn at(path: &Path) -> Option<Self> {
        std::fs::metadata(path).ok().map(|meta| Self::of(&meta))
    }
}

/// What a runsc calls itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Named {
    pub(super) file: FileIdentity,
    /// As in `release-20260905.0`.
    pub(super) version: String,
    /// The OCI runtime specification's version.
    pub(super) oci_version: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Memory {
    version: u32,
    known: Vec<Named>,
}

/// The versions of runsc that were asked for since the node's start.
#[derive(Debug)]
pub(super) struct Versions<'a> {
    dir: &'a RunDir,
    known: Vec<Named>,
}

impl<'a> Versions<'a> {
    pub(super) fn recall(dir: &'a RunDir) -> Self {
        let known = read_bounded(&path(dir), SIZE_LIMIT)
            .ok()
            .and_then(|text| serde_json::from_slice::<Memory>(&text).ok())
            .filter(|memory| memory.version == VERSION)
            .map(|memory| memory.known)
            .unwrap_or_default();
        Self { dir, known }
    }

    /// What the runsc at `program` calls itself; asks it where that is not known.
    pub(super) fn of(&mut self, program: &Path) -> Option<Named> {
        let file = FileIdentity::at(program)?;
        if let Some(known) = self.known.iter().find(|known| known.file == file) {
            return Some(known.clone());
        }
        let (version, oci_version) = ask(program).ok()?;
        let named = Named {
            file,
            version,
            oci_version,
        };
        self.known.push(named.clone());
        let surplus = self.known.len().saturating_sub(MAX_KNOWN);
        self.known.drain(..surplus);
        self.remember();
        Some(named)
    }

    /// Two that write at once forget what the other has learnt, and ask again.
    fn remember(&self) {
        let memory = Memory {
            version: VERSION,
            known: self.known.clone(),
        };
        let Ok(text) = serde_json::to_vec(&memory) else {
            return;
        };
        let path = path(self.dir);
        // Under a name of this process's own, because nobody holds a lock.
        let own = self.dir.path().join(format!(
            "runsc-version.json.{}.{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        let done = write_atomic(&own, &text, 0o600).is_ok() && std::fs::rename(&own, &path).is_ok();
        if !done {
            let _ = std::fs::remove_file(&own);
        }
    }
}

fn path(dir: &RunDir) -> std::path::PathBuf {
    dir.path().join("runsc-version.json")
}

/// `runsc version release-…` and `spec: 1.2.1`.
///
/// # Errors
/// It cannot be executed, or says something else.
pub(super) fn ask(program: &Path) -> io::Result<(String, String)> {
    let text = output(program)?;
    let find = |prefix: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(prefix))
            .map(|version| version.trim().to_owned())
    };
    find("runsc version ")
        .filter(|version| is_version(version))
        .zip(find("spec: "))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it does not say what version it is"))
}

fn output(program: &Path) -> io::Result<String> {
    let mut tries = 0;
    let mut child = loop {
        let started = Command::new(program)
            .arg("--version")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        match started {
            Err(e) if e.kind() == io::ErrorKind::ExecutableFileBusy && tries < BUSY => {
                tries += 1;
                std::thread::sleep(AGAIN);
            }
            started => break started?,
        }
    };
    let handle = pidfd_open(i32::try_from(child.id()).unwrap_or(0))?;
    if !has_ended(handle.as_fd(), ANSWERS) {
        child.kill()?;
        // One that cannot even be killed is left to whoever reaps it.
        if has_ended(handle.as_fd(), ANSWERS) {
            child.wait()?;
        }
        return Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "it does not say its version",
        ));
    }
    let mut text = String::new();
    let read = child
        .stdout
        .take()
        .map(|out| out.take(4096).read_to_string(&mut text));
    child.wait()?;
    read.transpose()?;
    Ok(text)
}

/// Whether a version can be the name of a directory.
pub(super) fn is_version(text: &str) -> bool {
    text.len() <= MAX_VERSION
        && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'+'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::PermissionsExt;

    /// A program that calls itself so, and counts how often it was asked.
    fn program(path: &Path, version: &str) {
        let text = format!(
            "#!/bin/sh\necho x >> {}.asked\necho runsc version {version}\necho spec: 1.2.1\n",
            path.display()
        );
        std::fs::write(path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn each_file_is_asked_once() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = RunDir::new(tmp.path().join("run")).unwrap();
        dir.prepare().unwrap();
        let (a, b) = (tmp.path().join("a"), tmp.path().join("b"));
        program(&a, "release-1");
        program(&b, "release-2");
        for _ in 0..3 {
            let mut versions = Versions::recall(&dir);
            assert_eq!(versions.of(&a).unwrap().version, "release-1");
            assert_eq!(versions.of(&b).unwrap().version, "release-2");
        }
        let asked = |path: &Path| std::fs::read_to_string(format!("{}.asked", path.display())).unwrap();
        assert_eq!((asked(&a).as_str(), asked(&b).as_str()), ("x\n", "x\n"));
        // Replaced at the same path.
        let fresh = tmp.path().join("fresh");
        program(&fresh, "release-3");
        std::fs::rename(&fresh, &a).unwrap();
        assert_eq!(Versions::recall(&dir).of(&a).unwrap().version, "release-3");
        std::fs::write(path(&dir), "{").unwrap();
        assert_eq!(Versions::recall(&dir).of(&b).unwrap().version, "release-2");
    }

    #[test]
    fn what_says_nothing_useful_has_no_version() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("x");
        for version in ["", "../../etc", "a b/c"] {
            program(&path, version);
            assert!(ask(&path).is_err(), "{version:?}");
        }
        assert!(ask(Path::new("/nowhere")).is_err());
    }

    proptest! {
        #[test]
        fn a_version_is_one_component(text in ".{0,80}") {
            if is_version(&text) {
                let path = Path::new("/k").join(&text);
                prop_assert_eq!(path.parent(), Some(Path::new("/k")));
                prop_assert_eq!(path.components().count(), 3);
            }
        }
    }
}
