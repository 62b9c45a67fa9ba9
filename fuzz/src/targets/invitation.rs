//! Invitations: what is read is what is shown again, and no refusal shows what may be the token.

use hoplite_identity::Invitation;

use super::signature;

/// The one word of `hoplite join`.
pub fn invitation(input: &[u8]) -> String {
    let Ok(text) = str::from_utf8(input) else {
        return "no text".to_owned();
    };
    match Invitation::parse(text) {
        Ok(invitation) => {
            let shown = invitation.reveal();
            assert!(!shown.contains(char::is_whitespace), "one word");
            assert_eq!(Invitation::parse(&shown).as_ref(), Ok(&invitation));
            assert!((1..=256).contains(&invitation.token().len()) && invitation.address().port() > 0);
            assert!(text.starts_with(invitation.token()));
            assert!(!format!("{invitation:?}").contains(&format!("{}@", invitation.token())));
            let kind = invitation.address().host().bytes().next().unwrap_or_default();
            format!("{} {}", kind.is_ascii_digit(), kind == b'[')
        }
        Err(refused) => {
            let reason = refused.to_string();
            let token = text.split('@').next().unwrap_or_default();
            let other = text.replacen(token, &masked(token), 1);
            assert_eq!(
                Invitation::parse(&other).map_err(|refused| refused.to_string()),
                Err(reason.clone()),
                "the reason depends on the token"
            );
            signature(&reason)
        }
    }
}

/// Another token, which is legal where this one is and as long: a reason that shows the token differs with it.
fn masked(token: &str) -> String {
    let of_tokens = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let masked = token.bytes().map(|byte| if of_tokens(byte) { 'x' } else { ' ' });
    masked.collect()
}
