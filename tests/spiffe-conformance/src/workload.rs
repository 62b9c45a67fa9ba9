//! A Workload API judged: the endpoint, then what it gives of X.509; `workload_jwt` has the rest (W-1 to W-12).

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use prost::Message;
use tonic::Code;

use crate::address;
use crate::bundle;
use crate::clause::Id;
use crate::client::{Answer, Client};
use crate::der;
use crate::findings::Findings;
use crate::messages::{
    JwtSvidRequest, ReflectionRequest, ReflectionResponse, ValidateJwtSvidRequest, X509BundlesResponse,
    X509SvidResponse, fields,
};
use crate::spiffe_id;
use crate::x509::{self, Shown};

/// What the specification defines, and no more (W-2).
const METHODS: [&str; 7] = [
    "FetchX509SVID",
    "FetchX509Bundles",
    "FetchJWTSVID",
    "FetchJWTBundles",
    "ValidateJWTSVID",
    "FetchWITSVID",
    "FetchWITBundles",
];

const HINT_BYTES_MAX: usize = 1024;

/// How long this suite waits.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// For any answer.
    pub patience: Duration,
    /// A stream's first message that takes longer was delayed.
    pub delay: Duration,
    /// How long a stream of SVIDs is watched for more messages.
    pub watch: Duration,
}

/// What the Workload API gave, as far as later questions need it.
#[derive(Debug, Default)]
pub(crate) struct Given {
    /// The SPIFFE IDs of the caller, in their order.
    pub(crate) ids: Vec<String>,
    /// Without the scheme.
    pub(crate) trust_domain: String,
    /// DER, of the own trust domain.
    pub(crate) bundle: Vec<u8>,
    hints: Vec<String>,
    foreign: BTreeMap<String, Vec<u8>>,
}

/// Judges a Workload API but for its tokens. Gives the connection and what came over it, if there was one.
pub(crate) async fn judge(
    findings: &mut Findings,
    socket: &str,
    limits: Limits,
    clock: fn() -> SystemTime,
) -> Option<(Client, Option<Given>)> {
    let address = match address::parse(socket) {
        Ok(address) => address,
        Err(why) => {
            findings.fail(Id::W5, format!("`{socket}`: {why}"));
            return None;
        }
    };
    findings.pass(Id::W5);
    let client = match Client::connect(&address, limits.patience).await {
        Ok(client) => client,
        Err(error) => {
            findings.fail(Id::W3, format!("`{socket}` cannot be reached: {}", chain(&error)));
            return None;
        }
    };
    if !judge_header(findings, &client).await {
        return None;
    }
    judge_methods(findings, &client).await;
    let given = judge_streams(findings, &client, limits, clock).await;
    Some((client, given))
}

/// An error and what is behind it, each said once.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| match cause.to_string() {
        said if text.ends_with(&said) => text,
        cause => format!("{text}: {cause}"),
    })
}

/// A message for each method with everything that it demands.
fn whole(method: &str) -> Vec<u8> {
    let audience = "spiffe-conformance".to_owned();
    match method {
        "FetchJWTSVID" => JwtSvidRequest {
            audience: vec![audience],
            spiffe_id: String::new(),
        }
        .encode_to_vec(),
        "ValidateJWTSVID" => ValidateJwtSvidRequest {
            audience,
            svid: "a.b.c".to_owned(),
        }
        .encode_to_vec(),
        _ => Vec::new(),
    }
}

/// W-3, W-4. Whether there is a gRPC server at all.
async fn judge_header(findings: &mut Findings, client: &Client) -> bool {
    for method in METHODS.iter().take(5) {
        let answer = client.call_with(method, &[], whole(method)).await;
        if is_not_grpc(&answer) {
            findings.fail(Id::W3, format!("{method} is answered with {}", answer.shown()));
            return false;
        }
        findings.pass(Id::W3);
        if answer.code() == Some(Code::Unimplemented) {
            findings.skip(Id::W4a, format!("{method} is not there"));
            continue;
        }
        findings.check(Id::W4a, answer.code() == Some(Code::InvalidArgument), || {
            format!("{method} without the header is answered with {}", answer.shown())
        });
        for value in ["True", "TRUE", "1", "false", "", "truetrue"] {
            let answer = client.call_with(method, &[value], whole(method)).await;
            findings.check(Id::W4b, answer.code() == Some(Code::InvalidArgument), || {
                format!(
                    "{method} with `workload.spiffe.io: {value}` is answered with {}",
                    answer.shown()
                )
            });
        }
    }
    true
}

/// Whether an answer is none of a gRPC server: there is something else behind it than a status that was sent.
fn is_not_grpc(answer: &Answer) -> bool {
    match answer {
        Answer::Refused(status) => std::error::Error::source(status).is_some(),
        Answer::Silent => true,
        Answer::Message(..) | Answer::Nothing => false,
    }
}

