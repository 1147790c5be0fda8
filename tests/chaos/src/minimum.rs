//! A volume that is guaranteed a minimum, beside others that ask for as much as they can get.
//!
//! The same load runs in turn without and with the minimum. Everything runs on one machine, fio too: what keeps
//! the minimum is that the others have less under way.

use crate::nbd::NbdClient;
use anyhow::{Context, Result};
use basalt_interop::cluster::{Attached, Cluster, PATIENCE, Shape};
use basalt_interop::fio::{FioJob, FioResult};
use std::fmt::{self, Display, Formatter};
use std::time::Duration;

const PROMISED: &str = "promised";
const VOLUME_BYTES: u64 = 128 << 20;

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Requests a second that are guaranteed.
    pub minimum: u64,
    /// Requests that the promised volume has under way.
    pub depth: u32,
    /// How many others there are, and requests that each has under way.
    pub others: usize,
    /// Of each.
    pub others_depth: u32,
    /// How often both are measured, and for how long each time.
    pub rounds: usize,
    /// Of one measurement.
    pub time: Duration,
}

/// Rates and latencies of one measurement.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Requests a second of the promised volume, and the 50th and 99th percentile in milliseconds.
    pub promised: (f64, f64, f64),
    /// Requests a second of all others together.
    pub others: f64,
}

/// What came of it: for each round without the minimum, and with it.
#[derive(Clone, Debug)]
pub struct Report {
    plan: Plan,
    /// The promised volume alone.
    pub alone: f64,
    /// Without, with.
    pub rounds: Vec<[Measured; 2]>,
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Plan { minimum, depth, others, others_depth, .. } = self.plan;
        writeln!(
            f,
            "{depth} writes under way beside {others} volumes with {others_depth} each; alone {:.0} a second",
            self.alone
        )?;
        for [without, with] in &self.rounds {
            let line = |m: &Measured| {
                let (rate, p50, p99) = m.promised;
                format!(
                    "{rate:.0} a second (p50 {p50:.2}, p99 {p99:.2} ms), the others {:.0}",
                    m.others
                )
            };
            writeln!(f, "nothing guaranteed: {}", line(without))?;
            writeln!(f, "{minimum} guaranteed: {}", line(with))?;
        }
        Ok(())
    }
}

/// Runs the plan. `tell` hears how it goes.
///
/// # Errors
/// If the cluster can not be set up, or a request fails.
pub fn run(name: &str, plan: Plan, tell: impl Fn(String)) -> Result<Report> {
    let cluster = Cluster::start_with(name, &Shape { device: "8GiB", ..Shape::default() })?;
    let mut names = vec![PROMISED.to_owned()];
    names.extend((1..=plan.others).map(|number| format!("other-{number}")));
    for volume in &names {
        cluster.basalt(&["volume", "create", volume, "--size", &VOLUME_BYTES.to_string()])?;
    }
    // Hosts of their own: the others are no neighbours in one process.
    let mut own = cluster.attach(PROMISED, "promised-host", false)?;
    let mut shared = cluster.attach(&names[1..].join(","), "others-host", false)?;
    let alone = job(&own, PROMISED, plan.depth, plan.time).run()?.write.iops;
    let mut report = Report { plan, alone, rounds: Vec::new() };
    for round in 1..=plan.rounds {
        let mut measured = Vec::new();
        for minimum in [0, plan.minimum] {
            let minimum = minimum.to_string();
            cluster.basalt(&["volume", "update", PROMISED, "--iops-min", &minimum])?;
            measured.push(measure(&plan, &own, &shared, &names)?);
        }
        let [without, with] = measured[..] else { continue };
        tell(format!(
            "round {round}: {:.0} and {:.0} a second",
            without.promised.0, with.promised.0
        ));
        report.rounds.push([without, with]);
    }
    NbdClient::open(own.port, PROMISED, PATIENCE).context("the promised volume after all that")?;
    own.process.stop(PATIENCE)?;
    shared.process.stop(PATIENCE)?;
    cluster.finish()?;
    Ok(report)
}

fn job(attached: &Attached, volume: &str, depth: u32, time: Duration) -> FioJob {
    FioJob {
        depth,
        verify: false,
        io_bytes: Some(1 << 40),
        runtime: Some(time),
        ..FioJob::verified_writes(&attached.uri(volume), VOLUME_BYTES)
    }
}

fn measure(plan: &Plan, own: &Attached, shared: &Attached, names: &[String]) -> Result<Measured> {
    // The others begin before and end after.
    let longer = plan.time + Duration::from_secs(4);
    let others = names[1..].iter().map(|name| job(shared, name, plan.others_depth, longer).start());
    let others = others.collect::<Result<Vec<_>>>()?;
    std::thread::sleep(Duration::from_secs(2));
    let promised = job(own, PROMISED, plan.depth, plan.time).run()?.write;
    let others: Vec<FioResult> =
        others.into_iter().map(|fio| fio.finish()).collect::<Result<_>>()?;
    Ok(Measured {
        promised: (promised.iops, promised.p50_us / 1e3, promised.p99_us / 1e3),
        others: others.iter().map(|fio| fio.write.iops).sum(),
    })
}
