//! The cleaner over segments in memory.

use super::*;
use crate::log::RecordSeq;
use basalt_wire::block::crc32c;
use basalt_wire::command::{BlockRange, Command, encode_commands};
use basalt_wire::disk::batch::{self, BatchFields, BatchHeader, Descriptor, FLAG_CLOSING};
use basalt_wire::disk::{DiskFormatError, blocks_of};
use basalt_wire::ids::{Epoch, Generation, LogIndex, Term, VolumeId};
use std::collections::BTreeSet;

const SEGMENT: SegmentId = SegmentId(3);
const SEQ: u64 = 9;
const V: VolumeId = VolumeId(1);

/// A segment that is being written.
struct Image {
    bytes: Vec<u8>,
    at: u32,
    /// What the index refers to.
    live: BTreeSet<(u64, u32)>,
}

fn content(tag: u64) -> Vec<u8> {
    let mut block = vec![0; BLOCK_BYTES];
    block[..8].copy_from_slice(&tag.to_le_bytes());
    block
}

impl Image {
    fn new(blocks: u32) -> Image {
        Image { bytes: vec![0; blocks as usize * BLOCK_BYTES], at: 0, live: BTreeSet::new() }
    }

    fn blocks(&self) -> u32 {
        (self.bytes.len() / BLOCK_BYTES) as u32
    }

    /// Appends a batch; all of its blocks are live.
    fn batch(&mut self, flags: u16, records: Vec<(GroupId, Vec<u64>, bool)>) {
        let (mut descriptors, mut payload, mut placed) = (Vec::new(), Vec::new(), Vec::new());
        for (group, tags, is_move) in records {
            let payload_block = (payload.len() / BLOCK_BYTES) as u32;
            let payload_blocks = tags.len() as u32;
            let checksums: Vec<u32> = tags.iter().map(|tag| crc32c(&content(*tag))).collect();
            for (n, tag) in (payload_block..).zip(&tags) {
                payload.extend(content(*tag));
                placed.push((*tag, n));
            }
            descriptors.push(match is_move {
                true => {
                    let moved = tags.iter().zip(&checksums).map(|(tag, sum)| MovedBlock {
                        volume: V,
                        block: *tag,
                        checksum: *sum,
                        from: Some((SegmentId(0), 0)),
                    });
                    let data = encode_moved(&moved.collect::<Vec<_>>());
                    Descriptor::Moved { group, payload_block, payload_blocks, data }
                }
                false => {
                    let commands: Vec<Command> = tags.iter().zip(&checksums).map(write).collect();
                    let data = encode_commands(&commands);
                    let (term, index) = (Term(1), LogIndex(1));
                    Descriptor::Entry {
                        group,
                        term,
                        index,
                        kind: 0,
                        payload_block,
                        payload_blocks,
                        data,
                    }
                }
            });
        }
        let data: usize = descriptors.iter().map(data_len).sum();
        let header = blocks_of(batch::header_bytes(0, descriptors.len(), data));
        let fields = BatchFields {
            flags,
            segment_seq: SEQ,
            segment: SEGMENT.0,
            block: self.at,
            seq: u64::from(self.at) + 1,
            payload_blocks: (payload.len() / BLOCK_BYTES) as u32,
            ..BatchFields::default()
        };
        let start = self.at as usize * BLOCK_BYTES;
        let payload_at = start + header as usize * BLOCK_BYTES;
        batch::encode(&fields, &[], &descriptors, &mut self.bytes[start..payload_at]);
        self.bytes[payload_at..payload_at + payload.len()].copy_from_slice(&payload);
        self.live.extend(placed.iter().map(|(tag, n)| (*tag, self.at + header + n)));
        self.at += header + (payload.len() / BLOCK_BYTES) as u32;
    }

    fn place_of(&self, tag: u64) -> u32 {
        self.live.iter().find(|(t, _)| *t == tag).expect("it was written").1
    }
}

fn write((tag, sum): (&u64, &u32)) -> Command {
    Command::Write {
        volume: V,
        epoch: Epoch(1),
        generation: Generation(0),
        range: BlockRange { block: *tag, count: 1 },
        checksums: vec![*sum],
    }
}

