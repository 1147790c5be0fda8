//! A volume, two clones of it and a clone of one of these, all of them overwritten and read at once: each block is
//! what was written to it last, or what the snapshot held, at every moment; also while clones are flattened and
//! nodes die. At the end what they hung on goes, and all space comes back.

use crate::background::Background;
use crate::load::{LARGE, Load};
use crate::measure::distribution;
use anyhow::{Context, Result, ensure};
use basalt_interop::cluster::{Attached, Cluster, PATIENCE, Shape};
use basalt_interop::process::wait_until;
use serde_json::Value;
use std::fmt::{Display, Formatter};
use std::time::{Duration, Instant};

const BASE: &str = "base";
/// Writes between two looks at the clock and some reads.
const STRETCH: u64 = 64;
const READS: u64 = 8;
/// Clones of clones: one more than there can be before the last is flattened without being asked for.
const CHAIN: usize = 9;
/// Seconds that the command line may wait for a clone to be flattened.
const WAIT: &str = "600";

/// What is done.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Bytes of the volume, a multiple of 128 KiB.
    pub volume_bytes: u64,
    /// Writes a second to each volume at most; nothing: as many as go.
    pub rate: Option<u64>,
    /// How long all volumes are written to in each step.
    pub rest: Duration,
    /// Seed of the blocks.
    pub seed: u64,
}

/// What it came to.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// From the call until a clone may be attached.
    pub creations: Vec<Duration>,
    /// From the call until a clone was a volume of its own, and the bytes of its snapshot.
    pub flattened: Vec<(Duration, u64)>,
    /// Writes to all volumes while none was flattened, and while some were and a node died.
    pub calm: Vec<Duration>,
    /// See `calm`.
    pub during: Vec<Duration>,
    /// Live bytes on each node at the end, and what the volume that was left holds.
    pub left: (Vec<u64>, u64),
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let ms = |times: &[Duration]| {
            let [p50, p99, max] = distribution(times).map(|time| time.as_secs_f64() * 1e3);
            format!("p50 {p50:.2} ms, p99 {p99:.2} ms, max {max:.0} ms ({})", times.len())
        };
        writeln!(f, "clones created: {}", ms(&self.creations))?;
        for (time, bytes) in &self.flattened {
            let rate = *bytes as f64 / time.as_secs_f64() / f64::from(1 << 20);
            let (seconds, mib) = (time.as_secs_f64(), bytes >> 20);
            writeln!(f, "flattened under writes: {mib} MiB in {seconds:.1} s, {rate:.0} MiB/s")?;
        }
        writeln!(f, "writes before: {}", ms(&self.calm))?;
        writeln!(f, "writes while clones were flattened and a node died: {}", ms(&self.during))?;
        writeln!(f, "live bytes at the end {:?}, of the volume {}", self.left.0, self.left.1)
    }
}

/// A volume that is overwritten and read in the background.
struct User {
    name: &'static str,
    attached: Attached,
    load: Option<Load>,
    background: Option<Background>,
}

struct Course {
    cluster: Cluster,
    plan: Plan,
    users: Vec<User>,
    report: Report,
}

/// Carries it out; `tell` hears how far it is.
///
/// # Errors
/// If a command or a write fails, a block is not what it must be, or space does not come back.
pub fn run(name: &str, plan: &Plan, tell: impl Fn(&str)) -> Result<Report> {
    let device = if plan.volume_bytes <= 64 << 20 { "1GiB" } else { "4GiB" };
    let shape = Shape { device, segment: "4MiB", groups: 8, ..Shape::default() };
    let cluster = Cluster::start_with(name, &shape)?;
    let plan = Plan { volume_bytes: plan.volume_bytes.next_multiple_of(LARGE), ..*plan };
    let mut course = Course { cluster, plan, users: Vec::new(), report: Report::default() };
    course.begin()?;
    tell("the volume is filled");
    course.clone_of(BASE, "monday", "one", None)?;
    course.clone_of(BASE, "monday", "two", None)?;
    course.work(false)?;
    tell("two clones are written to");
    let more = plan.volume_bytes + LARGE;
    course.clone_of("one", "tuesday", "deep", Some(more))?;
    course.work(false)?;
    course.lose_a_node(0)?;
    tell("a clone of a clone is written to, and a node died");
    course.keeps_what_clones_need()?;
    course.flatten_all(&tell)?;
    course.chain()?;
    tell("a clone too deep was flattened by itself");
    course.give_back()?;
    course.end()
}

