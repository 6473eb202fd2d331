//! What is done for each verb.
//!
//! | verb | while the guest runs | while it sleeps |
//! |---|---|---|
//! | `create` | annotations filtered, container registered, exec | the same, and the pod is woken first |
//! | `state` | answered like runsc answers it, by the same question to the sentry | answered from what the sentry said last |
//! | `events --stats`, `ps` | exec | answered from what the sentry said last, and the cgroup's counters |
//! | `update` | exec | runsc as a child under the pod's lock, with the sentry thawed and the application still stopped |
//! | `delete` | runsc as a child, then unregistered | woken first; a guest that cannot be woken is killed |
//! | `wait` | asks the sentry, and keeps on asking the next one after a hibernation | the same |
//! | `start` | the container's streams are noted, exec | woken first |
//! | `exec` for a [`probe`] | exec | refused |
//! | `list`, and verbs without a container | exec | exec: `list` and `events` without `--stats` wait for the wake |
//! | all others (`exec`, `kill`, `pause`, `resume`, `checkpoint`, …) | exec | woken first, then exec |
//!
//! "runsc" is for every verb the release that the pod was born under, or restored with ([`Context::program`]).
//!
//! A pod that is filled from a snapshot at its birth goes through [`restore`].
//!
//! A hibernated pod has no guest: `state`, `events` and `ps` are answered from what it said last, `kill` with a signal
//! that ends and `delete` end the pod without waking it, `update` is noted for its next guest, and for everything else the agent is asked for a wake, which is
//! waited for within a bound.
//!
//! A pod that is being filled has no process that a signal could reach: `kill` with one that ends ends the sandbox.
//!
//! While a verb that talks to the guest is under way, in the wrapper or in the real runsc, the pod is not put to sleep
//! ([`dormouse_sentry::Visit`]); `wait` is none of these: it does not mind.
//!
//! `pause` and `resume` by hand are runsc's own count, beside ours: the pod is woken, so ours is nought, and
//! what runsc then counts runsc ends. A pod that is paused that way can be put to sleep and woken above it.

mod again;
mod asleep;
mod create;
mod delete;
mod events;
mod kill;
mod pod;
mod probe;
mod ps;
mod restore;
mod start;
mod state;
mod update;
mod wait;
mod wake;

use std::cell::RefCell;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Child;
use std::time::Duration;

use dormouse_sentry::releases::{Releases, program_of};
use dormouse_sentry::wrapper_config::check_program;
use dormouse_sentry::{ContainerId, LockError, RunscRecord, Switch, Visit, WrapperConfig};

use crate::args::Invocation;
use crate::outcome::{Failure, Outcome, log};
use crate::real;
use crate::trace::Trace;

/// How long a verb waits for a step that is stopping the guest at this moment.
const VISIT: Duration = Duration::from_secs(2);

/// One call, with all that a verb needs.
pub(crate) struct Context<'a> {
    pub(crate) config: &'a WrapperConfig,
    pub(crate) invocation: &'a Invocation,
    pub(crate) argv: &'a [OsString],
    pub(crate) trace: &'a Trace<'a>,
    /// Holds the guest where it is, for a verb that talks to it.
    visit: RefCell<Option<Visit>>,
    /// What the record of the verb's pod says of its runsc, as soon as that is known.
    runsc: RefCell<Option<RunscRecord>>,
}

