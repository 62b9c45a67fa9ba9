//! Calls what it is told to on a Unix socket, and prints one line for each: what it was told, and the code of the answer.
//!
//! Usage: rpc SOCKET [--no-header] ASKED…, each as in `hoplite.ca.v1.Admin/ListAgents` or `GET:/status`.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use bytes::Bytes;
use hoplite_tests::exchange;
use hoplite_tests::rpc::{Rpc, call};
use hoplite_wire::channel;
use http::Request;
use http_body_util::Full;
use tokio::net::UnixStream;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let socket = arguments.remove(0);
    let header = arguments.first().is_none_or(|first| first != "--no-header");
    for asked in arguments.iter().filter(|asked| !asked.starts_with("--")) {
        let code = match asked.split_once(':') {
            Some((method, path)) => http_status(Path::new(&socket), method, path).await,
            None => grpc_code(Path::new(&socket), asked, header).await,
        };
        if writeln!(std::io::stdout(), "{asked} {code}").is_err() {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

async fn grpc_code(socket: &Path, asked: &str, header: bool) -> String {
    let Some((service, method)) = asked.split_once('/') else {
        return "unreadable".to_owned();
    };
    let rpc = Rpc {
        service: service.to_owned(),
        method: method.to_owned(),
    };
    match channel::unix(socket).await {
        Ok(channel) => format!("{:?}", call(channel, &rpc, header).await),
        Err(_) => "unreachable".to_owned(),
    }
}

async fn http_status(socket: &Path, method: &str, path: &str) -> String {
    let Ok(stream) = UnixStream::connect(socket).await else {
        return "unreachable".to_owned();
    };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .header("content-type", "application/json")
        .body(Full::<Bytes>::default());
    match request {
        Ok(request) => match exchange(stream, false, request).await {
            Ok(answer) => answer.status.as_str().to_owned(),
            Err(_) => "no answer".to_owned(),
        },
        Err(_) => "unreadable".to_owned(),
    }
}
