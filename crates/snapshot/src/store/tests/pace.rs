//! Saves whose bytes are let through by somebody.

use std::sync::Mutex;

use dormouse_core::Reason;

use super::*;
use crate::disk::RealDisk;
use crate::pace::{CalledOff, Pace};

/// Counts, and calls the save off when it is told to.
#[derive(Debug, Default)]
struct Told {
    sliced: bool,
    /// Called off when so many bytes have passed.
    until: Option<u64>,
    /// Called off at the very end.
    not_settled: bool,
    passed: Mutex<Vec<u64>>,
}

impl Told {
    fn passed(&self) -> u64 {
        self.passed.lock().unwrap().iter().sum()
    }
}

impl Pace for Told {
    fn is_sliced(&self) -> bool {
        self.sliced
    }

    fn pass(&self, bytes: u64) -> Result<(), CalledOff> {
        if self.until.is_some_and(|until| self.passed() >= until) {
            return Err(CalledOff);
        }
        self.passed.lock().unwrap().push(bytes);
        Ok(())
    }

    fn settle(&self) -> Result<(), CalledOff> {
        if self.not_settled { Err(CalledOff) } else { Ok(()) }
    }
}

fn commit(store: &Store, pace: &Told) -> Result<Snapshot, CommitError> {
    let validated = staged(store, 7, 10).validate(draft("pod")).unwrap();
    validated.commit_paced(Budget::default(), pace, 10)
}

/// Nothing is left of a save that was called off.
fn assert_untouched(place: &Place, store: &Store) {
    assert!(store.list().is_empty() && store.usage().is_empty());
    assert!(tree(&place.root().join("staging")).is_empty());
}

#[test]
fn what_is_stored_passes_slice_by_slice_and_holes_do_not() {
    for sliced in [false, true] {
        let place = Place::new();
        let store = place.open();
        let told = Told {
            sliced,
            ..Told::default()
        };
        let snapshot = commit(&store, &told).unwrap();
        let (passed, stored) = (told.passed(), snapshot.manifest.allocated());
        // To the page, and up to the files' ends.
        assert!(
            passed <= stored && passed + 3 * 4096 >= stored,
            "{passed} of {stored}"
        );
        assert!(
            passed < snapshot.manifest.size() - CHUNK,
            "holes were let through"
        );
        assert!(
            told.passed
                .lock()
                .unwrap()
                .iter()
                .all(|slice| *slice <= crate::pace::SLICE)
        );
        store.finish_hashes(snapshot.id(), Budget::default(), 20).unwrap();
        store.verify(snapshot.id(), Budget::default(), 20).unwrap();
        store.open_image(snapshot.id(), &wake("pod")).unwrap();
    }
}

#[test]
fn a_save_that_is_called_off_leaves_nothing() {
    let calls = [
        Told {
            sliced: true,
            until: Some(0),
            ..Told::default()
        },
        Told {
            sliced: true,
            until: Some(CHUNK),
            ..Told::default()
        },
        Told {
            until: Some(1),
            ..Told::default()
        },
        Told {
            not_settled: true,
            ..Told::default()
        },
    ];
    let place = Place::new();
    let store = place.open();
    for told in calls {
        let error = commit(&store, &told).unwrap_err();
        assert_eq!(error.reason(), Reason::WakeWon, "{told:?}: {error}");
        assert_untouched(&place, &store);
    }
    commit(&store, &Told::default()).unwrap();
}

#[test]
fn data_is_found_between_holes() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let file = RealDisk.create(&dir.path().join("file")).unwrap();
    assert_eq!(
        RealDisk.next_data(&file, 0).unwrap(),
        None,
        "an empty file has none"
    );
    file.set_len(64 << 10).unwrap();
    assert_eq!(RealDisk.next_data(&file, 0).unwrap(), None, "one hole has none");
    std::os::unix::fs::FileExt::write_all_at(&file, &[1; 4096], 16 << 10).unwrap();
    assert_eq!(RealDisk.next_data(&file, 0).unwrap(), Some((16 << 10, 20 << 10)));
    assert_eq!(RealDisk.next_data(&file, 20 << 10).unwrap(), None);
    RealDisk.write_back(&file, 16 << 10, 4096).unwrap();
    RealDisk.sync(&file).unwrap();
}
