//! Entries for groups of nodes: who is given them, live, and who cannot have them whatever it asks for.

use hoplite_wire::ca::{AgentRequest, CreateTokenRequest, Entry, JoinRequest, ListEntriesRequest, Selector, Update};
use tonic::{Code, Streaming};

use crate::world::{Agent, World, agent_id, csr, entry, next, svid};

fn selector(text: &str) -> Selector {
    let parts = text.rsplit_once(':').unwrap();
    Selector {
        kind: parts.0.into(),
        value: parts.1.into(),
    }
}

fn of_group(path: &str, selectors: &[&str]) -> Entry {
    Entry {
        parent_id: String::new(),
        node_selectors: selectors.iter().map(|text| selector(text)).collect(),
        ..entry(path, "")
    }
}

async fn token(world: &World, node: &str, labels: &[&str]) -> String {
    let request = CreateTokenRequest {
        node: node.into(),
        labels: labels.iter().map(|label| (*label).to_owned()).collect(),
        ..CreateTokenRequest::default()
    };
    let mut admin = world.admin().await;
    admin.create_token(request).await.unwrap().into_inner().token
}

async fn join(world: &World, node: &str, labels: &[&str]) -> Agent {
    let (pair, csr) = csr();
    let token = token(world, node, labels).await;
    let svid = svid(&pair, world.try_join(&token, csr).await.unwrap().chain);
    let client = world.connect(Some(&svid)).await.unwrap();
    Agent { svid, client }
}

/// The next update that has entries in it: those that came, and those that went.
async fn change(updates: &mut Streaming<Update>) -> (Vec<String>, Vec<String>) {
    loop {
        let Update { upserts, deletes, .. } = next(updates).await.unwrap();
        if !upserts.is_empty() || !deletes.is_empty() {
            return (upserts.into_iter().map(|entry| entry.id).collect(), deletes);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_given_to_its_nodes_and_to_no_other() {
    let world = World::start().await;
    let web = world.register(of_group("/web", &["token:label:web"])).await;
    let eu = world
        .register(of_group("/eu", &["token:label:eu", "token:label:web"]))
        .await;
    let own = world.register(entry("/web", "n1")).await; // the same SPIFFE ID, by another way

    let mut member = join(&world, "n1", &["web"]).await;
    let mut stranger = join(&world, "n2", &["we"]).await;
    let mut updates = member.watch(0).await;
    let mut first: Vec<_> = change(&mut updates).await.0;
    first.sort();
    let mut expected = [web.clone(), own.clone()];
    expected.sort();
    assert_eq!(first, expected);
    assert!(next(&mut stranger.watch(0).await).await.unwrap().upserts.is_empty());

    let issued = async |agent: &mut Agent, id: &String| {
        let results = agent.issue(vec![(id.clone(), csr().1)]).await.unwrap();
        results[0].error.is_empty()
    };
    assert!(issued(&mut member, &web).await && issued(&mut member, &own).await);
    assert!(!issued(&mut stranger, &web).await && !issued(&mut stranger, &own).await);
    assert!(!issued(&mut member, &eu).await);

    // What the group has changes, and its members are told.
    let late = world.register(of_group("/late", &["token:label:web"])).await;
    assert_eq!(change(&mut updates).await, (vec![late.clone()], vec![]));

    // The same node with another word for it: into one group and out of another, while it watches.
    let mut member = join(&world, "n1", &["eu", "web"]).await;
    let mut updates = member.watch(0).await;
    assert_eq!(change(&mut updates).await.0.len(), 4);
    let mut member = join(&world, "n1", &["eu"]).await;
    let mut updates = member.watch(0).await;
    assert_eq!(change(&mut updates).await.0, std::slice::from_ref(&own));
    assert!(!issued(&mut member, &web).await && !issued(&mut member, &eu).await);
    let asked = ListEntriesRequest {
        agent_id: agent_id("n1"),
        ..ListEntriesRequest::default()
    };
    let listed = world
        .admin()
        .await
        .list_entries(asked)
        .await
        .unwrap()
        .into_inner()
        .entries;
    assert_eq!(listed.iter().map(|entry| &entry.id).collect::<Vec<_>>(), [&own]);
    let alone = world
        .register(of_group("/alone", &["node:name:n1", "token:label:eu"]))
        .await;
    assert_eq!(change(&mut updates).await.0, [alone]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_invitation_brings_no_selector_back() {
    let world = World::start().await;
    let web = world.register(of_group("/web", &["token:label:web"])).await;
    let (wide, narrow) = (token(&world, "n1", &["web"]).await, token(&world, "n1", &[]).await);
    let (pair, csr_of_it) = csr();
    let mut client = world.connect(None).await.unwrap();
    let mut join = async |token: &str| {
        let request = JoinRequest {
            token: token.into(),
            csr: csr_of_it.clone(),
        };
        svid(&pair, client.join(request).await.unwrap().into_inner().chain)
    };
    let may_have = async |svid| {
        let client = world.connect(Some(&svid)).await.unwrap();
        let results = Agent { svid, client }.issue(vec![(web.clone(), csr().1)]).await;
        results.unwrap()[0].error.is_empty()
    };
    assert!(may_have(join(&wide).await).await);
    // An answer may be lost, and the same key asks again.
    assert!(may_have(join(&wide).await).await);
    assert!(!may_have(join(&narrow).await).await);
    assert!(!may_have(join(&wide).await).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_banned_is_in_no_group() {
    let world = World::start().await;
    let web = world.register(of_group("/web", &["token:label:web"])).await;
    let mut member = join(&world, "n1", &["web"]).await;
    let mut updates = member.watch(0).await;
    assert_eq!(change(&mut updates).await.0, std::slice::from_ref(&web));
    let request = AgentRequest {
        spiffe_id: agent_id("n1"),
    };
    world.admin().await.ban_agent(request).await.unwrap();
    assert_eq!(next(&mut updates).await.unwrap_err().code(), Code::PermissionDenied);
    let refused = member.issue(vec![(web.clone(), csr().1)]).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let asked = ListEntriesRequest {
        agent_id: agent_id("n1"),
        ..ListEntriesRequest::default()
    };
    assert!(
        world
            .admin()
            .await
            .list_entries(asked)
            .await
            .unwrap()
            .into_inner()
            .entries
            .is_empty()
    );
}
