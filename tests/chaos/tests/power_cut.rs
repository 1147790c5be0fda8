//! All nodes lose power at one instant: they come back by themselves, with everything acknowledged.

use basalt_chaos::power::campaign::Campaign;
use std::path::Path;

#[test]
fn everything_acknowledged_survives_a_power_cut_of_all_nodes() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("power-cut");
    let campaign = Campaign { seed: 1, runs: 4, cuts: 250, lying: false };
    let report = campaign.carry_out(&folder).expect("the cluster works with the power on");
    println!("power cuts: {report}");
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
}

#[test]
fn the_same_check_finds_the_losses_of_devices_that_lie() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("power-cut-lying");
    let campaign = Campaign { seed: 100, runs: 1, cuts: 100, lying: true };
    let report = campaign.carry_out(&folder).expect("the cluster works with the power on");
    println!("power cuts of lying devices: {report}");
    assert!(report.findings.len() as u64 > report.cuts / 4, "{report}");
    let endless: Vec<_> = report.findings.iter().filter(|f| f.contains("busy for ever")).collect();
    assert!(endless.is_empty(), "replicas that contradict each other spin: {endless:#?}");
    let panics: Vec<_> = report.findings.iter().filter(|f| f.contains("panicked")).collect();
    assert!(panics.is_empty(), "what a disk holds may never cause a panic: {panics:#?}");
}
