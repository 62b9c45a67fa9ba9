//! Where the keys of one kind are: made there, found there, and forgotten when they sign no more.
//!
//! In a file of the data directory, sealed or not; in the records of the store, sealed, for all CAs that have the store; or in
//! a PKCS#11 token. Keys that lie in the file from before are found there, whatever the configuration says: so a CA
//! moves to a token or to the store by its next rotation.

use std::path::{Path, PathBuf};

use hoplite_host::clock;
use hoplite_host::files;
use hoplite_identity::{TrustDomain, pem};
use hoplite_pkcs11::{Token, TokenKey};
use rcgen::PublicKeyData;
use zeroize::Zeroizing;

use crate::Config;
use crate::authority::sealing::SealingKey;
use crate::authority::signer::{Signer, SignerError};
use crate::config::KeysConfig;
use crate::record::unix_seconds;

/// Where the text of a key ends.
const END: &str = "KEY-----";

/// What is around a sealed one.
const SEALED: (&str, &str) = ("-----BEGIN HOPLITE SEALED KEY-----", "-----END HOPLITE SEALED KEY-----");

/// The keys of one kind.
#[derive(Debug, Clone)]
pub(crate) struct Keyring {
    kind: &'static str,
    home: Home,
    /// Beside the store. It changes as a whole or not at all.
    path: PathBuf,
    sealing: Option<SealingKey>,
}

/// Where new ones are made.
#[derive(Debug, Clone)]
enum Home {
    File,
    Store,
    /// And the label that they have there.
    Token(Token, String),
}

/// A key that was made just now.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) signer: Signer,
    /// What its record has to keep of it, where the store does.
    pub(crate) sealed: Option<String>,
}

/// The rings of a CA: the X.509 authorities' and that of the keys for JWT-SVIDs.
#[derive(Debug, Clone)]
pub(crate) struct Keyrings {
    pub(crate) x509: Keyring,
    pub(crate) jwt: Keyring,
}

// === impl Keyrings ===

impl Keyrings {
    /// As the configuration says. Keys that lie in files unsealed are sealed, if they are to be.
    pub(crate) fn open(config: &Config) -> Result<Self, SignerError> {
        let sealing = config.keys.secret_file().map(SealingKey::open).transpose()?;
        let home = match &config.keys {
            KeysConfig::File(_) => Home::File,
            KeysConfig::Store(_) => Home::Store,
            KeysConfig::Pkcs11(settings) => Home::Token(Token::open(settings)?, String::new()),
        };
        let ring = |kind: &'static str| Keyring {
            kind,
            home: home.labelled(&config.trust_domain, kind),
            path: config.data_dir.join(format!("{kind}.key")),
            sealing: sealing.clone(),
        };
        let rings = Self {
            x509: ring("authority"),
            jwt: ring("jwt"),
        };
        rings.x509.seal_file()?;
        rings.jwt.seal_file()?;
        Ok(rings)
    }
}

// === impl Home ===

impl Home {
    fn labelled(&self, trust_domain: &TrustDomain, kind: &str) -> Self {
        match self {
            Self::Token(token, _) => Self::Token(token.clone(), format!("hoplite {trust_domain} {kind}")),
            other => other.clone(),
        }
    }
}

// === impl Keyring ===

impl Keyring {
    /// Of the X.509 authorities, in a file of this data directory that is not sealed.
    #[cfg(test)]
    pub(crate) fn of(data_dir: &Path) -> Self {
        Self::in_file(data_dir, "authority", None)
    }

    /// Those for JWT-SVIDs.
    #[cfg(test)]
    pub(crate) fn of_jwt(data_dir: &Path) -> Self {
        Self::in_file(data_dir, "jwt", None)
    }

    #[cfg(test)]
    fn in_file(data_dir: &Path, kind: &'static str, sealing: Option<SealingKey>) -> Self {
        Self {
            kind,
            home: Home::File,
            path: data_dir.join(format!("{kind}.key")),
            sealing,
        }
    }

    /// The same keys, with the file in another directory.
    pub(crate) fn in_directory(&self, directory: &Path) -> Self {
        Self {
            path: directory.join(format!("{}.key", self.kind)),
            ..self.clone()
        }
    }

    /// Where keys should be, for people.
    pub(crate) fn place(&self) -> String {
        match &self.home {
            Home::File => format!("`{}`", self.path.display()),
            Home::Store => format!("`{}`, sealed, in the store", self.kind),
            Home::Token(token, label) => format!("`{label}` in the PKCS#11 token `{}`", token.label()),
        }
    }

