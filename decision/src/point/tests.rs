//! The decision point: what the record says, what a shadow may not do, and what staleness, grants and panics come to.

use std::sync::LazyLock;
use std::time::Duration;

use hoplite_audit::{Options, Phase, Query, read_log};
use hoplite_identity::testing::TestAuthority;
use hoplite_identity::{ServiceName, VerifiedPeer};
use hoplite_policy::Source;
use hoplite_policy::bundle::{BUNDLE_BYTES_MAX, Bundle, BundleContents, EngineVersion, Meta, Seen, Stage};
use hoplite_policy::grant::{GrantDraft, GrantScope};
use hoplite_policy::holding::PolicyTrust;
use hoplite_seal::{SigningKey, TrustedSigners};
use http::StatusCode;
use zeroize::Zeroizing;

use super::*;
use crate::draft::{Facts, HeaderFields, HttpRequest, Witness};

static LEDGER: LazyLock<ServiceName> = LazyLock::new(|| "ledger".parse().unwrap());

const PERMIT: &str = "@id(\"pay/read\") permit (principal, action in Hoplite::Action::\"read\", resource);";
const FORBID: &str = "@id(\"no\") forbid (principal, action, resource);";
const ROUTES: &str = "[ledger]\nroutes = [\"GET /accounts/{id}\"]";

struct World {
    dir: tempfile::TempDir,
    feed: Arc<CurrentPolicy>,
    peer: VerifiedPeer,
}

fn key(name: &str) -> SigningKey {
    let mut seed = [3; 32];
    seed[..name.len()].copy_from_slice(name.as_bytes());
    SigningKey::from_seed(name, Zeroizing::new(seed)).unwrap()
}

fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let authority = TestAuthority::new("prod.acme");
    let peer = authority.peer("/web");
    let signers = ["alice", "bob"].map(|name| key(name).signer().clone());
    let trust = PolicyTrust::new(
        TrustedSigners::new(signers).unwrap(),
        peer.spiffe_id().trust_domain().clone(),
    );
    let feed = Arc::new(CurrentPolicy::new(dir.path(), Some(trust), SystemTime::now()));
    World { dir, feed, peer }
}

impl World {
    fn publish(&self, revision: u64, stage: Stage, policies: &str, expires: Duration) -> Seen {
        self.publish_with(revision, stage, policies, &[], expires)
    }

    /// With headers that are selected.
    fn publish_with(&self, revision: u64, stage: Stage, policies: &str, headers: &[&str], expires: Duration) -> Seen {
        let source = |name: &str, text: &str| Source {
            name: name.to_owned(),
            text: text.to_owned(),
        };
        let meta = Meta {
            trust_domain: self.peer.spiffe_id().trust_domain().clone(),
            revision,
            parent: None,
            created: SystemTime::now(),
            expires: SystemTime::now() + expires,
            min_engine: EngineVersion::THIS,
            critical: Vec::new(),
            stage,
            note: None,
        };
        let mut sources = vec![source("a.cedar", policies), source("routes.toml", ROUTES)];
        if !headers.is_empty() {
            sources.push(source("headers.toml", &format!("headers = {headers:?}")));
        }
        let bundle = Bundle::build(&sources, meta).unwrap();
        let bytes = bundle.sign(&[&key("alice")]).unwrap();
        self.feed.offer(&bytes, SystemTime::now()).unwrap();
        Seen::from(&BundleContents::danger_read_unverified(&bytes, BUNDLE_BYTES_MAX).unwrap())
    }

    fn point(&self, every: u64, on_stale: OnStale) -> DecisionPoint {
        let (recorder, _) = Recorder::open(&self.dir.path().join("audit"), "test", Options::default()).unwrap();
        DecisionPoint::new(self.feed.clone(), recorder, every, on_stale)
    }

    /// Asks `GET /accounts/7` at a moment.
    async fn ask(&self, point: &DecisionPoint, at: SystemTime) -> (bool, Record) {
        let (answer, record) = self.ask_with(point, at, None).await;
        (answer.is_ok(), record)
    }

