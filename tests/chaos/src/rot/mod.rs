//! One copy of everything is damaged, each on another node: no wrong byte is ever returned, and one scrub
//! repairs all of it.
//!
//! Which place of which device holds a block is read from the log's batches offline; the damage is written past
//! the daemon and past the page cache, while the nodes are down, one after the other is, or all run.
//!
//! [`headers`] damages headers of batches, [`ahead`] what only a start needs while the nodes run, and [`older`]
//! puts an older image of a whole device back.

mod ahead;
mod damage;
pub mod disk;
mod headers;
mod load;
mod older;
mod places;
mod report;

pub use ahead::ahead;
pub use damage::{Damage, Kind};
pub use headers::headers;
pub use older::{Fate, older};
pub use report::{Report, Round};

use crate::random::Random;
use anyhow::{Context, Result, ensure};
use basalt_interop::cluster::{Attached, Cluster, PATIENCE, Shape};
use basalt_interop::process::wait_until;
use basalt_wire::block::BLOCK_BYTES;
use damage::{Draw, keep_images};
use disk::{Disk, path_of};
use load::{Held, Load, VOLUME, bytes_of, checksum_of, is_busy};
use places::Places;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How often in a row a cluster must have written nothing before it counts as idle.
const CALM: u32 = 5;

/// What the nodes do while their devices are damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum While {
    /// All of them are down: they were killed.
    Down,
    /// All of them run.
    Running,
    /// One after the other is down; those before it serve from what is left.
    Rolling,
}

/// What is done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// MiB of the volume.
    pub volume_mib: u64,
    /// What the nodes do meanwhile, round by round.
    pub rounds: Vec<While>,
    /// Seed of everything drawn.
    pub seed: u64,
}

impl Plan {
    /// Rounds of all kinds in turn.
    pub fn turns(volume_mib: u64, rounds: u32, seed: u64) -> Plan {
        let all = [While::Down, While::Running, While::Rolling];
        let rounds = all.into_iter().cycle().take(rounds as usize).collect();
        Plan { volume_mib, rounds, seed }
    }

    /// Devices that the log goes round while the volume is overwritten: what stood at a place earlier is
    /// another block then.
    fn shape(&self) -> Shape {
        let (device, segment) = match self.volume_mib {
            0..=8 => ("48MiB", "1MiB"),
            9..=64 => ("288MiB", "2MiB"),
            65..=256 => ("1152MiB", "4MiB"),
            _ => ("8GiB", "16MiB"),
        };
        Shape { device, segment, ..Shape::default() }
    }
}

/// Carries it out; `tell` hears of each round.
///
/// # Errors
/// If the cluster can not be set up, a wrong byte or an error is returned, or something is not repaired.
pub fn run(name: &str, plan: &Plan, tell: impl Fn(&Round)) -> Result<Report> {
    let mut course = Course::begin(name, &plan.shape(), plan.volume_mib << 20, plan.seed)?;
    let mut report = Report::new(plan.volume_mib);
    let mut seeds = Random::new(plan.seed);
    for one in &plan.rounds {
        let round = course.round(*one, seeds.bits())?;
        tell(&round);
        report.rounds.push(round);
    }
    course.read_without_each()?;
    course.end()?;
    Ok(report)
}

struct Course {
    cluster: Cluster,
    attached: Attached,
    load: Load,
    volume: u64,
}

impl Course {
    /// A cluster with a volume that is full but for a hole.
    fn begin(name: &str, shape: &Shape, bytes: u64, seed: u64) -> Result<Course> {
        let cluster = Cluster::start_with(name, shape)?;
        cluster.basalt(&["volume", "create", VOLUME, "--size", &bytes.to_string()])?;
        let volume =
            cluster.basalt(&["volume", "show", VOLUME])?["id"].as_u64().context("no id")?;
        let attached = cluster.attach(VOLUME, "rot-host", false)?;
        let mut load = Load::new(&attached, bytes / BLOCK_BYTES as u64, seed)?;
        load.fill()?;
        Ok(Course { cluster, attached, load, volume })
    }

    fn end(mut self) -> Result<()> {
        self.attached.process.stop(PATIENCE)?;
        self.cluster.finish()
    }

