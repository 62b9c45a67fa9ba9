//! What registration costs with a crowd of agents and entries: entries a second, from a registration to the SVID, the CA's memory for an
//! agent, and how soon all agents are back after the CA was killed.
//!
//! `cargo bench -p hoplite-bench --bench registration [-- --agents N --entries N] [--program HOPLITE]`. Each agent joins by token, and has an
//! SVID, an address and a TLS connection of its own, on which it watches and asks for SVIDs over gRPC. The CA is a process of its own:
//! this program's, or `HOPLITE ca run`.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "a measurement that cannot start has nothing to measure, and prints what it saw"
)]

mod crowd;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hoplite_host::process::{self, Hardening};
use hoplite_identity::{EntryId, EntrySum, PeerVerifier, X509Svid};
use hoplite_wire::ca::admin_client::AdminClient;
use hoplite_wire::ca::node_client::NodeClient;
use hoplite_wire::ca::{
    CreateEntriesRequest, Entry, Epoch, IssueItem, IssueRequest, ListEntriesRequest, Selector, Update, WatchRequest,
};
use hoplite_wire::channel;
use rcgen::{CertificateParams, KeyPair};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tonic::Streaming;
use tonic::transport::Channel;

use crowd::{AT_ONCE, Ca, DOMAIN, dial, join};

/// In one commit.
const BATCH: usize = 1_000;
/// Registrations one after another, and at a rate.
const ALONE: usize = 300;
const AT_A_RATE: usize = 2_000;
const A_SECOND: u32 = 200;

/// What all agents share.
struct Shared {
    ca: SocketAddr,
    verifier: Arc<PeerVerifier>,
    csr: Vec<u8>,
    /// Entries that all agents hold together.
    held: AtomicU64,
    /// Agents that watch and have heard what they lack.
    watching: AtomicU64,
    /// Whose digest was not the CA's.
    differing: AtomicU64,
    at_once: Semaphore,
    /// Paths of measured entries, when the agent had the SVID.
    issued: mpsc::Sender<(String, Instant)>,
}

/// One agent.
struct Agent {
    number: usize,
    svid: X509Svid,
    shared: Arc<Shared>,
    sum: EntrySum,
    entries: std::collections::HashMap<String, u64>,
    revision: u64,
    epoch: Option<Epoch>,
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    // `cargo test --benches` asks with `--test` whether it starts.
    if arguments.iter().any(|argument| argument == "--test") {
        return;
    }
    process::harden(Hardening::NoCore).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    if let [_, flag, dir, port] = arguments.as_slice()
        && flag == "--ca"
    {
        return runtime.block_on(crowd::ca(Path::new(dir), port.parse().unwrap()));
    }
    let named = |name: &str| arguments.iter().skip_while(|argument| *argument != name).nth(1);
    let number = |name: &str, default: usize| named(name).map_or(default, |text| text.parse().unwrap());
    let possible = process::places(1, 1).saturating_sub(16);
    let (agents, entries) = (number("--agents", 10_000).min(possible), number("--entries", 100_000));
    println!("{agents} agents, {entries} entries");
    runtime.block_on(measure(agents, entries, named("--program").map(Path::new)));
}

