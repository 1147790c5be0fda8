//! The header of a batch: what one sequential write appended to the log.
//!
//! | bytes | field | why |
//! | --- | --- | --- |
//! | 0..8 | magic | tells a header from payload |
//! | 8..12 | CRC-32C of the header's blocks from byte 12 on | torn and rotten headers are recognised |
//! | 12..14 | version | another layout is refused |
//! | 14..16 | flags | closing, seal, predecessor lost, copies |
//! | 16..24 | device id | content of another device or an earlier life is foreign |
//! | 24..32 | segment sequence | content of an earlier use of the segment is stale |
//! | 32..36 | segment | a misdirected write is recognised by its place |
//! | 36..40 | block in the segment | the same |
//! | 40..48 | batch sequence, from 1 | order, and what is missing |
//! | 48..56 | boot generation | a tail dropped by an earlier opening is stale |
//! | 56..60 | CRC of the predecessor's header | the chain |
//! | 60..64 | header_bytes | length of what is used of the header |
//! | 64..68 | payload_blocks | where the next batch begins |
//! | 68..72 | records | |
//! | 72..80 | durable | the highest batch known durable when this one was written |
//! | 80..84 | summaries | groups of the predecessor |
//! | 84..88 | next segment | of a closing batch |
//! | 88..96 | zero | |
//! | 96.. | summaries, 56 bytes each | identity of the predecessor's records, kept twice |
//! | .. | descriptors, 40 bytes each | |
//! | .. | entry data, one after the other | |
//!
//! A summary: group 4, flags 4 (1 has entries, 2 has a hard state), first index 8, last index 8,
//! term of the last 8, hard state's term 8, commit 8, vote 4, zero 4.
//!
//! A descriptor: kind 1 (1 entry, 2 hard state, 3 moved blocks), entry type 1, zero 2, group 4, term 8,
//! index or commit 8, first payload block (or vote) 4, payload blocks 4, byte of the data in the header
//! 4, its length 4. Moved blocks have neither type nor term nor index, and no summary: what they say may
//! be lost.
//!
//! A batch of copies has the same form and is no part of the chain: it holds moved blocks alone, its
//! sequence is that of the batch that the log writes next, and predecessor, durable mark and next segment
//! are zero.

use super::moved::decode_moved;
use super::{DiskFormatError, FORMAT_VERSION, blocks_of, field, is_blank, payload_checksums};
use crate::block::{BLOCK_BYTES, crc32c};
use crate::ids::{GroupId, LogIndex, NodeId, Term};
use bytes::Bytes;

/// `BASALTLG` in ASCII.
const MAGIC: u64 = u64::from_le_bytes(*b"BASALTLG");
const FIXED_BYTES: usize = 96;
const SUMMARY_BYTES: usize = 56;
const DESCRIPTOR_BYTES: usize = 40;

/// The longest header. It bounds what is read before a checksum could be verified.
pub const HEADER_BYTES_MAX: usize = 2 << 20;
/// The most records of a batch: an ordinal fits 16 bits.
pub const RECORDS_MAX: usize = 16 << 10;

const _: () = assert!(RECORDS_MAX <= 1 << 16);
const _: () = assert!(FIXED_BYTES + RECORDS_MAX * DESCRIPTOR_BYTES <= HEADER_BYTES_MAX);

/// The batch closes its segment; the next one is at the start of the segment that it names.
pub const FLAG_CLOSING: u16 = 1;
/// The batch was written because the log fell idle, to carry the durable mark.
pub const FLAG_SEAL: u16 = 2;
/// The predecessor was already lost when this batch was written; its summary is empty for that.
pub const FLAG_PREDECESSOR_LOST: u16 = 4;
/// The batch stands in a copy segment: it holds blocks that were copied there, and is no part of the log.
pub const FLAG_COPIES: u16 = 8;
const FLAGS_KNOWN: u16 = FLAG_CLOSING | FLAG_SEAL | FLAG_PREDECESSOR_LOST | FLAG_COPIES;

