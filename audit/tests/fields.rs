//! Every field of every kind of record is in the reference, under its key, and in the JSON that `hoplite audit query` prints.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, its helpers too"
)]

use std::path::Path;
use std::time::UNIX_EPOCH;

use hoplite_audit::{Control, DecisionId, Heartbeat, Issuance, Kind, Loss, Outcome, Phase, Record, Recordable, Stage};
use serde::Serialize;

/// A decision of which everything is known: a new field does not compile until it is here.
fn decision() -> Record {
    let text = || Some("x".to_owned());
    Record {
        id: DecisionId::default(),
        at: UNIX_EPOCH,
        phase: Phase::Request,
        outcome: Outcome::Allow,
        principal: text(),
        peer_serial: text(),
        peer_not_after: Some(UNIX_EPOCH),
        source: text(),
        service: "x".to_owned(),
        action: "x".to_owned(),
        route: text(),
        host: text(),
        path: text(),
        tls: text(),
        cedar_decision: text(),
        determining: vec!["x".to_owned()],
        errors: vec!["x".to_owned()],
        reason: text(),
        policy_revision: text(),
        stale: true,
        trace_id: text(),
        suppressed: 1,
        eval_micros: 1,
        bundle_revision: Some(1),
        shadow_revision: text(),
        shadow_outcome: Some(Outcome::Forbid),
        shadow_determining: vec!["x".to_owned()],
        vouched_by: text(),
        headers: [("x".to_owned(), None)].into(),
        bundle_manifest: Some([7; 32]),
    }
}

#[test]
fn every_field_is_in_the_reference_and_in_the_json() {
    let text = || "x".to_owned();
    check(&decision());
    check(&Control {
        id: DecisionId::default(),
        at: UNIX_EPOCH,
        actor: text(),
        action: text(),
        subject: text(),
        stage: Stage::Refused,
        reason: Some(text()),
        source: Some(text()),
        by: vec![text()],
        began: Some(0),
        detail: [(text(), text())].into(),
    });
    check(&Issuance {
        id: DecisionId::default(),
        at: UNIX_EPOCH,
        subject: text(),
        serial: text(),
        not_after: UNIX_EPOCH,
        requester: text(),
        entry: Some(text()),
        authority: Some(text()),
        how: text(),
        source: Some(text()),
        values: vec![text()],
    });
    check(&Loss {
        id: DecisionId::default(),
        at: UNIX_EPOCH,
        count: 1,
        reason: text(),
        lost: Kind::Decision as u8,
    });
    check(&Heartbeat {
        id: DecisionId::default(),
        at: UNIX_EPOCH,
    });
}

fn check<R: Recordable + Serialize>(record: &R) {
    let heading = format!("### {} ({})\n", R::KIND, R::KIND as u8);
    let rows = rows(&heading);
    let bytes = minicbor::to_vec(record).unwrap();
    let mut decoder = minicbor::Decoder::new(&bytes);
    let count = decoder.map().unwrap().expect("of a known length");
    let keys: Vec<u64> = (0..count)
        .map(|_| {
            let key = decoder.u64().unwrap();
            decoder.skip().unwrap();
            key
        })
        .collect();
    assert_eq!(
        keys,
        rows.iter().map(|(key, _)| *key).collect::<Vec<_>>(),
        "{heading}: keys on the disk, and in docs/reference/records.md"
    );
    let json = serde_json::to_value(record).unwrap();
    let mut names: Vec<&String> = json.as_object().unwrap().keys().collect();
    let mut told: Vec<&String> = rows.iter().map(|(_, name)| name).collect();
    // In the order in which they are declared, which is that of their keys.
    let text = serde_json::to_string(record).unwrap();
    let places: Vec<_> = told.iter().map(|name| text.find(&format!("\"{name}\":"))).collect();
    assert!(places.is_sorted(), "{heading}: {told:?} are not in the order of {text}");
    names.sort();
    told.sort();
    assert_eq!(
        names, told,
        "{heading}: names in the JSON, and in docs/reference/records.md"
    );
}

/// Key and name of each row of the table below a heading.
fn rows(heading: &str) -> Vec<(u64, String)> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/records.md");
    let page = std::fs::read_to_string(page).unwrap();
    let (_, section) = page.split_once(heading).expect("a section for each kind");
    let section = section.split("\n#").next().unwrap();
    section
        .lines()
        .filter_map(|line| {
            let mut cells = line.split('|').skip(1).map(str::trim);
            let key = cells.next()?.parse().ok()?;
            Some((key, cells.next()?.trim_matches('`').to_owned()))
        })
        .collect()
}
