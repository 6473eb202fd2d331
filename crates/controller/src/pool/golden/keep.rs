//! How long a golden snapshot is kept.

use std::time::Duration;

use dormouse_api::dormouse::SandboxSnapshot;
use jiff::Timestamp;

use super::attempts::RETRY;
use super::decide::{Decision, FAILED, Look, News};
use super::object::{self, State};
use crate::objects;
use crate::snapshot;

/// How long a golden snapshot may be on its way.
const TAKES: Duration = Duration::from_secs(120);

/// Whether a golden snapshot of the template as it is now is of use.
pub(super) fn keep_or_not(look: &Look<'_>, golden: &SandboxSnapshot, state: State, decision: &mut Decision) {
    let name = objects::name(&golden.metadata);
    let made = created(golden);
    let is_older = |bound| made.is_some_and(|made| objects::age(made, look.now) >= bound);
    let left = |bound: Duration| made.map(|made| bound.saturating_sub(objects::age(made, look.now)));
    match state {
        State::Ready => {
            let refused = decision.attempts.was_refused(name);
            let was_before = refused.zip(made).is_some_and(|(refused, made)| made < refused);
            let source = look.standbys.iter().find(|standby| {
                standby.node() == snapshot::node(golden)
                    && standby.can_be_saved_in(look.settles, look.now) == Some(Duration::ZERO)
            });
            if was_before && source.is_some() {
                // Its node may have another runtime by now: what has booted there since can be had.
                decision.delete(golden, "a standby could not be filled from it");
            }
        }
        State::Pending => {
            let source = look
                .standbys
                .iter()
                .find(|standby| standby.name() == golden.spec.sandbox_name);
            match source {
                None => decision.delete(golden, "its sandbox is no standby any more"),
                Some(_) if is_older(TAKES) => {
                    decision.attempts.refused(name, look.now, look.now);
                    decision.delete(golden, "it is not taken in time");
                    let why = object::why(golden).map_or("nothing is said of it", |(_, message)| message);
                    decision.news.push(News {
                        good: false,
                        reason: FAILED,
                        note: format!("standbys boot: SandboxSnapshot {name} is not taken in time: {why}"),
                    });
                }
                Some(source) => {
                    decision.keep_awake(&[source]);
                    if let Some(left) = left(TAKES) {
                        decision.look_again_in(left);
                    }
                }
            }
        }
        State::Failed if is_older(RETRY) => decision.delete(golden, "it failed, and is tried again"),
        State::Failed => {
            if let Some(left) = left(RETRY) {
                decision.look_again_in(left);
            }
        }
        State::Lost => decision.delete(golden, "its node does not have it any more"),
        State::Away => {}
    }
}

fn created(golden: &SandboxSnapshot) -> Option<Timestamp> {
    golden.metadata.creation_timestamp.as_ref().map(|time| time.0)
}
