//! The switch against a sandbox of the real runsc.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use dormouse_core::Reason;
use dormouse_sentry::record::{Intent, IntentKind, LoweredLimit};
use dormouse_sentry::{CgroupState, ProcessId, RunDir, Switch};
use support::{Sandbox, hold, runsc};

fn percentile(mut values: Vec<Duration>, p: usize) -> Duration {
    values.sort();
    values[(values.len() - 1) * p / 100]
}

#[test]
fn pauses_freezes_and_wakes() {
    let Some(runsc) = runsc() else { return };
    let sandbox = Sandbox::start(&runsc);
    let switch = sandbox.register();
    let mut held = hold(&switch);
    assert!(!held.probe().unwrap());
    assert_eq!(held.freeze_cgroup().unwrap_err().reason(), Reason::WakeWon);
    assert!(!held.pause().unwrap().already);
    assert!(held.pause().unwrap().already);
    assert!(held.probe().unwrap());
    held.freeze_cgroup().unwrap();
    held.freeze_cgroup().unwrap();
    let record = switch.record().unwrap();
    assert!(record.switch.paused && record.switch.cgroup == CgroupState::Frozen);
    let known = record.containers[0].last_known.as_ref().unwrap();
    assert!(!known.stopped && known.event.is_some());
    let state = std::fs::read_to_string(sandbox.freezer_dir().join("freezer.state")).unwrap();
    assert_eq!(state.trim(), "FROZEN");
    // Housekeeping: the cgroup runs, the application does not.
    held.thaw_cgroup().unwrap();
    assert!(held.probe().unwrap());
    held.freeze_cgroup().unwrap();
    let report = held.wake().unwrap();
    assert!(report.woken && report.was_frozen);
    assert!(!held.wake().unwrap().woken);
    assert!(!held.probe().unwrap());
    drop(held);
    sandbox.ok(&runsc, &["exec", sandbox.id.as_str(), "/bin/true"]);
    let record = switch.record().unwrap();
    assert!(record.cgroup.as_ref().unwrap().memory().unwrap().current > 0);
    assert!(record.cgroup.unwrap().cpu_ns().unwrap().unwrap() > 0);

    let (mut pauses, mut freezes, mut wakes) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..50 {
        let started = Instant::now();
        hold(&switch).pause().unwrap();
        pauses.push(started.elapsed());
        let started = Instant::now();
        hold(&switch).freeze_cgroup().unwrap();
        freezes.push(started.elapsed());
        let started = Instant::now();
        hold(&switch).wake().unwrap();
        wakes.push(started.elapsed());
    }
    for (name, values) in [
        ("pause", pauses),
        ("capture + freeze cgroup", freezes),
        ("thaw + resume", wakes),
    ] {
        println!(
            "{name}: p50 {:?} p95 {:?}",
            percentile(values.clone(), 50),
            percentile(values, 95)
        );
    }
}

/// The first panic of a thread that others wait for at a barrier: it comes out when nobody waits any more.
#[derive(Default)]
struct Told(Option<Box<dyn std::any::Any + Send>>);

impl Told {
    fn about(&mut self, work: impl FnOnce()) {
        if self.0.is_none() {
            self.0 = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).err();
        }
    }

    fn out(self) {
        if let Some(panic) = self.0 {
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn a_thousand_wakes_at_once_are_one_each() {
    let Some(runsc) = runsc() else { return };
    let sandbox = Sandbox::start(&runsc);
    let switch = sandbox.register();
    let barrier = Barrier::new(3);
    let total = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let (mut woken, mut told) = (0, Told::default());
                    for _ in 0..1000 {
                        barrier.wait();
                        told.about(|| woken += u32::from(hold(&switch).wake().unwrap().woken));
                        barrier.wait();
                    }
                    told.out();
                    woken
                })
            })
            .collect();
        let mut told = Told::default();
        for round in 0..1000 {
            told.about(|| {
                let mut held = hold(&switch);
                held.pause().unwrap();
                if round % 4 == 0 {
                    held.freeze_cgroup().unwrap();
                }
            });
            barrier.wait();
            barrier.wait();
        }
        let total = workers.into_iter().map(|w| w.join().unwrap()).sum::<u32>();
        told.out();
        total
    });
    assert_eq!(total, 1000);
    assert!(!hold(&switch).probe().unwrap());
    sandbox.ok(&runsc, &["exec", sandbox.id.as_str(), "/bin/true"]);
}

#[test]
fn wakes_from_two_processes_at_once() {
    let Some(runsc) = runsc() else { return };
    let sandbox = Sandbox::start(&runsc);
    let switch = sandbox.register();
    let workers: Vec<_> = (0..2)
        .map(|_| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "wake_worker", "--ignored", "--nocapture"])
                .env("WAKE_RUN_DIR", sandbox.run.path())
                .env("WAKE_ID", sandbox.id.as_str())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let deadline = Instant::now() + Duration::from_secs(60);
    for round in 0..1000 {
        let wakes = switch.record().unwrap().switch.wakes;
        let mut held = hold(&switch);
        held.pause().unwrap();
        if round % 4 == 0 {
            held.freeze_cgroup().unwrap();
        }
        drop(held);
        while switch.record().unwrap().switch.wakes == wakes {
            assert!(Instant::now() < deadline, "nobody woke the guest");
            std::thread::yield_now();
        }
    }
    std::fs::write(sandbox.run.path().join("stop"), "").unwrap();
    let mut woken = 0_u32;
    for worker in workers {
        let output = worker.wait_with_output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        let count = text.split("woken=").nth(1).unwrap().split('.').next().unwrap();
        woken += count.parse::<u32>().unwrap();
    }
    assert_eq!(woken, 1000);
    assert!(!hold(&switch).probe().unwrap());
    sandbox.ok(&runsc, &["exec", sandbox.id.as_str(), "/bin/true"]);
}

