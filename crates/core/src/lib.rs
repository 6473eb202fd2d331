//! The pure heart of Dormouse.
//!
//! Rungs of the ladder, policy, the next-step function of a pod's life, node-wide admission and the
//! stable reason codes live here. Nothing in this crate does I/O, knows a clock, an async runtime or
//! Kubernetes: time comes in as an argument ([`Moment`]) and effects leave as data ([`Action`]).

mod admission;
mod bandwidth;
mod day;
mod late_env;
mod moment;
mod policy;
mod pressure;
mod probe;
mod reason;
mod releases;
mod rung;
mod shell;
mod standby;
mod step;
mod wake;
mod wish;

pub use admission::{Admission, AdmissionLimits, Claim, ClaimKind, Memory, Verdict};
pub use bandwidth::Bandwidth;
pub use day::{Day, InvalidDay};
pub use late_env::{
    ANNOTATION_LATE_ENV, ANNOTATION_LATE_ENV_EXEC, LateEnv, LateEnvError, MAX_VARIABLES, MAX_VARIABLES_BYTES,
    Variables, VariablesError,
};
pub use moment::Moment;
pub use policy::{
    ANNOTATION_DOZE_AFTER, ANNOTATION_DURABLE, ANNOTATION_FALLBACK, ANNOTATION_FREEZE_AFTER,
    ANNOTATION_HIBERNATE_AFTER, ANNOTATION_IDLE_TIMEOUT, ANNOTATION_MANAGED, ANNOTATION_PREFIX,
    ANNOTATION_RESUME_POLICY, ANNOTATION_SHELL, ANNOTATION_WAKE_SCHEDULE, ANNOTATION_WAKE_UDP_PORTS,
    Fallback, MAX_DURATION, Policy, PolicyDefaults, PolicyError, ResumePolicy, format_duration,
    parse_duration,
};
pub use pressure::{Sleeper, next_shell_to_give_up, next_to_hibernate};
pub use probe::{
    ANNOTATION_PROBES, ContainerProbes, MAX_PROBES_BYTES, PROBE_EXEC_PREFIX, Probe, ProbeAction, ProbeFault,
    ProbeHeader, ProbeKind, ProbeOutcome, ProbeState, ProbeVerdict, Probes, ProbesError, Scheme, Ticket,
};
pub use reason::Reason;
pub use releases::{Allowed, Claims, ENDS_SOON, NotAllowed, is_tested, may_restore, saves_by_socket};
pub use rung::{Rung, UnknownRung};
pub use shell::{
    HABIT_DAYS, MOST_WAKES, ShellPolicy, ShellSpan, ShellTimes, WakeSchedule, expected_by_habit, shell_span,
};
pub use standby::{PoolAdvice, PoolRecord, staffing};
pub use step::{
    Abilities, Action, Input, Order, OrderId, PodState, Refusal, ShellSight, ShellStand, ShellTime, Step,
    StepEnd, Transition, Waiting, next,
};
pub use wake::{UnknownWakeSource, WakeSource};
pub use wish::{
    ANNOTATION_IDENTITY, ANNOTATION_POST_RESTORE_CONTAINER, ANNOTATION_POST_RESTORE_EXEC,
    ANNOTATION_POST_RESTORE_SIGNAL, ANNOTATION_RESTORE_FROM, ANNOTATION_RESTORED_FROM, BirthWish, WishError,
};