impl Course {
    fn begin(&mut self) -> Result<()> {
        let Plan { volume_bytes, rate, seed, .. } = self.plan;
        self.cluster.basalt(&["volume", "create", BASE, "--size", &volume_bytes.to_string()])?;
        let attached = self.cluster.attach(BASE, "host-base", false)?;
        let mut load = Load::open(attached.port, BASE, volume_bytes, rate, seed)?;
        load.fill()?;
        self.users.push(User { name: BASE, attached, load: Some(load), background: None });
        self.work(false)
    }

    fn user(&mut self, name: &str) -> Result<&mut User> {
        self.users.iter_mut().find(|user| user.name == name).context("no such user")
    }

    /// Takes a snapshot of a volume unless it is there, clones it, and attaches the clone.
    fn clone_of(
        &mut self,
        of: &'static str,
        snapshot: &str,
        name: &'static str,
        size: Option<u64>,
    ) -> Result<()> {
        let from = format!("{of}@{snapshot}");
        let list = self.cluster.basalt(&["snapshot", "list", of])?;
        let known = list["snapshots"].as_array().is_some_and(|all| !all.is_empty());
        if !known {
            self.cluster.basalt(&["snapshot", "create", &from])?;
            let user = self.user(of)?;
            user.load.as_mut().context("it rests")?.keep();
        }
        let size = size.unwrap_or(self.plan.volume_bytes);
        let began = Instant::now();
        let words = ["volume", "create", name, "--from", &from, "--size", &size.to_string()];
        self.cluster.basalt(&words)?;
        self.report.creations.push(began.elapsed());
        let attached = self.cluster.attach(name, &format!("host-{name}"), false)?;
        let number = self.users.len() as u32;
        let kept = self.user(of)?.load.as_ref().context("it rests")?;
        let mut load = kept.fork(attached.port, name, size, number)?;
        load.verify().with_context(|| format!("{name} right after it was created"))?;
        self.users.push(User { name, attached, load: Some(load), background: None });
        Ok(())
    }

    fn start(&mut self) -> Result<()> {
        for user in &mut self.users {
            let load = user.load.take().context("one step after the other")?;
            user.background = Some(Background::start(load, (STRETCH, READS))?);
        }
        Ok(())
    }

    fn stop(&mut self, flattens: bool) -> Result<()> {
        for user in &mut self.users {
            let background = user.background.take().context("it works")?;
            let (load, writes) = background.stop().with_context(|| user.name.to_owned())?;
            match flattens {
                true => self.report.during.extend(writes),
                false => self.report.calm.extend(writes),
            }
            user.load = Some(load);
        }
        Ok(())
    }

    /// All volumes are written to for a while, then read whole.
    fn work(&mut self, flattens: bool) -> Result<()> {
        self.start()?;
        std::thread::sleep(self.plan.rest);
        self.stop(flattens)?;
        self.verify()
    }

    fn verify(&mut self) -> Result<()> {
        for user in &mut self.users {
            let load = user.load.as_mut().context("it rests")?;
            load.verify().with_context(|| user.name.to_owned())?;
        }
        Ok(())
    }

    /// A node is killed under the load, and comes back.
    fn lose_a_node(&mut self, at: usize) -> Result<()> {
        self.start()?;
        self.cluster.nodes[at].process.kill()?;
        std::thread::sleep(self.plan.rest);
        self.cluster.nodes[at].process.restart()?;
        self.cluster.wait_healthy()?;
        self.stop(true)?;
        self.verify()
    }

