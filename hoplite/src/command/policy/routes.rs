//! `hoplite policy routes`: a service's routes out of the documents its team already has.

use std::collections::HashSet;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use hoplite_author::{ImportedRoutes, Selection, routes_from_openapi};
use hoplite_host::files;
use hoplite_identity::ServiceName;
use hoplite_policy::{Fault, RouteTable, Source};
use serde_json::json;
use toml_edit::{Array, DocumentMut, Item, Table, Value};

use crate::output::{Output, print, print_json};

#[derive(Debug, Subcommand)]
pub(crate) enum RoutesCommand {
    /// Read a service's routes out of its OpenAPI document (3.0 or 3.1, YAML or JSON)
    #[command(
        after_help = "Examples:\n  hoplite policy routes import --service ledger openapi.yaml\n  hoplite policy routes import --service ledger openapi.yaml \\\n      --into policies/routes.toml\n  hoplite policy routes import --service github api.json \\\n      --prefix /repos --tag issues --tag pulls"
    )]
    Import(ImportArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// The service whose routes these are, by the name its proxy has
    #[arg(long)]
    service: ServiceName,
    /// Replace the service's section of this routes.toml and keep everything else [default: print the section]
    #[arg(long, value_name = "ROUTES_TOML")]
    into: Option<PathBuf>,
    /// Only operations below this path, base paths of servers included; may be repeated
    #[arg(long, value_name = "PATH")]
    prefix: Vec<String>,
    /// Only operations with this tag; may be repeated
    #[arg(long)]
    tag: Vec<String>,
    /// The OpenAPI documents of the service
    #[arg(required = true)]
    documents: Vec<PathBuf>,
    /// The form of the answer
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

pub(crate) fn run(command: RoutesCommand) -> anyhow::Result<ExitCode> {
    match command {
        RoutesCommand::Import(args) => import(&args),
    }
}

fn import(args: &ImportArgs) -> anyhow::Result<ExitCode> {
    let source = |path: &PathBuf| -> anyhow::Result<Source> {
        Ok(Source {
            name: path.display().to_string(),
            text: files::read_text(path)?,
        })
    };
    let documents = args.documents.iter().map(source).collect::<anyhow::Result<Vec<_>>>()?;
    let selection = Selection {
        prefixes: args.prefix.clone(),
        tags: args.tag.clone(),
    };
    let imported = routes_from_openapi(&args.service, &documents, &selection)
        .map_err(|faults| refused("the routes cannot be imported", &faults))?;
    // Beside the section, which may go into a file.
    let mut stderr = io::stderr().lock();
    for warning in &imported.warnings {
        let _ = writeln!(stderr, "warning: {warning}");
    }
    if !imported.left_out.is_empty() {
        let plural = if imported.left_out.len() == 1 { " is" } else { "s are" };
        let _ = writeln!(stderr, "{} operation{plural} left out:", imported.left_out.len());
        for operation in &imported.left_out {
            let _ = writeln!(stderr, "  {operation}");
        }
    }
    let changes = args.into.as_ref().map(|path| merge_file(path, &imported)).transpose()?;
    match (args.output, &args.into, changes) {
        (Output::Json, into, changes) => print_json(&json!({
            "service": imported.service, "routes": imported.routes, "changes": changes,
            "left_out": imported.left_out, "unselected": imported.unselected, "into": into.as_ref().map(|path| path.display().to_string()),
            "warnings": imported.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        }))?,
        (Output::Table, Some(path), Some(changes)) => print(&told(path, &imported, &changes))?,
        (Output::Table, ..) => print(&imported.section())?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Puts the routes into the file, and says which came and went.
fn merge_file(path: &Path, imported: &ImportedRoutes) -> anyhow::Result<Vec<String>> {
    let before = match files::read_text(path) {
        Ok(text) => text,
        Err(error) if error.is_not_found() => String::new(),
        Err(error) => return Err(error.into()),
    };
    let (after, changes) =
        merged(&before, imported).with_context(|| format!("`{}` is left as it was", path.display()))?;
    if after != before {
        files::write_public(path, after.as_bytes())?;
    }
    Ok(changes)
}

fn told(path: &Path, imported: &ImportedRoutes, changes: &[String]) -> String {
    let mut text: String = changes.iter().map(|change| format!("{change}\n")).collect();
    text.push_str(&format!(
        "`{}` has {} routes in `{}`; {} changed, {} left out, {} not selected\n",
        imported.service,
        imported.routes.len(),
        path.display(),
        changes.len(),
        imported.left_out.len(),
        imported.unselected
    ));
    text
}

/// The text with the service's section replaced, and the routes that came (`+`) and went (`-`). Other sections stay as
/// they are written, and a route that stays keeps its comments.
fn merged(before: &str, imported: &ImportedRoutes) -> anyhow::Result<(String, Vec<String>)> {
    // Nothing is built upon a file that no proxy would take.
    RouteTable::parse(before).map_err(|faults| refused("the file has faults", &faults))?;
    let mut document: DocumentMut = before.parse()?;
    let section = document
        .entry(imported.service.as_str())
        .or_insert_with(|| {
            let mut table = Table::new();
            if !before.trim().is_empty() {
                table.decor_mut().set_prefix("\n");
            }
            Item::Table(table)
        })
        .as_table_like_mut()
        .context("the section is no table; write it as `[service]`")?;
    let old = section
        .get("routes")
        .and_then(Item::as_array)
        .cloned()
        .unwrap_or_default();
    let new: Array = imported
        .routes
        .iter()
        .map(|route| {
            let kept = old.iter().find(|value| value.as_str() == Some(route));
            let mut value = Value::from(route.as_str());
            let prefix = kept
                .and_then(|value| value.decor().prefix())
                .and_then(|prefix| prefix.as_str());
            // Only what stands on lines of its own: a comment needs them, and a list on one line has none.
            value
                .decor_mut()
                .set_prefix(prefix.filter(|prefix| prefix.contains('\n')).unwrap_or("\n    "));
            value
        })
        .collect();
    let mut new = new;
    new.set_trailing("\n");
    new.set_trailing_comma(true);
    let texts = |array: &Array| -> Vec<String> {
        array
            .iter()
            .filter_map(|value| value.as_str().map(str::to_owned))
            .collect()
    };
    let (was, is) = (texts(&old), texts(&new));
    let (had, has): (HashSet<_>, HashSet<_>) = (was.iter().collect(), is.iter().collect());
    let gone = was
        .iter()
        .filter(|route| !has.contains(route))
        .map(|route| format!("- {route}"));
    let come = is
        .iter()
        .filter(|route| !had.contains(route))
        .map(|route| format!("+ {route}"));
    let changes: Vec<String> = gone.chain(come).collect();
    if changes.is_empty() && was == is {
        return Ok((before.to_owned(), changes));
    }
    section.insert("routes", Item::Value(Value::Array(new)));
    let after = document.to_string();
    RouteTable::parse(&after).map_err(|faults| refused("the result would have faults", &faults))?;
    Ok((after, changes))
}

fn refused(what: &str, faults: &[Fault]) -> anyhow::Error {
    let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
    anyhow::anyhow!("{what}: {}", faults.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn import(service: &str, routes: &[&str]) -> ImportedRoutes {
        ImportedRoutes {
            service: service.parse().unwrap(),
            routes: routes.iter().map(|route| (*route).to_owned()).collect(),
            left_out: Vec::new(),
            unselected: 0,
            warnings: Vec::new(),
        }
    }

    #[test]
    fn only_the_services_own_section_changes() {
        const BEFORE: &str = "\
# Ours.

[edge] # the front door
routes = [\"GET /a\"]   # one

[ledger]
routes = [
    # Read by everybody.
    \"GET /accounts/{id}\",
    \"GET /old\",
]

# The last.
[orders]
routes = []
";
        let (after, changes) = merged(BEFORE, &import("ledger", &["POST /entries", "GET /accounts/{id}"])).unwrap();
        assert_eq!(
            after,
            BEFORE.replace(
                "    # Read by everybody.\n    \"GET /accounts/{id}\",\n    \"GET /old\",\n",
                "    \"POST /entries\",\n    # Read by everybody.\n    \"GET /accounts/{id}\",\n"
            )
        );
        assert_eq!(changes, ["- GET /old", "+ POST /entries"]);
        let (again, changes) = merged(&after, &import("ledger", &["POST /entries", "GET /accounts/{id}"])).unwrap();
        assert_eq!((again, changes), (after, Vec::new()));
        let (after, _) = merged(BEFORE, &import("edge", &["GET /b"])).unwrap();
        assert!(
            after.starts_with("# Ours.\n\n[edge] # the front door\nroutes = [\n    \"GET /b\",\n]"),
            "{after}"
        );
        assert!(
            after.contains("\"GET /old\"") && after.contains("# The last.\n[orders]"),
            "{after}"
        );
    }

    #[test]
    fn a_new_section_goes_to_the_end() {
        let (after, _) = merged("", &import("ledger", &["GET /a"])).unwrap();
        assert_eq!(after, "[ledger]\nroutes = [\n    \"GET /a\",\n]\n");
        let (after, changes) = merged("[edge]\nroutes = []\n# end\n", &import("a.b", &["GET /a"])).unwrap();
        assert!(after.starts_with("[edge]\nroutes = []\n"), "{after}");
        assert!(after.contains("[\"a.b\"]\nroutes = [\n    \"GET /a\",\n]\n"), "{after}");
        assert_eq!(changes, ["+ GET /a"]);
        RouteTable::parse(&after).unwrap();
    }

    #[test]
    fn a_file_with_faults_is_left_alone() {
        for before in ["[edge\n", "[edge]\nroutes = [\"nonsense\"]\n", "ledger = 7\n"] {
            assert!(merged(before, &import("ledger", &["GET /a"])).is_err(), "{before}");
        }
    }
}
