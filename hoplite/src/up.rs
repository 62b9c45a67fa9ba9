//! `hoplite up`: a whole mesh on one machine, each part a process of its own.

mod check;
mod client;
mod layout;
mod mesh;
mod picture;
mod relay;
mod supervisor;
mod watch;

pub(crate) use check::check;
pub(crate) use layout::Ports;
pub(crate) use mesh::{Mesh, Settings};
pub(crate) use picture::picture;
