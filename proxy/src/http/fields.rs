//! The header blocks of a peer's HTTP/2: judged field by field, and written anew for the library, which learns of a
//! malformed one in a way that costs its stream only (RFC 9113, 8.1.1).

use http::Method;

use crate::http::hpack::{Corrupt, Decoder, Field, Form, put_field};
use crate::http::unread::Unread;

/// Which block of a stream it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Block {
    /// A request's head.
    Head,
    /// What a request ends with.
    Trailers,
    /// A response's head or trailers: which of them, the library knows.
    Answer,
}

/// A `:method` twice, `GET`: by RFC 9113 (8.3) malformed, and the library resets the stream with PROTOCOL_ERROR.
const MALFORMED: [u8; 2] = [0x82, 0x82];

/// What is found wrong with a block.
struct Judge {
    block: Block,
    malformed: bool,
    unread: Option<Unread>,
    bytes: usize,
}

/// Reads a block, and gives what the library is to read in its place: the same fields without any table's help, or one
/// that is malformed by a fault which the library takes for the stream's. Larger ones than `bytes_max` are not given to it.
///
/// # Errors
/// [`Corrupt`], which no stream can survive.
pub(crate) fn rewrite(decoder: &mut Decoder, block: &[u8], kind: Block, bytes_max: usize) -> Result<Vec<u8>, Corrupt> {
    let mut judge = Judge {
        block: kind,
        malformed: false,
        unread: None,
        bytes: 0,
    };
    let mut anew = Vec::with_capacity(block.len() * 2);
    decoder.read(block, |field| {
        judge.see(&field);
        // The rest of what is too large is read for the table's sake.
        if judge.bytes < bytes_max && !Unread::is_field(field.name) {
            field.write(&mut anew);
        }
    })?;
    if judge.bytes >= bytes_max && kind != Block::Head {
        judge.malformed = true;
    }
    if judge.malformed {
        return Ok(MALFORMED.to_vec());
    }
    if judge.bytes >= bytes_max {
        judge.unread = Some(Unread::HeadTooLarge);
        anew.clear();
        // `GET https:///` to nobody.
        anew.extend([0x82, 0x87, 0x84]);
        put_field(&mut anew, b":authority", b"unread");
    }
    if let Some(unread) = judge.unread {
        let (name, value) = unread.field();
        put_field(&mut anew, name, value);
    }
    Ok(anew)
}

// === impl Judge ===

impl Judge {
    fn see(&mut self, field: &Field<'_>) {
        self.bytes = self.bytes.saturating_add(field.size());
        let good = match field.name.strip_prefix(b":") {
            Some(pseudo) => self.is_pseudo(pseudo, field.value),
            // The static table's are.
            None => {
                let named = !matches!(field.form, Form::Literal { named: None, .. });
                // What a service says is not held against it by the letter: nobody decides on it.
                let spaced = self.block != Block::Answer && is_spaced(field.value);
                (named || is_name(field.name)) && is_value(field.value) && !spaced
            }
        };
        self.malformed |= !good;
        if self.block == Block::Head && Unread::is_field(field.name) {
            self.unread = Some(Unread::Forged);
        }
    }

    /// RFC 9113, 8.3: which there are, and none in trailers. That none is missing, twice or late, the library sees.
    fn is_pseudo(&mut self, name: &[u8], value: &[u8]) -> bool {
        match (self.block, name) {
            (Block::Head, b"method") => Method::from_bytes(value).is_ok(),
            (Block::Head, b"path") => {
                // As in HTTP/1.1 it is answered, with what is wrong: only people write it.
                if value.contains(&b'#') {
                    self.unread = Some(Unread::Fragment);
                }
                std::str::from_utf8(value).is_ok()
            }
            (Block::Head, b"scheme" | b"authority") => std::str::from_utf8(value).is_ok(),
            (Block::Answer, b"status") => {
                matches!(value, [b'1'..=b'9', b, c] if b.is_ascii_digit() && c.is_ascii_digit())
            }
            _ => false,
        }
    }
}

/// RFC 9113, 8.2.1: a token in lower case.
fn is_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(b))
}

/// RFC 9113, 8.2.1: no NUL, line feed or carriage return; RFC 9110, 5.5: no other control character but the tab.
fn is_value(value: &[u8]) -> bool {
    let control = |b: &u8| (*b < b' ' && *b != b'\t') || *b == 0x7f;
    !value.iter().any(control)
}

