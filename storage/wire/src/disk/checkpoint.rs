//! The records of an index checkpoint, as they stand in the node's store.
//!
//! A checkpoint is a set of records in a store of keys and values that are written all together or
//! not at all. Keys sort by kind, group and place; numbers in keys are big endian, in values little
//! endian. Every value begins with its version and ends with a CRC-32C over key and value, so that a
//! value under another's key is refused as damaged.
//!
//! | key | value, between version and checksum |
//! | --- | --- |
//! | `C` index 8 | an entry of the metadata group, from its first on: term 8, type 1, command or change of members |
//! | `E` group 4, run 8 | up to 256 entries of 27 bytes, see [`EntryPlace`] |
//! | `G` group 4 | its members, see [`Membership`] |
//! | `M` | the manifest |
//! | `P` group 4, volume 8, chunk 8, granule 1 | index of the last change 8, a slice of blocks; its deltas |
//! | `V` group 4, volume 8 | epoch 8, flags 1, generation 4, first 4, parent 12 if any, each snapshot 4 |
//!
//! Flags: 1 for a volume that is deleted, 2 for one that has a parent: volume 8, generation 4; 4 for one that
//! had a parent. A slice of blocks: mask of those that are mapped 2, mask of those that a clone unmapped and
//! that read as zeros whatever its parent holds 2, the places of the mapped ones, as `places.rs` says. A delta
//! of a snapshot: generation 4, mask of the blocks that it holds 2, a slice. What a granule's blocks were in
//! snapshots stands in its own record, so that the two are always of the same instant. An entry: term 8,
//! segment 4, block of its batch 4, record 2, first payload block 4, payload blocks 4, type 1.
//!
//! The manifest: cluster 8, node 4, shard 2, device 8, segment_bytes 8, number 8; where replay begins:
//! segment 4, segment sequence 8, block 4, batch 8, checksum of the batch before 4, boot 8; the last
//! batch that the checkpoint stands for: batch 8, its checksum 4; number of groups 4, for each group 4,
//! applied 8, end 8, hard state's term 8, vote 4, commit 8, volumes 8, granules 8, first entry 8, term of
//! the entry before it 8, ahead 8, owed 8, its term 8, gone 1; number of segments that it needs 4, for each
//! its id 4, with the highest bit set if it is a copy segment, and the sequence of its use 8: those of the
//! log first.

mod places;

use crate::block::crc32c;
use crate::disk::batch::HardStateFields;
use crate::disk::{SEGMENTS_MAX, field};
use crate::ids::{
    Address, ClusterId, Epoch, Generation, GroupId, LogIndex, NodeId, SegmentId, ShardId,
    SnapshotId, Term, VolumeId,
};
use crate::membership::{ENTRY_KIND_MEMBERS, MembersChange, Membership};
use bytes::Bytes;
use places::{Places, mapped, put_places};

/// Version of all records of a checkpoint.
pub const CHECKPOINT_VERSION: u8 = 5;
/// Blocks of a granule: what a checkpoint writes of a page that has changed.
pub const GRANULE_BLOCKS: usize = 16;
/// Entries of a run.
pub const RUN_ENTRIES: usize = 256;
/// Snapshots that a volume may have.
pub const SNAPSHOTS_MAX: usize = 1024;
/// The most groups that a manifest may name.
const GROUPS_MAX: usize = 1 << 16;

const ENTRY_BYTES: usize = 27;
const GRANULE_BYTES: usize = 12;
const DELTA_BYTES: usize = 10;
const VOLUME_BYTES: usize = 17;
const PARENT_BYTES: usize = 12;
/// Flags of a volume.
const DELETED: u8 = 1;
const HAS_PARENT: u8 = 2;
const DETACHED: u8 = 4;
const MANIFEST_BYTES: usize = 38 + 36 + 12 + 4;
const GROUP_BYTES: usize = 97;
const SEGMENT_USE_BYTES: usize = 12;
/// Stands in the id of a copy segment, which has fewer bits.
const COPY_SEGMENT: u32 = 1 << 31;

