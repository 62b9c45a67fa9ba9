//! HPACK's Huffman code (RFC 7541, appendix B), decoded.
//!
//! The code is canonical: symbols are numbered upwards by the length of their code, and by value where the length is
//! equal. So the lengths say it all.

use std::sync::LazyLock;

/// The symbol that ends a string, which is never written: only its first bits are, as padding.
const END: u16 = 256;

/// How many bits the code of each symbol has.
const LENGTHS: [u32; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28,
    28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12,
    10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6,
    5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22,
    22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20,
    22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28,
    27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28,
    27, 27, 27, 27, 27, 26, 30,
];

/// The symbols by their codes, which stand at the left of 32 bits.
static CODE: LazyLock<Vec<Symbol>> = LazyLock::new(|| {
    let mut symbols: Vec<_> = LENGTHS.into_iter().zip(0_u16..).collect();
    symbols.sort_unstable();
    let mut next = 0_u32;
    let numbered = symbols.into_iter().map(|(length, symbol)| {
        let code = next;
        next = next.wrapping_add(1 << (32 - length)); // it wraps once: after the last
        Symbol { code, length, symbol }
    });
    numbered.collect()
});

struct Symbol {
    code: u32,
    length: u32,
    symbol: u16,
}

/// The text of a coded string; none if it is no coded string.
pub(super) fn decode(coded: &[u8]) -> Option<Vec<u8>> {
    let mut text = Vec::with_capacity(coded.len());
    let mut bytes = coded.iter();
    // Bits that have been read and not decoded, from the left; the rest are zeros.
    let (mut bits, mut held) = (0_u64, 0_u32);
    loop {
        while held <= 56
            && let Some(byte) = bytes.next()
        {
            bits |= u64::from(*byte) << (56 - held);
            held += 8;
        }
        // As though padding went on for ever.
        let ahead = u32::try_from((bits | u64::MAX.checked_shr(held).unwrap_or(0)) >> 32).ok()?;
        let found = CODE.partition_point(|symbol| symbol.code <= ahead).checked_sub(1)?;
        let found = CODE.get(found)?;
        if found.length > held {
            // Less than a byte, and all ones (RFC 7541, 5.2).
            return (held < 8 && ahead == u32::MAX).then_some(text);
        }
        if found.symbol == END {
            return None;
        }
        text.push(u8::try_from(found.symbol).ok()?);
        bits <<= found.length;
        held -= found.length;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The code of a text.
    pub(in crate::hpack) fn encode(text: &[u8]) -> Vec<u8> {
        let (mut coded, mut bits, mut held) = (Vec::new(), 0_u64, 0_u32);
        for byte in text {
            let symbol = CODE.iter().find(|symbol| symbol.symbol == u16::from(*byte)).unwrap();
            bits |= u64::from(symbol.code) << 32 >> held;
            held += symbol.length;
            while held >= 8 {
                coded.push((bits >> 56) as u8);
                bits <<= 8;
                held -= 8;
            }
        }
        if held > 0 {
            coded.push((bits >> 56) as u8 | (0xff >> held));
        }
        coded
    }

    fn hex(text: &str) -> Vec<u8> {
        text.split(' ')
            .map(|byte| u8::from_str_radix(byte, 16).unwrap())
            .collect()
    }

    #[test]
    fn the_code_is_complete() {
        let sum: u64 = LENGTHS.iter().map(|length| 1_u64 << (32 - length)).sum();
        assert_eq!(sum, 1 << 32, "each string of bits begins with one code and no more");
    }

    #[test]
    fn rfc_7541_c_4_and_c_6() {
        for (text, coded) in [
            ("www.example.com", "f1 e3 c2 e5 f2 3a 6b a0 ab 90 f4 ff"),
            ("no-cache", "a8 eb 10 64 9c bf"),
            ("custom-key", "25 a8 49 e9 5b a9 7d 7f"),
            ("custom-value", "25 a8 49 e9 5b b8 e8 b4 bf"),
            ("private", "ae c3 77 1a 4b"),
            (
                "https://www.example.com",
                "9d 29 ad 17 18 63 c7 8f 0b 97 c8 e9 ae 82 ae 43 d3",
            ),
        ] {
            assert_eq!(decode(&hex(coded)).as_deref(), Some(text.as_bytes()));
            assert_eq!(encode(text.as_bytes()), hex(coded));
        }
    }

    #[test]
    fn every_text_comes_back() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decode(&encode(&all)), Some(all));
        assert_eq!(decode(&[]), Some(Vec::new()));
    }

    #[test]
    fn what_is_no_code_is_refused() {
        for (coded, why) in [
            (&[0xff][..], "a whole byte of padding"),
            (&[0x00], "padding of zeros"),
            (&[0b0000_0011], "padding of two ones after a zero"),
            (&[0xff, 0xff, 0xff, 0xff], "the end, written out"),
            (&[0x07, 0xff], "more than a byte of padding"),
        ] {
            assert_eq!(decode(coded), None, "{why}");
        }
    }
}
