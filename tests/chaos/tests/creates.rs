//! Creates under the deaths of leaders.

use basalt_chaos::creates::{self, Plan};

#[test]
fn each_request_takes_effect_once_although_leaders_die() {
    let plan = Plan { count: 300, clients: 4, deaths: 2 };
    let report = creates::run("creates", &plan, |said| println!("{said}"));
    let report = report.expect("exactly what was asked for exists");
    println!("{report}");
    assert_eq!(report.count, plan.count);
}