fn data_len(record: &Descriptor<Bytes>) -> usize {
    match record {
        Descriptor::Entry { data, .. } | Descriptor::Moved { data, .. } => data.len(),
        Descriptor::HardState { .. } => 0,
    }
}

impl Judge for Image {
    fn is_live(&self, _: GroupId, block: &MovedBlock) -> bool {
        let (segment, at) = block.from.expect("a block of the segment stands somewhere");
        assert_eq!((segment, block.volume), (SEGMENT, V));
        self.live.contains(&(block.block, at))
    }

    fn header(&self, bytes: &[u8], at: Location) -> Result<BatchHeader, DiskFormatError> {
        let header = BatchHeader::decode(bytes)?;
        let f = &header.fields;
        match (f.segment, f.block, f.segment_seq) == (at.segment.0, at.block, SEQ) {
            true => Ok(header),
            false => Err(DiskFormatError::Foreign),
        }
    }
}

/// Goes through a segment: the tags of the blocks that are copied, those that are bad, and the blocks that
/// were read for it.
fn clean(image: &Image, cleaner: &mut Cleaner) -> (Vec<u64>, u32, u32) {
    let victim = Victim { segment: SEGMENT, seq: SEQ, live: image.live.len() as u32 };
    cleaner.hurry();
    assert!(cleaner.wants_victim());
    cleaner.begin(victim, image.blocks());
    let (mut tags, mut read, mut seq) = (Vec::new(), 0, 0);
    loop {
        let (at, blocks) = cleaner.next_read().expect("the pace allows it");
        assert_eq!(cleaner.next_read(), None, "one read at a time");
        read += blocks;
        let from = at.block as usize * BLOCK_BYTES;
        let piece = &image.bytes[from..from + blocks as usize * BLOCK_BYTES];
        let piece = Bytes::copy_from_slice(piece);
        let Taken { records, ended, .. } = cleaner.take(Some(&piece), 7, image, false);
        for (group, blocks, payload) in records {
            assert!(blocks.len() <= 7 && payload.len() == blocks.len() * BLOCK_BYTES);
            let bytes = payload.contiguous();
            for (block, content) in blocks.iter().zip(bytes.chunks(BLOCK_BYTES)) {
                assert_eq!(crc32c(content), block.checksum);
                assert_eq!(group, GroupId(block.block as u32 % 3));
                tags.push(block.block);
            }
            seq += 1;
            cleaner.recorded(RecordSeq(seq), group, blocks);
            cleaner.placed(RecordSeq(seq), Location { segment: SegmentId(8), block: seq as u32 });
            let done = cleaner.durable(RecordSeq(seq)).expect("it is durable now");
            assert_eq!(done.at.block, seq as u32);
        }
        if let Some((segment, bad)) = ended {
            assert_eq!(segment, SEGMENT);
            assert_eq!(cleaner.cleaned().get(&SEGMENT), Some(&SEQ));
            tags.sort_unstable();
            return (tags, bad, read);
        }
    }
}

/// Batches of entries and moved blocks, of three groups, with tags from 0 on.
fn image() -> (Image, u64) {
    let mut image = Image::new(1024);
    let mut tag = 0;
    let mut tags = |group: u64, count: u64| {
        let all = (tag..).filter(|t| t % 3 == group).take(count as usize).collect::<Vec<_>>();
        tag = all.last().map_or(tag, |last| last + 1);
        all
    };
    for n in 0..24u64 {
        let first = (GroupId(0), tags(0, n % 5 + 1), n % 4 == 1);
        let second = (GroupId(1), tags(1, 30 - n), false);
        image.batch(0, vec![first, second, (GroupId(2), tags(2, 1), n % 2 == 0)]);
    }
    image.batch(FLAG_CLOSING, Vec::new());
    (image, tag)
}

