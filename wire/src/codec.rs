//! How messages become bytes and come back: protobuf, with room for a small message to begin with.

use std::fmt;
use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::{ProstDecoder, ProstEncoder};

/// What an open call keeps for each direction. Most messages are shorter, and the room grows with one that is not: with tonic's
/// own 8 KiB a thousand streams that wait held 16 MiB.
const BUFFER_BYTES: usize = 1 << 10;

/// Messages that are ready together go out in pieces of this, as tonic has it.
const YIELD_BYTES: usize = 32 << 10;

/// The codec of all services and clients here.
pub(crate) struct Frugal<T, U>(PhantomData<fn(T) -> U>);

// === impl Frugal ===

impl<T, U> Default for Frugal<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> fmt::Debug for Frugal<T, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Frugal")
    }
}

impl<T, U> Codec for Frugal<T, U>
where
    T: Message + 'static,
    U: Message + Default + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> ProstEncoder<T> {
        ProstEncoder::new(BufferSettings::new(BUFFER_BYTES, YIELD_BYTES))
    }

    fn decoder(&mut self) -> ProstDecoder<U> {
        ProstDecoder::new(BufferSettings::new(BUFFER_BYTES, YIELD_BYTES))
    }
}
