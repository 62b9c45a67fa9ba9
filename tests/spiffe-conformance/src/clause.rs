//! The clauses: what SPIFFE demands, each by its name, in one sentence.

use std::fmt;

/// How much a clause binds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Whoever breaks it does not conform.
    Must,
    /// There may be reasons to break it.
    Should,
}

/// What has to be at hand for a clause to be judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// A Workload API.
    Socket,
    /// X.509-SVIDs, of a socket or a file.
    X509,
    /// JWT-SVIDs, of a socket or a file.
    Jwt,
    /// A trust bundle, of a socket, an endpoint or a file.
    Bundle,
    /// A bundle map, of a file.
    Map,
    /// A bundle endpoint.
    Endpoint,
    /// It binds those who ask, and this suite asks.
    Client,
}

/// One clause.
#[derive(Debug)]
pub struct Clause {
    /// As which the code knows it.
    pub id: Id,
    /// As which people know it, as in `X-4b`.
    pub name: &'static str,
    /// How much it binds.
    pub level: Level,
    /// What judges it.
    pub needs: Needs,
    /// Where the specification says it.
    pub section: &'static str,
    /// What it says, in our words.
    pub text: &'static str,
}

macro_rules! clauses {
    ($($id:ident $name:literal $level:ident $needs:ident $section:literal $text:literal;)*) => {
        /// The name of a clause: one that is not in the table does not compile.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Id {
            $(#[doc = $text] $id,)*
        }

        /// All of them, in the order in which they are reported.
        pub const CLAUSES: &[Clause] = &[
            $(Clause {
                id: Id::$id,
                name: $name,
                level: Level::$level,
                needs: Needs::$needs,
                section: $section,
                text: $text,
            },)*
        ];
    };
}

