//! The bundle: all of a trust domain's policy files at one revision, as one signed document.
//!
//! An envelope holds the manifest, the signatures over it and the files' contents, each once. The manifest names every
//! file with its digest, so what is signed covers every byte. Revisions only rise: going back to older policies is a new
//! revision with the old content. Formats are refused, never guessed: one content has one text.

mod engine;
mod manifest;
mod refused;

use crate::calendar::seconds;
use crate::schema::SCHEMA;
use crate::source::{HEADERS_FILE, Source};
use crate::statement::statements;
use hoplite_identity::TrustDomain;
use hoplite_seal::{Envelope, Hash, NotSigned, SigningKey, TrustedSigners};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::time::SystemTime;

pub use engine::{BadVersion, CRITICAL_HEADERS, CRITICAL_SHADOW, EngineVersion, KNOWN_CRITICAL};
use manifest::{KIND, is_file_name};
pub use manifest::{Manifest, ManifestFile, Stage};
pub(crate) use refused::remedy;
use refused::shown;
pub use refused::{BadContents, BadManifest, NOTE_BYTES_MAX, Refused, Unbuildable};

/// The longest bundle that is accepted unless a setting says otherwise. The policy text a snapshot may hold, of which
/// the manifest takes a little.
pub const BUNDLE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// One person publishes policy.
const SIGNERS_NEEDED: usize = 1;

/// What the publisher decides about a new bundle.
#[derive(Debug, Clone)]
pub struct Meta {
    /// The trust domain it is for.
    pub trust_domain: TrustDomain,
    /// Higher than every one before it.
    pub revision: u64,
    /// The manifest it follows, if any.
    pub parent: Option<Hash>,
    /// Now.
    pub created: SystemTime,
    /// From when it is stale.
    pub expires: SystemTime,
    /// The oldest engine that may use it.
    pub min_engine: EngineVersion,
    /// Features an engine must know. What a shadow, or a file among the sources, makes necessary is added.
    pub critical: Vec<String>,
    /// What it is for.
    pub stage: Stage,
    /// What changes, for people.
    pub note: Option<String>,
}

/// A bundle that nobody signed yet.
#[derive(Debug, Clone)]
pub struct Draft {
    manifest: Manifest,
    envelope: Envelope,
}

/// What is known when a bundle arrives.
#[derive(Debug, Clone, Copy)]
pub struct Acceptance<'a> {
    /// Whose signatures count.
    pub signers: &'a TrustedSigners,
    /// Whose policies these have to be.
    pub trust_domain: &'a TrustDomain,
    /// The newest bundle of the same stage that was accepted so far; kept over restarts.
    pub highest_seen: Option<Seen>,
    /// The time.
    pub now: SystemTime,
    /// [`EngineVersion::THIS`], except in tests.
    pub engine_version: EngineVersion,
    /// [`KNOWN_CRITICAL`], except in tests.
    pub known_critical: &'a [&'a str],
    /// [`BUNDLE_BYTES_MAX`], or a setting.
    pub max_bytes: usize,
}

/// A bundle that was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Its revision.
    pub revision: u64,
    /// The digest of its manifest.
    pub manifest: Hash,
}

/// What is in a bundle, whether or not anybody may believe it. A [`Bundle`] is one that was verified.
#[derive(Debug, Clone)]
pub struct BundleContents {
    manifest: Manifest,
    hash: Hash,
    signed_by: Vec<String>,
    sources: Vec<Source>,
}

/// A bundle that was verified: signed by trusted signers only, for this trust domain, understood in every part, whole.
/// Made only by [`Bundle::open`] and [`Bundle::open_kept`].
#[derive(Debug, Clone)]
pub struct Bundle(BundleContents);

// === impl Draft ===

impl Draft {
    /// What will be signed.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The digest that the next bundle names as its parent.
    pub fn manifest_hash(&self) -> Hash {
        self.envelope.digest()
    }

