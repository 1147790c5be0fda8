//! A device that is filled to the last byte and emptied again.

use basalt_chaos::fill;

#[test]
fn a_full_device_tells_so_keeps_everything_and_is_emptied_again() {
    let rounds = fill::run("fill", 3, 1, |round| println!("{round:?}")).expect("a full device");
    assert_eq!(rounds.len(), 3);
    assert!(rounds.iter().all(|round| round.refused > 0 && round.taken_bytes > 64 << 20));
}
