//! Permits for calls that nothing permitted: a proposal for people to read, never a change.
//!
//! Only what no policy spoke of is proposed. Who was forbidden stays so, and where a permit nearly fits, that one is named instead:
//! its conditions were somebody's intention. An attacker's calls are among the refused ones too, so every proposal says who asked.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use hoplite_audit::{Outcome, Phase, Record};
use hoplite_identity::{ServiceName, SpiffeId};
use hoplite_policy::{Route, Snapshot};

use crate::possible::{Deed, Possible, possible};
use crate::view::Effect;

/// The most groups kept apart; calls beyond them are only counted.
const GROUPS_MAX: usize = 50_000;

/// The methods that have an action of their own; others are the action `other`.
const METHODS: [&str; 7] = ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"];

/// Refused calls, added up by caller, service and route.
#[derive(Debug, Default)]
pub struct Denials {
    groups: BTreeMap<Group, Calls>,
    /// Calls beyond [`GROUPS_MAX`], and those whose caller or service is no name.
    left_out: u64,
}

/// Whose calls to what: principal, service, and the route or none for a connection.
type Group = (String, String, Option<String>);

#[derive(Debug)]
struct Calls {
    methods: BTreeSet<String>,
    count: u64,
    last: SystemTime,
}

/// What to do about one caller's refused calls to one route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suggestion {
    /// The caller.
    pub principal: String,
    /// The service.
    pub service: String,
    /// The route; none for connections.
    pub route: Option<String>,
    /// The methods that were used; `connect` for connections.
    pub actions: Vec<String>,
    /// How many calls were refused.
    pub calls: u64,
    /// When the last was.
    pub last: SystemTime,
    /// What to do.
    pub advice: Advice,
}

/// What to do about refused calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Advice {
    /// This permit, in Cedar, would let them through.
    Permit(String),
    /// The service's routes do not list what was asked: list it first, since a permit for what is not listed permits everything.
    ListRoute,
    /// These permits nearly fit: their conditions were not met.
    Conditions(Vec<String>),
    /// By now these policies forbid it.
    Forbidden(Vec<String>),
    /// By now it is permitted.
    Permitted,
}

// === impl Denials ===

impl Denials {
    /// Adds a record, if it is a call that nothing permitted.
    pub fn add(&mut self, record: &Record) {
        if record.outcome != Outcome::NoPermit || record.phase == Phase::Handshake {
            return;
        }
        let Some(principal) = &record.principal else {
            return;
        };
        let count = record.suppressed + 1;
        let group = (principal.clone(), record.service.clone(), record.route.clone());
        if self.groups.len() >= GROUPS_MAX && !self.groups.contains_key(&group) {
            self.left_out += count;
            return;
        }
        let calls = self.groups.entry(group).or_insert_with(|| Calls {
            methods: BTreeSet::new(),
            count: 0,
            last: record.at,
        });
        calls.methods.insert(record.action.clone());
        calls.count += count;
        calls.last = calls.last.max(record.at);
    }

    /// Calls that no suggestion covers, because there are too many kinds, or their names are none.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// What to do about them, by these policies; the most frequent first.
    pub fn suggest(mut self, snapshot: &Snapshot) -> (Vec<Suggestion>, u64) {
        let mut names = BTreeSet::new();
        let mut suggestions = Vec::new();
        for ((principal, service, route), calls) in std::mem::take(&mut self.groups) {
            let (Ok(id), Ok(name)) = (SpiffeId::parse(&principal), service.parse::<ServiceName>()) else {
                self.left_out += calls.count;
                continue;
            };
            let advice = advise(snapshot, &id, &name, route.as_deref(), &calls, &mut names);
            suggestions.push(Suggestion {
                principal,
                service,
                route,
                actions: calls.methods.into_iter().collect(),
                calls: calls.count,
                last: calls.last,
                advice,
            });
        }
        suggestions.sort_by_key(|suggestion| Reverse(suggestion.calls));
        (suggestions, self.left_out)
    }
}

