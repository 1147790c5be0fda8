//! Nodes come and go while a volume is overwritten and read: three become five, of which the first two leave, and
//! one that lost everything is replaced. Every block is what was written to it last, at every moment.

use crate::background::Background;
use crate::load::{LARGE, Load};
use crate::measure::{distribution, permille};
use anyhow::{Context, Result, ensure};
use basalt_interop::cluster::{Attached, Cluster, PATIENCE, Shape};
use basalt_interop::process::wait_until;
use serde_json::Value;
use std::fmt::{Display, Formatter};
use std::time::{Duration, Instant};

const VOLUME: &str = "moved";
/// Writes between two looks at the clock and some reads.
const STRETCH: u64 = 256;
const READS: u64 = 16;
/// How long the command line may wait for groups to move.
const WAIT: &str = "600";
const SETTLED: Duration = Duration::from_secs(600);
/// From one question whether groups are settled to the next: to answer is work for the nodes, which what is measured
/// would show. So often in a row they must be: what evens their data follows on what brings them there.
const LOOK: Duration = Duration::from_millis(500);
const LOOKS: u32 = 3;
/// How long the load runs after a node is lost, before another one comes in its place.
const LOST: Duration = Duration::from_secs(3);

/// What is done.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Bytes of the volume, a multiple of 128 KiB.
    pub volume_bytes: u64,
    /// Volume groups.
    pub groups: usize,
    /// Writes a second at most; nothing: as many as go.
    pub rate: Option<u64>,
    /// How long the load runs before nodes come, and again at the end, to compare with.
    pub rest: Duration,
    /// Seed of the blocks.
    pub seed: u64,
}

/// A part of the course.
#[derive(Clone, Debug)]
pub struct Phase {
    /// What went on.
    pub what: &'static str,
    /// How long.
    pub time: Duration,
    /// Writes in it, and how long each took.
    pub writes: Vec<Duration>,
    /// Bytes of data on the fullest and on the emptiest node at its end.
    pub data: (u64, u64),
}

impl Phase {
    /// Writes a second.
    pub fn iops(&self) -> f64 {
        self.writes.len() as f64 / self.time.as_secs_f64()
    }

    /// By how many hundredths of the mean of both the fullest and the emptiest node lie off it.
    pub fn unevenness(&self) -> f64 {
        let (most, least) = (self.data.0 as f64, self.data.1 as f64);
        (most - least) * 100.0 / (most + least).max(1.0)
    }
}

/// The head of a table of phases.
pub const HEAD: &str = "\
| | seconds | IOPS | p50 ms | p99 ms | p99.9 ms | max ms | data a node, MiB |
| --- | --- | --- | --- | --- | --- | --- | --- |";

impl Display for Phase {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let [p50, p99, max] = distribution(&self.writes).map(ms);
        write!(
            f,
            "| {} | {:.1} | {:.0} | {p50:.2} | {p99:.1} | {:.1} | {max:.0} | {} to {} (± {:.1} %) |",
            self.what,
            self.time.as_secs_f64(),
            self.iops(),
            ms(permille(&self.writes, 999)),
            self.data.1 >> 20,
            self.data.0 >> 20,
            self.unevenness(),
        )
    }
}

/// Carries it out; `tell` hears of each phase.
///
/// # Errors
/// If a command or a write fails, or a block is not what was written last.
pub fn run(name: &str, plan: &Plan, tell: impl Fn(&Phase)) -> Result<Vec<Phase>> {
    let shape = Shape {
        device: "3GiB",
        segment: "4MiB",
        groups: plan.groups,
        // Short logs, so that new replicas are brought up by pages and entries both.
        node_args: ["--log-retain", "16MiB"].map(str::to_owned).to_vec(),
        ..Shape::default()
    };
    let cluster = Cluster::start_with(name, &shape)?;
    let bytes = plan.volume_bytes.next_multiple_of(LARGE);
    cluster.basalt(&["volume", "create", VOLUME, "--size", &bytes.to_string()])?;
    let attached = cluster.attach(VOLUME, "members-host", false)?;
    let mut load = Load::open(attached.port, VOLUME, bytes, plan.rate, plan.seed)?;
    load.fill()?;
    let mut course = Course { cluster, plan: *plan, load: Some(load), phases: Vec::new() };
    course.grow_and_shrink(&tell)?;
    course.replace_a_lost_node(&tell)?;
    course.end(attached)
}

struct Course {
    cluster: Cluster,
    plan: Plan,
    load: Option<Load>,
    phases: Vec<Phase>,
}

