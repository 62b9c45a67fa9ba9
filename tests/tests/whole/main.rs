//! Whole worlds in one process, with foreign clients and servers as judges: a module for each subject.
//!
//! One executable for all of them, because each is linked anew with every change. `authorities`, `secrets` and `storm` are their own:
//! the first measures how long a re-keying takes, one reads every log line of its process, the last counts what its CA is asked in each second.

mod approved;
mod attacks;
mod authzen;
mod autoscaled;
mod conformance;
mod entries;
mod envoy;
mod federation;
mod fleet;
mod floods;
mod grpc;
mod jwt;
mod nested;
mod openssl;
mod otlp;
mod policy;
mod prometheus;
mod readings;
mod spiffe_clients;
mod survival;
mod templates;
mod tpm;
mod trust_bundle;
mod upstream;
mod world;
