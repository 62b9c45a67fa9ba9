//! Templates at the CA: it makes the name of what an agent says of a workload, beneath the prefix, and so many for each node and no more.

use hoplite_identity::X509Svid;
use hoplite_wire::ca::{
    AttestedValues, Entry, IssueItem, IssueJwtRequest, IssueRequest, ListEntriesRequest, Selector, UpdateEntriesRequest,
};

use crate::acts::issuances;
use crate::world::{Agent, World, config, csr, entry, svid};

fn selector(text: &str) -> Selector {
    let (kind, value) = text.match_indices(':').nth(1).map(|(at, _)| text.split_at(at)).unwrap();
    Selector {
        kind: kind.into(),
        value: value[1..].into(),
    }
}

/// For every process of the node.
fn template(path: &str, node: &str) -> Entry {
    Entry {
        selectors: Vec::new(),
        ..entry(path, node)
    }
}

/// What the agent asks for, and what comes of it: the path of the SVID, or why there is none.
async fn issue(agent: &mut Agent, id: &str, values: &[&str]) -> String {
    let (pair, csr) = csr();
    let item = IssueItem {
        entry_id: id.to_owned(),
        csr,
        values: values.iter().map(|text| selector(text)).collect(),
    };
    let issued = agent.client.issue(IssueRequest { items: vec![item] }).await;
    let result = issued.unwrap().into_inner().results.remove(0);
    match result.error.is_empty() {
        true => X509Svid::spiffe_id(&svid(&pair, result.chain)).path().to_owned(),
        false => result.error,
    }
}

