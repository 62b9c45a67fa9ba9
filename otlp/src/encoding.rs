//! Spans as OTLP has them, and what stands around spans and metrics: which process they are of.

use std::time::{SystemTime, UNIX_EPOCH};

use hoplite_wire::otlp::collector::trace::v1 as trace;
use hoplite_wire::otlp::common::v1::{AnyValue, InstrumentationScope, KeyValue, Resource, any_value};

use crate::span::{Kind, Span, Value};

/// The words that spans use: OpenTelemetry's semantic conventions of this version.
const SCHEMA: &str = "https://opentelemetry.io/schemas/1.45.0";

/// In a span's flags: that it is known whether the parent is in another process, and that it is.
const PARENT_IS_REMOTE: u32 = 0x300;

/// Which process it is.
#[derive(Debug)]
pub(crate) struct Origin {
    resource: Resource,
    scope: InstrumentationScope,
}

// === impl Origin ===

impl Origin {
    pub(crate) fn new(service: &str, instance: String) -> Self {
        let version = env!("CARGO_PKG_VERSION");
        Self {
            resource: Resource {
                attributes: vec![
                    text("service.namespace", "hoplite".to_owned()),
                    text("service.name", service.to_owned()),
                    text("service.instance.id", instance),
                    text("service.version", version.to_owned()),
                ],
            },
            scope: InstrumentationScope {
                name: "hoplite".to_owned(),
                version: version.to_owned(),
            },
        }
    }

    pub(crate) fn resource(&self) -> Option<Resource> {
        Some(self.resource.clone())
    }

    pub(crate) fn scope(&self) -> Option<InstrumentationScope> {
        Some(self.scope.clone())
    }

    /// What a collector is sent of these spans.
    pub(crate) fn spans(&self, spans: Vec<Span>) -> trace::ExportTraceServiceRequest {
        let spans = trace::ScopeSpans {
            scope: self.scope(),
            spans: spans.into_iter().map(encoded).collect(),
            schema_url: SCHEMA.to_owned(),
        };
        trace::ExportTraceServiceRequest {
            resource_spans: vec![trace::ResourceSpans {
                resource: self.resource(),
                scope_spans: vec![spans],
            }],
        }
    }
}

/// An attribute.
pub(crate) fn text(key: &str, value: String) -> KeyValue {
    attribute(key, any_value::Value::StringValue(value))
}

/// Since 1970; before that there is nothing.
pub(crate) fn nanos(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn attribute(key: &str, value: any_value::Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
    }
}

fn encoded(span: Span) -> trace::Span {
    let attributes = span.attributes.into_iter().map(|(key, value)| match value {
        Value::Text(value) => text(key, value),
        Value::Number(value) => attribute(key, any_value::Value::IntValue(value)),
    });
    let kind = match span.kind {
        Kind::Server => trace::SpanKind::Server,
        Kind::Client => trace::SpanKind::Client,
    };
    // A status of OK is for people to set.
    let status = span.has_failed.then(|| trace::Status {
        message: String::new(),
        code: trace::StatusCode::Error.into(),
    });
    let remote = if span.parent.is_some() { PARENT_IS_REMOTE } else { 0x100 };
    let ended = span.began.checked_add(span.took).unwrap_or(span.began);
    trace::Span {
        trace_id: span.context.trace.to_be_bytes().to_vec(),
        span_id: span.context.span.to_be_bytes().to_vec(),
        trace_state: span.state,
        parent_span_id: span
            .parent
            .map(|parent| parent.to_be_bytes().to_vec())
            .unwrap_or_default(),
        name: span.name,
        kind: kind.into(),
        start_time_unix_nano: nanos(span.began),
        end_time_unix_nano: nanos(ended),
        attributes: attributes.collect(),
        status,
        flags: u32::from(span.context.flags) | remote,
    }
}
