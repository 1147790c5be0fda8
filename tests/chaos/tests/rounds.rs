//! Nodes are killed, frozen and stopped while fio writes: it sees no error and reads what it wrote.

use basalt_chaos::rounds;

#[test]
fn fio_survives_the_kill_and_the_stop_of_any_node() {
    let report = rounds::run("rounds", 6, 2, |round| println!("{round}")).expect("a cluster");
    print!("{report}");
    let failures: Vec<_> = report.failures().collect();
    assert!(failures.is_empty(), "{failures:?}");
    assert_eq!(report.rounds.len(), 7, "one without a fault, six with");
}
