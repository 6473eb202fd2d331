//! A process that is killed at every fail point of every operation, and the store that the next one finds.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use dormouse_snapshot::{
    Budget, Class, CompatibilityKey, ContainerKey, Draft, OpenRequest, Purpose, ReserveRequest, SandboxRef,
    SnapshotState, Store, StoreOptions, Taken, VerifyOnWake,
};

const ROOT: &str = "DORMOUSE_CRASH_ROOT";
const OPERATION: &str = "DORMOUSE_CRASH_OPERATION";

fn header() -> Vec<u8> {
    let json = r#"{"runsc_version":"r1","container_count":"1","container_specs":"{\"__no_name_0\":{}}"}"#;
    let mut data = b"gVisorSF".to_vec();
    data.extend((json.len() as u64).to_be_bytes());
    data.extend(json.as_bytes());
    data
}

fn draft() -> Draft {
    Draft {
        sandbox: SandboxRef {
            pod_uid: "pod".into(),
            name: "pod".into(),
            namespace: "default".into(),
        },
        template_hash: None,
        key: CompatibilityKey {
            runtime: "gvisor".into(),
            runtime_version: "r1".into(),
            arch: "x86_64".into(),
            cpu_features: Vec::new(),
            network: "sandbox".into(),
            containers: vec![ContainerKey {
                name: String::new(),
                image: String::new(),
            }],
        },
        parent: None,
        taken: Taken::Hibernate,
        restore: serde_json::Value::Null,
        memory: std::collections::BTreeMap::new(),
        files: Draft::gvisor_files(),
        hold: Some("pod".into()),
    }
}

fn commit(store: &Store, hashed: bool) {
    let request = ReserveRequest {
        namespace: "default".into(),
        expected_bytes: 1 << 20,
    };
    let staging = store.reserve(&request, 1).unwrap().stage(None).unwrap();
    let mut pages = vec![1; 10_000];
    pages.resize(3 << 20, 0);
    for (name, data) in [
        ("checkpoint.img", [header(), vec![1; 500]].concat()),
        ("pages_meta.img", vec![2; 100]),
        ("pages.img", pages),
    ] {
        std::fs::write(staging.dir().join(name), data).unwrap();
    }
    let validated = staging.validate(draft()).unwrap();
    if hashed {
        validated.commit(Budget::default(), 1).unwrap();
    } else {
        validated.commit_unverified(Budget::default(), 1).unwrap();
    }
}

fn open(root: &Path) -> Store {
    let mut options = StoreOptions::new(root.join("store"), "boot");
    options.high_water.free_percent = 0;
    Store::open(options).unwrap()
}

/// The one that is killed. Run by [`run`] only.
#[test]
fn child() {
    let Ok(root) = std::env::var(ROOT) else { return };
    let _scenario = fail::FailScenario::setup();
    // A fail point's panic must not unwind: what is killed cleans nothing up.
    std::panic::set_hook(Box::new(|_| {
        let _ = nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGKILL);
    }));
    let store = open(Path::new(&root));
    match std::env::var(OPERATION).unwrap().as_str() {
        "commit" => commit(&store, true),
        "quick" => commit(&store, false),
        "hashes" => store
            .finish_hashes(store.list()[0].id(), Budget::default(), 2)
            .unwrap(),
        "remove" => store.remove(store.list()[0].id(), true).unwrap(),
        other => panic!("{other}"),
    }
}

/// Runs the child until it is killed at a fail point; `false` if it never came there.
fn run(root: &Path, operation: &str, point: &str) -> bool {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(ROOT, root)
        .env(OPERATION, operation)
        .env("FAILPOINTS", format!("{point}=panic"))
        .output()
        .unwrap()
        .status;
    assert!(
        status.success() || status.signal() == Some(9),
        "{operation} at {point}: {status}"
    );
    status.signal() == Some(9)
}

fn killed(operation: &str, points: &[&str], prepare: impl Fn(&Store), after: impl Fn(&Store, &str)) {
    // A child that another test starts has a copy of this store's lock until it has become its program.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for point in points {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        prepare(&open(dir.path()));
        assert!(run(dir.path(), operation, point), "{point} was never reached");
        // The next process sweeps, and so may the one after it.
        for _ in 0..2 {
            let store = open(dir.path());
            assert_eq!(store.broken(), [], "{point}");
            for part in ["staging", "trash", "quarantine"] {
                assert_eq!(
                    std::fs::read_dir(store.root().join(part)).unwrap().count(),
                    0,
                    "{point}: {part}"
                );
            }
            let report = store.fsck(false, Budget::default(), 9).unwrap();
            assert!(
                report
                    .findings
                    .iter()
                    .all(|f| matches!(f.class, Class::Ok | Class::PendingHashes)),
                "{point}: {report:?}"
            );
            for s in store.list() {
                assert_eq!(s.holds, ["pod"], "{point}: the marks came with it");
                let request = OpenRequest {
                    purpose: Purpose::Wake {
                        pod_uid: "pod",
                        namespace: "default",
                    },
                    verify: VerifyOnWake::Auto,
                    facts: None,
                    memory: None,
                    budget: Budget::default(),
                    now_ms: 9,
                };
                store.open_image(s.id(), &request).unwrap();
                if s.state == SnapshotState::Ok {
                    store.verify(s.id(), Budget::default(), 9).unwrap();
                }
            }
            after(&store, point);
        }
    }
}

const COMMIT: [&str; 8] = [
    "snapshot::commit::before_sync",
    "snapshot::commit::after_sync",
    "snapshot::commit::before_manifest",
    "snapshot::commit::after_manifest",
    "snapshot::commit::after_marks",
    "snapshot::commit::before_rename",
    "snapshot::commit::after_rename",
    "snapshot::commit::after_dir_sync",
];

#[test]
fn a_commit_is_whole_or_absent() {
    for operation in ["commit", "quick"] {
        killed(
            operation,
            &COMMIT,
            |_| (),
            |store, point| {
                let visible = point.ends_with("after_rename") || point.ends_with("after_dir_sync");
                assert_eq!(store.list().len(), usize::from(visible), "{point}");
            },
        );
    }
}

#[test]
fn hashes_are_there_or_pending() {
    let points = [
        "snapshot::hashes::before_replace",
        "snapshot::hashes::after_replace",
    ];
    killed(
        "hashes",
        &points,
        |store| commit(store, false),
        |store, point| {
            let done = store.list()[0].state == SnapshotState::Ok;
            assert_eq!(done, point.ends_with("after_replace"), "{point}");
        },
    );
}

#[test]
fn a_removal_is_done_or_not_begun() {
    let points = [
        "snapshot::remove::before_trash",
        "snapshot::remove::after_trash",
        "snapshot::remove::after_erase",
    ];
    killed(
        "remove",
        &points,
        |store| commit(store, true),
        |store, point| {
            assert_eq!(
                store.list().len(),
                usize::from(point.ends_with("before_trash")),
                "{point}"
            );
        },
    );
}
