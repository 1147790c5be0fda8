//! Bringing a replica up by pages, when the leader's log does not reach back to what it has.
//!
//! The follower drives: it opens a session, walks through the pages that changed after what it has,
//! and asks for the blocks that differ. The leader answers from what it has applied by then, so that
//! pages may hold later entries than the one at which the session began; every answer says up to which.

use crate::buffer::Payload;
use crate::ids::{Epoch, GroupId, LogIndex, Term, VolumeId};

/// Pages of an offer.
pub const OFFER_PAGES_MAX: usize = 16;
/// Blocks of a page that are asked for at a time.
pub const WANT_BLOCKS_MAX: usize = 256;
/// Volumes of a group that a session can tell of.
pub const VOLUMES_MAX: usize = 100_000;

/// One message of a session, between the replicas of a group.
#[derive(Clone, Debug, PartialEq)]
pub struct Pages {
    /// The group.
    pub group: GroupId,
    /// The leader's term.
    pub term: Term,
    /// The session, as drawn by the follower.
    pub session: u64,
    /// What is said.
    pub step: Step,
}

/// What a message of a session says.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// From the leader, in no session: "my log does not reach back to what you have".
    Behind,
    /// From the follower: "tell me where to begin".
    Open,
    /// The leader's answer.
    Begin {
        /// The session leads to the state as of this entry, or later.
        start: LogIndex,
        /// Its term.
        start_term: Term,
        /// The volumes as of this entry, ordered by id.
        volumes: Vec<VolumeState>,
    },
    /// From the follower: "which pages changed, from this one on?"
    Next {
        /// Counts the follower's questions.
        ask: u32,
        /// Pages that changed after this entry.
        since: LogIndex,
        /// The first page in question.
        volume: VolumeId,
        /// See `volume`.
        chunk: u64,
    },
    /// The leader's answer.
    Offer {
        /// As in the question.
        ask: u32,
        /// No page holds a later entry than this one.
        at: LogIndex,
        /// Whether there are more pages behind these.
        more: bool,
        /// The pages, in order.
        pages: Vec<PageSums>,
    },
    /// From the follower: "send me these blocks".
    Want {
        /// Counts the follower's questions.
        ask: u32,
        /// The page.
        volume: VolumeId,
        /// See `volume`.
        chunk: u64,
        /// Numbers of blocks in the chunk, rising; 1 to [`WANT_BLOCKS_MAX`].
        blocks: Vec<u16>,
    },
    /// The leader's answer: the blocks as they are by now.
    Blocks {
        /// As in the question.
        ask: u32,
        /// No block holds a later entry than this one.
        at: LogIndex,
        /// The blocks asked for, with their CRC-32C; nothing for those that are not mapped.
        blocks: Vec<(u16, Option<u32>)>,
        /// The mapped ones.
        payload: Payload,
    },
    /// From the leader: the session is not known here, or can not go on.
    Stop,
}

/// A volume as a session tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeState {
    /// The volume.
    pub volume: VolumeId,
    /// The highest epoch that was fenced in.
    pub epoch: Epoch,
    /// Whether it is deleted.
    pub deleted: bool,
}

/// A page as an offer tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageSums {
    /// The volume.
    pub volume: VolumeId,
    /// The chunk.
    pub chunk: u64,
    /// The entry that changed it last.
    pub changed_at: LogIndex,
    /// CRC-32C of each mapped block, with its number in the chunk, rising.
    pub sums: Vec<(u16, u32)>,
}
