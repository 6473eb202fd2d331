//! The run directory: where the agent and the wrapper keep what both must know.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use dormouse_core::Reason;

use crate::file::{FileError, temporary};
use crate::ids::{ContainerId, PodUid, SandboxId};

/// Where the run directory is unless the configuration says otherwise.
pub const DEFAULT_RUN_DIR: &str = "/run/dormouse";

/// The run directory could not be used.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// The path is not absolute.
    #[error("run directory {} is not an absolute path; set run_dir to one below /run", path.display())]
    NotAbsolute {
        /// The path.
        path: PathBuf,
    },
    /// Somebody else than root could write there.
    #[error("{} belongs to uid {uid} with mode {mode:o}; it must belong to this process's user and be writable for nobody else", path.display())]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// Who owns it.
        uid: u32,
        /// Its permissions.
        mode: u32,
    },
    /// A container's link points to something that is no pod sandbox of this directory.
    #[error("{} is no link to a pod's directory", path.display())]
    BadLink {
        /// The link.
        path: PathBuf,
    },
    /// The kernel refused.
    #[error(transparent)]
    File(#[from] FileError),
}

impl RunDirError {
    /// The stable code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::BadLink { .. } | Self::Unsafe { .. } => Reason::RecordUnreadable,
            Self::NotAbsolute { .. } => Reason::InvalidRequest,
            Self::File(_) => Reason::RecordUnwritable,
        }
    }
}

/// The run directory.
///
/// ```text
/// <run dir>/                       0700, tmpfs
///   wake.sock                      the agent's datagram socket
///   pods/<sandbox id>/lock         the pod's lock (flock)
///   pods/<sandbox id>/record.json  the pod's record
///   pods/<sandbox id>/visits       commands that talk to the guest now (fcntl)
///   pods/<sandbox id>/working-set.json  what a doze leaves in memory
///   containers/<container id>      -> ../pods/<sandbox id>
///   pods/<sandbox id>/identity/    what the containers see of who the pod is, where they asked for it
///   hold/<sandbox id>-<container id>  the socket of a container's waiter
///   grants/<pod uid>.json          leave to fill a new pod from a snapshot
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDir {
    root: PathBuf,
}

impl RunDir {
    /// Names a run directory; touches nothing.
    ///
    /// # Errors
    /// [`RunDirError::NotAbsolute`]
    pub fn new(root: impl Into<PathBuf>) -> Result<Self, RunDirError> {
        let root = root.into();
        if root.is_absolute() {
            Ok(Self { root })
        } else {
            Err(RunDirError::NotAbsolute { path: root })
        }
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// The agent's datagram socket.
    #[must_use]
    pub fn wake_socket(&self) -> PathBuf {
        self.root.join("wake.sock")
    }

    /// Makes the directory and its two parts where they are missing, 0700, and checks that nobody else can
    /// write there.
    ///
    /// # Errors
    /// [`RunDirError::Unsafe`], [`RunDirError::File`]
    pub fn prepare(&self) -> Result<(), RunDirError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.root)
            .map_err(|e| FileError::io("create", &self.root, e))?;
        let meta = std::fs::symlink_metadata(&self.root).map_err(|e| FileError::io("stat", &self.root, e))?;
        let mode = meta.permissions().mode() & 0o7777;
        if !meta.is_dir() || meta.uid() != nix::unistd::geteuid().as_raw() || mode & 0o022 != 0 {
            return Err(RunDirError::Unsafe {
                path: self.root.clone(),
                uid: meta.uid(),
                mode,
            });
        }
        for part in [
            self.pods_dir(),
            self.containers_dir(),
            self.root.join("hold"),
            self.grants_dir(),
        ] {
            make_dir(&part)?;
        }
        Ok(())
    }

    fn pods_dir(&self) -> PathBuf {
        self.root.join("pods")
    }

    fn containers_dir(&self) -> PathBuf {
        self.root.join("containers")
    }

    /// The directory of a pod sandbox.
    #[must_use]
    pub fn pod_dir(&self, id: &SandboxId) -> PathBuf {
        self.pods_dir().join(id.as_str())
    }

    /// The lock file of a pod sandbox.
    #[must_use]
    pub fn lock_path(&self, id: &SandboxId) -> PathBuf {
        self.pod_dir(id).join("lock")
    }

    /// The file on which commands that talk to a pod sandbox's guest announce themselves.
    #[must_use]
    pub fn visits_path(&self, id: &SandboxId) -> PathBuf {
        self.pod_dir(id).join("visits")
    }

    /// Where the driver keeps what a doze leaves in memory of a pod sandbox's guest.
    #[must_use]
    pub fn working_set_path(&self, id: &SandboxId) -> PathBuf {
        self.pod_dir(id).join("working-set.json")
    }

    /// The socket of whoever waits for a container on the shim's behalf ([`crate::hold`]). A container's id has 64
    /// characters and a socket's address 108 bytes, so the name is cut; within one pod that is enough.
    #[must_use]
    pub fn hold_path(&self, id: &SandboxId, container: &ContainerId) -> PathBuf {
        let name: String = container.as_str().chars().take(12).collect();
        self.root.join("hold").join(format!(
            "{}-{name}",
            id.as_str().chars().take(12).collect::<String>()
        ))
    }

    /// The record of a pod sandbox.
    #[must_use]
    pub fn record_path(&self, id: &SandboxId) -> PathBuf {
        self.pod_dir(id).join("record.json")
    }

    /// What the containers of a pod sandbox see of who it is.
    #[must_use]
    pub fn identity_dir(&self, id: &SandboxId) -> PathBuf {
        self.pod_dir(id).join("identity")
    }

    /// Where grants are.
    #[must_use]
    pub fn grants_dir(&self) -> PathBuf {
        self.root.join("grants")
    }

    /// The grant of a pod.
    #[must_use]
    pub fn grant_path(&self, uid: &PodUid) -> PathBuf {
        self.grants_dir().join(format!("{uid}.json"))
    }

    fn container_link(&self, id: &ContainerId) -> PathBuf {
        self.containers_dir().join(id.as_str())
    }

    /// The pod sandbox that a container belongs to; `None` for a container that nobody registered.
    ///
    /// # Errors
    /// [`RunDirError::BadLink`], [`RunDirError::File`]
    pub fn find(&self, container: &ContainerId) -> Result<Option<SandboxId>, RunDirError> {
        let path = self.container_link(container);
        let target = match std::fs::read_link(&path) {
            Ok(target) => target,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => return Err(RunDirError::BadLink { path }),
            Err(e) => return Err(FileError::io("read", &path, e).into()),
        };
        target
            .strip_prefix("../pods")
            .ok()
            .and_then(Path::to_str)
            .and_then(|name| name.parse().ok())
            .map(Some)
            .ok_or(RunDirError::BadLink { path })
    }

    /// Every pod sandbox that has a directory; entries that are no pod sandbox ids are passed over.
    ///
    /// # Errors
    /// [`RunDirError::File`]
    pub fn pods(&self) -> Result<Vec<SandboxId>, RunDirError> {
        let path = self.pods_dir();
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(FileError::io("list", &path, e).into()),
        };
        let mut pods = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| FileError::io("list", &path, e))?;
            if let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
                pods.push(id);
            }
        }
        pods.sort();
        Ok(pods)
    }

    /// Makes the directory of a pod sandbox.
    pub(crate) fn make_pod_dir(&self, id: &SandboxId) -> Result<(), RunDirError> {
        make_dir(&self.pod_dir(id))
    }

    /// Says that a container belongs to a pod sandbox.
    pub(crate) fn link(&self, container: &ContainerId, pod: &SandboxId) -> Result<(), RunDirError> {
        let path = self.container_link(container);
        let target = Path::new("../pods").join(pod.as_str());
        match symlink(&target, &path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                if self.find(container)?.as_ref() == Some(pod) {
                    return Ok(());
                }
                std::fs::remove_file(&path).map_err(|e| FileError::io("remove", &path, e))?;
                symlink(&target, &path).map_err(|e| FileError::io("link", &path, e).into())
            }
            other => other.map_err(|e| FileError::io("link", &path, e).into()),
        }
    }

    /// Forgets a container.
    pub(crate) fn unlink(&self, container: &ContainerId) -> Result<(), RunDirError> {
        remove(&self.container_link(container), |p| std::fs::remove_file(p))
    }

    /// Removes a pod sandbox's directory; the caller holds its lock.
    pub(crate) fn remove_pod(&self, id: &SandboxId) -> Result<(), RunDirError> {
        let record = self.record_path(id);
        let working_set = self.working_set_path(id);
        for path in [
            &record,
            &temporary(&record),
            &working_set,
            &temporary(&working_set),
            &self.visits_path(id),
        ] {
            remove(path, |p| std::fs::remove_file(p))?;
        }
        remove(&self.identity_dir(id), |p| std::fs::remove_dir_all(p))?;
        // The lock goes last: whoever waits for it finds that it is no longer the one at its path.
        remove(&self.lock_path(id), |p| std::fs::remove_file(p))?;
        remove(&self.pod_dir(id), |p| std::fs::remove_dir(p))
    }
}

