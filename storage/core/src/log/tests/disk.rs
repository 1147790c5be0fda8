//! A disk in memory with a volatile cache, and a log driven over it, for the tests of this module.

use super::super::{
    Damage, DataLocation, Location, Log, LogEvent, OpenReport, Record, RecordSeq, Start,
};
use crate::config::{GroupConfig, Limits, ShardConfig, Timing};
use crate::planted::Planted;
use basalt_wire::block::{BLOCK_BYTES, crc32c};
use basalt_wire::buffer::Payload;
use basalt_wire::command::{BlockRange, Command, encode_commands};
use basalt_wire::disk::checkpoint::SegmentUse;
use basalt_wire::disk::moved::{MovedBlock, decode_moved, encode_moved};
use basalt_wire::ids::{
    Address, ClusterId, Epoch, Generation, GroupId, LogIndex, NodeId, SegmentId, ShardId, Term,
    VolumeId,
};
use basalt_wire::io::{DiskDone, DiskError, DiskOp, DiskOpKind};
use bytes::Bytes;
use std::collections::{BTreeSet, VecDeque};

/// One block of a write that a power cut may keep or lose.
pub type Atom = (usize, Vec<u8>);

/// Content as an orderly reader sees it, and what a power cut may take away.
#[derive(Clone)]
pub struct TestDisk {
    /// What reads return.
    pub content: Vec<u8>,
    /// What survives a power cut in any case.
    pub durable: Vec<u8>,
    /// Blocks that completed and were not flushed.
    pub cached: Vec<Atom>,
    /// Byte ranges that can not be read.
    pub unreadable: BTreeSet<usize>,
    /// Whether completed writes stay in a cache until they are flushed.
    pub volatile_cache: bool,
}

fn atoms(offset: u64, data: &[u8]) -> Vec<Atom> {
    let at = offset as usize;
    data.chunks(BLOCK_BYTES).enumerate().map(|(i, b)| (at + i * BLOCK_BYTES, b.to_vec())).collect()
}

impl TestDisk {
    pub fn new(bytes: u64) -> TestDisk {
        TestDisk::from_image(vec![0; bytes as usize])
    }

    pub fn from_image(image: Vec<u8>) -> TestDisk {
        let durable = image.clone();
        TestDisk {
            content: image,
            durable,
            cached: Vec::new(),
            unreadable: BTreeSet::new(),
            volatile_cache: true,
        }
    }

    pub fn perform(&mut self, op: DiskOp) -> DiskDone {
        let (mut result, mut buf_back) = (Ok(()), None);
        match op.kind {
            DiskOpKind::Read { offset, mut buf } => {
                let range = offset as usize..offset as usize + buf.len();
                if self.unreadable.range(range.clone()).next().is_some() {
                    result = Err(DiskError::Io);
                } else {
                    match self.content.get(range) {
                        Some(content) => buf.copy_from_slice(content),
                        None => result = Err(DiskError::OutOfRange),
                    }
                }
                buf_back = Some(buf);
            }
            DiskOpKind::Write { offset, data, durable } => {
                for (at, block) in atoms(offset, &data) {
                    self.content[at..at + BLOCK_BYTES].copy_from_slice(&block);
                    self.unreadable.remove(&at);
                    if durable || !self.volatile_cache {
                        self.durable[at..at + BLOCK_BYTES].copy_from_slice(&block);
                        self.cached.retain(|(a, _)| *a != at);
                    } else {
                        self.cached.push((at, block));
                    }
                }
            }
            DiskOpKind::Flush => {
                for (at, _) in std::mem::take(&mut self.cached) {
                    let block = at..at + BLOCK_BYTES;
                    self.durable[block.clone()].copy_from_slice(&self.content[block]);
                }
            }
            DiskOpKind::Discard { .. } => {}
        }
        DiskDone { token: op.token, buf: buf_back, result }
    }

    /// Everything that a power cut may keep or lose now: cached blocks and those in flight.
    pub fn at_risk(&self, in_flight: &VecDeque<DiskOp>) -> Vec<Atom> {
        let mut at_risk = self.cached.clone();
        for op in in_flight {
            if let DiskOpKind::Write { offset, data, .. } = &op.kind {
                at_risk.extend(atoms(*offset, data));
            }
        }
        at_risk
    }

