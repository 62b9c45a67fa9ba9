//! By what this node is attested when nobody has invited it: `[join]` of the configuration. A way to show it is one file below
//! this one and one row here; the CA's side is in `ca/src/attestors.rs`.

mod certificate;
mod token;
mod tpm;

use std::path::PathBuf;

use hoplite_tpm::Endorsement;
use hoplite_wire::ca::attest_request::Step as Says;
use hoplite_wire::ca::attest_response::Step as Answer;
use hoplite_wire::ca::node_client::NodeClient;
use hoplite_wire::ca::{AttestBegin, AttestRequest, SvidResponse};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::node::link::CaError;

/// Challenges that a CA sends in one exchange: one of ours sends one.
const CHALLENGES_MAX: usize = 4;

/// Section `[join]`: how this node proves to its CA who it is. The table: a row is a way.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum JoinSettings {
    /// By a certificate of another authority.
    X509pop(X509popJoin),
    /// By a token of an OpenID Connect issuer.
    Oidc(TokenJoin),
    /// By a projected service-account token of a Kubernetes cluster.
    K8s(TokenJoin),
    /// By the machine's TPM 2.0.
    Tpm(TpmJoin),
}

/// `kind = "x509pop"`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct X509popJoin {
    /// The attestor's name in the CA's configuration; `x509pop` when left out.
    #[serde(default)]
    pub attestor: Option<String>,
    /// The certificate's chain, PEM, leaf first.
    pub certificate: PathBuf,
    /// Its key, PEM, in a file that only its owner may read.
    pub key: PathBuf,
}

/// `kind = "oidc"` and `kind = "k8s"`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenJoin {
    /// The attestor's name in the CA's configuration; the kind when left out.
    #[serde(default)]
    pub attestor: Option<String>,
    /// The file with the token, read anew each time: whoever puts it there replaces it before it ends.
    pub token_file: PathBuf,
}

/// `kind = "tpm"`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TpmJoin {
    /// The attestor's name in the CA's configuration; `tpm` when left out.
    #[serde(default)]
    pub attestor: Option<String>,
    /// The kernel's device, or the socket of a software TPM.
    #[serde(default = "tpm_device")]
    pub device: PathBuf,
    /// Which of the TPM's endorsement keys; the one whose certificate is in the TPM when left out, and RSA without any.
    #[serde(default)]
    pub endorsement_key: Option<Endorsement>,
    /// The endorsement key's certificate, where the TPM does not hold it, or others stand between it and its maker's root: PEM, leaf first.
    #[serde(default)]
    pub certificate: Option<PathBuf>,
}

/// What is shown, and what answers a challenge.
struct Proof {
    shown: Vec<Vec<u8>>,
    key: Option<Key>,
}

