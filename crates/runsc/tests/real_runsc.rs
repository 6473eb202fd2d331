//! The wrapper around the real runsc, on sandboxes that run, sleep and end.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

#[path = "../../sentry/tests/support/mod.rs"]
mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dormouse_core::WakeSource;
use dormouse_sentry::record::{Intent, IntentKind};
use dormouse_sentry::{CgroupState, ProcessId, SwitchError, WakeListener};
use serde_json::Value;
use support::{Sandbox, hold, runsc};

/// The wrapper with a configuration beside it, as it is installed.
fn install(sandbox: &Sandbox) -> PathBuf {
    let bin = sandbox.dir.path().join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    let wrapper = bin.join("dormouse-runsc");
    // By another process: a test beside this one that starts a program would hand it a descriptor that is open for
    // writing here, and a binary that anybody may write to cannot be executed.
    let copied = std::process::Command::new("cp")
        .arg(env!("CARGO_BIN_EXE_dormouse-runsc"))
        .arg(&wrapper)
        .status();
    assert!(copied.unwrap().success());
    let config = serde_json::json!({
        "runsc": sandbox.runsc, "run_dir": sandbox.run.path(), "trace": sandbox.dir.path().join("trace"),
    });
    let path = bin.join("dormouse-runsc.json");
    std::fs::write(&path, config.to_string()).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    wrapper
}

/// A pod with one container besides its own, made through the wrapper.
fn pod(runsc: &Path) -> (Sandbox, PathBuf, String) {
    let mut sandbox = Sandbox::prepare(runsc);
    let wrapper = install(&sandbox);
    let id = sandbox.id.as_str().to_owned();
    sandbox.create(&wrapper, &id);
    sandbox.ok(&wrapper, &["start", &id]);
    let app = format!("app-{id}");
    sandbox.add(&wrapper, &app, &["/bin/sleep", "1000000"]);
    (sandbox, wrapper, app)
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

fn doze(sandbox: &Sandbox) {
    let mut held = hold(&sandbox.switch());
    unvisited(|| held.pause().map(drop));
    unvisited(|| held.freeze_cgroup());
}

/// Tries again as the agent does. What a test beside this one has forked holds a copy of the lock until its `exec`.
fn unvisited(mut step: impl FnMut() -> Result<(), SwitchError>) {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        match step() {
            Err(SwitchError::Visited { .. }) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            done => return done.unwrap(),
        }
    }
}

fn is_awake(sandbox: &Sandbox) -> bool {
    let record = sandbox.switch().record().unwrap();
    !record.switch.paused && record.switch.cgroup == CgroupState::Thawed
}

/// Runs and fails the test if it takes longer than a hanging verb is allowed to.
fn quick(sandbox: &Sandbox, binary: &Path, args: &[&str]) -> String {
    let started = Instant::now();
    let text = sandbox.ok(binary, args);
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "{args:?} took {:?}",
        started.elapsed()
    );
    text
}