const SUMMARY_ENTRIES: u32 = 1;
const SUMMARY_HARD_STATE: u32 = 2;
const KIND_ENTRY: u8 = 1;
const KIND_HARD_STATE: u8 = 2;
const KIND_MOVED: u8 = 3;

/// The fixed fields of a batch header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchFields {
    /// [`FLAG_CLOSING`], [`FLAG_SEAL`], [`FLAG_PREDECESSOR_LOST`], [`FLAG_COPIES`].
    pub flags: u16,
    /// The device's id.
    pub device: u64,
    /// Counts uses of segments, from 1.
    pub segment_seq: u64,
    /// The segment.
    pub segment: u32,
    /// The header's first block in it.
    pub block: u32,
    /// Counts batches, from 1.
    pub seq: u64,
    /// The boot generation that wrote it.
    pub boot: u64,
    /// Checksum of the predecessor's header; 0 for the first batch.
    pub previous_crc: u32,
    /// Blocks of payload behind the header.
    pub payload_blocks: u32,
    /// The highest batch known durable when this one was written.
    pub durable: u64,
    /// Of a closing batch: the segment that goes on.
    pub next_segment: u32,
}

/// A group's hard state, as it stands in a header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardStateFields {
    /// Current term.
    pub term: Term,
    /// Whom the replica voted for.
    pub vote: NodeId,
    /// Commit index.
    pub commit: LogIndex,
}

/// Entries of one group in one batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EntryRange {
    /// The lowest index.
    pub first: LogIndex,
    /// The index appended last.
    pub last: LogIndex,
    /// The term of the last.
    pub term: Term,
}

/// What a batch held of one group; stands in the header of its successor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupSummary {
    /// The group.
    pub group: GroupId,
    /// Its entries.
    pub entries: Option<EntryRange>,
    /// Its newest hard state in the batch.
    pub hard_state: Option<HardStateFields>,
}

/// One record of a batch, without its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Descriptor<D> {
    /// A Raft entry.
    Entry {
        /// The group.
        group: GroupId,
        /// Its term.
        term: Term,
        /// Its index.
        index: LogIndex,
        /// The entry's type.
        kind: u8,
        /// Its first payload block, counted from the end of the header.
        payload_block: u32,
        /// Its payload blocks.
        payload_blocks: u32,
        /// Its data.
        data: D,
    },
    /// A group's hard state.
    HardState {
        /// The group.
        group: GroupId,
        /// The state.
        state: HardStateFields,
    },
    /// Blocks of a group that were moved here.
    Moved {
        /// The group.
        group: GroupId,
        /// Their first payload block, counted from the end of the header.
        payload_block: u32,
        /// Payload blocks.
        payload_blocks: u32,
        /// Which blocks they are: see [`super::moved`].
        data: D,
    },
}

impl<D> Descriptor<D> {
    /// First block and number of blocks of the payload; nothing if there can be none.
    pub fn payload(&self) -> Option<(u32, u32)> {
        match self {
            Descriptor::Entry { payload_block, payload_blocks, .. }
            | Descriptor::Moved { payload_block, payload_blocks, .. } => {
                Some((*payload_block, *payload_blocks))
            }
            Descriptor::HardState { .. } => None,
        }
    }

    fn data(&self) -> Option<&D> {
        match self {
            Descriptor::Entry { data, .. } | Descriptor::Moved { data, .. } => Some(data),
            Descriptor::HardState { .. } => None,
        }
    }
}

impl Descriptor<Bytes> {
    /// The checksums of the payload's blocks, in order, as its data says them. Empty if it says none.
    pub fn payload_checksums(&self) -> Vec<u32> {
        match self {
            Descriptor::Entry { data, .. } => payload_checksums(data),
            Descriptor::Moved { data, .. } => {
                let blocks = decode_moved(data).unwrap_or_default();
                blocks.iter().map(|block| block.checksum).collect()
            }
            Descriptor::HardState { .. } => Vec::new(),
        }
    }
}

