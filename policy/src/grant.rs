//! The grant: access for a few hours in an emergency, signed by two people, that no forbid yields to.
//!
//! It rides beside a bundle and becomes one more permit, so what a forbid refuses stays refused. Its times are conditions
//! of that permit: it begins and ends by itself, whether or not anybody can be reached.

use crate::bundle::remedy;
use crate::calendar::{LAST_SECOND, instant, rfc3339, seconds};
use crate::schema::{VOCABULARY, uid};
use crate::source::Source;
use hoplite_identity::{InvalidSpiffeId, ServiceName, SpiffeId, TrustDomain};
use hoplite_seal::{Envelope, Hash, Kind, NotSigned, SealBroken, SigningKey, TrustedSigners, cbor};
use minicbor::{Decode, Encode};
use std::time::{Duration, SystemTime};

/// The longest grant, from when it is written: a working day. What is needed for longer is a policy.
pub const GRANT_MAX: Duration = Duration::from_secs(8 * 3600);
/// The longest encoded grant: its texts at their longest, and eight signatures.
pub const GRANT_BYTES_MAX: usize = 8 * 1024;

/// What the `@id`s of grants' permits begin with.
pub const GRANT_IDS: &str = "break-glass/";

/// How far the clock of whoever wrote a grant may be ahead.
const CLOCKS_DIFFER: Duration = Duration::from_secs(300);

const KIND: Kind = Kind::new("hoplite policy grant v1");
const FORMAT: u32 = 1;
/// One person's word opens no glass.
const SIGNERS_NEEDED: usize = 2;
const WORD_BYTES_MAX: usize = 64;
const REASON_BYTES_MAX: usize = 512;

/// To whom a grant gives access.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum GrantScope {
    /// One workload, by its whole SPIFFE ID.
    #[n(0)]
    Workload(#[n(0)] String),
    /// Every workload at or below this prefix: the SPIFFE ID without its scheme, `prod.example/ns/pay`.
    #[n(1)]
    Path(#[n(0)] String),
}

/// What two people decide. The times are in seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct GrantDraft {
    #[n(0)]
    format: u32,
    /// The trust domain it is for.
    #[n(1)]
    pub trust_domain: String,
    /// Its name, `[a-z0-9-]{1,64}`; the permit's `@id` is `break-glass/<id>`.
    #[n(2)]
    pub id: String,
    /// Where the emergency is written down: `INC-4711`.
    #[n(3)]
    pub ticket: String,
    /// Why, in one line.
    #[n(4)]
    pub reason: String,
    /// To whom.
    #[n(5)]
    pub principal: GrantScope,
    /// The service, and all its routes.
    #[n(6)]
    #[cbor(with = "service_name")]
    pub service: ServiceName,
    /// From when.
    #[n(7)]
    pub not_before: u64,
    /// Until just before when.
    #[n(8)]
    pub until: u64,
    /// When it was written.
    #[n(9)]
    pub created: u64,
}

/// A grant that two trusted people signed. Made only by [`Grant::open`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    draft: GrantDraft,
    hash: Hash,
    signed_by: Vec<String>,
}

/// Why a grant is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GrantRefused {
    /// Its size, form or signatures.
    #[error("the grant is refused: {0}; {remedy}", remedy = remedy(.0))]
    Seal(#[from] SealBroken),
    /// Only one person signed.
    #[error("the grant is refused: only `{0}` signed it; a second trusted person must sign it too")]
    OneSigner(String),
    /// It is for somebody else.
    #[error("the grant is refused: it is for the trust domain `{got}`, and this is `{own}`")]
    WrongTrustDomain {
        /// This one.
        own: String,
        /// Its own.
        got: String,
    },
    /// It was written in the future.
    #[error(
        "the grant is refused: it says that it was written at {at}, which is yet to come; set the clocks right, and make a new one",
        at = rfc3339(*.0)
    )]
    NotYetWritten(u64),
    /// It is over.
    #[error("the grant is refused: it ended at {at}; make a new one if it is still needed", at = rfc3339(*.0))]
    Expired(u64),
    /// It asks for what no grant gives.
    #[error("the grant is refused: {0}")]
    Unusable(#[from] BadGrant),
    /// The key cannot sign.
    #[error("the grant is refused: {0}")]
    NotSigned(#[from] NotSigned),
}

/// What of a grant cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadGrant {
    /// Its form is another.
    #[error("its format {0} is not {FORMAT}; upgrade this program first")]
    Format(u32),
    /// Its trust domain is not a valid name.
    #[error(transparent)]
    TrustDomain(InvalidSpiffeId),
    /// Its name is not a valid name of a grant.
    #[error("`{0}` is not a grant's id; use 1 to 64 of a-z, 0-9 and `-`")]
    Id(String),
    /// Nobody could find its ticket.
    #[error("`{0}` is not a ticket; use 1 to 64 letters, digits, `.`, `_`, `#`, `/` and `-`")]
    Ticket(String),
    /// Its reason cannot be shown in one line.
    #[error("the reason is empty, longer than {REASON_BYTES_MAX} bytes or has control characters; write one line")]
    Reason,
    /// It is to nobody.
    #[error("the principal cannot be used: {0}")]
    Principal(#[from] InvalidSpiffeId),
    /// It is to everybody.
    #[error("`{0}` is a whole trust domain; grant access to a workload or a path within it")]
    WholeTrustDomain(String),
    /// It is too long, or ends before it begins.
    #[error(
        "a grant ends after it begins, and at most {hours} hours after it was written; choose another end",
        hours = GRANT_MAX.as_secs() / 3600
    )]
    End,
}

