//! Nodes come and go while a volume is overwritten and read: three become five, of which the first two leave, and
//! one that lost everything is replaced, once or time and again. Every block is what was written to it last, at every
//! moment.

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
/// From one question whether groups are settled to the next, while they are not and once they seem to be: an answer is
/// work for the nodes, of which two a second took a twentieth of two processors. So often in a row they must be: what
/// evens their data follows on what brings them there.
const LOOK: Duration = Duration::from_secs(3);
const LOOK_AGAIN: Duration = Duration::from_millis(500);
const LOOKS: u32 = 3;
/// What goes on in three of the phases.
const REST: &str = "at rest";
const LOSS: &str = "a node is lost";
const REPLACED: &str = "another comes in its place";
/// How long the load runs after a node is lost, before another one comes in its place.
const LOST: Duration = Duration::from_secs(3);

/// What is done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Bytes of the volume, a multiple of 128 KiB.
    pub volume_bytes: u64,
    /// Volume groups.
    pub groups: usize,
    /// Writes a second at most; nothing: as many as go.
    pub rate: Option<u64>,
    /// How long the load runs with nothing else, before and after what is measured, to compare with.
    pub rest: Duration,
    /// Whether two nodes come and two others leave.
    pub grows: bool,
    /// How often a node is lost and replaced.
    pub losses: u32,
    /// Seed of the blocks.
    pub seed: u64,
    /// What the nodes are told.
    pub node_args: Vec<String>,
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

/// What the replacement of a lost node took from those who write, beside the rests before and after it.
#[derive(Clone, Copy, Debug)]
pub struct Toll {
    /// Hundredths of the writes.
    pub lost: f64,
    /// How many times as long the slowest hundredth took.
    pub slower: f64,
}

impl Toll {
    /// Of each replacement that stands between two rests: machines are not equally fast from one minute to the next.
    pub fn all(phases: &[Phase]) -> Vec<Toll> {
        let p99 = |phase: &Phase| permille(&phase.writes, 990).as_secs_f64();
        let toll = |window: &[Phase]| match window {
            [before, lost, rebuilt, after] if (lost.what, rebuilt.what) == (LOSS, REPLACED) => {
                let mean = |of: &dyn Fn(&Phase) -> f64| (of(before) + of(after)) / 2.0;
                let lost = 100.0 - rebuilt.iops() * 100.0 / mean(&Phase::iops);
                Some(Toll { lost, slower: p99(rebuilt) / mean(&p99) })
            }
            _ => None,
        };
        phases.windows(4).filter_map(toll).collect()
    }

    /// The middle one of some, by each figure; nothing of none.
    pub fn median(tolls: &[Toll]) -> Option<Toll> {
        let middle = |of: fn(&Toll) -> f64| {
            let mut sorted: Vec<f64> = tolls.iter().map(of).collect();
            sorted.sort_unstable_by(f64::total_cmp);
            sorted.get(sorted.len() / 2).copied()
        };
        Some(Toll { lost: middle(|toll| toll.lost)?, slower: middle(|toll| toll.slower)? })
    }
}

impl Display for Toll {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.1} % of the writes lost, p99 {:.2} times as long", self.lost, self.slower)
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
        node_args: [["--log-retain", "16MiB"].map(str::to_owned).to_vec(), plan.node_args.clone()]
            .concat(),
        ..Shape::default()
    };
    let cluster = Cluster::start_with(name, &shape)?;
    let bytes = plan.volume_bytes.next_multiple_of(LARGE);
    cluster.basalt(&["volume", "create", VOLUME, "--size", &bytes.to_string()])?;
    let attached = cluster.attach(VOLUME, "members-host", false)?;
    let mut load = Load::open(attached.port, VOLUME, bytes, plan.rate, plan.seed)?;
    load.fill()?;
    let mut course = Course { cluster, plan: plan.clone(), load: Some(load), phases: Vec::new() };
    course.rest(&tell)?;
    if plan.grows {
        course.grow_and_shrink(&tell)?;
        course.rest(&tell)?;
    }
    for _ in 0..plan.losses {
        course.replace_a_lost_node(&tell)?;
        course.rest(&tell)?;
    }
    course.end(attached)
}

struct Course {
    cluster: Cluster,
    plan: Plan,
    load: Option<Load>,
    phases: Vec<Phase>,
}

impl Course {
    fn rest(&mut self, tell: &impl Fn(&Phase)) -> Result<()> {
        let rest = self.plan.rest;
        self.phase(REST, tell, |_| {
            std::thread::sleep(rest);
            Ok(())
        })
    }

    fn grow_and_shrink(&mut self, tell: &impl Fn(&Phase)) -> Result<()> {
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
        Ok(())
    }

    /// The oldest node loses its machine.
    fn replace_a_lost_node(&mut self, tell: &impl Fn(&Phase)) -> Result<()> {
        let name = self.cluster.nodes.first().context("there are nodes")?.name.clone();
        self.phase(LOSS, tell, |course| {
            course.cluster.discard_node(0)?;
            std::thread::sleep(LOST);
            Ok(())
        })?;
        self.phase(REPLACED, tell, |course| {
            course.cluster.add_node(Some(&name))?;
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
            std::thread::sleep(if looks > 0 { LOOK_AGAIN } else { LOOK });
            looks = if self.is_settled()? { looks + 1 } else { 0 };
            Ok(looks == LOOKS)
        })
    }

    fn is_settled(&self) -> Result<bool> {
        let status = self.cluster.basalt(&["cluster", "status"])?;
        let groups = status["groups"].as_array().context("no groups")?;
        if status["health"] != "ok" || groups.iter().any(|group| group["moving"] != false) {
            return Ok(false);
        }
        let list = self.cluster.basalt(&["node", "list"])?;
        let nodes = list["nodes"].as_array().context("no nodes")?;
        let placed = |node: &Value| node["groups"].as_u64().context("no groups of a node");
        let placed: Vec<u64> = nodes.iter().map(placed).collect::<Result<_>>()?;
        let spread = placed.iter().max().unwrap_or(&0) - placed.iter().min().unwrap_or(&0);
        Ok(spread <= 1)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(what: &'static str, writes: usize, took: u64) -> Phase {
        let writes = vec![Duration::from_millis(took); writes];
        Phase { what, time: Duration::from_secs(1), writes, data: (1, 1) }
    }

    #[test]
    fn a_replacement_is_held_against_the_rests_around_it() {
        let phases = [
            phase(REST, 900, 2),
            phase(LOSS, 100, 90),
            phase(REPLACED, 950, 6),
            phase(REST, 1100, 4),
            phase(LOSS, 100, 90),
            phase(REPLACED, 880, 4),
            phase(REST, 1100, 4),
        ];
        let tolls = Toll::all(&phases);
        let told: Vec<String> = tolls.iter().map(Toll::to_string).collect();
        assert_eq!(told[0], "5.0 % of the writes lost, p99 2.00 times as long");
        assert_eq!(told[1], "20.0 % of the writes lost, p99 1.00 times as long");
        assert_eq!(tolls.len(), 2);
        assert_eq!(Toll::median(&tolls[..1]).expect("of one").to_string(), told[0]);
        assert!(Toll::median(&[]).is_none());
    }
}
