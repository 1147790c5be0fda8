//! A device that is four fifths full takes overwrites for ever.

use basalt_chaos::load::DEPTH;
use basalt_chaos::overwrite::{self, Plan};

#[test]
fn a_device_four_fifths_full_is_overwritten_twice_over() {
    let plan = Plan {
        device: "192MiB",
        segment: "1MiB",
        full: 80,
        times: 2,
        intervals: 2,
        rate: None,
        depth: DEPTH,
        hot: None,
        seed: 1,
    };
    let intervals = overwrite::run("overwrite", &plan, |i| println!("{i}")).expect("no error");
    assert_eq!(intervals.len(), 4);
    // Without a cleaner that gives room back it could not have ended; what it costs is bounded by what is free.
    assert!(intervals.iter().all(|i| i.log_amplification < 8.0), "{intervals:?}");
}
