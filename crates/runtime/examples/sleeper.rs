//! Moves one gVisor sandbox on the ladder by hand, with the real driver:
//! `sleeper RUN-DIR RUNSC-ROOT SANDBOX-ID POD-UID (adopt|freeze|doze|wake|prefetch|thaw|refreeze|probe|resident)…`.
//!
//! `adopt` registers the sandbox as if the wrapper had done so.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use dormouse_core::WakeSource;
use dormouse_runtime::reclaim::guard::main_if_requested;
use dormouse_runtime::{Cancel, Driver, Guest, Gvisor, PodIdentity};
use dormouse_sentry::record::{PodRecordIdentity, Record, RunscRecord};
use dormouse_sentry::switch::Registration;
use dormouse_sentry::{RunDir, Switch};

fn main() {
    main_if_requested();
    tokio::runtime::Runtime::new().unwrap().block_on(run());
}

async fn run() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [run_dir, root, id, uid, verbs @ ..] = args.as_slice() else {
        panic!("see the source")
    };
    let run_dir = RunDir::new(run_dir).unwrap();
    let guest = Guest {
        pod: PodIdentity {
            uid: uid.clone(),
            name: "p".into(),
            namespace: "n".into(),
        },
        sandbox_id: id.clone(),
        sandbox_pid: 0,
        containers: Vec::new(),
        cgroup_parent: String::new(),
        netns: None,
        runtime_roots: vec![PathBuf::from(root)],
    };
    let driver = Gvisor::new(run_dir.clone());
    let cancel = Cancel::new();
    for verb in verbs {
        let began = Instant::now();
        let said = match verb.as_str() {
            "adopt" => {
                let pod = PodRecordIdentity {
                    uid: uid.parse().unwrap(),
                    name: "p".into(),
                    namespace: "n".into(),
                };
                let runsc = RunscRecord {
                    path: "/usr/bin/runsc".into(),
                    version: String::new(),
                    oci_version: String::new(),
                    file: None,
                };
                let record = Record::new(pod, id.parse().unwrap(), root.into(), runsc, true);
                Switch::open(&run_dir, &id.parse().unwrap())
                    .register(record, Registration::Adopted, Duration::from_secs(1))
                    .unwrap();
                "adopted".to_owned()
            }
            "freeze" => format!("{:?}", driver.freeze(&guest).await),
            "doze" => format!("{:?}", driver.doze(&guest, &cancel).await),
            "wake" => format!("{:?}", driver.wake(&guest).await),
            "prefetch" => format!("{:?}", driver.prefetch(&guest, WakeSource::Packet, &cancel).await),
            "thaw" => format!("{:?}", driver.housekeeping_thaw(&guest).await),
            "refreeze" => format!("{:?}", driver.housekeeping_freeze(&guest, &cancel).await),
            "probe" => format!("{:?}", driver.probe(&guest).await),
            "resident" => format!("{:?}", driver.resident(&guest).await),
            "capabilities" => format!("{:?}", driver.capabilities(&guest).await),
            other => panic!("unknown verb {other}"),
        };
        println!("{verb} {:?}: {said}", began.elapsed());
    }
}
