//! An agent as the CA knows it: which of its certificates count, and whether it may speak at all.

use std::collections::BTreeSet;
use std::time::SystemTime;

use hoplite_identity::{Leaf, Moment, Selector, SelectorKind, SpiffeId};
use serde::{Deserialize, Serialize};

use crate::epoch::Since;
use crate::record::{self, Record};

/// An agent that has joined.
///
/// A new certificate counts as the agent's own only once it is used: an answer that was lost must not lock the agent
/// out. The one before stays good, for streams that began with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Agent {
    pub(crate) spiffe_id: SpiffeId,
    /// Fingerprint of the key it joined with; empty for one of whose join this store knows nothing.
    pub(crate) joined_key: String,
    pub(crate) banned: bool,
    /// When it was noticed that two have its key, in Unix seconds. Neither gets another certificate: only a new join,
    /// with another key, ends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) contested: Option<u64>,
    /// When the first certificate for its key began, in Unix seconds: what was issued before a new join counts for nothing.
    #[serde(default)]
    since: u64,
    /// The serial number of that certificate: of the same second there may be one of before.
    #[serde(default)]
    first: String,
    previous: Option<Issued>,
    active: Issued,
    /// Given out, not used yet.
    next: Option<Issued>,
    /// When the authority's word was taken last for a certificate that a restored store knew nothing of, in Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) adopted_at: Option<u64>,
    /// How it was let in last without a token, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) readmitted: Option<Readmitted>,
    /// What was attested of the node when it joined last: each selector once, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) selectors: Vec<Selector>,
    /// By whom, and when. None for one of whose join this store knows nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) attested: Option<Attested>,
}

/// Who attested a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attested {
    /// The attestor's name in the configuration; `token` for join tokens.
    pub(crate) by: String,
    /// Which node it is for that attestor, whatever its key. Empty for a join token,
    /// which knows no nodes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) identity: String,
    /// Unix seconds.
    pub(crate) at: u64,
}

/// That an agent was let in without a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Readmitted {
    pub(crate) how: Readmission,
    /// Unix seconds.
    pub(crate) at: u64,
    /// Since it joined, or since this store knows it.
    pub(crate) times: u32,
}

/// Why an agent was let in without a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Readmission {
    /// By a certificate that was issued between a backup and its restore.
    Adopted,
    /// By the key of a certificate that has expired.
    Reattested,
}

/// A certificate that was given out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Issued {
    /// Lower-case hex.
    pub(crate) serial: String,
    /// Unix seconds.
    pub(crate) not_after: u64,
    /// Unix seconds; 0 for one that was given out before this was noted.
    #[serde(default)]
    pub(crate) not_before: u64,
    /// The identifier of the authority's key that signed it.
    #[serde(default)]
    pub(crate) authority: String,
    /// SHA-256 of it, hexadecimal: by that it is known whatever became of its authority, and whoever else has the authority's
    /// key cannot make another in its place. Empty for one that was given out before this was noted.
    #[serde(default)]
    pub(crate) fingerprint: String,
}

/// What a call with a certificate means for the agent's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nothing.
    Known,
    /// The newest certificate is used for the first time: [`Agent::activate`] it.
    FirstUse,
    /// The store was restored, and may lack the word on this certificate, which the authority vouches for: [`Agent::adopted`].
    Unseen,
}

