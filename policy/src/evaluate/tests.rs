//! The evaluator against the authorizer over every policy: the same decision, reasons and errors, as sets.

use super::*;
use cedar_policy::{Entity, RestrictedExpression, SlotId};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use std::collections::{BTreeSet, HashMap, HashSet};

/// Entities of three types in six levels; parents only from higher levels, so there is no cycle.
const NODES: usize = 18;
const LEVEL: usize = 3;
const ACTIONS: [&str; 4] = ["get", "put", "drop", "absent"];
const ACTION_GROUPS: [&str; 3] = ["read", "write", "any"];

fn uid(text: &str) -> EntityUid {
    text.parse().unwrap()
}

fn node(number: usize) -> String {
    format!("T{}::\"n{number}\"", number % 3)
}

fn action(name: &str) -> String {
    format!("Action::\"{name}\"")
}

/// A world of entities: for each its parents, and which are left out.
#[derive(Debug, Clone)]
struct World {
    parents: Vec<Vec<Index>>,
    absent: Vec<bool>,
    tier: Vec<Option<i64>>,
}

fn world() -> impl Strategy<Value = World> {
    let parents = vec(vec(any::<Index>(), 0..4), NODES);
    let tier = vec(prop::option::of(prop::sample::select(vec![0, 1, i64::MAX])), NODES);
    (parents, vec(prop::bool::weighted(0.15), NODES), tier).prop_map(|(parents, absent, tier)| World {
        parents,
        absent,
        tier,
    })
}

impl World {
    fn entities(&self) -> Entities {
        let mut all = Vec::new();
        for number in (0..NODES).filter(|&number| !self.absent[number]) {
            let above = (number / LEVEL + 1) * LEVEL;
            let parents = self.parents[number].iter().filter(|_| above < NODES);
            let parents: HashSet<_> = parents
                .map(|index| uid(&node(above + index.index(NODES - above))))
                .collect();
            let tier = self.tier[number].map(|tier| ("tier".to_owned(), RestrictedExpression::new_long(tier)));
            all.push(Entity::new(uid(&node(number)), tier.into_iter().collect(), parents).unwrap());
        }
        for (name, groups) in [
            ("get", &["read"][..]),
            ("put", &["write"]),
            ("drop", &["write", "any"]),
            ("read", &["any"]),
            ("write", &[]),
            ("any", &[]),
        ] {
            let groups = groups.iter().map(|group| uid(&action(group))).collect();
            all.push(Entity::new_no_attrs(uid(&action(name)), groups));
        }
        Entities::from_entities(all, None).unwrap()
    }
}

/// One side of a scope, with the slot of a template where `{}` stands.
fn side(name: &'static str) -> impl Strategy<Value = String> {
    let entity = || prop_oneof![4 => (0..NODES).prop_map(node), 1 => Just("T1::\"nowhere\"".to_owned())];
    let kind = || (0..3_usize).prop_map(|kind| format!("T{kind}"));
    let slot = prop_oneof![Just(format!("== ?{name}")), Just(format!("in ?{name}"))];
    prop_oneof![
        3 => Just(name.to_owned()),
        2 => kind().prop_map(move |kind| format!("{name} is {kind}")),
        3 => entity().prop_map(move |entity| format!("{name} == {entity}")),
        4 => entity().prop_map(move |entity| format!("{name} in {entity}")),
        2 => (kind(), entity()).prop_map(move |(kind, entity)| format!("{name} is {kind} in {entity}")),
        1 => slot.prop_map(move |slot| format!("{name} {slot}")),
        1 => kind().prop_map(move |kind| format!("{name} is {kind} in ?{name}")),
    ]
}

fn actions() -> impl Strategy<Value = String> {
    let name = || select([&ACTIONS[..], &ACTION_GROUPS[..]].concat()).prop_map(action);
    prop_oneof![
        2 => Just("action".to_owned()),
        2 => name().prop_map(|name| format!("action == {name}")),
        2 => name().prop_map(|name| format!("action in {name}")),
        2 => vec(name(), 0..4).prop_map(|names| format!("action in [{}]", names.join(", "))),
    ]
}

/// True, false and failing; with the context, without it, and with both.
const CONDITIONS: [&str; 19] = [
    "",
    "",
    "",
    "when { true }",
    "unless { true }",
    "when { context.n == 1 }",
    "when { context.n * 9223372036854775807 > 0 }",
    "when { context has word && context.word like \"a*\" }",
    "when { context.word == \"b\" }",
    "when { principal.tier == 1 }",
    "when { resource has tier && resource.tier + 1 > 0 }",
    "unless { principal in T0::\"n15\" || context.n == 0 }",
    "when { principal.tier == 0 } unless { context.n > 1 }",
    "when { principal == resource || action == Action::\"get\" }",
    "when { context has hdr && context.hdr has \"x-tenant\" }",
    "when { context.hdr has \"x-tenant\" && context.hdr[\"x-tenant\"] == \"acme\" }",
    "unless { context.hdr[\"x-tenant\"] like \"a*\" }",
    "when { context has hdr.accept && context.hdr.accept == context.word }",
    "when { {a: context} == {a: context} }",
];

