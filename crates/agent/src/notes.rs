//! Listens for what the wrapper did.

use std::os::fd::AsFd as _;

use dormouse_sentry::{RunDir, WakeListener, WakeNote, WakeNoteError};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio_util::sync::CancellationToken;

use crate::pods::Pods;

/// Takes the wrapper's notes to the actors until `stop`.
///
/// # Errors
/// The socket cannot be made or read.
pub async fn listen(dir: &RunDir, pods: Pods, stop: CancellationToken) -> Result<(), NotesError> {
    let listener = WakeListener::bind(dir)?;
    // The same socket a second time, for tokio to wait on.
    let socket = UnixDatagram::from_std(listener.as_fd().try_clone_to_owned()?.into())?;
    loop {
        tokio::select! {
            readable = socket.readable() => readable?,
            () = stop.cancelled() => return Ok(()),
        }
        while let Some(note) = next(&listener, &socket)? {
            pods.note(note).await;
        }
    }
}

/// The next note; `None` where none is waiting.
fn next(listener: &WakeListener, socket: &UnixDatagram) -> Result<Option<WakeNote>, NotesError> {
    loop {
        let mut failure = None;
        let received = socket.try_io(Interest::READABLE, || match listener.receive() {
            Ok(Some(note)) => Ok(Some(note)),
            Ok(None) => Err(std::io::ErrorKind::WouldBlock.into()),
            Err(error) => {
                failure = Some(error);
                Ok(None)
            }
        });
        match (failure, received) {
            // A datagram that is no note is no reason to stop listening.
            (Some(error @ WakeNoteError::Garbage(_)), _) => tracing::warn!("{error}"),
            (Some(error), _) => return Err(error.into()),
            (None, Ok(note)) => return Ok(note),
            (None, Err(error)) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(None),
            (None, Err(error)) => return Err(error.into()),
        }
    }
}

/// The wrapper's notes cannot be heard.
#[derive(Debug, thiserror::Error)]
pub enum NotesError {
    /// The socket.
    #[error(transparent)]
    Socket(#[from] WakeNoteError),
    /// The event loop.
    #[error("cannot wait for the wrapper's notes: {0}")]
    Wait(#[from] std::io::Error),
}
