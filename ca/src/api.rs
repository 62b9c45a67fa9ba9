//! The two gRPC services: `node` for agents, `admin` for operators. Only here are there messages and statuses of gRPC.

pub(crate) mod admin;
mod admin_call;
mod attesting;
mod authorities;
pub(crate) mod backups;
mod entries;
mod federations;
pub(crate) mod fleet;
pub(crate) mod gate;
pub(crate) mod invites;
mod jwt;
mod messages;
mod mint;
pub(crate) mod nested;
pub(crate) mod node;
mod operators;
pub(crate) mod port;
mod reporting;
mod status;
