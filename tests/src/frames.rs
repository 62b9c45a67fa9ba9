//! HTTP/2 frame by frame, for what no library would send.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// What a client sends first.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// `GET https://a/` in HPACK (RFC 7541): three entries of the static table and one literal.
pub const REQUEST: &[u8] = &[0x82, 0x87, 0x84, 0x41, 1, b'a'];

/// The same with `POST`.
pub const UPLOAD: &[u8] = &[0x83, 0x87, 0x84, 0x41, 1, b'a'];

/// A frame's kind (RFC 9113, 6).
pub const DATA: u8 = 0;
/// As above.
pub const HEADERS: u8 = 1;
/// As above.
pub const PRIORITY: u8 = 2;
/// As above.
pub const RST_STREAM: u8 = 3;
/// As above.
pub const SETTINGS: u8 = 4;
/// As above.
pub const PING: u8 = 6;
/// As above.
pub const GOAWAY: u8 = 7;
/// As above.
pub const WINDOW_UPDATE: u8 = 8;
/// As above.
pub const CONTINUATION: u8 = 9;

/// A flag of DATA and HEADERS; of SETTINGS and PING it is ACK.
pub const END_STREAM: u8 = 1;
/// A flag of HEADERS and CONTINUATION.
pub const END_HEADERS: u8 = 4;

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: u8,
    /// How.
    pub flags: u8,
    /// About what; 0 is the connection.
    pub stream: u32,
    /// What it says.
    pub payload: Vec<u8>,
}

// === impl Frame ===

impl Frame {
    /// The error that RST_STREAM or GOAWAY names.
    pub fn error(&self) -> Option<u32> {
        let at = match self.kind {
            RST_STREAM => 0,
            GOAWAY => 4,
            _ => return None,
        };
        let code = self.payload.get(at..at + 4)?;
        Some(u32::from_be_bytes(code.try_into().ok()?))
    }

    /// Reads one; none at the connection's end, however that comes.
    pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Option<Self> {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.ok()?;
        let [a, b, c, kind, flags, s, t, u, v] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        stream.read_exact(&mut payload).await.ok()?;
        Some(Self {
            kind,
            flags,
            stream: u32::from_be_bytes([s, t, u, v]),
            payload,
        })
    }
}

/// A frame's bytes.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// What a client begins with.
pub fn opening() -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()
}

/// Writes what `next` gives until it gives nothing more or the other side has had enough. Gives how many bytes were
/// taken, and the errors of its GOAWAY frames.
pub async fn flood<S>(stream: S, mut next: impl FnMut() -> Option<Vec<u8>>) -> (usize, Vec<u32>)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (mut reader, mut writer) = tokio::io::split(stream);
    let reading = tokio::spawn(async move {
        let mut errors = Vec::new();
        while let Some(frame) = Frame::read(&mut reader).await {
            errors.extend(frame.error().filter(|_| frame.kind == GOAWAY));
        }
        errors
    });
    let mut written = 0;
    while let Some(bytes) = next().filter(|_| !reading.is_finished()) {
        if writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err() {
            break;
        }
        written += bytes.len();
    }
    let ended = tokio::time::timeout(crate::PATIENCE, reading).await;
    (written, ended.expect("the connection ends").unwrap())
}