clauses! {
    Id1 "ID-1" Must X509 "SPIFFE-ID 2"
        "A SPIFFE ID has the scheme `spiffe` and a trust domain, and no user, port, query or fragment.";
    Id2 "ID-2" Must X509 "SPIFFE-ID 2.1"
        "A trust domain is written in lower-case letters, digits, dots, dashes and underscores, nothing percent-encoded.";
    Id3 "ID-3" Must X509 "SPIFFE-ID 2.2"
        "A path has segments of letters, digits, dots, dashes and underscores; none is empty, `.` or `..`.";
    Id4a "ID-4a" Should X509 "SPIFFE-ID 2.3"
        "No SPIFFE ID is longer than 2048 bytes, no trust domain longer than 255.";
    Id4b "ID-4b" Must Socket "SPIFFE-ID 2.3"
        "A SPIFFE ID of 2048 bytes is taken for one: whoever asks for it without being it is denied, and not told that it is malformed.";
    Id5 "ID-5" Must Socket "SPIFFE-ID 2.4"
        "Paths are case-sensitive: nobody is given another's SVID for a path that differs in case.";
    Id6 "ID-6" Must Socket "SPIFFE-ID 2.1, 2.2"
        "No byte that does not belong into a trust domain or a path gets an SVID in an ID that has it.";

    X1 "X-1" Must X509 "X509-SVID 2"
        "An X.509-SVID has exactly one URI among its alternative names, its SPIFFE ID.";
    X2 "X-2" Must X509 "X509-SVID 3.1"
        "The SPIFFE ID of a leaf has a path.";
    X3 "X-3" Must X509 "X509-SVID 3.1"
        "Without a subject the alternative names are critical.";
    X4a "X-4a" Must X509 "X509-SVID 4.3"
        "Every SVID, leaf or authority, has a key usage, and it is critical.";
    X4b "X-4b" Must X509 "X509-SVID 4.3"
        "A leaf may make digital signatures.";
    X4c "X-4c" Must X509 "X509-SVID 4.3"
        "A leaf may sign neither certificates nor revocation lists.";
    X4d "X-4d" Must X509 "X509-SVID 4.3"
        "An authority may sign certificates.";
    X5a "X-5a" Must X509 "X509-SVID 4.1"
        "A leaf is no CA.";
    X5b "X-5b" Must X509 "X509-SVID 4.1"
        "An authority is a CA.";
    X6a "X-6a" Should X509 "X509-SVID 4.4"
        "A leaf has an extended key usage.";
    X6b "X-6b" Must X509 "X509-SVID 4.4"
        "An extended key usage of a leaf is good for servers and for clients.";
    X7a "X-7a" Should X509 "X509-SVID 3.2"
        "An authority is an SVID of the trust domain that it signs for.";
    X7b "X-7b" Must X509 "X509-SVID 3.2"
        "The SPIFFE ID of an authority has no path.";
    X8 "X-8" Must X509 "X509-SVID 4.2"
        "Where an authority constrains URI names, the SVIDs under it obey.";
    X9a "X-9a" Must X509 "X509-SVID 5.1"
        "The chain leads to an authority in the bundle of the SVID's own trust domain.";
    X9b "X-9b" Must X509 "X509-SVID 5.1"
        "The certificate is valid now, and so are those between it and the authority.";
    X9c "X-9c" Must X509 "SPIFFE_Federation 7.3"
        "No other trust domain's bundle vouches for it.";
    X10a "X-10a" Must Bundle "X509-SVID 6.1"
        "An X.509 authority in a bundle has no `kid`.";
    X10b "X-10b" Must Bundle "X509-SVID 6.1"
        "An X.509 authority in a bundle has an `x5c` of exactly one CA certificate.";
    X10c "X-10c" Should Bundle "X509-SVID 6.1"
        "The certificate of an X.509 authority in a bundle is signed by itself.";
    X10d "X-10d" Must Bundle "RFC 7517 4.7"
        "The key of an X.509 authority in a bundle is its certificate's.";

    J1a "J-1a" Must Jwt "JWT-SVID 5.1"
        "A JWT-SVID is three base64url parts with dots between, without padding.";
    J1b "J-1b" Must Socket "JWT-SVID 5.1"
        "ValidateJWTSVID refuses a token in JSON serialisation.";
    J2a "J-2a" Must Jwt "JWT-SVID 2.1"
        "`alg` is one of RS, ES or PS with 256, 384 or 512.";
    J2b "J-2b" Must Socket "JWT-SVID 2.1, 4"
        "ValidateJWTSVID refuses `none`, HMAC with the public key, and what is no algorithm.";
    J3 "J-3" Should Jwt "JWT-SVID 2.2"
        "A token names its key by `kid`: the specification leaves that open, known verifiers do not.";
    J4 "J-4" Must Jwt "JWT-SVID 2.3"
        "`typ`, if there is one, is `JWT` or `JOSE`.";
    J5 "J-5" Must Jwt "JWT-SVID 2"
        "The header has nothing but `alg`, `kid` and `typ`.";
    J6 "J-6" Must Jwt "JWT-SVID 3.1"
        "`sub` is the SPIFFE ID of the workload.";
    J7a "J-7a" Must Jwt "JWT-SVID 3.2"
        "`aud` has each audience that was asked for.";
    J7b "J-7b" Must Socket "JWT-SVID 3.2"
        "ValidateJWTSVID refuses a token that was made for another audience, also for one whose name contains ours.";
    J7c "J-7c" Must Socket "JWT-SVID 3.2"
        "ValidateJWTSVID accepts a token for each of several audiences.";
    J8a "J-8a" Must Jwt "JWT-SVID 3.3"
        "`exp` is a number and lies ahead.";
    J8b "J-8b" Should Jwt "RFC 7519 4.1.5, 4.1.6"
        "`nbf` and `iat` do not lie ahead.";
    J9a "J-9a" Must Jwt "JWT-SVID 4"
        "The token is signed by a key in the bundle of its subject's own trust domain.";
    J9b "J-9b" Must Socket "JWT-SVID 4"
        "ValidateJWTSVID refuses a token whose signature, claims or header somebody changed.";
    J10 "J-10" Should Client "JWT-SVID 5.2, 5.3"
        "Tokens travel as `Bearer` in the header `authorization`.";
    J11a "J-11a" Must Bundle "JWT-SVID 6.1"
        "A JWT key in a bundle has a `kid`.";
    J11b "J-11b" Must Bundle "RFC 7517 4.5"
        "No two JWT keys of a bundle have one `kid`.";

    B1a "B-1a" Must Bundle "Trust_Domain_and_Bundle 4.1.3"
        "A bundle is a JSON object with an array `keys`, which may be empty.";
    B1b "B-1b" Should Bundle "RFC 8259 4"
        "No object of a bundle has one member twice.";
    B2a "B-2a" Should Bundle "Trust_Domain_and_Bundle 4.1.1"
        "A bundle has a `spiffe_sequence`.";
    B2b "B-2b" Must Bundle "Trust_Domain_and_Bundle 4.1.1"
        "`spiffe_sequence` is an integer.";
    B2c "B-2c" Must Endpoint "Trust_Domain_and_Bundle 4.1.1"
        "`spiffe_sequence` never falls, and another content has another one.";
    B3a "B-3a" Should Bundle "Trust_Domain_and_Bundle 4.1.2"
        "A bundle has a `spiffe_refresh_hint`.";
    B3b "B-3b" Must Bundle "Trust_Domain_and_Bundle 4.1.2"
        "`spiffe_refresh_hint` is a whole number of seconds.";
    B4a "B-4a" Must Bundle "Trust_Domain_and_Bundle 4.2.1"
        "Each key has a `kty`.";
    B4b "B-4b" Must Bundle "Trust_Domain_and_Bundle 4.2.2"
        "Each key has a `use`, which is not a known one in other letters.";
    B4c "B-4c" Must Bundle "Trust_Domain_and_Bundle 3"
        "No key of a bundle shows its private half.";
    B4d "B-4d" Should Bundle "Trust_Domain_and_Bundle 4.2"
        "Keys have no members that no specification names.";
    B5a "B-5a" Must Map "Trust_Domain_and_Bundle 5.1.1"
        "A bundle map has an object `trust_domains` of bundles by the names of trust domains.";
    B5b "B-5b" Must Map "Trust_Domain_and_Bundle 5.1.1"
        "A bundle map names no trust domain twice.";
    B5c "B-5c" Should Map "Trust_Domain_and_Bundle 5.1.1"
        "Bundles in a map have no refresh hint of their own.";

    W1a "W-1a" Must Socket "Workload_API 5, 6"
        "The profiles for X.509 and JWT are there.";
    W1b "W-1b" Must Socket "Workload_API 7"
        "The profile for WIT is there, or answers Unimplemented.";
    W2a "W-2a" Must Socket "Workload_API 2, Endpoint 7"
        "The Workload API has no methods and no fields of somebody's own.";
    W2b "W-2b" Should Socket "Endpoint 7"
        "The endpoint has gRPC server reflection.";
    W3 "W-3" Must Socket "Endpoint 3, 3.1, 5"
        "The endpoint is gRPC, without TLS and without a secret of the client's.";
    W4a "W-4a" Must Socket "Endpoint 3, 6"
        "A call without the metadata `workload.spiffe.io` is refused with InvalidArgument.";
    W4b "W-4b" Must Socket "Endpoint 3"
        "Only the value `true`, in lower case, is one.";
    W5 "W-5" Must Socket "Endpoint 4"
        "The address is `unix:///absolute/path` or `tcp://IP:port`, and nothing more.";
    W6a "W-6a" Should Socket "Workload_API 4.5"
        "A request without a mandatory field is refused with InvalidArgument.";
    W6b "W-6b" Should Socket "Workload_API 6.2.1"
        "An identity that is somebody else's is refused with PermissionDenied.";
    W6c "W-6c" Should Socket "Endpoint 6"
        "A caller without an identity is refused with PermissionDenied.";
    W7a "W-7a" Must Socket "Workload_API 4.3"
        "The first message of a stream comes without delay.";
    W7b "W-7b" Must Socket "Workload_API 4.3"
        "Each message is the whole state: another stream begins with the same one.";
    W8a "W-8a" Must Socket "Workload_API 5.2.1"
        "An answer has one SVID or more, each with every mandatory field.";
    W8b "W-8b" Must Socket "Workload_API 5.1"
        "The chain is DER, the leaf first, and nothing besides.";
    W8c "W-8c" Must Socket "Workload_API 5.1"
        "The private key is unencrypted PKCS#8 in DER, and the leaf's.";
    W8d "W-8d" Must Socket "Workload_API 5.1"
        "The SPIFFE ID beside an SVID is the one in it.";
    W8e "W-8e" Must Socket "Workload_API 5.1"
        "Bundles are certificates in DER, one after the other.";
    W8f "W-8f" Must Socket "Workload_API 5.1"
        "Federated bundles are named by the SPIFFE IDs of foreign trust domains.";
    W8g "W-8g" Must Socket "Workload_API 5.1"
        "Revocation lists are DER.";
    W9a "W-9a" Must Socket "Workload_API 5.2.1"
        "No two SVIDs of an answer have one hint.";
    W9b "W-9b" Should Socket "Workload_API 8"
        "A hint has at most 1024 bytes.";
    W10 "W-10" Must Socket "Workload_API 8"
        "The first SVID, which is the default identity, is the same one on each stream.";
    W11a "W-11a" Must Socket "Workload_API 6.2.1"
        "FetchJWTSVID without a SPIFFE ID gives tokens for all identities of the caller.";
    W11b "W-11b" Must Socket "Workload_API 6.2.1"
        "FetchJWTSVID with a SPIFFE ID gives tokens for that one.";
    W11c "W-11c" Must Socket "Workload_API 6.2.2"
        "FetchJWTBundles gives JWK Sets of JWT keys, and no other keys.";
    W11d "W-11d" Must Socket "Workload_API 6.2.3"
        "ValidateJWTSVID believes a good token, and gives its SPIFFE ID and its claims `sub`, `aud` and `exp`.";
    W12a "W-12a" Must Socket "Workload_API 5.2.2"
        "FetchX509Bundles has the bundle of the own trust domain, the one that comes with the SVID.";
    W12b "W-12b" Must Socket "Workload_API 6.2.2"
        "FetchJWTBundles has the bundle of the own trust domain.";
    W12c "W-12c" Must Socket "Workload_API 5.1, 6.1"
        "Bundles are named by the SPIFFE IDs of trust domains.";

    F1a "F-1a" Must Endpoint "Federation 5"
        "The endpoint is HTTPS and speaks TLS 1.3.";
    F1b "F-1b" Must Endpoint "Federation 5"
        "The endpoint refuses TLS 1.0 and 1.1.";
    F2 "F-2" Must Endpoint "Federation 5.2.1.1, 5.2.2.1"
        "The URL has the scheme `https` and no user.";
    F3a "F-3a" Must Endpoint "Federation 5.2.1.3, 5.2.2.3"
        "GET gives the bundle, in UTF-8.";
    F3b "F-3b" Should Endpoint "Federation 5.2.1.3, 5.2.2.3"
        "The content type is `application/json`.";
    F3c "F-3c" Must Endpoint "Federation 5.2.1.3, 5.2.2.3"
        "The endpoint demands no certificate and no credentials of its clients.";
    F4a "F-4a" Must Endpoint "Federation 5.2.2.3"
        "With https_spiffe the server's certificate is an X.509-SVID of the ID that was agreed, under the bundle at hand.";
    F4b "F-4b" Must Endpoint "Federation 5.2.1.3"
        "With https_web the server's certificate is good for the host, under the roots of the web.";
    F4c "F-4c" Must Endpoint "Federation 5.2.2.4"
        "The bundle of an endpoint that serves its own trust domain vouches for the endpoint itself.";
    F5a "F-5a" Must Endpoint "Federation 5.2.1.3, 5.2.2.3"
        "A redirect leads to an https URL without a user.";
    F5b "F-5b" Should Endpoint "Federation 5.2.1.3, 5.2.2.3"
        "A redirect is a temporary one.";
    F6 "F-6" Should Client "Federation 6.2"
        "Clients ask again at the refresh hint, and after a failure at the next one.";
    F7 "F-7" Should Bundle "Federation 7.3"
        "An authority vouches for one trust domain: it names no other one and stands in no second bundle.";
}

