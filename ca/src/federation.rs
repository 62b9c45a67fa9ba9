//! Other trust domains: which ones this one federates with, what of theirs is believed, and what they are told of ours.

pub(crate) mod egress;
pub(crate) mod endpoint;
pub(crate) mod fetch;
pub(crate) mod index;
pub(crate) mod keeper;
pub(crate) mod records;
pub(crate) mod settings;
pub(crate) mod state;
pub(crate) mod web;
pub(crate) mod writes;
