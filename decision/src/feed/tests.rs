use super::*;
use std::fs;

#[test]
fn the_last_good_policy_outlives_a_restart_but_not_its_removal() {
    let (policies, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = policies.path().join("a.cedar");
    let start = || {
        let feed = PolicyFeed::new(state.path(), None, SystemTime::now());
        let mut directory = Directory::new(policies.path().to_owned());
        directory.offer(&feed);
        (feed, directory)
    };
    let in_force = |feed: &PolicyFeed| {
        (
            feed.in_force().live.deny_all_reason().is_none(),
            feed.status().faults.len(),
        )
    };

    fs::write(&file, "permit (").unwrap();
    assert_eq!(in_force(&start().0), (false, 1), "nothing was ever good");
    fs::write(&file, "@id(\"a\") permit (principal, action, resource);").unwrap();
    let (feed, _) = start();
    let revision = feed.in_force().live.revision().to_owned();
    assert_eq!(in_force(&feed), (true, 0));

    fs::write(&file, "permit (").unwrap();
    let (feed, mut directory) = start();
    assert_eq!(
        in_force(&feed),
        (true, 1),
        "the last good one, and what is wrong with the files"
    );
    assert_eq!(feed.in_force().live.revision(), revision);

    fs::remove_file(&file).unwrap();
    directory.offer(&feed);
    directory.offer(&feed);
    assert_eq!(in_force(&feed), (false, 0), "taken away on purpose");
    fs::write(&file, "permit (").unwrap();
    assert_eq!(in_force(&start().0), (false, 1), "it does not come back");
}
