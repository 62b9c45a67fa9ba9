//! The trace that a request belongs to, as W3C Trace Context says it.

/// The trace id of a valid `traceparent`: 32 hex digits, not all zero. Of two, joined by a comma, none is valid.
pub fn trace_id(traceparent: &str) -> Option<String> {
    let mut parts = traceparent.split('-');
    let (version, id) = (parts.next()?, parts.next()?);
    let hex = |text: &str| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    (!traceparent.contains(',')
        && version.len() == 2
        && hex(version)
        && version != "ff"
        && id.len() == 32
        && hex(id)
        && id.bytes().any(|b| b != b'0'))
    .then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trace_ids() {
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        let whole = format!("00-{id}-00f067aa0ba902b7-01");
        for (text, expected) in [
            (whole.as_str(), Some(id)),
            (&format!("ff-{id}-00f067aa0ba902b7-01"), None),
            ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", None),
            (&format!("00-{}-00f067aa0ba902b7-01", id.to_uppercase()), None),
            ("00-XYZ-1-01", None),
            ("", None),
            (&format!("{whole},{whole}"), None),
        ] {
            assert_eq!(trace_id(text).as_deref(), expected, "{text}");
        }
    }
}
