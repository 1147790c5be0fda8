//! The one body of tests that every device passes: real, in memory, layered and simulated.
//!
//! [`check`] drives a [`Device`]; [`check_with`] drives anything that can carry out a batch of
//! operations, as the simulator's disk. A check panics with what was wrong.

use crate::device::Device;
use crate::ring::Ring;
use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::buffer::IoBuf;
use basalt_wire::io::{DiskDone, DiskError, DiskOp, DiskOpKind, OpToken};
use basalt_wire::time::Time;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Bytes that a device must have to be checked.
pub const SIZE_MIN: u64 = 16 << 20;

const BLOCK: u64 = BLOCK_BYTES as u64;
/// A real device that has not answered by then never will.
const PATIENCE: Duration = Duration::from_secs(60);

/// Carries out a batch of operations, all in flight together, and returns how they ended.
pub type Execute<'a> = dyn FnMut(Vec<DiskOp>) -> Vec<DiskDone> + 'a;

/// Checks a device; what it held is lost.
pub fn check(device: &mut dyn Device, ring: &mut Ring) {
    let size = device.info().size;
    check_with(size, &mut |ops| run(device, ring, ops));
    let more = settle(device, ring);
    assert!(more.is_empty(), "operations ended that nobody submitted: {more:?}");
}

/// Checks whatever carries out operations on a device of `size` bytes.
pub fn check_with(size: u64, execute: &mut Execute<'_>) {
    assert!(size >= SIZE_MIN, "a device of {size} bytes is too small to be checked");
    let mut disk = Disk { size, execute, next: 0 };
    disk.check_edges();
    disk.check_many_at_once();
    disk.check_out_of_range();
    disk.check_empty();
    disk.check_large();
    disk.check_discard();
    disk.check_against_model(0x5eed);
}

/// Carries out operations on a device and waits until all have ended. Time stands still for the
/// layers, except that it jumps to what they wait for.
pub fn run(device: &mut dyn Device, ring: &mut Ring, ops: Vec<DiskOp>) -> Vec<DiskDone> {
    let (want, mut done, mut completions) = (ops.len(), Vec::new(), Vec::new());
    let deadline = Instant::now() + PATIENCE;
    for op in ops {
        device.submit(op, ring);
    }
    let mut now = Time::ZERO;
    loop {
        device.drain(ring, now, &mut done);
        if done.len() >= want {
            return done;
        }
        assert!(Instant::now() < deadline, "{} of {want} operations ended", done.len());
        let due = device.next_deadline();
        let wait = if due.is_some() { Duration::ZERO } else { Duration::from_millis(100) };
        ring.submit_and_wait(1, Some(wait)).expect("the ring works");
        ring.reap(&mut completions);
        for completion in completions.drain(..) {
            assert_eq!(completion.owner(), 0, "a completion of somebody else: {completion:?}");
            device.complete(completion, ring);
        }
        now = now.max(due.unwrap_or(now));
    }
}

/// Waits until nothing is in flight, work of the device's own included; gives what ended.
pub fn settle(device: &mut dyn Device, ring: &mut Ring) -> Vec<DiskDone> {
    let (mut done, mut completions) = (Vec::new(), Vec::new());
    let deadline = Instant::now() + PATIENCE;
    device.drain(ring, Time::ZERO, &mut done);
    while device.in_flight() > 0 {
        assert!(Instant::now() < deadline, "{} operations do not end", device.in_flight());
        ring.submit_and_wait(1, Some(Duration::from_millis(100))).expect("the ring works");
        ring.reap(&mut completions);
        completions.drain(..).for_each(|completion| device.complete(completion, ring));
        device.drain(ring, Time::ZERO, &mut done);
    }
    done
}

struct Disk<'a, 'b> {
    size: u64,
    execute: &'a mut Execute<'b>,
    next: OpToken,
}

impl Disk<'_, '_> {
    /// Carries out operations and gives their ends in the order of submission.
    fn run(&mut self, kinds: Vec<DiskOpKind>) -> Vec<DiskDone> {
        let first = self.next;
        self.next += kinds.len() as u64;
        let tokens: BTreeSet<OpToken> = (first..self.next).collect();
        let ops = kinds.into_iter().zip(first..).map(|(kind, token)| DiskOp { token, kind });
        let mut done = (self.execute)(ops.collect());
        done.sort_by_key(|done| done.token);
        let ended: Vec<OpToken> = done.iter().map(|done| done.token).collect();
        assert!(ended.iter().eq(tokens.iter()), "submitted {tokens:?}, ended {ended:?}");
        done
    }

    fn write(&mut self, offset: u64, bytes: &[u8], durable: bool) {
        let done = self.run(vec![write(offset, bytes, durable)]);
        assert_eq!(done[0].result, Ok(()), "writing {} bytes at {offset}", bytes.len());
        assert!(done[0].buf.is_none(), "a write gave a buffer");
    }

    fn read(&mut self, offset: u64, len: usize) -> Vec<u8> {
        let mut done = self.run(vec![read(offset, len)]);
        assert_eq!(done[0].result, Ok(()), "reading {len} bytes at {offset}");
        let buf = done[0].buf.take().expect("a read gives its buffer back");
        assert_eq!(buf.len(), len, "the buffer came back with another length");
        buf.to_vec()
    }

