//! Rounds of a fault each, while fio writes and verifies.

mod fault;
mod gaps;
mod probe;
mod report;

pub use fault::Class;
pub use report::{Reopening, Report, Round};

use crate::random::Random;
use anyhow::{Context, Result, ensure};
use basalt_interop::cluster::{Cluster, Shape};
use basalt_interop::fio::FioJob;
use basalt_interop::process::wait_until;
use probe::Probe;
use serde_json::Value;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const VOLUME: &str = "rounds";
/// Attached to a node so that this node leads every group.
const ANCHOR: &str = "anchor";
/// Bytes of the volume that fio goes over; more than it writes in a round.
const SPAN_BYTES: u64 = 256 << 20;
/// A request each millisecond: slow enough that a hundred rounds fit the devices, and that what is
/// measured is not the load itself.
const RATE_BYTES: u64 = 4 << 20;
/// Time that fio writes on after the fault has ended: the node comes back, catches up and gets its
/// leaderships again.
const AFTER: Duration = Duration::from_secs(4);
/// A volume that stands still for so long is not served.
const STALL_MAX: Duration = Duration::from_secs(60);
/// A process that was asked to stop must end within this, whatever the disk does.
const STOP_MAX: Duration = Duration::from_secs(20);
/// A node must be back within this, and leaders where they belong.
const BACK_MAX: Duration = Duration::from_secs(60);

/// Runs rounds on a cluster of its own, after one without a fault, and then kills all nodes at once.
/// `tell` hears of each round. A round that went wrong is the last one.
///
/// # Errors
/// If the cluster can not be set up, or does not come back after a round that went well.
pub fn run(name: &str, rounds: u32, seed: u64, tell: impl Fn(&Round)) -> Result<Report> {
    // A round writes some 40 MiB: before long the log goes round and the cleaner works.
    let shape = Shape { device: "1GiB", segment: "4MiB", ..Shape::default() };
    let cluster = Cluster::start_with(name, &shape)?;
    cluster.basalt(&["volume", "create", VOLUME, "--size", "1GiB"])?;
    let mut attached = cluster.attach(VOLUME, "rounds-host", false)?;
    let probe = Probe::start(cluster.folder())?;
    let uri = attached.uri(VOLUME);
    let mut course =
        Course { cluster, uri, probe, random: Random::new(seed), seed, anchored: false };
    let mut report = Report::default();
    let calm = std::iter::once(Class::Calm);
    for (number, class) in (0..).zip(calm.chain(fault::plan(rounds))) {
        let round = course.round(number, class)?;
        tell(&round);
        let failed = round.error.is_some();
        report.rounds.push(round);
        if failed {
            // The logs of the cluster are kept: it is dropped as it is.
            return Ok(report);
        }
        ensure!(attached.process.alive(), "basalt-attach ended{}", attached.process.log_tail());
    }
    let mut cluster = course.cluster;
    attached.process.stop(STOP_MAX)?;
    report.reopenings.push(reopen_all(&mut cluster)?);
    cluster.finish()?;
    Ok(report)
}

/// All nodes are killed at once; the time until the cluster is healthy again.
fn reopen_all(cluster: &mut Cluster) -> Result<Reopening> {
    let status = Status::ask(cluster)?;
    let log_bytes = (0..cluster.nodes.len()).map(|node| status.log_bytes(node)).max().unwrap_or(0);
    cluster.kill()?;
    let began = Instant::now();
    cluster.restart()?;
    Ok(Reopening { time_ms: millis(began.elapsed()), log_bytes })
}

struct Course {
    cluster: Cluster,
    uri: String,
    probe: Probe,
    random: Random,
    seed: u64,
    /// Whether one node leads everything.
    anchored: bool,
}

/// What was seen of the node.
#[derive(Default)]
struct Seen {
    moment_ms: i64,
    reopen: Option<Duration>,
    stop: Option<Duration>,
}

impl Course {
    fn round(&mut self, number: u32, class: Class) -> Result<Round> {
        if class == Class::Follower && !self.anchored {
            self.anchor()?;
        }
        let status = Status::ask(&self.cluster)?;
        let node = self.choose(class, &status)?;
        let away = class.away(&mut self.random);
        let mut round = Round {
            number,
            seed: self.seed,
            class,
            node: self.cluster.nodes[node].name.clone(),
            led: status.led(node),
            away_ms: millis(away),
            stall_ms: 0,
            stall_began_ms: 0,
            slowest_ms: 0,
            before_ms: 0,
            reopen_ms: None,
            stop_ms: None,
            log_bytes: status.log_bytes(node),
            machine_write_ms: 0,
            machine_wake_ms: 0,
            requests: 0,
            error: None,
            mismatch: false,
        };
        let what = |c: &Class| format!("round {number}, {}", c.title());
        match self.carry_out(&mut round, node, away) {
            Ok(()) => {
                self.cluster.wait_healthy().with_context(|| what(&class))?;
                self.wait_placed().with_context(|| what(&class))?;
            }
            Err(error) => {
                let text = format!("{error:#}");
                round.mismatch = text.contains("verify");
                round.error = Some(text);
            }
        }
        Ok(round)
    }

