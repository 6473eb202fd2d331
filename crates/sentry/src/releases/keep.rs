//! Copies of runsc that the agent keeps, so that an upgrade of the node needs no hand work: `<keep dir>/<version>/runsc`.
//!
//! A copy and not a link: a link would change with a file that is written over in place. Where the file system can,
//! the kernel shares the blocks.
//!
//! Fail points: `releases::keep::{copied, noted, placed}`, `releases::remove::emptied`.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use dormouse_core::Day;
use fail::fail_point;
use serde::{Deserialize, Serialize};

use super::version::{FileIdentity, ask, is_version};
use super::{Origin, Releases};
use crate::file::read_bounded;
use crate::record::Record;
use crate::run_dir::RunDir;
use crate::runsc_state::RunscState;
use crate::wrapper_config::{ConfigError, KEEP_DAYS, WrapperConfig, check_owner};

/// The copy's name.
const PROGRAM: &str = "runsc";

/// The copy until it is whole.
const PARTIAL: &str = "runsc.new";

/// The name of what is noted of it.
const NOTE: &str = "kept.json";

/// The format of that.
const VERSION: u32 = 1;

/// The largest note, in bytes.
const SIZE_LIMIT: usize = 4096;

/// How many copies are looked at.
const MAX_KEPT: usize = 64;

/// A copy that could not be made, changed or removed.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The kernel refused.
    #[error("cannot {verb} {}: {source}", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Somebody else could have put a program there.
    #[error(transparent)]
    Unsafe(#[from] ConfigError),
    /// Neither its file nor a process of it is left.
    #[error("runsc {version} is nowhere on this node any more")]
    Gone {
        /// The version.
        version: String,
    },
    /// It was replaced while it was copied.
    #[error("{} was changed while it was copied", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The copy is not what it has to be.
    #[error("{} cannot be used: {source}; keep_dir has to be on a file system from which programs may be started", path.display())]
    Useless {
        /// The copy.
        path: PathBuf,
        /// What it says, or the kernel.
        source: io::Error,
    },
    /// A version whose name is no name for a directory.
    #[error("a runsc that calls itself {version:?} is not kept")]
    BadVersion {
        /// The version.
        version: String,
    },
}

/// What is noted of a copy.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    version: u32,
    /// The last day on which guests are restored with it; `None` as long as new pods are born under that release.
    until: Option<Day>,
}

/// A copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) version: String,
    pub(super) path: PathBuf,
    pub(super) until: Option<Day>,
}

fn io(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KeepError {
    let path = path.to_owned();
    move |source| KeepError::Io { verb, path, source }
}

/// The copies below `dir`, by version. Nothing that somebody else than root could have put there.
pub(super) fn list(dir: &Path) -> Vec<Kept> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    if check_owner(dir).is_err() || dir.parent().is_some_and(|parent| check_owner(parent).is_err()) {
        return Vec::new();
    }
    let mut found: Vec<Kept> = entries
        .flatten()
        .take(MAX_KEPT)
        .filter_map(|entry| {
            let version = entry.file_name().into_string().ok().filter(|v| is_version(v))?;
            let path = entry.path().join(PROGRAM);
            // Of a copy whose note cannot be read nobody knows how long it may be used.
            let until = note(&entry.path())?.until;
            path.is_file().then_some(Kept { version, path, until })
        })
        .collect();
    found.sort_by(|a, b| a.version.cmp(&b.version));
    found
}

fn note(dir: &Path) -> Option<Note> {
    serde_json::from_slice::<Note>(&read_bounded(&dir.join(NOTE), SIZE_LIMIT).ok()?)
        .ok()
        .filter(|note| note.version == VERSION)
}

/// Makes sure that a release stays on this node: copies the current one if it is that, unless it is kept already, or is
/// one of the older ones that the configuration names. `None` if it is nowhere; otherwise whether it was copied now.
///
/// # Errors
/// [`KeepError`]: nobody can be restored with it once the current runsc has been replaced.
pub fn keep(config: &WrapperConfig, dir: &RunDir, version: &str) -> Result<Option<bool>, KeepError> {
    if config.keep_days == 0 || version.is_empty() {
        return Ok(Some(false));
    }
    let releases = Releases::look(config, dir);
    let found = |origin| {
        releases
            .all()
            .iter()
            .find(|found| found.origin == origin && found.version == version)
    };
    if found(Origin::Other).or(found(Origin::Kept)).is_some() {
        return Ok(Some(false));
    }
    let Some(current) = found(Origin::Current) else {
        return Ok(None);
    };
    copy(&config.keep_dir(), &current.path, current.file, version)?;
    Ok(Some(true))
}

