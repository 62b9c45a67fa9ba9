//! `hoplite bundle show|set`: the trust bundle, and those of foreign trust domains.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use hoplite_identity::jwt::JwtAuthorities;
use hoplite_identity::{CertificateDer, TrustBundle, TrustDomain};
use hoplite_wire::ca::{FederationRequest, ShowBundleRequest};

use crate::command::admin::ListArgs;
use crate::command::federation::{self, TrustDomainArg};
use crate::output::{Output, print, print_json};

#[derive(Debug, Subcommand)]
pub(crate) enum BundleCommand {
    /// Print the trust bundle: the X.509 authorities as PEM, or all of it in SPIFFE's own form
    #[command(
        after_help = "Examples:\n  hoplite bundle show > bundle.pem\n  hoplite bundle show --format spiffe > bundle.json\n  hoplite bundle show partner.example"
    )]
    Show(BundleArgs),
    /// Give the CA the trust bundle of a foreign trust domain, got from it some other way than over its endpoint
    #[command(
        after_help = "Examples:\n  hoplite bundle set partner.example partner.json\n  ssh ca.partner.example hoplite bundle show --format spiffe |\n    hoplite bundle set partner.example -\n\n\
        The file is a SPIFFE bundle, or PEM. It takes the place of the one that is held, also of a newer one. If there is no federation with \
        the trust domain yet, this begins one without an endpoint: then nobody fetches its next bundle.\n\nExit 3 when that bundle is held already."
    )]
    Set(BundleSetArgs),
}

#[derive(Debug, Args)]
pub(crate) struct BundleSetArgs {
    /// The foreign trust domain
    trust_domain: TrustDomainArg,
    /// The file; `-` for standard input
    file: PathBuf,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, Args)]
pub(crate) struct BundleArgs {
    /// A foreign trust domain that is federated with [default: the CA's own]
    trust_domain: Option<TrustDomainArg>,
    /// What is printed: PEM of the X.509 authorities, or a SPIFFE bundle, which also has the keys for JWT-SVIDs
    #[arg(long, value_enum, default_value_t)]
    format: BundleFormat,
    #[command(flatten)]
    list: ListArgs,
}

/// The form of a trust bundle.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum BundleFormat {
    /// The certificates of the X.509 authorities
    #[default]
    Pem,
    /// A JWK Set of all authorities, as the SPIFFE standard has it
    Spiffe,
}

/// When who has a bundle should fetch it again.
const REFRESH_HINT: Duration = Duration::from_secs(300);

pub(crate) fn bundle(command: BundleCommand) -> anyhow::Result<ExitCode> {
    match command {
        BundleCommand::Show(args) => show_bundle(args),
        BundleCommand::Set(args) => federation::set_bundle(&args.list, &args.trust_domain, &args.file),
    }
}

fn show_bundle(args: BundleArgs) -> anyhow::Result<ExitCode> {
    let (foreign, args, format) = (args.trust_domain, args.list, args.format);
    let message = args.ca.call(async |mut ca| {
        Ok(match &foreign {
            None => ca.show_bundle(ShowBundleRequest {}).await?.into_inner(),
            Some(domain) => {
                let trust_domain = domain.to_string();
                ca.show_foreign_bundle(FederationRequest { trust_domain })
                    .await?
                    .into_inner()
            }
        })
    })?;
    let trust_domain = TrustDomain::parse(&message.trust_domain)?;
    let authorities: Vec<_> = message.authorities.into_iter().map(CertificateDer::from).collect();
    let jwt = JwtAuthorities::from_jwks(message.jwks.as_bytes())?;
    let bundle = TrustBundle::new(trust_domain, authorities, message.sequence)?.with_jwt(jwt);
    if format == BundleFormat::Spiffe {
        print(&(bundle.to_spiffe_json(REFRESH_HINT) + "\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.output == Output::Json {
        print_json(&serde_json::json!({
            "trust_domain": bundle.trust_domain().as_str(),
            "sequence": bundle.sequence(),
            "authorities": bundle.authorities().len(),
            "pem": bundle.to_pem(),
            "jwt_authorities": bundle.jwt().key_ids().collect::<Vec<_>>(),
        }))?;
    } else {
        print(&bundle.to_pem())?;
    }
    Ok(ExitCode::SUCCESS)
}
