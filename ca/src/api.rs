//! The two gRPC services: `node` for agents, `admin` for operators. Only here are there messages and statuses of gRPC.

pub(crate) mod admin;
mod entries;
mod messages;
pub(crate) mod node;
mod status;
