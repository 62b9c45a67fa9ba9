//! Heads of HTTP/1.1 requests as they were sent, followed from one to the next over a connection's bytes.
//!
//! The library takes a bare line feed for a line's end, cuts a `#` off the target, and of a length and a transfer coding
//! forgets the length. Each is allowed (RFC 9112, 2.2 and 6.3) and each has led two programs to two readings; here each is
//! refused. Such a head is spoilt, so that the library refuses it as malformed. A bare line feed between a body's chunks or in
//! its trailers is spoilt too: whoever takes it for a line's end finds the next head elsewhere.

/// As much of a line as tells what it is. A `content-length` that is longer is not one.
const LINE_BYTES_MAX: usize = 64;

/// Follows the heads in a connection's bytes.
#[derive(Debug)]
pub(crate) struct Heads {
    state: ParseState,
    /// The beginning of the current line.
    line: Vec<u8>,
    /// How long it is so far.
    length: usize,
    previous: u8,
}

/// What the next byte belongs to.
#[derive(Debug)]
enum ParseState {
    Head(Head),
    /// So many bytes that are no head.
    Skip(u64, Next),
    /// The line with a chunk's size.
    Size,
    Trailers,
    /// Something the library refuses: nothing on this connection is a request any more.
    End,
}

/// What follows after bytes that are skipped.
#[derive(Debug, Clone, Copy)]
enum Next {
    Head,
    Size,
}

