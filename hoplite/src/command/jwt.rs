//! `hoplite jwt`: JWT-SVIDs for people: fetch this process's own, see whether another's is believed.

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use data_encoding::BASE64URL_NOPAD;
use hoplite_identity::jwt::TOKEN_BYTES_MAX;
use hoplite_wire::WorkloadJwt;
use hoplite_wire::workload::{Jwtsvid, ValidateJwtsvidResponse};
use prost_types::value::Kind;
use serde_json::{Map, Value, json};

use crate::command::admin::rfc3339;
use crate::command::svid::SocketArgs;
use crate::output::{Output, failed, print, print_json};

#[derive(Debug, Subcommand)]
pub(crate) enum JwtCommand {
    /// Print a JWT-SVID of this process for an audience; exit 1 if it has none
    #[command(
        after_help = "Examples:\n  hoplite jwt fetch --audience vault\n  hoplite jwt fetch --audience a --audience b --output json\n  \
        curl --oauth2-bearer \"$(hoplite jwt fetch --audience api)\" https://api/\n\n\
        Whoever has a token can use it at its audience until it ends: keep it out of logs and command lines that others see."
    )]
    Fetch(FetchArgs),
    /// Ask the agent whether a JWT-SVID is believed, and what it says; exit 1 if it is not
    #[command(
        after_help = "Examples:\n  hoplite jwt fetch --audience vault | hoplite jwt validate --audience vault\n  \
        hoplite jwt validate --audience vault token.jwt --output json"
    )]
    Validate(ValidateArgs),
}