/// W-1 and W-2.
async fn judge_methods(findings: &mut Findings, client: &Client) {
    for method in METHODS {
        let answer = client.call_with(method, &["true"], whole(method)).await;
        let code = answer.code();
        let is_there = code != Some(Code::Unimplemented);
        if method.contains("WIT") {
            let is_good = !is_there || matches!(&answer, Answer::Message(..)) || code == Some(Code::PermissionDenied);
            findings.check(Id::W1b, is_good, || {
                format!("{method} is answered with {}", answer.shown())
            });
        } else {
            findings.check(Id::W1a, is_there, || format!("{method} is not there"));
        }
    }
    let own = client.call_with("FetchEverything", &["true"], Vec::new()).await;
    findings.check(Id::W2a, own.code() == Some(Code::Unimplemented), || {
        format!("a method that nobody defines is answered with {}", own.shown())
    });
    let mut is_reflected = false;
    for version in ["v1", "v1alpha"] {
        let ask = async |request: ReflectionRequest| {
            let path = format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
            match client.call_path(&path, &["true"], request.encode_to_vec()).await {
                Answer::Message(bytes, _) => ReflectionResponse::decode(bytes.as_slice()).ok(),
                _ => None,
            }
        };
        let listed = ask(ReflectionRequest {
            list_services: Some(String::new()),
            ..ReflectionRequest::default()
        });
        let services = listed
            .await
            .and_then(|response| response.services)
            .unwrap_or_default()
            .service;
        is_reflected |= services.iter().any(|service| service.name == "SpiffeWorkloadAPI");
        let described = ask(ReflectionRequest {
            file_containing_symbol: Some("SpiffeWorkloadAPI".to_owned()),
            ..ReflectionRequest::default()
        });
        let files = described
            .await
            .and_then(|response| response.files)
            .unwrap_or_default()
            .file;
        let services = files.iter().flat_map(|file| &file.service);
        for method in services
            .filter(|service| service.name == "SpiffeWorkloadAPI")
            .flat_map(|it| &it.method)
        {
            findings.check(Id::W2a, METHODS.contains(&method.name.as_str()), || {
                format!("the Workload API has the method `{}`", method.name)
            });
        }
    }
    findings.check(Id::W2b, is_reflected, || {
        "server reflection does not name SpiffeWorkloadAPI".to_owned()
    });
}

/// FetchX509SVID and FetchX509Bundles.
async fn judge_streams(
    findings: &mut Findings,
    client: &Client,
    limits: Limits,
    clock: fn() -> SystemTime,
) -> Option<Given> {
    let first = client.call_with("FetchX509SVID", &["true"], Vec::new()).await;
    let bytes = match &first {
        Answer::Message(bytes, took) => {
            judge_delay(findings, "FetchX509SVID", *took, limits);
            findings.skip(
                Id::W6c,
                "this caller has an identity: run the suite as one that has none",
            );
            bytes
        }
        Answer::Refused(status) if status.code() == Code::Unimplemented => return None,
        Answer::Refused(status) => {
            findings.check(Id::W6c, status.code() == Code::PermissionDenied, || {
                format!("a caller without an SVID is answered with {}", first.shown())
            });
            return None;
        }
        Answer::Nothing | Answer::Silent => {
            findings.fail(Id::W7a, format!("FetchX509SVID is answered with {}", first.shown()));
            return None;
        }
    };
    let given = judge_x509(findings, bytes, clock())?;
    judge_again(findings, client, &given).await;
    if !limits.watch.is_zero() {
        let mut count = 0;
        let watched = client.watch("FetchX509SVID", limits.watch, |bytes| {
            count += 1;
            judge_x509(findings, &bytes, clock());
        });
        let watched = watched.await;
        findings.check(Id::W7a, count > 0, || {
            format!("a stream that was watched said nothing: {watched:?}")
        });
    }
    judge_bundles(findings, client, limits, &given).await;
    Some(given)
}

/// W-7b and W-10: another stream says the same.
async fn judge_again(findings: &mut Findings, client: &Client, given: &Given) {
    let Answer::Message(bytes, _) = client.call_with("FetchX509SVID", &["true"], Vec::new()).await else {
        findings.fail(Id::W7b, "a second stream has no first message");
        return;
    };
    let Ok(again) = X509SvidResponse::decode(bytes.as_slice()) else {
        return;
    };
    let ids: Vec<_> = again.svids.iter().map(|svid| svid.spiffe_id.clone()).collect();
    findings.check(Id::W10, ids.first() == given.ids.first(), || {
        format!(
            "the default identity is {:?}, and a moment later {:?}",
            given.ids.first(),
            ids.first()
        )
    });
    let sets = [&ids, &given.ids].map(|ids| ids.iter().collect::<BTreeSet<_>>());
    let hints: Vec<_> = again.svids.iter().map(|svid| svid.hint.clone()).collect();
    let is_same = sets[0] == sets[1] && hints.len() == given.hints.len() && again.federated_bundles == given.foreign;
    findings.check(Id::W7b, is_same, || {
        format!(
            "one stream begins with {:?} and {} federated bundles, the next with {ids:?} and {}",
            given.ids,
            given.foreign.len(),
            again.federated_bundles.len()
        )
    });
}

