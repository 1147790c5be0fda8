//! Nodes come and go under verified I/O.

use basalt_chaos::members::{self, Plan};
use std::time::Duration;

#[test]
fn three_nodes_become_five_and_three_others_and_one_is_replaced() {
    let plan = Plan {
        volume_bytes: 128 << 20,
        groups: 8,
        rate: Some(1000),
        rest: Duration::from_secs(1),
        grows: true,
        losses: 1,
        seed: 1,
        node_args: Vec::new(),
    };
    println!("{}", members::HEAD);
    let phases = members::run("members", &plan, |phase| println!("{phase}"));
    let phases = phases.expect("nothing is lost and nothing fails");
    assert_eq!(phases.len(), 7);
}
