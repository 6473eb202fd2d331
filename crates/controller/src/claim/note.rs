//! What a controller keeps in mind about claims: when it first saw them, and how often they failed in a row, how their
//! environment is being delivered, and which standbys are being woken for them.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dormouse_api::extensions::SandboxClaim;
use jiff::Timestamp;
use tokio::time::Instant;

use super::deliver::Attempt;
use crate::backoff;
use crate::objects;

/// What is kept in mind, by claim.
#[derive(Debug, Default)]
pub struct Notes(Mutex<HashMap<(String, String), Note>>);

#[derive(Debug)]
struct Note {
    uid: String,
    since: Timestamp,
    failures: u32,
    counted: bool,
    demanded: bool,
    delivery: Option<Attempt>,
    waking: Option<(String, Instant)>,
    ready_since: Option<Timestamp>,
}

impl Notes {
    /// A claim was seen, or is gone.
    pub fn saw(&self, namespace: &str, name: &str, claim: Option<&SandboxClaim>) {
        match claim {
            Some(claim) => {
                self.since(claim);
            }
            None => {
                self.lock().remove(&(namespace.to_owned(), name.to_owned()));
            }
        }
    }

    /// When the claim was first seen.
    pub fn since(&self, claim: &SandboxClaim) -> Timestamp {
        self.with(claim, |note| note.since)
    }

    pub(super) fn failed(&self, claim: &SandboxClaim) -> Duration {
        self.with(claim, |note| backoff::next(&mut note.failures))
    }

    pub(super) fn went_well(&self, claim: &SandboxClaim) {
        self.with(claim, |note| note.failures = 0);
    }

    /// Whether it is the first time that this is asked about the claim.
    pub(super) fn counts(&self, claim: &SandboxClaim) -> bool {
        self.with(claim, |note| !std::mem::replace(&mut note.counted, true))
    }

    /// Whether it is the first time that the claim asks its pool for a standby.
    pub(super) fn demands(&self, claim: &SandboxClaim) -> bool {
        self.with(claim, |note| !std::mem::replace(&mut note.demanded, true))
    }

    /// Whether the claim has asked its pool for a standby.
    pub(super) fn has_demanded(&self, claim: &SandboxClaim) -> bool {
        self.with(claim, |note| note.demanded)
    }

    /// The last attempt to deliver the claim's environment.
    pub(super) fn delivery<T>(&self, claim: &SandboxClaim, act: impl FnOnce(&mut Option<Attempt>) -> T) -> T {
        self.with(claim, |note| act(&mut note.delivery))
    }

    /// The claim is ready `now`; since when it is known to be.
    pub(super) fn became_ready(&self, claim: &SandboxClaim, now: Timestamp) -> Timestamp {
        self.with(claim, |note| *note.ready_since.get_or_insert(now))
    }

    /// When this controller first told the claim that it is ready, if it did.
    pub(super) fn ready_since(&self, claim: &SandboxClaim) -> Option<Timestamp> {
        self.with(claim, |note| note.ready_since)
    }

    /// The claim was given a sandbox that sleeps: its UID.
    pub(super) fn wakes(&self, claim: &SandboxClaim, sandbox: &str) {
        self.with(claim, |note| {
            note.waking = Some((sandbox.to_owned(), Instant::now()));
        });
    }

    /// The claim is ready: whatever sleeps from now on has been used.
    pub(super) fn has_woken(&self, claim: &SandboxClaim) {
        self.with(claim, |note| note.waking = None);
    }

    /// Since when the claim has waited for this sandbox to wake, if this controller gave it to it and it never was ready.
    pub(super) fn waits_since(&self, claim: &SandboxClaim, sandbox: &str) -> Option<Instant> {
        self.with(claim, |note| {
            let (waking, since) = note.waking.as_ref()?;
            (waking == sandbox).then_some(*since)
        })
    }

    fn with<T>(&self, claim: &SandboxClaim, act: impl FnOnce(&mut Note) -> T) -> T {
        let meta = &claim.metadata;
        let key = (
            objects::namespace(meta).to_owned(),
            objects::name(meta).to_owned(),
        );
        let uid = objects::uid(meta);
        let new = || Note {
            uid: uid.to_owned(),
            since: Timestamp::now(),
            failures: 0,
            counted: false,
            demanded: false,
            delivery: None,
            waking: None,
            ready_since: None,
        };
        let mut notes = self.lock();
        let note = notes.entry(key).or_insert_with(new);
        if note.uid != uid {
            *note = new();
        }
        act(note)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(String, String), Note>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
