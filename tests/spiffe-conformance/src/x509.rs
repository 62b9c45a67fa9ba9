//! X.509-SVIDs judged: the leaf, the authorities above it, and the way between them.

use std::time::SystemTime;

use x509_parser::prelude::{GeneralName, ParsedExtension, X509Certificate};

use crate::clause::Id;
use crate::der::{self, Unreadable};
use crate::findings::Findings;
use crate::path::{self, NoPath};
use crate::spiffe_id;

/// A chain, leaf first, and what is known of who vouches for it.
pub(crate) struct Shown<'a> {
    /// What it is called in reports.
    pub(crate) what: &'a str,
    pub(crate) chain: Vec<X509Certificate<'a>>,
    /// Of its own trust domain; `None` if nobody said who they are.
    pub(crate) authorities: Option<Vec<X509Certificate<'a>>>,
    /// Authorities of other trust domains, with their names.
    pub(crate) foreign: Vec<(&'a str, Vec<X509Certificate<'a>>)>,
}

/// The URIs among a certificate's alternative names.
pub(crate) fn uris<'a>(certificate: &'a X509Certificate<'_>) -> Result<Vec<&'a str>, Unreadable> {
    let names = certificate.subject_alternative_name();
    let names = names.map_err(|error| Unreadable(format!("its alternative names cannot be read: {error}")))?;
    let uri = |name: &'a GeneralName<'_>| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    };
    Ok(names
        .map(|names| names.value.general_names.iter().filter_map(uri).collect())
        .unwrap_or_default())
}

/// The one SPIFFE ID of a certificate.
pub(crate) fn spiffe_id<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a str> {
    match uris(certificate).ok()?.as_slice() {
        [uri] if uri.starts_with("spiffe://") => Some(uri),
        _ => None,
    }
}

/// Judges a chain. Gives the SPIFFE ID of its leaf.
pub(crate) fn judge(findings: &mut Findings, shown: &Shown<'_>, now: SystemTime) -> Option<String> {
    let leaf = shown.chain.first()?;
    let id = judge_leaf(findings, shown.what, leaf);
    let trust_domain = id.as_deref().and_then(spiffe_id::parts).map(|parts| parts.trust_domain);
    let above = shown
        .chain
        .iter()
        .skip(1)
        .filter(|certificate| is_authority(certificate));
    for authority in above.chain(shown.authorities.iter().flatten()) {
        judge_authority(findings, shown.what, authority, trust_domain);
    }
    judge_path(findings, shown, now);
    judge_constraints(findings, shown, trust_domain);
    id
}

/// Judges what stands in a leaf.
fn judge_leaf(findings: &mut Findings, what: &str, leaf: &X509Certificate<'_>) -> Option<String> {
    let uris = uris(leaf);
    findings.check(Id::X1, matches!(uris.as_deref(), Ok([_])), || match &uris {
        Ok(uris) => format!("{what} has {} URI names", uris.len()),
        Err(error) => format!("{what}: {error}"),
    });
    let id = uris.ok().and_then(|uris| uris.first().map(|uri| (*uri).to_owned()));
    if let Some(id) = &id {
        spiffe_id::judge(findings, id);
        let has_path = spiffe_id::parts(id).is_some_and(|parts| parts.path.len() > 1);
        findings.check(Id::X2, has_path, || format!("{what}: `{id}` has no path"));
    }
    match leaf.subject_alternative_name() {
        Ok(Some(names)) if leaf.subject().iter().next().is_none() => {
            findings.check(Id::X3, names.critical, || {
                format!("{what} has no subject, and its names are not critical")
            });
        }
        Ok(Some(_)) => findings.pass(Id::X3),
        _ => {}
    }
    match leaf.key_usage() {
        Ok(Some(usage)) => {
            findings.check(Id::X4a, usage.critical, || {
                format!("the key usage of {what} is not critical")
            });
            findings.check(Id::X4b, usage.value.digital_signature(), || {
                format!("{what} may not make digital signatures: {}", usage.value)
            });
            findings.check(Id::X4c, !usage.value.key_cert_sign() && !usage.value.crl_sign(), || {
                format!("{what} may sign certificates or revocation lists: {}", usage.value)
            });
        }
        Ok(None) => findings.fail(Id::X4a, format!("{what} has no key usage")),
        Err(error) => findings.fail(Id::X4a, format!("the key usage of {what} cannot be read: {error}")),
    }
    match leaf.basic_constraints() {
        Ok(constraints) => {
            let is_ca = constraints.is_some_and(|constraints| constraints.value.ca);
            findings.check(Id::X5a, !is_ca, || format!("{what} is a CA"));
        }
        Err(error) => findings.fail(
            Id::X5a,
            format!("the basic constraints of {what} cannot be read: {error}"),
        ),
    }
    match leaf.extended_key_usage() {
        Ok(Some(usage)) => {
            findings.pass(Id::X6a);
            findings.check(Id::X6b, usage.value.server_auth && usage.value.client_auth, || {
                format!("the extended key usage of {what} is not good for both servers and clients")
            });
        }
        Ok(None) => findings.fail(Id::X6a, format!("{what} has no extended key usage")),
        Err(error) => findings.fail(
            Id::X6b,
            format!("the extended key usage of {what} cannot be read: {error}"),
        ),
    }
    id
}

