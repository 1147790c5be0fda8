//! Formatting a device, and the steps of opening one.
//!
//! 1. Both superblocks are read; the valid one of the higher boot generation counts. A device of
//!    another cluster, node, shard, version or size is refused.
//! 2. The log is [recovered](super::recovery).
//! 3. The next boot generation is written to both superblocks, one after the other.
//! 4. The device's cache is flushed: what was replayed may still stand in it alone.

use super::place::Geometry;
use super::recovery::{Recovered, Recovery};
use super::window::Window;
use super::writer::Writer;
use super::{LogEvent, Start, TOKEN_FORMAT, TOKEN_OPEN, token};
use crate::config::ShardConfig;
use crate::mark;
use crate::planted::Bug;
use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::buffer::IoBuf;
use basalt_wire::disk::superblock::{Superblock, choose};
use basalt_wire::disk::{
    DiskFormatError, SEGMENT_BYTES_MAX, SEGMENT_BYTES_UNIT, SUPERBLOCK_AREA_BYTES,
    SUPERBLOCK_OFFSETS, segment_count,
};
use basalt_wire::io::{DiskDone, DiskOp, DiskOpKind};

const NUMBER_BOOT: u64 = 4;
const NUMBER_FLUSH: u64 = 6;
/// Reads of recovery have this number and higher ones.
const NUMBER_READS: u64 = 8;
/// Between the first reads of two attempts.
const NUMBERS_APART: u64 = 1 << 40;
/// Reads of a superblock before it counts as unreadable.
const ATTEMPTS_MAX: u32 = 5;

/// A sentence why a device can not be cut up as the configuration says.
pub fn validate(config: &ShardConfig) -> Result<(), String> {
    let bytes = config.segment_bytes;
    if bytes == 0 || !bytes.is_multiple_of(SEGMENT_BYTES_UNIT) || bytes > SEGMENT_BYTES_MAX {
        return Err(format!(
            "segments of {bytes} bytes are not possible: a multiple of {SEGMENT_BYTES_UNIT} up to \
             {SEGMENT_BYTES_MAX} is"
        ));
    }
    if segment_count(config.device_bytes, bytes) == 0 {
        return Err(format!(
            "a device of {} bytes has no room for a segment of {bytes} bytes behind the \
             superblocks' {SUPERBLOCK_AREA_BYTES}",
            config.device_bytes
        ));
    }
    Ok(())
}

/// The writes that make a fresh device. The first segment's head is cleared, so that a device that
/// was in use before starts out empty whatever stands on it.
pub fn format(config: &ShardConfig) -> Vec<DiskOp> {
    if let Err(reason) = validate(config) {
        panic!("{reason}");
    }
    let superblock = Superblock {
        cluster: config.cluster,
        node: config.address.node,
        shard: config.address.shard,
        device: device_id(config),
        segment_bytes: config.segment_bytes,
        device_bytes: config.device_bytes,
        boot: 0,
    };
    let head = (SUPERBLOCK_AREA_BYTES, IoBuf::zeroed(BLOCK_BYTES));
    let copies = SUPERBLOCK_OFFSETS.map(|offset| (offset, superblock.encode()));
    let writes = std::iter::once(head).chain(copies);
    (0..)
        .zip(writes)
        .map(|(n, (offset, buf))| write(token(TOKEN_FORMAT, n), offset, buf, config.volatile_cache))
        .collect()
}

/// Names one life of a device: everything that tells it from others, hashed. The seed is expected
/// to be random, so that a guest can not write blocks that look like headers of its own device.
fn device_id(config: &ShardConfig) -> u64 {
    let mut z = config.seed;
    for part in [
        config.cluster.0,
        u64::from(config.address.node.0),
        u64::from(config.address.shard.0),
        config.device_bytes,
    ] {
        // The finalizer of splitmix64, as in the placement of chunks.
        z = z.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ part.wrapping_mul(0xff51_afd7_ed55_8ccd);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
    }
    z
}

fn write(token: u64, offset: u64, buf: IoBuf, durable: bool) -> DiskOp {
    DiskOp { token, kind: DiskOpKind::Write { offset, data: buf.freeze(), durable } }
}

/// A device that is being opened.
pub struct Opening {
    config: ShardConfig,
    copies: [Option<Result<Superblock, DiskFormatError>>; 2],
    attempts: [u32; 2],
    /// The superblock with its new boot generation.
    superblock: Option<Superblock>,
    /// The copy that is written first: the one that did not count.
    first_copy: usize,
    recovery: Option<Recovery>,
    recovered: Option<Recovered>,
    /// The checkpoint that is tried, and the number of recovery's first read.
    start: Option<Start>,
    first_read: u64,
    /// The batch that the checkpoint stands for, be it used or not: it was durable.
    proven: Option<(u64, u32)>,
    /// Why a checkpoint was not used.
    refused: Option<String>,
}