    /// The device after a power cut that kept the chosen atoms.
    pub fn image(&self, at_risk: &[Atom], keep: impl Fn(usize) -> bool) -> Vec<u8> {
        let mut image = self.durable.clone();
        for (i, (at, block)) in at_risk.iter().enumerate() {
            if keep(i) {
                image[*at..*at + BLOCK_BYTES].copy_from_slice(block);
            }
        }
        image
    }
}

/// The choices of a power cut: all subsets of few atoms, else some of each kind.
pub fn cuts(atoms: usize, random: &mut Random) -> Vec<Vec<bool>> {
    if atoms <= 5 {
        let all = (0..1u32 << atoms).map(|m| (0..atoms).map(|i| m >> i & 1 == 1).collect());
        return all.collect();
    }
    let mut cuts: Vec<Vec<bool>> = vec![vec![false; atoms], vec![true; atoms]];
    for _ in 0..4 {
        let at = random.below(atoms);
        cuts.push((0..atoms).map(|i| i < at).collect());
        cuts.push((0..atoms).map(|i| i >= at).collect());
        cuts.push((0..atoms).map(|i| i != at).collect());
        cuts.push((0..atoms).map(|_| random.below(2) == 0).collect());
    }
    cuts
}

/// Splitmix64: the same numbers in each run.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// A small device: segments of 64 KiB.
pub fn config(segments: u64, planted: Planted) -> ShardConfig {
    let address = Address { node: NodeId(1), shard: ShardId(0) };
    let limits = Limits {
        batch_bytes: 16 << 10,
        batches_in_flight: 3,
        gather_bytes: 0,
        segments_reserved: 1,
        ..Limits::default()
    };
    ShardConfig {
        cluster: ClusterId(77),
        address,
        device_bytes: (128 << 10) + segments * (64 << 10),
        segment_bytes: 64 << 10,
        volatile_cache: true,
        groups: (0..3).map(|g| GroupConfig::new(GroupId(g), vec![address])).collect(),
        timing: Timing::default(),
        limits,
        checkpoint_bytes: 0,
        index_bytes: u64::MAX,
        scrub: crate::config::Scrubbing::ASKED,
        metadata_saved: basalt_wire::ids::LogIndex(0),
        seed: 42,
        planted,
    }
}

/// An entry of a write command; `tag` makes its blocks unique.
pub fn entry(group: u32, index: u64, blocks: u32, tag: u64) -> Record {
    let mut payload = Payload::empty();
    let mut checksums = Vec::new();
    for b in 0..blocks {
        let mut block = vec![(tag % 251) as u8; BLOCK_BYTES];
        block[..8].copy_from_slice(&tag.to_le_bytes());
        block[8] = b as u8;
        checksums.push(crc32c(&block));
        payload.push(Bytes::from(block));
    }
    let range = BlockRange { block: tag % 1000, count: blocks };
    let volume = VolumeId(1);
    let write =
        Command::Write { volume, epoch: Epoch(1), generation: Generation(0), range, checksums };
    let fence = Command::Fence { volume, epoch: Epoch(tag), generation: Generation(0) };
    let data = encode_commands(&[if blocks == 0 { fence } else { write }]);
    Record::Entry {
        group: GroupId(group),
        term: Term(1 + tag / 100),
        index: LogIndex(index),
        kind: 0,
        data,
        payload,
    }
}

/// Moved blocks, each with content of its own.
pub fn moved(group: u32, count: u32, tag: u64) -> Record {
    let (mut payload, mut blocks) = (Payload::empty(), Vec::new());
    for b in 0..count {
        let mut content = vec![0u8; BLOCK_BYTES];
        content[..8].copy_from_slice(&tag.to_le_bytes());
        content[8] = b as u8 + 1;
        let checksum = crc32c(&content);
        payload.push(Bytes::from(content));
        let from = Some((SegmentId(0), b));
        blocks.push(MovedBlock { volume: VolumeId(1), block: u64::from(b), checksum, from });
    }
    Record::Moved { group: GroupId(group), data: encode_moved(&blocks), payload }
}

/// What is compared of a record: everything but its payload, and its payload's checksum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen(pub String, pub Option<u32>);

pub fn seen(record: &Record, payload: &[u8]) -> Seen {
    match record {
        Record::Entry { group, term, index, kind, data, .. } => Seen(
            format!("{group:?} {term:?} {index:?} {kind} {:08x}", crc32c(data)),
            (!payload.is_empty()).then(|| crc32c(payload)),
        ),
        Record::HardState { group, state } => Seen(format!("{group:?} {state:?}"), None),
        Record::Moved { group, data, .. } => Seen(
            format!("{group:?} moved {:08x}", crc32c(data)),
            (!payload.is_empty()).then(|| crc32c(payload)),
        ),
    }
}

