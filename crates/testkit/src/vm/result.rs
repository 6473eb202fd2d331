//! What the guest reported.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};

use super::Suite;
use super::boot::Raw;

/// Lines of the console that a failure shows.
const TAIL: usize = 80;

/// How one suite went.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Its command ended with status 0.
    pub passed: bool,
    /// Seconds in the guest; 0 if it was never begun or never ended.
    pub seconds: f64,
    /// Why it failed.
    pub detail: String,
    /// The end of what it wrote, with the kernel's log if it failed.
    pub log: String,
}

/// How a run went.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// By suite.
    pub outcomes: BTreeMap<String, Outcome>,
    /// From power-on to the first suite, in the guest.
    pub booted: Duration,
    /// From starting QEMU to its end.
    pub took: Duration,
    /// Everything that came over the console.
    pub console: PathBuf,
}

pub(super) fn read(raw: &Raw, suites: &[Suite], console: PathBuf) -> Result<Report> {
    let text = String::from_utf8_lossy(&raw.console).replace('\r', "");
    let up = raw
        .results
        .lines()
        .find_map(|line| line.trim().strip_prefix("DORMOUSE-VM-UP ")?.parse::<f64>().ok());
    let Some(up) = up else {
        bail!(
            "the guest did not come up within {} s; QEMU said: {:?}; the console's end ({}):\n{}",
            raw.took.as_secs(),
            raw.qemu_said.trim(),
            console.display(),
            tail(&text)
        );
    };
    let ended = raw.results.lines().any(|line| line.trim() == "DORMOUSE-VM-END");
    let mut outcomes = BTreeMap::new();
    for suite in suites {
        let outcome = raw
            .results
            .lines()
            .find_map(|line| outcome(line.trim(), &suite.name));
        let (passed, seconds, detail) = outcome.unwrap_or_else(|| {
            let why = if raw.timed_out {
                "the guest was ended because the whole run took too long"
            } else if ended {
                "the guest skipped it"
            } else {
                "the guest died before its end"
            };
            (false, 0.0, why.to_owned())
        });
        let log = section(&text, &suite.name).unwrap_or_else(|| tail(&text));
        outcomes.insert(
            suite.name.clone(),
            Outcome {
                passed,
                seconds,
                detail,
                log,
            },
        );
    }
    Ok(Report {
        outcomes,
        booted: Duration::try_from_secs_f64(up).unwrap_or_default(),
        took: raw.took,
        console,
    })
}

/// `DORMOUSE-VM-RESULT <suite> ok|fail <seconds> <detail>`
fn outcome(line: &str, suite: &str) -> Option<(bool, f64, String)> {
    let mut fields = line.strip_prefix("DORMOUSE-VM-RESULT ")?.splitn(4, ' ');
    if fields.next()? != suite {
        return None;
    }
    let passed = match fields.next()? {
        "ok" => true,
        "fail" => false,
        _ => return None,
    };
    let seconds = fields.next()?.parse().ok()?;
    Some((passed, seconds, fields.next().unwrap_or_default().to_owned()))
}

/// What the console shows between a suite's begin and end.
fn section(text: &str, suite: &str) -> Option<String> {
    let begin = format!("== suite {suite}\n");
    let (_, rest) = text.split_once(&begin)?;
    let end = format!("== end {suite}");
    Some(tail(rest.split_once(&end).map_or(rest, |(inside, _)| inside)))
}

fn tail(text: &str) -> String {
    let mut lines: Vec<&str> = text.lines().rev().take(TAIL).collect();
    lines.reverse();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(results: &str, console: &str) -> Raw {
        Raw {
            console: console.as_bytes().to_vec(),
            results: results.to_owned(),
            took: Duration::from_secs(1),
            timed_out: false,
            qemu_said: String::new(),
        }
    }

    fn suite(name: &str) -> Suite {
        Suite {
            name: name.to_owned(),
            command: "true".to_owned(),
            limit: Duration::from_secs(1),
        }
    }

    #[test]
    fn results_are_read_and_gaps_are_failures() {
        let raw = raw(
            "DORMOUSE-VM-UP 3.50\r\nDORMOUSE-VM-RESULT a ok 1.25\r\nDORMOUSE-VM-RESULT b fail 2 status 1: no swap\r\n",
            "noise\r\n== suite a\r\nhello\r\n== end a\r\n== suite b\r\nworse\r\n== end b\r\n== suite c\r\noops\r\n",
        );
        let report = read(&raw, &[suite("a"), suite("b"), suite("c")], PathBuf::new()).unwrap();
        assert_eq!(report.booted, Duration::from_millis(3500));
        let a = &report.outcomes["a"];
        assert!(a.passed && a.log.trim() == "hello");
        let b = &report.outcomes["b"];
        assert!(!b.passed && b.detail == "status 1: no swap" && b.log.trim() == "worse");
        let c = &report.outcomes["c"];
        assert!(!c.passed && c.detail.contains("died") && c.log.trim() == "oops");
    }

    #[test]
    fn a_guest_that_never_came_up_is_an_error() {
        assert!(
            read(&raw("", "Kernel panic"), &[suite("a")], PathBuf::new())
                .unwrap_err()
                .to_string()
                .contains("panic")
        );
    }
}
