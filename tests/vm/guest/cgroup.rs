//! What dozing needs of cgroup v2, looked at without Dormouse: `memory.reclaim`, `memory.swap.max` and the freezer.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use dormouse_testkit::host::wait;
use dormouse_testkit::swap::TestSwap;

use super::pages::Pages;

const MIB: u64 = 1 << 20;

pub(super) fn reclaim_and_freeze() {
    capture_modules();
    let _swap = TestSwap::zram(128 * MIB, "lz4", 5).unwrap();
    let pages = Pages::new("v2pages", 64);
    let limit = pages.cgroup.join("memory.swap.max");
    // As kubelet leaves it: no swap for pods.
    fs::write(&limit, "0").unwrap();
    let _ = pages.reclaim(48 * MIB);
    assert_eq!(pages.swapped(), 0, "swap.max 0 was not obeyed");
    fs::write(&limit, "max").unwrap();
    for _ in 0..10 {
        let _ = pages.reclaim(48 * MIB);
    }
    println!(
        "{} MiB charged, {} MiB in swap",
        pages.charged() / MIB,
        pages.swapped() / MIB
    );
    assert!(pages.swapped() > 40 * MIB && pages.charged() < 24 * MIB);
    // Put back while pages are out: they stay out and come back by faults.
    fs::write(&limit, "0").unwrap();
    assert!(pages.swapped() > 40 * MIB);
    pages.assert_intact();

    let frozen = pages.cgroup.join("frozen");
    fs::create_dir(&frozen).unwrap();
    let mut child = Command::new("sleep")
        .arg("1000")
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    fs::write(frozen.join("cgroup.procs"), child.id().to_string()).unwrap();
    fs::write(pages.cgroup.join("cgroup.freeze"), "1").unwrap();
    let events = || fs::read_to_string(frozen.join("cgroup.events")).unwrap();
    assert!(
        wait::until_true(Duration::from_secs(5), || events().contains("frozen 1")),
        "{}",
        events()
    );
    // Unlike v1, v2 kills the frozen.
    child.kill().unwrap();
    child.wait().unwrap();
    fs::write(pages.cgroup.join("cgroup.freeze"), "0").unwrap();
    assert!(wait::until_true(Duration::from_secs(5), || fs::remove_dir(
        &frozen
    )
    .is_ok()));
}

fn capture_modules() {
    dormouse_testkit::host::command::capture(Command::new("modprobe").arg("zram")).unwrap();
}
