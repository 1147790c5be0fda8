//! See `basalt_chaos::restore`.

use basalt_chaos::restore::{self, Loss};

#[test]
fn a_cluster_that_lost_its_data_directories_goes_on_from_a_backup() {
    restore::run("restore-lost", Loss::Directories).expect("everything is as it was, or shown");
}

#[test]
fn a_cluster_goes_back_to_a_backup_only_if_that_is_meant() {
    restore::run("restore-forced", Loss::Nothing).expect("everything is as it was, or shown");
}
