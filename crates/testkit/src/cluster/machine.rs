//! A machine of the cluster: mount, network, PID and UTS namespaces with a first process of their own, which starts what runs there and
//! starts it again when it ends.
//!
//! It has this host's programs, files and kernel, but changes of its own: `/etc`, `/opt`, `/usr`, `/var/lib` and `/var/log` are
//! overlays, `/run` is in memory, and what Kubernetes, containerd and Dormouse keep is in the machine's directory. So everything is where it
//! is on a real node, and nothing of it is seen, or left, on this host. When the first process ends, the kernel ends all others, and takes
//! mounts, links and packet filters away.

pub mod init;
mod supervisor;
pub mod systemctl;

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::host::{ProcessId, wait};

/// Where programs are found on a machine.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How long a machine may take to be there. It takes milliseconds.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long its first process may take to answer an order, beyond the grace period in it.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How long a part has to end before it is killed.
const GRACE: Duration = Duration::from_secs(10);

/// What a machine's first process is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MachineSpec {
    /// Its host name.
    pub name: String,
    /// Its directory on this host.
    pub dir: PathBuf,
    /// Directories whose content appears in `/usr/local`, the first one on top.
    pub programs: Vec<PathBuf>,
    /// Directories below which nothing that this host has mounted is wanted.
    pub without_mounts_in: Vec<PathBuf>,
}

/// A program that runs on a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// Its name, also that of its log.
    pub name: String,
    /// Program (an absolute path) and arguments.
    pub argv: Vec<String>,
}

impl Unit {
    /// A unit that runs `/usr/local/bin/PROGRAM` under that name.
    pub(super) fn new<S: Into<String>>(program: &str, arguments: impl IntoIterator<Item = S>) -> Self {
        let mut argv = vec![format!("/usr/local/bin/{program}")];
        argv.extend(arguments.into_iter().map(Into::into));
        Self {
            name: program.to_owned(),
            argv,
        }
    }
}

/// What a machine's first process can be asked for: one line of JSON over its socket.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Start a unit, and again whenever it ends.
    Start(Unit),
    /// Start one that was stopped.
    Again(String),
    /// Stop one, and let it be: TERM, then KILL.
    Stop { unit: String, grace_millis: u64 },
    /// Stop one and start it again, whatever becomes of who asks for it: that may run under the unit.
    Restart { unit: String, grace_millis: u64 },
    /// Send one a signal. It is started again if it ends of it.
    Signal { unit: String, signal: i32 },
    /// Say what runs.
    Status,
}

/// The answer: what runs, or why not.
pub(crate) type Answer = Result<Vec<UnitStatus>, String>;

/// How a unit is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitStatus {
    /// Its name.
    pub name: String,
    /// Its pid in the machine's PID namespace, while it runs.
    pub pid: Option<i32>,
    /// It is started again when it ends.
    pub wanted: bool,
    /// How often it has been started.
    pub starts: u32,
    /// How it ended the last time.
    pub last_exit: Option<String>,
}

/// A running machine. It ends with [`Machine::end`], or when its cluster is taken down.
#[derive(Debug)]
pub struct Machine {
    spec: MachineSpec,
    address: Ipv4Addr,
    helper: ProcessId,
    init: ProcessId,
}

impl Machine {
    /// Starts the machine with nothing running on it. `program` is `dormouse-cluster`; `hold` is kept open for as long as the machine
    /// lives; `started` is told the helper's process before anything else happens.
    pub(super) async fn start(
        program: &Path,
        spec: MachineSpec,
        address: Ipv4Addr,
        hold: Option<File>,
        started: impl FnOnce(ProcessId) -> Result<()>,
    ) -> Result<Self> {
        init::make_folders(&spec)?;
        let file = spec.dir.join("spec.json");
        fs::write(&file, serde_json::to_vec_pretty(&spec)?)
            .with_context(|| format!("write {}", file.display()))?;
        // Of an earlier life.
        let _ = fs::remove_file(init_file(&spec.dir));
        let _ = fs::remove_file(socket(&spec.dir));
        let log_path = spec.dir.join("log/machine.log");
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log_path)
            .with_context(|| format!("open {}", log_path.display()))?;
        let child = Command::new(program)
            .arg("machine")
            .arg(&file)
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", "/root")
            .current_dir("/")
            .stdin(hold.map_or_else(Stdio::null, Stdio::from))
            .stdout(log.try_clone().context("share the machine's log")?)
            .stderr(log)
            // Ctrl-C at the terminal is for the test, which then takes the cluster down in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let helper = i32::try_from(child.id())
            .ok()
            .and_then(ProcessId::of)
            .context("the machine ended as soon as it had started")?;
        started(helper)?;
        reap(child);