#[derive(Debug, Args)]
pub(crate) struct FetchArgs {
    /// Who will be shown the token; may be repeated
    #[arg(long = "audience", value_name = "NAME", required = true)]
    audience: Vec<String>,
    /// Whose token, if this process has several identities [default: the default identity]
    #[arg(long, value_name = "ID")]
    spiffe_id: Option<String>,
    #[command(flatten)]
    socket: SocketArgs,
    /// The token alone, or a JSON array of this process's tokens and what they say
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct ValidateArgs {
    /// The audience that the token must be meant for
    #[arg(long, value_name = "NAME")]
    audience: String,
    /// The file with the token [default: standard input]
    file: Option<PathBuf>,
    #[command(flatten)]
    socket: SocketArgs,
    /// The form of the answer
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

pub(crate) fn run(command: JwtCommand) -> anyhow::Result<ExitCode> {
    match command {
        JwtCommand::Fetch(args) => fetch(args),
        JwtCommand::Validate(args) => validate(args),
    }
}

fn fetch(args: FetchArgs) -> anyhow::Result<ExitCode> {
    let address = args.socket.address()?;
    let svids = super::runtime()?.block_on(async {
        let mut api = WorkloadJwt::connect(&address).await?;
        api.fetch(args.audience, args.spiffe_id.as_deref()).await
    })?;
    match args.output {
        Output::Json => print_json(&svids.iter().map(row).collect::<Vec<_>>())?,
        Output::Table => {
            let Some(first) = svids.first() else {
                anyhow::bail!("the agent has no token for this process");
            };
            print(&format!("{}\n", first.svid))?;
            if svids.len() > 1 {
                hoplite_host::tell!(
                    "this is the token of {}, one of {} identities; `--spiffe-id` names another, `--output json` shows all",
                    first.spiffe_id,
                    svids.len()
                );
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn validate(args: ValidateArgs) -> anyhow::Result<ExitCode> {
    let token = read(args.file)?;
    let address = args.socket.address()?;
    let answer = super::runtime()?.block_on(async {
        let mut api = WorkloadJwt::connect(&address).await?;
        api.validate(args.audience, token).await
    })?;
    match answer {
        Ok(believed) => {
            let claims = claims(&believed);
            match args.output {
                Output::Json => print_json(&json!({"valid": true, "spiffe_id": believed.spiffe_id, "claims": claims}))?,
                Output::Table => print(&text(&believed.spiffe_id, &claims))?,
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(reason) => {
            if args.output == Output::Json {
                print_json(&json!({"valid": false, "reason": reason.to_string()}))?;
            }
            failed(&reason.to_string(), 1);
            Ok(ExitCode::FAILURE)
        }
    }
}

/// The token, without the line's end that files have.
fn read(file: Option<PathBuf>) -> anyhow::Result<String> {
    let (mut text, max) = (String::new(), TOKEN_BYTES_MAX as u64 + 64);
    match &file {
        Some(path) => {
            let opened = std::fs::File::open(path).with_context(|| format!("cannot read `{}`", path.display()))?;
            let read = opened.take(max).read_to_string(&mut text);
            read.with_context(|| format!("`{}` holds no token", path.display()))?;
        }
        None => {
            let read = std::io::stdin().take(max).read_to_string(&mut text);
            read.context("standard input holds no token")?;
        }
    }
    let token = text.trim();
    anyhow::ensure!(!token.is_empty(), "there is no token; give its file, or pipe it in");
    Ok(token.to_owned())
}

/// What a token of ours says of itself: the agent has verified it already.
fn row(svid: &Jwtsvid) -> Value {
    let payload = svid.svid.split('.').nth(1).unwrap_or_default();
    let claims = BASE64URL_NOPAD.decode(payload.as_bytes()).ok();
    let claims: Value = claims
        .and_then(|json| serde_json::from_slice(&json).ok())
        .unwrap_or_default();
    let moment = |name: &str| claims.get(name).and_then(Value::as_i64).map(rfc3339);
    json!({
        "spiffe_id": svid.spiffe_id, "hint": svid.hint, "token": svid.svid,
        "audience": claims.get("aud"), "issued_at": moment("iat"), "expires_at": moment("exp"),
    })
}

fn claims(believed: &ValidateJwtsvidResponse) -> Map<String, Value> {
    let fields = believed.claims.iter().flat_map(|claims| &claims.fields);
    fields.map(|(name, value)| (name.clone(), claim(value))).collect()
}

fn claim(value: &prost_types::Value) -> Value {
    match &value.kind {
        Some(Kind::BoolValue(it)) => json!(it),
        // Moments are whole numbers, and protobuf has none.
        Some(Kind::NumberValue(it)) if it.fract() == 0.0 && it.abs() < 9e15 => json!(*it as i64),
        Some(Kind::NumberValue(it)) => json!(it),
        Some(Kind::StringValue(it)) => json!(it),
        Some(Kind::ListValue(list)) => list.values.iter().map(claim).collect(),
        Some(Kind::StructValue(members)) => {
            let members = members.fields.iter().map(|(name, value)| (name.clone(), claim(value)));
            Value::Object(members.collect())
        }
        Some(Kind::NullValue(_)) | None => Value::Null,
    }
}

fn text(spiffe_id: &str, claims: &Map<String, Value>) -> String {
    let mut text = format!("{:<10} {spiffe_id}\n", "SPIFFE ID");
    for (name, value) in claims.iter().filter(|(name, _)| *name != "sub") {
        let shown = match (name.as_str(), value) {
            ("exp" | "iat" | "nbf", Value::Number(seconds)) => seconds.as_i64().map(rfc3339).unwrap_or_default(),
            (_, Value::String(text)) => text.escape_debug().to_string(),
            (_, Value::Array(list)) if list.iter().all(Value::is_string) => {
                let names = list.iter().filter_map(Value::as_str);
                let names: Vec<String> = names.map(|name| name.escape_debug().to_string()).collect();
                names.join(", ")
            }
            (_, other) => other.to_string(),
        };
        let name = match name.as_str() {
            "aud" => "AUDIENCE".to_owned(),
            "exp" => "ENDS".to_owned(),
            "iat" => "ISSUED".to_owned(),
            "iss" => "ISSUER".to_owned(),
            other => other.escape_debug().to_string(),
        };
        text += &format!("{name:<10} {shown}\n");
    }
    text
}
