//! Agents: what the CA keeps of each, and which of their certificates count.

pub(crate) mod agent;