#[test]
fn every_live_block_is_copied_once() {
    let (image, _) = image();
    let mut cleaner = Cleaner::default();
    let (tags, bad, _) = clean(&image, &mut cleaner);
    let live: Vec<u64> = image.live.iter().map(|(tag, _)| *tag).collect();
    assert!(live.len() > 300, "{}", live.len());
    assert_eq!((tags, bad), (live.clone(), 0));
    assert_eq!((cleaner.counts().copied, cleaner.counts().victims), (live.len() as u64, 1));
}

#[test]
fn what_is_dead_is_neither_copied_nor_read() {
    let (mut image, _) = image();
    let all = image.live.clone();
    // The first and the last stay.
    let kept: Vec<_> = [all.first(), all.last()].into_iter().flatten().copied().collect();
    image.live = kept.iter().copied().collect();
    let (tags, bad, _) = clean(&image, &mut Cleaner::default());
    assert_eq!((tags, bad), (kept.iter().map(|(tag, _)| *tag).collect(), 0));
    // A batch of a thousand blocks of which none is live is jumped over.
    let mut image = Image::new(2048);
    image.batch(0, vec![(GroupId(1), (0..1500).map(|n| n * 3 + 1).collect(), false)]);
    image.live.clear();
    image.batch(0, vec![(GroupId(2), vec![2], false)]);
    image.batch(FLAG_CLOSING, Vec::new());
    let (tags, _, read) = clean(&image, &mut Cleaner::default());
    assert_eq!(tags, [2]);
    assert!(read < 1024, "{read} blocks were read");
}

#[test]
fn a_bad_block_is_counted_and_not_copied() {
    let (mut image, tag) = image();
    let victim = (0..tag).find(|t| t % 3 == 1).expect("one of the second group");
    let at = image.place_of(victim) as usize * BLOCK_BYTES;
    image.bytes[at + 100] ^= 1;
    let mut cleaner = Cleaner::default();
    let (tags, bad, _) = clean(&image, &mut cleaner);
    assert!(!tags.contains(&victim) && tags.len() + 1 == image.live.len());
    assert_eq!((bad, cleaner.counts().bad), (1, 1));
}

#[test]
fn behind_a_damaged_header_the_next_batch_is_found() {
    let (mut image, _) = image();
    let mut at = 0;
    let mut headers = Vec::new();
    while let Ok(header) = BatchHeader::decode(&image.bytes[at as usize * BLOCK_BYTES..]) {
        headers.push((at, header.blocks()));
        at += header.blocks();
    }
    let (hit, blocks) = headers[7];
    image.bytes[hit as usize * BLOCK_BYTES + 20] ^= 1;
    let hidden = |place: u32| (hit..hit + blocks).contains(&place);
    let (tags, bad, _) = clean(&image, &mut Cleaner::default());
    let seen = image.live.iter().filter(|(_, place)| !hidden(*place));
    assert_eq!((tags, bad), (seen.map(|(tag, _)| *tag).collect(), 0));
    assert!(headers.len() > 20);
}

#[test]
fn of_a_piece_that_can_not_be_read_all_is_moved_but_what_can_not_be_read() {
    let (image, tag) = image();
    let victim = (0..tag).find(|t| t % 3 == 1).expect("one of the second group");
    let broken = image.place_of(victim);
    let mut cleaner = Cleaner::default();
    cleaner.hurry();
    cleaner.begin(Victim { segment: SEGMENT, seq: SEQ, live: 1 }, image.blocks());
    let (mut copied, mut bad, mut ended) = (0, Vec::new(), None);
    while ended.is_none() {
        let (at, blocks) = cleaner.next_read().expect("the pace allows it");
        let from = at.block as usize * BLOCK_BYTES;
        let piece = &image.bytes[from..from + blocks as usize * BLOCK_BYTES];
        let piece = Bytes::copy_from_slice(piece);
        let whole = !(at.block..at.block + blocks).contains(&broken);
        let taken = cleaner.take(whole.then_some(&piece), 7, &image, false);
        copied += taken.records.iter().map(|(_, blocks, _)| blocks.len()).sum::<usize>();
        bad.extend(taken.bad.into_iter().map(|(_, block)| block.block));
        ended = taken.ended;
    }
    assert_eq!((copied, bad), (image.live.len() - 1, vec![victim]));
    assert_eq!(ended, Some((SEGMENT, 1)));
    // It is not begun with again before the block is repaired.
    assert!(cleaner.cleaned().contains_key(&SEGMENT));
    cleaner.forget(SEGMENT);
    assert!(cleaner.wants_victim() && cleaner.cleaned().is_empty());
}