const _: () = assert!(SEGMENTS_MAX < COPY_SEGMENT);

/// Why a record was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// The key is of no kind that is known.
    #[error("a key that is not known")]
    Key,
    /// The value is shorter or longer than its kind asks for.
    #[error("a record of an impossible length")]
    Length,
    /// The checksum over key and value does not match.
    #[error("a record whose checksum does not match")]
    Checksum,
    /// The version is unknown.
    #[error("a record of version {0}, known is {CHECKPOINT_VERSION}")]
    Version(u8),
    /// A field has an impossible value.
    #[error("a record whose field {0} has an impossible value")]
    Field(&'static str),
}

/// A place in the chain of batches: where the next one is expected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChainPlace {
    /// The segment.
    pub segment: u32,
    /// Its use.
    pub segment_seq: u64,
    /// The block in it.
    pub block: u32,
    /// The number of the batch expected there.
    pub seq: u64,
    /// Checksum of the header of the batch before.
    pub previous_crc: u32,
    /// The boot generation that wrote the batch before.
    pub boot: u64,
}

/// A segment and the sequence of its use: what stands in it is told from what stood there before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentUse {
    /// The segment.
    pub segment: SegmentId,
    /// Its use, counted over the whole device from 1.
    pub seq: u64,
}

/// One group in a manifest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupManifest {
    /// The group.
    pub group: GroupId,
    /// The state is that of the entries up to here, some pages excepted.
    pub applied: LogIndex,
    /// No page has seen a later entry than this one; all up to it are committed.
    pub end: LogIndex,
    /// The hard state.
    pub hard: HardStateFields,
    /// Volumes of the group.
    pub volumes: u64,
    /// Granules of the group.
    pub granules: u64,
    /// The first entry that its log holds; those before it are part of the state.
    pub first: LogIndex,
    /// The term of the entry before it.
    pub before: Term,
    /// Some pages may hold later entries, which the log does not: nothing is served before these are
    /// applied. 0 if there are none.
    pub ahead: LogIndex,
    /// The replica lost entries up to here that it had acknowledged, and does not vote before it holds
    /// them again. 0 if it lost none.
    pub owed: LogIndex,
    /// The replica's term when that was noticed.
    pub owed_term: Term,
    /// Whether the replica is not there (any more): only its term and vote count.
    pub gone: bool,
}

impl GroupManifest {
    /// Of a replica that is not there (any more).
    pub fn gone(group: GroupId, term: Term, vote: NodeId) -> GroupManifest {
        let hard = HardStateFields { term, vote, commit: LogIndex(0) };
        GroupManifest { group, hard, first: LogIndex(1), gone: true, ..GroupManifest::default() }
    }
}

/// What a checkpoint is, and of what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The cluster.
    pub cluster: ClusterId,
    /// The shard.
    pub address: Address,
    /// The device's id.
    pub device: u64,
    /// Bytes in its segments.
    pub segment_bytes: u64,
    /// Counts the checkpoints of the device.
    pub number: u64,
    /// Where replay begins.
    pub from: ChainPlace,
    /// The last batch that the checkpoint stands for: number and checksum of its header. A log that
    /// does not hold it does not support the checkpoint.
    pub until: (u64, u32),
    /// The groups.
    pub groups: Vec<GroupManifest>,
    /// The segments of the log that it needs besides those that the log visits from `from` on, in order of
    /// their ids.
    pub segments: Vec<SegmentUse>,
    /// The copy segments that it needs, in order of their ids. All other segments of the device may be
    /// written to.
    pub copies: Vec<SegmentUse>,
}

