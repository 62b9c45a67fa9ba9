//! HPACK (RFC 7541): what a compressed header block says, field by field, and the plain way to write one.
//!
//! The HTTP library decodes too, but tells nobody what it found, and takes one field that is none for the end of the whole
//! connection. Here a block is read before the library gets it, so that what is malformed costs its own stream only.

use std::collections::VecDeque;
use std::sync::LazyLock;

/// The dynamic table's size (RFC 9113, 6.5.2): we never say another.
const TABLE_BYTES_MAX: usize = 4096;

/// What an entry costs beside its text (RFC 7541, 4.1).
const ENTRY_BYTES: usize = 32;

/// Where the dynamic table begins.
const STATIC_ENTRIES: usize = 61;

/// A block that cannot be decompressed: what follows on the connection cannot be read either (RFC 9113, 4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Corrupt;

/// One peer's side of the compression, over a whole connection.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    /// The newest first.
    entries: VecDeque<Entry>,
    size: usize,
    /// What the peer has made of the table's size, if anything.
    max: Option<usize>,
}

#[derive(Debug, Clone)]
struct Entry {
    name: Vec<u8>,
    value: Vec<u8>,
}

/// A field as it stands in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Field<'f> {
    pub(crate) name: &'f [u8],
    pub(crate) value: &'f [u8],
    pub(crate) form: Form,
}

/// How much of a field stands in the static table, so that it need not be written out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Name and value.
    Whole(usize),
    /// The name, or nothing.
    Literal {
        named: Option<usize>,
        /// Never to be put into any table (RFC 7541, 7.1.3).
        secret: bool,
    },
}

/// What is left of a block.
struct Rest<'b>(&'b [u8]);

// === impl Decoder ===

impl Decoder {
    /// Reads a whole block. A field that is malformed is one here: what it means is for the caller to say.
    ///
    /// # Errors
    /// [`Corrupt`]; the table is of no use any more.
    pub(crate) fn read(&mut self, block: &[u8], mut each: impl FnMut(Field<'_>)) -> Result<(), Corrupt> {
        let mut rest = Rest(block);
        let (mut name, mut value) = (Vec::new(), Vec::new());
        let mut begun = false;
        while let Some(&first) = rest.0.first() {
            match first {
                0x80.. => {
                    let index = rest.number(7)?;
                    let (name, value) = self.entry(index)?;
                    let form = if index <= STATIC_ENTRIES {
                        Form::Whole(index)
                    } else {
                        Form::Literal {
                            named: None,
                            secret: false,
                        }
                    };
                    each(Field { name, value, form });
                }
                0x20..0x40 => {
                    let max = rest.number(5)?;
                    if max > TABLE_BYTES_MAX || begun {
                        return Err(Corrupt);
                    }
                    self.max = Some(max);
                    self.evict(max);
                    continue;
                }
                _ => {
                    let index = rest.number(if first >= 0x40 { 6 } else { 4 })?;
                    name.clear();
                    match index {
                        0 => rest.text(&mut name)?,
                        index => name.extend_from_slice(self.entry(index)?.0),
                    }
                    value.clear();
                    rest.text(&mut value)?;
                    each(Field {
                        name: &name,
                        value: &value,
                        form: Form::Literal {
                            named: (1..=STATIC_ENTRIES).contains(&index).then_some(index),
                            secret: (0x10..0x20).contains(&first),
                        },
                    });
                    if first >= 0x40 {
                        self.insert(&name, &value);
                    }
                }
            }
            begun = true;
        }
        Ok(())
    }

    fn entry(&self, index: usize) -> Result<(&[u8], &[u8]), Corrupt> {
        let place = index.checked_sub(1).ok_or(Corrupt)?;
        match STATIC.get(place) {
            Some((name, value)) => Ok((name.as_bytes(), value.as_bytes())),
            None => {
                let entry = self.entries.get(place - STATIC_ENTRIES).ok_or(Corrupt)?;
                Ok((&entry.name, &entry.value))
            }
        }
    }

    fn insert(&mut self, name: &[u8], value: &[u8]) {
        let max = self.max.unwrap_or(TABLE_BYTES_MAX);
        let size = name.len() + value.len() + ENTRY_BYTES;
        self.evict(max.saturating_sub(size));
        // One that is larger than the table only empties it (RFC 7541, 4.4).
        if size <= max {
            self.size += size;
            self.entries.push_front(Entry {
                name: name.to_owned(),
                value: value.to_owned(),
            });
        }
    }

    fn evict(&mut self, max: usize) {
        while self.size > max
            && let Some(oldest) = self.entries.pop_back()
        {
            self.size -= oldest.name.len() + oldest.value.len() + ENTRY_BYTES;
        }
    }
}

// === impl Field ===

impl Field<'_> {
    /// As RFC 9113 counts it (6.5.2).
    pub(crate) fn size(&self) -> usize {
        self.name.len() + self.value.len() + ENTRY_BYTES
    }

