//! CPU time of a device for 4 KiB, as the log appends and as clients read.
//!
//! `cargo bench -p basalt-device` measures a file under the target directory; the variable
//! BASALT_BENCH_DEVICE names another file or block device, whose content is lost. CPU time is that
//! of this process, kernel time included, but not that of the kernel's own threads.

use basalt_device::{Device, DeviceSpec, Ring, open};
use basalt_wire::buffer::{Arena, IoBuf};
use basalt_wire::io::{DiskDone, DiskOp, DiskOpKind};
use basalt_wire::time::Time;
use bytes::Bytes;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const BLOCK: u64 = 4096;
const ARENA_BYTES: usize = 32 << 20;
const FILE_BYTES: u64 = 1 << 30;

fn main() {
    // `cargo test` runs benches too, with --test: then a short look is enough.
    let short = !std::env::args().any(|arg| arg == "--bench");
    let time = Duration::from_millis(if short { 50 } else { 1500 });
    let bytes = if short { 64 << 20 } else { FILE_BYTES };
    let given = std::env::var_os("BASALT_BENCH_DEVICE").map(PathBuf::from);
    let path = given.clone().unwrap_or_else(|| {
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("bench-{}", std::process::id()))
    });
    let mut spec = DeviceSpec::path(&path).create(bytes);
    spec.prewrite_bytes = bytes;
    let mut bench = match open(&spec) {
        Ok(device) => Bench::new(device),
        Err(e) => return eprintln!("no measurement: {e}"),
    };
    println!("{}", bench.device.info().description);
    bench.write_through(bytes);
    bench.all("buffers from the allocator", bytes, time);
    let arena = Arena::install(ARENA_BYTES).expect("memory for an arena");
    bench.all("from an arena on huge pages", bytes, time);
    match bench.ring.use_arena(&arena) {
        true => bench.all("from an arena that the ring registered", bytes, time),
        false => println!("the kernel refuses to register an arena (ulimit -l)"),
    }
    drop(bench);
    if given.is_none() {
        let _ = std::fs::remove_file(path);
    }
}

struct Bench {
    device: Box<dyn Device>,
    ring: Ring,
    completions: Vec<basalt_device::Completion>,
    done: Vec<DiskDone>,
}

impl Bench {
    fn new(device: Box<dyn Device>) -> Bench {
        let ring = Ring::new(256).expect("the kernel has io_uring");
        Bench { device, ring, completions: Vec::new(), done: Vec::new() }
    }

    fn all(&mut self, memory: &str, bytes: u64, time: Duration) {
        println!("{memory:<40} {:>10} {:>14} {:>10}", "4 KiB/s", "CPU ns/4 KiB", "lat us");
        for blocks in [1, 32, 128] {
            for durable in [false, true] {
                self.appends(blocks, durable, bytes, time);
            }
        }
        for depth in [1, 32, 128] {
            self.reads(depth, bytes, time);
        }
    }

    fn submit(&mut self, kind: DiskOpKind) {
        self.device.submit(DiskOp { token: 0, kind }, &mut self.ring);
    }

    /// Waits for `want` completions; what ended stands in `self.done`.
    fn wait(&mut self, want: u32) {
        self.ring.submit_and_wait(want, None).expect("the ring works");
        self.ring.reap(&mut self.completions);
        for completion in self.completions.drain(..) {
            self.device.complete(completion, &mut self.ring);
        }
        self.device.drain(&mut self.ring, Time::ZERO, &mut self.done);
        assert!(self.done.iter().all(|done| done.result.is_ok()), "an operation failed");
    }

    fn write_through(&mut self, bytes: u64) {
        let zeros = IoBuf::zeroed(1 << 20).freeze();
        for offset in (0..bytes).step_by(1 << 20) {
            self.submit(DiskOpKind::Write { offset, data: zeros.clone(), durable: false });
            self.wait_all();
        }
        self.submit(DiskOpKind::Flush);
        self.wait_all();
    }

    fn wait_all(&mut self) {
        while self.device.in_flight() > 0 {
            self.wait(1);
        }
        self.done.clear();
    }

    /// Appends of a header block and `blocks` blocks, one after the other.
    fn appends(&mut self, blocks: u64, durable: bool, bytes: u64, time: Duration) {
        let data: Bytes = {
            let mut buf = IoBuf::alloc(((blocks + 1) * BLOCK) as usize);
            buf.iter_mut().enumerate().for_each(|(i, b)| *b = (i / 3) as u8);
            buf.freeze()
        };
        let len = data.len() as u64;
        let (mut at, mut count) = (0, 0);
        let (wall, cpu) = (Instant::now(), cpu_time());
        while wall.elapsed() < time {
            if at + len > bytes {
                at = 0;
            }
            self.submit(DiskOpKind::Write { offset: at, data: data.clone(), durable });
            while self.done.is_empty() {
                self.wait(1);
            }
            self.done.clear();
            at += len;
            count += 1;
        }
        let sync = if durable { "durable" } else { "plain" };
        report(&format!("append {blocks} + 1, {sync}"), count * blocks, count, wall, cpu);
    }

    fn reads(&mut self, depth: usize, bytes: u64, time: Duration) {
        let mut random = 88_172_645_463_325_252u64;
        let mut bufs: Vec<IoBuf> = (0..depth).map(|_| IoBuf::alloc(BLOCK as usize)).collect();
        let mut count = 0;
        let (wall, cpu) = (Instant::now(), cpu_time());
        while wall.elapsed() < time {
            while let Some(buf) = bufs.pop() {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let offset = random % (bytes / BLOCK) * BLOCK;
                self.submit(DiskOpKind::Read { offset, buf });
            }
            self.wait(1);
            count += self.done.len() as u64;
            bufs.extend(self.done.drain(..).filter_map(|done| done.buf));
        }
        report(&format!("random read, depth {depth}"), count, count / depth as u64, wall, cpu);
        self.wait_all();
    }
}

fn report(what: &str, blocks: u64, rounds: u64, wall: Instant, cpu: Duration) {
    let (wall, cpu) = (wall.elapsed(), cpu_time() - cpu);
    println!(
        "  {what:<38} {:>10.0} {:>14} {:>10.1}",
        blocks as f64 / wall.as_secs_f64(),
        cpu.as_nanos() as u64 / blocks.max(1),
        wall.as_secs_f64() * 1e6 / rounds.max(1) as f64
    );
}

/// CPU time of this process so far.
fn cpu_time() -> Duration {
    // SAFETY: an all-zero rusage is a valid value of this plain structure.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is a valid place for the result.
    let result = unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) };
    assert_eq!(result, 0, "getrusage of this process can not fail");
    let of = |t: libc::timeval| {
        Duration::from_secs(t.tv_sec as u64) + Duration::from_micros(t.tv_usec as u64)
    };
    of(usage.ru_utime) + of(usage.ru_stime)
}
