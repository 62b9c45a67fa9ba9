//! Logs: lines for people on a terminal, JSON for machines, always to standard error.

use std::io::IsTerminal;
use std::sync::OnceLock;

use serde::Deserialize;
use serde::de::{self, Deserializer};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, reload};

use crate::tell::StandardError;

/// What a line looks like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Lines for people
    #[default]
    Text,
    /// One JSON object a line
    Json,
}

/// What is logged, as a configuration file says it: `info,hoplite_proxy=debug`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Levels(String);

type SetFilter = Box<dyn Fn(EnvFilter) + Send + Sync>;

/// Changes the filter of the subscriber that this process has.
static FILTER: OnceLock<SetFilter> = OnceLock::new();

/// What says so before any file does, and goes before all of them.
const VARIABLE: &str = "HOPLITE_LOG";

/// Installs the subscriber of this process. `HOPLITE_LOG` sets levels, for example `info,hoplite_proxy=debug`.
pub fn init(format: Format) {
    let filter = EnvFilter::try_from_env(VARIABLE).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // A journal or a file would keep the codes.
        .with_ansi(is_coloured())
        // The library would say on standard error that standard error cannot be written, and panic.
        .log_internal_errors(false)
        .with_writer(StandardError);
    // A second call (two daemons in one test process) keeps the first subscriber.
    let _ = match format {
        Format::Text => {
            let builder = builder.with_target(false).with_filter_reloading();
            keep(builder.reload_handle());
            builder.finish().try_init()
        }
        Format::Json => {
            let builder = builder
                .json()
                .flatten_event(true)
                .with_current_span(false)
                .with_span_list(false)
                .with_filter_reloading();
            keep(builder.reload_handle());
            builder.finish().try_init()
        }
    };
}

/// Whether standard error takes colours: a terminal does, unless it is a dumb one or `NO_COLOR` is set.
fn is_coloured() -> bool {
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    std::io::stderr().is_terminal() && !is_dumb && !no_color
}

/// Logs by these levels from now on, or by the default where a file says nothing. `HOPLITE_LOG` goes before them.
pub fn set(levels: Option<&Levels>) {
    let filter = EnvFilter::new(levels.map_or("info", |levels| levels.0.as_str()));
    if std::env::var_os(VARIABLE).is_none()
        && let Some(set) = FILTER.get()
    {
        set(filter);
    }
}

fn keep<S: 'static>(handle: reload::Handle<EnvFilter, S>) {
    let set = move |filter| {
        // It fails only when the subscriber is gone, and then nothing is logged.
        let _ = handle.reload(filter);
    };
    let _ = FILTER.set(Box::new(set));
}

// === impl Levels ===

impl<'de> Deserialize<'de> for Levels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match EnvFilter::try_new(&text) {
            Ok(_) => Ok(Self(text)),
            Err(error) => Err(de::Error::custom(format!(
                "`{text}` names no log levels ({error}); write for example \"info,hoplite_proxy=debug\""
            ))),
        }
    }
}