/// Why a caller is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denied {
    /// No certificate was shown.
    #[error("this call needs an agent's certificate; join first")]
    NoCertificate,
    /// The certificate was good when the connection began.
    #[error(
        "the agent's certificate expired at {not_after}, and the CA's clock says {now}; connect with a newer one, or join anew"
    )]
    Expired {
        /// Its end.
        not_after: Moment,
        /// What the clock here says.
        now: Moment,
    },
    /// Neither the agent's newest certificate nor the one before.
    #[error("the agent has newer certificates than this one; connect with the newest, or join anew")]
    Superseded,
    /// It would have another for a certificate in whose place a newer one is used already: somebody else has the newer one.
    #[error(
        "the agent's newer certificate is in use, so two have its key, or an old copy of its files was put back; join it anew with a new token"
    )]
    TwoHolders,
    /// Two have its key.
    #[error(
        "`{0}` gets no other certificate: two have its key; find out which is the node, and join that one anew with a new token"
    )]
    Contested(SpiffeId),
    /// A workload's certificate, or the CA's own.
    #[error("`{0}` is not an agent; only agents may call this")]
    NotAnAgent(SpiffeId),
    /// Never joined, or evicted.
    #[error("`{0}` is not registered: it never joined, or was evicted; join with a new token")]
    Unknown(SpiffeId),
    /// Its certificate has ended so long ago that it does not even count as proof of its key.
    #[error(
        "the agent's certificate expired at {not_after}, longer ago than `reattest_within` of this CA allows; join with a new token"
    )]
    TooLate {
        /// Its end.
        not_after: Moment,
    },
    /// The request is signed by another key.
    #[error("the signing request is not signed by the key of the certificate that is shown")]
    OtherKey,
    /// It has the serial number of one that was issued here, and is another one.
    #[error(
        "this is not the certificate of `{0}` that has its serial number: somebody else has the authority's key; run `hoplite authority taint`, and then `revoke`"
    )]
    Forged(SpiffeId),
    /// It is believed as a peer, and is not of this CA.
    #[error("this CA did not sign the certificate of `{0}`: another CA of the trust domain did; connect to that one")]
    NotOfThisCa(SpiffeId),
    /// Banned by an operator.
    #[error("`{0}` is banned; an operator must evict it before it can join anew")]
    Banned(SpiffeId),
}

// === impl Agent ===

impl Agent {
    /// After a join. A second join by the same key is a retry: which of the answers arrived is not known.
    pub(crate) fn joined(before: Option<Self>, spiffe_id: SpiffeId, joined_key: String, issued: Issued) -> Self {
        match before {
            Some(agent) if agent.joined_key == joined_key => agent.issued(issued),
            _ => Self {
                spiffe_id,
                joined_key,
                banned: false,
                contested: None,
                since: issued.not_before,
                first: issued.serial.clone(),
                previous: None,
                active: issued,
                next: None,
                adopted_at: None,
                readmitted: None,
                selectors: Vec::new(),
                attested: None,
            },
        }
    }

    /// After somebody has attested its node. What was attested before counts no more.
    pub(crate) fn attested(self, attested: Attested, selectors: impl IntoIterator<Item = Selector>) -> Self {
        let by = Selector::new(SelectorKind::NodeAttestor, &attested.by).ok();
        let selectors: BTreeSet<Selector> = selectors.into_iter().chain(by).collect();
        Self {
            selectors: selectors.into_iter().collect(),
            attested: Some(attested),
            ..self
        }
    }

    /// One that an operator bans and of which this store knows nothing: it joined after the backup.
    pub(crate) fn banned_unseen(spiffe_id: SpiffeId) -> Self {
        let issued = Issued {
            serial: String::new(),
            not_after: 0,
            not_before: 0,
            authority: String::new(),
            fingerprint: String::new(),
        };
        Self::joined(None, spiffe_id, String::new(), issued).banned()
    }

    /// After a certificate was shown that the store may lack. Whatever it knew of the agent's certificates is older, and ends.
    pub(crate) fn adopted(before: Option<Self>, shown: &Leaf, now: SystemTime) -> Self {
        let issued = Issued::from(shown);
        let agent = match before {
            Some(agent) => Self {
                previous: None,
                active: issued,
                next: None,
                ..agent
            },
            None => Self::joined(None, shown.spiffe_id().clone(), String::new(), issued),
        };
        Self {
            adopted_at: Some(record::unix_seconds(now)),
            ..agent
        }
    }

    /// After it was let in without a token.
    pub(crate) fn readmitted(self, how: Readmission, now: SystemTime) -> Self {
        let times = self.readmitted.as_ref().map_or(0, |before| before.times);
        let readmitted = Some(Readmitted {
            how,
            at: record::unix_seconds(now),
            times: times.saturating_add(1),
        });
        Self { readmitted, ..self }
    }

    /// After a certificate was made for it. An unused one is forgotten: the agent asks again when it lacks the answer.
    pub(crate) fn issued(self, issued: Issued) -> Self {
        Self {
            next: Some(issued),
            ..self
        }
    }

