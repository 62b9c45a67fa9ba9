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
            // A short one is in every sentence by chance.
            let elsewhere = text.get(token.len()..).unwrap_or_default();
            assert!(
                token.len() < 16 || elsewhere.contains(token) || !reason.contains(token),
                "{reason}"
            );
            signature(&reason)
        }
    }
}