    /// A question with these headers.
    async fn ask_with(
        &self,
        point: &DecisionPoint,
        at: SystemTime,
        headers: Option<&[(&str, &str)]>,
    ) -> (Result<(), Why>, Record) {
        let judged = self.judge(point, at, headers).await;
        (judged.answer().map(drop).map_err(Clone::clone), judged.record().clone())
    }

    async fn judge<'p>(
        &'p self,
        point: &'p DecisionPoint,
        at: SystemTime,
        headers: Option<&[(&str, &str)]>,
    ) -> Judged<'p, HttpRequest<Told>> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let asked = HttpRequest {
            canonical: CanonicalRequest::parse("GET", &[b"ledger"], b"/accounts/7").unwrap(),
            rest: Told(headers.map(|headers| headers.iter().map(owned).collect())),
        };
        let from = Transport::new([10, 0, 0, 1].into());
        point.judge(self.draft(Phase::Request).at(at), asked, &from).await
    }

    fn draft(&self, phase: Phase) -> Draft<'_> {
        Draft::new(Facts {
            phase,
            service: &LEDGER,
            witness: Witness::Own {
                peer: &self.peer,
                tls: "1.3 X25519MLKEM768",
            },
            source: Some("10.0.0.1:4711".to_owned()),
            trace_id: None,
        })
    }

    fn records(&self) -> Vec<Record> {
        let log = read_log(&self.dir.path().join("audit"), &Query::default()).unwrap();
        log.map(Result::unwrap).collect()
    }
}

/// The headers that a test tells.
struct Told(Option<Vec<(String, String)>>);

impl HeaderFields for Told {
    fn fields(&self) -> Option<impl Iterator<Item = (&str, &[u8])>> {
        let fields = self.0.as_ref()?.iter();
        Some(fields.map(|(name, value)| (name.as_str(), value.as_bytes())))
    }
}

fn count(point: &DecisionPoint, name: &str) -> u64 {
    let text = point.metrics().text();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(&format!("sample_{name} ")));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn the_record_says_what_was_decided_by_what() {
    let world = world();
    let point = world.point(1, OnStale::Keep);
    let (allowed, record) = world.ask(&point, SystemTime::now()).await;
    assert!(!allowed && record.outcome == Outcome::Error, "{record:?}");
    assert!(record.reason.unwrap().contains("no policy has been loaded"));

    assert_eq!((record.bundle_revision, record.bundle_manifest), (None, None));

    let published = world.publish(3, Stage::Live, PERMIT, HOUR);
    let (allowed, record) = world.ask(&point, SystemTime::now()).await;
    assert!(allowed);
    assert_eq!(
        record.bundle_manifest,
        Some(published.manifest.0),
        "the whole of what was signed"
    );
    assert_eq!(
        (record.outcome, record.bundle_revision, record.stale),
        (Outcome::Allow, Some(3), false)
    );
    assert_eq!(record.route.as_deref(), Some("ledger:GET /accounts/{id}"));
    assert_eq!(
        (record.action.as_str(), &record.determining[..]),
        ("GET", &["pay/read".to_owned()][..])
    );
    // The second may fall into the pause after the first.
    assert!((1..=2).contains(&count(&point, "reference_checks_total")));
    assert_eq!(count(&point, "reference_differences_total"), 0);

    let granted = world.judge(&point, SystemTime::now(), None).await.recorded().await;
    let (asked, id) = granted.ok().unwrap().spend();
    assert_eq!(asked.canonical.path(), "/accounts/7", "what was asked for goes on");
    drop(point);
    let records = world.records();
    let [record] = &records[..] else {
        panic!("what is judged and dropped is not recorded: {records:?}")
    };
    assert_eq!(record.id, id);
    assert_eq!(record.principal.as_deref(), Some(world.peer.spiffe_id().as_str()));
    assert_eq!(record.peer_serial.as_deref(), Some(world.peer.serial()));
    assert_eq!(record.source.as_deref(), Some("10.0.0.1:4711"));
    assert_eq!(record.tls.as_deref(), Some("1.3 X25519MLKEM768"));
}