    /// The bundle, signed by all of these, as it travels.
    ///
    /// # Errors
    /// There is no key, there are more than [`SIGNATURES_MAX`](hoplite_seal::SIGNATURES_MAX), or one cannot sign.
    pub fn sign(mut self, keys: &[&SigningKey]) -> Result<Vec<u8>, NotSigned> {
        if keys.is_empty() {
            return Err(NotSigned::NoKey);
        }
        for key in keys {
            self.envelope.sign(key)?;
        }
        Ok(self.envelope.encode())
    }
}

// === impl Seen ===

impl From<&BundleContents> for Seen {
    fn from(contents: &BundleContents) -> Self {
        Self {
            revision: contents.manifest.revision,
            manifest: contents.hash,
        }
    }
}

// === impl BundleContents ===

impl BundleContents {
    /// Reads a bundle that nobody has to believe: to show it, or to take its files into a new one.
    ///
    /// # Errors
    /// It is not whole, or needs an engine newer than this.
    pub fn danger_read_unverified(bytes: &[u8], max_bytes: usize) -> Result<Self, Refused> {
        let envelope = Envelope::decode(KIND, bytes, max_bytes)?;
        let manifest = Manifest::read(envelope.body(), EngineVersion::THIS, KNOWN_CRITICAL)?;
        Self::read(envelope, manifest)
    }

    fn read(envelope: Envelope, manifest: Manifest) -> Result<Self, Refused> {
        let hash = envelope.digest();
        let signed_by = envelope.signed_by().map(str::to_owned).collect();
        let hashes: Vec<Hash> = envelope.blobs().map(Hash::of).collect();
        if !hashes.is_sorted_by(|a, b| a < b) {
            return Err(BadContents::Order.into());
        }
        let blobs: BTreeMap<Hash, &[u8]> = hashes.into_iter().zip(envelope.blobs()).collect();

        let mut used = BTreeSet::new();
        let mut sources = Vec::with_capacity(manifest.files.len());
        for ManifestFile { name, sha256, bytes } in &manifest.files {
            let blob = blobs
                .get(sha256)
                .filter(|blob| blob.len() as u64 == *bytes)
                .ok_or_else(|| Refused::BlobMismatch(name.clone()))?;
            used.insert(*sha256);
            let text = std::str::from_utf8(blob)
                .map_err(|_| BadContents::NotUtf8(name.clone()))?
                .to_owned();
            sources.push(Source {
                name: name.clone(),
                text,
            });
        }
        if let Some(stray) = blobs.keys().find(|hash| !used.contains(hash)) {
            return Err(Refused::BlobMismatch(stray.to_string()));
        }
        if manifest.policies != count_policies(&sources) {
            return Err(BadContents::PolicyCount.into());
        }
        Ok(Self {
            manifest,
            hash,
            signed_by,
            sources,
        })
    }

    /// What it says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The digest of the manifest: the name of this bundle and of no other.
    pub fn manifest_hash(&self) -> Hash {
        self.hash
    }

    /// What to remember of it, so that nothing older is accepted.
    pub fn seen(&self) -> Seen {
        self.into()
    }

    /// Who signed it, sorted.
    pub fn signed_by(&self) -> &[String] {
        &self.signed_by
    }

    /// Its files, sorted by name.
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// Whether it is past its end. What is in force stays in force then, and every record says so.
    pub fn stale(&self, now: SystemTime) -> bool {
        seconds(now) >= self.manifest.expires
    }
}

// === impl Bundle ===

