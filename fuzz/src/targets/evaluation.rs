//! AuthZEN's requests: what is read is what a plain reading of the JSON says, and nothing is read twice in two ways.

/// The agent's own file, and no more of the agent: its crate would bring a server along.
#[path = "../../../agent/src/authorize/authzen/evaluation.rs"]
mod authzen;

use authzen::{EVALUATIONS_MAX, Evaluation, Evaluations, Malformed, Semantic};

use super::signature;

/// The body of a request, to both endpoints.
pub fn evaluation(input: &[u8]) -> String {
    let (one, many) = (Evaluation::parse(input), Evaluations::parse(input));
    if let Ok(one) = &one {
        assert_eq!(read_again(one).as_ref(), Ok(one), "a second reading differs");
        // The standard lets either endpoint take it, and the answer may not depend on which.
        if let Ok(Evaluations::One(same)) = &many {
            assert_eq!(same, one);
        }
    }
    match many {
        Err(malformed) => {
            assert!(!malformed.to_string().contains('\n'), "{malformed}");
            signature(&malformed.to_string())
                .split(" at line")
                .next()
                .unwrap_or_default()
                .to_owned()
        }
        Ok(Evaluations::One(same)) => {
            assert_eq!(one, Ok(same), "without a list it is one question");
            "one".to_owned()
        }
        Ok(Evaluations::Many { semantic, items }) => {
            assert!((1..=EVALUATIONS_MAX).contains(&items.len()));
            for item in items.iter().flatten() {
                assert_eq!(read_again(item).as_ref(), Ok(item), "a second reading differs");
            }
            let good = items.iter().filter(|item| item.is_ok()).count();
            format!(
                "{} {} of {}",
                semantic == Semantic::ExecuteAll,
                good.min(3),
                items.len().min(3)
            )
        }
    }
}

/// The question, written by us and read once more.
fn read_again(asked: &Evaluation) -> Result<Evaluation, Malformed> {
    let quoted = |text: &str| {
        let escaped = text.encode_utf16().map(|unit| format!("\\u{unit:04x}"));
        format!("\"{}\"", escaped.collect::<String>())
    };
    let optional = |name: &str, text: &Option<String>| {
        let member = text.as_ref().map(|text| format!("\"{name}\":{}", quoted(text)));
        member.into_iter().collect::<Vec<_>>()
    };
    let object = |members: Vec<String>| format!("{{{}}}", members.join(","));
    let typed =
        |(kind, id): &(String, String)| vec![format!("\"type\":{}", quoted(kind)), format!("\"id\":{}", quoted(id))];
    let headers = asked.headers.as_ref().map(|headers| {
        let members = headers
            .iter()
            .map(|(name, value)| format!("{}:{}", quoted(name), quoted(value)));
        format!("\"headers\":{}", object(members.collect()))
    });
    let mut properties = [optional("path", &asked.path), optional("host", &asked.host)].concat();
    properties.extend(headers);
    let mut resource = typed(&asked.resource);
    resource.push(format!("\"properties\":{}", object(properties)));
    let body = object(vec![
        format!("\"context\":{}", object(optional("source", &asked.source))),
        format!("\"resource\":{}", object(resource)),
        format!(
            "\"action\":{}",
            object(vec![format!("\"name\":{}", quoted(&asked.action))])
        ),
        format!("\"subject\":{}", object(typed(&asked.subject))),
    ]);
    Evaluation::parse(body.as_bytes())
}
