//! Registration entries: which workload on which agent is who.

pub(crate) mod entry;
pub(crate) mod index;
pub(crate) mod writes;