/// What answers a challenge.
enum Key {
    Certificate(certificate::Possession),
    Tpm(Box<tpm::Chip>),
}

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoProof {
    #[error(transparent)]
    File(#[from] hoplite_host::files::FileError),
    #[error("`{file}` {reason}", file = .file.display())]
    Unusable { file: PathBuf, reason: String },
}

// === impl JoinSettings ===

impl JoinSettings {
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::X509pop(_) => "x509pop",
            Self::Oidc(_) => "oidc",
            Self::K8s(_) => "k8s",
            Self::Tpm(_) => "tpm",
        }
    }

    fn attestor(&self) -> &str {
        let named = match self {
            Self::X509pop(settings) => &settings.attestor,
            Self::Oidc(settings) | Self::K8s(settings) => &settings.attestor,
            Self::Tpm(settings) => &settings.attestor,
        };
        named.as_deref().unwrap_or(self.kind())
    }

    fn proof(&self) -> Result<Proof, NoProof> {
        match self {
            Self::X509pop(settings) => certificate::proof(&settings.certificate, &settings.key),
            Self::Oidc(settings) | Self::K8s(settings) => token::proof(&settings.token_file),
            Self::Tpm(settings) => tpm::proof(settings),
        }
    }

    /// Shows what there is, answers what is asked, and gives the SVID that comes of it.
    pub(crate) async fn attest(&self, client: &mut NodeClient<Channel>, csr: Vec<u8>) -> Result<SvidResponse, CaError> {
        let settings = self.clone();
        let Proof { shown, mut key } = aside(move || settings.proof()).await?;
        let (says, said) = mpsc::channel(1);
        let begin = AttestBegin {
            attestor: self.attestor().to_owned(),
            kind: self.kind().to_owned(),
            proof: shown,
            csr: csr.clone(),
        };
        let say = async |step| {
            let hung_up = |_| CaError::Answer("it hung up".to_owned());
            says.send(AttestRequest { step: Some(step) }).await.map_err(hung_up)
        };
        say(Says::Begin(begin)).await?;
        let mut answers = client.attest(ReceiverStream::new(said)).await?.into_inner();
        for _ in 0..=CHALLENGES_MAX {
            let answer = answers.message().await?.and_then(|answer| answer.step);
            match (answer, key.take()) {
                (Some(Answer::Svid(response)), _) => return Ok(response),
                (Some(Answer::Challenge(challenge)), Some(mut answering)) => {
                    let csr = csr.clone();
                    let answered = aside(move || {
                        let answer = answering.answer(&challenge, &csr)?;
                        Ok((answer, answering))
                    });
                    let (answer, answering) = answered.await?;
                    key = Some(answering);
                    say(Says::Answer(answer)).await?;
                }
                (Some(Answer::Challenge(_)), None) => {
                    return Err(CaError::Answer(
                        "a challenge, to which a token has no answer".to_owned(),
                    ));
                }
                (None, _) => return Err(CaError::Answer("nothing".to_owned())),
            }
        }
        Err(CaError::Answer("one challenge after the other".to_owned()))
    }
}

/// Does what may take seconds where nothing else waits for it: a TPM is slow.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> Result<T, NoProof> + Send + 'static) -> Result<T, CaError> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.map_err(|_| CaError::NoProof("it was left off".to_owned()))?;
    done.map_err(|error| CaError::NoProof(error.to_string()))
}

fn tpm_device() -> PathBuf {
    PathBuf::from("/dev/tpmrm0")
}

// === impl Key ===

impl Key {
    fn answer(&mut self, challenge: &[u8], csr: &[u8]) -> Result<Vec<u8>, NoProof> {
        match self {
            Self::Certificate(key) => key.answer(challenge, csr),
            Self::Tpm(chip) => chip.answer(challenge, csr),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_section_takes() {
        let check = |text: &str, expected: &str| {
            let found = toml_of(text);
            assert!(found.contains(expected), "{text}: {found}");
        };
        fn toml_of(text: &str) -> String {
            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join("agent.toml");
            std::fs::write(&file, text).unwrap();
            match hoplite_host::config::load::<JoinSettings>(&file) {
                Ok(settings) => format!("{} by {}", settings.kind(), settings.attestor()),
                Err(error) => error.to_string(),
            }
        }
        check("kind = \"k8s\"\ntoken_file = \"/t\"", "k8s by k8s");
        check("kind = \"oidc\"\nattestor = \"ci\"\ntoken_file = \"/t\"", "oidc by ci");
        check(
            "kind = \"x509pop\"\ncertificate = \"/c\"\nkey = \"/k\"",
            "x509pop by x509pop",
        );
        check("kind = \"k8s\"", "token_file");
        check("kind = \"k8s\"\ntoken_file = \"/t\"\nkey = \"/k\"", "key");
        check("kind = \"tpm\"", "tpm by tpm");
        check(
            "kind = \"tpm\"\nattestor = \"rack\"\ndevice = \"/d\"\nendorsement_key = \"p256\"",
            "tpm by rack",
        );
        check("kind = \"tpm\"\nendorsement_key = \"p384\"", "`p256` or `rsa2048`");
        check("kind = \"tpm\"\ntoken_file = \"/t\"", "token_file");
        check("token_file = \"/t\"", "kind");
    }
}
