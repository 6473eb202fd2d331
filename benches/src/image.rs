//! The files of a snapshot: where they are, out of the page cache and back, and how fast their disk is.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dormouse_rpc::v1;
use dormouse_testkit::Pod;
use dormouse_testkit::host::wait;
use dormouse_testkit::rig::Rig;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::ask::LIMIT;
use crate::samples::ms;

/// Hashes are made at this speed in the background, so that no sample has to wait for them.
pub(crate) const CONFIG: &str = "[snapshots]\nkeep_free_percent = 1\nbackground_mib_per_second = 4000\n";

/// Pieces in which files are read and written.
const PIECE: usize = 1 << 20;

/// A snapshot's files.
#[derive(Debug)]
pub(crate) struct Image {
    files: Vec<PathBuf>,
    pub(crate) bytes: u64,
}

/// Where this rig's agent keeps its snapshots.
pub(crate) fn store(rig: &Rig) -> PathBuf {
    rig.agent.paths().state_dir.join("snapshots")
}

/// Waits until a pod's newest snapshot has its hashes: a sleeper that is woken at once is woken beside its own hashing.
pub(crate) async fn settled(rig: &Rig, pod: &Pod) -> Result<v1::Snapshot> {
    wait::until("the snapshot's hashes", LIMIT, async || {
        let request = v1::ListSnapshotsRequest {
            pod: pod.uid.clone(),
            ..Default::default()
        };
        let answer = rig.client.clone().list_snapshots(request).await?.into_inner();
        let newest = answer.snapshots.into_iter().next().context("no snapshot")?;
        ensure!(newest.state == "Ok", "it is {}", newest.state);
        Ok(newest)
    })
    .await
}

impl Image {
    /// A snapshot of the store.
    pub(crate) fn of(rig: &Rig, snapshot: &v1::Snapshot) -> Result<Self> {
        Self::at(&store(rig).join("snapshots").join(&snapshot.id))
    }

    /// The image in a directory.
    pub(crate) fn at(dir: &Path) -> Result<Self> {
        let entries = fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))?;
        let mut files = Vec::new();
        let mut bytes = 0;
        for entry in entries {
            let entry = entry?;
            // Manifest and marks are neither read by a restore nor ours to open: they are replaced while one looks.
            if entry.path().extension().is_none_or(|kind| kind != "img") {
                continue;
            }
            files.push(entry.path());
            bytes += entry.metadata()?.len();
        }
        Ok(Self { files, bytes })
    }

    /// Takes the files out of the page cache, and no others.
    pub(crate) fn drop_cache(&self) -> Result<()> {
        for path in &self.files {
            let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
            // What is dirty stays.
            file.sync_all()?;
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
                .context("drop a file from the page cache")?;
        }
        Ok(())
    }

    /// Reads all of it, from wherever it is, ms.
    pub(crate) fn read(&self) -> Result<f64> {
        let mut piece = vec![0; PIECE];
        let began = Instant::now();
        for path in &self.files {
            let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
            while file.read(&mut piece)? > 0 {}
        }
        Ok(ms(began.elapsed()))
    }

    /// How long the disk takes for as many bytes of the same kind, until they are durable, ms.
    pub(crate) fn write_copy(&self, beside: &Path) -> Result<f64> {
        let mut contents = Vec::new();
        for path in &self.files {
            contents.push(fs::read(path).with_context(|| format!("read {}", path.display()))?);
        }
        let path = beside.join("throughput");
        let began = Instant::now();
        let mut file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        for content in &contents {
            for piece in content.chunks(PIECE) {
                file.write_all(piece)?;
            }
        }
        file.sync_all()?;
        let took = ms(began.elapsed());
        fs::remove_file(&path)?;
        Ok(took)
    }
}

/// Ends what a client left open, and what a guest does after its answer.
pub(crate) async fn rest() {
    tokio::time::sleep(Duration::from_millis(200)).await;
}
