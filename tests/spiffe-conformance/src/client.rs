//! A gRPC client that sends what it is told to, headers and bytes, and shows what came as it came.

use std::time::Duration;

use bytes::{Buf, BufMut};
use http::uri::PathAndQuery;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder, Streaming};
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::address::Address;

/// The longest message that is read: nobody's state is larger.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// A connection to a Workload API.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    channel: Channel,
    /// Whoever does not answer within this does not answer.
    patience: Duration,
}

/// What a call came to.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// The first message, and how long it took.
    Message(Vec<u8>, Duration),
    /// The stream ended without one.
    Nothing,
    /// The server refused.
    Refused(Status),
    /// There was no answer in time.
    Silent,
}

/// Bytes as they are.
#[derive(Debug, Clone, Copy, Default)]
struct Bytes;

// === impl Client ===

impl Client {
    /// Connects.
    pub(crate) async fn connect(address: &Address, patience: Duration) -> Result<Self, tonic::transport::Error> {
        let endpoint = match address {
            Address::Unix(path) => Endpoint::try_from(format!("unix://{path}"))?,
            Address::Tcp(address) => Endpoint::try_from(format!("http://{address}"))?,
        };
        let channel = endpoint.connect_timeout(patience).connect().await?;
        Ok(Self { channel, patience })
    }

    /// Begins a call with these values of the security header.
    async fn begin(
        &self,
        path: &str,
        header: &[&'static str],
        messages: Vec<Vec<u8>>,
    ) -> Result<Streaming<Vec<u8>>, Status> {
        let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let ready = grpc.ready().await;
        ready.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut request = Request::new(tokio_stream::iter(messages));
        for value in header {
            request
                .metadata_mut()
                .append("workload.spiffe.io", MetadataValue::from_static(value));
        }
        let path = path.parse::<PathAndQuery>();
        let path = path.map_err(|error| Status::internal(error.to_string()))?;
        Ok(grpc.streaming(request, path, Bytes).await?.into_inner())
    }

    /// Calls a method of the Workload API with these values of the security header.
    pub(crate) async fn call_with(&self, method: &str, header: &[&'static str], message: Vec<u8>) -> Answer {
        self.call_path(&format!("/SpiffeWorkloadAPI/{method}"), header, message)
            .await
    }

    /// Calls a method of the Workload API as it ought to be called.
    pub(crate) async fn call(&self, method: &str, message: &impl prost::Message) -> Answer {
        self.call_with(method, &["true"], message.encode_to_vec()).await
    }

    /// Calls any method.
    pub(crate) async fn call_path(&self, path: &str, header: &[&'static str], message: Vec<u8>) -> Answer {
        let began = Instant::now();
        let first = async { self.begin(path, header, vec![message]).await?.message().await };
        match timeout(self.patience, first).await {
            Ok(Ok(Some(message))) => Answer::Message(message, began.elapsed()),
            Ok(Ok(None)) => Answer::Nothing,
            Ok(Err(status)) => Answer::Refused(status),
            Err(_) => Answer::Silent,
        }
    }

    /// Hands on each message of a stream for so long.
    pub(crate) async fn watch(
        &self,
        method: &str,
        long: Duration,
        mut hear: impl FnMut(Vec<u8>),
    ) -> Result<(), Status> {
        let until = Instant::now() + long;
        let path = format!("/SpiffeWorkloadAPI/{method}");
        let mut stream = self.begin(&path, &["true"], vec![Vec::new()]).await?;
        while let Ok(next) = timeout_at(until, stream.message()).await {
            match next? {
                Some(message) => hear(message),
                None => return Err(Status::cancelled("the server ended the stream")),
            }
        }
        Ok(())
    }
}

// === impl Answer ===

impl Answer {
    /// The code, if the server refused.
    pub(crate) fn code(&self) -> Option<Code> {
        match self {
            Self::Refused(status) => Some(status.code()),
            _ => None,
        }
    }

    /// In words for a report.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Message(..) => "an answer".to_owned(),
            Self::Nothing => "the end of the stream".to_owned(),
            Self::Refused(status) => format!("{:?}: {}", status.code(), status.message()),
            Self::Silent => "silence".to_owned(),
        }
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
