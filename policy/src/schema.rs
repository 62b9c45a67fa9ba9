//! The schema, and what is worked out from it once: entity types, actions with their groups, the validator.
//!
//! A policy set that selects headers has a schema of its own: the built-in one, in which the context of HTTP requests has
//! one more record, `hdr`, with an optional field for each.

use crate::cedar::Node;
use crate::headers::SelectedHeaders;
use cedar_policy::{Authorizer, Entity, EntityId, EntityTypeName, EntityUid, Schema, Validator};
use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

/// The Cedar schema every policy is validated against, as people read it.
pub const SCHEMA: &str = include_str!("hoplite.cedarschema");

/// Where the selected headers come in.
const HTTP_CONTEXT: &str = "type HttpContext = { conn: Connection, host: String, seg: Segments };";

/// The words of [`SCHEMA`], ready for use. A constant of the program; it is only too large to write as one.
pub static VOCABULARY: LazyLock<Vocabulary> = LazyLock::new(|| {
    #[expect(
        clippy::expect_used,
        reason = "a function of the constant SCHEMA alone, which every test of this crate uses"
    )]
    Vocabulary::new(SCHEMA).expect("the built-in schema is sound")
});

/// The entity types by name, the actions, and what was made of the schema once.
pub struct Vocabulary {
    /// The reference authorizer.
    pub authorizer: Authorizer,
    /// The validator of policies that select no header.
    pub validator: Validator,
    /// `Hoplite::TrustDomain`.
    pub trust_domain: EntityTypeName,
    /// `Hoplite::Path`.
    pub path: EntityTypeName,
    /// `Hoplite::Workload`.
    pub workload: EntityTypeName,
    /// `Hoplite::Service`.
    pub service: EntityTypeName,
    /// `Hoplite::Route`.
    pub route: EntityTypeName,
    /// Each action with all its groups. A request must carry its action's entity: without it
    /// `action in Hoplite::Action::"read"` is silently false.
    actions: HashMap<String, Node>,
}

/// Cedar does not take the schema of some selected headers: a fault of ours.
#[derive(Debug, thiserror::Error)]
#[error("the schema cannot be made: {0}")]
pub struct BadSchema(#[source] Box<cedar_policy::CedarSchemaError>);

// === impl Vocabulary ===

impl fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vocabulary").finish_non_exhaustive()
    }
}

impl Vocabulary {
    fn new(schema: &str) -> Result<Self, Box<dyn std::error::Error>> {
        let schema = Schema::from_str(schema)?;
        let entities = schema.action_entities()?;
        let action = |action: &Entity| {
            let groups = entities.ancestors(&action.uid()).into_iter().flatten().cloned();
            (
                action.uid().id().unescaped().to_owned(),
                Node::new(action.uid(), groups),
            )
        };
        let actions = entities.iter().map(action).collect();
        Ok(Self {
            authorizer: Authorizer::new(),
            validator: Validator::new(schema),
            trust_domain: "Hoplite::TrustDomain".parse()?,
            path: "Hoplite::Path".parse()?,
            workload: "Hoplite::Workload".parse()?,
            service: "Hoplite::Service".parse()?,
            route: "Hoplite::Route".parse()?,
            actions,
        })
    }

    /// The action of this name.
    pub(crate) fn action(&self, name: &str) -> Option<&Node> {
        self.actions.get(name)
    }
}

/// The schema of a policy set that selects these headers, as people read it.
pub fn schema(headers: &SelectedHeaders) -> Cow<'static, str> {
    if headers.is_empty() {
        return SCHEMA.into();
    }
    let fields: Vec<_> = headers
        .iter()
        .map(|name| format!("    \"{name}\"?: String,\n"))
        .collect();
    let with_headers = format!(
        "type HttpContext = {{ conn: Connection, host: String, seg: Segments, hdr: Headers }};\n\n  \
         // The headers that headers.toml selects, as they are forwarded. Test with `has` before use:\n  \
         // `context.hdr has \"x-tenant\" && context.hdr[\"x-tenant\"] == \"acme\"`.\n  \
         type Headers = {{\n{}  }};",
        fields.concat()
    );
    SCHEMA.replacen(HTTP_CONTEXT, &with_headers, 1).into()
}

/// The validator of policies that look at these headers.
///
/// # Errors
/// Cedar's, of a schema that we made.
pub fn validator(headers: &SelectedHeaders) -> Result<Cow<'static, Validator>, BadSchema> {
    if headers.is_empty() {
        return Ok(Cow::Borrowed(&VOCABULARY.validator));
    }
    let schema = Schema::from_str(&schema(headers)).map_err(|error| BadSchema(Box::new(error)))?;
    Ok(Cow::Owned(Validator::new(schema)))
}

