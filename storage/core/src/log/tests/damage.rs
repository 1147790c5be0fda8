//! Damaged devices: flipped bits, unreadable places, foreign superblocks, garbage.
//!
//! Whatever a device returns, the log never panics and never replays a record that was not
//! appended; and a durable record that is not replayed is reported.

use super::disk::{Random, Seen, TestDisk, World, config, entry, seen_appended};
use super::hard_state;
use crate::config::ShardConfig;
use crate::log::{DataLocation, Location, LogEvent};
use crate::planted::Planted;
use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::disk::batch::{BatchHeader, Descriptor, bytes_needed};
use basalt_wire::disk::inspect::{Inspection, inspect};
use basalt_wire::ids::{ClusterId, LogIndex, SegmentId};

const SEGMENTS_AT: usize = 128 << 10;
const SEGMENT_BYTES: usize = 64 << 10;

/// A sealed log of several segments, each batch settled before the next.
fn sample(planted: Planted) -> World {
    let mut world = World::format(config(5, planted));
    for i in 1..=12u64 {
        world.append(entry(0, i, (i % 3) as u32 * 2, i));
        if i % 3 == 0 {
            world.append(hard_state(0, i));
            world.append(entry(1, i / 3, 1, 100 + i));
        }
        world.settle();
    }
    world.seal();
    world
}

/// The headers of an undamaged image: byte offset and header.
fn headers(image: &[u8]) -> Vec<(usize, BatchHeader)> {
    let (mut at, mut found) = (SEGMENTS_AT, Vec::new());
    while let Ok(header) = BatchHeader::decode(&image[at..]) {
        let next = if header.is_closing() {
            SEGMENTS_AT + header.fields.next_segment as usize * SEGMENT_BYTES
        } else {
            at + header.blocks() as usize * BLOCK_BYTES
        };
        found.push((at, header));
        at = next;
    }
    found
}

/// Whether the replayed records are appended ones, in order; gives the positions of the missing.
fn missing(appended: &[Seen], replayed: &[Seen]) -> Result<Vec<usize>, String> {
    let (mut missing, mut rest) = (Vec::new(), replayed.iter().peekable());
    for (i, record) in appended.iter().enumerate() {
        if rest.next_if_eq(&record).is_none() {
            missing.push(i);
        }
    }
    rest.next().map_or(Ok(missing), |r| Err(format!("{r:?} was never appended, or not here")))
}

/// Opens an image with one damaged header and checks that nothing was lost in silence.
fn check_damaged(
    world: &World,
    image: Vec<u8>,
    header: &BatchHeader,
    open_twice: bool,
) -> Result<(), String> {
    let again = world.reopen_image(image);
    if let Some(reason) = &again.opened.failed {
        return Err(reason.clone());
    }
    let gone = missing(&world.appended, &again.opened.records)?;
    let lost = header.records().filter_map(|r| match r {
        Descriptor::Entry { group, index, .. } => Some((group, index)),
        Descriptor::HardState { .. } | Descriptor::Moved { .. } => None,
    });
    let lost: Vec<_> = lost.collect();
    if gone.len() > lost.len() {
        return Err(format!("{} records are gone, {} were hit", gone.len(), lost.len()));
    }
    for (group, index) in &lost {
        let reported = again.opened.damages.iter().any(|d| {
            d.group == Some(*group)
                && d.first_lost.is_some_and(|first| first <= *index)
                && d.last_known >= *index
                && !d.vote_lost
        });
        if !gone.is_empty() && !reported {
            return Err(format!("the loss of {group:?} {index:?} was not reported"));
        }
    }
    if !open_twice {
        return Ok(());
    }
    let twice = again.reopen_image(again.disk.content.clone());
    if (&twice.opened.records, &twice.opened.damages)
        != (&again.opened.records, &again.opened.damages)
    {
        return Err("opened a second time it is different".into());
    }
    Ok(())
}

