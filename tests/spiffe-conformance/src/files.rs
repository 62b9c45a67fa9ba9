//! SVIDs, tokens and authorities of files.

use std::time::SystemTime;

use crate::bundle::{self, Set};
use crate::clause::Id;
use crate::der::{self, Unreadable};
use crate::findings::Findings;
use crate::token::{self, Expected};
use crate::x509::{self, Shown};

/// An X.509-SVID of a file.
#[derive(Debug, Clone)]
pub struct SvidFile {
    /// What it is called in reports.
    pub name: String,
    /// Certificates, leaf first: PEM, or DER one after the other. A private key in PEM may stand beside them.
    pub chain: Vec<u8>,
    /// Its private key, PEM or DER, if it is in another file.
    pub key: Option<Vec<u8>>,
    /// DER certificates that vouch for it.
    pub authorities: Option<Vec<Vec<u8>>>,
}

/// A JWT-SVID of a file.
#[derive(Debug, Clone)]
pub struct JwtFile {
    /// What it is called in reports.
    pub name: String,
    /// The token.
    pub token: String,
    /// What it was made for.
    pub audiences: Vec<String>,
    /// The trust bundle of its subject, as JSON.
    pub bundle: Option<Vec<u8>>,
}

/// A file that cannot be read for what it is to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidFile(String);

impl From<Unreadable> for InvalidFile {
    fn from(why: Unreadable) -> Self {
        Self(why.0)
    }
}

/// The X.509 authorities of a file: PEM, DER one after the other, or a trust bundle in JSON.
///
/// # Errors
/// When it is none of them, or has no authority.
pub fn authorities_of(bytes: &[u8]) -> Result<Vec<Vec<u8>>, InvalidFile> {
    let found = match str::from_utf8(bytes).map(str::trim_start) {
        Ok(text) if text.starts_with('{') => {
            bundle::judge(&mut Findings::default(), "the file", bytes, Set::Bundle, None).x509
        }
        _ => certificates(bytes)?,
    };
    if found.is_empty() {
        return Err(InvalidFile(
            "it has no certificate: write PEM, DER or a trust bundle in JSON".to_owned(),
        ));
    }
    Ok(found)
}

/// Certificates in PEM or DER.
fn certificates(bytes: &[u8]) -> Result<Vec<Vec<u8>>, Unreadable> {
    match str::from_utf8(bytes) {
        Ok(text) if text.contains("-----BEGIN") => der::pem(text, &["CERTIFICATE"]),
        _ => Ok(der::elements(bytes)?.into_iter().map(<[u8]>::to_vec).collect()),
    }
}

pub(crate) fn judge_svid(findings: &mut Findings, svid: &SvidFile, now: SystemTime) {
    let what = svid.name.as_str();
    let read =
        |all: &[Vec<u8>]| -> Result<(), Unreadable> { all.iter().try_for_each(|der| der::certificate(der).map(drop)) };
    let chain = certificates(&svid.chain).and_then(|chain| match chain.is_empty() {
        true => Err(Unreadable("it has no certificate".to_owned())),
        false => read(&chain).map(|()| chain),
    });
    let chain = match chain {
        Ok(chain) => chain,
        Err(why) => {
            findings.fail(Id::X1, format!("{what}: {why}"));
            return;
        }
    };
    let parsed: Vec<_> = chain.iter().filter_map(|der| der::certificate(der).ok()).collect();
    let labels = [
        "PRIVATE KEY",
        "EC PRIVATE KEY",
        "RSA PRIVATE KEY",
        "ENCRYPTED PRIVATE KEY",
    ];
    let pem = |bytes: &[u8]| {
        let text = str::from_utf8(bytes).ok().filter(|text| text.contains("-----BEGIN"))?;
        der::pem(text, &labels).ok().and_then(|mut found| found.pop())
    };
    let beside = svid.key.as_ref().map(|key| pem(key).unwrap_or_else(|| key.clone()));
    if let (Some(key), Some(leaf)) = (beside.or_else(|| pem(&svid.chain)), parsed.first()) {
        match x509::is_key_of(&key, leaf) {
            Ok(()) => findings.pass(Id::W8c),
            Err(why) => findings.fail(Id::W8c, format!("{what}: {why}")),
        }
    }
    let authorities = svid.authorities.as_ref();
    let shown = Shown {
        what,
        chain: parsed,
        authorities: authorities.map(|all| all.iter().filter_map(|der| der::certificate(der).ok()).collect()),
        foreign: Vec::new(),
    };
    x509::judge(findings, &shown, now);
}

pub(crate) fn judge_jwt(findings: &mut Findings, jwt: &JwtFile, now: SystemTime) {
    // Tokens do not say so, but a bundle of a file is as whole as that of an endpoint.
    let keys = jwt.bundle.as_ref().map(|bytes| {
        let what = format!("the bundle beside {}", jwt.name);
        bundle::judge(&mut Findings::default(), &what, bytes, Set::Bundle, None).jwt
    });
    let expected = Expected {
        what: &jwt.name,
        audiences: &jwt.audiences,
        spiffe_id: None,
        keys: keys.as_deref(),
    };
    token::judge(findings, jwt.token.trim(), &expected, now);
}
