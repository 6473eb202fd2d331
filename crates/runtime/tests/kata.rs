//! The Kata driver on a containerd task API that behaves as the shims were seen to, and its page-out on a real QEMU.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use containerd_client::services::v1::{GetRequest, GetResponse, PauseTaskRequest, ResumeTaskRequest};
use containerd_client::types::v1::{Process, Status as TaskStatus};
use dormouse_core::{Reason, WakeSource};
use dormouse_runtime::{Cancel, Driver, Guest, GuestContainer, Kata, PodIdentity, StopState};
use support::{Swap, until};
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// Which shim is played.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Shim {
    /// Refuses what is not running or not paused.
    Go,
    /// Says yes and only logs a warning.
    RuntimeRs,
}

struct Node {
    shim: Shim,
    tasks: BTreeMap<String, TaskStatus>,
    pid: u32,
    latency: Duration,
    calls: Vec<String>,
    /// The next pause of this container ends it instead.
    dies: Option<String>,
    /// Every pause of this container fails.
    broken: Option<String>,
}

#[derive(Clone)]
struct Api(Arc<Mutex<Node>>);

impl Api {
    fn status(&self, id: &str) -> TaskStatus {
        self.0.lock().unwrap().tasks[id]
    }

    fn set(&self, id: &str, status: TaskStatus) {
        self.0.lock().unwrap().tasks.insert(id.into(), status);
    }

    fn count(&self, call: &str) -> usize {
        self.0.lock().unwrap().calls.iter().filter(|c| *c == call).count()
    }

    fn get(&self, id: &str) -> Result<GetResponse, Status> {
        let node = self.0.lock().unwrap();
        let status = *node
            .tasks
            .get(id)
            .ok_or_else(|| Status::not_found("process does not exist"))?;
        let process = Process {
            container_id: id.into(),
            pid: node.pid,
            status: status.into(),
            ..Process::default()
        };
        Ok(GetResponse {
            process: Some(process),
        })
    }

    fn change(
        &self,
        call: &str,
        id: &str,
        from: TaskStatus,
        to: TaskStatus,
        words: &str,
    ) -> Result<(), Status> {
        let mut node = self.0.lock().unwrap();
        node.calls.push(format!("{call} {id}"));
        if call == "pause" && node.broken.as_deref() == Some(id) {
            return Err(Status::unknown("ttrpc: closed"));
        }
        if call == "pause" && node.dies.as_deref() == Some(id) {
            node.tasks.insert(id.into(), TaskStatus::Stopped);
        }
        let now = *node
            .tasks
            .get(id)
            .ok_or_else(|| Status::not_found("process does not exist"))?;
        if now == from {
            node.tasks.insert(id.into(), to);
            return Ok(());
        }
        match node.shim {
            Shim::Go => Err(Status::unknown(words)),
            Shim::RuntimeRs => Ok(()),
        }
    }
}

macro_rules! method {
    ($name:ident, $request:ty => $response:ty, $api:ident, $message:ident, $do:expr) => {
        struct $name(Api);
        impl UnaryService<$request> for $name {
            type Response = $response;
            type Future = BoxFuture<Response<$response>, Status>;
            fn call(&mut self, request: Request<$request>) -> Self::Future {
                let $api = self.0.clone();
                Box::pin(async move {
                    assert_eq!(
                        request.metadata().get("containerd-namespace").unwrap(),
                        "k8s.io"
                    );
                    let latency = $api.0.lock().unwrap().latency;
                    tokio::time::sleep(latency).await;
                    let $message = request.into_inner();
                    $do.map(Response::new)
                })
            }
        }
    };
}

method!(Get, GetRequest => GetResponse, api, m, api.get(&m.container_id));
method!(Pause, PauseTaskRequest => (), api, m, api.change("pause", &m.container_id, TaskStatus::Running,
    TaskStatus::Paused, "Container not running, impossible to pause"));
method!(Resume, ResumeTaskRequest => (), api, m, api.change("resume", &m.container_id, TaskStatus::Paused,
    TaskStatus::Running, "Container not paused, impossible to resume"));

impl NamedService for Api {
    const NAME: &'static str = "containerd.services.tasks.v1.Tasks";
}

