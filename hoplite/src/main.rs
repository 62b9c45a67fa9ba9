//! The one binary: every daemon and tool of Hoplite as a subcommand.
//!
//! Exit codes: 0 – done, and the answer is good; 1 – it failed, or the answer is bad (a check, a verification);
//! 2 – the command line was wrong, or a comparison (`policy replay`, `policy diff`) could not be made; 3 – what was to be done
//! is done already (`ca init`, `join`, `authority …`), and nothing was; nobody can tell (`status`, `fleet`); or what was published is not followed in
//! time (`policy publish`).

#![cfg_attr(test, expect(clippy::disallowed_methods, reason = "a test's now is its own"))]

mod command;
mod doctor;
mod output;
mod replay;
mod up;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use jiff::tz::TimeZone;

/// musl's own takes one lock for all threads and gives memory back at once.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Zero-trust identity, mutual TLS and policy for every hop.
#[derive(Debug, Parser)]
#[command(name = "hoplite", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// The time zone of moments in tables and arguments: `local`, `utc`, or a name such as Europe/Berlin; JSON and CSV are in UTC
    #[arg(long, global = true, value_name = "ZONE", env = "HOPLITE_TIME_ZONE", value_parser = output::moment::parse_zone)]
    time_zone: Option<TimeZone>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a whole mesh on this machine: CA, agent, three demo services and their proxies
    Up(command::up::Args),
    /// Show the mesh at a glance, and whether all is well: exit 0 if it is, 1 if something is wrong, 3 if nobody can tell
    #[command(after_help = "Examples:\n  hoplite status\n  hoplite status --watch\n  hoplite status --output json")]
    Status(command::status::StatusArgs),
    /// List the nodes, the worst first: what each runs and enforces, and what is wrong there; exit 1 if something is, 3 if nobody can tell
    #[command(
        after_help = "Examples:\n  hoplite fleet\n  hoplite fleet drift\n  hoplite fleet show local\n  hoplite fleet --troubled --output jsonl"
    )]
    Fleet(command::fleet::FleetArgs),
    /// Run the trust domain's CA
    #[command(subcommand)]
    Ca(command::daemon::CaCommand),
    /// Run the node's agent; list, ban or evict agents
    #[command(subcommand)]
    Agent(command::daemon::AgentCommand),
    /// Make this machine a node of the CA that invited it
    #[command(after_help = command::join::HELP)]
    Join(command::join::JoinArgs),
    /// Run a proxy before a service, without a configuration file
    #[command(after_help = command::run::HELP)]
    Run(command::run::RunArgs),
    /// Run a proxy
    #[command(subcommand)]
    Proxy(command::daemon::ProxyCommand),
    /// Ask a CA, an agent or a proxy whether it can do its work now; exit 0 or 1
    Healthcheck(command::healthcheck::HealthcheckArgs),
    /// Invite nodes and operators
    #[command(subcommand)]
    Token(command::token::TokenCommand),
    /// Sign in at a CA as an operator, by an invitation
    Login(command::operator::LoginArgs),
    /// Sign out again
    Logout(command::operator::LogoutArgs),
    /// Show who this user is at the CA, until when, and what it may do there
    Whoami(command::operator::WhoAmIArgs),
    /// List, ban or remove operators
    #[command(subcommand)]
    Operator(command::operator::OperatorCommand),
    /// Register workloads: which selectors prove which SPIFFE ID
    #[command(subcommand)]
    Entry(command::entry::EntryCommand),
    /// Show and change who signs for the trust domain: prepare, activate, taint, revoke
    #[command(subcommand)]
    Authority(command::authority::AuthorityCommand),
    /// Show the trust bundle, or give that of a foreign trust domain
    #[command(subcommand)]
    Bundle(command::bundle::BundleCommand),
    /// Federate with foreign trust domains, so that their workloads and ours can verify each other
    #[command(subcommand)]
    Federation(command::federation::FederationCommand),
    /// Fetch this process's own SVID from an agent
    #[command(subcommand)]
    Svid(command::svid::SvidCommand),
    /// Fetch this process's own JWT-SVID from an agent, or see whether another's is believed
    #[command(subcommand)]
    Jwt(command::jwt::JwtCommand),
    /// Check policies, and see which are in force
    #[command(subcommand)]
    Policy(command::policy::PolicyCommand),
    /// Ask the decision logs who called what, who was refused, and why
    #[command(subcommand)]
    Audit(command::audit::AuditCommand),
    /// Print the completions of a shell
    Completions(command::shell::CompletionsArgs),
    /// Show the manual page, or write those of all commands
    Man(command::shell::ManArgs),
    /// Look at this machine: what is well, what is not, and what to do
    Doctor(command::doctor::Args),
    /// One of the three demo services of `hoplite up`
    #[command(hide = true)]
    DemoService(command::demo_service::Args),
}