/// Bytes of a header with so many summaries, records and bytes of entry data.
pub fn header_bytes(summaries: usize, records: usize, data_bytes: usize) -> usize {
    FIXED_BYTES + summaries * SUMMARY_BYTES + records * DESCRIPTOR_BYTES + data_bytes
}

/// Notes a record in the summary of its batch.
pub fn summarise<D>(summaries: &mut Vec<GroupSummary>, record: &Descriptor<D>) {
    let group = match record {
        Descriptor::Entry { group, .. } | Descriptor::HardState { group, .. } => *group,
        Descriptor::Moved { .. } => return,
    };
    let at = summaries.iter().rposition(|s| s.group == group).unwrap_or_else(|| {
        summaries.push(GroupSummary { group, ..GroupSummary::default() });
        summaries.len() - 1
    });
    let summary = &mut summaries[at];
    match record {
        Descriptor::Entry { term, index, .. } => {
            let first = summary.entries.map_or(*index, |e| e.first.min(*index));
            summary.entries = Some(EntryRange { first, last: *index, term: *term });
        }
        Descriptor::HardState { state, .. } => summary.hard_state = Some(*state),
        Descriptor::Moved { .. } => {}
    }
}

/// Writes a header into `target`, which is a whole number of blocks and long enough for it, and
/// returns its checksum.
pub fn encode<D: AsRef<[u8]>>(
    fields: &BatchFields,
    summaries: &[GroupSummary],
    records: &[Descriptor<D>],
    target: &mut [u8],
) -> u32 {
    assert!(target.len().is_multiple_of(BLOCK_BYTES), "a header is a whole number of blocks");
    assert!(records.len() <= RECORDS_MAX, "{} records in a batch", records.len());
    let mut at = FIXED_BYTES;
    for summary in summaries {
        put_summary(&mut target[at..at + SUMMARY_BYTES], summary);
        at += SUMMARY_BYTES;
    }
    let mut data_at = at + records.len() * DESCRIPTOR_BYTES;
    for record in records {
        if let Some(data) = record.data() {
            let data = data.as_ref();
            target[data_at..data_at + data.len()].copy_from_slice(data);
        }
        data_at += put_descriptor(&mut target[at..at + DESCRIPTOR_BYTES], record, data_at);
        at += DESCRIPTOR_BYTES;
    }
    assert!(data_at <= HEADER_BYTES_MAX, "a header of {data_at} bytes");
    target[data_at..].fill(0);
    put_fixed(target, fields, summaries.len(), records.len(), data_at);
    let crc = crc32c(&target[12..]);
    field::put_u32(target, 8, crc);
    crc
}

fn put_fixed(b: &mut [u8], f: &BatchFields, summaries: usize, records: usize, bytes: usize) {
    field::put_u64(b, 0, MAGIC);
    field::put_u16(b, 12, FORMAT_VERSION);
    field::put_u16(b, 14, f.flags);
    field::put_u64(b, 16, f.device);
    field::put_u64(b, 24, f.segment_seq);
    field::put_u32(b, 32, f.segment);
    field::put_u32(b, 36, f.block);
    field::put_u64(b, 40, f.seq);
    field::put_u64(b, 48, f.boot);
    field::put_u32(b, 56, f.previous_crc);
    field::put_u32(b, 60, bytes as u32);
    field::put_u32(b, 64, f.payload_blocks);
    field::put_u32(b, 68, records as u32);
    field::put_u64(b, 72, f.durable);
    field::put_u32(b, 80, summaries as u32);
    field::put_u32(b, 84, f.next_segment);
    field::put_u64(b, 88, 0);
}

