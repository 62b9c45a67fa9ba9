//! What a daemon sends to an OpenTelemetry collector by OTLP over gRPC: a span of each request that is traced, and the metrics
//! that it shows under `/metrics`.
//!
//! Nothing waits for the collector. A span goes into a queue that is bounded, or is dropped and counted; metrics are read
//! when they are sent. Without `[otlp]` in the configuration there is no queue, no task, and no span.

mod context;
mod known;
mod sent;
mod settings;
mod span;
mod tracer;

#[cfg(feature = "export")]
mod collector;
#[cfg(feature = "export")]
mod encoding;
#[cfg(feature = "export")]
mod reading;
mod sending;
#[cfg(feature = "export")]
mod signals;

pub use known::{ByIdentity, OtlpError};
pub use sending::{Prepared, Sender, Sending, host_name};
pub use sent::Sent;
pub use settings::{Collector, InvalidCollector, OtlpSettings, Ratio};
pub use span::{Kind, Span, Value};
pub use tracer::{Hop, Queue, Tracer};
