//! Keeping a pool from growing where a quota leaves no room.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::quota::{Account, Exceeded, Room};
use super::{Next, Observed, Refill, Settings};
use crate::backoff;
use crate::objects;

/// When to look again for room that no other pool has left: sleepers give their requests away, quotas are raised.
const ROOM: Duration = Duration::from_secs(30);
/// When to look again where another pool of the namespace has not been looked at yet.
const OTHERS: Duration = Duration::from_secs(1);

/// A standby was refused for a ResourceQuota; until then none is tried again.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    exceeded: Exceeded,
    until: Timestamp,
    failures: u32,
}

impl Refusal {
    /// One more in a row; how long it is before the next try.
    pub(super) fn after(before: Option<Self>, exceeded: Exceeded, now: Timestamp) -> (Self, Duration) {
        let mut failures = before.map_or(0, |before| before.failures);
        let wait = backoff::next(&mut failures);
        let until = SignedDuration::try_from(wait)
            .ok()
            .and_then(|wait| now.checked_add(wait).ok());
        let refusal = Self {
            exceeded,
            until: until.unwrap_or(now),
            failures,
        };
        (refusal, wait)
    }
}

/// Takes back what quotas leave no room for of what was decided. `others`: what the other pools of the namespace have;
/// `None`: of one it is not known yet. Returns what this one has then.
pub(super) fn limit(
    next: &mut Next,
    observed: &Observed,
    settings: &Settings,
    refill: &mut Refill,
    refusal: &mut Option<Refusal>,
    others: Option<BTreeMap<&str, Account>>,
    now: Timestamp,
) -> Account {
    let missing = next.wanted.saturating_sub(next.there);
    if missing == 0 {
        *refusal = None;
    }
    // Pods of standbys that there are, are refused, or it is too early to try again.
    let mut is_blocked = next.exceeded.is_some();
    if let Some(refusal) = refusal {
        next.exceeded = Some(refusal.exceeded.clone());
        if let Ok(wait) = Duration::try_from(refusal.until.duration_since(now))
            && !wait.is_zero()
        {
            hold(next, 0, observed, settings, refill);
            is_blocked = true;
            next.look_again_in(wait);
        }
    }
    let mut account = Account {
        has: next.there,
        bytes: observed.bytes,
        each: observed.each(),
        ..Account::default()
    };
    if observed.limits.is_any() {
        // What cannot be made for another reason is no reason to keep others from growing.
        if observed.template.is_some() && !is_blocked {
            account.wants = missing.min(settings.batch.max(1));
            if next.held > 0 {
                account.wants = account.wants.min(next.make);
            }
        }
        let room = others.map(|mut accounts| {
            let name = objects::name(&observed.pool.metadata);
            accounts.insert(name, account);
            observed.limits.room(name, &accounts)
        });
        let unknown = room.is_none();
        let Room { grants, full } = room.unwrap_or_default();
        hold(next, grants, observed, settings, refill);
        if let Some(says) = full {
            account.waits = true;
            next.exceeded
                .get_or_insert_with(|| Exceeded::standby_quota(&says));
            next.look_again_in(ROOM);
        } else if unknown && account.wants > 0 {
            next.look_again_in(OTHERS);
        }
    }
    let made = u64::try_from(next.make).unwrap_or(u64::MAX);
    account.has = account.has.saturating_add(next.make);
    account.bytes = account.bytes.saturating_add(made.saturating_mul(account.each));
    account.wants = account.wants.saturating_sub(next.make);
    account
}

/// Has no more made than `most`.
fn hold(next: &mut Next, most: usize, observed: &Observed, settings: &Settings, refill: &mut Refill) {
    let back = next.make.saturating_sub(most);
    if back > 0 {
        refill.give_back(back, settings.refill_rate);
        next.make = most;
        let withheld = next.places.split_off(most.min(next.places.len()));
        for node in withheld.iter().filter_map(|place| place.node.as_deref()) {
            // Its first standby is not made after all, so nobody waits for that one's golden snapshot yet.
            let is_left = next
                .places
                .iter()
                .any(|place| place.node.as_deref() == Some(node));
            if !is_left && !observed.attempts.waits_on(node) {
                next.attempts.fulfilled(node);
            }
        }
    }
    if next.make == 0 {
        next.standby = None;
    }
}
