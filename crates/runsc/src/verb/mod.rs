//! What is done for each verb.
//!
//! | verb | while the guest runs | while it sleeps |
//! |---|---|---|
//! | `create` | annotations filtered, container registered, exec | the same, and the pod is woken first |
//! | `state` | answered like runsc answers it, by the same question to the sentry | answered from what the sentry said last |
//! | `events --stats`, `ps` | exec | answered from what the sentry said last, and the cgroup's counters |
//! | `update` | exec | runsc as a child under the pod's lock, with the sentry thawed and the application still stopped |
//! | `delete` | runsc as a child, then unregistered | woken first; a guest that cannot be woken is killed |
//! | `wait`, `list`, and verbs without a container | exec | exec: `wait` blocks in the sentry and goes on after the wake; `list` and `events` without `--stats` wait for it |
//! | all others (`exec`, `kill`, `start`, `pause`, `resume`, `checkpoint`, …) | exec | woken first, then exec |
//!
//! `pause` and `resume` by hand are runsc's own count, beside ours: the pod is woken, so ours is nought, and
//! what runsc then counts runsc ends. A pod that is paused that way can be put to sleep and woken above it.

mod asleep;
mod create;
mod delete;
mod events;
mod pod;
mod ps;
mod state;
mod update;
mod wake;

use std::ffi::OsString;

use dormouse_sentry::ContainerId;

use crate::args::Invocation;
use crate::config::Config;
use crate::outcome::{Failure, Outcome};
use crate::real;
use crate::trace::Trace;

/// One call, with all that a verb needs.
pub(crate) struct Context<'a> {
    pub(crate) config: &'a Config,
    pub(crate) invocation: &'a Invocation,
    pub(crate) argv: &'a [OsString],
    pub(crate) trace: &'a Trace<'a>,
}

impl Context<'_> {
    /// Becomes the real runsc.
    pub(crate) fn exec(&self) -> Result<Outcome, Failure> {
        real::exec(self.config, self.argv, self.trace)
    }

    /// The container that the verb is for. `None` also for an abbreviated id or one in a form that
    /// containerd does not make: such a container is not registered.
    pub(crate) fn container(&self) -> Option<ContainerId> {
        self.invocation.container()?.parse().ok()
    }
}

/// Does what the verb asks for. Does not return where it becomes the real runsc.
pub(crate) fn dispatch(
    config: &Config,
    invocation: &Invocation,
    argv: &[OsString],
    trace: &Trace<'_>,
) -> Result<Outcome, Failure> {
    let context = Context {
        config,
        invocation,
        argv,
        trace,
    };
    match invocation.verb.as_str() {
        "create" | "run" => create::run(&context),
        "state" => state::run(&context),
        "events" if invocation.is_set("stats") => events::run(&context),
        "ps" => ps::run(&context),
        "update" => update::run(&context),
        "delete" => delete::run(&context),
        "events" | "wait" | "list" | "help" | "flags" | "spec" | "do" | "" => context.exec(),
        _ => {
            wake::before(&context);
            context.exec()
        }
    }
}