fn make_dir(path: &Path) -> Result<(), RunDirError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(FileError::io("create", path, e).into()),
        _ => Ok(()),
    }
}

fn remove(path: &Path, how: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), RunDirError> {
    match how(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(FileError::io("remove", path, e).into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_forgets() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::new(dir.path().join("run")).unwrap();
        run.prepare().unwrap();
        run.prepare().unwrap();
        let (a, b): (SandboxId, SandboxId) = ("aa".parse().unwrap(), "bb".parse().unwrap());
        let c: ContainerId = "c1".parse().unwrap();
        assert_eq!(run.find(&c).unwrap(), None);
        run.make_pod_dir(&a).unwrap();
        run.link(&c, &a).unwrap();
        run.link(&c, &a).unwrap();
        assert_eq!(run.find(&c).unwrap(), Some(a.clone()));
        run.link(&c, &b).unwrap();
        assert_eq!(run.find(&c).unwrap(), Some(b));
        run.unlink(&c).unwrap();
        run.unlink(&c).unwrap();
        assert_eq!(run.find(&c).unwrap(), None);
        assert_eq!(run.pods().unwrap(), vec![a.clone()]);
        run.remove_pod(&a).unwrap();
        run.remove_pod(&a).unwrap();
        assert!(run.pods().unwrap().is_empty());
    }

    #[test]
    fn refuses_links_that_lead_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::new(dir.path().join("run")).unwrap();
        run.prepare().unwrap();
        let c: ContainerId = "c1".parse().unwrap();
        for target in [
            "/etc",
            "../pods",
            "../pods/a/b",
            "../pods/..",
            "../../x",
            "pods/a",
        ] {
            let link = dir.path().join("run/containers/c1");
            let _ = std::fs::remove_file(&link);
            symlink(target, &link).unwrap();
            assert!(
                matches!(run.find(&c), Err(RunDirError::BadLink { .. })),
                "{target}"
            );
        }
    }

    #[test]
    fn refuses_a_directory_that_others_can_write() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("run");
        std::fs::create_dir(&root).unwrap();
        std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(
            RunDir::new(&root).unwrap().prepare(),
            Err(RunDirError::Unsafe { .. })
        ));
        assert!(matches!(
            RunDir::new("relative"),
            Err(RunDirError::NotAbsolute { .. })
        ));
    }
}
