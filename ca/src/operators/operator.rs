//! An operator as the CA knows them: roles, and which of their certificates count.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use hoplite_identity::{Leaf, Moment, SpiffeId, TrustDomain};
use serde::{Deserialize, Serialize};

use crate::record::{self, Record};

/// Certificates that count at once: one for each machine somebody works at, and its successor. One more ends the one that ends
/// first.
const CERTIFICATES_MAX: usize = 16;

/// A sign-in is prolonged for at most this long; then a new token is needed.
pub(crate) const PROLONGED_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// The role that nobody can be given: that of the CA's own Unix socket.
pub(crate) const LOCAL: &str = "local";

/// The longest name of a role.
const ROLE_BYTES_MAX: usize = 64;

/// Roles of one operator, and paths.
const ROLES_MAX: usize = 32;

/// Somebody who was given a token to sign in with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Operator {
    pub(crate) name: String,
    /// What the admin policies make of each is theirs.
    pub(crate) roles: BTreeSet<String>,
    /// Prefixes of SPIFFE IDs, as `/ns/pay`.
    pub(crate) paths: BTreeSet<String>,
    pub(crate) banned: bool,
    certificates: Vec<Certificate>,
}

/// A certificate that was given out and not taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Certificate {
    /// Lower-case hex.
    serial: String,
    /// Unix seconds.
    pub(crate) not_after: u64,
    /// When its owner signed in, Unix seconds; those prolonged from it have the same.
    since: u64,
    /// The serial number of the first one of this sign-in.
    session: String,
    /// The identifier of the authority's key that signed it.
    #[serde(default)]
    authority: String,
}

/// Why an operator certificate does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoOperator {
    #[error("this call needs an operator's certificate; sign in with `hoplite login`")]
    NoCertificate,
    #[error("the certificate expired at {not_after}, and the CA's clock says {now}; sign in anew with `hoplite login`")]
    Expired { not_after: Moment, now: Moment },
    #[error("there is no operator `{0}` here: it was removed; ask for a new token")]
    Unknown(String),
    #[error("operator `{0}` is banned; an admin can remove and invite it anew")]
    Banned(String),
    #[error("this certificate of operator `{0}` was signed out or replaced; sign in anew with `hoplite login`")]
    SignedOut(String),
    #[error(
        "this CA did not sign the certificate of `{0}`: another CA of the trust domain did, which is nested here or above"
    )]
    NotOfThisCa(SpiffeId),
    #[error("`{0}` is none of an operator; agents and the CA itself may not call the admin API")]
    Reserved(SpiffeId),
}

/// What an operator cannot be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadRole {
    #[error("`{0}` is not a role; use 1 to {ROLE_BYTES_MAX} of `a-z`, `0-9`, `.`, `_` and `-`")]
    Form(String),
    #[error("the role `{LOCAL}` is that of the CA's own Unix socket and cannot be given; use `admin`")]
    Local,
    #[error("no admin policy speaks of the role `{role}`; those that there are: {known}")]
    NoSuchRole { role: String, known: String },
    #[error("`{path}` is not a path of SPIFFE IDs: {reason}; write one like `/ns/pay`")]
    Path { path: String, reason: String },
    #[error("more than {ROLES_MAX} roles or paths of one operator; use a policy of its own in `admin_policy_dir`")]
    TooMany,
}

// === impl Operator ===

impl Operator {
    /// One that has not signed in.
    pub(crate) fn invited(name: String, roles: BTreeSet<String>, paths: BTreeSet<String>) -> Self {
        Self {
            name,
            roles,
            paths,
            banned: false,
            certificates: Vec::new(),
        }
    }

    /// After it was given other rights, which hold from the next call on.
    pub(crate) fn with(self, roles: BTreeSet<String>, paths: BTreeSet<String>) -> Self {
        Self { roles, paths, ..self }
    }

    /// After it signed in.
    pub(crate) fn signed_in(self, leaf: &Leaf, now: SystemTime) -> Self {
        let session = leaf.serial().to_owned();
        self.given(leaf, record::unix_seconds(now), session, now)
    }

