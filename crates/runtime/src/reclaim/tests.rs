//! The reclaim's behaviour on a kernel that is made to misbehave.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::*;
use crate::kernel::fake::Fake;

const MIB: u64 = 1 << 20;
const LIMIT: &str = "/cg/memory.limit_in_bytes";
const USAGE: &str = "/cg/memory.usage_in_bytes";

#[derive(Default, Clone)]
struct Notes(Arc<Mutex<Vec<String>>>);

impl Ledger for Notes {
    fn note(&mut self, limit: &LoweredLimit) -> Result<(), NoteError> {
        self.0
            .lock()
            .unwrap()
            .push(format!("note {} {}", limit.original, limit.current));
        Ok(())
    }

    fn cross_out(&mut self, _path: &Path) -> Result<(), NoteError> {
        self.0.lock().unwrap().push("cross out".into());
        Ok(())
    }
}

struct Deaf;

impl Ledger for Deaf {
    fn note(&mut self, _limit: &LoweredLimit) -> Result<(), NoteError> {
        Err(NoteError::Guard(io::ErrorKind::BrokenPipe.into()))
    }

    fn cross_out(&mut self, _path: &Path) -> Result<(), NoteError> {
        unreachable!("nothing was noted")
    }
}

/// A cgroup that gives memory back down to `stuck` when its limit is lowered, and refuses to have a limit below its
/// usage, as the kernel does.
fn cgroup(usage: u64, limit: &str, stuck: u64) -> Fake {
    let fake = Fake::default();
    fake.set(LIMIT, limit);
    fake.set(USAGE, &usage.to_string());
    fake.on_write(move |path, value, files| {
        if path == Path::new(LIMIT) {
            let wanted: u64 = value.parse().unwrap();
            let used: u64 = files[Path::new(USAGE)].parse().unwrap();
            let left = used.min(wanted.max(stuck));
            files.insert(USAGE.into(), left.to_string());
            if left > wanted {
                return Err(io::Error::from_raw_os_error(libc::EBUSY));
            }
        }
        files.insert(path.into(), value.to_owned());
        Ok(())
    });
    fake
}

fn run(fake: &Fake, ledger: &mut dyn Ledger) -> Result<ReclaimReport, ReclaimError> {
    let mut reclaim = Reclaim::new(fake, Path::new("/cg"), Version::V1);
    for _ in 0..10_000 {
        if reclaim.step(ledger, &mut || Ok(()))? {
            return Ok(reclaim.report());
        }
    }
    panic!("does not end");
}

#[test]
fn goes_down_to_what_is_stuck_and_leaves_the_limit_as_it_was() {
    for (usage, stuck) in [
        (512 * MIB, 0),
        (512 * MIB, 37 * MIB),
        (3 * MIB, 0),
        (0, 0),
        (9 * MIB, 9 * MIB),
    ] {
        for limit in ["9223372036854771712", "1073741824", "536870912"] {
            let fake = cgroup(usage, limit, stuck);
            let mut notes = Notes::default();
            let report = run(&fake, &mut notes).unwrap();
            assert_eq!(fake.get(LIMIT), limit);
            assert!(report.after <= stuck.max(FLOOR) + MIB, "{report:?}");
            let notes = notes.0.lock().unwrap().clone();
            // Each write is noted before, with the limit that really was there, and crossed out after.
            for pair in notes.chunks(2) {
                assert!(pair[0].starts_with(&format!("note {limit} ")));
                assert_eq!(pair[1], "cross out");
            }
        }
    }
}

#[test]
fn a_limit_that_somebody_else_sets_meanwhile_stays() {
    let fake = cgroup(64 * MIB, "1073741824", 0);
    // The kubelet changes the limit between our write and our look.
    fake.on_write(|path, value, files| {
        let theirs = path == Path::new(LIMIT) && value != "1073741824";
        files.insert(
            path.into(),
            if theirs { "268435456".into() } else { value.into() },
        );
        files.insert(USAGE.into(), "1048576".into());
        Ok(())
    });
    let report = run(&fake, &mut Notes::default()).unwrap();
    assert_eq!(fake.get(LIMIT), "268435456");
    assert_eq!(report.after, MIB);
}

#[test]
fn what_cannot_be_noted_is_not_done() {
    let fake = cgroup(64 * MIB, "1073741824", 0);
    let error = run(&fake, &mut Deaf).unwrap_err();
    assert!(matches!(error, ReclaimError::Note { .. }), "{error}");
    assert_eq!(error.reason(), Reason::ReclaimFailed);
    assert!(fake.0.lock().unwrap().writes.is_empty());
}