fn flip_every_header_bit(planted: Planted) -> Result<(), String> {
    let world = sample(planted);
    let image = &world.disk.content;
    for (at, header) in headers(image) {
        let used = bytes_needed(&image[at..]).expect("a header");
        // Every bit of what is used, and some of the padding.
        let bits = (0..used * 8).filter(|bit| *bit < 420 * 8 || bit % 1999 == 0);
        for bit in bits {
            let mut bad = image.clone();
            bad[at + bit / 8] ^= 1 << (bit % 8);
            check_damaged(&world, bad, &header, bit % 13 == 0)
                .map_err(|e| format!("batch {} bit {bit}: {e}", header.fields.seq))?;
        }
    }
    Ok(())
}

#[test]
fn no_flipped_header_bit_loses_anything_in_silence() {
    assert!(headers(&sample(Planted::NONE).disk.content).len() >= 14);
    assert_eq!(flip_every_header_bit(Planted::NONE), Ok(()));
}

#[cfg(feature = "planted")]
#[test]
fn a_log_cut_on_a_checksum_is_noticed() {
    use crate::planted::Bug;
    assert!(flip_every_header_bit(Planted::new(Bug::CutOnChecksumError)).is_err());
}

#[test]
fn a_damaged_log_goes_on_and_keeps_reporting() {
    let world = sample(Planted::NONE);
    for (at, _) in headers(&world.disk.content) {
        let mut bad = world.disk.content.clone();
        bad[at + 100] ^= 4;
        let mut again = world.reopen_image(bad);
        let before = again.opened.clone();
        let more = entry(2, 1, 2, 900);
        again.append(more.clone());
        again.settle();
        let last = again.reopen_image(again.disk.durable.clone());
        assert_eq!(last.opened.damages, before.damages, "batch at {at}");
        assert_eq!(last.opened.records.last(), Some(&seen_appended(&more)));
        assert_eq!(last.opened.records.len(), before.records.len() + 1);
    }
}

#[test]
fn entries_written_anew_make_their_loss_void() {
    let world = sample(Planted::NONE);
    let first_entry = |header: &BatchHeader| match header.record(0) {
        Some(Descriptor::Entry { index, .. }) if header.record_count() == 1 => Some(index),
        _ => None,
    };
    let found = headers(&world.disk.content);
    let mut entries = found.iter().filter_map(|(at, h)| Some((*at, first_entry(h)?)));
    let (at, index) = entries.nth(2).expect("a batch of one entry");
    let mut bad = world.disk.content.clone();
    bad[at] ^= 1;
    let mut again = world.reopen_image(bad);
    assert_eq!(again.opened.damages[0].first_lost, Some(index));
    again.append(entry(0, index.0, 1, 901));
    again.settle();
    let last = again.reopen_image(again.disk.durable.clone());
    assert_eq!(last.opened.damages, []);
}

#[test]
fn a_loss_is_void_only_when_all_of_it_is_here_again() {
    let mut world = World::format(config(5, Planted::NONE));
    (1..=3).for_each(|i| world.append(entry(0, i, 1, i)));
    world.settle();
    (4..=6).for_each(|i| world.append(entry(0, i, 1, i)));
    world.settle();
    world.seal();
    let (at, _) = headers(&world.disk.content)[1];
    let mut bad = world.disk.content.clone();
    bad[at] ^= 1;
    let mut again = world.reopen_image(bad);
    for lost in 4..=6 {
        let damage = &again.opened.damages[0];
        assert_eq!((damage.first_lost, damage.last_known), (Some(LogIndex(lost)), LogIndex(6)));
        again.append(entry(0, lost, 1, lost));
        again.settle();
        again = again.reopen_image(again.disk.durable.clone());
    }
    assert_eq!(again.opened.damages, []);
}

#[test]
fn two_lost_neighbours_put_every_group_in_doubt() {
    let world = sample(Planted::NONE);
    let found = headers(&world.disk.content);
    let mut bad = world.disk.content.clone();
    bad[found[3].0] ^= 1;
    bad[found[4].0] ^= 1;
    let again = world.reopen_image(bad);
    assert!(again.opened.damages.iter().any(|d| d.group.is_none() && d.vote_lost));
    missing(&world.appended, &again.opened.records).expect("only appended records");
}

