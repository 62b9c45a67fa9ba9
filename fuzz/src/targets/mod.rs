//! What must hold whatever the input: each target takes any bytes, and panics only where Hoplite is wrong.
//!
//! Each gives a signature of what became of the input, so that a fuzzer that sees no coverage still learns which inputs
//! led somewhere new.

mod bundle;
mod certificate;
mod csr;
mod document;
mod entries;
mod entry;
mod evaluation;
mod foreign;
mod grant;
mod invitation;
mod jwt;
mod openapi;
mod policies;
mod request;
mod routes;
mod signers;
mod table;
mod template;
mod tpm;

pub use bundle::bundle;
pub use certificate::certificate;
pub use csr::csr;
pub use document::document;
pub use entries::entries;
pub use entry::entry;
pub use evaluation::evaluation;
pub use foreign::foreign;
pub use grant::grant;
pub use invitation::invitation;
pub use jwt::jwt;
pub use openapi::openapi;
pub use policies::policies;
pub use request::request;
pub use routes::routes;
pub use signers::signers;
pub use table::table;
pub use template::template;
pub use tpm::tpm;

/// One parser, by name, and the function that feeds it.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its seeds are in `fuzz/seeds/<name>`.
    pub name: &'static str,
    /// The function.
    pub run: fn(&[u8]) -> String,
}

/// All of them.
pub const TARGETS: [Target; 19] = [
    Target {
        name: "request",
        run: request,
    },
    Target {
        name: "routes",
        run: routes,
    },
    Target {
        name: "policies",
        run: policies,
    },
    Target {
        name: "bundle",
        run: bundle,
    },
    Target {
        name: "grant",
        run: grant,
    },
    Target {
        name: "signers",
        run: signers,
    },
    Target {
        name: "table",
        run: table,
    },
    Target {
        name: "openapi",
        run: openapi,
    },
    Target {
        name: "evaluation",
        run: evaluation,
    },
    Target {
        name: "invitation",
        run: invitation,
    },
    Target { name: "jwt", run: jwt },
    Target {
        name: "foreign",
        run: foreign,
    },
    Target {
        name: "certificate",
        run: certificate,
    },
    Target {
        name: "entry",
        run: entry,
    },
    Target { name: "csr", run: csr },
    Target {
        name: "document",
        run: document,
    },
    Target {
        name: "template",
        run: template,
    },
    Target {
        name: "entries",
        run: entries,
    },
    Target { name: "tpm", run: tpm },
];

/// Whether a text has the line and column of a fault. Line 0 is all of it.
fn is_place(text: &str, fault: &hoplite_policy::Fault) -> bool {
    fault.line == 0
        || text
            .split('\n')
            .nth(fault.line - 1)
            .is_some_and(|line| (1..=line.chars().count() + 1).contains(&fault.column))
}

/// A reason without what it quotes: the same for every input that fails in the same way.
fn signature(reason: &str) -> String {
    reason.split('`').step_by(2).collect()
}
