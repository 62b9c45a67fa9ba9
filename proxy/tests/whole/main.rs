//! Proxies, their agents, services and clients in one process: a module for each subject.
//!
//! One executable for all of them, because each is linked anew with every change. `crowds` is its own:
//! it uses up the descriptors of its process.

mod answers;
mod bystanders;
mod clock_steps;
mod drain;
mod feeds;
mod half_close;
mod headers;
mod http;
mod log;
mod pair;
mod refusals;
mod strangers;
mod streams;
#[path = "../support/mod.rs"]
mod support;
mod waits;
