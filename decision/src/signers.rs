//! Whom this machine believes, kept on its disk: the chain of signer sets from the first one that it was told of.

use std::path::{Path, PathBuf};

use hoplite_host::files::{self, FileError};
use hoplite_identity::TrustDomain;
use hoplite_policy::holding::PolicyTrust;
use hoplite_seal::{BadSet, NotFollowed, SignerChain, TrustedSigners};

/// The chain, beside what is held of policy.
const FILE: &str = "policy.signers";

/// The chain that is followed, and its keeper. Whom it believes changes in two ways: somebody edits this machine's own
/// configuration, or a quorum of whom it believes says so.
#[derive(Debug)]
pub struct Signers {
    chain: Option<SignerChain>,
    file: PathBuf,
    kept: bool,
    /// What was kept and cannot be used: then nobody is believed for having come first.
    damaged: Option<String>,
}

/// What was not as it should be when the chain was opened. It is for the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignersDoubt {
    /// What was kept cannot be used.
    #[error("the signers that were kept in `{file}` cannot be used ({why}), so nobody is believed; install this node anew, or name the signers in `policy_signers`", file = .file.display())]
    Damaged {
        /// Where they lie.
        file: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The configuration was edited.
    #[error(
        "`policy_signers` names others than the signers that were followed here; the configuration counts from now on"
    )]
    Configured,
}

/// Why what was offered is not followed.
#[derive(Debug, thiserror::Error)]
pub enum SignersRefused {
    /// It does not follow.
    #[error(transparent)]
    NotFollowed(#[from] NotFollowed),
    /// There was a chain, and it is damaged.
    #[error("nobody is believed for having come first, since the signers that were kept here cannot be used: {0}")]
    Damaged(String),
}

// === impl Signers ===

impl Signers {
    /// The chain that was kept in a directory; or the one that begins with what the configuration names, where it names
    /// others than any of the kept ones; or none yet.
    ///
    /// # Errors
    /// The configuration names signers that cannot be a set.
    pub fn open(
        directory: &Path,
        configured: Option<(&TrustDomain, &TrustedSigners)>,
    ) -> Result<(Self, Option<SignersDoubt>), BadSet> {
        let file = directory.join(FILE);
        let kept = match files::read_private(&file) {
            Ok(bytes) => Some(SignerChain::restore(&bytes).map_err(|why| why.to_string())),
            Err(error) if error.is_not_found() => None,
            Err(error) => Some(Err(error.to_string())),
        };
        let configured = configured
            .map(|(trust_domain, signers)| SignerChain::configured(trust_domain, signers))
            .transpose()?;
        let (chain, kept, doubt, damaged) = match (configured, kept) {
            (Some(named), Some(Ok(chain))) => {
                let own = named.newest();
                let is_ours = chain.newest().set().trust_domain() == own.set().trust_domain();
                match is_ours && chain.ever_had(own.signers()) {
                    true => (Some(chain), true, None, None),
                    false => (Some(named), false, Some(SignersDoubt::Configured), None),
                }
            }
            (Some(named), _) => (Some(named), false, None, None),
            (None, Some(Ok(chain))) => (Some(chain), true, None, None),
            (None, Some(Err(why))) => {
                let doubt = SignersDoubt::Damaged {
                    file: file.clone(),
                    why: why.clone(),
                };
                (None, true, Some(doubt), Some(why))
            }
            (None, None) => (None, true, None, None),
        };
        let signers = Self {
            chain,
            file,
            kept,
            damaged,
        };
        Ok((signers, doubt))
    }

    /// Follows what was offered; where there is nothing yet, takes it for the first. Whether others are believed now.
    ///
    /// # Errors
    /// Why not. Nothing has changed then.
    pub fn follow<S: AsRef<[u8]>>(
        &mut self,
        offered: &[S],
        trust_domain: &TrustDomain,
    ) -> Result<bool, SignersRefused> {
        let changed = match &mut self.chain {
            Some(chain) => chain.follow(offered)?,
            None => {
                if let Some(why) = &self.damaged {
                    return Err(SignersRefused::Damaged(why.clone()));
                }
                self.chain = Some(SignerChain::on_first_use(trust_domain, offered)?);
                true
            }
        };
        self.kept &= !changed;
        Ok(changed)
    }

