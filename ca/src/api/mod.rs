//! The two gRPC services: `node` for agents, `admin` for operators.

pub(crate) mod admin;
pub(crate) mod node;
