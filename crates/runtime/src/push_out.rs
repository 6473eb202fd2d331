//! What all drivers have in common of a doze: page-out, then reclaim, with every change of a setting noted.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dormouse_core::Reason;
use dormouse_sentry::CgroupVersion;

use crate::brake::{Brake, Stop, swap_has_room};
use crate::kernel::{Kernel, Process};
use crate::pageout::{PageOutError, PageOutReport, page_out};
use crate::reclaim::guard::Guard;
use crate::reclaim::{
    self, Ledger, LoweredLimit, NoteError, Reclaim, ReclaimError, ReclaimReport, Version, raise, restore,
    swap_limits_of, swappiness_of,
};
use crate::working_set::WorkingSet;

/// How often a push-out is gone through while much of the pod is left in memory and each time gains something.
const ROUNDS: u32 = 4;

/// A round that gained less than this was in vain, in bytes.
const WORTH_ANOTHER: u64 = 8 << 20;

/// How long a push-out leaves the pages to others after each round that was in vain; after the last one it is believed.
/// The node's own proactive reclaim (DAMON takes 128 MiB at once, as its quota is) holds pages off the kernel's lists
/// until the swap has them, and whoever asks meanwhile is told that there is nothing to be had: for more than 0.35 s where
/// the disk is busy with something else (seen).
const HANDS_OFF: [Duration; 5] = [
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
];

/// How often it is looked meanwhile whether the step was called off.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Which program stands guard over lowered limits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum GuardProgram {
    /// This process's own executable, whose `main` calls [`reclaim::guard::main_if_requested`] first.
    #[default]
    Own,
    /// Another executable that does so.
    At(PathBuf),
}

impl GuardProgram {
    fn start(&self) -> io::Result<Guard> {
        match self {
            Self::Own => Guard::spawn(),
            Self::At(path) => Guard::spawn_from(path),
        }
    }
}

/// How a cgroup is made to let go of its pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// cgroup v1 whose processes are all stopped: the limit is lowered step by step.
    LoweredLimit,
    /// cgroup v1 whose processes may run: a lowered limit could meet a charge and kill them, so the kernel is asked to
    /// empty it as far as it can (`memory.force_empty`), in one call.
    ForceEmpty,
    /// cgroup v2: `memory.reclaim`, step by step.
    Request,
}

impl Method {
    /// For a cgroup whose processes are all stopped.
    #[must_use]
    pub const fn of_stopped(version: CgroupVersion) -> Self {
        match version {
            CgroupVersion::V1 => Self::LoweredLimit,
            CgroupVersion::V2 => Self::Request,
        }
    }

    /// For a cgroup whose processes may run.
    #[must_use]
    pub const fn of_running(version: CgroupVersion) -> Self {
        match version {
            CgroupVersion::V1 => Self::ForceEmpty,
            CgroupVersion::V2 => Self::Request,
        }
    }

    const fn version(self) -> Version {
        match self {
            Self::LoweredLimit | Self::ForceEmpty => Version::V1,
            Self::Request => Version::V2,
        }
    }
}

/// What is to be pushed out.
#[derive(Debug, Clone, Copy)]
pub struct Job<'a> {
    /// The processes, each held by its pidfd.
    pub processes: &'a [Process],
    /// The pod's memory cgroup; `None` where there is none of its own.
    pub cgroup: Option<(&'a Path, Method)>,
    /// What is brought back in the end.
    pub working_set: &'a WorkingSet,
    /// How often each page is advised on: twice where the first time only clears its accessed bit.
    pub passes: u32,
}

/// What the push-out did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PushOutReport {
    /// The last pass.
    pub paged: PageOutReport,
    /// Time of all passes.
    pub page_out: Duration,
    /// The reclaim.
    pub reclaimed: ReclaimReport,
    /// Its time.
    pub reclaim: Duration,
    /// Time to bring the working set back.
    pub bring_back: Duration,
}

impl PushOutReport {
    /// What there was to push out: what processes had mapped, or, where more was only in the memory file, that.
    fn in_memory(&self) -> u64 {
        self.paged.bytes.max(self.reclaimed.before)
    }
}