impl Bundle {
    /// A draft of these files.
    ///
    /// # Errors
    /// A name, or something in `meta`, that no reader would accept. What the files say is not looked at: compile and
    /// lint first.
    pub fn build(sources: &[Source], meta: Meta) -> Result<Draft, Unbuildable> {
        let mut sources: Vec<&Source> = sources.iter().collect();
        sources.sort_by(|a, b| a.name.cmp(&b.name));
        let mut previous = None;
        for Source { name, .. } in &sources {
            if !is_file_name(name) {
                return Err(Unbuildable::FileName(shown(name)));
            }
            if previous.replace(name) == Some(name) {
                return Err(Unbuildable::SameName(name.clone()));
            }
        }
        let mut critical: BTreeSet<String> = meta.critical.into_iter().collect();
        if meta.stage == Stage::Shadow {
            critical.insert(CRITICAL_SHADOW.to_owned());
        }
        if sources.iter().any(|source| source.name == HEADERS_FILE) {
            critical.insert(CRITICAL_HEADERS.to_owned());
        }
        let manifest = Manifest {
            format: engine::FORMAT,
            trust_domain: meta.trust_domain.as_str().to_owned(),
            revision: meta.revision,
            parent: meta.parent,
            created: seconds(meta.created),
            expires: seconds(meta.expires),
            min_engine: meta.min_engine,
            critical: critical.into_iter().collect(),
            stage: meta.stage,
            schema: Hash::of(SCHEMA.as_bytes()),
            files: sources
                .iter()
                .map(|source| ManifestFile {
                    name: source.name.clone(),
                    sha256: Hash::of(source.text.as_bytes()),
                    bytes: source.text.len() as u64,
                })
                .collect(),
            policies: count_policies(sources.iter().copied()),
            note: meta.note,
        };
        manifest.check()?;
        let blobs = sources.iter().map(|source| source.text.clone().into_bytes());
        let envelope = Envelope::new(KIND, manifest.encode(), blobs);
        Ok(Draft { manifest, envelope })
    }

    /// Verifies a bundle that came from somewhere.
    ///
    /// # Errors
    /// Why it is refused, [`Refused::AlreadyHave`] included, which is no fault. Nothing changes then.
    pub fn open(bytes: &[u8], acceptance: &Acceptance<'_>) -> Result<Self, Refused> {
        Self::verify(bytes, acceptance, |manifest, hash| {
            let revision = manifest.revision;
            in_order(
                acceptance.highest_seen,
                Seen {
                    revision,
                    manifest: hash,
                },
            )?;
            if seconds(acceptance.now) >= manifest.expires {
                return Err(Refused::Expired(manifest.expires));
            }
            Ok(())
        })
    }

    /// Verifies the bundle that was accepted before and kept: it may have expired since. The time and the highest
    /// revision seen play no part.
    ///
    /// # Errors
    /// As [`open`](Self::open): the disk is believed no more than the wire, and a signer may be trusted no longer.
    pub fn open_kept(bytes: &[u8], acceptance: &Acceptance<'_>) -> Result<Self, Refused> {
        Self::verify(bytes, acceptance, |_, _| Ok(()))
    }

    fn verify(
        bytes: &[u8],
        acceptance: &Acceptance<'_>,
        timely: impl FnOnce(&Manifest, Hash) -> Result<(), Refused>,
    ) -> Result<Self, Refused> {
        let envelope = Envelope::decode(KIND, bytes, acceptance.max_bytes)?;
        // INVARIANT: whatever follows was signed by somebody who is trusted.
        envelope.verify(acceptance.signers, SIGNERS_NEEDED)?;
        let manifest = Manifest::read(envelope.body(), acceptance.engine_version, acceptance.known_critical)?;
        if manifest.trust_domain != acceptance.trust_domain.as_str() {
            return Err(Refused::WrongTrustDomain {
                own: acceptance.trust_domain.as_str().to_owned(),
                got: manifest.trust_domain,
            });
        }
        timely(&manifest, envelope.digest())?;
        BundleContents::read(envelope, manifest).map(Self)
    }
}

impl Deref for Bundle {
    type Target = BundleContents;

    fn deref(&self) -> &BundleContents {
        &self.0
    }
}

/// Whether a bundle follows what was accepted before.
pub(crate) fn in_order(highest: Option<Seen>, got: Seen) -> Result<(), Refused> {
    match highest {
        Some(have) if got.revision < have.revision => Err(Refused::LowerRevision {
            have: have.revision,
            got: got.revision,
        }),
        Some(have) if have == got => Err(Refused::AlreadyHave(got.revision)),
        Some(have) if have.revision == got.revision => Err(Refused::Conflict(got.revision)),
        _ => Ok(()),
    }
}