/// What must not be read, and has been spoilt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spoilt {
    /// A head, and why.
    Head(&'static str),
    /// The chunks or trailers of a request whose head was good: its body breaks off there.
    Body(&'static str),
}

/// What the lines of a head have said so far.
#[derive(Debug, Default)]
struct Head {
    begun: bool,
    lengths: usize,
    codings: usize,
    /// None if it is no number.
    body: Option<u64>,
}

/// The first line of HTTP/2, as a client with prior knowledge sends it (RFC 9113, 3.4).
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r";

const BARE: &str = "a line ends in a bare line feed";
const FRAGMENT: &str = "the request target holds a fragment";
const TWICE: &str = "the body's length is given in two ways: the next server might see two requests";
const LONG: &str = "a length is given in too many digits";

// === impl Heads ===

impl Default for Heads {
    fn default() -> Self {
        Self {
            state: ParseState::Head(Head::default()),
            line: Vec::with_capacity(LINE_BYTES_MAX),
            length: 0,
            previous: 0,
        }
    }
}

impl Heads {
    /// Looks at the next bytes. What must not be read is spoilt in place, and that is said once.
    pub(crate) fn see(&mut self, mut bytes: &mut [u8]) -> Option<Spoilt> {
        loop {
            if let ParseState::Skip(left, next) = &mut self.state {
                let skipped = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= skipped as u64;
                bytes = bytes.get_mut(skipped..).unwrap_or_default();
                if *left > 0 {
                    return None;
                }
                self.state = match next {
                    Next::Head => ParseState::Head(Head::default()),
                    Next::Size => ParseState::Size,
                };
            }
            let (byte, rest) = bytes.split_first_mut()?;
            bytes = rest;
            if let Some(reason) = self.take(*byte) {
                // Neither a head nor a trailer holds a NUL, so the library stops here. A chunk's extension may hold it, but the
                // library takes no bare line feed anywhere in that line (tests/tests/readings/framing.rs).
                if !matches!(self.state, ParseState::Size) || reason != BARE {
                    *byte = 0;
                }
                return Some(match std::mem::replace(&mut self.state, ParseState::End) {
                    ParseState::Size | ParseState::Trailers => Spoilt::Body(reason),
                    ParseState::Head(_) | ParseState::Skip(..) | ParseState::End => Spoilt::Head(reason),
                });
            }
        }
    }

    /// One byte that is not skipped; gives the reason if it must not be.
    fn take(&mut self, byte: u8) -> Option<&'static str> {
        let previous = std::mem::replace(&mut self.previous, byte);
        if byte != b'\n' {
            if let ParseState::Head(head) = &mut self.state {
                // The first line is the only one in which `#` is no ordinary character.
                if byte == b'#' && !head.begun {
                    return Some(FRAGMENT);
                }
            }
            self.length += 1;
            if self.line.len() < LINE_BYTES_MAX {
                self.line.push(byte);
            }
            return None;
        }
        if previous != b'\r'
            && matches!(
                self.state,
                ParseState::Head(_) | ParseState::Size | ParseState::Trailers
            )
        {
            return Some(BARE);
        }
        let whole = self.length <= LINE_BYTES_MAX;
        let empty = self.length <= 1;
        let found = self.line_ends(whole, empty);
        self.line.clear();
        self.length = 0;
        found
    }

    fn line_ends(&mut self, whole: bool, empty: bool) -> Option<&'static str> {
        match &mut self.state {
            // Empty lines before a head do not belong to it (RFC 9112, 2.2).
            ParseState::Head(head) if empty && !head.begun => {}
            ParseState::Head(head) if empty => {
                if head.lengths > 1 || (head.lengths > 0 && head.codings > 0) {
                    return Some(TWICE);
                }
                self.state = match (head.lengths, head.codings, head.body) {
                    (_, 1.., _) => ParseState::Size,
                    (0, 0, _) => ParseState::Head(Head::default()),
                    (_, _, Some(length)) => ParseState::Skip(length, Next::Head),
                    (_, _, None) => ParseState::End,
                };
            }
            // Behind anything but a connection's beginning the library refuses it.
            ParseState::Head(head) if !head.begun && self.line == HTTP2 => self.state = ParseState::End,
            ParseState::Head(head) if !head.begun => head.begun = true,
            ParseState::Head(head) => match field(&self.line) {
                Some((name, value)) if name.eq_ignore_ascii_case(b"content-length") => {
                    if !whole {
                        return Some(LONG);
                    }
                    head.lengths += 1;
                    head.body = number(value, 10);
                }
                Some((name, _)) if name.eq_ignore_ascii_case(b"transfer-encoding") => head.codings += 1,
                _ => {}
            },
            ParseState::Size => {
                let digits = self.line.split(|b| !b.is_ascii_hexdigit()).next().unwrap_or_default();
                if digits.len() == LINE_BYTES_MAX {
                    return Some(LONG);
                }
                self.state = match number(digits, 16) {
                    Some(0) => ParseState::Trailers,
                    // And the line's end after the chunk.
                    Some(size) => ParseState::Skip(size.saturating_add(2), Next::Size),
                    None => ParseState::End,
                };
            }
            ParseState::Trailers if empty => self.state = ParseState::Head(Head::default()),
            ParseState::Trailers | ParseState::Skip(..) | ParseState::End => {}
        }
        None
    }
}

fn field(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = line.iter().position(|b| *b == b':')?;
    let (name, value) = line.split_at_checked(colon)?;
    Some((name, value.get(1..)?.trim_ascii()))
}

fn number(digits: &[u8], radix: u32) -> Option<u64> {
    let text = std::str::from_utf8(digits).ok()?;
    // A sign is no digit.
    text.bytes()
        .all(|b| b.is_ascii_hexdigit())
        .then(|| u64::from_str_radix(text, radix).ok())?
}

#[cfg(test)]
mod tests {
    use super::Spoilt::{Body, Head};
    use super::*;

    /// What is said of bytes that come in pieces of this size, and which of them are spoilt.
    fn seen(bytes: &str, size: usize) -> (Vec<Spoilt>, Vec<usize>) {
        let (mut heads, mut said, mut seen) = (Heads::default(), Vec::new(), bytes.as_bytes().to_vec());
        for piece in seen.chunks_mut(size) {
            said.extend(heads.see(piece));
        }
        let spoilt = (0..seen.len()).filter(|&at| seen[at] != bytes.as_bytes()[at]);
        (said, spoilt.collect())
    }

    #[track_caller]
    fn check(bytes: &str, expected: Option<(Spoilt, usize)>) {
        let (said, spoilt): (Vec<_>, Vec<_>) = expected.into_iter().unzip();
        for size in [1, 2, 3, 7, bytes.len()] {
            assert_eq!(seen(bytes, size), (said.clone(), spoilt.clone()), "{bytes:?} by {size}");
        }
    }