#[test]
fn damaged_payload_keeps_the_entry() {
    let world = sample(Planted::NONE);
    let found = headers(&world.disk.content);
    let (at, header) = found.iter().rev().find(|(_, h)| h.fields.payload_blocks > 0).expect("one");
    let mut bad = world.disk.content.clone();
    bad[at + header.header_blocks() as usize * BLOCK_BYTES + 77] ^= 1;
    let again = world.reopen_image(bad);
    assert_eq!(again.opened.damages, []);
    assert_eq!(again.opened.records.len(), world.appended.len());
}

fn open_unreadable(world: &World, image: Vec<u8>, at: usize) -> World {
    let mut disk = TestDisk::from_image(image);
    disk.unreadable.insert(at);
    World::open(world.config.clone(), disk)
}

#[test]
fn an_unreadable_header_is_damage() {
    let world = sample(Planted::NONE);
    let mut found = headers(&world.disk.content);
    found.pop().expect("the seal, behind which nothing tells what it was");
    for (at, header) in found {
        let again = open_unreadable(&world, world.disk.content.clone(), at);
        assert_eq!(again.opened.failed, None);
        let gone = missing(&world.appended, &again.opened.records).expect("appended records");
        assert_eq!(gone.is_empty(), again.opened.damages.is_empty(), "{:?}", header.fields);
    }
}

#[test]
fn an_unreadable_end_puts_every_group_in_doubt_for_good() {
    let world = sample(Planted::NONE);
    let (at, last) = headers(&world.disk.content).pop().expect("a sealed log");
    let end = at + last.blocks() as usize * BLOCK_BYTES;
    let mut again = open_unreadable(&world, world.disk.content.clone(), end);
    assert_eq!(again.opened.records, world.appended);
    assert!(again.opened.damages.iter().any(|d| d.group.is_none()));
    let more = entry(2, 1, 2, 900);
    again.append(more.clone());
    again.settle();
    again.seal();
    // The place stays in doubt, whether it can be read now or not, and nothing behind it is lost.
    let readable = again.reopen_image(again.disk.content.clone());
    assert_eq!(readable.opened.records.last(), Some(&seen_appended(&more)));
    let unreadable = open_unreadable(&again, again.disk.content.clone(), end);
    assert_eq!(unreadable.opened.records.last(), Some(&seen_appended(&more)));
    assert!(unreadable.opened.damages.iter().any(|d| d.group.is_none()));
}

#[test]
fn one_superblock_is_enough_and_a_foreign_one_is_refused() {
    let world = sample(Planted::NONE);
    for offset in [0, 64 << 10] {
        let mut bad = world.disk.content.clone();
        bad[offset + 20] ^= 1;
        assert_eq!(world.reopen_image(bad).opened.records, world.appended);
        let again = open_unreadable(&world, world.disk.content.clone(), offset);
        assert_eq!(again.opened.records, world.appended);
    }
    let mut bad = world.disk.content.clone();
    bad[..256 << 10].fill(0);
    let reason = world.reopen_image(bad).opened.failed.expect("a blank device");
    assert!(reason.contains("never formatted"), "{reason}");
    let other = ShardConfig { cluster: ClusterId(78), ..world.config.clone() };
    let refused = World::open(other, TestDisk::from_image(world.disk.content.clone()));
    let reason = refused.opened.failed.expect("a device of another cluster");
    assert!(reason.contains("4d (node 1)") && reason.contains("4e;"), "{reason}");
}

#[test]
fn garbage_never_panics_nor_invents_a_record() {
    let world = sample(Planted::NONE);
    let mut random = Random(5);
    for _ in 0..1500 {
        let mut bad = world.disk.content.clone();
        for _ in 0..=random.below(6) {
            let at = SEGMENTS_AT + random.below(bad.len() - SEGMENTS_AT);
            let len = (random.below(9000) + 1).min(bad.len() - at);
            match random.below(4) {
                0 => bad[at] ^= 1 << random.below(8),
                1 => bad[at..at + len].fill(0),
                2 => bad[at..at + len].fill_with(|| random.next() as u8),
                _ => {
                    let from = random.below(bad.len() - len) / BLOCK_BYTES * BLOCK_BYTES;
                    let at = at / BLOCK_BYTES * BLOCK_BYTES;
                    bad.copy_within(from..from + len, at);
                }
            }
        }
        let again = world.reopen_image(bad);
        assert_eq!(again.opened.failed, None);
        let known: Vec<&str> = world.appended.iter().map(|s| s.0.as_str()).collect();
        for record in &again.opened.records {
            assert!(known.contains(&record.0.as_str()), "{record:?} was never appended");
        }
    }
}