fn advise(
    snapshot: &Snapshot,
    id: &SpiffeId,
    service: &ServiceName,
    route: Option<&str>,
    calls: &Calls,
    names: &mut BTreeSet<String>,
) -> Advice {
    let deeds: Vec<Deed> = match route {
        None => vec![Deed::Connect(service.clone())],
        Some(text) => {
            let unmatched = Route::unmatched(service);
            let known = snapshot.routes().of(service).map(|(route, _)| route);
            let Some(route) = known.into_iter().find(|route| route.as_str() == text) else {
                return Advice::ListRoute;
            };
            if route.as_str() == unmatched.as_str() {
                return Advice::ListRoute;
            }
            let deed = |method: &String| Deed::Route(method.clone(), route.clone());
            calls.methods.iter().map(deed).collect()
        }
    };
    let (mut conditions, mut forbids, mut open) = (BTreeSet::new(), BTreeSet::new(), false);
    for deed in &deeds {
        match possible(snapshot, id, deed) {
            Ok(Possible::Always(_)) => {}
            Ok(Possible::Never(by)) if !by.is_empty() => forbids.extend(by),
            Ok(Possible::Depends(on)) if on.iter().any(|on| on.effect == Effect::Permit) => {
                let permits = on.into_iter().filter(|on| on.effect == Effect::Permit);
                conditions.extend(permits.map(|on| match on.conditions.is_empty() {
                    true => on.id,
                    false => format!("{} if {}", on.id, on.conditions.join(" and ")),
                }));
            }
            // Nothing speaks of it, or there is no policy at all.
            Ok(_) | Err(_) => open = true,
        }
    }
    if !forbids.is_empty() {
        return Advice::Forbidden(forbids.into_iter().collect());
    }
    if !conditions.is_empty() {
        return Advice::Conditions(conditions.into_iter().collect());
    }
    if !open {
        return Advice::Permitted;
    }
    Advice::Permit(permit(id, service, route, calls, names))
}

/// A permit for exactly this caller, these actions and this route.
fn permit(
    id: &SpiffeId,
    service: &ServiceName,
    route: Option<&str>,
    calls: &Calls,
    names: &mut BTreeSet<String>,
) -> String {
    let caller = id.as_str().rsplit('/').next().unwrap_or_default();
    let first = format!("{service}/from-{caller}");
    let numbered = (2..).map(|number| format!("{first}-{number}"));
    let name = std::iter::once(first.clone())
        .chain(numbered)
        .find(|name| !names.contains(name))
        .unwrap_or(first);
    names.insert(name.clone());
    let action = |method: &String| match method.as_str() {
        "connect" => "connect".to_owned(),
        method if METHODS.contains(&method) => method.to_owned(),
        _ => "other".to_owned(),
    };
    let actions: BTreeSet<String> = calls.methods.iter().map(action).collect();
    let actions: Vec<String> = actions
        .iter()
        .map(|action| format!("Hoplite::Action::{}", quoted(action)))
        .collect();
    let action = match actions.as_slice() {
        [one] => format!("action == {one}"),
        several => format!("action in [{}]", several.join(", ")),
    };
    let resource = match route {
        Some(route) => format!("resource == Hoplite::Route::{}", quoted(route)),
        None => format!("resource == Hoplite::Service::{}", quoted(service.as_str())),
    };
    format!(
        "@id({})\n@owner({})\npermit (\n  principal == Hoplite::Workload::{},\n  {action},\n  {resource}\n);\n",
        quoted(&name),
        quoted(&format!("team-{service}")),
        quoted(id.as_str()),
    )
}

