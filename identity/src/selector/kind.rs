//! The table of selector kinds: what each says something about, of whom, and which values it takes.

use std::fmt;

use crate::{NODE_NAME_BYTES_MAX, ServiceName};

/// The longest value of a selector, in bytes: a path.
pub const SELECTOR_VALUE_BYTES_MAX: usize = 1024;

/// The longest user name, in bytes, as Linux has it.
const USER_BYTES_MAX: usize = 256;

/// The longest name of an object of Kubernetes, in bytes: a DNS subdomain.
const OBJECT_BYTES_MAX: usize = 253;

/// The longest label that an invitation grants, in bytes.
const LABEL_BYTES_MAX: usize = 128;

/// The longest name of a unit, in bytes, as systemd has it.
const UNIT_BYTES_MAX: usize = 255;

/// Units that processes run in. Other types of unit have none.
const UNIT_TYPES: [&str; 2] = [".service", ".scope"];

/// What a selector says something about. Each row is produced by an attestor: a new one comes with its attestor, see
/// `docs/guide/add-a-selector-kind.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SelectorKind {
    /// The container that the process is in, by its id.
    ContainerId,
    /// The name of the container, in its pod.
    K8sContainerName,
    /// The image of the container, as the pod asks for it and as the runtime has it.
    K8sImage,
    /// The name of the Kubernetes node.
    K8sNode,
    /// The Kubernetes namespace: of a process its pod's, of a node its agent's.
    K8sNs,
    /// The name of the pod.
    K8sPodName,
    /// The uid of the pod.
    K8sPodUid,
    /// The Kubernetes service account: of a process its pod's, of a node its agent's.
    K8sSa,
    /// The service that a supervisor launched the process as.
    LaunchName,
    /// The attestor that let the node in, by its name in the CA's configuration; `token` for join tokens.
    NodeAttestor,
    /// The name of the node: every agent has this one, by its SPIFFE ID.
    NodeName,
    /// A claim of the node's OpenID Connect token.
    OidcClaim,
    /// Who issued that token.
    OidcIss,
    /// The subject of that token.
    OidcSub,
    /// The unit of the system's systemd that the process runs in.
    SystemdUnit,
    /// The unit of a user's own systemd that the process runs in.
    SystemdUserUnit,
    /// A label that the invitation granted, with which the node joined.
    TokenLabel,
    /// SHA-256 of the endorsement key of the node's TPM.
    TpmEkSha256,
    /// The group id of the process.
    UnixGid,
    /// The path of the program that the process runs.
    UnixPath,
    /// SHA-256 of that program.
    UnixSha256,
    /// The user id of the process.
    UnixUid,
    /// The name that the user database gives the user id.
    UnixUser,
    /// The common name in the node's certificate of another authority.
    X509popCn,
    /// A DNS name in that certificate.
    X509popDns,
    /// The fingerprint of that certificate.
    X509popFingerprint,
    /// The fingerprint of the authority under which that certificate is.
    X509popRoot,
}

/// One row of the table.
struct Row {
    /// What stands before the value: who attests it, a colon, what is attested.
    text: &'static str,
    of: Of,
    values: Values,
    example: &'static str,
}

/// Of whom something is attested.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Process,
    Node,
    Both,
}

/// Which values a kind takes, each in one spelling.
#[derive(Clone, Copy)]
enum Values {
    Number,
    User,
    Path,
    Digest,
    Service,
    /// Of a node, a pod and so on.
    Object,
    PodUid,
    Image,
    Unit,
    UserUnit,
    Text,
    Claim,
    DnsName,
    NodeName,
    Label,
}

use Of::{Both, Node, Process};

const fn row(text: &'static str, of: Of, values: Values, example: &'static str) -> Row {
    Row {
        text,
        of,
        values,
        example,
    }
}

// === impl SelectorKind ===

impl SelectorKind {
    /// Every kind, in the order of their texts.
    pub const ALL: [Self; 27] = [
        Self::ContainerId,
        Self::K8sContainerName,
        Self::K8sImage,
        Self::K8sNode,
        Self::K8sNs,
        Self::K8sPodName,
        Self::K8sPodUid,
        Self::K8sSa,
        Self::LaunchName,
        Self::NodeAttestor,
        Self::NodeName,
        Self::OidcClaim,
        Self::OidcIss,
        Self::OidcSub,
        Self::SystemdUnit,
        Self::SystemdUserUnit,
        Self::TokenLabel,
        Self::TpmEkSha256,
        Self::UnixGid,
        Self::UnixPath,
        Self::UnixSha256,
        Self::UnixUid,
        Self::UnixUser,
        Self::X509popCn,
        Self::X509popDns,
        Self::X509popFingerprint,
        Self::X509popRoot,
    ];

