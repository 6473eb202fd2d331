//! What a guest may hold and be connected to when it is saved: each of it is there when it is made again.

mod bulk;
mod restart;
mod sessions;
mod streams;
mod volumes;
mod world;

use std::path::{Path, PathBuf};

use dormouse_testkit::rig::Rig;
use dormouse_testkit::{Pod, PodSpec};

use crate::hibernate::connected;
use crate::support::LIMIT;

/// Runs a pod whose connections survive, and waits until its guest answers.
async fn run(rig: &Rig, spec: PodSpec) -> Pod {
    let pod = rig.run_pod(connected(spec)).await.unwrap();
    pod.wait_http(8080, "/answer", LIMIT).await.unwrap();
    pod
}

/// A folder as kubelet makes them of ConfigMaps and projected tokens: files are links through `..data`, which is
/// exchanged whole.
pub(crate) struct Projected {
    dir: PathBuf,
    version: u32,
}

impl Projected {
    pub(crate) fn new(dir: &Path) -> Self {
        let mut projected = Self {
            dir: dir.to_owned(),
            version: 0,
        };
        std::fs::create_dir_all(dir).unwrap();
        projected.rotate("token 0");
        std::os::unix::fs::symlink("..data/token", dir.join("token")).unwrap();
        projected
    }

    /// One that is there and has been rotated so many times.
    pub(crate) fn at(dir: &Path, version: u32) -> Self {
        Self {
            dir: dir.to_owned(),
            version,
        }
    }

    /// Puts another text in the place of the one before, which is removed.
    pub(crate) fn rotate(&mut self, text: &str) {
        let old = self.dir.join(format!("..version{}", self.version));
        self.version += 1;
        let name = format!("..version{}", self.version);
        std::fs::create_dir(self.dir.join(&name)).unwrap();
        std::fs::write(self.dir.join(&name).join("token"), text).unwrap();
        std::os::unix::fs::symlink(&name, self.dir.join("..data_tmp")).unwrap();
        std::fs::rename(self.dir.join("..data_tmp"), self.dir.join("..data")).unwrap();
        if old.exists() {
            std::fs::remove_dir_all(old).unwrap();
        }
    }
}
