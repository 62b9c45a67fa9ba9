//! The policy feed on the agent's socket: what is in force, to any workload with an identity, at once and at each change.

use std::sync::Arc;

use hoplite_host::slots::Slot;
use hoplite_seal::SignerChain;
use hoplite_wire::policy::policies_server::Policies;
use hoplite_wire::policy::{PolicyUpdate, WatchRequest};
use prost::bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::policy::{Feed, FeedBundle};
use crate::socket::admission::{Responses, admit, check_header};
use crate::socket::session::{Session, Sessions, Wake};

/// A bundle travels in pieces of this many bytes: a stream whose caller reads slowly holds a copy of one.
const PIECE_BYTES: usize = 1 << 20;

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct PolicyService {
    sessions: Sessions,
    policy: watch::Receiver<Arc<Feed>>,
}

/// What a caller holds: what it said, then what it was told.
#[derive(Debug)]
struct Told {
    live: u64,
    shadow: u64,
    /// The newest signers: version and digest.
    signers: (u64, Vec<u8>),
    /// None before the first word.
    grants: Option<Vec<Vec<u8>>>,
}

// === impl PolicyService ===

impl PolicyService {
    pub(crate) fn new(sessions: Sessions, policy: watch::Receiver<Arc<Feed>>) -> Self {
        Self { sessions, policy }
    }
}

