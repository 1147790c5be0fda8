//! `basalt-bench`: the figures of docs/performance.md, measured on this machine.

use anyhow::{Context, Result};
use basalt_bench::cpu::CpuTimes;
use basalt_bench::load::{Job, Outcome, Pattern};
use basalt_bench::local::{LocalCluster, Media, Placement, Shape, blank_devices};
use basalt_bench::totals::Batching;
use basalt_device::memory::MemoryDisk;
use clap::{Parser, ValueEnum};
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

/// As in the daemon.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures a cluster of three nodes and one client, all in one process over loopback.
///
/// Prints a line per case: requests a second, CPU time per request summed over client, leader and
/// followers (process) of the median run and of the extremes, the same for the whole machine with its
/// kernel threads (machine: quote it only from a machine that does nothing else), and latency. For
/// writes also: bytes written to the logs for each byte of data and replica, and blocks of data in a
/// log batch. `-o json` prints the same for programs, and how well the batches of the other edges are
/// filled.
#[derive(Parser)]
#[command(name = "basalt-bench", version)]
struct Options {
    /// What the devices are.
    #[arg(long, value_enum, default_value_t = MediaKind::File)]
    media: MediaKind,
    /// Folder for the device files, on a file system with O_DIRECT.
    #[arg(long, default_value = "target/bench-data")]
    dir: PathBuf,
    /// Nodes of the cluster: 3, or 1 for a single replica.
    #[arg(long, default_value_t = 3)]
    nodes: u32,
    /// Volume groups.
    #[arg(long, default_value_t = 16)]
    groups: u32,
    /// Seconds of each case.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Runs of each case, each on empty devices. The one with the median CPU time per request is printed, with
    /// the least and the most of all.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    runs: u32,
    /// MiB of the volume.
    #[arg(long, default_value_t = 512)]
    volume_mib: u64,
    /// GiB of each device. All of it is written before, and emptied before each case.
    #[arg(long, default_value_t = 4)]
    device_gib: u64,
    /// Where the load runs; without this, all cases run apart, and some again at the first node.
    #[arg(long, value_enum)]
    client: Option<ClientKind>,
    /// Only cases whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// One request in so many milliseconds is traced, as the daemon's doors do; 0 traces all, a million as good as
    /// none.
    #[arg(long, default_value_t = 100)]
    trace_ms: u64,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum MediaKind {
    /// A file per node: O_DIRECT, every acknowledged write durable.
    File,
    /// Memory of the process.
    Memory,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ClientKind {
    /// In a reactor of its own.
    Apart,
    /// On the first node's reactor, which leads all groups: a volume attached at a node.
    Node1,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// One JSON object a line.
    Json,
}

/// One measured case.
#[derive(Serialize)]
struct Line {
    case: String,
    iops: f64,
    cpu_us_process: f64,
    /// Of all runs of the case.
    cpu_us_least: f64,
    cpu_us_most: f64,
    cpu_us_machine: f64,
    mean_us: f64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    max_us: f64,
    errors: u64,
    #[serde(flatten)]
    batching: Batching,
}

/// A case: its name, what it does, bytes of a request, depth, and where the load runs.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    pattern: Pattern,
    bytes: u32,
    depth: usize,
    placement: Placement,
}

fn cases(client: Option<ClientKind>) -> Vec<Case> {
    use Pattern::{RandomRead, RandomWrite, SequentialRead, SequentialWrite};
    let all = [
        ("write 4k depth 1", RandomWrite, 4096, 1),
        ("write 4k depth 32", RandomWrite, 4096, 32),
        ("write 4k depth 128", RandomWrite, 4096, 128),
        ("write 4k depth 256", RandomWrite, 4096, 256),
        ("read 4k depth 1", RandomRead, 4096, 1),
        ("read 4k depth 32", RandomRead, 4096, 32),
        ("read 4k depth 128", RandomRead, 4096, 128),
        ("write 128k sequential depth 16", SequentialWrite, 128 << 10, 16),
        ("read 128k sequential depth 16", SequentialRead, 128 << 10, 16),
    ];
    let at = |placement| {
        all.into_iter().map(move |(name, pattern, bytes, depth)| Case {
            name,
            pattern,
            bytes,
            depth,
            placement,
        })
    };
    match client {
        Some(ClientKind::Apart) => at(Placement::Apart).collect(),
        Some(ClientKind::Node1) => at(Placement::AtNode1).collect(),
        None => at(Placement::Apart)
            .chain(at(Placement::AtNode1).filter(|case| matches!(case.depth, 32 | 128)))
            .collect(),
    }
}

impl Case {
    fn title(&self) -> String {
        match self.placement {
            Placement::Apart => self.name.to_owned(),
            Placement::AtNode1 => format!("{} at node 1", self.name),
        }
    }