#[test]
fn pace_and_memory_hold_it_back() {
    let (image, _) = image();
    let mut cleaner = Cleaner::default();
    let levels = Levels::of(256, 1024, 2);
    cleaner.set_pace(&levels, levels.start + 1, levels.start + 1, true);
    assert!(!cleaner.wants_victim());
    cleaner.set_pace(&levels, levels.start, levels.start, false);
    assert!(cleaner.wants_victim());
    cleaner.begin(Victim { segment: SEGMENT, seq: SEQ, live: 1 }, image.blocks());
    let mut copies = 0;
    while let Some((at, blocks)) = cleaner.next_read() {
        let from = at.block as usize * BLOCK_BYTES;
        let piece = &image.bytes[from..from + blocks as usize * BLOCK_BYTES];
        let Taken { records, ended, .. } =
            cleaner.take(Some(&Bytes::copy_from_slice(piece)), 256, &image, false);
        assert_eq!(ended, None, "the pace of an idle device ends before the segment does");
        copies += records.iter().map(|(_, blocks, _)| blocks.len()).sum::<usize>();
    }
    assert!(copies * BLOCK_BYTES >= 1 << 20 && cleaner.is_busy(), "{copies}");
    // With as much as may be under way it waits, whatever the pace.
    cleaner.hurry();
    let blocks = MOVING_BYTES_MAX / BLOCK_BYTES;
    let block = MovedBlock { volume: V, block: 0, checksum: 0, from: None };
    cleaner.recorded(RecordSeq(1), GroupId(1), vec![block; blocks]);
    assert_eq!(cleaner.next_read(), None);
    assert!(cleaner.durable(RecordSeq(0)).is_none());
    assert!(cleaner.durable(RecordSeq(1)).is_some() && cleaner.next_read().is_some());
}

#[test]
fn it_goes_along_with_the_writes_and_pays_back_what_it_took_ahead() {
    let (image, _) = image();
    let mut cleaner = Cleaner::default();
    let levels = Levels::of(256, 1024, 2);
    cleaner.keep_pace(5 << 20);
    let live = image.live.len() as u32;
    cleaner.begin(Victim { segment: SEGMENT, seq: SEQ, live }, image.blocks());
    cleaner.set_pace(&levels, levels.urgent, levels.urgent, true);
    assert_eq!(cleaner.next_read(), None, "nothing was written since");
    let Pace::Along(ratio) = levels.pace(levels.urgent, levels.urgent, true, live) else {
        panic!("the pace of a device that is written to");
    };
    // For one block it may begin with a piece, and has then moved more than that.
    let mut recorded = (5 << 20) + (EVEN * BLOCK_BYTES as u64).div_ceil(ratio);
    cleaner.keep_pace(recorded);
    let (at, blocks) = cleaner.next_read().expect("a block is allowed");
    let from = at.block as usize * BLOCK_BYTES;
    let piece = Bytes::copy_from_slice(&image.bytes[from..][..blocks as usize * BLOCK_BYTES]);
    let taken = cleaner.take(Some(&piece), 256, &image, false);
    let moved: usize = taken.records.iter().map(|(_, blocks, _)| blocks.len()).sum();
    assert!(moved > 1 && taken.ended.is_none(), "{moved} of {live}");
    let due = (moved as u64 - 1) * BLOCK_BYTES as u64 * EVEN / ratio;
    recorded += due - 1;
    cleaner.keep_pace(recorded);
    assert_eq!(cleaner.next_read(), None);
    // A new plan does not forgive it.
    cleaner.set_pace(&levels, levels.urgent, levels.urgent, true);
    assert_eq!(cleaner.next_read(), None);
    cleaner.keep_pace(recorded + 2 * EVEN);
    assert!(cleaner.next_read().is_some());
}
