//! Rounds of a fault each, while fio writes and verifies.

use crate::measure::distribution;
use crate::random::Random;
use anyhow::{Context, Result, ensure};
use basalt_interop::cluster::{Cluster, Shape};
use basalt_interop::fio::FioJob;
use basalt_interop::process::wait_until;
use std::time::Duration;

const VOLUME: &str = "rounds";
/// Bytes of the volume that fio goes over; more than it writes in a round.
const SPAN_BYTES: u64 = 256 << 20;
/// Slow, so that a hundred rounds fit the devices: the log is not cleaned.
const RATE_BYTES: u64 = 4 << 20;
/// Time that fio writes on after the fault has ended.
const AFTER: Duration = Duration::from_secs(4);
/// How long a killed node stays away.
const AWAY: Duration = Duration::from_secs(1);
/// A volume that stands still for so long is not served.
pub const STALL_MAX: Duration = Duration::from_secs(60);

/// How often a cluster is waited for, a minute each time.
const HEALTH_ATTEMPTS: u32 = 4;

/// What happens to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: what the machine itself does to the longest request.
    None,
    /// SIGKILL; started again a moment later.
    Kill,
    /// SIGSTOP, then SIGCONT after this time.
    Stop(Duration),
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fault::None => write!(f, "no fault"),
            Fault::Kill => write!(f, "SIGKILL"),
            Fault::Stop(time) => write!(f, "SIGSTOP for {:.1} s", time.as_secs_f64()),
        }
    }
}

/// One round.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// The node.
    pub node: usize,
    /// What happened to it.
    pub fault: Fault,
    /// The longest that a request of fio took.
    pub stall: Duration,
    /// Requests of fio.
    pub requests: u64,
}

/// How the rounds went.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The rounds, in order.
    pub rounds: Vec<Round>,
}

impl Report {
    /// The stalls of the rounds with a SIGKILL, or of those with a SIGSTOP.
    pub fn stalls(&self, killed: bool) -> Vec<Duration> {
        let of = |round: &&Round| match round.fault {
            Fault::None => false,
            Fault::Kill => killed,
            Fault::Stop(_) => !killed,
        };
        self.rounds.iter().filter(of).map(|round| round.stall).collect()
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The figures of TARGETS.md, in seconds.
        for (name, killed, target) in
            [("SIGKILL", true, [0.5, 1.5, 3.0]), ("SIGSTOP", false, [1.0, 3.0, 5.0])]
        {
            let stalls = self.stalls(killed);
            if stalls.is_empty() {
                continue;
            }
            write!(f, "{} rounds of {name}, stall", stalls.len())?;
            let names = ["p50", "p99", "max"];
            for ((name, have), want) in names.iter().zip(distribution(&stalls)).zip(target) {
                let have = have.as_secs_f64();
                let verdict = if have <= want { "within" } else { "ABOVE" };
                write!(f, "  {name} {:.0} ms ({verdict} {:.0})", have * 1e3, want * 1e3)?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// Runs rounds on a cluster of its own, after one without a fault. Each is printed.
///
/// # Errors
/// If an error or a mismatch reached fio, the volume stood still for [`STALL_MAX`], or the cluster
/// did not become healthy again.
pub fn run(name: &str, rounds: u32, seed: u64) -> Result<Report> {
    // A round writes some 40 MiB, and the log is not cleaned.
    let device = if rounds <= 50 { "4GiB" } else { "8GiB" };
    let shape = Shape { device, ..Shape::default() };
    let mut cluster = Cluster::start_with(name, &shape)?;
    cluster.basalt(&["volume", "create", VOLUME, "--size", "1GiB"])?;
    let mut attached = cluster.attach(VOLUME, "rounds-host", false)?;
    let uri = attached.uri(VOLUME);
    let mut random = Random::new(seed);
    let mut report = Report::default();
    for number in 0..=rounds {
        let node = random.below(cluster.nodes.len() as u64) as usize;
        let fault = match number {
            0 => Fault::None,
            _ if number % 2 == 1 => Fault::Kill,
            _ => Fault::Stop(Duration::from_millis(500 + random.below(9_500))),
        };
        let round = one(&mut cluster, &uri, node, fault, random.bits() >> 33)
            .with_context(|| format!("round {number}, {fault} of node-{}", node + 1))?;
        let stall = round.stall.as_millis();
        println!(
            "round {number}: node-{} {fault}: longest stall {stall} ms, \
                  {} requests, verified",
            node + 1,
            round.requests
        );
        ensure!(round.stall < STALL_MAX, "the volume stood still for {stall} ms");
        ensure!(attached.process.alive(), "basalt-attach ended{}", attached.process.log_tail());
        report.rounds.push(round);
    }
    attached.process.stop(STALL_MAX)?;
    cluster.finish()?;
    Ok(report)
}

fn one(cluster: &mut Cluster, uri: &str, node: usize, fault: Fault, seed: u64) -> Result<Round> {
    let fault_time = match fault {
        Fault::None => Duration::ZERO,
        Fault::Kill => AWAY,
        Fault::Stop(time) => time,
    };
    let job = FioJob {
        depth: 16,
        rate_bytes: Some(RATE_BYTES),
        runtime: Some(fault_time + AFTER),
        seed,
        patience: STALL_MAX * 5,
        ..FioJob::verified_writes(uri, SPAN_BYTES)
    };
    let mut fio = job.start()?;
    wait_until("fio writes", STALL_MAX, || Ok(fio.written_bytes() > 0 || fio.ended()?))?;
    match fault {
        Fault::None => {}
        Fault::Kill => {
            cluster.nodes[node].process.kill()?;
            std::thread::sleep(fault_time);
            cluster.nodes[node].process.restart()?;
        }
        Fault::Stop(time) => {
            cluster.nodes[node].freeze()?;
            std::thread::sleep(time);
            cluster.nodes[node].thaw()?;
        }
    }
    let result = fio.finish()?;
    // A node reads its whole log when it starts, which a busy disk draws out.
    let healthy = (0..HEALTH_ATTEMPTS).find_map(|_| cluster.wait_healthy().ok());
    healthy.map_or_else(|| cluster.wait_healthy(), Ok)?;
    let requests = result.read.requests + result.write.requests;
    ensure!(requests > 0, "fio did nothing");
    Ok(Round { node, fault, stall: Duration::from_secs_f64(result.max_ms() / 1e3), requests })
}
