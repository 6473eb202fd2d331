//! How drivers say what went wrong.

use std::error::Error;

use dormouse_core::Reason;

use crate::driver::{Cancel, DriverError, Guest, StopState};

/// A verb on a guest that is going on; makes its errors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Verb<'a> {
    pub(crate) name: &'static str,
    pub(crate) sandbox_id: &'a str,
}

impl<'a> Verb<'a> {
    pub(crate) fn new(name: &'static str, guest: &'a Guest) -> Self {
        Self {
            name,
            sandbox_id: &guest.sandbox_id,
        }
    }

    /// An error with its cause; the cause's own words are the message.
    pub(crate) fn failed(
        self,
        reason: Reason,
        state: Option<StopState>,
        source: impl Error + Send + Sync + 'static,
    ) -> DriverError {
        DriverError {
            reason,
            verb: self.name,
            sandbox_id: self.sandbox_id.to_owned(),
            message: source.to_string(),
            state,
            source: Some(Box::new(source)),
        }
    }

    /// An error that has no cause below.
    pub(crate) fn refused(
        self,
        reason: Reason,
        state: Option<StopState>,
        message: impl Into<String>,
    ) -> DriverError {
        DriverError {
            reason,
            verb: self.name,
            sandbox_id: self.sandbox_id.to_owned(),
            message: message.into(),
            state,
            source: None,
        }
    }
}

/// An id or UID that can be none.
#[derive(Debug, thiserror::Error)]
#[error("not the id of a pod: {source}; it is used in paths, so it must be plain")]
pub(crate) struct BadId {
    pub(crate) source: dormouse_sentry::InvalidId,
}

/// The same as [`run`] for a verb that can be called off.
pub(crate) async fn run_until<P: Clone + Send + 'static, T: Send + 'static>(
    parts: &P,
    name: &'static str,
    guest: &Guest,
    cancel: &Cancel,
    verb: impl FnOnce(&P, &Guest, Verb<'_>, &Cancel) -> Result<T, DriverError> + Send + 'static,
) -> Result<T, DriverError> {
    let cancel = cancel.clone();
    let verb = move |parts: &P, guest: &Guest, of: Verb<'_>| verb(parts, guest, of, &cancel);
    run(parts, name, guest, verb).await
}

/// Runs a verb, or the synchronous part of one, off the event loop, with all that its driver has.
pub(crate) async fn run<P: Clone + Send + 'static, T: Send + 'static>(
    parts: &P,
    name: &'static str,
    guest: &Guest,
    verb: impl FnOnce(&P, &Guest, Verb<'_>) -> Result<T, DriverError> + Send + 'static,
) -> Result<T, DriverError> {
    let (parts, owned) = (parts.clone(), guest.clone());
    let work = move || verb(&parts, &owned, Verb::new(name, &owned));
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // Only at shutdown, or after a panic that the lints forbid.
        Err(e) => Err(DriverError {
            reason: Reason::Internal,
            verb: name,
            sandbox_id: guest.sandbox_id.clone(),
            message: "the step did not end by itself; its state is found out by the next probe".to_owned(),
            state: None,
            source: Some(Box::new(e)),
        }),
    }
}
