//! How many standbys a namespace's quotas leave room for.
//!
//! What there is stays: a quota makes nobody smaller, it keeps pools from growing. Room that is left, or becomes free as
//! standbys are claimed, goes to the pool with the fewest standbys first, one at a time, and of several with as few to
//! the first by name. So pools that want more than there is room for come to the same number, and none that wants less
//! goes without (max-min fairness, by progressive filling); and whoever asks, and when, the answer is the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use dormouse_api::conditions::{QUOTA_EXCEEDED, quota as reasons};
use dormouse_api::dormouse::StandbyQuota;
use dormouse_api::quantity::bytes;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::objects::{self, remove, set};

/// What the quotas of a namespace allow: the least that one of them does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Limits {
    standbys: Option<Limit>,
    memory: Option<Limit>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Limit {
    most: u64,
    /// As it stands in messages.
    says: String,
}

impl Limits {
    /// What all of these allow.
    #[must_use]
    pub fn of(quotas: &[Arc<StandbyQuota>]) -> Self {
        let mut limits = Self::default();
        for quota in quotas {
            let name = objects::name(&quota.metadata);
            if let Some(most) = quota.spec.standbys {
                let says = format!("StandbyQuota {name} (standbys: {most})");
                lower(
                    &mut limits.standbys,
                    u64::try_from(most).unwrap_or_default(),
                    says,
                );
            }
            if let Some(text) = &quota.spec.memory {
                // The API server lets nothing through that is none.
                if let Some(most) = bytes(text) {
                    let says = format!("StandbyQuota {name} (memory: {text})");
                    lower(&mut limits.memory, most, says);
                }
            }
        }
        limits
    }

    /// Whether there is any limit.
    #[must_use]
    pub const fn is_any(&self) -> bool {
        self.standbys.is_some() || self.memory.is_some()
    }

    /// How many of these standbys more a pool may make, and if not all that it wants, which limit is in the way.
    /// `accounts` are those of all pools of the namespace, by name, with its own.
    pub(super) fn room(&self, pool: &str, accounts: &BTreeMap<&str, Account>) -> Room {
        let mut free = Free::under(self, accounts.values());
        let mut growing: Vec<Growing<'_>> = accounts
            .iter()
            .filter(|(_, account)| account.wants > 0)
            .map(|(name, account)| Growing {
                has: account.has,
                name,
                wants: account.wants,
                each: account.each,
            })
            .collect();
        let mut room = Room::default();
        loop {
            let fewest = growing
                .iter_mut()
                .min_by_key(|growing| (growing.has, growing.name));
            let Some(next) = fewest else {
                return room;
            };
            let is_own = next.name == pool;
            let full = if next.wants == 0 {
                None
            } else if let Some(full) = free.take(next.each, self) {
                Some(full)
            } else {
                next.wants -= 1;
                next.has = next.has.saturating_add(1);
                room.grants = room.grants.saturating_add(usize::from(is_own));
                continue;
            };
            if is_own {
                room.full = full.map(|limit| limit.says.clone());
                return room;
            }
            let name = next.name;
            growing.retain(|growing| growing.name != name);
        }
    }
}

/// Takes the lower of two limits; of equal ones the first.
fn lower(limit: &mut Option<Limit>, most: u64, says: String) {
    if limit.as_ref().is_none_or(|before| most < before.most) {
        *limit = Some(Limit { most, says });
    }
}

struct Growing<'a> {
    has: usize,
    name: &'a str,
    wants: usize,
    each: u64,
}

/// What is left of the limits.
struct Free {
    standbys: Option<u64>,
    memory: Option<u64>,
}

impl Free {
    fn under<'a>(limits: &Limits, accounts: impl Iterator<Item = &'a Account> + Clone) -> Self {
        let has = accounts.clone().map(|account| count(account.has));
        let has = has.fold(0_u64, u64::saturating_add);
        let asks = accounts.fold(0_u64, |sum, account| sum.saturating_add(account.bytes));
        let left = |limit: &Option<Limit>, used: u64| {
            let limit = limit.as_ref();
            limit.map(|limit| limit.most.saturating_sub(used))
        };
        Self {
            standbys: left(&limits.standbys, has),
            memory: left(&limits.memory, asks),
        }
    }

    /// Takes what one standby needs; the limit that is in the way if there is not that much.
    fn take<'a>(&mut self, each: u64, limits: &'a Limits) -> Option<&'a Limit> {
        if self.standbys == Some(0) {
            return limits.standbys.as_ref();
        }
        // One that asks for nothing always fits.
        if self.memory.is_some_and(|memory| each > memory) {
            return limits.memory.as_ref();
        }
        self.standbys = self.standbys.map(|standbys| standbys.saturating_sub(1));
        self.memory = self.memory.map(|memory| memory.saturating_sub(each));
        None
    }
}

