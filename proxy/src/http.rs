//! What is about HTTP only: a request read in one way, on its way in or out, and its answer on the way back.

mod answer;
mod body;
mod exchange;
mod frames;
mod heads;
mod hygiene;
pub(crate) mod inbound;
pub(crate) mod outbound;
mod reading;
pub(crate) mod rules;
pub(crate) mod service;
mod unparsed;
pub(crate) mod upstream;
