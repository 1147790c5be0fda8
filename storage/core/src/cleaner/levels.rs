//! When to clean, how fast, and how much a device holds.
//!
//! Four levels of free segments, from above:
//!
//! * above *start* nothing is cleaned: the longer garbage is let grow, the fewer live blocks are in a
//!   segment when it is cleaned;
//! * below it the cleaner works along with the writes, the faster the fewer segments are free;
//! * at *urgent*, which is what is written while a checkpoint is taken, it outruns them, and the Raft log is
//!   cut as short as can be; when hardly more is free, checkpoints are taken as soon as one releases anything;
//! * at *wait* writes wait. What is free then is for the cleaner, and below that for Raft alone.

use super::walk::PIECE_BLOCKS;
use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::disk::batch::header_bytes;
use basalt_wire::disk::blocks_of;
use basalt_wire::disk::moved::moved_bytes;

/// The part of the segments that a checkpoint gives back at a time: enough to be worth its cost, and little,
/// because segments that are emptied and not given back yet hold no garbage that could grow.
const STEP_SHARE: u32 = 64;
/// Enough for any device: what a checkpoint costs beside the pages that changed is little of so much.
const STEP_MAX: u32 = 8;
/// Segments that are taken while a checkpoint is, if it is not known: one, and what is left of another.
const LEAD_MIN: u32 = 2;
/// The part of the segments that is kept free for that at most, however slow checkpoints are.
const LEAD_SHARE: u32 = 32;
const LEAD_MAX: u32 = 32;
/// Segments between Raft's reserve and the level where writes wait: what the cleaner fills before a
/// checkpoint gives it back what it emptied.
pub const CLEANING_SEGMENTS: u32 = 2;
/// The part of the segments that holds garbage when a device is full of live data. It bounds what a full
/// device costs: each segment that is cleaned then holds at least this part of garbage.
const SPARE_SHARE: u32 = 16;
/// At least: the open segment, that in which the log goes on beside it before writes wait, the copy segment that
/// is being filled, one that may be all garbage without being worth a cleaning, and one for what is under way.
const SPARE_MIN: u32 = 5;
/// Blocks that are moved with one record at most: 1 MiB.
const MOVE_BLOCKS_MAX: u32 = 256;
/// Of small segments a sixteenth: little of a segment stays unused because a record does not fit.
const MOVE_BLOCKS_MIN: u32 = 4;

/// Records by which the copies of one segment may exceed their least number, a few groups being in it.
const COPIES_SPLIT: u32 = 4;

/// Bytes moved between two ticks while nobody writes: 20 MiB a second with ticks of 50 ms.
pub const IDLE_BYTES: i64 = 1 << 20;
/// A byte for each byte.
pub const EVEN: u64 = 256;

/// How fast the cleaner moves blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Not at all.
    Rest,
    /// So many bytes, in parts of [`EVEN`], with each byte of payload that is recorded.
    Along(u64),
    /// [`IDLE_BYTES`] until the next tick: nobody writes.
    Idle,
    /// As fast as it can: whoever writes is waiting.
    Full,
}

/// The levels of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Levels {
    /// Cleaning starts with no more segments free than these.
    pub start: u32,
    /// Cleaning is urgent with no more than these.
    pub urgent: u32,
    /// Segments that a checkpoint gives back at a time: as long as more than `last` are free.
    pub step: u32,
    /// With no more than these free a checkpoint is worth it for one.
    pub last: u32,
    /// Writes wait with no more than these.
    pub wait: u32,
    /// The most that *urgent* is above that.
    pub(super) lead_max: u32,
    /// Live blocks that the device holds beside all reserves.
    pub capacity: u64,
    /// Live blocks that a segment holds when the cleaner has filled it.
    pub usable: u32,
    /// Blocks that the cleaner moves with one record.
    pub move_blocks: u32,
    /// Pieces in which a segment is read.
    pub(super) pieces: u32,
}

impl Levels {
    /// Of a device with so many segments, of which `reserved` are Raft's.
    pub fn of(segments: u32, segment_blocks: u32, reserved: u32) -> Levels {
        let wait = reserved + CLEANING_SEGMENTS;
        let move_blocks = (segment_blocks / 16).clamp(MOVE_BLOCKS_MIN, MOVE_BLOCKS_MAX);
        let record = move_blocks + blocks_of(header_bytes(1, 1, moved_bytes(move_blocks as usize)));
        // One block closes the segment.
        let usable = ((segment_blocks - 1) / record).max(1) * move_blocks;
        let spare = (segments / SPARE_SHARE).max(SPARE_MIN);
        let filled = segments.saturating_sub(wait + spare);
        let step = (segments / STEP_SHARE).clamp(1, STEP_MAX);
        let levels = Levels {
            start: 0,
            urgent: 0,
            step,
            last: wait + LEAD_MIN,
            wait,
            lead_max: (segments / LEAD_SHARE).clamp(LEAD_MIN, LEAD_MAX),
            capacity: u64::from(filled) * u64::from(usable),
            usable,
            move_blocks,
            pieces: segment_blocks.div_ceil(PIECE_BLOCKS),
        };
        levels.with_lead(LEAD_MIN)
    }

