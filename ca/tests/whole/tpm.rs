//! Nodes by their TPM, of swtpm: who has the chip is admitted for the request that the chip has quoted, and each forgery is refused.

use std::fs;
use std::path::Path;

use data_encoding::HEXLOWER;
use hoplite_ca::{AttestorSettings, Config, TpmSettings};
use hoplite_identity::pem;
use hoplite_tpm::testing::{Maker, Shape, SoftKey, SoftTpm, possible};
use hoplite_tpm::{Device, Endorsement, EndorsementKey, NodeTpm, bound};
use hoplite_wire::ca::attest_request::Step as Says;
use hoplite_wire::ca::attest_response::Step as Answer;
use hoplite_wire::ca::{Agent as Listed, AttestBegin, AttestRequest, ListAgentsRequest, SvidResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::world::{World, agent_id, config, csr};

/// A machine with its chip.
struct Machine {
    chip: SoftTpm,
    which: Endorsement,
    /// What it shows beside its keys.
    certificates: Vec<Vec<u8>>,
}

impl Machine {
    fn new(directory: &Path, which: Endorsement) -> Self {
        Self {
            chip: SoftTpm::start(directory),
            which,
            certificates: Vec::new(),
        }
    }

    fn certified(directory: &Path, which: Endorsement, maker: &Maker, shape: Shape) -> Self {
        let mut machine = Self::new(directory, which);
        machine.certificates = vec![maker.certify(&machine.key(), shape)];
        machine
    }

    fn tpm(&self) -> NodeTpm<Device> {
        NodeTpm::prepare(self.chip.device(), Some(self.which)).unwrap()
    }

    fn key(&self) -> EndorsementKey {
        self.tpm().endorsement_key().unwrap()
    }

    fn digest(&self) -> String {
        HEXLOWER.encode(&self.key().sha256())
    }

    fn shown(&self) -> Vec<Vec<u8>> {
        self.tpm()
            .shown()
            .into_iter()
            .chain(self.certificates.clone())
            .collect()
    }

    /// Joins as an agent does.
    async fn join(&self, world: &World, csr: &[u8]) -> Result<SvidResponse, Status> {
        attest(world, self.shown(), csr, |challenge| {
            self.tpm().answer(challenge, csr).unwrap()
        })
        .await
    }
}

fn settings(keys: Option<&Path>, roots: Option<&Path>) -> TpmSettings {
    TpmSettings {
        name: None,
        node: Some("rack-{tpm:ek-sha256}".to_owned()),
        endorsement_keys: keys.map(Path::to_owned),
        roots: roots.map(Path::to_owned),
        any_certified: keys.is_none(),
    }
}

async fn world(settings: impl FnOnce(&Path) -> TpmSettings) -> World {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        attestors: vec![AttestorSettings::Tpm(settings(dir.path()))],
        ..config(dir.path())
    };
    let ca = hoplite_ca::start(config).await.unwrap();
    World { dir, ca }
}

/// A world whose operator knows these keys, and no maker.
async fn knowing(digests: &[String]) -> World {
    world(|dir| {
        let file = dir.join("tpms");
        fs::write(&file, digests.join("\n")).unwrap();
        settings(Some(&file), None)
    })
    .await
}

/// A world where all count that this maker has certified.
async fn trusting(maker: &Maker) -> World {
    world(|dir| {
        let file = dir.join("makers.pem");
        fs::write(&file, pem::write_certificates(&[maker.root().into()])).unwrap();
        settings(None, Some(&file))
    })
    .await
}

/// Shows a proof, and answers a challenge, if one comes.
async fn attest(
    world: &World,
    proof: Vec<Vec<u8>>,
    csr: &[u8],
    answer: impl FnOnce(&[u8]) -> Vec<u8>,
) -> Result<SvidResponse, Status> {
    let mut client = world.connect(None).await.unwrap();
    let (says, said) = mpsc::channel(4);
    let say = async |step| says.send(AttestRequest { step: Some(step) }).await.unwrap();
    say(Says::Begin(AttestBegin {
        attestor: "tpm".to_owned(),
        kind: "tpm".to_owned(),
        proof,
        csr: csr.to_vec(),
    }))
    .await;
    let mut answers = client.attest(ReceiverStream::new(said)).await?.into_inner();
    let mut answer = Some(answer);
    loop {
        match answers.message().await?.and_then(|response| response.step).unwrap() {
            Answer::Svid(response) => return Ok(response),
            Answer::Challenge(challenge) => {
                let answer = answer.take().expect("one challenge");
                say(Says::Answer(answer(&challenge))).await;
            }
        }
    }
}

async fn agents(world: &World) -> Vec<Listed> {
    let listed = world.admin().await.list_agents(ListAgentsRequest {}).await;
    listed.unwrap().into_inner().agents
}

