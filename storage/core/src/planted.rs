//! Planted bugs and coverage marks: how the simulator proves that it would notice.
//!
//! Production builds contain neither: without the feature `planted`, [`Planted::is`] is the constant
//! `false` and [`mark!`](crate::mark) expands to nothing.

/// A known way to be wrong, switched on in one simulator run to see that a checker catches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bug {
    /// A log write counts as durable when it is submitted.
    AckBeforeDurable,
    /// Log writes are not asked to be durable although the device has a volatile cache.
    NoFlush,
    /// A batch counts as durable although an earlier one is still in flight.
    DurableOutOfOrder,
    /// A client is answered when its write is proposed, not when it is committed.
    ReplyBeforeCommit,
    /// A failed log write counts as done.
    WriteErrorIgnored,
    /// Hard state (term, vote) is not written.
    VoteNotPersisted,
    /// The log is cut at the first bad checksum, wherever it is.
    CutOnChecksumError,
    /// A replica that lost acknowledged entries goes on voting.
    AmnesiacVotes,
    /// A leader readmits a replica that lost its vote before anything is committed without it.
    ReadmittedEarly,
    /// Payload checksums are not verified when the tail of the log is recovered.
    TornTailAccepted,
    /// Payload checksums are not verified when a block is read.
    ReadUnverified,
    /// Payload checksums of an append from the leader are not verified.
    AppendUnverified,
    /// The epoch is not checked when a write is applied.
    StaleEpochApplied,
    /// The epoch is checked only in the memory of the leader, and forgotten by a restart.
    EpochForgotten,
    /// The term that a request was meant for is not checked.
    TermUnchecked,
    /// The incarnation of a request is not checked.
    IncarnationUnchecked,
    /// A read is served although the replica has not applied the floor.
    FloorUnchecked,
    /// A chain of batches is not checked when a segment is recovered, so old content passes as new.
    ChainUnchecked,
    /// An unmap frees one block too few.
    UnmapShort,
    /// Bounds of what is accepted and not answered are not checked.
    QueueUnbounded,
    /// Requests within a guaranteed minimum wait like all others, and nobody hears that it is not kept.
    GuaranteeIgnored,
    /// A group falls asleep although a follower lacks entries.
    SleepsEarly,
    /// A proposal is answered as done when another entry is applied at its index.
    ReplacedAnswered,
    /// Writes are taken without regard to the reserve of a full device.
    RoomUnchecked,
    /// A checkpoint is believed although the log does not hold what it stands for.
    CheckpointBeyondLog,
    /// What a refused checkpoint proves to have been durable is forgotten.
    CheckpointProofForgotten,
    /// A checkpoint is taken of what is not durable.
    CheckpointNotDurable,
    /// A checkpoint lets replay begin behind entries that it does not hold.
    CheckpointTooEarly,
    /// A checkpoint does not hold the epochs that changed since the last one.
    CheckpointWithoutEpochs,
    /// What a segment held in an earlier use is taken for what the log holds.
    StaleSegmentAccepted,
    /// Segments that a checkpoint gives up are written to before it is durable.
    SegmentReleasedEarly,
    /// A page that changed is not offered to a replica that is brought up by pages.
    PagesSkipped,
    /// A replica that is brought up by pages gets nothing of what is kept for snapshots.
    SnapshotsNotCopied,
    /// A replica that was brought up by pages acknowledges that before it is durable.
    RestoredTooEarly,
    /// A replica serves reads of pages that are ahead of what it has applied.
    FuzzyPagesServed,
    /// Blocks for a replica that is brought up are not verified.
    RebuildFromCorrupt,
    /// A block is pointed at its copy although it was overwritten since the copy was taken.
    MoveAppliedBlindly,
    /// A segment is given up although a block in it is live and was not moved.
    CleanerDropsLive,
    /// A block is pointed at its copy in a copy segment before that is durable.
    CopiesNotDurable,
    /// A checkpoint does not name the copy segments that it needs.
    CopiesForgotten,
    /// The Raft log is kept for followers without regard to the room.
    LogKeptUnbounded,
    /// The cleaner copies a block that does not have its checksum, and gives it a new one.
    BadBlockCopiedOn,
    /// A repair takes and gives any content, without regard to its checksum.
    RepairUnverified,
    /// The scrub does not look at blocks that are kept for snapshots.
    ScrubSkipsKept,
    /// The scrub takes any header for good.
    HeadersUnchecked,
    /// The scrub does not look at headers in copy segments.
    CopyHeadersSkipped,
    /// The store takes any record for good when it is looked at.
    RecordsUnchecked,
    /// A replica that differs from another one takes over what that one holds, whatever the others say.
    MendsWithoutMajority,
    /// A change of members does without a majority of the former voters.
    JointSkipped,
    /// A learner is made a voter whatever it lacks.
    PromotesEarly,
    /// Who is handed a group in the turn in which it hears that a change of members is committed does not take it.
    HandOverIgnored,
    /// A checkpoint does not hold who the members are.
    MembersForgotten,
    /// A replica that is brought up by pages keeps the members that it knew.
    MembersNotCopied,
    /// An acknowledgement that is due is replaced by the next, which is not due yet.
    AcknowledgesAhead,
    /// A write of the next generation is taken before its group has frozen the one before.
    SnapshotAcrossCommit,
    /// What a block was when its generation was frozen is not kept when it changes.
    DeltaLost,
    /// Dropping a snapshot gives back what an older one needs.
    MergeDropsOlder,
    /// What a clone has not written reads as its parent does now, not as the parent's snapshot.
    CloneReadsParentNow,
    /// What a clone has unmapped reads as its parent does.
    UnmappedShowsParent,
    /// A snapshot is dropped, a volume deleted or reverted behind the clones that hang on it.
    ClonesForgotten,
    /// A fill gives a clone its parent's blocks where the clone has unmapped them.
    FillShowsUnmapped,
    /// A fill leaves out the last block that it was asked for.
    FillShort,
    /// A write of a later generation is acknowledged although a gate is closed.
    GateLeaks,
    /// A page whose table is out of memory is read as if nothing were mapped.
    ColdPageReadAtOnce,
    /// A checkpoint that replaces a damaged one lacks the pages that only the damaged one held.
    ColdPagesNotCarried,
    /// A page that the store has lost counts as empty.
    LostPageIsEmpty,
    /// The table of a page leaves memory before the checkpoint that holds it is durable.
    PageLeavesEarly,
    /// Metadata commands are forgotten although no state in the control plane's store stands for them.
    CommandsForgottenEarly,
    /// A replica of the metadata group goes over to a later entry before the control plane has the state as of it.
    MetadataNotAwaited,
    /// A group that began anew goes on with what the device holds of before.
    BeginningIgnored,
    /// A leader that is much slower than the others goes on leading.
    SlowLeaderStays,
    /// A leader that is slow hands over although the others are no faster.
    HandsOverWhenAllSlow,
    /// Blocks of an encrypted volume are numbered from the beginning of a request, not of the volume.
    TweakOfPart,
    /// Blocks of an encrypted volume that were never written are deciphered like the others.
    HolesDeciphered,
    /// What a follower's log takes is told as the link's time.
    FollowerTimeAsLink,
}

