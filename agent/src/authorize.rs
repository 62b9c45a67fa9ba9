//! Decisions for those who ask for them: one authorizer, and the two protocols it is asked in.

pub(crate) mod authorizer;
pub(crate) mod authzen;
pub(crate) mod call;
pub(crate) mod ext_authz;
