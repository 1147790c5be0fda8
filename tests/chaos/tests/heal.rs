//! A dead node's replicas are made anew without a command.

use basalt_chaos::heal::{self, Plan};

#[test]
fn a_lost_node_is_rebuilt_and_comes_back() {
    let args = ["--suspect-after", "1500ms", "--down-after", "4s", "--rebuild-after", "3s"];
    let plan = Plan {
        volume_bytes: 64 << 20,
        groups: 8,
        rate: Some(500),
        node_args: args.map(str::to_owned).to_vec(),
    };
    let report = heal::run("heal", &plan, |said| println!("{said}"));
    println!("{}", report.expect("everything is whole again, and nothing is lost"));
}