/// Judges what stands in a certificate that is to sign others.
pub(crate) fn judge_authority(
    findings: &mut Findings,
    what: &str,
    authority: &X509Certificate<'_>,
    trust_domain: Option<&str>,
) {
    let name = authority.subject().to_string();
    let id = spiffe_id(authority);
    match id.and_then(spiffe_id::parts) {
        Some(parts) => {
            findings.check(Id::X7b, parts.path.is_empty() || parts.path == "/", || {
                format!(
                    "the authority `{name}` of {what} has a SPIFFE ID with a path, `{}`",
                    parts.path
                )
            });
            if let Some(trust_domain) = trust_domain {
                findings.check(Id::X7a, parts.trust_domain == trust_domain, || {
                    format!(
                        "the authority `{name}` of {what} is of `{}`, not of `{trust_domain}`",
                        parts.trust_domain
                    )
                });
            }
        }
        None => findings.fail(Id::X7a, format!("the authority `{name}` of {what} has no SPIFFE ID")),
    }
    match authority.key_usage() {
        Ok(Some(usage)) => {
            findings.check(Id::X4a, usage.critical, || {
                format!("the key usage of `{name}` is not critical")
            });
            findings.check(Id::X4d, usage.value.key_cert_sign(), || {
                format!(
                    "the authority `{name}` of {what} may not sign certificates: {}",
                    usage.value
                )
            });
        }
        // Whoever is no SVID need not have one.
        Ok(None) if id.is_some() => findings.fail(Id::X4a, format!("the authority `{name}` has no key usage")),
        Ok(None) => {}
        Err(error) => findings.fail(Id::X4a, format!("the key usage of `{name}` cannot be read: {error}")),
    }
    let constraints = authority.basic_constraints().ok().flatten();
    findings.check(
        Id::X5b,
        constraints.is_some_and(|constraints| constraints.value.ca),
        || format!("the authority `{name}` of {what} is no CA"),
    );
}

fn judge_path(findings: &mut Findings, shown: &Shown<'_>, now: SystemTime) {
    let what = shown.what;
    for certificate in &shown.chain {
        match path::is_valid(certificate, now) {
            Ok(()) => findings.pass(Id::X9b),
            Err(why) => findings.fail(Id::X9b, format!("{what}: {why}")),
        }
    }
    match shown
        .authorities
        .as_ref()
        .map(|authorities| path::find(&shown.chain, authorities))
    {
        None => findings.skip(
            Id::X9a,
            format!("nobody said who vouches for {what}: name a file with `--authorities`"),
        ),
        Some(Ok(())) => findings.pass(Id::X9a),
        Some(Err(NoPath::Unknown(why))) => findings.skip(Id::X9a, format!("{what}: {why}")),
        Some(Err(NoPath::Broken(why))) => findings.fail(Id::X9a, format!("{what}: {why}")),
    }
    if shown.foreign.is_empty() {
        findings.not_applicable(Id::X9c, "there is no bundle of another trust domain");
    }
    for (name, authorities) in &shown.foreign {
        findings.check(Id::X9c, path::find(&shown.chain, authorities).is_err(), || {
            format!("the bundle of `{name}` vouches for {what} too")
        });
    }
}

fn judge_constraints(findings: &mut Findings, shown: &Shown<'_>, trust_domain: Option<&str>) {
    let authorities = shown.chain.iter().skip(1).chain(shown.authorities.iter().flatten());
    let mut is_constrained = false;
    for authority in authorities {
        let (Some((permitted, excluded)), Some(host)) = (path::uri_constraints(authority), trust_domain) else {
            continue;
        };
        is_constrained = true;
        let is_permitted = permitted.is_empty() || permitted.iter().any(|name| path::is_within(host, name));
        let is_excluded = excluded.iter().any(|name| path::is_within(host, name));
        findings.check(Id::X8, is_permitted && !is_excluded, || {
            format!("`{}` does not permit the trust domain `{host}`", authority.subject())
        });
    }
    if !is_constrained {
        findings.not_applicable(Id::X8, "no authority constrains URI names");
    }
}

/// Whether a certificate beside a leaf is to vouch for others: fillers that are not are no concern of ours.
fn is_authority(certificate: &X509Certificate<'_>) -> bool {
    let constraints = certificate.basic_constraints().ok().flatten();
    constraints.is_some_and(|constraints| constraints.value.ca)
        || certificate.extensions().iter().any(|extension| {
            matches!(extension.parsed_extension(), ParsedExtension::KeyUsage(usage) if usage.key_cert_sign())
        })
}

/// Whether a private key is unencrypted PKCS#8 and the leaf's own.
pub(crate) fn is_key_of(key: &[u8], leaf: &X509Certificate<'_>) -> Result<(), Unreadable> {
    der::elements(key).map_err(|why| Unreadable(format!("the private key is no PKCS#8 in DER: {why}")))?;
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.to_vec()).into();
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).map_err(|error| {
        Unreadable(format!(
            "the private key is no unencrypted PKCS#8 of a known kind: {error}"
        ))
    })?;
    match key.public_key() {
        Some(public) if public.as_ref() == leaf.public_key().raw => Ok(()),
        _ => Err(Unreadable(
            "the private key is another one than the certificate's".to_owned(),
        )),
    }
}
