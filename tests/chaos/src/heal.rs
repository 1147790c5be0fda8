//! A node dies under load and does not come back for a while: its replicas are made anew on the others, without a
//! command. It comes back, holds nothing that is placed elsewhere, and gets its share again. Every block is what was
//! written to it last, at every moment.

use crate::admin::Admin;
use crate::background::Background;
use crate::load::{LARGE, Load};
use anyhow::{Result, anyhow, ensure};
use basalt_api::v1::{Cluster as Status, Health, MemberState};
use basalt_interop::cluster::{Cluster, PATIENCE, Shape};
use basalt_interop::process::wait_until;
use std::fmt::{Display, Formatter};
use std::time::{Duration, Instant};

const VOLUME: &str = "healed";
const STRETCH: u64 = 128;
const READS: u64 = 16;
/// How long the groups may take to move.
const MOVED: Duration = Duration::from_secs(600);

/// What is done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Bytes of the volume, a multiple of 128 KiB.
    pub volume_bytes: u64,
    /// Volume groups.
    pub groups: usize,
    /// Writes a second at most.
    pub rate: Option<u64>,
    /// Options of the nodes: how long they may be silent.
    pub node_args: Vec<String>,
}

/// How it went.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// From the death to the decision to place the groups elsewhere.
    pub given_up: Duration,
    /// From there until every group had all its replicas again.
    pub rebuilt: Duration,
    /// From the node's return until it had its share, and no group moved.
    pub returned: Duration,
    /// Writes meanwhile, and the longest of them.
    pub writes: usize,
    /// See [`Report::writes`].
    pub longest: Duration,
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "given up {:.1} s after its death, whole again {:.1} s later; with its share again {:.1} s after it was \
             back; {} writes meanwhile, the longest took {:.0} ms",
            self.given_up.as_secs_f64(),
            self.rebuilt.as_secs_f64(),
            self.returned.as_secs_f64(),
            self.writes,
            self.longest.as_secs_f64() * 1e3
        )
    }
}

/// Carries it out, with four nodes.
///
/// # Errors
/// If the groups do not come to be whole, or a block is not what was written last.
pub fn run(name: &str, plan: &Plan, tell: impl Fn(String)) -> Result<Report> {
    let shape = Shape {
        nodes: 4,
        device: "2GiB",
        segment: "4MiB",
        groups: plan.groups,
        node_args: plan.node_args.clone(),
        ..Shape::default()
    };
    let mut cluster = Cluster::start_with(name, &shape)?;
    let bytes = plan.volume_bytes.next_multiple_of(LARGE);
    cluster.basalt(&["volume", "create", VOLUME, "--size", &bytes.to_string()])?;
    let mut attached = cluster.attach(VOLUME, "heal-host", false)?;
    let mut load = Load::open(attached.port, VOLUME, bytes, plan.rate, 1)?;
    load.fill()?;
    let background = Background::start(load, (STRETCH, READS))?;
    let course = lose_and_return(&mut cluster, &tell);
    let (mut load, writes) = background.stop()?;
    let (given_up, rebuilt, returned) = course?;
    load.verify()?;
    three_stay_with_two(&mut cluster)?;
    load.verify()?;
    attached.process.stop(PATIENCE)?;
    cluster.discard();
    let longest = writes.iter().max().copied().unwrap_or_default();
    Ok(Report { given_up, rebuilt, returned, writes: writes.len(), longest })
}

fn lose_and_return(
    cluster: &mut Cluster,
    tell: &impl Fn(String),
) -> Result<(Duration, Duration, Duration)> {
    let at = cluster.place_of("node-2")?;
    let others = Admin::without(cluster, "node-2")?;
    let died = Instant::now();
    cluster.nodes[at].process.kill()?;
    wait_until("the node is given up", MOVED, || Ok(node_2(&others.status()?)?.evacuated))?;
    let given_up = died.elapsed();
    tell(format!("given up: {}", others.status()?.health_sentence));
    wait_until("all groups have their replicas", MOVED, || {
        let status = others.status()?;
        let whole = status.groups.iter().all(|g| g.voters_reachable == 3 && !g.moving);
        Ok(whole && node_2(&status)?.groups_placed == 0)
    })?;
    let rebuilt = died.elapsed() - given_up;
    tell(format!("whole: {}", others.status()?.health_sentence));
    let back = Instant::now();
    cluster.nodes[at].process.restart()?;
    wait_until("it has its share again", MOVED, || {
        let status = others.status()?;
        let most = status.nodes.iter().map(|n| n.groups_placed).max().unwrap_or(0);
        let least = status.nodes.iter().map(|n| n.groups_placed).min().unwrap_or(0);
        let rest = status.groups.iter().all(|group| !group.moving);
        let up = node_2(&status)?.member_state() == MemberState::Up;
        Ok(up && rest && most - least <= 1 && status.health() == Health::Ok)
    })?;
    tell(format!("back: {}", others.status()?.health_sentence));
    // What it holds is what is placed on it: strays were retired.
    wait_until("it holds what it is to hold", MOVED, || {
        let placed = node_2(&others.status()?)?.groups_placed as usize;
        Ok(replicas_at(cluster, at)? == placed + 1)
    })?;
    Ok((given_up, rebuilt, back.elapsed()))
}

/// With one node drained and another one dead there is nobody to take what it held, and the cluster says so.
fn three_stay_with_two(cluster: &mut Cluster) -> Result<()> {
    cluster.basalt(&["node", "drain", "node-4", "--wait", "600"])?;
    cluster.basalt(&["node", "remove", "node-4"])?;
    let at = cluster.place_of("node-2")?;
    let others = Admin::without(cluster, "node-2")?;
    cluster.nodes[at].process.kill()?;
    let mut said = String::new();
    wait_until("it is said that nobody is there to take its groups", PATIENCE, || {
        said = others.status()?.health_sentence;
        Ok(said.contains("stay with two replicas"))
    })?;
    ensure!(said.contains("no fourth node"), "{said}");
    cluster.nodes[at].process.restart()?;
    wait_until("it is up again", PATIENCE, || {
        Ok(node_2(&others.status()?)?.member_state() == MemberState::Up)
    })
}

fn node_2(status: &Status) -> Result<basalt_api::v1::Node> {
    let found = status.nodes.iter().find(|node| node.name == "node-2");
    found.cloned().ok_or_else(|| anyhow!("node-2 is no member"))
}

/// How many replicas a node holds, as it says itself.
fn replicas_at(cluster: &Cluster, at: usize) -> Result<usize> {
    let admin = Admin::at(vec![cluster.nodes[at].address()])?;
    admin.replicas()
}