    /// The same where so many segments are taken while a checkpoint is: these are to be free when it begins,
    /// for it is what gives others back.
    pub fn with_lead(self, lead: u32) -> Levels {
        let lead = lead.clamp(LEAD_MIN, self.lead_max);
        let urgent = self.wait + lead;
        // What is emptied while one is taken is given back by the next: in the middle between the two as much is
        // free as is taken during both.
        Levels { start: urgent + 2 * self.step.max(lead), urgent, ..self }
    }

    /// The pace with so many segments free, and `ahead` of them once the next checkpoint is durable, if the
    /// segment being cleaned has so many live blocks. `busy`: somebody writes.
    pub fn pace(&self, free: u32, ahead: u32, busy: bool, live: u32) -> Pace {
        assert!(ahead >= free, "a checkpoint takes no free segment");
        if free > self.start {
            return Pace::Rest;
        }
        if free <= self.wait {
            // Only the bounds of memory hold it back.
            return Pace::Full;
        }
        if !busy {
            // Until enough is gained for a checkpoint, so that it comes to an end.
            return Pace::Idle;
        }
        if ahead > self.start {
            return Pace::Rest;
        }
        // To free as much as is written, a segment with u of it live takes u / (1 - u) of that in moves. In the
        // middle between start and urgent that is the pace, at urgent it is twice that, and below it more.
        let live = u64::from(live.min(self.usable));
        let dead = (u64::from(self.usable) - live).max(u64::from(self.usable / 32).max(1));
        let (down, range) = (self.start + 1 - ahead, self.start + 1 - self.urgent);
        let down = u64::from(down.min(2 * range));
        Pace::Along((EVEN * live * 2 * down / (dead * u64::from(range))).max(1))
    }

    /// Blocks of log that copies of so many live blocks of one segment take at most, if its blocks are of
    /// a few groups.
    pub fn copied(&self, live: u32) -> u32 {
        let record = header_bytes(1, 1, moved_bytes(self.move_blocks as usize));
        let records = live.div_ceil(self.move_blocks).max(self.pieces.min(live)) + COPIES_SPLIT;
        live.saturating_add(records * blocks_of(record))
    }

    /// Blocks that copies of one piece take at most in copy segments.
    pub fn piece(&self) -> u32 {
        let live = self.usable.min(PIECE_BLOCKS);
        // It may be written in two parts, where one segment ends.
        live + 2 * blocks_of(header_bytes(0, COPIES_SPLIT as usize, moved_bytes(live as usize)))
    }

    /// Bytes of [`Levels::capacity`].
    pub fn capacity_bytes(&self) -> u64 {
        self.capacity * BLOCK_BYTES as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_stand_in_order_on_devices_of_every_size() {
        for segments in [1, 4, 8, 12, 24, 256, 16_384] {
            for blocks in [16, 64, 256, 16_384] {
                let levels = Levels::of(segments, blocks, 2);
                assert!(levels.start > levels.urgent && levels.urgent > levels.wait, "{levels:?}");
                assert!(levels.usable < blocks && levels.usable >= blocks / 2, "{levels:?}");
                let all = u64::from(segments) * u64::from(blocks);
                assert!(levels.capacity < all, "{levels:?}");
                if segments >= 256 && blocks >= 256 {
                    assert!(levels.capacity > all * 4 / 5, "{levels:?} of {all}");
                }
            }
        }
    }

    #[test]
    fn the_pace_rises_as_free_segments_fall() {
        let levels = Levels::of(256, 16_384, 2);
        let pace = |free, ahead| levels.pace(free, ahead, true, levels.usable / 2);
        assert_eq!(pace(levels.start + 1, levels.start + 1), Pace::Rest);
        assert_eq!(pace(levels.start - 1, levels.start + 1), Pace::Rest);
        let along = |free| match pace(free, free) {
            Pace::Along(ratio) => ratio,
            other => panic!("{other:?} with {free} free"),
        };
        let paces: Vec<u64> = (levels.wait + 1..=levels.start).rev().map(along).collect();
        assert!(paces.windows(2).all(|w| w[0] < w[1]), "{paces:?}");
        // Half live: as much is moved as is freed. It outruns the writes where it is urgent.
        assert!(paces[0] < EVEN && along(levels.urgent) == 2 * EVEN, "{paces:?}");
        assert_eq!(levels.pace(levels.wait, levels.start, false, 1), Pace::Full);
        assert_eq!(levels.pace(levels.urgent, levels.urgent, false, 1), Pace::Idle);
    }

    #[test]
    fn slow_checkpoints_have_more_kept_free() {
        let levels = Levels::of(1024, 1024, 2);
        let (slow, slower) = (levels.with_lead(9), levels.with_lead(1_000));
        assert_eq!(levels.with_lead(0), levels);
        assert_eq!((levels.last, levels.urgent, levels.start), (6, 6, 6 + 16));
        assert_eq!((slow.urgent, slow.start), (levels.wait + 9, levels.wait + 9 + 18));
        assert_eq!(slower.urgent, levels.wait + 32);
        assert_eq!((slow.wait, slow.capacity), (levels.wait, levels.capacity));
    }
}