/// A string of Cedar.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::sources;

    const ROUTES: &str = "[ledger]\nroutes = [\"GET /accounts/{id}\", \"POST /entries\"]\n";
    const POLICIES: &str = "@id(\"ledger/a\") @owner(\"x\") permit (principal == Hoplite::Workload::\"spiffe://a/office\",\n\
        action == Hoplite::Action::\"GET\", resource in Hoplite::Service::\"ledger\") when { context.host == \"x\" };\n\
        @id(\"security/b\") @owner(\"x\") forbid (principal == Hoplite::Workload::\"spiffe://a/edge\", action, resource);\n";

    fn denied(principal: &str, action: &str, route: Option<&str>) -> Record {
        let mut record = Record::new(Phase::Request, Outcome::NoPermit, "ledger", SystemTime::UNIX_EPOCH);
        record.principal = Some(principal.to_owned());
        record.action = action.to_owned();
        record.route = route.map(str::to_owned);
        record
    }

    fn suggested(records: &[Record]) -> Vec<Suggestion> {
        let sources = sources(&[("a.cedar", POLICIES), ("routes.toml", ROUTES)]);
        let mut denials = Denials::default();
        for record in records {
            denials.add(record);
        }
        denials.suggest(&Snapshot::compile(&sources).unwrap()).0
    }

    #[test]
    fn what_is_suggested_permits_that_and_no_more() {
        let route = Some("ledger:GET /accounts/{id}");
        let records = [
            denied("spiffe://a/web", "GET", route),
            denied("spiffe://a/web", "GET", route),
            denied("spiffe://a/web", "POST", Some("ledger:POST /entries")),
        ];
        let suggestions = suggested(&records);
        let permits: String = suggestions
            .iter()
            .map(|suggestion| match &suggestion.advice {
                Advice::Permit(text) => text.clone(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(suggestions[0].calls, 2);
        let sources = sources(&[("a.cedar", POLICIES), ("new.cedar", &permits), ("routes.toml", ROUTES)]);
        let snapshot = Snapshot::compile(&sources).unwrap_or_else(|faults| panic!("{faults:?}\n{permits}"));
        let ledger: ServiceName = "ledger".parse().unwrap();
        let can = |who: &str, method: &str, route: &str| {
            let route = snapshot
                .routes()
                .of(&ledger)
                .find(|(each, _)| each.as_str() == route)
                .unwrap()
                .0;
            let deed = Deed::Route(method.to_owned(), route.clone());
            possible(&snapshot, &SpiffeId::parse(who).unwrap(), &deed).unwrap()
        };
        let always = |id: &str| Possible::Always(vec![id.to_owned()]);
        assert_eq!(
            can("spiffe://a/web", "GET", "ledger:GET /accounts/{id}"),
            always("ledger/from-web")
        );
        assert_eq!(
            can("spiffe://a/web", "POST", "ledger:POST /entries"),
            always("ledger/from-web-2")
        );
        assert_eq!(
            can("spiffe://a/other", "POST", "ledger:POST /entries"),
            Possible::Never(vec![])
        );
        assert_eq!(suggested(&[]), []);
    }

    #[test]
    fn what_somebody_meant_is_not_suggested_away() {
        let route = Some("ledger:GET /accounts/{id}");
        let advice = |record: Record| suggested(&[record]).remove(0).advice;
        assert_eq!(
            advice(denied("spiffe://a/edge", "GET", route)),
            Advice::Forbidden(vec!["security/b".to_owned()])
        );
        match advice(denied("spiffe://a/office", "GET", route)) {
            Advice::Conditions(conditions) => assert!(conditions[0].starts_with("ledger/a if "), "{conditions:?}"),
            other => panic!("{other:?}"),
        }
        for route in ["ledger:unmatched", "ledger:GET /gone"] {
            assert_eq!(advice(denied("spiffe://a/web", "GET", Some(route))), Advice::ListRoute);
        }
    }

    #[test]
    fn only_what_nothing_permitted_counts() {
        let route = Some("ledger:GET /accounts/{id}");
        let forbidden = Record {
            outcome: Outcome::Forbid,
            ..denied("spiffe://a/web", "GET", route)
        };
        assert_eq!(suggested(&[forbidden]), []);
        let many = Record {
            suppressed: 41,
            ..denied("spiffe://a/web", "GET", route)
        };
        assert_eq!(suggested(&[many])[0].calls, 42);
    }

    #[test]
    fn what_strangers_write_stays_in_its_string() {
        for (text, expected) in [("a\"b", r#""a\"b""#), ("a\\", r#""a\\""#), ("a\nb", r#""a\nb""#)] {
            assert_eq!(quoted(text), expected);
        }
    }
}
