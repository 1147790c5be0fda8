//! Many snapshots of a volume that is written all the time: how long each takes, that each is one point
//! in time between what was acknowledged before and what was begun after, what they cost reads and writes, and
//! that their space comes back whatever the order in which they go.

mod report;

pub use report::Report;
pub(crate) use report::line;

use crate::api::Api;
use crate::counter::{self, BLOCK, Counter};
use crate::nbd::NbdClient;
use crate::random::Random;
use anyhow::{Context, Result, ensure};
use basalt_interop::cluster::{Attached, Cluster, PATIENCE, Shape};
use basalt_interop::fio::{Direction, FioJob};
use basalt_interop::process::wait_until;
use report::Pair;
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

const VOLUME: &str = "kept";
/// One like it, without snapshots.
const TWIN: &str = "twin";
const VOLUME_BYTES: u64 = 256 << 20;
/// Bytes that the load goes over; the counter's blocks lie behind them.
const LOAD_BYTES: u64 = 64 << 20;
/// Blocks that are counted on. They lie far apart, so that the counts of a round go to many groups.
const BLOCKS: u64 = 64;
const STRIDE: u64 = (VOLUME_BYTES - LOAD_BYTES) / BLOCKS;
/// Bytes a second that the load writes at most.
const LOAD_RATE: u64 = 2 << 20;
/// Snapshots that one process shows at a time.
const SHOWN: usize = 50;
/// What one measurement of reads or writes takes.
const PROBE: Duration = Duration::from_secs(2);

/// Takes `count` snapshots under load, at most `rate` a second if that is given, reads all of them back,
/// measures `pairs` times, and drops them in an order drawn from `seed`. `tell` hears how it goes.
///
/// # Errors
/// If the cluster can not be set up, a snapshot is no point in time, or space does not come back.
pub fn run(
    name: &str,
    count: usize,
    pairs: usize,
    rate: Option<u64>,
    seed: u64,
    tell: impl Fn(String),
) -> Result<Report> {
    let cluster = Cluster::start_with(name, &Shape { device: "8GiB", ..Shape::default() })?;
    let mut report = Report::default();
    for volume in [VOLUME, TWIN] {
        cluster.basalt(&["volume", "create", volume, "--size", &VOLUME_BYTES.to_string()])?;
    }
    let mut attached = cluster.attach(&format!("{VOLUME},{TWIN}"), "snapshots-host", false)?;
    for volume in [VOLUME, TWIN] {
        fill(&attached.uri(volume))?;
    }
    let windows = take(&cluster, &attached, (count, rate), &mut report, &tell)?;
    for number in 1..=pairs {
        let pair = measure(&attached, number)?;
        tell(format!("pair {number}: {pair}"));
        report.pairs.push(pair);
    }
    read_back(&cluster, &windows, &tell)?;
    give_back(&cluster, count, seed, &mut report, &tell)?;
    attached.process.stop(PATIENCE)?;
    cluster.finish()?;
    Ok(report)
}

/// Where the counter writes.
fn offsets() -> impl Iterator<Item = u64> {
    (0..BLOCKS).map(|block| LOAD_BYTES + block * STRIDE)
}

/// The name of the snapshot of a number.
fn id_of(number: usize) -> String {
    format!("s{number:04}")
}

fn fill(uri: &str) -> Result<()> {
    let job = FioJob {
        rw: "write".to_owned(),
        block_bytes: 128 << 10,
        depth: 8,
        verify: false,
        ..FioJob::verified_writes(uri, LOAD_BYTES)
    };
    job.run().map(drop)
}

