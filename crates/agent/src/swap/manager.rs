//! The one hand on the agent's own swap.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use dormouse_core::Reason;

use super::bring_up::{BringUpError, Brought, bring_up};
use super::config::{ConfigError, MIB, SwapConfig};
use super::effects::{GatherError, SwapEffects};
use super::facts::Facts;
use super::kubelet::KubeletFacts;
use super::linux::LinuxEffects;
use super::plan::{Plan, Refusal, plan};
use super::record::{Part, RecordError, RecordStore};
use super::state::{Monitor, StateError, SwapState};
use super::take_down::{TakeDownError, TakenDown, take_down};

/// The swap manager could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The node could not be looked at.
    #[error(transparent)]
    Gather(#[from] GatherError),
    /// The record cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Bringing up failed as a whole.
    #[error(transparent)]
    BringUp(#[from] BringUpError),
}

impl StartError {
    /// The stable code.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Gather(_) => Reason::SwapSetupFailed,
            Self::Record(e) => e.reason(),
            Self::BringUp(e) => e.reason(),
        }
    }
}

/// What the start found, decided and did; for the log and for `dormouse doctor`.
#[derive(Debug)]
pub struct Started {
    /// What was decided.
    pub plan: Plan,
    /// What came of it.
    pub brought: Brought,
    /// What the kubelet says.
    pub kubelet: KubeletFacts,
}

/// Own and foreign swap of this node.
#[derive(Debug)]
pub struct SwapManager {
    config: SwapConfig,
    store: RecordStore,
    effects: Box<dyn SwapEffects>,
    monitor: Monitor,
    // Held through bring-up and take-down, so that they never overlap.
    hand: Mutex<()>,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    own: Vec<Part>,
    /// Why there is no swap, when there is none.
    none: Reason,
}

impl SwapManager {
    /// A manager for the real node; its record is in `state_directory`, which has to be there.
    ///
    /// # Errors
    /// [`ConfigError`] if the configuration cannot be used.
    pub fn new(config: SwapConfig, state_directory: &Path) -> Result<Self, ConfigError> {
        Self::with_effects(config, state_directory, Box::new(LinuxEffects))
    }

    /// A manager with other effects.
    ///
    /// # Errors
    /// [`ConfigError`] if the configuration cannot be used.
    pub fn with_effects(
        config: SwapConfig,
        state_directory: &Path,
        effects: Box<dyn SwapEffects>,
    ) -> Result<Self, ConfigError> {
        config.check()?;
        Ok(Self {
            config,
            store: RecordStore::new(state_directory),
            effects,
            monitor: Monitor::default(),
            hand: Mutex::new(()),
            seen: Mutex::new(Seen {
                own: Vec::new(),
                none: Reason::NoSwap,
            }),
        })
    }

    /// Looks at the node and says what a start would do, without doing it (for `dormouse doctor`).
    ///
    /// # Errors
    /// [`StartError::Gather`] or [`StartError::Record`].
    pub fn look(&self) -> Result<(Facts, Plan), StartError> {
        let facts = self.effects.gather(&self.config, self.store.load()?)?;
        let plan = plan(&facts, &self.config);
        Ok((facts, plan))
    }

    /// Recognises the agent's own swap, clears away what an earlier boot or a torn step left, and brings what
    /// is configured. Safe to call at every start.
    ///
    /// Failures of single parts are in the result, not an error: the node may still have other swap.
    ///
    /// # Errors
    /// [`StartError`]; nothing was brought that is not in the record.
    pub fn start(&self) -> Result<Started, StartError> {
        let _hand = self.hand.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut facts, mut decided) = self.look()?;
        if self.load_modules(&facts) {
            (facts, decided) = self.look()?;
        }
        let reserve = self.config.take_down_reserve_mib.saturating_mul(MIB);
        let brought = bring_up(self.effects.as_ref(), &self.store, &facts, &decided, reserve)?;
        self.monitor.forget();
        let failed = brought.failed.first().map(super::bring_up::PartFailure::reason);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.own = self.store.load()?.map(|r| r.parts).unwrap_or_default();
        seen.none = failed
            .or_else(|| decided.verdict.as_ref().err().map(Refusal::reason))
            .unwrap_or(Reason::NoSwap);
        drop(seen);
        Ok(Started {
            plan: decided,
            brought,
            kubelet: facts.kubelet,
        })
    }

    /// Loads the modules that a configured part needs and the kernel has not got yet. A module that cannot be
    /// loaded shows up in the plan as what the node lacks.
    fn load_modules(&self, facts: &Facts) -> bool {
        let mut tried = false;
        if self.config.zram.is_some() && facts.zram.is_none() && !facts.kubelet.forbids_swap() {
            tried = true;
            let _ = self.effects.load_module("zram");
        }
        if self.config.file.is_some() && facts.encryption.is_err() && !facts.kubelet.forbids_swap() {
            tried = true;
            for module in ["dm_crypt", "loop"] {
                let _ = self.effects.load_module(module);
            }
        }
        tried
    }

    /// How the swap is doing now: two or three small files are read.
    ///
    /// # Errors
    /// [`StateError`] if `/proc/swaps` cannot be read.
    pub fn state(&self) -> Result<SwapState, StateError> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let full_below = self.config.full_below_mib.saturating_mul(MIB);
        self.monitor
            .read(&seen.own, seen.none, self.config.allow_plain_swap, full_below)
    }

    /// Takes the agent's own swap down: for uninstall, not for a restart of the agent.
    ///
    /// # Errors
    /// [`TakeDownError::DoesNotFit`] with figures if sleepers' pages would not fit in RAM; then nothing was
    /// done. After any other error what is left is still recorded, and the call can be repeated.
    pub fn take_down(&self) -> Result<TakenDown, TakeDownError> {
        let _hand = self.hand.lock().unwrap_or_else(PoisonError::into_inner);
        let done = take_down(self.effects.as_ref(), &self.store, &self.config);
        self.monitor.forget();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.own = self.store.load()?.map(|r| r.parts).unwrap_or_default();
        seen.none = Reason::NoSwap;
        drop(seen);
        done
    }
}
