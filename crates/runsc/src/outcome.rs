//! How a verb ends, and how its failure is told to the shim.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::EXIT_FAILURE;
use crate::args::Invocation;

/// How a verb ended inside the wrapper.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Answered by the wrapper itself.
    Answered,
    /// The real runsc ran as a child and exited with this code.
    Exited(u8),
}

/// A verb that failed inside the wrapper.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>, code: u8) -> Self {
        Self {
            message: message.into(),
            code,
        }
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn from_error(error: &dyn std::error::Error) -> Self {
        Self::new(format!("dormouse-runsc: {error}"), EXIT_FAILURE)
    }

    /// Tells the shim the way runsc does: a JSON line in its log, and stderr.
    pub(crate) fn report(&self, invocation: &Invocation) -> ExitCode {
        log(invocation, "error", &self.message);
        eprintln!("{}", self.message);
        ExitCode::from(self.code)
    }
}

/// Appends a line to the log that the caller named with `--log`; without one, or if it cannot be written,
/// there is nobody to tell.
pub(crate) fn log(invocation: &Invocation, level: &str, message: &str) {
    let Some(path) = invocation.global("log").filter(|p| !p.is_empty()) else {
        return;
    };
    let line = serde_json::json!({ "msg": message, "level": level, "time": rfc3339(now()) });
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o644)
        .custom_flags(libc::O_CLOEXEC)
        .open(path);
    if let Ok(mut file) = file {
        let _ = writeln!(file, "{line}");
    }
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}

/// Seconds since 1970 in the form that Go's `time.Time` reads.
fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86400, seconds % 86400);
    // Counted from 0000-03-01, so that the leap day is a year's last (Howard Hinnant's civil_from_days).
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

#[cfg(test)]
mod tests {
    use super::rfc3339;

    #[test]
    fn writes_dates() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_795_326_603), "2026-11-22T05:50:03Z");
    }
}
