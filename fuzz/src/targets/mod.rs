//! What must hold whatever the input: each target takes any bytes, and panics only where Hoplite is wrong.
//!
//! Each gives a signature of what became of the input, so that a fuzzer that sees no coverage still learns which inputs
//! led somewhere new.

mod policies;
mod request;
mod routes;

pub use policies::policies;
pub use request::request;
pub use routes::routes;

/// One parser, by name, and the function that feeds it.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its seeds are in `fuzz/seeds/<name>`.
    pub name: &'static str,
    /// The function.
    pub run: fn(&[u8]) -> String,
}

/// All of them.
pub const TARGETS: [Target; 3] = [
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
];

/// A reason without what it quotes: the same for every input that fails in the same way.
fn signature(reason: &str) -> String {
    reason.split('`').step_by(2).collect()
}