#[tokio::test]
async fn a_shadow_never_changes_an_answer() {
    let world = world();
    let point = world.point(0, OnStale::Keep);
    for (revision, live, shadow, allowed, shadowed, differs) in [
        (1, PERMIT, FORBID, true, Outcome::Forbid, true),
        (3, PERMIT, PERMIT, true, Outcome::Allow, false),
        (5, FORBID, PERMIT, false, Outcome::Allow, true),
        (7, "// nothing", FORBID, false, Outcome::Forbid, true),
        // An error in the shadow is the shadow's own.
        (
            9,
            PERMIT,
            "@id(\"broken\") forbid (principal, action in Hoplite::Action::\"read\", resource) when { context.seg.n * 9223372036854775807 > 0 };",
            true,
            Outcome::Error,
            true,
        ),
    ] {
        world.publish(revision, Stage::Live, live, HOUR);
        world.publish(revision + 1, Stage::Shadow, shadow, HOUR);
        let (answered, record) = world.ask(&point, SystemTime::now()).await;
        assert_eq!(
            (answered, record.shadow_outcome, record.shadow_differs()),
            (allowed, Some(shadowed), differs)
        );
        assert!(record.shadow_revision.is_some());
        if differs && shadowed == Outcome::Forbid {
            assert_eq!(record.shadow_determining, ["no"]);
        }
    }
    assert_eq!(count(&point, "shadow_differences_total"), 4);
}

#[tokio::test]
async fn a_policy_that_has_expired_says_so_and_denies_where_that_is_demanded() {
    let world = world();
    world.publish(1, Stage::Live, PERMIT, HOUR);
    let end = SystemTime::now() + HOUR;
    let point = world.point(0, OnStale::Keep);
    let (allowed, record) = world.ask(&point, end).await;
    assert!(allowed && record.stale);
    assert_eq!(point.denies_all(&world.feed.in_force(), end), None);
    drop(point);
    let strict = world.point(0, OnStale::Deny);
    let (allowed, record) = world.ask(&strict, end).await;
    assert!(!allowed && record.stale && record.outcome == Outcome::Error);
    let denies_all = |at| strict.denies_all(&world.feed.in_force(), at).map(str::to_owned);
    assert_eq!(denies_all(end), record.reason, "which proxies say of themselves");
    assert!(denies_all(end).unwrap().contains("expired"));
    assert_eq!(denies_all(SystemTime::now()), None);
    assert!(world.ask(&strict, SystemTime::now()).await.0);
    assert_eq!(count(&strict, "stale_decisions_total"), 1);
}

#[tokio::test]
async fn a_grant_lets_in_loudly_and_no_further_than_a_forbid() {
    let world = world();
    let point = world.point(1, OnStale::Keep);
    let now = SystemTime::now();
    let who = GrantScope::Workload(world.peer.spiffe_id().to_string());
    let domain = world.peer.spiffe_id().trust_domain();
    let draft = GrantDraft::new(
        domain,
        "inc-1",
        "INC-1",
        "stuck",
        who,
        &"ledger".parse().unwrap(),
        (now, now + HOUR),
        now,
    )
    .unwrap();
    let grant = GrantDraft::sign_too(&draft.sign(&key("alice")).unwrap(), &key("bob")).unwrap();
    world.publish(1, Stage::Live, "// nothing", HOUR);
    assert!(!world.ask(&point, now).await.0);
    world.feed.offer_grants(&[&grant], now);
    let (allowed, record) = world.ask(&point, now + Duration::from_secs(1)).await;
    assert!(allowed, "{record:?}");
    assert_eq!(
        (&record.determining[..], count(&point, "break_glass_total")),
        (&["break-glass/inc-1".to_owned()][..], 1)
    );
    assert!(!world.ask(&point, now + HOUR).await.0, "its time is over");
    world.publish(2, Stage::Live, FORBID, HOUR);
    assert!(
        !world.ask(&point, now + Duration::from_secs(1)).await.0,
        "a forbid holds"
    );
}

