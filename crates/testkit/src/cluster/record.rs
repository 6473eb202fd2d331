//! What a cluster has made, on disk, so that it can be removed by another process.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::slot::{self, Slot};
use crate::built::Built;
use crate::host::ProcessId;

/// The record: `cluster.json` in the cluster's directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) dir: PathBuf,
    pub(super) cgroup: String,
    pub(super) bridge: String,
    /// It stays when the process that has made it ends, until somebody takes it down.
    pub(super) detached: bool,
    /// The programs that it was made of.
    pub(super) stack: PathBuf,
    pub(super) cluster: PathBuf,
    /// The processes that have started the machines' first processes, and end with them.
    pub(super) helpers: Vec<ProcessId>,
}

impl Record {
    pub(super) fn new(slot: &Slot, built: &Built, detached: bool) -> Self {
        Self {
            dir: slot.dir.clone(),
            cgroup: slot.cgroup.clone(),
            bridge: slot.bridge.clone(),
            detached,
            stack: built.stack.clone(),
            cluster: built.cluster.clone(),
            helpers: Vec::new(),
        }
    }

    pub(super) fn save(&self) -> Result<()> {
        let partial = self.dir.join("cluster.json.partial");
        fs::write(&partial, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("write {}", partial.display()))?;
        fs::rename(&partial, self.dir.join("cluster.json")).context("put cluster.json in place")
    }

    /// What the file of that place says, if it is there.
    pub(super) fn read(index: u8) -> Option<Self> {
        let text = fs::read(slot::home().join(index.to_string()).join("cluster.json")).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// The record of an abandoned cluster; names that follow from the place are never taken from the file.
    pub(super) fn of_abandoned(slot: &Slot) -> Self {
        let saved = Self::read(slot.index);
        Self {
            dir: slot.dir.clone(),
            cgroup: slot.cgroup.clone(),
            bridge: slot.bridge.clone(),
            detached: saved.as_ref().is_some_and(|record| record.detached),
            stack: PathBuf::new(),
            cluster: PathBuf::new(),
            helpers: saved.map(|record| record.helpers).unwrap_or_default(),
        }
    }

    /// The machines' directories.
    pub(super) fn machines(&self) -> Vec<PathBuf> {
        let mut dirs: Vec<PathBuf> = fs::read_dir(machines(&self.dir))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect();
        dirs.sort();
        dirs
    }
}

/// Parent of the machines' directories.
pub(super) fn machines(dir: &Path) -> PathBuf {
    dir.join("m")
}
