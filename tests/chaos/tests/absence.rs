//! What a node is sent after an absence is in proportion to what changed.

use basalt_chaos::absence::{self, Reach};

#[test]
fn a_node_that_was_away_is_sent_what_changed() {
    for (name, reach) in [("absence-entries", Reach::Entries), ("absence-pages", Reach::Pages)] {
        let report = absence::run(name, reach, 64 << 20, 100, 1).expect("it comes back");
        println!("{report}");
        assert_eq!(report.paged_bytes > 0, reach == Reach::Pages, "{report}");
        assert!(report.moved_bytes <= 3 * report.changed_bytes, "{report}");
    }
}
