//! The steps of a publication: checked, tested, replayed, signed. Each takes what only the one before it gives, so that
//! nothing is signed that nobody looked at.
//!
//! What is read from a disk, asked of a CA or shown to people is the caller's business; so is what stands between the steps.

use crate::difference::{Difference, LostForbid, ModuleChange};
use crate::gap::Gap;
use crate::lint::lint;
use crate::replay::{Flip, Replayed, parts};
use crate::report::TestReport;
use crate::view::Places;
use hoplite_identity::TrustDomain;
use hoplite_policy::bundle::{Bundle, EngineVersion, Meta, Stage, Unbuildable};
use hoplite_policy::{Fault, Snapshot, Source};
use hoplite_seal::{Hash, NotSigned, SigningKey};
use std::time::SystemTime;

/// Policies in which neither compiling nor the lint finds a fault.
#[derive(Debug)]
pub struct Checked<'a> {
    sources: &'a [Source],
    snapshot: Snapshot,
}

/// Checked policies whose cases came out as expected, of which there is at least one; or those of a bundle that was verified.
#[derive(Debug)]
pub struct Tested<'a> {
    sources: &'a [Source],
    snapshot: Snapshot,
}

/// Policies whose difference from what is in force was shown, and in which no forbid is lost and no owner gains but by name.
#[derive(Debug)]
pub struct Compared<'a> {
    sources: &'a [Source],
}

/// What may be signed, and what it will be for.
#[derive(Debug)]
pub struct Ready<'a> {
    sources: &'a [Source],
    stage: Stage,
}

/// What is known of what policies would change.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'a> {
    /// The requests of the log, decided by what is in force and by these policies.
    pub replayed: &'a Replayed,
    /// What the replay has not seen.
    pub gaps: &'a [Gap],
}

/// What an author says that may happen.
#[derive(Debug, Clone, Copy)]
pub struct Accepted<'a> {
    /// Answers that may flip: `allow PRINCIPAL × ROUTE`, or `deny …`; `*` stands for any text.
    pub patterns: &'a [String],
    /// Whether a replay that says less than it seems to is enough.
    pub unreplayed: bool,
}

/// What is decided about a revision besides its files.
#[derive(Debug, Clone)]
pub struct Terms {
    /// The trust domain it is for.
    pub trust_domain: TrustDomain,
    /// The highest revision that was seen at the CA; whoever publishes in the meantime is noticed by it.
    pub highest_revision: u64,
    /// The new one is above this, too: what nodes hold of a CA that was restored may be newer than what it has. 0 else.
    pub above: u64,
    /// The digest of that revision's manifest, if there is one.
    pub parent: Option<Hash>,
    /// Now.
    pub created: SystemTime,
    /// From when it is stale.
    pub expires: SystemTime,
    /// What changes, for people.
    pub note: Option<String>,
}

/// A revision as it goes to the CA.
#[derive(Debug)]
pub struct Signed {
    /// Its number, one above the highest that was seen.
    pub revision: u64,
    /// What it is for.
    pub stage: Stage,
    /// The digest of its manifest.
    pub manifest: Hash,
    /// All of it.
    pub bundle: Vec<u8>,
}

/// Why checked policies are not tested ones.
#[derive(Debug)]
pub enum NotTested {
    /// There is no case.
    NoCase,
    /// A table cannot be read, or a case came out otherwise.
    Failed(TestReport),
}

/// What of a difference nobody has accepted. No replay would show it: what a forbid stops may not have happened yet.
#[derive(Debug, PartialEq, Eq)]
pub struct NotAccepted {
    /// Forbids that do not surely stop all that they stopped.
    pub forbids: Vec<LostForbid>,
    /// Modules whose owner may speak of more than before.
    pub modules: Vec<ModuleChange>,
}