    #[rustfmt::skip]
    fn row(self) -> Row {
        match self {
            Self::ContainerId => row("container:id", Process, Values::Digest, "container:id:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            Self::K8sContainerName => row("k8s:container-name", Process, Values::Object, "k8s:container-name:billing"),
            Self::K8sImage => row("k8s:image", Process, Values::Image, "k8s:image:registry.example/billing@sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            Self::K8sNode => row("k8s:node", Node, Values::Object, "k8s:node:worker-7"),
            Self::K8sNs => row("k8s:ns", Both, Values::Object, "k8s:ns:payments"),
            Self::K8sPodName => row("k8s:pod-name", Both, Values::Object, "k8s:pod-name:billing-0"),
            Self::K8sPodUid => row("k8s:pod-uid", Both, Values::PodUid, "k8s:pod-uid:0f0a6e2c-6f9a-4a0c-9e0e-5f8f7b1d2c3a"),
            Self::K8sSa => row("k8s:sa", Both, Values::Object, "k8s:sa:billing"),
            Self::LaunchName => row("launch:name", Process, Values::Service, "launch:name:billing"),
            Self::NodeAttestor => row("node:attestor", Node, Values::Service, "node:attestor:k8s-prod"),
            Self::NodeName => row("node:name", Node, Values::NodeName, "node:name:web-1"),
            Self::OidcClaim => row("oidc:claim", Node, Values::Claim, "oidc:claim:environment=prod"),
            Self::OidcIss => row("oidc:iss", Node, Values::Text, "oidc:iss:https://id.example.org"),
            Self::OidcSub => row("oidc:sub", Node, Values::Text, "oidc:sub:instance-17"),
            Self::SystemdUnit => row("systemd:unit", Process, Values::Unit, "systemd:unit:billing.service"),
            Self::SystemdUserUnit => row("systemd:user-unit", Process, Values::UserUnit, "systemd:user-unit:1000/sync.service"),
            Self::TokenLabel => row("token:label", Node, Values::Label, "token:label:web"),
            Self::TpmEkSha256 => row("tpm:ek-sha256", Node, Values::Digest, "tpm:ek-sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            Self::UnixGid => row("unix:gid", Process, Values::Number, "unix:gid:1000"),
            Self::UnixPath => row("unix:path", Process, Values::Path, "unix:path:/opt/billing-proxy"),
            Self::UnixSha256 => row("unix:sha256", Process, Values::Digest, "unix:sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            Self::UnixUid => row("unix:uid", Process, Values::Number, "unix:uid:1000"),
            Self::UnixUser => row("unix:user", Process, Values::User, "unix:user:billing"),
            Self::X509popCn => row("x509pop:cn", Node, Values::Text, "x509pop:cn:web-1"),
            Self::X509popDns => row("x509pop:dns", Node, Values::DnsName, "x509pop:dns:web-1.corp.example"),
            Self::X509popFingerprint => row("x509pop:fingerprint", Node, Values::Digest, "x509pop:fingerprint:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            Self::X509popRoot => row("x509pop:root", Node, Values::Digest, "x509pop:root:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        }
    }

    /// What stands before the value: who attests it, a colon, what is attested.
    pub fn as_str(self) -> &'static str {
        self.row().text
    }

    /// Whether processes are attested to have it.
    pub fn is_of_processes(self) -> bool {
        self.row().of != Node
    }

    /// Whether nodes are attested to have it.
    pub fn is_of_nodes(self) -> bool {
        self.row().of != Process
    }

    /// Whether a value can be a segment of a SPIFFE ID's path. Not each that it takes is one.
    pub fn can_be_a_segment(self) -> bool {
        let is_longer = matches!(self.row().values, Values::Path | Values::Image | Values::UserUnit);
        self.is_of_processes() && !is_longer
    }

    /// Which values it takes, for messages and documentation.
    pub fn rule(self) -> &'static str {
        match self.row().values {
            Values::Number => "a number from 0 to 4294967294 without sign and leading zeros",
            Values::User => "a name from the user database, 1 to 256 printable ASCII characters but `:`, `#` and `+`",
            Values::Path => "an absolute path, at most 1024 bytes, without `.`, `..`, `//` and a `/` at the end",
            Values::Digest => "64 hexadecimal digits in lower case",
            Values::Service => "a service name, 1 to 64 of `a-z`, `0-9`, `-`, `_` and `.`",
            Values::Object => "a name as Kubernetes has them, 1 to 253 of `a-z`, `0-9`, `-` and `.`",
            Values::PodUid => "the uid of a pod, 1 to 64 of `0-9`, `a-f` and `-`",
            Values::Image => "an image's name, at most 1024 printable ASCII characters without spaces",
            Values::Unit => "the name of a unit that ends with `.service` or `.scope`, without `/`",
            Values::UserUnit => "a user id, `/`, and the name of a unit that ends with `.service` or `.scope`",
            Values::Text => "a text of at most 1024 bytes without control characters",
            Values::Claim => "NAME=VALUE, at most 1024 bytes without control characters",
            Values::DnsName => "a DNS name in lower case",
            Values::NodeName => "a node's name, 1 to 128 of `a-z`, `A-Z`, `0-9`, `.`, `_` and `-`",
            Values::Label => "a label, 1 to 128 of `a-z`, `A-Z`, `0-9`, `.`, `_`, `-`, `/`, `=` and `:`",
        }
    }

    /// A selector of this kind.
    pub fn example(self) -> &'static str {
        self.row().example
    }

    /// Whether a process, or a node, can have this value, in just this spelling.
    pub(super) fn takes(self, value: &str) -> bool {
        let short = (1..=SELECTOR_VALUE_BYTES_MAX).contains(&value.len());
        short && self.row().values.take(value)
    }

    /// What exists and was perhaps meant: this kind with another spelling of the value, or another kind.
    pub(super) fn near(self, value: &str) -> Option<(Self, String)> {
        let trimmed = value.trim();
        let spelt = self.row().values.spelt(trimmed);
        if self.takes(&spelt) {
            return Some((self, spelt));
        }
        let is_name = !trimmed.bytes().all(|byte| byte.is_ascii_digit());
        match self {
            Self::UnixUid if is_name && Self::UnixUser.takes(trimmed) => Some((Self::UnixUser, trimmed.to_owned())),
            _ => None,
        }
    }
}

impl fmt::Display for SelectorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl Values ===

impl Values {
    fn take(self, value: &str) -> bool {
        match self {
            // The highest number means nobody: no process has it.
            Self::Number => value
                .parse::<u32>()
                .is_ok_and(|id| id != u32::MAX && id.to_string() == value),
            Self::User => {
                let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b':' | b'#' | b'+');
                value.len() <= USER_BYTES_MAX && value.bytes().all(plain)
            }
            Self::Path => {
                !value.chars().any(char::is_control)
                    && value
                        .strip_prefix('/')
                        .is_some_and(|rest| rest.split('/').all(|name| !matches!(name, "" | "." | "..")))
            }
            Self::Digest => value.len() == 64 && value.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')),
            Self::Service => ServiceName::check(value).is_ok(),
            Self::Object | Self::DnsName => is_object(value),
            Self::PodUid => value.len() <= 64 && value.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'-')),
            Self::Image => value.bytes().all(|byte| byte.is_ascii_graphic()),
            Self::Unit => is_unit(value),
            Self::UserUnit => {
                let parts = value.split_once('/');
                parts.is_some_and(|(uid, unit)| Self::Number.take(uid) && is_unit(unit))
            }
            Self::NodeName => {
                value.len() <= NODE_NAME_BYTES_MAX && value.bytes().all(is_word) && !matches!(value, "." | "..")
            }
            Self::Label => {
                value.len() <= LABEL_BYTES_MAX && value.bytes().all(|byte| is_word(byte) || b"/=:".contains(&byte))
            }
            Self::Text => !value.chars().any(char::is_control),
            Self::Claim => {
                let parts = value.split_once('=');
                !value.chars().any(char::is_control)
                    && parts.is_some_and(|(name, value)| !name.is_empty() && !value.is_empty())
            }
        }
    }

    /// The spelling that was perhaps meant.
    fn spelt(self, trimmed: &str) -> String {
        match self {
            Self::Number => {
                let digits = trimmed.strip_prefix('+').unwrap_or(trimmed).trim_start_matches('0');
                if digits.is_empty() && !trimmed.is_empty() {
                    "0"
                } else {
                    digits
                }
                .to_owned()
            }
            Self::Path => {
                let names = trimmed.split('/').filter(|name| !matches!(*name, "" | "."));
                let whole = names.fold(String::new(), |path, name| path + "/" + name);
                // A relative path could be below anything.
                if trimmed.starts_with('/') { whole } else { String::new() }
            }
            Self::User | Self::Image | Self::Text | Self::Claim | Self::NodeName | Self::Label => trimmed.to_owned(),
            Self::Digest => {
                let lower = trimmed.to_lowercase();
                lower.strip_prefix("sha256:").unwrap_or(&lower).to_owned()
            }
            Self::Service | Self::Object | Self::PodUid | Self::DnsName => trimmed.to_lowercase(),
            Self::Unit | Self::UserUnit => match trimmed.rsplit_once('.') {
                Some(_) => trimmed.to_owned(),
                None => format!("{trimmed}.service"),
            },
        }
    }
}

/// A DNS subdomain (RFC 1123), as Kubernetes takes it.
fn is_object(value: &str) -> bool {
    let is_label = |label: &str| {
        let plain = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'z' | b'-');
        !label.is_empty() && label.bytes().all(plain) && !label.starts_with('-') && !label.ends_with('-')
    };
    value.len() <= OBJECT_BYTES_MAX && value.split('.').all(is_label)
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._-".contains(&byte)
}

fn is_unit(value: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
    let is_type = |kind: &&str| value.strip_suffix(*kind).is_some_and(|name| !name.is_empty());
    value.len() <= UNIT_BYTES_MAX && value.bytes().all(plain) && UNIT_TYPES.iter().any(is_type)
}
