//! Header blocks of HTTP/2 (HPACK, RFC 7541): decoded with what earlier blocks of the connection said, and written anew
//! so that nothing has to be remembered.
//!
//! What is written uses literals that are not indexed, and no Huffman code: whoever reads it has a dynamic table that
//! stays empty. So no two tables have to agree but those of the client and the [`Decoder`].

mod huffman;
#[cfg(test)]
pub(crate) mod testing;

use std::collections::VecDeque;
use std::sync::Arc;

/// The dynamic table that a client may use as long as nothing else was agreed (RFC 9113, 6.5.2). Our servers agree on
/// nothing else.
const TABLE_BYTES_MAX: usize = 4096;

/// What an entry of the table costs besides its name and value (RFC 7541, 4.1).
const ENTRY_BYTES: usize = 32;

/// Bytes of one integer, the first among them. That is enough for 2²⁸.
const INTEGER_BYTES_MAX: u32 = 5;

const fn low_bits(prefix: u8) -> u8 {
    (1 << prefix) - 1
}

/// One header field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) name: Arc<[u8]>,
    pub(crate) value: Arc<[u8]>,
    /// Whether nobody on the way may index it (RFC 7541, 7.1.3).
    pub(crate) never_indexed: bool,
}

/// Reads the header blocks of one connection, in their order.
#[derive(Debug)]
pub(crate) struct Decoder {
    /// The youngest first.
    entries: VecDeque<Field>,
    /// Of all entries together.
    bytes: usize,
    bytes_max: usize,
}

/// Why a header block cannot be decoded. The connection cannot go on then: the tables would differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BlockFault {
    #[error("it ends within a field")]
    Truncated,
    #[error("an integer is too large")]
    Integer,
    #[error("an index is that of no entry")]
    Index,
    #[error("a string is no Huffman code")]
    Huffman,
    #[error("a change of the table's size is too large, or in the wrong place")]
    TableSize,
    #[error("its fields are too large")]
    TooLarge,
}

// === impl Field ===

impl Field {
    /// As the dynamic table counts it, and as the bound on a list of fields does.
    pub(crate) fn bytes(&self) -> usize {
        self.name.len() + self.value.len() + ENTRY_BYTES
    }

    /// Appends it, as a literal that is not indexed.
    pub(crate) fn write(&self, block: &mut Vec<u8>) {
        block.push(if self.never_indexed { 0x10 } else { 0 });
        for text in [&self.name, &self.value] {
            write_length(text.len(), block);
            block.extend_from_slice(text);
        }
    }
}

/// With a prefix of 7 bits; the eighth says that the string is in no code.
fn write_length(length: usize, block: &mut Vec<u8>) {
    const PREFIX: usize = 0x7f;
    let Some(mut rest) = length.checked_sub(PREFIX) else {
        return block.push(length as u8);
    };
    block.push(PREFIX as u8);
    while rest > 0x7f {
        block.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    block.push(rest as u8);
}

// === impl Decoder ===

impl Decoder {
    pub(crate) fn new() -> Self {
        Self {
            entries: VecDeque::new(),
            bytes: 0,
            bytes_max: TABLE_BYTES_MAX,
        }
    }

    /// The fields of a whole block, if they are not larger than `bytes_max`.
    pub(crate) fn decode(&mut self, block: &[u8], bytes_max: usize) -> Result<Vec<Field>, BlockFault> {
        let mut rest = Rest(block);
        let (mut fields, mut bytes) = (Vec::new(), 0);
        while let Some(first) = rest.peek() {
            let field = match first {
                0x80.. => self.entry(rest.integer(7)?)?,
                0x40.. => {
                    let field = self.literal(&mut rest, 6, false)?;
                    self.insert(field.clone());
                    field
                }
                0x20.. => {
                    let size = rest.integer(5)?;
                    // Only before the first field (RFC 7541, 4.2).
                    if size > TABLE_BYTES_MAX || !fields.is_empty() {
                        return Err(BlockFault::TableSize);
                    }
                    self.bytes_max = size;
                    self.evict();
                    continue;
                }
                0x10.. => self.literal(&mut rest, 4, true)?,
                _ => self.literal(&mut rest, 4, false)?,
            };
            bytes += field.bytes();
            if bytes > bytes_max {
                return Err(BlockFault::TooLarge);
            }
            fields.push(field);
        }
        Ok(fields)
    }

    fn literal(&self, rest: &mut Rest<'_>, prefix: u8, never_indexed: bool) -> Result<Field, BlockFault> {
        let name = match rest.integer(prefix)? {
            0 => rest.string()?,
            index => self.entry(index)?.name,
        };
        Ok(Field {
            name,
            value: rest.string()?,
            never_indexed,
        })
    }

    /// By the one numbering of both tables, which begins with 1 (RFC 7541, 2.3.3).
    fn entry(&self, index: usize) -> Result<Field, BlockFault> {
        let index = index.checked_sub(1).ok_or(BlockFault::Index)?;
        if let Some((name, value)) = STATIC_TABLE.get(index) {
            return Ok(Field {
                name: name.as_bytes().into(),
                value: value.as_bytes().into(),
                never_indexed: false,
            });
        }
        self.entries
            .get(index - STATIC_TABLE.len())
            .cloned()
            .ok_or(BlockFault::Index)
    }

    fn insert(&mut self, field: Field) {
        self.bytes += field.bytes();
        self.entries.push_front(field);
        self.evict(); // the new one too, if it is larger than the table (RFC 7541, 4.4)
    }

    fn evict(&mut self) {
        while self.bytes > self.bytes_max
            && let Some(oldest) = self.entries.pop_back()
        {
            self.bytes -= oldest.bytes();
        }
    }
}

/// What of a block is still to be read.
struct Rest<'a>(&'a [u8]);

// === impl Rest ===

impl<'a> Rest<'a> {
    fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    fn byte(&mut self) -> Result<u8, BlockFault> {
        let (first, rest) = self.0.split_first().ok_or(BlockFault::Truncated)?;
        self.0 = rest;
        Ok(*first)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], BlockFault> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(BlockFault::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    /// RFC 7541, 5.1.
    fn integer(&mut self, prefix: u8) -> Result<usize, BlockFault> {
        let mut value = usize::from(self.byte()? & low_bits(prefix));
        if value < usize::from(low_bits(prefix)) {
            return Ok(value);
        }
        for nth in 0..INTEGER_BYTES_MAX - 1 {
            let byte = self.byte()?;
            value += usize::from(byte & 0x7f) << (7 * nth);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(BlockFault::Integer)
    }

    /// RFC 7541, 5.2.
    fn string(&mut self) -> Result<Arc<[u8]>, BlockFault> {
        let is_coded = self.peek().is_some_and(|first| first & 0x80 != 0);
        let length = self.integer(7)?;
        let text = self.take(length)?;
        if is_coded {
            return huffman::decode(text).map(Into::into).ok_or(BlockFault::Huffman);
        }
        Ok(text.into())
    }
}

/// RFC 7541, appendix A.
const STATIC_TABLE: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];