/// A service name in CBOR: its text.
mod service_name {
    use hoplite_identity::ServiceName;
    use minicbor::decode::{self, Decoder};
    use minicbor::encode::{self, Encoder, Write};

    pub(super) fn encode<C, W: Write>(
        name: &ServiceName,
        to: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        to.str(name.as_str()).map(drop)
    }

    pub(super) fn decode<C>(from: &mut Decoder<'_>, _: &mut C) -> Result<ServiceName, decode::Error> {
        ServiceName::parse(from.str()?).map_err(decode::Error::message)
    }
}

// === impl GrantDraft ===

impl GrantDraft {
    /// A grant that nobody signed yet.
    ///
    /// # Errors
    /// A text that cannot be used, or a time longer than [`GRANT_MAX`].
    #[expect(clippy::too_many_arguments, reason = "each is one thing two people must agree on")]
    pub fn new(
        trust_domain: &TrustDomain,
        id: &str,
        ticket: &str,
        reason: &str,
        principal: GrantScope,
        service: &ServiceName,
        (not_before, until): (SystemTime, SystemTime),
        created: SystemTime,
    ) -> Result<Self, GrantRefused> {
        let draft = Self {
            format: FORMAT,
            trust_domain: trust_domain.as_str().to_owned(),
            id: id.to_owned(),
            ticket: ticket.to_owned(),
            reason: reason.to_owned(),
            principal,
            service: service.clone(),
            not_before: seconds(not_before),
            until: seconds(until),
            created: seconds(created),
        };
        draft.check()?;
        Ok(draft)
    }

    /// The grant with one signature. Another person adds theirs with [`GrantDraft::sign_too`].
    ///
    /// # Errors
    /// The key cannot sign.
    pub fn sign(&self, key: &SigningKey) -> Result<Vec<u8>, NotSigned> {
        let mut envelope = Envelope::new(KIND, cbor::encode(self), []);
        envelope.sign(key)?;
        Ok(envelope.encode())
    }

    /// What is in a grant that may still lack signatures, for the second person to read before they sign.
    ///
    /// # Errors
    /// It is not whole, or asks for what no grant gives.
    pub fn danger_read_unverified(bytes: &[u8]) -> Result<(Self, Vec<String>), GrantRefused> {
        let envelope = Envelope::decode(KIND, bytes, GRANT_BYTES_MAX)?;
        let signed_by = envelope.signed_by().map(str::to_owned).collect();
        Ok((Self::read(&envelope)?, signed_by))
    }

    /// A grant with one more signature.
    ///
    /// # Errors
    /// It is no grant, or the key cannot sign.
    pub fn sign_too(bytes: &[u8], key: &SigningKey) -> Result<Vec<u8>, GrantRefused> {
        let mut envelope = Envelope::decode(KIND, bytes, GRANT_BYTES_MAX)?;
        Self::read(&envelope)?;
        envelope.sign(key)?;
        Ok(envelope.encode())
    }

    fn read(envelope: &Envelope) -> Result<Self, GrantRefused> {
        let malformed = |why: String| GrantRefused::Seal(SealBroken::Malformed(why));
        if envelope.blobs().len() > 0 {
            return Err(malformed("a grant has no files".to_owned()));
        }
        let draft: Self = cbor::decode(envelope.body()).map_err(|why| malformed(why.to_string()))?;
        draft.check()?;
        Ok(draft)
    }