    /// What a clone hangs on is not given up, and whoever asks is told for whose sake.
    fn keeps_what_clones_need(&mut self) -> Result<()> {
        for (words, named) in [
            (vec!["snapshot", "delete", "base@monday"], ["'one'", "'two'", "volume flatten"]),
            (vec!["volume", "delete", "one", "--yes"], ["'deep'", "one", "volume flatten"]),
        ] {
            match self.cluster.basalt(&words) {
                Ok(_) => anyhow::bail!("{words:?} was done"),
                Err(error) => {
                    let text = format!("{error:#}");
                    ensure!(named.iter().all(|name| text.contains(name)), "{words:?}: {text}");
                }
            }
        }
        // 'volume delete --yes' has detached nothing before it was refused.
        self.verify()
    }

    /// All clones become volumes of their own under the load, while a node dies.
    fn flatten_all(&mut self, tell: &impl Fn(&str)) -> Result<()> {
        self.start()?;
        self.cluster.basalt(&["volume", "flatten", "one"])?;
        self.cluster.nodes[1].process.kill()?;
        for name in ["one", "two", "deep"] {
            let began = Instant::now();
            let volume = self.cluster.basalt(&["volume", "flatten", name, "--wait", WAIT])?;
            ensure!(volume["source_snapshot"].is_null(), "{name} is a clone still");
            self.report.flattened.push((began.elapsed(), self.plan.volume_bytes));
            tell(&format!("{name} is flattened"));
            if name == "one" {
                self.cluster.nodes[1].process.restart()?;
                self.cluster.wait_healthy()?;
            }
        }
        self.stop(true)?;
        self.verify()
    }

    /// A clone of a clone and so on is flattened by itself when there are too many; all of them are deleted while
    /// the others still hang on them.
    fn chain(&mut self) -> Result<()> {
        let mut from = "base@monday".to_owned();
        let names: Vec<String> = (1..=CHAIN).map(|depth| format!("deep-{depth}")).collect();
        for name in &names {
            self.cluster.basalt(&["volume", "create", name, "--from", &from])?;
            from = format!("{name}@s");
            self.cluster.basalt(&["snapshot", "create", &from])?;
        }
        let last = names.last().context("a chain")?;
        wait_until("a clone that is too deep is flattened", PATIENCE, || {
            Ok(self.cluster.basalt(&["volume", "show", last])?["clone_depth"] == 0)
        })?;
        for name in names.iter().rev() {
            let words = ["volume", "delete", name, "--with-snapshots", "--no-wait"];
            self.cluster.basalt(&words)?;
        }
        Ok(())
    }

    /// What the clones hung on goes, then the clones: what is left is the first volume.
    fn give_back(&mut self) -> Result<()> {
        for snapshot in ["base@monday", "one@tuesday"] {
            self.cluster.basalt(&["snapshot", "delete", snapshot])?;
        }
        self.work(false)?;
        for mut user in self.users.drain(1..) {
            user.attached.process.stop(PATIENCE)?;
            self.cluster.basalt(&["volume", "delete", user.name, "--yes"])?;
        }
        self.verify()?;
        let bytes = self.plan.volume_bytes;
        let mut live = Vec::new();
        wait_until("all space is given back", PATIENCE, || {
            live = live_by_node(&self.cluster)?;
            Ok(live.iter().all(|live| live.abs_diff(bytes) <= bytes / 100))
        })
        .with_context(|| format!("of {bytes} bytes"))?;
        self.report.left = (live, bytes);
        Ok(())
    }

    fn end(mut self) -> Result<Report> {
        for user in &mut self.users {
            user.attached.process.stop(PATIENCE)?;
        }
        self.cluster.finish()?;
        Ok(self.report)
    }
}

/// Bytes that volumes refer to, on each node.
fn live_by_node(cluster: &Cluster) -> Result<Vec<u64>> {
    let text = cluster.basalt(&["space", "explain"])?;
    let nodes = text["nodes"].as_array().context("no nodes")?;
    let live = |node: &Value| node["space"]["live_bytes"].as_u64().context("no live bytes");
    nodes.iter().map(live).collect()
}
