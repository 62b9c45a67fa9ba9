//! Cedar's own tests, as `cedar run-tests` reads them.
//!
//! A list of objects with `request`, `entities`, `decision` (`allow` or `deny`), `reason` (ids of policies that must be
//! among those which decided), `num_errors`, and `name` if you like. Entities are used as they are given and evaluated by
//! Cedar's authorizer over every policy; `decision` is what Hoplite would enforce, which differs from Cedar's own in one
//! thing: a forbid that cannot be evaluated denies.

use super::case::{Case, Expected, GivenCase, Question, Wrong};
use cedar_policy::{Context, Entities, EntityUid, ParseErrors, Request, Schema};
use hoplite_policy::text::{Text, validator};
use hoplite_policy::{CallFacts, SelectedHeaders};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// A test as it is written. Other fields are passed over, as Cedar does.
#[derive(Deserialize)]
struct Written {
    name: Option<String>,
    request: WrittenRequest,
    entities: Value,
    decision: WrittenDecision,
    reason: Vec<String>,
    num_errors: usize,
}

#[derive(Deserialize)]
struct WrittenRequest {
    principal: String,
    action: String,
    resource: String,
    context: Value,
}

#[derive(Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum WrittenDecision {
    Allow,
    Deny,
}

/// Why a test cannot be asked.
#[derive(Debug, thiserror::Error)]
enum BadTest {
    #[error("the {what} `{text}` is no entity: {error}; write it like `Hoplite::Service::\"ledger\"`")]
    NoEntity {
        what: &'static str,
        text: String,
        error: String,
    },
    #[error("the {what} {does} not conform to the schema: {why}; `hoplite policy schema` prints it")]
    Nonconforming {
        what: &'static str,
        does: &'static str,
        why: String,
    },
}

/// The cases of a file, or what is wrong with each.
pub(super) fn parse(text: &str, headers: &SelectedHeaders) -> Result<Vec<Case>, Vec<Wrong>> {
    let validator = validator(headers).map_err(|error| vec![(0, error.to_string())])?;
    let tests: Vec<&RawValue> = serde_json::from_str(text).map_err(|error| vec![said(text, 0, &error)])?;
    let whole = Text::new("", text);
    let mut cases = Vec::with_capacity(tests.len());
    let mut wrong = Vec::new();
    for test in tests {
        // Both addresses are of the one text.
        let offset = test.get().as_ptr().addr().saturating_sub(text.as_ptr().addr());
        let place = whole.position(offset);
        match serde_json::from_str::<Written>(test.get()) {
            Ok(written) => match written.case(place, validator.schema()) {
                Ok(case) => cases.push(case),
                Err(bad) => wrong.push((offset, bad.to_string())),
            },
            Err(error) => wrong.push(said(test.get(), offset, &error)),
        }
    }
    if wrong.is_empty() { Ok(cases) } else { Err(wrong) }
}

/// What is wrong with a part of the file that starts at this byte of it.
fn said(part: &str, start: usize, error: &serde_json::Error) -> Wrong {
    let before: usize = part
        .split_inclusive('\n')
        .take(error.line().saturating_sub(1))
        .map(str::len)
        .sum();
    let message = error.to_string();
    let message = message
        .rsplit_once(" at line ")
        .map_or(message.as_str(), |(message, _)| message);
    let reason = format!(
        "{message}; a test is an object with `request`, `entities`, `decision`, `reason` and `num_errors`, and the file a \
         list of them"
    );
    (start + before + error.column().saturating_sub(1), reason)
}

// === impl Written ===

impl Written {
    fn case(self, place: (usize, usize), schema: &Schema) -> Result<Case, BadTest> {
        let WrittenRequest {
            principal,
            action,
            resource,
            context,
        } = self.request;
        let text = format!("{principal} {action} {resource}");
        let uid = |what: &'static str, text: &str| -> Result<EntityUid, BadTest> {
            text.parse().map_err(|error: ParseErrors| BadTest::NoEntity {
                what,
                text: text.to_owned(),
                error: error.to_string(),
            })
        };
        let principal = uid("principal", &principal)?;
        let action = uid("action", &action)?;
        let resource = uid("resource", &resource)?;
        let context = Context::from_json_value(context, Some((schema, &action)))
            .map_err(|error| BadTest::of("context", "does", &error))?;
        Request::new(
            principal.clone(),
            action.clone(),
            resource.clone(),
            context.clone(),
            Some(schema),
        )
        .map_err(|error| BadTest::of("request", "does", &error))?;
        let entities = Entities::from_json_value(self.entities, Some(schema))
            .map_err(|error| BadTest::of("entities", "do", &error))?;
        Ok(Case {
            place,
            text: self.name.unwrap_or(text),
            question: Question::Given(Box::new(GivenCase {
                call: CallFacts {
                    principal,
                    action,
                    resource,
                    entities,
                },
                context,
            })),
            expected: Expected::Cedar {
                allow: self.decision == WrittenDecision::Allow,
                reason: self.reason,
                errors: self.num_errors,
            },
        })
    }
}

// === impl BadTest ===