/// A uid from its parts, without a parser: a quote in a name is a character like any other.
pub(crate) fn uid(type_name: &EntityTypeName, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(type_name.clone(), EntityId::new(id))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn every_action_is_in_its_groups() {
        let groups = |name: &str| {
            let action = VOCABULARY.action(name).unwrap().clone();
            let entities = crate::cedar::entities([action.clone()]).unwrap();
            let ancestors = entities.ancestors(&action.uid()).unwrap();
            let mut groups: Vec<_> = ancestors.map(|group| group.id().unescaped().to_owned()).collect();
            groups.sort();
            groups.join(" ")
        };
        for (action, expected) in [
            ("connect", ""),
            ("GET", "anyHttp read"),
            ("HEAD", "anyHttp read"),
            ("OPTIONS", "anyHttp read"),
            ("POST", "anyHttp write"),
            ("PUT", "anyHttp write"),
            ("PATCH", "anyHttp write"),
            ("DELETE", "anyHttp write"),
            ("other", "anyHttp write"),
        ] {
            assert_eq!(groups(action), expected, "{action}");
        }
        assert!(VOCABULARY.action("TRACE").is_none());
        assert!(VOCABULARY.action("CONNECT").is_none());
    }

    #[test]
    fn selected_headers_are_words_of_their_own_schema() {
        assert_eq!(schema(&SelectedHeaders::default()), SCHEMA);
        let headers = SelectedHeaders::parse("headers = ['x-tenant', 'a', 'in', 'if', 'has']").unwrap();
        let (fragment, warnings) = cedar_policy::SchemaFragment::from_cedarschema_str(&schema(&headers)).unwrap();
        assert_eq!(warnings.count(), 0);
        let json = fragment.to_json_value().unwrap()["Hoplite"].clone();
        let fields = json["commonTypes"]["Headers"]["attributes"]
            .as_object()
            .unwrap()
            .clone();
        assert_eq!(fields.keys().collect::<Vec<_>>(), ["a", "has", "if", "in", "x-tenant"]);
        assert!(fields.values().all(|field| field["required"] == false), "{fields:?}");
        for action in ["GET", "other"] {
            let mut words = Vec::new();
            attributes(
                &json["commonTypes"],
                "context",
                &json["actions"][action]["appliesTo"]["context"],
                &mut words,
            );
            assert!(words.contains(&"context.hdr.x-tenant".to_owned()), "{words:?}");
        }
        validator(&headers).unwrap();
    }

    /// Adds the dotted names of a record's attributes, and of records within it.
    fn attributes(common: &Value, prefix: &str, kind: &Value, names: &mut Vec<String>) {
        let named = kind["name"].as_str().or(kind["type"].as_str()).unwrap_or_default();
        if let Some(kind) = common.get(named.rsplit("::").next().unwrap_or_default()) {
            return attributes(common, prefix, kind, names);
        }
        for (attribute, kind) in kind["attributes"].as_object().into_iter().flatten() {
            let name = format!("{prefix}.{attribute}");
            attributes(common, &name, kind, names);
            names.push(name);
        }
    }

    /// Every word of a schema: entities, attributes, actions and groups; sorted.
    pub(crate) fn words(schema: &str) -> Vec<String> {
        let (schema, _) = cedar_policy::SchemaFragment::from_cedarschema_str(schema).unwrap();
        let schema = schema.to_json_value().unwrap()["Hoplite"].clone();
        let common = &schema["commonTypes"];
        let mut words = Vec::new();
        for (entity, kind) in schema["entityTypes"].as_object().unwrap() {
            let name = format!("Hoplite::{entity}");
            attributes(common, &name, &kind["shape"], &mut words);
            words.push(name);
        }
        for (action, kind) in schema["actions"].as_object().unwrap() {
            attributes(common, "context", &kind["appliesTo"]["context"], &mut words);
            words.push(action.clone());
        }
        words.sort_unstable();
        words.dedup();
        words
    }

    #[test]
    fn every_word_is_explained() {
        let page = include_str!("../../docs/reference/schema.md");
        let explained: Vec<&str> = page
            .lines()
            .filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`'))
            .collect();
        let words = words(SCHEMA);
        for word in ["Hoplite::Route", "anyHttp", "context.conn.src", "context.seg.s3"] {
            assert!(words.iter().any(|found| found == word), "{word} is not in {words:?}");
        }
        let mut sorted = explained.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, words, "docs/reference/schema.md against hoplite.cedarschema");
    }
}