    fn carry_out(&mut self, round: &mut Round, node: usize, away: Duration) -> Result<()> {
        let list = self.cluster.folder().join(format!("completions-{}", round.number));
        let job = FioJob {
            depth: 16,
            rate_bytes: Some(RATE_BYTES),
            runtime: Some(away + AFTER),
            seed: self.random.bits() >> 33,
            patience: STALL_MAX + away + AFTER,
            completions: Some(list.clone()),
            ..FioJob::verified_writes(&self.uri, SPAN_BYTES)
        };
        let mut fio = job.start()?;
        wait_until("fio writes", STALL_MAX, || Ok(fio.written_bytes() > 0 || fio.ended()?))?;
        self.probe.take();
        let seen = self.strike(round.class, node, away)?;
        let result = fio.finish()?;
        let (write, wake) = self.probe.take();
        let gaps = gaps::read(&with_suffix(&list, "_clat.log"), seen.moment_ms)?;
        for kind in ["_clat.log", "_slat.log", "_lat.log"] {
            // A file that stays takes room and nothing else.
            let _ = std::fs::remove_file(with_suffix(&list, kind));
        }
        round.stall_ms = millis(gaps.stall);
        round.stall_began_ms = gaps.began_ms;
        round.slowest_ms = millis(gaps.slowest);
        round.before_ms = millis(gaps.before);
        round.reopen_ms = seen.reopen.map(millis);
        round.stop_ms = seen.stop.map(millis);
        (round.machine_write_ms, round.machine_wake_ms) = (millis(write), millis(wake));
        round.requests = result.read.requests + result.write.requests;
        ensure!(gaps.stall < STALL_MAX, "the volume stood still for {:?}", gaps.stall);
        ensure!(round.requests > 0, "fio did nothing");
        Ok(())
    }

    /// Does to the node what the class says, and waits until it is back.
    fn strike(&mut self, class: Class, node: usize, away: Duration) -> Result<Seen> {
        let mut seen = Seen { moment_ms: now_ms(), ..Seen::default() };
        let process = &mut self.cluster.nodes[node].process;
        match class {
            Class::Calm => return Ok(seen),
            Class::Freeze => {
                self.cluster.nodes[node].freeze()?;
                std::thread::sleep(away);
                self.cluster.nodes[node].thaw()?;
                return Ok(seen);
            }
            Class::Kill | Class::Follower => process.kill()?,
            Class::Planned => {
                let began = Instant::now();
                process.stop(STOP_MAX)?;
                seen.stop = Some(began.elapsed());
            }
        }
        std::thread::sleep(away);
        let began = Instant::now();
        self.cluster.nodes[node].process.restart()?;
        wait_until("the node has opened its device", BACK_MAX, || {
            // Nobody answers for a moment after a start.
            Ok(Status::ask(&self.cluster).is_ok_and(|status| status.runs(node)))
        })?;
        seen.reopen = Some(began.elapsed());
        Ok(seen)
    }

    /// A node that leads something, or one that leads nothing.
    fn choose(&mut self, class: Class, status: &Status) -> Result<usize> {
        let follows = class == Class::Follower;
        let fit: Vec<usize> = (0..self.cluster.nodes.len())
            .filter(|node| class == Class::Calm || (status.led(*node) == 0) == follows)
            .collect();
        ensure!(!fit.is_empty(), "no node {}", if follows { "follows only" } else { "leads" });
        Ok(fit[self.random.below(fit.len() as u64) as usize])
    }

    /// Gathers all leaderships on one node: those of a pool go to the nodes that serve its volumes.
    fn anchor(&mut self) -> Result<()> {
        let host = self.cluster.nodes[0].name.clone();
        self.cluster.basalt(&["volume", "create", ANCHOR, "--size", "16MiB"])?;
        self.cluster.basalt(&["volume", "attach", ANCHOR, "--host", &host])?;
        self.anchored = true;
        self.wait_placed()
    }

    /// Waits until every group is led from where it should be: by the node that has the anchor, or
    /// by each node some.
    fn wait_placed(&self) -> Result<()> {
        let cluster = &self.cluster;
        wait_until("leaders are where they belong", BACK_MAX, || {
            let status = Status::ask(cluster)?;
            let led = |node| status.led(node);
            Ok(match self.anchored {
                true => led(0) == status.groups(),
                false => (0..cluster.nodes.len()).all(|node| led(node) > 0),
            })
        })
    }
}

/// What the cluster says about itself.
struct Status(Value);

impl Status {
    fn ask(cluster: &Cluster) -> Result<Status> {
        cluster.basalt(&["cluster", "status"]).map(Status)
    }

    fn node(&self, node: usize) -> &Value {
        &self.0["nodes"][node]
    }

    fn runs(&self, node: usize) -> bool {
        self.node(node)["state"] == "running"
    }

    fn log_bytes(&self, node: usize) -> u64 {
        let bytes = |name: &str| self.node(node)[name].as_u64().unwrap_or(0);
        bytes("device_bytes").saturating_sub(bytes("free_bytes"))
    }

    fn volume_groups(&self) -> impl Iterator<Item = &Value> {
        let all = self.0["groups"].as_array().into_iter().flatten();
        all.filter(|group| group["id"] != "metadata")
    }

    fn groups(&self) -> usize {
        self.volume_groups().count()
    }

    /// Volume groups that a node leads.
    fn led(&self, node: usize) -> usize {
        let id = &self.node(node)["id"];
        self.volume_groups().filter(|group| group["leader"] == *id).count()
    }
}

fn with_suffix(path: &std::path::Path, suffix: &str) -> std::path::PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
