//! Heads of HTTP/1.1 requests as they were sent, each held until it is whole and then judged; and what stands between them.
//!
//! The library answers what it cannot read without a record and without a decision's id. It takes a bare line feed for a line's
//! end, cuts a `#` off the target, and of a length and a transfer coding forgets the length: each is allowed (RFC 9112, 2.2
//! and 6.3) and each has led two programs to two readings. Such a head it does not get: in its place it gets one that says
//! why (`unread.rs`). A bare line feed between a body's chunks or in its trailers is spoilt in place, so that the library
//! refuses it: whoever takes it for a line's end finds the next head elsewhere.

use http::{Method, Uri};
use httparse::{EMPTY_HEADER, Status};

use crate::http::frames::Passed;
use crate::http::reading::{HEADER_BYTES_MAX, HEADERS_MAX};
use crate::http::unread::Unread;

/// A whole head on the wire: what the library reads ahead at most.
const HEAD_BYTES_MAX: usize = HEADER_BYTES_MAX as usize;

/// The longest target that the library can read; ours are far shorter.
const TARGET_BYTES_MAX: usize = 32 << 10;

/// As much of a chunk's line as tells its size.
const LINE_BYTES_MAX: usize = 64;

/// The library keeps the numbers above for itself.
const LENGTH_MAX: u64 = u64::MAX - 2;

/// Follows the heads in a connection's bytes.
#[derive(Debug)]
pub(crate) struct Heads {
    state: ParseState,
    /// How much of a head that is not whole was looked at.
    seen: usize,
    /// Its whole lines.
    lines: usize,
    /// The beginning of a chunk's line.
    line: Vec<u8>,
    /// How long the current line is so far.
    length: usize,
    previous: u8,
}

/// What the next byte belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ParseState {
    Head,
    /// So many bytes that are no head.
    Skip(u64, Next),
    /// The line with a chunk's size.
    Size,
    Trailers,
    /// Something the library refuses: nothing on this connection is a request any more.
    Refused,
    /// What was said instead of a head was the last thing to be read.
    Over,
}

/// What follows after bytes that are skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Head,
    Size,
}

// === impl Heads ===

impl Default for Heads {
    fn default() -> Self {
        Self {
            state: ParseState::Head,
            seen: 0,
            lines: 0,
            line: Vec::with_capacity(LINE_BYTES_MAX),
            length: 0,
            previous: 0,
        }
    }
}

impl Heads {
    /// Looks at the next bytes; those of a head that is not whole come again. What stands in the place of a head is added to
    /// `instead`, and is the last thing to be read.
    pub(crate) fn pass(&mut self, bytes: &mut [u8], instead: &mut Vec<u8>) -> Passed {
        let mut at = std::mem::take(&mut self.seen);
        // Where the head begins, while there is one.
        let mut begin = 0;
        let all = bytes.len();
        let whole = Passed {
            through: all,
            used: all,
        };
        loop {
            match &mut self.state {
                ParseState::Refused => return whole,
                ParseState::Over => {
                    return Passed { through: 0, used: all };
                }
                ParseState::Skip(left, next) => {
                    let skipped = usize::try_from(*left).unwrap_or(usize::MAX).min(all - at);
                    *left -= skipped as u64;
                    at += skipped;
                    begin = at;
                    if *left > 0 {
                        return whole;
                    }
                    self.state = match next {
                        Next::Head => ParseState::Head,
                        Next::Size => ParseState::Size,
                    };
                    continue;
                }
                ParseState::Head | ParseState::Size | ParseState::Trailers => {}
            }
            let Some(byte) = bytes.get_mut(at) else {
                if self.state != ParseState::Head {
                    return whole;
                }
                self.seen = at - begin;
                return Passed {
                    through: begin,
                    used: begin,
                };
            };
            at += 1;
            if self.state != ParseState::Head {
                if !self.body(byte) {
                    self.state = ParseState::Refused;
                }
                begin = at;
                continue;
            }
            let judged = match self.head(*byte, at - begin) {
                Ok(false) => continue,
                // Empty lines before a head do not belong to it (RFC 9112, 2.2).
                Ok(true) if self.lines == 0 => Ok(ParseState::Head),
                Ok(true) => judge(bytes.get_mut(begin..at).unwrap_or_default()),
                Err(unread) => Err(unread),
            };
            match judged {
                Ok(next) => {
                    self.state = next;
                    self.lines = 0;
                    begin = at;
                }
                Err(unread) => {
                    instead.extend_from_slice(unread.head().as_bytes());
                    self.state = ParseState::Over;
                    return Passed {
                        through: begin,
                        used: all,
                    };
                }
            }
        }
    }

