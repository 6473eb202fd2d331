//! The guest is what the other suites count on.

use std::fs;

pub(super) fn as_promised() {
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.subtree_control").unwrap();
    for wanted in ["memory", "cpu", "io", "pids", "cpuset"] {
        assert!(
            controllers.split_whitespace().any(|have| have == wanted),
            "no {wanted} in {controllers}"
        );
    }
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    assert!(
        !mounts
            .lines()
            .any(|line| line.split(' ').nth(2) == Some("cgroup")),
        "cgroup v1 is mounted"
    );
    assert_eq!(
        fs::read_to_string("/proc/swaps").unwrap().lines().count(),
        1,
        "swap is on at boot"
    );
    assert!(fs::metadata("/sys/module/ipvlan").is_ok() && fs::metadata("/sys/module/overlay").is_ok());
    println!("{}", fs::read_to_string("/proc/version").unwrap().trim());
}
