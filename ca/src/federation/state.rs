//! How it stands with a federation: one word, and what an operator is told of it.

use std::time::{Duration, SystemTime};

use hoplite_host::config::Span;
use hoplite_identity::{TrustBundle, TrustDomain};

use crate::federation::records::{Federated, ForeignBundle};
use crate::federation::writes::is_empty;
use crate::record;

/// One word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum State {
    /// The endpoint was asked within three refreshes.
    Fresh,
    /// Somebody gave it, and nobody is asked.
    ByHand,
    /// It is believed still, although the endpoint did not answer three times.
    Stale,
    /// Nobody is given it any more.
    Withdrawn,
    /// All of its X.509 authorities have ended.
    Ended,
    /// It says that nobody is to be trusted.
    Empty,
    /// There is none yet.
    Missing,
}

// === impl State ===

impl State {
    pub(crate) const ALL: [Self; 7] = [
        Self::Fresh,
        Self::ByHand,
        Self::Stale,
        Self::Withdrawn,
        Self::Ended,
        Self::Empty,
        Self::Missing,
    ];

    /// Of one federation. `refreshed` is when its bundle was last known to be the newest.
    pub(crate) fn of(
        federated: &Federated,
        held: Option<(&ForeignBundle, &TrustBundle)>,
        refreshed: u64,
        now: SystemTime,
    ) -> Self {
        let Some((record, bundle)) = held else {
            return Self::Missing;
        };
        let age = Duration::from_secs(record::unix_seconds(now).saturating_sub(refreshed));
        if record.withdrawn {
            Self::Withdrawn
        } else if is_empty(bundle) {
            Self::Empty
        } else if bundle.last_end().is_some_and(|end| end <= now) {
            Self::Ended
        } else if federated.endpoint.is_none() {
            Self::ByHand
        } else if age > record.stale_after() {
            Self::Stale
        } else {
            Self::Fresh
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::ByHand => "by_hand",
            Self::Stale => "stale",
            Self::Withdrawn => "withdrawn",
            Self::Ended => "ended",
            Self::Empty => "empty",
            Self::Missing => "missing",
        }
    }

    /// What somebody has to do; none where nobody has to.
    pub(crate) fn warning(
        self,
        domain: &TrustDomain,
        age: Duration,
        stale_max: Duration,
        failure: &str,
    ) -> Option<String> {
        let because = match failure {
            "" => String::new(),
            failure => format!(" ({failure})"),
        };
        let age = Span(Duration::from_secs(age.as_secs()));
        let text = match self {
            Self::Fresh | Self::ByHand => return None,
            Self::Stale => format!(
                "the trust bundle of `{domain}` could not be refreshed for {age}{because}; it is kept, and believed until {} without a refresh, \
                 or the end of its authorities",
                Span(stale_max)
            ),
            Self::Withdrawn => format!(
                "the trust bundle of `{domain}` could not be refreshed for {age}{because}, so nobody is given it any more: its workloads are refused; \
                 mend its endpoint, or give the bundle with `hoplite bundle set`"
            ),
            Self::Ended => format!(
                "every X.509 authority in the trust bundle of `{domain}` has ended{because}: its workloads are refused; get its newest bundle, and give it \
                 with `hoplite bundle set`"
            ),
            Self::Empty => {
                format!(
                    "the trust bundle of `{domain}` is without any authority, by which it takes all of its keys back: its workloads are refused; ask those who run it, or end \
                     the federation with `hoplite federation delete {domain}`"
                )
            }
            Self::Missing => format!(
                "there is no trust bundle of `{domain}` yet{because}; mend its endpoint, or give the bundle with `hoplite bundle set`"
            ),
        };
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::federation::egress::BundleUrl;
    use crate::federation::records::{Endpoint, Profile};
    use hoplite_identity::BundleDocument;
    use hoplite_identity::testing::TestAuthority;
    use std::time::UNIX_EPOCH;

    #[test]
    fn states() {
        let now = record::unix_seconds(clock());
        let bundle = TestAuthority::new("partner.example").bundle();
        let check = |endpoint: bool,
                     age: u64,
                     change: &dyn Fn(&mut ForeignBundle),
                     is_empty: bool,
                     at: u64,
                     expected: State| {
            let endpoint = endpoint.then(|| Endpoint {
                url: BundleUrl::parse("https://a.example").unwrap(),
                profile: Profile::HttpsWeb,
                allowed: Vec::new(),
            });
            let federated = Federated { endpoint, since: now };
            let bundle = match is_empty {
                true => TrustBundle::new(bundle.trust_domain().clone(), Vec::new(), 1).unwrap(),
                false => bundle.clone(),
            };
            let document = BundleDocument {
                bundle: bundle.clone(),
                refresh_hint: Some(Duration::from_secs(60)),
            };
            let mut held = ForeignBundle::new(&document, now, false);
            change(&mut held);
            let at = UNIX_EPOCH + Duration::from_secs(at);
            let refreshed = record::unix_seconds(at) - age;
            assert_eq!(State::of(&federated, Some((&held, &bundle)), refreshed, at), expected);
            let warning = expected.warning(
                bundle.trust_domain(),
                Duration::from_secs(age),
                Duration::from_secs(9),
                "x",
            );
            assert_eq!(warning.is_none(), matches!(expected, State::Fresh | State::ByHand));
        };
        let same = |_: &mut ForeignBundle| ();
        check(true, 180, &same, false, now, State::Fresh);
        check(true, 181, &same, false, now, State::Stale);
        check(false, 181, &same, false, now, State::ByHand);
        check(true, 0, &same, true, now, State::Empty);
        check(true, 0, &|held| held.withdrawn = true, false, now, State::Withdrawn);
        check(true, 0, &same, false, now + 200 * 365 * 86_400, State::Ended);
    }

    #[expect(clippy::disallowed_methods, reason = "a test's now is its own")]
    fn clock() -> SystemTime {
        SystemTime::now()
    }
}
