//! Leave to fill one new pod from a snapshot: written by the agent before the pod is made, read by the wrapper when it
//! starts. An annotation alone restores nothing; whoever can create pods could otherwise read any pod's memory.
//!
//! A pod that was hibernated when its node went down, or its shim, comes back in a new sandbox: for that the agent gives
//! leave by itself, and the pod need not ask.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::file::{FileError, read_bounded, write_atomic};
use crate::ids::PodUid;
use crate::run_dir::RunDir;

/// The format.
const VERSION: u32 = 1;

/// The largest grant, in bytes.
const SIZE_LIMIT: usize = 256 << 10;

/// A container of the snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantedContainer {
    /// Its name in the pod.
    pub name: String,
    /// Whether it had ended when the snapshot was taken.
    pub ended: bool,
}

/// Leave to fill one pod from one snapshot, once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    version: u32,
    /// The pod.
    pub pod_uid: PodUid,
    /// The namespace that the pod has to be in.
    pub namespace: String,
    /// The snapshot's id.
    pub snapshot: String,
    /// The image's directory; checked, and kept by the agent as long as the grant is.
    pub image: PathBuf,
    /// The exact version of runsc that has to read it.
    pub runtime_version: String,
    /// The snapshot's containers, without the pod sandbox's own.
    pub containers: Vec<GrantedContainer>,
    /// Until when it counts, by the wall clock, in ms since 1970.
    pub expires_ms: u64,
    /// Whether the snapshot is the pod's own: it holds the pod's memory, and nothing else does.
    #[serde(default)]
    pub own: bool,
    /// Whether the pod runs by it: filled, or without memory by its fallback. It is not honoured twice, because that would
    /// set the pod back; one that led to neither is.
    #[serde(default)]
    pub used: bool,
}

/// A grant could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum GrantError {
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is not what a grant is.
    #[error("{} is no grant that this version knows", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
}

impl Grant {
    /// A grant that was not used.
    #[must_use]
    pub fn new(
        pod_uid: PodUid,
        namespace: String,
        snapshot: String,
        image: PathBuf,
        runtime_version: String,
        containers: Vec<GrantedContainer>,
        expires_ms: u64,
    ) -> Self {
        Self {
            version: VERSION,
            pod_uid,
            namespace,
            snapshot,
            image,
            runtime_version,
            containers,
            expires_ms,
            own: false,
            used: false,
        }
    }

    /// The same for the pod that the snapshot was taken of; it counts until it is used.
    #[must_use]
    pub const fn own(mut self) -> Self {
        self.own = true;
        self.expires_ms = u64::MAX;
        self
    }

    /// Says that all pods which have to come back from their snapshots have their grants: who has none needs none.
    ///
    /// # Errors
    /// [`GrantError`]
    pub fn all_issued(dir: &RunDir) -> Result<(), GrantError> {
        Ok(write_atomic(&issued(dir), b"", 0o600)?)
    }

    /// Whether that was said since the run directory was made: since the node was started.
    #[must_use]
    pub fn are_issued(dir: &RunDir) -> bool {
        issued(dir).exists()
    }

    /// Says whether a pod which has to come back from a snapshot cannot be given its grant now. It is then held back,
    /// whatever else is known of it.
    ///
    /// # Errors
    /// [`GrantError`]
    pub fn set_withheld(dir: &RunDir, uid: &PodUid, is_withheld: bool) -> Result<(), GrantError> {
        let path = withheld(dir, uid);
        if is_withheld {
            Ok(write_atomic(&path, b"", 0o600)?)
        } else {
            remove_file(&path)
        }
    }

    /// Whether that was said.
    #[must_use]
    pub fn is_withheld(dir: &RunDir, uid: &PodUid) -> bool {
        withheld(dir, uid).exists()
    }

    /// Reads the grant of a pod; `None` if there is none.
    ///
    /// # Errors
    /// [`GrantError`]
    pub fn read(dir: &RunDir, uid: &PodUid) -> Result<Option<Self>, GrantError> {
        let path = dir.grant_path(uid);
        let data = match read_bounded(&path, SIZE_LIMIT) {
            Ok(data) => data,
            Err(e) if e.is_missing() => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        serde_json::from_slice::<Self>(&data)
            .ok()
            .filter(|grant| grant.version == VERSION && &grant.pod_uid == uid && grant.image.is_absolute())
            .map(Some)
            .ok_or(GrantError::Damaged { path })
    }

    /// Puts the grant in place of one for the same pod.
    ///
    /// # Errors
    /// [`GrantError`]
    pub fn write(&self, dir: &RunDir) -> Result<(), GrantError> {
        let path = dir.grant_path(&self.pod_uid);
        let data = serde_json::to_vec(self).map_err(|_| GrantError::Damaged { path: path.clone() })?;
        Ok(write_atomic(&path, &data, 0o600)?)
    }

    /// Takes the grant of a pod away, and the word that it is withheld; there need be neither.
    ///
    /// # Errors
    /// [`GrantError`]
    pub fn remove(dir: &RunDir, uid: &PodUid) -> Result<(), GrantError> {
        remove_file(&dir.grant_path(uid))?;
        remove_file(&withheld(dir, uid))
    }

    /// Every pod that has a grant.
    ///
    /// # Errors
    /// [`GrantError`]
    pub fn all(dir: &RunDir) -> Result<Vec<PodUid>, GrantError> {
        let path = dir.grants_dir();
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(FileError::io("list", &path, e).into()),
        };
        Ok(entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".json")?.parse().ok())
            .collect())
    }
}

fn issued(dir: &RunDir) -> PathBuf {
    dir.grants_dir().join("issued")
}

fn withheld(dir: &RunDir, uid: &PodUid) -> PathBuf {
    dir.grants_dir().join(format!("{uid}.withheld"))
}

fn remove_file(path: &Path) -> Result<(), GrantError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(FileError::io("remove", path, e).into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_is_for_one_pod() {
        let dir = tempfile::tempdir().unwrap();
        let dir = RunDir::new(dir.path().join("run")).unwrap();
        dir.prepare().unwrap();
        let (mine, other): (PodUid, PodUid) = ("uid-1".parse().unwrap(), "uid-2".parse().unwrap());
        assert_eq!(Grant::read(&dir, &mine).unwrap(), None);
        let container = GrantedContainer {
            name: "main".into(),
            ended: false,
        };
        let grant = Grant::new(
            mine.clone(),
            "default".into(),
            "s".into(),
            "/i".into(),
            "release-1".into(),
            vec![container],
            1,
        );
        grant.write(&dir).unwrap();
        assert_eq!(Grant::read(&dir, &mine).unwrap(), Some(grant));
        assert_eq!(Grant::all(&dir).unwrap(), std::slice::from_ref(&mine));
        std::fs::copy(dir.grant_path(&mine), dir.grant_path(&other)).unwrap();
        assert!(matches!(
            Grant::read(&dir, &other),
            Err(GrantError::Damaged { .. })
        ));
        Grant::remove(&dir, &mine).unwrap();
        Grant::remove(&dir, &mine).unwrap();
        assert_eq!(Grant::read(&dir, &mine).unwrap(), None);
    }
}
