//! Rows under headings, as wide as there is room: what does not fit beside the rest stands below it, nothing is cut.

use anstyle::Style;
use unicode_width::UnicodeWidthStr as _;

/// Between two columns.
const GAP: usize = 2;

/// Before what stands below.
const INDENT: &str = "    ";

/// One piece of text and how it is coloured.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cell {
    text: String,
    style: Style,
}

/// Columns under their headings.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<Cell>>,
}

// === impl Cell ===

impl Cell {
    /// What a terminal would take for a command is shown as text: cells hold what strangers wrote.
    pub(crate) fn new(text: &str, style: Style) -> Self {
        let harmless = |c: char| match c.is_control() {
            true => c.escape_default().to_string(),
            false => c.to_string(),
        };
        let text = text.chars().map(harmless).collect();
        Self { text, style }
    }

    fn width(&self) -> usize {
        self.text.width()
    }
}

// === impl Table ===

impl Table {
    pub(crate) fn new(headings: impl IntoIterator<Item = String>) -> Self {
        let heading = |text: String| Cell::new(&text, Style::new().bold());
        Self {
            rows: vec![headings.into_iter().map(heading).collect()],
        }
    }

    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// As text, each line at most `width` columns where its cells permit; with or without colour.
    pub(crate) fn render(&self, width: Option<usize>, coloured: bool) -> String {
        let count = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let mut widths = vec![0; count];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.width().max(*width);
            }
        }
        let lines = folds(&widths, width.unwrap_or(usize::MAX));
        let mut text = String::new();
        for row in &self.rows {
            for (number, columns) in lines.iter().enumerate() {
                let mut line = String::new();
                let mut pad = 0;
                for column in columns.clone() {
                    let (Some(cell), Some(width)) = (row.get(column), widths.get(column)) else {
                        continue;
                    };
                    if !cell.text.is_empty() {
                        line.push_str(&" ".repeat(pad));
                        pad = 0;
                        push(&mut line, cell, coloured);
                    }
                    pad += width - cell.width().min(*width) + GAP;
                }
                // A line below that has nothing to say is not there.
                if !line.is_empty() {
                    text.push_str(if number == 0 { "" } else { INDENT });
                    text.push_str(&line);
                    text.push('\n');
                } else if number == 0 {
                    text.push('\n');
                }
            }
        }
        text
    }
}

/// Cells in one line, without those that are empty.
pub(crate) fn line(cells: impl Iterator<Item = Cell>, coloured: bool) -> String {
    let mut line = String::new();
    for cell in cells.filter(|cell| !cell.text.is_empty()) {
        if !line.is_empty() {
            line.push_str(&" ".repeat(GAP));
        }
        push(&mut line, &cell, coloured);
    }
    line
}

/// Which columns share a line: as many as fit, in their order.
fn folds(widths: &[usize], room: usize) -> Vec<std::ops::Range<usize>> {
    let mut lines = Vec::new();
    let (mut start, mut used) = (0, 0);
    for (column, width) in widths.iter().enumerate() {
        let gap = if column == start { 0 } else { GAP };
        if column > start && used + gap + width > room {
            lines.push(start..column);
            (start, used) = (column, INDENT.len() + width);
        } else {
            used += gap + width;
        }
    }
    lines.push(start..widths.len());
    lines
}

fn push(line: &mut String, cell: &Cell, coloured: bool) {
    if coloured && cell.style != Style::new() {
        line.push_str(&format!("{}{}{}", cell.style, cell.text, cell.style.render_reset()));
    } else {
        line.push_str(&cell.text);
    }
}

#[cfg(test)]
mod tests {
    use anstyle::AnsiColor;

    use super::*;

    fn table(headings: &[&str], rows: &[&[&str]]) -> Table {
        let mut table = Table::new(headings.iter().map(|h| (*h).to_owned()));
        for row in rows {
            table.row(row.iter().map(|text| Cell::new(text, Style::new())).collect());
        }
        table
    }

    #[test]
    fn columns_align_and_lines_do_not_trail() {
        let table = table(
            &["NAME", "X", "Y"],
            &[&["a long one", "1", "2"], &["b", "", "3"], &["c", "", ""]],
        );
        let expected = "NAME        X  Y\na long one  1  2\nb              3\nc\n";
        assert_eq!(table.render(None, false), expected);
        assert_eq!(table.render(Some(80), false), expected);
    }

    #[test]
    fn what_does_not_fit_stands_below() {
        let table = table(
            &["TIME", "WHO", "WHAT"],
            &[&["2026", "spiffe://a/b", "read"], &["2027", "spiffe://c", ""]],
        );
        assert_eq!(
            table.render(Some(18), false),
            "TIME  WHO\n    WHAT\n2026  spiffe://a/b\n    read\n2027  spiffe://c\n"
        );
        // However narrow, everything is there.
        let narrow = table.render(Some(1), false);
        assert!(narrow.contains("spiffe://a/b") && narrow.contains("read"), "{narrow}");
    }

    #[test]
    fn width_is_that_of_a_terminal() {
        let table = table(&["A", "B"], &[&["漢字", "x"], &["abcd", "y"]]);
        assert_eq!(table.render(None, false), "A     B\n漢字  x\nabcd  y\n");
    }

    #[test]
    fn a_cell_commands_no_terminal() {
        let table = table(&["A"], &[&["\x1b[31mred\nnext"]]);
        assert_eq!(
            table.render(None, true).matches('\x1b').count(),
            2,
            "only the heading's"
        );
        assert_eq!(table.render(None, false), "A\n\\u{1b}[31mred\\nnext\n");
    }

    #[test]
    fn colour_takes_no_room() {
        let mut table = Table::new(["A".to_owned(), "B".to_owned()]);
        let red = Style::new().fg_color(Some(AnsiColor::Red.into()));
        table.row(vec![Cell::new("forbid", red), Cell::new("x", Style::new())]);
        let plain = table.render(None, false);
        let coloured = table.render(None, true);
        assert_eq!(plain, "A       B\nforbid  x\n");
        assert_eq!(anstream::adapter::strip_str(&coloured).to_string(), plain);
        assert_ne!(coloured, plain);
    }
}
