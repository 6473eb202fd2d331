//! The store on a real file system, healthy and not.

mod archive;
mod encrypted;
mod faults;
mod faulty;
mod hostile;
mod life;
mod pace;
mod room;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::*;
use crate::compat::{CompatibilityKey, ContainerKey};
use crate::hash::{Budget, CHUNK};
use crate::manifest::SandboxRef;

pub(crate) const BOOT: &str = "boot-1";
pub(crate) const GIB: u64 = 1 << 30;

/// A store in a directory that goes away with it; in memory, where a sync costs nothing.
pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self {
            dir: tempfile::tempdir_in("/dev/shm").unwrap(),
        }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    pub(crate) fn options(&self) -> StoreOptions {
        StoreOptions {
            node: "node-1".into(),
            high_water: HighWater {
                free_bytes: 0,
                free_percent: 0,
            },
            ..StoreOptions::new(self.root(), BOOT)
        }
    }

    pub(crate) fn open(&self) -> Store {
        Store::open(self.options()).unwrap()
    }
}

pub(crate) fn key() -> CompatibilityKey {
    CompatibilityKey {
        runtime: "gvisor".into(),
        runtime_version: "release-20260905.0".into(),
        arch: "x86_64".into(),
        cpu_features: vec!["avx2".into(), "sse2".into()],
        network: "sandbox".into(),
        containers: vec![
            ContainerKey {
                name: String::new(),
                image: String::new(),
            },
            ContainerKey {
                name: "main".into(),
                image: "sha256:1".into(),
            },
        ],
    }
}

pub(crate) fn draft(pod: &str) -> Draft {
    Draft {
        sandbox: SandboxRef {
            pod_uid: pod.into(),
            name: format!("name-{pod}"),
            namespace: "default".into(),
        },
        template_hash: None,
        key: key(),
        parent: None,
        taken: Taken::Hibernate,
        restore: serde_json::json!({"address": "10.0.0.2/24"}),
        memory: BTreeMap::from([("anonymous".into(), 5)]),
        files: Draft::gvisor_files(),
        hold: None,
    }
}

pub(crate) fn header() -> Vec<u8> {
    let json = serde_json::json!({
        "runsc_version": "release-20260905.0",
        "container_count": "2",
        "container_specs": "{\"__no_name_0\":{},\"main\":{}}",
        "network": "sandbox",
        "compression": "none",
    })
    .to_string();
    let mut data = b"gVisorSF".to_vec();
    data.extend((json.len() as u64).to_be_bytes());
    data.extend(json.as_bytes());
    data
}

/// Pages of a guest: the first half noise, then zeros, then a tail that is no whole page.
pub(crate) fn pages(seed: u8) -> Vec<u8> {
    let mut data: Vec<u8> = (0..CHUNK + 5000)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 7) as u8 ^ seed | 1)
        .collect();
    data.resize(data.len() + 2 * CHUNK as usize, 0);
    data.extend([seed; 100]);
    data
}

/// Writes what a runsc would.
pub(crate) fn write_image(dir: &Path, seed: u8) {
    let mut checkpoint = header();
    checkpoint.extend([seed; 1000]);
    for (name, data) in [
        ("checkpoint.img", checkpoint),
        ("pages_meta.img", vec![seed; 300]),
        ("pages.img", pages(seed)),
    ] {
        fs::File::create(dir.join(name))
            .unwrap()
            .write_all(&data)
            .unwrap();
    }
}

pub(crate) fn request() -> ReserveRequest {
    ReserveRequest {
        namespace: "default".into(),
        expected_bytes: 20 << 20,
    }
}

pub(crate) fn staged(store: &Store, seed: u8, now_ms: u64) -> Staging {
    let staging = store.reserve(&request(), now_ms).unwrap().stage(None).unwrap();
    write_image(staging.dir(), seed);
    staging
}

pub(crate) fn committed(store: &Store, pod: &str, now_ms: u64) -> SnapshotId {
    let validated = staged(store, 7, now_ms).validate(draft(pod)).unwrap();
    validated.commit(Budget::default(), now_ms).unwrap().id()
}

pub(crate) fn wake(pod: &str) -> OpenRequest<'_> {
    OpenRequest {
        purpose: Purpose::Wake {
            pod_uid: pod,
            namespace: "default",
        },
        verify: VerifyOnWake::Auto,
        facts: None,
        memory: None,
        budget: Budget::default(),
        now_ms: 50,
    }
}

/// Everything below a directory, with sizes.
pub(crate) fn tree(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let Ok(entries) = fs::read_dir(dir) else {
        return all;
    };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(tree(&path));
        }
        all.push(path);
    }
    all.sort();
    all
}
