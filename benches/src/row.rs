//! What a group of rows has to say.

use serde::Serialize;

use crate::plan::Which;
use crate::samples::{Samples, Series, digits};

/// What p50, p95 and p99 of a latency must reach, ms; `None`: it is only reported.
pub(crate) type Thirds = Option<[f64; 3]>;

/// A promise and what came of it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Verdict {
    /// Of what.
    pub(crate) of: String,
    pub(crate) value: f64,
    /// At most this, or at least this if `at_least`.
    pub(crate) limit: f64,
    pub(crate) at_least: bool,
    pub(crate) reached: bool,
}

/// A line of the table.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Line {
    pub(crate) what: String,
    pub(crate) must: String,
    pub(crate) measured: String,
    pub(crate) n: String,
    pub(crate) verdicts: Vec<Verdict>,
}

impl Line {
    pub(crate) fn new(what: impl Into<String>, must: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            must: must.into(),
            measured: String::new(),
            n: String::new(),
            verdicts: Vec::new(),
        }
    }

    pub(crate) fn measured(mut self, text: impl Into<String>) -> Self {
        self.measured = text.into();
        self
    }

    pub(crate) fn n(mut self, n: impl std::fmt::Display) -> Self {
        self.n = format!("{n}");
        self
    }

    pub(crate) fn at_most(mut self, of: impl Into<String>, value: f64, limit: f64) -> Self {
        self.verdicts.push(Verdict {
            of: of.into(),
            value,
            limit,
            at_least: false,
            reached: value <= limit,
        });
        self
    }

    /// A line of a latency of which p50, p95 and p99 are promised, and `what` says so.
    pub(crate) fn thirds(what: impl Into<String>, samples: &Samples, limits: Thirds) -> Self {
        let Some([half, most, all]) = limits else {
            return Self::new(what, "-").n(samples.n());
        };
        Self::new(what, format!("{half:.0} / {most:.0} / {all:.0} ms"))
            .n(samples.n())
            .at_most("p50", samples.p50(), half)
            .at_most("p95", samples.p95(), most)
            .at_most("p99", samples.p99(), all)
    }

    pub(crate) fn at_least(mut self, of: impl Into<String>, value: f64, limit: f64) -> Self {
        self.verdicts.push(Verdict {
            of: of.into(),
            value,
            limit,
            at_least: true,
            reached: value >= limit,
        });
        self
    }

    /// The last column.
    pub(crate) fn reached(&self) -> String {
        if self.verdicts.is_empty() {
            return "-".to_owned();
        }
        let missed: Vec<String> = self
            .verdicts
            .iter()
            .filter(|verdict| !verdict.reached)
            .map(|verdict| {
                let sign = if verdict.at_least { '<' } else { '>' };
                format!(
                    "{} {} {sign} {}",
                    verdict.of,
                    digits(verdict.value),
                    digits(verdict.limit)
                )
            })
            .collect();
        if missed.is_empty() {
            "reached".to_owned()
        } else {
            format!("**missed**: {}", missed.join("; "))
        }
    }
}

/// Everything that one group measured.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    pub(crate) id: Which,
    pub(crate) lines: Vec<Line>,
    pub(crate) series: Vec<Series>,
    /// How it was measured, and what has to be known to read it.
    pub(crate) notes: Vec<String>,
    pub(crate) seconds: f64,
    /// Why it could not be measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

impl Row {
    pub(crate) fn new(id: Which) -> Self {
        Self {
            id,
            lines: Vec::new(),
            series: Vec::new(),
            notes: Vec::new(),
            seconds: 0.0,
            error: None,
        }
    }

    pub(crate) fn line(&mut self, line: Line) {
        crate::progress::say(format!("  {}: {} ({})", line.what, line.measured, line.reached()));
        self.lines.push(line);
    }

    pub(crate) fn note(&mut self, text: impl Into<String>) {
        let text = text.into();
        crate::progress::say(format!("  note: {text}"));
        self.notes.push(text);
    }
}
