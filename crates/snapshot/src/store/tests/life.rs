//! A snapshot's life where nothing goes wrong, and where it meets limits.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use dormouse_core::Reason;

use super::*;
use crate::compat::NodeFacts;
use crate::gc::Quota;

#[test]
fn commit_open_remove() {
    let place = Place::new();
    let store = place.open();
    let id = committed(&store, "pod", 10);
    assert_eq!(store.list().len(), 1);
    let snapshot = store.get(id).unwrap();
    assert_eq!(snapshot.state, SnapshotState::Ok);
    assert_eq!(
        snapshot.manifest.size(),
        snapshot.manifest.files.iter().map(|f| f.size).sum::<u64>()
    );
    // Zero pages are holes, and the content is what it was.
    let entry = snapshot
        .manifest
        .files
        .iter()
        .find(|f| f.name.as_str() == "pages.img")
        .unwrap();
    assert!(entry.allocated < entry.size - CHUNK / 2, "{entry:?}");
    assert_eq!(std::fs::read(snapshot.path.join("pages.img")).unwrap(), pages(7));
    for path in tree(&place.root()) {
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(
            mode,
            if path.is_dir() { 0o700 } else { 0o600 },
            "{}",
            path.display()
        );
    }
    let image = store.open_image(id, &wake("pod")).unwrap();
    assert_eq!(image.checked(), Checked::Scrub);
    assert_eq!(image.dir(), snapshot.path);
    assert_eq!(image.manifest().restore["address"], "10.0.0.2/24");
    assert_eq!(
        store.remove(id, true).unwrap_err().reason(),
        Reason::SnapshotInUse
    );
    drop(image);
    store.remove(id, false).unwrap();
    assert!(store.list().is_empty());
    assert!(tree(&place.root().join("snapshots")).is_empty() && tree(&place.root().join("trash")).is_empty());
    assert_eq!(
        store.remove(id, false).unwrap_err().reason(),
        Reason::SnapshotNotFound
    );
    assert_eq!(
        store.open_image(id, &wake("pod")).unwrap_err().reason(),
        Reason::SnapshotNotFound
    );
    assert!(store.usage().is_empty());
}

#[test]
fn hashes_may_come_later() {
    let place = Place::new();
    let store = place.open();
    let validated = staged(&store, 1, 10).validate(draft("pod")).unwrap();
    assert_eq!(validated.header().unwrap().container_count, 2);
    let id = validated.commit_unverified(Budget::default(), 10).unwrap().id();
    assert_eq!(store.get(id).unwrap().state, SnapshotState::PendingHashes);
    // Good for a wake in this boot, by this agent or the next one, and for nothing else.
    assert_eq!(
        store.open_image(id, &wake("pod")).unwrap().checked(),
        Checked::FreshCommit
    );
    let restore = OpenRequest {
        purpose: Purpose::Restore { namespace: "default" },
        ..wake("pod")
    };
    assert_eq!(
        store.open_image(id, &restore).unwrap_err().reason(),
        Reason::SnapshotUnverified
    );
    assert_eq!(
        store.verify(id, Budget::default(), 1).unwrap_err().reason(),
        Reason::SnapshotUnverified
    );
    drop(store);
    let store = place.open();
    assert_eq!(
        store.open_image(id, &wake("pod")).unwrap().checked(),
        Checked::FreshCommit
    );
    drop(store);
    let other_boot = StoreOptions {
        boot_id: "boot-2".into(),
        ..place.options()
    };
    let store = Store::open(other_boot).unwrap();
    assert_eq!(
        store.open_image(id, &wake("pod")).unwrap_err().reason(),
        Reason::SnapshotUnverified
    );
    let report = store.fsck(false, Budget::default(), 20).unwrap();
    assert_eq!(report.findings[0].class, Class::PendingHashes);
    assert!(!report.findings[0].done);
    assert!(store.fsck(true, Budget::default(), 20).unwrap().findings[0].done);
    assert!(store.fsck(false, Budget::default(), 20).unwrap().is_clean());
    assert_eq!(
        store.open_image(id, &wake("pod")).unwrap().checked(),
        Checked::Scrub
    );
    store.finish_hashes(id, Budget::default(), 30).unwrap();
}

#[test]
fn full_on_a_fresh_commit_finishes_the_hashes() {
    let place = Place::new();
    let store = place.open();
    let validated = staged(&store, 1, 10).validate(draft("pod")).unwrap();
    let id = validated.commit_unverified(Budget::default(), 10).unwrap().id();
    let full = OpenRequest {
        verify: VerifyOnWake::Full,
        ..wake("pod")
    };
    assert_eq!(store.open_image(id, &full).unwrap().checked(), Checked::Full);
    assert_eq!(store.get(id).unwrap().state, SnapshotState::Ok);
}