pub fn seen_appended(record: &Record) -> Seen {
    match record {
        Record::Entry { payload, .. } | Record::Moved { payload, .. } => {
            seen(record, &payload.contiguous())
        }
        Record::HardState { .. } => seen(record, &[]),
    }
}

/// What an opening told.
#[derive(Clone, Debug, Default)]
pub struct Opened {
    pub records: Vec<Seen>,
    pub places: Vec<(Location, u32, DataLocation)>,
    pub damages: Vec<Damage>,
    pub report: Option<OpenReport>,
    pub failed: Option<String>,
    pub refused: Option<String>,
}

/// Where a record stands.
#[derive(Clone, Copy, Debug)]
pub struct Stands {
    /// Its payload, and the blocks of it.
    pub at: Location,
    blocks: u32,
    /// Its batch.
    batch_block: u32,
    /// The use of the segment.
    used: u64,
}

/// A checkpoint: all records before its place are part of it.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    pub start: Start,
    pub before: usize,
    /// Copies that it refers to.
    copies: Vec<Copy>,
}

/// A block that is durable in a copy segment.
#[derive(Clone, Copy, Debug)]
struct Copy {
    stands: SegmentUse,
    block: u32,
    crc: u32,
}

/// A log over a disk.
pub struct World {
    pub config: ShardConfig,
    pub disk: TestDisk,
    pub log: Log,
    pub ops: VecDeque<DiskOp>,
    pub events: Vec<LogEvent>,
    /// All records of the log's life: those of the checkpoint, then replayed ones.
    pub appended: Vec<Seen>,
    /// Blocks of payload of each.
    blocks: Vec<u32>,
    /// Where they stand, as far as they have a place.
    pub stands: Vec<Stands>,
    /// Copies on their way, by number of the write, and those that are durable.
    copying: Vec<(u64, Vec<Copy>)>,
    copies: Vec<Copy>,
    /// How many of them stood in the log when it was opened.
    pub replayed: usize,
    /// The checkpoint from which it was opened.
    pub checkpoint: Option<Checkpoint>,
    pub durable: RecordSeq,
    pub opened: Opened,
    pub suspect: bool,
    to_judge: bool,
}

impl World {
    /// Formats and opens a fresh device.
    pub fn format(config: ShardConfig) -> World {
        let mut disk = TestDisk::new(config.device_bytes);
        for op in Log::format(&config) {
            assert!(disk.perform(op).result.is_ok());
        }
        World::open(config, disk)
    }

    pub fn start(config: ShardConfig, mut disk: TestDisk, from: Option<Checkpoint>) -> World {
        disk.volatile_cache = config.volatile_cache;
        let mut out = Vec::new();
        let start = from.as_ref().map(|checkpoint| checkpoint.start.clone());
        let log = Log::open_from(&config, start, &mut out);
        World {
            config,
            disk,
            log,
            ops: out.into(),
            events: Vec::new(),
            appended: Vec::new(),
            blocks: Vec::new(),
            stands: Vec::new(),
            copying: Vec::new(),
            copies: from.as_ref().map_or(Vec::new(), |checkpoint| checkpoint.copies.clone()),
            replayed: 0,
            checkpoint: from,
            durable: RecordSeq(0),
            opened: Opened::default(),
            suspect: false,
            to_judge: false,
        }
    }

    /// Opens the device to the end.
    pub fn open(config: ShardConfig, disk: TestDisk) -> World {
        let mut world = World::start(config, disk, None);
        while world.step_first() {}
        world
    }

    pub fn reopen_image(&self, image: Vec<u8>) -> World {
        World::open(self.config.clone(), TestDisk::from_image(image))
    }

    /// Begins to open an image of this log from a checkpoint of it.
    pub fn restart(&self, image: Vec<u8>, from: Option<&Checkpoint>) -> World {
        let disk = TestDisk::from_image(image);
        let mut world = World::start(self.config.clone(), disk, from.cloned());
        let before = from.map_or(0, |checkpoint| checkpoint.before);
        world.appended = self.appended[..before].to_vec();
        world.blocks = self.blocks[..before].to_vec();
        world.stands = self.stands[..before].to_vec();
        world.replayed = before;
        world
    }

