//! Every operation, with a fault at every step of it: afterwards the old state or the new, and no leak.

use std::sync::Arc;

use dormouse_core::Reason;
use nix::libc::{EIO, ENOSPC};

use super::faulty::{Fault, FaultyDisk};
use super::*;

const FAULTS: [Fault; 4] = [Fault::Once(EIO), Fault::Once(ENOSPC), Fault::Full, Fault::Dead];

/// Runs `operation` on a store whose disk fails at its nth step, for every n; then looks at the store with a
/// healthy disk, twice: `after` hears whether the operation said that it succeeded.
fn at_every_step(
    prepare: impl Fn(&Store),
    operation: impl Fn(&Store) -> Result<(), Reason>,
    after: impl Fn(&Store, bool),
) {
    for fault in FAULTS {
        let mut steps = 0;
        for at in 0.. {
            let place = Place::new();
            prepare(&place.open());
            // Opening must not be what fails here.
            let disk = Arc::new(FaultyDisk::new(fault, at));
            let opened = Store::open(StoreOptions {
                disk: disk.clone(),
                ..place.options()
            });
            let Ok(store) = opened else {
                assert!(disk.struck());
                place.open();
                continue;
            };
            let outcome = operation(&store);
            if let Err(reason) = outcome {
                assert!(disk.struck(), "{fault:?} at {at}: {reason}");
                assert!(
                    matches!(reason, Reason::DiskFull | Reason::SnapshotStoreFailed),
                    "{fault:?} at {at}: {reason}"
                );
            }
            assert!(
                store.inner.state().reserved.is_empty(),
                "{fault:?} at {at}: a reservation leaks"
            );
            assert!(
                store.list().iter().all(|s| s.users == 0),
                "{fault:?} at {at}: a user leaks"
            );
            drop(store);
            for _ in 0..2 {
                let store = place.open();
                assert!(tree(&place.root().join("staging")).is_empty());
                assert!(tree(&place.root().join("trash")).is_empty());
                assert_eq!(store.broken(), [], "{fault:?} at {at}");
                let report = store.fsck(false, Budget::default(), 90).unwrap();
                assert!(
                    report
                        .findings
                        .iter()
                        .all(|f| matches!(f.class, Class::Ok | Class::PendingHashes)),
                    "{fault:?} at {at}: {report:?}"
                );
                for snapshot in store.list().iter().filter(|s| s.state == SnapshotState::Ok) {
                    store.verify(snapshot.id(), Budget::default(), 90).unwrap();
                }
                assert!(
                    tree(&place.root())
                        .iter()
                        .all(|p| p.extension().is_none_or(|e| e != "new"))
                );
                after(&store, outcome.is_ok());
            }
            steps += 1;
            if !disk.struck() {
                assert_eq!(outcome, Ok(()));
                break;
            }
        }
        assert!(steps > 3, "{fault:?}: {steps} steps");
    }
}

fn commit(store: &Store, now_hashed: bool) -> Result<(), Reason> {
    let reservation = store.reserve(&request(), 10).map_err(|e| e.reason())?;
    let staging = reservation.stage(None).map_err(|e| e.reason())?;
    write_image(staging.dir(), 3);
    let validated = staging.validate(draft("pod")).map_err(|e| e.reason())?;
    let done = if now_hashed {
        validated.commit(Budget::default(), 10)
    } else {
        validated.commit_unverified(Budget::default(), 10)
    };
    done.map(drop).map_err(|e| e.reason())
}

#[test]
fn commit_is_whole_or_absent() {
    let after = |store: &Store, done: bool| {
        let count = store.list().len();
        assert!(count <= 1 && (!done || count == 1));
        for s in store.list() {
            store.open_image(s.id(), &wake("pod")).unwrap();
        }
    };
    at_every_step(|_| (), |store| commit(store, true), after);
}

#[test]
fn quick_commit_is_whole_or_absent() {
    let after = |store: &Store, done: bool| {
        assert!(!done || store.list().len() == 1);
        for s in store.list() {
            store.open_image(s.id(), &wake("pod")).unwrap();
        }
    };
    at_every_step(|_| (), |store| commit(store, false), after);
}

#[test]
fn hashes_are_finished_or_pending() {
    let after = |store: &Store, done: bool| {
        let all = store.list();
        assert_eq!(all.len(), 1);
        assert!(!done || all[0].state == SnapshotState::Ok);
        store.open_image(all[0].id(), &wake("pod")).unwrap();
    };
    let finish = |store: &Store| {
        let id = store.list()[0].id();
        store
            .finish_hashes(id, Budget::default(), 20)
            .map_err(|e| e.reason())
    };
    at_every_step(|store| commit(store, false).unwrap(), finish, after);
}

#[test]
fn removed_or_still_there() {
    let remove = |store: &Store| store.remove(store.list()[0].id(), false).map_err(|e| e.reason());
    let after = |store: &Store, done: bool| {
        let all = store.list();
        assert!(!done || all.is_empty());
        for s in all {
            store.open_image(s.id(), &wake("pod")).unwrap();
        }
    };
    at_every_step(|store| commit(store, true).unwrap(), remove, after);
}

#[test]
fn marks_are_old_or_new() {
    let pin = |store: &Store| store.pin(store.list()[0].id()).map_err(|e| e.reason());
    let after = |store: &Store, done: bool| {
        let all = store.list();
        assert!(all[0].holds.is_empty(), "the marks were lost");
        assert!(!done || all[0].pinned);
    };
    at_every_step(|store| commit(store, true).unwrap(), pin, after);
}

#[test]
fn imported_or_absent() {
    let place = Place::new();
    let store = place.open();
    let mut archive = Vec::new();
    store
        .export(committed(&store, "pod", 10), &mut archive, 10)
        .unwrap();
    let request = ImportRequest {
        namespace: "default".into(),
        max_bytes: GIB,
        digest: None,
        original: None,
        facts: None,
    };
    let import = |store: &Store| {
        store
            .import(&mut archive.as_slice(), &request, 20)
            .map(drop)
            .map_err(|e| e.reason())
    };
    at_every_step(
        |_| (),
        import,
        |store, done| assert!(!done || store.list().len() == 1),
    );
}

#[test]
fn repaired_or_as_it_was() {
    let break_it = |store: &Store| {
        commit(store, true).unwrap();
        std::fs::create_dir(store.root().join("snapshots/foreign")).unwrap();
    };
    for at in 0..20 {
        let place = Place::new();
        break_it(&place.open());
        let disk = Arc::new(FaultyDisk::new(Fault::Once(EIO), at));
        let Ok(store) = Store::open(StoreOptions {
            disk,
            ..place.options()
        }) else {
            continue;
        };
        let _ = store.fsck(true, Budget::default(), 10);
        let root = place.root();
        assert!(root.join("snapshots/foreign").exists() != root.join("quarantine/foreign").exists());
    }
}
