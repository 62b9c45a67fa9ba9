//! Reports as scripts read them.

use hoplite_wire::ca::{Build, Mesh, NodeReport, Trouble};
use hoplite_wire::report::{Count, Listener, Point, Program};
use serde_json::{Map, Value, json};

use super::text::{hex, moment};

/// One node, with all that it said.
pub(crate) fn node(node: &NodeReport) -> Value {
    let report = node.report.clone().unwrap_or_default();
    let state = report.state.unwrap_or_default();
    let about = report.about.unwrap_or_default();
    let cut = report.cut.unwrap_or_default();
    json!({
        "node": node.node,
        "spiffe_id": node.spiffe_id,
        "standing": node.standing,
        "heard_at": moment(node.heard_at_unix_ms / 1000),
        "clock_offset_ms": node.clock_offset_ms,
        "in_step": node.in_step,
        "denials_per_minute": node.denials_per_minute,
        "troubles": node.troubles.iter().map(trouble).collect::<Vec<_>>(),
        "agent": node.report.as_ref().map(|_| json!({
            "program": about.program.as_ref().map(program),
            "kernel": about.kernel,
            "os": about.os,
            "svid_not_after": moment(state.svid_not_after_unix),
            "authority_not_after": moment(state.authority_not_after_unix),
            "bundle_sequence": state.bundle_sequence,
            "policy": {
                "revision": (state.live_revision > 0).then_some(state.live_revision),
                "manifest_sha256": hex(&state.live_manifest_sha256),
                "shadow_revision": (state.shadow_revision > 0).then_some(state.shadow_revision),
                "signers_version": (state.signers_version > 0).then_some(state.signers_version),
            },
            "entries": state.entries,
            "entries_without_svid": state.entries_without_svid,
            "entries_revision": state.entries_revision,
            "entries_digest": hex(&state.entries_digest),
            "last_sync": moment(state.last_sync_unix),
            "refused": counts(&report.counters.unwrap_or_default().refusals),
        })),
        "proxies": report.points.iter().map(point).collect::<Vec<_>>(),
        "left_out": {"proxies": cut.points, "listeners_of": cut.listeners, "fired_of": cut.fired},
    })
}

/// One that decides.
pub(crate) fn point(point: &Point) -> Value {
    let about = point.about.clone().unwrap_or_default();
    let policy = point.policy.clone().unwrap_or_default();
    let counters = point.counters.clone().unwrap_or_default();
    let state = point.state.clone().unwrap_or_default();
    let listeners = point.listeners.clone().unwrap_or_default();
    json!({
        "kind": about.kind,
        "name": about.name,
        "spiffe_id": about.spiffe_id,
        "pid": state.pid,
        "program": about.program.as_ref().map(program),
        "svid_not_after": moment(state.svid_not_after_unix),
        "silent_since": moment(state.silent_since_unix),
        "ended_at": moment(state.ended_unix),
        "failure": (!state.failure.is_empty()).then_some(&state.failure),
        "policy": {
            "source": policy.source,
            "revision": (policy.revision > 0).then_some(policy.revision),
            "manifest_sha256": hex(&policy.manifest_sha256),
            "snapshot": policy.snapshot,
            "policies": policy.policies,
            "loaded_at": moment(policy.loaded_at_unix),
            "expires": moment(policy.expires_unix),
            "denies_all": (!policy.denies_all.is_empty()).then_some(policy.denies_all),
            "alarms": policy.alarms,
            "faults": policy.faults,
            "shadow": (!policy.shadow.is_empty()).then_some(policy.shadow),
            "grants": policy.grants,
            "signers_version": (policy.signers_version > 0).then_some(policy.signers_version),
            "signed_by": policy.signed_by,
        },
        "listeners": listeners.listeners.iter().map(listener).collect::<Vec<_>>(),
        "listeners_left_out": listeners.left_out,
        "decisions": counts(&counters.decisions),
        "records": counters.records,
        "record_failures": counters.record_failures,
        "records_lost": counters.records_lost,
        "refusals_rolled_up": counters.rolled_up,
        "connections": counters.connections,
    })
}

/// The mesh at a glance.
pub(crate) fn mesh(mesh: &Mesh) -> Value {
    let revision = |revision: u64| (revision > 0).then_some(revision);
    json!({
        "trust_domain": mesh.trust_domain,
        "ca": {
            "program": mesh.program.as_ref().map(program),
            "now": moment(mesh.now_unix),
            "authority_not_after": moment(mesh.authority_not_after_unix),
            "successor_not_after": moment(mesh.successor_not_after_unix),
            "successor_signs": moment(mesh.successor_signs_unix),
            "authority_warning": mesh.authority_warning,
            "not_ready": mesh.not_ready,
            "federation_warnings": mesh.federation_warnings,
            "store_revision": mesh.store_revision,
            "report_period_ms": mesh.period_ms,
            "report_bytes": mesh.report_bytes,
            "report_bytes_max": mesh.report_bytes_max,
        },
        "restored": mesh.restored.as_ref().map(|restored| json!({
            "epoch": restored.epoch.unwrap_or_default().number,
            "backup_at": moment(restored.backup_at_unix),
            "revision": restored.revision,
            "adopted": restored.adopted,
        })),
        "strangers": mesh.strangers.iter().map(|stranger| json!({
            "address": stranger.address, "why": stranger.why, "times": stranger.times, "last": moment(stranger.last_unix),
        })).collect::<Vec<_>>(),
        "agents": {
            "joined": mesh.agents, "heard": mesh.heard, "silent": mesh.silent, "not_heard": mesh.not_heard,
            "in_step": mesh.in_step, "banned": mesh.banned,
        },
        "policy": {
            "revision": revision(mesh.live_revision),
            "shadow_revision": revision(mesh.shadow_revision),
            "signers_version": revision(mesh.signers_version),
            "proxies": mesh.points, "proxies_with_it": mesh.points_with_live, "nodes": mesh.nodes_with_points,
        },
        "decisions": {
            "total": mesh.decisions, "denied": mesh.denials, "denied_per_minute": mesh.denials_per_minute,
        },
        "troubles_by_kind": mesh.troubles.iter().map(|trouble| json!({
            "kind": trouble.kind, "level": trouble.level, "count": trouble.count,
        })).collect::<Vec<_>>(),
        "builds": builds(mesh),
    })
}

/// What runs.
pub(crate) fn builds(mesh: &Mesh) -> Vec<Value> {
    mesh.builds.iter().map(build).collect()
}

/// One program.
pub(crate) fn build(build: &Build) -> Value {
    json!({
        "kind": build.kind, "version": build.version, "sha256": hex(&build.sha256), "target": build.target,
        "count": build.count, "usual": build.usual,
    })
}

/// One thing wrong.
pub(crate) fn trouble(trouble: &Trouble) -> Value {
    json!({
        "kind": trouble.kind, "level": trouble.level, "text": trouble.text,
        "proxy": (!trouble.point.is_empty()).then_some(&trouble.point),
    })
}

fn program(program: &Program) -> Value {
    json!({
        "version": program.version, "sha256": hex(&program.sha256), "target": program.target,
        "started_at": moment(program.started_at_unix),
    })
}

fn listener(listener: &Listener) -> Value {
    json!({
        "kind": listener.kind, "name": listener.name, "address": listener.address, "to": listener.to,
        "expect": (!listener.expect.is_empty()).then_some(&listener.expect),
    })
}

fn counts(counts: &[Count]) -> Map<String, Value> {
    let counts = counts.iter().map(|count| (count.name.clone(), count.count.into()));
    counts.collect()
}
