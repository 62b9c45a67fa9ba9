//! What is done at a CA stands in its log: who, what, from where, by which policy, and what became of it.

use std::path::Path;
use std::time::{Duration, Instant};

use hoplite_audit::{AnyRecord, Control, Issuance, Query, Stage, find, verify_log};
use hoplite_ca::StartError;
use hoplite_identity::{CertificateDer, Leaf};
use hoplite_wire::ca::{
    AgentRequest, ApplyEntriesRequest, CreateEntriesRequest, CreateTokenRequest, DeleteEntriesRequest,
    ListEntriesRequest, RenewRequest, ShowMeshRequest, UpdateEntriesRequest,
};
use tonic::Code;

use crate::world::{DOMAIN, World, agent_id, csr, entry, svid};

pub(crate) fn issuances(dir: &Path) -> Vec<Issuance> {
    let log = find(&dir.join("data/audit"), &Query::default()).unwrap();
    let issuances = log.filter_map(|record| match record.unwrap() {
        AnyRecord::Issuance(issuance) => Some(issuance),
        _ => None,
    });
    issuances.collect()
}

pub(crate) fn acts(dir: &Path) -> Vec<Control> {
    let log = find(&dir.join("data/audit"), &Query::default()).unwrap();
    let controls = log.filter_map(|record| match record.unwrap() {
        AnyRecord::Control(control) => Some(control),
        _ => None,
    });
    controls.collect()
}

/// What is new since the last time, but for what the CA does of its own accord.
struct Log {
    seen: usize,
}

impl Log {
    fn more(&mut self, world: &World) -> Vec<Control> {
        let mut all = acts(world.dir.path());
        let new = all.split_off(self.seen);
        self.seen += new.len();
        new.into_iter().filter(|act| act.actor != "hoplite-ca").collect()
    }
}

