//! One line per verb in a file, for whoever wants to know where the time goes.

use std::cell::Cell;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::args::Invocation;

/// The trace of one call.
#[derive(Debug)]
pub(crate) struct Trace<'a> {
    path: Option<&'a Path>,
    invocation: &'a Invocation,
    started: Instant,
    woken: Cell<bool>,
}

impl<'a> Trace<'a> {
    pub(crate) const fn new(path: Option<&'a Path>, invocation: &'a Invocation, started: Instant) -> Self {
        Self {
            path,
            invocation,
            started,
            woken: Cell::new(false),
        }
    }

    /// Notes that the guest had to be woken.
    pub(crate) fn woken(&self) {
        self.woken.set(true);
    }

    /// Appends the line. A trace that cannot be written is no reason to fail a verb.
    pub(crate) fn write(&self, outcome: &str) {
        let Some(path) = self.path else { return };
        let at = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0.0, |d| d.as_secs_f64());
        let line = serde_json::json!({
            "at": at,
            "verb": self.invocation.verb,
            "container": self.invocation.container(),
            "ms": self.started.elapsed().as_secs_f64() * 1e3,
            "woken": self.woken.get(),
            "outcome": outcome,
        });
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW)
            .open(path);
        if let Ok(mut file) = file {
            // One write, so that the lines of two processes do not mix.
            let _ = file.write_all(format!("{line}\n").as_bytes());
        }
    }
}
