//! Rows that come one by one, aligned with those before. Pure.

/// Between two columns.
const GAP: usize = 3;

/// How wide the columns are so far.
#[derive(Debug, Clone)]
pub(crate) struct Columns {
    widths: Vec<usize>,
}

impl Columns {
    /// As wide as header and first rows need.
    pub(crate) fn new(header: &[&str], rows: &[Vec<String>]) -> Self {
        let mut columns = Self {
            widths: header.iter().map(|name| width(name)).collect(),
        };
        for row in rows {
            columns.widen(row);
        }
        columns
    }

    fn widen(&mut self, row: &[String]) {
        for (width_so_far, cell) in self.widths.iter_mut().zip(row) {
            *width_so_far = (*width_so_far).max(width(cell));
        }
    }

    /// A row in one line; a cell that is wider than its column widens it for what follows.
    pub(crate) fn line(&mut self, row: &[String]) -> String {
        self.widen(row);
        let mut line = String::new();
        for (cell, width_wanted) in row.iter().zip(&self.widths) {
            line.push_str(cell);
            let padding = width_wanted.saturating_sub(width(cell)) + GAP;
            line.extend(std::iter::repeat_n(' ', padding));
        }
        line.trim_end().to_owned()
    }
}

fn width(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_rows_align_with_the_first() {
        let row = |a: &str, b: &str| vec![a.to_owned(), b.to_owned()];
        let mut columns = Columns::new(&["NAME", "STATE"], &[row("long-one", "x")]);
        assert_eq!(columns.line(&row("NAME", "STATE")), "NAME       STATE");
        assert_eq!(columns.line(&row("a", "b")), "a          b");
        assert_eq!(columns.line(&row("much-longer", "b")), "much-longer   b");
        assert_eq!(columns.line(&row("a", "b")), "a             b");
    }
}