fn put_summary(b: &mut [u8], s: &GroupSummary) {
    b.fill(0);
    let entries = s.entries.unwrap_or_default();
    let hard = s.hard_state.unwrap_or_default();
    let mut flags = 0;
    if s.entries.is_some() {
        flags |= SUMMARY_ENTRIES;
    }
    if s.hard_state.is_some() {
        flags |= SUMMARY_HARD_STATE;
    }
    field::put_u32(b, 0, s.group.0);
    field::put_u32(b, 4, flags);
    field::put_u64(b, 8, entries.first.0);
    field::put_u64(b, 16, entries.last.0);
    field::put_u64(b, 24, entries.term.0);
    field::put_u64(b, 32, hard.term.0);
    field::put_u64(b, 40, hard.commit.0);
    field::put_u32(b, 48, hard.vote.0);
}

/// Writes a descriptor and returns the length of its data.
fn put_descriptor<D: AsRef<[u8]>>(b: &mut [u8], r: &Descriptor<D>, data_at: usize) -> usize {
    b.fill(0);
    match r {
        Descriptor::Entry { group, term, index, kind, payload_block, payload_blocks, data } => {
            let len = data.as_ref().len();
            b[0] = KIND_ENTRY;
            b[1] = *kind;
            field::put_u32(b, 4, group.0);
            field::put_u64(b, 8, term.0);
            field::put_u64(b, 16, index.0);
            put_payload(b, (*payload_block, *payload_blocks), (data_at, len))
        }
        Descriptor::Moved { group, payload_block, payload_blocks, data } => {
            b[0] = KIND_MOVED;
            field::put_u32(b, 4, group.0);
            put_payload(b, (*payload_block, *payload_blocks), (data_at, data.as_ref().len()))
        }
        Descriptor::HardState { group, state } => {
            b[0] = KIND_HARD_STATE;
            field::put_u32(b, 4, group.0);
            field::put_u64(b, 8, state.term.0);
            field::put_u64(b, 16, state.commit.0);
            field::put_u32(b, 24, state.vote.0);
            0
        }
    }
}

fn put_payload(b: &mut [u8], payload: (u32, u32), (data_at, data_len): (usize, usize)) -> usize {
    field::put_u32(b, 24, payload.0);
    field::put_u32(b, 28, payload.1);
    field::put_u32(b, 32, data_at as u32);
    field::put_u32(b, 36, data_len as u32);
    data_len
}

/// A decoded and validated batch header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// The fixed fields.
    pub fields: BatchFields,
    /// The header's checksum, to which the next batch is chained.
    pub crc: u32,
    /// What the predecessor held.
    pub summaries: Vec<GroupSummary>,
    bytes: Bytes,
    header_bytes: u32,
    records: u32,
}

/// Bytes of header that must be read to decode it, from its first block.
pub fn bytes_needed(first: &[u8]) -> Result<usize, DiskFormatError> {
    if first.len() < BLOCK_BYTES {
        return Err(DiskFormatError::Short(BLOCK_BYTES as u32));
    }
    if field::u64(first, 0) != MAGIC {
        let blank = is_blank(&first[..BLOCK_BYTES]);
        return Err(if blank { DiskFormatError::Blank } else { DiskFormatError::Foreign });
    }
    let bytes = field::u32(first, 60);
    if (bytes as usize) < FIXED_BYTES || bytes as usize > HEADER_BYTES_MAX {
        return Err(DiskFormatError::Length(bytes));
    }
    Ok((bytes as usize).next_multiple_of(BLOCK_BYTES))
}

/// What the first block of a header says of where it stands: device, segment, block. Not verified: it
/// tells only what can not be a header of a place, before all of it is read.
pub fn claimed_place(first: &[u8]) -> Option<(u64, u32, u32)> {
    (first.len() >= FIXED_BYTES)
        .then(|| (field::u64(first, 16), field::u32(first, 32), field::u32(first, 36)))
}