/// How far opening came.
pub enum Progress {
    /// It goes on.
    Going,
    /// The log is open.
    Open(Box<Writer>),
    /// It will not open.
    Failed,
}

impl Opening {
    /// Starts with the superblocks.
    pub fn start(config: &ShardConfig, start: Option<Start>, out: &mut Vec<DiskOp>) -> Opening {
        out.extend([read_copy(0), read_copy(1)]);
        Opening {
            config: config.clone(),
            copies: [None, None],
            attempts: [1, 1],
            superblock: None,
            first_copy: 0,
            recovery: None,
            recovered: None,
            start,
            first_read: NUMBER_READS,
            proven: None,
            refused: None,
        }
    }

    /// An operation ended.
    pub fn on_disk(
        &mut self,
        done: DiskDone,
        out: &mut Vec<DiskOp>,
        events: &mut Vec<LogEvent>,
    ) -> Progress {
        let number = done.token & (u64::MAX >> 8);
        let result = match number {
            0 | 1 => self.superblock_read(number as usize, done, out, events),
            NUMBER_READS.. => {
                if let Some(recovery) = &mut self.recovery {
                    recovery.read_done(number, done);
                }
                self.recover(out, events)
            }
            _ => match done.result {
                Err(error) => Err(format!("writing the superblock failed: {error}")),
                Ok(()) if number == NUMBER_FLUSH => return self.finish(events),
                Ok(()) => {
                    self.boot_written((number - NUMBER_BOOT) as usize, out);
                    Ok(())
                }
            },
        };
        match result {
            Ok(()) => Progress::Going,
            Err(reason) => {
                events.push(LogEvent::OpenFailed(reason));
                Progress::Failed
            }
        }
    }
}

impl Opening {
    fn superblock_read(
        &mut self,
        copy: usize,
        done: DiskDone,
        out: &mut Vec<DiskOp>,
        events: &mut Vec<LogEvent>,
    ) -> Result<(), String> {
        let decoded = match (done.result, done.buf) {
            (Ok(()), Some(buf)) => Superblock::decode(&buf),
            _ if self.attempts[copy] < ATTEMPTS_MAX => {
                self.attempts[copy] += 1;
                out.push(read_copy(copy));
                return Ok(());
            }
            _ => Err(DiskFormatError::Unreadable),
        };
        self.copies[copy] = Some(decoded);
        let [Some(a), Some(b)] = self.copies else { return Ok(()) };
        let chosen = choose(&[a, b])?;
        refuse_foreign(&chosen, &self.config)?;
        self.first_copy = usize::from(a == Ok(chosen));
        self.superblock = Some(chosen);
        if let Some(start) = &self.start {
            if let Err(reason) = check_place(start, &Geometry::of(&chosen)) {
                return self.replay_all(reason, out, events);
            }
            self.proven = Some(start.until);
        }
        self.replay(out, events)
    }

    fn replay(&mut self, out: &mut Vec<DiskOp>, events: &mut Vec<LogEvent>) -> Result<(), String> {
        let Some(superblock) = &self.superblock else { return Ok(()) };
        let geometry = Geometry::of(superblock);
        let window = Window::new(token(TOKEN_OPEN, 0), self.first_read);
        let start = self.start.as_ref();
        let recovery = Recovery::new(&self.config, geometry, window, start, self.proven);
        self.recovery = Some(recovery);
        self.recover(out, events)
    }

    /// Says whether what was replayed fits the checkpoint.
    pub fn judge_checkpoint(
        &mut self,
        fits: Result<(), String>,
        out: &mut Vec<DiskOp>,
        events: &mut Vec<LogEvent>,
    ) -> Result<(), String> {
        match fits {
            Ok(()) => {
                self.write_boot(self.first_copy, out);
                Ok(())
            }
            Err(reason) => self.replay_all(reason, out, events),
        }
    }

    /// The checkpoint is not believed. What it proves to have been durable is not forgotten for that: a
    /// log that lacks it is damaged, not shorter. Reads that are still under way for it end unseen.
    fn replay_all(
        &mut self,
        reason: String,
        out: &mut Vec<DiskOp>,
        events: &mut Vec<LogEvent>,
    ) -> Result<(), String> {
        mark!("checkpoint refused");
        events.push(LogEvent::CheckpointRefused(reason.clone()));
        self.refused = Some(reason);
        self.start = None;
        if self.config.planted.is(Bug::CheckpointProofForgotten) {
            self.proven = None;
        }
        self.recovered = None;
        self.first_read += NUMBERS_APART;
        self.replay(out, events)
    }