#[test]
fn auto_reads_everything_once_after_a_boot() {
    let place = Place::new();
    let id = committed(&place.open(), "pod", 10);
    let store = Store::open(StoreOptions {
        boot_id: "boot-2".into(),
        ..place.options()
    })
    .unwrap();
    let header_only = OpenRequest {
        verify: VerifyOnWake::HeaderOnly,
        ..wake("pod")
    };
    assert_eq!(
        store.open_image(id, &header_only).unwrap().checked(),
        Checked::HeaderOnly
    );
    assert_eq!(
        store.open_image(id, &wake("pod")).unwrap().checked(),
        Checked::Full
    );
    assert_eq!(
        store.open_image(id, &wake("pod")).unwrap().checked(),
        Checked::Scrub
    );
    assert_eq!(store.scrub(1000, Budget::default(), 60).good, []);
    assert_eq!(store.scrub(5, Budget::default(), 60).good, [id]);
}

#[test]
fn marks_survive_and_protect() {
    let place = Place::new();
    let store = place.open();
    let (a, b) = (committed(&store, "a", 10), committed(&store, "b", 20));
    store.pin(a).unwrap();
    store.hold(b, "b").unwrap();
    store.touch(b, 77).unwrap();
    store.set_remote_copy(b, true).unwrap();
    drop(store);
    let store = place.open();
    assert!(store.get(a).unwrap().pinned);
    let got = store.get(b).unwrap();
    assert_eq!(
        (got.holds, got.last_used_ms, got.remote_copy),
        (vec!["b".to_owned()], 77, true)
    );
    assert_eq!(
        store.remove(a, false).unwrap_err().reason(),
        Reason::SnapshotPinned
    );
    assert_eq!(store.remove(b, false).unwrap_err().reason(), Reason::SnapshotHeld);
    let none = GcLimits {
        ttl_ms: Some(0),
        ..GcLimits::default()
    };
    assert_eq!(store.prune(Some(&none), 1000).unwrap(), Pruned::default());
    store.unpin(a).unwrap();
    store.unhold(b, "b").unwrap();
    assert_eq!(store.hold(b, "").unwrap_err().reason(), Reason::InvalidRequest);
    assert_eq!(store.prune(Some(&none), 1000).unwrap().removed.len(), 2);
    assert_eq!(store.pin(a).unwrap_err().reason(), Reason::SnapshotNotFound);
}

#[test]
fn a_forced_removal_takes_what_is_pinned_or_held() {
    let place = Place::new();
    let store = place.open();
    let id = committed(&store, "a", 10);
    store.pin(id).unwrap();
    store.hold(id, "a").unwrap();
    store.remove(id, true).unwrap();
    assert!(store.list().is_empty());
}

#[test]
fn whose_it_is_and_where_it_fits() {
    let place = Place::new();
    let store = place.open();
    let id = committed(&store, "pod", 10);
    for purpose in [
        Purpose::Wake {
            pod_uid: "other",
            namespace: "default",
        },
        Purpose::Wake {
            pod_uid: "pod",
            namespace: "other",
        },
        Purpose::Restore { namespace: "other" },
    ] {
        let refused = store
            .open_image(
                id,
                &OpenRequest {
                    purpose,
                    ..wake("pod")
                },
            )
            .unwrap_err();
        assert_eq!(refused.reason(), Reason::SnapshotNamespaceMismatch, "{purpose:?}");
    }
    let mut facts = NodeFacts {
        runtimes: vec![("gvisor".into(), "release-20260905.0".into())],
        refused: Vec::new(),
        arch: "x86_64".into(),
        cpu_features: vec!["avx2".into(), "sse2".into()],
        network: "sandbox".into(),
        containers: Some(key().containers),
    };
    store
        .open_image(
            id,
            &OpenRequest {
                facts: Some(&facts),
                ..wake("pod")
            },
        )
        .unwrap();
    facts.runtimes.clear();
    let refused = store
        .open_image(
            id,
            &OpenRequest {
                facts: Some(&facts),
                ..wake("pod")
            },
        )
        .unwrap_err();
    assert_eq!(refused.reason(), Reason::RuntimeVersionMismatch);
}

#[test]
fn one_process_at_a_time() {
    let place = Place::new();
    let store = place.open();
    let refused = Store::open(place.options()).unwrap_err();
    assert!(matches!(refused, OpenStoreError::Locked { .. }));
    assert_eq!(refused.reason(), Reason::SnapshotStoreFailed);
    drop(store);
    place.open();
}

#[test]
fn a_root_that_others_can_write_is_refused() {
    let place = Place::new();
    std::fs::create_dir(place.root()).unwrap();
    std::fs::set_permissions(place.root(), std::fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(
        Store::open(place.options()),
        Err(OpenStoreError::Unsafe { .. })
    ));
    let relative = StoreOptions {
        root: "store".into(),
        ..place.options()
    };
    assert!(matches!(
        Store::open(relative),
        Err(OpenStoreError::NotAbsolute { .. })
    ));
    let no_key = StoreOptions {
        encrypt: true,
        ..place.options()
    };
    assert!(matches!(Store::open(no_key), Err(OpenStoreError::NoKeys)));
}