    /// After a certificate was made for whoever showed the one with this serial number.
    pub(crate) fn renewed(self, shown: &str, issued: Issued) -> Result<Self, Denied> {
        if self.banned {
            return Err(Denied::Banned(self.spiffe_id));
        }
        if self.contested.is_some() {
            return Err(Denied::Contested(self.spiffe_id));
        }
        self.standing(shown).ok_or(Denied::Superseded)?;
        // An agent renews with the newest that it has on its disk, and uses none before it is there. So whoever comes with
        // the one before has not what another has used. An answer that was lost leaves the newest unused.
        if self.previous.as_ref().is_some_and(|previous| previous.serial == shown) {
            return Err(Denied::TwoHolders);
        }
        // If it is the newest one, whose first use could not be noted, it must not be forgotten for the one after it.
        Ok(self.activate(shown).issued(issued))
    }

    /// After the newest certificate was used.
    pub(crate) fn activate(self, serial: &str) -> Self {
        match self.next {
            Some(next) if next.serial == serial => Self {
                previous: Some(self.active),
                active: next,
                next: None,
                ..self
            },
            _ => self,
        }
    }

    /// After it was noticed that two have its key.
    pub(crate) fn contested(self, now: SystemTime) -> Self {
        Self {
            contested: self.contested.or(Some(record::unix_seconds(now))),
            ..self
        }
    }

    /// After an operator banned it.
    pub(crate) fn banned(self) -> Self {
        Self { banned: true, ..self }
    }

    fn standing(&self, serial: &str) -> Option<Standing> {
        let is = |issued: Option<&Issued>| issued.is_some_and(|issued| issued.serial == serial);
        if is(Some(&self.active)) || is(self.previous.as_ref()) {
            Some(Standing::Known)
        } else if is(self.next.as_ref()) {
            Some(Standing::FirstUse)
        } else {
            None
        }
    }

    /// What it means that a verified certificate is shown, whenever that ends.
    fn shows(&self, shown: &Leaf, since: Since<'_>) -> Result<Standing, Denied> {
        if self.banned {
            return Err(Denied::Banned(self.spiffe_id.clone()));
        }
        if let Some(standing) = self.standing(shown.serial()) {
            return match self.is_another(shown) {
                true => Err(Denied::Forged(self.spiffe_id.clone())),
                false => Ok(standing),
            };
        }
        // Not one that was replaced before the backup, or since the restore.
        let begins = record::unix_seconds(shown.not_before());
        if begins >= self.newest().not_before && since.vouches(shown) {
            return Ok(Standing::Unseen);
        }
        // It was given to this agent since it joined, and others are in use: an agent never goes back.
        let is_later = self.since < begins && begins <= self.active.not_before;
        let is_replaced = is_later || shown.serial() == self.first;
        match (is_replaced, self.contested) {
            (true, None) => Err(Denied::TwoHolders),
            (true, Some(_)) => Err(Denied::Contested(self.spiffe_id.clone())),
            (false, _) => Err(Denied::Superseded),
        }
    }

    fn given(&self) -> impl Iterator<Item = &Issued> {
        [&self.previous, &self.next].into_iter().flatten().chain([&self.active])
    }

    /// Whether it is, to the byte, one that was given to this agent: nobody else needs to vouch for it.
    pub(crate) fn was_given(&self, shown: &Leaf) -> bool {
        let fingerprint = shown.fingerprint().to_string();
        self.given().any(|issued| issued.fingerprint == fingerprint)
    }

    /// Whether it has the serial number of one that was given to this agent, and is not that one.
    fn is_another(&self, shown: &Leaf) -> bool {
        let mut given = self.given().filter(|issued| issued.serial == shown.serial());
        given.any(|issued| !issued.fingerprint.is_empty() && issued.fingerprint != shown.fingerprint().to_string())
    }

    /// The one that it used last, as far as is known.
    pub(crate) fn used(&self) -> &Issued {
        &self.active
    }

    /// The newest certificate, used or not.
    pub(crate) fn newest(&self) -> &Issued {
        self.next.as_ref().unwrap_or(&self.active)
    }
}

impl Record for Agent {
    /// Their names are their SPIFFE IDs.
    const PREFIX: &'static str = "agent/";
}

/// Whether the owner of a verified certificate may speak as an agent. Asked at every call and on every turn of a
/// stream: a handshake says nothing about what happened since.
pub(crate) fn authorize(
    agent: Option<&Agent>,
    since: Since<'_>,
    shown: &Leaf,
    now: SystemTime,
) -> Result<Standing, Denied> {
    if now >= shown.not_after() {
        return Err(Denied::Expired {
            not_after: shown.not_after().into(),
            now: now.into(),
        });
    }
    standing(agent, since, shown)
}

