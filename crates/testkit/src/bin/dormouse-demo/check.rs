//! A list of what has to be as it was.

use anyhow::{Result, bail};

use crate::say;

/// One thing, before and after.
#[derive(Debug)]
struct Line {
    what: String,
    before: String,
    after: String,
    good: bool,
}

/// The list.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    lines: Vec<Line>,
}

impl Checks {
    /// Has to be the same.
    pub(crate) fn same(&mut self, what: &str, before: impl Into<String>, after: impl Into<String>) {
        let (before, after) = (before.into(), after.into());
        let good = before == after;
        self.hold(what, before, after, good);
    }

    /// Has to fulfil a condition.
    pub(crate) fn hold(
        &mut self,
        what: &str,
        before: impl Into<String>,
        after: impl Into<String>,
        good: bool,
    ) {
        self.lines.push(Line {
            what: what.to_owned(),
            before: before.into(),
            after: after.into(),
            good,
        });
    }

    /// Shows all.
    ///
    /// # Errors
    /// Something is not as it was.
    pub(crate) fn show(self) -> Result<()> {
        let wrong: Vec<String> = self
            .lines
            .iter()
            .filter(|line| !line.good)
            .map(|line| format!("{}: {} -> {}", line.what, line.before, line.after))
            .collect();
        let rows = self
            .lines
            .into_iter()
            .map(|line| {
                let mark = if line.good { "ok" } else { "FAILED" };
                vec![mark.to_owned(), line.what, line.before, line.after]
            })
            .collect();
        for row in say::table(&["", "", "before", "after"], rows).lines() {
            say::line(format!("  {row}").trim_end());
        }
        if !wrong.is_empty() {
            bail!("not as it was: {}", wrong.join("; "));
        }
        Ok(())
    }
}
