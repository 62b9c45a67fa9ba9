//! The SPIFFE Workload API: SVIDs and trust bundles, pushed when they change.

use std::collections::HashMap;

use hoplite_host::slots::Slot;
use hoplite_wire::workload::spiffe_workload_api_server::SpiffeWorkloadApi;
use hoplite_wire::workload::{
    JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse, X509svid, X509svidRequest, X509svidResponse,
};
use tonic::{Request, Response, Status};

use crate::socket::admission::{admit, check_header};
use crate::socket::jwt_api;
use crate::socket::session::{Entitlement, Session, Sessions, Wake};
use crate::socket::turns::{Teller, Turns};

/// Two of these are equal when, and only when, a caller would be told the same.
type Fingerprint = fn(&Entitlement) -> [u8; 32];

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct WorkloadApiService {
    sessions: Sessions,
}

/// What one stream is told: the full state at each change.
pub(crate) struct State<T> {
    session: Session,
    _slot: Slot,
    /// The first answer, until it is given.
    first: Option<Entitlement>,
    message: fn(&Entitlement) -> T,
    fingerprint: Fingerprint,
    /// Of what was told last.
    told: [u8; 32],
}

// === impl WorkloadApiService ===

impl WorkloadApiService {
    pub(crate) fn new(sessions: Sessions) -> Self {
        Self { sessions }
    }

    /// A call that is answered once.
    fn call<Q>(&self, request: &Request<Q>) -> Result<(Session, Slot), Status> {
        check_header(request)?;
        let (caller, slot) = admit(request.extensions())?;
        Ok((self.sessions.session(&caller), slot))
    }

    /// The first message at once, then the full state at each change, and at each change only (W-7).
    async fn stream<Q, T: Send + 'static>(
        &self,
        request: &Request<Q>,
        message: fn(&Entitlement) -> T,
        fingerprint: Fingerprint,
    ) -> Result<Response<Turns<State<T>>>, Status> {
        check_header(request)?;
        let (caller, slot) = admit(request.extensions())?;
        let mut session = self.sessions.session(&caller);
        let first = session.entitlement().await?;
        Ok(Response::new(Turns::new(State {
            session,
            _slot: slot,
            told: fingerprint(&first),
            first: Some(first),
            message,
            fingerprint,
        })))
    }
}

// === impl State ===

impl<T: Send + 'static> Teller for State<T> {
    type Answer = T;

    async fn next(&mut self) -> Option<Result<T, Status>> {
        if let Some(first) = self.first.take() {
            return Some(Ok((self.message)(&first)));
        }
        loop {
            if self.session.wake().await == Wake::End {
                return None;
            }
            // W-6: also mid-stream, when all that the caller had is gone. In a box, because a stream that waits has no use for it.
            let now = match Box::pin(self.session.entitlement()).await {
                Ok(now) => now,
                Err(status) => return Some(Err(status)),
            };
            let fingerprint = (self.fingerprint)(&now);
            if fingerprint != self.told {
                self.told = fingerprint;
                return Some(Ok((self.message)(&now)));
            }
        }
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for WorkloadApiService {
    type FetchX509SVIDStream = Turns<State<X509svidResponse>>;
    type FetchX509BundlesStream = Turns<State<X509BundlesResponse>>;
    type FetchJWTBundlesStream = Turns<State<JwtBundlesResponse>>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        self.stream(&request, svids, Entitlement::fingerprint).await
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        self.stream(&request, bundles, Entitlement::fingerprint).await
    }

    async fn fetch_jwtsvid(&self, request: Request<JwtsvidRequest>) -> Result<Response<JwtsvidResponse>, Status> {
        let (mut session, _slot) = self.call(&request)?;
        let answer = jwt_api::fetch(&mut session, &self.sessions.tokens, request.into_inner()).await?;
        Ok(Response::new(answer))
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        self.stream(&request, jwt_api::bundles, jwt_api::bundles_told).await
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        let (mut session, _slot) = self.call(&request)?;
        let entitlement = session.entitlement().await?;
        jwt_api::check_validation(request.get_ref())?;
        let answer = jwt_api::validate(&entitlement, request.get_ref())?;
        Ok(Response::new(answer))
    }
}

