//! What this machine's kernel lacks, in a QEMU guest: cgroup v2 with controllers, device mapper, ipvlan.
//!
//! The same binary is both sides. On the host each test below is the verdict on one suite of a single boot (a boot
//! costs seconds under emulation). In the guest the suites are the ignored tests of module `guest`, run one by one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod guest;

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use dormouse_testkit::Built;
use dormouse_testkit::vm::{self, Payload, Report, Suite, VmOptions};

/// Declares for each suite the host's verdict and where it is in the guest.
macro_rules! suites {
    ($($(#[$attribute:meta])* $name:ident: $limit:literal;)+) => {
        /// Name and limit in seconds of every suite, in the order in which they run.
        const SUITES: &[(&str, u64)] = &[$((stringify!($name), $limit)),+];

        $(
            $(#[$attribute])*
            #[test]
            fn $name() {
                verdict(stringify!($name));
            }
        )+
    };
}

suites! {
    kernel_is_as_promised: 30;
    no_swap_and_plain_swap_and_kubelet: 60;
    encrypted_swap_comes_holds_and_goes: 120;
    swap_survives_a_restart_and_a_torn_start: 60;
    full_swap_is_said: 60;
    cgroup_v2_reclaim_and_freeze: 60;
    packets_wake_on_ipvlan: 60;
    gvisor_runs_on_this_cpu: 60;
    gvisor_pod_sleeps_and_wakes: 240;
}

fn report() -> &'static Report {
    static REPORT: OnceLock<Result<Report, String>> = OnceLock::new();
    let report = REPORT.get_or_init(|| {
        let built = Built::find().map_err(|error| format!("{error:#}"))?;
        let me = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut payload = Payload::new().stack(&built).with(me, "vm");
        // For a person at work on one suite; the verdicts on the others then fail.
        let only = std::env::var("DORMOUSE_VM_ONLY").ok();
        let wanted = |name: &str| {
            only.as_deref()
                .is_none_or(|list| list.split(',').any(|one| one == name))
        };
        if wanted("packets_wake_on_ipvlan") {
            payload = payload.with(net_tests()?, "net");
        }
        let suites: Vec<Suite> = SUITES
            .iter()
            .filter(|(name, _)| wanted(name))
            .map(|(name, limit)| suite(name, *limit))
            .collect();
        vm::run(&payload, &suites, VmOptions::default()).map_err(|error| format!("{error:#}"))
    });
    match report {
        Ok(report) => report,
        Err(error) => panic!("{error}"),
    }
}

/// Builds the tests of packet wake that need namespaces, and says where they are. Cargo is asked, because only it
/// knows which of the binaries in its directory is the present one.
fn net_tests() -> Result<PathBuf, String> {
    // The same selection of packages as of what was just built, or all that they need would be built again. By itself, with
    // this package named beside the other, the dependencies are those of this one.
    let selection = std::env::var("DORMOUSE_CARGO_SELECTION")
        .unwrap_or_else(|_| "-p dormouse-tests -p dormouse-net".to_owned());
    let out = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .args(["test", "--quiet", "--no-run", "--message-format=json"])
        .args(selection.split_whitespace())
        .args(["--test", "namespaces"])
        .output()
        .map_err(|error| format!("start cargo: {error}"))?;
    let messages = String::from_utf8_lossy(&out.stdout);
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| {
            message["reason"] == "compiler-artifact" && message["target"]["name"] == "namespaces"
        })
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .ok_or_else(|| {
            format!(
                "build the tests of packet wake: {}",
                String::from_utf8_lossy(&out.stderr)
            )
        })
}

fn suite(name: &str, limit: u64) -> Suite {
    // A filter that matches nothing is a success for the test harness, so its count is looked at. What a failed
    // suite leaves is cleared away, so that it does not take the others down with it.
    let command = format!(
        "/payload/vm --exact guest::{name} --ignored --nocapture --test-threads=1 >/tmp/suite 2>&1; status=$?; \
         cat /tmp/suite; [ $status = 0 ] && grep -q '1 passed; 0 failed' /tmp/suite && exit 0; \
         for area in $(awk 'NR > 1 {{ print $1 }}' /proc/swaps); do swapoff $area; done; \
         dmsetup remove_all; for loop in $(losetup -a | cut -d: -f1); do losetup -d $loop; done; rm -rf {scratch}/dormouse-swap; \
         grep -A1 panicked /tmp/suite | tail -n 1; exit 1",
        scratch = vm::SCRATCH,
    );
    Suite {
        name: name.to_owned(),
        command,
        limit: Duration::from_secs(limit),
    }
}

fn verdict(name: &str) {
    let report = report();
    let Some(outcome) = report.outcomes.get(name) else {
        panic!("not among DORMOUSE_VM_ONLY")
    };
    println!(
        "{name}: {:.1} s in the guest, which was up after {:.1} s",
        outcome.seconds,
        report.booted.as_secs_f64()
    );
    assert!(
        outcome.passed,
        "{name}: {}\n{}\n(the whole console: {})",
        outcome.detail,
        outcome.log,
        report.console.display()
    );
}

#[test]
fn the_whole_run_is_short() {
    let report = report();
    assert!(report.took < Duration::from_secs(360), "{:?}", report.took);
}