        let ready = wait::until(&format!("machine {}", spec.name), START_LIMIT, async || {
            if !helper.alive() {
                return Ok(Err(anyhow!("it ended")));
            }
            let init = init_of(&spec.dir).context("its first process is not there yet")?;
            ask(&spec.dir, &Order::Status)?;
            Ok(Ok(init))
        })
        .await
        .and_then(|outcome| outcome);
        let init = ready.with_context(|| {
            let words = fs::read_to_string(&log_path).unwrap_or_default();
            format!("machine {} did not start: {words}", spec.name)
        })?;
        Ok(Self {
            spec,
            address,
            helper,
            init,
        })
    }

    /// Its host name, and its node's name if it is one.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Its address, which this host and all machines of the cluster reach.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Its first process, as this host sees it. `/proc/PID/ns` has its namespaces.
    #[must_use]
    pub fn init(&self) -> ProcessId {
        self.init
    }

    /// A file of the machine, as this host reaches it, for example its containerd's socket.
    #[must_use]
    pub fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        let inside = inside.as_ref();
        PathBuf::from(format!("/proc/{}/root", self.init.pid))
            .join(inside.strip_prefix("/").unwrap_or(inside))
    }

    /// What one of its units has logged so far.
    #[must_use]
    pub fn log(&self, unit: &str) -> String {
        fs::read_to_string(log_file(&self.spec.dir, unit)).unwrap_or_default()
    }

    /// The last lines of that.
    #[must_use]
    pub fn last_words(&self, unit: &str) -> String {
        let text = self.log(unit);
        let lines: Vec<&str> = text.lines().rev().take(8).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// A command that runs on the machine, in all its namespaces.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        enter(self.init, program)
    }

    /// The process of one of its units, as this host sees it.
    ///
    /// # Errors
    /// When it does not run.
    pub fn process(&self, unit: &str) -> Result<ProcessId> {
        let inside = self
            .unit(unit)?
            .pid
            .with_context(|| format!("{unit} does not run"))?;
        let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let own = namespace(self.init.pid);
        let processes = procfs::process::all_processes().context("list the processes")?;
        processes
            .flatten()
            .filter(|process| {
                process
                    .status()
                    .is_ok_and(|status| status.nspid.is_some_and(|pids| pids.last() == Some(&inside)))
            })
            .filter(|process| namespace(process.pid) == own)
            .find_map(|process| ProcessId::of(process.pid))
            .with_context(|| format!("{unit} has ended"))
    }

    /// Starts a unit, which is started again whenever it ends.
    ///
    /// # Errors
    /// When it runs already, or cannot be started.
    pub fn start_unit(&self, unit: Unit) -> Result<()> {
        self.order(&Order::Start(unit)).map(drop)
    }

    /// Starts a unit that was stopped.
    ///
    /// # Errors
    /// When it runs already, or cannot be started.
    pub fn start_again(&self, unit: &str) -> Result<()> {
        self.order(&Order::Again(unit.to_owned())).map(drop)
    }

    /// Stops a unit, and lets it be.
    ///
    /// # Errors
    /// When there is no such unit, or it does not end.
    pub fn stop(&self, unit: &str) -> Result<()> {
        self.halt(unit, GRACE)
    }

    /// Kills a unit at once, as a crash would, and lets it be.
    ///
    /// # Errors
    /// As [`Self::stop`].
    pub fn kill(&self, unit: &str) -> Result<()> {
        self.halt(unit, Duration::ZERO)
    }

    /// Sends a unit a signal; if it ends of it, it is started again.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, unit: &str, signal: Signal) -> Result<()> {
        self.order(&Order::Signal {
            unit: unit.to_owned(),
            signal: signal as i32,
        })
        .map(drop)
    }

    /// Stops a unit and starts it again.
    ///
    /// # Errors
    /// When there is no such unit, it does not end, or cannot be started.
    pub fn restart(&self, unit: &str) -> Result<()> {
        self.order(&Order::Restart {
            unit: unit.to_owned(),
            grace_millis: millis(GRACE),
        })
        .map(drop)
    }

    /// What runs.
    ///
    /// # Errors
    /// When its first process does not answer.
    pub fn units(&self) -> Result<Vec<UnitStatus>> {
        self.order(&Order::Status)
    }

    /// How one unit is.
    ///
    /// # Errors
    /// When there is none.
    pub fn unit(&self, name: &str) -> Result<UnitStatus> {
        self.units()?
            .into_iter()
            .find(|unit| unit.name == name)
            .with_context(|| format!("machine {} has no unit {name}", self.spec.name))
    }

    fn halt(&self, unit: &str, grace: Duration) -> Result<()> {
        self.order(&Order::Stop {
            unit: unit.to_owned(),
            grace_millis: millis(grace),
        })
        .map(drop)
    }

    fn order(&self, order: &Order) -> Result<Vec<UnitStatus>> {
        ask(&self.spec.dir, order).with_context(|| format!("machine {}: {order:?}", self.spec.name))
    }

    /// Ends it as a power cut does: every process at once. What is on its disk stays.
    ///
    /// # Errors
    /// When a process does not go.
    pub(super) fn end(&self, cgroup: &str) -> Result<()> {
        if end(&[self.helper, self.init], cgroup) {
            Ok(())
        } else {
            bail!("machine {} does not end", self.spec.name)
        }
    }
}

