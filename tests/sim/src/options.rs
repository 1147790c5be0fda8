//! What a run is made of: drawn from the seed, printed in its first line, trimmed by shrinking.

use crate::queue::{MICRO, MILLI, SECOND};
use crate::rng::Rng;
use basalt_core::cleaner::Levels;
use basalt_core::planted::Planted;
use std::fmt;

/// Segments of each device that are Raft's.
pub const SEGMENTS_RESERVED: u32 = 2;

/// How large a world is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Three nodes, a small volume, some 300 operations, 20 simulated seconds.
    Tiny,
    /// Three or five nodes, more groups and clients, some 3,000 operations, 120 simulated seconds.
    Swarm,
    /// As swarm, for an hour of simulated time.
    Long,
}

impl Profile {
    /// By its name on the command line.
    pub fn named(name: &str) -> Option<Profile> {
        [Profile::Tiny, Profile::Swarm, Profile::Long].into_iter().find(|p| p.name() == name)
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Profile::Tiny => "tiny",
            Profile::Swarm => "swarm",
            Profile::Long => "long",
        }
    }
}

/// A kind of fault (or of operator's work), switched on or off as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Family {
    /// Slow and uneven links.
    Delay,
    /// Links that break in the middle of a frame.
    Reset,
    /// Links that stop for a while in one direction.
    Clog,
    /// Nodes or clients that cannot reach each other, both ways or one way.
    Partition,
    /// Flipped bits on links.
    Corrupt,
    /// Slow disks, and one much slower than the others.
    SlowDisk,
    /// Reads of one node's disk that fail or lie once.
    ReadFault,
    /// Data at rest on one node's disk is damaged.
    Damage,
    /// Writes and flushes that fail.
    WriteFault,
    /// Processes killed and started again.
    Kill,
    /// Power cuts of one node or of all.
    Power,
    /// A node or client stands still for a while.
    Pause,
    /// Clocks that run at different speeds.
    Drift,
    /// The volume is attached elsewhere while its client may be at work.
    Move,
    /// Leaders moved, nodes stopped gracefully, metadata proposed.
    Operator,
    /// A device too small for the data.
    Full,
    /// A device that holds the data and little more, so that all that is written is cleaned.
    Space,
    /// Volumes that grow while they are used.
    Grow,
    /// Snapshots taken, dropped and read.
    Snapshot,
    /// One node's disk is a hundred times slower for the whole run.
    GrayDisk,
    /// All links of one node are a hundred times slower for the whole run.
    GrayLink,
    /// Groups that move to other nodes.
    Members,
}

impl Family {
    /// All families.
    pub const ALL: [Family; 22] = [
        Family::Delay,
        Family::Reset,
        Family::Clog,
        Family::Partition,
        Family::Corrupt,
        Family::SlowDisk,
        Family::ReadFault,
        Family::Damage,
        Family::WriteFault,
        Family::Kill,
        Family::Power,
        Family::Pause,
        Family::Drift,
        Family::Move,
        Family::Operator,
        Family::Full,
        Family::Space,
        Family::Grow,
        Family::Snapshot,
        Family::GrayDisk,
        Family::GrayLink,
        Family::Members,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Family::Delay => "delay",
            Family::Reset => "reset",
            Family::Clog => "clog",
            Family::Partition => "partition",
            Family::Corrupt => "corrupt",
            Family::SlowDisk => "slow-disk",
            Family::ReadFault => "read-fault",
            Family::Damage => "damage",
            Family::WriteFault => "write-fault",
            Family::Kill => "kill",
            Family::Power => "power",
            Family::Pause => "pause",
            Family::Drift => "drift",
            Family::Move => "move",
            Family::Operator => "operator",
            Family::Full => "full",
            Family::Space => "space",
            Family::Grow => "grow",
            Family::Snapshot => "snapshot",
            Family::GrayDisk => "gray-disk",
            Family::GrayLink => "gray-link",
            Family::Members => "members",
        }
    }

    /// By its name.
    pub fn named(name: &str) -> Option<Family> {
        Family::ALL.into_iter().find(|f| f.name() == name)
    }

    /// Mean time between two faults of the family, from the most to the least eventful run. Families
    /// that set a condition for the whole run have none.
    fn pace(self) -> Option<(u64, u64)> {
        Some(match self {
            Family::Reset => (150 * MILLI, 10 * SECOND),
            Family::Clog => (300 * MILLI, 10 * SECOND),
            Family::Partition => (SECOND, 20 * SECOND),
            Family::Damage => (200 * MILLI, 10 * SECOND),
            Family::Kill => (500 * MILLI, 20 * SECOND),
            Family::Power => (500 * MILLI, 20 * SECOND),
            Family::Pause => (500 * MILLI, 15 * SECOND),
            Family::Move => (500 * MILLI, 15 * SECOND),
            Family::Operator => (100 * MILLI, 5 * SECOND),
            Family::Grow => (100 * MILLI, 5 * SECOND),
            Family::Snapshot => (50 * MILLI, 3 * SECOND),
            Family::Members => (500 * MILLI, 10 * SECOND),
            _ => return None,
        })
    }
}