async fn issue_jwt(agent: &mut Agent, ids: &[&str], values: &[&[&str]]) -> Vec<Result<String, String>> {
    let asked = IssueJwtRequest {
        entry_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        audience: vec!["vault".to_owned()],
        values: (values.iter())
            .map(|values| AttestedValues {
                selectors: values.iter().map(|text| selector(text)).collect(),
            })
            .collect(),
    };
    let results = agent.client.issue_jwt(asked).await.unwrap().into_inner().results;
    let subject = |token: &str| {
        let claims = token.split('.').nth(1).unwrap();
        let claims = data_encoding::BASE64URL_NOPAD.decode(claims.as_bytes()).unwrap();
        let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
        claims.get("sub").unwrap().as_str().unwrap().to_owned()
    };
    let result = results.into_iter().map(|result| match result.error.is_empty() {
        true => Ok(subject(&result.token)),
        false => Err(result.error),
    });
    result.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_claims_values_stays_beneath_the_prefix_and_within_its_bound() {
    let dir = tempfile::tempdir().unwrap();
    let settings = hoplite_ca::Config {
        template_names_per_node: 2,
        ..config(dir.path())
    };
    let ca = hoplite_ca::start(settings).await.unwrap();
    let world = World { dir, ca };
    let by_user = world.register(template("/user/{unix:user}", "n1")).await;
    let fixed = world.register(entry("/web", "n1")).await;
    let mut agent = world.join("n1").await;
    let mut stranger = world.join("n2").await;

    assert_eq!(issue(&mut agent, &by_user, &["unix:user:ann"]).await, "/user/ann");
    // Values that would be elsewhere, or that are none.
    let refused: [(&[&str], &str); 11] = [
        (&["unix:user:../hoplite/ca"], "cannot stand in a SPIFFE ID"),
        (&["unix:user:.."], "cannot stand in a SPIFFE ID"),
        (&["unix:user:a/b"], "cannot stand in a SPIFFE ID"),
        (&["unix:user:a%2fb"], "cannot stand in a SPIFFE ID"),
        (&["unix:user:{unix:user}"], "`values`: "),
        (&["unix:user:ann", "unix:user:bob"], "there are several"),
        (&["unix:user:ann", "unix:uid:0"], "has no place for `unix:uid:0`"),
        (&["unix:uid:0"], "has no place for `unix:uid:0`"),
        (&["token:label:web"], "has no place for `token:label:web`"),
        (&["nonsense:kind:x"], "`values`: `nonsense:kind` is no selector kind"),
        (&[], "needs a value of `unix:user`"),
    ];
    for (values, expected) in refused {
        let refused = issue(&mut agent, &by_user, values).await;
        assert!(refused.contains(expected), "{values:?}: {refused}");
    }
    // Of an entry that is not its own, and of one that is no template.
    let refused = issue(&mut stranger, &by_user, &["unix:user:ann"]).await;
    assert!(refused.contains("no such entry"), "{refused}");
    let refused = issue(&mut agent, &fixed, &["unix:user:ann"]).await;
    assert!(
        refused.contains("`spiffe://prod.example/web` has no place for"),
        "{refused}"
    );
    assert_eq!(issue(&mut agent, &fixed, &[]).await, "/web");

    // Names are counted, of certificates and tokens together; what was refused for another reason is not.
    let tokens = issue_jwt(&mut agent, &[&by_user, &fixed], &[&["unix:user:bob"], &[]]).await;
    let subjects: Vec<&str> = tokens.iter().map(|token| token.as_deref().unwrap()).collect();
    assert_eq!(
        subjects,
        ["spiffe://prod.example/user/bob", "spiffe://prod.example/web"]
    );
    let refused = issue(&mut agent, &by_user, &["unix:user:cyd"]).await;
    assert!(
        refused.contains("this node has 2 names of the template") && refused.contains("template_names_per_node"),
        "{refused}"
    );
    let refused = issue_jwt(&mut agent, &[&by_user], &[&["unix:user:cyd"]]).await;
    assert!(
        refused[0].as_ref().unwrap_err().contains("this node has 2 names"),
        "{refused:?}"
    );
    assert_eq!(
        issue(&mut agent, &by_user, &["unix:user:ann"]).await,
        "/user/ann",
        "again"
    );
    let mut incomplete = agent.client.clone();
    let asked = IssueJwtRequest {
        entry_ids: vec![by_user.clone(), fixed.clone()],
        audience: vec!["vault".to_owned()],
        values: vec![AttestedValues::default()],
    };
    let refused = incomplete.issue_jwt(asked).await.unwrap_err();
    assert!(refused.message().contains("`values` for 1 of 2 entries"), "{refused}");

    // The log has the name and what it was made of.
    let mut found = issuances(world.dir.path());
    found.retain(|issuance| issuance.entry.as_ref() == Some(&by_user));
    let found: Vec<_> = found
        .into_iter()
        .map(|issuance| (issuance.subject, issuance.values))
        .collect();
    let made = |user: &str| {
        (
            format!("spiffe://prod.example/user/{user}"),
            vec![format!("unix:user:{user}")],
        )
    };
    assert_eq!(found, [made("ann"), made("bob"), made("ann")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_is_registered_listed_changed_and_there_after_a_restart() {
    let world = World::start().await;
    let path = "/k8s/{k8s:ns}/{k8s:sa}";
    let id = world.register(template(path, "n1")).await;
    for (bad, expected) in [
        ("/{k8s:ns}", "first segment"),
        ("/hoplite/{k8s:ns}", "Hoplite's own parts"),
        ("/k8s/{node:name}", "no process has"),
    ] {
        let asked = hoplite_wire::ca::CreateEntriesRequest {
            entries: vec![template(bad, "n1")],
        };
        let result = world.admin().await.create_entries(asked).await.unwrap().into_inner();
        assert!(
            result.results[0].error.contains(expected),
            "{bad}: {:?}",
            result.results
        );
    }
    let world = world.restart().await.unwrap();
    let listed = async |under: &str| {
        let asked = ListEntriesRequest {
            spiffe_id_prefix: format!("spiffe://prod.example{under}"),
            ..ListEntriesRequest::default()
        };
        world
            .admin()
            .await
            .list_entries(asked)
            .await
            .unwrap()
            .into_inner()
            .entries
    };
    let mut entries = listed("/k8s").await;
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].spiffe_id, format!("spiffe://prod.example{path}"));
    let mut agent = world.join("n1").await;
    assert_eq!(
        issue(&mut agent, &id, &["k8s:ns:pay", "k8s:sa:api"]).await,
        "/k8s/pay/api"
    );
    entries[0].spiffe_id = "spiffe://prod.example/ns/{k8s:ns}/sa/{k8s:sa}".to_owned();
    entries[0].selectors = vec![selector("k8s:ns:pay")];
    let asked = UpdateEntriesRequest { entries };
    let updated = world
        .admin()
        .await
        .update_entries(asked)
        .await
        .unwrap()
        .into_inner()
        .results;
    assert_eq!(updated[0].error, "");
    assert_eq!(
        issue(&mut agent, &id, &["k8s:ns:pay", "k8s:sa:api"]).await,
        "/ns/pay/sa/api"
    );
    // Whatever the agent says: the entry is for another namespace.
    let refused = issue(&mut agent, &id, &["k8s:ns:web", "k8s:sa:api"]).await;
    assert!(
        refused.contains("the entry is for processes with `k8s:ns:pay`"),
        "{refused}"
    );
}
