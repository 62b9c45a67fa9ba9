//! A listing: the same rows as a table for people, and as JSON, JSON lines or CSV for programs.

use std::collections::BTreeSet;
use std::io;

use anstyle::Style;
use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::{Map, Value};

use super::moment;
use super::stdout::print;
use super::table::{self, Cell, Table};

/// The form of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum ListOutput {
    /// Aligned columns for people
    #[default]
    Table,
    /// One JSON document: an array
    Json,
    /// One JSON document a line
    Jsonl,
    /// Comma-separated values with a heading (RFC 4180)
    Csv,
}

/// What every listing takes.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct Form {
    /// The form of the listing
    #[arg(long, value_enum, default_value_t)]
    output: ListOutput,
    /// Each row of a table on one line, however long
    #[arg(long)]
    wide: bool,
}

/// One column: its heading for people, and the key of the rows' JSON that it shows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    heading: &'static str,
    key: &'static str,
    how: How,
    style: fn(&str) -> Style,
}

#[derive(Debug, Clone, Copy)]
enum How {
    Plain,
    Moment,
    Made(fn(&Value) -> String),
}

/// Rows, each an object of JSON, and what people see of them.
#[derive(Debug)]
pub(crate) struct Listing<T> {
    columns: Vec<Column>,
    /// What rows have beside the columns, whether there is a row or not.
    keys: BTreeSet<String>,
    rows: Vec<T>,
}

/// A word that says whether something is well: green for what is, red for what is not.
pub(crate) fn verdict(word: &str) -> Style {
    use anstyle::AnsiColor::{Green, Red, Yellow};
    let colour = match word.split([' ', ':']).next().unwrap_or_default() {
        "allow" | "live" | "joined" | "ok" | "open" | "yes" | "well" | "active" | "fresh" => Green,
        "forbid" | "no_permit" | "error" | "unauthenticated" | "malformed" | "banned" | "ALARM" | "away" | "deny"
        | "FAIL" | "no" | "silent" | "two" | "withdrawn" | "ended" | "missing" | "empty" => Red,
        "stale" | "shadow" | "warn" | "depends" | "expired" | "revoked" | "tainted" => Yellow,
        _ => return Style::new(),
    };
    Style::new().fg_color(Some(colour.into()))
}

/// How wide what people read may be: as `COLUMNS` says, or the terminal; without one there is no bound.
pub(crate) fn width() -> Option<usize> {
    let said = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
    said.filter(|columns| *columns > 0)
        .or_else(|| terminal_size::terminal_size_of(io::stdout()).map(|(width, _)| width.0.into()))
}

/// Whether standard output takes colours: a terminal does, unless `NO_COLOR` is set.
pub(crate) fn coloured() -> bool {
    anstream::AutoStream::choice(&io::stdout()) != anstream::ColorChoice::Never
}

// === impl Form ===

impl Form {
    pub(crate) fn is_table(self) -> bool {
        self.output == ListOutput::Table
    }

    /// JSON, in one document or by lines.
    pub(crate) fn is_json(self) -> bool {
        matches!(self.output, ListOutput::Json | ListOutput::Jsonl)
    }

    /// Without the heading of CSV, for what follows a listing that has it.
    pub(crate) fn without_heading(self, text: String) -> String {
        match (self.output, text.split_once("\r\n")) {
            (ListOutput::Csv, Some((_, rows))) => rows.to_owned(),
            _ => text,
        }
    }

    pub(crate) fn width(self) -> Option<usize> {
        if self.wide { None } else { width() }
    }

    /// One row by itself, of a listing that never ends: JSON, CSV, or cells with two spaces between.
    pub(crate) fn line(self, columns: &[Column], row: &impl Serialize) -> serde_json::Result<String> {
        if self.is_json() {
            return serde_json::to_string(row);
        }
        let row = serde_json::to_value(row)?;
        if self.output == ListOutput::Csv {
            let value = |column: &Column| plain(row.get(column.key).unwrap_or(&Value::Null));
            return Ok(line(columns.iter().map(value)).trim_end().to_owned());
        }
        let cells = columns.iter().map(|column| column.cell(&row));
        Ok(table::line(cells, coloured()))
    }
}

