//! What the tests on the real kernel need: a pod's cgroup, a process in it, swap.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    dead_code,
    unreachable_pub
)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use dormouse_runtime::{Guest, PodIdentity};
use dormouse_testkit::memory;
use dormouse_testkit::swap::{self, TestSwap};
use nix::fcntl::{Flock, FlockArg};

/// An example of this crate, built with its tests.
pub fn example(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let path = own
        .parent()
        .and_then(Path::parent)
        .unwrap()
        .join("examples")
        .join(name);
    assert!(
        path.exists(),
        "{} is not built; run `cargo build -p dormouse-runtime --examples`",
        path.display()
    );
    path
}

/// Swap for the time of a test: a file of that many MiB. Tests that use swap run one at a time on a machine.
pub struct Swap {
    _area: TestSwap,
    _alone: Flock<fs::File>,
}

impl Swap {
    pub fn on(mib: u64) -> Self {
        let lock = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open("/tmp/swap.lock")
            .unwrap();
        let alone = Flock::lock(lock, FlockArg::LockExclusive)
            .map_err(|e| e.1)
            .unwrap();
        // A test that was killed leaves its swap on: the kernel does not end it with the process.
        swap::sweep();
        Self {
            _area: TestSwap::file(mib << 20, 1).unwrap(),
            _alone: alone,
        }
    }

    /// The node's only swap, of that many MiB; `None` where the node has swap of its own, which is never touched.
    pub fn only(mib: u64) -> Option<Self> {
        let own = Self::on(mib);
        let areas = memory::swaps().unwrap();
        if areas.len() == 1 {
            return Some(own);
        }
        assert!(std::env::var_os("CI").is_none(), "{areas:?}");
        eprintln!("skipped: this node has swap of its own: {areas:?}");
        None
    }
}

/// A pod's cgroup on cgroup v1, with a container level below it.
pub struct Pod {
    pub uid: String,
    dirs: Vec<PathBuf>,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Pod {
    pub fn make() -> Self {
        let uid = format!(
            "{:08x}-{:04x}-4000-8000-000000000000",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let dirs: Vec<PathBuf> = ["memory", "freezer", "cpuacct"]
            .iter()
            .map(|c| PathBuf::from(format!("/sys/fs/cgroup/{c}/dormouse-test/pod{uid}")))
            .collect();
        for dir in &dirs {
            fs::create_dir_all(dir.join("main")).unwrap();
        }
        Self { uid, dirs }
    }

    pub fn memory(&self, file: &str) -> PathBuf {
        self.dirs[0].join(file)
    }

    pub fn read(&self, file: &str) -> String {
        fs::read_to_string(self.memory(file)).unwrap().trim().to_owned()
    }

    pub fn guest(&self, pid: u32) -> Guest {
        Guest {
            pod: PodIdentity {
                uid: self.uid.clone(),
                name: "p".into(),
                namespace: "n".into(),
            },
            sandbox_id: format!("s{}", self.uid),
            sandbox_pid: i32::try_from(pid).unwrap(),
            containers: Vec::new(),
            cgroup_parent: String::new(),
            netns: None,
            runtime_roots: Vec::new(),
        }
    }

    /// Starts a program inside the container's level.
    pub fn start(&self, program: &Path, args: &[&str]) -> Child {
        let enter: String = self
            .dirs
            .iter()
            .map(|d| format!("echo $$ > {}/main/cgroup.procs; ", d.display()))
            .collect();
        Command::new("sh")
            .arg("-c")
            .arg(format!("{enter} exec \"$@\""))
            .arg("sh")
            .arg(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = fs::write(self.dirs[1].join("freezer.state"), "THAWED");
        let deadline = Instant::now() + Duration::from_secs(5);
        for dir in &self.dirs {
            // The kernel needs a moment after the last process.
            while fs::remove_dir(dir.join("main")).is_err() && dir.exists() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
            let _ = fs::remove_dir(dir);
            let _ = fs::remove_dir(dir.parent().unwrap());
        }
    }
}

/// A process that holds memory and can tell its hash.
pub struct Hog {
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
    freezer: PathBuf,
}

impl Hog {
    pub fn start(pod: &Pod, mib: u64) -> Self {
        let mut child = pod.start(&example("hog"), &[&mib.to_string()]);
        let ask = child.stdin.take().unwrap();
        let mut answers = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self {
            child,
            ask,
            answers,
            freezer: pod.dirs[1].join("freezer.state"),
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The hash of its memory, and how often its thread has ticked.
    pub fn hash(&mut self) -> (String, u64) {
        self.ask.write_all(b"\n").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let (hash, ticks) = line.trim().split_once(' ').unwrap();
        (hash.to_owned(), ticks.parse().unwrap())
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        // A frozen process cannot die on cgroup v1.
        let _ = fs::write(&self.freezer, "THAWED");
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until something is so, for 10 s at most.
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !so() {
        assert!(Instant::now() < deadline, "{what} did not come about in 10 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}