fn svids(entitlement: &Entitlement) -> X509svidResponse {
    let own = |identity: &crate::socket::session::Identity| {
        entitlement
            .bundle(identity.svid.spiffe_id().trust_domain())
            .map(|bundle| bundle.to_der())
            .unwrap_or_default()
    };
    let svids = entitlement.identities.iter().map(|identity| X509svid {
        spiffe_id: identity.svid.spiffe_id().to_string(),
        x509_svid: identity.svid.chain_der(),
        x509_svid_key: identity.svid.key().secret_pkcs8_der().to_vec(),
        bundle: own(identity),
        hint: identity.hint.clone(),
    });
    let is_own = |trust_domain| {
        entitlement
            .identities
            .iter()
            .any(|i| i.svid.spiffe_id().trust_domain() == trust_domain)
    };
    let mut federated_bundles = all_bundles(entitlement);
    for bundle in entitlement.bundles().filter(|bundle| is_own(bundle.trust_domain())) {
        federated_bundles.remove(bundle.trust_domain().id().as_str());
    }
    X509svidResponse {
        svids: svids.collect(),
        crl: Vec::new(),
        federated_bundles,
    }
}

/// W-12: the own trust domain is among them.
fn bundles(entitlement: &Entitlement) -> X509BundlesResponse {
    X509BundlesResponse {
        crl: Vec::new(),
        bundles: all_bundles(entitlement),
    }
}