/// The same, of a certificate that may have ended.
pub(crate) fn standing(agent: Option<&Agent>, since: Since<'_>, shown: &Leaf) -> Result<Standing, Denied> {
    let id = shown.spiffe_id();
    if !id.is_agent() {
        return Err(Denied::NotAnAgent(id.clone()));
    }
    match agent {
        Some(agent) => agent.shows(shown, since),
        None if since.vouches(shown) => Ok(Standing::Unseen),
        None => Err(Denied::Unknown(id.clone())),
    }
}

// === impl Issued ===

impl From<&Leaf> for Issued {
    fn from(leaf: &Leaf) -> Self {
        Self {
            serial: leaf.serial().to_owned(),
            not_after: record::unix_seconds(leaf.not_after()),
            not_before: record::unix_seconds(leaf.not_before()),
            authority: leaf.authority_key().to_owned(),
            fingerprint: leaf.fingerprint().to_string(),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::authority::x509::{Authority, Serial};
    use crate::issuance::{ReadBack, SubjectKey, Template, mint};
    use hoplite_identity::TrustDomain;
    use std::time::{Duration, UNIX_EPOCH};

    pub(crate) fn issued(serial: &str) -> Issued {
        Issued {
            serial: serial.into(),
            not_after: 0,
            not_before: 0,
            authority: String::new(),
            fingerprint: String::new(),
        }
    }

    fn id() -> SpiffeId {
        SpiffeId::parse("spiffe://prod.example/hoplite/agent/n1").unwrap()
    }

    fn joined(serial: &str) -> Agent {
        Agent::joined(None, id(), "key".into(), issued(serial))
    }

    #[test]
    fn a_new_certificate_counts_from_its_first_use() {
        let check = |agent: &Agent, expected: [Option<Standing>; 4]| {
            assert_eq!(["1", "2", "3", "4"].map(|serial| agent.standing(serial)), expected);
        };
        let (known, first) = (Some(Standing::Known), Some(Standing::FirstUse));
        let agent = joined("1");
        check(&agent, [known, None, None, None]);
        let agent = agent.issued(issued("2"));
        check(&agent, [known, first, None, None]);
        let agent = agent.issued(issued("3")); // the second was lost
        check(&agent, [known, None, first, None]);
        let agent = agent.activate("3");
        check(&agent, [known, None, known, None]);
        assert_eq!(agent.clone().activate("1"), agent, "an old one changes nothing");
        let agent = agent.issued(issued("4")).activate("4");
        check(&agent, [None, None, known, known]);
    }

    #[test]
    fn whoever_renews_keeps_the_certificate_it_renewed_with() {
        let known = Some(Standing::Known);
        let agent = joined("1").issued(issued("2")).renewed("2", issued("3")).unwrap();
        assert_eq!(["1", "2"].map(|serial| agent.standing(serial)), [known, known]);
        assert_eq!(agent.standing("3"), Some(Standing::FirstUse));
        assert_eq!(agent.clone().renewed("4", issued("5")), Err(Denied::Superseded));
        assert_eq!(agent.banned().renewed("2", issued("5")), Err(Denied::Banned(id())));
    }

    /// Whoever lost an answer, however often, is no second holder; whoever renews with what another has left behind is.
    #[test]
    fn two_holders_of_one_key_get_nothing_new() {
        let agent = joined("1").renewed("1", issued("2")).unwrap(); // lost
        let agent = agent.renewed("1", issued("3")).unwrap(); // lost, too
        let agent = agent.renewed("1", issued("4")).unwrap().activate("4");
        let agent = agent.renewed("4", issued("5")).unwrap(); // lost
        assert_eq!(agent.clone().renewed("1", issued("6")), Err(Denied::TwoHolders));
        let now = UNIX_EPOCH + Duration::from_secs(7);
        let contested = agent.clone().contested(now).contested(now + Duration::from_secs(9));
        assert_eq!(contested.contested, Some(7), "since when it is known");
        for shown in ["1", "4", "5"] {
            assert_eq!(
                contested.clone().renewed(shown, issued("6")),
                Err(Denied::Contested(id()))
            );
            assert!(contested.standing(shown).is_some(), "what they have stays good");
        }
        let anew = Agent::joined(Some(contested.clone()), id(), "other".into(), issued("7"));
        assert!(anew.contested.is_none() && anew.renewed("7", issued("8")).is_ok());
        let retry = Agent::joined(Some(contested), id(), "key".into(), issued("7"));
        assert_eq!(retry.contested, Some(7), "the key is the same");
    }

    /// Whoever has an authority's key can give any certificate any serial number.
    #[test]
    fn a_certificate_of_the_same_serial_number_that_was_not_given_here_is_refused() {
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let domain = TrustDomain::parse("prod.example").unwrap();
        let authority = Authority::ephemeral(&domain, now, Duration::from_secs(86400));
        let serial = Serial::random().unwrap();
        let leaf = |serial| {
            let template = Template {
                spiffe_id: &id(),
                dns_names: &[],
                common_name: None,
                ttl: Duration::from_secs(60),
            };
            let key = SubjectKey::of_pair(&rcgen::KeyPair::generate().unwrap());
            mint(&authority, &template, &key, serial, now, ReadBack::Whole)
                .unwrap()
                .leaf
        };
        let (given, forged, next) = (leaf(serial), leaf(serial), leaf(Serial::random().unwrap()));
        let agent = Agent::joined(None, id(), "key".into(), Issued::from(&given));
        let agent = agent.issued(Issued::from(&next));
        let since = Since::default();
        assert_eq!(authorize(Some(&agent), since, &given, now), Ok(Standing::Known));
        assert_eq!(authorize(Some(&agent), since, &forged, now), Err(Denied::Forged(id())));
        // To the byte it is known for as long as it is one of the agent's last, and nobody has to vouch for it.
        assert!(agent.was_given(&given) && agent.was_given(&next) && !agent.was_given(&forged));
        let agent = agent
            .activate(next.serial())
            .renewed(next.serial(), issued("3"))
            .unwrap();
        assert!(agent.was_given(&given));
        let agent = agent.activate("3");
        assert!(!agent.was_given(&given) && agent.was_given(&next));
    }

    #[test]
    fn joining_again() {
        let retry = Agent::joined(Some(joined("1")), id(), "key".into(), issued("2"));
        assert_eq!(
            (retry.standing("1"), retry.standing("2")),
            (Some(Standing::Known), Some(Standing::FirstUse))
        );
        let anew = Agent::joined(Some(joined("1")), id(), "other".into(), issued("2"));
        assert_eq!((anew.standing("1"), anew.standing("2")), (None, Some(Standing::Known)));
    }

    #[test]
    fn who_may_speak() {
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let domain = TrustDomain::parse("prod.example").unwrap();
        let authority = Authority::ephemeral(&domain, now, Duration::from_secs(86400));
        let leaf = |path: &str| {
            let template = Template {
                spiffe_id: &domain.member(path).unwrap(),
                dns_names: &[],
                common_name: None,
                ttl: Duration::from_secs(60),
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
        };
        let shown = leaf("/hoplite/agent/n1");
        let good = Agent::joined(None, id(), "key".into(), Issued::from(&shown));
        let banned = Agent {
            banned: true,
            ..good.clone()
        };
        assert_eq!(
            authorize(Some(&good), Since::default(), &shown, now),
            Ok(Standing::Known)
        );
        let late = shown.not_after() + Duration::from_secs(60);
        let expired = authorize(Some(&good), Since::default(), &shown, late).unwrap_err();
        for clock in [shown.not_after(), late] {
            assert!(
                expired.to_string().contains(&Moment::from(clock).to_string()),
                "{expired}"
            );
        }
        assert!(authorize(Some(&good), Since::default(), &shown, shown.not_after()).is_err());
        assert_eq!(
            authorize(Some(&banned), Since::default(), &shown, now),
            Err(Denied::Banned(id()))
        );
        assert_eq!(
            authorize(None, Since::default(), &shown, now),
            Err(Denied::Unknown(id()))
        );
        assert_eq!(
            authorize(Some(&joined("1")), Since::default(), &shown, now),
            Err(Denied::Superseded)
        );
        for path in ["/orders", "/hoplite/ca", "/hoplite/agent/n1/x"] {
            assert!(
                matches!(
                    authorize(Some(&good), Since::default(), &leaf(path), now),
                    Err(Denied::NotAnAgent(_))
                ),
                "{path}"
            );
        }
    }
}
