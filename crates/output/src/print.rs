//! Printing.

use std::io::{self, Write};

use clap::ValueEnum;
use serde::Serialize;

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table for people.
    Table,
    /// The same with more columns.
    Wide,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// Something could not be printed.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The output stream does not take it.
    #[error("cannot print")]
    Print(#[from] io::Error),
    /// It cannot be put into the format that was asked for.
    #[error("cannot write {format}: {message}")]
    Format {
        /// Which format.
        format: &'static str,
        /// What went wrong.
        message: String,
    },
}

impl OutputError {
    /// Whether the reader of our output has gone, which is no news to anybody.
    #[must_use]
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Print(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// Prints a value as JSON or YAML; for tables, what `table` makes (`true` for the wide one).
///
/// # Errors
/// The value cannot be written so, or the output stream does not take it.
pub fn print<T: Serialize>(
    format: Format,
    value: &T,
    table: impl FnOnce(bool) -> String,
) -> Result<(), OutputError> {
    let text = match format {
        Format::Table => table(false),
        Format::Wide => table(true),
        Format::Json => json(value)?,
        Format::Yaml => yaml(value)?,
    };
    line(text.trim_end())
}

/// Prints one line, or several.
///
/// # Errors
/// The output stream does not take it.
pub fn line(text: &str) -> Result<(), OutputError> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()?;
    Ok(())
}

/// Prints one line on the error stream; that one being gone is no reason to stop.
pub fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// JSON for people.
///
/// # Errors
/// The value cannot be written as JSON.
pub fn json<T: Serialize>(value: &T) -> Result<String, OutputError> {
    serde_json::to_string_pretty(value).map_err(|error| OutputError::Format {
        format: "JSON",
        message: error.to_string(),
    })
}

/// One line of JSON, for streams.
///
/// # Errors
/// The value cannot be written as JSON.
pub fn json_line<T: Serialize>(value: &T) -> Result<String, OutputError> {
    serde_json::to_string(value).map_err(|error| OutputError::Format {
        format: "JSON",
        message: error.to_string(),
    })
}

/// YAML.
///
/// # Errors
/// The value cannot be written as YAML.
pub fn yaml<T: Serialize>(value: &T) -> Result<String, OutputError> {
    serde_saphyr::to_string(value).map_err(|error| OutputError::Format {
        format: "YAML",
        message: error.to_string(),
    })
}