impl BadTest {
    /// An error with what is behind it, in one line.
    fn of(what: &'static str, does: &'static str, error: &(dyn std::error::Error + 'static)) -> Self {
        let causes = std::iter::successors(Some(error), |error| error.source());
        let mut texts: Vec<String> = causes.map(ToString::to_string).collect();
        texts.dedup();
        let why = texts.join(": ").split_whitespace().collect::<Vec<_>>().join(" ");
        Self::Nonconforming { what, does, why }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{parse, snapshot, snapshot_with_headers};
    use serde_json::{Value, json};

    /// A test in which `web` reads the ledger.
    fn good() -> Value {
        json!({
            "name": "web reads",
            "request": {
                "principal": "Hoplite::Workload::\"spiffe://prod.acme/ns/web/sa/shop\"",
                "action": "Hoplite::Action::\"GET\"",
                "resource": "Hoplite::Route::\"ledger:GET /accounts/{id}\"",
                "context": {
                    "conn": {
                        "src": {"__extn": {"fn": "ip", "arg": "10.20.0.9"}},
                        "now": {"__extn": {"fn": "datetime", "arg": "2026-11-23T12:00:00Z"}},
                        "dow": "Mon",
                    },
                    "host": "ledger",
                    "seg": {"n": 2, "s0": "accounts", "s1": "7"},
                },
            },
            "entities": [
                {
                    "uid": {"type": "Hoplite::Workload", "id": "spiffe://prod.acme/ns/web/sa/shop"},
                    "attrs": {},
                    "parents": [{"type": "Hoplite::Path", "id": "prod.acme/ns/web"}],
                },
                {
                    "uid": {"type": "Hoplite::Route", "id": "ledger:GET /accounts/{id}"},
                    "attrs": {},
                    "parents": [{"type": "Hoplite::Service", "id": "ledger"}],
                },
            ],
            "decision": "allow",
            "reason": ["pay/read"],
            "num_errors": 0,
        })
    }

    fn with(changes: &[(&str, Value)]) -> Value {
        let mut test = good();
        for (pointer, value) in changes {
            *test.pointer_mut(pointer).unwrap() = value.clone();
        }
        test
    }

    #[test]
    fn cedars_tests_are_run() {
        let delete = "Hoplite::Action::\"DELETE\"";
        for (test, passes, found) in [
            (good(), true, "allow by pay/read, errors: 0"),
            (with(&[("/reason", json!([]))]), true, "allow by pay/read, errors: 0"),
            (
                with(&[("/decision", json!("deny"))]),
                false,
                "allow by pay/read, errors: 0",
            ),
            (
                with(&[("/num_errors", json!(1))]),
                false,
                "allow by pay/read, errors: 0",
            ),
            (
                with(&[("/reason", json!(["sec/no-bad"]))]),
                false,
                "allow by pay/read, errors: 0",
            ),
            // Nobody is in a group that no entity puts it in.
            (with(&[("/entities", json!([]))]), false, "deny, errors: 0"),
            (
                with(&[
                    ("/request/action", json!(delete)),
                    ("/decision", json!("deny")),
                    ("/reason", json!([])),
                    ("/num_errors", json!(1)),
                ]),
                true,
                "deny, errors: 1",
            ),
        ] {
            let table = parse("a.test.json", &json!([test]).to_string(), &snapshot()).unwrap();
            let results = table.run(&snapshot(), &crate::view::Places::default());
            assert_eq!(results.len(), 1);
            assert_eq!(
                (results[0].passed, results[0].found.as_str()),
                (passes, found),
                "{:#?}",
                results[0]
            );
            assert_eq!(results[0].case, "web reads");
        }
    }

    #[test]
    fn what_is_no_test_is_refused_where_it_is() {
        let good = good();
        let unknown = with(&[("/request/action", json!("Hoplite::Action::\"TRACE\""))]);
        let context = with(&[("/request/context/host", json!(7))]);
        let uid = with(&[("/request/principal", json!("web"))]);
        let entity = with(&[("/entities/0/uid/type", json!("Hoplite::Nobody"))]);
        for (text, expected) in [
            ("".to_owned(), "a.test.json:1:1: EOF"),
            ("[".to_owned(), "a.test.json:1:1: EOF"),
            ("{}".to_owned(), "a.test.json:1:1: invalid type: map"),
            (
                format!("[{good},\n\n  {{\"request\": 7}}]"),
                "a.test.json:3:15: invalid type: integer `7`",
            ),
            (format!("[{good},\n  {{}}]"), "a.test.json:2:4: missing field `request`"),
            (
                format!("[\n{unknown}]"),
                "a.test.json:2:1: the context does not conform to the schema: action `Hoplite::Action::\"TRACE\"` is not defined",
            ),
            (
                format!("[\n{context}]"),
                "a.test.json:2:1: the request does not conform to the schema: context",
            ),
            (
                format!("[\n{uid}]"),
                "a.test.json:2:1: the principal `web` is no entity",
            ),
            (format!("[\n{entity}]"), "a.test.json:2:1: the entities do not conform"),
        ] {
            let faults = parse("a.test.json", &text, &snapshot()).unwrap_err();
            let fault = faults[0].to_string();
            assert!(fault.starts_with(expected), "{fault}\nis not {expected}");
            assert_eq!(faults.len(), 1);
        }
        assert_eq!(parse("a.test.json", "[]", &snapshot()).unwrap().len(), 0);
    }

    #[test]
    fn selected_headers_are_in_the_context() {
        let mut test = with(&[
            ("/request/action", json!("Hoplite::Action::\"PUT\"")),
            ("/reason", json!(["tenant"])),
        ]);
        test["request"]["context"]["hdr"] = json!({"x-tenant": "a b"});
        let text = json!([test]).to_string();
        let snapshot = snapshot_with_headers();
        let [result] = <[_; 1]>::try_from(
            parse("a.test.json", &text, &snapshot)
                .unwrap()
                .run(&snapshot, &crate::view::Places::default()),
        )
        .unwrap();
        assert_eq!(
            (result.passed, result.found.as_str()),
            (true, "allow by tenant, errors: 0")
        );
        let fault = &parse("a.test.json", &text, &super::super::tests::snapshot()).unwrap_err()[0];
        assert!(fault.to_string().contains("does not conform to the schema"), "{fault}");
        let unselected = text.replace("x-tenant", "x-tennant");
        assert!(parse("a.test.json", &unselected, &snapshot).is_err());
    }
}
