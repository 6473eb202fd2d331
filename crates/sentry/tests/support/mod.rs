//! A sandbox of the real runsc, with a cgroup of its own, without containerd.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    dead_code,
    unreachable_pub
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dormouse_sentry::{
    ContainerId, ContainerKind, ContainerRecord, Held, PodRecordIdentity, Record, RunDir, RunscRecord,
    SandboxId, Switch,
};
use serde_json::json;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// The real runsc: `DORMOUSE_RUNSC`, else the built stack's. `None`, and a word about it, where there is none.
pub fn runsc() -> Option<PathBuf> {
    let stack = std::env::var_os("DORMOUSE_STACK_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/stack/current"),
        PathBuf::from,
    );
    let path = std::env::var_os("DORMOUSE_RUNSC").map_or_else(|| stack.join("bin/runsc"), PathBuf::from);
    if !path.exists() || !nix::unistd::geteuid().is_root() {
        eprintln!(
            "SKIPPED: needs root and a runsc (none at {}); run `cargo xtask stack` first",
            path.display()
        );
        return None;
    }
    Some(path.canonicalize().unwrap())
}

pub struct Sandbox {
    pub runsc: PathBuf,
    pub id: SandboxId,
    pub uid: String,
    pub run: RunDir,
    pub root: PathBuf,
    pub dir: tempfile::TempDir,
    top: String,
    subs: Vec<ContainerId>,
}

impl Sandbox {
    /// Only the directories and the root container's bundle.
    pub fn prepare(runsc: &Path) -> Self {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = tempfile::tempdir().unwrap();
        let name = format!("dmt-{}-{n}", std::process::id());
        let uid = format!("{:08x}-0000-4000-8000-{n:012x}", std::process::id());
        let sandbox = Self {
            runsc: runsc.to_owned(),
            id: name.parse().unwrap(),
            uid,
            run: RunDir::new(dir.path().join("run")).unwrap(),
            root: dir.path().join("root"),
            dir,
            top: name,
            subs: Vec::new(),
        };
        sandbox.bundle(sandbox.id.as_str(), "sandbox", &["/bin/sleep", "1000000"]);
        sandbox
    }

    /// A running sandbox.
    pub fn start(runsc: &Path) -> Self {
        let sandbox = Self::prepare(runsc);
        let id = sandbox.id.as_str().to_owned();
        sandbox.create(&sandbox.runsc, &id);
        sandbox.ok(&sandbox.runsc, &["start", &id]);
        sandbox
    }

    pub fn bundle_dir(&self, id: &str) -> PathBuf {
        self.dir.path().join("bundles").join(id)
    }

