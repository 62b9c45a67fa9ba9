//! The SPIFFE Workload API: X.509-SVIDs and trust bundles, pushed when they change.

use std::collections::HashMap;

use hoplite_wire::workload::spiffe_workload_api_server::SpiffeWorkloadApi;
use hoplite_wire::workload::{
    JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse, X509svid, X509svidRequest, X509svidResponse,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::server::{Connection, StreamPermit};
use crate::session::{Desk, Entitlement, Session, Wake};

/// The header that a browser, tricked into calling a local socket, cannot send (W-4).
const HEADER: &str = "workload.spiffe.io";

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct WorkloadApiService {
    desk: Desk,
}

type ResponseStream<T> = ReceiverStream<Result<T, Status>>;

// === impl WorkloadApiService ===

impl WorkloadApiService {
    pub(crate) fn new(desk: Desk) -> Self {
        Self { desk }
    }

    /// The first message at once, then the full state at each change, and at each change only (W-7).
    async fn stream<Q, T: Send + 'static>(
        &self,
        request: &Request<Q>,
        message: fn(&Entitlement) -> T,
    ) -> Result<Response<ResponseStream<T>>, Status> {
        check_header(request)?;
        let (caller, permit) = Connection::admit(request)?;
        let mut session = self.desk.session(&caller);
        let first = session.entitlement().await?;
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(push(session, permit, sender, first, message));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

async fn push<T>(
    mut session: Session,
    _permit: StreamPermit,
    sender: mpsc::Sender<Result<T, Status>>,
    first: Entitlement,
    message: fn(&Entitlement) -> T,
) {
    let mut told = first.fingerprint();
    if session.deliver(&sender, Ok(message(&first))).await == Wake::End {
        return;
    }
    drop(first); // a stream that waits holds on to no old supply
    loop {
        let wake = tokio::select! {
            wake = session.wake() => wake,
            () = sender.closed() => Wake::End,
        };
        if wake == Wake::End {
            return;
        }
        match session.entitlement().await {
            Ok(now) if now.fingerprint() == told => {}
            Ok(now) => {
                told = now.fingerprint();
                if session.deliver(&sender, Ok(message(&now))).await == Wake::End {
                    return;
                }
            }
            // W-6: also mid-stream, when all that the caller had is gone.
            Err(status) => {
                session.deliver(&sender, Err(status)).await;
                return;
            }
        }
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for WorkloadApiService {
    type FetchX509SVIDStream = ResponseStream<X509svidResponse>;
    type FetchX509BundlesStream = ResponseStream<X509BundlesResponse>;
    type FetchJWTBundlesStream = ResponseStream<JwtBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        self.stream(&request, svids).await
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        self.stream(&request, bundles).await
    }

    async fn fetch_jwtsvid(&self, request: Request<JwtsvidRequest>) -> Result<Response<JwtsvidResponse>, Status> {
        no_jwt(&request)
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        no_jwt(&request)
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        no_jwt(&request)
    }
}

fn no_jwt<Q, T>(request: &Request<Q>) -> Result<Response<T>, Status> {
    check_header(request)?;
    Err(Status::unimplemented(
        "this agent does not serve JWT-SVIDs yet; use X.509-SVIDs",
    ))
}

fn check_header<Q>(request: &Request<Q>) -> Result<(), Status> {
    let mut values = request.metadata().get_all(HEADER).iter();
    match (values.next(), values.next()) {
        (Some(value), None) if value == "true" => Ok(()),
        _ => Err(Status::invalid_argument(
            "the metadata `workload.spiffe.io: true` is missing; a SPIFFE client sends it once",
        )),
    }
}

fn svids(entitlement: &Entitlement) -> X509svidResponse {
    let own = |identity: &crate::session::Identity| {
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
