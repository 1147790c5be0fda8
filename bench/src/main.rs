//! `basalt-bench`: the figures of docs/performance.md, measured on this machine.

use anyhow::{Context, Result};
use basalt_bench::cpu::CpuTimes;
use basalt_bench::load::{Job, Outcome, Pattern};
use basalt_bench::local::{LocalCluster, Media, Shape};
use clap::{Parser, ValueEnum};
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

/// Measures a cluster of three nodes and one client, all in one process over loopback.
///
/// Prints a line per case: requests a second, CPU time per request summed over client, leader and
/// followers (process), the same for the whole machine with its kernel threads (machine: quote it
/// only from a machine that does nothing else), and latency. `-o json` prints the same for programs.
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
    /// MiB of the volume.
    #[arg(long, default_value_t = 512)]
    volume_mib: u64,
    /// GiB of each device.
    #[arg(long, default_value_t = 12)]
    device_gib: u64,
    /// Only cases whose name contains this.
    #[arg(long)]
    only: Option<String>,
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
    cpu_us_machine: f64,
    mean_us: f64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    max_us: f64,
    errors: u64,
}

fn cases() -> Vec<(&'static str, Pattern, u32, usize)> {
    vec![
        ("write 4k depth 1", Pattern::RandomWrite, 4096, 1),
        ("write 4k depth 32", Pattern::RandomWrite, 4096, 32),
        ("write 4k depth 128", Pattern::RandomWrite, 4096, 128),
        ("write 4k depth 256", Pattern::RandomWrite, 4096, 256),
        ("read 4k depth 1", Pattern::RandomRead, 4096, 1),
        ("read 4k depth 32", Pattern::RandomRead, 4096, 32),
        ("read 4k depth 128", Pattern::RandomRead, 4096, 128),
        ("write 128k sequential depth 16", Pattern::SequentialWrite, 128 << 10, 16),
        ("read 128k sequential depth 16", Pattern::SequentialRead, 128 << 10, 16),
    ]
}

fn line(case: &str, outcome: &Outcome, cpu: CpuTimes) -> Line {
    let requests = outcome.requests.max(1) as f64;
    let us = |nanos: u64| nanos as f64 / 1e3;
    Line {
        case: case.to_owned(),
        iops: outcome.requests as f64 / outcome.elapsed.as_secs_f64(),
        cpu_us_process: cpu.process.as_secs_f64() * 1e6 / requests,
        cpu_us_machine: cpu.machine.as_secs_f64() * 1e6 / requests,
        mean_us: outcome.latency.mean() / 1e3,
        p50_us: us(outcome.latency.value_at_quantile(0.5)),
        p99_us: us(outcome.latency.value_at_quantile(0.99)),
        p999_us: us(outcome.latency.value_at_quantile(0.999)),
        max_us: us(outcome.latency.max()),
        errors: outcome.errors,
    }
}

fn print(output: Output, line: &Line) -> Result<()> {
    match output {
        Output::Json => println!("{}", serde_json::to_string(line)?),
        Output::Table => println!(
            "{:<32} {:>9.0} {:>10.1} {:>10.1} {:>9.0} {:>9.0} {:>9.0} {:>9.0} {:>6}",
            line.case,
            line.iops,
            line.cpu_us_process,
            line.cpu_us_machine,
            line.p50_us,
            line.p99_us,
            line.p999_us,
            line.max_us,
            line.errors
        ),
    }
    Ok(())
}

fn main() -> Result<()> {
    let options = Options::parse();
    let media = match options.media {
        MediaKind::Memory => Media::Memory,
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
        device_bytes: options.device_gib << 30,
        volume_bytes: options.volume_mib << 20,
        media: media.clone(),
    };
    let result = measure(&options, &shape);
    if let Media::Files(folder) = media {
        std::fs::remove_dir_all(&folder)
            .with_context(|| format!("can not remove {}", folder.display()))?;
    }
    result
}

fn measure(options: &Options, shape: &Shape) -> Result<()> {
    let cluster = LocalCluster::start(shape)?;
    let job = |pattern, request_bytes, depth, requests, duration| Job {
        pattern,
        request_bytes,
        depth,
        requests,
        duration,
        span_bytes: shape.volume_bytes,
    };
    // A volume is written once before it is read.
    let fill = shape.volume_bytes >> 20;
    let filled =
        cluster.run(job(Pattern::SequentialWrite, 1 << 20, 8, fill, Duration::from_secs(600)))?;
    anyhow::ensure!(filled.errors == 0, "filling the volume failed");
    if options.output == Output::Table {
        println!(
            "{:<32} {:>9} {:>10} {:>10} {:>9} {:>9} {:>9} {:>9} {:>6}",
            "case",
            "IOPS",
            "cpu µs",
            "machine µs",
            "p50 µs",
            "p99 µs",
            "p99.9 µs",
            "max µs",
            "errors"
        );
    }
    for (case, pattern, bytes, depth) in cases() {
        if options.only.as_ref().is_some_and(|only| !case.contains(only.as_str())) {
            continue;
        }
        let before = CpuTimes::now();
        let duration = Duration::from_secs(options.seconds);
        let outcome = cluster.run(job(pattern, bytes, depth, u64::MAX, duration))?;
        let cpu = CpuTimes::now().since(before);
        print(options.output, &line(case, &outcome, cpu))?;
    }
    cluster.stop()
}