    /// Where they are and what protects them, for the log.
    pub(crate) fn about(&self) -> String {
        match (&self.home, &self.sealing) {
            (Home::File, None) => "files of the data directory, which are not sealed".to_owned(),
            (Home::File, Some(sealing)) => format!("files of the data directory, sealed by {}", sealing.source()),
            (Home::Store, sealing) => {
                let source = sealing.as_ref().map(SealingKey::source).unwrap_or_default();
                format!("the store, sealed by {source}")
            }
            (Home::Token(token, _), _) => format!("the PKCS#11 token `{}`", token.label()),
        }
    }

    /// Why nothing can be signed or made, if the keys are in hardware that is away.
    pub(crate) fn away(&self) -> Option<String> {
        match &self.home {
            Home::Token(token, _) => token.away(),
            Home::File | Home::Store => None,
        }
    }

    /// Asks the hardware whether it is there.
    pub(crate) fn look(&self) {
        if let Home::Token(token, _) = &self.home {
            token.look();
        }
    }

    /// Whether no key is here at all, so that it is lost rather than another one. Of sealed ones in the store their records tell.
    pub(crate) fn is_empty(&self) -> Result<bool, SignerError> {
        let in_token = match &self.home {
            Home::Token(token, label) => !token.keys(label)?.is_empty(),
            Home::File | Home::Store => false,
        };
        Ok(!in_token && self.sections()?.is_empty())
    }

    /// The one with this public key. `sealed` is what its record keeps of it.
    pub(crate) fn find(&self, point: &[u8], sealed: Option<&str>) -> Result<Option<Signer>, SignerError> {
        let is_it = |signer: &Signer| signer.der_bytes() == point;
        if let Some(sealed) = sealed {
            let place = || format!("the key `{}` in the store", self.kind);
            let sealing = self
                .sealing
                .as_ref()
                .ok_or_else(|| SignerError::NoSecret { place: place() })?;
            let der = sealing.open_sealed(self.kind, sealed)?;
            return Ok(Signer::from_pkcs8(&der).filter(is_it));
        }
        if let Home::Token(token, label) = &self.home
            && let Some(key) = token.keys(label)?.into_iter().find(|key| key.point() == point)
        {
            return Ok(Some(Signer::in_token(key)));
        }
        Ok(self.in_the_file()?.into_iter().find(is_it))
    }

    /// One that nothing names yet, of a start that ended between a key and its certificate; or a new one.
    pub(crate) fn first(&self) -> Result<Made, SignerError> {
        let left = match &self.home {
            Home::File => self.in_the_file()?.pop(),
            Home::Token(token, label) => token.keys(label)?.pop().map(Signer::in_token),
            Home::Store => None,
        };
        match left {
            Some(signer) => Ok(Made { signer, sealed: None }),
            None => self.make(),
        }
    }

    /// Makes one more. In its place before this returns, for a certificate without a key would be of no use; in the store it is
    /// with its certificate, in the same commit.
    pub(crate) fn make(&self) -> Result<Made, SignerError> {
        if let Home::Token(token, label) = &self.home {
            let signer = Signer::in_token(token.make(label)?);
            return Ok(Made { signer, sealed: None });
        }
        let key = rcgen::KeyPair::generate().map_err(|_| SignerError::Generate)?;
        let der = Zeroizing::new(key.serialize_der());
        let signer = Signer::from_pkcs8(&der).ok_or(SignerError::Generate)?;
        if matches!(self.home, Home::Store) {
            let place = format!("a key `{}` in the store", self.kind);
            let sealing = self.sealing.as_ref().ok_or(SignerError::NoSecret { place })?;
            let sealed = Some(sealing.seal(self.kind, &der)?);
            return Ok(Made { signer, sealed });
        }
        // Nothing is written beside what cannot be read.
        self.in_the_file()?;
        let mut sections = self.sections()?;
        sections.push(self.section(&der)?);
        self.write(&sections)?;
        Ok(Made { signer, sealed: None })
    }