impl Context<'_> {
    /// Notes which runsc the verb's pod runs under.
    pub(crate) fn runs_under(&self, runsc: &RunscRecord) {
        self.runsc.replace(Some(runsc.clone()));
    }

    /// The real runsc for this verb: the one that the pod runs under, and for a verb without a pod the one that new pods
    /// are born under.
    pub(crate) fn program(&self) -> Result<PathBuf, Failure> {
        if self.runsc.borrow().is_none() {
            // Notes what it finds.
            drop(pod::find(self));
        }
        let runsc = self.runsc.borrow().clone();
        let (Some(runsc), Some(dir)) = (runsc, self.config.dir()) else {
            return self.current();
        };
        let program = program_of(self.config, &dir, &runsc);
        if !program.exact {
            let text = format!(
                "dormouse-runsc: the pod runs under runsc {}, which is not on this node any more; {} is used in its place",
                runsc.version,
                program.path.display()
            );
            log(self.invocation, "warning", &text);
        }
        if program.path == self.config.runsc {
            return self.current();
        }
        Ok(program.path)
    }

    /// The real runsc that new pods are born under.
    fn current(&self) -> Result<PathBuf, Failure> {
        check_program(&self.config.runsc).map_err(|e| Failure::from_error(&e))?;
        Ok(self.config.runsc.clone())
    }

    /// The releases of runsc on this node.
    pub(crate) fn releases(&self) -> Releases {
        self.config
            .dir()
            .map(|dir| Releases::look(self.config, &dir))
            .unwrap_or_default()
    }

    /// The runsc that new pods are born under, for a record. What cannot be found out stays empty.
    pub(crate) fn born_under(&self, releases: &Releases) -> RunscRecord {
        releases.current().map_or_else(
            || RunscRecord {
                path: self.config.runsc.clone(),
                version: String::new(),
                oci_version: String::new(),
                file: None,
            },
            dormouse_sentry::Release::record,
        )
    }

    /// Starts the real runsc as a child with the same descriptors.
    pub(crate) fn spawn(&self, argv: &[OsString]) -> Result<Child, Failure> {
        real::spawn(&self.program()?, argv)
    }

    /// Runs the real runsc for a verb that makes processes, which it moves between cgroups. A visit goes on meanwhile.
    pub(crate) fn run_swiftly(&self) -> Result<Outcome, Failure> {
        real::run_swiftly(&self.program()?, self.argv, self.trace)
    }

    /// Becomes the real runsc. A visit goes on in it.
    pub(crate) fn exec(&self) -> Result<Outcome, Failure> {
        if let Some(visit) = self.visit.borrow().as_ref()
            && let Err(errno) = visit.keep()
        {
            let text = format!("dormouse-runsc: the pod may be put to sleep under this command: {errno}");
            log(self.invocation, "warning", &text);
        }
        real::exec(&self.program()?, self.argv, self.trace)
    }

    /// Keeps the pod from being put to sleep until this process, or the runsc that it becomes, has ended. Where
    /// that cannot be had the verb goes on without.
    pub(crate) fn visit(&self, switch: &Switch) {
        match switch.visit(VISIT) {
            Ok(visit) => drop(self.visit.replace(Some(visit))),
            Err(LockError::NoSuchPod { .. }) => {}
            Err(error) => {
                let text = format!("dormouse-runsc: the pod may be put to sleep under this command: {error}");
                log(self.invocation, "warning", &text);
            }
        }
    }

    /// Ends the visit.
    pub(crate) fn end_visit(&self) {
        drop(self.visit.take());
    }

    /// The same for the pod of the verb's container.
    fn visit_own(&self) {
        let (Some(container), Some(dir)) = (self.container(), self.config.dir()) else {
            return;
        };
        if let Ok(Some(sandbox)) = dir.find(&container) {
            self.visit(&Switch::open(&dir, &sandbox));
        }
    }

    /// The container that the verb is for. `None` also for an abbreviated id or one in a form that
    /// containerd does not make: such a container is not registered.
    pub(crate) fn container(&self) -> Option<ContainerId> {
        self.invocation.container()?.parse().ok()
    }
}

/// Does what the verb asks for. Does not return where it becomes the real runsc.
pub(crate) fn dispatch(
    config: &WrapperConfig,
    invocation: &Invocation,
    argv: &[OsString],
    trace: &Trace<'_>,
) -> Result<Outcome, Failure> {
    let context = Context {
        config,
        invocation,
        argv,
        trace,
        visit: RefCell::new(None),
        runsc: RefCell::new(None),
    };
    if invocation.verb != "create"
        && let Some(outcome) = restore::played::verb(&context)
    {
        return outcome;
    }
    match invocation.verb.as_str() {
        "create" | "run" => create::run(&context),
        "update" => update::run(&context),
        "events" if !invocation.is_set("stats") => context.exec(),
        "list" | "help" | "flags" | "spec" | "do" | "" => context.exec(),
        "wait" => wait::run(&context),
        verb => {
            context.visit_own();
            match verb {
                "state" => state::run(&context),
                "events" => events::run(&context),
                "ps" => ps::run(&context),
                "delete" => delete::run(&context),
                "kill" => kill::run(&context),
                "start" => start::run(&context),
                "exec" if probe::is_one(invocation) => probe::run(&context),
                _ => {
                    wake::or_refuse(&context)?;
                    context.exec()
                }
            }
        }
    }
}
