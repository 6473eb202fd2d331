//! Holds memory, as a pod would: `hog MIB`. Half is private, half in a memory file. Says `ready`, then answers each
//! line on its standard input with a hash of all of it and the number of ticks of a thread that never rests.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::io::{BufRead, Read, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

fn main() {
    let mib: usize = std::env::args().nth(1).unwrap().parse().unwrap();
    let mut private = vec![0_u8; mib << 19];
    File::open("/dev/urandom")
        .unwrap()
        .read_exact(&mut private)
        .unwrap();
    let fd = nix::sys::memfd::memfd_create(c"hog", nix::sys::memfd::MFdFlags::empty()).unwrap();
    let mut shared = File::from(fd);
    shared.write_all(&private).unwrap();
    let ticks = Arc::new(AtomicU64::new(0));
    let ticker = ticks.clone();
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_millis(10));
            ticker.fetch_add(1, Ordering::Relaxed);
        }
    });
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        line.unwrap();
        let mut hasher = DefaultHasher::new();
        hasher.write(&private);
        let mut buffer = vec![0; 1 << 20];
        shared.seek(SeekFrom::Start(0)).unwrap();
        loop {
            let n = shared.read(&mut buffer).unwrap();
            if n == 0 {
                break;
            }
            hasher.write(&buffer[..n]);
        }
        println!("{:x} {}", hasher.finish(), ticks.load(Ordering::Relaxed));
    }
}
