//! PEM text (RFC 7468): strict when read, and written without a copy of the bytes left behind.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{PemObject, SectionKind};

const END_CERTIFICATE: &str = "-----END CERTIFICATE-----";

/// The certificates of a PEM text. Text between the sections is commentary; a section that is no certificate,
/// text after the last one, or text without any, is an error.
pub(crate) fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let after_last = text.rsplit_once(END_CERTIFICATE).map_or(text, |(_, after)| after);
    if !after_last.trim().is_empty() {
        return Err("text that is no certificate follows the last one".to_owned());
    }
    let mut certificates = Vec::new();
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(text.as_bytes()) {
        match section {
            Ok((SectionKind::Certificate, der)) => certificates.push(der.into()),
            // The label is not echoed: whoever pasted a private key here should not find it in a log.
            Ok(_) => return Err("a section is not labelled CERTIFICATE".to_owned()),
            Err(error) => return Err(error.to_string()),
        }
    }
    // The reader passes over a section that another one interrupts; an authority would be missing without a word.
    if text.matches("-----BEGIN ").count() != certificates.len() {
        return Err("a section is incomplete".to_owned());
    }
    Ok(certificates)
}

/// One section, lines of 64 characters, ending with a line feed.
pub(crate) fn section(label: &str, der: &[u8]) -> String {
    // The exact size: a private key must not stay behind in a buffer that was outgrown.
    let base64 = der.len().div_ceil(3) * 4;
    let size = base64 + base64.div_ceil(64) + 2 * label.len() + "-----BEGIN -----\n-----END -----\n".len();
    let mut text = String::with_capacity(size);
    text.extend(["-----BEGIN ", label, "-----\n"]);
    for line in der.chunks(48) {
        for group in line.chunks(3) {
            let filler = 3 - group.len();
            let bits = group.iter().fold(0, |bits, &byte| bits << 8 | u32::from(byte)) << (8 * filler);
            for place in 0..4 - filler {
                text.push(base64_digit(bits >> (18 - 6 * place)));
            }
            text.extend(std::iter::repeat_n('=', filler));
        }
        text.push('\n');
    }
    text.extend(["-----END ", label, "-----\n"]);
    text
}

/// The base64 digit of the low six bits.
fn base64_digit(bits: u32) -> char {
    let value = (bits & 0x3f) as u8;
    char::from(match value {
        0..26 => b'A' + value,
        26..52 => b'a' + (value - 26),
        52..62 => b'0' + (value - 52),
        62 => b'+',
        _ => b'/',
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_back(bytes in prop::collection::vec(any::<u8>(), 1..300)) {
            let text = section("CERTIFICATE", &bytes);
            prop_assert_eq!(text.capacity(), text.len());
            prop_assert!(text.lines().all(|line| line.len() <= 64));
            prop_assert_eq!(certificates(&text).unwrap(), [CertificateDer::from(bytes)]);
        }
    }

    #[test]
    fn reading_is_strict() {
        let good = section("CERTIFICATE", b"certificate");
        let check = |text: String, expected: Option<usize>| {
            assert_eq!(certificates(&text).ok().map(|found| found.len()), expected, "{text}");
        };
        check(String::new(), Some(0));
        check("\n".to_owned(), Some(0));
        check(format!("{good}{good}"), Some(2));
        check(format!("the first\n{good}the second\n{good}\n\n"), Some(2));
        check("no certificate".to_owned(), None);
        check(format!("{good}garbage"), None);
        check(format!("{good}{}", section("PRIVATE KEY", b"key")), None);
        check(format!("{}{good}", section("PRIVATE KEY", b"key")), None);
        check(good.replace("-----END", "-----BEND"), None);
        check(format!("-----BEGIN CERTIFICATE-----\n{good}"), None);
        check(good.replace("Y2", "!!"), None);
    }
}
