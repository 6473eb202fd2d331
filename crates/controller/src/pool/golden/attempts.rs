//! What has been tried with a pool's golden snapshots, so that the pool is not held up by them for long.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use crate::objects::age;

/// How long at most the standbys of a node wait for its golden snapshot, once for each template.
pub(super) const HOPE: Duration = Duration::from_secs(60);

/// When what went wrong is tried again.
pub(super) const RETRY: Duration = Duration::from_secs(600);

/// What has been tried with a pool's golden snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attempts {
    /// Of the template that all of it is about.
    hash: String,
    /// Since when standbys of a node wait for its golden snapshot. It stays when that has taken too long.
    since: BTreeMap<String, Timestamp>,
    /// Golden snapshots, by name, that could not be had or made, and when.
    refused: BTreeMap<String, Timestamp>,
    /// When one was last asked for on a node.
    asked: BTreeMap<String, Timestamp>,
    /// How each stood when it was last looked at, with those that were named.
    pub(super) seen: BTreeMap<String, super::Sight>,
}

/// How soon after one was asked for on a node the next one is. Claims may take its source each time, and an object of its name
/// may be somebody else's.
const PAUSE: Duration = Duration::from_secs(10);

/// Whether, and for how long, standbys wait for a golden snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hope {
    /// Nobody has begun to wait.
    Fresh,
    /// So long yet.
    Left(Duration),
    /// No more.
    Gone,
}

impl Attempts {
    /// From now on it is about a template, and what is too long ago is forgotten.
    pub(super) fn turn_to(&mut self, hash: &str, now: Timestamp) {
        if self.hash != hash {
            hash.clone_into(&mut self.hash);
            self.since.clear();
            self.asked.clear();
            self.refused.clear();
        }
        self.refused.retain(|_, then| age(*then, now) < RETRY);
    }

    /// A golden snapshot could not be had, or made.
    pub(in crate::pool) fn refused(&mut self, golden: &str, then: Timestamp, now: Timestamp) {
        if age(then, now) < RETRY {
            let known = self.refused.entry(golden.to_owned()).or_insert(then);
            *known = then.max(*known);
        }
    }

    /// When a golden snapshot could last not be had, or made, if that was of late.
    pub(super) fn was_refused(&self, golden: &str) -> Option<Timestamp> {
        self.refused.get(golden).copied()
    }

    /// How long until a golden snapshot may be asked for on a node.
    pub(super) fn pause(&self, node: &str, now: Timestamp) -> Duration {
        let asked = self.asked.get(node);
        asked.map_or(Duration::ZERO, |then| PAUSE.saturating_sub(age(*then, now)))
    }

    /// One is asked for on a node.
    pub(super) fn asked(&mut self, node: &str, now: Timestamp) {
        self.asked.insert(node.to_owned(), now);
    }

    pub(super) fn hope(&self, node: &str, now: Timestamp) -> Hope {
        match self.since.get(node) {
            None => Hope::Fresh,
            Some(then) => match HOPE.checked_sub(age(*then, now)) {
                Some(left) if !left.is_zero() => Hope::Left(left),
                _ => Hope::Gone,
            },
        }
    }

    /// Standbys of a node begin to wait, if they do not already.
    pub(in crate::pool) fn wait_on(&mut self, node: &str, now: Timestamp) {
        self.since.entry(node.to_owned()).or_insert(now);
    }

    /// Whether standbys of a node have begun to wait, or have waited for too long.
    pub(in crate::pool) fn waits_on(&self, node: &str) -> bool {
        self.since.contains_key(node)
    }

    /// A node has its golden snapshot, or nobody that is to become it: for the next one standbys may wait again.
    pub(in crate::pool) fn fulfilled(&mut self, node: &str) {
        self.since.remove(node);
    }
}
