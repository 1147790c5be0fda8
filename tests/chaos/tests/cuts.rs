//! Several volumes are cut together under load: each cut is one point in time of all of them.

use basalt_chaos::cuts;

#[test]
fn volumes_cut_together_are_one_point_in_time() {
    let report = cuts::run("cuts", 12, 2, 1, |text| println!("{text}")).expect("12 cuts");
    print!("{report}");
    assert_eq!(report.creations.len() + report.given_up, 12);
    // A cut is given up when the machine holds a group up for a second; that is seldom.
    assert!(report.creations.len() >= 6, "most of them are kept");
    assert_eq!(report.kept_at_deaths + report.given_up_at_deaths, 2);
}
