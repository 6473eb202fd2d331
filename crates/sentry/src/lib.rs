//! Synchronous access to one pod's guest.
//!
//! Everything that stops or continues a gVisor guest goes through here, whether the agent or the
//! wrapper does it: the control socket of the sentry ([`ControlSocket`]), the pod's record on tmpfs
//! ([`Record`] in a [`RunDir`]), the freezer of the pod's cgroup ([`PodCgroup`]) and, over all of them,
//! the one hand on the switch ([`Switch`]).
//!
//! The crate is linked into the wrapper, which the shim starts for every verb: it is synchronous, has few
//! dependencies and does no work that was not asked for.

pub mod cgroup;
pub mod control;
pub mod file;
pub mod filestore;
mod grant;
pub mod hold;
mod ids;
pub mod process;
pub mod record;
pub mod releases;
mod run_dir;
pub mod runsc_state;
pub mod stacks;
pub mod switch;
mod wake_note;
pub mod wrapper_config;

pub use cgroup::{CgroupError, CgroupVersion, PodCgroup, SLEEPER, SwiftMoves};
pub use control::{ContainerRuntimeState, ControlError, ControlSocket, GuestMemory, ImageFiles, ZeroPages};
pub use file::FileError;
pub use grant::{Grant, GrantError, GrantedContainer};
pub use ids::{ContainerId, InvalidId, PodUid, SandboxId};
pub use process::ProcessId;
pub use record::{
    CgroupState, ContainerKind, ContainerRecord, Hibernation, HibernationPhase, Intent, LastKnown, Launch,
    LoweredLimit, Pipe, PodRecordIdentity, Record, Restore, RestorePhase, RunscRecord, Shell, SwitchState,
};
pub use releases::{FileIdentity, Release, Releases};
pub use run_dir::{DEFAULT_RUN_DIR, RunDir, RunDirError};
pub use runsc_state::{RunscState, RunscStateError};
pub use stacks::StopState;
pub use switch::{Held, LockError, Switch, SwitchError, Visit};
pub use wake_note::{WakeListener, WakeNote, WakeNoteError};
pub use wrapper_config::{ConfigError, WrapperConfig};
