//! Tables.

use comfy_table::{CellAlignment, Table, presets};

/// A table without lines, as kubectl makes them. Columns whose header begins with `>` are right-aligned.
#[must_use]
pub fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
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
