//! W3C Trace Context: which trace a request belongs to, and whose child it is.

use std::fmt;

/// The header that says it.
pub(crate) const TRACEPARENT: &str = "traceparent";

/// What tracing systems add to it.
pub(crate) const TRACESTATE: &str = "tracestate";

/// The flag of a trace whose spans are kept.
const SAMPLED: u8 = 1;

/// `version-trace-parent-flags`, each in hex.
const LENGTH: usize = 55;

/// A valid `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Context {
    pub(crate) trace: u128,
    /// Whose child it is.
    pub(crate) span: u64,
    pub(crate) flags: u8,
}

// === impl Context ===

impl Context {
    /// Reads it. A version that is not known yet may be longer, and is read as far as it is known.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let known = text.get(..LENGTH)?;
        let mut parts = known.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let version = u8::try_from(hex(version, 2)?).ok()?;
        let rest = text.get(LENGTH..)?;
        let fits = match version {
            0 => rest.is_empty(),
            0xff => false,
            _ => rest.is_empty() || rest.starts_with('-'),
        };
        let context = Self {
            trace: hex(trace, 32)?,
            span: u64::try_from(hex(span, 16)?).ok()?,
            flags: u8::try_from(hex(flags, 2)?).ok()?,
        };
        (fits && parts.next().is_none() && context.trace != 0 && context.span != 0).then_some(context)
    }

    /// A trace that begins here.
    pub(crate) fn root(trace: u128, span: u64, is_sampled: bool) -> Self {
        let flags = if is_sampled { SAMPLED } else { 0 };
        Self { trace, span, flags }
    }

    /// What this one's child says of itself to the next.
    pub(crate) fn child(self, span: u64) -> Self {
        Self { span, ..self }
    }

    pub(crate) fn is_sampled(self) -> bool {
        self.flags & SAMPLED != 0
    }
}

/// As version 00 says it, whichever version it came in.
impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trace, span, flags } = self;
        write!(f, "00-{trace:032x}-{span:016x}-{flags:02x}")
    }
}

fn hex(text: &str, digits: usize) -> Option<u128> {
    let fits = text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    fits.then(|| u128::from_str_radix(text, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_valid_is_read_and_written_alike() {
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        for (text, sampled) in [
            (format!("00-{id}-00f067aa0ba902b7-01"), Some(true)),
            (format!("00-{id}-00f067aa0ba902b7-00"), Some(false)),
            (format!("00-{id}-00f067aa0ba902b7-03"), Some(true)),
            (format!("00-{id}-00f067aa0ba902b7-01-more"), None),
            (format!("ff-{id}-00f067aa0ba902b7-01"), None),
            (format!("00-{id}-0000000000000000-01"), None),
            (format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)), None),
            (format!("00-{}-00f067aa0ba902b7-01", id.to_uppercase()), None),
            (format!("00-{id}-00f067aa0ba902b7-0"), None),
            (format!("00-{id}-00f067aa0ba902b7-+1"), None),
            ("".to_owned(), None),
            ("é".repeat(40), None),
        ] {
            let read = Context::parse(&text);
            assert_eq!(read.map(Context::is_sampled), sampled, "{text}");
            if let Some(context) = read {
                assert_eq!(context.to_string(), text);
            }
        }
        // What is not known yet is read as what is.
        let later = Context::parse(&format!("01-{id}-00f067aa0ba902b7-01-what-comes")).unwrap();
        assert_eq!(later.to_string(), format!("00-{id}-00f067aa0ba902b7-01"));
        assert_eq!(Context::parse(&format!("01-{id}-00f067aa0ba902b7-01what")), None);
    }
}
