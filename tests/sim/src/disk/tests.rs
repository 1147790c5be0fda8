use super::*;

const PAGE: u64 = BLOCK_BYTES as u64;
/// Beyond the superblocks, where log writes are watched.
const LOG: u64 = SUPERBLOCK_AREA_BYTES;

fn disk(volatile: bool, seed: u64) -> Disk {
    let options = DiskOptions {
        bytes: 1 << 20,
        volatile,
        atom: 512,
        durable_flushes: false,
        latency: 50 * MICRO,
    };
    Disk::new(options, Rng::stream(seed, "disk", 0))
}

fn data(byte: u8, pages: usize) -> Bytes {
    let mut buf = IoBuf::alloc(pages * BLOCK_BYTES);
    buf.fill(byte);
    buf.freeze()
}

fn write(offset: u64, byte: u8, pages: usize, durable: bool) -> DiskOp {
    let kind = DiskOpKind::Write { offset, data: data(byte, pages), durable };
    DiskOp { token: 7, kind }
}

fn run(disk: &mut Disk, op: DiskOp) -> DiskDone {
    let (id, _) = disk.submit(0, op, 0);
    disk.complete(id).expect("in flight").done
}

fn read(disk: &mut Disk, offset: u64) -> Vec<u8> {
    let kind = DiskOpKind::Read { offset, buf: IoBuf::alloc(BLOCK_BYTES) };
    let done = run(disk, DiskOp { token: 1, kind });
    done.result.expect("a healthy read");
    done.buf.expect("a read gives its buffer back").to_vec()
}

#[test]
fn a_flush_covers_what_had_completed_when_it_was_submitted() {
    let mut d = disk(true, 1);
    run(&mut d, write(LOG, 1, 1, false));
    let (flush, _) = d.submit(0, DiskOp { token: 2, kind: DiskOpKind::Flush }, 0);
    run(&mut d, write(LOG + PAGE, 2, 1, false));
    d.complete(flush).expect("in flight");
    d.power_cut(CutPolicy::Drop);
    assert_eq!(read(&mut d, LOG), vec![1; BLOCK_BYTES]);
    assert_eq!(read(&mut d, LOG + PAGE), vec![0; BLOCK_BYTES]);
}

#[test]
fn durable_writes_survive_and_a_kill_keeps_the_cache() {
    let mut d = disk(true, 1);
    run(&mut d, write(LOG, 1, 1, true));
    run(&mut d, write(LOG + PAGE, 2, 1, false));
    d.kill();
    assert_eq!(read(&mut d, LOG + PAGE), vec![2; BLOCK_BYTES]);
    d.power_cut(CutPolicy::Drop);
    assert_eq!(read(&mut d, LOG), vec![1; BLOCK_BYTES]);
    assert_eq!(read(&mut d, LOG + PAGE), vec![0; BLOCK_BYTES]);
}

#[test]
fn only_an_unbroken_prefix_is_safe() {
    let mut d = disk(false, 1);
    let (first, _) = d.submit(0, write(LOG, 1, 1, true), 0);
    let (second, _) = d.submit(0, write(LOG + PAGE, 2, 1, true), 0);
    d.complete(second).expect("in flight");
    assert!(!d.has_safe(), "the first batch is still under way");
    d.complete(first).expect("in flight");
    assert_eq!(d.take_safe().len(), 2);
}

#[test]
fn a_cut_leaves_old_or_new_atoms_by_policy() {
    for policy in CutPolicy::ALL {
        for seed in 0..50 {
            let mut d = disk(true, seed);
            run(&mut d, write(LOG, 1, 4, true));
            run(&mut d, write(LOG, 2, 2, false));
            d.submit(0, write(LOG + 2 * PAGE, 3, 2, true), 0);
            d.power_cut(policy);
            let all: Vec<u8> = (0..4).flat_map(|i| read(&mut d, LOG + i * PAGE)).collect();
            let atoms: Vec<u8> = all.chunks(512).map(|a| a[0]).collect();
            let new = |i: usize| atoms[i] == if i < 16 { 2 } else { 3 };
            let landed = (0..32).filter(|i| new(*i)).count();
            match policy {
                CutPolicy::Drop => assert_eq!(landed, 0),
                CutPolicy::Keep => assert_eq!(landed, 32),
                CutPolicy::Hole => assert!(landed >= 31),
                CutPolicy::Prefix => assert!((0..landed).all(new)),
                CutPolicy::Reverse => assert!((32 - landed..32).all(new)),
                CutPolicy::Coin => assert!(atoms.iter().all(|a| (1..=3).contains(a))),
                CutPolicy::Garbage => assert!((0..16).all(|i| atoms[i] == 1 || atoms[i] == 2)),
            }
        }
    }
}

#[test]
fn only_settled_writes_are_damaged() {
    let mut d = disk(false, 3);
    run(&mut d, write(LOG, 1, 1, true));
    assert_eq!(d.damage(Damage::Rot), None);
    let (id, _) = d.submit(0, write(LOG + PAGE, 2, 1, true), 1);
    d.complete(id).expect("in flight");
    assert!(d.damage(Damage::Rot).is_some());
    assert_ne!(read(&mut d, LOG), vec![1; BLOCK_BYTES]);
    assert_eq!(read(&mut d, LOG + PAGE), vec![2; BLOCK_BYTES]);
}

#[test]
fn beyond_the_end_is_refused() {
    let mut d = disk(false, 1);
    let done = run(&mut d, write(1 << 20, 1, 1, true));
    assert_eq!(done.result, Err(DiskError::OutOfRange));
}

#[test]
fn the_model_passes_the_test_of_real_devices() {
    const SIZE: u64 = basalt_device::conformance::SIZE_MIN;
    for (volatile, atom) in [(false, 4096), (true, 512)] {
        let latency = 50 * MICRO;
        let options = DiskOptions { bytes: SIZE, volatile, atom, durable_flushes: false, latency };
        let mut disk = Disk::new(options, Rng::stream(1, "disk", 0));
        basalt_device::conformance::check_with(SIZE, &mut |ops| {
            let mut ends: Vec<(Instant, u32)> =
                ops.into_iter().map(|op| disk.submit(0, op, 0)).map(|(id, at)| (at, id)).collect();
            ends.sort_unstable();
            ends.iter().map(|(_, id)| disk.complete(*id).expect("in flight").done).collect()
        });
        assert_eq!(disk.in_flight(), 0);
    }
}