/// A set of families.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Families(u32);

impl Families {
    /// None.
    pub const NONE: Families = Families(0);

    /// Whether a family is in the set.
    pub fn has(self, family: Family) -> bool {
        self.0 >> family as u8 & 1 == 1
    }

    /// The set with a family.
    #[must_use]
    pub fn with(self, family: Family) -> Families {
        Families(self.0 | 1 << family as u8)
    }

    /// The set without the families of another one.
    #[must_use]
    pub fn minus(self, other: Families) -> Families {
        Families(self.0 & !other.0)
    }

    /// Its families.
    pub fn iter(self) -> impl Iterator<Item = Family> {
        Family::ALL.into_iter().filter(move |f| self.has(*f))
    }
}

impl FromIterator<Family> for Families {
    fn from_iter<T: IntoIterator<Item = Family>>(families: T) -> Families {
        families.into_iter().fold(Families::NONE, Families::with)
    }
}

impl fmt::Debug for Families {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.iter().map(Family::name).collect();
        f.write_str(&if names.is_empty() { "none".to_owned() } else { names.join(",") })
    }
}

/// What the caller asks for beside the seed: shrinking narrows it, the command line gives it.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// Families switched off, whatever the seed drew.
    pub without: Families,
    /// At most so many volumes, each with its client.
    pub clients: Option<u32>,
    /// At most so many operations in all.
    pub ops: Option<u32>,
    /// Faults end at the latest after so many nanoseconds.
    pub horizon: Option<u64>,
}

/// How a client works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Anywhere.
    Uniform,
    /// Half of it on one block.
    Hot,
    /// Runs of several blocks that overlap others in flight on purpose.
    Overlapping,
}

/// Everything that was drawn.
#[derive(Clone, Debug)]
pub struct Options {
    /// The seed.
    pub seed: u64,
    /// The profile.
    pub profile: Profile,
    /// Storage nodes that hold the groups at first.
    pub nodes: u32,
    /// Nodes beside them that hold no group at first.
    pub spare: u32,
    /// Groups of the pool.
    pub groups: u32,
    /// Volumes, each with a client.
    pub volumes: u32,
    /// Chunks of each volume, in the end if it grows. Operations keep to a window of blocks around each chunk's start.
    pub chunks: u32,
    /// Blocks on each side of a chunk's start.
    pub window: u32,
    /// Operations of all clients together.
    pub ops: u32,
    /// Operations that a client keeps in flight.
    pub depth: u32,
    /// The most blocks of one operation.
    pub blocks_max: u32,
    /// Bytes of the checker's unit: 512 if clients write parts of blocks.
    pub unit: usize,
    /// How clients work.
    pub pattern: Pattern,
    /// Share of reads, and of unmaps, among the operations.
    pub reads: f64,
    /// See [`Options::reads`].
    pub unmaps: f64,
    /// Mean pause of a client between two operations.
    pub think: u64,
    /// When the faults end.
    pub horizon: u64,
    /// What may go wrong.
    pub families: Families,
    /// Mean time between two faults, by family.
    pub pace: [u64; 22],
    /// Whether disks have a volatile cache.
    pub volatile: bool,
    /// Whether a durable write flushes the whole cache.
    pub durable_flushes: bool,
    /// Bytes that a disk writes whole or not at all.
    pub atom: usize,
    /// Mean latency of a disk operation.
    pub disk_latency: u64,
    /// Size of each device.
    pub device: u64,
    /// Bytes in a segment.
    pub segment: u64,
    /// Mean delay of a message, beyond the smallest.
    pub delay: u64,
    /// The smallest delay.
    pub delay_min: u64,
    /// The node whose disk may lose or falsify data: one copy of everything, at most.
    pub victim: u32,
    /// From the start of a scrub to the start of the next, in nanoseconds; 0 for none before the end.
    pub scrub: u64,
    /// Clones that are made of snapshots, at most.
    pub clones: u32,
    /// Whether volumes are encrypted.
    pub encrypted: bool,
    /// Whether clients trace all of their requests; else one in a period.
    pub traced: bool,
    /// Whether the run ends with only a majority healed, before all are.
    pub core_first: bool,
    /// Whether all nodes are restarted at the end and compared once more.
    pub restart_last: bool,
    /// A bug planted in the engine.
    pub planted: Planted,
}