/// Takes the snapshots, and tells for each which counts it may show.
fn take(
    cluster: &Cluster,
    attached: &Attached,
    (count, rate): (usize, Option<u64>),
    report: &mut Report,
    tell: &impl Fn(String),
) -> Result<Vec<RangeInclusive<u64>>> {
    let api = Api::new(cluster)?;
    let load = FioJob {
        depth: 8,
        verify: false,
        rate_bytes: Some(LOAD_RATE),
        io_bytes: Some(1 << 40),
        runtime: Some(Duration::from_secs(3600)),
        patience: Duration::from_secs(3600),
        ..FioJob::verified_writes(&attached.uri(VOLUME), LOAD_BYTES)
    };
    let mut load = load.start()?;
    let counted = NbdClient::open(attached.port, VOLUME, PATIENCE)?;
    let counter = Counter::start(vec![counted], offsets().collect())?;
    let calm = Instant::now() + Duration::from_secs(5);
    wait_until("it counts", PATIENCE, || {
        counter.check()?;
        Ok(counter.acknowledged() > 0 && load.written_bytes() > 0 && Instant::now() >= calm)
    })?;
    report.writes_calm = counter.latencies();
    let mut windows = Vec::with_capacity(count);
    for number in 0..count {
        let (before, began) = (counter.acknowledged(), Instant::now());
        api.create(VOLUME, &id_of(number))?;
        report.creations.push(began.elapsed());
        if let Some(rate) = rate {
            let due = began + Duration::from_secs(1) / u32::try_from(rate.max(1))?;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        windows.push(before..=counter.begun());
        counter.check()?;
        if (number + 1) % 100 == 0 {
            tell(format!("{} snapshots, {}", number + 1, report.creation()));
        }
    }
    report.writes_during = counter.latencies();
    counter.stop()?;
    ensure!(!load.ended()?, "the load ended early");
    drop(load);
    let list = cluster.basalt(&["snapshot", "list", VOLUME])?;
    let listed = list["snapshots"].as_array().map_or(0, Vec::len);
    ensure!(listed == count, "{listed} of {count} snapshots are listed");
    Ok(windows)
}

/// The same load on the volume with snapshots and on the one without, each first every other time.
fn measure(attached: &Attached, number: usize) -> Result<Pair> {
    let job = |volume: &str, rw: &str| -> Result<Direction> {
        let job = FioJob {
            rw: rw.to_owned(),
            verify: false,
            runtime: Some(PROBE),
            io_bytes: Some(1 << 40),
            seed: number as u64,
            ..FioJob::verified_writes(&attached.uri(volume), LOAD_BYTES)
        };
        let result = job.run()?;
        Ok(if rw == "randread" { result.read } else { result.write })
    };
    let mut of = BTreeMap::new();
    let order = if number.is_multiple_of(2) { [VOLUME, TWIN] } else { [TWIN, VOLUME] };
    for rw in ["randread", "randwrite"] {
        for volume in order {
            of.insert((volume, rw), job(volume, rw)?.iops);
        }
    }
    let both = |rw: &'static str| (of[&(VOLUME, rw)], of[&(TWIN, rw)]);
    Ok(Pair { reads: both("randread"), writes: both("randwrite") })
}

/// Every snapshot is one point in time, no earlier and no later than it may be.
fn read_back(
    cluster: &Cluster,
    windows: &[RangeInclusive<u64>],
    tell: &impl Fn(String),
) -> Result<()> {
    for first in (0..windows.len()).step_by(SHOWN) {
        let numbers = first..windows.len().min(first + SHOWN);
        let names: Vec<String> =
            numbers.clone().map(|n| format!("{VOLUME}@{}", id_of(n))).collect();
        let mut shown = cluster.attach(&names.join(","), "view", false)?;
        for (number, name) in numbers.zip(&names) {
            let mut client = NbdClient::open(shown.port, name, PATIENCE)?;
            let read = |offset| client.read(offset, BLOCK as u32);
            let blocks: Vec<Vec<u8>> = offsets().map(read).collect::<Result<_>>()?;
            let count = counter::prefix(blocks.iter().map(Vec::as_slice));
            let count = count.with_context(|| name.clone())?;
            let window = &windows[number];
            ensure!(window.contains(&count), "{name} shows {count}, which is not in {window:?}");
        }
        shown.process.stop(PATIENCE)?;
        tell(format!("{} of {} read back", windows.len().min(first + SHOWN), windows.len()));
    }
    Ok(())
}

/// Drops them in any order: at the end every device holds what the volumes hold themselves.
fn give_back(
    cluster: &Cluster,
    count: usize,
    seed: u64,
    report: &mut Report,
    tell: &impl Fn(String),
) -> Result<()> {
    // A node ends connections that nobody uses.
    let api = Api::new(cluster)?;
    report.kept_bytes = kept(cluster)?;
    let mut left: Vec<usize> = (0..count).collect();
    let mut random = Random::new(seed);
    while !left.is_empty() {
        let number = left.swap_remove(random.below(left.len() as u64) as usize);
        let began = Instant::now();
        api.delete(VOLUME, &id_of(number))?;
        report.deletions.push(began.elapsed());
        if left.len().is_multiple_of(100) {
            tell(format!("{} snapshots left, {} bytes kept for them", left.len(), kept(cluster)?));
        }
    }
    // The last one is dropped where its groups' leaders are; the other replicas hear of it a little later.
    wait_until("all space of snapshots is given back", PATIENCE, || Ok(kept(cluster)? == 0))
}

/// Bytes that are kept for snapshots alone, on the device that has most of them.
pub(crate) fn kept(cluster: &Cluster) -> Result<u64> {
    let text = cluster.basalt(&["space", "explain"])?;
    let nodes = text["nodes"].as_array().context("no nodes")?;
    let of_node = |node: &Value| -> Result<u64> {
        let volumes = node["space"]["volumes"].as_array().context("a device is not open")?;
        Ok(volumes.iter().filter_map(|volume| volume["snapshot_bytes"].as_u64()).sum())
    };
    let all: Result<Vec<u64>> = nodes.iter().map(of_node).collect();
    Ok(all?.into_iter().max().unwrap_or_default())
}