    /// After a certificate was prolonged. The old one counts until its end: the answer may be lost.
    pub(crate) fn prolonged(self, shown: &str, leaf: &Leaf, now: SystemTime) -> Result<Self, NoOperator> {
        let Some(shown) = self.certificate(shown) else {
            return Err(NoOperator::SignedOut(self.name));
        };
        let (since, session) = (shown.since, shown.session.clone());
        Ok(self.given(leaf, since, session, now))
    }

    fn given(mut self, leaf: &Leaf, since: u64, session: String, now: SystemTime) -> Self {
        let now = record::unix_seconds(now);
        self.certificates.retain(|certificate| certificate.not_after > now);
        self.certificates.push(Certificate {
            serial: leaf.serial().to_owned(),
            not_after: record::unix_seconds(leaf.not_after()),
            since,
            session,
            authority: leaf.authority_key().to_owned(),
        });
        while self.certificates.len() > CERTIFICATES_MAX {
            let ends = |(_, certificate): &(usize, &Certificate)| certificate.not_after;
            let first = self.certificates.iter().enumerate().min_by_key(ends);
            match first.map(|(at, _)| at) {
                Some(at) => drop(self.certificates.remove(at)),
                None => break,
            }
        }
        self
    }

    /// After all its sign-ins were ended, on whatever machine.
    pub(crate) fn signed_out_everywhere(self, is_banned: bool) -> Self {
        Self {
            banned: self.banned || is_banned,
            certificates: Vec::new(),
            ..self
        }
    }

    /// After the sign-in of this certificate was ended, wherever it is used.
    pub(crate) fn signed_out(mut self, shown: &str) -> Self {
        let session = self.certificate(shown).map(|certificate| certificate.session.clone());
        self.certificates
            .retain(|certificate| Some(&certificate.session) != session.as_ref());
        self
    }

    /// After an admin banned it: its certificates count no more, even if it is let in again.
    pub(crate) fn banned(self) -> Self {
        Self {
            banned: true,
            certificates: Vec::new(),
            ..self
        }
    }

    /// Until when a certificate given now for this one may last; `None` when the sign-in is too old.
    pub(crate) fn prolongable(&self, shown: &str, now: SystemTime) -> Option<Duration> {
        let since = record::from_unix_seconds(self.certificate(shown)?.since);
        let left = (since + PROLONGED_MAX).duration_since(now).ok()?;
        (!left.is_zero()).then_some(left)
    }

    /// The certificates that have not ended.
    pub(crate) fn signed_in_at(&self, now: SystemTime) -> usize {
        let now = record::unix_seconds(now);
        let live = self
            .certificates
            .iter()
            .filter(|certificate| certificate.not_after > now);
        let sessions: BTreeSet<&String> = live.map(|certificate| &certificate.session).collect();
        sessions.len()
    }

    /// Whether the key with this identifier signed one that has not ended, and that nothing newer takes the place of.
    pub(crate) fn is_under(&self, authority: &str, now: SystemTime) -> bool {
        let now = record::unix_seconds(now);
        let live = self
            .certificates
            .iter()
            .filter(|certificate| certificate.not_after > now);
        // They stand in the order in which they were given: the newest of each sign-in is its owner's.
        let newest: BTreeMap<&String, &Certificate> =
            live.map(|certificate| (&certificate.session, certificate)).collect();
        newest.values().any(|certificate| certificate.authority == authority)
    }

    fn certificate(&self, serial: &str) -> Option<&Certificate> {
        self.certificates
            .iter()
            .find(|certificate| certificate.serial == serial)
    }
}

impl Record for Operator {
    /// Their names are their names.
    const PREFIX: &'static str = "operator/";
}