impl Options {
    /// Draws a run.
    pub fn draw(seed: u64, profile: Profile, limits: &Limits, planted: Planted) -> Options {
        let mut r = Rng::stream(seed, "options", 0);
        let tiny = profile == Profile::Tiny;
        let mut families: Families = Family::ALL.into_iter().filter(|_| r.chance(0.5)).collect();
        if !r.chance(0.25) {
            families = families.minus(Families::NONE.with(Family::Full));
        }
        families = families.minus(limits.without);
        let pace = Family::ALL.map(|f| {
            let (low, high) = f.pace().unwrap_or((SECOND, SECOND + 1));
            r.log_uniform(low as f64, high as f64) as u64
        });
        let volumes = if tiny { 1 + u32::from(r.chance(0.2)) } else { r.within(1, 3) as u32 };
        let ops = if tiny { r.within(100, 400) } else { r.within(1_000, 4_000) } as u32;
        let horizon = match profile {
            Profile::Tiny => r.within(5, 20) * SECOND,
            Profile::Swarm => r.within(20, 120) * SECOND,
            Profile::Long => 3_600 * SECOND,
        };
        let ops = if profile == Profile::Long { ops * 10 } else { ops };
        let mut o = Options {
            seed,
            profile,
            nodes: if tiny || r.chance(0.7) { 3 } else { 5 },
            spare: 0,
            groups: 1 << r.below(3),
            volumes: limits.clients.map_or(volumes, |c| volumes.min(c.max(1))),
            chunks: r.within(1, 4) as u32,
            window: 1 << r.within(0, 4),
            ops: limits.ops.map_or(ops, |n| ops.min(n)),
            depth: 1 << r.below(6),
            blocks_max: *r.pick(&[1, 1, 2, 4, 8]),
            unit: if r.chance(0.3) { 512 } else { 4096 },
            pattern: *r.pick(&[Pattern::Uniform, Pattern::Hot, Pattern::Overlapping]),
            reads: *r.pick(&[0.2, 0.5, 0.8]),
            unmaps: *r.pick(&[0.0, 0.0, 0.05, 0.2]),
            think: r.log_uniform(0.1 * MILLI as f64, 50.0 * MILLI as f64) as u64,
            horizon: limits.horizon.map_or(horizon, |h| horizon.min(h)),
            families,
            pace,
            volatile: r.chance(0.5),
            durable_flushes: r.chance(0.3),
            atom: if r.chance(0.5) { 512 } else { 4096 },
            disk_latency: 60 * MICRO,
            device: 0,
            segment: *r.pick(&[64 << 10, 128 << 10, 256 << 10]),
            delay: 20 * MICRO,
            delay_min: 20 * MICRO,
            victim: 0,
            scrub: draw_scrub(seed),
            clones: draw_clones(seed, families),
            encrypted: Rng::stream(seed, "encrypted", 0).chance(0.3),
            traced: seed.is_multiple_of(3),
            core_first: r.chance(0.5),
            restart_last: r.chance(0.3),
            planted,
        };
        if families.has(Family::Members) {
            o.spare = r.within(1, 2) as u32;
        }
        o.draw_hardware(&mut r);
        o
    }