#[test]
fn answers_as_the_real_one_does() {
    let Some(runsc) = runsc() else { return };
    let mut sandbox = Sandbox::prepare(&runsc);
    let wrapper = install(&sandbox);
    let id = sandbox.id.as_str().to_owned();
    sandbox.create(&wrapper, &id);
    let both = |sandbox: &Sandbox, args: &[&str]| {
        let (real, ours) = (sandbox.ok(&sandbox.runsc, args), sandbox.ok(&wrapper, args));
        assert_eq!(ours, real, "{args:?}");
        real
    };
    assert_eq!(json(&both(&sandbox, &["state", &id]))["status"], "created");
    sandbox.ok(&wrapper, &["start", &id]);
    assert_eq!(json(&both(&sandbox, &["state", &id]))["status"], "running");
    let (app, ended) = (format!("app-{id}"), format!("ended-{id}"));
    sandbox.add(&wrapper, &app, &["/bin/sleep", "1000000"]);
    sandbox.add(&wrapper, &ended, &["/bin/true"]);
    assert_eq!(json(&both(&sandbox, &["state", &app]))["status"], "running");
    let deadline = Instant::now() + Duration::from_secs(10);
    while json(&both(&sandbox, &["state", &ended]))["status"] != "stopped" {
        assert!(Instant::now() < deadline);
    }
    let trace = std::fs::read_to_string(sandbox.dir.path().join("trace")).unwrap();
    assert!(
        trace
            .lines()
            .any(|l| l.contains("\"state\"") && l.contains("answered")),
        "{trace}"
    );

    // Asleep: the same answers, from the record.
    let running: Vec<_> = [&id, &app].map(|c| sandbox.ok(&runsc, &["state", c])).into();
    let stopped = sandbox.ok(&runsc, &["state", &ended]);
    let refusal = sandbox.out(&runsc, &["events", "--stats", &ended]).status.code();
    let ps = sandbox.ok(&runsc, &["ps", "--format", "json", &app]);
    let table = sandbox.ok(&runsc, &["ps", &app]);
    let mut events = json(&sandbox.ok(&runsc, &["events", "--stats", &app]));
    for depth in ["Frozen", "Dozing"] {
        let mut held = hold(&sandbox.switch());
        unvisited(|| held.pause().map(drop));
        if depth == "Dozing" {
            unvisited(|| held.freeze_cgroup());
        }
        drop(held);
        for (container, expected) in [(&id, &running[0]), (&app, &running[1]), (&ended, &stopped)] {
            assert_eq!(
                &quick(&sandbox, &wrapper, &["state", container]),
                expected,
                "{depth} {container}"
            );
        }
        assert_eq!(
            quick(&sandbox, &wrapper, &["ps", "--format", "json", &app]),
            ps,
            "{depth}"
        );
        let ours = quick(&sandbox, &wrapper, &["ps", &app]);
        // STIME and TIME aside, which move on.
        assert_eq!(ours.lines().count(), table.lines().count(), "{ours}{table}");
        assert_eq!(ours.lines().next(), table.lines().next());
        let mut asleep = json(&quick(&sandbox, &wrapper, &["events", "--stats", &app]));
        let cpu = |v: &Value| v["data"]["cpu"]["usage"]["total"].as_u64().unwrap();
        assert!(cpu(&asleep) > 0 && cpu(&events) > 0);
        assert!(
            cpu(&asleep).abs_diff(cpu(&events)) < 500_000_000,
            "{asleep} {events}"
        );
        assert!(asleep["data"]["memory"]["usage"]["usage"].as_u64().unwrap() > 0);
        for v in [&mut asleep, &mut events] {
            v["data"]["cpu"]["usage"]["total"] = 1.into();
            v["data"]["memory"]["usage"]["usage"] = 1.into();
        }
        assert_eq!(asleep, events, "{depth}");
        events = json(&sandbox.ok(&wrapper, &["events", "--stats", &app]));
        let refused = sandbox.out(&wrapper, &["events", "--stats", &ended]);
        assert_eq!(refused.status.code(), refusal, "{depth}");
        assert!(!is_awake(&sandbox), "{depth}: an answer has woken the pod");
    }
    hold(&sandbox.switch()).wake().unwrap();
    both(&sandbox, &["state", &app]);
}

#[test]
fn verbs_that_need_the_guest_wake_it() {
    let Some(runsc) = runsc() else { return };
    let (sandbox, wrapper, app) = pod(&runsc);
    let agent = WakeListener::bind(&sandbox.run).unwrap();
    doze(&sandbox);
    assert_eq!(
        quick(&sandbox, &wrapper, &["exec", &app, "/bin/echo", "hello"]),
        "hello\n"
    );
    assert!(is_awake(&sandbox));
    let note = agent.receive().unwrap().unwrap();
    assert_eq!(
        (note.source, note.woken, note.verb.as_str()),
        (WakeSource::Exec, true, "exec")
    );
    assert_eq!(note.container_id.as_str(), app);
    quick(&sandbox, &wrapper, &["exec", &app, "/bin/true"]);
    assert!(!agent.receive().unwrap().unwrap().woken);
    drop(agent);

    // The agent is down from here on.
    doze(&sandbox);
    quick(&sandbox, &wrapper, &["pause", sandbox.id.as_str()]);
    assert_eq!(
        json(&quick(&sandbox, &wrapper, &["state", sandbox.id.as_str()]))["status"],
        "paused"
    );
    quick(&sandbox, &wrapper, &["resume", sandbox.id.as_str()]);
    quick(&sandbox, &wrapper, &["exec", &app, "/bin/true"]);

    // update: new limits, still asleep.
    doze(&sandbox);
    let resources = sandbox.dir.path().join("resources.json");
    std::fs::write(
        &resources,
        r#"{"memory":{},"cpu":{"shares":512},"blockIO":{},"pids":{}}"#,
    )
    .unwrap();
    let flag = format!("--resources={}", resources.display());
    quick(&sandbox, &wrapper, &["update", &flag, &app]);
    assert!(!is_awake(&sandbox));
    assert_eq!(
        sandbox.switch().record().unwrap().switch.cgroup,
        CgroupState::Frozen
    );

    // A new container in a sleeping pod.
    let mut sandbox = sandbox;
    let late = format!("late-{}", sandbox.id);
    sandbox.add(&wrapper, &late, &["/bin/sleep", "1000000"]);
    assert!(is_awake(&sandbox));
    assert_eq!(sandbox.switch().record().unwrap().containers.len(), 3);

    // kill and delete, as the shim does it.
    doze(&sandbox);
    quick(&sandbox, &wrapper, &["kill", &late, "9"]);
    doze(&sandbox);
    quick(&sandbox, &wrapper, &["kill", "--all", &app, "9"]);
    let deadline = Instant::now() + Duration::from_secs(10);
    while json(&quick(&sandbox, &wrapper, &["state", &app]))["status"] != "stopped" {
        assert!(Instant::now() < deadline);
    }
    doze(&sandbox);
    quick(&sandbox, &wrapper, &["delete", &app]);
    assert_eq!(sandbox.switch().record().unwrap().containers.len(), 2);
    doze(&sandbox);
    quick(&sandbox, &wrapper, &["delete", "--force", &late]);
    doze(&sandbox);
    let id = sandbox.id.as_str().to_owned();
    quick(&sandbox, &wrapper, &["delete", "--force", &id]);
    assert!(sandbox.switch().record().unwrap_err().is_missing());
    assert!(sandbox.run.pods().unwrap().is_empty());
    assert!(!sandbox.freezer_dir().exists());
}

