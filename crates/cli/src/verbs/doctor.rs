//! `dormouse doctor`: looks at everything that Dormouse needs on this node, also when the agent is down.
//!
//! Looking is here and in `look`; judging is pure, one function per prerequisite, in `judge`.

mod judge;
mod look;
mod swap;

use std::process::ExitCode;

use serde::Serialize;

use crate::args::{DoctorArgs, Global};
use crate::error::CliError;
use crate::output::{print, table};
use crate::view::clean;

/// How a prerequisite stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// As it should be.
    Ok,
    /// Dormouse works, but less well, or something could not be found out.
    Warn,
    /// Dormouse, or a rung of the ladder, does not work.
    Fail,
}

/// One prerequisite.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    /// What was found.
    found: String,
    /// What to do; empty if nothing is.
    #[serde(skip_serializing_if = "String::is_empty")]
    advice: String,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Ok,
            found: found.into(),
            advice: String::new(),
        }
    }

    fn warn(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Warn,
            found: found.into(),
            advice: advice.into(),
        }
    }

    fn fail(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Fail,
            found: found.into(),
            advice: advice.into(),
        }
    }
}

pub(super) async fn doctor(global: &Global, args: DoctorArgs) -> Result<ExitCode, CliError> {
    let checks = look::all(global, &args).await;
    print(global.output, &checks, |_| text(&checks))?;
    let worst = checks
        .iter()
        .map(|check| check.verdict)
        .max()
        .unwrap_or(Verdict::Ok);
    Ok(match worst {
        Verdict::Ok => ExitCode::SUCCESS,
        Verdict::Warn => ExitCode::from(1),
        Verdict::Fail => ExitCode::from(2),
    })
}

fn text(checks: &[Check]) -> String {
    let rows = checks
        .iter()
        .map(|check| {
            let verdict = match check.verdict {
                Verdict::Ok => "ok",
                Verdict::Warn => "WARN",
                Verdict::Fail => "FAIL",
            };
            vec![verdict.to_owned(), check.name.to_owned(), clean(&check.found)]
        })
        .collect();
    let mut text = table(&["", "CHECK", "FOUND"], rows);
    let advice: Vec<&Check> = checks.iter().filter(|check| !check.advice.is_empty()).collect();
    if !advice.is_empty() {
        text.push_str("\n\nWhat to do:");
        for check in advice {
            text.push_str(&format!("\n  {}: {}", check.name, clean(&check.advice)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text() {
        let checks = [
            Check::ok("root", "uid 0"),
            Check::fail("swap", "none is active", "configure [swap] in agent.toml"),
        ];
        let expected = "       CHECK   FOUND\nok     root    uid 0\nFAIL   swap    none is active\n\nWhat to do:\n  swap: configure [swap] in agent.toml";
        assert_eq!(text(&checks), expected, "\n{}", text(&checks));
    }
}
