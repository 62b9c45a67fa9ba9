//! Who gets a place, and who loses one.

use super::*;

fn process(pid: i32, uid: u32) -> [Source; 2] {
    [Source::User(uid), Source::Process(pid)]
}

fn address(last: u8) -> [Source; 1] {
    [Source::address(IpAddr::from([10, 0, 0, last]))]
}

fn slots(bounds: Bounds) -> Slots {
    Slots::new("test", bounds)
}

#[tokio::test]
async fn places_are_bounded_and_given_back() {
    let slots = slots(Bounds::local(4, 2, 3));
    let (a, b) = (slots.take(&process(1, 7)).unwrap(), slots.take(&process(1, 7)).unwrap());
    assert_eq!(
        slots.take(&process(1, 7)).unwrap_err(),
        Full::Source(Source::Process(1), 2)
    );
    let c = slots.take(&process(2, 7)).unwrap();
    assert_eq!(
        slots.take(&process(3, 7)).unwrap_err(),
        Full::Source(Source::User(7), 3),
        "many processes of one user do not get around it"
    );
    let d = slots.take(&process(4, 8)).unwrap();
    assert_eq!(slots.take(&process(5, 9)).unwrap_err(), Full::Total(4));
    drop((a, b, c, d));
    slots.drained().await;
    assert_eq!(slots.0.state().settled.count(&[]), 0, "what was refused holds nothing");
    assert_eq!(slots.counts().refused, 3);
}

#[test]
fn newcomers_make_room_for_newcomers_and_the_biggest_source_first() {
    let slots = slots(Bounds::network(16, 16));
    let legitimate = slots.admit(&address(1)).unwrap();
    let silent: Vec<_> = (0..1000).map(|_| slots.admit(&address(2)).unwrap()).collect();
    assert!(
        !legitimate.is_evicted(),
        "it came first, but the other source holds more"
    );
    let left = silent.iter().filter(|slot| !slot.is_evicted()).count();
    assert_eq!(left, 16 + 2 - 1);
    assert!(
        silent[silent.len() - left..].iter().all(|slot| !slot.is_evicted()),
        "the oldest went"
    );
    legitimate.settle().unwrap();
    assert_eq!(slots.counts().newcomers_evicted, 1000 - 17);
    // The same address: who speaks soon after it came stays.
    let same = slots.admit(&address(2)).unwrap();
    same.settle().unwrap();
    let later: Vec<_> = (0..1000).map(|_| slots.admit(&address(2)).unwrap()).collect();
    assert!(!same.is_evicted() && !legitimate.is_evicted());
    drop((silent, later));
    assert_eq!(slots.0.state().open, 2);
}

#[test]
fn newcomers_take_nothing_from_those_who_have_settled() {
    let slots = slots(Bounds::network(8, 8));
    let settled: Vec<_> = (0..8)
        .map(|_| {
            let slot = slots.admit(&address(1)).unwrap();
            slot.settle().unwrap();
            slot
        })
        .collect();
    let silent: Vec<_> = (0..100).map(|_| slots.admit(&address(2)).unwrap()).collect();
    assert!(settled.iter().all(|slot| !slot.is_evicted()));
    assert_eq!(silent.iter().filter(|slot| !slot.is_evicted()).count(), 1);
}

#[test]
fn who_settles_takes_the_place_of_the_idlest_of_the_biggest() {
    let slots = slots(Bounds::network(4, 4));
    let settled = |last: u8| {
        let slot = slots.admit(&address(last)).unwrap();
        slot.settle().map(|()| slot)
    };
    let (small, first, second, third) = (
        settled(1).unwrap(),
        settled(2).unwrap(),
        settled(2).unwrap(),
        settled(2).unwrap(),
    );
    let busy = first.begin();
    third.touch();
    let late = settled(3).unwrap();
    assert!(
        second.is_evicted(),
        "of the source that holds most, the one idle for longest"
    );
    assert!(![&small, &first, &third, &late].iter().any(|slot| slot.is_evicted()));
    let (_busy, _small) = ((third.begin(), late.begin()), small.begin());
    assert_eq!(settled(4).unwrap_err(), Full::Total(4), "all are busy");
    drop(busy);
    let _last = settled(4).unwrap();
    assert!(first.is_evicted(), "it has become idle");
    assert_eq!(first.settle(), Err(Full::Evicted));
}

#[test]
fn a_big_source_takes_nothing_from_a_small_one() {
    let slots = slots(Bounds::network(4, 4));
    let settled = |last: u8| {
        let slot = slots.admit(&address(last)).unwrap();
        slot.settle().map(|()| slot)
    };
    let small = settled(1).unwrap();
    let big: Vec<_> = (0..3).map(|_| settled(2).unwrap()).collect();
    let _under_way: Vec<_> = big.iter().map(Slot::begin).collect();
    assert_eq!(settled(2).unwrap_err(), Full::Total(4));
    assert!(!small.is_evicted());
}

#[test]
fn a_source_at_its_bound_makes_room_among_its_own() {
    let slots = slots(Bounds::local(100, 2, 4));
    let other = slots.admit(&process(1, 1)).unwrap();
    let many: Vec<_> = (0..40)
        .flat_map(|pid| (0..10).map(move |_| process(100 + pid, 7)))
        .map(|path| slots.admit(&path).unwrap())
        .collect();
    assert_eq!(
        many.iter().filter(|slot| !slot.is_evicted()).count(),
        4 + 1,
        "one user's processes together"
    );
    assert!(!other.is_evicted());
    // Another process of the same user, while that user holds all it may.
    let same_user = slots.admit(&process(99, 7)).unwrap();
    same_user.settle().unwrap();
    assert!(!same_user.is_evicted());
}

#[tokio::test]
async fn an_eviction_is_heard() {
    let slots = slots(Bounds::network(1, 1));
    let first = Arc::new(slots.admit(&address(1)).unwrap());
    let waiting = first.clone();
    let heard = tokio::spawn(async move { waiting.evicted().await });
    tokio::task::yield_now().await;
    let _others: Vec<_> = (0..2).map(|_| slots.admit(&address(1)).unwrap()).collect();
    heard.await.unwrap();
    first.evicted().await;
    assert!(slots.relieve());
    drop(first);
    assert_eq!(slots.0.state().newcomers.count(&[]), 0);
}

#[test]
fn a_source_is_an_address_or_a_prefix() {
    let check = |a: &str, b: &str, same: bool| {
        let source = |text: &str| Source::address(text.parse().unwrap());
        assert_eq!(source(a) == source(b), same, "{a} {b}");
    };
    check("10.0.0.1", "10.0.0.1", true);
    check("10.0.0.1", "10.0.0.2", false);
    check("10.0.0.1", "::ffff:10.0.0.1", true);
    check("2001:db8::1", "2001:db8::ffff:0:0:1", true);
    check("2001:db8::1", "2001:db8:0:1::1", false);
}

#[test]
fn a_thousandfold_attack_costs_no_more_each() {
    let slots = slots(Bounds::network(10_000, 10_000));
    let mut held = std::collections::VecDeque::new();
    let mut per_admission = |count: usize| {
        let began = clock::moment();
        for n in 0..count {
            held.push_back(slots.admit(&address((n % 200) as u8)).unwrap());
            if held.len() > 12_000 {
                held.pop_front();
            }
        }
        clock::moment().duration_since(began) / u32::try_from(count).unwrap()
    };
    let (few, many) = (per_admission(1_000), per_admission(50_000));
    assert!(many < few * 20 + Duration::from_micros(50), "{few:?} {many:?}");
}
