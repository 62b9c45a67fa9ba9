//! Measurements: what things cost, beside what they are compared with, in one run. `cargo bench -p hoplite-bench`.
//!
//! Nothing here is a test: a busy machine must not fail a build. bench/README.md holds what was measured, where and when.

use std::fmt::Write as _;

use hoplite_policy::Source;

/// Services `two`, `twenty` and `many` have 2, 20 and 200 policies that cover a read by /ns/pay/…; of these every
/// fourth looks at the context. The same with `all-` in front: every one does. The rest is one permit for each of
/// many services, as teams write them.
fn text(policies: usize) -> String {
    let mut text = String::new();
    let mut written = 0;
    for (service, count) in [("two", 2), ("twenty", 20), ("many", 200)] {
        for (prefix, every) in [("", 4), ("all-", 1)] {
            if written + count > policies {
                continue;
            }
            for n in 0..count {
                let condition = if n % every == 0 {
                    format!("when {{ context.seg.n == {} }}", n % 4)
                } else {
                    String::new()
                };
                let _ = writeln!(
                    text,
                    "@id(\"{prefix}{service}/{n}\") permit (principal in Hoplite::Path::\"prod.acme/ns/pay\", action in Hoplite::Action::\"read\", resource in Hoplite::Service::\"{prefix}{service}\") {condition};"
                );
            }
            written += count;
        }
    }
    for n in written..policies {
        let condition = if n % 3 == 0 { "when { context.seg has s1 }" } else { "" };
        let _ = writeln!(
            text,
            "@id(\"team-{}/{n}\") permit (principal in Hoplite::Path::\"prod.acme/ns/n{}\", action in Hoplite::Action::\"read\", resource == Hoplite::Route::\"svc{}:unmatched\") {condition};",
            n % 97,
            n % 5_003,
            n % 10_007,
        );
    }
    text
}

/// A set of this size, in one file.
pub fn sources(policies: usize) -> Vec<Source> {
    vec![Source {
        name: "all.cedar".to_owned(),
        text: text(policies),
    }]
}
