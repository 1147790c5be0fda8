//! When to clean, how fast, and how much a device holds.
//!
//! Four levels of free segments, from above:
//!
//! * above *start* nothing is cleaned: the longer garbage is let grow, the fewer live blocks are in a
//!   segment when it is cleaned;
//! * below it the cleaner works along with the writes, the faster the fewer segments are free;
//! * at *urgent* it outruns them, the Raft log is cut as short as can be, and checkpoints are taken as
//!   soon as one releases anything;
//! * at *wait* writes wait. What is free then is for the cleaner, and below that for Raft alone.

use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::disk::batch::header_bytes;
use basalt_wire::disk::blocks_of;
use basalt_wire::disk::moved::moved_bytes;

/// The part of the segments that a checkpoint gives back at a time: enough to be worth its cost, and little,
/// because segments that are emptied and not given back yet hold no garbage that could grow.
const STEP_SHARE: u32 = 64;
/// So many segments where it is urgent, beside those that are not for writes: what is written while a
/// checkpoint is taken.
const URGENT_SHARE: u32 = 128;
const URGENT_MIN: u32 = 2;
/// Both are enough for any device if they are so many: the pace of writes does not grow with the size.
const SEGMENTS_MAX: u32 = 32;
/// Segments between Raft's reserve and the level where writes wait: what the cleaner fills before a
/// checkpoint gives it back what it emptied. One is open, the other is next.
pub const CLEANING_SEGMENTS: u32 = 2;
/// The part of the segments that holds garbage when a device is full of live data. It bounds what a full
/// device costs: each segment that is cleaned then holds at least this part of garbage.
const SPARE_SHARE: u32 = 16;
/// At least: the open segment, that in which the log goes on beside it before writes wait, one that may be
/// all garbage without being worth a cleaning, and one for what is under way.
const SPARE_MIN: u32 = 4;
/// Blocks that are moved with one record at most: 1 MiB.
const MOVE_BLOCKS_MAX: u32 = 256;
/// Of small segments a sixteenth: little of a segment stays unused because a record does not fit.
const MOVE_BLOCKS_MIN: u32 = 4;

/// Records by which the copies of one segment may exceed their least number, a few groups being in it.
const COPIES_SPLIT: u32 = 4;

/// Bytes moved between two ticks while nobody writes: 20 MiB a second with ticks of 50 ms.
const IDLE_BYTES: u64 = 1 << 20;

/// The levels of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Levels {
    /// Cleaning starts with no more segments free than these.
    pub start: u32,
    /// Cleaning is urgent with no more than these.
    pub urgent: u32,
    /// Segments that a checkpoint gives back at a time while it is not urgent.
    pub step: u32,
    /// Writes wait with no more than these.
    pub wait: u32,
    /// Live blocks that the device holds beside all reserves.
    pub capacity: u64,
    /// Live blocks that a segment holds when the cleaner has filled it.
    pub usable: u32,
    /// Blocks that the cleaner moves with one record.
    pub move_blocks: u32,
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
        let urgent = wait + (segments / URGENT_SHARE).clamp(URGENT_MIN, SEGMENTS_MAX);
        let step = (segments / STEP_SHARE).clamp(1, SEGMENTS_MAX);
        Levels {
            start: urgent + 2 * step,
            urgent,
            step,
            wait,
            capacity: u64::from(filled) * u64::from(usable),
            usable,
            move_blocks,
        }
    }

    /// Bytes to be moved until the next tick, with so many segments free, and `ahead` of them once the next
    /// checkpoint is durable, if `written` bytes of payload were recorded since the last tick and the segment
    /// being cleaned has so many live blocks.
    pub fn allowance(&self, free: u32, ahead: u32, written: u64, live: u32) -> u64 {
        assert!(ahead >= free, "a checkpoint takes no free segment");
        if free > self.start {
            return 0;
        }
        if free <= self.wait {
            // Whoever writes is waiting for this: only the bounds of memory hold it back.
            return u64::MAX;
        }
        if written == 0 {
            // Until enough is gained for a checkpoint, so that it comes to an end.
            return IDLE_BYTES;
        }
        if ahead > self.start {
            return 0;
        }
        // To free as much as is written, a segment with u of it live takes u / (1 - u) of that in moves.
        let live = u64::from(live.min(self.usable));
        let dead = (u64::from(self.usable) - live).max(u64::from(self.usable / 32).max(1));
        let level = u64::from(self.start - ahead) * 8 / u64::from(self.start - self.urgent).max(1);
        // From a quarter of that pace where cleaning starts to twice the pace where it is urgent, and on.
        let eighths = 2 + 2 * level.min(16);
        (written * live / dead * eighths / 8).max(1)
    }

    /// Blocks of log that copies of so many live blocks of one segment take at most, if its blocks are of
    /// a few groups.
    pub fn copied(&self, live: u32) -> u32 {
        let record = header_bytes(1, 1, moved_bytes(self.move_blocks as usize));
        let records = live.div_ceil(self.move_blocks) + COPIES_SPLIT;
        live.saturating_add(records * blocks_of(record))
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
        assert_eq!(levels.allowance(levels.start + 1, levels.start + 1, 10 << 20, 8_000), 0);
        assert_eq!(levels.allowance(levels.start - 1, levels.start + 1, 10 << 20, 8_000), 0);
        let paces: Vec<u64> = (levels.wait..=levels.start)
            .rev()
            .map(|free| levels.allowance(free, free, 10 << 20, levels.usable / 2))
            .collect();
        assert!(paces.windows(2).all(|w| w[0] <= w[1]), "{paces:?}");
        // Half live: as much is moved as is freed. It outruns the writes where it is urgent.
        assert!(paces[0] < 10 << 20 && paces[0] > 0);
        let urgent = levels.allowance(levels.urgent, levels.urgent, 10 << 20, levels.usable / 2);
        assert!(urgent > 20 << 20, "{urgent}");
        assert_eq!(levels.allowance(levels.wait, levels.start, 0, 1), u64::MAX);
        assert_eq!(levels.allowance(levels.urgent, levels.urgent, 0, 1), IDLE_BYTES);
    }
}
