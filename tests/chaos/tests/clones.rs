//! Clones under load: written, cloned again, flattened while a node dies, and given back.

use basalt_chaos::clones::{self, Plan};
use std::time::Duration;

#[test]
fn clones_go_their_own_ways_and_give_all_space_back() {
    let (volume_bytes, rest) = (32 << 20, Duration::from_secs(1));
    let plan = Plan { volume_bytes, rate: Some(500), rest, seed: 1 };
    let report = clones::run("clones", &plan, |said| println!("{said}"));
    let report = report.expect("nothing is lost and nothing fails");
    println!("{report}");
    assert_eq!(report.flattened.len(), 3);
}
