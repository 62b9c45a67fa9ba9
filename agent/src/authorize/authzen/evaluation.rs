//! OpenID AuthZEN 1.0, evaluation: what a request in JSON asks, before anything in it is believed.
//!
//! Members that are not known are passed over, as the standard says. One that is known and twice there, `null`, or of
//! another type is refused: somebody else might read it otherwise.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserialize, DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The most questions in one request: each may wait for the disk.
pub(crate) const EVALUATIONS_MAX: usize = 100;

/// One question, as it was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Evaluation {
    /// `subject.type` and `subject.id`: who calls.
    pub(crate) subject: (String, String),
    /// `action.name`.
    pub(crate) action: String,
    /// `resource.type` and `resource.id`: what is called.
    pub(crate) resource: (String, String),
    /// `resource.properties.path`, with its query if it has one.
    pub(crate) path: Option<String>,
    /// `resource.properties.host`.
    pub(crate) host: Option<String>,
    /// `resource.properties.headers`: name and value of every header field that goes on, if all were told.
    pub(crate) headers: Option<Vec<(String, String)>>,
    /// `context.source`: the address from which the call comes.
    pub(crate) source: Option<String>,
}

/// A request with any number of questions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Evaluations {
    /// No list, or an empty one: the request is itself the question.
    One(Evaluation),
    /// A list. A question that cannot be read is one of them, since it gets an answer too: no.
    Many {
        /// When to stop.
        semantic: Semantic,
        /// In the order of the request; never empty.
        items: Vec<Result<Evaluation, Malformed>>,
    },
}

/// After which answer the questions that follow are left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Semantic {
    /// After none.
    #[default]
    ExecuteAll,
    /// After the first no.
    DenyOnFirstDeny,
    /// After the first yes.
    PermitOnFirstPermit,
}

/// Why a request, or one question of it, cannot be read. The text is for whoever sent it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Malformed(String);

#[derive(serde::Deserialize)]
struct Request<'a> {
    #[serde(default, borrow, deserialize_with = "present")]
    subject: Option<&'a RawValue>,
    #[serde(default, borrow, deserialize_with = "present")]
    action: Option<&'a RawValue>,
    #[serde(default, borrow, deserialize_with = "present")]
    resource: Option<&'a RawValue>,
    #[serde(default, borrow, deserialize_with = "present")]
    context: Option<&'a RawValue>,
    #[serde(default, borrow, deserialize_with = "present")]
    evaluations: Option<&'a RawValue>,
    #[serde(default, borrow, deserialize_with = "present")]
    options: Option<&'a RawValue>,
}

/// The four parts of a question, each read if it is there.
#[derive(Clone, Default)]
struct Parts {
    subject: Option<Subject>,
    action: Option<Action>,
    resource: Option<Resource>,
    context: Option<Context>,
}

#[derive(Clone, serde::Deserialize)]
struct Subject {
    r#type: String,
    id: String,
    #[serde(default, deserialize_with = "raw")]
    properties: Option<Box<RawValue>>,
}

#[derive(Clone, serde::Deserialize)]
struct Action {
    name: String,
    #[serde(default, deserialize_with = "raw")]
    properties: Option<Box<RawValue>>,
}

#[derive(Clone, serde::Deserialize)]
struct Resource {
    r#type: String,
    id: String,
    #[serde(default, deserialize_with = "raw")]
    properties: Option<Box<RawValue>>,
}

#[derive(Clone, Default, serde::Deserialize)]
struct Properties {
    #[serde(default, deserialize_with = "text")]
    path: Option<String>,
    #[serde(default, deserialize_with = "text")]
    host: Option<String>,
    #[serde(default, deserialize_with = "texts")]
    headers: Option<Vec<(String, String)>>,
}

#[derive(Clone, Default, serde::Deserialize)]
struct Context {
    #[serde(default, deserialize_with = "text")]
    source: Option<String>,
}

#[derive(serde::Deserialize)]
struct Options {
    #[serde(default, deserialize_with = "text")]
    evaluations_semantic: Option<String>,
}

/// What may stand where any object may.
#[derive(serde::Deserialize)]
struct Anything {}

// === impl Evaluation ===

impl Evaluation {
    /// Reads the body of a request to `/access/v1/evaluation`.
    ///
    /// # Errors
    /// What is missing, or is not what it should be.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, Malformed> {
        Request::parse(body)?.parts()?.whole(None)
    }
}

// === impl Evaluations ===

