//! Every RPC there is, read from the protobuf files, and a client that calls any of them with an empty message.

use std::path::Path;
use std::time::Duration;

use bytes::{Buf, BufMut};
use http::uri::PathAndQuery;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// A stream that has said nothing by then has let the caller in.
const FIRST_WORD_MAX: Duration = Duration::from_secs(5);

/// One method of one service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rpc {
    /// With its package, as in `hoplite.ca.v1.Node`.
    pub service: String,
    /// As in `Join`.
    pub method: String,
}

/// Bytes as they are: an empty message is a message of every type.
#[derive(Debug, Clone, Copy, Default)]
struct Bytes;

/// All RPCs of the protobuf files below a directory, sorted.
///
/// # Panics
/// When a file cannot be read, or there is none.
pub fn rpcs(directory: &Path) -> Vec<Rpc> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(rpcs(&path));
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            found.extend(declared(&std::fs::read_to_string(&path).unwrap()));
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no RPC in {}", directory.display());
    found
}

fn declared(text: &str) -> Vec<Rpc> {
    let (mut package, mut service, mut found) = (String::new(), String::new(), Vec::new());
    for line in text.lines() {
        let mut words = line.trim().split([' ', '(', ';', '{']);
        match (words.next(), words.next()) {
            (Some("package"), Some(name)) => package = format!("{name}."),
            (Some("service"), Some(name)) => service = format!("{package}{name}"),
            (Some("rpc"), Some(name)) => found.push(Rpc {
                service: service.clone(),
                method: name.to_owned(),
            }),
            _ => {}
        }
    }
    found
}

/// Calls with an empty message, and gives the code of the answer; `Ok` for a stream that has begun, or that waits. Whether it waits is asked
/// twice: a connection that ends in the middle of a first question can leave that without an answer.
pub async fn call(channel: Channel, rpc: &Rpc, workload_header: bool) -> Code {
    match call_once(channel.clone(), rpc, workload_header).await {
        Some(code) => code,
        None => call_once(channel, rpc, workload_header).await.unwrap_or(Code::Ok),
    }
}

/// `None` if nothing was said in time.
async fn call_once(channel: Channel, rpc: &Rpc, workload_header: bool) -> Option<Code> {
    let called = async {
        let mut grpc = Grpc::new(channel);
        grpc.ready()
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let mut request = Request::new(Vec::new());
        if workload_header {
            let metadata = request.metadata_mut();
            metadata.insert("workload.spiffe.io", MetadataValue::from_static("true"));
        }
        let path: PathAndQuery = format!("/{}/{}", rpc.service, rpc.method).parse().unwrap();
        let mut answers = grpc.server_streaming(request, path, Bytes).await?.into_inner();
        answers.message().await.map(drop)
    };
    match tokio::time::timeout(FIRST_WORD_MAX, called).await {
        Ok(Err(status)) => Some(status.code()),
        Ok(Ok(())) => Some(Code::Ok),
        Err(_) => None,
    }
}

// === impl Bytes ===

impl Codec for Bytes {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining()).to_vec()))
    }
}