/// A push-out that failed.
#[derive(Debug, thiserror::Error)]
pub enum PushOutError {
    /// The brake was pulled.
    #[error(transparent)]
    Stopped(#[from] Stop),
    /// The page-out failed.
    #[error(transparent)]
    PageOut(PageOutError),
    /// The reclaim failed.
    #[error(transparent)]
    Reclaim(ReclaimError),
    /// The guard process could not be started.
    #[error("cannot start the limit guard: {0}; no limit was touched")]
    Guard(#[source] io::Error),
}

impl From<PageOutError> for PushOutError {
    fn from(error: PageOutError) -> Self {
        match error {
            PageOutError::Stopped(stop) => Self::Stopped(stop),
            other => Self::PageOut(other),
        }
    }
}

impl From<ReclaimError> for PushOutError {
    fn from(error: ReclaimError) -> Self {
        match error {
            ReclaimError::Stopped(stop) => Self::Stopped(stop),
            other => Self::Reclaim(other),
        }
    }
}

impl PushOutError {
    /// The stable reason code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Stopped(stop) => stop.reason(),
            Self::PageOut(_) => Reason::PageOutFailed,
            Self::Reclaim(error) => error.reason(),
            Self::Guard(_) => Reason::ReclaimFailed,
        }
    }
}

/// One piece of work on limits; `true` if there is nothing left to do.
pub type Work<'a> = dyn FnMut(&mut dyn Ledger) -> Result<bool, ReclaimError> + 'a;

