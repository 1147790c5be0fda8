//! Attached volumes need nobody but the reactors.

use basalt_chaos::headless;
use std::time::Duration;

#[test]
fn volumes_serve_while_all_but_the_reactors_stand_still() {
    // SAFETY: plain system call.
    if unsafe { libc::geteuid() } != 0 {
        return println!("not run: threads of other processes are stopped by root alone");
    }
    let report = headless::run("headless", Duration::from_secs(12));
    println!("{}", report.expect("no request fails, and everything goes on"));
}