async fn measure(agents: usize, entries: usize, program: Option<&Path>) {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::start(dir.path(), program, None);
    let (socket, address) = (dir.path().join("ca.sock"), ca.address());
    let verifier = ca.verifier(dir.path());
    ca.told("at the start");

    let svids = join(agents, &socket, address, &verifier).await;
    let joined = ca.resident();
    ca.told("with agents registered, none connected");

    let admin = AdminClient::new(channel::unix(&socket).await.unwrap());
    let (began, before) = (Instant::now(), ca.cpu());
    let batches: Vec<Vec<Entry>> = (0..entries)
        .map(|n| entry(&format!("/service/{n}"), n % agents))
        .collect::<Vec<_>>()
        .chunks(BATCH)
        .map(<[Entry]>::to_vec)
        .collect();
    for four in batches.chunks(4) {
        let mut creating = JoinSet::new();
        for entries in four.iter().cloned() {
            let mut admin = admin.clone();
            creating.spawn(async move {
                let results = admin
                    .create_entries(CreateEntriesRequest { entries })
                    .await
                    .unwrap()
                    .into_inner()
                    .results;
                assert!(results.iter().all(|result| result.error.is_empty()));
            });
        }
        creating.join_all().await;
    }
    let (took, cpu) = (began.elapsed(), ca.cpu() - before);
    println!(
        "{entries} entries, {BATCH} to a commit, four at once: {took:.1?}, {:.0} a second; {:.0} µs of the CA's CPU each",
        entries as f64 / took.as_secs_f64(),
        cpu * 1e6 / entries as f64
    );
    let filled = ca.resident();
    println!(
        "CA's memory with them: {filled} kB; {:.2} kB an entry",
        (filled - joined) as f64 / entries as f64
    );
    listed(&ca, &admin).await;

    let pair = KeyPair::generate().unwrap();
    let csr = CertificateParams::default()
        .serialize_request(&pair)
        .unwrap()
        .der()
        .to_vec();
    let (issued, mut told) = mpsc::channel(1024);
    let shared = Arc::new(Shared {
        ca: address,
        verifier,
        csr,
        held: AtomicU64::new(0),
        watching: AtomicU64::new(0),
        differing: AtomicU64::new(0),
        at_once: Semaphore::new(AT_ONCE),
        issued,
    });
    let (began, before) = (Instant::now(), ca.cpu());
    for (number, svid) in svids.into_iter().enumerate() {
        let agent = Agent {
            number,
            svid,
            shared: shared.clone(),
            sum: EntrySum::default(),
            entries: std::collections::HashMap::new(),
            revision: 0,
            epoch: None,
        };
        tokio::spawn(agent.run());
    }
    shared.reach(agents, entries).await;
    println!(
        "all connected, watching, with all their entries: {:.1?}, CA's CPU {:.1} s",
        began.elapsed(),
        ca.cpu() - before
    );
    tokio::time::sleep(Duration::from_secs(3)).await;
    println!(
        "CA's memory with all connected: {} kB; {:.1} kB an agent",
        ca.resident(),
        (ca.resident() - filled) as f64 / agents as f64
    );

    // Registration to SVID.
    let (mut spans, before) = (Vec::new(), ca.cpu());
    for n in 0..ALONE {
        let began = create(&admin, entry(&format!("/measured/{n}"), n * 7_919 % agents)).await;
        let (_, at) = told.recv().await.unwrap();
        spans.push(at.saturating_duration_since(began));
    }
    distribution("registration → SVID, one after another", spans, ca.cpu() - before);
    let (mut began, before) = (std::collections::HashMap::new(), ca.cpu());
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / A_SECOND);
    let mut spans = Vec::new();
    let mut creating = JoinSet::new();
    while spans.len() < AT_A_RATE {
        tokio::select! {
            _ = ticks.tick(), if began.len() < AT_A_RATE => {
                let path = format!("/measured/rate-{}", began.len());
                let entry = entry(&path, began.len() * 7_919 % agents);
                began.insert(entry.spiffe_id.clone(), Instant::now());
                let admin = admin.clone();
                creating.spawn(async move { create(&admin, entry).await });
            }
            Some((id, at)) = told.recv() => spans.push(at.saturating_duration_since(began[&id])),
        }
    }
    distribution(
        &format!("registration → SVID, {A_SECOND} a second"),
        spans,
        ca.cpu() - before,
    );

    // A group that all are in.
    let (began, before, held) = (Instant::now(), ca.cpu(), shared.held.load(Ordering::Relaxed));
    let of_all = Entry {
        parent_id: String::new(),
        node_selectors: vec![Selector {
            kind: "token:label".into(),
            value: "all".into(),
        }],
        ..entry("/of-all", 0)
    };
    let mut by_all = admin.clone();
    let request = CreateEntriesRequest { entries: vec![of_all] };
    let result = by_all
        .create_entries(request)
        .await
        .unwrap()
        .into_inner()
        .results
        .remove(0);
    if result.error.is_empty() {
        while shared.held.load(Ordering::Relaxed) < held + agents as u64 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        println!(
            "an entry of a group that all are in: with each after {:.1?}, CA's CPU {:.2} s",
            began.elapsed(),
            ca.cpu() - before
        );
    } else {
        println!("this CA has no groups: {}", result.error);
    }

    // Killed.
    let killed = Instant::now();
    drop(ca);
    let ca = Ca::start(dir.path(), program, Some(address.port()));
    let listens = killed.elapsed();
    shared.watching.store(0, Ordering::SeqCst);
    let entries = shared.held.load(Ordering::SeqCst) as usize;
    shared.reach(agents, entries).await;
    println!(
        "killed and started: it listens after {listens:.1?}, all agents are back after {:.1?}, CPU {:.1} s; {} had another digest",
        killed.elapsed(),
        ca.cpu(),
        shared.differing.load(Ordering::Relaxed)
    );
    ca.told("with all back");
}

async fn listed(ca: &Ca, admin: &AdminClient<Channel>) {
    let (began, before, mut page, mut count) = (Instant::now(), ca.cpu(), String::new(), 0);
    loop {
        let asked = ListEntriesRequest {
            page_size: 5_000,
            page,
            ..ListEntriesRequest::default()
        };
        let mut admin = admin.clone().max_decoding_message_size(64 << 20);
        let answer = admin.list_entries(asked).await.unwrap().into_inner();
        count += answer.entries.len();
        page = answer.next_page;
        if page.is_empty() {
            break;
        }
    }
    println!(
        "listed {count}: {:.1?}, CA's CPU {:.2} s",
        began.elapsed(),
        ca.cpu() - before
    );
}