impl BatchHeader {
    /// Decodes and validates a header that starts with `bytes`; more may follow it there.
    pub fn decode(bytes: &[u8]) -> Result<BatchHeader, DiskFormatError> {
        let needed = bytes_needed(bytes)?;
        let Some(b) = bytes.get(..needed) else {
            return Err(DiskFormatError::Short(needed as u32));
        };
        let crc = field::u32(b, 8);
        if crc != crc32c(&b[12..]) {
            return Err(DiskFormatError::Checksum);
        }
        let version = field::u16(b, 12);
        if version != FORMAT_VERSION {
            return Err(DiskFormatError::Version(version));
        }
        let header_bytes = field::u32(b, 60);
        let (summaries, records) = (field::u32(b, 80), field::u32(b, 68));
        let fields = fixed_fields(b);
        validate_fixed(&fields, header_bytes, summaries, records)?;
        let summaries = (0..summaries as usize)
            .map(|i| summary(&b[FIXED_BYTES + i * SUMMARY_BYTES..]))
            .collect::<Result<Vec<_>, _>>()?;
        // The header is copied to its own size, so that entry data kept by the owner does not keep
        // a whole read window in memory.
        let bytes = Bytes::copy_from_slice(&b[..header_bytes as usize]);
        let header = BatchHeader { fields, crc, summaries, bytes, header_bytes, records };
        header.validate_records()?;
        Ok(header)
    }

    /// Records of the batch.
    pub fn record_count(&self) -> u32 {
        self.records
    }

    /// Blocks of the header.
    pub fn header_blocks(&self) -> u32 {
        blocks_of(self.header_bytes as usize)
    }

    /// Blocks of the whole batch. Does not overflow: both parts were bounded when decoded.
    pub fn blocks(&self) -> u32 {
        self.header_blocks() + self.fields.payload_blocks
    }

    /// Whether the batch closes its segment.
    pub fn is_closing(&self) -> bool {
        self.fields.flags & FLAG_CLOSING != 0
    }

    /// Whether it is a batch of copies, which is no part of the log.
    pub fn holds_copies(&self) -> bool {
        self.fields.flags & FLAG_COPIES != 0
    }

    /// A record by its ordinal.
    pub fn record(&self, ordinal: u32) -> Option<Descriptor<Bytes>> {
        if ordinal >= self.records {
            return None;
        }
        let start = FIXED_BYTES + self.summaries.len() * SUMMARY_BYTES;
        let b = &self.bytes[start + ordinal as usize * DESCRIPTOR_BYTES..][..DESCRIPTOR_BYTES];
        let group = GroupId(field::u32(b, 4));
        let term = Term(field::u64(b, 8));
        let index = LogIndex(field::u64(b, 16));
        if b[0] == KIND_HARD_STATE {
            let vote = NodeId(field::u32(b, 24));
            let state = HardStateFields { term, vote, commit: index };
            return Some(Descriptor::HardState { group, state });
        }
        let data_at = field::u32(b, 32) as usize;
        let data = self.bytes.slice(data_at..data_at + field::u32(b, 36) as usize);
        let (payload_block, payload_blocks) = (field::u32(b, 24), field::u32(b, 28));
        if b[0] == KIND_MOVED {
            return Some(Descriptor::Moved { group, payload_block, payload_blocks, data });
        }
        let kind = b[1];
        Some(Descriptor::Entry { group, term, index, kind, payload_block, payload_blocks, data })
    }