impl Evaluations {
    /// Reads the body of a request to `/access/v1/evaluations`.
    ///
    /// # Errors
    /// What is wrong with it as a whole, the defaults at its top included.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, Malformed> {
        let request = Request::parse(body)?;
        let defaults = request.parts()?;
        let semantic = match request.options {
            Some(options) => object::<Options>("options", options.get())?.semantic()?,
            None => Semantic::default(),
        };
        let list = request.evaluations.map_or("[]", RawValue::get);
        let list: Vec<&RawValue> =
            serde_json::from_str(list).map_err(|_| Malformed("`evaluations` is no array".to_owned()))?;
        if list.is_empty() {
            return defaults.whole(None).map(Self::One);
        }
        if list.len() > EVALUATIONS_MAX {
            return Err(Malformed(format!(
                "`evaluations` has {} questions; ask at most {EVALUATIONS_MAX} at once",
                list.len()
            )));
        }
        let question = |item: &&RawValue| item_request(item.get())?.parts()?.whole(Some(&defaults));
        Ok(Self::Many {
            semantic,
            items: list.iter().map(question).collect(),
        })
    }
}

// === impl Options ===

impl Options {
    fn semantic(&self) -> Result<Semantic, Malformed> {
        match self.evaluations_semantic.as_deref() {
            None | Some("execute_all") => Ok(Semantic::ExecuteAll),
            Some("deny_on_first_deny") => Ok(Semantic::DenyOnFirstDeny),
            Some("permit_on_first_permit") => Ok(Semantic::PermitOnFirstPermit),
            Some(other) => Err(Malformed(format!(
                "`{}` is no `evaluations_semantic`; write `execute_all`, `deny_on_first_deny` or \
                 `permit_on_first_permit`",
                other.escape_debug()
            ))),
        }
    }
}

// === impl Request ===

impl<'a> Request<'a> {
    fn parse(body: &'a [u8]) -> Result<Self, Malformed> {
        let text = std::str::from_utf8(body).map_err(|_| Malformed("the body is not UTF-8".to_owned()))?;
        read("the body", text)
    }

    fn parts(&self) -> Result<Parts, Malformed> {
        let parts = Parts {
            subject: part("subject", self.subject)?,
            action: part("action", self.action)?,
            resource: part("resource", self.resource)?,
            context: part("context", self.context)?,
        };
        // Nothing in these is asked for; that they are objects is.
        for (name, properties) in [
            (
                "subject.properties",
                parts.subject.as_ref().and_then(|subject| subject.properties.as_ref()),
            ),
            (
                "action.properties",
                parts.action.as_ref().and_then(|action| action.properties.as_ref()),
            ),
        ] {
            part::<Anything>(name, properties.map(|raw| &**raw))?;
        }
        Ok(parts)
    }
}

fn item_request(text: &str) -> Result<Request<'_>, Malformed> {
    read("a question", text)
}

// === impl Parts ===

impl Parts {
    /// The question, with whole parts taken from the defaults where it has none of its own.
    fn whole(self, defaults: Option<&Self>) -> Result<Evaluation, Malformed> {
        let missing = |name: &str| Malformed(format!("`{name}` is missing"));
        let default = defaults.cloned().unwrap_or_default();
        let subject = self.subject.or(default.subject).ok_or_else(|| missing("subject"))?;
        let action = self.action.or(default.action).ok_or_else(|| missing("action"))?;
        let resource = self.resource.or(default.resource).ok_or_else(|| missing("resource"))?;
        let context = self.context.or(default.context).unwrap_or_default();
        let properties: Properties = part("resource.properties", resource.properties.as_deref())?.unwrap_or_default();
        Ok(Evaluation {
            subject: (subject.r#type, subject.id),
            action: action.name,
            resource: (resource.r#type, resource.id),
            path: properties.path,
            host: properties.host,
            headers: properties.headers,
            source: context.source,
        })
    }
}

fn part<T: DeserializeOwned>(name: &str, raw: Option<&RawValue>) -> Result<Option<T>, Malformed> {
    raw.map(|raw| object(name, raw.get())).transpose()
}

fn object<T: DeserializeOwned>(name: &str, text: &str) -> Result<T, Malformed> {
    read(&format!("`{name}`"), text)
}

/// Reads an object. The library alone would also take an array of its values.
fn read<'a, T: Deserialize<'a>>(what: &str, text: &'a str) -> Result<T, Malformed> {
    if !text.trim_start_matches([' ', '\t', '\r', '\n']).starts_with('{') {
        return Err(Malformed(format!("{what} is no JSON object")));
    }
    serde_json::from_str(text).map_err(|error| Malformed(format!("{what} cannot be read: {error}")))
}

/// What is there, `null` included: the library alone would take that for absence.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

fn raw<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(deserializer).map(Some)
}

fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    String::deserialize(deserializer).map(Some)
}