/// Why a replay keeps policies from being signed.
#[derive(Debug, PartialEq, Eq)]
pub enum NotReplayed {
    /// It says less than it seems to, and why.
    Gaps(Vec<Gap>),
    /// Answers would flip that nobody accepted: each group, by the pattern that would. None is named where the flips are in
    /// no group: these are accepted only as everything is.
    Flips(Vec<(Flip, String)>),
}

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum Unsigned {
    /// No bundle can be made of it.
    #[error(transparent)]
    Unbuildable(#[from] Unbuildable),
    /// The key cannot sign.
    #[error(transparent)]
    NotSigned(#[from] NotSigned),
}

// === impl Checked ===

impl<'a> Checked<'a> {
    /// Compiles and lints.
    ///
    /// # Errors
    /// The faults; those of the lint if compiling finds none.
    pub fn new(sources: &'a [Source]) -> Result<Self, Vec<Fault>> {
        let snapshot = Snapshot::compile(sources)?;
        let faults = lint(sources);
        if faults.is_empty() {
            Ok(Self { sources, snapshot })
        } else {
            Err(faults)
        }
    }

    /// The policies, compiled.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Runs the tables.
    ///
    /// # Errors
    /// Why this is no test that was passed.
    pub fn test(self, tables: &[Source]) -> Result<(Tested<'a>, TestReport), NotTested> {
        let report = TestReport::new(tables, &self.snapshot, &Places::of(self.sources));
        if report.is_empty() {
            Err(NotTested::NoCase)
        } else if report.passed() {
            let Self { sources, snapshot } = self;
            Ok((Tested { sources, snapshot }, report))
        } else {
            Err(NotTested::Failed(report))
        }
    }
}

// === impl Tested ===

impl<'a> Tested<'a> {
    /// The content of a bundle that was verified, to be in force again: it was tested when it was first signed.
    ///
    /// # Errors
    /// What this engine does not compile any more.
    pub fn again(bundle: &'a Bundle) -> Result<Self, Vec<Fault>> {
        let sources = bundle.sources();
        let snapshot = Snapshot::compile(sources)?;
        Ok(Self { sources, snapshot })
    }

    /// Its files.
    pub fn sources(&self) -> &'a [Source] {
        self.sources
    }

    /// The policies, compiled: what the requests of the log are decided by.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// To be tried beside the policies in force. It changes no answer: what it would flip is what it is tried for.
    pub fn shadow(self) -> Ready<'a> {
        Ready {
            sources: self.sources,
            stage: Stage::Shadow,
        }
    }

    /// To be compared with what is in force: `removed` names the forbids, by `@id`, that may be lost, and `modules` those that
    /// may gain; `*` stands for any text.
    ///
    /// # Errors
    /// What nobody has named.
    pub fn compared(
        self,
        difference: &Difference,
        removed: &[String],
        modules: &[String],
    ) -> Result<Compared<'a>, NotAccepted> {
        let forbids: Vec<_> = difference.lost_unless(removed).cloned().collect();
        let modules: Vec<_> = difference.widened_unless(modules).cloned().collect();
        if forbids.is_empty() && modules.is_empty() {
            Ok(Compared { sources: self.sources })
        } else {
            Err(NotAccepted { forbids, modules })
        }
    }
}

// === impl Compared ===

impl<'a> Compared<'a> {
    /// To be in force, if all that would flip is accepted, and that there is something nobody could look at.
    ///
    /// # Errors
    /// What of the replay is not accepted.
    pub fn live(self, evidence: Evidence<'_>, accepted: Accepted<'_>) -> Result<Ready<'a>, NotReplayed> {
        let Evidence { replayed, gaps } = evidence;
        if !gaps.is_empty() && !accepted.unreplayed {
            return Err(NotReplayed::Gaps(gaps.to_vec()));
        }
        let flips = unaccepted(replayed, accepted.patterns);
        if !flips.is_empty() || has_unseen(replayed, accepted.patterns) {
            return Err(NotReplayed::Flips(flips));
        }
        Ok(Ready {
            sources: self.sources,
            stage: Stage::Live,
        })
    }
}

/// The groups of flips that no pattern names, each by the pattern that would.
fn unaccepted(replayed: &Replayed, patterns: &[String]) -> Vec<(Flip, String)> {
    let groups = replayed.groups().into_iter();
    groups
        .filter(|(who, _)| !patterns.iter().any(|pattern| who.is_meant_by(pattern)))
        .map(|(who, _)| (who.flip, who.pattern()))
        .collect()
}

/// Whether there are flips that nobody can be shown: they can only be accepted as everything is.
fn has_unseen(replayed: &Replayed, patterns: &[String]) -> bool {
    let everything = |flip| patterns.iter().any(|pattern| parts(pattern) == Some((flip, "*", "*")));
    Flip::ALL
        .into_iter()
        .any(|flip| replayed.ungrouped.of(flip) > 0 && !everything(flip))
}

