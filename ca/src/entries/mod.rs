//! Registration entries: which workload on which agent is who.

pub(crate) mod entry;