    fn check(&self) -> Result<(), BadGrant> {
        if self.format != FORMAT {
            return Err(BadGrant::Format(self.format));
        }
        TrustDomain::parse(&self.trust_domain).map_err(BadGrant::TrustDomain)?;
        let sized = |text: &str| (1..=WORD_BYTES_MAX).contains(&text.len());
        let shown = |text: &str| text.escape_debug().take(WORD_BYTES_MAX).collect();
        let id = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if !sized(&self.id) || !self.id.bytes().all(id) {
            return Err(BadGrant::Id(shown(&self.id)));
        }
        let ticket = |b: u8| b.is_ascii_alphanumeric() || b"._#/-".contains(&b);
        if !sized(&self.ticket) || !self.ticket.bytes().all(ticket) {
            return Err(BadGrant::Ticket(shown(&self.ticket)));
        }
        if self.reason.trim().is_empty()
            || self.reason.len() > REASON_BYTES_MAX
            || self.reason.chars().any(char::is_control)
        {
            return Err(BadGrant::Reason);
        }
        let (text, id) = match &self.principal {
            GrantScope::Workload(text) => (text, SpiffeId::parse(text)),
            GrantScope::Path(text) => (text, SpiffeId::parse(&format!("spiffe://{text}"))),
        };
        if id?.is_trust_domain() {
            return Err(BadGrant::WholeTrustDomain(text.clone()));
        }
        // Counted from the earlier of the two, so that no grant is kept in a drawer for another day.
        let first = self.not_before.min(self.created);
        let length = self.until.saturating_sub(first);
        if self.until <= self.not_before.max(self.created) || length > GRANT_MAX.as_secs() || self.until > LAST_SECOND {
            return Err(BadGrant::End);
        }
        Ok(())
    }
}

// === impl Grant ===

impl Grant {
    /// Verifies a grant that came from somewhere. One that has yet to begin is accepted.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn open(
        bytes: &[u8],
        signers: &TrustedSigners,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Self, GrantRefused> {
        let envelope = Envelope::decode(KIND, bytes, GRANT_BYTES_MAX)?;
        envelope
            .verify(signers, SIGNERS_NEEDED)
            .map_err(|broken| match broken {
                SealBroken::TooFewSigners { signed_by, .. } => GrantRefused::OneSigner(signed_by.concat()),
                broken => GrantRefused::Seal(broken),
            })?;
        let draft = GrantDraft::read(&envelope)?;
        if draft.trust_domain != trust_domain.as_str() {
            return Err(GrantRefused::WrongTrustDomain {
                own: trust_domain.as_str().to_owned(),
                got: draft.trust_domain,
            });
        }
        if draft.created > seconds(now).saturating_add(CLOCKS_DIFFER.as_secs()) {
            return Err(GrantRefused::NotYetWritten(draft.created));
        }
        if seconds(now) >= draft.until {
            return Err(GrantRefused::Expired(draft.until));
        }
        Ok(Self {
            draft,
            hash: envelope.digest(),
            signed_by: envelope.signed_by().map(str::to_owned).collect(),
        })
    }

    /// What was decided.
    pub fn draft(&self) -> &GrantDraft {
        &self.draft
    }

    /// The digest of what was signed.
    pub fn hash(&self) -> Hash {
        self.hash
    }

    /// Who signed it, sorted; at least two.
    pub fn signed_by(&self) -> &[String] {
        &self.signed_by
    }

    /// From when it gives access.
    pub fn not_before(&self) -> SystemTime {
        instant(self.draft.not_before)
    }

    /// Until just before when it gives access.
    pub fn until(&self) -> SystemTime {
        instant(self.draft.until)
    }

    /// The `@id` of its permit, which is what records name.
    pub fn policy_id(&self) -> String {
        format!("{GRANT_IDS}{}", self.draft.id)
    }

