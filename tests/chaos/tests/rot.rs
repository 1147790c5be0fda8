//! One copy of everything damaged, each on another node: nothing wrong is read, one scrub repairs it.

use basalt_chaos::rot::{self, Fate, Plan, While};

#[test]
fn one_damaged_copy_of_everything_is_repaired_by_one_scrub() {
    let plan = Plan { volume_mib: 8, rounds: vec![While::Down, While::Running], seed: 1 };
    let report = rot::run("rot", &plan, |round| println!("{round}")).expect("all is repaired");
    println!("{report}");
    let damage = report.damage();
    assert_eq!(damage.kinds.len(), 4, "{report}");
    assert!(damage.stale > 0, "the log went round the devices: {report}");
}

#[test]
fn rotted_headers_cost_what_the_decision_table_says() {
    rot::headers("rot-headers", 1, |said| println!("{said}")).expect("nothing is lost");
}

#[test]
fn what_only_a_start_needs_is_found_before_it() {
    rot::ahead("rot-ahead", 1, |said| println!("{said}")).expect("no start needs it");
}

#[test]
fn an_older_image_of_a_device_is_noticed_and_nothing_wrong_is_read() {
    for fate in [Fate::Healed, Fate::Mute, Fate::Refused] {
        let tell = |said: &str| println!("{fate:?}: {said}");
        rot::older("rot-older", fate, 1, tell).unwrap_or_else(|e| panic!("{fate:?}: {e:#}"));
    }
}
