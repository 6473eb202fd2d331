//! What a machine's first process does for the rest of its life.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::{Answer, Order, PATH, Unit, UnitStatus, log_file};

/// A unit that ends is started again after this long, as systemd would.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// One that keeps ending waits for twice as long each time, up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// One that has run for this long has started well.
const WELL: Duration = Duration::from_secs(10);
/// How long a killed process may take to go.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// All units of one machine.
#[derive(Debug)]
pub(super) struct Supervisor {
    dir: PathBuf,
    units: Mutex<BTreeMap<String, State>>,
    /// A unit has been started or has ended.
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    unit: Unit,
    pid: Option<i32>,
    wanted: bool,
    starts: u32,
    last_exit: Option<String>,
    started: Instant,
    pause: Duration,
}

impl Supervisor {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            units: Mutex::new(BTreeMap::new()),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, State>> {
        self.units.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for whatever ends on this machine, units and orphans alike. This thread is the only one that does: an exit that somebody
    /// else took would be missed here.
    pub(super) fn reap(self: &Arc<Self>) -> ! {
        loop {
            match waitpid(None, None) {
                Ok(WaitStatus::Exited(pid, code)) => self.ended(pid.as_raw(), format!("exit status {code}")),
                Ok(WaitStatus::Signaled(pid, signal, _)) => self.ended(pid.as_raw(), signal.to_string()),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => {
                    // No child at all. The next one comes with a unit: its descendants are the only orphans there can be.
                    let units = self.lock();
                    drop(
                        self.changed
                            .wait_while(units, |units| units.values().all(|state| state.pid.is_none())),
                    );
                }
            }
        }
    }

    fn ended(self: &Arc<Self>, pid: i32, how: String) {
        let mut units = self.lock();
        let Some((name, state)) = units.iter_mut().find(|(_, state)| state.pid == Some(pid)) else {
            return;
        };
        eprintln!("{name} ended: {how}");
        state.pid = None;
        state.last_exit = Some(how);
        if state.wanted {
            state.pause = if state.started.elapsed() >= WELL {
                FIRST_PAUSE
            } else {
                (state.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE)
            };
            let (supervisor, name, pause) = (Arc::clone(self), name.clone(), state.pause);
            std::thread::spawn(move || {
                std::thread::sleep(pause);
                supervisor.start_if_wanted(&name);
            });
        }
        drop(units);
        self.changed.notify_all();
    }

    fn start_if_wanted(&self, name: &str) {
        let mut units = self.lock();
        if let Some(state) = units.get_mut(name)
            && state.wanted
            && state.pid.is_none()
            && let Err(error) = state.spawn(&self.dir)
        {
            eprintln!("{name}: {error:#}");
        }
        drop(units);
        self.changed.notify_all();
    }

    fn obey(&self, order: Order) -> Result<()> {
        match order {
            Order::Status => Ok(()),
            Order::Start(unit) => self.start(unit),
            Order::Again(name) => self.again(&name),
            Order::Stop { unit, grace_millis } => self.stop(&unit, Duration::from_millis(grace_millis)),
            Order::Restart { unit, grace_millis } => {
                self.stop(&unit, Duration::from_millis(grace_millis))?;
                self.again(&unit)
            }
            Order::Signal { unit, signal } => {
                let pid = self.lock().get(&unit).and_then(|state| state.pid);
                let pid = pid.with_context(|| format!("{unit} does not run"))?;
                kill(Pid::from_raw(pid), Signal::try_from(signal)?).with_context(|| format!("signal {unit}"))
            }
        }
    }

    fn start(&self, unit: Unit) -> Result<()> {
        let mut units = self.lock();
        let state = units.entry(unit.name.clone()).or_insert_with(|| State {
            unit: unit.clone(),
            pid: None,
            wanted: false,
            starts: 0,
            last_exit: None,
            started: Instant::now(),
            pause: Duration::ZERO,
        });
        ensure!(state.pid.is_none(), "{} runs already", unit.name);
        state.unit = unit;
        state.pause = Duration::ZERO;
        state.spawn(&self.dir)?;
        state.wanted = true;
        drop(units);
        self.changed.notify_all();
        Ok(())
    }

    fn again(&self, name: &str) -> Result<()> {
        let unit = self.lock().get(name).map(|state| state.unit.clone());
        self.start(unit.with_context(|| format!("there is no unit {name}"))?)
    }

    fn stop(&self, name: &str, grace: Duration) -> Result<()> {
        let mut units = self.lock();
        let state = units
            .get_mut(name)
            .with_context(|| format!("there is no unit {name}"))?;
        state.wanted = false;
        for (signal, limit) in [(Signal::SIGTERM, grace), (Signal::SIGKILL, KILL_LIMIT)] {
            let Some(pid) = units.get(name).and_then(|state| state.pid) else {
                return Ok(());
            };
            if limit.is_zero() {
                continue;
            }
            // The lock is held, so the reaper has not taken it yet: the pid is still this unit's.
            let _ = kill(Pid::from_raw(pid), signal);
            let runs = |units: &mut BTreeMap<String, State>| {
                units.get(name).is_some_and(|state| state.pid.is_some())
            };
            units = self
                .changed
                .wait_timeout_while(units, limit, runs)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        if units.get(name).is_some_and(|state| state.pid.is_some()) {
            bail!("{name} does not end");
        }
        Ok(())
    }

    fn status(&self) -> Vec<UnitStatus> {
        self.lock()
            .iter()
            .map(|(name, state)| UnitStatus {
                name: name.clone(),
                pid: state.pid,
                wanted: state.wanted,
                starts: state.starts,
                last_exit: state.last_exit.clone(),
            })
            .collect()
    }
}

impl State {
    fn spawn(&mut self, dir: &Path) -> Result<()> {
        let program = self.unit.argv.first().context("a unit without a program")?;
        // A failed start makes the standard library wait for the child, which the reaper may have taken first.
        ensure!(Path::new(program).is_file(), "no {program} on this machine");
        let path = log_file(dir, &self.unit.name);
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        let child = Command::new(program)
            .args(self.unit.argv.iter().skip(1))
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", "/root")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the log")?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {program}"))?;
        self.pid = i32::try_from(child.id()).ok();
        self.starts = self.starts.saturating_add(1);
        self.started = Instant::now();
        Ok(())
    }
}

/// Takes orders at `socket`, each connection in a thread of its own.
pub(super) fn listen(socket: &Path, supervisor: &Arc<Supervisor>) -> Result<()> {
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket).with_context(|| format!("listen at {}", socket.display()))?;
    let supervisor = Arc::clone(supervisor);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let supervisor = Arc::clone(&supervisor);
            std::thread::spawn(move || {
                if let Err(error) = serve(&stream, &supervisor) {
                    eprintln!("an order failed: {error:#}");
                }
            });
        }
    });
    Ok(())
}

fn serve(mut stream: &UnixStream, supervisor: &Supervisor) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).context("read it")?;
    let order: Order = serde_json::from_str(&line).context("understand it")?;
    let answer: Answer = supervisor
        .obey(order)
        .map(|()| supervisor.status())
        .map_err(|error| format!("{error:#}"));
    let mut text = serde_json::to_string(&answer)?;
    text.push('\n');
    stream.write_all(text.as_bytes()).context("answer it")
}