/// Whether the owner of a verified certificate may speak as an operator. Asked at every call: a handshake says nothing of what
/// happened since.
pub(crate) fn authorize<'a, T: AsRef<Operator>>(
    operator: Option<&'a T>,
    shown: &Leaf,
    now: SystemTime,
) -> Result<&'a T, NoOperator> {
    let id = shown.spiffe_id();
    let name = id.operator().ok_or_else(|| NoOperator::Reserved(id.clone()))?;
    if now >= shown.not_after() {
        return Err(NoOperator::Expired {
            not_after: shown.not_after().into(),
            now: now.into(),
        });
    }
    let found = operator.ok_or_else(|| NoOperator::Unknown(name.to_owned()))?;
    let operator = found.as_ref();
    if operator.banned {
        return Err(NoOperator::Banned(name.to_owned()));
    }
    match operator.certificate(shown.serial()) {
        Some(_) => Ok(found),
        None => Err(NoOperator::SignedOut(name.to_owned())),
    }
}

/// Roles and paths as an admin wrote them.
pub(crate) fn parse(
    roles: Vec<String>,
    paths: Vec<String>,
    known: &[String],
    trust_domain: &TrustDomain,
) -> Result<(BTreeSet<String>, BTreeSet<String>), BadRole> {
    if roles.len() > ROLES_MAX || paths.len() > ROLES_MAX {
        return Err(BadRole::TooMany);
    }
    for role in &roles {
        check_role(role, known)?;
    }
    for path in &paths {
        let bad = |reason: String| BadRole::Path {
            path: path.escape_debug().to_string(),
            reason,
        };
        if path.is_empty() {
            return Err(bad("it is empty".to_owned()));
        }
        let id = trust_domain.member(path).map_err(|error| bad(error.to_string()))?;
        if id.is_reserved() {
            return Err(bad("it is kept for Hoplite's own parts".to_owned()));
        }
    }
    Ok((roles.into_iter().collect(), paths.into_iter().collect()))
}