    /// Whether nothing more is read.
    pub(crate) fn is_over(&self) -> bool {
        self.state == ParseState::Over
    }

    /// A head's next byte, with which it is so long. Whether it ends in an empty line.
    fn head(&mut self, byte: u8, length: usize) -> Result<bool, Unread> {
        let previous = std::mem::replace(&mut self.previous, byte);
        if self.lines == 0 && length > TARGET_BYTES_MAX {
            return Err(Unread::TargetTooLong);
        }
        if length > HEAD_BYTES_MAX {
            return Err(Unread::HeadTooLarge);
        }
        if byte != b'\n' {
            // The first line is the only one in which `#` is no ordinary character.
            if byte == b'#' && self.lines == 0 {
                return Err(Unread::Fragment);
            }
            self.length += 1;
            return Ok(false);
        }
        if previous != b'\r' {
            return Err(Unread::BareLineFeed);
        }
        let empty = std::mem::take(&mut self.length) <= 1;
        self.lines += usize::from(!empty);
        Ok(empty)
    }

    /// A byte of a chunk's line or of trailers, which is spoilt if it must not be. Whether anything behind it can be read.
    fn body(&mut self, byte: &mut u8) -> bool {
        let previous = std::mem::replace(&mut self.previous, *byte);
        if *byte != b'\n' {
            self.length += 1;
            if self.line.len() < LINE_BYTES_MAX {
                self.line.push(*byte);
            }
            return true;
        }
        let size = self.state == ParseState::Size;
        if previous != b'\r' {
            // Trailers hold no NUL, so the library stops here. A chunk's extension may hold it, but the library takes no bare
            // line feed anywhere in that line (tests/tests/whole/readings/framing.rs).
            if !size {
                *byte = 0;
            }
            return false;
        }
        let empty = std::mem::take(&mut self.length) <= 1;
        let line = std::mem::take(&mut self.line);
        if !size {
            if empty {
                self.state = ParseState::Head;
                self.lines = 0;
            }
            return true;
        }
        let digits = line.split(|b| !b.is_ascii_hexdigit()).next().unwrap_or_default();
        if digits.len() == LINE_BYTES_MAX {
            *byte = 0;
            return false;
        }
        self.state = match number(digits, 16) {
            Some(0) => ParseState::Trailers,
            // And the line's end after the chunk.
            Some(size) => ParseState::Skip(size.saturating_add(2), Next::Size),
            None => ParseState::Refused,
        };
        true
    }
}

/// Whether the library will read a whole head, and read it as everybody does; and what follows it.
///
/// A length that is said twice alike in one line is repaired in place (RFC 9112, 6.3).
fn judge(head: &mut [u8]) -> Result<ParseState, Unread> {
    let mut fields = [EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(head) {
        Ok(Status::Complete(length)) if length == head.len() => {}
        Ok(_) => return Err(Unread::Line),
        Err(httparse::Error::TooManyHeaders) => return Err(Unread::HeadTooLarge),
        Err(httparse::Error::Version) => return Err(Unread::Version),
        Err(_) => return Err(Unread::Line),
    }
    if Method::from_bytes(request.method.unwrap_or_default().as_bytes()).is_err() {
        return Err(Unread::Line);
    }
    if Uri::try_from(request.path.unwrap_or_default()).is_err() {
        return Err(Unread::Target);
    }
    let (mut length, mut coding, mut repair) = (None, None, None);
    for field in request.headers.iter() {
        let name = field.name.as_bytes();
        if name.eq_ignore_ascii_case(b"content-length") {
            let mut again = field.value.split(|b| *b == b',').map(<[u8]>::trim_ascii);
            let first = again.next().unwrap_or_default();
            if again.any(|other| other != first) || length.is_some_and(|other| other != first) {
                return Err(if is_list_of_numbers(field.value) {
                    Unread::Lengths
                } else {
                    Unread::Length
                });
            }
            if field.value != first {
                let begin = first.as_ptr().addr() + first.len() - head.as_ptr().addr();
                let end = field.value.as_ptr().addr() + field.value.len() - head.as_ptr().addr();
                if repair.replace(begin..end).is_some() {
                    // Once in two lines: nobody does that by accident.
                    return Err(Unread::Lengths);
                }
            }
            length = Some(first);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            coding = Some(field.value);
        } else if Unread::is_field(name) {
            return Err(Unread::Forged);
        }
    }
    let next = match (length, coding) {
        (Some(_), Some(_)) => return Err(Unread::Lengths),
        (None, None) => ParseState::Head,
        (None, Some(coding)) => {
            let last = coding.rsplit(|b| *b == b',').next().unwrap_or_default();
            if request.version != Some(1) || !last.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                return Err(Unread::Coding);
            }
            ParseState::Size
        }
        (Some(length), None) => match number(length, 10) {
            None | Some(LENGTH_MAX..) => return Err(Unread::Length),
            Some(0) => ParseState::Head,
            Some(length) => ParseState::Skip(length, Next::Head),
        },
    };
    if let Some(repaired) = repair.and_then(|range| head.get_mut(range)) {
        repaired.fill(b' ');
    }
    Ok(next)
}

