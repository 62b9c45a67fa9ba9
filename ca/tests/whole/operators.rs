//! Operators over the network: what each role may do, and everybody who may not, by whatever trick.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hoplite_host::config::Span;
use hoplite_identity::testing::TestAuthority;
use hoplite_identity::{BundleSet, PeerVerifier, X509Svid, tls};
use hoplite_wire::ca::admin_client::AdminClient;
use hoplite_wire::ca::{
    ApplyEntriesRequest, CreateEntriesRequest, CreateOperatorTokenRequest, DeleteEntriesRequest, Entry,
    FetchPolicyRequest, FetchSignersRequest, IssueRequest, JoinRequest, ListAgentsRequest, ListEntriesRequest,
    ListOperatorsRequest, OperatorRequest, PublishPolicyRequest, RenewRequest, ShowBundleRequest, SignOutRequest,
    UpdateEntriesRequest, WatchRequest, WhoAmIRequest,
};
use hoplite_wire::channel;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::world::{DOMAIN, World, agent_id, config, csr, entry, svid};

pub(crate) type Admin = AdminClient<Channel>;

impl World {
    async fn invite(&self, name: &str, roles: &[&str], paths: &[&str]) -> Result<String, Status> {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let request = CreateOperatorTokenRequest {
            name: name.to_owned(),
            roles: texts(roles),
            paths: texts(paths),
            ..CreateOperatorTokenRequest::default()
        };
        let answer = self.admin().await.create_operator_token(request).await?;
        Ok(answer.into_inner().token)
    }

    async fn sign_in_with(&self, token: &str) -> Result<X509Svid, Status> {
        let (pair, csr) = csr();
        let token = token.to_owned();
        let mut client = self.connect(None).await.unwrap();
        let answer = client.login(JoinRequest { token, csr }).await?.into_inner();
        Ok(svid(&pair, answer.chain))
    }

    pub(crate) async fn sign_in(&self, name: &str, roles: &[&str], paths: &[&str]) -> (X509Svid, Admin) {
        let token = self.invite(name, roles, paths).await.unwrap();
        let svid = self.sign_in_with(&token).await.unwrap();
        let admin = self.admin_as(Some(&svid)).await;
        (svid, admin)
    }

    /// The admin API on the CA's port.
    async fn admin_as(&self, svid: Option<&X509Svid>) -> Admin {
        self.try_admin_as(svid).await.unwrap()
    }

    async fn try_admin_as(&self, svid: Option<&X509Svid>) -> Result<Admin, tonic::transport::Error> {
        let bundle = self.ca.bundle();
        let ca = bundle.trust_domain().ca();
        let verifier = Arc::new(PeerVerifier::new(BundleSet::from_iter([bundle])).unwrap());
        let config = tls::client_config(svid, verifier, ca, &[b"h2"]).unwrap();
        let channel = channel::tls(self.ca.node_address().to_string(), config).await?;
        Ok(AdminClient::new(channel).max_encoding_message_size(usize::MAX))
    }