/// For who types only the name of the program.
const WELCOME: &str = "\
Hoplite: zero-trust identity, mutual TLS and policy for every hop.

  hoplite up                     a whole mesh on this machine, to try it; Ctrl-C ends all of it
  hoplite status                 whether all is well, and what is not
  hoplite audit query --since 5m who called what, who was refused, and why

`hoplite --help` lists every command, and `hoplite COMMAND --help` has an example of each.
";

fn welcome() -> ExitCode {
    match output::print(WELCOME) {
        // Nothing was asked for, so nothing was done.
        Ok(()) => ExitCode::from(2),
        Err(_) => ExitCode::FAILURE,
    }
}

/// The time zone that the command line or the environment names; known before the moments on the command line are read. What is
/// wrong with it is said when its turn comes.
fn zone_of(arguments: impl Iterator<Item = OsString>) -> Option<TimeZone> {
    let mut arguments = arguments.filter_map(|argument| argument.into_string().ok());
    let mut named = std::env::var("HOPLITE_TIME_ZONE").ok();
    while let Some(argument) = arguments.next().filter(|argument| argument != "--") {
        if argument == "--time-zone" {
            named = arguments.next();
        } else if let Some(zone) = argument.strip_prefix("--time-zone=") {
            named = Some(zone.to_owned());
        }
    }
    output::moment::parse_zone(&named?).ok()
}

/// Help, a version, or what is wrong with the command line: a disk that is full fails here as everywhere.
fn explained(said: &clap::Error) -> ExitCode {
    let printed = said.print().and_then(|()| std::io::stdout().flush());
    match printed {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        _ => u8::try_from(said.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from),
    }
}

fn main() -> ExitCode {
    output::moment::set_zone(zone_of(std::env::args_os()));
    let for_programs = output::failure::asks_for_json(std::env::args_os());
    output::failure::set_for_programs(for_programs);
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if for_programs && error.use_stderr() => {
            output::failure::wrong_usage(&error);
            return ExitCode::from(2);
        }
        Err(said) => return explained(&said),
    };
    let Some(command) = cli.command else {
        return welcome();
    };
    let outcome = match command {
        Command::Up(args) => command::up::run(args),
        Command::Status(args) => command::status::run(&args),
        Command::Fleet(args) => command::fleet::run(&args),
        Command::Ca(command) => command::daemon::ca(command),
        Command::Agent(command) => command::daemon::agent(command),
        Command::Join(args) => command::join::run(&args),
        Command::Run(args) => command::run::run(&args),
        Command::Proxy(command) => command::daemon::proxy(command),
        Command::Healthcheck(args) => command::healthcheck::run(&args),
        Command::Token(command) => command::token::token(command),
        Command::Login(args) => command::operator::login(&args),
        Command::Logout(args) => command::operator::logout(&args),
        Command::Whoami(args) => command::operator::whoami(&args),
        Command::Operator(command) => command::operator::operator(command),
        Command::Entry(command) => command::entry::run(command),
        Command::Authority(command) => command::authority::authority(command),
        Command::Bundle(command) => command::bundle::bundle(command),
        Command::Federation(command) => command::federation::run(command),
        Command::Svid(command) => command::svid::run(command),
        Command::Jwt(command) => command::jwt::run(command),
        Command::Policy(command) => command::policy::run(command),
        Command::Audit(command) => command::audit::run(command),
        Command::Completions(args) => command::shell::completions(&args, Cli::command()),
        Command::Man(args) => command::shell::man(&args, Cli::command()),
        Command::Doctor(args) => command::doctor::run(&args),
        Command::DemoService(args) => command::demo_service::run(args),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            output::failure(&error, 1);
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// clap folds what is wider, and a folded line of shell is another line of shell.
    #[test]
    fn no_example_is_wider_than_a_terminal() {
        const COLUMNS_MAX: usize = 78;
        fn walk(command: &clap::Command, wide: &mut Vec<String>) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let examples = help.lines().filter(|line| line.starts_with("  "));
            wide.extend(
                examples
                    .filter(|line| line.chars().count() > COLUMNS_MAX)
                    .map(str::to_owned),
            );
            command.get_subcommands().for_each(|command| walk(command, wide));
        }
        let mut wide = Vec::new();
        walk(&Cli::command(), &mut wide);
        assert_eq!(wide, Vec::<String>::new());
    }
}