/// An entry of a group, as a run of entries says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EntryPlace {
    /// Its term.
    pub term: Term,
    /// Its segment.
    pub segment: SegmentId,
    /// The first block of its batch.
    pub batch_block: u32,
    /// Its ordinal in the batch.
    pub record: u16,
    /// The first block of its payload.
    pub block: u32,
    /// Blocks of payload.
    pub blocks: u32,
    /// The type of the Raft entry.
    pub kind: u8,
}

/// An entry of the metadata group, which stands in the checkpoint whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataEntry {
    /// Its term.
    pub term: Term,
    /// The type of the Raft entry.
    pub kind: u8,
    /// A command, or a change of members.
    pub data: Bytes,
}

/// Segment, block and checksum of a mapped block.
pub type Place = (SegmentId, u32, u32);

/// Some blocks of a page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Granule {
    /// The index of the entry that changed its page last.
    pub changed_at: LogIndex,
    /// Where its blocks stand.
    pub places: Places,
    /// A bit for each block of a clone that is not mapped and reads as zeros whatever the parent holds.
    pub zeros: u16,
    /// What some of them were in snapshots, by generation, ascending.
    pub deltas: Vec<GranuleDelta>,
}

/// What some blocks of a granule were when a generation was frozen: those that changed since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GranuleDelta {
    /// The snapshot's generation.
    pub generation: Generation,
    /// A bit for each block that is held; never none.
    pub held: u16,
    /// Where the held blocks stand; nothing for one that was not mapped.
    pub places: Places,
    /// As in [`Granule`], of the held blocks.
    pub zeros: u16,
}

/// A volume of a group, but for its blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeRecord {
    /// The highest epoch that was fenced in.
    pub epoch: Epoch,
    /// Whether it is deleted.
    pub deleted: bool,
    /// The generation that writes go to.
    pub generation: Generation,
    /// The generation in which the group heard of the volume first: all before it are empty.
    pub first: Generation,
    /// The generations whose snapshots are kept, ascending.
    pub snapshots: Vec<Generation>,
    /// The snapshot that a clone reads as where it was neither written nor unmapped itself.
    pub parent: Option<SnapshotId>,
    /// Whether it was a clone: it has no parent any more.
    pub detached: bool,
}

impl VolumeRecord {
    /// Whether its generations are in order and within their bounds, and it does not have a parent that it is
    /// said to have no more.
    pub fn is_sound(&self) -> bool {
        let known = |g: &Generation| (self.first..self.generation).contains(g);
        self.first <= self.generation
            && self.snapshots.len() <= SNAPSHOTS_MAX
            && self.snapshots.windows(2).all(|w| w[0] < w[1])
            && self.snapshots.iter().all(known)
            && !(self.detached && self.parent.is_some())
    }
}

/// A decoded record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// An entry of the metadata group.
    Command(LogIndex, MetadataEntry),
    /// Entries of a group: the last ones of a run, or of a run that is not full. A run holds the indexes
    /// from its number times [`RUN_ENTRIES`], plus 1, on; the first of them may not be held any more.
    Entries(GroupId, u64, Vec<EntryPlace>),
    /// The members of a group as of the entry up to which its state is.
    Members(GroupId, Membership),
    /// The manifest.
    Manifest(Manifest),
    /// A granule: group, volume, chunk, ordinal in the chunk.
    Granule(GroupId, VolumeId, u64, u8, Granule),
    /// A volume.
    Volume(GroupId, VolumeId, VolumeRecord),
}

/// The prefix of the keys of the metadata group's entries.
pub const COMMANDS_PREFIX: &[u8] = b"C";
/// The key of the manifest.
pub const MANIFEST_KEY: &[u8] = b"M";

/// The key of a run of entries.
pub fn entries_key(group: GroupId, run: u64) -> [u8; 13] {
    let mut key = [b'E'; 13];
    key[1..5].copy_from_slice(&group.0.to_be_bytes());
    key[5..].copy_from_slice(&run.to_be_bytes());
    key
}