#[test]
fn a_limit_that_cannot_be_put_back_is_an_error() {
    let fake = cgroup(64 * MIB, "1073741824", 0);
    let mut writes = 0;
    fake.on_write(move |path, value, files| {
        writes += 1;
        if writes > 1 {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        files.insert(path.into(), value.to_owned());
        Ok(())
    });
    let mut notes = Notes::default();
    let error = run(&fake, &mut notes).unwrap_err();
    assert!(matches!(error, ReclaimError::NotRestored { .. }), "{error}");
    // It stays noted, so that the next probe finds it.
    assert_eq!(notes.0.lock().unwrap().len(), 1);
}

#[test]
fn the_brake_stops_it_before_anything_is_touched() {
    let fake = cgroup(64 * MIB, "1073741824", 0);
    let mut reclaim = Reclaim::new(&fake, Path::new("/cg"), Version::V1);
    let error = reclaim
        .step(&mut Notes::default(), &mut || Err(Stop::Cancelled))
        .unwrap_err();
    assert_eq!(error.reason(), Reason::WakeWon);
    assert!(fake.0.lock().unwrap().writes.is_empty());
}

#[test]
fn v2_takes_eagain_for_the_end_and_not_for_an_error() {
    let fake = Fake::default();
    fake.set("/cg/memory.current", &(64 * MIB).to_string());
    fake.set("/cg/memory.reclaim", "");
    fake.on_write(|path, value, files| {
        assert_eq!(path, Path::new("/cg/memory.reclaim"));
        let current = Path::new("/cg/memory.current");
        let used: u64 = files[current].parse().unwrap();
        let left = (used - value.parse::<u64>().unwrap()).max(20 * MIB);
        files.insert(current.into(), left.to_string());
        if left == 20 * MIB {
            Err(io::Error::from_raw_os_error(libc::EAGAIN))
        } else {
            Ok(())
        }
    });
    let mut reclaim = Reclaim::new(&fake, Path::new("/cg"), Version::V2);
    while !reclaim.step(&mut Notes::default(), &mut || Ok(())).unwrap() {}
    assert_eq!(reclaim.report().after, 20 * MIB);
}

#[test]
fn swap_limits_of_zero_are_raised_at_every_level_of_the_pod_and_put_back() {
    let fake = Fake::default();
    for (level, value) in [("", "0"), ("/a", "0"), ("/b", "1048576"), ("/c", "max")] {
        fake.set(&format!("/up/pod{level}/memory.swap.max"), value);
    }
    fake.set("/up/memory.swap.max", "0");
    let changes = swap_limits_of(&fake, Path::new("/up/pod")).unwrap();
    assert_eq!(changes.len(), 2);
    raise(&fake, &changes, &mut Notes::default()).unwrap();
    assert_eq!(fake.get("/up/pod/memory.swap.max"), "max");
    assert_eq!(fake.get("/up/pod/a/memory.swap.max"), "max");
    assert_eq!(fake.get("/up/pod/b/memory.swap.max"), "1048576");
    assert_eq!(fake.get("/up/memory.swap.max"), "0");
    // A container update while the pod sleeps is not undone.
    fake.set("/up/pod/a/memory.swap.max", "4096");
    let (put_back, failed) = restore_all(&fake, &changes);
    assert_eq!((put_back, failed.len()), (1, 0));
    assert_eq!(fake.get("/up/pod/memory.swap.max"), "0");
    assert_eq!(fake.get("/up/pod/a/memory.swap.max"), "4096");
}

#[test]
fn half_of_the_raises_is_taken_back_when_one_fails() {
    let fake = Fake::default();
    fake.set("/pod/memory.swap.max", "0");
    fake.set("/pod/a/memory.swap.max", "0");
    let changes = swap_limits_of(&fake, Path::new("/pod")).unwrap();
    fake.on_write(|path, value, files| {
        if path == Path::new("/pod/a/memory.swap.max") {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        files.insert(path.into(), value.to_owned());
        Ok(())
    });
    assert!(raise(&fake, &changes, &mut Notes::default()).is_err());
    assert_eq!(fake.get("/pod/memory.swap.max"), "0");
}

#[test]
fn swap_room() {
    use crate::brake::swap_has_room;
    let fake = Fake::default();
    assert_eq!(swap_has_room(&fake).unwrap_err().reason(), Reason::NoSwap);
    fake.swap_is(1 << 30, 1 << 20);
    assert_eq!(swap_has_room(&fake).unwrap_err().reason(), Reason::SwapFull);
    fake.swap_is(1 << 30, 1 << 29);
    swap_has_room(&fake).unwrap();
}