    /// Writes it so that no table is needed to read it but the static one.
    pub(crate) fn write(&self, block: &mut Vec<u8>) {
        match self.form {
            Form::Whole(index) => put_number(block, 0x80, 7, index),
            Form::Literal { named, secret } => {
                put_number(block, if secret { 0x10 } else { 0 }, 4, named.unwrap_or(0));
                if named.is_none() {
                    put_text(block, self.name);
                }
                put_text(block, self.value);
            }
        }
    }
}

/// Writes a field of our own.
pub(crate) fn put_field(block: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    let form = Form::Literal {
        named: None,
        secret: false,
    };
    Field { name, value, form }.write(block);
}

fn put_text(block: &mut Vec<u8>, text: &[u8]) {
    put_number(block, 0, 7, text.len());
    block.extend_from_slice(text);
}

/// RFC 7541, 5.1.
fn put_number(block: &mut Vec<u8>, high: u8, bits: u8, number: usize) {
    let most = (1 << bits) - 1;
    if number < most {
        block.push(high | low_byte(number));
        return;
    }
    block.push(high | low_byte(most));
    let mut left = number - most;
    while left >= 0x80 {
        block.push(low_byte(left & 0x7f) | 0x80);
        left >>= 7;
    }
    block.push(low_byte(left));
}

fn low_byte(number: usize) -> u8 {
    let [.., low] = number.to_be_bytes();
    low
}

// === impl Rest ===

impl Rest<'_> {
    fn byte(&mut self) -> Result<u8, Corrupt> {
        let (first, rest) = self.0.split_first().ok_or(Corrupt)?;
        self.0 = rest;
        Ok(*first)
    }

    /// RFC 7541, 5.1, in so many bits of its first byte. No number that means something is longer than four bytes.
    fn number(&mut self, bits: u8) -> Result<usize, Corrupt> {
        let most = (1_usize << bits) - 1;
        let mut number = usize::from(self.byte()?) & most;
        if number < most {
            return Ok(number);
        }
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            number += usize::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(Corrupt)
    }

    /// RFC 7541, 5.2.
    fn text(&mut self, into: &mut Vec<u8>) -> Result<(), Corrupt> {
        let huffman = *self.0.first().ok_or(Corrupt)? >= 0x80;
        let length = self.number(7)?;
        let (text, rest) = self.0.split_at_checked(length).ok_or(Corrupt)?;
        self.0 = rest;
        if huffman {
            return CODE.read(text, into);
        }
        into.extend_from_slice(text);
        Ok(())
    }
}

/// The Huffman code, ready to be read. It is canonical: among codes of one length, the next symbol has the next code, so
/// the lengths say it all.
struct Code {
    /// By the next eight bits: the symbol, and its length; 0 for those that are longer.
    short: [(u8, u8); 256],
    long: Vec<Length>,
}

/// The codes of one length.
struct Length {
    bits: u8,
    first: u32,
    symbols: &'static [u16],
}

static CODE: LazyLock<Code> = LazyLock::new(Code::new);

// === impl Code ===

impl Code {
    fn new() -> Self {
        let (mut short, mut long) = ([(0, 0); 256], Vec::new());
        let (mut next, mut before) = (0_u32, 0_u8);
        for (bits, symbols) in HUFFMAN {
            next <<= bits - before;
            before = bits;
            let first = next;
            for &symbol in symbols {
                if let (Some(spare), Ok(symbol)) = (8_u8.checked_sub(bits), u8::try_from(symbol)) {
                    let places = (next << spare) as usize..((next + 1) << spare) as usize;
                    short.get_mut(places).unwrap_or_default().fill((symbol, bits));
                }
                next += 1;
            }
            if bits > 8 {
                long.push(Length { bits, first, symbols });
            }
        }
        Self { short, long }
    }

    fn read(&self, text: &[u8], into: &mut Vec<u8>) -> Result<(), Corrupt> {
        let mut bytes = text.iter();
        // The last bits of it are those that are still to be read.
        let (mut bits, mut count) = (0_u64, 0_u8);
        loop {
            while count <= 56
                && let Some(byte) = bytes.next()
            {
                bits = bits << 8 | u64::from(*byte);
                count += 8;
            }
            // What is left over is the beginning of the end's code, which is ones only (RFC 7541, 5.2).
            if count < 8 && bits & ((1 << count) - 1) == (1 << count) - 1 {
                return Ok(());
            }
            let (symbol, length) = self.symbol(bits, count).ok_or(Corrupt)?;
            if length > count {
                return Err(Corrupt);
            }
            count -= length;
            into.push(symbol);
        }
    }

