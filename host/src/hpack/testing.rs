//! A client's side of HPACK: writes fields in every form there is, and keeps its dynamic table as the standard says.

use super::huffman::tests::encode as huffman;
use super::*;

/// How one field is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Form {
    pub(crate) indexing: Indexing,
    /// By the index of a name or of a whole field, where there is one.
    pub(crate) by_index: bool,
    pub(crate) huffman: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Indexing {
    Incremental,
    Without,
    Never,
}

/// Knows what the other side's table holds. It is written apart from [`Decoder`], so that they can disagree.
#[derive(Debug)]
pub(crate) struct Encoder {
    table: Vec<(Vec<u8>, Vec<u8>)>,
    size: usize,
}

impl Encoder {
    pub(crate) fn new() -> Self {
        Self {
            table: Vec::new(),
            size: TABLE_BYTES_MAX,
        }
    }

    /// A change of the table's size, for the beginning of a block.
    pub(crate) fn resize(&mut self, size: usize) -> Vec<u8> {
        self.size = size;
        self.shrink();
        integer(0x20, 5, size)
    }

    pub(crate) fn write(&mut self, name: &[u8], value: &[u8], form: Form) -> Vec<u8> {
        let position = |matches: &dyn Fn(&[u8], &[u8]) -> bool| {
            let fixed = STATIC_TABLE
                .iter()
                .map(|(name, value)| (name.as_bytes(), value.as_bytes()));
            let own = self.table.iter().map(|(name, value)| (&name[..], &value[..]));
            // The last one, so that the dynamic table is used where it can be.
            let all: Vec<_> = fixed.chain(own).collect();
            all.iter().rposition(|(n, v)| matches(n, v)).map(|at| at + 1)
        };
        let whole = position(&|n, v| n == name && v == value).filter(|_| form.by_index);
        let named = position(&|n, _| n == name).filter(|_| form.by_index);
        if let Some(index) = whole
            && form.indexing != Indexing::Never
        {
            return integer(0x80, 7, index);
        }
        let (first, prefix) = match form.indexing {
            Indexing::Incremental => (0x40, 6),
            Indexing::Without => (0, 4),
            Indexing::Never => (0x10, 4),
        };
        let mut written = integer(first, prefix, named.unwrap_or(0));
        if named.is_none() {
            written.extend(string(name, form.huffman));
        }
        written.extend(string(value, form.huffman));
        if form.indexing == Indexing::Incremental {
            self.table.insert(0, (name.to_vec(), value.to_vec()));
            self.shrink();
        }
        written
    }

    fn shrink(&mut self) {
        let size = |table: &[(Vec<u8>, Vec<u8>)]| table.iter().map(|(n, v)| n.len() + v.len() + 32).sum::<usize>();
        while size(&self.table) > self.size {
            self.table.pop();
        }
    }
}

fn integer(first: u8, prefix: u32, value: usize) -> Vec<u8> {
    let most = 2_usize.pow(prefix) - 1;
    if value < most {
        return vec![first | value as u8];
    }
    let (mut bytes, mut rest) = (vec![first | most as u8], value - most);
    while rest >= 128 {
        bytes.push((rest % 128) as u8 | 0x80);
        rest /= 128;
    }
    bytes.push(rest as u8);
    bytes
}

fn string(text: &[u8], coded: bool) -> Vec<u8> {
    if coded {
        let text = huffman(text);
        return [integer(0x80, 7, text.len()), text].concat();
    }
    [integer(0, 7, text.len()), text.to_vec()].concat()
}

fn field(name: &str, value: &str) -> Field {
    Field {
        name: name.as_bytes().into(),
        value: value.as_bytes().into(),
        never_indexed: false,
    }
}

/// RFC 7541, C.4: three requests of one connection, in Huffman's code.
#[test]
fn rfc_7541_c_4() {
    let mut decoder = Decoder::new();
    let request = |path: &str, scheme: &str| {
        vec![
            field(":method", "GET"),
            field(":scheme", scheme),
            field(":path", path),
            field(":authority", "www.example.com"),
        ]
    };
    let mut check = |block: &[u8], expected: Vec<Field>, table: usize| {
        assert_eq!(decoder.decode(block, 1 << 16), Ok(expected));
        assert_eq!(decoder.bytes, table);
    };
    let first = b"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff";
    check(first, request("/", "http"), 57);
    let second = b"\x82\x86\x84\xbe\x58\x86\xa8\xeb\x10\x64\x9c\xbf";
    let mut expected = request("/", "http");
    expected.push(field("cache-control", "no-cache"));
    check(second, expected, 110);
    let third = b"\x82\x87\x85\xbf\x40\x88\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f\x89\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf";
    let mut expected = request("/index.html", "https");
    expected.push(field("custom-key", "custom-value"));
    check(third, expected, 164);
}

#[test]
fn what_is_no_block_is_refused() {
    for (block, fault) in [
        (&[0x80][..], BlockFault::Index),
        (&[0xbe], BlockFault::Index),
        (&[0x40, 0x01], BlockFault::Truncated),
        (&[0x41], BlockFault::Truncated),
        (&[0x82, 0x20], BlockFault::TableSize),
        (&[0x3f, 0xe2, 0x1f], BlockFault::TableSize), // 4097
        (&[0xff, 0xff, 0xff, 0xff, 0xff, 0x7f], BlockFault::Integer),
        (&[0x41, 0x81, 0x00], BlockFault::Huffman),
    ] {
        assert_eq!(Decoder::new().decode(block, 1 << 16), Err(fault), "{block:x?}");
    }
    assert_eq!(
        Decoder::new()
            .decode(&[0x3f, 0xe1, 0x1f, 0x82], 1 << 16)
            .map(|f| f.len()),
        Ok(1),
        "4096"
    );
}

/// One byte that stands for four kilobytes, many times.
#[test]
fn a_block_that_unfolds_is_refused() {
    let mut encoder = Encoder::new();
    let form = Form {
        indexing: Indexing::Incremental,
        by_index: true,
        huffman: false,
    };
    let mut block = encoder.write(b"x", &[b'v'; 4000], form);
    block.extend([0xbe; 1000]);
    assert_eq!(Decoder::new().decode(&block, 1 << 16), Err(BlockFault::TooLarge));
}