/// Nobody is admitted, and the peer hears no more than that.
async fn refused(world: &World, what: &str, result: Result<SvidResponse, Status>) {
    let status = result.expect_err(what);
    assert!(
        matches!(status.code(), Code::PermissionDenied | Code::InvalidArgument),
        "{what}: {status}"
    );
    assert!(
        status.message().len() < 120 && !status.message().contains("quote"),
        "{what}: {status}"
    );
    assert!(agents(world).await.is_empty(), "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_joins_by_the_key_that_an_operator_knows() {
    if !possible("a_machine_joins_by_the_key_that_an_operator_knows") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for which in [Endorsement::P256, Endorsement::Rsa2048] {
        let machine = Machine::new(&dir.path().join(format!("{which:?}")), which);
        let world = knowing(&[format!("{}  rack 7", machine.digest())]).await;
        machine.join(&world, &csr().1).await.unwrap();
        // With another key it is the same machine.
        machine.join(&world, &csr().1).await.unwrap();
        let listed = agents(&world).await;
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].spiffe_id, agent_id(&format!("rack-{}", machine.digest())));
        let selectors: Vec<String> = listed[0]
            .selectors
            .iter()
            .map(|of| format!("{}:{}", of.kind, of.value))
            .collect();
        assert_eq!(
            selectors,
            [
                "node:attestor:tpm".to_owned(),
                format!("tpm:ek-sha256:{}", machine.digest())
            ]
        );
        // The list is read again: a machine that leaves it is no node any more.
        fs::write(world.dir.path().join("tpms"), "# none\n").unwrap();
        let gone = machine.join(&world, &csr().1).await.unwrap_err();
        assert_eq!(gone.code(), Code::PermissionDenied);
    }
}

