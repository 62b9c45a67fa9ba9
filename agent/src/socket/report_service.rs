//! What those that decide on this node say of themselves, on the agent's socket: each for itself, under a name that it has.

use std::sync::Arc;

use hoplite_host::clock;
use hoplite_wire::report::reports_server::Reports;
use hoplite_wire::report::{PutRequest, PutResponse};
use tonic::{Request, Response, Status};

use crate::reports::points::{NotKept, Points};
use crate::socket::admission::{admit, check_header};
use crate::socket::session::Sessions;

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct ReportService {
    sessions: Sessions,
    points: Arc<Points>,
}

// === impl ReportService ===

impl ReportService {
    pub(crate) fn new(sessions: Sessions, points: Arc<Points>) -> Self {
        Self { sessions, points }
    }
}

#[tonic::async_trait]
impl Reports for ReportService {
    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        check_header(&request)?;
        let (caller, _slot) = admit(request.extensions())?;
        if self.points.is_too_soon(caller.pid, clock::now()) {
            return Err(NotKept::TooSoon.into());
        }
        let entitlement = self.sessions.session(&caller).entitlement().await?;
        let PutRequest {
            point,
            leaving,
            failure,
        } = request.into_inner();
        let point = point.unwrap_or_default();
        if point.about.as_ref().is_some_and(|about| about.kind != "proxy") {
            return Err(Status::invalid_argument(
                "only a proxy reports here, with the kind `proxy`; the agent speaks for itself",
            ));
        }
        let claimed = point
            .about
            .as_ref()
            .map(|about| about.spiffe_id.as_str())
            .unwrap_or_default();
        // INVARIANT: what is kept stands under a name that this process has now.
        let own = entitlement
            .identities
            .iter()
            .find(|identity| identity.svid.spiffe_id().as_str() == claimed);
        let own = own.ok_or_else(|| {
            Status::permission_denied(format!(
                "this process has no SVID for `{}`, so it cannot report as that",
                claimed
                    .escape_default()
                    .to_string()
                    .chars()
                    .take(256)
                    .collect::<String>()
            ))
        })?;
        if leaving {
            self.points.leave(caller.pid, claimed, &failure);
        } else {
            let leaf = own.svid.leaf();
            let life = (leaf.not_before(), leaf.not_after());
            self.points.put(&caller, point, life, &self.sessions.shutdown)?;
        }
        let period_ms = u32::try_from(self.points.period().as_millis()).unwrap_or(u32::MAX);
        Ok(Response::new(PutResponse { period_ms }))
    }
}

impl From<NotKept> for Status {
    fn from(error: NotKept) -> Self {
        let text = error.to_string();
        match error {
            NotKept::NameFull | NotKept::Full | NotKept::TooSoon => Self::resource_exhausted(text),
            NotKept::TooLong => Self::out_of_range(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::admission::HEADER;
    use crate::testing::{World, own};
    use hoplite_wire::report::reports_client::ReportsClient;
    use hoplite_wire::report::{Fired, Point, PointAbout};
    use std::time::Duration;
    use tonic::Code;

    fn put(spiffe_id: &str, leaving: bool) -> Request<PutRequest> {
        let about = PointAbout {
            kind: "proxy".into(),
            name: "ledger".into(),
            spiffe_id: spiffe_id.into(),
            ..PointAbout::default()
        };
        let mut request = Request::new(PutRequest {
            point: Some(Point {
                about: Some(about),
                ..Point::default()
            }),
            leaving,
            failure: String::new(),
        });
        request.metadata_mut().insert(HEADER, "true".parse().unwrap());
        request
    }

    /// The agent decides too, and what it says of itself it does not say here.
    #[tokio::test]
    async fn nobody_reports_as_the_agent() {
        let world = World::start();
        world.publish([world.entry("/ledger", &[own()])]);
        let mut client = ReportsClient::new(world.dial().await);
        let mut request = put("spiffe://prod.example/ledger", false);
        let point = request.get_mut().point.as_mut().unwrap();
        point.about.as_mut().unwrap().kind = "agent".to_owned();
        let refused = client.put(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    }

    #[tokio::test]
    async fn who_reports_speaks_for_itself() {
        let world = World::start();
        let mut client = ReportsClient::new(world.dial().await);
        let code =
            |answer: Result<Response<PutResponse>, Status>| answer.map_or_else(|status| status.code(), |_| Code::Ok);
        let ledger = "spiffe://prod.example/ledger";
        assert_eq!(
            code(client.put(put(ledger, false)).await),
            Code::Unavailable,
            "no word from the CA yet"
        );
        world.publish([world.entry("/evil", &["unix:uid:4294967294".to_owned()])]);
        assert_eq!(
            code(client.put(put(ledger, false)).await),
            Code::PermissionDenied,
            "nobody"
        );
        world.publish([
            world.entry("/evil", &[own()]),
            world.entry("/ledger", &["unix:uid:4294967294".to_owned()]),
        ]);
        assert_eq!(
            code(client.put(put(ledger, false)).await),
            Code::PermissionDenied,
            "somebody else"
        );
        assert_eq!(
            code(client.put(put(ledger, true)).await),
            Code::PermissionDenied,
            "nor takes it away"
        );
        assert!(world.points.now(clock::now()).is_empty());

        let evil = "spiffe://prod.example/evil";
        assert_eq!(code(client.put(put(evil, false)).await), Code::Ok);
        let now = world.points.now(clock::now());
        assert_eq!(now[0].about.as_ref().unwrap().spiffe_id, evil);
        assert_eq!(
            now[0].state.as_ref().unwrap().pid,
            i32::try_from(std::process::id()).unwrap()
        );
        let bare = client.put(PutRequest::default()).await;
        assert_eq!(code(bare), Code::InvalidArgument, "without the header");
        // A flood costs nobody anything, and what is too long is not kept.
        assert_eq!(code(client.put(put(evil, false)).await), Code::ResourceExhausted);
        tokio::time::sleep(Duration::from_millis(120)).await;
        let mut long = put(evil, false);
        long.get_mut().point.as_mut().unwrap().fired = Some(Fired {
            ids: vec!["x".repeat(256); 512],
            left_out: 0,
        });
        assert_eq!(code(client.put(long).await), Code::OutOfRange);
        assert_eq!(code(client.put(put(evil, true)).await), Code::Ok);
        assert!(world.points.now(clock::now()).is_empty());
    }
}