    /// Opens an image of this log from a checkpoint of it.
    pub fn reopen_from(&self, image: Vec<u8>, from: Option<&Checkpoint>) -> World {
        let mut world = self.restart(image, from);
        while world.step_first() {}
        world
    }

    /// A checkpoint of what stands before the end of the log now, without some segments; complete once
    /// its last batch is set.
    pub fn begin_checkpoint(&self, given_up: &[SegmentUse]) -> Checkpoint {
        let from = self.log.durable_place().expect("it has batches");
        let (device, _) = self.log.device();
        let mut segments = self.log.segments().expect("it is open").used_before(from.segment_seq);
        segments.retain(|used| !given_up.contains(used));
        let start = Start { device, from, until: (0, 0), segments, copies: Vec::new() };
        let lies_before =
            |stands: &&Stands| (stands.used, stands.batch_block) < (from.segment_seq, from.block);
        let before = self.stands.iter().filter(lies_before).count();
        Checkpoint { start, before, copies: Vec::new() }
    }

    /// Completes it: the log is durable so far, and so are copies in copy segments that it lists.
    pub fn complete_checkpoint(&self, checkpoint: &mut Checkpoint, given_up: &[SegmentUse]) {
        checkpoint.start.until = self.log.durable_batch();
        let mut listed = self.log.segments().expect("it is open").copies();
        listed.retain(|used| !given_up.contains(used));
        let is_listed = |copy: &&Copy| listed.contains(&copy.stands);
        checkpoint.copies = self.copies.iter().filter(is_listed).copied().collect();
        checkpoint.start.copies = listed;
    }

    /// Whether the payload of every record stands undamaged whose segment is in the same use still.
    pub fn check_places(&self) -> Result<(), String> {
        let table = self.log.segments().expect("the log is open");
        for (i, Stands { at, blocks, used, .. }) in self.stands.iter().enumerate() {
            let Seen(what, Some(crc)) = &self.appended[i] else { continue };
            let from = 128 * 1024 + at.segment.0 as usize * (64 << 10) + at.block as usize * 4096;
            let bytes = &self.disk.content[from..from + *blocks as usize * BLOCK_BYTES];
            if table.use_of(at.segment.0) == Some(*used) && crc32c(bytes) != *crc {
                return Err(format!(
                    "record {i} ({what}) in segment {} is overwritten",
                    at.segment
                ));
            }
        }
        let listed = self.checkpoint.iter().flat_map(|checkpoint| &checkpoint.start.segments);
        let copies = self.checkpoint.iter().flat_map(|checkpoint| &checkpoint.start.copies);
        for (used, holds_copies) in
            listed.map(|used| (used, false)).chain(copies.map(|c| (c, true)))
        {
            let same_kind = table.holds_copies(used.segment.0) == holds_copies;
            if table.use_of(used.segment.0) != Some(used.seq) || !same_kind {
                return Err(format!("{used:?} is not kept"));
            }
        }
        for Copy { stands, block, crc } in &self.copies {
            let from = 128 * 1024 + stands.segment.0 as usize * (64 << 10) + *block as usize * 4096;
            let in_use = table.use_of(stands.segment.0) == Some(stands.seq);
            if in_use && crc32c(&self.disk.content[from..from + BLOCK_BYTES]) != *crc {
                return Err(format!("a copy in {stands:?} is lost"));
            }
        }
        Ok(())
    }

    /// Writes so many blocks to copy segments, which may not be the last that are free.
    pub fn copy(&mut self, count: u32, tag: u64) {
        let Record::Moved { group, data, payload } = moved(1, count, tag) else { return };
        let blocks = decode_moved(&data).expect("it was encoded");
        let (mut out, mut waiting) = (Vec::new(), VecDeque::from([(group, blocks, payload)]));
        while let Some(written) = self.log.copy(&mut waiting, 1, &mut out) {
            let table = self.log.segments().expect("it is open");
            let copies = written.blocks.iter().flat_map(|(_, blocks, at)| {
                let seq = table.use_of(at.segment.0).expect("it was taken for them");
                let stands = SegmentUse { segment: at.segment, seq };
                let at = (at.block..).zip(blocks);
                at.map(move |(block, moved)| Copy { stands, block, crc: moved.checksum })
            });
            self.copying.push((written.number, copies.collect()));
        }
        self.ops.extend(out);
    }

    /// Carries out the oldest operation.
    pub fn step_first(&mut self) -> bool {
        !self.ops.is_empty() && self.step(0)
    }

