//! The marshalled form of TPM structures: integers with the high byte first, and byte strings with their length before them.

/// Bytes that are not the structure that they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not {0} as TPM 2.0 has it")]
pub struct Malformed(pub &'static str);

/// Reads one structure from its beginning to its end.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    what: &'static str,
}

/// Writes one structure.
#[derive(Default)]
pub(crate) struct Writer(Vec<u8>);

// === impl Reader ===

impl<'a> Reader<'a> {
    /// Reads these bytes, which should be `what`, with its article.
    pub(crate) fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { rest: bytes, what }
    }

    pub(crate) fn malformed(&self) -> Malformed {
        Malformed(self.what)
    }

    pub(crate) fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Malformed(self.what))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let taken = self.take(N)?;
        taken.try_into().map_err(|_| self.malformed())
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(u8::from_be_bytes)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    /// A byte string (`TPM2B`) of at most so many bytes.
    pub(crate) fn sized(&mut self, most: usize) -> Result<&'a [u8], Malformed> {
        let length = usize::from(self.u16()?);
        if length > most {
            return Err(self.malformed());
        }
        self.take(length)
    }

    /// A number of an elliptic curve's field in just `N` bytes: a TPM may leave out leading zeros.
    pub(crate) fn number<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let short = self.sized(N)?;
        let mut whole = [0; N];
        let digits = whole.get_mut(N - short.len()..);
        digits.ok_or(Malformed(self.what))?.copy_from_slice(short);
        Ok(whole)
    }

    /// This very number, or it is something else.
    pub(crate) fn expect_u16(&mut self, expected: u16) -> Result<(), Malformed> {
        (self.u16()? == expected).then_some(()).ok_or(Malformed(self.what))
    }

    /// What is left.
    pub(crate) fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// Nothing is left.
    pub(crate) fn end(self) -> Result<(), Malformed> {
        self.rest.is_empty().then_some(()).ok_or(Malformed(self.what))
    }
}

// === impl Writer ===

impl Writer {
    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn u8(self, number: u8) -> Self {
        self.raw(&[number])
    }

    pub(crate) fn u16(self, number: u16) -> Self {
        self.raw(&number.to_be_bytes())
    }

    pub(crate) fn u32(self, number: u32) -> Self {
        self.raw(&number.to_be_bytes())
    }

    /// A byte string (`TPM2B`). What is longer than 65535 bytes is cut, and no TPM takes it.
    pub(crate) fn sized(self, bytes: &[u8]) -> Self {
        let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
        let bytes = bytes.get(..usize::from(length)).unwrap_or(bytes);
        self.u16(length).raw(bytes)
    }

    pub(crate) fn done(self) -> Vec<u8> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_short_or_long_is_refused() {
        let written = Writer::default().u8(1).u16(0x0203).u32(7).sized(b"abc").done();
        assert_eq!(written, [1, 2, 3, 0, 0, 0, 7, 0, 3, b'a', b'b', b'c']);
        let read = |bytes: &[u8]| -> Result<(), Malformed> {
            let mut reader = Reader::new("thing", bytes);
            reader.u8()?;
            reader.expect_u16(0x0203)?;
            reader.u32()?;
            reader.sized(3)?;
            reader.end()
        };
        assert_eq!(read(&written), Ok(()));
        for length in 0..written.len() {
            assert_eq!(read(&written[..length]), Err(Malformed("thing")), "{length}");
        }
        assert_eq!(read(&[written.as_slice(), &[0]].concat()), Err(Malformed("thing")));
        assert!(Reader::new("thing", &[0, 4, 1, 2, 3, 4]).sized(3).is_err());
        assert_eq!(Reader::new("thing", &[0, 1, 5]).number::<4>(), Ok([0, 0, 0, 5]));
        assert!(Reader::new("thing", &[0, 5, 0, 0, 0, 0, 5]).number::<4>().is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(one in any::<u16>(), two in any::<u32>(), text in prop::collection::vec(any::<u8>(), 0..300)) {
            let written = Writer::default().u16(one).sized(&text).u32(two).done();
            let mut reader = Reader::new("thing", &written);
            prop_assert_eq!((reader.u16(), reader.sized(300), reader.u32()), (Ok(one), Ok(text.as_slice()), Ok(two)));
            prop_assert_eq!(reader.end(), Ok(()));
        }
    }
}
