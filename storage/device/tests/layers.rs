//! Memory, faults and records, on one another.

use basalt_device::conformance::{self, run};
use basalt_device::fault::{FaultDevice, FaultHandle};
use basalt_device::memory::MemoryDevice;
use basalt_device::record::{CutPolicy, RecordDevice, RecordEvent, RecordLog, Recording};
use basalt_device::{Device, DeviceSpec, Ring, open};
use basalt_wire::buffer::IoBuf;
use basalt_wire::io::{DiskDone, DiskError, DiskOp, DiskOpKind};
use basalt_wire::time::Time;
use std::time::Duration;

const BLOCK: u64 = 4096;
const SIZE: u64 = 1 << 20;

fn write(block: u64, fill: u8) -> DiskOpKind {
    let mut buf = IoBuf::alloc(BLOCK as usize);
    buf.fill(fill);
    DiskOpKind::Write { offset: block * BLOCK, data: buf.freeze(), durable: true }
}

fn read(block: u64) -> DiskOpKind {
    DiskOpKind::Read { offset: block * BLOCK, buf: IoBuf::alloc(BLOCK as usize) }
}

struct Rig {
    ring: Ring,
    device: Box<dyn Device>,
    faults: FaultHandle,
}

impl Rig {
    fn new() -> Rig {
        let faults = FaultHandle::new();
        let spec = DeviceSpec::memory(SIZE).with_faults(faults.clone());
        Rig { ring: Ring::new(8).unwrap(), device: open(&spec).unwrap(), faults }
    }

    fn run(&mut self, kind: DiskOpKind) -> DiskDone {
        let ops = vec![DiskOp { token: 42, kind }];
        let mut done = run(&mut *self.device, &mut self.ring, ops);
        assert_eq!(done[0].token, 42);
        done.remove(0)
    }

    fn result(&mut self, kind: DiskOpKind) -> Result<(), DiskError> {
        self.run(kind).result
    }

    fn fill(&mut self, block: u64) -> u8 {
        let done = self.run(read(block));
        assert_eq!(done.result, Ok(()));
        done.buf.unwrap()[0]
    }
}

#[test]
fn memory_conforms_alone_and_through_layers() {
    let mut ring = Ring::new(8).unwrap();
    let mut device = MemoryDevice::new(conformance::SIZE_MIN);
    conformance::check(&mut device, &mut ring);
    device.close(&mut ring);
    let faults = FaultHandle::new();
    faults.arm("delay:any:us=700,every=3").unwrap();
    let recorded = RecordDevice::new(Box::new(device), RecordLog::memory());
    let mut device = FaultDevice::new(Box::new(recorded), faults);
    conformance::check(&mut device, &mut ring);
    device.close(&mut ring);
}

#[test]
fn a_memory_disk_outlives_its_device_and_has_one_opener() {
    let spec = DeviceSpec::memory(SIZE);
    let mut ring = Ring::new(8).unwrap();
    let mut device = open(&spec).unwrap();
    run(&mut *device, &mut ring, vec![DiskOp { token: 0, kind: write(2, 9) }]);
    assert!(open(&spec.clone()).is_err());
    drop(device);
    let mut device = open(&spec.clone()).unwrap();
    let done = run(&mut *device, &mut ring, vec![DiskOp { token: 0, kind: read(2) }]);
    assert_eq!(done[0].buf.as_ref().unwrap()[0], 9);
}

#[test]
fn an_error_counts_down_and_makes_the_device_suspect() {
    let mut rig = Rig::new();
    rig.faults.arm("error:write:count=1,after=1,kind=nospace").unwrap();
    assert_eq!(rig.result(write(0, 1)), Ok(()));
    assert_eq!(rig.result(write(1, 2)), Err(DiskError::NoSpace));
    assert_eq!(rig.result(write(2, 3)), Err(DiskError::Gone));
    assert_eq!(rig.result(DiskOpKind::Flush), Err(DiskError::Gone));
    assert_eq!((rig.fill(0), rig.fill(1), rig.fill(2)), (1, 0, 0));
}

#[test]
fn a_flush_error_is_sticky_unless_told_otherwise() {
    let mut rig = Rig::new();
    rig.faults.arm("error:flush:count=1,sticky=no").unwrap();
    assert_eq!(rig.result(DiskOpKind::Flush), Err(DiskError::Io));
    assert_eq!(rig.result(DiskOpKind::Flush), Ok(()));
    rig.faults.clear();
    rig.faults.arm("error:flush:count=1").unwrap();
    assert_eq!(rig.result(DiskOpKind::Flush), Err(DiskError::Io));
    assert_eq!(rig.result(DiskOpKind::Flush), Err(DiskError::Gone));
    assert_eq!(rig.result(write(0, 1)), Err(DiskError::Gone));
    assert_eq!(rig.result(read(0)), Ok(()));
}

#[test]
fn stage_range_and_every_choose_the_operation() {
    let mut rig = Rig::new();
    let id = rig.faults.arm("error:write:stage=complete,from=8k,to=12k,sticky=no").unwrap();
    assert_eq!(rig.result(write(1, 1)), Ok(()));
    assert_eq!(rig.result(write(2, 2)), Err(DiskError::Io));
    assert_eq!(rig.result(write(3, 3)), Ok(()));
    assert_eq!((rig.fill(2), rig.faults.hits(id)), (2, 1), "at completion the write took place");
    rig.faults.disarm(id);
    rig.faults.arm("error:read:every=3,kind=short").unwrap();
    let results: Vec<_> = (0..6).map(|_| rig.result(read(0)).is_ok()).collect();
    assert_eq!(results, [false, true, true, false, true, true]);
}