fn judge_delay(findings: &mut Findings, method: &str, took: Duration, limits: Limits) {
    findings.check(Id::W7a, took <= limits.delay, || {
        format!("the first message of {method} took {} ms", took.as_millis())
    });
}

/// Judges one message of FetchX509SVID.
fn judge_x509(findings: &mut Findings, bytes: &[u8], now: SystemTime) -> Option<Given> {
    let response = match X509SvidResponse::decode(bytes) {
        Ok(response) => response,
        Err(error) => {
            findings.fail(Id::W8a, format!("the answer of FetchX509SVID cannot be read: {error}"));
            return None;
        }
    };
    judge_fields(
        findings,
        "X509SVIDResponse",
        bytes,
        &[1, 2, 3],
        Some((1, "X509SVID", &[1, 2, 3, 4, 5])),
    );
    findings.check(Id::W8a, !response.svids.is_empty(), || {
        "an answer has no SVIDs".to_owned()
    });
    judge_hints(findings, response.svids.iter().map(|svid| svid.hint.as_str()));
    if response.crl.is_empty() {
        findings.not_applicable(Id::W8g, "there are no revocation lists");
    }
    for list in &response.crl {
        let elements = der::elements(list).map(|elements| elements.len());
        findings.check(Id::W8g, elements == Ok(1), || {
            "a revocation list is not one element of DER".to_owned()
        });
    }
    let own = response
        .svids
        .first()
        .and_then(|svid| spiffe_id::parts(&svid.spiffe_id));
    let own = own.map(|parts| parts.trust_domain.to_owned()).unwrap_or_default();
    judge_names(
        findings,
        Id::W8f,
        "federated bundle",
        response.federated_bundles.keys(),
        Some(&own),
    );
    let mut foreign = Vec::new();
    for (name, bundle) in &response.federated_bundles {
        match der::certificates(bundle) {
            Ok(authorities) => foreign.push((name.as_str(), authorities)),
            Err(why) => findings.fail(Id::W8e, format!("the bundle of `{name}`: {why}")),
        }
    }
    for svid in &response.svids {
        let what = format!("the SVID of `{}`", svid.spiffe_id);
        let missing: Vec<_> = [
            ("spiffe_id", svid.spiffe_id.is_empty()),
            ("x509_svid", svid.x509_svid.is_empty()),
            ("x509_svid_key", svid.x509_svid_key.is_empty()),
            ("bundle", svid.bundle.is_empty()),
        ]
        .into_iter()
        .filter_map(|(name, is_missing)| is_missing.then_some(name))
        .collect();
        findings.check(Id::W8a, missing.is_empty(), || format!("{what} lacks {missing:?}"));
        let chain = match der::certificates(&svid.x509_svid) {
            Ok(chain) => chain,
            Err(why) => {
                findings.fail(Id::W8b, format!("{what}: {why}"));
                continue;
            }
        };
        let distinct: BTreeSet<_> = chain
            .iter()
            .map(|certificate| certificate.tbs_certificate.as_ref())
            .collect();
        findings.check(Id::W8b, distinct.len() == chain.len(), || {
            format!("{what} has a certificate twice")
        });
        let Some(leaf) = chain.first() else { continue };
        let is_ca = leaf
            .basic_constraints()
            .ok()
            .flatten()
            .is_some_and(|constraints| constraints.value.ca);
        findings.check(Id::W8b, !is_ca || chain.len() == 1, || {
            format!("{what} does not begin with the leaf")
        });
        match x509::is_key_of(&svid.x509_svid_key, leaf) {
            Ok(()) => findings.pass(Id::W8c),
            Err(why) => findings.fail(Id::W8c, format!("{what}: {why}")),
        }
        let named = x509::spiffe_id(leaf).map(str::to_owned);
        findings.check(Id::W8d, named.as_deref() == Some(&svid.spiffe_id), || {
            format!("beside `{}` stands an SVID of {named:?}", svid.spiffe_id)
        });
        let authorities = der::certificates(&svid.bundle);
        match &authorities {
            Ok(authorities) => findings.check(Id::W8e, !authorities.is_empty(), || {
                format!("{what} has an empty bundle")
            }),
            Err(why) => findings.fail(Id::W8e, format!("the bundle of {what}: {why}")),
        }
        let shown = Shown {
            what: &what,
            chain,
            authorities: Some(authorities.unwrap_or_default()),
            foreign: foreign.clone(),
        };
        x509::judge(findings, &shown, now);
    }
    let bundle = response
        .svids
        .first()
        .map(|svid| svid.bundle.clone())
        .unwrap_or_default();
    let all = response.federated_bundles.iter().chain([(&own, &bundle)]);
    let all = all.filter_map(|(name, der)| {
        let elements = der::elements(der).ok()?.into_iter().map(<[u8]>::to_vec);
        Some((name.clone(), elements.collect()))
    });
    bundle::judge_shared(findings, &all.collect::<Vec<_>>());
    Some(Given {
        ids: response.svids.iter().map(|svid| svid.spiffe_id.clone()).collect(),
        hints: response.svids.iter().map(|svid| svid.hint.clone()).collect(),
        trust_domain: own,
        bundle,
        foreign: response.federated_bundles,
    })
}