    /// The permit, as a file of its own, `break-glass/<id>.cedar`.
    pub fn policy_source(&self) -> Source {
        let GrantDraft {
            id,
            principal,
            service,
            not_before,
            until,
            ..
        } = &self.draft;
        // Cedar itself prints the names; the id and the times have no character that would need it.
        let principal = match principal {
            GrantScope::Workload(id) => format!("principal == {}", uid(&VOCABULARY.workload, id)),
            GrantScope::Path(path) => format!("principal in {}", uid(&VOCABULARY.path, path)),
        };
        let service = uid(&VOCABULARY.service, service.as_str());
        let (from, to) = (rfc3339(*not_before), rfc3339(*until));
        let text = format!(
            "@id(\"{GRANT_IDS}{id}\")\n@owner(\"security\")\npermit ({principal}, action, resource in {service})\nwhen {{ context.conn.now >= datetime(\"{from}\") && context.conn.now < datetime(\"{to}\") }};\n"
        );
        Source {
            name: format!("{GRANT_IDS}{id}.cedar"),
            text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::people::{key, trusted};
    use crate::{AuthzRequest, Snapshot, Transport, Verdict, decide};

    const NOW: u64 = 1_800_000_000;

    fn name(service: &str) -> ServiceName {
        service.parse().unwrap()
    }

    fn draft() -> GrantDraft {
        GrantDraft {
            format: FORMAT,
            trust_domain: "prod.example".to_owned(),
            id: "ledger-down-1".to_owned(),
            ticket: "INC-4711".to_owned(),
            reason: "the ledger must be repaired by hand".to_owned(),
            principal: GrantScope::Path("prod.example/ns/ops".to_owned()),
            service: name("ledger"),
            not_before: NOW,
            until: NOW + 3600,
            created: NOW - 60,
        }
    }

    fn both(draft: &GrantDraft) -> Vec<u8> {
        GrantDraft::sign_too(&draft.sign(&key("alice")).unwrap(), &key("bob")).unwrap()
    }

    fn open_at(bytes: &[u8], now: u64) -> Result<Grant, GrantRefused> {
        let domain = TrustDomain::parse("prod.example").unwrap();
        Grant::open(bytes, &trusted(&["alice", "bob", "carol"]), &domain, instant(now))
    }

    #[test]
    fn two_people_make_a_grant() {
        let one = draft().sign(&key("alice")).unwrap();
        assert_eq!(open_at(&one, NOW), Err(GrantRefused::OneSigner("alice".into())));
        let again = GrantDraft::sign_too(&one, &key("alice")).unwrap();
        assert_eq!(again, one, "the same person twice is one person");
        let (read, by) = GrantDraft::danger_read_unverified(&one).unwrap();
        assert_eq!((read, by), (draft(), vec!["alice".to_owned()]));
        let grant = open_at(&both(&draft()), NOW - 9).unwrap();
        assert_eq!(grant.signed_by(), ["alice", "bob"]);
        assert_eq!(grant.draft(), &draft());
        let stranger = GrantDraft::sign_too(&one, &key("mallory")).unwrap();
        assert!(open_at(&stranger, NOW).unwrap_err().to_string().contains("`mallory`"));
        assert_eq!(
            open_at(&both(&draft()), NOW + 3600),
            Err(GrantRefused::Expired(NOW + 3600))
        );
        let foreign = GrantDraft {
            trust_domain: "other.example".to_owned(),
            ..draft()
        };
        assert!(matches!(
            open_at(&both(&foreign), NOW),
            Err(GrantRefused::WrongTrustDomain { .. })
        ));
    }

    #[test]
    fn a_grant_is_not_written_tomorrow() {
        let ahead = |seconds: u64| GrantDraft {
            created: NOW + seconds,
            ..draft()
        };
        assert!(open_at(&both(&ahead(300)), NOW).is_ok(), "clocks differ");
        assert_eq!(
            open_at(&both(&ahead(301)), NOW),
            Err(GrantRefused::NotYetWritten(NOW + 301))
        );
    }

    #[test]
    fn a_grant_is_no_bundle() {
        let grant = both(&draft());
        let error = crate::bundle::BundleContents::danger_read_unverified(&grant, 9999).unwrap_err();
        assert!(error.to_string().contains("another kind"), "{error}");
    }

    #[test]
    fn what_no_grant_gives_is_refused() {
        let check = |change: &dyn Fn(&mut GrantDraft), expected: &str| {
            let mut bad = draft();
            change(&mut bad);
            let error = bad.check().unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            let mut envelope = Envelope::new(KIND, cbor::encode(&bad), []);
            envelope.sign(&key("alice")).unwrap();
            envelope.sign(&key("bob")).unwrap();
            assert!(open_at(&envelope.encode(), NOW).is_err(), "{error}");
        };
        check(&|d| d.format = 2, "format 2");
        check(&|d| d.id = "a\") permit".into(), "not a grant's id");
        check(&|d| d.id = String::new(), "not a grant's id");
        check(&|d| d.ticket = "see chat".into(), "not a ticket");
        check(&|d| d.reason = " ".into(), "the reason");
        check(&|d| d.reason = "a\nb".into(), "the reason");
        check(&|d| d.until = d.not_before, "ends after it begins");
        check(&|d| d.until = d.not_before - 1, "ends after it begins");
        check(&|d| d.until = d.not_before + 8 * 3600 + 1, "at most 8 hours");
        check(&|d| d.created = d.until, "ends after it begins");
        // Written long before it begins.
        check(
            &|d| d.created = d.until - 8 * 3600 - 1,
            "at most 8 hours after it was written",
        );
        check(&|d| d.not_before = u64::MAX - 9, "at most 8 hours");
        check(
            &|d| d.principal = GrantScope::Path("prod.example".into()),
            "a whole trust domain",
        );
        check(
            &|d| d.principal = GrantScope::Path("spiffe://prod.example/a".into()),
            "cannot be used",
        );
        check(
            &|d| d.principal = GrantScope::Workload("prod.example/a".into()),
            "cannot be used",
        );
        check(
            &|d| d.principal = GrantScope::Workload("spiffe://prod.example/\"".into()),
            "cannot be used",
        );
    }

    #[test]
    fn a_service_that_no_proxy_can_have_is_none() {
        let mut body = cbor::encode(&draft());
        let at = body.windows(6).rposition(|bytes| bytes == b"ledger").unwrap();
        body[at + 3] = b'"';
        let mut envelope = Envelope::new(KIND, body, []);
        envelope.sign(&key("alice")).unwrap();
        envelope.sign(&key("bob")).unwrap();
        let error = open_at(&envelope.encode(), NOW).unwrap_err().to_string();
        assert!(error.contains("not a service name"), "{error}");
    }

    #[test]
    fn every_flipped_bit_and_every_missing_end_is_refused() {
        let good = both(&draft());
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                assert!(open_at(&bad, NOW).is_err(), "bit {bit} of byte {at}");
            }
            assert!(open_at(&good[..at], NOW).is_err(), "the first {at} bytes");
        }
    }

