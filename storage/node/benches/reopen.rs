//! How long a shard takes to open a device whose log was written by small or by large writes.
//!
//! `cargo bench -p basalt-node` measures a memory device, that is, the processor's part; the variable
//! BASALT_BENCH_DEVICE names a file or block device instead, whose content is lost.

use basalt_core::config::{GroupConfig, Limits, ShardConfig, Timing};
use basalt_core::event::{Effect, Event, LinkId};
use basalt_core::planted::Planted;
use basalt_core::shard::{Phase, Shard};
use basalt_device::{Completion, Device, DeviceSpec, Ring, open};
use basalt_wire::block::{BLOCK_BYTES, crc32c};
use basalt_wire::buffer::Payload;
use basalt_wire::command::BlockRange;
use basalt_wire::frame::{Priority, Request, RequestOp};
use basalt_wire::ids::{
    Address, ClusterId, Epoch, Generation, GroupId, Incarnation, LogIndex, NodeId, RequestId,
    ShardId, Term, VolumeId,
};
use basalt_wire::io::DiskDone;
use basalt_wire::time::Time;
use bytes::Bytes;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const SEGMENT: u64 = 64 << 20;
const GROUPS: u32 = 4;

fn main() {
    // `cargo test` runs benches too, with --test: then a short look is enough.
    let short = !std::env::args().any(|arg| arg == "--bench");
    let bytes: u64 = if short { 8 << 20 } else { 512 << 20 };
    let given = std::env::var_os("BASALT_BENCH_DEVICE").map(PathBuf::from);
    println!("{:<36} {:>9} {:>9} {:>10} {:>10}", "log of", "MiB", "batches", "seconds", "CPU s");
    for (what, depth, blocks) in [
        ("4 KiB writes, one at a time", 1, 1),
        ("4 KiB writes, 32 at a time", 32, 1),
        ("4 KiB writes, 256 at a time", 256, 1),
        ("1 MiB writes, 4 at a time", 4, 256),
    ] {
        let device_bytes = (128 << 10) + bytes.next_multiple_of(SEGMENT) + 8 * SEGMENT;
        let mut spec = match &given {
            Some(path) => DeviceSpec::path(path).create(device_bytes),
            None => DeviceSpec::memory(device_bytes),
        };
        spec.prewrite_bytes = if given.is_some() { device_bytes } else { 0 };
        let mut bench = match Bench::new(&spec, device_bytes) {
            Ok(bench) => bench,
            Err(e) => return eprintln!("no measurement: {e}"),
        };
        bench.fill(depth, blocks, bytes);
        bench.settle();
        bench.reopen(what);
        bench.close();
    }
}

struct Bench {
    device: Box<dyn Device>,
    ring: Ring,
    config: ShardConfig,
    began: Instant,
    completions: Vec<Completion>,
    done: Vec<DiskDone>,
    effects: Vec<Effect>,
    answers: usize,
}

impl Bench {
    fn new(spec: &DeviceSpec, device_bytes: u64) -> Result<Bench, String> {
        let device = open(spec).map_err(|e| e.to_string())?;
        let address = Address { node: NodeId(1), shard: ShardId(0) };
        let group = |id| GroupConfig::new(GroupId(id), vec![address]);
        let config = ShardConfig {
            cluster: ClusterId(1),
            address,
            device_bytes,
            segment_bytes: SEGMENT,
            // What is measured is reading; writing durably would only take longer.
            volatile_cache: false,
            groups: (0..GROUPS).map(group).collect(),
            timing: Timing::default(),
            limits: Limits::default(),
            checkpoint_bytes: 0,
            index_bytes: u64::MAX,
            scrub: basalt_core::config::Scrubbing::ASKED,
            metadata_saved: basalt_wire::ids::LogIndex(0),
            seed: 1,
            planted: Planted::NONE,
        };
        Ok(Bench {
            device,
            ring: Ring::new(256).map_err(|e| e.to_string())?,
            config,
            began: Instant::now(),
            completions: Vec::new(),
            done: Vec::new(),
            effects: Vec::new(),
            answers: 0,
        })
    }

    fn now(&self) -> Time {
        Time::ZERO + self.began.elapsed()
    }

    /// One turn: what ended, what it causes, and a short wait if nothing did.
    fn turn(&mut self, shard: &mut Shard) {
        let (now, answers) = (self.now(), self.answers);
        for done in self.done.drain(..) {
            shard.handle(now, Event::Disk(done), &mut self.effects);
        }
        shard.end_turn(now, &mut self.effects);
        self.carry_out();
        self.device.drain(&mut self.ring, now, &mut self.done);
        let wait = u32::from(self.done.is_empty() && answers == self.answers);
        self.ring.submit_and_wait(wait, Some(Duration::from_millis(5))).expect("the ring works");
        self.ring.reap(&mut self.completions);
        for completion in self.completions.drain(..) {
            self.device.complete(completion, &mut self.ring);
        }
        self.device.drain(&mut self.ring, now, &mut self.done);
    }

