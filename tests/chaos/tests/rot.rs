//! One copy of everything damaged, each on another node: nothing wrong is read, one scrub repairs it.

use basalt_chaos::rot::{self, Plan, While};

#[test]
fn one_damaged_copy_of_everything_is_repaired_by_one_scrub() {
    let plan = Plan { volume_mib: 8, rounds: vec![While::Down, While::Running], seed: 1 };
    let report = rot::run("rot", &plan, |round| println!("{round}")).expect("all is repaired");
    println!("{report}");
    let damage = report.damage();
    assert_eq!(damage.kinds.len(), 4, "{report}");
    assert!(damage.stale > 0, "the log went round the devices: {report}");
}