/// W-9.
pub(crate) fn judge_hints<'a>(findings: &mut Findings, hints: impl Iterator<Item = &'a str>) {
    let mut seen = BTreeSet::new();
    for hint in hints {
        findings.check(Id::W9a, hint.is_empty() || seen.insert(hint), || {
            format!("two SVIDs have the hint `{hint}`")
        });
        findings.check(Id::W9b, hint.len() <= HINT_BYTES_MAX, || {
            format!("a hint has {} bytes", hint.len())
        });
    }
}

/// That bundles are named by the SPIFFE IDs of trust domains; of foreign ones, if the own one is said.
pub(crate) fn judge_names<'a>(
    findings: &mut Findings,
    id: Id,
    what: &str,
    names: impl Iterator<Item = &'a String>,
    own: Option<&str>,
) {
    let mut is_empty = true;
    for name in names {
        is_empty = false;
        let parts = spiffe_id::parts(name);
        let is_good = parts.is_some_and(|parts| {
            spiffe_id::is_trust_domain(parts.trust_domain) && parts.path.is_empty() && own != Some(parts.trust_domain)
        });
        findings.check(id, is_good, || format!("a {what} is named `{name}`"));
    }
    if is_empty {
        findings.not_applicable(id, format!("there is no {what}"));
    }
}

/// W-2: no field of somebody's own, in a message and in those of one of its fields.
pub(crate) fn judge_fields(
    findings: &mut Findings,
    what: &str,
    bytes: &[u8],
    known: &[u64],
    inner: Option<(u64, &str, &[u64])>,
) {
    let Some((numbers, contents)) = fields(bytes, inner.map_or(0, |(number, ..)| number)) else {
        return;
    };
    let unknown: Vec<_> = numbers.iter().filter(|number| !known.contains(number)).collect();
    findings.check(Id::W2a, unknown.is_empty(), || {
        format!("{what} has the fields {unknown:?}, which are nobody's")
    });
    if let Some((_, what, known)) = inner {
        for content in contents {
            judge_fields(findings, what, content, known, None);
        }
    }
}

/// FetchX509Bundles (W-12).
async fn judge_bundles(findings: &mut Findings, client: &Client, limits: Limits, given: &Given) {
    let answer = client.call_with("FetchX509Bundles", &["true"], Vec::new()).await;
    let Answer::Message(bytes, took) = &answer else {
        findings.fail(
            Id::W12a,
            format!("FetchX509Bundles is answered with {}", answer.shown()),
        );
        return;
    };
    judge_delay(findings, "FetchX509Bundles", *took, limits);
    let Ok(response) = X509BundlesResponse::decode(bytes.as_slice()) else {
        findings.fail(Id::W12a, "the answer of FetchX509Bundles cannot be read");
        return;
    };
    judge_fields(findings, "X509BundlesResponse", bytes, &[1, 2], None);
    judge_names(findings, Id::W12c, "bundle", response.bundles.keys(), None);
    let own = response.bundles.get(&format!("spiffe://{}", given.trust_domain));
    let set = |der: &[u8]| -> BTreeSet<Vec<u8>> {
        let elements = der::elements(der).unwrap_or_default();
        elements.into_iter().map(<[u8]>::to_vec).collect()
    };
    findings.check(Id::W12a, own.is_some_and(|own| set(own) == set(&given.bundle)), || {
        let names: Vec<_> = response.bundles.keys().collect();
        format!("FetchX509Bundles has not the bundle that came with the SVID: {names:?}")
    });
    for (name, bundle) in &response.bundles {
        if let Err(why) = der::certificates(bundle) {
            findings.fail(Id::W8e, format!("the bundle of `{name}`: {why}"));
        }
    }
}
