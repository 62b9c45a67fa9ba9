//! Proxies of other nodes, by what they report to the CA.

use hoplite_wire::ca::NodeReport;
use hoplite_wire::report::Point;
use serde_json::{Value, json};

use crate::command::fleet::ask;
use crate::command::fleet::text::{many, moment};
use crate::command::reach::CaArgs;
use crate::output::part;

/// What the CA has heard of every node.
pub(super) struct Elsewhere(Vec<NodeReport>);

// === impl Elsewhere ===

impl Elsewhere {
    /// Asks the CA. One that is older than reports knows of nobody.
    pub(super) fn ask(ca: &CaArgs, fired: bool) -> anyhow::Result<Self> {
        Ok(Self(ask::everything(ca, fired)?.unwrap_or_default()))
    }

    /// Says of whom nothing is known, on standard error.
    pub(super) fn say_unheard(&self) {
        let unheard = self.unheard();
        if !unheard.is_empty() {
            let count = many(unheard.len() as u64, "node", "nodes");
            hoplite_host::tell!("not seen, because nothing was heard of {count}: {}", named(&unheard));
        }
    }

    /// The names of nodes of which nothing is known now.
    pub(super) fn unheard(&self) -> Vec<&str> {
        let unheard = self.0.iter().filter(|node| node.standing != "heard");
        unheard.map(|node| node.node.as_str()).collect()
    }

    /// The status of each that is not among those that answered here, in the form in which a proxy gives its own.
    pub(super) fn statuses(&self, here: &[Value]) -> Vec<Value> {
        self.others(here).map(|(node, point)| status(node, point)).collect()
    }

    /// Each that is not among those that answered here.
    pub(super) fn others<'a>(&'a self, here: &'a [Value]) -> impl Iterator<Item = (&'a NodeReport, &'a Point)> {
        let nodes = self.0.iter().filter(|node| node.standing == "heard");
        let points = nodes.flat_map(|node| {
            node.report
                .iter()
                .flat_map(move |report| report.points.iter().map(move |point| (node, point)))
        });
        points.filter(|(_, point)| {
            let about = point.about.clone().unwrap_or_default();
            let ended = point.state.as_ref().is_some_and(|state| state.ended_unix > 0);
            // An agent decides with what it holds; it is asked by its own name.
            let is_here = here.iter().any(|status| {
                part(status, "/name") == about.name.as_str()
                    && (part(status, "/spiffe_id") == about.spiffe_id.as_str() || part(status, "/error").is_string())
            });
            !ended && !is_here
        })
    }
}

/// At most ten of them.
pub(super) fn named(names: &[&str]) -> String {
    const NAMED_MAX: usize = 10;
    let mut text = names.iter().take(NAMED_MAX).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED_MAX) {
        0 => {}
        more => text.push_str(&format!(" and {more} more")),
    }
    text
}

fn status(node: &NodeReport, point: &Point) -> Value {
    let about = point.about.clone().unwrap_or_default();
    let policy = point.policy.clone().unwrap_or_default();
    let grants: Vec<Value> = (0..policy.grants).map(|_| json!({})).collect();
    let faults = policy
        .faults
        .iter()
        .map(|fault| json!({"file": "", "line": 0, "reason": fault}));
    let now = hoplite_decision::reporting::unix(hoplite_host::clock::now());
    json!({
        "name": format!("{}/{}", node.node, about.name),
        "node": node.node,
        "spiffe_id": about.spiffe_id,
        "policy": {
            "revision": policy.snapshot,
            "loaded_at": moment(policy.loaded_at_unix),
            "policies": policy.policies,
            "faults": faults.collect::<Vec<_>>(),
            "in_force": if policy.denies_all.is_empty() { "live" } else { "deny_all" },
            "reason": (!policy.denies_all.is_empty()).then_some(policy.denies_all),
            "source": policy.source,
            "bundle_revision": (policy.revision > 0).then_some(policy.revision),
            "signed_by": policy.signed_by,
            "signers_version": (policy.signers_version > 0).then_some(policy.signers_version),
            "alarms": policy.alarms,
            "expires": moment(policy.expires_unix),
            "stale": policy.expires_unix > 0 && policy.expires_unix <= now,
            "shadow": (!policy.shadow.is_empty()).then_some(policy.shadow),
            "grants": grants,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hoplite_wire::report::{PointAbout, PointPolicy, Report};

    #[test]
    fn who_answered_here_is_not_told_twice() {
        let point = |name: &str| Point {
            about: Some(PointAbout {
                name: name.to_owned(),
                spiffe_id: format!("spiffe://x/{name}"),
                ..PointAbout::default()
            }),
            policy: Some(PointPolicy {
                source: "bundle".into(),
                revision: 7,
                ..PointPolicy::default()
            }),
            ..Point::default()
        };
        let node = |name: &str, standing: &str, points: &[&str]| NodeReport {
            node: name.to_owned(),
            standing: standing.to_owned(),
            report: Some(Report {
                points: points.iter().map(|name| point(name)).collect(),
                ..Report::default()
            }),
            ..NodeReport::default()
        };
        let all = Elsewhere(vec![
            node("a", "heard", &["edge", "ledger"]),
            node("b", "heard", &["ledger"]),
            node("c", "silent", &["edge"]),
        ]);
        let here = [
            json!({"name": "edge", "spiffe_id": "spiffe://x/edge"}),
            json!({"name": "ledger", "error": "away"}),
        ];
        let names = |here: &[Value]| -> Vec<String> {
            let statuses = all.statuses(here);
            statuses
                .iter()
                .map(|status| part(status, "/name").as_str().unwrap().to_owned())
                .collect()
        };
        assert_eq!(names(&here[..1]), ["a/ledger", "b/ledger"]);
        assert_eq!(names(&[]), ["a/edge", "a/ledger", "b/ledger"]);
        assert_eq!(all.unheard(), ["c"]);
        assert_eq!(all.statuses(&[])[0].pointer("/policy/bundle_revision").unwrap(), 7);
    }
}
