//! Pages a cgroup's processes out and brings them back, by hand: `memory out|reclaim|in CGROUP [FIRST-PID]`.
//! `memory hold CGROUP` lowers the limit to the usage, under a guard, and waits to be killed.
//!
//! It freezes and thaws nothing: that is the caller's part.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dormouse_runtime::brake::{Stop, swap_has_room};
use dormouse_runtime::kernel::Linux;
use dormouse_runtime::prefetch::{PrefetchLimits, prefetch};
use dormouse_runtime::reclaim::guard::{Guard, main_if_requested};
use dormouse_runtime::reclaim::{
    Ledger, LoweredLimit, NoteError, Reclaim, Version, raise, restore_all, swappiness_of,
};
use dormouse_runtime::{PrefetchReport, pageout, reclaim};

struct Guarded(Guard);

impl Ledger for Guarded {
    fn note(&mut self, limit: &LoweredLimit) -> Result<(), NoteError> {
        self.0.note(limit).map_err(NoteError::Guard)
    }

    fn cross_out(&mut self, path: &Path) -> Result<(), NoteError> {
        self.0.cross_out(path).map_err(NoteError::Guard)
    }
}

fn main() {
    main_if_requested();
    let args: Vec<String> = std::env::args().collect();
    let dir = PathBuf::from(&args[2]);
    let first = args.get(3).and_then(|p| p.parse().ok());
    let mut brake = || -> Result<(), Stop> { swap_has_room(&Linux) };
    let processes = pageout::processes(&Linux, &dir).unwrap();
    let began = Instant::now();
    match args[1].as_str() {
        "out" => {
            let report = pageout::page_out(&Linux, &processes, &mut brake).unwrap();
            println!("page-out {:?} {report:?}", began.elapsed());
            reclaim_all(&dir);
        }
        "reclaim" => reclaim_all(&dir),
        "in" => {
            let rate = PrefetchLimits {
                bytes_per_second: NonZeroU64::new(env("RATE", 0) << 20),
                head_start: Duration::from_millis(env("HEAD", 80)),
                in_flight: env("FLIGHT", 512) << 10,
                ..PrefetchLimits::default()
            };
            let mut report = PrefetchReport::default();
            prefetch(&Linux, first, &processes, rate, &mut || Ok(()), &mut report).unwrap();
            println!("prefetch {report:?}");
        }
        "hold" => {
            let path = dir.join("memory.limit_in_bytes");
            let original = std::fs::read_to_string(&path).unwrap().trim().to_owned();
            let current = (64 << 20).to_string();
            let mut guard = Guard::spawn().unwrap();
            guard
                .note(&LoweredLimit {
                    path: path.clone(),
                    original,
                    current: current.clone(),
                })
                .unwrap();
            std::fs::write(&path, current).unwrap();
            println!("lowered");
            std::io::stdin().read_line(&mut String::new()).unwrap();
            guard.dismiss().unwrap();
            return;
        }
        _ => panic!("out, reclaim, in or hold"),
    }
    println!(
        "usage {} KiB",
        reclaim::usage(&Linux, &dir, Version::V1).unwrap() >> 10
    );
}

fn env(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |v| v.parse().unwrap())
}

fn reclaim_all(dir: &Path) {
    let began = Instant::now();
    let mut ledger = Guarded(Guard::spawn().unwrap());
    println!("guard {:?}", began.elapsed());
    let began = Instant::now();
    let changes = swappiness_of(&Linux, dir).unwrap();
    raise(&Linux, &changes, &mut ledger).unwrap();
    let mut reclaim = Reclaim::new(&Linux, dir, Version::V1);
    while !reclaim.step(&mut ledger, &mut || Ok(())).unwrap() {}
    let (back, failed) = restore_all(&Linux, &changes);
    println!(
        "reclaim {:?} {:?} put back {back} failed {failed:?}",
        began.elapsed(),
        reclaim.report()
    );
    ledger.0.dismiss().unwrap();
}