/// The prefixes of the keys of everything that a checkpoint holds of a group, but for the commands of the
/// metadata group: see [`COMMANDS_PREFIX`].
pub fn group_prefixes(group: GroupId) -> [[u8; 5]; 4] {
    [b'E', b'G', b'P', b'V'].map(|kind| {
        let mut key = [kind; 5];
        key[1..].copy_from_slice(&group.0.to_be_bytes());
        key
    })
}

/// Prefixes of the keys of the metadata group's entries from one index up to another: of whole runs where there
/// are some, so that there are few.
pub fn command_prefixes(from: u64, to: u64) -> impl Iterator<Item = Vec<u8>> {
    let mut next = from;
    std::iter::from_fn(move || {
        let index = (next < to).then_some(next)?;
        let whole = index.is_multiple_of(256) && to - index >= 256;
        let (length, count) = if whole { (8, 256) } else { (9, 1) };
        next += count;
        Some([COMMANDS_PREFIX, &index.to_be_bytes()].concat()[..length].to_vec())
    })
}

/// The prefix of the keys of a volume's granules.
pub fn granules_prefix(group: GroupId, volume: VolumeId) -> [u8; 13] {
    let mut key = [b'P'; 13];
    key[1..5].copy_from_slice(&group.0.to_be_bytes());
    key[5..].copy_from_slice(&volume.0.to_be_bytes());
    key
}

/// The prefix of the keys of a page's granules.
pub fn page_prefix(group: GroupId, volume: VolumeId, chunk: u64) -> [u8; 21] {
    let mut key = [0; 21];
    key[..13].copy_from_slice(&granules_prefix(group, volume));
    key[13..].copy_from_slice(&chunk.to_be_bytes());
    key
}

impl Record {
    /// Appends the key.
    pub fn key(&self, out: &mut Vec<u8>) {
        match self {
            Record::Command(index, ..) => {
                out.push(b'C');
                out.extend_from_slice(&index.0.to_be_bytes());
            }
            Record::Entries(group, run, _) => {
                out.extend_from_slice(&entries_key(*group, *run));
            }
            Record::Members(group, _) => {
                out.push(b'G');
                out.extend_from_slice(&group.0.to_be_bytes());
            }
            Record::Manifest(_) => out.extend_from_slice(MANIFEST_KEY),
            Record::Granule(group, volume, chunk, granule, _) => {
                out.extend_from_slice(&granules_prefix(*group, *volume));
                out.extend_from_slice(&chunk.to_be_bytes());
                out.push(*granule);
            }
            Record::Volume(group, volume, ..) => {
                out.push(b'V');
                out.extend_from_slice(&group.0.to_be_bytes());
                out.extend_from_slice(&volume.0.to_be_bytes());
            }
        }
    }

    /// Appends the value, whose key is `key`.
    pub fn value(&self, key: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        out.push(CHECKPOINT_VERSION);
        match self {
            Record::Command(_, entry) => {
                out.extend_from_slice(&entry.term.0.to_le_bytes());
                out.push(entry.kind);
                out.extend_from_slice(&entry.data);
            }
            Record::Entries(_, _, entries) => entries.iter().for_each(|e| put_entry(e, out)),
            Record::Members(_, members) => members.encode(out),
            Record::Manifest(manifest) => put_manifest(manifest, out),
            Record::Granule(.., granule) => put_granule(granule, out),
            Record::Volume(.., volume) => put_volume(volume, out),
        }
        let crc = checksum(key, &out[start..]);
        out.extend_from_slice(&crc.to_le_bytes());
    }

