//! What a stack has made, on disk, so that it can be removed by another process after a crash.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::slot::Slot;
use crate::host::ProcessId;

/// The record: `stack.json` in the stack's directory. Adopted processes are lines of `adopted`, appended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) dir: PathBuf,
    pub(super) cgroup: String,
    pub(super) bridge: String,
    pub(super) network: String,
    pub(super) containerd: Option<ProcessId>,
}

impl Record {
    pub(super) fn new(slot: &Slot) -> Self {
        Self {
            dir: slot.dir.clone(),
            cgroup: slot.cgroup.clone(),
            bridge: slot.bridge.clone(),
            network: network(slot),
            containerd: None,
        }
    }

    pub(super) fn save(&self) -> Result<()> {
        let partial = self.dir.join("stack.json.partial");
        fs::write(&partial, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("write {}", partial.display()))?;
        fs::rename(&partial, self.dir.join("stack.json")).context("put stack.json in place")
    }

    /// The record of an abandoned stack; names that follow from the slot are never taken from the file.
    pub(super) fn load(slot: &Slot) -> Option<Self> {
        let saved = fs::read(slot.dir.join("stack.json"))
            .ok()
            .and_then(|text| serde_json::from_slice::<Self>(&text).ok());
        Some(Self {
            containerd: saved.and_then(|record| record.containerd),
            ..Self::new(slot)
        })
    }

    pub(super) fn adopt(slot: &Slot, process: ProcessId) -> Result<()> {
        use std::io::Write;
        let path = adopted_file(&slot.dir);
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut file| writeln!(file, "{} {}", process.pid, process.start))
            .with_context(|| format!("write {}", path.display()))
    }

    pub(super) fn adopted(&self) -> Vec<ProcessId> {
        fs::read_to_string(adopted_file(&self.dir))
            .unwrap_or_default()
            .lines()
            .filter_map(|line| line.split_once(' '))
            .filter_map(|(pid, start)| {
                Some(ProcessId {
                    pid: pid.parse().ok()?,
                    start: start.parse().ok()?,
                })
            })
            .collect()
    }
}

fn adopted_file(dir: &Path) -> PathBuf {
    dir.join("adopted")
}

/// The CNI network's name, also the key of what CNI leaves in its global cache.
pub(super) fn network(slot: &Slot) -> String {
    format!("dmk{}", slot.index)
}
