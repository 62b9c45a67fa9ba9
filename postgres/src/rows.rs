//! What lies in the rows, byte for byte: a value's checksum and what it names, a change, and the digest over all values.

use hoplite_store::{LargeId, Mutation, Revision, Versioned};

/// What is stored of one key, and the checksum over all of it, the key included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) key: Vec<u8>,
    pub(crate) versioned: Versioned,
    pub(crate) sum: u32,
}

/// Tells one set of values from another, whatever the order they came in: a row that was removed or taken back to an older
/// version is noticed although every checksum that is left holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Digest {
    pub(crate) count: u64,
    pub(crate) sum: u64,
}

/// What one write of a change takes beside its key and value, and a change beside its writes.
const OVERHEAD_BYTES: usize = 64;

// === impl Row ===

impl Row {
    pub(crate) fn new(key: Vec<u8>, versioned: Versioned) -> Self {
        let Versioned { value, revision, names } = &versioned;
        let parts: [&[u8]; 4] = [&key, &revision.to_be_bytes(), &encode_names(names), value];
        // Lengths too: a byte that moves from one part to the next is another row.
        let sum = parts.iter().fold(0, |sum, part| {
            let sum = crc32c::crc32c_append(sum, &(part.len() as u64).to_be_bytes());
            crc32c::crc32c_append(sum, part)
        });
        Self { key, versioned, sum }
    }

    /// As it was read, if it is what was written.
    pub(crate) fn read(key: Vec<u8>, value: Vec<u8>, revision: Revision, names: &[u8], sum: i64) -> Option<Self> {
        let names = decode_names(names)?;
        let row = Self::new(key, Versioned { value, revision, names });
        (i64::from(row.sum) == sum).then_some(row)
    }
}

// === impl Digest ===

impl Digest {
    pub(crate) fn add(&mut self, sum: u32) {
        self.count = self.count.wrapping_add(1);
        self.sum = self.sum.wrapping_add(u64::from(sum));
    }

    pub(crate) fn remove(&mut self, sum: u32) {
        self.count = self.count.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(u64::from(sum));
    }
}

// === Encoding: big-endian numbers, lengths before bytes ===

pub(crate) fn encode_names(names: &[LargeId]) -> Vec<u8> {
    names.iter().flat_map(|id| id.0).collect()
}

fn decode_names(bytes: &[u8]) -> Option<Vec<LargeId>> {
    let (ids, rest) = bytes.as_chunks::<32>();
    rest.is_empty().then(|| ids.iter().copied().map(LargeId).collect())
}

/// About what a change takes in memory.
pub(crate) fn change_bytes(mutations: &[Mutation]) -> usize {
    let write = |Mutation { key, value }: &Mutation| OVERHEAD_BYTES + key.len() + value.as_ref().map_or(0, Vec::len);
    OVERHEAD_BYTES + mutations.iter().map(write).sum::<usize>()
}

/// A checksum, and the writes.
pub(crate) fn encode_change(revision: Revision, mutations: &[Mutation]) -> Vec<u8> {
    let mut body = Vec::new();
    let mut put = |bytes: &[u8]| {
        body.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
        body.extend_from_slice(bytes);
    };
    for Mutation { key, value } in mutations {
        put(key);
        // Empty for a delete; a value has one byte before it, so that the empty value differs.
        match value {
            None => put(b""),
            Some(value) => put(&[&[1], value.as_slice()].concat()),
        }
    }
    [&change_sum(revision, &body).to_be_bytes(), body.as_slice()].concat()
}

pub(crate) fn decode_change(revision: Revision, bytes: &[u8]) -> Option<Vec<Mutation>> {
    let (sum, mut body) = bytes.split_first_chunk::<4>()?;
    if *sum != change_sum(revision, body).to_be_bytes() {
        return None;
    }
    let mut mutations = Vec::new();
    while !body.is_empty() {
        let key = taken(&mut body)?;
        let value = taken(&mut body)?.split_first().map(|(_, value)| value.to_vec());
        mutations.push(Mutation { key, value });
    }
    Some(mutations)
}

fn change_sum(revision: Revision, body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&revision.to_be_bytes()), body)
}

fn taken(body: &mut &[u8]) -> Option<Vec<u8>> {
    let (length, rest) = body.split_first_chunk::<8>()?;
    let (bytes, rest) = rest.split_at_checked(usize::try_from(u64::from_be_bytes(*length)).ok()?)?;
    *body = rest;
    Some(bytes.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mutation(key: &[u8], value: Option<&[u8]>) -> Mutation {
        Mutation {
            key: key.into(),
            value: value.map(<[u8]>::to_vec),
        }
    }

    #[test]
    fn a_change_comes_back_or_not_at_all() {
        let mutations = vec![
            mutation(b"", None),
            mutation(b"", Some(b"")),
            mutation(b"k", Some(b"v")),
            mutation(b"k", None),
        ];
        let bytes = encode_change(7, &mutations);
        assert_eq!(decode_change(7, &bytes), Some(mutations));
        assert_eq!(decode_change(8, &bytes), None);
        for at in 0..bytes.len() {
            assert_eq!(decode_change(7, &bytes[..at]), None, "cut at {at}");
            let mut other = bytes.clone();
            other[at] ^= 1;
            assert_eq!(decode_change(7, &other), None, "changed at {at}");
        }
    }

    #[test]
    fn a_row_is_what_was_written() {
        let versioned = Versioned {
            value: b"v".into(),
            revision: 3,
            names: vec![LargeId([7; 32])],
        };
        let row = Row::new(b"k".into(), versioned);
        let (sum, names) = (i64::from(row.sum), encode_names(&row.versioned.names));
        let read = |key: &[u8], value: &[u8], revision, names: &[u8]| {
            Row::read(key.into(), value.into(), revision, names, sum).is_some()
        };
        assert!(read(b"k", b"v", 3, &names));
        assert!(!read(b"l", b"v", 3, &names) && !read(b"k", b"w", 3, &names) && !read(b"k", b"v", 2, &names));
        assert!(!read(b"k", b"v", 3, b"") && !read(b"k", b"v", 3, &names[1..]) && !read(b"", b"kv", 3, &names));
    }
}
