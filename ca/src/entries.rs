//! Registration entries: which workload on which agent is who.

pub(crate) mod apply;
pub(crate) mod asked;
pub(crate) mod entry;
mod groups;
pub(crate) mod index;
pub(crate) mod may;
pub(crate) mod names;
mod share;
pub(crate) mod update;
pub(crate) mod writes;
