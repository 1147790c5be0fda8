//! The planted bugs: how it is proven that the checkers bite.

use basalt_core::planted::Bug;

/// Every planted bug, with its name on the command line.
pub const ALL: [(Bug, &str); 50] = [
    (Bug::AckBeforeDurable, "ack-before-durable"),
    (Bug::NoFlush, "no-flush"),
    (Bug::DurableOutOfOrder, "durable-out-of-order"),
    (Bug::ReplyBeforeCommit, "reply-before-commit"),
    (Bug::WriteErrorIgnored, "write-error-ignored"),
    (Bug::VoteNotPersisted, "vote-not-persisted"),
    (Bug::CutOnChecksumError, "cut-on-checksum-error"),
    (Bug::AmnesiacVotes, "amnesiac-votes"),
    (Bug::TornTailAccepted, "torn-tail-accepted"),
    (Bug::ReadUnverified, "read-unverified"),
    (Bug::AppendUnverified, "append-unverified"),
    (Bug::StaleEpochApplied, "stale-epoch-applied"),
    (Bug::EpochForgotten, "epoch-forgotten"),
    (Bug::TermUnchecked, "term-unchecked"),
    (Bug::IncarnationUnchecked, "incarnation-unchecked"),
    (Bug::FloorUnchecked, "floor-unchecked"),
    (Bug::ChainUnchecked, "chain-unchecked"),
    (Bug::UnmapShort, "unmap-short"),
    (Bug::QueueUnbounded, "queue-unbounded"),
    (Bug::SleepsEarly, "sleeps-early"),
    (Bug::ReplacedAnswered, "replaced-answered"),
    (Bug::RoomUnchecked, "room-unchecked"),
    (Bug::CheckpointBeyondLog, "checkpoint-beyond-log"),
    (Bug::CheckpointProofForgotten, "checkpoint-proof-forgotten"),
    (Bug::CheckpointNotDurable, "checkpoint-not-durable"),
    (Bug::CheckpointTooEarly, "checkpoint-too-early"),
    (Bug::CheckpointWithoutEpochs, "checkpoint-without-epochs"),
    (Bug::StaleSegmentAccepted, "stale-segment-accepted"),
    (Bug::SegmentReleasedEarly, "segment-released-early"),
    (Bug::PagesSkipped, "pages-skipped"),
    (Bug::SnapshotsNotCopied, "snapshots-not-copied"),
    (Bug::RestoredTooEarly, "restored-too-early"),
    (Bug::FuzzyPagesServed, "fuzzy-pages-served"),
    (Bug::RebuildFromCorrupt, "rebuild-from-corrupt"),
    (Bug::CleanerDropsLive, "cleaner-drops-live"),
    (Bug::LogKeptUnbounded, "log-kept-unbounded"),
    (Bug::MoveAppliedBlindly, "move-applied-blindly"),
    (Bug::BadBlockCopiedOn, "bad-block-copied-on"),
    (Bug::RepairUnverified, "repair-unverified"),
    (Bug::ScrubSkipsKept, "scrub-skips-kept"),
    (Bug::JointSkipped, "joint-skipped"),
    (Bug::PromotesEarly, "promotes-early"),
    (Bug::MembersForgotten, "members-forgotten"),
    (Bug::MembersNotCopied, "members-not-copied"),
    (Bug::AcknowledgesAhead, "acknowledges-ahead"),
    (Bug::SnapshotAcrossCommit, "snapshot-across-commit"),
    (Bug::DeltaLost, "delta-lost"),
    (Bug::MergeDropsOlder, "merge-drops-older"),
    (Bug::SlowLeaderStays, "slow-leader-stays"),
    (Bug::HandsOverWhenAllSlow, "hands-over-when-all-slow"),
];

/// The bug of a name.
pub fn named(name: &str) -> Option<Bug> {
    ALL.iter().find(|b| b.1 == name).map(|b| b.0)
}