#[test]
fn corruption_of_a_write_stays_and_that_of_a_read_does_not() {
    let mut rig = Rig::new();
    rig.faults.arm("corrupt:write:at=0,count=1").unwrap();
    assert_eq!(rig.result(write(0, 1)), Ok(()));
    assert_eq!((rig.fill(0), rig.fill(0)), (1 ^ 0x10, 1 ^ 0x10));
    rig.faults.arm("corrupt:read:at=0,count=1").unwrap();
    rig.result(write(1, 1)).unwrap();
    assert_eq!((rig.fill(1), rig.fill(1)), (1 ^ 0x10, 1));
}

#[test]
fn writes_are_lost_and_misdirected() {
    let mut rig = Rig::new();
    rig.faults.arm("lose:write:count=1").unwrap();
    assert_eq!(rig.result(write(0, 1)), Ok(()));
    assert_eq!(rig.fill(0), 0);
    rig.faults.arm("misdirect:write:by=8k,count=1").unwrap();
    assert_eq!(rig.result(write(0, 1)), Ok(()));
    assert_eq!((rig.fill(0), rig.fill(2)), (0, 1));
}

#[test]
fn a_delay_holds_the_end_until_its_time() {
    let mut rig = Rig::new();
    rig.faults.arm("delay:write:us=1000").unwrap();
    let (ring, device, mut done) = (&mut rig.ring, &mut rig.device, Vec::new());
    device.submit(DiskOp { token: 1, kind: write(0, 1) }, ring);
    device.drain(ring, Time(5_000_000), &mut done);
    assert!(done.is_empty() && device.in_flight() == 1);
    let due = device.next_deadline().unwrap();
    assert_eq!(due, Time(5_000_000) + Duration::from_millis(1));
    device.drain(ring, Time(due.0 - 1), &mut done);
    assert!(done.is_empty());
    device.drain(ring, due, &mut done);
    assert_eq!((done.len(), device.in_flight(), device.next_deadline()), (1, 0, None));
}

#[test]
fn what_hangs_ends_when_disarmed_or_when_the_device_is_stopped() {
    let mut rig = Rig::new();
    let id = rig.faults.arm("hang:write").unwrap();
    let (ring, device, mut done) = (&mut rig.ring, &mut rig.device, Vec::new());
    device.submit(DiskOp { token: 1, kind: write(0, 1) }, ring);
    device.drain(ring, Time(1 << 60), &mut done);
    assert_eq!((done.len(), device.in_flight(), device.next_deadline()), (0, 1, None));
    rig.faults.disarm(id);
    device.drain(ring, Time(1 << 60), &mut done);
    assert_eq!((done.len(), done[0].result), (1, Ok(())));
    rig.faults.arm("hang:write").unwrap();
    device.submit(DiskOp { token: 2, kind: write(0, 1) }, ring);
    device.drain(ring, Time(1 << 60), &mut done);
    device.quiesce();
    device.drain(ring, Time(1 << 60), &mut done);
    assert_eq!((done[1].token, done[1].result), (2, Err(DiskError::Gone)));
    assert_eq!(device.in_flight(), 0);
}

#[test]
fn a_record_of_a_device_rebuilds_it() {
    let mut ring = Ring::new(8).unwrap();
    let record = RecordLog::memory();
    let inner = Box::new(MemoryDevice::new(conformance::SIZE_MIN));
    let mut device = RecordDevice::new(inner, record.clone());
    conformance::check(&mut device, &mut ring);
    let recording = record.recording();
    let base = vec![0; conformance::SIZE_MIN as usize];
    let image = recording.image(&base, recording.events.len(), CutPolicy::DropAll, 4096);
    let mut rebuilt = MemoryDevice::from_image(image);
    for block in (0..conformance::SIZE_MIN / BLOCK).step_by(7) {
        let mut blocks = [&mut device as &mut dyn Device, &mut rebuilt].map(|device| {
            let done = run(device, &mut ring, vec![DiskOp { token: 0, kind: read(block) }]);
            done.into_iter().next().unwrap().buf.unwrap().to_vec()
        });
        assert!(std::mem::take(&mut blocks[0]) == blocks[1], "block {block} differs");
    }
}

#[test]
fn a_record_in_a_file_is_read_back_and_a_cut_tail_is_left_out() {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("record-{}", std::process::id()));
    let mut ring = Ring::new(8).unwrap();
    let spec = DeviceSpec::memory(SIZE).with_record(RecordLog::file(&path).unwrap());
    let mut device = open(&spec).unwrap();
    let ops = [write(3, 7), DiskOpKind::Flush, DiskOpKind::Discard { offset: 0, len: BLOCK }];
    for (token, kind) in (0..).zip(ops) {
        run(&mut *device, &mut ring, vec![DiskOp { token, kind }]);
    }
    let whole = Recording::load(&path).unwrap();
    assert_eq!(whole.events.len(), 6);
    assert!(matches!(whole.events[5], RecordEvent::Complete { id: 3, ok: true }));
    assert_eq!(whole.boundaries(), [1, 2, 3, 4]);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    assert_eq!(Recording::load(&path).unwrap().events[..], whole.events[..5]);
    let mut damaged = bytes.clone();
    damaged[12] ^= 1;
    std::fs::write(&path, &damaged).unwrap();
    assert!(Recording::load(&path).unwrap_err().to_string().contains("byte 8"));
    std::fs::write(&path, b"something else").unwrap();
    assert!(Recording::load(&path).unwrap_err().to_string().contains("not the record"));
    std::fs::remove_file(&path).unwrap();
}
