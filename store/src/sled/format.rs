//! What lies in sled, byte for byte: the revision, values, and the checksum over each.

use crate::{LargeId, Revision, Versioned};

/// Changes when the layout does; an unknown one is refused.
pub(super) const FORMAT: u8 = 3;

/// The item `m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) revision: Revision,
    pub(super) contents: Digest,
}

/// Tells one set of items from another, whatever the order they came in: an item that sled lost, or took back to an
/// older version, is noticed although every checksum that is left holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Digest {
    pub(super) count: u64,
    pub(super) sum: u64,
}

/// An item `d<key>`: revision, the large values it names, value.
pub(super) struct Value {
    pub(super) versioned: Versioned,
    pub(super) sum: u32,
}

/// Why a revision cannot be read, in words for people.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadMeta {
    #[error("its revision cannot be read")]
    Unread,
    #[error("it was written in format {0}, and this version of the program reads {FORMAT}")]
    Format(u8),
    #[error("its revision is empty")]
    Empty,
}

// === impl Meta ===

impl Meta {
    pub(super) const START: Self = Self {
        revision: 0,
        contents: Digest { count: 0, sum: 0 },
    };

    pub(super) fn encode(&self) -> Vec<u8> {
        let fields = [self.revision, self.contents.count, self.contents.sum];
        std::iter::once(FORMAT)
            .chain(fields.into_iter().flat_map(u64::to_be_bytes))
            .collect()
    }

    pub(super) fn decode(body: &[u8]) -> Result<Self, BadMeta> {
        match body.split_first() {
            Some((&FORMAT, fields)) => Self::fields(fields).ok_or(BadMeta::Unread),
            Some((other, _)) => Err(BadMeta::Format(*other)),
            None => Err(BadMeta::Empty),
        }
    }

    fn fields(mut body: &[u8]) -> Option<Self> {
        let mut field = || take(&mut body).map(u64::from_be_bytes);
        let revision = field()?;
        let contents = Digest {
            count: field()?,
            sum: field()?,
        };
        body.is_empty().then_some(Self { revision, contents })
    }
}

// === impl Digest ===

impl Digest {
    pub(super) fn add(&mut self, sum: u32) {
        self.count = self.count.wrapping_add(1);
        self.sum = self.sum.wrapping_add(u64::from(sum));
    }

    pub(super) fn remove(&mut self, sum: u32) {
        self.count = self.count.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(u64::from(sum));
    }
}

// === impl Value ===

impl Value {
    /// Its checksum and the item under this name.
    pub(super) fn seal(name: &[u8], revision: Revision, value: &[u8], names: &[LargeId]) -> (u32, Vec<u8>) {
        // At most LARGE_PER_KEY_MAX of them: one byte is enough.
        let count = [u8::try_from(names.len()).unwrap_or(u8::MAX)];
        let names: Vec<u8> = names.iter().flat_map(|id| id.0).collect();
        seal(name, &[&revision.to_be_bytes()[..], &count, &names, value].concat())
    }

    pub(super) fn unseal(name: &[u8], item: &[u8]) -> Option<Self> {
        let (sum, mut body) = unseal(name, item)?;
        let revision = u64::from_be_bytes(take(&mut body)?);
        let [count] = take(&mut body)?;
        let names = (0..count)
            .map(|_| take(&mut body).map(LargeId))
            .collect::<Option<_>>()?;
        let value = body.to_vec();
        Some(Self {
            versioned: Versioned { value, revision, names },
            sum,
        })
    }
}

// === Encoding: big-endian numbers ===

pub(super) const HEAD_BYTES: usize = 12;

pub(super) fn encode_head(revision: Revision) -> Vec<u8> {
    let revision = revision.to_be_bytes();
    [&revision[..], &crc32c::crc32c(&revision).to_be_bytes()].concat()
}

pub(super) fn decode_head(mut bytes: &[u8]) -> Option<Revision> {
    let revision = take::<8>(&mut bytes)?;
    (take(&mut bytes)? == crc32c::crc32c(&revision).to_be_bytes()).then_some(u64::from_be_bytes(revision))
}

pub(super) fn named(kind: u8, rest: &[u8]) -> Vec<u8> {
    [&[kind], rest].concat()
}

/// The checksum is over the name too: an item under another's name is damage.
pub(super) fn seal(name: &[u8], body: &[u8]) -> (u32, Vec<u8>) {
    let sum = crc32c::crc32c_append(crc32c::crc32c(name), body);
    (sum, [&sum.to_be_bytes()[..], body].concat())
}

pub(super) fn unseal<'a>(name: &[u8], item: &'a [u8]) -> Option<(u32, &'a [u8])> {
    let (sum, body) = item.split_first_chunk::<4>()?;
    let sum = u32::from_be_bytes(*sum);
    (sum == crc32c::crc32c_append(crc32c::crc32c(name), body)).then_some((sum, body))
}

pub(super) fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*taken)
}
