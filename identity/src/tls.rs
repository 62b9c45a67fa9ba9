//! rustls configurations: TLS 1.3 only, post-quantum key exchange first, no resumption, no tickets, no early data.

use crate::{PeerRejected, PeerRole, PeerVerifier, SpiffeId, VerifiedPeer, X509Svid};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, CommonState, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    PeerIncompatible, RootCertStore, ServerConfig, SignatureScheme,
};
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

/// Whether a server insists on a client certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// A client without a certificate is refused in the handshake.
    Required,
    /// For the CA's join call only: a certificate, if shown, is verified all the same.
    Optional,
}

/// For a server that shows `svid` and verifies clients.
///
/// # Errors
/// Only if the cryptography library offers no TLS 1.3.
pub fn server_config(
    svid: &X509Svid,
    verifier: Arc<PeerVerifier>,
    client_auth: ClientAuth,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, Error> {
    let mut config = ServerConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(Clients { verifier, client_auth }))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(svid.certified())));
    // A resumed session would outlive the check of the certificate that opened it.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    config.alpn_protocols = protocols(alpn);
    Ok(Arc::new(config))
}

/// For a server that shows a certificate of the web to anybody: chain first, PKCS#8 or any other form of its key.
///
/// # Errors
/// The key is not the certificate's, or of no kind that is known.
pub fn web_server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, Error> {
    let mut config = ServerConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    config.alpn_protocols = protocols(alpn);
    Ok(Arc::new(config))
}

/// For a server that shows `svid` to anybody, and asks nobody for a certificate: what it serves is public (F-3).
///
/// # Errors
/// Only if the cryptography library offers no TLS 1.3.
pub fn public_server_config(svid: &X509Svid, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, Error> {
    let mut config = ServerConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(svid.certified())));
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    config.alpn_protocols = protocols(alpn);
    Ok(Arc::new(config))
}

/// For a client that knows servers by their names, for which these authorities of the web vouch, and shows nothing.
///
/// # Errors
/// Only if the cryptography library offers no TLS 1.3.
pub fn web_client_config(roots: RootCertStore, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, Error> {
    let mut config = ClientConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.alpn_protocols = protocols(alpn);
    Ok(Arc::new(config))
}

/// For a client that shows `svid` (none only while joining) and accepts exactly `expected`.
///
/// The server name given to a connection is ignored and not sent: SPIFFE peers have no DNS name.
///
/// # Errors
/// Only if the cryptography library offers no TLS 1.3.
pub fn client_config(
    svid: Option<&X509Svid>,
    verifier: Arc<PeerVerifier>,
    expected: SpiffeId,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, Error> {
    let builder = ClientConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&TLS13])?
        .dangerous() // rustls' word for a verifier of one's own: the one verifier of this crate
        .with_custom_certificate_verifier(Arc::new(ExpectedServer { verifier, expected }));
    let mut config = match svid {
        Some(svid) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(svid.certified()))),
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    config.alpn_protocols = protocols(alpn);
    Ok(Arc::new(config))
}

/// After the handshake: the evidence. Verifies again rather than trusting that the right verifier was installed.
///
/// `role` is what the peer was.
///
/// # Errors
/// Why the peer is refused; [`PeerRejected::NoCertificate`] also before the handshake is done.
pub fn verified_peer(
    verifier: &PeerVerifier,
    connection: &CommonState,
    role: PeerRole,
    now: SystemTime,
) -> Result<VerifiedPeer, PeerRejected> {
    verifier.verify(connection.peer_certificates().unwrap_or_default(), role, now)
}

/// The verifier's reason inside a failed handshake's error, if that is what failed; a missing client certificate too.
pub fn rejection(error: &Error) -> Option<PeerRejected> {
    match error {
        Error::NoCertificatesPresented => Some(PeerRejected::NoCertificate),
        Error::InvalidCertificate(CertificateError::Other(OtherError(reason))) => reason.downcast_ref().cloned(),
        _ => None,
    }
}

/// Whether the other end refused our certificate.
pub fn is_refused_by_peer(error: &Error) -> bool {
    use rustls::AlertDescription as Alert;
    matches!(
        error,
        Error::AlertReceived(
            Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                | Alert::UnknownCA
                | Alert::DecryptError
        )
    )
}

