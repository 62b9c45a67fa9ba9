//! What is shown of a decision point to the tools that people have.

use std::sync::{Arc, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use hoplite_host::clock;
use hoplite_telemetry::{Exposition, Kind};

use crate::point::DecisionPoint;

impl DecisionPoint {
    /// Adds what it counts, and what is in force, to what is shown of the process. It is not held by that: once it is gone
    /// its numbers are.
    pub fn register(self: &Arc<Self>, to: &mut Exposition) {
        register(self, to);
    }
}

fn register(point: &Arc<DecisionPoint>, to: &mut Exposition) {
    point.metrics().register(to);
    let weak = Arc::downgrade(point);
    let mut gauge = |kind, name, help, read: fn(&DecisionPoint) -> Option<f64>| {
        let point: Weak<DecisionPoint> = weak.clone();
        to.sampled(kind, name, help, move |to| {
            if let Some(value) = point.upgrade().and_then(|point| read(&point)) {
                to.put_real(value);
            }
        });
    };
    gauge(
        Kind::Counter,
        "record_bytes",
        "Bytes of the decision log written",
        |point| Some(point.recorder().progress().bytes as f64),
    );
    gauge(
        Kind::Gauge,
        "record_queue",
        "Records written that are not on the disk yet",
        |point| {
            let progress = point.recorder().progress();
            Some(progress.written.saturating_sub(progress.durable) as f64)
        },
    );
    gauge(
        Kind::Gauge,
        "record_waiters",
        "Requests that wait until their record is on the disk",
        |point| Some(point.recorder().progress().waiting as f64),
    );
    gauge(
        Kind::Gauge,
        "record_stopped",
        "1 when nothing can be recorded any more, and everything is refused. Alarm on any",
        |point| Some(f64::from(u8::from(point.recorder().failure().is_some()))),
    );
    gauge(
        Kind::Gauge,
        "policy_alarms",
        "What is wrong with where policy comes from: an unsigned directory decides though a signed bundle is there, or signers are not followed. Alarm on any",
        |point| Some(point.policy().status().alarms.len() as f64),
    );
    gauge(
        Kind::Gauge,
        "policy_faults",
        "Faults that keep policy files, or a bundle, from being in force",
        |point| Some(point.policy().status().faults.len() as f64),
    );
    gauge(
        Kind::Gauge,
        "policy_denies_all",
        "1 when there is no policy to ask, and everything is denied. Alarm on any",
        |point| {
            let in_force = point.policy().in_force();
            Some(f64::from(u8::from(point.denies_all(&in_force, clock::now()).is_some())))
        },
    );
    gauge(
        Kind::Gauge,
        "policy_stale",
        "1 when the bundle in force has expired",
        |point| Some(f64::from(u8::from(point.policy().in_force().stale(clock::now())))),
    );
    gauge(
        Kind::Gauge,
        "policy_expires_timestamp_seconds",
        "When the bundle in force expires, in seconds since 1970",
        |point| point.policy().in_force().expires().map(unix),
    );
    gauge(
        Kind::Gauge,
        "policy_loaded_timestamp_seconds",
        "When what is in force was put there, in seconds since 1970",
        |point| Some(unix(point.policy().status().loaded_at)),
    );
    gauge(
        Kind::Gauge,
        "policy_silence_seconds",
        "For how long the feed of signed policy has not been heard; 0 while it is",
        |point| Some(point.policy().contact().silence().as_secs_f64()),
    );
    let point = weak;
    to.sampled(
        Kind::Info,
        "policy",
        "Which policy is in force: its revision, and where it came from",
        move |to| {
            let Some(point) = point.upgrade() else { return };
            let in_force = point.policy().in_force();
            let bundle = in_force.bundle_revision();
            let source = if bundle.is_some() { "bundle" } else { "directory" };
            let bundle = bundle.map(|bundle| bundle.to_string()).unwrap_or_default();
            let labels = [
                ("revision", in_force.live().revision()),
                ("source", source),
                ("bundle_revision", &bundle),
            ];
            to.put_for(&labels, 1);
        },
    );
}

/// Seconds since 1970.
fn unix(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
