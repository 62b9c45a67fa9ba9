//! A real agent joins by its machine's TPM, whose key the operator has listed and whose maker has certified it, and supplies a workload.

use std::fs;

use data_encoding::HEXLOWER;
use hoplite_agent::JoinSettings;
use hoplite_ca::{AttestorSettings, TpmSettings};
use hoplite_tests::{World, id, own_selectors};
use hoplite_tpm::NodeTpm;
use hoplite_tpm::testing::{SoftTpm, possible};
use hoplite_wire::WorkloadApi;

#[tokio::test]
async fn a_machine_joins_by_its_tpm() {
    if !possible("a_machine_joins_by_its_tpm") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (chip, authority) = SoftTpm::manufactured(dir.path());
    let key = NodeTpm::prepare(chip.device(), None)
        .unwrap()
        .endorsement_key()
        .unwrap();
    let digest = HEXLOWER.encode(&key.sha256());
    let keys = dir.path().join("tpms");
    fs::write(&keys, format!("# rack 7\n{digest}  slot 3\n")).unwrap();
    let world = World::start_with(|config| {
        config.attestors = vec![AttestorSettings::Tpm(TpmSettings {
            name: None,
            node: Some("rack-{tpm:ek-sha256}".to_owned()),
            endorsement_keys: Some(keys),
            roots: Some(authority),
            any_certified: false,
        })];
    })
    .await;
    let node = format!("rack-{digest}");
    world.register_under(&node, "/web", &own_selectors(), None).await;

    let join = format!("kind = \"tpm\"\ndevice = \"{}\"", chip.socket().display());
    let join: JoinSettings = toml::from_str(&join).unwrap();
    let agent = world.start_attested_node("machine", join).await;
    let listed = world.agents().await;
    let joined = listed
        .iter()
        .find(|agent| agent.spiffe_id == id(&format!("/hoplite/agent/{node}")));
    assert_eq!(joined.map(|agent| agent.attested_by.as_str()), Some("tpm"));
    let socket = format!("unix:{}", agent.socket().display());
    let identity = WorkloadApi::open(&socket).await.unwrap().next().await.unwrap();
    assert_eq!(identity.svids.first().unwrap().spiffe_id().path(), "/web");
    agent.stop().await;
}