    /// Reads and validates a record.
    pub fn decode(key: &[u8], value: &[u8]) -> Result<Record, CheckpointError> {
        let Some(at) = value.len().checked_sub(4).filter(|at| *at > 0) else {
            return Err(CheckpointError::Length);
        };
        if field::u32(value, at) != checksum(key, &value[..at]) {
            return Err(CheckpointError::Checksum);
        }
        if value[0] != CHECKPOINT_VERSION {
            return Err(CheckpointError::Version(value[0]));
        }
        let body = &value[1..at];
        match (key.first(), key.len()) {
            (Some(b'C'), 9) => Ok(Record::Command(LogIndex(be64(key, 1)), metadata_entry(body)?)),
            (Some(b'E'), 13) => Ok(Record::Entries(group(key), be64(key, 5), entries(body)?)),
            (Some(b'G'), 5) => {
                let members =
                    Membership::decode(body).map_err(|_| CheckpointError::Field("members"))?;
                Ok(Record::Members(group(key), members))
            }
            (Some(b'M'), 1) => Ok(Record::Manifest(manifest(body)?)),
            (Some(b'P'), 22) => {
                let (volume, chunk) = (VolumeId(be64(key, 5)), be64(key, 13));
                if usize::from(key[21]) >= 1024 / GRANULE_BLOCKS {
                    return Err(CheckpointError::Field("granule"));
                }
                Ok(Record::Granule(group(key), volume, chunk, key[21], granule(body)?))
            }
            (Some(b'V'), 13) => {
                let (id, volume) = (VolumeId(be64(key, 5)), volume(body)?);
                if volume.parent.is_some_and(|parent| parent.volume == id) {
                    return Err(CheckpointError::Field("parent"));
                }
                Ok(Record::Volume(group(key), id, volume))
            }
            _ => Err(CheckpointError::Key),
        }
    }
}

fn checksum(key: &[u8], value: &[u8]) -> u32 {
    crc32c(value) ^ crc32c(key).rotate_left(7)
}

fn group(key: &[u8]) -> GroupId {
    GroupId(u32::from_be_bytes([key[1], key[2], key[3], key[4]]))
}

fn be64(key: &[u8], at: usize) -> u64 {
    key[at..at + 8].iter().fold(0, |n, byte| n << 8 | u64::from(*byte))
}

fn put_entry(e: &EntryPlace, out: &mut Vec<u8>) {
    out.extend_from_slice(&e.term.0.to_le_bytes());
    out.extend_from_slice(&e.segment.0.to_le_bytes());
    out.extend_from_slice(&e.batch_block.to_le_bytes());
    out.extend_from_slice(&e.record.to_le_bytes());
    out.extend_from_slice(&e.block.to_le_bytes());
    out.extend_from_slice(&e.blocks.to_le_bytes());
    out.push(e.kind);
}

fn metadata_entry(body: &[u8]) -> Result<MetadataEntry, CheckpointError> {
    let (term, kind) = (body.get(..8), body.get(8).copied());
    let (Some(term), Some(kind)) = (term, kind) else {
        return Err(CheckpointError::Length);
    };
    let data = Bytes::copy_from_slice(&body[9..]);
    match kind {
        0 => {}
        ENTRY_KIND_MEMBERS if MembersChange::decode(&data).is_ok() => {}
        _ => return Err(CheckpointError::Field("type")),
    }
    Ok(MetadataEntry { term: Term(field::u64(term, 0)), kind, data })
}

fn entries(body: &[u8]) -> Result<Vec<EntryPlace>, CheckpointError> {
    let count = body.len() / ENTRY_BYTES;
    if !body.len().is_multiple_of(ENTRY_BYTES) || count == 0 || count > RUN_ENTRIES {
        return Err(CheckpointError::Length);
    }
    let entry = |b: &[u8]| EntryPlace {
        term: Term(field::u64(b, 0)),
        segment: SegmentId(field::u32(b, 8)),
        batch_block: field::u32(b, 12),
        record: field::u16(b, 16),
        block: field::u32(b, 18),
        blocks: field::u32(b, 22),
        kind: b[26],
    };
    let entries: Vec<EntryPlace> = body.chunks_exact(ENTRY_BYTES).map(entry).collect();
    if entries.iter().any(|e| e.term.0 == 0) || entries.windows(2).any(|w| w[0].term > w[1].term) {
        return Err(CheckpointError::Field("term"));
    }
    if entries.iter().any(|e| e.kind != 0 && e.kind != ENTRY_KIND_MEMBERS) {
        return Err(CheckpointError::Field("type"));
    }
    Ok(entries)
}

