//! What the person at the terminal sees: one line per step, with a spinner while it runs.

use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

/// Runs one step: a spinner while it works (on a terminal), one line with the time it took at its end.
pub(crate) fn step<T>(label: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let spinner = ProgressBar::new_spinner().with_message(label.to_owned());
    if let Ok(style) = ProgressStyle::with_template("  {spinner} {msg} ({elapsed})") {
        spinner.set_style(style);
    }
    if spinner.is_hidden() {
        // Not a terminal (CI): say what has begun, since a first build takes minutes.
        println!("  ... {label}");
    }
    spinner.enable_steady_tick(Duration::from_millis(120));
    let started = Instant::now();
    let outcome = work();
    spinner.finish_and_clear();
    match &outcome {
        Ok(_) => println!("  ok  {label} ({})", seconds(started.elapsed())),
        Err(_) => println!("  FAILED  {label} ({})", seconds(started.elapsed())),
    }
    outcome
}

/// A duration as people read it: `12.3 s`.
pub(crate) fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
