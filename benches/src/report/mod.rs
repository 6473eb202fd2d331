//! What is written: JSON with every sample, Markdown and plots for people, the table in SPECIFICATION.md.

mod axis;
mod distribution;
mod histogram;
mod markdown;
mod plot;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::machine::Machine;
use crate::plan::{Plan, Suite};
use crate::row::Row;

/// The format of the JSON.
const VERSION: u32 = 1;

/// A whole run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    version: u32,
    command: String,
    #[serde(skip)]
    suite: Suite,
    /// Few samples: says nothing about speed.
    quick: bool,
    machine: Machine,
    plan: Plan,
    rows: Vec<Row>,
}

/// The repository.
pub(crate) fn root() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    root.canonicalize()
        .with_context(|| format!("find {}", root.display()))
}

impl Report {
    pub(crate) fn new(suite: Suite, machine: Machine, plan: Plan, quick: bool, rows: Vec<Row>) -> Self {
        Self {
            version: VERSION,
            command: format!("cargo xtask bench {}", suite.name()),
            suite,
            quick,
            machine,
            plan,
            rows,
        }
    }

    /// Names of rows that could not be measured.
    pub(crate) fn failed(&self) -> impl Iterator<Item = &str> {
        self.rows
            .iter()
            .filter(|row| row.error.is_some())
            .map(|row| markdown::group(row.id))
    }

    pub(crate) fn table(&self) -> String {
        markdown::table(&self.rows)
    }

    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let put = |kind: &str, text: &str| {
            let path = dir.join(format!("{}.{kind}", self.suite.name()));
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))
        };
        put("json", &(serde_json::to_string_pretty(self)? + "\n"))?;
        put(
            "md",
            &markdown::page(self.suite, &self.machine.sentence(), self.quick, &self.rows),
        )?;
        put("svg", &plot::draw(&self.rows)?)?;
        for row in &self.rows {
            if let Some(picture) = distribution::draw(markdown::group(row.id), row)? {
                put(&format!("{}.svg", markdown::slug(row.id)), &picture)?;
            }
        }
        Ok(())
    }

    /// Puts the table between the markers.
    pub(crate) fn write_specification(&self, root: &Path) -> Result<()> {
        let path = root.join("SPECIFICATION.md");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let [begin, end] =
            ["begin", "end"].map(|what| format!("<!-- bench:{}:{what} -->", self.suite.name()));
        let (head, rest) = text
            .split_once(&begin)
            .with_context(|| format!("no {begin} in {}", path.display()))?;
        let (_, tail) = rest
            .split_once(&end)
            .with_context(|| format!("no {end} in {}", path.display()))?;
        let text = format!(
            "{head}{begin}\n{}\n{}\n{end}{tail}",
            self.table(),
            self.machine.sentence()
        );
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }
}