/// aws-lc-rs with our key exchanges: the hybrid first, so that what is recorded today stays closed tomorrow.
pub(crate) static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1],
        ..aws_lc_rs::default_provider()
    })
});

pub(crate) fn protocols(alpn: &[&[u8]]) -> Vec<Vec<u8>> {
    alpn.iter().map(|protocol| protocol.to_vec()).collect()
}

/// The alert is `certificate_unknown` whatever the reason: the peer learns nothing, our log everything.
fn refused(reason: PeerRejected) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(reason))))
}

/// Clients of any trust domain we have a bundle for.
#[derive(Debug)]
struct Clients {
    verifier: Arc<PeerVerifier>,
    client_auth: ClientAuth,
}

/// The one server a client wants.
#[derive(Debug)]
struct ExpectedServer {
    verifier: Arc<PeerVerifier>,
    expected: SpiffeId,
}

// === impl Clients ===

impl ClientCertVerifier for Clients {
    fn client_auth_mandatory(&self) -> bool {
        self.client_auth == ClientAuth::Required
    }

    /// None: clients have one certificate, and our authorities are nobody's business.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verifier
            .verify_parts(end_entity, intermediates, PeerRole::Client, now)
            .map_err(refused)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, self.verifier.algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.algorithms().supported_schemes()
    }
}

// === impl ExpectedServer ===

