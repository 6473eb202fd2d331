//! Swap for sleepers: judges what is active, brings the agent's own if configured, and takes that down again.
//!
//! A sleeper's pages need somewhere to go. Swap that is active already is used if it is encrypted or stays in
//! RAM. Otherwise, if the configuration asks for it, the agent brings zram (high priority, for the small and
//! compressible) and behind it a file through dm-crypt with a key that nobody knows (for the bulk). Deciding
//! ([`plan`]) is pure; doing goes through [`SwapEffects`]. Only what the agent's own record names is ever
//! touched.
//!
//! All calls block (`swapoff` for as long as it takes to read everything back): call them from a blocking thread.

mod bring_up;
mod config;
mod effects;
mod facts;
mod gather;
mod kubelet;
mod linux;
mod manager;
#[cfg(test)]
mod manager_test;
mod plan;
#[cfg(test)]
mod plan_test;
mod record;
#[cfg(test)]
mod recording;
mod state;
mod sys;
mod take_down;
mod tools;

pub use bring_up::{BringUpError, Brought, PartFailure};
pub use config::{ConfigError, DEFAULT_KUBELET_CONFIG, FileConfig, MAX_PRIORITY, SwapConfig, ZramConfig};
pub use effects::{EffectError, GatherError, SwapEffects, TakenZram};
pub use facts::{
    ActiveSwap, DirectoryFacts, EncryptionLack, Facts, ParseError, Protection, SwapLine, ZramFacts,
    parse_meminfo, parse_swaps,
};
pub use kubelet::{KubeletFacts, KubeletSwap, read_kubelet};
pub use linux::LinuxEffects;
pub use manager::{StartError, Started, SwapManager};
pub use plan::{Build, FILE_NAME, MAPPING_NAME, Plan, Refusal, Skip, plan};
pub use record::{Part, RECORD_NAME, RecordError, RecordStore, SwapRecord};
pub use state::{DeviceState, Owner, StateError, SwapState, ZramState};
pub use take_down::{TakeDownError, TakenDown};
pub use tools::{Tool, ToolError};

/// What the kubelet of this node thinks of swap.
#[must_use]
pub fn kubelet(config: &SwapConfig) -> KubeletFacts {
    read_kubelet(config, gather::kubelet_runs)
}