    fn check_edges(&mut self) {
        for (offset, durable) in [(0, true), (self.size - BLOCK, true), (self.size / 2, false)] {
            let offset = offset - offset % BLOCK;
            let bytes = pattern(offset + 1, BLOCK_BYTES);
            self.write(offset, &bytes, durable);
            assert!(self.read(offset, BLOCK_BYTES) == bytes, "the block at {offset} differs");
            let newer = pattern(offset + 2, BLOCK_BYTES);
            self.write(offset, &newer, !durable);
            assert!(self.read(offset, BLOCK_BYTES) == newer, "an old block came back at {offset}");
        }
        assert_eq!(self.run(vec![DiskOpKind::Flush])[0].result, Ok(()), "a flush");
    }

    fn check_many_at_once(&mut self) {
        let count = 700;
        let writes = (0..count)
            .map(|n| write(n * BLOCK, &pattern(n, BLOCK_BYTES), n % 3 == 0))
            .chain([DiskOpKind::Flush])
            .collect();
        assert!(self.run(writes).iter().all(|done| done.result == Ok(())), "writes at once");
        let reads = (0..count).map(|n| read(n * BLOCK, BLOCK_BYTES)).collect();
        for (n, done) in self.run(reads).into_iter().enumerate() {
            assert_eq!(done.result, Ok(()));
            let buf = done.buf.expect("a read gives its buffer back");
            assert!(buf[..] == pattern(n as u64, BLOCK_BYTES)[..], "block {n} differs");
        }
    }

    fn check_out_of_range(&mut self) {
        let last = self.size - BLOCK;
        let before = self.read(last, BLOCK_BYTES);
        let offsets = [self.size, last, u64::MAX - u64::MAX % BLOCK];
        for offset in offsets {
            let two = vec![1; 2 * BLOCK_BYTES];
            let kinds = vec![
                read(offset, two.len()),
                write(offset, &two, true),
                DiskOpKind::Discard { offset, len: 2 * BLOCK },
            ];
            for done in self.run(kinds) {
                assert_eq!(done.result, Err(DiskError::OutOfRange), "at {offset}");
                let is_read = (self.next - done.token) == 3;
                assert_eq!(done.buf.is_some(), is_read, "a failed read keeps no buffer");
            }
        }
        assert!(self.read(last, BLOCK_BYTES) == before, "a refused write took place in part");
        // A refusal by range is the asker's mistake, not the device's: it goes on.
        self.write(last, &before, true);
    }

    fn check_empty(&mut self) {
        let kinds = vec![read(0, 0), write(BLOCK, &[], true)];
        assert!(self.run(kinds).iter().all(|done| done.result == Ok(())), "empty transfers");
    }

    fn check_large(&mut self) {
        let bytes = pattern(99, 4 << 20);
        self.write(3 * BLOCK, &bytes, true);
        assert!(self.read(3 * BLOCK, bytes.len()) == bytes, "a large transfer differs");
    }

    fn check_discard(&mut self) {
        let bytes = pattern(7, 4 * BLOCK_BYTES);
        self.write(0, &bytes, true);
        let discard = DiskOpKind::Discard { offset: BLOCK, len: 2 * BLOCK };
        assert_eq!(self.run(vec![discard])[0].result, Ok(()), "a discard");
        assert!(self.read(0, BLOCK_BYTES) == bytes[..BLOCK_BYTES], "the block before a discard");
        let after = self.read(3 * BLOCK, BLOCK_BYTES);
        assert!(after == bytes[3 * BLOCK_BYTES..], "the block after a discard");
        self.write(0, &bytes, true);
        assert!(self.read(0, bytes.len()) == bytes, "writing what was discarded");
    }

    /// Random transfers, those of one batch apart from each other, against a model.
    fn check_against_model(&mut self, seed: u64) {
        const AREA: u64 = 8 << 20;
        const LANES: u64 = 8;
        let mut random = Random(seed);
        let mut model = vec![0u8; AREA as usize];
        self.write(0, &model.clone(), false);
        for _ in 0..60 {
            let (mut kinds, mut expected) = (Vec::new(), Vec::new());
            for lane in 0..LANES {
                let lane_bytes = AREA / LANES;
                let blocks = 1 + random.below(32);
                let start = lane * lane_bytes + random.below(lane_bytes / BLOCK - 32) * BLOCK;
                let range = start as usize..(start + blocks * BLOCK) as usize;
                if random.below(2) == 0 {
                    let bytes = pattern(random.next(), range.len());
                    model[range].copy_from_slice(&bytes);
                    kinds.push(write(start, &bytes, random.below(4) == 0));
                    expected.push(None);
                } else {
                    kinds.push(read(start, range.len()));
                    expected.push(Some(model[range].to_vec()));
                }
            }
            for (done, expected) in self.run(kinds).into_iter().zip(expected) {
                assert_eq!(done.result, Ok(()));
                let got = done.buf.map(|buf| buf.to_vec());
                assert!(got == expected, "a read differs from the model (seed {seed:#x})");
            }
        }
        assert!(self.read(0, model.len()) == model, "the end differs from the model");
    }
}

fn read(offset: u64, len: usize) -> DiskOpKind {
    let mut buf = IoBuf::alloc(len);
    // So that a device that reads nothing is noticed.
    buf.fill(0xee);
    DiskOpKind::Read { offset, buf }
}

fn write(offset: u64, bytes: &[u8], durable: bool) -> DiskOpKind {
    DiskOpKind::Write { offset, data: IoBuf::copy_from(bytes).freeze(), durable }
}

/// Bytes that tell every place and every seed apart.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random(seed ^ 0xba5a);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend(random.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// splitmix64: enough for data that must not repeat.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}