/// Permits where the tenant is `acme`; nothing is known of who is not told.
const TENANT: &str = "@id(\"tenant\") permit (principal, action in Hoplite::Action::\"read\", resource)
    when { context.hdr has \"x-tenant\" && context.hdr[\"x-tenant\"] == \"acme\" };";

#[tokio::test]
async fn headers_are_read_by_the_policy_that_decides() {
    let world = world();
    let point = world.point(1, OnStale::Keep);
    let twice = Some(&[("x-tenant", "acme"), ("x-tenant", "acme"), ("x-other", "1")][..]);
    // Nobody looks at them, so they may stand there as they like.
    world.publish(1, Stage::Live, PERMIT, HOUR);
    let (answer, record) = world.ask_with(&point, SystemTime::now(), twice).await;
    assert!(answer.is_ok() && record.headers.is_empty(), "{record:?}");

    world.publish_with(2, Stage::Live, TENANT, &["x-tenant", "x-debug"], HOUR);
    let (answer, record) = world.ask_with(&point, SystemTime::now(), twice).await;
    let Err(Why::Ambiguous(why)) = answer else {
        panic!("{record:?}")
    };
    assert_eq!((why.code(), record.outcome), ("header_twice", Outcome::Malformed));
    assert!(
        record.reason.as_ref().unwrap().starts_with("header_twice: "),
        "{record:?}"
    );
    assert_eq!(
        (record.path.as_deref(), record.bundle_revision),
        (Some("/accounts/7"), Some(2))
    );

    let acme = Some(&[("x-tenant", "acme"), ("x-other", "1")][..]);
    let (answer, record) = world.ask_with(&point, SystemTime::now(), acme).await;
    assert!(answer.is_ok(), "{record:?}");
    let expected = [
        ("x-debug".to_owned(), None),
        ("x-tenant".to_owned(), Some("acme".to_owned())),
    ];
    assert_eq!(record.headers, expected.into());
    let (answer, record) = world.ask_with(&point, SystemTime::now(), Some(&[])).await;
    assert_eq!((answer.unwrap_err(), record.outcome), (Why::Denied, Outcome::NoPermit));
    let (answer, record) = world.ask_with(&point, SystemTime::now(), None).await;
    assert_eq!((answer.unwrap_err(), record.outcome), (Why::Denied, Outcome::Error));
    assert!(record.reason.unwrap().contains("x-debug") && record.headers.is_empty());
    assert_eq!(count(&point, "reference_differences_total"), 0);
}

#[tokio::test]
async fn a_shadow_selects_headers_for_itself_alone() {
    let world = world();
    let point = world.point(0, OnStale::Keep);
    world.publish(1, Stage::Live, PERMIT, HOUR);
    world.publish_with(2, Stage::Shadow, TENANT, &["x-tenant"], HOUR);
    for (headers, shadowed) in [
        (&[("x-tenant", "acme")][..], Outcome::Allow),
        (&[("x-tenant", "b")], Outcome::NoPermit),
        (&[("x-tenant", "acme"), ("x-tenant", "acme")], Outcome::Malformed),
    ] {
        let (answer, record) = world.ask_with(&point, SystemTime::now(), Some(headers)).await;
        assert!(answer.is_ok() && record.outcome == Outcome::Allow, "{record:?}");
        assert_eq!(
            (record.shadow_outcome, record.headers.len()),
            (Some(shadowed), 0),
            "{headers:?}"
        );
    }
}

#[tokio::test]
async fn what_is_refused_says_why_and_is_recorded() {
    let world = world();
    let point = world.point(0, OnStale::Keep);
    world.publish_with(1, Stage::Live, TENANT, &["x-tenant"], HOUR);
    let twice = Some(&[("x-tenant", "acme"), ("x-tenant", "acme")][..]);
    let judged = |headers| world.judge(&point, SystemTime::now(), headers);
    let denied = judged(Some(&[])).await.recorded().await.err().unwrap();
    let ambiguous = judged(twice).await.recorded().await.err().unwrap();
    let unasked = Unasked::malformed("method_refused", "it is a teapot").with_status(StatusCode::METHOD_NOT_ALLOWED);
    let unasked = point.refuse(world.draft(Phase::Request).action("BREW"), unasked).await;
    let stranger = Stranger {
        service: &LEDGER,
        vouched_by: None,
        source: None,
        trace_id: None,
    };
    let stranger = point
        .refuse_stranger(stranger, Unasked::unauthenticated("no_certificate", "none was shown"))
        .await;
    let records = world.records();
    assert_eq!(records.len(), 4);
    for (refused, record, status, code, outcome) in [
        (&denied, &records[0], 403, "denied", Outcome::NoPermit),
        (&ambiguous, &records[1], 400, "header_twice", Outcome::Malformed),
        (&unasked, &records[2], 405, "method_refused", Outcome::Malformed),
        (&stranger, &records[3], 401, "no_certificate", Outcome::Unauthenticated),
    ] {
        assert_eq!((refused.status().as_u16(), refused.code()), (status, code));
        assert_eq!((refused.outcome(), refused.decision()), (outcome, Some(&record.id)));
        assert_eq!(record.outcome, outcome);
    }
    assert_eq!(records[2].action, "BREW");
    assert_eq!(records[2].reason.as_deref(), Some("method_refused: it is a teapot"));
    assert_eq!(
        (records[3].phase, records[3].principal.as_deref()),
        (Phase::Handshake, None)
    );
}

#[tokio::test]
async fn what_was_granted_is_asked_about_again_with_the_headers_known_then() {
    let world = world();
    let point = world.point(0, OnStale::Keep);
    world.publish_with(1, Stage::Live, TENANT, &["x-tenant"], HOUR);
    let acme = Some(&[("x-tenant", "acme"), ("x-debug", "1")][..]);
    let granted = world.judge(&point, SystemTime::now(), acme).await.recorded().await;
    let (asked, id) = granted.ok().unwrap().spend();
    let from = Transport::new([10, 0, 0, 1].into());
    let recheck = async || {
        point
            .recheck(world.draft(Phase::Recheck), Some(&asked.canonical), &from)
            .await
    };
    let revision = recheck().await.unwrap().revision().to_owned();
    assert_eq!(world.feed.in_force().live().revision(), revision);
    assert_eq!(world.records().len(), 1, "what is granted still is not recorded");

    // `x-debug` was there, but nobody had selected it; so nothing is known of it, and a policy on this call looks at headers.
    world.publish_with(2, Stage::Live, TENANT, &["x-debug", "x-tenant"], HOUR);
    let unknown = recheck().await.unwrap_err();
    world.publish(3, Stage::Live, FORBID, HOUR);
    let forbidden = recheck().await.unwrap_err().granted_as(&id);
    let refused = point.record_all(vec![unknown, forbidden]).await;
    let outcomes: Vec<_> = refused.iter().map(Refused::outcome).collect();
    assert_eq!(outcomes, [Outcome::Error, Outcome::Forbid]);
    let records = world.records().split_off(1);
    let ids: Vec<_> = records.iter().map(|record| Some(&record.id)).collect();
    assert_eq!(refused.iter().map(Refused::decision).collect::<Vec<_>>(), ids);
    assert!(records.iter().all(|record| record.phase == Phase::Recheck));
    assert!(records[0].reason.as_ref().unwrap().contains("x-debug"), "{records:?}");
    assert_eq!(records[1].reason, Some(format!("it was permitted as {id}")));
}

/// `GET /accounts/7`, by somebody.
async fn refused_by(world: &World, point: &DecisionPoint, peer: &VerifiedPeer) -> Refused {
    let draft = Draft::new(Facts {
        phase: Phase::Request,
        service: &LEDGER,
        witness: Witness::Own { peer, tls: "1.3" },
        source: None,
        trace_id: None,
    });
    let asked = HttpRequest {
        canonical: CanonicalRequest::parse("GET", &[b"ledger"], b"/accounts/7").unwrap(),
        rest: Told(None),
    };
    let from = Transport::new([10, 0, 0, 1].into());
    let judged = point.judge(draft, asked, &from).await;
    assert!(!world.dir.path().as_os_str().is_empty());
    judged.recorded().await.err().unwrap()
}

fn refusals(records: &[Record]) -> u64 {
    let refused = records.iter().filter(|record| record.outcome != Outcome::Allow);
    refused.map(|record| 1 + record.suppressed).sum()
}

/// A caller that is refused all day writes no more than its share, and neither its permits nor anybody else's records are
/// touched by that. Nothing goes uncounted.
#[tokio::test]
async fn a_caller_that_is_refused_all_day_is_counted() {
    let world = world();
    let point = world.point(0, OnStale::Keep);
    let authority = TestAuthority::new("prod.acme");
    let [busy, quiet] = ["/busy", "/quiet"].map(|path| authority.peer(path));
    let only_web =
        "@id(\"web\") permit (principal == Hoplite::Workload::\"spiffe://prod.acme/web\", action, resource);";
    world.publish(1, Stage::Live, only_web, HOUR);
    let mut without_id = 0;
    for n in 0..1_500 {
        let refused = refused_by(&world, &point, &busy).await;
        assert_eq!((refused.status().as_u16(), refused.code()), (403, "denied"));
        without_id += u64::from(refused.decision().is_none());
        assert_eq!(refused.body().contains("decision"), refused.decision().is_some());
        if n % 100 == 0 {
            assert!(refused_by(&world, &point, &quiet).await.decision().is_some());
            let granted = world.judge(&point, SystemTime::now(), None).await.recorded().await;
            assert!(granted.is_ok(), "what is allowed has a record each");
        }
    }
    assert!(without_id > 0, "the bound is never reached");
    point.roll_up();
    let records = world.records();
    let of = |name: &str| -> Vec<Record> {
        let of = |record: &&Record| record.principal.as_deref() == Some(&format!("spiffe://prod.acme{name}"));
        records.iter().filter(of).cloned().collect()
    };
    assert_eq!(refusals(&of("/busy")), 1_500);
    assert!(of("/busy").len() < 1_500, "{}", of("/busy").len());
    assert_eq!((of("/quiet").len(), refusals(&of("/quiet"))), (15, 15));
    assert_eq!(of("/web").len(), 15);
    assert_eq!(count(&point, "refusals_rolled_up_total"), without_id);
    assert_eq!(point.metrics().decided(), 1_530);
    assert_eq!(count(&point, "records_total"), records.len() as u64);
}

/// The test runs itself again and is killed: what has been rolled up is in the log, all but the last second of refusals.
#[test]
fn counts_survive_a_kill() {
    use std::io::{BufRead, BufReader, Write};
    const AGAIN: &str = "HOPLITE_TEST_COUNTS_SURVIVE";
    if let Some(directory) = std::env::var_os(AGAIN) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        return runtime.block_on(async {
            let (recorder, _) = Recorder::open(directory.as_ref(), "test", Options::default()).unwrap();
            let log = Log::new(recorder);
            for refused in 1_u64.. {
                let record = Record::new(Phase::Request, Outcome::Forbid, "ledger", SystemTime::now());
                log.record(record).await.unwrap();
                if refused.is_multiple_of(1_000) {
                    log.roll_up();
                    let mut out = std::io::stdout().lock();
                    writeln!(out, "\ncounted {refused}").unwrap();
                    out.flush().unwrap();
                }
            }
        });
    }
    let dir = tempfile::tempdir().unwrap();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "point::tests::counts_survive_a_kill", "--nocapture"])
        .env(AGAIN, dir.path())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok);
    let counted = |line: String| line.strip_prefix("counted ").map(|n| n.parse::<u64>().unwrap());
    let counted = lines.filter_map(counted).take_while(|n| *n < 7_000).last().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let log = read_log(dir.path(), &Query::default()).unwrap();
    let records: Vec<Record> = log.map(Result::unwrap).collect();
    assert!(refusals(&records) >= counted, "{} of {counted}", refusals(&records));
    assert!(records.len() < 3_000, "{}", records.len());
}