fn count_policies<'a>(sources: impl IntoIterator<Item = &'a Source>) -> u64 {
    sources
        .into_iter()
        .filter(|source| source.name.ends_with(".cedar"))
        .map(|source| statements(&source.text).len() as u64)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calendar::instant;
    use crate::people::{key, trusted};
    use crate::snapshot::Snapshot;
    use crate::snapshot::tests::sources;
    use crate::source::TOTAL_BYTES_MAX;
    use proptest::prelude::*;

    const NOW: u64 = 1_800_000_000;
    const READ: &str =
        r#"@id("pay/read") @owner("pay") permit (principal, action in Hoplite::Action::"read", resource);"#;

    fn domain() -> TrustDomain {
        TrustDomain::parse("prod.example").unwrap()
    }

    fn meta() -> Meta {
        Meta {
            trust_domain: domain(),
            revision: 7,
            parent: Some(Hash([9; 32])),
            created: instant(NOW - 60),
            expires: instant(NOW + 60),
            min_engine: "0.1.0".parse().unwrap(),
            critical: Vec::new(),
            stage: Stage::Live,
            note: Some("ledger may be read".to_owned()),
        }
    }

    fn some() -> Vec<Source> {
        sources(&[
            ("pay/read.cedar", READ),
            ("routes.toml", "[ledger]\nroutes = [\"GET /\"]"),
            ("a.cedar", "// none yet\n"),
            ("b.cedar", "// none yet\n"),
        ])
    }

    fn signed(meta: Meta) -> Vec<u8> {
        Bundle::build(&some(), meta).unwrap().sign(&[&key("alice")]).unwrap()
    }

    /// Opens with the acceptance of these tests, after a change to it.
    fn open<'a>(bytes: &[u8], change: impl FnOnce(&mut Acceptance<'a>)) -> Result<Bundle, Refused> {
        let mut acceptance = Acceptance {
            signers: Box::leak(Box::new(trusted(&["alice", "bob"]))),
            trust_domain: Box::leak(Box::new(domain())),
            highest_seen: None,
            now: instant(NOW),
            engine_version: EngineVersion::THIS,
            known_critical: KNOWN_CRITICAL,
            max_bytes: BUNDLE_BYTES_MAX,
        };
        change(&mut acceptance);
        Bundle::open(bytes, &acceptance)
    }

    #[test]
    fn what_was_built_comes_back() {
        let draft = Bundle::build(&some(), meta()).unwrap();
        let (manifest, hash) = (draft.manifest().clone(), draft.manifest_hash());
        let bytes = draft.sign(&[&key("bob"), &key("alice")]).unwrap();
        let bundle = open(&bytes, |_| ()).unwrap();
        assert_eq!((bundle.manifest(), bundle.manifest_hash()), (&manifest, hash));
        assert_eq!(bundle.signed_by(), ["alice", "bob"]);
        let names: Vec<_> = bundle.sources().iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["a.cedar", "b.cedar", "pay/read.cedar", "routes.toml"]);
        assert_eq!(bundle.sources()[2].text, READ);
        assert_eq!((manifest.policies, manifest.files[2].bytes), (1, READ.len() as u64));
        assert_eq!(manifest.schema, Hash::of(SCHEMA.as_bytes()));
        assert_eq!(Manifest::danger_of_bundle(&bytes, BUNDLE_BYTES_MAX).unwrap(), manifest);
        assert_eq!(Manifest::danger_read_unverified(&manifest.encode()).unwrap(), manifest);
        let unverified = BundleContents::danger_read_unverified(&bytes, BUNDLE_BYTES_MAX).unwrap();
        assert_eq!(unverified.seen(), bundle.seen());
        assert!(!bundle.stale(instant(NOW + 59)) && bundle.stale(instant(NOW + 60)));
        let none = Bundle::build(&[], meta()).unwrap().sign(&[&key("alice")]).unwrap();
        assert_eq!(
            Snapshot::compile(open(&none, |_| ()).unwrap().sources())
                .unwrap()
                .policy_ids()
                .len(),
            0
        );
        assert!(Bundle::build(&[], meta()).unwrap().sign(&[]).is_err());
    }

    #[test]
    fn what_is_not_acceptable_is_refused_by_reason() {
        let good = signed(meta());
        let (bob, other) = (trusted(&["bob"]), TrustDomain::parse("other.example").unwrap());
        let seen = open(&good, |_| ()).unwrap().seen();
        let higher = Seen { revision: 8, ..seen };
        let twin = Seen {
            manifest: Hash([1; 32]),
            ..seen
        };
        let lower = Seen { revision: 6, ..seen };
        let check = |result: Result<Bundle, Refused>, expected: &str| {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}\nis not {expected}");
        };
        check(
            open(&good, |a| a.signers = &bob),
            "`alice` signed it and is not trusted",
        );
        check(
            open(&good, |a| a.trust_domain = &other),
            "`prod.example`, and this is `other.example`",
        );
        check(
            open(&good, |a| a.highest_seen = Some(higher)),
            "revision 7 is lower than 8",
        );
        check(
            open(&good, |a| a.highest_seen = Some(twin)),
            "another bundle of revision 7",
        );
        let have = open(&good, |a| a.highest_seen = Some(seen)).unwrap_err();
        assert_eq!(have, Refused::AlreadyHave(7));
        assert!(open(&good, |a| a.highest_seen = Some(lower)).is_ok());
        check(
            open(&good, |a| a.now = instant(NOW + 60)),
            "it expired at 2027-01-15T08:01:00Z",
        );
        let old = "0.0.9".parse().unwrap();
        check(
            open(&good, |a| a.engine_version = old),
            "needs engine 0.1.0, and this is 0.0.9",
        );
        check(open(&good, |a| a.max_bytes = 100), "more than the 100 accepted");

        let shadow = signed(Meta {
            stage: Stage::Shadow,
            ..meta()
        });
        check(
            open(&shadow, |a| a.known_critical = &[]),
            "needs `shadow`, which this engine",
        );
        assert_eq!(open(&shadow, |_| ()).unwrap().manifest().critical, ["shadow"]);
        let critical = vec!["time-travel".to_owned()];
        check(
            open(&signed(Meta { critical, ..meta() }), |_| ()),
            "needs `time-travel`",
        );
    }

    #[test]
    fn what_was_accepted_is_opened_again_after_its_end() {
        let good = signed(meta());
        let seen = open(&good, |_| ()).unwrap().seen();
        let (signers, trust_domain) = (trusted(&["alice"]), domain());
        let mut acceptance = Acceptance {
            signers: &signers,
            trust_domain: &trust_domain,
            highest_seen: Some(seen),
            now: instant(NOW + 9_999),
            engine_version: EngineVersion::THIS,
            known_critical: KNOWN_CRITICAL,
            max_bytes: BUNDLE_BYTES_MAX,
        };
        let kept = Bundle::open_kept(&good, &acceptance).unwrap();
        assert!(kept.stale(acceptance.now));
        let nobody = TrustedSigners::default();
        acceptance.signers = &nobody;
        assert!(
            Bundle::open_kept(&good, &acceptance).is_err(),
            "who signed is trusted no longer"
        );
    }

    /// The files of one bundle under another manifest.
    fn with_body(envelope: &Envelope, body: Vec<u8>) -> Envelope {
        Envelope::new(KIND, body, envelope.blobs().map(<[u8]>::to_vec))
    }

    /// Signs whatever manifest and contents the test makes up.
    fn forged(change: impl FnOnce(&mut Manifest, &mut Vec<Vec<u8>>)) -> Result<Bundle, Refused> {
        let mut draft = Bundle::build(&some(), meta()).unwrap();
        let mut blobs: Vec<Vec<u8>> = draft.envelope.blobs().map(<[u8]>::to_vec).collect();
        change(&mut draft.manifest, &mut blobs);
        draft.envelope = Envelope::new(KIND, draft.manifest.encode(), blobs);
        open(&draft.sign(&[&key("alice")]).unwrap(), |_| ())
    }

    #[test]
    fn a_signature_does_not_excuse_a_bad_bundle() {
        assert!(forged(|_, _| ()).is_ok());
        let check = |change: &dyn Fn(&mut Manifest, &mut Vec<Vec<u8>>), expected: &str| {
            let error = forged(change).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}\nis not {expected}");
        };
        check(&|m, _| m.format = 2, "format 2 is newer");
        check(&|m, _| m.format = 0, "its format is 0");
        check(&|m, _| m.revision = 0, "revision 0");
        check(&|m, _| m.expires = m.created, "expires before");
        check(&|m, _| m.expires = u64::MAX, "year 9999");
        check(&|m, _| m.critical = vec!["shadow".into()], "and only a shadow");
        check(&|m, _| m.stage = Stage::Shadow, "and only a shadow");
        check(&|m, _| m.note = Some("a\nb".into()), "the note");
        check(&|m, _| m.trust_domain = "Prod".into(), "trust domain");
        check(&|m, _| m.policies = 2, "more or fewer policies");
        check(&|m, _| m.files.swap(0, 1), "files are out of order");
        check(&|m, _| m.files[1] = m.files[0].clone(), "or doubled");
        check(&|m, _| m.files[0].bytes += 1, "the content of `a.cedar`");
        check(&|m, _| m.files[0].sha256 = Hash([0; 32]), "the content of `a.cedar`");
        check(&|_, blobs| blobs.push(b"stray".to_vec()), "the content of `");
        check(&|_, blobs| drop(blobs.pop()), "the content of `");
        let not_text = &|m: &mut Manifest, blobs: &mut Vec<Vec<u8>>| {
            blobs.push(b"\xff".to_vec());
            let file = ManifestFile {
                name: "0.cedar".into(),
                sha256: Hash::of(b"\xff"),
                bytes: 1,
            };
            m.files.insert(0, file);
        };
        check(not_text, "`0.cedar` is not UTF-8");
        // One blob, which many files name: together they amount to more than anybody reads.
        let bomb = &|m: &mut Manifest, blobs: &mut Vec<Vec<u8>>| {
            let text = vec![b' '; TOTAL_BYTES_MAX / 8];
            let file = |number: usize| ManifestFile {
                name: format!("0{number}.cedar"),
                sha256: Hash::of(&text),
                bytes: text.len() as u64,
            };
            m.files.splice(0..0, (0..8).map(file));
            blobs.push(text);
        };
        check(bomb, "files have more than 33554432 bytes together");
        check(&|m, _| m.files[0].bytes = u64::MAX, "bytes together");
        for name in [
            "",
            ".",
            "..",
            "../x.cedar",
            "/x.cedar",
            "x/../y.cedar",
            "x/y/z.cedar",
            "x//y.cedar",
            "x/.cedar",
            ".x/y.cedar",
            ".x.cedar",
            "x\\y.cedar",
            "x\0.cedar",
            "x.cedar\n",
            "x.txt",
            "x.toml",
            "x/routes.toml",
            "é.cedar",
            "C:x.cedar",
            "break-glass/x.cedar",
        ] {
            let rename = &|m: &mut Manifest, _: &mut Vec<Vec<u8>>| {
                m.files[0].name = name.into();
                m.files.sort_by(|a, b| a.name.cmp(&b.name));
            };
            check(rename, "is not a file's name");
            let result = Bundle::build(&sources(&[(name, "")]), meta());
            assert!(matches!(result, Err(Unbuildable::FileName(_))), "{name:?}: {result:?}");
        }
        let twice = Bundle::build(&sources(&[("a.cedar", ""), ("a.cedar", "")]), meta());
        assert!(matches!(twice, Err(Unbuildable::SameName(_))));
    }

    #[test]
    fn selected_headers_need_an_engine_that_knows_them() {
        let with_headers = [some(), sources(&[("headers.toml", "headers = ['x-tenant']")])].concat();
        let build = |sources: &[Source], critical: &[&str], stage| {
            let critical = critical.iter().map(|name| (*name).to_owned()).collect();
            Bundle::build(
                sources,
                Meta {
                    critical,
                    stage,
                    ..meta()
                },
            )
        };
        for stage in [Stage::Live, Stage::Shadow] {
            let draft = build(&with_headers, &[], stage).unwrap();
            let features = match stage {
                Stage::Live => &["headers"][..],
                Stage::Shadow => &["headers", "shadow"],
            };
            assert_eq!(draft.manifest().critical, features);
            let bytes = draft.sign(&[&key("alice")]).unwrap();
            open(&bytes, |_| ()).unwrap();
            // The engine of before.
            assert_eq!(
                open(&bytes, |a| a.known_critical = &[CRITICAL_SHADOW]).unwrap_err(),
                Refused::UnknownCritical("headers".to_owned())
            );
        }
        let refused = build(&some(), &["headers"], Stage::Live).unwrap_err().to_string();
        assert!(refused.contains("and no other, has"), "{refused}");
        // A manifest that keeps quiet about it.
        let mut draft = build(&with_headers, &[], Stage::Live).unwrap();
        draft.manifest.critical.clear();
        draft.envelope = with_body(&draft.envelope, draft.manifest.encode());
        let refused = open(&draft.sign(&[&key("alice")]).unwrap(), |_| ())
            .unwrap_err()
            .to_string();
        assert!(refused.contains("critical feature `headers`"), "{refused}");
    }

    #[test]
    fn a_manifest_has_one_text() {
        let mut draft = Bundle::build(&some(), meta()).unwrap();
        let mut body = draft.envelope.body().to_vec();
        // One more entry, which a tolerant reader would skip.
        body[0] += 1;
        body.extend([0x18, 99, 0]);
        draft.envelope = with_body(&draft.envelope, body);
        let bytes = draft.sign(&[&key("alice")]).unwrap();
        let error = open(&bytes, |_| ()).unwrap_err().to_string();
        assert!(error.contains("the one form"), "{error}");
    }

    #[test]
    fn every_flipped_bit_and_every_missing_end_is_refused() {
        let good = signed(meta());
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                assert!(open(&bad, |_| ()).is_err(), "bit {bit} of byte {at}");
            }
            assert!(open(&good[..at], |_| ()).is_err(), "the first {at} bytes");
        }
        assert!(open(&[&good[..], b"\0"].concat(), |_| ()).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn any_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            prop_assert!(open(&bytes, |_| ()).is_err());
        }

        #[test]
        fn any_manifest_under_a_good_signature_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let mut draft = Bundle::build(&some(), meta()).unwrap();
            let at = bytes.first().map_or(0, |&at| usize::from(at)) % draft.envelope.body().len();
            let mut body = draft.envelope.body().to_vec();
            body.splice(at.., bytes);
            draft.envelope = with_body(&draft.envelope, body);
            let _ = open(&draft.sign(&[&key("alice")]).unwrap(), |_| ());
        }

        #[test]
        fn any_files_round_trip_to_the_same_bytes(
            files in proptest::collection::btree_map("([a-z]{1,8}/)?[a-zA-Z0-9_-]{1,8}\\.cedar", ".{0,40}", 0..6),
            revision in 1..u64::MAX,
            note in proptest::option::of("[ -~é]{1,20}"),
            reversed: bool,
        ) {
            let mut sources: Vec<Source> =
                files.iter().map(|(name, text)| Source { name: name.clone(), text: text.clone() }).collect();
            if reversed {
                sources.reverse();
            }
            let meta = Meta { revision, note, ..meta() };
            let bytes = Bundle::build(&sources, meta.clone()).unwrap().sign(&[&key("alice")]).unwrap();
            let bundle = open(&bytes, |_| ()).unwrap();
            let read: Vec<_> = bundle.sources().iter().map(|s| (s.name.clone(), s.text.clone())).collect();
            prop_assert_eq!(read, files.into_iter().collect::<Vec<_>>());
            let again = Bundle::build(bundle.sources(), meta).unwrap().sign(&[&key("alice")]).unwrap();
            prop_assert_eq!(bytes, again);
        }
    }
}
