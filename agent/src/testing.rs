//! An agent's socket as workloads see it, with a supply that the test decides.

use std::sync::Arc;
use std::time::Duration;

use crate::attest::Attestor;
use crate::attest::launch::Launches;
use crate::authorize;
use crate::authorize::authorizer::Authorizer;
use crate::config::Authorization;
use crate::policy::Feed;
use crate::policy::tests::trust;
use crate::refused::Refused;
use crate::reports::points::Points;
use crate::socket::server::{Places, serve};
use crate::socket::session::Sessions;
use crate::socket::with_services;
use crate::supply::held::HeldSvid;
use crate::supply::named::NamedEntry;
use crate::supply::shelf::{Supplied, Supply};
use crate::supply::testing::entry;
use hoplite_audit::{Query, Record, read_log};
use hoplite_decision::OnStale;
use hoplite_host::shutdown::{Stopper, channel};
use hoplite_host::socket;
use hoplite_identity::BundleSet;
use hoplite_identity::testing::TestAuthority;
use hoplite_policy::holding::Holding;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tonic::transport::Channel;

pub(crate) struct World {
    pub(crate) authority: TestAuthority,
    pub(crate) foreign: TestAuthority,
    pub(crate) supply: watch::Sender<Option<Arc<Supply>>>,
    /// What proxies are told.
    pub(crate) policy: watch::Sender<Arc<Feed>>,
    /// What the authorizer decides by.
    pub(crate) holding: watch::Sender<Arc<Holding>>,
    pub(crate) authorizer: Option<Arc<Authorizer>>,
    pub(crate) stopper: Stopper,
    pub(crate) refused: Arc<Refused>,
    pub(crate) attestor: Arc<Attestor>,
    /// What was reported.
    pub(crate) points: Arc<Points>,
    pub(crate) served: tokio::task::JoinHandle<Result<(), tonic::transport::Error>>,
    pub(crate) directory: tempfile::TempDir,
}

/// The selector that the test process has.
pub(crate) fn own() -> String {
    format!("unix:uid:{}", rustix::process::geteuid().as_raw())
}

