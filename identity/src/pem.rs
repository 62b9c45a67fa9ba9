//! PEM text (RFC 7468): strict when read, and written without a copy of the bytes left behind.

use data_encoding::BASE64;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{PemObject, SectionKind};
use zeroize::Zeroizing;

const CERTIFICATE: &str = "CERTIFICATE";
const END_CERTIFICATE: &str = "-----END CERTIFICATE-----";
const BEGIN_KEY: &str = "-----BEGIN PRIVATE KEY-----";
const END_KEY: &str = "-----END PRIVATE KEY-----";

/// Why a text is not the PEM that was asked for. No message shows any of it: it may hold a private key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidPem {
    /// There is text, and no certificate in it.
    #[error("there is no section `CERTIFICATE` in it")]
    None,
    /// Something follows the last certificate.
    #[error("text that is no certificate follows the last one")]
    Rest,
    /// A section of another kind stands between the certificates.
    #[error("a section is not labelled CERTIFICATE")]
    Label,
    /// A section begins and another one interrupts it.
    #[error("a section is incomplete")]
    Incomplete,
    /// The frame or the base64 of a section cannot be read.
    #[error("{0}")]
    Unreadable(String),
    /// The text is not one section with a private key and nothing else.
    #[error("it is not one section `PRIVATE KEY`; write the key in PKCS#8 PEM, unencrypted and alone")]
    NotAKey,
}

/// The certificates of a PEM text. Text between the sections is commentary; the empty text has none.
///
/// # Errors
/// A section that is no certificate, and text after the last one.
pub fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, InvalidPem> {
    match text.rsplit_once(END_CERTIFICATE) {
        Some((_, after)) if !after.trim().is_empty() => return Err(InvalidPem::Rest),
        None if !text.trim().is_empty() => return Err(InvalidPem::None),
        _ => {}
    }
    let mut certificates = Vec::new();
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(text.as_bytes()) {
        match section {
            Ok((SectionKind::Certificate, der)) => certificates.push(der.into()),
            // The label is not echoed: whoever pasted a private key here should not find it in a log.
            Ok(_) => return Err(InvalidPem::Label),
            Err(error) => return Err(InvalidPem::Unreadable(error.to_string())),
        }
    }
    // The reader passes over a section that another one interrupts; an authority would be missing without a word.
    if text.matches("-----BEGIN ").count() != certificates.len() {
        return Err(InvalidPem::Incomplete);
    }
    Ok(certificates)
}

/// Certificates as PEM, one section each, in this order.
pub fn write_certificates(certificates: &[CertificateDer<'_>]) -> String {
    certificates.iter().map(|der| section(CERTIFICATE, der)).collect()
}

/// The PKCS#8 bytes of the one private key of a text, wiped when dropped.
///
/// # Errors
/// The text is anything but one section `PRIVATE KEY`, with white space around it at most.
pub fn private_key(text: &str) -> Result<Zeroizing<Vec<u8>>, InvalidPem> {
    let body = text
        .trim()
        .strip_prefix(BEGIN_KEY)
        .and_then(|rest| rest.strip_suffix(END_KEY))
        .ok_or(InvalidPem::NotAKey)?;
    let mut digits = Zeroizing::new(String::with_capacity(body.len()));
    digits.extend(body.split_ascii_whitespace());
    let der = BASE64.decode(digits.as_bytes()).map_err(|_| InvalidPem::NotAKey)?;
    Ok(Zeroizing::new(der))
}

/// A private key in PKCS#8 as PEM, wiped when dropped.
pub fn write_private_key(pkcs8: &[u8]) -> Zeroizing<String> {
    Zeroizing::new(section("PRIVATE KEY", pkcs8))
}

/// One section, lines of 64 characters, ending with a line feed.
fn section(label: &str, der: &[u8]) -> String {
    // The exact size: a private key must not stay behind in a buffer that was outgrown.
    let base64 = BASE64.encode_len(der.len());
    let size = base64 + base64.div_ceil(64) + 2 * label.len() + "-----BEGIN -----\n-----END -----\n".len();
    let mut text = String::with_capacity(size);
    text.extend(["-----BEGIN ", label, "-----\n"]);
    for line in der.chunks(48) {
        BASE64.encode_append(line, &mut text);
        text.push('\n');
    }
    text.extend(["-----END ", label, "-----\n"]);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_back(bytes in prop::collection::vec(any::<u8>(), 1..300)) {
            let text = section(CERTIFICATE, &bytes);
            prop_assert_eq!(text.capacity(), text.len());
            prop_assert!(text.lines().all(|line| line.len() <= 64));
            prop_assert_eq!(certificates(&text).unwrap(), [CertificateDer::from(bytes.clone())]);
            prop_assert_eq!(&*private_key(&write_private_key(&bytes)).unwrap(), &bytes);
        }
    }

    #[test]
    fn reading_is_strict() {
        let good = section(CERTIFICATE, b"certificate");
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

    #[test]
    fn a_key_stands_alone_and_is_in_no_message() {
        let good = section("PRIVATE KEY", b"a secret of twenty b");
        let check = |text: String, expected: bool| {
            let read = private_key(&text);
            assert_eq!(read.is_ok(), expected, "{text}");
            let error = read.map_or_else(|error| error.to_string(), |_| String::new());
            assert!(!error.contains("YSBz"), "{error}");
        };
        check(good.clone(), true);
        check(format!("\n{}\n", good.replace('\n', "\r\n")), true);
        check(String::new(), false);
        check(format!("a note\n{good}"), false);
        check(format!("{good}{good}"), false);
        check(good.replace("PRIVATE", "PUBLIC"), false);
        check(good.replace("PRIVATE", "EC PRIVATE"), false);
        check(good.replace("YSBz", "YSB!"), false);
        check(good.replace("YSBz", "YSBzYSB"), false);
        check(good.get(..40).unwrap_or_default().to_owned(), false);
    }
}
