//! Tells HTTP/2 with prior knowledge (RFC 9113, 3.4) from HTTP/1.1 by a connection's first bytes.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A stream whose first bytes were read already, and are read again.
#[derive(Debug)]
pub(crate) struct Rewound<S> {
    first: Bytes,
    stream: S,
}

/// Whether a stream begins with HTTP/2's preface. No more is read than tells.
pub(crate) async fn is_http2<S: AsyncRead + Unpin>(mut stream: S) -> io::Result<(bool, Rewound<S>)> {
    let mut first = Vec::with_capacity(PREFACE.len());
    let mut buffer = [0; PREFACE.len()];
    while first.len() < PREFACE.len() && PREFACE.starts_with(&first) {
        let left = buffer.get_mut(first.len()..).unwrap_or_default();
        let read = stream.read(left).await?;
        let Some(bytes @ [_, ..]) = left.get(..read) else {
            break;
        };
        first.extend_from_slice(bytes);
    }
    let http2 = first == PREFACE;
    let first = first.into();
    Ok((http2, Rewound { first, stream }))
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.first.is_empty() {
            return Pin::new(&mut this.stream).poll_read(context, buffer);
        }
        let taken = this.first.len().min(buffer.remaining());
        buffer.put_slice(this.first.get(..taken).unwrap_or_default());
        this.first.advance(taken);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_read_is_read_again() {
        let check = async |sent: &'static str, http2: bool| {
            for size in [1, 5, 1_000] {
                let (mut near, far) = tokio::io::duplex(size);
                tokio::spawn(async move { near.write_all(sent.as_bytes()).await });
                let (told, mut rewound) = is_http2(far).await.unwrap();
                let mut seen = String::new();
                rewound.read_to_string(&mut seen).await.unwrap();
                assert_eq!((told, seen.as_str()), (http2, sent), "by {size}");
            }
        };
        check("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nand more", true).await;
        check("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", true).await;
        check("PUT / HTTP/1.1\r\n\r\n", false).await;
        check("PRI * HTTP/2.0\r\n\r\nXX", false).await;
        check("P", false).await;
        check("", false).await;
    }

    use tokio::io::AsyncWriteExt;
}
