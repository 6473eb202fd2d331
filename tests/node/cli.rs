//! The built command line against a real agent and a real containerd.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use dormouse_testkit::host::{cgroup, wait};
use dormouse_testkit::rig::Rig;
use dormouse_testkit::{BUSYBOX, DORMOUSE_GVISOR, PYTHON, http};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use crate::support::{LIMIT, swap};

/// Holds memory that can be told apart from other memory, and answers with it over HTTP.
const SERVER: &str = "import os, http.server
block = os.urandom(32 << 20)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        import hashlib
        body = hashlib.sha256(block).hexdigest().encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *arguments):
        pass
http.server.HTTPServer(('', 8080), Handler).serve_forever()";

/// What a command of the CLI ended with.
#[derive(Debug)]
struct Said {
    code: i32,
    out: String,
    err: String,
}

/// The command line of one stack.
struct Cli {
    binary: PathBuf,
    socket: PathBuf,
    endpoint: String,
    logs: PathBuf,
}

impl Cli {
    fn of(rig: &Rig) -> Self {
        Self {
            binary: rig.stack.built().own("dormouse").unwrap(),
            socket: rig.agent.paths().socket.clone(),
            endpoint: format!("unix://{}", rig.stack.socket().display()),
            logs: rig.stack.dir().join("pod-logs"),
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .env_remove("DORMOUSE_SOCKET")
            .env("CONTAINER_RUNTIME_ENDPOINT", &self.endpoint)
            .arg("--socket")
            .arg(&self.socket)
            .args(arguments)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs it to its end, however it ends.
    async fn say(&self, arguments: &[&str]) -> Said {
        let ended = tokio::time::timeout(LIMIT, self.command(arguments).output()).await;
        let Output {
            status,
            stdout,
            stderr,
        } = ended.expect("it ends").unwrap();
        let said = Said {
            code: status.code().expect("it ends by itself"),
            out: String::from_utf8(stdout).unwrap(),
            err: String::from_utf8(stderr).unwrap(),
        };
        println!(
            "dormouse {}: exit {}\n{}{}",
            arguments[0], said.code, said.out, said.err
        );
        said
    }

    /// Runs it and takes success for granted.
    async fn good(&self, arguments: &[&str]) -> String {
        let said = self.say(arguments).await;
        assert_eq!(said.code, 0, "dormouse {arguments:?}: {said:?}");
        said.out
    }

    async fn json(&self, arguments: &[&str]) -> Value {
        let out = self.good(&[arguments, &["-o", "json"]].concat()).await;
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
    }

    /// `dormouse run` of an image with more flags, waited for until the agent says that it may be put to sleep.
    async fn run(&self, name: &str, image: &str, flags: &[&str], command: &[&str]) -> Running {
        let logs = self.logs.display().to_string();
        let first = ["run", "--name", name, "--image", image, "--log-root", &logs];
        let arguments = [&first[..], flags, &["-o", "json", "--"], command].concat();
        let said = self.say(&arguments).await;
        assert_eq!(said.code, 0, "{said:?}");
        let started: Value = serde_json::from_str(&said.out).unwrap();
        let uid = started["uid"].as_str().unwrap().to_owned();
        let running = Running {
            cgroup: format!("/dormouse/pod{uid}"),
            log: PathBuf::from(started["log"].as_str().unwrap()),
            address: started["addresses"][0].as_str().map(str::to_owned),
            uid,
        };
        wait::until("the agent to know the pod", LIMIT, async || {
            let said = self.say(&["get", &running.uid, "-o", "json"]).await;
            anyhow::ensure!(said.code == 0, "{}", said.err);
            let view: Value = serde_json::from_str(&said.out)?;
            let able = view["capabilities"].as_array().is_some_and(|all| {
                all.iter()
                    .any(|one| one["name"] == "freeze" && one["available"] == true)
            });
            anyhow::ensure!(able, "{}", view["capabilities"]);
            Ok(())
        })
        .await
        .unwrap();
        running
    }

    async fn rung(&self, pod: &str) -> String {
        self.json(&["get", pod]).await["rung"]
            .as_str()
            .unwrap()
            .to_owned()
    }
}

/// A pod that `dormouse run` started. Its cgroup is not below the stack's, so a failed test takes it away itself.
struct Running {
    uid: String,
    cgroup: String,
    log: PathBuf,
    address: Option<String>,
}

impl Running {
    /// The directories of its cgroup, in all hierarchies, that are there.
    fn cgroups(&self) -> Vec<PathBuf> {
        let hierarchies = cgroup::hierarchies().unwrap();
        let all = hierarchies.iter().map(|hierarchy| hierarchy.path(&self.cgroup));
        all.filter(|dir| dir.exists()).collect()
    }

    fn http(&self) -> std::net::SocketAddr {
        format!("{}:8080", self.address.as_deref().expect("a pod has an address"))
            .parse()
            .unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            cgroup::thaw(&self.cgroup);
            for pid in cgroup::processes(&self.cgroup) {
                // It may have ended in this moment.
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
            let _ = cgroup::remove(&self.cgroup);
        }
    }
}

fn column<'a>(table: &'a str, pod: &str) -> Vec<&'a str> {
    let line = table
        .lines()
        .find(|line| line.split_whitespace().nth(1) == Some(pod));
    line.unwrap_or_else(|| panic!("{pod} is not in\n{table}"))
        .split_whitespace()
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_runs_moves_shows_and_removes_pods() {
    let _swap = swap();
    let rig = Rig::plain().await.unwrap();
    let cli = Cli::of(&rig);
    let flags = [
        "--label",
        "app=server",
        "--idle-timeout",
        "1h",
        "--memory",
        "512Mi",
    ];
    let server = cli
        .run("server", PYTHON, &flags, &["/usr/bin/python3", "-c", SERVER])
        .await;
    let idler = cli
        .run(
            "idler",
            BUSYBOX,
            &["--label", "app=idler"],
            &["/bin/sleep", "1000"],
        )
        .await;
    assert!(!server.cgroups().is_empty() && server.log.exists());
    let hash = wait::until("the server to answer", LIMIT, async || {
        http::get(server.http(), "/", LIMIT).await
    })
    .await
    .unwrap()
    .body;

    let listed = cli.json(&["ps"]).await;
    let names: Vec<&str> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|pod| pod["name"].as_str().unwrap())
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
    let listed = cli.json(&["ps", "-l", "app=server"]).await;
    assert_eq!(listed[0]["uid"], server.uid);
    assert_eq!(listed[0]["handler"], DORMOUSE_GVISOR);
    assert_eq!(listed[0]["policy"]["idleTimeout"], "1h");
    assert_eq!(listed[0]["managed"], true);
    assert_eq!(listed.as_array().unwrap().len(), 1);