    /// Writes a bundle whose root file system is the host's, read only.
    pub fn bundle(&self, id: &str, kind: &str, args: &[&str]) {
        let bundle = self.bundle_dir(id);
        std::fs::create_dir_all(&bundle).unwrap();
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {"user": {"uid": 0, "gid": 0}, "args": args, "env": ["PATH=/usr/bin:/bin"], "cwd": "/"},
            "root": {"path": "/", "readonly": true},
            "hostname": "t",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"}
            ],
            "annotations": {
                "io.kubernetes.cri.container-type": kind,
                "io.kubernetes.cri.sandbox-id": self.id.as_str(),
                "io.kubernetes.cri.sandbox-uid": self.uid,
                "io.kubernetes.cri.sandbox-name": "test<&>pod",
                "io.kubernetes.cri.sandbox-namespace": "default",
                "io.kubernetes.cri.container-name": if kind == "sandbox" { "" } else { "app" },
            },
            "linux": {
                "resources": {"memory": {}, "cpu": {"shares": 1024}, "pids": {"limit": 0}, "blockIO": {}},
                "cgroupsPath": format!("/{}/pod{}", self.top, self.uid),
                "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]
            }
        });
        std::fs::write(
            bundle.join("config.json"),
            serde_json::to_vec_pretty(&config).unwrap(),
        )
        .unwrap();
    }

    /// A verb of the real runsc, or of the wrapper.
    pub fn verb(&self, binary: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(binary);
        command
            .arg(format!("--root={}", self.root.display()))
            .arg(format!("--log={}", self.dir.path().join("log.json").display()))
            .args(["--log-format=json", "--network=none", "--overlay2=none"])
            .args(args)
            .stdin(Stdio::null());
        command
    }

    pub fn out(&self, binary: &Path, args: &[&str]) -> Output {
        self.verb(binary, args).output().unwrap()
    }

    pub fn ok(&self, binary: &Path, args: &[&str]) -> String {
        let output = self.out(binary, args);
        assert!(
            output.status.success(),
            "{args:?}: {:?} {} {}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// `create` keeps its stdio for the container: none of it may be a pipe that the test reads.
    pub fn create(&self, binary: &Path, id: &str) {
        let err = self.dir.path().join("create.err");
        let status = self
            .verb(
                binary,
                &[
                    "create",
                    "--bundle",
                    &self.bundle_dir(id).display().to_string(),
                    id,
                ],
            )
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&err).unwrap())
            .status()
            .unwrap();
        assert!(
            status.success(),
            "create {id}: {}",
            std::fs::read_to_string(err).unwrap()
        );
    }

    /// Creates and starts a container in the sandbox.
    pub fn add(&mut self, binary: &Path, id: &str, args: &[&str]) {
        self.bundle(id, "container", args);
        self.subs.push(id.parse().unwrap());
        self.create(binary, id);
        let status = self
            .verb(binary, &["start", id])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "start {id}");
    }

    pub fn identity(&self) -> PodRecordIdentity {
        PodRecordIdentity {
            uid: self.uid.parse().unwrap(),
            name: "test".to_owned(),
            namespace: "default".to_owned(),
        }
    }

    pub fn record(&self) -> Record {
        Record::new(
            self.identity(),
            self.id.clone(),
            self.root.clone(),
            RunscRecord {
                path: self.runsc.clone(),
                version: String::new(),
                oci_version: String::new(),
                file: None,
            },
            true,
        )
    }

    /// Registers the pod as the wrapper would.
    pub fn register(&self) -> Switch {
        let switch = Switch::open(&self.run, &self.id);
        let mut held = switch
            .register(
                self.record(),
                dormouse_sentry::switch::Registration::Born,
                Duration::from_secs(1),
            )
            .unwrap();
        held.put_container(ContainerRecord {
            id: (&self.id).into(),
            name: String::new(),
            kind: ContainerKind::Sandbox,
            bundle: self.bundle_dir(self.id.as_str()),
            last_known: None,
            launch: None,
            ended: None,
            played: false,
        })
        .unwrap();
        switch
    }

    pub fn switch(&self) -> Switch {
        Switch::open(&self.run, &self.id)
    }

    pub fn freezer_dir(&self) -> PathBuf {
        Path::new("/sys/fs/cgroup/freezer")
            .join(&self.top)
            .join(format!("pod{}", self.uid))
            .join("dormouse")
    }

    pub fn sentry_pid(&self) -> Option<i32> {
        let path = self.root.join(format!("{0}_sandbox:{0}.state", self.id));
        let state: serde_json::Value = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        i32::try_from(state["sandbox"]["pid"].as_i64()?)
            .ok()
            .filter(|p| *p > 0)
    }
}

/// Locks, for a test.
pub fn hold(switch: &Switch) -> Held {
    switch.lock(Duration::from_secs(5)).unwrap()
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The sentry's stderr: what it says when it panics.
            let err = std::fs::read_to_string(self.dir.path().join("create.err")).unwrap_or_default();
            eprintln!(
                "sentry of {}: {}",
                self.id,
                err.chars().take(6000).collect::<String>()
            );
        }
        let _ = std::fs::write(self.freezer_dir().join("freezer.state"), "THAWED");
        if let Some(pid) = self.sentry_pid() {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        for id in self
            .subs
            .iter()
            .map(ContainerId::as_str)
            .chain([self.id.as_str()])
        {
            let _ = self.out(&self.runsc, &["delete", "--force", id]);
        }
        // runsc binds an empty network namespace there, which would keep the directory from being removed.
        let _ = nix::mount::umount(&self.root.join("null-netns"));
        for controller in std::fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
        {
            let top = controller.path().join(&self.top);
            let _ = std::fs::remove_dir(top.join(format!("pod{}", self.uid)).join("dormouse"));
            let _ = std::fs::remove_dir(top.join(format!("pod{}", self.uid)));
            let _ = std::fs::remove_dir(top);
        }
    }
}