/// The bug that is planted in this run, if any.
#[derive(Clone, Copy, Debug, Default)]
pub struct Planted(Option<Bug>);

impl Planted {
    /// No bug.
    pub const NONE: Planted = Planted(None);

    /// Plants a bug. Without the feature `planted` it has no effect.
    pub fn new(bug: Bug) -> Planted {
        Planted(Some(bug))
    }

    /// Whether this bug is planted.
    #[inline(always)]
    pub fn is(self, bug: Bug) -> bool {
        cfg!(feature = "planted") && self.0 == Some(bug)
    }
}

#[cfg(feature = "planted")]
pub use marks::{hit, take};

#[cfg(feature = "planted")]
mod marks {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    thread_local! {
        static MARKS: RefCell<BTreeMap<&'static str, u64>> = const { RefCell::new(BTreeMap::new()) };
    }

    /// Counts a mark on this thread.
    pub fn hit(name: &'static str) {
        MARKS.with(|m| *m.borrow_mut().entry(name).or_default() += 1);
    }

    /// The marks hit on this thread since the last call, with their counts.
    pub fn take() -> BTreeMap<&'static str, u64> {
        MARKS.with(|m| std::mem::take(&mut *m.borrow_mut()))
    }
}

/// Counts that a rare branch was taken; the simulator reports branches that no run has reached.
#[macro_export]
macro_rules! mark {
    ($name:literal) => {{
        #[cfg(feature = "planted")]
        $crate::planted::hit($name);
    }};
}