/// The certificate by swtpm's own authority, from where swtpm's own tool has put it in the chip.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_joins_by_its_makers_certificate() {
    if !possible("a_machine_joins_by_its_makers_certificate") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (chip, authority) = SoftTpm::manufactured(dir.path());
    let mut machine = Machine {
        chip,
        which: Endorsement::Rsa2048,
        certificates: Vec::new(),
    };
    let world = world(|_| settings(None, Some(&authority))).await;
    refused(&world, "no certificate", machine.join(&world, &csr().1).await).await;
    let certificate = machine.tpm().certificate().expect("a certificate").to_vec();
    machine.certificates = vec![certificate];
    machine.join(&world, &csr().1).await.unwrap();
    assert_eq!(agents(&world).await.len(), 1);

    // Both are asked for where both are set.
    let keys = dir.path().join("tpms");
    fs::write(&keys, "# none yet\n").unwrap();
    let world = self::world(|_| settings(Some(&keys), Some(&authority))).await;
    refused(&world, "not known", machine.join(&world, &csr().1).await).await;
    fs::write(&keys, machine.digest()).unwrap();
    machine.join(&world, &csr().1).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_admit_nobody() {
    if !possible("certificates_that_admit_nobody") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (maker, stranger) = (Maker::new(), Maker::new());
    let world = trusting(&maker).await;
    let machine =
        |name: &str, maker: &Maker, shape| Machine::certified(&dir.path().join(name), Endorsement::P256, maker, shape);
    let good = machine("good", &maker, Shape::Good);
    let mut other = Machine::new(&dir.path().join("other"), Endorsement::P256);
    other.certificates.clone_from(&good.certificates);
    let mut long = machine("long", &maker, Shape::Good);
    long.certificates = vec![long.certificates[0].clone(); 7];
    let mut torn = machine("torn", &maker, Shape::Good);
    torn.certificates[0].pop();
    for (what, forged) in [
        ("of another maker", &machine("stranger", &stranger, Shape::Good)),
        ("of another chip", &other),
        ("for a client of TLS", &machine("client", &maker, Shape::ForClients)),
        ("that has ended", &machine("ended", &maker, Shape::Ended)),
        ("without a word of a TPM", &machine("mute", &maker, Shape::Mute)),
        ("seven of them", &long),
        ("torn", &torn),
    ] {
        refused(&world, what, forged.join(&world, &csr().1).await).await;
    }
    machine("no-purpose", &maker, Shape::NoPurpose)
        .join(&world, &csr().1)
        .await
        .unwrap();
    good.join(&world, &csr().1).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_admit_nobody() {
    if !possible("answers_that_admit_nobody") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::new(&dir.path().join("one"), Endorsement::P256);
    let other = Machine::new(&dir.path().join("two"), Endorsement::P256);
    let world = knowing(&[machine.digest(), other.digest()]).await;
    let ((_, ours), (_, theirs)) = (csr(), csr());
    let [attestation, endorsement] = machine.tpm().shown();
    let [other_attestation, _] = other.tpm().shown();

    let answered = attest(&world, machine.shown(), &ours, |challenge| {
        machine.tpm().answer(challenge, &theirs).unwrap()
    });
    refused(&world, "for another request", answered.await).await;

    // A good answer, heard on its way: it is for one challenge.
    let mut heard = None;
    let first = attest(&world, machine.shown(), &ours, |challenge| {
        heard = Some(machine.tpm().answer(challenge, &ours).unwrap());
        Vec::new()
    });
    refused(&world, "an empty answer", first.await).await;
    let heard = heard.unwrap();
    let replayed = attest(&world, machine.shown(), &ours, |_| heard.clone());
    refused(&world, "replayed", replayed.await).await;
    let replayed = attest(&world, machine.shown(), &theirs, |_| heard);
    refused(&world, "replayed for another request", replayed.await).await;

    // The challenge of one machine, answered by another that is known too.
    let mixed = attest(&world, machine.shown(), &ours, |challenge| {
        assert!(other.tpm().answer(challenge, &ours).is_err(), "it is not for this chip");
        let challenge = other_challenge(&other); // first: a chip serves one caller at a time
        other.tpm().answer(&challenge, &ours).unwrap()
    });
    refused(&world, "of another chip", mixed.await).await;
    let mixed = attest(
        &world,
        vec![other_attestation, endorsement.clone()],
        &ours,
        |challenge| {
            assert!(machine.tpm().answer(challenge, &ours).is_err() && other.tpm().answer(challenge, &ours).is_err());
            Vec::new()
        },
    );
    refused(&world, "two keys in two chips", mixed.await).await;

    // A key in no chip, which says of itself what a chip's would. The chip does not give the secret away, so that the forger must guess.
    let forged = SoftKey::new(0, 0);
    let guessed = attest(&world, vec![forged.public(), endorsement.clone()], &ours, |challenge| {
        let said = machine.chip.refuses_to_activate(&forged.public(), challenge);
        assert!(said.contains("TPM2_ActivateCredential"), "{said}");
        forged.quote(&bound(&[0; 32], &ours))
    });
    refused(&world, "a key in no chip", guessed.await).await;
    let relayed = attest(&world, vec![attestation.clone(), endorsement.clone()], &ours, |_| {
        forged.quote(&bound(&[0; 32], &ours))
    });
    refused(&world, "signed by a key in no chip", relayed.await).await;

    // Keys that may do other things than quote, and what is no key.
    for (what, without, with) in [
        ("not restricted", 1 << 16, 0),
        ("not of this chip for ever", 1 << 1, 0),
        ("made outside", 1 << 5, 0),
        ("that decrypts", 0, 1 << 17),
    ] {
        let key = SoftKey::new(without, with).public();
        let shown = attest(&world, vec![key, endorsement.clone()], &ours, |_| {
            panic!("{what}: it is challenged")
        });
        refused(&world, what, shown.await).await;
    }
    for (what, proof) in [
        ("nothing", Vec::new()),
        ("one key", vec![attestation.clone()]),
        (
            "the keys in another order",
            vec![endorsement.clone(), attestation.clone()],
        ),
        ("no keys", vec![vec![0; 90], vec![0xff; 90]]),
        (
            "a torn key",
            vec![attestation[..attestation.len() - 1].to_vec(), endorsement.clone()],
        ),
    ] {
        let shown = attest(&world, proof, &ours, |_| panic!("{what}: it is challenged"));
        refused(&world, what, shown.await).await;
    }
    // And one that is not in the list.
    let unknown = Machine::new(&dir.path().join("three"), Endorsement::P256);
    refused(&world, "not known", unknown.join(&world, &ours).await).await;

    machine.join(&world, &ours).await.unwrap();
}

/// A challenge that this machine can answer.
fn other_challenge(machine: &Machine) -> Vec<u8> {
    let [attestation, endorsement] = machine.tpm().shown();
    let attestation = hoplite_tpm::AttestationKey::from_public(&attestation).unwrap();
    let endorsement = EndorsementKey::from_public(&endorsement).unwrap();
    hoplite_tpm::Credential::make(&endorsement, &attestation)
        .unwrap()
        .challenge
        .encode()
}

/// What the operator is told before anybody could be admitted by mistake.
#[tokio::test]
async fn a_maker_alone_says_nothing_of_whose_machines_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let (keys, roots) = (dir.path().join("tpms"), dir.path().join("makers.pem"));
    fs::write(&roots, pem::write_certificates(&[Maker::new().root().into()])).unwrap();
    let check = async |settings: TpmSettings, expected: &str| {
        let config = Config {
            attestors: vec![AttestorSettings::Tpm(settings)],
            ..config(dir.path())
        };
        let error = hoplite_ca::start(config)
            .await
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default();
        assert!(error.contains(expected), "{expected}: {error}");
    };
    let with = |any_certified, settings: TpmSettings| TpmSettings {
        any_certified,
        ..settings
    };
    check(
        with(false, settings(None, Some(&roots))),
        "everybody who has a TPM of these makers",
    )
    .await;
    check(with(false, settings(None, None)), "write which TPMs are nodes").await;
    check(with(true, settings(None, None)), "write which TPMs are nodes").await;
    check(settings(Some(&keys), None), "endorsement_keys").await;
    fs::write(&keys, "first line\n").unwrap();
    check(settings(Some(&keys), None), "line 1: `first` is no SHA-256").await;
    fs::write(&keys, "").unwrap();
    check(with(true, settings(Some(&keys), Some(&roots))), "any_certified").await;
    fs::write(&roots, "nothing").unwrap();
    check(settings(None, Some(&roots)), "roots").await;
}