    // Down by name, one step and two; the order says where it led, and a repeated one moves nothing.
    assert!(
        cli.good(&["freeze", "server"])
            .await
            .starts_with("default/server  Frozen  ")
    );
    assert_eq!(
        cli.good(&["freeze", "server"]).await,
        "default/server  Frozen already\n"
    );
    let dozed = cli.json(&["doze", "default/server"]).await;
    assert_eq!(
        (&dozed[0]["ok"], &dozed[0]["rung"]),
        (&Value::Bool(true), &Value::from("Dozing")),
        "{dozed}"
    );
    let table = cli.good(&["ps"]).await;
    assert_eq!(
        table.lines().next().unwrap().split_whitespace().nth(3),
        Some("RUNG")
    );
    assert_eq!(column(&table, "server")[3], "Dozing");
    assert_eq!(column(&table, "idler")[3], "Running");
    let view = cli.json(&["get", "server"]).await;
    let (now, before) = (
        view["residentBytes"].as_u64().unwrap(),
        view["residentBeforeBytes"].as_u64().unwrap(),
    );
    assert!(before > 48 << 20 && now < 20 << 20, "{before} -> {now}");

    // Up by a selector that means only one of two sleepers.
    cli.good(&["doze", "idler"]).await;
    let woken = cli.json(&["wake", "-l", "app=server"]).await;
    assert_eq!(woken.as_array().unwrap().len(), 1, "{woken}");
    assert_eq!(woken[0]["pod"], "default/server");
    assert_eq!(cli.rung("server").await, "Running");
    assert_eq!(cli.rung("idler").await, "Dozing");
    let again = http::get(server.http(), "/", LIMIT).await.unwrap().body;
    assert_eq!(again, hash, "the memory is as it was");
    assert_eq!(cli.json(&["get", "server"]).await["lastWake"]["source"], "Api");
    let text = cli.good(&["get", "server"]).await;
    for line in [
        "Pod           default/server",
        "Rung          Running",
        "Label         app=server",
    ] {
        assert!(text.lines().any(|has| has == line), "{line:?} is not in\n{text}");
    }

