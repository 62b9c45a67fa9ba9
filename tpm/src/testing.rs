//! A software TPM of a test's own (swtpm), makers who certify endorsement keys, and what forgers try.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking; no shipped crate has this"
)]

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CustomExtension, IsCa, KeyPair, KeyUsagePurpose,
    SubjectPublicKeyInfo,
};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};

use crate::bytes::Writer;
use crate::commands::{Authorization, Commands};
use crate::public::{self, attestation_public};
use crate::{Device, EndorsementKey};

/// How long a software TPM may take to start.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running swtpm. Dropping it ends the process.
#[derive(Debug)]
pub struct SoftTpm {
    process: Child,
    directory: PathBuf,
}

/// A maker of TPMs, who certifies endorsement keys.
pub struct Maker {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// What a certificate of a maker's is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// As the profile has it: the TPM's model in a critical alternative name, and the purpose.
    Good,
    /// Without a purpose, as some makers have them.
    NoPurpose,
    /// For a client of TLS.
    ForClients,
    /// It has ended.
    Ended,
    /// Without a purpose, and it names no TPM's maker: such as those authorities give for other keys.
    Mute,
}

/// A key that is in no TPM, with any attributes.
pub struct SoftKey {
    pair: EcdsaKeyPair,
    attributes: u32,
}

/// Whether this machine has swtpm. Says so if not, and fails where tests must not be skipped.
pub fn possible(test: &str) -> bool {
    let is_there = |program: &str| Command::new(program).arg("--version").output().is_ok();
    let is_possible = is_there("swtpm") && is_there("swtpm_setup");
    if !is_possible {
        let reason = format!("{test}: peer swtpm is not on the path; tests/lib/packages swtpm swtpm-tools installs it");
        assert!(std::env::var_os("CI").is_none(), "{reason}");
        eprintln!("SKIPPED {reason}");
        if let Some(path) = std::env::var_os("HOPLITE_SKIPS") {
            use std::io::Write;
            let file = fs::OpenOptions::new().append(true).create(true).open(path);
            writeln!(file.unwrap(), "{reason}").unwrap();
        }
    }
    is_possible
}

// === impl SoftTpm ===

impl SoftTpm {
    /// A new TPM, its state in this directory, without any certificate.
    ///
    /// # Panics
    /// swtpm does not start.
    pub fn start(directory: &Path) -> Self {
        fs::create_dir_all(directory).unwrap();
        let socket = directory.join("tpm.sock");
        let log = fs::File::create(directory.join("swtpm.log")).unwrap();
        let process = Command::new("swtpm")
            .args([
                "socket",
                "--tpm2",
                "--flags",
                "not-need-init,startup-clear",
                "--tpmstate",
            ])
            .arg(format!("dir={}", directory.display()))
            .args(["--server", &format!("type=unixio,path={}", socket.display())])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut started = Self {
            process,
            directory: directory.to_owned(),
        };
        let began = Instant::now();
        while UnixStream::connect(&socket).is_err() {
            let ended = started.process.try_wait().unwrap();
            let log = || fs::read_to_string(directory.join("swtpm.log")).unwrap_or_default();
            assert!(
                ended.is_none() && began.elapsed() < PATIENCE,
                "swtpm does not start: {ended:?} {}",
                log()
            );
            thread::sleep(Duration::from_millis(10));
        }
        started
    }

    /// A TPM as swtpm's own tool makes them: with an RSA endorsement key and its certificate by an authority of swtpm's.
    /// Gives the file of that authority, too.
    ///
    /// # Panics
    /// `swtpm_setup` fails.
    pub fn manufactured(directory: &Path) -> (Self, PathBuf) {
        let authority = directory.join("authority");
        fs::create_dir_all(&authority).unwrap();
        let at = |name: &str| authority.join(name).display().to_string();
        let local = format!(
            "statedir = {}\nsigningkey = {}\nissuercert = {}\ncertserial = {}\n",
            authority.display(),
            at("key.pem"),
            at("issuer.pem"),
            at("serial")
        );
        fs::write(authority.join("localca.conf"), local).unwrap();
        // It takes a path only.
        let tool = ["/usr/bin/swtpm_localca", "/usr/local/bin/swtpm_localca"];
        let tool = tool
            .into_iter()
            .find(|path| Path::new(path).exists())
            .unwrap_or("swtpm_localca");
        let setup = format!(
            "create_certs_tool = {tool}\ncreate_certs_tool_config = {}\ncreate_certs_tool_options = /etc/swtpm-localca.options\n\
             active_pcr_banks = sha256\n",
            at("localca.conf")
        );
        fs::write(authority.join("setup.conf"), setup).unwrap();
        let made = Command::new("swtpm_setup")
            .args(["--tpm2", "--create-ek-cert", "--tpmstate"])
            .arg(directory)
            .args(["--config", &at("setup.conf")])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        (Self::start(directory), authority.join("issuer.pem"))
    }

