//! Agents: what the CA keeps of each, and what operators and the agents themselves change of it.

pub(crate) mod agent;
pub(crate) mod holders;
pub(crate) mod index;
pub(crate) mod writes;