/// An object of strings, in which no name stands twice.
fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<(String, String)>>, D::Error> {
    struct Members;
    impl<'de> Visitor<'de> for Members {
        type Value = Vec<(String, String)>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of strings")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut members = BTreeMap::new();
            while let Some((name, value)) = map.next_entry::<String, String>()? {
                if members.contains_key(&name) {
                    return Err(de::Error::custom(format_args!(
                        "duplicate field `{}`",
                        name.escape_debug()
                    )));
                }
                members.insert(name, value);
            }
            Ok(members.into_iter().collect())
        }
    }
    deserializer.deserialize_map(Members).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: &str = r#""subject":{"type":"workload","id":"spiffe://a/b"}"#;
    const A: &str = r#""action":{"name":"GET"}"#;
    const R: &str = r#""resource":{"type":"service","id":"ledger","properties":{"path":"/x","host":"h"}}"#;

    fn one() -> Evaluation {
        Evaluation {
            subject: ("workload".to_owned(), "spiffe://a/b".to_owned()),
            action: "GET".to_owned(),
            resource: ("service".to_owned(), "ledger".to_owned()),
            path: Some("/x".to_owned()),
            host: Some("h".to_owned()),
            headers: None,
            source: None,
        }
    }

    #[test]
    fn a_question_is_read_and_what_is_unknown_is_passed_over() {
        for (body, expected) in [
            (format!("{{{S},{A},{R}}}"), one()),
            (
                format!(" \n{{{R},{A},{S},\"foo\":\"bar\",\"x\":{{\"y\":[null]}}}}"),
                one(),
            ),
            (
                format!(r#"{{{S},{A},{R},"context":{{"source":"10.0.0.1","time":"now"}}}}"#),
                Evaluation {
                    source: Some("10.0.0.1".to_owned()),
                    ..one()
                },
            ),
            (
                format!(
                    r#"{{{S},{A},"resource":{{"type":"service","id":"ledger","properties":{{"path":"/x","host":"h",
                    "headers":{{"X-Tenant":"a","accept":"*/*"}}}}}}}}"#
                ),
                Evaluation {
                    headers: Some(vec![
                        ("X-Tenant".to_owned(), "a".to_owned()),
                        ("accept".to_owned(), "*/*".to_owned()),
                    ]),
                    ..one()
                },
            ),
            (
                format!(
                    r#"{{{S},"action":{{"name":"connect","properties":{{"a":1}}}},"resource":{{"type":"t","id":"i"}}}}"#
                ),
                Evaluation {
                    action: "connect".to_owned(),
                    resource: ("t".to_owned(), "i".to_owned()),
                    path: None,
                    host: None,
                    headers: None,
                    ..one()
                },
            ),
        ] {
            assert_eq!(Evaluation::parse(body.as_bytes()), Ok(expected.clone()), "{body}");
            assert_eq!(
                Evaluations::parse(body.as_bytes()),
                Ok(Evaluations::One(expected)),
                "{body}"
            );
        }
    }

    fn with_headers(headers: &str) -> String {
        format!(r#"{{{S},{A},"resource":{{"type":"service","id":"i","properties":{{"headers":{headers}}}}}}}"#)
    }

    #[test]
    fn what_is_missing_or_something_else_is_named() {
        for (body, expected) in [
            (String::new(), "the body is no JSON object"),
            ("[]".to_owned(), "the body is no JSON object"),
            ("{".to_owned(), "the body cannot be read"),
            (format!("{{{S},{A},{R}}} x"), "trailing characters"),
            (format!("{{{A},{R}}}"), "`subject` is missing"),
            (format!("{{{S},{R}}}"), "`action` is missing"),
            (format!("{{{S},{A}}}"), "`resource` is missing"),
            (
                format!("{{\"subject\":\"alice\",{A},{R}}}"),
                "`subject` is no JSON object",
            ),
            (
                format!("{{\"subject\":[\"workload\",\"x\"],{A},{R}}}"),
                "`subject` is no JSON object",
            ),
            (format!("{{\"subject\":null,{A},{R}}}"), "`subject` is no JSON object"),
            (
                format!("{{\"subject\":{{\"id\":\"x\"}},{A},{R}}}"),
                "missing field `type`",
            ),
            (
                format!("{{\"subject\":{{\"type\":\"x\"}},{A},{R}}}"),
                "missing field `id`",
            ),
            (format!("{{{S},\"action\":{{}},{R}}}"), "missing field `name`"),
            (
                format!("{{{S},\"action\":{{\"name\":123}},{R}}}"),
                "`action` cannot be read",
            ),
            (format!("{{{S},{S},{A},{R}}}"), "duplicate field `subject`"),
            (
                format!("{{{S},\"action\":{{\"name\":\"GET\",\"n\\u0061me\":\"PUT\"}},{R}}}"),
                "duplicate field `name`",
            ),
            (
                format!("{{{S},\"action\":{{\"name\":\"\\ud800\"}},{R}}}"),
                "`action` cannot be read",
            ),
            (format!("{{{S},{A},{R},\"context\":[]}}"), "`context` is no JSON object"),
            (
                format!("{{{S},{A},{R},\"context\":{{\"source\":null}}}}"),
                "`context` cannot be read",
            ),
            (
                format!("{{{S},\"action\":{{\"name\":\"GET\",\"properties\":7}},{R}}}"),
                "`action.properties` is no JSON object",
            ),
            (
                format!("{{{S},{A},\"resource\":{{\"type\":\"s\",\"id\":\"i\",\"properties\":{{\"path\":7}}}}}}"),
                "`resource.properties` cannot be read",
            ),
            (with_headers("null"), "expected an object of strings"),
            (with_headers(r#"["a","b"]"#), "expected an object of strings"),
            (with_headers(r#"{"a":["b"]}"#), "expected a string"),
            (with_headers(r#"{"a":"b","\u0061":"c"}"#), "duplicate field `a`"),
        ] {
            for found in [
                Evaluation::parse(body.as_bytes()).unwrap_err(),
                Evaluations::parse(body.as_bytes()).unwrap_err(),
            ] {
                assert!(found.to_string().contains(expected), "{body}: {found}");
            }
        }
        assert!(
            Evaluation::parse(b"{\"a\":\"\xff\"}")
                .unwrap_err()
                .to_string()
                .contains("UTF-8")
        );
    }

    #[test]
    fn a_list_takes_whole_parts_from_the_top() {
        let put = r#""action":{"name":"PUT"}"#;
        let body = format!(r#"{{{S},{A},"evaluations":[{{{R}}},{{{put},{R}}},{{}},7,{{{R},"subject":null}}]}}"#);
        let Evaluations::Many { semantic, items } = Evaluations::parse(body.as_bytes()).unwrap() else {
            panic!("a list")
        };
        assert_eq!((semantic, items.len()), (Semantic::ExecuteAll, 5));
        assert_eq!(items[0], Ok(one()));
        assert_eq!(items[1].as_ref().unwrap().action, "PUT");
        for (item, expected) in [
            (2, "`resource` is missing"),
            (3, "a question is no JSON object"),
            (4, "`subject` is no JSON object"),
        ] {
            assert!(
                items[item].as_ref().unwrap_err().to_string().contains(expected),
                "{item}"
            );
        }
        // No part is mixed: a resource of one's own has no path from the top.
        let body = format!(r#"{{{S},{A},{R},"evaluations":[{{"resource":{{"type":"service","id":"ledger"}}}}]}}"#);
        let Evaluations::Many { items, .. } = Evaluations::parse(body.as_bytes()).unwrap() else {
            panic!("a list")
        };
        assert_eq!(items[0].as_ref().unwrap().path, None);
    }

    #[test]
    fn a_request_is_wrong_as_a_whole_or_in_one_question() {
        let with = |rest: &str| Evaluations::parse(format!("{{{S},{A},{R},{rest}}}").as_bytes());
        for (text, semantic) in [
            ("execute_all", Semantic::ExecuteAll),
            ("deny_on_first_deny", Semantic::DenyOnFirstDeny),
            ("permit_on_first_permit", Semantic::PermitOnFirstPermit),
        ] {
            let asked = with(&format!(
                r#""evaluations":[{{}}],"options":{{"x":1,"evaluations_semantic":"{text}"}}"#
            ));
            let items = vec![Ok(one())];
            assert_eq!(asked, Ok(Evaluations::Many { semantic, items }), "{text}");
        }
        assert_eq!(with(r#""evaluations":[]"#), Ok(Evaluations::One(one())));
        let many = |count: usize| with(&format!("\"evaluations\":[{}{{}}]", "{},".repeat(count - 1)));
        assert!(many(EVALUATIONS_MAX).is_ok());
        assert!(
            many(EVALUATIONS_MAX + 1)
                .unwrap_err()
                .to_string()
                .contains("at most 100")
        );
        for (rest, expected) in [
            (
                r#""options":{"evaluations_semantic":"any"}"#,
                "`any` is no `evaluations_semantic`",
            ),
            (r#""options":{"evaluations_semantic":1}"#, "`options` cannot be read"),
            (r#""options":[]"#, "`options` is no JSON object"),
            (r#""evaluations":{}"#, "`evaluations` is no array"),
            (r#""evaluations":null"#, "`evaluations` is no array"),
            (r#""evaluations":[{}],"context":7"#, "`context` is no JSON object"),
        ] {
            let found = with(rest).unwrap_err().to_string();
            assert!(found.contains(expected), "{rest}: {found}");
        }
    }
}