impl Service<http::Request<Body>> for Api {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let api = self.clone();
        Box::pin(async move {
            let path = request.uri().path().to_owned();
            Ok(match path.rsplit('/').next().unwrap() {
                "Get" => Grpc::new(ProstCodec::default()).unary(Get(api), request).await,
                "Pause" => Grpc::new(ProstCodec::default()).unary(Pause(api), request).await,
                "Resume" => Grpc::new(ProstCodec::default()).unary(Resume(api), request).await,
                other => panic!("unexpected call {other}"),
            })
        })
    }
}

struct World {
    dir: tempfile::TempDir,
    api: Api,
    driver: Kata,
    guest: Guest,
}

fn world(shim: Shim) -> World {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("containerd.sock");
    let tasks = [
        ("sb", TaskStatus::Running),
        ("a", TaskStatus::Running),
        ("b", TaskStatus::Running),
    ];
    let api = Api(Arc::new(Mutex::new(Node {
        shim,
        tasks: tasks.into_iter().map(|(id, s)| (id.to_owned(), s)).collect(),
        pid: 0,
        latency: Duration::from_millis(2),
        calls: Vec::new(),
        dies: None,
        broken: None,
    })));
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(api.clone())
            .serve_with_incoming(incoming),
    );
    let container = |id: &str| GuestContainer {
        id: id.into(),
        name: id.into(),
        pid: 0,
    };
    let guest = Guest {
        pod: PodIdentity {
            uid: "00000000-0000-4000-8000-000000000000".into(),
            name: "p".into(),
            namespace: "n".into(),
        },
        sandbox_id: "sb".into(),
        sandbox_pid: 0,
        containers: vec![container("a"), container("b")],
        cgroup_parent: String::new(),
        netns: None,
        runtime_roots: Vec::new(),
    };
    let driver = Kata::new(&socket, dir.path());
    World {
        dir,
        api,
        driver,
        guest,
    }
}

#[tokio::test]
async fn every_container_is_paused_and_resumed_once_and_the_sandbox_never() {
    for shim in [Shim::Go, Shim::RuntimeRs] {
        let w = world(shim);
        for _ in 0..3 {
            w.driver.freeze(&w.guest).await.unwrap();
        }
        assert_eq!(w.driver.probe(&w.guest).await.unwrap().stop, StopState::Frozen);
        for _ in 0..3 {
            w.driver.wake(&w.guest).await.unwrap();
        }
        let probe = w.driver.probe(&w.guest).await.unwrap();
        assert_eq!((probe.stop, probe.settled), (StopState::Running, false));
        for call in ["pause a", "pause b", "resume a", "resume b"] {
            assert_eq!(w.api.count(call), 1, "{shim:?} {call}");
        }
        assert_eq!(w.api.0.lock().unwrap().calls.len(), 4);
        assert!(!w.driver.capabilities(&w.guest).await.survives_runtime_restart);
    }
}

#[tokio::test]
async fn a_container_that_ends_meanwhile_is_no_failure() {
    for shim in [Shim::Go, Shim::RuntimeRs] {
        let w = world(shim);
        w.api.0.lock().unwrap().dies = Some("a".into());
        w.driver.freeze(&w.guest).await.unwrap();
        assert_eq!(
            (w.api.status("a"), w.api.status("b")),
            (TaskStatus::Stopped, TaskStatus::Paused)
        );
        w.driver.wake(&w.guest).await.unwrap();
        w.api.set("b", TaskStatus::Stopped);
        assert_eq!(
            w.driver.probe(&w.guest).await.unwrap_err().reason,
            Reason::GuestGone
        );
        assert_eq!(
            w.driver.freeze(&w.guest).await.unwrap_err().reason,
            Reason::PodNotReady
        );
    }
}

#[tokio::test]
async fn a_container_that_cannot_be_paused_lets_the_others_run() {
    let w = world(Shim::Go);
    w.api.0.lock().unwrap().broken = Some("b".into());
    let error = w.driver.freeze(&w.guest).await.unwrap_err();
    assert_eq!(
        (error.reason, error.state),
        (Reason::RuntimeCallFailed, Some(StopState::Running)),
        "{error}"
    );
    assert_eq!(w.api.status("a"), TaskStatus::Running);
}

