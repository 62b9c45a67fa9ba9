//! The command line: what to judge, which clauses, and in which form it is reported.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::{Parser, ValueEnum};

use crate::{
    CLAUSES, Endpoint, InvalidFile, JwtFile, Limits, Profile, Summary, SvidFile, Targets, authorities_of, judge, report,
};

/// Where Linux distributions keep the roots of the web.
const WEB_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// A stream's first message that takes longer was delayed.
const DELAY: Duration = Duration::from_secs(2);

/// Judges a SPIFFE Workload API, a bundle endpoint, SVIDs, tokens and bundles by the clauses of the SPIFFE standards.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:\n  \
    spiffe-conformance --socket unix:///run/spire/agent/public/api.sock\n  \
    spiffe-conformance --bundle-endpoint https://example.org:8443/ --profile https_spiffe --trust-domain example.org \\\n      \
    --endpoint-id spiffe://example.org/spire/server --endpoint-bundle bundle.json --output json\n  \
    spiffe-conformance --svid svid.pem --authorities bundle.pem --only 'X-*'\n  \
    spiffe-conformance --list\n\n\
    Exit codes: 0 every MUST that was judged is kept, 1 one is broken (with --strict a SHOULD too), 2 wrong usage,\n\
    3 nothing was judged."
)]
struct Cli {
    /// A Workload API, `unix:///path` or `tcp://IP:port`
    #[arg(long, env = "SPIFFE_ENDPOINT_SOCKET", value_name = "ADDRESS")]
    socket: Option<String>,
    /// The URL of a bundle endpoint
    #[arg(long, value_name = "URL", requires = "trust_domain", requires = "profile")]
    bundle_endpoint: Option<String>,
    /// How the endpoint proves who it is
    #[arg(long, value_enum)]
    profile: Option<ProfileName>,
    /// Whose bundle the endpoint serves and `--bundle` has
    #[arg(long, value_name = "NAME")]
    trust_domain: Option<String>,
    /// Who the endpoint is, with https_spiffe
    #[arg(long, value_name = "SPIFFE_ID")]
    endpoint_id: Option<String>,
    /// Who vouches for the endpoint, with https_spiffe: PEM, DER or a trust bundle in JSON
    #[arg(long, value_name = "FILE")]
    endpoint_bundle: Option<PathBuf>,
    /// The roots of the web, with https_web: PEM
    #[arg(long, value_name = "FILE")]
    web_roots: Option<PathBuf>,
    /// An X.509-SVID: certificates in PEM or DER, leaf first, and perhaps its key in PEM
    #[arg(long, value_name = "FILE")]
    svid: Vec<PathBuf>,
    /// The key of `--svid`, PEM or DER
    #[arg(long, value_name = "FILE", requires = "svid")]
    key: Option<PathBuf>,
    /// Who vouches for `--svid`: PEM, DER or a trust bundle in JSON
    #[arg(long, value_name = "FILE", requires = "svid")]
    authorities: Option<PathBuf>,
    /// A JWT-SVID
    #[arg(long, value_name = "FILE")]
    jwt: Vec<PathBuf>,
    /// What `--jwt` was made for
    #[arg(long, value_name = "NAME", requires = "jwt")]
    audience: Vec<String>,
    /// A trust bundle in JSON; `--jwt` is verified by it
    #[arg(long, value_name = "FILE")]
    bundle: Vec<PathBuf>,
    /// A bundle map in JSON
    #[arg(long, value_name = "FILE")]
    bundle_map: Vec<PathBuf>,
    /// Only these clauses: `X-4b`, `X-4` or `W-*`
    #[arg(long, value_name = "CLAUSE")]
    only: Vec<String>,
    /// Shows the clauses and judges nothing
    #[arg(long)]
    list: bool,
    /// A SHOULD that is broken counts as a MUST
    #[arg(long)]
    strict: bool,
    /// Watches the stream of SVIDs for so many seconds, to judge what follows a rotation
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    watch: u64,
    /// How many seconds any answer may take
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    patience: u64,
    /// The form of the report
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ProfileName {
    #[value(name = "https_web")]
    Web,
    #[value(name = "https_spiffe")]
    Spiffe,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Output {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
    /// For build servers
    Junit,
}

/// Why nothing can be judged.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("`{0}` cannot be read: {1}")]
    Read(PathBuf, #[source] io::Error),
    #[error("`{0}` has no authorities: {1}")]
    Authorities(PathBuf, #[source] InvalidFile),
    #[error("`{0}` is no text")]
    Text(PathBuf),
    #[error("no clause is named `{0}`; `--list` shows them")]
    Clause(String),
    #[error("`--endpoint-bundle` and `--endpoint-id` are of https_spiffe, `--web-roots` of https_web")]
    Profile,
    #[error("the runtime cannot start: {0}")]
    Runtime(#[source] io::Error),
}

/// Wrong usage, or nothing that can be read.
const UNUSABLE: u8 = 2;

/// No clause could be judged.
const NOTHING_JUDGED: u8 = 3;

/// Judges what these arguments name, the first of which is the program's own name. Gives the exit code.
pub fn run<T: Into<OsString> + Clone>(
    arguments: impl IntoIterator<Item = T>,
    out: &mut impl Write,
    err: &mut impl Write,
    clock: fn() -> SystemTime,
) -> u8 {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(asked) if !asked.use_stderr() => return print(out, &asked.render().to_string(), 0),
        Err(wrong) => {
            let _ = write!(err, "{}", wrong.render());
            return UNUSABLE;
        }
    };
    match judged(&cli, err, clock) {
        Ok((shown, code)) => print(out, &shown, code),
        Err(failure) => {
            let _ = writeln!(err, "spiffe-conformance: {failure}");
            UNUSABLE
        }
    }
}

/// The report, and the exit code.
fn judged(cli: &Cli, err: &mut impl Write, clock: fn() -> SystemTime) -> Result<(String, u8), Failure> {
    let is_known = |pattern: &&String| CLAUSES.iter().any(|clause| clause.matches(pattern));
    if let Some(unknown) = cli.only.iter().find(|pattern| !is_known(pattern)) {
        return Err(Failure::Clause(unknown.clone()));
    }
    if cli.list {
        let shown = match cli.output {
            Output::Json => format!("{:#}\n", report::list_json(&cli.only)),
            Output::Text | Output::Junit => report::list(&cli.only),
        };
        return Ok((shown, 0));
    }
    let (targets, names) = targets(cli)?;
    let limits = Limits {
        patience: Duration::from_secs(cli.patience),
        delay: DELAY,
        watch: Duration::from_secs(cli.watch),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let findings = runtime
        .map_err(Failure::Runtime)?
        .block_on(judge(&targets, &cli.only, limits, clock));
    let verdicts = findings.verdicts();
    let summary = Summary::of(&verdicts);
    let code = match () {
        () if summary.is_empty() => NOTHING_JUDGED,
        () if summary.must_failed > 0 || (cli.strict && summary.should_failed > 0) => 1,
        () => 0,
    };
    let shown = match cli.output {
        Output::Text => report::text(&verdicts, &names),
        Output::Json => format!("{:#}\n", report::json(&verdicts, &names)),
        Output::Junit => report::junit(&verdicts, &names),
    };
    if summary.is_empty() {
        let _ = writeln!(
            err,
            "spiffe-conformance: nothing was judged: name a `--socket`, a `--bundle-endpoint` or files that the clauses need"
        );
    }
    Ok((shown, code))
}

/// Writes the report; one that cannot be written was not given.
fn print(out: &mut impl Write, text: &str, code: u8) -> u8 {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => code,
        Err(_) => UNUSABLE,
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| Failure::Read(path.to_owned(), error))
}

fn authorities(path: &Path) -> Result<Vec<Vec<u8>>, Failure> {
    authorities_of(&read(path)?).map_err(|error| Failure::Authorities(path.to_owned(), error))
}

/// What to judge, and what it is called.
fn targets(cli: &Cli) -> Result<(Targets, Vec<String>), Failure> {
    let name = |path: &Path| format!("`{}`", path.display());
    let mut targets = Targets {
        socket: cli.socket.clone().filter(|socket| !socket.is_empty()),
        trust_domain: cli.trust_domain.clone(),
        ..Targets::default()
    };
    let mut names: Vec<String> = targets
        .socket
        .clone()
        .into_iter()
        .chain(cli.bundle_endpoint.clone())
        .collect();
    if let (Some(url), Some(profile), Some(trust_domain)) = (&cli.bundle_endpoint, cli.profile, &cli.trust_domain) {
        let is_mixed = match profile {
            ProfileName::Web => cli.endpoint_bundle.is_some() || cli.endpoint_id.is_some(),
            ProfileName::Spiffe => cli.web_roots.is_some(),
        };
        if is_mixed {
            return Err(Failure::Profile);
        }
        let authorities = match (profile, &cli.web_roots) {
            (ProfileName::Spiffe, _) => cli.endpoint_bundle.as_deref().map(authorities).transpose()?,
            (ProfileName::Web, Some(path)) => Some(authorities(path)?),
            (ProfileName::Web, None) => authorities(Path::new(WEB_ROOTS)).ok(),
        };
        targets.endpoint = Some(Endpoint {
            url: url.clone(),
            profile: match profile {
                ProfileName::Web => Profile::Web,
                ProfileName::Spiffe => Profile::Spiffe,
            },
            trust_domain: trust_domain.clone(),
            spiffe_id: cli.endpoint_id.clone(),
            authorities,
        });
    }
    for path in &cli.bundle {
        targets.bundles.push((name(path), read(path)?));
    }
    for path in &cli.bundle_map {
        targets.maps.push((name(path), read(path)?));
    }
    for path in &cli.svid {
        targets.svids.push(SvidFile {
            name: name(path),
            chain: read(path)?,
            key: cli.key.as_deref().map(read).transpose()?,
            authorities: cli.authorities.as_deref().map(authorities).transpose()?,
        });
    }
    for path in &cli.jwt {
        targets.jwts.push(JwtFile {
            name: name(path),
            token: String::from_utf8(read(path)?).map_err(|_| Failure::Text(path.clone()))?,
            audiences: cli.audience.clone(),
            bundle: cli.bundle.first().map(|path| read(path)).transpose()?,
        });
    }
    let files = [&cli.svid, &cli.jwt, &cli.bundle, &cli.bundle_map];
    names.extend(files.into_iter().flatten().map(|path| name(path)));
    Ok((targets, names))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(line: &str) -> (u8, String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = run(line.split(' '), &mut out, &mut err, SystemTime::now);
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (code, text(out), text(err))
    }

    #[test]
    fn nonsense_is_told_apart() {
        let check = |line: &str, code: u8, said: &str| {
            let (got, out, err) = called(line);
            assert_eq!(got, code, "{line}: {out}{err}");
            assert!(format!("{out}{err}").contains(said), "{line}: {out}{err}");
        };
        check("spiffe-conformance --help", 0, "Exit codes: 0");
        check("spiffe-conformance --list", 0, "X-4b   MUST");
        check(
            "spiffe-conformance --list --only X-4 --output json",
            0,
            "\"id\": \"X-4d\"",
        );
        check(
            "spiffe-conformance --socket= --only X-99",
            2,
            "no clause is named `X-99`",
        );
        check("spiffe-conformance --socket=", 3, "nothing was judged");
        check("spiffe-conformance --socket= --output junit", 3, "<skipped message=");
        check("spiffe-conformance --socket unix:///nowhere", 1, "cannot be reached");
        check("spiffe-conformance --svid /nowhere", 2, "`/nowhere` cannot be read");
        check("spiffe-conformance --bundle-endpoint https://a", 2, "--trust-domain");
        check("spiffe-conformance --nonsense", 2, "--nonsense");
        let mixed = "--profile https_web --trust-domain a --endpoint-id spiffe://a/b";
        check(
            &format!("spiffe-conformance --bundle-endpoint https://a {mixed}"),
            2,
            "https_spiffe",
        );
    }

    #[test]
    fn the_pages_name_what_there_is() {
        let guide = include_str!("../../../docs/guide/conformance.md").replace("\\\n", " ");
        let lines: Vec<_> = guide
            .lines()
            .filter(|line| line.starts_with("spiffe-conformance "))
            .collect();
        assert!(lines.len() >= 8, "{lines:?}");
        for line in lines {
            let words = line.split_whitespace().map(|word| word.trim_matches('\''));
            let parsed = Cli::try_parse_from(words);
            assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
        }
        let reference = include_str!("../../../docs/reference/conformance.md");
        let rows = CLAUSES.iter().map(|clause| {
            let (level, needs) = (clause.level.as_str(), clause.needs.as_str());
            format!(
                "| {} | {level} | {needs} | {} | {} |",
                clause.name, clause.section, clause.text
            )
        });
        let shown: Vec<_> = reference
            .lines()
            .skip_while(|line| !line.starts_with("|---|---|---|---|---|"))
            .skip(1)
            .collect();
        assert_eq!(shown, rows.collect::<Vec<_>>(), "docs/reference/conformance.md");
    }
}
