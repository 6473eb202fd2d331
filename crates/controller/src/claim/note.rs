//! What a controller keeps in mind about claims: when it first saw them, and how often they failed in a row, and how their
//! environment is being delivered.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dormouse_api::extensions::SandboxClaim;
use jiff::Timestamp;

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