    /// The symbol at the beginning of so many bits. The end's own code is none: it must not be sent.
    fn symbol(&self, bits: u64, count: u8) -> Option<(u8, u8)> {
        // The next 32 bits, filled up with zeros.
        let next = u32::try_from((bits << (64 - count)) >> 32).ok()?;
        if let (symbol, length @ 1..) = *self.short.get((next >> 24) as usize)? {
            return Some((symbol, length));
        }
        self.long.iter().find_map(|length| {
            let place = (next >> (32 - length.bits)).checked_sub(length.first)?;
            let symbol = length.symbols.get(place as usize)?;
            Some((u8::try_from(*symbol).ok()?, length.bits))
        })
    }
}

/// RFC 7541, B, by length; 256 is the end.
#[rustfmt::skip]
const HUFFMAN: [(u8, &[u16]); 21] = [
    (5, &[48, 49, 50, 97, 99, 101, 105, 111, 115, 116]),
    (6, &[32, 37, 45, 46, 47, 51, 52, 53, 54, 55, 56, 57, 61, 65, 95, 98, 100, 102, 103, 104, 108, 109, 110, 112, 114, 117]),
    (7, &[58, 66, 67, 68, 69, 70, 71, 72, 73, 74, 75, 76, 77, 78, 79, 80, 81, 82, 83, 84, 85, 86, 87, 89, 106, 107, 113, 118, 119, 120, 121, 122]),
    (8, &[38, 42, 44, 59, 88, 90]),
    (10, &[33, 34, 40, 41, 63]),
    (11, &[39, 43, 124]),
    (12, &[35, 62]),
    (13, &[0, 36, 64, 91, 93, 126]),
    (14, &[94, 125]),
    (15, &[60, 96, 123]),
    (19, &[92, 195, 208]),
    (20, &[128, 130, 131, 162, 184, 194, 224, 226]),
    (21, &[153, 161, 167, 172, 176, 177, 179, 209, 216, 217, 227, 229, 230]),
    (22, &[129, 132, 133, 134, 136, 146, 154, 156, 160, 163, 164, 169, 170, 173, 178, 181, 185, 186, 187, 189, 190, 196, 198, 228, 232, 233]),
    (23, &[1, 135, 137, 138, 139, 140, 141, 143, 147, 149, 150, 151, 152, 155, 157, 158, 165, 166, 168, 174, 175, 180, 182, 183, 188, 191, 197, 231, 239]),
    (24, &[9, 142, 144, 145, 148, 159, 171, 206, 215, 225, 236, 237]),
    (25, &[199, 207, 234, 235]),
    (26, &[192, 193, 200, 201, 202, 205, 210, 213, 218, 219, 238, 240, 242, 243, 255]),
    (27, &[203, 204, 211, 212, 214, 221, 222, 223, 241, 244, 245, 246, 247, 248, 250, 251, 252, 253, 254]),
    (28, &[2, 3, 4, 5, 6, 7, 8, 11, 12, 14, 15, 16, 17, 18, 19, 20, 21, 23, 24, 25, 26, 27, 28, 29, 30, 31, 127, 220, 249]),
    (30, &[10, 13, 22, 256]),
];