fn put_volume(v: &VolumeRecord, out: &mut Vec<u8>) {
    out.extend_from_slice(&v.epoch.0.to_le_bytes());
    let flag = |flag, set: bool| if set { flag } else { 0 };
    let (deleted, parent) = (flag(DELETED, v.deleted), flag(HAS_PARENT, v.parent.is_some()));
    out.push(deleted | parent | flag(DETACHED, v.detached));
    out.extend_from_slice(&v.generation.0.to_le_bytes());
    out.extend_from_slice(&v.first.0.to_le_bytes());
    if let Some(parent) = v.parent {
        out.extend_from_slice(&parent.volume.0.to_le_bytes());
        out.extend_from_slice(&parent.generation.0.to_le_bytes());
    }
    v.snapshots.iter().for_each(|g| out.extend_from_slice(&g.0.to_le_bytes()));
}

fn volume(body: &[u8]) -> Result<VolumeRecord, CheckpointError> {
    let tail = body.get(VOLUME_BYTES..).ok_or(CheckpointError::Length)?;
    let flags = body[8];
    if flags & !(DELETED | HAS_PARENT | DETACHED) != 0 {
        return Err(CheckpointError::Field("flags"));
    }
    let (parent, tail) = match flags & HAS_PARENT {
        0 => (None, tail),
        _ => {
            let (b, tail) = tail.split_at_checked(PARENT_BYTES).ok_or(CheckpointError::Length)?;
            let (volume, generation) = (VolumeId(field::u64(b, 0)), Generation(field::u32(b, 8)));
            (Some(SnapshotId { volume, generation }), tail)
        }
    };
    if !tail.len().is_multiple_of(4) || tail.len() / 4 > SNAPSHOTS_MAX {
        return Err(CheckpointError::Length);
    }
    let volume = VolumeRecord {
        epoch: Epoch(field::u64(body, 0)),
        deleted: flags & DELETED != 0,
        generation: Generation(field::u32(body, 9)),
        first: Generation(field::u32(body, 13)),
        snapshots: tail.chunks_exact(4).map(|b| Generation(field::u32(b, 0))).collect(),
        parent,
        detached: flags & DETACHED != 0,
    };
    if !volume.is_sound() {
        return Err(CheckpointError::Field("generation"));
    }
    Ok(volume)
}

fn put_granule(g: &Granule, out: &mut Vec<u8>) {
    out.extend_from_slice(&g.changed_at.0.to_le_bytes());
    out.extend_from_slice(&mapped(&g.places).to_le_bytes());
    out.extend_from_slice(&g.zeros.to_le_bytes());
    put_places(&g.places, out);
    for delta in &g.deltas {
        out.extend_from_slice(&delta.generation.0.to_le_bytes());
        out.extend_from_slice(&delta.held.to_le_bytes());
        out.extend_from_slice(&mapped(&delta.places).to_le_bytes());
        out.extend_from_slice(&delta.zeros.to_le_bytes());
        put_places(&delta.places, out);
    }
}