/// The same for the release that a pod runs under. Where another has been put in the place of its file, that is taken from
/// the pod's sentry: a process goes on with the file that it was started from. Whether it was copied now.
///
/// # Errors
/// [`KeepError`]: the pod cannot be restored once its runsc is gone.
pub fn keep_for(config: &WrapperConfig, dir: &RunDir, record: &Record) -> Result<bool, KeepError> {
    let runsc = &record.runsc;
    if let Some(copied) = keep(config, dir, &runsc.version)? {
        return Ok(copied);
    }
    let id = &record.sandbox_id;
    let sentry = record.sentry.or_else(|| {
        let state = RunscState::read(&record.runtime_root, id, &id.into()).ok()?;
        state.sentry().ok()
    });
    // Only the very file that the pod was born under: whatever else a sentry has become is not to be run by root.
    let found = sentry
        .filter(|sentry| sentry.is_alive())
        .map(|sentry| PathBuf::from(format!("/proc/{}/exe", sentry.pid)))
        .zip(runsc.file)
        .filter(|(exe, file)| FileIdentity::at(exe) == Some(*file));
    let (exe, file) = found.ok_or_else(|| KeepError::Gone {
        version: runsc.version.clone(),
    })?;
    copy(&config.keep_dir(), &exe, file, &runsc.version)?;
    Ok(true)
}

/// Copies a runsc. Whoever is killed on the way leaves no copy, or a whole one.
fn copy(keep_dir: &Path, source: &Path, file: FileIdentity, version: &str) -> Result<(), KeepError> {
    if !is_version(version) {
        return Err(KeepError::BadVersion {
            version: version.to_owned(),
        });
    }
    let dir = keep_dir.join(version);
    for path in [keep_dir, &dir] {
        match DirBuilder::new().mode(0o700).create(path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(io("make", path)(e)),
            _ => check_owner(path)?,
        }
    }
    let partial = dir.join(PARTIAL);
    let placed = place(&dir, &partial, source, file, version);
    if placed.is_err() {
        // It may have taken the last room of the disk.
        let _ = std::fs::remove_file(&partial);
    }
    placed?;
    sync(keep_dir)?;
    keep_dir.parent().map_or(Ok(()), sync)
}

fn place(
    dir: &Path,
    partial: &Path,
    source: &Path,
    file: FileIdentity,
    version: &str,
) -> Result<(), KeepError> {
    let changed = || KeepError::Changed {
        path: source.to_owned(),
    };
    {
        let mut from = File::open(source).map_err(io("open", source))?;
        let before = FileIdentity::of(&from.metadata().map_err(io("look at", source))?);
        if file != before {
            return Err(changed());
        }
        let mut to = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o700)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(partial)
            .map_err(io("make", partial))?;
        io::copy(&mut from, &mut to).map_err(io("write", partial))?;
        if FileIdentity::of(&from.metadata().map_err(io("look at", source))?) != before {
            return Err(changed());
        }
        // The sentry becomes somebody else before it starts itself again from this file.
        to.set_permissions(std::fs::Permissions::from_mode(0o755))
            .and_then(|()| to.sync_all())
            .map_err(io("write", partial))?;
    }
    fail_point!("releases::keep::copied");
    let said = ask(partial).and_then(|(said, _)| {
        if said == version {
            Ok(())
        } else {
            Err(io::Error::other(format!("it is {said}")))
        }
    });
    said.map_err(|source| KeepError::Useless {
        path: partial.to_owned(),
        source,
    })?;
    write_note(dir, None)?;
    fail_point!("releases::keep::noted");
    let program = dir.join(PROGRAM);
    std::fs::rename(partial, &program).map_err(io("rename", partial))?;
    fail_point!("releases::keep::placed");
    sync(dir)
}

