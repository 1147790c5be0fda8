//! Volumes of nodes that are lost go on elsewhere, and nothing of their old writers lands.

use basalt_chaos::fence::{self, Cut, Plan};

/// Short silences.
fn node_args() -> Vec<String> {
    ["--suspect-after", "1500ms", "--down-after", "4s"].map(str::to_owned).to_vec()
}

fn few_rounds(cut: Cut) {
    let node_args = node_args();
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

#[test]
fn a_volume_of_a_host_that_died_is_there_for_whoever_asks() {
    let refused =
        fence::run_host("fence-host", &node_args()).expect("it is taken, and not too soon");
    println!("another host got the volume {:.2} s after the first one died", refused.as_secs_f64());
}