#[tokio::test]
async fn what_a_dead_agent_left_half_asleep_runs_again() {
    let w = world(Shim::Go);
    w.api.set("b", TaskStatus::Paused);
    let probe = w.driver.probe(&w.guest).await.unwrap();
    assert_eq!((probe.stop, probe.settled), (StopState::Running, true));
    assert_eq!(w.api.status("b"), TaskStatus::Running);
}

#[tokio::test]
async fn a_running_pod_is_not_paged_out_and_no_containerd_is_an_error() {
    let w = world(Shim::Go);
    assert_eq!(
        w.driver.doze(&w.guest, &Cancel::new()).await.unwrap_err().reason,
        Reason::WakeWon
    );
    let nobody = Kata::new(w.dir.path().join("none.sock"), w.dir.path());
    assert_eq!(
        nobody.freeze(&w.guest).await.unwrap_err().reason,
        Reason::RuntimeUnavailable
    );
}

/// A QEMU whose guest memory is shared and deleted, as Kata's is.
struct Qemu {
    child: Child,
    memory: File,
}

const QEMU: &str = "/usr/bin/qemu-system-x86_64";
const MIB: u64 = 1 << 20;
const RAM: u64 = 256;

impl Qemu {
    fn start(id: &str) -> Self {
        let path = PathBuf::from(format!("/dev/shm/qemu_back_mem.{id}"));
        let memory = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        let mut random = vec![0_u8; (RAM * MIB) as usize];
        std::io::Read::read_exact(&mut File::open("/dev/urandom").unwrap(), &mut random).unwrap();
        memory.write_all_at(&random, 0).unwrap();
        let child = Command::new(QEMU)
            .args([
                "-machine",
                "q35,accel=tcg,memory-backend=dimm1",
                "-m",
                &format!("{RAM}M"),
                "-nodefaults",
            ])
            .args(["-name", &format!("sandbox-{id}"), "-display", "none", "-object"])
            .arg(format!(
                "memory-backend-file,id=dimm1,mem-path={},size={RAM}M,share=on,prealloc=on",
                path.display()
            ))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let qemu = Self { child, memory };
        until("all of QEMU's memory resident", || {
            qemu.resident() > (RAM - 1) * MIB
        });
        fs::remove_file(&path).unwrap();
        qemu
    }

    fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status
            .lines()
            .find_map(|l| l.strip_prefix("RssShmem:"))
            .unwrap_or("0 kB");
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    /// A hash of the memory that the firmware leaves alone: it keeps its tables right below the last 16 MiB, and may
    /// write them at any time after the start.
    fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let mut buffer = vec![0; MIB as usize];
        for mib in 16..RAM - 32 {
            self.memory.read_exact_at(&mut buffer, mib * MIB).unwrap();
            hasher.write(&buffer);
        }
        hasher.finish()
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_monitor_of_a_real_virtual_machine_is_paged_out_and_back() {
    if !PathBuf::from(QEMU).exists() {
        eprintln!(
            "SKIPPED: {QEMU} is missing; `cargo xtask test` installs it (apt-get install qemu-system-x86)"
        );
        return;
    }
    let _swap = Swap::on(1024);
    let mut w = world(Shim::Go);
    let id = format!("sb{}", std::process::id());
    let qemu = Qemu::start(&id);
    w.guest.sandbox_id = id;
    w.guest.sandbox_pid = i32::try_from(qemu.child.id()).unwrap();
    let before = qemu.hash();
    for _ in 0..3 {
        w.driver.freeze(&w.guest).await.unwrap();
        let doze = w.driver.doze(&w.guest, &Cancel::new()).await.unwrap();
        println!("{doze:?} RssShmem {} KiB", qemu.resident() >> 10);
        assert!(qemu.resident() < 16 * MIB, "{}", qemu.resident());
        w.driver.wake(&w.guest).await.unwrap();
        let back = w
            .driver
            .prefetch(&w.guest, WakeSource::Packet, &Cancel::new())
            .await
            .unwrap();
        println!("{back:?}");
        assert!(back.bytes >= (RAM - 32) * MIB, "{back:?}");
        assert_eq!(qemu.hash(), before);
    }
    // A process id that belongs to somebody else by now is left alone.
    w.guest.sandbox_pid = i32::try_from(std::process::id()).unwrap();
    w.driver.freeze(&w.guest).await.unwrap();
    assert_eq!(
        w.driver.doze(&w.guest, &Cancel::new()).await.unwrap_err().reason,
        Reason::GuestGone
    );
}