fn stages(acts: &[Control]) -> Vec<(&str, Stage, &str)> {
    acts.iter()
        .map(|act| (act.action.as_str(), act.stage, act.subject.as_str()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_operators_do_is_written_down() {
    let world = World::start().await;
    let mut log = Log { seen: 0 };
    let mut admin = world.admin().await;
    let own = format!("local user {}", rustix::process::geteuid().as_raw());

    // One thing.
    let token = CreateTokenRequest {
        node: "n1".into(),
        ..CreateTokenRequest::default()
    };
    admin.create_token(token).await.unwrap();
    let new = log.more(&world);
    assert_eq!(
        stages(&new),
        [("CreateToken", Stage::Begun, "n1"), ("CreateToken", Stage::Done, "n1")]
    );
    for act in &new {
        assert_eq!((act.actor.as_str(), act.source.as_deref()), (own.as_str(), None));
        assert_eq!(act.by, ["local/all"]);
    }
    assert_eq!(new[1].began, Some(new[0].id.seq));

    // Several, each of them.
    let entries = vec![entry("/a", "n1"), entry("/b", "n1")];
    let created = admin.create_entries(CreateEntriesRequest { entries }).await.unwrap();
    let created = created.into_inner().results;
    let ids: Vec<String> = created.iter().map(|r| r.entry.as_ref().unwrap().id.clone()).collect();
    let new = log.more(&world);
    assert_eq!(
        stages(&new),
        [
            ("CreateEntries", Stage::Begun, "2 entries"),
            ("CreateEntries", Stage::Done, ids[0].as_str()),
            ("CreateEntries", Stage::Done, ids[1].as_str()),
            ("CreateEntries", Stage::Done, "2 entries"),
        ]
    );
    let detail = |act: &Control, name: &str| act.detail.get(name).cloned().unwrap_or_default();
    assert_eq!(detail(&new[1], "entry"), "created");
    assert_eq!(detail(&new[1], "spiffe_id"), format!("spiffe://{DOMAIN}/a"));
    assert_eq!(detail(&new[1], "parent_id"), agent_id("n1"));
    assert!(detail(&new[1], "selectors").starts_with("unix:"), "{new:?}");
    let began = Some(new[0].id.seq);
    assert!(new[1..].iter().all(|act| act.began == began), "{new:?}");

    // What changes nothing of an entry is no act on it.
    let mut changed = created[0].entry.clone().unwrap();
    changed.x509_ttl_seconds = 600;
    for expected in [1, 0] {
        let entries = vec![changed.clone()];
        admin.update_entries(UpdateEntriesRequest { entries }).await.unwrap();
        let new = log.more(&world);
        let updated = new.iter().filter(|act| detail(act, "entry") == "updated");
        assert_eq!((updated.count(), new.len()), (expected, 2 + expected), "{new:?}");
        changed.revision = 0;
    }
    let list = ApplyEntriesRequest {
        entries: vec![entry("/c", "n1")],
        owner: "ci".into(),
        prune: true,
        dry_run: true,
    };
    admin.apply_entries(list.clone()).await.unwrap();
    let tried = log.more(&world);
    assert_eq!(tried.len(), 2, "{tried:?}");
    assert!(tried[1].subject.ends_with(", as a trial"), "{tried:?}");
    admin
        .apply_entries(ApplyEntriesRequest { dry_run: false, ..list })
        .await
        .unwrap();
    assert_eq!(log.more(&world).len(), 3);
    let gone = DeleteEntriesRequest {
        ids: vec![ids[1].clone(), "0123".into()],
    };
    admin.delete_entries(gone).await.unwrap();
    let deleted = log.more(&world);
    let parts: Vec<&str> = deleted
        .iter()
        .filter(|act| detail(act, "entry") == "deleted")
        .map(|act| act.subject.as_str())
        .collect();
    assert_eq!(parts, [ids[1].as_str()]);

    // Looking is no act, nor is what was asked wrongly.
    admin.list_entries(ListEntriesRequest::default()).await.unwrap();
    let wrong = CreateTokenRequest {
        node: "no/node".into(),
        ..CreateTokenRequest::default()
    };
    assert_eq!(
        admin.create_token(wrong).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    assert_eq!(log.more(&world), []);

    // What was permitted and failed.
    let nobody = AgentRequest {
        spiffe_id: agent_id("nobody"),
    };
    let error = admin.ban_agent(nobody).await.unwrap_err();
    let new = log.more(&world);
    let subject = agent_id("nobody");
    assert_eq!(
        stages(&new),
        [
            ("BanAgent", Stage::Begun, subject.as_str()),
            ("BanAgent", Stage::Refused, subject.as_str())
        ]
    );
    assert_eq!(new[1].reason.as_deref(), Some(error.message()));

    let report = verify_log(&world.dir.path().join("data/audit")).unwrap();
    assert_eq!(report.findings, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_did_it_over_the_network_is_named_and_who_may_not_too() {
    let world = World::start().await;
    let (_, mut alice) = world.sign_in("alice", &["nodes"], &[]).await;
    let mut log = Log { seen: 0 };
    log.more(&world);
    let token = CreateTokenRequest {
        node: "n1".into(),
        ..CreateTokenRequest::default()
    };
    alice.create_token(token).await.unwrap();
    let who = format!("spiffe://{DOMAIN}/hoplite/operator/alice");
    let new = log.more(&world);
    assert_eq!(new.len(), 2, "{new:?}");
    for act in &new {
        assert_eq!(
            (act.actor.as_str(), act.source.as_deref()),
            (who.as_str(), Some("127.0.0.1"))
        );
        assert_eq!(act.by, ["nodes/agents"]);
    }
    // Once in a while, however often it is tried.
    for _ in 0..5 {
        let entries = vec![entry("/a", "n1")];
        let error = alice
            .create_entries(CreateEntriesRequest { entries })
            .await
            .unwrap_err();
        assert_eq!(error.code(), Code::PermissionDenied);
    }
    let new = log.more(&world);
    assert_eq!(stages(&new), [("CreateEntries", Stage::Refused, "")]);
    assert_eq!(
        (new[0].actor.as_str(), new[0].source.as_deref()),
        (who.as_str(), Some("127.0.0.1"))
    );
    assert!(
        new[0].reason.as_ref().unwrap().contains("may not do `CreateEntries`"),
        "{new:?}"
    );
}

/// Nothing is done that cannot be written down, nothing issued; and all goes on, without a restart, once it can.
#[tokio::test(flavor = "multi_thread")]
async fn without_its_log_a_ca_does_nothing() {
    let world = World::start().await;
    let mut admin = world.admin().await;
    let mut agent = world.join("n1").await;
    let a = world.register(entry("/a", "n1")).await;
    let log = world.dir.path().join("data/audit");
    let elsewhere = world.dir.path().join("elsewhere");
    std::fs::rename(&log, &elsewhere).unwrap();
    // It is noticed within a second; until then what is done is in the log, wherever that is.
    let patience = Duration::from_secs(30);
    let deadline = Instant::now() + patience;
    let mut tried = 0;
    let error = loop {
        let entries = vec![entry(&format!("/tried/{tried}"), "n1")];
        match admin.create_entries(CreateEntriesRequest { entries }).await {
            Ok(_) => tried += 1,
            Err(error) => break error,
        }
        assert!(Instant::now() < deadline, "nobody has noticed");
    };
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    assert!(error.message().contains("cannot write down"), "{error}");
    // Nor does it say that it could.
    let mut not_ready = async || {
        let mut meshes = admin.show_mesh(ShowMeshRequest::default()).await.unwrap().into_inner();
        meshes.message().await.unwrap().unwrap().not_ready
    };
    let why = not_ready().await;
    assert!(
        why.len() == 1 && why[0].contains("can be written down no longer"),
        "{why:?}"
    );
    let refused = agent.issue(vec![(a.clone(), csr().1)]).await.unwrap();
    assert!(refused[0].error.contains("cannot write down"), "{refused:?}");
    let renewed = agent.client.renew(RenewRequest { csr: csr().1 }).await.unwrap_err();
    assert_eq!(renewed.code(), Code::Unavailable, "{renewed}");
    // Whoever only looks is answered. The one that met the failure may have been done, and was told so.
    let listed = admin.list_entries(ListEntriesRequest::default()).await.unwrap();
    let listed = listed.into_inner().entries.len();
    assert!([1 + tried, 2 + tried].contains(&listed), "{listed} of {tried}");
    // It begins no new log in the place of one that is gone.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let entries = vec![entry("/b", "n1")];
    let error = admin
        .create_entries(CreateEntriesRequest { entries })
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    assert!(!log.exists());

    std::fs::rename(&elsewhere, &log).unwrap();
    let deadline = Instant::now() + patience;
    loop {
        let entries = vec![entry("/b", "n1")];
        match admin.create_entries(CreateEntriesRequest { entries }).await {
            Ok(_) => break,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut meshes = admin.show_mesh(ShowMeshRequest::default()).await.unwrap().into_inner();
    assert_eq!(meshes.message().await.unwrap().unwrap().not_ready, Vec::<String>::new());
    let issued = agent.issue(vec![(a, csr().1)]).await.unwrap();
    assert_eq!(issued[0].error, "");
    assert_eq!(verify_log(&log).unwrap().findings, []);

    std::fs::rename(&log, &elsewhere).unwrap();
    let error = world.restart().await.err();
    assert!(matches!(error, Some(StartError::Acts(_))), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_certificate_that_leaves_is_written_down() {
    let world = World::start().await;
    let dir = world.dir.path();
    let first = issuances(dir);
    let ca = format!("spiffe://{DOMAIN}/hoplite/ca");
    assert_eq!(first.len(), 1);
    assert_eq!((first[0].subject.as_str(), first[0].how.as_str()), (ca.as_str(), "own"));

    let mut agent = world.join("n1").await;
    let (a, b) = (
        world.register(entry("/a", "n1")).await,
        world.register(entry("/b", "n1")).await,
    );
    // Of a batch each, in its order; what is refused is not issued.
    let items = vec![(a.clone(), csr().1), ("0123".to_owned(), csr().1), (b.clone(), csr().1)];
    let results = agent.issue(items).await.unwrap();
    let serials: Vec<String> = [&results[0], &results[2]]
        .map(|result| {
            Leaf::parse(&CertificateDer::from(result.chain[0].clone()))
                .unwrap()
                .serial()
                .to_owned()
        })
        .into();
    assert!(!results[1].error.is_empty());
    let (pair, request) = csr();
    let renewed = agent
        .client
        .renew(RenewRequest { csr: request })
        .await
        .unwrap()
        .into_inner();
    let renewed = svid(&pair, renewed.chain);
    let (operator, _) = world.sign_in("alice", &["auditor"], &[]).await;

    let authority = first[0].authority.clone();
    let all = issuances(dir).split_off(1);
    let told: Vec<_> = all
        .iter()
        .map(|issuance| {
            (
                issuance.how.as_str(),
                issuance.serial.as_str(),
                issuance.entry.as_deref(),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            ("join", agent.svid.leaf().serial(), None),
            ("issue", serials[0].as_str(), Some(a.as_str())),
            ("issue", serials[1].as_str(), Some(b.as_str())),
            ("renew", renewed.leaf().serial(), None),
            ("login", operator.leaf().serial(), None),
        ]
    );
    for issuance in &all {
        assert_eq!(issuance.source.as_deref(), Some("127.0.0.1"));
        assert_eq!(issuance.authority, authority);
    }
    assert_eq!(all[1].requester, agent_id("n1"));
    assert_eq!(all[1].subject, format!("spiffe://{DOMAIN}/a"));
    assert_eq!(verify_log(&dir.join("data/audit")).unwrap().findings, []);
}
