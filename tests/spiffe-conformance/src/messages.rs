//! The messages of the Workload API and of server reflection, written by hand: this suite shares no code with whom it judges.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;

#[derive(Clone, PartialEq, Message)]
pub(crate) struct X509SvidResponse {
    #[prost(message, repeated, tag = "1")]
    pub(crate) svids: Vec<X509Svid>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub(crate) crl: Vec<Vec<u8>>,
    #[prost(btree_map = "string, bytes", tag = "3")]
    pub(crate) federated_bundles: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct X509Svid {
    #[prost(string, tag = "1")]
    pub(crate) spiffe_id: String,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) x509_svid: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) x509_svid_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    pub(crate) bundle: Vec<u8>,
    #[prost(string, tag = "5")]
    pub(crate) hint: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct X509BundlesResponse {
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub(crate) crl: Vec<Vec<u8>>,
    #[prost(btree_map = "string, bytes", tag = "2")]
    pub(crate) bundles: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct JwtSvidRequest {
    #[prost(string, repeated, tag = "1")]
    pub(crate) audience: Vec<String>,
    #[prost(string, tag = "2")]
    pub(crate) spiffe_id: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct JwtSvidResponse {
    #[prost(message, repeated, tag = "1")]
    pub(crate) svids: Vec<JwtSvid>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct JwtSvid {
    #[prost(string, tag = "1")]
    pub(crate) spiffe_id: String,
    #[prost(string, tag = "2")]
    pub(crate) svid: String,
    #[prost(string, tag = "3")]
    pub(crate) hint: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct JwtBundlesResponse {
    #[prost(btree_map = "string, bytes", tag = "1")]
    pub(crate) bundles: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ValidateJwtSvidRequest {
    #[prost(string, tag = "1")]
    pub(crate) audience: String,
    #[prost(string, tag = "2")]
    pub(crate) svid: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ValidateJwtSvidResponse {
    #[prost(string, tag = "1")]
    pub(crate) spiffe_id: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) claims: Option<prost_types::Struct>,
}

/// A request of server reflection, of either version.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ReflectionRequest {
    #[prost(string, optional, tag = "4")]
    pub(crate) file_containing_symbol: Option<String>,
    #[prost(string, optional, tag = "7")]
    pub(crate) list_services: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ReflectionResponse {
    #[prost(message, optional, tag = "4")]
    pub(crate) files: Option<Files>,
    #[prost(message, optional, tag = "6")]
    pub(crate) services: Option<Services>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Files {
    #[prost(message, repeated, tag = "1")]
    pub(crate) file: Vec<File>,
}

/// A file descriptor travels as bytes: a message within one, as far as the encoding goes.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct File {
    #[prost(message, repeated, tag = "6")]
    pub(crate) service: Vec<Service>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Services {
    #[prost(message, repeated, tag = "1")]
    pub(crate) service: Vec<Service>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Service {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(message, repeated, tag = "2")]
    pub(crate) method: Vec<Method>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Method {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
}

/// The numbers of the fields that a message has, and the contents of those of one number.
pub(crate) fn fields(mut message: &[u8], of: u64) -> Option<(BTreeSet<u64>, Vec<&[u8]>)> {
    let (mut numbers, mut contents) = (BTreeSet::new(), Vec::new());
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        let number = tag >> 3;
        numbers.insert(number);
        let length = match tag & 7 {
            0 => {
                varint(&mut message)?;
                0
            }
            1 => 8,
            2 => usize::try_from(varint(&mut message)?).ok()?,
            5 => 4,
            _ => return None,
        };
        let (content, rest) = message.split_at_checked(length)?;
        if number == of {
            contents.push(content);
        }
        message = rest;
    }
    Some((numbers, contents))
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_messages_are_the_standards() {
        let theirs = hoplite_wire::workload::X509svidResponse {
            svids: vec![hoplite_wire::workload::X509svid {
                spiffe_id: "a".to_owned(),
                x509_svid: vec![1],
                x509_svid_key: vec![2],
                bundle: vec![3],
                hint: "h".to_owned(),
            }],
            crl: vec![vec![4]],
            federated_bundles: [("b".to_owned(), vec![5])].into(),
        };
        let bytes = theirs.encode_to_vec();
        let ours = X509SvidResponse::decode(bytes.as_slice()).unwrap();
        assert_eq!(ours.encode_to_vec(), bytes);
        assert_eq!(
            (ours.svids[0].x509_svid_key.as_slice(), ours.svids[0].hint.as_str()),
            (&[2][..], "h")
        );
        let (numbers, svids) = fields(&bytes, 1).unwrap();
        assert_eq!(numbers, [1, 2, 3].into());
        assert_eq!(fields(svids[0], 0).unwrap().0, [1, 2, 3, 4, 5].into());

        let asked = hoplite_wire::workload::JwtsvidRequest {
            audience: vec!["a".to_owned(), "b".to_owned()],
            spiffe_id: "c".to_owned(),
        };
        let ours = JwtSvidRequest::decode(asked.encode_to_vec().as_slice()).unwrap();
        assert_eq!((ours.audience.len(), ours.spiffe_id.as_str()), (2, "c"));
        assert!(fields(&[0x0a, 5, 1], 0).is_none());
    }
}