fn is_list_of_numbers(value: &[u8]) -> bool {
    value
        .split(|b| *b == b',')
        .all(|one| number(one.trim_ascii(), 10).is_some())
}

/// Digits and nothing else.
fn number(digits: &[u8], radix: u32) -> Option<u64> {
    let text = std::str::from_utf8(digits).ok()?;
    // A sign is no digit.
    text.bytes()
        .all(|b| b.is_ascii_hexdigit())
        .then(|| u64::from_str_radix(text, radix).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the library gets of bytes that come in pieces of this size.
    fn passed(bytes: &str, size: usize) -> String {
        let (mut heads, mut out, mut held) = (Heads::default(), Vec::new(), Vec::new());
        for piece in bytes.as_bytes().chunks(size) {
            held.extend_from_slice(piece);
            let mut instead = Vec::new();
            let Passed { through, used } = heads.pass(&mut held, &mut instead);
            out.extend_from_slice(&held[..through]);
            out.extend(instead);
            held.drain(..used);
        }
        String::from_utf8(out).unwrap()
    }

    #[track_caller]
    fn check(bytes: &str, expected: &str) {
        for size in [1, 2, 3, 7, bytes.len()] {
            assert_eq!(passed(bytes, size), expected, "{bytes:?} by {size}");
        }
    }

    /// What comes before it goes on, and then this is said.
    #[track_caller]
    fn unread(before: &str, bytes: &str, unread: Unread) {
        check(&format!("{before}{bytes}"), &format!("{before}{}", unread.head()));
    }

    const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    const CHUNKED: &str = "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n";

    #[test]
    fn what_has_one_reading_passes() {
        for bytes in [
            GET.to_owned(),
            format!("{GET}{GET}"),
            format!("\r\n{GET}\r\n\r\n{GET}"),
            "GET / HTTP/1.1\r\nx: #\r\n\r\n".to_owned(),
            format!("POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\na\n#\nb{GET}"),
            format!("POST / HTTP/1.1\r\nContent-Length:5\r\n\r\na\n\n\nb{GET}"),
            format!("POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n{GET}"),
            format!("POST / HTTP/1.1\r\ncontent-length: 2\r\nContent-Length: 2\r\n\r\nab{GET}"),
            format!("{CHUNKED}3\r\n\n\n\n\r\n0\r\n\r\n{GET}"),
            format!("{CHUNKED}A;x=#\r\n0123456\n8\n\r\n00\r\nx: y\r\n\r\n{GET}"),
        ] {
            check(&bytes, &bytes);
        }
    }

    #[test]
    fn rfc9112_6_3_a_repeated_length_is_repaired() {
        let sent = |length: &str| format!("POST / HTTP/1.1\r\nContent-Length: {length}\r\n\r\nab{GET}");
        check(&sent("2, 2"), &sent("2   "));
        check(&sent("2 ,2,  2"), &sent("2       "));
        for (length, why) in [
            ("2, 3", Unread::Lengths),
            ("2, 02", Unread::Lengths),
            ("2,", Unread::Length),
            (",2", Unread::Length),
            ("2, a", Unread::Length),
            ("+2", Unread::Length),
            ("", Unread::Length),
            ("18446744073709551614", Unread::Length),
        ] {
            unread(GET, &sent(length), why);
        }
        let two = |one: &str, other: &str| {
            format!("POST / HTTP/1.1\r\ncontent-length: {one}\r\ncontent-length: {other}\r\n\r\nab")
        };
        unread("", &two("2", "3"), Unread::Lengths);
        unread("", &two("2", "02"), Unread::Lengths);
        unread("", &two("2, 2", "2, 2"), Unread::Lengths);
    }

    #[test]
    fn what_has_two_readings_or_none_is_unread() {
        unread("", "GET /a#b HTTP/1.1\r\n\r\n", Unread::Fragment);
        unread(GET, "GET / HTTP/1.1\nhost: a\r\n\r\n", Unread::BareLineFeed);
        unread("", "GET / HTTP/1.1\r\nhost: a\n\r\n", Unread::BareLineFeed);
        unread("", "GET / HTTP/1.1\r\n\n", Unread::BareLineFeed);
        unread("", "\nGET / HTTP/1.1\r\n\r\n", Unread::BareLineFeed);
        unread("", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Unread::Version);
        unread("", "GET /\u{0} HTTP/1.1\r\n\r\n", Unread::Line);
        unread("", "GET http:///a HTTP/1.1\r\n\r\n", Unread::Target);
        unread(GET, "GET / HTTP/1.1\r\nx : a\r\n\r\n", Unread::Line);
        unread(
            "",
            "GET / HTTP/1.1\r\nX_Hoplite_Unread: fragment\r\n\r\n",
            Unread::Forged,
        );
        for lines in [
            "content-length: 5\r\nTransfer-Encoding: chunked\r\n",
            "transfer-encoding: chunked\r\ncontent-length: 5\r\n",
        ] {
            unread(
                GET,
                &format!("POST / HTTP/1.1\r\n{lines}\r\n0\r\n\r\n"),
                Unread::Lengths,
            );
        }
        unread(
            "",
            "POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n",
            Unread::Coding,
        );
        unread(
            "",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked, x\r\n\r\n",
            Unread::Coding,
        );
    }

    #[test]
    fn rfc9110_15_5_15_and_rfc6585_5_what_is_too_long_is_never_held_whole() {
        let long = |bytes: usize| "a".repeat(bytes);
        for (bytes, why) in [
            (format!("GET /{}", long(1 << 20)), Unread::TargetTooLong),
            (format!("GET / HTTP/1.1\r\nx: {}", long(1 << 20)), Unread::HeadTooLarge),
            (
                format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(101)),
                Unread::HeadTooLarge,
            ),
        ] {
            for size in [1_000, 1 << 20] {
                assert_eq!(passed(&bytes, size), why.head(), "{size}");
            }
        }
    }

    #[test]
    fn chunks_and_trailers_have_one_end() {
        // Up to the line feed that stands alone, and what follows.
        for (before, after) in [
            ("0\r\nx: a", "\r\nPOST / HTTP/1.1\r\ncontent-length: 100\r\n\r\n"),
            ("0\r\nx: a\r\n", "GET / HTTP/1.1\n\n"),
            ("0\r\n", "GET / HTTP/1.1\n\n"),
            // As long as the line that ends a body.
            ("0\r\nx: a\r\ny", "\r\n\r\n"),
        ] {
            check(
                &format!("{CHUNKED}{before}\n{after}{GET}"),
                &format!("{CHUNKED}{before}\0{after}{GET}"),
            );
        }
        // Of these the library makes an error by itself.
        for (before, after) in [
            ("2", "ab\r\n0\r\n\r\n"),
            ("2;a", "b\r\nab\r\n0\r\n\r\n"),
            ("2\r\nab\r\n0", "\r\n"),
            ("2\r\nab\r\n", "0\r\n\r\n"),
        ] {
            let bytes = format!("{CHUNKED}{before}\n{after}GET / HTTP/1.1\n\n");
            check(&bytes, &bytes);
        }
        let zeros = "0".repeat(LINE_BYTES_MAX);
        check(&format!("{CHUNKED}{zeros}5\r\n"), &format!("{CHUNKED}{zeros}5\r\0"));
    }

    #[test]
    fn nothing_hides_behind_a_body() {
        for first in [
            "POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\nab",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2;x\r\nab\r\n000\r\nx: y\r\n\r\n",
        ] {
            unread(first, "GET / HTTP/1.1\n\n", Unread::BareLineFeed);
        }
    }
}