#[test]
fn a_pod_is_not_put_to_sleep_under_a_command() {
    let Some(runsc) = runsc() else { return };
    let (sandbox, wrapper, app) = pod(&runsc);
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    // Runs for as long as the test says; its first line says that it is in the guest.
    let mut command = sandbox
        .verb(
            &wrapper,
            &["exec", &app, "/bin/sh", "-c", "echo here; read -r line; true"],
        )
        .stdin(read)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(
        &mut std::io::BufReader::new(command.stdout.take().unwrap()),
        &mut line,
    )
    .unwrap();
    assert_eq!(line, "here\n");
    for _ in 0..3 {
        assert!(matches!(
            hold(&sandbox.switch()).pause(),
            Err(SwitchError::Visited { .. })
        ));
    }
    assert!(is_awake(&sandbox));
    // Other commands come and go meanwhile.
    quick(&sandbox, &wrapper, &["events", "--stats", &app]);
    drop(write);
    assert!(command.wait().unwrap().success());
    doze(&sandbox);

    // A command that goes on in the background does not keep the pod awake.
    let background = sandbox
        .verb(&wrapper, &["exec", "--detach", &app, "/bin/sleep", "1000"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status();
    assert!(background.unwrap().success());
    doze(&sandbox);
    assert!(!is_awake(&sandbox));

    // What is frozen under a command that is about to come is woken by it.
    let mut held = hold(&sandbox.switch());
    held.wake().unwrap();
    unvisited(|| held.pause().map(drop));
    drop(held);
    quick(&sandbox, &wrapper, &["exec", &app, "/bin/true"]);
    assert!(is_awake(&sandbox));
}

#[test]
fn bad_days() {
    let Some(runsc) = runsc() else { return };
    let (sandbox, wrapper, app) = pod(&runsc);
    let record = sandbox.run.record_path(&sandbox.id);

    // Garbage in the record of a frozen pod: every verb comes back, and the pod runs.
    for garbage in ["", "{}", "garbage", r#"{"version":99}"#] {
        for verb in [
            &["state", &app][..],
            &["exec", &app, "/bin/true"],
            &["events", "--stats", &app],
        ] {
            doze(&sandbox);
            std::fs::write(&record, garbage).unwrap();
            quick(&sandbox, &wrapper, verb);
            assert!(is_awake(&sandbox), "{garbage:?} {verb:?}");
            quick(&sandbox, &sandbox.runsc.clone(), &["exec", &app, "/bin/true"]);
        }
    }

    // Left in the middle of a step.
    let dead = ProcessId {
        pid: 1,
        start: u64::MAX,
    };
    doze(&sandbox);
    hold(&sandbox.switch())
        .update(|r| {
            r.switch.intent = Some(Intent {
                kind: IntentKind::Resume,
                by: dead,
            });
        })
        .unwrap();
    quick(&sandbox, &wrapper, &["exec", &app, "/bin/true"]);

    // The guest is killed in its sleep: told as stopped, and deleted.
    doze(&sandbox);
    let sentry = sandbox.switch().record().unwrap().sentry.unwrap();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(sentry.pid),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    // v1: dies when thawed, which the wrapper does.
    let _ = sandbox.out(&wrapper, &["kill", "--all", &app, "9"]);
    for container in [&app, sandbox.id.as_str()] {
        quick(&sandbox, &wrapper, &["delete", "--force", container]);
    }
    assert!(sandbox.run.pods().unwrap().is_empty());
}

#[test]
fn a_killed_guest_is_deleted() {
    let Some(runsc) = runsc() else { return };
    let (sandbox, wrapper, app) = pod(&runsc);
    doze(&sandbox);
    let sentry = sandbox.switch().record().unwrap().sentry.unwrap();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(sentry.pid),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    for container in [&app, sandbox.id.as_str()] {
        quick(&sandbox, &wrapper, &["delete", container]);
    }
    assert!(sandbox.run.pods().unwrap().is_empty());
}

#[test]
fn a_control_socket_that_is_missing_or_hangs() {
    let Some(runsc) = runsc() else { return };
    let (sandbox, wrapper, app) = pod(&runsc);
    let socket = sandbox.root.join(format!("runsc-{}.sock", sandbox.id));
    let away = sandbox.root.join("away.sock");
    // Missing: the real runsc says it in its own way, at once, and nothing is lost.
    std::fs::rename(&socket, &away).unwrap();
    let refused = sandbox.out(&wrapper, &["exec", &app, "/bin/true"]);
    assert!(!refused.status.success());
    // The real one's state falls back to asking whether the process lives.
    assert_eq!(
        json(&quick(&sandbox, &wrapper, &["state", &app]))["status"],
        "running"
    );
    // Hanging: one that listens and never answers. What is asleep is still told from the record.
    std::fs::rename(&away, &socket).unwrap();
    doze(&sandbox);
    std::fs::rename(&socket, &away).unwrap();
    let _mute = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    assert_eq!(
        json(&quick(&sandbox, &wrapper, &["state", &app]))["status"],
        "running"
    );
    quick(&sandbox, &wrapper, &["events", "--stats", &app]);
    std::fs::remove_file(&socket).unwrap();
    std::fs::rename(&away, &socket).unwrap();
    quick(&sandbox, &wrapper, &["exec", &app, "/bin/true"]);
}

#[test]
fn a_configuration_that_is_missing_or_unsafe_is_said_clearly() {
    let Some(runsc) = runsc() else { return };
    let sandbox = Sandbox::prepare(&runsc);
    let wrapper = install(&sandbox);
    let config = sandbox.dir.path().join("bin/dormouse-runsc.json");
    let fails = |what: &str| {
        let output = sandbox.out(&wrapper, &["state", "x"]);
        assert_eq!(output.status.code(), Some(128));
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains(what), "{text}");
        let log = std::fs::read_to_string(sandbox.dir.path().join("log.json")).unwrap();
        let last = json(log.lines().last().unwrap());
        assert!(
            last["msg"].as_str().unwrap().contains(what) && last["level"] == "error",
            "{log}"
        );
    };
    let good = std::fs::read_to_string(&config).unwrap();
    std::fs::set_permissions(&config, std::fs::Permissions::from_mode(0o666)).unwrap();
    fails("must belong to root");
    std::fs::remove_file(&config).unwrap();
    fails("no configuration");
    for (bad, what) in [
        ("{", "is not valid"),
        (r#"{"runsc":"/bin/true","unknown":1}"#, "unknown field"),
        (r#"{"runsc":"bin/true"}"#, "not an absolute path"),
        (
            r#"{"runsc":"/nonexistent/runsc"}"#,
            "/nonexistent/runsc does not exist",
        ),
    ] {
        std::fs::write(&config, bad).unwrap();
        fails(what);
    }
    std::fs::write(&config, good).unwrap();
    assert!(sandbox.ok(&wrapper, &["--version"]).contains("runsc version"));
    let own = std::process::Command::new(&wrapper)
        .arg("--dormouse-version")
        .output()
        .unwrap();
    assert!(
        String::from_utf8(own.stdout)
            .unwrap()
            .starts_with("dormouse-runsc ")
    );
}

#[test]
fn latency_of_each_verb() {
    let Some(runsc) = runsc() else { return };
    let (sandbox, wrapper, app) = pod(&runsc);
    let median = |binary: &Path, args: &[&str]| {
        let mut times: Vec<Duration> = (0..30)
            .map(|_| {
                let started = Instant::now();
                sandbox.ok(binary, args);
                started.elapsed()
            })
            .collect();
        times.sort();
        times[times.len() / 2].as_secs_f64() * 1e3
    };
    println!("verb, p50 ms (n=30): bare runsc | wrapper, running | wrapper, dozing");
    for args in [
        &["state", &app][..],
        &["events", "--stats", &app],
        &["ps", "--format", "json", &app],
        &["exec", &app, "/bin/true"],
        &["--version"],
    ] {
        let (bare, ours) = (median(&runsc, args), median(&wrapper, args));
        let dozing = matches!(args[0], "state" | "events" | "ps").then(|| {
            doze(&sandbox);
            let ms = median(&wrapper, args);
            hold(&sandbox.switch()).wake().unwrap();
            ms
        });
        println!("{:<8} {bare:.2} | {ours:.2} | {dozing:?}", args[0]);
    }
}