/// RFC 9113, 8.2.1: a space at either end.
fn is_spaced(value: &[u8]) -> bool {
    let space = |b: Option<&u8>| matches!(b, Some(b' ' | b'\t'));
    space(value.first()) || space(value.last())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 64 << 10;

    fn block(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
        let mut block = Vec::new();
        for (name, value) in fields {
            put_field(&mut block, name, value);
        }
        block
    }

    fn with<'f>(fields: &[(&'f [u8], &'f [u8])]) -> Vec<u8> {
        let mut all: Vec<(&[u8], &[u8])> = vec![
            (b":method", b"GET"),
            (b":scheme", b"https"),
            (b":path", b"/"),
            (b":authority", b"a"),
        ];
        all.extend(fields);
        block(&all)
    }

    #[track_caller]
    fn check(kind: Block, sent: &[u8], expected: &[u8]) {
        let anew = rewrite(&mut Decoder::default(), sent, kind, MAX).unwrap();
        assert_eq!(
            anew.escape_ascii().to_string(),
            expected.escape_ascii().to_string(),
            "{kind:?} {}",
            sent.escape_ascii()
        );
    }

    #[test]
    fn rfc9113_8_2_what_is_well_formed_passes() {
        for fields in [
            &[][..],
            &[(b"x" as &[u8], b"" as &[u8]), (b"x-a_b.c", b"a b\tc\xff")],
            &[(b"te", b"trailers")],
            &[(b"connection", b"close")], // the library's to refuse
        ] {
            check(Block::Head, &with(fields), &with(fields));
        }
        let trailers = block(&[(b"grpc-status", b"0")]);
        check(Block::Trailers, &trailers, &trailers);
        let answer = block(&[(b":status", b"200"), (b"x", b"y ")]);
        check(Block::Answer, &answer, &answer);
    }

    #[test]
    fn rfc9113_8_2_1_fields_that_are_none_are_malformed() {
        for (name, value) in [
            (b"X" as &[u8], b"a" as &[u8]),
            (b"", b"a"),
            (b"a b", b"a"),
            (b"a:", b"a"),
            (b"\x80", b"a"),
            (b"x", b"a\r\nb"),
            (b"x", b"a\0"),
            (b"x", b"\x7f"),
            (b"x", b" a"),
            (b"x", b"a\t"),
            (b":status", b"200"),
            (b":protocol", b"websocket"),
            (b":other", b"a"),
            (b":", b""),
            (b":method", b"G T"),
            (b":path", b"/\xff"),
        ] {
            check(Block::Head, &with(&[(name, value)]), &MALFORMED);
        }
        for name in [b":path" as &[u8], b":status", b":other", b"X"] {
            check(Block::Trailers, &block(&[(b"a", b"b"), (name, b"1")]), &MALFORMED);
        }
        for (name, value) in [(b":status" as &[u8], b"20x" as &[u8]), (b":path", b"/"), (b"X", b"")] {
            check(Block::Answer, &block(&[(name, value)]), &MALFORMED);
        }
    }

    #[test]
    fn what_is_to_be_answered_says_why() {
        let says = |sent: &[u8], unread: Unread| {
            let anew = rewrite(&mut Decoder::default(), sent, Block::Head, MAX).unwrap();
            let (name, value) = unread.field();
            assert!(anew.ends_with(&block(&[(name, value)])), "{}", anew.escape_ascii());
            anew
        };
        let fragment = block(&[(b":method", b"GET"), (b":path", b"/a#b")]);
        assert!(says(&fragment, Unread::Fragment).starts_with(&fragment));
        let long = [b'a'; 1 << 10];
        let large = vec![(b"x" as &[u8], &long[..]); 64];
        assert!(says(&with(&large), Unread::HeadTooLarge).len() < 100);
        let anew = says(&with(&[(b"x_hoplite-unread", b"fragment")]), Unread::Forged);
        assert!(anew.starts_with(&with(&[])));
        check(Block::Trailers, &block(&large), &MALFORMED);
    }

    /// A malformed field in the table is malformed for whoever names it, and what follows reads as it was meant.
    #[test]
    fn rfc7541_2_3_the_table_lives_on_behind_a_malformed_block() {
        let mut decoder = Decoder::default();
        let mut first = with(&[]);
        first.extend(*b"\x40\x01X\x01a\x40\x01y\x01b");
        assert_eq!(rewrite(&mut decoder, &first, Block::Head, MAX), Ok(MALFORMED.to_vec()));
        let mut second = with(&[]);
        second.push(0x80 | 62);
        assert_eq!(
            rewrite(&mut decoder, &second, Block::Head, MAX),
            Ok(with(&[(b"y", b"b")]))
        );
        let mut third = with(&[]);
        third.push(0x80 | 63);
        assert_eq!(rewrite(&mut decoder, &third, Block::Head, MAX), Ok(MALFORMED.to_vec()));
        third.push(0x80 | 64);
        assert_eq!(rewrite(&mut decoder, &third, Block::Head, MAX), Err(Corrupt));
    }
}
