//! What a caller is told: a word from a fixed set, and the id under which the log knows the rest.

use hoplite_audit::{DecisionId, Outcome};

/// The header that names the decision, in answers and in requests that go on.
pub const DECISION_HEADER: &str = "x-hoplite-decision";

/// The body of a refusal, `{"error": …, "outcome": …, "decision": …}`. No policy text, no policy ids.
pub fn refusal(error: &str, outcome: Option<Outcome>, decision: Option<&DecisionId>) -> String {
    let mut fields = serde_json::Map::new();
    fields.insert("error".to_owned(), error.into());
    if let Some(outcome) = outcome {
        fields.insert("outcome".to_owned(), outcome.as_str().into());
    }
    if let Some(decision) = decision {
        fields.insert("decision".to_owned(), decision.to_string().into());
    }
    serde_json::Value::Object(fields).to_string() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn a_refusal_says_no_more_than_it_may() {
        let id: DecisionId = "node-7-9f3c2a7be1d04455-5".parse().unwrap();
        for (outcome, decision, expected) in [
            (None, None, json!({"error": "denied"})),
            (
                Some(Outcome::NoPermit),
                Some(&id),
                json!({"error": "denied", "outcome": "no_permit", "decision": "node-7-9f3c2a7be1d04455-5"}),
            ),
        ] {
            let told: Value = serde_json::from_str(&refusal("denied", outcome, decision)).unwrap();
            assert_eq!(told, expected);
        }
    }
}
