//! Room for a snapshot, promised before anything is done to the guest.

use std::sync::Arc;

use dormouse_core::Reason;

use crate::error::IoError;
use crate::gc::{self, Incoming, Usage, Why};
use crate::id::SnapshotId;

use super::{Inner, State, Store};

/// What room is wanted for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReserveRequest {
    /// The namespace whose quota it counts against.
    pub namespace: String,
    /// How large the snapshot will be at most, in bytes.
    pub expected_bytes: u64,
}

/// There is no room.
#[derive(Debug, thiserror::Error)]
pub enum ReserveError {
    /// A quota would be exceeded, even with everything removed that may be.
    #[error(
        "no room for a snapshot of {bytes} bytes: the {what} is used up by snapshots that are held, pinned or in use; remove or unpin some, or raise it"
    )]
    Quota {
        /// Which quota.
        what: &'static str,
        /// How many bytes were wanted.
        bytes: u64,
    },
    /// The disk would be too full, even with everything removed that may be.
    #[error(
        "no room for a snapshot of {bytes} bytes: the disk lacks {short} bytes to what has to stay free; free some, or remove snapshots"
    )]
    Disk {
        /// How many bytes were wanted.
        bytes: u64,
        /// How many bytes are missing.
        short: u64,
    },
    /// Room could not be made.
    #[error(transparent)]
    Io(#[from] IoError),
}

impl ReserveError {
    /// The stable code.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Quota { .. } => Reason::SnapshotQuotaExceeded,
            Self::Disk { .. } => Reason::DiskFull,
            Self::Io(e) => e.reason(),
        }
    }
}

/// Room that was promised. Dropped, it is given back.
#[derive(Debug)]
pub struct Reservation {
    pub(crate) inner: Arc<Inner>,
    pub(crate) id: SnapshotId,
}

impl Reservation {
    /// The id that the snapshot will have.
    #[must_use]
    pub const fn id(&self) -> SnapshotId {
        self.id
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.inner.state().reserved.remove(&self.id);
    }
}

impl Store {
    /// Promises room for a snapshot, and makes it if need be: removes what has expired and what may be
    /// evicted. Where the room cannot be made, nothing is removed.
    ///
    /// # Errors
    /// [`ReserveError`]
    pub fn reserve(&self, request: &ReserveRequest, now_ms: u64) -> Result<Reservation, ReserveError> {
        let inner = &self.inner;
        let id = SnapshotId::new(now_ms);
        let space = inner
            .disk()
            .space(inner.layout.root())
            .map_err(IoError::of("measure", inner.layout.root()))?;
        let plan = {
            let mut state = inner.state();
            let high_water = inner.options.high_water;
            let percent = u64::from(high_water.free_percent.min(100));
            let stay = (space.total / 100)
                .saturating_mul(percent)
                .max(high_water.free_bytes);
            let promised = state
                .reserved
                .values()
                .fold(0_u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
            let needed = stay
                .saturating_add(promised)
                .saturating_add(request.expected_bytes);
            let mut incoming = incoming(&state);
            let usage = incoming
                .by_namespace
                .entry(request.namespace.clone())
                .or_default();
            *usage = usage.plus(request.expected_bytes, 1);
            incoming.disk_short = needed.saturating_sub(space.available);
            let plan = gc::plan(
                &Inner::gc_entries(&state),
                &inner.options.limits,
                &incoming,
                now_ms,
            );
            if let Some(why) = plan.unmet.first() {
                return Err(refusal(*why, request.expected_bytes, incoming.disk_short));
            }
            // Promised under the same lock that the plan was made under: two cannot get the same room.
            state
                .reserved
                .insert(id, (request.namespace.clone(), request.expected_bytes));
            plan
        };
        let reservation = Reservation {
            inner: Arc::clone(inner),
            id,
        };
        for action in plan.actions {
            // One that got a user or a holder meanwhile stays; the disk's own limit is still the disk's.
            match self.evict(action.id) {
                Ok(_) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(reservation)
    }
}

/// What is promised already.
pub(crate) fn incoming(state: &State) -> Incoming {
    let mut incoming = Incoming::default();
    for (namespace, bytes) in state.reserved.values() {
        let usage: &mut Usage = incoming.by_namespace.entry(namespace.clone()).or_default();
        *usage = usage.plus(*bytes, 1);
    }
    incoming
}

fn refusal(why: Why, bytes: u64, short: u64) -> ReserveError {
    match why {
        Why::NamespaceQuota => ReserveError::Quota {
            what: "namespace's quota",
            bytes,
        },
        Why::NodeQuota | Why::Expired => ReserveError::Quota {
            what: "node's quota",
            bytes,
        },
        Why::DiskSpace => ReserveError::Disk { bytes, short },
    }
}