impl Course {
    fn grow_and_shrink(&mut self, tell: &impl Fn(&Phase)) -> Result<()> {
        let rest = self.plan.rest;
        self.phase("at rest, three nodes", tell, |_| {
            std::thread::sleep(rest);
            Ok(())
        })?;
        self.phase("two nodes come", tell, |course| {
            for _ in 0..2 {
                course.cluster.add_node(None)?;
            }
            course.settled()
        })?;
        self.phase("two nodes leave", tell, |course| {
            for name in ["node-1", "node-2"] {
                course.cluster.basalt(&["node", "drain", name, "--wait", WAIT])?;
                course.cluster.basalt(&["node", "remove", name])?;
            }
            course.settled()
        })?;
        // They end in order, members or not.
        for mut node in self.cluster.nodes.drain(..2) {
            node.process.stop(PATIENCE)?;
        }
        self.phase("at rest, three other nodes", tell, |_| {
            std::thread::sleep(rest);
            Ok(())
        })
    }

    /// The last of the first three loses its machine.
    fn replace_a_lost_node(&mut self, tell: &impl Fn(&Phase)) -> Result<()> {
        self.phase("a node is lost", tell, |course| {
            course.cluster.discard_node(0)?;
            std::thread::sleep(LOST);
            Ok(())
        })?;
        self.phase("another comes in its place", tell, |course| {
            course.cluster.add_node(Some("node-3"))?;
            course.settled()
        })
    }

    /// Reads everything without each node in turn.
    fn end(mut self, mut attached: Attached) -> Result<Vec<Phase>> {
        let mut load = self.load.take().context("it came back")?;
        load.verify()?;
        for at in 0..self.cluster.nodes.len() {
            self.cluster.nodes[at].process.kill()?;
            load.verify()?;
            self.cluster.nodes[at].process.restart()?;
            self.cluster.wait_healthy()?;
            self.settled()?;
        }
        attached.process.stop(PATIENCE)?;
        self.cluster.finish()?;
        Ok(self.phases)
    }

    /// Waits until all nodes work, no group moves and all nodes have equally many.
    fn settled(&self) -> Result<()> {
        let mut looks = 0;
        wait_until("all groups are where they should be", SETTLED, || {
            std::thread::sleep(LOOK);
            let status = self.cluster.basalt(&["cluster", "status"])?;
            let groups = status["groups"].as_array().context("no groups")?;
            let rest = groups.iter().all(|group| group["moving"] == false);
            let list = self.cluster.basalt(&["node", "list"])?;
            let nodes = list["nodes"].as_array().context("no nodes")?;
            let placed = |node: &Value| node["groups"].as_u64().context("no groups of a node");
            let placed: Vec<u64> = nodes.iter().map(placed).collect::<Result<_>>()?;
            let spread = placed.iter().max().unwrap_or(&0) - placed.iter().min().unwrap_or(&0);
            let settled = status["health"] == "ok" && rest && spread <= 1;
            looks = if settled { looks + 1 } else { 0 };
            Ok(looks == LOOKS)
        })
    }

    fn phase(
        &mut self,
        what: &'static str,
        tell: &impl Fn(&Phase),
        events: impl FnOnce(&mut Course) -> Result<()>,
    ) -> Result<()> {
        let load = self.load.take().context("one phase after the other")?;
        let began = Instant::now();
        let background = Background::start(load, (STRETCH, READS))?;
        let outcome = events(self);
        let ended = background.stop();
        // What went wrong with the data says more than what it made of the commands.
        let (load, writes) = ended.with_context(|| what.to_owned())?;
        outcome.with_context(|| what.to_owned())?;
        self.load = Some(load);
        let (time, data) = (began.elapsed(), data_by_node(&self.cluster)?);
        let phase = Phase { what, time, writes, data };
        tell(&phase);
        self.phases.push(phase);
        Ok(())
    }
}

/// Bytes that volumes refer to, on the node that holds most of them and on the one that holds least.
fn data_by_node(cluster: &Cluster) -> Result<(u64, u64)> {
    let text = cluster.basalt(&["space", "explain"])?;
    let nodes = text["nodes"].as_array().context("no nodes")?;
    let reachable = nodes.iter().filter(|node| !node["space"].is_null());
    let live: Vec<u64> = reachable
        .map(|node: &Value| node["space"]["live_bytes"].as_u64().context("no live bytes"))
        .collect::<Result<_>>()?;
    ensure!(!live.is_empty(), "no node tells what it holds");
    Ok((live.iter().copied().max().unwrap_or(0), live.iter().copied().min().unwrap_or(0)))
}