    fn draw_hardware(&mut self, r: &mut Rng) {
        let slow_disk = r.log_uniform(20.0 * MICRO as f64, 20.0 * MILLI as f64) as u64;
        let delay = r.log_uniform(30.0 * MICRO as f64, 50.0 * MILLI as f64) as u64;
        let delay_min = r.log_uniform(10.0 * MICRO as f64, 10.0 * MILLI as f64) as u64;
        let full = r.log_uniform(0.1, 1.1);
        self.victim = r.below(u64::from(self.nodes + self.spare)) as u32;
        if self.families.has(Family::SlowDisk) {
            self.disk_latency = slow_disk;
        }
        if self.families.has(Family::Delay) {
            self.delay = delay;
            self.delay_min = delay_min;
        }
        // A header block and the payload for each write, elections and heartbeats beside them: a roomy
        // device holds several times what is written.
        let need = u64::from(self.ops) * (2 + u64::from(self.blocks_max)) * 4096;
        let roomy = (24 * need + 48 * self.segment + (64 << 20)).div_ceil(self.segment);
        let segments = match () {
            () if self.families.has(Family::Full) => self.segments_for(full),
            () if self.families.has(Family::Space) => self.segments_that_suffice(),
            () => roomy,
        };
        self.device = (128 << 10) + segments * self.segment;
    }

    /// Segments of a device that takes so many times what can be live at once: what the windows hold, and
    /// what is on its way.
    pub fn segments_for(&self, times: f64) -> u64 {
        let on_its_way = u64::from(2 * self.volumes * self.depth * self.blocks_max);
        self.segments_taking(((self.held() + on_its_way) as f64 * times) as u64)
    }

    /// Segments of a device that holds the data and little more, and is never full of it: a follower says
    /// that it is full when half a segment more, which leaders may have under way, does not fit.
    fn segments_that_suffice(&self) -> u64 {
        let ahead = self.segment / 2 / 4096;
        self.segments_for(1.5).max(self.segments_taking(self.held() + ahead))
    }

    /// Blocks of the windows of all volumes.
    fn held(&self) -> u64 {
        u64::from(self.volumes) * u64::from(self.chunks) * 2 * u64::from(self.window)
    }

    /// Segments of a device that takes so many live blocks.
    fn segments_taking(&self, wanted: u64) -> u64 {
        let blocks = (self.segment / 4096) as u32;
        let takes = |segments: u32| Levels::of(segments, blocks, SEGMENTS_RESERVED).capacity;
        let enough = (8..).find(|segments| takes(*segments) >= wanted);
        u64::from(enough.unwrap_or(u32::MAX))
    }

    /// How many nodes there are.
    pub fn all_nodes(&self) -> usize {
        (self.nodes + self.spare) as usize
    }

    /// Chunks of a new volume.
    pub fn first_chunks(&self) -> u32 {
        if self.families.has(Family::Grow) { 1 } else { self.chunks }
    }

    /// How many nodes are a majority.
    pub fn majority(&self) -> u32 {
        3 / 2 + 1
    }
}

/// How often scrubs begin: of its own stream, so that the seed's other draws do not depend on it.
fn draw_scrub(seed: u64) -> u64 {
    let mut r = Rng::stream(seed, "scrub", 0);
    let every = r.log_uniform(200.0 * MILLI as f64, 20.0 * SECOND as f64) as u64;
    if r.chance(0.6) { every } else { 0 }
}

/// How many clones are made, where snapshots are taken: of its own stream, as [`draw_scrub`].
fn draw_clones(seed: u64, families: Families) -> u32 {
    let mut r = Rng::stream(seed, "clones", 0);
    if families.has(Family::Snapshot) && r.chance(0.6) { r.within(1, 3) as u32 } else { 0 }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "seed {} profile {} nodes {}+{} groups {} volumes {} chunks {} window {} ops {} depth {} clones {} \
             encrypted {} \
             blocks {} unit {} {:?} reads {} unmaps {} think {} us horizon {} s volatile {} atom {} \
             segment {} KiB device {} MiB disk {} us net {} us core-first {} families {:?}",
            self.seed,
            self.profile.name(),
            self.nodes,
            self.spare,
            self.groups,
            self.volumes,
            self.chunks,
            self.window,
            self.ops,
            self.depth,
            self.clones,
            self.encrypted,
            self.blocks_max,
            self.unit,
            self.pattern,
            self.reads,
            self.unmaps,
            self.think / MICRO,
            self.horizon / SECOND,
            self.volatile,
            self.atom,
            self.segment >> 10,
            self.device >> 20,
            self.disk_latency / MICRO,
            (self.delay + self.delay_min) / MICRO,
            self.core_first,
            self.families,
        )
    }
}