    /// Where it takes commands.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("tpm.sock")
    }

    /// A connection. It serves one at a time.
    ///
    /// # Panics
    /// It does not answer.
    pub fn device(&self) -> Device {
        Device::open(&self.socket()).unwrap()
    }

    /// Puts a certificate where the TPM's maker would have put it: of P-256, or of RSA.
    ///
    /// # Panics
    /// The TPM refuses.
    pub fn keep_certificate(&self, is_rsa: bool, certificate: &[u8]) {
        let index = if is_rsa { 0x01c0_0002 } else { 0x01c0_000a };
        let owner = 0x4000_0001;
        let mut commands = Commands::new(self.device());
        let size = u16::try_from(certificate.len()).unwrap();
        // May be written and read by the owner, and by whoever has its (empty) password; does not count for the lockout.
        let attributes = (1 << 1) | (1 << 2) | (1 << 17) | (1 << 18) | (1 << 25);
        let area = Writer::default()
            .u32(index)
            .u16(public::SHA_256)
            .u32(attributes)
            .sized(&[])
            .u16(size);
        let parameters = Writer::default().sized(&[]).sized(&area.done()).done();
        let by = [Authorization::Password];
        commands
            .run((0x12a, "TPM2_NV_DefineSpace"), &[owner], &by, &parameters, false)
            .unwrap();
        for (number, piece) in certificate.chunks(512).enumerate() {
            let offset = u16::try_from(number * 512).unwrap();
            let parameters = Writer::default().sized(piece).u16(offset).done();
            commands
                .run((0x137, "TPM2_NV_Write"), &[owner, index], &by, &parameters, false)
                .unwrap();
        }
    }

    /// Tries what a forger would: has a public area loaded of which the TPM has no private part, and a credential activated for it.
    /// Gives the TPM's reason.
    ///
    /// # Panics
    /// The TPM gives the secret away.
    pub fn refuses_to_activate(&self, public: &[u8], challenge: &[u8]) -> String {
        let challenge = crate::Challenge::parse(challenge).unwrap();
        let mut commands = Commands::new(self.device());
        let (endorsement, _) = commands.create_primary(&public::endorsement_template(false)).unwrap();
        let parameters = Writer::default()
            .sized(&[])
            .sized(public)
            .u32(crate::commands::RH_ENDORSEMENT)
            .done();
        let loaded = commands.run((0x167, "TPM2_LoadExternal"), &[], &[], &parameters, true);
        let (foreign, _) = loaded.unwrap();
        let session = commands.endorsement_session(&[7; 16]).unwrap();
        let parameters = Writer::default().sized(&challenge.blob).sized(&challenge.seed).done();
        let by = [Authorization::Password, Authorization::Policy(session)];
        let handles = [foreign, endorsement];
        let activated = commands.run(crate::commands::ACTIVATE_CREDENTIAL, &handles, &by, &parameters, false);
        activated.unwrap_err().to_string()
    }
}

impl Drop for SoftTpm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

// === impl Maker ===

impl Maker {
    /// A new one.
    ///
    /// # Panics
    /// There are no random bytes.
    #[expect(clippy::new_without_default, reason = "each is another one")]
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer }
    }

    /// Its own certificate, DER.
    pub fn root(&self) -> Vec<u8> {
        self.issuer.as_ref().der().to_vec()
    }

    /// Its certificate for an endorsement key, DER.
    ///
    /// # Panics
    /// The key is none.
    pub fn certify(&self, key: &EndorsementKey, shape: Shape) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.key_usages = vec![KeyUsagePurpose::KeyAgreement];
        // directoryName { tpmManufacturer "id:00001014" }, critical: the subject is empty.
        let manufacturer = b"\x30\x1a\xa4\x18\x30\x16\x31\x14\x30\x12\x06\x05\x67\x81\x05\x02\x01\x0c\x09id:001014";
        let mut names = CustomExtension::from_oid_content(&[2, 5, 29, 17], manufacturer.to_vec());
        names.set_criticality(true);
        if shape != Shape::Mute {
            params.custom_extensions.push(names);
        }
        let purpose: Option<&[u64]> = match shape {
            Shape::Good | Shape::Ended => Some(&[2, 23, 133, 8, 1]),
            Shape::ForClients => Some(&[1, 3, 6, 1, 5, 5, 7, 3, 2]),
            Shape::NoPurpose | Shape::Mute => None,
        };
        params.extended_key_usages = purpose
            .map(|purpose| rcgen::ExtendedKeyUsagePurpose::Other(purpose.to_vec()))
            .into_iter()
            .collect();
        if shape == Shape::Ended {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        }
        let key = SubjectPublicKeyInfo::from_der(&key.spki()).unwrap();
        params.signed_by(&key, &self.issuer).unwrap().der().to_vec()
    }
}

// === impl SoftKey ===

impl SoftKey {
    /// One that says it is an attestation key, without these attributes and with those.
    ///
    /// # Panics
    /// There are no random bytes.
    pub fn new(without: u32, with: u32) -> Self {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap();
        let template = public::attestation_attributes();
        Self {
            pair,
            attributes: (template & !without) | with,
        }
    }

    /// Its public area.
    ///
    /// # Panics
    /// Never.
    pub fn public(&self) -> Vec<u8> {
        let (x, y) = self.pair.public_key().as_ref().get(1..).unwrap().split_at(32);
        attestation_public(self.attributes, x, y)
    }

    /// A quote as a TPM would make it, over this digest, and signed.
    ///
    /// # Panics
    /// There are no random bytes.
    pub fn quote(&self, qualifying: &[u8; 32]) -> Vec<u8> {
        let attest = Writer::default()
            .u32(0xff54_4347)
            .u16(0x8018)
            .sized(&[0; 34])
            .sized(qualifying);
        let attest = attest.raw(&[0; 25]).u32(0).sized(&public::sha256(&[])).done();
        self.sign(&attest)
    }

    /// An answer of any bytes, signed.
    ///
    /// # Panics
    /// There are no random bytes.
    pub fn sign(&self, attest: &[u8]) -> Vec<u8> {
        let signature = self.pair.sign(&SystemRandom::new(), attest).unwrap();
        let (r, s) = signature.as_ref().split_at(32);
        let signature = Writer::default()
            .u16(public::ECDSA)
            .u16(public::SHA_256)
            .sized(r)
            .sized(s)
            .done();
        crate::quote::encode(attest, &signature)
    }
}
