//! What a sandbox that did not come up leaves in the way of the next one: gVisor keeps what containers write in a file
//! beside what they read, and refuses a mount that has one already.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::file::read_bounded;
use crate::record::Record;

/// The largest bundle configuration, in bytes.
const CONFIG: usize = 16 << 20;

/// The shim's annotations with the source of a volume that the sandbox keeps in memory.
const MOUNT_PREFIX: &str = "dev.gvisor.spec.mount.";

/// Removes the files of a pod whose sandbox is gone. What cannot be removed the next `create` complains of.
pub fn remove(record: &Record) {
    let file = format!(".gvisor.filestore.{}", record.sandbox_id);
    for container in &record.containers {
        let _ = std::fs::remove_file(container.bundle.join("rootfs").join(&file));
        for volume in volumes(&container.bundle) {
            let _ = std::fs::remove_file(volume.join(&file));
        }
    }
}

fn volumes(bundle: &Path) -> Vec<PathBuf> {
    #[derive(Deserialize)]
    struct Config {
        #[serde(default)]
        annotations: BTreeMap<String, String>,
    }
    let config = read_bounded(&bundle.join("config.json"), CONFIG)
        .ok()
        .and_then(|text| serde_json::from_slice::<Config>(&text).ok());
    config
        .map(|config| config.annotations)
        .unwrap_or_default()
        .into_iter()
        .filter(|(key, _)| key.starts_with(MOUNT_PREFIX) && key.ends_with(".source"))
        .map(|(_, source)| PathBuf::from(source))
        .filter(|source| source.is_absolute())
        .collect()
}