/// Not a test of its own: the other process of the test above.
#[test]
#[ignore = "started by wakes_from_two_processes_at_once"]
fn wake_worker() {
    let Some(dir) = std::env::var_os("WAKE_RUN_DIR") else {
        return;
    };
    let dir = RunDir::new(dir).unwrap();
    let switch = Switch::open(&dir, &std::env::var("WAKE_ID").unwrap().parse().unwrap());
    let mut woken = 0;
    while !dir.path().join("stop").exists() {
        // Like a wake source: only what sleeps is woken, but several see it at once.
        if switch.record().unwrap().switch.paused {
            woken += u32::from(hold(&switch).wake().unwrap().woken);
        }
    }
    println!("woken={woken}.");
}

#[test]
fn the_truth_is_found_after_every_kind_of_crash() {
    let Some(runsc) = runsc() else { return };
    let sandbox = Sandbox::start(&runsc);
    let switch = sandbox.register();
    let dead = ProcessId {
        pid: 1,
        start: u64::MAX,
    };
    for kind in [IntentKind::Pause, IntentKind::Resume] {
        for paused in [false, true] {
            for frozen in [false, true] {
                let mut held = hold(&switch);
                if paused || frozen {
                    held.pause().unwrap();
                }
                if frozen {
                    held.freeze_cgroup().unwrap();
                }
                let really = held.record().switch.paused;
                // What a process leaves that was killed before, or after, the call.
                held.update(|r| {
                    r.switch.intent = Some(Intent { kind, by: dead });
                    r.switch.paused = kind == IntentKind::Resume;
                })
                .unwrap();
                drop(held);
                let mut held = hold(&switch);
                assert_eq!(held.settle().unwrap(), really, "{kind:?} {paused} {frozen}");
                held.wake().unwrap();
                assert!(!held.probe().unwrap());
                assert!(held.record().switch.intent.is_none());
            }
        }
    }
    // A freeze that was not written down.
    let mut held = hold(&switch);
    held.pause().unwrap();
    held.freeze_cgroup().unwrap();
    held.update(|r| {
        r.switch.intent = Some(Intent {
            kind: IntentKind::CgroupFreeze,
            by: dead,
        });
        r.switch.cgroup = CgroupState::Thawed;
    })
    .unwrap();
    drop(held);
    assert!(hold(&switch).wake().unwrap().woken);
    sandbox.ok(&runsc, &["exec", sandbox.id.as_str(), "/bin/true"]);
}

#[test]
fn a_dead_guest_is_said_to_be_dead() {
    let Some(runsc) = runsc() else { return };
    let sandbox = Sandbox::start(&runsc);
    let switch = sandbox.register();
    let mut held = hold(&switch);
    held.pause().unwrap();
    held.freeze_cgroup().unwrap();
    let (sentry, _) = held.locate().unwrap();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(sentry.pid),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    // A frozen process dies only once it is thawed (v1).
    std::fs::write(sandbox.freezer_dir().join("freezer.state"), "THAWED").unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while sentry.is_alive() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(held.wake().unwrap_err().reason(), Reason::GuestGone);
    drop(held);
    hold(&switch).forget().unwrap();
    assert!(switch.record().unwrap_err().is_missing());
}

#[test]
fn a_wake_puts_a_lowered_limit_back() {
    let Some(runsc) = runsc() else { return };
    let sandbox = Sandbox::start(&runsc);
    let switch = sandbox.register();
    let mut held = hold(&switch);
    held.pause().unwrap();
    let limit = held
        .find_cgroup()
        .unwrap()
        .memory_dir()
        .join("memory.limit_in_bytes");
    let read = || std::fs::read_to_string(&limit).unwrap().trim().to_owned();
    let original = read();
    let lowered = (256_u64 << 20).to_string();
    held.update(|r| {
        r.put_limit(LoweredLimit {
            path: limit.clone(),
            original: original.clone(),
            current: lowered.clone(),
        });
    })
    .unwrap();
    std::fs::write(&limit, &lowered).unwrap();
    held.wake().unwrap();
    assert_eq!(read(), original);
    assert!(switch.record().unwrap().limits.is_empty());
    // One that somebody else has set meanwhile stays.
    held.update(|r| {
        r.put_limit(LoweredLimit {
            path: limit.clone(),
            original: original.clone(),
            current: lowered,
        });
    })
    .unwrap();
    let theirs = (512_u64 << 20).to_string();
    std::fs::write(&limit, &theirs).unwrap();
    held.wake().unwrap();
    assert_eq!(read(), theirs);
    assert!(switch.record().unwrap().limits.is_empty());
}