    fn round(&mut self, nodes: While, seed: u64) -> Result<Round> {
        self.change()?;
        let held = self.load.held();
        let before = self.calm()?;
        let draw = Draw::new(seed, self.cluster.nodes.len());
        let mut damage = Damage::default();
        let began = Instant::now();
        self.damage(nodes, &draw, &held, &mut damage)?;
        let damaging = began.elapsed();
        let copies = damage.copies();
        ensure!(copies == held.len() as u64, "{copies} of {} were damaged", held.len());
        self.cluster.wait_healthy()?;
        let before = if nodes == While::Running { before } else { vec![Counts::default(); 3] };
        let began = Instant::now();
        self.load.verify(&self.cluster)?;
        let reading = began.elapsed();
        let found = self.counts()?.iter().zip(&before).map(|(now, was)| now.bad - was.bad).sum();
        let began = Instant::now();
        let repaired = self.scrub(&before)?;
        let scrubbing = began.elapsed();
        self.is_all_repaired(&damage, &repaired)?;
        let passes = self.counts()?;
        let again = self.scrub(&passes)?;
        ensure!(again.iter().all(|one| one.bad == 0), "a second scrub finds damage: {again:?}");
        self.is_right_everywhere()?;
        let last = &self.scrub_status()?;
        let took = (0..3).filter_map(|n| last[n]["scrub"]["last_pass_milliseconds"].as_u64()).max();
        let second = Duration::from_millis(took.context("no pass")?);
        Ok(Round { nodes, damage, found, repaired, damaging, reading, scrubbing, second })
    }

    /// Changes most of the volume, with a snapshot in the middle of it.
    fn change(&mut self) -> Result<()> {
        let blocks = self.load.blocks();
        self.load.overwrite(blocks)?;
        keep_images(&self.cluster)?;
        self.load.overwrite(blocks)?;
        self.load.discard(8)?;
        self.load.freeze(&self.cluster)?;
        self.load.overwrite(blocks / 2)?;
        self.load.discard(8)
    }

    /// Waits until the nodes write nothing any more: their logs end with a seal then, and all that they
    /// hold counts as durable. Gives what their scrubs came to.
    fn calm(&self) -> Result<Vec<Counts>> {
        let (mut last, mut times) = (Vec::new(), 0);
        wait_until("nothing is written any more", PATIENCE, || {
            let status = self.cluster.basalt(&["cluster", "status"])?;
            let batches = |n: usize| status["nodes"][n]["log"]["batches"].as_u64();
            let now: Vec<_> = (0..self.cluster.nodes.len()).map(batches).collect();
            let groups = status["groups"].as_array().context("no groups")?;
            let level = groups.iter().all(|group| group["entries_behind"] == 0);
            times = if level && now == last { times + 1 } else { 0 };
            last = now;
            Ok(times >= CALM)
        })?;
        self.counts()
    }

    fn damage(
        &mut self,
        nodes: While,
        draw: &Draw,
        held: &BTreeSet<Held>,
        done: &mut Damage,
    ) -> Result<()> {
        if nodes == While::Down {
            self.cluster.kill()?;
        }
        for n in 0..self.cluster.nodes.len() {
            if nodes == While::Rolling {
                self.calm()?;
                self.cluster.nodes[n].process.kill()?;
            }
            draw.carry_out(&self.cluster, n, self.volume, held, done)?;
            if nodes == While::Rolling {
                self.cluster.nodes[n].process.restart()?;
                self.cluster.wait_healthy()?;
            }
        }
        if nodes == While::Down {
            self.cluster.restart()?;
        }
        Ok(())
    }

    fn scrub_status(&self) -> Result<Vec<Value>> {
        let status = self.cluster.basalt(&["scrub", "status"])?;
        status["nodes"].as_array().cloned().context("no nodes")
    }

    fn counts(&self) -> Result<Vec<Counts>> {
        self.scrub_status()?.iter().map(|node| Counts::read(&node["scrub"])).collect()
    }

    /// What stands in a node's log, from a length on.
    fn log_of(&self, node: usize, from: usize) -> Result<String> {
        let path = self.cluster.folder().join(format!("{}.log", self.cluster.nodes[node].name));
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok(text.get(from..).unwrap_or_default().to_owned())
    }

    /// Every node reads all that it should hold, and nothing of it is damaged.
    fn is_whole_everywhere(&self) -> Result<()> {
        self.calm()?;
        let zero = vec![Counts::default(); self.cluster.nodes.len()];
        self.scrub(&zero)?;
        let held = self.load.held().len() as u64;
        for node in self.scrub_status()? {
            let scrub = &node["scrub"];
            let right = scrub["last_pass_verified"] == held && scrub["last_pass_bad"] == 0;
            ensure!(right, "node {} does not hold {held} blocks whole: {scrub}", node["name"]);
        }
        Ok(())
    }

