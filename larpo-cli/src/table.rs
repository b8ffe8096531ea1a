//! Plain-text tables with aligned columns.

use std::fmt;

/// A table: the first column is flush left, the others flush right, as numbers want it.
///
/// Printing it (`say!("{}", table.to_string().trim_end())`) ends in a line break. A short row leaves its last columns
/// empty, a long one adds columns without a heading.
#[derive(Debug, Clone)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new<S: Into<String>>(headings: impl IntoIterator<Item = S>) -> Table {
        Table { rows: vec![headings.into_iter().map(Into::into).collect()] }
    }

    /// Adds a row.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) -> &mut Table {
        self.rows.push(cells.into_iter().map(Into::into).collect());
        self
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let cell = |row: usize, column: usize| self.rows[row].get(column).map_or("", |c| c);
        let width = |column| {
            let widths = (0..self.rows.len()).map(|row| cell(row, column).chars().count());
            widths.max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in 0..self.rows.len() {
            let mut line = String::new();
            for (column, &width) in widths.iter().enumerate() {
                let text = cell(row, column);
                match column {
                    0 => line.push_str(&format!("{text:<width$}")),
                    _ => line.push_str(&format!("  {text:>width$}")),
                }
            }
            writeln!(f, "{}", line.trim_end())?;
            if row == 0 {
                let rule: Vec<String> = widths.iter().map(|&w| "-".repeat(w)).collect();
                writeln!(f, "{}", rule.join("  "))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(["model", "greedy", "recall@1"]);
        table.row(["init", "0.000", "0.002"]).row(["sft_more", "0.412", "0.4"]);
        let expected = "\
model     greedy  recall@1
--------  ------  --------
init       0.000     0.002
sft_more   0.412       0.4
";
        assert_eq!(table.to_string(), expected);
    }

    #[test]
    fn ragged_rows_and_wide_characters_do_not_panic() {
        let mut table = Table::new(["β", "γ"]);
        table.row(["0.1"]).row(["1", "2", "3"]).row(Vec::<String>::new());
        let expected = "\
β    γ
---  -  -
0.1
1    2  3

";
        assert_eq!(table.to_string(), expected);
    }

    #[test]
    fn a_table_without_columns_is_empty_lines() {
        assert_eq!(Table::new(Vec::<String>::new()).to_string(), "\n\n");
    }
}