/// What one pool has of what quotas limit, and wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Account {
    /// Standbys that there are, with those that are being made and those that are on their way out.
    pub(super) has: usize,
    /// Bytes of memory that their containers request.
    pub(super) bytes: u64,
    /// How many more it would make now.
    pub(super) wants: usize,
    /// Bytes that one more requests.
    pub(super) each: u64,
    /// Whether it has fewer than it is to have because of a StandbyQuota.
    pub(super) waits: bool,
}

impl Account {
    /// So many were not made that it was thought to have.
    pub(super) fn give_back(&mut self, count: usize) {
        let bytes = u64::try_from(count).unwrap_or(u64::MAX).saturating_mul(self.each);
        self.has = self.has.saturating_sub(count);
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// Whether there is more room for others than there was before.
    pub(super) const fn leaves_room(&self, before: &Self) -> bool {
        self.has < before.has || self.bytes < before.bytes || self.wants < before.wants
    }
}

/// What a quota allows to a pool.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Room {
    /// So many more.
    pub(super) grants: usize,
    /// The limit that is in the way of more, if it wants more.
    pub(super) full: Option<String>,
}

/// What the pools of a namespace have together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Usage {
    /// Standbys.
    pub standbys: u64,
    /// Bytes that they request.
    pub bytes: u64,
    /// Names of the pools that have fewer than they are to have because of a StandbyQuota.
    pub waiting: Vec<String>,
}

impl Usage {
    pub(super) fn and(mut self, pool: &str, account: &Account) -> Self {
        self.standbys = self.standbys.saturating_add(count(account.has));
        self.bytes = self.bytes.saturating_add(account.bytes);
        self.waiting.extend(account.waits.then(|| pool.to_owned()));
        self
    }
}

fn count(standbys: usize) -> u64 {
    u64::try_from(standbys).unwrap_or(u64::MAX)
}

/// A quota leaves no room for all standbys of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exceeded {
    /// Reason of the condition, and of the event.
    pub reason: &'static str,
    /// In words.
    pub message: String,
}

impl Exceeded {
    /// A StandbyQuota, by the limit that `says` so.
    pub(super) fn standby_quota(says: &str) -> Self {
        Self {
            reason: reasons::STANDBY_QUOTA_EXCEEDED,
            message: format!(
                "{says} leaves no room for all standbys that there are to be; raise it, or make pools of this namespace \
                 smaller"
            ),
        }
    }

    /// A ResourceQuota, as the API server says it.
    pub(super) fn resource_quota(said: &str) -> Self {
        Self {
            reason: reasons::RESOURCE_QUOTA_EXCEEDED,
            message: format!("a standby was refused, and is tried again: {said}"),
        }
    }

    /// Whether it is one that refuses: a ResourceQuota.
    pub(super) fn is_refusal(&self) -> bool {
        self.reason == reasons::RESOURCE_QUOTA_EXCEEDED
    }

    /// Says so in the conditions of a pool, or no more.
    pub(super) fn show(
        this: Option<&Self>,
        conditions: &mut Vec<Condition>,
        generation: Option<i64>,
        now: Timestamp,
    ) {
        let Some(this) = this else {
            remove(conditions, QUOTA_EXCEEDED);
            return;
        };
        let condition = Condition {
            type_: QUOTA_EXCEEDED.to_owned(),
            status: "True".to_owned(),
            reason: this.reason.to_owned(),
            message: this.message.clone(),
            observed_generation: generation,
            last_transition_time: Time(now),
        };
        set(conditions, condition, now);
    }
}

/// What the API server says of the ResourceQuota that it refuses something for; `None` if it refuses it for something else.
/// What comes before that names the object, which is another one with each try.
///
/// Source: `k8s.io/apiserver/pkg/admission/plugin/resourcequota/controller.go`.
pub(super) fn of_resource_quota(message: &str) -> Option<&str> {
    let said = message.get(message.find("exceeded quota: ")?..)?;
    said.lines().next()
}
