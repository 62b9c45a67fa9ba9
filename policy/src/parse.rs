//! Parses one policy with Cedar, within bounds that keep Cedar's parser and validator from their own limits.

use crate::fault::Fault;
use crate::statement::Statement;
use cedar_policy::{Policy, PolicySet};
use miette::Diagnostic;
use std::io;
use std::thread;

/// The longest policy; longer ones are several policies, or data. Amazon Verified Permissions draws the same line.
pub const POLICY_BYTES_MAX: usize = 10_000;
/// The deepest brackets within one policy. Cedar's parser follows them on the stack without a guard.
pub const NESTING_MAX: usize = 32;
/// The most operators one expression may chain, brackets followed inwards; well over a hundred conditions joined by
/// `&&`. Cedar's validator gives up on what is too deep for its stack and then *passes* it.
pub const CHAIN_MAX: usize = 400;
/// The stack that sources are compiled on, so that no caller's own stack decides what is validated. The deepest policy
/// within the bounds needs less than a quarter of it.
pub const COMPILE_STACK_BYTES: usize = 16 * 1024 * 1024;

/// One policy from its statement. `fault` makes a fault at a byte of the statement.
///
/// # Errors
/// What Cedar cannot parse, a template, and what is longer or deeper than the bounds.
pub fn parse(statement: &Statement<'_>, fault: &dyn Fn(usize, String) -> Fault) -> Result<Policy, Vec<Fault>> {
    // INVARIANT: the bounds come before Cedar, whose parser overflows the stack on what is too deep, and whose
    // validator finds no fault in it.
    if statement.text.len() > POLICY_BYTES_MAX {
        let reason = format!("the policy is longer than {POLICY_BYTES_MAX} bytes; split it");
        return Err(vec![fault(0, reason)]);
    }
    if statement.depth > NESTING_MAX {
        return Err(vec![fault(
            0,
            format!("the policy nests deeper than {NESTING_MAX} brackets; flatten it"),
        )]);
    }
    if statement.chain > CHAIN_MAX {
        let reason = format!("the policy chains more than {CHAIN_MAX} operators; split it or use a set");
        return Err(vec![fault(0, reason)]);
    }
    let set: PolicySet = statement.text.parse().map_err(|errors: cedar_policy::ParseErrors| {
        errors.iter().map(|error| diagnosed(error, fault)).collect::<Vec<_>>()
    })?;
    if let Some(template) = set.templates().next() {
        let slots: Vec<_> = template.slots().map(|slot| format!("`{slot}`")).collect();
        let reason = format!(
            "templates are not supported; write an entity in place of {}",
            slots.join(" and ")
        );
        return Err(vec![fault(0, reason)]);
    }
    let mut policies = set.policies();
    match (policies.next(), policies.next()) {
        (Some(policy), None) => Ok(policy.clone()),
        _ => Err(vec![fault(0, "this is not one policy; end each with `;`".to_owned())]),
    }
}

/// Cedar's error as one sentence at the place it points to.
pub fn diagnosed<E: Diagnostic>(error: &E, fault: &dyn Fn(usize, String) -> Fault) -> Fault {
    let label = error.labels().and_then(|mut labels| labels.next());
    let offset = label.as_ref().map_or(0, |label| label.offset());
    let mut reason = error.to_string();
    if let Some(text) = label.as_ref().and_then(|label| label.label()) {
        reason.push_str(": ");
        reason.push_str(text);
    }
    if let Some(help) = error.help() {
        reason.push_str("; ");
        reason.push_str(&help.to_string());
    }
    let fault = fault(offset, reason.split_whitespace().collect::<Vec<_>>().join(" "));
    label.map_or(fault.clone(), |label| fault.spanning(label.len()))
}

/// Runs a computation on a stack of its own.
///
/// # Errors
/// The thread could not be started, or the computation panicked.
pub fn on_stack<R: Send>(bytes: usize, compute: impl FnOnce() -> R + Send) -> io::Result<R> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().stack_size(bytes).spawn_scoped(scope, compute)?;
        thread.join().map_err(|_| io::Error::other("it panicked"))
    })
}