    /// Forgets all but these: what signs no more can be stolen no more.
    pub(crate) fn keep(&self, is_needed: impl Fn(&[u8]) -> bool) -> Result<(), SignerError> {
        let mut elsewhere = matches!(self.home, Home::Store);
        if let Home::Token(token, label) = &self.home {
            let (needed, others): (Vec<TokenKey>, Vec<TokenKey>) =
                token.keys(label)?.into_iter().partition(|key| is_needed(key.point()));
            elsewhere = !needed.is_empty();
            // Another CA may have made one whose certificate is not in the store yet. And none needed would mean that the
            // certificates are lost: then the keys are not to be.
            let is_old = |key: &&TokenKey| key.made() + TOKEN_KEY_RESTS <= unix_seconds(clock::now());
            for key in others.iter().filter(is_old).filter(|_| elsewhere) {
                token.forget(key)?;
            }
        }
        let mut sections = self.sections()?;
        let before = sections.len();
        let mut kept = Vec::new();
        for section in sections.drain(..) {
            if is_needed(self.signer(&section)?.der_bytes()) {
                kept.push(section);
            }
        }
        match (kept.len() == before, kept.is_empty()) {
            (true, _) => Ok(()),
            // The same here.
            (false, true) if !elsewhere => Ok(()),
            (false, true) => Ok(files::remove(&self.path)?),
            (false, false) => self.write(&kept),
        }
    }

    /// The keys in the file, oldest first; none when there is no file.
    fn in_the_file(&self) -> Result<Vec<Signer>, SignerError> {
        self.sections()?.iter().map(|section| self.signer(section)).collect()
    }

    /// Seals what lies in the file in the clear, if it is to be.
    fn seal_file(&self) -> Result<(), SignerError> {
        let sections = self.sections()?;
        let is_plain = |section: &Zeroizing<String>| !section.starts_with(SEALED.0);
        if self.sealing.is_none() || !sections.iter().any(is_plain) {
            return Ok(());
        }
        let mut sealed = Vec::new();
        for section in &sections {
            sealed.push(self.section(&self.der(section)?)?);
        }
        self.write(&sealed)?;
        tracing::warn!(
            target: "hoplite::audit",
            file = %self.path.display(),
            by = self.sealing.as_ref().map(SealingKey::source),
            "the keys in this file were not sealed, and are now; copies and backups of the file as it was open without the secret still"
        );
        Ok(())
    }

    /// The text of each.
    fn sections(&self) -> Result<Vec<Zeroizing<String>>, SignerError> {
        let text = match files::read_private(&self.path) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let text = std::str::from_utf8(&text).map_err(|_| self.not_a_key())?;
        let mut sections = Vec::new();
        let mut section = Zeroizing::new(String::new());
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            section.push_str(line);
            section.push('\n');
            if line.starts_with("-----END ") && line.ends_with(END) {
                sections.push(std::mem::take(&mut section));
            }
        }
        match sections.is_empty() || !section.is_empty() {
            true => Err(self.not_a_key()),
            false => Ok(sections),
        }
    }

    /// As it lies in the file.
    fn section(&self, der: &[u8]) -> Result<Zeroizing<String>, SignerError> {
        let Some(sealing) = &self.sealing else {
            return Ok(Zeroizing::new(pem::write_private_key(der).to_string()));
        };
        let sealed = sealing.seal(self.kind, der)?;
        Ok(Zeroizing::new(format!("{}\n{sealed}\n{}\n", SEALED.0, SEALED.1)))
    }

    fn der(&self, section: &str) -> Result<Zeroizing<Vec<u8>>, SignerError> {
        if let Some(rest) = section.strip_prefix(SEALED.0) {
            let place = || format!("`{}`", self.path.display());
            let sealing = self
                .sealing
                .as_ref()
                .ok_or_else(|| SignerError::NoSecret { place: place() })?;
            let sealed = rest.trim().strip_suffix(SEALED.1).ok_or_else(|| self.not_a_key())?;
            return Ok(sealing.open_sealed(self.kind, sealed)?);
        }
        let der = pem::private_key(section).map_err(|_| self.not_a_key())?;
        Ok(Zeroizing::new(der.to_vec()))
    }

    fn signer(&self, section: &str) -> Result<Signer, SignerError> {
        Signer::from_pkcs8(&self.der(section)?).ok_or_else(|| self.not_a_key())
    }

    fn write(&self, sections: &[Zeroizing<String>]) -> Result<(), SignerError> {
        let mut text = Zeroizing::new(String::with_capacity(
            sections.iter().map(|section| section.len()).sum(),
        ));
        for section in sections {
            text.push_str(section);
        }
        Ok(files::write_private(&self.path, text.as_bytes())?)
    }

    fn not_a_key(&self) -> SignerError {
        SignerError::NotAKey {
            path: self.path.display().to_string(),
        }
    }
}