    #[test]
    fn a_grant_permits_within_its_time_and_scope_and_no_forbid_yields() {
        let verdict = |grant: &Grant, extra: &str, caller: &str, service: &str, now: u64| {
            let mut sources = vec![grant.policy_source()];
            sources.push(Source {
                name: "extra.cedar".to_owned(),
                text: extra.to_owned(),
            });
            let snapshot = Snapshot::compile(&sources).unwrap();
            let transport = Transport::new("10.0.0.1".parse().unwrap());
            let caller = SpiffeId::parse(caller).unwrap();
            decide(
                &snapshot,
                &AuthzRequest::connect(
                    crate::request::Caller::supposed(&caller),
                    &name(service),
                    &transport,
                    instant(now),
                ),
            )
            .verdict()
        };
        let grant = open_at(&both(&draft()), NOW).unwrap();
        let ops = "spiffe://prod.example/ns/ops/sa/anna";
        assert_eq!(verdict(&grant, "", ops, "ledger", NOW), Verdict::Allow);
        assert_eq!(verdict(&grant, "", ops, "ledger", NOW + 3599), Verdict::Allow);
        assert_eq!(verdict(&grant, "", ops, "ledger", NOW + 3600), Verdict::NoPermit);
        assert_eq!(verdict(&grant, "", ops, "ledger", NOW - 1), Verdict::NoPermit);
        assert_eq!(verdict(&grant, "", ops, "orders", NOW), Verdict::NoPermit);
        let other = "spiffe://prod.example/ns/ops2/sa/anna";
        assert_eq!(verdict(&grant, "", other, "ledger", NOW), Verdict::NoPermit);
        let forbid = r#"@id("no") @owner("security") forbid (principal, action, resource);"#;
        assert_eq!(verdict(&grant, forbid, ops, "ledger", NOW), Verdict::Forbid);

        let one = GrantDraft {
            principal: GrantScope::Workload(ops.to_owned()),
            ..draft()
        };
        let grant = open_at(&both(&one), NOW).unwrap();
        assert_eq!(verdict(&grant, "", ops, "ledger", NOW), Verdict::Allow);
        let below = format!("{ops}/below");
        assert_eq!(verdict(&grant, "", &below, "ledger", NOW), Verdict::NoPermit);
        assert_eq!(grant.policy_id(), "break-glass/ledger-down-1");
    }
}
