//! Registration entries: which workload on which agent is who.

pub(crate) mod apply;
pub(crate) mod entry;
pub(crate) mod index;
pub(crate) mod may;
pub(crate) mod update;
pub(crate) mod writes;