    /// Writes down what is not yet.
    ///
    /// # Errors
    /// The file cannot be written; call it again.
    pub fn keep(&mut self) -> Result<(), FileError> {
        if let (Some(chain), false) = (&self.chain, self.kept) {
            files::write_private(&self.file, &chain.encode())?;
            self.kept = true;
        }
        Ok(())
    }

    /// The chain, once there is one.
    pub fn chain(&self) -> Option<&SignerChain> {
        self.chain.as_ref()
    }

    /// Whose policy is believed now.
    pub fn trust(&self) -> Option<PolicyTrust> {
        let newest = self.chain.as_ref()?.newest();
        let trust_domain = TrustDomain::parse(newest.set().trust_domain()).ok()?;
        Some(PolicyTrust::new(newest.signers().clone(), trust_domain))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hoplite_seal::{SignerSet, SigningKey};

    fn key(name: &str) -> SigningKey {
        let mut seed = [7; 32];
        seed[..name.len()].copy_from_slice(name.as_bytes());
        SigningKey::from_seed(name, seed.into()).unwrap()
    }

    fn trusted(names: &[&str]) -> TrustedSigners {
        TrustedSigners::new(names.iter().map(|name| key(name).signer().clone())).unwrap()
    }

    fn domain() -> TrustDomain {
        TrustDomain::parse("prod.example").unwrap()
    }

    fn all(chain: &SignerChain) -> Vec<Vec<u8>> {
        chain.since(0).map(<[u8]>::to_vec).collect()
    }

    /// Alice, then alice and bob.
    fn two() -> SignerChain {
        let mut chain = SignerChain::configured(&domain(), &trusted(&["alice"])).unwrap();
        let next = SignerSet::after(chain.newest(), &trusted(&["alice", "bob"]), None).unwrap();
        let signed = SignerSet::sign_too(&next.encode(), &key("alice")).unwrap();
        chain.follow(&[signed]).unwrap();
        chain
    }

    #[test]
    fn who_came_first_stays_and_a_damaged_chain_is_no_way_to_come_first() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Signers::open(dir.path(), None).unwrap();
        let (mut signers, doubt) = open();
        assert!(signers.trust().is_none() && doubt.is_none());
        assert!(signers.follow(&all(&two())[..1], &domain()).unwrap());
        signers.keep().unwrap();
        let (mut signers, _) = open();
        assert_eq!(signers.trust().unwrap().signers, trusted(&["alice"]));
        let mallory = SignerChain::configured(&domain(), &trusted(&["mallory"])).unwrap();
        let refused = signers.follow(&all(&mallory), &domain()).unwrap_err();
        assert!(
            matches!(refused, SignersRefused::NotFollowed(NotFollowed::Fork(1))),
            "{refused}"
        );
        assert!(signers.follow(&all(&two()), &domain()).unwrap());
        signers.keep().unwrap();
        assert_eq!(open().0.chain(), Some(&two()));

        std::fs::write(dir.path().join(FILE), b"spoilt").unwrap();
        let (mut signers, doubt) = open();
        assert!(matches!(doubt, Some(SignersDoubt::Damaged { .. })), "{doubt:?}");
        assert!(signers.follow(&all(&mallory), &domain()).is_err() && signers.trust().is_none());
    }

    #[test]
    fn a_configuration_counts_when_it_names_others() {
        let dir = tempfile::tempdir().unwrap();
        let open = |names: &[&str]| Signers::open(dir.path(), Some((&domain(), &trusted(names)))).unwrap();
        let (mut signers, _) = open(&["alice"]);
        assert!(signers.follow(&all(&two()), &domain()).unwrap());
        signers.keep().unwrap();
        for stale in [&["alice"][..], &["alice", "bob"]] {
            let (signers, doubt) = open(stale);
            assert_eq!((signers.chain(), doubt), (Some(&two()), None), "it was so once");
        }
        let (signers, doubt) = open(&["carol"]);
        assert_eq!(signers.trust().unwrap().signers, trusted(&["carol"]));
        assert_eq!(doubt, Some(SignersDoubt::Configured));
    }
}
