//! A CA over the network: the channel to it, and what to do when there is none, or when it breaks.

use std::error::Error;
use std::io;
use std::sync::Arc;

use hoplite_host::clock;
use hoplite_identity::{BundleSet, HostPort, Moment, PeerRejected, PeerVerifier, X509Svid, tls};
use hoplite_wire::channel;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// A channel to the CA of the trust domain of this SVID, which is shown to it.
pub(crate) async fn network(ca: &HostPort, svid: &X509Svid, bundles: BundleSet) -> anyhow::Result<Channel> {
    let verifier = Arc::new(PeerVerifier::new(bundles)?);
    let expected = svid.spiffe_id().trust_domain().ca();
    let config = tls::client_config(Some(svid), verifier, expected, &[b"h2"])?;
    channel::tls(ca.to_string(), config)
        .await
        .map_err(|error| away(&error, ca))
}

/// Why there is no connection over the network, and what to do.
pub(crate) fn away(error: &(dyn Error + 'static), ca: &HostPort) -> anyhow::Error {
    match rejection(error) {
        Some(rejected @ (PeerRejected::Expired { .. } | PeerRejected::NotYetValid { .. })) => {
            anyhow::anyhow!(
                "the CA at `{ca}` is not believed: {rejected}; this clock says {}",
                Moment::from(clock::now())
            )
        }
        Some(rejected) => anyhow::anyhow!(
            "the CA at `{ca}` is not the one where this user signed in: {rejected}; if it was founded anew or has another authority now, \
             sign in anew with `hoplite login INVITATION`, otherwise somebody stands in its place"
        ),
        None if was_alerted(error) => refused_certificate(ca),
        None => anyhow::anyhow!(
            "no CA answers at `{ca}` ({}); is this its address, does it run, and does a firewall let this machine through?",
            last(error)
        ),
    }
}

/// What the CA said, or that the connection broke before it said anything.
pub(crate) fn refusal(status: &Status, ca: &str) -> anyhow::Error {
    let text = status.message();
    match (Error::source(status), status.code()) {
        (Some(source), _) if was_alerted(source) => match HostPort::parse(ca) {
            Ok(ca) => refused_certificate(&ca),
            Err(_) => anyhow::anyhow!("the CA at `{ca}` broke the connection: {text}"),
        },
        // Made here, of an error of the connection: the CA said nothing.
        (Some(_), _) => anyhow::anyhow!(
            "the connection to the CA at `{ca}` broke before it answered ({text}); it may have done what was asked or not: look, and \
             run the command again"
        ),
        (None, Code::PermissionDenied) => anyhow::anyhow!("the CA refused: permission denied: {text}"),
        (None, _) => anyhow::anyhow!("the CA refused: {text}"),
    }
}

fn refused_certificate(ca: &HostPort) -> anyhow::Error {
    anyhow::anyhow!(
        "the CA at `{ca}` does not take this user's certificate: it is of another CA, or one of the two clocks is wrong; sign in anew \
         with `hoplite login INVITATION`"
    )
}

/// An error and what caused it.
pub(crate) fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| (*error).source())
}

pub(crate) fn last(error: &(dyn Error + 'static)) -> String {
    causes(error).last().map(ToString::to_string).unwrap_or_default()
}

/// What TLS said, which an input error holds inside.
fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    causes(error).find_map(|cause| match cause.downcast_ref::<io::Error>() {
        Some(error) => error.get_ref()?.downcast_ref(),
        None => cause.downcast_ref(),
    })
}

/// What our verifier said of the other end, if it said anything.
pub(crate) fn rejection(error: &(dyn Error + 'static)) -> Option<PeerRejected> {
    tls_error(error).and_then(tls::rejection)
}

/// Whether the other end gave up the connection because of what we showed.
fn was_alerted(error: &(dyn Error + 'static)) -> bool {
    matches!(tls_error(error), Some(rustls::Error::AlertReceived(_)))
}