#[test]
fn reads_give_what_was_placed_and_refuse_the_rest() {
    let mut world = World::format(config(5, Planted::NONE));
    let record = entry(1, 1, 3, 9);
    world.append(record.clone());
    world.settle();
    let Some(LogEvent::Placed { location, data_at, .. }) = world.events.pop() else {
        panic!("the record has a place")
    };
    let mut out = Vec::new();
    world.log.read(1, location, 3, &mut out);
    world.log.read_data(2, data_at, &mut out);
    world.ops.extend(out);
    while world.step_first() {}
    let crate::log::Record::Entry { data, payload, .. } = record else { panic!("an entry") };
    let [LogEvent::Read { token: 1, result: Ok(blocks) }, LogEvent::ReadData { token: 2, result }] =
        &world.events[..]
    else {
        panic!("{:?}", world.events)
    };
    assert_eq!((blocks, result), (&payload.contiguous(), &Some(data)));
    world.events.clear();
    refuse_reads(&mut world);
}

fn refuse_reads(world: &mut World) {
    let mut out = Vec::new();
    for (segment, block) in [(0, 4), (1, 0), (0, u32::MAX), (u32::MAX, 0)] {
        let segment = SegmentId(segment);
        world.log.read(3, Location { segment, block }, 1, &mut out);
        world.log.read_data(4, DataLocation { segment, block, record: 0 }, &mut out);
    }
    // Within what was written, but no header stands there, or no such record in it.
    world.log.read_data(5, DataLocation { block: 1, ..DataLocation::default() }, &mut out);
    world.log.read_data(6, DataLocation { record: 1, ..DataLocation::default() }, &mut out);
    assert_eq!(out.len(), 2);
    world.ops.extend(out);
    while world.step_first() {}
    world.flush();
    assert_eq!(world.events.len(), 10);
    for event in &world.events {
        let refused = matches!(
            event,
            LogEvent::Read { result: Err(_), .. } | LogEvent::ReadData { result: None, .. }
        );
        assert!(refused, "{event:?}");
    }
}

#[test]
fn the_summary_restores_a_lost_vote() {
    let mut world = World::format(config(4, Planted::NONE));
    world.append(hard_state(0, 7));
    world.settle();
    world.append(entry(0, 1, 1, 1));
    world.settle();
    world.seal();
    let mut bad = world.disk.content.clone();
    bad[SEGMENTS_AT + 50] ^= 8;
    let again = world.reopen_image(bad);
    assert_eq!(again.opened.records, world.appended);
    assert_eq!(again.opened.damages, []);
}

pub fn inspected(image: &[u8]) -> Inspection {
    let mut read = |offset: u64, buf: &mut [u8]| {
        let from = offset as usize;
        let content = image.get(from..from + buf.len()).ok_or("beyond the end")?;
        buf.copy_from_slice(content);
        Ok(())
    };
    inspect(&mut read, true)
}

#[test]
fn the_offline_checker_agrees_with_the_engine() {
    let world = sample(Planted::NONE);
    let image = &world.disk.content;
    let found = inspected(image);
    let batches = headers(image);
    assert_eq!(found.findings, Vec::<String>::new());
    assert_eq!(found.batches, batches.len() as u64);
    assert_eq!(found.records, world.appended.len() as u64);
    assert!(found.sealed && found.blocks_verified > 10 && found.blocks_bad == 0);
    let (at, header) = &batches[4];
    let mut bad = image.clone();
    bad[*at + 30] ^= 1;
    let found = inspected(&bad);
    assert_eq!(found.batches, batches.len() as u64 - 1);
    let told = format!("batch {} had been durable", header.fields.seq);
    assert!(found.findings.iter().any(|f| f.contains(&told)), "{:?}", found.findings);
}