    /// Carries out an operation.
    pub fn step(&mut self, at: usize) -> bool {
        let Some(op) = self.ops.remove(at) else { return false };
        let done = self.disk.perform(op);
        self.done(done);
        true
    }

    pub fn done(&mut self, done: DiskDone) {
        let mut out = Vec::new();
        let mut events = Vec::new();
        self.log.on_disk(done, &mut out, &mut events);
        self.take_events(events);
        if std::mem::take(&mut self.to_judge) {
            let mut events = Vec::new();
            self.log.judge_checkpoint(Ok(()), &mut out, &mut events);
            self.take_events(events);
        }
        self.ops.extend(out);
    }

    fn take_events(&mut self, events: Vec<LogEvent>) {
        for event in events {
            match event {
                LogEvent::Replayed { record, location, blocks, data_at } => {
                    let from = 128 * 1024
                        + location.segment.0 as usize * (64 << 10)
                        + location.block as usize * BLOCK_BYTES;
                    let payload = &self.disk.content[from..from + blocks as usize * BLOCK_BYTES];
                    let seen = seen(&record, payload);
                    self.appended.push(seen.clone());
                    self.blocks.push(blocks);
                    let (at, batch_block) = (location, data_at.block);
                    self.stands.push(Stands { at, blocks, batch_block, used: 0 });
                    self.opened.records.push(seen);
                    self.opened.places.push((location, blocks, data_at));
                    self.replayed += 1;
                }
                LogEvent::Damaged(damage) => self.opened.damages.push(damage),
                LogEvent::Opened(report) => {
                    self.opened.report = Some(report);
                    let table = self.log.segments().expect("it is open");
                    for stands in self.stands.iter_mut().filter(|stands| stands.used == 0) {
                        // A hard state out of a summary has no place.
                        stands.used = table.use_of(stands.at.segment.0).unwrap_or(0);
                    }
                }
                LogEvent::CheckpointReplayed => self.to_judge = true,
                LogEvent::CheckpointRefused(reason) => {
                    self.opened = Opened { refused: Some(reason), ..Opened::default() };
                    (self.appended, self.stands, self.blocks) = Default::default();
                    self.copies.clear();
                    (self.replayed, self.checkpoint) = (0, None);
                }
                LogEvent::Placed { seq, location, data_at, .. } => {
                    assert_eq!(seq.0 as usize, self.stands.len() - self.replayed + 1);
                    let table = self.log.segments().expect("it is open");
                    let used = table.use_of(location.segment.0).expect("it was given to a record");
                    let (blocks, batch_block) = (self.blocks[self.stands.len()], data_at.block);
                    self.stands.push(Stands { at: location, blocks, batch_block, used });
                    self.events.push(event);
                }
                LogEvent::OpenFailed(reason) => self.opened.failed = Some(reason),
                LogEvent::Durable(seq) => self.durable = self.durable.max(seq),
                LogEvent::CopiesDurable(number) => {
                    let at = self.copying.iter().position(|(under_way, _)| *under_way == number);
                    let (_, copies) = self.copying.swap_remove(at.expect("it was written"));
                    self.copies.extend(copies);
                }
                LogEvent::Suspect(_) => self.suspect = true,
                other => self.events.push(other),
            }
        }
    }

    pub fn append(&mut self, record: Record) {
        self.appended.push(seen_appended(&record));
        self.blocks.push(match &record {
            Record::Entry { payload, .. } | Record::Moved { payload, .. } => {
                (payload.len() / BLOCK_BYTES) as u32
            }
            Record::HardState { .. } => 0,
        });
        let seq = self.log.append(record);
        assert_eq!(seq.0 as usize, self.appended.len() - self.replayed);
    }

    pub fn flush(&mut self) {
        let (mut out, mut events) = (Vec::new(), Vec::new());
        self.log.flush(&mut out, &mut events);
        self.ops.extend(out);
        self.take_events(events);
    }

    /// Writes everything out.
    pub fn settle(&mut self) {
        self.flush();
        while self.step_first() {
            self.flush();
        }
    }

    /// Seals the log; twice, for the first may only close the segment.
    pub fn seal(&mut self) {
        for _ in 0..2 {
            let mut out = Vec::new();
            self.log.seal_now(&mut out);
            self.ops.extend(out);
            while self.step_first() {}
        }
    }

    /// Records that must survive whatever happens now.
    pub fn promised(&self) -> usize {
        self.replayed + self.durable.0 as usize
    }
}
