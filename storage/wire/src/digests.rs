//! Comparing the replicas of a group while they work.
//!
//! A leader tells the digests of some pages as of an entry. A follower that has applied that entry, and whose
//! page has not changed since, must come to the same. A replica that learns of a difference asks all others
//! about the page: what the majority says is right.

use crate::ids::{GroupId, LogIndex, VolumeId};

/// Pages of a message.
pub const DIGESTS_MAX: usize = 128;

/// Why digests are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DigestsKind {
    /// A leader's round, to its followers.
    Round,
    /// To all others, by a replica that differs from another one: "and yours?"
    Ask,
    /// The answer to that.
    Answer,
}

/// Digests of pages of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digests {
    /// The group.
    pub group: GroupId,
    /// Why they are told.
    pub kind: DigestsKind,
    /// The entry that was applied last.
    pub at: LogIndex,
    /// The pages, in order; at most [`DIGESTS_MAX`].
    pub pages: Vec<PageDigest>,
}

/// The digest of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageDigest {
    /// The volume.
    pub volume: VolumeId,
    /// The chunk.
    pub chunk: u64,
    /// Of the checksums of all of its blocks, those kept for snapshots included; not of where they stand.
    pub digest: u64,
}