fn granule(body: &[u8]) -> Result<Granule, CheckpointError> {
    if body.len() < GRANULE_BYTES {
        return Err(CheckpointError::Length);
    }
    let (mask, zeros) = (field::u16(body, 8), field::u16(body, 10));
    if mask & zeros != 0 {
        return Err(CheckpointError::Field("zeros"));
    }
    let (places, mut rest) = places::places(mask, &body[GRANULE_BYTES..])?;
    let changed_at = LogIndex(field::u64(body, 0));
    let mut deltas: Vec<GranuleDelta> = Vec::new();
    while !rest.is_empty() {
        if rest.len() < DELTA_BYTES || deltas.len() == SNAPSHOTS_MAX {
            return Err(CheckpointError::Length);
        }
        let (generation, held) = (Generation(field::u32(rest, 0)), field::u16(rest, 4));
        let (mask, zeros) = (field::u16(rest, 6), field::u16(rest, 8));
        if zeros & !held != 0 || zeros & mask != 0 {
            return Err(CheckpointError::Field("zeros"));
        }
        if held == 0 || mask & !held != 0 {
            return Err(CheckpointError::Field("held blocks"));
        }
        if deltas.last().is_some_and(|before| before.generation >= generation) {
            return Err(CheckpointError::Field("generation"));
        }
        let (places, behind) = places::places(mask, &rest[DELTA_BYTES..])?;
        deltas.push(GranuleDelta { generation, held, places, zeros });
        rest = behind;
    }
    Ok(Granule { changed_at, places, zeros, deltas })
}

fn put_manifest(m: &Manifest, out: &mut Vec<u8>) {
    out.extend_from_slice(&m.cluster.0.to_le_bytes());
    out.extend_from_slice(&m.address.node.0.to_le_bytes());
    out.extend_from_slice(&m.address.shard.0.to_le_bytes());
    for number in [m.device, m.segment_bytes, m.number] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(&m.from.segment.to_le_bytes());
    out.extend_from_slice(&m.from.segment_seq.to_le_bytes());
    out.extend_from_slice(&m.from.block.to_le_bytes());
    out.extend_from_slice(&m.from.seq.to_le_bytes());
    out.extend_from_slice(&m.from.previous_crc.to_le_bytes());
    out.extend_from_slice(&m.from.boot.to_le_bytes());
    out.extend_from_slice(&m.until.0.to_le_bytes());
    out.extend_from_slice(&m.until.1.to_le_bytes());
    out.extend_from_slice(&(m.groups.len() as u32).to_le_bytes());
    for g in &m.groups {
        out.extend_from_slice(&g.group.0.to_le_bytes());
        for number in [g.applied.0, g.end.0, g.hard.term.0] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&g.hard.vote.0.to_le_bytes());
        for number in [g.hard.commit.0, g.volumes, g.granules, g.first.0, g.before.0] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for number in [g.ahead.0, g.owed.0, g.owed_term.0] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.push(u8::from(g.gone));
    }
    let copies = m.copies.iter().map(|used| (used, COPY_SEGMENT));
    let segments = m.segments.iter().map(|used| (used, 0)).chain(copies);
    out.extend_from_slice(&((m.segments.len() + m.copies.len()) as u32).to_le_bytes());
    for (used, kind) in segments {
        out.extend_from_slice(&(used.segment.0 | kind).to_le_bytes());
        out.extend_from_slice(&used.seq.to_le_bytes());
    }
}

