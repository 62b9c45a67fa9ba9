//! Certificates as bytes: concatenated DER and PEM taken apart, and read.

use data_encoding::BASE64;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Why something cannot be read, in words for a report.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unreadable(pub(crate) String);

/// The elements of concatenated DER. A length that is not written in its shortest form is no DER.
pub(crate) fn elements(mut bytes: &[u8]) -> Result<Vec<&[u8]>, Unreadable> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let length = length(bytes).map_err(|why| Unreadable(format!("element {} {why}", found.len())))?;
        let (element, rest) = bytes
            .split_at_checked(length)
            .ok_or_else(|| Unreadable(format!("element {} is cut short", found.len())))?;
        found.push(element);
        bytes = rest;
    }
    Ok(found)
}

/// The length of the element that begins here, its head included.
fn length(bytes: &[u8]) -> Result<usize, &'static str> {
    match *bytes {
        [0x30, short @ 0..=0x7f, ..] => Ok(2 + usize::from(short)),
        [0x30, 0x81, one, ..] if one >= 0x80 => Ok(3 + usize::from(one)),
        [0x30, 0x82, high, low, ..] if high > 0 => Ok(4 + usize::from(u16::from_be_bytes([high, low]))),
        [0x30, 0x83, high, middle, low, ..] if high > 0 => {
            Ok(5 + (usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low)))
        }
        [0x30, 0x81..=0x84, ..] => Err("has a length that is not in its shortest form"),
        [b'-', b'-', b'-', b'-', b'-', ..] => Err("is PEM"),
        _ => Err("is no SEQUENCE in DER"),
    }
}

/// Certificates, each an element.
pub(crate) fn certificates(bytes: &[u8]) -> Result<Vec<X509Certificate<'_>>, Unreadable> {
    elements(bytes)?.into_iter().map(certificate).collect()
}

/// One certificate and nothing behind it.
pub(crate) fn certificate(element: &[u8]) -> Result<X509Certificate<'_>, Unreadable> {
    match X509Certificate::from_der(element) {
        Ok(([], certificate)) => Ok(certificate),
        Ok((more, _)) => Err(Unreadable(format!("{} bytes follow the certificate", more.len()))),
        Err(error) => Err(Unreadable(format!("it is no certificate: {error}"))),
    }
}

/// The contents of the PEM blocks with one of these labels, one after the other.
pub(crate) fn pem(text: &str, labels: &[&str]) -> Result<Vec<Vec<u8>>, Unreadable> {
    let mut found = Vec::new();
    let mut open: Option<(&str, String)> = None;
    for line in text.lines().map(str::trim) {
        let label = |words: &str| line.strip_prefix(words).and_then(|rest| rest.strip_suffix("-----"));
        if let Some(begun) = label("-----BEGIN ") {
            open = Some((begun, String::new()));
        } else if let Some(ended) = label("-----END ") {
            let (begun, body) = open
                .take()
                .filter(|(begun, _)| *begun == ended)
                .ok_or_else(|| Unreadable(format!("the PEM block `{ended}` ends and has not begun")))?;
            if labels.contains(&begun) {
                let bytes = BASE64.decode(body.as_bytes());
                found
                    .push(bytes.map_err(|error| Unreadable(format!("the PEM block `{begun}` is no base64: {error}")))?);
            }
        } else if let Some((_, body)) = &mut open {
            body.push_str(line);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn concatenated_der() {
        let check = |bytes: &[u8], expected: Result<usize, &str>| {
            let found = elements(bytes)
                .map(|found| found.len())
                .map_err(|error| error.to_string());
            assert_eq!(found, expected.map_err(str::to_owned), "{bytes:?}");
        };
        check(&[], Ok(0));
        check(&[0x30, 0, 0x30, 1, 5], Ok(2));
        check(&[&[0x30, 0x81, 0x80][..], &[0; 128]].concat(), Ok(1));
        check(
            &[0x30, 0x81, 1, 5],
            Err("element 0 has a length that is not in its shortest form"),
        );
        check(
            &[0x30, 0x82, 0, 1, 5],
            Err("element 0 has a length that is not in its shortest form"),
        );
        check(&[0x30, 0, 0x30, 2, 5], Err("element 1 is cut short"));
        check(&[0x31, 0], Err("element 0 is no SEQUENCE in DER"));
        check(b"-----BEGIN", Err("element 0 is PEM"));
    }
}