// === impl Ready ===

impl Ready<'_> {
    /// Builds and signs the next revision.
    ///
    /// # Errors
    /// Something in the terms that no reader would accept, or a key that cannot sign.
    pub fn sign(self, key: &SigningKey, terms: Terms) -> Result<Signed, Unsigned> {
        let revision = terms.highest_revision.max(terms.above).saturating_add(1);
        let draft = Bundle::build(
            self.sources,
            Meta {
                trust_domain: terms.trust_domain,
                revision,
                parent: terms.parent,
                created: terms.created,
                expires: terms.expires,
                min_engine: EngineVersion::THIS,
                critical: Vec::new(),
                stage: self.stage,
                note: terms.note,
            },
        )?;
        Ok(Signed {
            revision,
            stage: self.stage,
            manifest: draft.manifest_hash(),
            bundle: draft.sign(&[key])?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::difference::PolicySet;
    use crate::gap::gaps_of;
    use crate::replay::{Baseline, Comparison};
    use crate::samples::sources;
    use hoplite_audit::{Outcome, Phase, Record};
    use hoplite_policy::bundle::{BUNDLE_BYTES_MAX, BundleContents};
    use std::collections::HashMap;
    use std::time::Duration;

    const POLICY: &str = "@id(\"a\") @owner(\"team\") permit (principal in Hoplite::Path::\"x/web\", action in Hoplite::Action::\"read\", resource in Hoplite::Service::\"s\");\n";

    fn tested(sources: &[Source]) -> Tested<'_> {
        let tables = crate::samples::sources(&[("a.test", "spiffe://x/web/a GET s / allow by a\n")]);
        Checked::new(sources).unwrap().test(&tables).unwrap().0
    }

    fn compared(sources: &[Source]) -> Compared<'_> {
        tested(sources).compared(&Difference::default(), &[], &[]).unwrap()
    }

    /// What comes of one recorded answer.
    fn replayed(outcome: Outcome, who: &str) -> Replayed {
        let mut record = Record::new(Phase::Request, outcome, "s", SystemTime::now());
        record.principal = Some(format!("spiffe://x/{who}"));
        record.source = Some("10.0.0.1:1".to_owned());
        record.action = "GET".to_owned();
        record.host = Some("s".to_owned());
        record.path = Some("/".to_owned());
        let set = Snapshot::compile(&sources(&[("a.cedar", POLICY)])).unwrap();
        let comparison = Comparison {
            before: Baseline::Recorded,
            after: &set,
            trust_domain: None,
            examples: 1,
        };
        let mut replayed = Replayed::default();
        replayed.decide_again(&record, &comparison, &mut HashMap::new());
        replayed
    }

    #[test]
    fn each_step_lets_through_what_is_good() {
        let good = sources(&[("a.cedar", POLICY)]);
        assert!(Checked::new(&sources(&[("a.cedar", "permit")])).is_err(), "compiling");
        let unowned = POLICY.replace("@owner(\"team\")", "");
        let faults = Checked::new(&sources(&[("a.cedar", &unowned)])).unwrap_err();
        assert!(faults[0].to_string().contains("@owner"), "{faults:?}");

        let none = Checked::new(&good).unwrap().test(&[]);
        assert!(matches!(none, Err(NotTested::NoCase)));
        let tables = sources(&[("a.test", "spiffe://x/web/a GET s / forbid\n")]);
        let failed = Checked::new(&good).unwrap().test(&tables);
        assert!(matches!(failed, Err(NotTested::Failed(report)) if !report.passed()));
    }

    #[test]
    fn what_is_lost_is_accepted_by_name() {
        let forbid = POLICY.replace("\"a\"", "\"stop\"").replace("permit", "forbid");
        let before = sources(&[("a.cedar", &format!("{POLICY}{forbid}"))]);
        let snapshot = Snapshot::compile(&before).unwrap();
        let good = sources(&[("a.cedar", POLICY)]);
        let before = PolicySet {
            snapshot: &snapshot,
            sources: &before,
        };
        let check = |accepted: &[&str], expected: &[&str]| {
            let accepted: Vec<String> = accepted.iter().map(|id| (*id).to_owned()).collect();
            let tested = tested(&good);
            let after = PolicySet {
                snapshot: tested.snapshot(),
                sources: &good,
            };
            let difference = Difference::of(before, after);
            let refused = tested.compared(&difference, &accepted, &[]).err();
            let lost: Vec<_> = refused.into_iter().flat_map(|refused| refused.forbids).collect();
            let lost: Vec<_> = lost.iter().map(|lost| lost.id.as_str()).collect();
            assert_eq!(lost, expected, "{accepted:?}");
        };
        check(&[], &["stop"]);
        check(&["sto"], &["stop"]);
        check(&["stop"], &[]);
        check(&["st*"], &[]);
    }

    #[test]
    fn what_flips_is_accepted_by_name() {
        let good = sources(&[("a.cedar", POLICY)]);
        let check = |replayed: &Replayed, patterns: &[&str], unreplayed: bool, expected: Option<NotReplayed>| {
            let patterns: Vec<String> = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
            let accepted = Accepted {
                patterns: &patterns,
                unreplayed,
            };
            let gaps = gaps_of(replayed);
            let evidence = Evidence { replayed, gaps: &gaps };
            let found = compared(&good).live(evidence, accepted).err();
            assert_eq!(found, expected, "{patterns:?}");
        };
        let flip = "deny spiffe://x/pay × s:unmatched".to_owned();
        let flips = || Some(NotReplayed::Flips(vec![(Flip::AllowedToDenied, flip.clone())]));
        check(&Replayed::default(), &[], false, None);
        check(&replayed(Outcome::Allow, "web/a"), &[], false, None);
        check(&replayed(Outcome::Allow, "pay"), &[], false, flips());
        check(&replayed(Outcome::Allow, "pay"), &["allow * × *"], false, flips());
        check(&replayed(Outcome::Allow, "pay"), &[&flip], false, None);
        check(
            &replayed(Outcome::Allow, "pay"),
            &["deny spiffe://x/* × s:*"],
            false,
            None,
        );
        // Flips that are in no group.
        let mut many = replayed(Outcome::Allow, "pay");
        many.ungrouped.allowed_to_denied = 1;
        check(&many, &[&flip], false, Some(NotReplayed::Flips(Vec::new())));
        check(&many, &["deny * × *"], false, None);
        // Nothing that can be asked again.
        let unknown = replayed(Outcome::Malformed, "pay");
        let gap = NotReplayed::Gaps(vec![Gap::NothingReplayed]);
        check(&unknown, &[], false, Some(gap));
        check(&unknown, &[], true, None);
        let mut damaged = replayed(Outcome::Allow, "web/a");
        damaged.damage = Some("cut off".to_owned());
        let gap = NotReplayed::Gaps(vec![Gap::Damaged("cut off".to_owned())]);
        check(&damaged, &[], false, Some(gap));
        check(&damaged, &[], true, None);
    }

    #[test]
    fn what_is_signed_follows_what_was_seen() {
        let good = sources(&[("a.cedar", POLICY)]);
        let key = SigningKey::from_seed("alice", [7; 32].into()).unwrap();
        let created = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let terms = Terms {
            trust_domain: TrustDomain::parse("x").unwrap(),
            highest_revision: 41,
            above: 0,
            parent: Some(Hash([9; 32])),
            created,
            expires: created + Duration::from_secs(60),
            note: None,
        };
        let signed = tested(&good).shadow().sign(&key, terms.clone()).unwrap();
        let contents = BundleContents::danger_read_unverified(&signed.bundle, BUNDLE_BYTES_MAX).unwrap();
        let manifest = contents.manifest();
        assert_eq!(
            (signed.revision, manifest.revision, manifest.parent),
            (42, 42, terms.parent)
        );
        assert_eq!((signed.stage, manifest.stage), (Stage::Shadow, Stage::Shadow));
        assert_eq!(signed.manifest, contents.manifest_hash());
        let accepted = Accepted {
            patterns: &[],
            unreplayed: false,
        };
        let backwards = Terms {
            expires: created,
            ..terms
        };
        let evidence = Evidence {
            replayed: &replayed(Outcome::Allow, "web/a"),
            gaps: &[],
        };
        let unsigned = compared(&good).live(evidence, accepted).unwrap().sign(&key, backwards);
        assert!(matches!(unsigned, Err(Unsigned::Unbuildable(_))));
    }
}