/// Where limits are changed: with the pod's lock held and its processes known to be stopped.
pub trait Desk {
    /// Does a piece of work there.
    ///
    /// # Errors
    /// The work's own; [`Stop::Woken`] if the pod is not asleep any more.
    fn sit(&mut self, work: &mut Work<'_>) -> Result<bool, ReclaimError>;
}

/// Pushes a stopped pod's memory out.
///
/// # Errors
/// [`PushOutError`]. Limits that were lowered are back; `memory.swap.max` stays raised and noted, for the caller to
/// put back when it lets the pod up.
pub fn push_out<K: Kernel + ?Sized>(
    kernel: &K,
    job: Job<'_>,
    desk: &mut dyn Desk,
    guard: &GuardProgram,
    brake: &mut dyn Brake,
) -> Result<PushOutReport, PushOutError> {
    let mut report = PushOutReport::default();
    swap_has_room(kernel)?;
    // It starts while nothing is lowered yet, and is there before anything is.
    let mut guard = match job.cgroup {
        Some((_, Method::LoweredLimit)) => Some(guard.start().map_err(PushOutError::Guard)?),
        _ => None,
    };
    if let Some((dir, Method::Request)) = job.cgroup {
        desk.sit(&mut |ledger| raise(kernel, &swap_limits_of(kernel, dir)?, ledger).map(|()| true))?;
    }
    let mut hands_off = HANDS_OFF.iter();
    let mut gainful = 0;
    for round in 1.. {
        let began = Instant::now();
        let charged = match job.cgroup {
            Some((dir, method)) => reclaim::usage(kernel, dir, method.version())?,
            None => 0,
        };
        for _ in 0..job.passes {
            fail::fail_point!("push_out::before_pass");
            let paged = page_out(kernel, job.processes, brake)?;
            if round == 1 {
                report.paged = paged;
            }
        }
        report.page_out += began.elapsed();
        fail::fail_point!("push_out::paged_out");
        let began = Instant::now();
        let Some((dir, method)) = job.cgroup else { break };
        let reclaimed = reclaim_all(kernel, dir, method, desk, &mut guard, brake)?;
        report.reclaim += began.elapsed();
        let gained = charged.saturating_sub(reclaimed.after);
        report.reclaimed = match round {
            1 => reclaimed,
            _ => report.reclaimed.and(reclaimed),
        };
        // A disk that is slow to take the pages makes the kernel give up early.
        let most = reclaimed.after <= reclaim::FLOOR.saturating_add(report.in_memory() / 8);
        if most || method == Method::ForceEmpty {
            break;
        }
        if gained >= WORTH_ANOTHER {
            gainful += 1;
            if gainful == ROUNDS {
                break;
            }
        } else if let Some(time) = hands_off.next() {
            pause(*time, brake)?;
        } else {
            break;
        }
    }
    fail::fail_point!("push_out::reclaimed");
    if let Some(guard) = guard {
        // It has nothing on its list; if it is gone already, so much the better.
        let _ = guard.dismiss();
    }
    swap_left(kernel, &report)?;
    let began = Instant::now();
    match job.working_set.bring_back(kernel, job.processes, brake) {
        // Reading takes no room in it.
        Err(stop) if stop.reason() == Reason::SwapFull => {}
        done => done?,
    }
    report.bring_back = began.elapsed();
    fail::fail_point!("push_out::brought_back");
    Ok(report)
}

/// Lets others put back what they have in hand.
fn pause(time: Duration, brake: &mut dyn Brake) -> Result<(), Stop> {
    let until = Instant::now() + time;
    while Instant::now() < until {
        brake.check()?;
        std::thread::sleep(LOOK_AGAIN);
    }
    Ok(())
}

/// The swap may have filled up in the last step, when nobody looked: then most of the pod is still in memory.
fn swap_left<K: Kernel + ?Sized>(kernel: &K, report: &PushOutReport) -> Result<(), Stop> {
    let reclaimed = report.reclaimed;
    if reclaimed.after > reclaim::FLOOR && reclaimed.after > report.in_memory() / 2 {
        return swap_has_room(kernel);
    }
    Ok(())
}

fn reclaim_all<K: Kernel + ?Sized>(
    kernel: &K,
    dir: &Path,
    method: Method,
    desk: &mut dyn Desk,
    guard: &mut Option<Guard>,
    brake: &mut dyn Brake,
) -> Result<ReclaimReport, ReclaimError> {
    if method == Method::ForceEmpty {
        brake.check()?;
        return force_empty(kernel, dir);
    }
    let mut swappiness = Vec::new();
    if method == Method::LoweredLimit {
        desk.sit(&mut |ledger| {
            swappiness = swappiness_of(kernel, dir)?;
            raise(
                kernel,
                &swappiness,
                &mut Both {
                    ledger,
                    guard: guard.as_mut(),
                },
            )
            .map(|()| true)
        })?;
    }
    let mut reclaim = Reclaim::new(kernel, dir, method.version());
    let result = loop {
        let step = desk.sit(&mut |ledger| {
            reclaim.step(
                &mut Both {
                    ledger,
                    guard: guard.as_mut(),
                },
                brake,
            )
        });
        match step {
            Ok(true) => break Ok(()),
            Ok(false) => {
                if let Err(e) = reclaim.await_writeback(brake) {
                    break Err(e);
                }
            }
            Err(e) => break Err(e),
        }
    };
    // Whether or not the pod still sleeps: by compare-and-set, it does no harm to one that runs.
    for change in swappiness.iter().rev() {
        if let Err(source) = restore(kernel, change) {
            return Err(ReclaimError::NotRestored {
                path: change.path.clone(),
                value: change.original.clone(),
                source,
            });
        }
        if let Some(guard) = guard.as_mut() {
            let _ = guard.cross_out(&change.path);
        }
    }
    if !swappiness.is_empty() {
        // A note that stays because the pod was woken meanwhile is found out by comparison.
        let _ = desk.sit(&mut |ledger| {
            for change in &swappiness {
                let _ = ledger.cross_out(&change.path);
            }
            Ok(true)
        });
    }
    result.map(|()| reclaim.report())
}

fn force_empty<K: Kernel + ?Sized>(kernel: &K, dir: &Path) -> Result<ReclaimReport, ReclaimError> {
    let before = reclaim::usage(kernel, dir, Version::V1)?;
    let path = dir.join("memory.force_empty");
    let began = Instant::now();
    match kernel.write(&path, "0") {
        Ok(()) => {}
        Err(e) if matches!(e.raw_os_error(), Some(libc::EBUSY | libc::EINTR)) => {}
        Err(source) => {
            return Err(ReclaimError::Write {
                path,
                value: "0".to_owned(),
                source,
            });
        }
    }
    let after = reclaim::usage(kernel, dir, Version::V1)?;
    Ok(ReclaimReport {
        before,
        after,
        steps: 1,
        longest_step: began.elapsed(),
    })
}

/// The record and the guard, both told of everything.
struct Both<'a> {
    ledger: &'a mut dyn Ledger,
    guard: Option<&'a mut Guard>,
}

impl Ledger for Both<'_> {
    fn note(&mut self, limit: &LoweredLimit) -> Result<(), NoteError> {
        self.ledger.note(limit)?;
        match &mut self.guard {
            Some(guard) => guard.note(limit).map_err(NoteError::Guard),
            None => Ok(()),
        }
    }

    fn cross_out(&mut self, path: &Path) -> Result<(), NoteError> {
        if let Some(guard) = &mut self.guard {
            guard.cross_out(path).map_err(NoteError::Guard)?;
        }
        self.ledger.cross_out(path)
    }
}