// === impl Column ===

impl Column {
    pub(crate) const fn new(heading: &'static str, key: &'static str) -> Self {
        Self {
            heading,
            key,
            how: How::Plain,
            style: |_| Style::new(),
        }
    }

    /// Of a moment, which people see in their own time zone.
    pub(crate) const fn moment(heading: &'static str, key: &'static str) -> Self {
        Self {
            how: How::Moment,
            ..Self::new(heading, key)
        }
    }

    /// Of what people see, made from the whole row.
    pub(crate) const fn made(heading: &'static str, key: &'static str, made: fn(&Value) -> String) -> Self {
        Self {
            how: How::Made(made),
            ..Self::new(heading, key)
        }
    }

    /// Coloured by what it says.
    pub(crate) const fn coloured(self, style: fn(&str) -> Style) -> Self {
        Self { style, ..self }
    }

    fn heading(&self) -> String {
        match self.how {
            How::Moment => format!("{} ({})", self.heading, moment::zone_name()),
            _ => self.heading.to_owned(),
        }
    }

    fn cell(&self, row: &Value) -> Cell {
        let value = || plain(row.get(self.key).unwrap_or(&Value::Null));
        let text = match self.how {
            How::Plain => value(),
            How::Moment => moment::shown(&value()),
            How::Made(made) => made(row),
        };
        Cell::new(&text, (self.style)(&text))
    }
}

// === impl Listing ===

impl<T: Serialize> Listing<T> {
    pub(crate) fn new(columns: &[Column]) -> Self {
        Self {
            columns: columns.to_vec(),
            keys: BTreeSet::new(),
            rows: Vec::new(),
        }
    }

    /// Has the keys of a row like this in the heading of CSV, whether there is a row or not: programs find the same columns always.
    pub(crate) fn like(mut self, example: &impl Serialize) -> Self {
        if let Ok(Value::Object(example)) = serde_json::to_value(example) {
            self.keys.extend(example.into_iter().map(|(key, _)| key));
        }
        self
    }

    /// Of its rows these first ones. Answers how many are left out.
    pub(super) fn keep(&mut self, rows: usize) -> usize {
        let all = self.rows.len();
        self.rows.truncate(rows);
        all - self.rows.len()
    }

    pub(crate) fn row(&mut self, row: T) {
        self.rows.push(row);
    }

    pub(crate) fn print(&self, form: Form) -> anyhow::Result<()> {
        if self.rows.is_empty() && form.is_table() {
            hoplite_host::tell!("there is none");
        }
        Ok(print(&self.render(form, coloured())?)?)
    }

    /// As [`Self::print`] would.
    pub(crate) fn render(&self, form: Form, coloured: bool) -> serde_json::Result<String> {
        Ok(match form.output {
            ListOutput::Table => as_table(&self.columns, &self.values()?).render(form.width(), coloured),
            ListOutput::Json => serde_json::to_string_pretty(&self.rows)? + "\n",
            ListOutput::Jsonl => {
                let lines: serde_json::Result<Vec<String>> = self.rows.iter().map(serde_json::to_string).collect();
                lines?.iter().map(|line| format!("{line}\n")).collect()
            }
            ListOutput::Csv => csv(&self.columns, &self.keys, &self.values()?),
        })
    }

    fn values(&self) -> serde_json::Result<Vec<Value>> {
        self.rows.iter().map(serde_json::to_value).collect()
    }
}

fn as_table(columns: &[Column], rows: &[Value]) -> Table {
    let mut table = Table::new(columns.iter().map(Column::heading));
    for row in rows {
        table.row(columns.iter().map(|column| column.cell(row)).collect());
    }
    table
}

