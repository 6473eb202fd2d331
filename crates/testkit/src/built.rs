//! Where the built parts are.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// Directories with what `cargo xtask` built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// Third-party parts: `bin/` and `images/`. `DORMOUSE_STACK_DIR`, else `target/stack/current`.
    pub stack: PathBuf,
    /// What makes a cluster: `bin/`. `DORMOUSE_CLUSTER_DIR`, else `target/stack/current-cluster`; need not be there.
    pub cluster: PathBuf,
    /// Dormouse's own binaries. `DORMOUSE_BIN_DIR`, else `target/bin/debug`.
    pub bin: PathBuf,
    /// The image of all programs, `dormouse.tar`, and its digest. `DORMOUSE_IMAGE_DIR`, else `target/image`; need not be there.
    pub image: PathBuf,
}

/// The image of all programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its name, without tag or digest.
    pub repository: &'static str,
    /// Its digest, with `sha256:`.
    pub digest: String,
    /// The archive, which [`Cluster::import_image`](crate::Cluster::import_image) takes.
    pub file: PathBuf,
}

impl Built {
    /// Finds both directories and checks that the stack is there.
    ///
    /// # Errors
    /// When the stack has not been built.
    pub fn find() -> Result<Self> {
        let target = target_dir();
        let dir = |variable: &str, default: &str| {
            std::env::var_os(variable).map_or_else(|| target.join(default), PathBuf::from)
        };
        let built = Self {
            stack: dir("DORMOUSE_STACK_DIR", "stack/current"),
            cluster: dir("DORMOUSE_CLUSTER_DIR", "stack/current-cluster"),
            bin: dir("DORMOUSE_BIN_DIR", "bin/debug"),
            image: dir("DORMOUSE_IMAGE_DIR", "image"),
        };
        if !built.stack.join("bin/containerd").is_file() {
            bail!(
                "no containerd in {}: run `cargo xtask stack` first",
                built.stack.join("bin").display()
            );
        }
        Ok(Self {
            stack: built.stack.canonicalize()?,
            ..built
        })
    }

    /// A third-party binary of the stack.
    #[must_use]
    pub fn part(&self, name: &str) -> PathBuf {
        self.stack.join("bin").join(name)
    }

    /// The directory of the binaries that make a cluster.
    ///
    /// # Errors
    /// When they have not been built.
    pub fn cluster_bin(&self) -> Result<PathBuf> {
        let bin = self.cluster.join("bin");
        if !bin.join("kube-apiserver").is_file() {
            bail!(
                "no kube-apiserver in {}: run `cargo xtask stack --cluster` first",
                bin.display()
            );
        }
        Ok(bin.canonicalize()?)
    }

    /// The image of all programs.
    ///
    /// # Errors
    /// When it has not been built.
    pub fn image(&self) -> Result<Image> {
        let (file, digest) = (
            self.image.join("dormouse.tar"),
            self.image.join("dormouse.digest"),
        );
        let Ok(digest) = std::fs::read_to_string(&digest) else {
            bail!(
                "no image in {}: run `cargo xtask image` first",
                self.image.display()
            );
        };
        Ok(Image {
            repository: "localhost/dormouse",
            digest: digest.trim().to_owned(),
            file,
        })
    }

    /// One of Dormouse's own binaries.
    ///
    /// # Errors
    /// When it has not been built.
    pub fn own(&self, name: &str) -> Result<PathBuf> {
        let path = self.bin.join(name);
        if !path.is_file() {
            bail!(
                "no {name} in {}: `cargo xtask test --only node` (or `cluster`) builds it",
                self.bin.display()
            );
        }
        Ok(path)
    }
}

pub(crate) fn target_dir() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    match std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from) {
        Some(dir) if dir.is_absolute() => dir,
        Some(dir) => root.join(dir),
        None => root.join("target"),
    }
}
