//! What the index of a terabyte takes: memory with all tables in it and with none, bytes in the store, and
//! the time to read it at a start and to load one table. `cargo bench -p basalt-core`.

use basalt_core::checkpoint::Loader;
use basalt_core::index::{BlockPlace, CoolingRule, PageContent, Usage, VolumeIndex};
use basalt_core::planted::Planted;
use basalt_wire::block::{BLOCK_BYTES, CHUNK_BLOCKS};
use basalt_wire::command::BlockRange;
use basalt_wire::disk::checkpoint::Record;
use basalt_wire::ids::{GroupId, LogIndex, SegmentId, VolumeId};
use std::hint::black_box;
use std::time::Instant;

const TERABYTE: f64 = 1e12;
const CHUNK_BYTES: u64 = CHUNK_BLOCKS * BLOCK_BYTES as u64;
const SEGMENT_BLOCKS: u64 = (64 << 20) / BLOCK_BYTES as u64;

/// Where the block written as number `n` stands.
fn place(n: u64) -> BlockPlace {
    let (segment, block) = (n / SEGMENT_BLOCKS, n % SEGMENT_BLOCKS);
    // What a checksum is does not matter, but that it can not be packed.
    let checksum = (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32;
    BlockPlace { segment: SegmentId(segment as u32), block: block as u32, checksum }
}

/// All blocks of some chunks, written in an order.
fn filled(chunks: u64, random: bool, usage: &mut Usage) -> VolumeIndex {
    let mut index = VolumeIndex::new();
    let blocks = chunks * CHUNK_BLOCKS;
    for n in 0..blocks {
        // An odd factor gives each block of a power of two once.
        let block = if random { n.wrapping_mul(0x9e37_79b1) % blocks } else { n };
        let at = place(n);
        let sum = std::iter::once(at.checksum);
        index.map(BlockRange { block, count: 1 }, at, sum, LogIndex(n + 1), None, usage);
    }
    index
}

/// The records of a checkpoint of it, page by page.
fn records(index: &mut VolumeIndex, chunks: u64) -> Vec<(u64, PageContent)> {
    let page = |chunk| {
        let mut content = PageContent::new();
        while let Some((number, _, granule)) = index.take_dirty(chunk, LogIndex(u64::MAX), 1) {
            content.push((number, granule));
        }
        (chunk, content)
    };
    (0..chunks).map(page).collect()
}

fn main() {
    // `cargo test` runs benches too, with --test: then a short look is enough.
    let short = !std::env::args().any(|arg| arg == "--bench");
    let chunks: u64 = if short { 64 } else { 2048 };
    let share = TERABYTE / (chunks * CHUNK_BYTES) as f64;
    println!(
        "{:<12} {:>14} {:>14} {:>12} {:>16} {:>14}",
        "written", "in memory MB", "cold MB", "store MB", "read at start s", "load of one µs"
    );
    for (what, random) in [("in order", false), ("at random", true)] {
        let mut usage = Usage::default();
        let mut index = filled(chunks, random, &mut usage);
        let resident = index.memory() as f64 * share / 1e6;
        let pages = records(&mut index, chunks);
        let rule = CoolingRule { durable: 1, held_since: u64::MAX, careless: false };
        for chunk in (0..chunks).chain(0..chunks) {
            index.list(chunk);
            index.cool(chunk, &rule, &mut usage);
        }
        assert_eq!(usage.cold(), chunks, "nobody uses them");
        let cold = index.memory() as f64 * share / 1e6;
        let stored = encoded(&pages);
        let bytes: usize = stored.iter().map(|(key, value)| key.len() + value.len()).sum();
        let began = Instant::now();
        let mut loader = Loader::new(0, Planted::NONE);
        for (key, value) in &stored {
            loader.add(key, value).expect("the records are whole");
        }
        black_box(&loader);
        let start = began.elapsed().as_secs_f64() * share;
        let began = Instant::now();
        for (chunk, content) in &pages {
            index.warm(*chunk, content, 0, false, &mut usage).expect("what left comes back");
        }
        let load = began.elapsed().as_secs_f64() * 1e6 / chunks as f64;
        let store = bytes as f64 * share / 1e6;
        println!(
            "{what:<12} {resident:>14.0} {cold:>14.1} {store:>12.0} {start:>16.1} {load:>14.1}"
        );
        assert!(cold < 60.0, "the index of a terabyte takes less than 60 MB");
    }
}

/// Keys and values as they stand in the store.
fn encoded(pages: &[(u64, PageContent)]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut stored = Vec::new();
    for (chunk, content) in pages {
        for (number, granule) in content {
            let record = Record::Granule(GroupId(1), VolumeId(1), *chunk, *number, granule.clone());
            let (mut key, mut value) = (Vec::new(), Vec::new());
            record.key(&mut key);
            record.value(&key, &mut value);
            stored.push((key, value));
        }
    }
    stored
}
