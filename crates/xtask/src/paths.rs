//! Where things are: the repository and the build directory.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The two directories that everything else is named from.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    /// The repository's root.
    pub(crate) root: PathBuf,
    /// Cargo's build directory: `CARGO_TARGET_DIR`, else `target` below the root.
    pub(crate) target: PathBuf,
}

impl Paths {
    /// Finds both. Cargo sets `CARGO_MANIFEST_DIR` when it runs a workspace binary.
    pub(crate) fn discover() -> Result<Self> {
        let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest
            .ancestors()
            .find(|dir| dir.join("Cargo.lock").is_file())
            .map(Path::to_path_buf)
            .with_context(|| {
                format!(
                    "no Cargo.lock above {}: start xtask inside the repository",
                    manifest.display()
                )
            })?;
        let target = match std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from) {
            Some(dir) if dir.is_absolute() => dir,
            Some(dir) => root.join(dir),
            None => root.join("target"),
        };
        Ok(Self { root, target })
    }
}