    fn carry_out(&mut self) {
        for effect in self.effects.drain(..) {
            match effect {
                Effect::Disk(op) => self.device.submit(op, &mut self.ring),
                Effect::Reply { .. } => self.answers += 1,
                Effect::Notice { alarm: true, text } => panic!("{text}"),
                _ => {}
            }
        }
    }

    fn open_shard(&mut self) -> Shard {
        let mut effects = Vec::new();
        let mut shard = Shard::open(self.config.clone(), self.now(), &mut effects);
        self.effects = effects;
        self.carry_out();
        while shard.status().phase == Phase::Opening {
            self.turn(&mut shard);
        }
        assert_eq!(shard.status().phase, Phase::Running);
        shard
    }

    /// Formats the device and writes about so many bytes.
    fn fill(&mut self, depth: u64, blocks: u32, bytes: u64) {
        for op in Shard::format(&self.config) {
            self.device.submit(op, &mut self.ring);
        }
        self.settle();
        let mut shard = self.open_shard();
        while shard.status().groups.iter().any(|g| g.leader.is_none() || g.applied != g.last) {
            self.turn(&mut shard);
        }
        let block = Bytes::from(vec![7u8; BLOCK_BYTES]);
        let checksums = vec![crc32c(&block); blocks as usize];
        let payload: Payload = Bytes::from(vec![7u8; BLOCK_BYTES * blocks as usize]).into();
        let mut sent = 0;
        for group in 0..GROUPS {
            let term = shard.status().groups[group as usize].term;
            self.ask(
                &mut shard,
                &mut sent,
                group,
                RequestOp::Fence { term, generation: Generation(0) },
            );
        }
        self.wait(&mut shard, sent as usize);
        let rounds = bytes / (u64::from(blocks) * BLOCK_BYTES as u64 * depth);
        let rounds = if depth == 1 { rounds / 2 } else { rounds };
        for round in 0..rounds.max(1) {
            for i in 0..depth {
                let (group, at) = ((i % u64::from(GROUPS)) as u32, round * depth + i);
                let first = at.wrapping_mul(0x9e37_79b9) % (1 << 18) / u64::from(blocks);
                let op = RequestOp::Write {
                    term: Term(1),
                    generation: Generation(0),
                    range: BlockRange { block: first * u64::from(blocks), count: blocks },
                    checksums: checksums.clone(),
                    payload: payload.clone(),
                };
                self.ask(&mut shard, &mut sent, group, op);
            }
            self.wait(&mut shard, sent as usize);
        }
    }

    fn ask(&mut self, shard: &mut Shard, sent: &mut u64, group: u32, op: RequestOp) {
        *sent += 1;
        let (volume, epoch, incarnation) = (VolumeId(1), Epoch(1), Incarnation(1));
        let (id, group) = (RequestId(*sent), GroupId(group));
        let (priority, traced) = (Priority::BestEffort, false);
        let request = Request { id, group, volume, epoch, incarnation, priority, traced, op };
        let event = Event::Request { link: LinkId(1), remote: false, request };
        shard.handle(self.now(), event, &mut self.effects);
        self.carry_out();
    }

    fn wait(&mut self, shard: &mut Shard, answers: usize) {
        while self.answers < answers {
            self.turn(shard);
        }
    }

    fn reopen(&mut self, what: &str) {
        let (wall, cpu) = (Instant::now(), cpu_time());
        let shard = self.open_shard();
        let (wall, cpu) = (wall.elapsed(), cpu_time() - cpu);
        let status = shard.status();
        let report = status.open_report.expect("it is open");
        println!(
            "{what:<36} {:>9} {:>9} {:>10.3} {:>10.3}",
            report.bytes >> 20,
            report.batches,
            wall.as_secs_f64(),
            cpu.as_secs_f64()
        );
        assert!(status.groups[0].last > LogIndex(0));
    }

    fn close(mut self) {
        self.settle();
        self.device.close(&mut self.ring);
    }

    /// Waits until nothing is in flight.
    fn settle(&mut self) {
        self.device.drain(&mut self.ring, Time::ZERO, &mut self.done);
        while self.device.in_flight() > 0 {
            self.ring.submit_and_wait(1, None).expect("the ring works");
            self.ring.reap(&mut self.completions);
            for completion in self.completions.drain(..) {
                self.device.complete(completion, &mut self.ring);
            }
            self.device.drain(&mut self.ring, Time::ZERO, &mut self.done);
        }
        self.done.clear();
    }
}

/// CPU time of this thread so far, the kernel's work for it included.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = stat.split_whitespace().next().and_then(|n| n.parse().ok());
    Duration::from_nanos(nanos.unwrap_or_default())
}