    async fn start_with(change: impl FnOnce(&mut hoplite_ca::Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        change(&mut config);
        let ca = hoplite_ca::start(config).await.unwrap();
        Self { dir, ca }
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, parts: &[&str]) {
    let status = answer.unwrap_err();
    assert_eq!(status.code(), code, "{status}");
    for part in parts {
        assert!(
            status.message().contains(part),
            "`{part}` is missing from `{}`",
            status.message()
        );
    }
}

async fn create(admin: &mut Admin, entries: Vec<Entry>) -> Result<Vec<String>, Status> {
    let answer = admin
        .create_entries(CreateEntriesRequest { entries })
        .await?
        .into_inner();
    Ok(answer
        .results
        .into_iter()
        .filter_map(|result| Some(result.entry?.id))
        .collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_is_who_it_is_and_may_what_its_roles_say() {
    let world = World::start().await;
    let (svid, mut admin) = world.sign_in("ann", &["policy"], &[]).await;
    let name = format!("spiffe://{DOMAIN}/hoplite/operator/ann");
    assert_eq!(svid.spiffe_id().as_str(), name);
    let life = svid
        .leaf()
        .not_after()
        .duration_since(svid.leaf().not_before())
        .unwrap();
    assert!(life <= Duration::from_secs(8 * 3600 + 60), "{life:?}");

    let me = admin.who_am_i(WhoAmIRequest {}).await.unwrap().into_inner();
    assert_eq!((me.who.as_str(), me.spiffe_id), ("operator `ann`", name));
    assert_eq!(me.roles, ["policy"]);
    assert!(me.actions.contains(&"PublishPolicy".to_owned()) && !me.actions.contains(&"BanAgent".to_owned()));
    assert_eq!(me.bundle.unwrap().sequence, world.ca.bundle().sequence());
    let local = world
        .admin()
        .await
        .who_am_i(WhoAmIRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(
        local.who.starts_with("local user") && local.expires_at_unix == 0,
        "{local:?}"
    );

    admin.list_agents(ListAgentsRequest {}).await.unwrap();
    let told = ["operator `ann`", "`CreateEntries`", "no admin policy permits it"];
    refused(
        create(&mut admin, vec![entry("/a", "n1")]).await,
        Code::PermissionDenied,
        &told,
    );
    let request = CreateOperatorTokenRequest {
        name: "eve".into(),
        roles: vec!["admin".into()],
        ..CreateOperatorTokenRequest::default()
    };
    refused(
        admin.create_operator_token(request).await,
        Code::PermissionDenied,
        &["`CreateOperatorToken`"],
    );

    // Other roles hold from the next call on, on the same connection.
    let _ = world.invite("ann", &["auditor"], &[]).await.unwrap();
    let publish = admin.publish_policy(PublishPolicyRequest::default()).await;
    refused(publish, Code::PermissionDenied, &["`PublishPolicy`"]);
    let listed = admin
        .list_operators(ListOperatorsRequest {})
        .await
        .unwrap()
        .into_inner()
        .operators;
    assert_eq!(
        (listed.len(), listed[0].signed_in, &listed[0].roles[..]),
        (1, 1, &["auditor".to_owned()][..])
    );
    refused(
        world.invite("ann", &["adnim"], &[]).await,
        Code::InvalidArgument,
        &["`adnim`", "`admin`"],
    );
    refused(
        world.invite("ann", &["local"], &[]).await,
        Code::InvalidArgument,
        &["cannot be given"],
    );
    refused(world.invite("new", &[], &[]).await, Code::InvalidArgument, &["--role"]);
    world.invite("ann", &[], &[]).await.unwrap();
    world.ca.stop().await;
}

/// Whoever may register below a path touches nothing else: not by moving an entry in or out, and not by the list of an owner.
#[tokio::test(flavor = "multi_thread")]
async fn an_editor_stays_below_its_path() {
    let world = World::start().await;
    let (_, mut admin) = world.sign_in("ed", &["entries"], &["/ns/pay"]).await;
    let theirs = world.register(entry("/ns/shop/web", "n1")).await;
    let beside = world.register(entry("/ns/payroll", "n1")).await;
    let own = create(&mut admin, vec![entry("/ns/pay/web", "n1")])
        .await
        .unwrap()
        .remove(0);
    let denied = |answer: Result<(), Status>| refused(answer, Code::PermissionDenied, &["operator `ed`", "/ns/"]);

    denied(
        create(&mut admin, vec![entry("/ns/pay/b", "n1"), entry("/ns/shop/b", "n1")])
            .await
            .map(drop),
    );
    denied(create(&mut admin, vec![entry("/ns/payroll/x", "n1")]).await.map(drop));
    let update = |id: &str, path: &str| UpdateEntriesRequest {
        entries: vec![Entry {
            id: id.to_owned(),
            hint: "h".into(),
            ..entry(path, "n1")
        }],
    };
    denied(admin.update_entries(update(&theirs, "/ns/shop/web")).await.map(drop));
    denied(admin.update_entries(update(&own, "/ns/shop/moved")).await.map(drop));
    denied(admin.update_entries(update(&theirs, "/ns/pay/moved")).await.map(drop));
    admin.update_entries(update(&own, "/ns/pay/web")).await.unwrap();
    let delete = |ids: &[&String]| DeleteEntriesRequest {
        ids: ids.iter().map(|id| (*id).clone()).collect(),
    };
    denied(admin.delete_entries(delete(&[&theirs])).await.map(drop));
    denied(admin.delete_entries(delete(&[&own, &beside])).await.map(drop));

    // An entry of the owner lies elsewhere: what would prune it does nothing at all.
    let mut owned = entry("/ns/shop/owned", "n1");
    owned.owner = "team".into();
    world.register(owned).await;
    let apply = |prune: bool, dry_run: bool| ApplyEntriesRequest {
        entries: vec![entry("/ns/pay/listed", "n1")],
        owner: "team".into(),
        prune,
        dry_run,
    };
    denied(admin.apply_entries(apply(true, false)).await.map(drop));
    denied(admin.apply_entries(apply(true, true)).await.map(drop));
    let foreign = ApplyEntriesRequest {
        entries: vec![entry("/ns/shop/web", "n1")],
        ..ApplyEntriesRequest::default()
    };
    denied(admin.apply_entries(foreign).await.map(drop));
    admin.apply_entries(apply(false, false)).await.unwrap();

    let paths = |entries: Vec<Entry>| {
        let mut paths: Vec<String> = entries.into_iter().map(|entry| entry.spiffe_id).collect();
        paths.sort();
        paths
            .into_iter()
            .map(|id| id.replace(&format!("spiffe://{DOMAIN}"), ""))
            .collect::<Vec<_>>()
    };
    let all = world
        .admin()
        .await
        .list_entries(ListEntriesRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        paths(all.entries),
        [
            "/ns/pay/listed",
            "/ns/pay/web",
            "/ns/payroll",
            "/ns/shop/owned",
            "/ns/shop/web"
        ]
    );
    let seen = admin
        .list_entries(ListEntriesRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        paths(seen.entries),
        ["/ns/pay/listed", "/ns/pay/web"],
        "and no others are shown"
    );
    let by_id = ListEntriesRequest {
        id: theirs,
        ..ListEntriesRequest::default()
    };
    assert!(admin.list_entries(by_id).await.unwrap().into_inner().entries.is_empty());
    world.ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_of_one_kind_and_for_one_key() {
    let world = World::start().await;
    let token = world.invite("ann", &["admin"], &[]).await.unwrap();
    refused(
        world.try_join(&token, csr().1).await,
        Code::PermissionDenied,
        &["hoplite login"],
    );
    let node = world.token("n1").await;
    refused(
        world.sign_in_with(&node).await,
        Code::PermissionDenied,
        &["agent's", "--operator"],
    );
    // Neither was spent by that.
    world.try_join(&node, csr().1).await.unwrap();
    let request = |csr: Vec<u8>| JoinRequest {
        token: token.clone(),
        csr,
    };
    let (_, csr_of_ann) = csr();
    let mut client = world.connect(None).await.unwrap();
    client.login(request(csr_of_ann.clone())).await.unwrap();
    client
        .login(request(csr_of_ann))
        .await
        .expect("the answer may have been lost");
    refused(
        world.sign_in_with(&token).await,
        Code::PermissionDenied,
        &["another key"],
    );
    refused(
        world.sign_in_with("guessed").await,
        Code::PermissionDenied,
        &["not known"],
    );
    // One that is out when its operator is banned or removed lets nobody in.
    for ban in [true, false] {
        let token = world.invite("bob", &["admin"], &[]).await.unwrap();
        let request = OperatorRequest { name: "bob".into() };
        let mut admin = world.admin().await;
        match ban {
            true => drop(admin.ban_operator(request.clone()).await.unwrap()),
            false => drop(admin.remove_operator(request.clone()).await.unwrap()),
        }
        refused(world.sign_in_with(&token).await, Code::PermissionDenied, &[]);
        if ban {
            refused(
                world.invite("bob", &["admin"], &[]).await,
                Code::FailedPrecondition,
                &["banned"],
            );
            admin.remove_operator(request).await.unwrap();
        }
    }
    world.ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ban_a_removal_and_a_sign_out_hold_at_once() {
    let world = World::start().await;
    let (_, mut boss) = world.sign_in("boss", &["admin"], &[]).await;
    let (svid, mut admin) = world.sign_in("ann", &["admin"], &[]).await;
    let name = || OperatorRequest { name: "ann".into() };
    admin.list_agents(ListAgentsRequest {}).await.unwrap();
    boss.ban_operator(name()).await.unwrap();
    refused(
        admin.list_agents(ListAgentsRequest {}).await,
        Code::PermissionDenied,
        &["`ann` is banned"],
    );
    let mut anew = world.admin_as(Some(&svid)).await;
    refused(
        anew.who_am_i(WhoAmIRequest {}).await,
        Code::PermissionDenied,
        &["banned"],
    );
    boss.remove_operator(name()).await.unwrap();
    refused(
        admin.list_agents(ListAgentsRequest {}).await,
        Code::PermissionDenied,
        &["removed"],
    );
    refused(boss.remove_operator(name()).await, Code::NotFound, &["operator list"]);

    // The one of the same name that comes after has nothing of the old one's.
    let (second, mut again) = world.sign_in("ann", &["auditor"], &[]).await;
    refused(
        admin.list_agents(ListAgentsRequest {}).await,
        Code::Unauthenticated,
        &["sign in anew"],
    );
    again.list_agents(ListAgentsRequest {}).await.unwrap();

    // A newer certificate for the older one; both end with the sign-out of either.
    let (pair, request) = csr();
    let answer = again
        .renew_operator(RenewRequest { csr: request })
        .await
        .unwrap()
        .into_inner();
    let renewed = self::svid(&pair, answer.chain);
    assert_eq!(renewed.spiffe_id(), second.spiffe_id());
    let mut newer = world.admin_as(Some(&renewed)).await;
    newer.who_am_i(WhoAmIRequest {}).await.unwrap();
    again.who_am_i(WhoAmIRequest {}).await.unwrap();
    newer.sign_out(SignOutRequest {}).await.unwrap();
    for admin in [&mut newer, &mut again] {
        refused(
            admin.who_am_i(WhoAmIRequest {}).await,
            Code::Unauthenticated,
            &["signed out"],
        );
    }
    // On the socket there is nothing to prolong.
    let mut local = world.admin().await;
    refused(
        local.renew_operator(RenewRequest { csr: csr().1 }).await,
        Code::FailedPrecondition,
        &["hoplite login"],
    );
    let world = world.restart().await.unwrap();
    let mut boss = world.admin().await;
    assert_eq!(
        boss.list_operators(ListOperatorsRequest {})
            .await
            .unwrap()
            .into_inner()
            .operators
            .len(),
        2
    );
    world.ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_else_is_refused() {
    let world = World::start().await;
    let mut agent = world.join("n1").await;
    let id = world.register(entry("/hoplites", "n1")).await;
    let (pair, request) = csr();
    let issued = agent.issue(vec![(id, request)]).await.unwrap().remove(0);
    let workload = svid(&pair, issued.chain);
    let (operator, mut admin) = world.sign_in("ann", &["admin"], &[]).await;

    let ask = async |svid: Option<&X509Svid>| {
        let mut admin = world.admin_as(svid).await;
        admin.show_bundle(ShowBundleRequest {}).await
    };
    refused(ask(None).await, Code::Unauthenticated, &["hoplite login"]);
    refused(
        ask(Some(&agent.svid)).await,
        Code::PermissionDenied,
        &["none of an operator"],
    );
    refused(
        ask(Some(&workload)).await,
        Code::PermissionDenied,
        &["workload", "no admin policy"],
    );
    ask(Some(&operator)).await.unwrap();

    // Names of operators that another authority made, of this trust domain and of another one.
    for domain in [DOMAIN, "other.example"] {
        let stranger = TestAuthority::new(domain).svid("/hoplite/operator/ann", Duration::from_secs(600));
        let asked = match world.try_admin_as(Some(&stranger)).await {
            Ok(mut admin) => admin.show_bundle(ShowBundleRequest {}).await.map(drop),
            Err(error) => Err(Status::unavailable(error.to_string())),
        };
        assert!(asked.is_err(), "{domain}");
        let code = asked.unwrap_err().code();
        assert!(
            !matches!(code, Code::Ok | Code::PermissionDenied),
            "refused in the handshake, not by name: {code}"
        );
    }

    // Nobody can be registered under such a name.
    for path in ["/hoplite/operator/eve", "/hoplite/operator", "/hoplite/operator/ann/x"] {
        let request = CreateEntriesRequest {
            entries: vec![entry(path, "n1")],
        };
        let answer = admin.create_entries(request).await.unwrap().into_inner();
        assert!(
            answer.results[0].error.contains("reserved") || answer.results[0].entry.is_none(),
            "{path}"
        );
    }
    // An agent of an operator's name is an agent, and an operator of an agent's is none.
    assert_eq!(agent_id("ann"), world.join("ann").await.svid.spiffe_id().as_str());

    // An operator is no agent, whatever it may do as an operator.
    let mut node = world.connect(Some(&operator)).await.unwrap();
    let no = |answer: Result<(), Status>| refused(answer, Code::PermissionDenied, &["only agents may call this"]);
    no(node.renew(RenewRequest { csr: csr().1 }).await.map(drop));
    no(node.watch(WatchRequest::default()).await.map(drop));
    no(node.issue(IssueRequest { items: vec![] }).await.map(drop));
    no(node.fetch_policy(FetchPolicyRequest { revision: 1 }).await.map(drop));
    no(node
        .fetch_signers(FetchSignersRequest { from_version: 0 })
        .await
        .map(drop));
    world.ca.stop().await;
}

/// Twenty megabytes are taken from who may publish, and not even read from others; agents' calls keep their own bound.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_call_is_only_for_who_may_make_it() {
    let world = World::start().await;
    let mut agent = world.join("n1").await;
    let large = || PublishPolicyRequest {
        bundle: vec![1; 20 << 20],
        expected_revision: 0,
    };
    let (_, mut publisher) = world.sign_in("pub", &["policy"], &[]).await;
    refused(publisher.publish_policy(large()).await, Code::InvalidArgument, &[]);
    let (_, mut auditor) = world.sign_in("aud", &["auditor"], &[]).await;
    refused(
        auditor.publish_policy(large()).await,
        Code::PermissionDenied,
        &["`PublishPolicy`"],
    );
    let mut nobody = world.admin_as(None).await;
    refused(
        nobody.publish_policy(large()).await,
        Code::Unauthenticated,
        &["hoplite login"],
    );
    let mut as_agent = world.admin_as(Some(&agent.svid)).await;
    refused(as_agent.publish_policy(large()).await, Code::PermissionDenied, &[]);
    let error = agent.issue(vec![("x".into(), vec![0; 5 << 20])]).await.unwrap_err();
    assert!(
        matches!(error.code(), Code::OutOfRange | Code::ResourceExhausted),
        "{error}"
    );
    world.ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_ends_with_its_certificate() {
    let world = World::start_with(|config| config.operator_ttl = Span(Duration::from_secs(5))).await;
    let (svid, mut admin) = world.sign_in("ann", &["admin"], &[]).await;
    admin.who_am_i(WhoAmIRequest {}).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let ended = loop {
        match admin.who_am_i(WhoAmIRequest {}).await {
            Ok(_) => assert!(Instant::now() < deadline, "it goes on"),
            Err(status) => break status,
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(ended.code(), Code::Unauthenticated, "{ended}");
    assert!(ended.message().contains("expired at"), "{ended}");
    let anew = match world.try_admin_as(Some(&svid)).await {
        Ok(mut admin) => admin.who_am_i(WhoAmIRequest {}).await.map(drop),
        Err(error) => Err(Status::unavailable(error.to_string())),
    };
    anew.unwrap_err();
    world.ca.stop().await;
}

/// A CI job with an SVID of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_workload_that_the_policies_name_may_what_they_say() {
    let policies = tempfile::tempdir().unwrap();
    let file = policies.path().join("admin.cedar");
    let text = format!(
        "@id(\"local\") permit (principal in Admin::Role::\"local\", action, resource);\n\
         @id(\"ci\") permit (principal == Admin::Workload::\"spiffe://{DOMAIN}/ci/deploy\",\n\
           action in [Admin::Action::\"ShowPolicy\", Admin::Action::\"PublishPolicy\"], resource)\n\
           when {{ context has source && context.source.isLoopback() }};\n"
    );
    fs::write(&file, text).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let world = World::start_with(|config| config.admin_policy_dir = Some(policies.path().to_owned())).await;
    let mut agent = world.join("n1").await;
    let mut client = async |path: &str| {
        let id = world.register(entry(path, "n1")).await;
        let (pair, request) = csr();
        let issued = agent.issue(vec![(id, request)]).await.unwrap().remove(0);
        world.admin_as(Some(&svid(&pair, issued.chain))).await
    };
    let mut ci = client("/ci/deploy").await;
    refused(
        ci.publish_policy(PublishPolicyRequest::default()).await,
        Code::InvalidArgument,
        &[],
    );
    refused(
        ci.list_agents(ListAgentsRequest {}).await,
        Code::PermissionDenied,
        &["`ListAgents`"],
    );
    let mut other = client("/ci/deploy2").await;
    refused(
        other.publish_policy(PublishPolicyRequest::default()).await,
        Code::PermissionDenied,
        &["/ci/deploy2"],
    );
    world.ca.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_that_cannot_be_used_start_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let policies = dir.path().join("policies");
    fs::create_dir(&policies).unwrap();
    let mut config = config(dir.path());
    config.admin_policy_dir = Some(policies.clone());
    let start = async || hoplite_ca::start(config.clone()).await.unwrap_err().to_string();
    assert!(start().await.contains("no `*.cedar` file"));
    fs::write(
        policies.join("a.cedar"),
        "\n@id(\"a\") permit (principal, action, resources);",
    )
    .unwrap();
    let error = start().await;
    assert!(error.contains("a.cedar:2") && !error.contains('\n'), "{error}");
}