/// Kills first processes (with all that their PID namespaces hold) and their helpers; false when they will not go.
pub(super) fn end(processes: &[ProcessId], cgroup: &str) -> bool {
    wait::until_true(Duration::from_secs(20), || {
        // A frozen process of cgroup v1 does not die, and its first process waits for it.
        crate::host::cgroup::thaw(cgroup);
        for process in processes {
            process.signal(Signal::SIGKILL);
        }
        !processes.iter().any(|process| process.alive())
    })
}

/// A command in all namespaces of a machine's first process.
pub(super) fn enter(init: ProcessId, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command
        .args(["--target", &init.pid.to_string()])
        .args(["--mount", "--net", "--pid", "--uts", "--", program])
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", "/root");
    if let Some(term) = std::env::var_os("TERM") {
        command.env("TERM", term);
    }
    command
}

/// The first process of the machine in that directory, as its helper has written it down.
pub(super) fn init_of(dir: &Path) -> Option<ProcessId> {
    let text = fs::read_to_string(init_file(dir)).ok()?;
    let (pid, start) = text.trim().split_once(' ')?;
    Some(ProcessId {
        pid: pid.parse().ok()?,
        start: start.parse().ok()?,
    })
}

/// What runs on the machine in that directory.
pub(super) fn units_of(dir: &Path) -> Result<Vec<UnitStatus>> {
    ask(dir, &Order::Status)
}

fn ask(dir: &Path, order: &Order) -> Result<Vec<UnitStatus>> {
    let grace = match order {
        Order::Stop { grace_millis, .. } | Order::Restart { grace_millis, .. } => {
            Duration::from_millis(*grace_millis)
        }
        _ => Duration::ZERO,
    };
    let mut stream = UnixStream::connect(socket(dir)).context("connect to the machine's first process")?;
    stream.set_read_timeout(Some(ANSWER_LIMIT + grace))?;
    let mut line = serde_json::to_string(order)?;
    line.push('\n');
    stream.write_all(line.as_bytes()).context("send the order")?;
    let mut answer = String::new();
    BufReader::new(stream)
        .read_line(&mut answer)
        .context("wait for the answer")?;
    serde_json::from_str::<Answer>(&answer)
        .context("the answer is no answer")?
        .map_err(|reason| anyhow!(reason))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("init.sock")
}

fn init_file(dir: &Path) -> PathBuf {
    dir.join("init")
}

fn log_file(dir: &Path, unit: &str) -> PathBuf {
    dir.join(format!("log/{unit}.log"))
}

/// Where the machine's file `inside` is on this host, for what is the machine's own (see [`init`]).
pub(super) fn own(dir: &Path, inside: &str) -> PathBuf {
    dir.join("own").join(inside.trim_start_matches('/'))
}

/// Waits for a child in the background, so that it never stays as a zombie that looks alive.
fn reap(mut child: std::process::Child) {
    std::thread::spawn(move || {
        let _ = child.wait();
    });
}