fn write_note(dir: &Path, until: Option<Day>) -> Result<(), KeepError> {
    let note = Note {
        version: VERSION,
        until,
    };
    let text = serde_json::to_vec(&note).map_err(|e| io("write", dir)(e.into()))?;
    let (path, fresh) = (dir.join(NOTE), dir.join(format!("{NOTE}.new")));
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(&fresh)?;
        file.write_all(&text)?;
        file.sync_all()?;
        std::fs::rename(&fresh, &path)
    };
    write().map_err(io("write", &path))?;
    sync(dir)
}

fn sync(dir: &Path) -> Result<(), KeepError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(io("sync", dir))
}

/// Looks after the copies: one of a release that another has taken the place of gets its end date, and one that nobody
/// needs is removed. `needed` says whether a snapshot or a pod needs a version. What was removed.
///
/// One whose time is over stays as long as it is needed: a later date brings it back.
///
/// # Errors
/// [`KeepError`] of the first one that it failed with; the others are looked after all the same.
pub fn sweep(
    config: &WrapperConfig,
    dir: &RunDir,
    today: Day,
    needed: impl Fn(&str) -> bool,
) -> Result<Vec<String>, KeepError> {
    let keep_dir = config.keep_dir();
    let releases = Releases::look(config, dir);
    let Some(current) = releases.current() else {
        // It is being replaced, or cannot be used: nothing is known of what it will be.
        return Ok(Vec::new());
    };
    let Ok(entries) = std::fs::read_dir(&keep_dir) else {
        return Ok(Vec::new());
    };
    // Copies that were made before that was switched off are not cut short.
    let days = if config.keep_days == 0 {
        KEEP_DAYS
    } else {
        config.keep_days
    };
    let mut removed = Vec::new();
    let mut failed = None;
    for entry in entries.flatten() {
        let Some(version) = entry.file_name().into_string().ok().filter(|v| is_version(v)) else {
            continue;
        };
        let path = entry.path();
        let kept = note(&path);
        let done = if !needed(&version) && version != current.version {
            // Without a note it is anybody's.
            match kept {
                Some(_) => remove(&path).map(|()| removed.push(version)),
                None => remove_partial(&path),
            }
        } else {
            match kept {
                Some(Note { until: Some(_), .. }) if version == current.version => write_note(&path, None),
                Some(Note { until: None, .. }) if version != current.version => {
                    write_note(&path, Some(today.plus(days)))
                }
                _ => Ok(()),
            }
        };
        if let Err(error) = done {
            failed.get_or_insert(error);
        }
    }
    if !removed.is_empty() {
        sync(&keep_dir)?;
    }
    failed.map_or(Ok(removed), Err)
}

/// What is left of a copy that was not finished.
fn remove_partial(dir: &Path) -> Result<(), KeepError> {
    match std::fs::remove_file(dir.join(PARTIAL)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(io("remove", dir)(e)),
        Ok(()) => {
            // There may be more in it.
            let _ = std::fs::remove_dir(dir);
            Ok(())
        }
    }
}

fn remove(dir: &Path) -> Result<(), KeepError> {
    // The program first: without it the rest is nothing.
    for name in [PROGRAM, PARTIAL, NOTE, "kept.json.new"] {
        match std::fs::remove_file(dir.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io("remove", dir)(e)),
            _ => {}
        }
        fail_point!("releases::remove::emptied");
    }
    std::fs::remove_dir(dir).map_err(io("remove", dir))
}

#[cfg(test)]
mod tests {
    use super::super::tests::Node;
    use super::*;
    use crate::record::{PodRecordIdentity, RunscRecord};
    use dormouse_core::Reason;

    fn day(text: &str) -> Day {
        text.parse().unwrap()
    }

    fn record(node: &Node, runsc: RunscRecord) -> Record {
        let pod = PodRecordIdentity {
            uid: "uid".parse().unwrap(),
            name: "p".into(),
            namespace: "n".into(),
        };
        Record::new(pod, "s1".parse().unwrap(), node.path("rr"), runsc, true)
    }

