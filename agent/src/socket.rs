//! The agent's one Unix socket: who is at the other end, what they may have, and the services that give it to them.

pub(crate) mod policy_service;
pub(crate) mod sds;
pub(crate) mod server;
pub(crate) mod session;
pub(crate) mod workload_api;