fn check_role(role: &str, known: &[String]) -> Result<(), BadRole> {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-');
    if role.is_empty() || role.len() > ROLE_BYTES_MAX || !role.chars().all(is_plain) {
        let start: String = role.chars().take(ROLE_BYTES_MAX).collect();
        return Err(BadRole::Form(start.escape_debug().to_string()));
    }
    if role == LOCAL {
        return Err(BadRole::Local);
    }
    // Of a slip of the pen nobody would learn before the operator is refused.
    if !known.iter().any(|known| known == role) {
        let known: Vec<&str> = known
            .iter()
            .map(String::as_str)
            .filter(|known| *known != LOCAL)
            .collect();
        return Err(BadRole::NoSuchRole {
            role: role.to_owned(),
            known: match known.is_empty() {
                true => "none".to_owned(),
                false => format!("`{}`", known.join("`, `")),
            },
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::UNIX_EPOCH;

    use crate::authority::x509::{Authority, Serial};
    use crate::issuance::{ReadBack, SubjectKey, Template, mint};

    const DAY: Duration = Duration::from_secs(86_400);

    fn start() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn domain() -> TrustDomain {
        TrustDomain::parse("prod.example").unwrap()
    }

    fn leaf(path: &str, now: SystemTime) -> Leaf {
        let authority = Authority::ephemeral(&domain(), start(), 90 * DAY);
        let template = Template {
            spiffe_id: &domain().member(path).unwrap(),
            dns_names: &[],
            common_name: None,
            ttl: Duration::from_secs(3600),
        };
        let key = SubjectKey::of_pair(&rcgen::KeyPair::generate().unwrap());
        mint(
            &authority,
            &template,
            &key,
            Serial::random().unwrap(),
            now,
            ReadBack::Whole,
        )
        .unwrap()
        .leaf
    }

    fn ann() -> Operator {
        Operator::invited("ann".into(), BTreeSet::new(), BTreeSet::new())
    }

    fn may(operator: &Operator, leaf: &Leaf, now: SystemTime) -> Result<(), NoOperator> {
        authorize(Some(&Arc::new(operator.clone())), leaf, now).map(drop)
    }

    #[test]
    fn whose_certificate_counts() {
        let now = start();
        let (first, second) = (leaf("/hoplite/operator/ann", now), leaf("/hoplite/operator/ann", now));
        let operator = ann().signed_in(&first, now);
        assert_eq!(may(&operator, &first, now), Ok(()));
        assert_eq!(may(&operator, &second, now), Err(NoOperator::SignedOut("ann".into())));
        assert_eq!(
            authorize::<Arc<Operator>>(None, &first, now).unwrap_err(),
            NoOperator::Unknown("ann".into())
        );
        assert!(matches!(
            may(&operator, &first, first.not_after()),
            Err(NoOperator::Expired { .. })
        ));
        let banned = operator.clone().banned();
        assert_eq!(may(&banned, &first, now), Err(NoOperator::Banned("ann".into())));
        let back = Operator {
            banned: false,
            ..banned
        };
        assert_eq!(may(&back, &first, now), Err(NoOperator::SignedOut("ann".into())));
        for path in ["/hoplite/agent/ann", "/hoplite/ca", "/hoplite/operator/ann/x", "/ann"] {
            let other = may(&operator, &leaf(path, now), now);
            assert!(matches!(other, Err(NoOperator::Reserved(_))), "{path}: {other:?}");
        }
        let both = operator.signed_in(&second, now).signed_out(first.serial());
        assert_eq!(may(&both, &first, now), Err(NoOperator::SignedOut("ann".into())));
        assert_eq!(may(&both, &second, now), Ok(()), "another machine's");
    }

    #[test]
    fn a_sign_in_is_prolonged_for_a_while_and_signed_out_as_a_whole() {
        let now = start();
        let first = leaf("/hoplite/operator/ann", now);
        let operator = ann().signed_in(&first, now);
        let later = now + Duration::from_secs(1800);
        let second = leaf("/hoplite/operator/ann", later);
        let operator = operator.prolonged(first.serial(), &second, later).unwrap();
        assert_eq!(
            (may(&operator, &first, later), may(&operator, &second, later)),
            (Ok(()), Ok(()))
        );
        assert_eq!(operator.signed_in_at(later), 1, "one sign-in");
        assert_eq!(
            operator.prolongable(second.serial(), later),
            Some(PROLONGED_MAX - Duration::from_secs(1800))
        );
        assert_eq!(operator.prolongable(second.serial(), now + PROLONGED_MAX), None);
        assert_eq!(operator.prolongable("none", later), None);
        assert!(operator.clone().prolonged("none", &second, later).is_err());
        let out = operator.signed_out(second.serial());
        assert!(may(&out, &first, later).is_err() && may(&out, &second, later).is_err());
    }

    #[test]
    fn so_many_certificates_and_no_more() {
        let now = start();
        let leaves: Vec<Leaf> = (0..=CERTIFICATES_MAX)
            .map(|number| leaf("/hoplite/operator/ann", now + Duration::from_secs(number as u64)))
            .collect();
        let operator = leaves
            .iter()
            .fold(ann(), |operator, leaf| operator.signed_in(leaf, now));
        assert!(may(&operator, &leaves[0], now).is_err());
        assert!(leaves.iter().skip(1).all(|leaf| may(&operator, leaf, now).is_ok()));
    }

    #[test]
    fn roles_and_paths() {
        let known = ["admin".to_owned(), "entries".to_owned(), LOCAL.to_owned()];
        let check = |role: &str, path: &str, expected: &str| {
            let error = parse(vec![role.into()], vec![path.into()], &known, &domain()).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        };
        assert!(parse(vec!["entries".into()], vec!["/ns/pay".into()], &known, &domain()).is_ok());
        check("Admin", "/a", "is not a role");
        check("", "/a", "is not a role");
        check("local", "/a", "cannot be given");
        check("adnim", "/a", "`admin`, `entries`");
        for path in ["", "a", "/", "/a/", "/a/../b", "/hoplite", "/hoplite/agent"] {
            check("admin", path, "is not a path of SPIFFE IDs");
        }
    }
}