fn all_bundles(entitlement: &Entitlement) -> HashMap<String, Vec<u8>> {
    entitlement
        .bundles()
        .map(|bundle| (bundle.trust_domain().id().to_string(), bundle.to_der()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::admission::HEADER;
    use crate::supply::named::NamedEntry;
    use crate::supply::shelf::{Restock, Supplied};
    use crate::supply::testing::with;
    use crate::testing::{World, own};
    use hoplite_identity::X509Svid;
    use hoplite_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
    use std::sync::Arc;
    use tonic::transport::Channel;
    use tonic::{Code, Streaming};

    type Client = SpiffeWorkloadApiClient<Channel>;

    async fn client(world: &World) -> Client {
        SpiffeWorkloadApiClient::new(world.dial().await)
    }

    fn with_header<T>(message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert(HEADER, "true".parse().unwrap());
        request
    }

    async fn open(client: &mut Client) -> Result<Streaming<X509svidResponse>, Status> {
        client
            .fetch_x509svid(with_header(X509svidRequest {}))
            .await
            .map(Response::into_inner)
    }

    fn ids(response: &X509svidResponse) -> Vec<&str> {
        response
            .svids
            .iter()
            .map(|svid| svid.spiffe_id.trim_start_matches("spiffe://prod.example"))
            .collect()
    }

    #[tokio::test]
    async fn w_4_the_header_is_there_exactly_once_and_says_true() {
        let world = World::start();
        world.publish([world.entry("/web", &[own()])]);
        let mut client = client(&world).await;
        for (values, good) in [
            (&["true"][..], true),
            (&[], false),
            (&["false"], false),
            (&["True"], false),
            (&["true "], false),
            (&["1"], false),
            (&["true", "true"], false),
            (&["true", "false"], false),
        ] {
            let mut request = Request::new(X509svidRequest {});
            for value in values {
                request.metadata_mut().append(HEADER, value.parse().unwrap());
            }
            let code = client.fetch_x509svid(request).await.err().map(|status| status.code());
            assert_eq!(code, (!good).then_some(Code::InvalidArgument), "{values:?}");
        }
    }

    #[tokio::test]
    async fn w_4_and_w_6_of_the_calls_for_jwt_svids() {
        let world = World::start();
        world.publish([world.entry("/web", &[own()])]);
        let mut client = client(&world).await;
        let code = |result: Result<(), Status>| result.unwrap_err().code();
        let asked = JwtsvidRequest {
            audience: vec!["a".to_owned()],
            spiffe_id: String::new(),
        };
        let validated = ValidateJwtsvidRequest {
            audience: "a".to_owned(),
            svid: "x".to_owned(),
        };
        let svid = client.fetch_jwtsvid(asked.clone()).await.map(drop);
        let bundles = client.fetch_jwt_bundles(JwtBundlesRequest {}).await.map(drop);
        let validate = client.validate_jwtsvid(validated.clone()).await.map(drop);
        assert_eq!(
            [svid, bundles, validate].map(code),
            [Code::InvalidArgument; 3],
            "no header"
        );

        for (audience, spiffe_id, expected) in [
            (vec![], "", Code::InvalidArgument),
            (vec![""], "", Code::InvalidArgument),
            (vec!["a"; 33], "", Code::InvalidArgument),
            (vec!["a"], "web", Code::InvalidArgument),
            (vec!["a"], "spiffe://prod.example/other", Code::PermissionDenied),
            (vec!["a"], "spiffe://prod.example/web", Code::Unavailable),
            (vec!["a"], "", Code::Unavailable),
        ] {
            let asked = JwtsvidRequest {
                audience: audience.iter().map(|name: &&str| (*name).to_owned()).collect(),
                spiffe_id: spiffe_id.to_owned(),
            };
            let status = client.fetch_jwtsvid(with_header(asked)).await.unwrap_err();
            assert_eq!(status.code(), expected, "{audience:?} {spiffe_id} {status:?}");
        }
        for (audience, svid, expected) in [
            ("", "x", "`audience` is empty"),
            ("a", "", "`svid` is empty"),
            ("a", "x", "not three parts"),
            ("a", &"x".repeat(20_000), "longer than"),
        ] {
            let asked = ValidateJwtsvidRequest {
                audience: audience.to_owned(),
                svid: svid.to_owned(),
            };
            let status = client.validate_jwtsvid(with_header(asked)).await.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument);
            assert!(status.message().contains(expected), "{status:?}");
        }

        world.publish([]);
        let svid = client.fetch_jwtsvid(with_header(asked)).await.map(drop);
        let bundles = client
            .fetch_jwt_bundles(with_header(JwtBundlesRequest {}))
            .await
            .map(drop);
        let validate = client.validate_jwtsvid(with_header(validated)).await.map(drop);
        assert_eq!(
            [svid, bundles, validate].map(code),
            [Code::PermissionDenied; 3],
            "no identity"
        );
    }

    #[tokio::test]
    async fn w_6_codes() {
        let world = World::start();
        let mut client = client(&world).await;
        assert_eq!(
            open(&mut client).await.unwrap_err().code(),
            Code::Unavailable,
            "before the first synchronisation"
        );

        world.publish([
            world.entry("/web", &["unix:uid:4000000".into()]),
            world.entry("/api", &[own(), "launch:name:api".into()]),
        ]);
        let denied = open(&mut client).await.unwrap_err();
        assert_eq!(denied.code(), Code::PermissionDenied);
        assert!(
            denied.message().starts_with("no identity issued") && denied.message().contains(&own()),
            "{denied:?}"
        );
        let bundles = client
            .fetch_x509_bundles(with_header(X509BundlesRequest {}))
            .await
            .unwrap_err();
        assert_eq!(
            bundles.code(),
            Code::PermissionDenied,
            "bundles too are for workloads only"
        );

        world.publish_as_is(vec![Supplied {
            entry: Arc::new(world.entry("/web", &[own()])),
            svid: None,
            refused: None,
        }]);
        assert_eq!(
            open(&mut client).await.unwrap_err().code(),
            Code::Unavailable,
            "registered, not minted yet"
        );
    }

    #[tokio::test]
    async fn w_7_first_at_once_then_on_change_only_and_denied_when_all_is_gone() {
        let world = World::start();
        let (web, api) = (world.entry("/web", &[own()]), world.entry("/api", &[own()]));
        world.publish([web.clone()]);
        let mut client = client(&world).await;
        let mut stream = open(&mut client).await.unwrap();
        let first = stream.message().await.unwrap().unwrap();
        assert_eq!(ids(&first), ["/web"]);

        // What was said already is no news: the next message is that of the change after it.
        let same = world.supply.borrow().clone();
        world.supply.send_replace(same);
        tokio::task::yield_now().await;
        world.publish([web.clone(), api]);
        let second = stream.message().await.unwrap().unwrap();
        assert_eq!(ids(&second), ["/api", "/web"]);
        world.publish([web]);
        assert_eq!(
            ids(&stream.message().await.unwrap().unwrap()),
            ["/web"],
            "each message is the full state"
        );
        world.publish([]);
        assert_eq!(stream.message().await.unwrap_err().code(), Code::PermissionDenied);
    }

    /// What is not in an answer counts as taken back, so a first answer with less than there will be in a moment is none.
    #[tokio::test]
    async fn w_7_who_comes_while_svids_are_minted_is_told_all_of_them() {
        let world = World::start();
        let (web, api) = (world.entry("/web", &[own()]), world.entry("/api", &[own()]));
        let supplied = |entry: &NamedEntry, is_there: bool, is_coming: bool| Supplied {
            entry: Arc::new(entry.clone()),
            svid: world.svid(entry.spiffe_id.path()).filter(|_| is_there),
            refused: (!is_coming).then(|| "the CA refused: too many names".into()),
        };
        world.publish_as_is(vec![supplied(&web, true, true), supplied(&api, false, true)]);
        let mut late = client(&world).await;
        let first = tokio::spawn(async move { open(&mut late).await.unwrap().message().await });
        let supply = world.supply.borrow().clone().unwrap();
        // It has looked, and waits: what it lacks is minted first.
        supply.is_asked().await;
        assert_eq!(
            supply.asked().into_keys().collect::<Vec<_>>(),
            std::slice::from_ref(&api.id)
        );
        world.publish_as_is(vec![supplied(&web, true, true), supplied(&api, true, true)]);
        assert_eq!(ids(&first.await.unwrap().unwrap().unwrap()), ["/api", "/web"]);

        // What the CA refused, and what it does not issue now, is not waited for.
        let mut client = client(&world).await;
        world.publish_as_is(vec![supplied(&web, true, true), supplied(&api, false, false)]);
        let began = std::time::Instant::now();
        let mut stream = open(&mut client).await.unwrap();
        assert_eq!(ids(&stream.message().await.unwrap().unwrap()), ["/web"]);
        world.publish_as_is(vec![supplied(&web, true, true), supplied(&api, false, true)]);
        supply.set_dry(true);
        let mut other = open(&mut client).await.unwrap();
        assert_eq!(ids(&other.message().await.unwrap().unwrap()), ["/web"]);
        assert!(began.elapsed() < std::time::Duration::from_secs(2), "nobody waited");

        // Who has nothing else is told why.
        supply.set_dry(false);
        world.publish_as_is(vec![supplied(&api, false, false)]);
        let refused = open(&mut client).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable);
        assert!(
            refused
                .message()
                .contains("the CA refused: too many names; try again soon"),
            "{refused:?}"
        );
    }

    #[tokio::test]
    async fn a_change_wakes_the_streams_that_it_concerns_and_no_others() {
        let world = World::start();
        let (web, other) = (
            world.entry("/web", &[own()]),
            world.entry("/other", &["unix:uid:4000000".into()]),
        );
        world.publish_as_is(vec![]);
        let supply = world.supply.borrow().clone().unwrap();
        let put = |entry: &NamedEntry| {
            let supplied = Supplied {
                entry: Arc::new(entry.clone()),
                svid: world.svid(entry.spiffe_id.path()),
                refused: None,
            };
            supply.put(Restock {
                entries: vec![(entry.id.clone(), Some(supplied))],
                ..Restock::default()
            })
        };
        put(&web);
        let mut client = client(&world).await;
        let mut streams = Vec::new();
        for _ in 0..20 {
            let mut stream = open(&mut client).await.unwrap();
            stream.message().await.unwrap().unwrap();
            streams.push(stream);
        }
        let looks = || world.attestor.results().get(["identity"]).get();
        assert_eq!(looks(), 20);
        for _ in 0..50 {
            assert!(put(&other));
        }
        put(&web);
        for stream in &mut streams {
            stream.message().await.unwrap().unwrap();
        }
        assert_eq!(looks(), 40, "each looked again once: for what is its own");
    }

    #[tokio::test]
    async fn w_8_fields_of_a_response() {
        let world = World::start();
        world.publish([world.entry("/web", &[own()])]);
        let mut client = client(&world).await;
        let response = open(&mut client).await.unwrap().message().await.unwrap().unwrap();
        let message = &response.svids[0];
        let svid = X509Svid::from_der(&message.x509_svid, &message.x509_svid_key).unwrap();
        assert_eq!(svid.spiffe_id().as_str(), message.spiffe_id);
        assert_eq!(message.bundle, world.authority.bundle().to_der());
        let foreign = HashMap::from([("spiffe://other.example".to_owned(), world.foreign.bundle().to_der())]);
        assert_eq!(response.federated_bundles, foreign, "the own bundle is not among them");

        let bundles = client
            .fetch_x509_bundles(with_header(X509BundlesRequest {}))
            .await
            .unwrap();
        let bundles = bundles.into_inner().message().await.unwrap().unwrap().bundles;
        let own = ("spiffe://prod.example".to_owned(), world.authority.bundle().to_der());
        assert_eq!(bundles, foreign.into_iter().chain([own]).collect(), "W-12: here it is");
    }

    #[tokio::test]
    async fn w_9_hints_are_unique_and_the_first_keeps_it() {
        let world = World::start();
        let make = |path: &str, created: u64, hint: &str| {
            with(world.entry(path, &[own()]), |entry| {
                entry.hint = hint.to_owned();
                entry.created_at = created;
            })
        };
        world.publish([
            make("/b", 1, "x"),
            make("/a", 2, "x"),
            make("/c", 3, ""),
            make("/d", 4, "y"),
        ]);
        let mut client = client(&world).await;
        let response = open(&mut client).await.unwrap().message().await.unwrap().unwrap();
        let hints: Vec<_> = response.svids.iter().map(|svid| svid.hint.as_str()).collect();
        assert_eq!(
            (ids(&response), hints),
            (vec!["/b", "/a", "/c", "/d"], vec!["x", "", "", "y"])
        );
    }

    #[tokio::test]
    async fn another_process_is_not_the_launched_one() {
        let world = World::start();
        world.publish([world.entry("/edge", &[own(), "launch:name:edge".into()])]);
        assert_eq!(
            open(&mut client(&world).await).await.unwrap_err().code(),
            Code::PermissionDenied
        );
    }
}
