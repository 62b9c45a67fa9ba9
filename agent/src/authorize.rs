//! Decisions for those who ask for them: one authorizer, and the two protocols it is asked in.

pub(crate) mod authorizer;
pub(crate) mod authzen;
pub(crate) mod call;
pub(crate) mod ext_authz;

use std::sync::Arc;

use hoplite_wire::ext_authz::authorization_server::{AuthorizationServer, SERVICE_NAME};

use crate::authorize::authorizer::Authorizer;
use crate::authorize::authzen::AuthZen;
use crate::authorize::ext_authz::ExtAuthz;
use crate::socket::server::{REQUEST_BYTES_MAX, Routes};
use crate::socket::session::Sessions;

/// To those who ask for decisions where none are made.
const UNAUTHORIZED: &str = "this agent's configuration has no `[authorization]` table";

/// The two protocols on the agent's socket. Without an authorizer each says why there is none.
pub(crate) fn routes(sessions: &Sessions, authorizer: Option<&Arc<Authorizer>>) -> Routes {
    let authzen = authorizer.map(|authorizer| AuthZen::new(sessions.clone(), Arc::clone(authorizer)));
    let routes = Routes::new(authzen::is_authzen, move |request| {
        let authzen = authzen.clone();
        Box::pin(async move {
            if !authzen::is_authzen(request.uri().path()) {
                return Ok(authzen::not_found(
                    "over HTTP/1.1 there is AuthZEN only; gRPC needs HTTP/2",
                ));
            }
            Ok(match authzen {
                Some(authzen) => authzen.answer(request).await,
                None => authzen::not_found(UNAUTHORIZED),
            })
        })
    });
    match authorizer {
        Some(authorizer) => {
            let ext_authz = ExtAuthz::new(sessions.clone(), Arc::clone(authorizer));
            routes.grpc(AuthorizationServer::new(ext_authz).max_decoding_message_size(REQUEST_BYTES_MAX))
        }
        None => routes.unserved(SERVICE_NAME, UNAUTHORIZED),
    }
}
