//! `hoplite login|logout|whoami` and `hoplite operator list|ban|remove`: people who administer a CA, from wherever they are.

use std::io::{self, Read};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use hoplite_host::{clock, files};
use hoplite_identity::{BundleSet, Invitation, PeerVerifier, TrustBundle, tls};
use hoplite_wire::ca::node_client::NodeClient;
use hoplite_wire::ca::{JoinRequest, ListOperatorsRequest, Operator, OperatorRequest, WhoAmIRequest};
use hoplite_wire::channel::{self, IntroduceError};
use tonic::Code;

use crate::command::admin::{ListArgs, ListingArgs, rfc3339};
use crate::command::dial;
use crate::command::sign_in::{self, SignIn};
use crate::output::{Column, Listing, NOTHING_DONE, Output, print, print_json, print_page, verdict};

/// An answer that was lost is asked for again, with the same key.
const ATTEMPTS: usize = 3;

/// An invitation is one word.
const INVITATION_BYTES_MAX: u64 = 4096;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  hoplite login 5f0c…@ca.prod.example:7443#9b1e…\n  hoplite login - < invitation\n  \
    hoplite login @invitation\n\n\
    The invitation is the word that `hoplite token create --operator NAME --role ROLE` printed at the CA. What comes of it lies in \
    ~/.config/hoplite/TRUST_DOMAIN and lasts for 8 hours, or as the CA's `operator_ttl` says; use prolongs it, for 30 days at most."
)]
pub(crate) struct LoginArgs {
    /// The invitation: TOKEN@HOST:PORT#FINGERPRINT; `-` reads it from standard input, @FILE from a file
    #[arg(value_name = "INVITATION")]
    invitation: String,
    /// The form of the answer
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  hoplite logout\n  hoplite logout --ca prod.example\n\n\
    The CA forgets the certificate, and this machine forgets it and its key.")]
pub(crate) struct LogoutArgs {
    /// Where: the CA's address, or its trust domain [default: the newest sign-in]
    #[arg(long, value_name = "HOST:PORT")]
    ca: Option<String>,
    /// Forget it here even if the CA cannot be told; its certificate then counts until its end
    #[arg(long)]
    force: bool,
    /// The form of the answer
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  hoplite whoami\n  hoplite whoami --ca ca.prod.example:7443 --output json")]
pub(crate) struct WhoAmIArgs {
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum OperatorCommand {
    /// List the operators: what each may do, and where they are signed in
    #[command(after_help = "Example:\n  hoplite operator list --output json")]
    List(ListingArgs),
    /// Keep an operator out at once: certificates and tokens it has count for nothing from now on
    #[command(after_help = "Example:\n  hoplite operator ban alice")]
    Ban(OneArgs),
    /// Forget an operator, who can be invited anew
    #[command(after_help = "Example:\n  hoplite operator remove alice")]
    Remove(OneArgs),
}

#[derive(Debug, Args)]
pub(crate) struct OneArgs {
    /// The operator's name
    name: String,
    #[command(flatten)]
    list: ListArgs,
}

pub(crate) fn login(args: &LoginArgs) -> anyhow::Result<ExitCode> {
    let invitation = read_invitation(&args.invitation)?;
    let sign_in = super::runtime()?.block_on(sign_in(&invitation))?;
    let dir = sign_in.save()?;
    sign_in.make_current()?;
    let ends = sign_in.svid.leaf().not_after();
    if args.output == Output::Json {
        print_json(&serde_json::json!({
            "operator": sign_in.name(), "trust_domain": sign_in.trust_domain().as_str(), "ca": sign_in.address.as_str(),
            "expires_at": hoplite_identity::Moment::from(ends).to_string(), "directory": dir,
        }))?;
    } else {
        print(&format!(
            "operator `{}` is signed in at `{}` ({}) until {}; `hoplite whoami` shows what it may do\n",
            sign_in.name(),
            sign_in.trust_domain(),
            sign_in.address,
            hoplite_identity::Moment::from(ends)
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn logout(args: &LogoutArgs) -> anyhow::Result<ExitCode> {
    let found = match &args.ca {
        Some(ca) => SignIn::at(ca)?,
        None => SignIn::current()?,
    };
    let Some(sign_in) = found else {
        let whose = args
            .ca
            .as_deref()
            .map_or_else(|| "any CA".to_owned(), |ca| format!("the CA `{ca}`"));
        bail!("this user has not signed in at {whose}{}", sign_in::known()?);
    };
    let told = super::runtime()?.block_on(sign_in.sign_out());
    if let (Err(error), false) = (&told, args.force) {
        bail!("the CA was not told, so nothing was forgotten: {error}; `--force` forgets it here alone");
    }
    sign_in.remove()?;
    let is_told = told.is_ok();
    if args.output == Output::Json {
        print_json(&serde_json::json!({
            "operator": sign_in.name(), "trust_domain": sign_in.trust_domain().as_str(), "ca_told": is_told,
        }))?;
    } else {
        let untold = if is_told {
            ""
        } else {
            "; the CA does not know, and takes the certificate until its end"
        };
        print(&format!(
            "operator `{}` is signed out of `{}`{untold}\n",
            sign_in.name(),
            sign_in.trust_domain()
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn whoami(args: &WhoAmIArgs) -> anyhow::Result<ExitCode> {
    let ca = &args.list.ca;
    let me = ca.call(async |mut ca| Ok(ca.who_am_i(WhoAmIRequest {}).await?.into_inner()))?;
    if let Some(mut sign_in) = ca.sign_in()? {
        sign_in.learn(me.bundle)?;
    }
    let expires_at = (me.expires_at_unix != 0).then(|| rfc3339(me.expires_at_unix));
    if args.list.output == Output::Json {
        print_json(&serde_json::json!({
            "who": me.who, "spiffe_id": me.spiffe_id, "trust_domain": me.trust_domain, "ca": ca.name()?,
            "expires_at": expires_at, "roles": me.roles, "paths": me.paths, "may": me.actions,
        }))?;
    } else {
        let list = |items: &[String]| {
            if items.is_empty() {
                "none".to_owned()
            } else {
                items.join(", ")
            }
        };
        let mut text = format!("{} at `{}` ({})\n", me.who, me.trust_domain, ca.name()?);
        if let Some(expires_at) = expires_at {
            text += &format!("until  {expires_at}\n");
        }
        if !me.roles.is_empty() || me.who.starts_with("operator") {
            text += &format!("roles  {}\n", list(&me.roles));
        }
        if !me.paths.is_empty() {
            text += &format!("paths  {}\n", list(&me.paths));
        }
        text += &format!("may    {}\n", list(&me.actions));
        print_page(&text)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What people see of an operator.
const COLUMNS: [Column; 5] = [
    Column::new("OPERATOR", "name"),
    Column::made("ROLES", "roles", |operator| joined(&operator["roles"])),
    Column::made("PATHS", "paths", |operator| joined(&operator["paths"])),
    Column::made("SIGNED IN", "signed_in", |operator| {
        match operator["signed_in"].as_u64() {
            None | Some(0) => "no".to_owned(),
            Some(1) => "on 1 machine".to_owned(),
            Some(machines) => format!("on {machines} machines"),
        }
    }),
    Column::made("STATE", "banned", |operator| {
        if operator["banned"] == true { "banned" } else { "ok" }.to_owned()
    })
    .coloured(verdict),
];

fn joined(items: &serde_json::Value) -> String {
    let items = items
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(serde_json::Value::as_str);
    let items: Vec<&str> = items.collect();
    if items.is_empty() {
        "-".to_owned()
    } else {
        items.join(" ")
    }
}

pub(crate) fn operator(command: OperatorCommand) -> anyhow::Result<ExitCode> {
    match command {
        OperatorCommand::List(args) => {
            let asked = ListOperatorsRequest {};
            let operators = args
                .ca
                .call(async |mut ca| Ok(ca.list_operators(asked).await?.into_inner().operators))?;
            let row = |operator: Operator| {
                serde_json::json!({
                    "name": operator.name, "roles": operator.roles, "paths": operator.paths,
                    "signed_in": operator.signed_in, "banned": operator.banned,
                })
            };
            let mut listing = Listing::new(&COLUMNS).like(&row(Operator::default()));
            operators.into_iter().for_each(|operator| listing.row(row(operator)));
            listing.print(args.form)?;
        }
        OperatorCommand::Ban(args) => {
            let request = OperatorRequest {
                name: args.name.clone(),
            };
            let ban = args
                .list
                .ca
                .call(async |mut ca| Ok(ca.ban_operator(request).await?.into_inner()))?;
            return done(&args, "banned", ban.already);
        }
        OperatorCommand::Remove(args) => {
            let request = OperatorRequest {
                name: args.name.clone(),
            };
            args.list
                .ca
                .call(async |mut ca| Ok(ca.remove_operator(request).await?))?;
            return done(&args, "removed", false);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn done(args: &OneArgs, what: &str, already: bool) -> anyhow::Result<ExitCode> {
    match args.list.output {
        Output::Json => print_json(&serde_json::json!({ "operator": args.name, "done": what, "already": already }))?,
        Output::Table if already => print(&format!("operator {} is {what} already; nothing was done\n", args.name))?,
        Output::Table => print(&format!("{what} operator {}\n", args.name))?,
    }
    Ok(match already {
        true => ExitCode::from(NOTHING_DONE),
        false => ExitCode::SUCCESS,
    })
}

/// The word on the command line, or what stands where it says.
fn read_invitation(argument: &str) -> anyhow::Result<Invitation> {
    let text = match argument.strip_prefix('@') {
        _ if argument == "-" => {
            io::read_to_string(io::stdin().take(INVITATION_BYTES_MAX)).context("standard input cannot be read")?
        }
        Some(file) => files::read_text(Path::new(file))?,
        None => argument.to_owned(),
    };
    // Somebody may have copied the whole command.
    let word = text.trim();
    let word = word
        .strip_prefix("hoplite login ")
        .unwrap_or(word)
        .trim()
        .trim_matches('\'');
    if word.is_empty() {
        bail!(
            "this is no invitation: there is nothing in `{argument}`; `hoplite token create --operator NAME` makes one"
        );
    }
    Invitation::parse(word).map_err(|error| anyhow::anyhow!("this is no invitation: {error}"))
}

/// Trades an invitation for a sign-in. Nothing is sent before the CA is known by its fingerprint.
async fn sign_in(invitation: &Invitation) -> anyhow::Result<SignIn> {
    let ca = invitation.address();
    let bundle = introduced(invitation).await?;
    let verifier = Arc::new(PeerVerifier::new(BundleSet::from_iter([bundle.clone()]))?);
    let expected = bundle.trust_domain().ca();
    let config = tls::client_config(None, verifier, expected, &[b"h2"])?;
    let pair = rcgen::KeyPair::generate()?;
    let csr = rcgen::CertificateParams::default().serialize_request(&pair)?;
    let mut attempt = 1;
    loop {
        let channel = channel::tls(ca.to_string(), Arc::clone(&config)).await;
        let channel = channel.map_err(|error| dial::away(&error, ca))?;
        let request = JoinRequest {
            token: invitation.token().to_owned(),
            csr: csr.der().to_vec(),
        };
        match NodeClient::new(channel).login(request).await {
            Ok(answer) => return SignIn::new(ca.clone(), &pair, answer.into_inner(), bundle),
            // The connection broke: the token may be spent, with this key.
            Err(status) if std::error::Error::source(&status).is_some() && attempt < ATTEMPTS => attempt += 1,
            Err(status) if status.code() == Code::Unimplemented => {
                bail!("the CA at `{ca}` is older than this command and knows no operators; upgrade it")
            }
            Err(status) => return Err(dial::refusal(&status, ca.as_str())),
        }
    }
}

/// The trust bundle of the CA that has this fingerprint.
async fn introduced(invitation: &Invitation) -> anyhow::Result<TrustBundle> {
    let introduced = channel::introduce(invitation.address(), invitation.fingerprint(), clock::now()).await;
    introduced.map_err(|error| match error {
        IntroduceError::Refused { address, reason } => anyhow::anyhow!(
            "whoever answers at `{address}` is not the CA of the invitation, so nothing was sent: {reason}; ask for a new \
             invitation, and if it is the same again, somebody stands between"
        ),
        other => other.into(),
    })
}