/// The columns that people see first, then every other key.
fn csv(columns: &[Column], known: &BTreeSet<String>, rows: &[Value]) -> String {
    let mut keys: Vec<&str> = Vec::new();
    for column in columns {
        if !keys.contains(&column.key) {
            keys.push(column.key);
        }
    }
    let objects = rows.iter().filter_map(Value::as_object);
    let of_rows = objects.flat_map(Map::keys);
    let all: BTreeSet<&str> = known.iter().chain(of_rows).map(String::as_str).collect();
    keys.extend(
        all.into_iter()
            .filter(|key| columns.iter().all(|column| column.key != *key)),
    );
    let mut text = line(keys.iter().map(|key| (*key).to_owned()));
    for row in rows {
        let value = |key: &&str| plain(row.get(*key).unwrap_or(&Value::Null));
        text.push_str(&line(keys.iter().map(value)));
    }
    text
}

/// A JSON value as text: lists with spaces between, nothing for null.
pub(crate) fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.iter().all(|item| !item.is_object() && !item.is_array()) => {
            items.iter().map(plain).collect::<Vec<_>>().join(" ")
        }
        other => other.to_string(),
    }
}

/// A line of CSV, RFC 4180.
fn line(fields: impl Iterator<Item = String>) -> String {
    let fields: Vec<String> = fields.map(|field| quoted(&field)).collect();
    fields.join(",") + "\r\n"
}

/// What a spreadsheet would take for a formula gets an apostrophe before it: strangers write some of these fields.
fn quoted(field: &str) -> String {
    let formula = field.starts_with(['=', '+', '-', '@', '\t', '\r']) && field.parse::<f64>().is_err();
    let field = if formula { format!("'{field}") } else { field.to_owned() };
    if field.contains(['"', ',', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn listing() -> Listing<Value> {
        let columns = [
            Column::new("AGENT", "spiffe_id"),
            Column::made("STATE", "banned", |row| {
                if row["banned"] == true { "banned" } else { "joined" }.to_owned()
            })
            .coloured(verdict),
        ];
        let mut listing = Listing::new(&columns);
        listing.row(json!({"spiffe_id": "spiffe://a/b", "banned": false, "serial": "01", "tags": ["x", "y"]}));
        listing.row(json!({"spiffe_id": "spiffe://a/c, \"d\"", "banned": true, "note": "=1+1"}));
        listing
    }

    fn rendered(output: ListOutput) -> String {
        listing().render(Form { output, wide: true }, false).unwrap()
    }

    #[test]
    fn one_row_has_four_forms() {
        let check = |output, expected: &str| assert_eq!(rendered(output), expected);
        check(
            ListOutput::Table,
            "AGENT              STATE\nspiffe://a/b       joined\nspiffe://a/c, \"d\"  banned\n",
        );
        check(
            ListOutput::Csv,
            "spiffe_id,banned,note,serial,tags\r\nspiffe://a/b,false,,01,x y\r\n\"spiffe://a/c, \"\"d\"\"\",true,'=1+1,,\r\n",
        );
        let lines = rendered(ListOutput::Jsonl);
        let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let whole: Value = serde_json::from_str(&rendered(ListOutput::Json)).unwrap();
        assert_eq!(whole, Value::Array(lines));
        assert_eq!(whole[1]["banned"], true);
    }

    #[test]
    fn an_empty_listing_has_the_columns_of_a_full_one() {
        let row = |name: &str| json!({"name": name, "level": "wrong", "at": 1});
        let listing = || Listing::<Value>::new(&[Column::new("NAME", "name")]).like(&row(""));
        let form = Form {
            output: ListOutput::Csv,
            wide: true,
        };
        let empty = listing().render(form, false).unwrap();
        assert_eq!(empty, "name,at,level\r\n");
        let mut full = listing();
        full.row(row("x"));
        let text = full.render(form, false).unwrap();
        assert_eq!(text, format!("{empty}x,1,wrong\r\n"));
        assert_eq!(form.without_heading(text), "x,1,wrong\r\n");
        assert_eq!(Form::default().without_heading("a\r\nb".to_owned()), "a\r\nb");
    }

    #[test]
    fn numbers_are_no_formulas() {
        for (field, expected) in [
            ("-1.5", "-1.5"),
            ("+1", "+1"),
            ("-x", "'-x"),
            ("@a", "'@a"),
            ("a=b", "a=b"),
        ] {
            assert_eq!(quoted(field), expected);
        }
    }
}