    fn writes(&self) -> bool {
        matches!(self.pattern, Pattern::RandomWrite | Pattern::SequentialWrite)
    }
}

fn line(case: &Case, outcome: &Outcome, cpu: CpuTimes, batching: Batching) -> Line {
    let requests = outcome.requests.max(1) as f64;
    let us = |nanos: u64| nanos as f64 / 1e3;
    let cpu_us_process = cpu.process.as_secs_f64() * 1e6 / requests;
    Line {
        case: case.title(),
        iops: outcome.requests as f64 / outcome.elapsed.as_secs_f64(),
        cpu_us_process,
        cpu_us_least: cpu_us_process,
        cpu_us_most: cpu_us_process,
        cpu_us_machine: cpu.machine.as_secs_f64() * 1e6 / requests,
        mean_us: outcome.latency.mean() / 1e3,
        p50_us: us(outcome.latency.value_at_quantile(0.5)),
        p99_us: us(outcome.latency.value_at_quantile(0.99)),
        p999_us: us(outcome.latency.value_at_quantile(0.999)),
        max_us: us(outcome.latency.max()),
        errors: outcome.errors,
        batching,
    }
}

/// The run with the median CPU time per request, with the extremes of all.
fn median(mut runs: Vec<Line>) -> Line {
    runs.sort_by(|a, b| a.cpu_us_process.total_cmp(&b.cpu_us_process));
    let (least, most) = (runs[0].cpu_us_process, runs[runs.len() - 1].cpu_us_process);
    let line = runs.swap_remove((runs.len() - 1) / 2);
    Line { cpu_us_least: least, cpu_us_most: most, ..line }
}

fn print_head() {
    println!(
        "{:<38} {:>8} {:>7} {:>13} {:>10} {:>8} {:>8} {:>8} {:>8} {:>8} {:>9} {:>6}",
        "case",
        "IOPS",
        "cpu µs",
        "of all runs",
        "machine µs",
        "p50 µs",
        "p99 µs",
        "p99.9 µs",
        "max µs",
        "log/data",
        "blk/batch",
        "errors"
    );
}

fn print(output: Output, case: &Case, line: &Line) -> Result<()> {
    if output == Output::Json {
        println!("{}", serde_json::to_string(line)?);
        return Ok(());
    }
    let of_writes = |text: String| if case.writes() { text } else { "-".to_owned() };
    println!(
        "{:<38} {:>8.0} {:>7.1} {:>13} {:>10.1} {:>8.0} {:>8.0} {:>8.0} {:>8.0} {:>8} {:>9} {:>6}",
        line.case,
        line.iops,
        line.cpu_us_process,
        format!("{:.1} to {:.1}", line.cpu_us_least, line.cpu_us_most),
        line.cpu_us_machine,
        line.p50_us,
        line.p99_us,
        line.p999_us,
        line.max_us,
        of_writes(format!("{:.3}", line.batching.write_amplification)),
        of_writes(format!("{:.1}", line.batching.blocks_per_batch)),
        line.errors
    );
    Ok(())
}

fn main() -> Result<()> {
    basalt_node::huge_pages_where_asked_for();
    let options = Options::parse();
    let device_bytes = options.device_gib << 30;
    let media = match options.media {
        MediaKind::Memory => {
            let disks = (0..options.nodes).map(|_| MemoryDisk::resident(device_bytes));
            Media::Memory(disks.collect())
        }
        MediaKind::File => {
            let folder = options.dir.join(format!("{}", std::process::id()));
            std::fs::create_dir_all(&folder)
                .with_context(|| format!("can not create {}", folder.display()))?;
            Media::Files(folder)
        }
    };
    let shape = Shape {
        nodes: options.nodes,
        groups: options.groups,
        device_bytes,
        volume_bytes: options.volume_mib << 20,
        media,
        placement: Placement::Apart,
        life: 0,
        trace_period: Duration::from_millis(options.trace_ms),
    };
    let result = measure(&options, shape.clone());
    if let Media::Files(folder) = shape.media {
        std::fs::remove_dir_all(&folder)
            .with_context(|| format!("can not remove {}", folder.display()))?;
    }
    result
}

/// Runs all cases, each on a cluster of its own whose devices hold nothing.
fn measure(options: &Options, mut shape: Shape) -> Result<()> {
    if options.output == Output::Table {
        print_head();
    }
    for case in cases(options.client) {
        if options.only.as_ref().is_some_and(|only| !case.title().contains(only.as_str())) {
            continue;
        }
        shape.placement = case.placement;
        let mut runs = Vec::new();
        for _ in 0..options.runs {
            shape.life += 1;
            let cluster = start(&shape)?;
            runs.push(run(options, &shape, &cluster, &case)?);
            cluster.stop()?;
        }
        print(options.output, &case, &median(runs))?;
    }
    Ok(())
}

fn job(shape: &Shape, pattern: Pattern, request_bytes: u32, depth: usize) -> Job {
    let (requests, duration) = (u64::MAX, Duration::ZERO);
    Job { pattern, request_bytes, depth, requests, duration, span_bytes: shape.volume_bytes }
}

/// A cluster on empty devices, with its volume written once.
fn start(shape: &Shape) -> Result<LocalCluster> {
    blank_devices(shape)?;
    let cluster = LocalCluster::start(shape)?;
    let fill = Job {
        requests: shape.volume_bytes >> 20,
        duration: Duration::from_secs(600),
        ..job(shape, Pattern::SequentialWrite, 1 << 20, 8)
    };
    let filled = cluster.run(fill)?;
    anyhow::ensure!(filled.errors == 0, "filling the volume failed");
    Ok(cluster)
}

fn run(options: &Options, shape: &Shape, cluster: &LocalCluster, case: &Case) -> Result<Line> {
    let duration = Duration::from_secs(options.seconds);
    let job = Job { duration, ..job(shape, case.pattern, case.bytes, case.depth) };
    let (cpu, totals) = (CpuTimes::now(), cluster.totals()?);
    let outcome = cluster.run(job)?;
    let (cpu, totals_now) = (CpuTimes::now().since(cpu), cluster.totals()?);
    let data = if case.writes() { outcome.requests * u64::from(case.bytes) } else { 0 };
    let batching = totals_now.since(totals, outcome.requests, data, shape.nodes.min(3));
    Ok(line(case, &outcome, cpu, batching))
}