fn policy() -> impl Strategy<Value = String> {
    let effect = prop_oneof![3 => Just("permit"), 1 => Just("forbid")];
    (
        effect,
        side("principal"),
        actions(),
        side("resource"),
        select(&CONDITIONS[..]),
    )
        .prop_map(|(effect, p, a, r, condition)| format!("{effect} ({p}, {a}, {r}) {condition};"))
}

/// Static policies, and templates each linked up to three times.
fn policy_set() -> impl Strategy<Value = (Vec<String>, Vec<[usize; 2]>)> {
    (vec(policy(), 1..60), vec([0..NODES, 0..NODES], 3))
}

fn parsed(texts: &[String], links: &[[usize; 2]]) -> PolicySet {
    let mut set: PolicySet = texts.concat().parse().unwrap();
    let templates: Vec<_> = set
        .templates()
        .map(|t| (t.id().clone(), t.slots().cloned().collect::<Vec<_>>()))
        .collect();
    for (template, slots) in templates {
        for (n, link) in links.iter().enumerate() {
            let values: HashMap<_, _> = slots
                .iter()
                .map(|slot| {
                    let which = usize::from(*slot == SlotId::resource());
                    (slot.clone(), uid(&node(link[which])))
                })
                .collect();
            set.link(template.clone(), PolicyId::new(format!("{template}-link{n}")), values)
                .unwrap();
        }
    }
    set
}

/// A context by its `n`, its `word` and its `hdr`: there is none, it is empty, or it has one or two headers.
type Fields = (
    i64,
    Option<&'static str>,
    Option<&'static [(&'static str, &'static str)]>,
);

const CONTEXTS: [Fields; 5] = [
    (0, None, None),
    (1, Some("abc"), Some(&[])),
    (3, Some("b"), Some(&[("x-tenant", "acme")])),
    (1, Some("*/*"), Some(&[("accept", "*/*"), ("x-tenant", "bcme")])),
    (2, None, Some(&[("accept", "text/plain")])),
];

fn context(which: usize) -> Context {
    let (number, word, headers) = CONTEXTS[which];
    let string = |text: &str| RestrictedExpression::new_string(text.to_owned());
    let word = word.map(|word| ("word".to_owned(), string(word)));
    let headers = headers.map(|headers| {
        let fields = headers.iter().map(|(name, value)| ((*name).to_owned(), string(value)));
        ("hdr".to_owned(), RestrictedExpression::new_record(fields).unwrap())
    });
    let number = ("n".to_owned(), RestrictedExpression::new_long(number));
    Context::from_pairs([number].into_iter().chain(word).chain(headers)).unwrap()
}

/// Decision, reasons and errors as sets.
fn sets(answer: &Answer) -> (bool, BTreeSet<String>, BTreeSet<(String, String)>) {
    let reasons = if answer.forbids.is_empty() {
        &answer.permits
    } else {
        &answer.forbids
    };
    let errors = answer.errors.iter().map(|(id, error)| (id.to_string(), error.clone()));
    (
        answer.allows(),
        reasons.iter().map(ToString::to_string).collect(),
        errors.collect(),
    )
}

