//! What the tools people have see of a daemon: families of metrics in OpenMetrics text, and a small HTTP listener with
//! `/live`, `/ready` and `/metrics`.
//!
//! A label's values come from a set that is fixed when the program is compiled, or a [`Family`] bounds them: what finds no
//! room in it is counted under `other`. Counting takes no lock and allocates nothing once a label set is known; what it
//! costs is paid by who reads.

mod contact;
mod exposition;
mod family;
mod histogram;
mod listen;
mod pages;
mod process;
mod sampled;
mod server;

pub use contact::Contact;
pub use exposition::{Exposition, Format};
pub use family::{Family, OTHER, Part};
pub use histogram::{Histogram, LATENCIES};
pub use listen::MetricsListen;
pub use pages::{Page, serve_pages};
pub use prometheus_client::metrics::counter::Counter;
pub use prometheus_client::registry::Metric;
pub use sampled::{Kind, Samples};
pub use server::{MetricsDoor, MetricsDoorError, Site};