#[tonic::async_trait]
impl Policies for PolicyService {
    type WatchStream = Responses<PolicyUpdate>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        check_header(&request)?;
        let (caller, slot) = admit(request.extensions())?;
        let mut session = self.sessions.session(&caller);
        // Who may do what is nobody's business who has no name here.
        session.entitlement().await?;
        let WatchRequest {
            live_revision,
            shadow_revision,
            signers_version,
            signers_sha256,
        } = request.into_inner();
        let told = Told {
            live: live_revision,
            shadow: shadow_revision,
            signers: (signers_version, signers_sha256.to_vec()),
            grants: None,
        };
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(push(session, slot, self.policy.clone(), sender, told));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

async fn push(
    mut session: Session,
    _slot: Slot,
    mut feed: watch::Receiver<Arc<Feed>>,
    sender: mpsc::Sender<Result<PolicyUpdate, Status>>,
    mut told: Told,
) {
    loop {
        let now = Arc::clone(&feed.borrow_and_update());
        for update in told.news(&now) {
            if session.deliver(&sender, Ok(update)).await == Wake::End {
                return;
            }
        }
        drop(now); // a stream that waits holds on to no old bundle
        let wake = tokio::select! {
            changed = feed.changed() => if changed.is_ok() { None } else { Some(Wake::End) },
            wake = session.wake() => Some(wake),
            () = sender.closed() => Some(Wake::End),
        };
        match wake {
            None => {}
            Some(Wake::End) => return,
            // Its entry may be gone, or it may run another program now.
            Some(Wake::Look) => {
                if let Err(status) = session.entitlement().await {
                    session.deliver(&sender, Err(status)).await;
                    return;
                }
            }
        }
    }
}

// === impl Told ===

impl Told {
    /// What the caller lacks, which can be nothing; something before the first word.
    fn news(&mut self, feed: &Feed) -> Vec<PolicyUpdate> {
        let revision = |bundle: &Option<FeedBundle>| bundle.as_ref().map_or(0, |bundle| bundle.revision);
        let base = PolicyUpdate {
            live: None,
            shadow: None,
            shadow_cleared: feed.shadow.is_none(),
            grants: feed.grants.iter().map(|grant| grant.clone().into()).collect(),
            more: false,
            signers: Vec::new(),
        };
        let signers = feed.signers.as_ref().filter(|chain| self.signers != named(chain));
        let mut news = Vec::new();
        if let Some(live) = feed.live.as_ref().filter(|live| live.revision != self.live) {
            self.live = live.revision;
            news.extend(in_pieces(live, &base, |update, piece| update.live = Some(piece)));
        }
        if let Some(shadow) = feed.shadow.as_ref().filter(|shadow| shadow.revision != self.shadow) {
            news.extend(in_pieces(shadow, &base, |update, piece| update.shadow = Some(piece)));
        }
        let same_shadow = revision(&feed.shadow) == self.shadow;
        if news.is_empty() && !(signers.is_none() && same_shadow && self.grants.as_ref() == Some(&feed.grants)) {
            news.push(base);
        }
        // With the last piece of the first bundle, since what is signed may need them.
        if let (Some(chain), Some(update)) = (signers, news.iter_mut().find(|update| !update.more)) {
            // From its own on, so that a fork is noticed; all, where it has yet to find its place among them.
            let from = if self.signers.0 > 1 { self.signers.0 } else { 0 };
            update.signers = chain.since(from).map(|set| set.to_vec().into()).collect();
            self.signers = named(chain);
        }
        self.shadow = revision(&feed.shadow);
        self.grants = Some(feed.grants.clone());
        news
    }
}

fn named(chain: &SignerChain) -> (u64, Vec<u8>) {
    (chain.version(), chain.digest().0.to_vec())
}

/// A bundle in as many updates as it needs; the last one says all the rest.
fn in_pieces(bundle: &FeedBundle, last: &PolicyUpdate, put: fn(&mut PolicyUpdate, Bytes)) -> Vec<PolicyUpdate> {
    let mut rest = bundle.bytes.clone();
    let mut pieces = Vec::with_capacity(rest.len() / PIECE_BYTES + 1);
    while rest.len() > PIECE_BYTES {
        let mut update = PolicyUpdate {
            more: true,
            ..PolicyUpdate::default()
        };
        put(&mut update, rest.split_to(PIECE_BYTES));
        pieces.push(update);
    }
    let mut update = last.clone();
    put(&mut update, rest);
    pieces.push(update);
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::tests::feed_bundle;
    use crate::testing::{World, own};
    use hoplite_policy::bundle::Stage;
    use hoplite_wire::policy::policies_client::PoliciesClient;
    use hoplite_wire::{FetchError, PolicyFeed};
    use std::time::Duration;
    use tonic::Code;

    fn put(world: &World, change: impl FnOnce(&mut Feed)) {
        world.policy.send_modify(|feed| {
            let mut next = Feed::clone(feed);
            change(&mut next);
            *feed = Arc::new(next);
        });
    }

    fn client(world: &World) -> PolicyFeed {
        PolicyFeed::new(world.directory.path().join("agent.sock").to_str().unwrap())
    }

    fn held(live_revision: u64, shadow_revision: u64) -> WatchRequest {
        WatchRequest {
            live_revision,
            shadow_revision,
            ..WatchRequest::default()
        }
    }

    async fn next(feed: &mut PolicyFeed, live: u64, shadow: u64) -> Result<PolicyUpdate, FetchError> {
        tokio::time::timeout(Duration::from_secs(20), feed.next(held(live, shadow)))
            .await
            .expect("an answer in time")
    }

    async fn is_silent(feed: &mut PolicyFeed) -> bool {
        let more = tokio::time::timeout(Duration::from_millis(200), feed.next(held(0, 0)));
        more.await.is_err()
    }

    #[tokio::test]
    async fn what_is_in_force_comes_at_once_and_then_what_is_new() {
        let world = World::start();
        world.publish([world.entry("/proxy", &[own()])]);
        let mut feed = client(&world);
        let first = next(&mut feed, 0, 0).await.unwrap();
        assert!(
            first.live.is_none() && first.shadow_cleared,
            "there is none yet, and that is said"
        );
        assert!(is_silent(&mut feed).await);

        let (one, two, three) = (
            feed_bundle(1, Stage::Live),
            feed_bundle(2, Stage::Shadow),
            feed_bundle(3, Stage::Live),
        );
        put(&world, |feed| feed.live = Some(one.clone()));
        assert_eq!(next(&mut feed, 0, 0).await.unwrap().live.unwrap()[..], one.bytes[..]);
        put(&world, |feed| feed.shadow = Some(two.clone()));
        let update = next(&mut feed, 0, 0).await.unwrap();
        assert_eq!(update.shadow.unwrap()[..], two.bytes[..]);
        assert!(update.live.is_none() && !update.shadow_cleared);
        put(&world, |feed| feed.grants = vec![b"grant".to_vec()]);
        let update = next(&mut feed, 0, 0).await.unwrap();
        assert!(update.live.is_none() && update.shadow.is_none() && update.grants.len() == 1);
        put(&world, |feed| feed.shadow = None);
        assert!(next(&mut feed, 0, 0).await.unwrap().shadow_cleared);
        assert!(is_silent(&mut feed).await);

        put(&world, |feed| feed.live = Some(three.clone()));
        let mut knows = client(&world);
        let update = next(&mut knows, 3, 0).await.unwrap();
        assert!(update.live.is_none() && update.grants.len() == 1, "it holds that one");
        let mut old = client(&world);
        assert_eq!(next(&mut old, 1, 2).await.unwrap().live.unwrap()[..], three.bytes[..]);
    }

    #[tokio::test]
    async fn a_large_bundle_comes_in_pieces_and_is_whole() {
        let world = World::start();
        world.publish([world.entry("/proxy", &[own()])]);
        let mut feed = client(&world);
        next(&mut feed, 0, 0).await.unwrap();
        for bytes in [PIECE_BYTES, PIECE_BYTES + 1, 5 * PIECE_BYTES + 7] {
            let large: Vec<u8> = (0_u8..251).cycle().take(bytes).collect();
            let revision = bytes as u64;
            put(&world, |feed| {
                feed.grants = vec![b"grant".to_vec()];
                feed.live = Some(FeedBundle {
                    revision,
                    bytes: large.clone().into(),
                });
                feed.shadow = Some(FeedBundle {
                    revision,
                    bytes: large[1..].to_vec().into(),
                });
            });
            let update = next(&mut feed, 0, 0).await.unwrap();
            assert!(update.live.unwrap()[..] == large[..] && update.grants.len() == 1 && !update.more);
            let update = next(&mut feed, 0, 0).await.unwrap();
            assert!(update.shadow.unwrap()[..] == large[1..] && update.live.is_none());
        }
        assert!(is_silent(&mut feed).await);
    }

    #[tokio::test]
    async fn who_has_no_identity_is_told_nothing() {
        let world = World::start();
        let denied = next(&mut client(&world), 0, 0).await.unwrap_err();
        assert!(
            matches!(denied, FetchError::Unavailable(_)),
            "no word from the CA yet: {denied}"
        );
        world.publish([world.entry("/proxy", &["unix:uid:4294967294".to_owned()])]);
        let denied = next(&mut client(&world), 0, 0).await.unwrap_err();
        assert!(matches!(denied, FetchError::Denied(_)), "{denied}");

        world.publish([world.entry("/proxy", &[own()])]);
        let mut feed = client(&world);
        next(&mut feed, 0, 0).await.unwrap();
        world.publish([]);
        assert!(
            matches!(next(&mut feed, 0, 0).await, Err(FetchError::Denied(_))),
            "mid-stream too"
        );
        // The next call opens it anew, once there is an entry again.
        world.publish([world.entry("/proxy", &[own()])]);
        next(&mut feed, 0, 0).await.unwrap();

        let refused = PoliciesClient::new(world.dial().await)
            .watch(WatchRequest::default())
            .await;
        assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument, "without the header");
    }
}