    #[test]
    fn a_copy_outlives_the_file_and_goes_when_nobody_needs_it() {
        let node = Node::new();
        let (config, dir) = (&node.config, &node.dir);
        let runsc = node.look().current().unwrap().record();
        let pod = record(&node, runsc.clone());
        assert!(keep_for(config, dir, &pod).unwrap());
        assert!(!keep_for(config, dir, &pod).unwrap(), "once is enough");
        node.install(&config.runsc, "release-2");
        assert!(!keep_for(config, dir, &pod).unwrap());
        let today = day("2027-01-01");
        assert!(sweep(config, dir, today, |_| true).unwrap().is_empty());
        let releases = node.look();
        let kept = releases.usable("release-1", today).unwrap();
        assert_eq!(
            (kept.origin, kept.until),
            (Origin::Kept, Some(today.plus(config.keep_days)))
        );
        assert_eq!(super::super::program_of(config, dir, &runsc).path, kept.path);
        // The date stays what it was, and counts.
        assert!(sweep(config, dir, today.plus(10), |_| true).unwrap().is_empty());
        let end = today.plus(config.keep_days);
        assert!(node.look().usable("release-1", end).is_ok());
        assert_eq!(
            node.look().usable("release-1", end.plus(1)).unwrap_err().reason(),
            Reason::RuntimeVersionEnded
        );
        assert!(
            sweep(config, dir, end.plus(1), |_| true).unwrap().is_empty(),
            "somebody needs it"
        );
        // The older release is put back: it has no end again.
        node.install(&config.runsc, "release-1");
        assert!(sweep(config, dir, today, |_| false).unwrap().is_empty());
        assert!(
            node.look()
                .may_restore("release-1", end.plus(1))
                .unwrap()
                .is_none()
        );
        node.install(&config.runsc, "release-2");
        assert_eq!(sweep(config, dir, today, |_| false).unwrap(), ["release-1"]);
        assert!(!config.keep_dir().join("release-1").exists());
    }

    #[test]
    fn a_file_that_is_gone_is_not_kept_and_says_so() {
        let node = Node::new();
        let runsc = node.look().current().unwrap().record();
        node.install(&node.config.runsc, "release-2");
        let error = keep_for(&node.config, &node.dir, &record(&node, runsc)).unwrap_err();
        assert!(matches!(error, KeepError::Gone { .. }), "{error}");
    }

    #[test]
    fn what_a_sentry_has_become_is_not_kept() {
        let node = Node::new();
        let mut pod = record(&node, node.look().current().unwrap().record());
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        pod.sentry = crate::ProcessId::of(pid).unwrap();
        node.install(&node.config.runsc, "release-2");
        let error = keep_for(&node.config, &node.dir, &pod).unwrap_err();
        child.kill().unwrap();
        child.wait().unwrap();
        // Another program than the one that the pod was born under.
        assert!(matches!(error, KeepError::Gone { .. }), "{error}");
        assert!(list(&node.config.keep_dir()).is_empty());
    }

    #[test]
    fn what_a_killed_agent_left_is_no_copy() {
        let node = Node::new();
        let runsc = node.look().current().unwrap().record();
        let dir = node.config.keep_dir().join("release-1");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(PARTIAL), "half of it").unwrap();
        assert!(list(&node.config.keep_dir()).is_empty());
        assert!(keep_for(&node.config, &node.dir, &record(&node, runsc)).unwrap());
        assert_eq!(list(&node.config.keep_dir()).len(), 1);
        // A program without a note may have been anybody's.
        std::fs::remove_file(dir.join(NOTE)).unwrap();
        assert!(list(&node.config.keep_dir()).is_empty());
    }

    #[test]
    fn a_directory_that_others_can_write_holds_no_copies() {
        let node = Node::new();
        let runsc = node.look().current().unwrap().record();
        let pod = record(&node, runsc);
        assert!(keep_for(&node.config, &node.dir, &pod).unwrap());
        let keep_dir = node.config.keep_dir();
        std::fs::set_permissions(&keep_dir, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(list(&keep_dir).is_empty());
        assert!(matches!(
            keep_for(&node.config, &node.dir, &pod),
            Err(KeepError::Unsafe(_))
        ));
    }
}