fn manifest(b: &[u8]) -> Result<Manifest, CheckpointError> {
    if b.len() < MANIFEST_BYTES {
        return Err(CheckpointError::Length);
    }
    let count = field::u32(b, MANIFEST_BYTES - 4) as usize;
    let segments_at = MANIFEST_BYTES + count.min(GROUPS_MAX) * GROUP_BYTES;
    if count > GROUPS_MAX || b.len() < segments_at + 4 {
        return Err(CheckpointError::Length);
    }
    let segments = &b[segments_at + 4..];
    if segments.len() as u64 != u64::from(field::u32(b, segments_at)) * SEGMENT_USE_BYTES as u64 {
        return Err(CheckpointError::Length);
    }
    let used = |b: &[u8]| SegmentUse {
        segment: SegmentId(field::u32(b, 0) & !COPY_SEGMENT),
        seq: field::u64(b, 4),
    };
    let (copies, segments): (Vec<&[u8]>, Vec<&[u8]>) = segments
        .chunks_exact(SEGMENT_USE_BYTES)
        .partition(|b| field::u32(b, 0) & COPY_SEGMENT != 0);
    let group = |b: &[u8]| GroupManifest {
        group: GroupId(field::u32(b, 0)),
        applied: LogIndex(field::u64(b, 4)),
        end: LogIndex(field::u64(b, 12)),
        hard: HardStateFields {
            term: Term(field::u64(b, 20)),
            vote: NodeId(field::u32(b, 28)),
            commit: LogIndex(field::u64(b, 32)),
        },
        volumes: field::u64(b, 40),
        granules: field::u64(b, 48),
        first: LogIndex(field::u64(b, 56)),
        before: Term(field::u64(b, 64)),
        ahead: LogIndex(field::u64(b, 72)),
        owed: LogIndex(field::u64(b, 80)),
        owed_term: Term(field::u64(b, 88)),
        gone: b[96] != 0,
    };
    let manifest = Manifest {
        cluster: ClusterId(field::u64(b, 0)),
        address: Address { node: NodeId(field::u32(b, 8)), shard: ShardId(field::u16(b, 12)) },
        device: field::u64(b, 14),
        segment_bytes: field::u64(b, 22),
        number: field::u64(b, 30),
        from: ChainPlace {
            segment: field::u32(b, 38),
            segment_seq: field::u64(b, 42),
            block: field::u32(b, 50),
            seq: field::u64(b, 54),
            previous_crc: field::u32(b, 62),
            boot: field::u64(b, 66),
        },
        until: (field::u64(b, 74), field::u32(b, 82)),
        groups: b[MANIFEST_BYTES..segments_at].chunks_exact(GROUP_BYTES).map(group).collect(),
        segments: segments.into_iter().map(used).collect(),
        copies: copies.into_iter().map(used).collect(),
    };
    manifest.validate()?;
    Ok(manifest)
}

impl Manifest {
    /// The entry up to which pages of a group have seen all for certain.
    pub fn whole(&self, group: GroupId) -> Option<LogIndex> {
        let at = self.groups.binary_search_by_key(&group, |g| g.group).ok()?;
        Some(self.groups[at].applied.max(self.groups[at].ahead))
    }

    fn validate(&self) -> Result<(), CheckpointError> {
        if self.from.seq == 0 || self.from.segment_seq == 0 || self.until.0 < self.from.seq {
            return Err(CheckpointError::Field("place in the log"));
        }
        if self.groups.windows(2).any(|w| w[0].group >= w[1].group) {
            return Err(CheckpointError::Field("group"));
        }
        if self.groups.iter().any(|g| g.end < g.applied) {
            return Err(CheckpointError::Field("end"));
        }
        if self.groups.iter().any(|g| g.first.0 == 0 || g.first.0 - 1 > g.applied.0) {
            return Err(CheckpointError::Field("first entry"));
        }
        if self.groups.iter().any(|g| (g.before.0 == 0) != (g.first.0 == 1)) {
            return Err(CheckpointError::Field("term before the first entry"));
        }
        self.validate_segments()
    }

    /// No segment stands twice, and all uses of the log are different ones before that in which replay
    /// begins.
    fn validate_segments(&self) -> Result<(), CheckpointError> {
        let mut seqs: Vec<u64> = self.segments.iter().map(|used| used.seq).collect();
        seqs.sort_unstable();
        let all = || self.segments.iter().chain(&self.copies);
        let mut ids: Vec<u32> = all().map(|used| used.segment.0).collect();
        ids.push(self.from.segment);
        ids.sort_unstable();
        let in_order = |all: &[SegmentUse]| all.windows(2).all(|w| w[0].segment < w[1].segment);
        if all().any(|used| used.seq == 0)
            || seqs.last().is_some_and(|last| *last >= self.from.segment_seq)
            || seqs.windows(2).any(|w| w[0] == w[1])
            || ids.windows(2).any(|w| w[0] == w[1])
            || !in_order(&self.segments)
            || !in_order(&self.copies)
        {
            return Err(CheckpointError::Field("segment"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