impl World {
    pub(crate) fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), None)
    }

    /// An agent that decides for these services and whom they belong to, with its log in `audit`.
    pub(crate) fn start_authorizing(services: &[(&str, &str)], policy: &str, routes: &str) -> Self {
        Self::start_selecting(services, policy, routes, None)
    }

    /// An agent that decides, with policies that see these header fields.
    pub(crate) fn start_selecting(
        services: &[(&str, &str)],
        policy: &str,
        routes: &str,
        headers: Option<&str>,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let policies = directory.path().join("policies");
        std::fs::create_dir(&policies).unwrap();
        std::fs::write(policies.join("test.cedar"), policy).unwrap();
        std::fs::write(policies.join("routes.toml"), routes).unwrap();
        if let Some(headers) = headers {
            std::fs::write(policies.join("headers.toml"), headers).unwrap();
        }
        Self::start_deciding(directory, services, Some(policies))
    }

    /// An agent that decides, with the bundles of Alice and the grants of her and Bob that are in `holding`.
    pub(crate) fn start_trusting(services: &[(&str, &str)]) -> Self {
        Self::start_deciding(tempfile::tempdir().unwrap(), services, None)
    }

    fn start_deciding(
        directory: tempfile::TempDir,
        services: &[(&str, &str)],
        policies: Option<std::path::PathBuf>,
    ) -> Self {
        let config = Authorization {
            name: "node".to_owned(),
            audit_dir: directory.path().join("audit"),
            state_dir: directory.path().join("state"),
            policy_dir: policies,
            reference_check_every: 2,
            on_stale_policy: OnStale::Deny,
            services: services
                .iter()
                .map(|(service, id)| (service.parse().unwrap(), id.parse().unwrap()))
                .collect(),
        };
        let authorizer = Authorizer::open(
            &config,
            Holding::new(Some(trust(&["alice", "bob"]))),
            std::time::SystemTime::now(),
        )
        .unwrap();
        Self::start_in(directory, Some(Arc::new(authorizer)))
    }

    fn start_in(directory: tempfile::TempDir, authorizer: Option<Arc<Authorizer>>) -> Self {
        let listener = socket::bind(&directory.path().join("agent.sock"), 0o666).unwrap();
        let (stopper, shutdown) = channel();
        let supply = watch::Sender::new(None);
        let policy = watch::Sender::new(Arc::default());
        let holding = watch::Sender::new(Arc::default());
        if let Some(authorizer) = &authorizer {
            tokio::spawn(authorizer.clone().follow(holding.subscribe(), shutdown.clone()));
        }
        let attestor = Arc::new(Attestor::new(Launches::default()));
        let sessions = Sessions {
            attestor: Arc::clone(&attestor),
            supply: supply.subscribe(),
            shutdown: shutdown.clone(),
            refused: Arc::default(),
            peer_process: Default::default(),
            kept: crate::kept::Kept::nothing(),
            tokens: crate::tokens::Tokens::new(watch::channel(None).1, Default::default()),
            troubles: crate::troubles::Troubles::default(),
        };
        let routes = authorize::routes(&sessions, authorizer.as_ref());
        let points = Arc::new(Points::new());
        let routes = with_services(routes, &sessions, policy.subscribe(), &points);
        let refused = Arc::clone(&sessions.refused);
        Self {
            authority: TestAuthority::new("prod.example"),
            foreign: TestAuthority::new("other.example"),
            supply,
            policy,
            holding,
            authorizer: authorizer.clone(),
            stopper,
            refused: Arc::clone(&refused),
            attestor,
            points,
            served: tokio::spawn(serve(
                listener,
                routes,
                Default::default(),
                Places::default(),
                refused,
                shutdown,
            )),
            directory,
        }
    }

    pub(crate) async fn dial(&self) -> Channel {
        hoplite_wire::channel::unix(&self.directory.path().join("agent.sock"))
            .await
            .unwrap()
    }

    /// What comes back over HTTP/1.1, until the agent hangs up.
    pub(crate) async fn raw(&self, request: &[u8]) -> String {
        let mut stream = UnixStream::connect(self.directory.path().join("agent.sock"))
            .await
            .unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    }

    /// All that was decided.
    pub(crate) fn records(&self) -> Vec<Record> {
        read_log(&self.directory.path().join("audit"), &Query::default())
            .unwrap()
            .map(Result::unwrap)
            .collect()
    }

    pub(crate) fn svid(&self, path: &str) -> Option<Arc<HeldSvid>> {
        let svid = self.authority.svid(path, Duration::from_secs(3600));
        Some(Arc::new(HeldSvid::new(Arc::new(svid))))
    }

    pub(crate) fn entry(&self, path: &str, selectors: &[String]) -> NamedEntry {
        entry(path, &self.authority.trust_domain().member(path).unwrap(), selectors)
    }

    /// Publishes these entries with fresh SVIDs, and both trust domains' bundles.
    pub(crate) fn publish(&self, entries: impl IntoIterator<Item = NamedEntry>) {
        let supplied = entries.into_iter().map(|entry| {
            let svid = self.svid(entry.spiffe_id.path());
            Supplied {
                entry: Arc::new(entry),
                svid,
                refused: None,
            }
        });
        self.publish_as_is(supplied.collect());
    }

    pub(crate) fn publish_as_is(&self, supplied: Vec<Supplied>) {
        let bundles: BundleSet = [self.authority.bundle(), self.foreign.bundle()].into_iter().collect();
        let there = self.supply.borrow().clone();
        match there {
            Some(there) => there.replace(supplied, bundles),
            None => drop(self.supply.send_replace(Some(Arc::new(Supply::new(supplied, bundles))))),
        }
    }
}
