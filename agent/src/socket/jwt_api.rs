//! The Workload API's calls for JWT-SVIDs (W-11): a workload's tokens, the keys that vouch for others', and whether a token is
//! believed.

use std::collections::HashMap;
use std::sync::Arc;

use hoplite_host::clock;
use hoplite_identity::SpiffeId;
use hoplite_identity::jwt::{self, JwtClaims, TOKEN_BYTES_MAX};
use hoplite_wire::workload::{
    JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest, ValidateJwtsvidResponse,
};
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use ring::digest::{Context, SHA256};
use tonic::Status;

use crate::socket::session::{Entitlement, Identity, Session};
use crate::supply::named::NamedEntry;
use crate::tokens::{Asked, Tokens};

/// How deep claims may lie in each other: readers of protobuf stop at a hundred messages, and each level is three.
const DEPTH_MAX: usize = 24;

/// The caller's tokens: of the identity that it names, or of all that it has.
pub(super) async fn fetch(
    session: &mut Session,
    tokens: &Tokens,
    request: JwtsvidRequest,
) -> Result<JwtsvidResponse, Status> {
    let entitlement = session.entitlement().await?;
    check_fetch(&request)?;
    let named = match request.spiffe_id.as_str() {
        "" => None,
        text => Some(
            SpiffeId::parse(text)
                .map_err(|error| Status::invalid_argument(format!("`spiffe_id` is no SPIFFE ID: {error}")))?,
        ),
    };
    let fits = |identity: &&Identity| named.as_ref().is_none_or(|named| identity.svid.spiffe_id() == named);
    let identities: Vec<&Identity> = entitlement.identities.iter().filter(fits).collect();
    let Some(first) = identities.first() else {
        let named = named.map(|named| named.to_string()).unwrap_or_default();
        return Err(Status::permission_denied(format!(
            "no identity issued: this process does not have the identity `{named}`; leave `spiffe_id` out for those that it has"
        )));
    };
    let domain = first.svid.spiffe_id().trust_domain();
    let bundle = entitlement.bundle(domain).ok_or_else(|| {
        Status::unavailable(format!(
            "the trust bundle of `{domain}` is not known yet; try again soon"
        ))
    })?;
    // Of the audience the claims know what can be: asked of them before the CA is.
    let now = clock::now();
    JwtClaims::new(first.svid.spiffe_id().clone(), request.audience.clone(), now, now)
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    let mut audience = request.audience;
    audience.sort();
    audience.dedup();
    let asked = Asked {
        entries: identities
            .iter()
            .map(|identity| Arc::<NamedEntry>::clone(&identity.entry))
            .collect(),
        audience: &audience,
        bundle,
        uid: session.caller().uid,
    };
    let tokens = tokens.get(&asked).await?;
    let svids = identities.iter().zip(tokens).map(|(identity, token)| Jwtsvid {
        spiffe_id: identity.svid.spiffe_id().to_string(),
        svid: token.text.to_string(),
        hint: identity.hint.clone(),
    });
    Ok(JwtsvidResponse { svids: svids.collect() })
}

/// W-12: the own trust domain is among them, whatever it has.
pub(super) fn bundles(entitlement: &Entitlement) -> JwtBundlesResponse {
    let bundles = entitlement.bundles().map(|bundle| {
        let jwks = bundle.jwt().to_jwks();
        (bundle.trust_domain().id().to_string(), jwks.into_bytes())
    });
    JwtBundlesResponse {
        bundles: bundles.collect::<HashMap<_, _>>(),
    }
}

/// Equal when, and only when, a caller would be told the same bundles.
pub(super) fn bundles_told(entitlement: &Entitlement) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    for bundle in entitlement.bundles() {
        for part in [bundle.trust_domain().as_str(), &bundle.jwt().to_jwks()] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part.as_bytes());
        }
    }
    let mut bytes = [0; 32];
    bytes.copy_from_slice(context.finish().as_ref());
    bytes
}

/// Whether a token is believed, and what it says then. Only of trust domains that the caller trusts.
pub(super) fn validate(
    entitlement: &Entitlement,
    request: &ValidateJwtsvidRequest,
) -> Result<ValidateJwtsvidResponse, Status> {
    let bad = |reason: String| Status::invalid_argument(format!("the JWT-SVID is not believed: {reason}"));
    let authorities = |domain: &_| entitlement.bundle(domain).map(|bundle| bundle.jwt());
    let svid = jwt::verify(&request.svid, &request.audience, authorities, clock::now())
        .map_err(|rejected| bad(rejected.to_string()))?;
    let mut fields = claims(svid.claims(), 0).ok_or_else(|| bad("its claims lie too deep in each other".to_owned()))?;
    // One audience or several, it is a list: who reads it need not know both forms.
    let audience = svid
        .audience()
        .iter()
        .map(|name| value(Kind::StringValue(name.clone())));
    let audience = ListValue {
        values: audience.collect(),
    };
    fields.fields.insert("aud".to_owned(), value(Kind::ListValue(audience)));
    Ok(ValidateJwtsvidResponse {
        spiffe_id: svid.spiffe_id().to_string(),
        claims: Some(fields),
    })
}

/// What cannot be asked.
pub(super) fn check_validation(request: &ValidateJwtsvidRequest) -> Result<(), Status> {
    if request.audience.is_empty() {
        return Err(Status::invalid_argument(
            "`audience` is empty; name the audience that the token must be meant for",
        ));
    }
    match request.svid.len() {
        0 => Err(Status::invalid_argument("`svid` is empty; send the token")),
        length if length > TOKEN_BYTES_MAX => Err(Status::invalid_argument(format!(
            "`svid` is longer than {TOKEN_BYTES_MAX} bytes; no JWT-SVID is"
        ))),
        _ => Ok(()),
    }
}

/// What cannot be asked.
fn check_fetch(request: &JwtsvidRequest) -> Result<(), Status> {
    match request.audience.is_empty() {
        true => Err(Status::invalid_argument(
            "`audience` is empty; name who will be shown the token",
        )),
        false => Ok(()),
    }
}

fn value(kind: Kind) -> Value {
    Value { kind: Some(kind) }
}

fn claims(members: &serde_json::Map<String, serde_json::Value>, depth: usize) -> Option<Struct> {
    let fields = members
        .iter()
        .map(|(name, member)| Some((name.clone(), claim(member, depth)?)));
    Some(Struct {
        fields: fields.collect::<Option<_>>()?,
    })
}

/// None for what lies too deep.
fn claim(member: &serde_json::Value, depth: usize) -> Option<Value> {
    if depth > DEPTH_MAX {
        return None;
    }
    Some(value(match member {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(it) => Kind::BoolValue(*it),
        serde_json::Value::Number(number) => Kind::NumberValue(number.as_f64()?),
        serde_json::Value::String(text) => Kind::StringValue(text.clone()),
        serde_json::Value::Array(list) => Kind::ListValue(ListValue {
            values: list
                .iter()
                .map(|member| claim(member, depth + 1))
                .collect::<Option<_>>()?,
        }),
        serde_json::Value::Object(members) => Kind::StructValue(claims(members, depth + 1)?),
    }))
}