#[test]
fn a_dropped_staging_leaves_nothing() {
    let place = Place::new();
    let store = place.open();
    let staging = staged(&store, 1, 10);
    let name = "extra".parse().unwrap();
    let file = staging.file(&name).unwrap();
    assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o600);
    assert!(staging.file(&name).is_err());
    assert_eq!(store.usage()["default"].bytes, request().expected_bytes);
    drop(staging);
    assert!(store.usage().is_empty() && tree(&place.root().join("staging")).is_empty());
}

#[test]
fn what_dead_runs_left_is_swept() {
    let place = Place::new();
    let id = committed(&place.open(), "pod", 10);
    let root = place.root();
    std::fs::create_dir_all(root.join("staging/abc/def")).unwrap();
    std::fs::write(root.join("staging/abc/f"), "x").unwrap();
    std::fs::create_dir_all(root.join("trash/abc")).unwrap();
    std::fs::write(root.join("trash/file"), "x").unwrap();
    let torn = root
        .join("snapshots")
        .join(id.to_string())
        .join("manifest.json.new");
    std::fs::write(&torn, "{").unwrap();
    let store = place.open();
    assert!(tree(&root.join("staging")).is_empty() && tree(&root.join("trash")).is_empty());
    assert!(!torn.exists());
    store.open_image(id, &wake("pod")).unwrap();
}

#[test]
fn differences_by_chunk() {
    let place = Place::new();
    let store = place.open();
    let a = committed(&store, "a", 10);
    let b = committed(&store, "b", 11);
    let same: u64 = store.diff(a, b).unwrap().iter().map(|d| d.same).sum();
    assert_eq!(same, store.get(a).unwrap().manifest.size());
    let staging = staged(&store, 7, 12);
    let mut data = pages(7);
    let grown = data.len() as u64;
    data[CHUNK as usize + 1] ^= 1;
    data.resize(data.len() + 2 * CHUNK as usize, 3);
    std::fs::write(staging.dir().join("pages.img"), &data).unwrap();
    let c = staging
        .validate(draft("c"))
        .unwrap()
        .commit(Budget::default(), 12)
        .unwrap()
        .id();
    let diff = store.diff(a, c).unwrap();
    let of = |name: &str| diff.iter().find(|d| d.name.as_str() == name).unwrap();
    assert_eq!(of("checkpoint.img").changed, 0);
    let pages = of("pages.img");
    assert_eq!(pages.same + pages.changed + pages.only_second, data.len() as u64);
    // The one that was touched, and the last, which was not full and now is.
    assert_eq!((pages.changed, pages.only_first), (2 * CHUNK, 0));
    assert_eq!(
        pages.only_second,
        data.len() as u64 - grown.next_multiple_of(CHUNK)
    );
    assert_eq!(
        store.diff(a, SnapshotId::new(1)).unwrap_err().reason(),
        Reason::SnapshotNotFound
    );
}

#[test]
fn a_clock_that_jumps_takes_nobodys_only_state() {
    const YEARS: u64 = 100 * 365 * 24 * 3600 * 1000;
    const NOW: u64 = YEARS / 2;
    let place = Place::new();
    let limits = GcLimits {
        ttl_ms: Some(1000),
        node: Quota {
            count: Some(2),
            ..Quota::default()
        },
        ..GcLimits::default()
    };
    let store = Store::open(StoreOptions {
        limits,
        ..place.options()
    })
    .unwrap();
    let mut held = draft("asleep");
    held.hold = Some("asleep".into());
    let reservation = store.reserve(&request(), NOW).unwrap();
    let staging = reservation.stage(None).unwrap();
    write_image(staging.dir(), 1);
    let validated = staging.validate(held).unwrap();
    let only = validated.commit(Budget::default(), NOW).unwrap().id();
    for now in [NOW + YEARS, 0, NOW, u64::MAX] {
        store.prune(None, now).unwrap();
        let scrubbed = store.scrub(1000, Budget::default(), now);
        assert!(scrubbed.bad.is_empty(), "at {now}: {scrubbed:?}");
        store.open_image(only, &wake("asleep")).unwrap();
        store.touch(only, now).unwrap();
        drop(store.reserve(&request(), now.min(NOW + YEARS)).unwrap());
        assert!(store.get(only).is_some(), "at {now}");
    }
    // One that nobody holds, and that seems to come from the future, is neither in the way nor kept for ever.
    let other = committed(&store, "awake", NOW + YEARS);
    store.prune(None, NOW).unwrap();
    assert!(store.get(other).is_some());
    store.prune(None, NOW + YEARS + 2000).unwrap();
    assert!(store.get(other).is_none() && store.get(only).is_some());
}