    /// All records in order.
    pub fn records(&self) -> impl Iterator<Item = Descriptor<Bytes>> + '_ {
        (0..self.records).map_while(|ordinal| self.record(ordinal))
    }

    /// Data and payload of the records must tile the header's tail and the payload exactly.
    fn validate_records(&self) -> Result<(), DiskFormatError> {
        let start = FIXED_BYTES + self.summaries.len() * SUMMARY_BYTES;
        let mut data_at = start + self.records as usize * DESCRIPTOR_BYTES;
        let mut payload_block = 0u32;
        for i in 0..self.records as usize {
            let b = &self.bytes[start + i * DESCRIPTOR_BYTES..][..DESCRIPTOR_BYTES];
            match b[0] {
                KIND_ENTRY | KIND_HARD_STATE if self.holds_copies() => {
                    return Err(DiskFormatError::Field("record among copies"));
                }
                KIND_HARD_STATE => continue,
                KIND_ENTRY if field::u64(b, 16) == 0 => {
                    return Err(DiskFormatError::Field("entry index"));
                }
                KIND_MOVED if b[1] != 0 || field::u64(b, 8) != 0 || field::u64(b, 16) != 0 => {
                    return Err(DiskFormatError::Field("moved blocks"));
                }
                KIND_ENTRY | KIND_MOVED => {}
                _ => return Err(DiskFormatError::Field("record kind")),
            }
            if field::u32(b, 32) as usize != data_at || field::u32(b, 24) != payload_block {
                return Err(DiskFormatError::Field("place of an entry"));
            }
            data_at += field::u32(b, 36) as usize;
            payload_block = payload_block
                .checked_add(field::u32(b, 28))
                .ok_or(DiskFormatError::Field("payload of an entry"))?;
        }
        if data_at != self.header_bytes as usize {
            return Err(DiskFormatError::Field("length of entry data"));
        }
        if payload_block != self.fields.payload_blocks {
            return Err(DiskFormatError::Field("payload_blocks"));
        }
        Ok(())
    }
}

fn fixed_fields(b: &[u8]) -> BatchFields {
    BatchFields {
        flags: field::u16(b, 14),
        device: field::u64(b, 16),
        segment_seq: field::u64(b, 24),
        segment: field::u32(b, 32),
        block: field::u32(b, 36),
        seq: field::u64(b, 40),
        boot: field::u64(b, 48),
        previous_crc: field::u32(b, 56),
        payload_blocks: field::u32(b, 64),
        durable: field::u64(b, 72),
        next_segment: field::u32(b, 84),
    }
}

fn validate_fixed(
    f: &BatchFields,
    header_bytes: u32,
    summaries: u32,
    records: u32,
) -> Result<(), DiskFormatError> {
    let parts = u64::from(summaries) * SUMMARY_BYTES as u64
        + u64::from(records) * DESCRIPTOR_BYTES as u64
        + FIXED_BYTES as u64;
    if records as usize > RECORDS_MAX {
        return Err(DiskFormatError::Field("records"));
    }
    if parts > u64::from(header_bytes) {
        return Err(DiskFormatError::Field("summaries"));
    }
    if f.flags & !FLAGS_KNOWN != 0 {
        return Err(DiskFormatError::Field("flags"));
    }
    if f.flags & FLAG_COPIES != 0 {
        let apart = f.flags == FLAG_COPIES && summaries == 0;
        if !apart || f.previous_crc != 0 || f.durable != 0 || f.next_segment != 0 {
            return Err(DiskFormatError::Field("batch of copies"));
        }
    }
    if f.seq == 0 {
        return Err(DiskFormatError::Field("batch sequence"));
    }
    if f.durable >= f.seq {
        return Err(DiskFormatError::Field("durable mark"));
    }
    if f.segment_seq == 0 {
        return Err(DiskFormatError::Field("segment sequence"));
    }
    if f.payload_blocks > u32::MAX >> 4 || f.block > u32::MAX >> 4 {
        return Err(DiskFormatError::Field("place"));
    }
    Ok(())
}