/// Answers when it was asked for.
async fn create(admin: &AdminClient<Channel>, entry: Entry) -> Instant {
    let began = Instant::now();
    let mut admin = admin.clone();
    let request = CreateEntriesRequest { entries: vec![entry] };
    let results = admin.create_entries(request).await.unwrap().into_inner().results;
    assert_eq!(results[0].error, "");
    began
}

fn distribution(what: &str, mut spans: Vec<Duration>, cpu: f64) {
    spans.sort();
    let at = |part: f64| spans[((spans.len() - 1) as f64 * part) as usize];
    println!(
        "{what}, {} times: p50 {:.1?}, p99 {:.1?}, most {:.1?}; CA's CPU {:.2} ms each",
        spans.len(),
        at(0.5),
        at(0.99),
        at(1.0),
        cpu * 1e3 / spans.len() as f64
    );
}

fn entry(path: &str, node: usize) -> Entry {
    Entry {
        spiffe_id: format!("spiffe://{DOMAIN}{path}"),
        parent_id: format!("spiffe://{DOMAIN}/hoplite/agent/n{node}"),
        selectors: vec![
            Selector {
                kind: "unix:uid".into(),
                value: "1000".into(),
            },
            Selector {
                kind: "unix:path".into(),
                value: format!("/opt{path}/bin/server"),
            },
        ],
        ..Entry::default()
    }
}

// === impl Shared ===

impl Shared {
    /// Returns when so many agents watch, and hold so many entries together.
    async fn reach(&self, agents: usize, entries: usize) {
        while self.watching.load(Ordering::SeqCst) < agents as u64 || self.held.load(Ordering::SeqCst) < entries as u64
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

// === impl Agent ===

impl Agent {
    /// Until the measurement ends. Who loses the CA tries again within a second, as agents do at first.
    async fn run(mut self) {
        loop {
            if let Some((node, mut updates)) = self.connect().await {
                let mut is_first = true;
                while let Ok(Some(update)) = updates.message().await {
                    self.take(update, &node).await;
                    if std::mem::take(&mut is_first) {
                        self.shared.watching.fetch_add(1, Ordering::SeqCst);
                    }
                }
            }
            // Not all at the same moment.
            tokio::time::sleep(Duration::from_millis(100 + (self.number as u64 * 7_919) % 900)).await;
        }
    }

    async fn connect(&self) -> Option<(NodeClient<Channel>, Streaming<Update>)> {
        let _permit = self.shared.at_once.acquire().await.unwrap();
        let channel = dial(self.number, Some(&self.svid), self.shared.ca, &self.shared.verifier)
            .await
            .ok()?;
        let mut node = NodeClient::new(channel);
        let request = WatchRequest {
            from_revision: self.revision,
            digest: self.sum.digest().to_vec(),
            process: vec![self.number as u8; 16],
            epoch: self.epoch,
            ..WatchRequest::default()
        };
        let updates = node.watch(request).await.ok()?.into_inner();
        Some((node, updates))
    }

    async fn take(&mut self, update: Update, node: &NodeClient<Channel>) {
        let mut gone = update.deletes;
        if update.full {
            gone.extend(self.entries.keys().cloned());
        }
        let before = self.entries.len() as u64;
        for id in gone {
            if let Some(revision) = self.entries.remove(&id) {
                self.sum.remove(&EntryId::parse(&id).unwrap(), revision);
            }
        }
        let mut measured = Vec::new();
        for entry in update.upserts {
            let id = EntryId::parse(&entry.id).unwrap();
            if let Some(old) = self.entries.insert(entry.id.clone(), entry.revision) {
                self.sum.remove(&id, old);
            }
            self.sum.add(&id, entry.revision);
            if entry.spiffe_id.contains("/measured/") && !update.full {
                measured.push((entry.id, entry.spiffe_id));
            }
        }
        (self.revision, self.epoch) = (update.revision, update.epoch);
        if self.sum.digest().as_slice() != update.digest {
            self.shared.differing.fetch_add(1, Ordering::SeqCst);
        }
        let after = self.entries.len() as u64;
        self.shared.held.fetch_add(after.wrapping_sub(before), Ordering::SeqCst);
        for (entry_id, spiffe_id) in measured {
            let item = IssueItem {
                entry_id,
                csr: self.shared.csr.clone(),
                values: Vec::new(),
            };
            let answer = node
                .clone()
                .issue(IssueRequest { items: vec![item] })
                .await
                .unwrap()
                .into_inner();
            assert_eq!(answer.results[0].error, "");
            self.shared.issued.send((spiffe_id, Instant::now())).await.unwrap();
        }
    }
}
