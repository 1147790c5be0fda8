//! Bringing a replica up by pages, when the leader's log does not reach back to what it has.
//!
//! The follower drives: it opens a session, walks through the pages that changed after what it has,
//! and asks for the granules that differ, saying which blocks it holds already. The leader answers from
//! what it has applied by then: each granule, with what its blocks were in snapshots, is of one instant,
//! but granules may be of later entries than the one at which the session began; every answer says of
//! which.

use crate::buffer::Payload;
use crate::codec::volume_bytes;
use crate::disk::checkpoint::{GRANULE_BLOCKS, VolumeRecord};
use crate::ids::{Generation, GroupId, LogIndex, Term, VolumeId};
use crate::membership::Membership;

/// Pages of an offer.
pub const OFFER_PAGES_MAX: usize = 16;
/// Granules of a page that are asked for at a time.
pub const WANT_GRANULES_MAX: usize = 16;
/// Blocks that come in one answer.
pub const WANT_BLOCKS_MAX: usize = 256;
/// Volumes of which one answer tells.
pub const VOLUMES_MAX: usize = 1_000;
/// Bytes that one answer takes for them at most, but that it tells of one in any case.
pub const VOLUMES_BYTES_MAX: usize = 256 << 10;
/// Blocks of which one question says that they are held, but that it asks for one granule in any case.
pub const WANT_HELD_MAX: usize = 64 << 10;

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
    /// From the follower: "tell me where to begin, and of the volumes from this one on".
    Open {
        /// The first volume in question.
        from: VolumeId,
    },
    /// The leader's answer.
    Begin {
        /// The session leads to the state as of this entry, or later.
        start: LogIndex,
        /// Its term.
        start_term: Term,
        /// The first volume that was asked for.
        from: VolumeId,
        /// The members as of this entry.
        members: Membership,
        /// Whether there are more volumes behind these.
        more: bool,
        /// The volumes as of this entry, but for their blocks, ordered by id.
        volumes: Vec<(VolumeId, VolumeRecord)>,
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
        /// The pages are as of this entry.
        at: LogIndex,
        /// Whether there are more pages behind these.
        more: bool,
        /// The pages, in order.
        pages: Vec<PageDigests>,
    },
    /// From the follower: "send me these granules, but for the blocks that I hold".
    Want {
        /// Counts the follower's questions.
        ask: u32,
        /// The page.
        volume: VolumeId,
        /// See `volume`.
        chunk: u64,
        /// No more blocks than this are to be sent; 1 to [`WANT_BLOCKS_MAX`].
        most: u16,
        /// The granules, rising; 1 to [`WANT_GRANULES_MAX`].
        granules: Vec<HeldBlocks>,
    },
    /// The same from a replica that differs from the majority of its group, to one that does not; in no session
    /// of the leader's. The answer is [`Step::Blocks`].
    Mend {
        /// Counts the questions.
        ask: u32,
        /// The granules are to be told as of this entry or a later one.
        at: LogIndex,
        /// As in [`Step::Want`].
        volume: VolumeId,
        /// See `volume`.
        chunk: u64,
        /// See `volume`.
        most: u16,
        /// See `volume`.
        granules: Vec<HeldBlocks>,
    },
    /// The answer: the first of the granules, as they are by now.
    Blocks {
        /// As in the question.
        ask: u32,
        /// The granules are as of this entry.
        at: LogIndex,
        /// The entry that changed the page last, by then.
        changed_at: LogIndex,
        /// At least one.
        granules: Vec<GranuleSums>,
        /// Blocks of them that the follower does not hold, as far as they may be sent at once: the
        /// number in the chunk, rising, and the CRC-32C. A number may come more than once.
        blocks: Vec<(u16, u32)>,
        /// These blocks.
        payload: Payload,
    },
    /// From the leader: the session is not known here, or can not go on.
    Stop,
}

/// A page as an offer tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageDigests {
    /// The volume.
    pub volume: VolumeId,
    /// The chunk.
    pub chunk: u64,
    /// The entry that changed it last.
    pub changed_at: LogIndex,
    /// The digests of its granules that are not empty, by number, rising. See [`GranuleSums::digest`].
    pub granules: Vec<(u8, u64)>,
}

/// The blocks of a granule that a follower holds, wherever they belong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldBlocks {
    /// The granule's number in the page.
    pub number: u8,
    /// Numbers in the granule and CRC-32C, in order; one that is held twice stands twice.
    pub blocks: Vec<(u8, u32)>,
}

/// A granule by its checksums: 16 blocks of a page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GranuleSums {
    /// Its number in the page.
    pub number: u8,
    /// CRC-32C of each block; nothing for one that is not mapped.
    pub sums: [Option<u32>; GRANULE_BLOCKS],
    /// A bit for each block of a clone that is not mapped and reads as zeros whatever the parent holds.
    pub zeros: u16,
    /// What blocks were in snapshots, by generation, ascending.
    pub deltas: Vec<DeltaSums>,
}

/// What some blocks of a granule were in a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeltaSums {
    /// The snapshot's generation.
    pub generation: Generation,
    /// A bit for each block that is held; never none.
    pub held: u16,
    /// CRC-32C of the held blocks; nothing for one that was not mapped.
    pub sums: [Option<u32>; GRANULE_BLOCKS],
    /// As in [`GranuleSums`], of the held blocks.
    pub zeros: u16,
}

/// How many of some volumes one answer tells of, from the first on.
pub fn volumes_that_fit(volumes: &[(VolumeId, VolumeRecord)]) -> usize {
    let mut bytes = 0;
    let fits = |(_, volume): &&(VolumeId, VolumeRecord)| {
        bytes += volume_bytes(volume);
        bytes <= VOLUMES_BYTES_MAX
    };
    let count = volumes.iter().take(VOLUMES_MAX).take_while(fits).count();
    count.max(volumes.len().min(1))
}

/// How many of some granules one question asks for, from the first on.
pub fn granules_that_fit(granules: &[HeldBlocks]) -> usize {
    let mut held = 0;
    let fits = |granule: &&HeldBlocks| {
        held += granule.blocks.len();
        held <= WANT_HELD_MAX
    };
    let count = granules.iter().take(WANT_GRANULES_MAX).take_while(fits).count();
    count.max(granules.len().min(1))
}

impl GranuleSums {
    /// Whether it maps nothing, hides nothing of a parent and keeps nothing.
    pub fn is_empty(&self) -> bool {
        self.sums.iter().all(Option::is_none) && self.zeros == 0 && self.deltas.is_empty()
    }

    /// A digest of its content, which is not 0 but for a granule that is empty.
    pub fn digest(&self) -> u64 {
        if self.is_empty() {
            return 0;
        }
        let mut digest = words(0, &self.sums, self.zeros);
        for delta in &self.deltas {
            digest = mix(digest, u64::from(delta.generation.0) << 16 | u64::from(delta.held));
            digest = words(digest, &delta.sums, delta.zeros);
        }
        digest.max(1)
    }
}

fn words(digest: u64, sums: &[Option<u32>; GRANULE_BLOCKS], zeros: u16) -> u64 {
    let word = |(i, sum): (usize, &Option<u32>)| match sum {
        Some(sum) => 1 << 32 | u64::from(*sum),
        None => u64::from(zeros >> i & 1) << 33,
    };
    sums.iter().enumerate().map(word).fold(digest, mix)
}

/// The finalizer of splitmix64 over a running value.
fn mix(digest: u64, value: u64) -> u64 {
    let mut z = (digest ^ value).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
