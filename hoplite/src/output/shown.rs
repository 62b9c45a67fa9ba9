//! How many rows of a listing are shown: on a terminal so many as somebody reads, elsewhere all.

use std::io::{self, IsTerminal};

use clap::Args;
use serde::Serialize;

use super::capped::All;
use super::listing::{Form, Listing};
use super::thousands;

/// More rows than these are not shown on a terminal, unless somebody asks.
const ROWS_SHOWN_MAX: usize = 50;

/// What a listing takes that may have thousands of rows.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct Shown {
    /// At most so many rows; 0 for all [default: 50 on a terminal, else all]
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    #[command(flatten)]
    all: All,
}

// === impl Shown ===

impl Shown {
    /// Prints as many rows as somebody asked for, or fit a terminal, and says how many more there are.
    pub(crate) fn print<T: Serialize>(self, mut listing: Listing<T>, form: Form) -> anyhow::Result<()> {
        let left = listing.keep(self.rows_max(form.is_table() && io::stdout().is_terminal()));
        listing.print(form)?;
        if left > 0 {
            hoplite_host::tell!(
                "and {} more; --all shows them, --limit N so many",
                thousands(left as u64)
            );
        }
        Ok(())
    }

    fn rows_max(self, is_terminal: bool) -> usize {
        match self.limit {
            _ if self.all.is_said() => usize::MAX,
            Some(0) => usize::MAX,
            Some(limit) => limit,
            None if is_terminal => ROWS_SHOWN_MAX,
            None => usize::MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_shown_some() {
        let max = |limit, is_terminal| {
            let all = All::default();
            Shown { limit, all }.rows_max(is_terminal)
        };
        assert_eq!((max(None, true), max(None, false)), (50, usize::MAX));
        assert_eq!((max(Some(7), false), max(Some(0), true)), (7, usize::MAX));
    }
}
