//! The state of the metadata group is kept, its log is compact, and nodes behind it get the state.

use basalt_chaos::metadata;

#[test]
fn thousands_of_changes_are_kept_and_forgotten() {
    metadata::run("metadata", 4_000).expect("the state is kept");
}