fn call(principal: &str, name: &str, resource: &str, entities: &Entities) -> CallFacts {
    CallFacts {
        principal: uid(principal),
        action: uid(&action(name)),
        resource: uid(resource),
        entities: entities.clone(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn the_answer_is_that_of_the_authorizer_over_every_policy(
        world in world(),
        (texts, links) in policy_set(),
        requests in vec((0..NODES, select(&ACTIONS[..]), 0..NODES, 0..CONTEXTS.len()), 12),
    ) {
        let evaluator = Evaluator::new(parsed(&texts, &links));
        let entities = world.entities();
        for (principal, name, resource, which) in requests {
            let call = call(&node(principal), name, &node(resource), &entities);
            let reference = evaluator.reference(&call, context(which)).unwrap();
            let prepared = evaluator.prepare(call.clone()).unwrap();
            let answer = prepared.answer(context(which)).unwrap();
            prop_assert_eq!(sets(&answer), sets(&reference), "{} {} {}\n{}", call.principal, call.action, call.resource, texts.join("\n"));
            // Without forbids the reference says all permits.
            let permits: BTreeSet<_> = prepared.permits(context(which)).unwrap().iter().map(ToString::to_string).collect();
            if reference.forbids.is_empty() {
                prop_assert_eq!(permits, reference.permits.iter().map(ToString::to_string).collect());
            }
        }
    }
}

/// Small and complete: each bound once, no conditions, so that no posting list can be missing unnoticed.
#[test]
fn a_lost_posting_list_is_noticed() {
    let entities = World {
        parents: vec![vec![]; NODES],
        absent: vec![false; NODES],
        tier: vec![None; NODES],
    }
    .entities();
    let sides = |name: &str| {
        ["", " is T0", " == T0::\"n0\"", " in T0::\"n0\"", " is T0 in T0::\"n0\""].map(|rest| format!("{name}{rest}"))
    };
    let actions = [
        "action",
        "action == Action::\"get\"",
        "action in Action::\"any\"",
        "action in [Action::\"read\", Action::\"any\"]",
    ];
    let mut texts = Vec::new();
    for p in sides("principal") {
        for a in actions {
            for r in sides("resource") {
                texts.push(format!("permit ({p}, {a}, {r});"));
            }
        }
    }
    let set = parsed(&texts, &[]);
    let call = call(&node(0), "get", &node(0), &entities);
    let whole = Evaluator::new(set.clone());
    let reference = sets(&whole.reference(&call, context(0)).unwrap());
    assert_eq!(reference.1.len(), texts.len(), "every policy covers the call");
    assert_eq!(
        sets(&whole.prepare(call.clone()).unwrap().answer(context(0)).unwrap()),
        reference
    );
    // The type beside an `in` shares the bound; a list of two groups adds one more to the three bounds of actions.
    let postings = 4 * 4 * 4;
    let mut unnoticed = Vec::new();
    for which in 0..postings {
        let mut evaluator = Evaluator::new(set.clone());
        evaluator.index.drop_posting(which);
        let answer = evaluator.prepare(call.clone()).unwrap().answer(context(0)).unwrap();
        if sets(&answer) == reference {
            unnoticed.push(which);
        }
    }
    // `[read, any]` is filed twice, under `any` together with `in any`, and found by either: only the list of `read` alone may go.
    assert_eq!(unnoticed.len(), 4 * 4, "{unnoticed:?}");
}

#[test]
fn what_may_look_at_a_header_is_known() {
    for (condition, expected) in [
        ("", false),
        ("when { context.n == 1 }", false),
        ("when { context has word && context.word == \"hdr\" }", false),
        ("when { principal.hdr == 1 }", false),
        ("when { {hdr: context.n} == {hdr: 1} }", false),
        ("when { context has hdr }", true),
        ("when { context has hdr.accept }", true),
        ("when { context.hdr has \"x-tenant\" }", true),
        ("when { context.n == 1 && context.hdr.accept == \"a\" }", true),
        ("when { context[\"hdr\"] == {} }", true),
        ("when { context == {} }", true),
        ("when { (if true then context else context).n == 1 }", true),
    ] {
        let evaluator = Evaluator::new(parsed(
            &[format!("permit (principal, action, resource) {condition};")],
            &[],
        ));
        let entities = Entities::empty();
        let prepared = evaluator.prepare(call(&node(0), "get", &node(1), &entities)).unwrap();
        assert_eq!(prepared.reads_headers(), expected, "{condition}");
    }
}

#[test]
fn calls_with_the_same_open_policies_share_them() {
    let texts = ["permit (principal in T0::\"n15\", action, resource) when { context.n == 1 };".to_owned()];
    let evaluator = Evaluator::new(parsed(&texts, &[]));
    let world = World {
        parents: vec![vec![]; NODES],
        absent: vec![false; NODES],
        tier: vec![None; NODES],
    };
    let entities = world.entities();
    let sets = ["get", "put"].map(|name| {
        evaluator
            .prepare(call(&node(15), name, &node(0), &entities))
            .unwrap()
            .open
    });
    assert!(Arc::ptr_eq(&sets[0], &sets[1]));
    let name = |principal| CallName {
        principal,
        action: "get",
        resource: "r",
    };
    let first = evaluator
        .prepared(name("a"), || Ok(call(&node(15), "get", &node(0), &entities)))
        .unwrap();
    let again = evaluator.prepared(name("a"), || Err(Undecidable::NoContext)).unwrap();
    assert!(Arc::ptr_eq(&first, &again));
    assert_eq!(
        evaluator
            .prepared(name("b"), || Err(Undecidable::UnknownValue))
            .unwrap_err()
            .to_string(),
        "the value is not known"
    );
}
