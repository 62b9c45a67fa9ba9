//! A key from a passphrase, by work that costs memory: scrypt (RFC 7914) with a block size of 8 and no parallelism, as age has it.
//!
//! PBKDF2 is ring's. The mixing stands here because the crate `scrypt` shares its foundations with Cedar's build tools, and so
//! would have Cedar compiled anew; RFC 7914's vectors and Debian's `age` judge it.

use std::num::NonZeroU32;

use ring::pbkdf2::{PBKDF2_HMAC_SHA256, derive};
use zeroize::{Zeroize, Zeroizing};

/// 64 bytes, as Salsa20 takes them.
type Block = [u32; 16];

/// 16 of them: 2 × the block size.
type Blocks = [Block; 16];

/// The key of a passphrase: `2^work_log2` KiB of memory, read and written twice. `None` where there is not so much memory.
#[must_use]
pub fn scrypt(passphrase: &[u8], salt: &[u8], work_log2: u8) -> Option<Zeroizing<[u8; 32]>> {
    let count = 1_usize.checked_shl(work_log2.into())?;
    let mut bytes = Zeroizing::new([0; 1024]);
    derive(PBKDF2_HMAC_SHA256, NonZeroU32::MIN, salt, passphrase, &mut *bytes);
    let mut mixed = Zeroizing::new(blocks(&bytes));
    mix(&mut mixed, count)?;
    for (to, word) in bytes.chunks_exact_mut(4).zip(mixed.iter().flatten()) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    let mut key = Zeroizing::new([0; 32]);
    derive(PBKDF2_HMAC_SHA256, NonZeroU32::MIN, &*bytes, passphrase, &mut *key);
    Some(key)
}

fn blocks(bytes: &[u8; 1024]) -> Blocks {
    let mut blocks = [[0; 16]; 16];
    for (word, from) in blocks.iter_mut().flatten().zip(bytes.chunks_exact(4)) {
        *word = from.try_into().map_or(0, u32::from_le_bytes);
    }
    blocks
}

/// ROMix. `count` is a power of two.
fn mix(mixed: &mut Blocks, count: usize) -> Option<()> {
    let mut kept: Vec<Blocks> = Vec::new();
    kept.try_reserve_exact(count).ok()?;
    for _ in 0..count {
        kept.push(*mixed);
        mix_blocks(mixed);
    }
    for _ in 0..count {
        let [.., [place, ..]] = *mixed;
        let other = kept.get(place as usize & (count - 1))?;
        for (word, other) in mixed.iter_mut().flatten().zip(other.iter().flatten()) {
            *word ^= other;
        }
        mix_blocks(mixed);
    }
    kept.iter_mut().flatten().for_each(Zeroize::zeroize);
    Some(())
}

/// BlockMix: even ones first, then odd ones.
fn mix_blocks(blocks: &mut Blocks) {
    let [.., mut last] = *blocks;
    let mut mixed = [[0; 16]; 16];
    let (even, odd) = mixed.split_at_mut(8);
    let places = even.iter_mut().zip(odd).flat_map(|(even, odd)| [even, odd]);
    for (block, place) in blocks.iter().zip(places) {
        for (word, other) in last.iter_mut().zip(block) {
            *word ^= other;
        }
        salsa20_8(&mut last);
        *place = last;
    }
    *blocks = mixed;
}

fn salsa20_8(block: &mut Block) {
    let mut x = *block;
    macro_rules! quarter {
        ($a:literal, $b:literal, $c:literal, $d:literal) => {
            x[$b] ^= x[$a].wrapping_add(x[$d]).rotate_left(7);
            x[$c] ^= x[$b].wrapping_add(x[$a]).rotate_left(9);
            x[$d] ^= x[$c].wrapping_add(x[$b]).rotate_left(13);
            x[$a] ^= x[$d].wrapping_add(x[$c]).rotate_left(18);
        };
    }
    for _ in 0..4 {
        quarter!(0, 4, 8, 12);
        quarter!(5, 9, 13, 1);
        quarter!(10, 14, 2, 6);
        quarter!(15, 3, 7, 11);
        quarter!(0, 1, 2, 3);
        quarter!(5, 6, 7, 4);
        quarter!(10, 11, 8, 9);
        quarter!(15, 12, 13, 14);
    }
    for (word, mixed) in block.iter_mut().zip(x) {
        *word = word.wrapping_add(mixed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use data_encoding::HEXLOWER;

    /// RFC 7914, section 8.
    #[test]
    fn salsa20_8_of_the_rfc() {
        let words = |hex: &str| {
            let bytes = HEXLOWER.decode(hex.as_bytes()).unwrap();
            let words: Vec<u32> = bytes
                .chunks(4)
                .map(|four| u32::from_le_bytes(four.try_into().unwrap()))
                .collect();
            Block::try_from(words).unwrap()
        };
        let mut block = words(
            "7e879a214f3ec9867ca940e641718f26baee555b8c61c1b50df846116dcd3b1dee24f319df9b3d8514121e4b5ac5aa3276021d2909c74829edebc68db8b8c25e",
        );
        salsa20_8(&mut block);
        let expected = words(
            "a41f859c6608cc993b81cacb020cef05044b2181a2fd337dfd7b1c6396682f29b4393168e3c9e6bcfe6bc5b7a06d96bae424cc102c91745c24ad673dc7618f81",
        );
        assert_eq!(block, expected);
    }

    /// RFC 7914, section 12: the vector of this block size and no parallelism, N = 16384. Its first half.
    #[test]
    fn the_key_of_the_rfc() {
        let key = scrypt(b"pleaseletmein", b"SodiumChloride", 14).unwrap();
        let expected = "7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2";
        assert_eq!(HEXLOWER.encode(&*key), expected);
    }
}
