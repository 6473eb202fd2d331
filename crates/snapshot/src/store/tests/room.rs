//! Quotas, the disk's high-water mark, eviction.

use std::sync::Arc;

use dormouse_core::Reason;

use super::faulty::FaultyDisk;
use super::*;
use crate::disk::Space;
use crate::gc::Quota;

fn limited(place: &Place, node: Quota, namespace: Quota) -> Store {
    let limits = GcLimits {
        node,
        namespace,
        ttl_ms: None,
    };
    Store::open(StoreOptions {
        limits,
        ..place.options()
    })
    .unwrap()
}

fn reserve(store: &Store, namespace: &str, expected_bytes: u64) -> Result<Reservation, ReserveError> {
    store.reserve(
        &ReserveRequest {
            namespace: namespace.into(),
            expected_bytes,
        },
        100,
    )
}

#[test]
fn reservations_count() {
    let place = Place::new();
    let store = limited(
        &place,
        Quota {
            bytes: Some(100),
            count: Some(3),
        },
        Quota {
            bytes: Some(60),
            count: Some(2),
        },
    );
    assert_eq!(
        reserve(&store, "a", 61).unwrap_err().reason(),
        Reason::SnapshotQuotaExceeded
    );
    let a = reserve(&store, "a", 40).unwrap();
    assert!(matches!(
        reserve(&store, "a", 21),
        Err(ReserveError::Quota { .. })
    ));
    let _b = reserve(&store, "b", 60).unwrap();
    assert!(matches!(reserve(&store, "c", 1), Err(ReserveError::Quota { .. })));
    drop(a);
    let _c = reserve(&store, "c", 1).unwrap();
    let _d = reserve(&store, "c", 1).unwrap();
    assert!(matches!(reserve(&store, "d", 0), Err(ReserveError::Quota { .. })));
}

#[test]
fn makes_room_but_not_of_what_is_needed() {
    let place = Place::new();
    let store = limited(
        &place,
        Quota {
            bytes: None,
            count: Some(2),
        },
        Quota::default(),
    );
    let (a, b) = (committed(&store, "a", 10), committed(&store, "b", 20));
    store.hold(a, "a").unwrap();
    let reservation = reserve(&store, "default", 1).unwrap();
    assert!(store.get(b).is_none() && store.get(a).is_some());
    drop(reservation);
    let c = committed(&store, "c", 30);
    store.pin(c).unwrap();
    assert!(matches!(
        reserve(&store, "default", 1),
        Err(ReserveError::Quota { .. })
    ));
    assert_eq!(store.list().len(), 2, "a refusal removes nothing");
}

#[test]
fn the_superseded_go_first() {
    let place = Place::new();
    let store = limited(
        &place,
        Quota {
            bytes: None,
            count: Some(3),
        },
        Quota::default(),
    );
    let other = committed(&store, "other", 5);
    let (old, new) = (committed(&store, "a", 10), committed(&store, "a", 20));
    let _room = reserve(&store, "default", 1).unwrap();
    assert!(store.get(old).is_none() && store.get(new).is_some() && store.get(other).is_some());
}

#[test]
fn the_disk_keeps_some_free() {
    let place = Place::new();
    let disk = Arc::new(FaultyDisk::with_space(Space {
        total: 100 * GIB,
        available: 12 * GIB,
    }));
    let options = StoreOptions {
        disk: disk.clone(),
        high_water: HighWater {
            free_bytes: GIB,
            free_percent: 10,
        },
        ..place.options()
    };
    let store = Store::open(options).unwrap();
    let _first = reserve(&store, "a", GIB).unwrap();
    let refused = reserve(&store, "a", 2 * GIB).unwrap_err();
    assert!(
        matches!(refused, ReserveError::Disk { short: GIB, .. }),
        "{refused}"
    );
    assert_eq!(refused.reason(), Reason::DiskFull);
    let _second = reserve(&store, "a", GIB).unwrap();
}