// === impl Clause ===

impl Clause {
    /// The clause of this name.
    pub fn of(id: Id) -> &'static Self {
        // INVARIANT: `Id` and `CLAUSES` are one list, so that the discriminant is the place in it.
        CLAUSES.get(id as usize).unwrap_or(&FIRST)
    }

    /// Whether a pattern of `--only` names it: a name, or the beginning of one and `*`. `X-4` names X-4a to X-4d.
    pub fn matches(&self, pattern: &str) -> bool {
        let (name, pattern) = (self.name.to_ascii_lowercase(), pattern.to_ascii_lowercase());
        match pattern.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => name == pattern || name.trim_end_matches(|c: char| c.is_ascii_lowercase()) == pattern,
        }
    }
}

/// What [`Clause::of`] gives for no id that there is.
static FIRST: Clause = Clause {
    id: Id::Id1,
    name: "ID-1",
    level: Level::Must,
    needs: Needs::X509,
    section: "SPIFFE-ID 2",
    text: "",
};

// === impl Level, Needs ===

impl Level {
    /// As RFC 2119 writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Must => "MUST",
            Self::Should => "SHOULD",
        }
    }
}

impl Needs {
    /// The word in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Socket => "socket",
            Self::X509 => "x509-svid",
            Self::Jwt => "jwt-svid",
            Self::Bundle => "bundle",
            Self::Map => "bundle-map",
            Self::Endpoint => "endpoint",
            Self::Client => "client",
        }
    }

    /// Why nothing was judged.
    pub(crate) fn missing(self) -> &'static str {
        match self {
            Self::Socket => "no answer of a Workload API was at hand: name one with `--socket`",
            Self::X509 => "no X.509-SVID was at hand: name a Workload API with `--socket`, or a file with `--svid`",
            Self::Jwt => "no JWT-SVID was at hand: name a Workload API with `--socket`, or a file with `--jwt`",
            Self::Bundle => {
                "no trust bundle was at hand: name a file with `--bundle`, or an endpoint with `--bundle-endpoint`"
            }
            Self::Map => "no bundle map was at hand: name a file with `--bundle-map`",
            Self::Endpoint => "no bundle endpoint was at hand: name one with `--bundle-endpoint`",
            Self::Client => "it binds clients, and this suite judges servers and what they give",
        }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Clause::of(*self).name)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_clause_is_named_once_and_found_by_its_id() {
        let names: BTreeSet<_> = CLAUSES.iter().map(|clause| clause.name).collect();
        assert_eq!(names.len(), CLAUSES.len());
        for clause in CLAUSES {
            assert_eq!(Clause::of(clause.id).name, clause.name);
            assert!(clause.text.ends_with('.') && !clause.section.is_empty(), "{clause:?}");
        }
        // Each clause of the check list, if in several parts.
        let lists = [("ID", 6), ("X", 10), ("J", 11), ("B", 5), ("W", 12), ("F", 7)];
        for (family, count) in lists {
            for number in 1..=count {
                let pattern = format!("{family}-{number}");
                assert!(CLAUSES.iter().any(|clause| clause.matches(&pattern)), "{pattern}");
            }
        }
    }

    #[test]
    fn patterns() {
        let check = |pattern: &str, expected: &[&str]| {
            let found: Vec<_> = CLAUSES.iter().filter(|clause| clause.matches(pattern)).collect();
            assert_eq!(
                found.iter().map(|clause| clause.name).collect::<Vec<_>>(),
                expected,
                "{pattern}"
            );
        };
        check("X-4", &["X-4a", "X-4b", "X-4c", "X-4d"]);
        check("x-4C", &["X-4c"]);
        check("x-1", &["X-1"]);
        check("ID-*", &["ID-1", "ID-2", "ID-3", "ID-4a", "ID-4b", "ID-5", "ID-6"]);
        check("X", &[]);
        check("", &[]);
    }
}