/// RFC 7541, A.
#[rustfmt::skip]
const STATIC: [(&str, &str); STATIC_ENTRIES] = [
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"), (":path", "/index.html"),
    (":scheme", "http"), (":scheme", "https"), (":status", "200"), (":status", "204"), (":status", "206"),
    (":status", "304"), (":status", "400"), (":status", "404"), (":status", "500"), ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"), ("accept-language", ""), ("accept-ranges", ""), ("accept", ""),
    ("access-control-allow-origin", ""), ("age", ""), ("allow", ""), ("authorization", ""), ("cache-control", ""),
    ("content-disposition", ""), ("content-encoding", ""), ("content-language", ""), ("content-length", ""),
    ("content-location", ""), ("content-range", ""), ("content-type", ""), ("cookie", ""), ("date", ""), ("etag", ""),
    ("expect", ""), ("expires", ""), ("from", ""), ("host", ""), ("if-match", ""), ("if-modified-since", ""),
    ("if-none-match", ""), ("if-range", ""), ("if-unmodified-since", ""), ("last-modified", ""), ("link", ""),
    ("location", ""), ("max-forwards", ""), ("proxy-authenticate", ""), ("proxy-authorization", ""), ("range", ""),
    ("referer", ""), ("refresh", ""), ("retry-after", ""), ("server", ""), ("set-cookie", ""),
    ("strict-transport-security", ""), ("transfer-encoding", ""), ("user-agent", ""), ("vary", ""), ("via", ""),
    ("www-authenticate", ""),
];

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER_PERMISSIVE;
    use proptest::prelude::*;

    use super::*;

    fn read(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<(String, String)>, Corrupt> {
        let mut fields = Vec::new();
        decoder.read(block, |field| {
            let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
            fields.push((text(field.name), text(field.value)));
        })?;
        Ok(fields)
    }

    fn hex(digits: &str) -> Vec<u8> {
        HEXLOWER_PERMISSIVE.decode(digits.replace(' ', "").as_bytes()).unwrap()
    }

    /// The RFC's own three requests on one connection, plain and in Huffman's code.
    #[test]
    fn rfc7541_c_3_and_c_4_its_own_examples() {
        let plain = [
            "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "8286 84be 5808 6e6f 2d63 6163 6865",
            "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
        ];
        let huffman = [
            "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
            "8286 84be 5886 a8eb 1064 9cbf",
            "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
        ];
        for blocks in [plain, huffman] {
            let mut decoder = Decoder::default();
            let said = blocks.map(|block| read(&mut decoder, &hex(block)).unwrap());
            let line = |fields: &[(String, String)]| {
                let fields: Vec<_> = fields.iter().map(|(name, value)| format!("{name} {value}")).collect();
                fields.join(", ")
            };
            assert_eq!(
                line(&said[0]),
                ":method GET, :scheme http, :path /, :authority www.example.com"
            );
            assert_eq!(
                line(&said[1]),
                ":method GET, :scheme http, :path /, :authority www.example.com, cache-control no-cache"
            );
            assert_eq!(
                line(&said[2]),
                ":method GET, :scheme https, :path /index.html, :authority www.example.com, custom-key custom-value"
            );
            assert_eq!(decoder.size, 164);
        }
    }

    #[test]
    fn rfc7541_what_cannot_be_decompressed_is_corrupt() {
        for (clause, block) in [
            ("6.1: index 0", "80"),
            ("2.3.3: past both tables", "be"),
            ("5.1: a number without end", "ffffffffffff"),
            ("5.2: a string that is not there", "0005 61"),
            ("5.2: a value that is not there", "0001 61"),
            ("5.2: padding of eight bits", "0001 6182 1fff"),
            ("5.2: padding with zeros", "0001 6181 18"),
            ("5.2: the end's code", "0001 6184 ffff ffff"),
            ("6.3: a table larger than ours", "3fe2 1f"),
            ("4.2: a size behind a field", "8220"),
        ] {
            assert_eq!(read(&mut Decoder::default(), &hex(block)), Err(Corrupt), "{clause}");
        }
        assert_eq!(read(&mut Decoder::default(), &[]), Ok(Vec::new()));
    }

    #[test]
    fn rfc7541_4_4_the_table_is_bounded() {
        let mut decoder = Decoder::default();
        for number in 0..10_000_u32 {
            let mut block = vec![0x40];
            put_text(&mut block, format!("x-{number}").as_bytes());
            put_text(&mut block, &[b'v'; 100]);
            read(&mut decoder, &block).unwrap();
            assert!(decoder.size <= TABLE_BYTES_MAX);
        }
        assert!(decoder.entries.len() > 20);
        let mut block = vec![0x40];
        put_text(&mut block, b"x");
        put_text(&mut block, &[b'v'; TABLE_BYTES_MAX]);
        assert_eq!(read(&mut decoder, &block).unwrap().len(), 1);
        assert_eq!((decoder.size, decoder.entries.len()), (0, 0));
        read(&mut decoder, &[0x20, 0x40, 1, b'a', 0]).unwrap();
        assert_eq!(
            (decoder.size, decoder.entries.len()),
            (0, 0),
            "of a table of size 0 nothing is kept"
        );
    }

    proptest! {
        #[test]
        fn what_is_written_reads_the_same(fields: Vec<(Vec<u8>, Vec<u8>)>) {
            let mut block = Vec::new();
            for (name, value) in &fields {
                put_field(&mut block, name, value);
            }
            let (mut read, mut again) = (Vec::new(), Vec::new());
            let mut decoder = Decoder::default();
            decoder.read(&block, |field| {
                field.write(&mut again);
                read.push((field.name.to_owned(), field.value.to_owned()));
            }).unwrap();
            prop_assert_eq!(read, fields);
            prop_assert_eq!(again, block);
        }

        #[test]
        fn any_bytes_end(blocks: Vec<Vec<u8>>) {
            let mut decoder = Decoder::default();
            for block in blocks {
                let _ = decoder.read(&block, |_| {});
                prop_assert!(decoder.size <= TABLE_BYTES_MAX);
            }
        }
    }
}
