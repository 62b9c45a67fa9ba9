//! What is about HTTP only: a request read in one way, on its way in or out, and its answer on the way back.

mod answer;
mod body;
mod conversation;
mod exchange;
mod fields;
mod frame;
mod frames;
mod grpc;
mod heads;
mod hpack;
mod http2;
mod hygiene;
pub(crate) mod inbound;
mod interim;
mod kept;
mod lane;
pub(crate) mod outbound;
mod preface;
mod reading;
mod replay;
pub(crate) mod rules;
pub(crate) mod service;
mod unparsed;
mod unread;
pub(crate) mod upstream;
mod useless;
mod via;
