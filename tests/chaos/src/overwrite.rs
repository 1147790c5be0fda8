//! Devices that are four fifths full are overwritten at random, evenly or some blocks more often than others, for
//! many times their size: what each write costs in bytes and in time, interval by interval, and whether every
//! block is what was written to it last.

use crate::load::{BLOCK, Hot, LARGE, Load};
use crate::measure::{distribution, permille, written_bytes};
use crate::plot::{Curve, Panel, svg};
use anyhow::{Context, Result};
use basalt_api::size;
use basalt_interop::cluster::{Cluster, PATIENCE, Shape};
use serde::Serialize;
use std::fmt::{Display, Formatter};
use std::time::Duration;

const VOLUME: &str = "full";

/// What is done.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Bytes of each device, as [`size::parse`] takes them.
    pub device: &'static str,
    /// Bytes of a segment.
    pub segment: &'static str,
    /// Hundredths of the device that the volume takes.
    pub full: u64,
    /// Bytes overwritten, as a multiple of the device.
    pub times: u64,
    /// Intervals for each time.
    pub intervals: u64,
    /// Writes a second at most; nothing: as many as go.
    pub rate: Option<u64>,
    /// Blocks that are written more often than others.
    pub hot: Option<Hot>,
    /// Writes under way.
    pub depth: usize,
    /// Seed of the blocks.
    pub seed: u64,
}

/// One interval. Latencies are in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Interval {
    /// Bytes overwritten since the start, as a part of the device.
    pub turns: f64,
    /// Writes a second.
    pub iops: f64,
    /// The mean.
    pub mean_ms: f64,
    /// The median.
    pub p50_ms: f64,
    /// The 99th percentile.
    pub p99_ms: f64,
    /// The 99.9th percentile.
    pub p999_ms: f64,
    /// The longest.
    pub max_ms: f64,
    /// Bytes written to the logs for each byte written by the client and replica.
    pub log_amplification: f64,
    /// The same of all that the nodes wrote: checkpoints and their store included.
    pub amplification: f64,
}

impl Display for Interval {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "| {:.2} | {:.0} | {:.2} | {:.2} | {:.1} | {:.1} | {:.0} | {:.2} | {:.2} |",
            self.turns,
            self.iops,
            self.mean_ms,
            self.p50_ms,
            self.p99_ms,
            self.p999_ms,
            self.max_ms,
            self.log_amplification,
            self.amplification,
        )
    }
}

/// The head of a table of intervals.
pub const HEAD: &str = "\
| turns | IOPS | mean ms | p50 ms | p99 ms | p99.9 ms | max ms | log/data | all/data |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |";

/// Carries it out; `tell` hears of each interval.
///
/// # Errors
/// If the cluster can not be set up, a write fails, or a block is not what was written last.
pub fn run(name: &str, plan: &Plan, tell: impl Fn(&Interval)) -> Result<Vec<Interval>> {
    let shape = Shape { device: plan.device, segment: plan.segment, ..Shape::default() };
    let cluster = Cluster::start_with(name, &shape)?;
    let device = size::parse(plan.device).map_err(anyhow::Error::msg)?;
    let bytes = (device / 100 * plan.full).next_multiple_of(LARGE);
    cluster.basalt(&["volume", "create", VOLUME, "--size", &bytes.to_string()])?;
    let mut attached = cluster.attach(VOLUME, "overwrite-host", false)?;
    let mut load = Load::open(attached.port, VOLUME, bytes, plan.rate, plan.seed)?;
    load.fill()?;
    load.prefer(plan.hot);
    load.keep_under_way(plan.depth);
    let writes = device / BLOCK / plan.intervals;
    let mut intervals = Vec::new();
    let mut before = Counted::now(&cluster)?;
    for number in 1..=plan.times * plan.intervals {
        let (elapsed, latencies) = load.overwrite(writes)?;
        let now = Counted::now(&cluster)?;
        let turns = number as f64 / plan.intervals as f64;
        let interval = interval(turns, elapsed, &latencies, now.since(before));
        before = now;
        tell(&interval);
        intervals.push(interval);
    }
    load.verify()?;
    attached.process.stop(PATIENCE)?;
    cluster.finish()?;
    Ok(intervals)
}

/// Draws what writes cost in bytes and in time, interval by interval.
pub fn picture(intervals: &[Interval]) -> String {
    let curve = |name, value: fn(&Interval) -> f64| Curve {
        name,
        points: intervals.iter().map(|interval| (interval.turns, value(interval))).collect(),
    };
    let written = vec![
        curve("all that was written", |i| i.amplification),
        curve("the logs", |i| i.log_amplification),
    ];
    let times = vec![
        curve("99.9th percentile", |i| i.p999_ms),
        curve("99th percentile", |i| i.p99_ms),
        curve("mean", |i| i.mean_ms),
    ];
    let panels = [
        Panel { title: "bytes written for each byte of data and replica", curves: written },
        Panel { title: "milliseconds a write", curves: times },
        Panel { title: "writes a second", curves: vec![curve("writes", |i| i.iops)] },
    ];
    svg(&panels, "times the device")
}

fn interval(turns: f64, elapsed: Duration, latencies: &[Duration], wrote: Counted) -> Interval {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let [p50, p99, max] = distribution(latencies).map(ms);
    let data = (latencies.len() as u64 * BLOCK * 3) as f64;
    Interval {
        turns,
        iops: latencies.len() as f64 / elapsed.as_secs_f64(),
        mean_ms: ms(latencies.iter().sum::<Duration>()) / latencies.len() as f64,
        p50_ms: p50,
        p99_ms: p99,
        p999_ms: ms(permille(latencies, 999)),
        max_ms: max,
        log_amplification: wrote.log as f64 / data,
        amplification: wrote.all as f64 / data,
    }
}

/// Bytes that all nodes together wrote.
#[derive(Clone, Copy)]
struct Counted {
    log: u64,
    all: u64,
}

impl Counted {
    fn now(cluster: &Cluster) -> Result<Counted> {
        let status = cluster.basalt(&["cluster", "status"])?;
        let nodes = status["nodes"].as_array().context("no nodes")?;
        let log = nodes.iter().map(|node| node["log"]["bytes"].as_u64().context("no log"));
        let all = cluster.nodes.iter().map(|node| written_bytes(node.process.id()));
        Ok(Counted { log: log.sum::<Result<u64>>()?, all: all.sum::<Result<u64>>()? })
    }

    fn since(self, before: Counted) -> Counted {
        Counted { log: self.log - before.log, all: self.all - before.all }
    }
}