impl ServerCertVerifier for ExpectedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verifier
            .verify_parts(end_entity, intermediates, PeerRole::Server, now)
            .and_then(|peer| peer.require(&self.expected))
            .map_err(refused)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, self.verifier.algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.algorithms().supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestAuthority;
    use rustls::{ClientConnection, HandshakeKind, NamedGroup, ProtocolVersion, ServerConnection};
    use std::time::{Duration, UNIX_EPOCH};

    const HOUR: Duration = Duration::from_secs(3600);

    /// A client and a server after as much of a handshake as they could agree on, in memory.
    struct Pair {
        client: ClientConnection,
        server: ServerConnection,
        client_error: Option<Error>,
        server_error: Option<Error>,
    }

    fn handshake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Pair {
        let mut pair = Pair {
            client: ClientConnection::new(client.clone(), ServerName::try_from("ignored.invalid").unwrap()).unwrap(),
            server: ServerConnection::new(server.clone()).unwrap(),
            client_error: None,
            server_error: None,
        };
        for _ in 0..4 {
            let mut bytes = Vec::new();
            while pair.client.wants_write() {
                pair.client.write_tls(&mut bytes).unwrap();
            }
            let mut bytes = bytes.as_slice();
            while !bytes.is_empty() && pair.server_error.is_none() {
                pair.server.read_tls(&mut bytes).unwrap();
                pair.server_error = pair.server.process_new_packets().err();
            }
            let mut bytes = Vec::new();
            while pair.server.wants_write() {
                pair.server.write_tls(&mut bytes).unwrap();
            }
            let mut bytes = bytes.as_slice();
            while !bytes.is_empty() && pair.client_error.is_none() {
                pair.client.read_tls(&mut bytes).unwrap();
                pair.client_error = pair.client.process_new_packets().err();
            }
        }
        pair
    }

    /// What the client and the server found, as codes.
    fn codes(pair: &Pair) -> (Option<&'static str>, Option<&'static str>) {
        let code = |error: &Option<Error>| error.as_ref().and_then(rejection).map(|reason| reason.code());
        (code(&pair.client_error), code(&pair.server_error))
    }

    struct World {
        ca: TestAuthority,
        verifier: Arc<PeerVerifier>,
        web: X509Svid,
        db: X509Svid,
    }

    impl World {
        fn new() -> Self {
            let ca = TestAuthority::new("example.org");
            let verifier = Arc::new(PeerVerifier::new(ca.bundles()).unwrap());
            Self {
                verifier,
                web: ca.svid("/web", HOUR),
                db: ca.svid("/db", HOUR),
                ca,
            }
        }

        fn server(&self, svid: &X509Svid, client_auth: ClientAuth) -> Arc<ServerConfig> {
            server_config(svid, self.verifier.clone(), client_auth, &[b"h2", b"http/1.1"]).unwrap()
        }

        fn client(&self, svid: Option<&X509Svid>, expected: &X509Svid) -> Arc<ClientConfig> {
            client_config(svid, self.verifier.clone(), expected.spiffe_id().clone(), &[b"h2"]).unwrap()
        }
    }

    #[test]
    fn a_good_pair_gets_tls_1_3_post_quantum_and_evidence_and_never_resumes() {
        let world = World::new();
        let (server, client) = (
            world.server(&world.db, ClientAuth::Required),
            world.client(Some(&world.web), &world.db),
        );
        for _ in 0..2 {
            let pair = handshake(&client, &server);
            assert_eq!((&pair.client_error, &pair.server_error), (&None, &None));
            assert!(!pair.client.is_handshaking() && !pair.server.is_handshaking());
            assert_eq!(pair.client.handshake_kind(), Some(HandshakeKind::Full));
            assert_eq!(pair.client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
            let group = pair.server.negotiated_key_exchange_group().map(|group| group.name());
            assert_eq!(group, Some(NamedGroup::X25519MLKEM768));
            assert_eq!(pair.client.alpn_protocol(), Some(&b"h2"[..]));
            assert_eq!(pair.client.tls13_tickets_received(), 0);
            assert_eq!(pair.server.server_name(), None);
            let now = SystemTime::now();
            let peer = verified_peer(&world.verifier, &pair.server, PeerRole::Client, now).unwrap();
            assert_eq!(peer.leaf(), world.web.leaf());
            let peer = verified_peer(&world.verifier, &pair.client, PeerRole::Server, now).unwrap();
            assert_eq!(peer.leaf(), world.db.leaf());
            let late = verified_peer(&world.verifier, &pair.client, PeerRole::Server, now + 2 * HOUR);
            assert_eq!(late.unwrap_err().code(), "expired");
        }
    }

    #[test]
    fn strangers_are_refused_by_whoever_can_see_it() {
        let world = World::new();
        let stranger_ca = TestAuthority::new("example.org");
        let stranger = stranger_ca.svid("/db", HOUR);
        let elsewhere = TestAuthority::new("elsewhere.example").svid("/db", HOUR);
        let past = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let expired = world.ca.svid_valid("/db", past, past + HOUR);
        let required = ClientAuth::Required;
        // The client's SVID, whom it expects, the server's SVID; what the client and the server find.
        let check = |client, expected, server, auth, codes_expected| {
            let pair = handshake(&world.client(client, expected), &world.server(server, auth));
            assert_eq!(codes(&pair), codes_expected);
        };
        let (web, db) = (&world.web, &world.db);
        check(Some(web), web, db, required, (Some("unexpected_peer"), None));
        check(None, db, db, required, (None, Some("no_certificate")));
        check(None, db, db, ClientAuth::Optional, (None, None));
        check(
            Some(&stranger),
            db,
            db,
            ClientAuth::Optional,
            (None, Some("unknown_authority")),
        );
        check(Some(&stranger), db, db, required, (None, Some("unknown_authority")));
        check(Some(&elsewhere), db, db, required, (None, Some("unknown_trust_domain")));
        check(Some(&expired), db, db, required, (None, Some("expired")));
        check(Some(web), db, &stranger, required, (Some("unknown_authority"), None));
        check(
            Some(web),
            &elsewhere,
            &elsewhere,
            required,
            (Some("unknown_trust_domain"), None),
        );
        check(Some(web), db, &expired, required, (Some("expired"), None));
    }

    #[test]
    fn a_client_without_certificate_gives_no_evidence() {
        let world = World::new();
        let pair = handshake(
            &world.client(None, &world.db),
            &world.server(&world.db, ClientAuth::Optional),
        );
        let peer = verified_peer(&world.verifier, &pair.server, PeerRole::Client, SystemTime::now());
        assert_eq!((pair.server_error, peer), (None, Err(PeerRejected::NoCertificate)));
    }

    #[test]
    fn only_our_own_reasons_are_rejections() {
        assert_eq!(
            rejection(&Error::NoCertificatesPresented),
            Some(PeerRejected::NoCertificate)
        );
        assert_eq!(
            rejection(&refused(PeerRejected::NoCertificate)),
            Some(PeerRejected::NoCertificate)
        );
        assert_eq!(rejection(&Error::InvalidCertificate(CertificateError::Expired)), None);
        assert_eq!(rejection(&Error::DecryptError), None);
    }
}