fn summary(b: &[u8]) -> Result<GroupSummary, DiskFormatError> {
    let flags = field::u32(b, 4);
    if flags & !(SUMMARY_ENTRIES | SUMMARY_HARD_STATE) != 0 {
        return Err(DiskFormatError::Field("summary flags"));
    }
    let entries = (flags & SUMMARY_ENTRIES != 0).then(|| EntryRange {
        first: LogIndex(field::u64(b, 8)),
        last: LogIndex(field::u64(b, 16)),
        term: Term(field::u64(b, 24)),
    });
    let hard_state = (flags & SUMMARY_HARD_STATE != 0).then(|| HardStateFields {
        term: Term(field::u64(b, 32)),
        commit: LogIndex(field::u64(b, 40)),
        vote: NodeId(field::u32(b, 48)),
    });
    Ok(GroupSummary { group: GroupId(field::u32(b, 0)), entries, hard_state })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hard_states() -> impl Strategy<Value = HardStateFields> {
        (any::<u64>(), any::<u32>(), any::<u64>()).prop_map(|(term, vote, commit)| {
            HardStateFields { term: Term(term), vote: NodeId(vote), commit: LogIndex(commit) }
        })
    }

    fn ranges() -> impl Strategy<Value = EntryRange> {
        (any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(first, last, term)| EntryRange {
            first: LogIndex(first),
            last: LogIndex(last),
            term: Term(term),
        })
    }

    fn summaries() -> impl Strategy<Value = GroupSummary> {
        (any::<u32>(), prop::option::of(ranges()), prop::option::of(hard_states())).prop_map(
            |(group, entries, hard_state)| GroupSummary {
                group: GroupId(group),
                entries,
                hard_state,
            },
        )
    }

    fn records() -> impl Strategy<Value = Descriptor<Bytes>> {
        let data = prop::collection::vec(any::<u8>(), 0..300);
        let entry = (any::<u32>(), any::<u64>(), 1u64.., any::<u8>(), 0u32..9, data).prop_map(
            |(group, term, index, kind, payload_blocks, data)| Descriptor::Entry {
                group: GroupId(group),
                term: Term(term),
                index: LogIndex(index),
                kind,
                payload_block: 0,
                payload_blocks,
                data: Bytes::from(data),
            },
        );
        let hard = (any::<u32>(), hard_states())
            .prop_map(|(group, state)| Descriptor::HardState { group: GroupId(group), state });
        let data = prop::collection::vec(any::<u8>(), 0..300);
        let moved = (any::<u32>(), 0u32..9, data).prop_map(|(group, payload_blocks, data)| {
            let (group, data) = (GroupId(group), Bytes::from(data));
            Descriptor::Moved { group, payload_block: 0, payload_blocks, data }
        });
        prop_oneof![3 => entry, 1 => hard, 1 => moved]
    }

    /// Puts the payload of the records one behind the other and gives its blocks.
    fn place(records: &mut [Descriptor<Bytes>]) -> u32 {
        let mut at = 0;
        for record in records {
            if let Descriptor::Entry { payload_block, payload_blocks, .. }
            | Descriptor::Moved { payload_block, payload_blocks, .. } = record
            {
                *payload_block = at;
                at += *payload_blocks;
            }
        }
        at
    }

    fn encoded(
        fields: &BatchFields,
        summaries: &[GroupSummary],
        records: &[Descriptor<Bytes>],
    ) -> (Vec<u8>, u32) {
        let data = records.iter().map(|r| r.data().map_or(0, Bytes::len));
        let bytes = header_bytes(summaries.len(), records.len(), data.sum());
        let mut target = vec![0xaa; blocks_of(bytes) as usize * BLOCK_BYTES];
        let crc = encode(fields, summaries, records, &mut target);
        (target, crc)
    }

    proptest! {
        #[test]
        fn headers_survive_a_round_trip(
            summaries in prop::collection::vec(summaries(), 0..20),
            mut records in prop::collection::vec(records(), 0..40),
            numbers in any::<[u64; 4]>(),
            places in any::<[u32; 4]>(),
            flags in 0u16..8,
        ) {
            let fields = BatchFields {
                flags,
                device: numbers[0],
                segment_seq: numbers[1].max(1),
                segment: places[0],
                block: places[1] >> 4,
                seq: numbers[2].max(1),
                boot: numbers[3],
                previous_crc: places[2],
                payload_blocks: place(&mut records),
                durable: numbers[2].max(1) - 1,
                next_segment: places[3],
            };
            let (bytes, crc) = encoded(&fields, &summaries, &records);
            let header = BatchHeader::decode(&bytes).expect("what was encoded");
            prop_assert_eq!(header.crc, crc);
            prop_assert_eq!(header.fields, fields);
            prop_assert_eq!(&header.summaries, &summaries);
            prop_assert_eq!(header.records().collect::<Vec<_>>(), records);
            prop_assert_eq!(header.header_blocks() as usize * BLOCK_BYTES, bytes.len());
        }

        #[test]
        fn any_bytes_are_refused_or_decoded(
            mut bytes in prop::collection::vec(any::<u8>(), 0..9000),
            sign in any::<bool>(),
            length in 0u32..9000,
        ) {
            if bytes.len() >= BLOCK_BYTES {
                field::put_u64(&mut bytes, 0, MAGIC);
                field::put_u32(&mut bytes, 60, length);
                if sign && let Ok(needed) = bytes_needed(&bytes) && needed <= bytes.len() {
                    field::put_u16(&mut bytes, 12, FORMAT_VERSION);
                    field::put_u16(&mut bytes, 14, 0);
                    field::put_u64(&mut bytes, 72, 0);
                    field::put_u32(&mut bytes, 68, length % 7);
                    field::put_u32(&mut bytes, 80, length % 5);
                    let crc = crc32c(&bytes[12..needed]);
                    field::put_u32(&mut bytes, 8, crc);
                }
            }
            if let Ok(header) = BatchHeader::decode(&bytes) {
                prop_assert_eq!(header.records().count(), header.record_count() as usize);
            }
        }
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let mut records = vec![Descriptor::Entry {
            group: GroupId(1),
            term: Term(2),
            index: LogIndex(3),
            kind: 0,
            payload_block: 0,
            payload_blocks: 5,
            data: Bytes::from(vec![7; 5000]),
        }];
        let payload_blocks = place(&mut records);
        let fields =
            BatchFields { seq: 9, segment_seq: 1, payload_blocks, ..BatchFields::default() };
        let (good, _) = encoded(&fields, &[GroupSummary::default()], &records);
        assert_eq!(good.len(), 2 * BLOCK_BYTES);
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(BatchHeader::decode(&bad).is_err(), "bit {bit} was flipped and not noticed");
        }
    }

    #[test]
    fn a_batch_of_copies_holds_nothing_else() {
        let group = GroupId(1);
        let data = Bytes::from_static(b"any");
        let moved = Descriptor::Moved { group, payload_block: 0, payload_blocks: 0, data };
        let hard = Descriptor::HardState { group, state: HardStateFields::default() };
        let copies =
            BatchFields { flags: FLAG_COPIES, seq: 9, segment_seq: 1, ..BatchFields::default() };
        let decoded =
            |fields: &BatchFields, summaries: &[GroupSummary], record: &Descriptor<Bytes>| {
                let records = std::slice::from_ref(record);
                BatchHeader::decode(&encoded(fields, summaries, records).0)
            };
        assert!(decoded(&copies, &[], &moved).expect("it is what it should be").holds_copies());
        assert!(decoded(&copies, &[], &hard).is_err());
        assert!(decoded(&copies, &[GroupSummary::default()], &moved).is_err());
        let spoils: [fn(&mut BatchFields); 4] = [
            |f| f.flags |= FLAG_CLOSING,
            |f| f.previous_crc = 1,
            |f| f.durable = 1,
            |f| f.next_segment = 1,
        ];
        for spoil in spoils {
            let mut bad = copies;
            spoil(&mut bad);
            assert!(decoded(&bad, &[], &moved).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_summary_keeps_the_lowest_and_the_last_index() {
        let entry = |index| Descriptor::Entry {
            group: GroupId(4),
            term: Term(1),
            index: LogIndex(index),
            kind: 0,
            payload_block: 0,
            payload_blocks: 0,
            data: Bytes::new(),
        };
        let mut summaries = Vec::new();
        for index in [7, 8, 9, 6] {
            summarise(&mut summaries, &entry(index));
        }
        let range = summaries[0].entries.expect("entries were noted");
        assert_eq!((range.first, range.last, summaries.len()), (LogIndex(6), LogIndex(6), 1));
    }
}
