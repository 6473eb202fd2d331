//! Printing.

use std::io::{self, Write};

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::args::Format;
use crate::error::CliError;

/// Prints a value as JSON or YAML; for tables, what `table` makes.
pub(crate) fn print<T: Serialize>(
    format: Format,
    value: &T,
    table: impl FnOnce(bool) -> String,
) -> Result<(), CliError> {
    let text = match format {
        Format::Table => table(false),
        Format::Wide => table(true),
        Format::Json => json(value)?,
        Format::Yaml => yaml(value)?,
    };
    line(text.trim_end())
}

/// Prints one line, or several.
pub(crate) fn line(text: &str) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()?;
    Ok(())
}

/// Prints one line on the error stream; that one being gone is no reason to stop.
pub(crate) fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

pub(crate) fn json<T: Serialize>(value: &T) -> Result<String, CliError> {
    serde_json::to_string_pretty(value).map_err(|error| CliError::Format {
        format: "JSON",
        message: error.to_string(),
    })
}

/// One line of JSON, for streams.
pub(crate) fn json_line<T: Serialize>(value: &T) -> Result<String, CliError> {
    serde_json::to_string(value).map_err(|error| CliError::Format {
        format: "JSON",
        message: error.to_string(),
    })
}

pub(crate) fn yaml<T: Serialize>(value: &T) -> Result<String, CliError> {
    serde_saphyr::to_string(value).map_err(|error| CliError::Format {
        format: "YAML",
        message: error.to_string(),
    })
}

/// A table without lines, as kubectl makes them. Columns whose header begins with `>` are right-aligned.
pub(crate) fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.iter().map(|name| name.trim_start_matches('>')));
    table.add_rows(rows);
    for (index, name) in header.iter().enumerate() {
        if let Some(column) = table.column_mut(index) {
            column.set_padding((0, 3));
            if name.starts_with('>') {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align() {
        let text = table(
            &["POD", ">MS"],
            vec![vec!["a".into(), "1.0".into()], vec!["long".into(), "10.0".into()]],
        );
        assert_eq!(text, "POD      MS\na       1.0\nlong   10.0");
    }
}