    // One that was awake and one that sleeps go alike, and nothing stays.
    let out = cli.good(&["rm", "server", "idler", "--grace", "1s"]).await;
    assert_eq!(
        out.lines().filter(|line| line.ends_with("  removed")).count(),
        2,
        "{out}"
    );
    for pod in [&server, &idler] {
        assert_eq!(pod.cgroups(), Vec::<PathBuf>::new());
        assert!(
            !pod.log.parent().unwrap().parent().unwrap().exists(),
            "the log directory is gone"
        );
    }
    wait::until("the agent to forget both", LIMIT, async || {
        let left = cli.json(&["ps", "--all"]).await;
        anyhow::ensure!(left.as_array().is_some_and(Vec::is_empty), "{left}");
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(cli.good(&["ps"]).await, "no pods\n");
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_told_as_they_happen() {
    let rig = Rig::plain().await.unwrap();
    let cli = Cli::of(&rig);
    let pod = cli.run("told", BUSYBOX, &[], &["/bin/sleep", "1000"]).await;
    // Without --follow: the pods as they are, and an end.
    let now = cli.good(&["events"]).await;
    assert!(
        now.lines().count() == 1 && now.contains("default/told  Running"),
        "{now}"
    );

    let mut child = cli
        .command(&["events", "-f", "-o", "json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = async || -> Value {
        let line = tokio::time::timeout(LIMIT, lines.next_line())
            .await
            .expect("news")
            .unwrap()
            .unwrap();
        serde_json::from_str(&line).unwrap()
    };
    assert_eq!(next().await["kind"], "Existing");
    assert_eq!(next().await["kind"], "Synced");
    cli.good(&["freeze", "told"]).await;
    cli.good(&["wake", "told"]).await;
    let mut moves = Vec::new();
    while moves.len() < 2 {
        let event = next().await;
        if event["kind"] == "Changed" {
            assert_eq!(event["pod"]["uid"], pod.uid);
            moves.push((event["from"].clone(), event["pod"]["rung"].clone()));
        }
    }
    assert_eq!(
        moves,
        [
            ("Running".into(), "Frozen".into()),
            ("Frozen".into(), "Running".into())
        ]
    );
    // As Ctrl-C ends it: well.
    let id = nix::unistd::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGINT).unwrap();
    let status = tokio::time::timeout(LIMIT, child.wait())
        .await
        .expect("it ends")
        .unwrap();
    assert!(status.success(), "{status}");
    cli.good(&["rm", "told", "--grace", "0s"]).await;
    assert_eq!(pod.cgroups(), Vec::<PathBuf>::new());
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_have_codes_and_say_why() {
    let mut rig = Rig::plain().await.unwrap();
    let mut cli = Cli::of(&rig);
    for order in ["freeze", "doze", "wake", "get", "rm"] {
        let said = cli.say(&[order, "nobody"]).await;
        assert_eq!(said.code, 1, "{said:?}");
        assert!(
            said.err.contains("PodNotFound") && said.out.is_empty(),
            "{said:?}"
        );
    }
    for wrong in [
        &["freeze"][..],
        &["wake", "a", "--all"],
        &["run", "--image", "x", "--idle-timeout", "soon"],
    ] {
        let said = cli.say(wrong).await;
        assert_eq!(said.code, 2, "{said:?}");
    }
    // Refused as a whole, with nothing left: an image and a handler that are not there.
    let logs = cli.logs.display().to_string();
    let said = cli
        .say(&["run", "--image", "localhost/none:1", "--log-root", &logs])
        .await;
    assert!(
        said.code == 1 && said.err.contains("localhost/none:1"),
        "{said:?}"
    );
    let said = cli
        .say(&[
            "run",
            "--image",
            BUSYBOX,
            "--runtime-handler",
            "none",
            "--log-root",
            &logs,
        ])
        .await;
    assert!(said.code == 1 && said.err.contains("none"), "{said:?}");
    assert!(!Path::new(&logs).exists());

    let script = cli.good(&["completion", "bash"]).await;
    let checked = Command::new("bash")
        .args(["-n", "-c", &script])
        .output()
        .await
        .unwrap();
    assert!(
        checked.status.success() && script.contains("complete -F"),
        "{checked:?}"
    );

    // Nobody at containerd's socket, then nobody at the agent's.
    let endpoint = std::mem::replace(
        &mut cli.endpoint,
        "unix:///nonexistent/containerd.sock".to_owned(),
    );
    let said = cli.say(&["rm", "nobody"]).await;
    assert!(
        said.code == 3 && said.err.contains("RuntimeUnavailable"),
        "{said:?}"
    );
    cli.endpoint = endpoint;
    rig.agent.stop(Duration::from_secs(15)).await.unwrap();
    for verb in [
        &["ps"][..],
        &["wake", "--all"],
        &["events"],
        &["get", "nobody"],
        &["node"],
    ] {
        let said = cli.say(verb).await;
        assert!(
            said.code == 3 && said.err.contains("AgentUnreachable"),
            "{said:?}"
        );
    }
    // What needs no agent does without.
    assert_eq!(cli.say(&["version"]).await.code, 0);
    rig.stack.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_tells_what_is_there_and_what_is_missing() {
    let _swap = swap();
    let mut rig = Rig::plain().await.unwrap();
    let cli = Cli::of(&rig);
    let config = rig.agent.paths().config.display().to_string();
    let wrapper = rig
        .stack
        .dir()
        .join("w/dormouse-runsc.json")
        .display()
        .to_string();
    let files = [
        "doctor",
        "--config",
        &config,
        "--wrapper-config",
        &wrapper,
        "--kubelet-config",
        "/nonexistent",
    ];
    let verdicts = async |arguments: &[&str]| {
        let said = cli.say(&[&files[..], arguments, &["-o", "json"]].concat()).await;
        let checks: Vec<Value> = serde_json::from_str(&said.out).unwrap();
        for check in checks.iter().filter(|check| check["verdict"] != "ok") {
            assert_ne!(check["advice"].as_str().unwrap_or_default(), "", "{check}");
        }
        // The exit code is that of the worst.
        let worst = if checks.iter().any(|check| check["verdict"] == "fail") {
            2
        } else {
            i32::from(checks.iter().any(|check| check["verdict"] == "warn"))
        };
        assert_eq!(said.code, worst, "{said:?}");
        checks
    };
    let of = |checks: &[Value], name: &str| {
        let check = checks.iter().find(|check| check["name"] == name);
        check.unwrap_or_else(|| panic!("no check {name} in {checks:?}"))["verdict"].clone()
    };

    let checks = verdicts(&[]).await;
    for name in [
        "root",
        "agent",
        "agent configuration",
        "run directory",
        "containerd",
        "runtime handler",
        "wrapper configuration",
        "runsc",
        "cgroups",
        "page-out",
    ] {
        assert_eq!(of(&checks, name), "ok", "{name}: {checks:?}");
    }
    assert!(
        checks.iter().all(|check| check["verdict"] != "fail"),
        "{checks:?}"
    );

    let table = cli.say(&files).await.out;
    assert!(
        table
            .lines()
            .any(|line| line.split_whitespace().collect::<Vec<_>>() == ["ok", "root", "uid", "0"]),
        "{table}"
    );

    let checks = verdicts(&["--handler", "elsewhere"]).await;
    assert_eq!(of(&checks, "runtime handler"), "fail");
    rig.agent.stop(Duration::from_secs(15)).await.unwrap();
    let checks = verdicts(&[]).await;
    assert_eq!(of(&checks, "agent"), "fail");
    assert_eq!(
        of(&checks, "containerd"),
        "ok",
        "the rest is looked at all the same"
    );
    rig.stack.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_keeps_snapshots() {
    let _swap = swap();
    let rig = Rig::plain().await.unwrap();
    let cli = Cli::of(&rig);
    let pod = cli.run("saved", PYTHON, &[], &["python3", "-c", SERVER]).await;
    let answers = async || http::get(pod.http(), "/", LIMIT).await;
    let hash = wait::until("the pod to answer", LIMIT, answers)
        .await
        .unwrap()
        .body;

    cli.good(&["snapshot", "create", &pod.uid]).await;
    let listed = cli.json(&["snapshot", "ls"]).await;
    let id = listed[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(listed[0]["pod"], "saved", "{listed}");
    cli.good(&["snapshot", "verify", &id]).await;
    cli.good(&["snapshot", "inspect", &id]).await;
    cli.good(&["snapshot", "pin", &id]).await;
    let refused = cli.say(&["snapshot", "rm", &id]).await;
    assert_ne!(refused.code, 0, "a pinned snapshot stays");
    assert!(refused.err.contains("SnapshotPinned"), "{}", refused.err);
    cli.good(&["snapshot", "unpin", &id]).await;

    // A second one, and what is between them.
    cli.good(&["hibernate", &pod.uid]).await;
    assert_eq!(cli.rung(&pod.uid).await, "Hibernated");
    let listed = cli.json(&["snapshot", "ls"]).await;
    let other = listed[0]["id"].as_str().unwrap().to_owned();
    assert_ne!(other, id, "{listed}");
    cli.good(&["snapshot", "verify", &other]).await;
    cli.good(&["snapshot", "diff", &id, &other]).await;
    let refused = cli.say(&["snapshot", "rm", &other]).await;
    assert_ne!(refused.code, 0, "what a pod is hibernated in stays");
    let woken = http::get(pod.http(), "/", LIMIT).await.unwrap().body;
    assert_eq!(woken, hash, "the same memory");

    // Out into a file, and back in.
    let files = tempfile::tempdir_in("/var/tmp").unwrap();
    let file = files.path().join("snapshot").display().to_string();
    cli.good(&["snapshot", "export", &id, &file]).await;
    // Its hashes may just be being made, behind everybody's back.
    wait::until("the snapshot to be removed", LIMIT, async || {
        let said = cli.say(&["snapshot", "rm", &id]).await;
        anyhow::ensure!(said.code == 0, "{}", said.err);
        Ok(())
    })
    .await
    .unwrap();
    cli.good(&["snapshot", "import", &file]).await;
    cli.good(&["snapshot", "fsck", "--full"]).await;

    // What came in can fill another pod, whose command and image are the snapshot's.
    let imported = cli.json(&["snapshot", "ls"]).await;
    let imported = imported[0]["id"].as_str().unwrap().to_owned();
    let logs = cli.logs.display().to_string();
    let first = ["run", "--from-snapshot", &imported, "--name", "clone"];
    let rest = ["--log-root", &logs, "-o", "json"];
    let said = cli.say(&[&first[..], &rest[..]].concat()).await;
    assert_eq!(said.code, 0, "{said:?}");
    let clone: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(clone["snapshot"], imported.as_str());
    let answered = http::get(
        format!("{}:8080", clone["addresses"][0].as_str().unwrap())
            .parse()
            .unwrap(),
        "/",
        LIMIT,
    );
    assert_eq!(answered.await.unwrap().body, hash, "the source's memory");
    // Of another namespace only if that is meant, and then nothing is left over.
    let elsewhere = [&first[..], &["-n", "elsewhere"], &rest[..]].concat();
    let said = cli.say(&elsewhere).await;
    assert!(said.err.contains("SnapshotNamespaceMismatch"), "{said:?}");
    cli.good(&["rm", "clone", "--grace", "1s"]).await;

    // Nothing exceeds the limits; all that nobody needs can go.
    let all = cli.json(&["snapshot", "ls"]).await.as_array().unwrap().len();
    cli.good(&["snapshot", "prune"]).await;
    cli.good(&["snapshot", "prune", "--all", "--dry-run"]).await;
    assert_eq!(cli.json(&["snapshot", "ls"]).await.as_array().unwrap().len(), all);
    cli.good(&["snapshot", "pin", &imported]).await;
    cli.good(&["snapshot", "prune", "--all"]).await;
    let left = cli.json(&["snapshot", "ls"]).await;
    assert_eq!(left.as_array().unwrap().len(), 1, "{left}");
    assert_eq!(left[0]["id"], imported.as_str());
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let refused = cli.say(&["snapshot", "import", &file]).await;
    assert_ne!(refused.code, 0, "a damaged archive is refused");
    cli.good(&["rm", "saved", "--grace", "1s"]).await;
    rig.stop().await.unwrap();
}