    const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

    #[test]
    fn what_has_one_reading_passes() {
        for head in [
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\n#\n\n".to_owned(),
            GET.to_owned(),
            format!("{GET}{GET}"),
            format!("\r\n{GET}\r\n\r\n{GET}"),
            "GET / HTTP/1.1\r\nx: #\r\n\r\n".to_owned(),
            format!("POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\na\n#\nb{GET}"),
            format!("POST / HTTP/1.1\r\nContent-Length:5\r\n\r\na\n\n\nb{GET}"),
            format!("POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n{GET}"),
            format!("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3\r\n\n\n\n\r\n0\r\n\r\n{GET}"),
            format!(
                "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nA;x=#\r\n0123456\n8\n\r\n00\r\nx: y\r\n\r\n{GET}"
            ),
        ] {
            check(&head, None);
        }
    }

    #[test]
    fn what_has_two_readings_is_spoilt() {
        check("GET /a#b HTTP/1.1\r\n\r\n", Some((Head(FRAGMENT), 6)));
        check("GET / HTTP/1.1\nhost: a\r\n\r\n", Some((Head(BARE), 14)));
        check("GET / HTTP/1.1\r\nhost: a\n\r\n", Some((Head(BARE), 23)));
        check("GET / HTTP/1.1\r\n\n", Some((Head(BARE), 16)));
        check("\nGET / HTTP/1.1\r\n\r\n", Some((Head(BARE), 0)));
        let both = "POST / HTTP/1.1\r\ncontent-length: 5\r\nTransfer-Encoding: chunked\r\n\r\n";
        check(both, Some((Head(TWICE), both.len() - 1)));
        let twice = "POST / HTTP/1.1\r\ncontent-length: 5\r\nContent-Length: 5\r\n\r\n";
        check(twice, Some((Head(TWICE), twice.len() - 1)));
        let long = format!("POST / HTTP/1.1\r\ncontent-length: {}5\r\n", " ".repeat(LINE_BYTES_MAX));
        check(&long, Some((Head(LONG), long.len() - 1)));
        let zeros = "0".repeat(LINE_BYTES_MAX);
        let long = format!("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n{zeros}5\r\n");
        check(&long, Some((Body(LONG), long.len() - 1)));
    }

    #[test]
    fn chunks_and_trailers_have_one_end() {
        const CHUNKED: &str = "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n";
        // Up to the line feed that stands alone, and what follows.
        for (before, after) in [
            ("0\r\nx: a", "\r\nPOST / HTTP/1.1\r\ncontent-length: 100\r\n\r\n"),
            ("0\r\nx: a\r\n", "GET / HTTP/1.1\n\n"),
            ("0\r\n", "GET / HTTP/1.1\n\n"),
            // As long as the line that ends a body.
            ("0\r\nx: a\r\ny", "\r\n\r\n"),
        ] {
            let at = CHUNKED.len() + before.len();
            check(&format!("{CHUNKED}{before}\n{after}{GET}"), Some((Body(BARE), at)));
        }
        for (before, after) in [
            ("2", "ab\r\n0\r\n\r\n"),
            ("2;a", "b\r\nab\r\n0\r\n\r\n"),
            ("2\r\nab\r\n0", "\r\n"),
            ("2\r\nab\r\n", "0\r\n\r\n"),
        ] {
            let bytes = format!("{CHUNKED}{before}\n{after}GET / HTTP/1.1\n\n");
            assert_eq!(seen(&bytes, 3), (vec![Body(BARE)], vec![]), "{bytes:?}");
        }
    }

    #[test]
    fn nothing_hides_behind_a_body() {
        for first in [
            "POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\nab",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2;x\r\nab\r\n000\r\nx: y\r\n\r\n",
        ] {
            check(
                &format!("{first}GET / HTTP/1.1\n\n"),
                Some((Head(BARE), first.len() + 14)),
            );
        }
    }
}
