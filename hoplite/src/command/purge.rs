//! `hoplite agent purge`: a node is taken out, and nothing of its agent stays on its disk.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use hoplite_agent::{Config, Purged};
use serde_json::json;

use crate::command::places::PlacesArgs;
use crate::output::{NOTHING_DONE, Output, print, print_json};

pub(crate) const HELP: &str = "Examples:\n  systemctl stop hoplite-agent && hoplite agent purge\n  hoplite agent purge --dir ~/node --output json\n\n\
    The CA knows the agent still: `hoplite agent evict` forgets it, `hoplite agent ban` refuses it for good.\n\
    Exit codes: 0 all is removed, 1 not (an agent runs, or something else lies there), 2 wrong usage, 3 there was nothing.";

#[derive(Debug, Args)]
pub(crate) struct PurgeArgs {
    /// The agent's configuration file [default: that of the place]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    places: PlacesArgs,
    /// The form of the answer
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

pub(crate) fn run(args: &PurgeArgs) -> anyhow::Result<ExitCode> {
    let file = match &args.config {
        Some(file) => file.clone(),
        None => args.places.places()?.agent_config(),
    };
    let is_configured = args.config.is_some() || file.try_exists()?;
    let (purged, data_dir) = if is_configured {
        let config = Config::load(&file).context("it is not known where the agent keeps what it has")?;
        (hoplite_agent::purge(&config)?, config.data_dir)
    } else {
        let places = args.places.places()?;
        let data_dir = places.agent_data();
        (
            hoplite_agent::purge_unconfigured(&data_dir, &places.agent_socket())?,
            data_dir,
        )
    };
    match args.output {
        Output::Json => print_json(&json(&purged))?,
        Output::Table => print(&text(&purged, is_configured.then_some(&*file), &data_dir))?,
    }
    Ok(if !purged.left.is_empty() {
        ExitCode::FAILURE
    } else if purged.removed.is_empty() {
        ExitCode::from(NOTHING_DONE)
    } else {
        ExitCode::SUCCESS
    })
}

fn text(purged: &Purged, file: Option<&Path>, dir: &Path) -> String {
    let mut text = String::new();
    for path in &purged.removed {
        let _ = writeln!(text, "removed  {}", path.display());
    }
    for path in &purged.left {
        let _ = writeln!(
            text,
            "left     {}: it is not the agent's, or holds decision records",
            path.display()
        );
    }
    for path in &purged.elsewhere {
        let _ = writeln!(
            text,
            "left     {}: the configuration names it; it is yours to remove",
            path.display()
        );
    }
    if purged.removed.is_empty() {
        let _ = writeln!(text, "there was nothing of an agent in {}", dir.display());
    }
    if let Some(file) = file {
        let _ = writeln!(text, "left     {}: it has no secret in it", file.display());
    }
    if let Some(id) = &purged.spiffe_id {
        let _ = writeln!(
            text,
            "the CA knows {id} still: `hoplite agent evict {id}` forgets it, `hoplite agent ban {id}` refuses it for good"
        );
    }
    text
}

fn json(purged: &Purged) -> serde_json::Value {
    let paths = |paths: &[PathBuf]| -> Vec<String> { paths.iter().map(|path| path.display().to_string()).collect() };
    json!({
        "spiffe_id": purged.spiffe_id.as_ref().map(ToString::to_string),
        "removed": paths(&purged.removed),
        "left": paths(&purged.left),
        "elsewhere": paths(&purged.elsewhere),
    })
}
