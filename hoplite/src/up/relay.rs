//! A relay between two proxies that keeps every byte it sees, as somebody on the wire could.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Enough for all that the checks send.
const KEEP_BYTES_MAX: usize = 16 << 20;

/// Listens on loopback and passes every connection on.
pub(crate) struct Relay {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<u8>>>,
    task: tokio::task::JoinHandle<()>,
}

// === impl Relay ===

impl Relay {
    pub(crate) async fn start(to: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let keep = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            while let Ok((downstream, _)) = listener.accept().await {
                let keep = Arc::clone(&keep);
                tokio::spawn(async move {
                    let Ok(upstream) = TcpStream::connect(to).await else {
                        return;
                    };
                    let (from_downstream, to_downstream) = downstream.into_split();
                    let (from_upstream, to_upstream) = upstream.into_split();
                    tokio::join!(
                        copy(from_downstream, to_upstream, &keep),
                        copy(from_upstream, to_downstream, &keep)
                    );
                });
            }
        });
        Ok(Self { address, seen, task })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Everything that passed, both ways.
    pub(crate) fn seen(&self) -> Vec<u8> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, keep: &Mutex<Vec<u8>>) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let bytes = buffer.get(..length).unwrap_or_default();
        {
            let mut kept = keep.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() < KEEP_BYTES_MAX {
                kept.extend_from_slice(bytes);
            }
        }
        if to.write_all(bytes).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}
