//! The judge judged: whoever breaks a clause is found, clause by clause.

mod documents;
mod endpoints;
mod maker;
mod server;
mod sockets;

use std::collections::BTreeSet;

use crate::{CLAUSES, Needs};

#[test]
fn each_clause_that_can_be_judged_is_broken_by_a_test() {
    let covered = [sockets::covered(), documents::covered(), endpoints::covered()].concat();
    let covered: BTreeSet<_> = covered.into_iter().collect();
    let judged = CLAUSES.iter().filter(|clause| clause.needs != Needs::Client);
    let missing: Vec<_> = judged
        .map(|clause| clause.name)
        .filter(|name| !covered.contains(name))
        .collect();
    assert_eq!(missing, Vec::<&str>::new(), "a probe that was never seen to fail");
}