    /// Has all nodes look at everything, and waits until nothing waits for its repair. Gives what came of
    /// it on each since `before`.
    fn scrub(&self, before: &[Counts]) -> Result<Vec<Counts>> {
        let passes: Vec<u64> = self.counts()?.iter().map(|counts| counts.passes).collect();
        let started = self.cluster.basalt(&["scrub", "start"])?;
        ensure!(started["started"].as_array().is_some_and(|all| all.len() == 3), "{started}");
        let mut now = Vec::new();
        wait_until("all damage is repaired", PATIENCE * 5, || {
            now = self.counts()?;
            let idle = |(n, c): (usize, &Counts)| c.passes > passes[n] && !c.running;
            Ok(now.iter().enumerate().all(idle) && now.iter().all(|c| c.waiting == 0))
        })
        .with_context(|| format!("{now:?}"))?;
        ensure!(now.iter().all(|counts| counts.lost == 0), "blocks are lost: {now:?}");
        Ok(now.iter().zip(before).map(|(now, before)| now.since(before)).collect())
    }

    /// What was damaged on each node was repaired there, but for what was overwritten before it was found.
    fn is_all_repaired(&self, damage: &Damage, repaired: &[Counts]) -> Result<()> {
        let held = self.load.held();
        for (n, counts) in repaired.iter().enumerate() {
            let all = damage.of[n].len() as u64;
            let sure = damage.of[n].iter().filter(|one| held.contains(one)).count() as u64;
            let busy = damage.of[n].iter().filter(|(block, _)| is_busy(*block)).count() as u64;
            ensure!(all - sure <= busy, "{} blocks were overwritten of {busy}", all - sure);
            // What reads found before the scrub came by is repaired too, and no block of its count.
            let done = counts.repaired + counts.overwritten;
            let right = counts.repaired >= sure && done <= all;
            ensure!(
                right,
                "{sure} to {all} blocks are to be repaired on node {}: {counts:?}",
                n + 1
            );
        }
        Ok(())
    }

    /// Every block that the volume or its snapshot holds has its content at its place on every device.
    fn is_right_everywhere(&self) -> Result<()> {
        self.calm()?;
        for node in &self.cluster.nodes {
            let disk = Disk::open(&path_of(node))?;
            let places = Places::read(&disk, self.volume)?;
            for held in self.load.held() {
                let at = places.offset(held.0, checksum_of(held));
                let at = at.with_context(|| format!("{held:?} is not on {}", node.name))?;
                let right = disk.read(at, BLOCK_BYTES)?[..] == bytes_of(held);
                ensure!(right, "{held:?} at {at} of the device of {} is not right", node.name);
            }
        }
        Ok(())
    }

    /// Reads everything without each of the nodes in turn.
    fn read_without_each(&mut self) -> Result<()> {
        for n in 0..self.cluster.nodes.len() {
            self.calm()?;
            self.cluster.nodes[n].process.kill()?;
            self.load.verify(&self.cluster).with_context(|| format!("without node {}", n + 1))?;
            self.cluster.nodes[n].process.restart()?;
            self.cluster.wait_healthy()?;
        }
        Ok(())
    }
}

/// What a node's scrub and repairs came to.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Counts {
    /// Passes that ended.
    #[serde(skip)]
    pub passes: u64,
    /// Whether one is under way.
    #[serde(skip)]
    pub running: bool,
    /// Blocks found damaged; one that is found twice counts twice.
    pub bad: u64,
    /// Blocks repaired.
    pub repaired: u64,
    /// Blocks that were overwritten while they waited for that.
    pub overwritten: u64,
    /// Blocks that wait for it.
    #[serde(skip)]
    pub waiting: u64,
    /// Blocks that no node has.
    #[serde(skip)]
    pub lost: u64,
}

impl Counts {
    fn read(scrub: &Value) -> Result<Counts> {
        let number = |name: &str| scrub[name].as_u64().with_context(|| format!("no {name}"));
        Ok(Counts {
            passes: number("passes")?,
            running: scrub["running"].as_bool().context("no state")?,
            bad: number("blocks_bad")?,
            repaired: number("blocks_repaired")?,
            overwritten: number("blocks_overwritten")?,
            waiting: number("blocks_waiting")?,
            lost: number("blocks_lost")?,
        })
    }

    fn since(&self, before: &Counts) -> Counts {
        Counts {
            bad: self.bad - before.bad,
            repaired: self.repaired - before.repaired,
            overwritten: self.overwritten - before.overwritten,
            ..*self
        }
    }
}