    fn recover(&mut self, out: &mut Vec<DiskOp>, events: &mut Vec<LogEvent>) -> Result<(), String> {
        let Some(recovery) = &mut self.recovery else { return Ok(()) };
        let recovered = match recovery.advance(out, events) {
            None => return Ok(()),
            Some(Ok(recovered)) => recovered,
            Some(Err(reason)) if self.start.is_some() => {
                return self.replay_all(reason, out, events);
            }
            Some(Err(reason)) => {
                let why =
                    self.refused.iter().map(|why| format!(" (the checkpoint was refused: {why})"));
                return Err(reason + &why.collect::<String>());
            }
        };
        self.recovery = None;
        if let Some(superblock) = &mut self.superblock {
            // A generation found in the log counts too, should both superblocks be from before it.
            superblock.boot = superblock.boot.max(recovered.boot) + 1;
        }
        self.recovered = Some(recovered);
        match self.start {
            Some(_) => events.push(LogEvent::CheckpointReplayed),
            None => self.write_boot(self.first_copy, out),
        }
        Ok(())
    }

    fn write_boot(&self, copy: usize, out: &mut Vec<DiskOp>) {
        if let Some(superblock) = &self.superblock {
            let token = token(TOKEN_OPEN, NUMBER_BOOT + copy as u64);
            let durable = self.config.volatile_cache;
            out.push(write(token, SUPERBLOCK_OFFSETS[copy], superblock.encode(), durable));
        }
    }

    fn boot_written(&mut self, copy: usize, out: &mut Vec<DiskOp>) {
        if copy == self.first_copy {
            self.write_boot(1 - copy, out);
        } else {
            // Also without a volatile cache: it costs nothing there, and a device that was taken
            // for one without may have one.
            out.push(DiskOp { token: token(TOKEN_OPEN, NUMBER_FLUSH), kind: DiskOpKind::Flush });
        }
    }

    fn finish(&mut self, events: &mut Vec<LogEvent>) -> Progress {
        let (Some(superblock), Some(found)) = (self.superblock, self.recovered.take()) else {
            return Progress::Going;
        };
        let geometry = Geometry::of(&superblock);
        let mut report = found.report.clone();
        let writer = Writer::new(&self.config, geometry, found, superblock.boot);
        report.segments_free = writer.segments_free();
        events.push(LogEvent::Opened(report));
        Progress::Open(Box::new(writer))
    }
}

fn read_copy(copy: usize) -> DiskOp {
    DiskOp {
        token: token(TOKEN_OPEN, copy as u64),
        kind: DiskOpKind::Read { offset: SUPERBLOCK_OFFSETS[copy], buf: IoBuf::alloc(BLOCK_BYTES) },
    }
}

/// Refuses a checkpoint of another device, or one that names places which this device does not have.
fn check_place(start: &Start, geometry: &Geometry) -> Result<(), String> {
    if start.device != geometry.device {
        let (found, own) = (start.device, geometry.device);
        return Err(format!("it is of the device {found:016x}, this one is {own:016x}"));
    }
    let listed = start.segments.iter().chain(&start.copies);
    let ids = listed.map(|used| used.segment.0).chain([start.from.segment]);
    match ids.max() {
        Some(last) if last >= geometry.segments => {
            Err(format!("it names segment {last} of a device of {} segments", geometry.segments))
        }
        _ => Ok(()),
    }
}

/// Refuses a device that is not the one that was configured: says what it holds, what was expected
/// and what to do.
fn refuse_foreign(found: &Superblock, config: &ShardConfig) -> Result<(), String> {
    let (own, is) = (config.address, "it holds data of");
    if found.cluster != config.cluster {
        return Err(format!(
            "{is} another cluster, {:016x} (node {}), but this node belongs to cluster {:016x}; \
             start the node with its own device",
            found.cluster.0, found.node, config.cluster.0
        ));
    }
    if (found.node, found.shard) != (own.node, own.shard) {
        return Err(format!(
            "{is} node {} shard {} of this cluster, but this is node {} shard {}: devices were \
             exchanged; start each node with its own",
            found.node, found.shard, own.node, own.shard
        ));
    }
    if found.segment_bytes != config.segment_bytes {
        return Err(format!(
            "it was formatted with segments of {} bytes, but {} were expected; a device keeps the \
             segment size of its first use: start the node with that",
            found.segment_bytes, config.segment_bytes
        ));
    }
    if found.device_bytes != config.device_bytes {
        return Err(format!(
            "it was formatted with room for {} bytes, but has room for {} now; a device keeps the \
             size of its first use: give it that size again, or restore a whole copy of it",
            found.device_bytes, config.device_bytes
        ));
    }
    Ok(())
}
