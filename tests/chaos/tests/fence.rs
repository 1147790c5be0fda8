//! Volumes of nodes that are lost go on elsewhere, and nothing of their old writers lands.

use basalt_chaos::fence::{self, Cut, Plan};

fn few_rounds(cut: Cut) {
    let node_args = ["--suspect-after", "1500ms", "--down-after", "4s"].map(str::to_owned).to_vec();
    let plan = Plan { cut, rounds: 2, node_args };
    let name = format!("fence-{cut:?}").to_lowercase();
    let rounds = fence::run(&name, &plan, |round| println!("{round}"));
    let rounds = rounds.expect("the volume goes on, and nothing old lands");
    println!("{}", fence::summary(cut, &rounds));
    assert_eq!(rounds.len(), 2);
}

#[test]
fn a_volume_of_a_frozen_node_goes_on_elsewhere() {
    few_rounds(Cut::Freeze);
}

#[test]
fn a_volume_of_a_killed_node_goes_on_elsewhere() {
    few_rounds(Cut::Kill);
}

#[test]
fn a_volume_of_a_node_that_is_cut_off_goes_on_elsewhere() {
    // SAFETY: plain system call.
    if unsafe { libc::geteuid() } != 0 {
        return println!("not run: cables are pulled by root alone");
    }
    few_rounds(Cut::Network);
}