/// So long (seconds) a key of a token is kept though no certificate in the store has it.
const TOKEN_KEY_RESTS: u64 = 600;

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn points(keyring: &Keyring) -> Vec<Vec<u8>> {
        let signers = keyring.in_the_file().unwrap();
        signers.iter().map(|signer| signer.der_bytes().to_vec()).collect()
    }

    fn sealing(dir: &Path, name: &str) -> SealingKey {
        let file = dir.join(name);
        files::write_private(&file, name.repeat(12).as_bytes()).unwrap();
        SealingKey::open(&file).unwrap()
    }

    #[test]
    fn keys_are_private_and_come_back() {
        let dir = tempfile::tempdir().unwrap();
        for sealing in [None, Some(sealing(dir.path(), "secret"))] {
            let dir = tempfile::tempdir().unwrap();
            let keyring = Keyring::in_file(dir.path(), "authority", sealing.clone());
            assert!(keyring.is_empty().unwrap());
            let made: Vec<Made> = (0..3).map(|_| keyring.make().unwrap()).collect();
            let made: Vec<Vec<u8>> = made.iter().map(|made| made.signer.der_bytes().to_vec()).collect();
            assert_eq!(points(&keyring), made);
            assert!(made.iter().all(|point| keyring.find(point, None).unwrap().is_some()));
            let mode = std::fs::metadata(&keyring.path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            let text = std::fs::read_to_string(&keyring.path).unwrap();
            assert_eq!(text.contains("BEGIN PRIVATE KEY"), sealing.is_none(), "{text}");
            keyring.keep(|point| point != made[1]).unwrap();
            let left = [made[0].clone(), made[2].clone()];
            assert_eq!(points(&keyring), left);
            keyring.keep(|_| false).unwrap();
            assert_eq!(points(&keyring), left, "they are all there is");
        }
    }

    #[test]
    fn what_lies_in_the_clear_is_sealed_once_it_is_to_be_and_opens_with_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let plain = Keyring::of(dir.path());
        plain.make().unwrap();
        let (before, text) = (points(&plain), std::fs::read_to_string(&plain.path).unwrap());
        plain.seal_file().unwrap();
        assert_eq!(std::fs::read_to_string(&plain.path).unwrap(), text, "it is not to be");
        let sealed = Keyring::in_file(dir.path(), "authority", Some(sealing(dir.path(), "secret")));
        sealed.seal_file().unwrap();
        assert!(!std::fs::read_to_string(&plain.path).unwrap().contains("PRIVATE"));
        assert_eq!(points(&sealed), before);
        let error = plain.find(&before[0], None).unwrap_err().to_string();
        assert!(
            error.contains("authority.key") && error.contains("secret_file"),
            "{error}"
        );
        assert!(plain.make().is_err(), "nothing is written beside it");
        let other = Keyring::in_file(dir.path(), "authority", Some(sealing(dir.path(), "other")));
        let error = other.find(&before[0], None).unwrap_err().to_string();
        assert!(error.contains("other") && error.contains("does not open"), "{error}");
    }

    #[test]
    fn a_key_in_the_store_is_in_its_record_and_in_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let in_store = Keyring {
            home: Home::Store,
            ..Keyring::in_file(dir.path(), "jwt", Some(sealing(dir.path(), "secret")))
        };
        // One of before lies in the file still, and is found there until it is needed no more.
        let old = Keyring::of_jwt(dir.path()).make().unwrap().signer;
        let made = in_store.make().unwrap();
        let (point, sealed) = (made.signer.der_bytes().to_vec(), made.sealed.unwrap());
        assert!(in_store.find(&point, Some(&sealed)).unwrap().is_some());
        assert!(in_store.find(&point, None).unwrap().is_none());
        assert!(
            in_store.find(&[4; 65], Some(&sealed)).unwrap().is_none(),
            "another key's"
        );
        assert!(in_store.find(old.der_bytes(), None).unwrap().is_some());
        in_store.keep(|_| false).unwrap();
        assert!(!dir.path().join("jwt.key").exists());
    }

    #[test]
    fn what_is_no_key_is_refused_by_path() {
        let dir = tempfile::tempdir().unwrap();
        let keyring = Keyring::of(dir.path());
        let pem = |key: rcgen::KeyPair| pem::write_private_key(&key.serialize_der());
        let p384 = pem(rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap());
        let good = pem(rcgen::KeyPair::generate().unwrap());
        for bad in [
            "",
            "secret",
            &p384,
            &good[..good.len() / 2],
            &format!("{}secret", *good),
        ] {
            files::write_private(&keyring.path, bad.as_bytes()).unwrap();
            let error = keyring.is_empty().map(|_| keyring.in_the_file());
            let error = error.and_then(|found| found).map(drop).unwrap_err().to_string();
            assert!(error.contains("authority.key") && !error.contains("secret"), "{error}");
            assert!(keyring.make().is_err(), "nothing is written over");
        }
    }
}
