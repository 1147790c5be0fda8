//! Many snapshots under load: points in time, readable, and their space comes back.

use basalt_chaos::snapshots;

#[test]
fn many_snapshots_are_points_in_time_and_give_all_back() {
    let report = snapshots::run("many-snapshots", 60, 0, None, 1, |text| println!("{text}"));
    let report = report.expect("60 snapshots");
    print!("{report}");
    assert_eq!((report.creations.len(), report.deletions.len()), (60, 60));
    assert!(report.kept_bytes > 0, "the load wrote behind the snapshots");
}
