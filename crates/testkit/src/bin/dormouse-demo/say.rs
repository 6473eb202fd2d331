//! What the person at the terminal sees. Results go to standard output, one line each; progress goes to standard
//! error, as a bar on a terminal and as plain lines elsewhere.

use std::future::Future;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use anyhow::Result;
pub(crate) use dormouse_output::table;
use indicatif::{ProgressBar, ProgressStyle};

use crate::words;

const TICK: Duration = Duration::from_millis(120);

/// One line of result. A reader who has gone away is no reason to leave things behind, so errors are ignored.
pub(crate) fn line(text: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{text}");
    let _ = out.flush();
}

/// Several lines, indented below a result.
pub(crate) fn block(text: &str) {
    for row in text.lines() {
        line(format!("      {row}").trim_end());
    }
}

/// An empty line.
pub(crate) fn blank() {
    line("");
}

/// A line on standard error.
pub(crate) fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// The title of a part.
pub(crate) fn heading(text: &str) {
    blank();
    line(&console::style(text).bold().to_string());
}

/// Something that is as it should be.
pub(crate) fn good(text: &str) {
    line(&format!("  {}  {text}", console::style("ok").green()));
}

/// Something that is not.
pub(crate) fn bad(text: &str) {
    line(&format!("  {}  {text}", console::style("FAILED").red().bold()));
}

/// A spinner for as long as the value lives; on a terminal only.
pub(crate) fn spinner(label: &str) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message(label.to_owned());
    if let Ok(style) = ProgressStyle::with_template("  {spinner} {msg} ({elapsed})") {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(TICK);
    spinner
}

/// One step: a spinner while it works, one line with the time it took at its end.
pub(crate) async fn step<T>(label: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let spinner = spinner(label);
    let began = Instant::now();
    let outcome = work.await;
    spinner.finish_and_clear();
    let text = format!("{label} ({})", words::seconds(began.elapsed()));
    let mark = if outcome.is_ok() { good } else { bad };
    mark(&text);
    outcome
}

/// Progress over many things of a kind.
pub(crate) struct Progress {
    bar: ProgressBar,
    label: String,
    all: u64,
    began: Instant,
}

impl Progress {
    /// Begins; `all` things are to be done.
    pub(crate) fn new(label: &str, all: usize) -> Self {
        let all = u64::try_from(all).unwrap_or(u64::MAX);
        let bar = ProgressBar::new(all).with_message(label.to_owned());
        if let Ok(style) =
            ProgressStyle::with_template("  {spinner} {msg} [{bar:30}] {pos}/{len} ({elapsed})")
        {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.enable_steady_tick(TICK);
        Self {
            bar,
            label: label.to_owned(),
            all,
            began: Instant::now(),
        }
    }

    /// One more is done.
    pub(crate) fn one(&self) {
        self.bar.inc(1);
        let done = self.bar.position();
        // Not a terminal: every quarter.
        let quarter = self.all.div_ceil(4).max(1);
        if self.bar.is_hidden() && done.is_multiple_of(quarter) && done < self.all {
            line(&format!("      {}: {done} of {}", self.label, self.all));
        }
    }

    /// All are done.
    pub(crate) fn end(self) {
        self.bar.finish_and_clear();
        good(&format!(
            "{}: {} of {} ({})",
            self.label,
            self.all,
            self.all,
            words::seconds(self.began.elapsed())
        ));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
