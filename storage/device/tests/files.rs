//! Devices on real files: conformance, opening and its refusals, durability, pre-writing.
//!
//! They need a file system with O_DIRECT under the target directory; where there is none, they fail
//! with the error of the device, which says so and names the file system.

use basalt_device::conformance::{self, run, settle};
use basalt_device::fault::FaultHandle;
use basalt_device::{Device, DeviceError, DeviceKind, DeviceSpec, Ring, open};
use basalt_wire::buffer::{Arena, IoBuf};
use basalt_wire::io::{DiskError, DiskOp, DiskOpKind};
use basalt_wire::time::Time;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// A path in a directory of this test's own, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("device-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("the target directory can be written");
        Scratch(path)
    }

    fn device(&self) -> PathBuf {
        self.0.join("device")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn must_open(spec: &DeviceSpec) -> Box<dyn Device> {
    match open(spec) {
        Ok(device) => device,
        Err(e @ DeviceError::NoDirect { .. }) => panic!(
            "this test needs O_DIRECT under {}: {e}. Set CARGO_TARGET_DIR to a directory on ext4 or \
             XFS",
            env!("CARGO_TARGET_TMPDIR")
        ),
        Err(e) => panic!("can not open the device: {e}: {:?}", std::error::Error::source(&e)),
    }
}

fn refused(spec: &DeviceSpec) -> DeviceError {
    match open(spec) {
        Ok(device) => panic!("{:?} was opened", device.info()),
        Err(e) => e,
    }
}

fn write(token: u64, offset: u64, fill: u8, len: u64) -> DiskOp {
    let mut buf = IoBuf::alloc(len as usize);
    buf.fill(fill);
    DiskOp { token, kind: DiskOpKind::Write { offset, data: buf.freeze(), durable: true } }
}

fn close(mut device: Box<dyn Device>, ring: &mut Ring) {
    assert!(settle(&mut *device, ring).is_empty());
    device.close(ring);
}

#[test]
fn a_file_conforms() {
    let scratch = Scratch::new("conforms");
    let mut ring = Ring::new(64).unwrap();
    let mut device = must_open(&DeviceSpec::path(scratch.device()).create(32 * MIB));
    assert_eq!((device.info().kind, device.info().size), (DeviceKind::File, 32 * MIB));
    assert!(device.info().direct && device.info().volatile_cache);
    conformance::check(&mut *device, &mut ring);
    close(device, &mut ring);
    assert_eq!(ring.in_flight(), 0);
}

#[test]
fn a_file_conforms_on_a_small_ring_and_through_layers() {
    let scratch = Scratch::new("layers");
    let mut ring = Ring::new(8).unwrap();
    let record = basalt_device::record::RecordLog::file(&scratch.0.join("record")).unwrap();
    let faults = FaultHandle::new();
    faults.arm("delay:any:us=100,every=5").unwrap();
    let spec = DeviceSpec::path(scratch.device()).create(32 * MIB).with_faults(faults);
    let mut device = must_open(&spec.with_record(record));
    conformance::check(&mut *device, &mut ring);
    close(device, &mut ring);
}

/// Runs on the block device that BASALT_TEST_BLOCK_DEVICE names, whose content is lost.
#[test]
fn a_block_device_conforms() {
    let Some(path) = std::env::var_os("BASALT_TEST_BLOCK_DEVICE").map(PathBuf::from) else {
        eprintln!("skipped: BASALT_TEST_BLOCK_DEVICE names no block device");
        return;
    };
    let mut ring = Ring::new(64).unwrap();
    let spec = DeviceSpec::path(&path);
    let mut device = must_open(&spec);
    eprintln!("{:?}", device.info());
    assert_eq!(device.info().kind, DeviceKind::Block);
    assert!(matches!(refused(&spec), DeviceError::InUse(_)));
    conformance::check(&mut *device, &mut ring);
    close(device, &mut ring);
}

/// The same through registered memory.
#[test]
fn a_file_conforms_from_an_arena() {
    let scratch = Scratch::new("arena");
    let arena = Arena::install(8 << 20).unwrap();
    let mut ring = Ring::new(64).unwrap();
    let registered = ring.use_arena(&arena);
    eprintln!("registered: {registered}");
    let inside = IoBuf::alloc(8192);
    assert_eq!(ring.registered(inside.as_ptr(), inside.len()).is_some(), registered);
    assert_eq!(ring.registered(arena.start(), arena.bytes() + 1), None);
    let mut device = must_open(&DeviceSpec::path(scratch.device()).create(32 * MIB));
    conformance::check(&mut *device, &mut ring);
    close(device, &mut ring);
}

#[test]
fn a_device_has_one_opener() {
    let scratch = Scratch::new("lock");
    let spec = DeviceSpec::path(scratch.device()).create(MIB);
    let mut ring = Ring::new(8).unwrap();
    let mut device = must_open(&spec);
    assert!(run(&mut *device, &mut ring, vec![write(1, 0, 1, 4096)])[0].result.is_ok());
    let error = refused(&spec);
    assert!(matches!(&error, DeviceError::InUse(path) if *path == scratch.device()), "{error}");
    assert!(error.to_string().contains("in use"), "{error}");
    close(device, &mut ring);
    close(must_open(&spec), &mut ring);
}

#[test]
fn what_can_not_be_a_device_is_refused_by_name() {
    let scratch = Scratch::new("refused");
    let missing = refused(&DeviceSpec::path(scratch.device()));
    assert!(matches!(missing, DeviceError::NotFound(_)), "{missing}");
    let folder = refused(&DeviceSpec::path(&scratch.0));
    assert!(folder.to_string().contains("directory"), "{folder}");
    let character = refused(&DeviceSpec::path("/dev/zero"));
    assert!(character.to_string().contains("neither a file nor a block device"), "{character}");
    std::fs::write(scratch.device(), b"tiny").unwrap();
    let tiny = refused(&DeviceSpec::path(scratch.device()));
    assert!(tiny.to_string().contains("4 bytes"), "{tiny}");
    let huge = refused(&DeviceSpec::path(scratch.0.join("huge")).create(1 << 60));
    assert!(huge.to_string().contains("can not allocate"), "{huge}");
    assert!(!scratch.0.join("huge").exists() && !scratch.0.join("huge.new").exists());
}

#[test]
fn a_file_system_in_memory_is_named() {
    let path = Path::new("/dev/shm").join(format!("basalt-device-{}", std::process::id()));
    if std::fs::write(&path, vec![0; 64 << 10]).is_err() {
        eprintln!("skipped: no tmpfs at /dev/shm");
        return;
    }
    let error = refused(&DeviceSpec::path(&path));
    let mut spec = DeviceSpec::path(&path);
    spec.allow_buffered = true;
    let buffered = open(&spec).map(|device| device.info().clone());
    std::fs::remove_file(&path).unwrap();
    let text = error.to_string();
    assert!(matches!(error, DeviceError::NoDirect { .. }), "{text}");
    assert!(text.contains("tmpfs") && text.contains("ext4"), "{text}");
    assert!(!buffered.unwrap().direct);
}

#[test]
fn a_crash_while_creating_leaves_no_small_device() {
    let scratch = Scratch::new("create");
    // What a crash in the middle leaves behind.
    std::fs::write(scratch.0.join("device.new"), vec![7; 8192]).unwrap();
    let spec = DeviceSpec::path(scratch.device()).create(4 * MIB + 100);
    let mut ring = Ring::new(8).unwrap();
    let mut device = must_open(&spec);
    assert_eq!(device.info().size, 4 * MIB);
    let kind = DiskOpKind::Read { offset: 0, buf: IoBuf::alloc(8192) };
    let done = run(&mut *device, &mut ring, vec![DiskOp { token: 1, kind }]);
    assert!(done[0].buf.as_ref().unwrap().iter().all(|b| *b == 0), "the draft's bytes are there");
    close(device, &mut ring);
    assert!(!scratch.0.join("device.new").exists());
}

#[test]
fn a_truncated_file_gives_short_reads() {
    let scratch = Scratch::new("truncated");
    let mut ring = Ring::new(8).unwrap();
    let mut device = must_open(&DeviceSpec::path(scratch.device()).create(4 * MIB));
    let file = std::fs::OpenOptions::new().write(true).open(scratch.device()).unwrap();
    file.set_len(MIB).unwrap();
    let read = |offset| DiskOp {
        token: offset,
        kind: DiskOpKind::Read { offset, buf: IoBuf::alloc(8192) },
    };
    let done = run(&mut *device, &mut ring, vec![read(MIB - 4096)]);
    assert_eq!(done[0].result, Err(DiskError::Short));
    assert!(done[0].buf.is_some());
    let done = run(&mut *device, &mut ring, vec![read(2 * MIB)]);
    assert_eq!(done[0].result, Err(DiskError::Short));
    let done = run(&mut *device, &mut ring, vec![read(0)]);
    assert_eq!(done[0].result, Ok(()));
    close(device, &mut ring);
}

#[test]
fn zeros_run_ahead_of_the_log_and_never_over_data() {
    let scratch = Scratch::new("prewrite");
    let mut ring = Ring::new(32).unwrap();
    let mut spec = DeviceSpec::path(scratch.device()).create(24 * MIB);
    spec.prewrite_bytes = 8 * MIB;
    let mut device = must_open(&spec);
    let mut model = vec![0u8; 24 << 20];
    let mut at = 0;
    let mut most = 0;
    // Each round appends to the log, right into what is being zeroed, and puts a block somewhere
    // behind the zeros' front, in their way or far past it. No round waits for zeros to end.
    for round in 0..240u64 {
        let len = 4096 * (1 + round % 16);
        let stray = at + len + 4096 * (round * 1237 % 3000);
        let ops = vec![write(1, stray, 0x80 | round as u8, 4096), write(2, at, round as u8, len)];
        model[stray as usize..][..4096].fill(0x80 | round as u8);
        model[at as usize..][..len as usize].fill(round as u8);
        assert!(run(&mut *device, &mut ring, ops).iter().all(|done| done.result.is_ok()));
        most = most.max(device.in_flight());
        at += len;
    }
    assert!(most > 0, "no zero write was ever under way beside the log's");
    close(device, &mut ring);
    // Opened again, what was written counts as written: the zeros leave it alone.
    let mut device = must_open(&spec);
    assert!(run(&mut *device, &mut ring, vec![write(1, 4096, 1, 4096)])[0].result.is_ok());
    model[4096..8192].fill(1);
    close(device, &mut ring);
    let file = std::fs::File::open(scratch.device()).unwrap();
    let mut found = vec![0; model.len()];
    file.read_exact_at(&mut found, 0).unwrap();
    let wrong = found.iter().zip(&model).position(|(a, b)| a != b);
    assert_eq!(wrong, None, "a byte that differs from what was written last");
}

/// Carries out one operation with what the kernel says about it changed on the way.
fn tamper(
    device: &mut dyn Device,
    ring: &mut Ring,
    kind: DiskOpKind,
    results: &[i32],
) -> Result<Option<IoBuf>, DiskError> {
    let (mut completions, mut done) = (Vec::new(), Vec::new());
    let mut results = results.iter();
    device.submit(DiskOp { token: 5, kind }, ring);
    device.drain(ring, Time::ZERO, &mut done);
    while done.is_empty() {
        ring.submit_and_wait(1, Some(Duration::from_secs(1))).unwrap();
        ring.reap(&mut completions);
        for mut completion in completions.drain(..) {
            completion.result = results.next().copied().unwrap_or(completion.result);
            device.complete(completion, ring);
        }
        device.drain(ring, Time::ZERO, &mut done);
    }
    assert!(results.next().is_none(), "fewer completions than expected");
    let done = done.remove(0);
    done.result.map(|()| done.buf)
}

fn unpaced(scratch: &Scratch) -> Box<dyn Device> {
    let mut spec = DeviceSpec::path(scratch.device()).create(4 * MIB);
    spec.prewrite_bytes = 0;
    must_open(&spec)
}

#[test]
fn interrupted_and_short_transfers_go_on_where_they_stopped() {
    let scratch = Scratch::new("short");
    let (mut ring, mut device) = (Ring::new(8).unwrap(), unpaced(&scratch));
    let mut buf = IoBuf::alloc(8192);
    buf.iter_mut().enumerate().for_each(|(i, b)| *b = (i / 512) as u8);
    let data = buf.freeze();
    let write = |durable| DiskOpKind::Write { offset: 4096, data: data.clone(), durable };
    let read = || DiskOpKind::Read { offset: 4096, buf: IoBuf::zeroed(8192) };
    let (device, ring) = (&mut *device, &mut ring);
    let interrupted = [-libc::EINTR, -libc::EAGAIN, 4096];
    assert!(tamper(device, ring, write(true), &interrupted).is_ok());
    let got = tamper(device, ring, read(), &[-libc::EAGAIN, 4096]).unwrap().unwrap();
    assert!(got[..] == data[..]);
    // Twice short, short by nothing that can be continued, and interrupted for ever.
    let short = Err(DiskError::Short);
    assert_eq!(tamper(device, ring, read(), &[4096, 0]).map(|_| ()), short);
    assert_eq!(tamper(device, ring, read(), &[0]).map(|_| ()), short);
    assert_eq!(tamper(device, ring, read(), &[512]).map(|_| ()), short);
    assert_eq!(
        tamper(device, ring, read(), &[-libc::EAGAIN; 1001]).map(|_| ()),
        Err(DiskError::Io)
    );
    assert!(tamper(device, ring, write(false), &[]).is_ok(), "a read's error is no write's");
    assert_eq!(device.in_flight(), 0);
}

#[test]
fn a_failed_flush_or_durable_write_ends_all_writing() {
    type Case = (fn() -> DiskOpKind, i32, DiskError);
    let cases: [Case; 3] = [
        (|| DiskOpKind::Flush, libc::EIO, DiskError::Io),
        (|| write(0, 0, 1, 4096).kind, libc::ENOSPC, DiskError::NoSpace),
        (|| write(0, 0, 1, 4096).kind, libc::ENODEV, DiskError::Gone),
    ];
    for (kind, errno, error) in cases {
        let scratch = Scratch::new("suspect");
        let (mut ring, mut device) = (Ring::new(8).unwrap(), unpaced(&scratch));
        let (d, r) = (&mut *device, &mut ring);
        assert_eq!(tamper(d, r, kind(), &[-errno]).map(|_| ()), Err(error));
        assert_eq!(tamper(d, r, DiskOpKind::Flush, &[]).map(|_| ()), Err(DiskError::Gone));
        let discard = DiskOpKind::Discard { offset: 0, len: 4096 };
        for kind in [write(0, 0, 1, 4096).kind, discard] {
            assert_eq!(tamper(d, r, kind, &[]).map(|_| ()), Err(DiskError::Gone));
        }
        let read = DiskOpKind::Read { offset: 0, buf: IoBuf::alloc(4096) };
        assert!(tamper(d, r, read, &[]).is_ok(), "reads go on");
        close(device, &mut ring);
        // Opened anew it is trusted again.
        let mut device = unpaced(&scratch);
        assert!(tamper(&mut *device, &mut ring, DiskOpKind::Flush, &[]).is_ok());
        close(device, &mut ring);
    }
}

#[test]
fn a_plain_write_that_fails_on_a_cached_device_is_just_an_error() {
    let scratch = Scratch::new("plain");
    let (mut ring, mut device) = (Ring::new(8).unwrap(), unpaced(&scratch));
    let (d, r) = (&mut *device, &mut ring);
    let data = IoBuf::zeroed(4096).freeze();
    let plain = || DiskOpKind::Write { offset: 0, data: data.clone(), durable: false };
    assert_eq!(tamper(d, r, plain(), &[-libc::EIO]).map(|_| ()), Err(DiskError::Io));
    assert!(tamper(d, r, plain(), &[]).is_ok());
    let discard = DiskOpKind::Discard { offset: 0, len: 4096 };
    assert!(tamper(d, r, discard, &[-libc::EOPNOTSUPP]).is_ok(), "a discard is a hint");
}

#[test]
fn without_a_volatile_cache_every_write_counts() {
    let scratch = Scratch::new("through");
    let mut ring = Ring::new(8).unwrap();
    let mut spec = DeviceSpec::path(scratch.device()).create(4 * MIB);
    (spec.volatile_cache, spec.prewrite_bytes) = (Some(false), 0);
    let mut device = must_open(&spec);
    let (d, r) = (&mut *device, &mut ring);
    let data = IoBuf::zeroed(4096).freeze();
    let plain = || DiskOpKind::Write { offset: 0, data: data.clone(), durable: false };
    assert_eq!(tamper(d, r, plain(), &[-libc::EIO]).map(|_| ()), Err(DiskError::Io));
    assert_eq!(tamper(d, r, plain(), &[]).map(|_| ()), Err(DiskError::Gone));
}

#[test]
fn dropping_a_device_with_operations_in_flight_is_sound() {
    let scratch = Scratch::new("drop");
    let mut ring = Ring::new(32).unwrap();
    let mut device = must_open(&DeviceSpec::path(scratch.device()).create(8 * MIB));
    for token in 0..64 {
        let kind = DiskOpKind::Read { offset: token * 4096, buf: IoBuf::alloc(4096) };
        device.submit(DiskOp { token, kind }, &mut ring);
    }
    drop(device);
    assert!(ring.in_flight() > 0);
    let mut completions = Vec::new();
    ring.shutdown(Duration::from_secs(30), &mut completions).unwrap();
    assert_eq!((ring.in_flight(), completions.len()), (0, 64));
}
