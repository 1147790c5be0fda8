//! Volumes are created by several clients while the node that leads the metadata group is killed, again and again.
//! Each request has an id, and is made again under it until it has an answer: it takes effect once.

use crate::admin::{Admin, may_repeat};
use crate::measure::distribution;
use anyhow::{Context, Result, anyhow, ensure};
use basalt_api::dial::plain;
use basalt_api::error::reason_of;
use basalt_api::v1::{CreateVolumeRequest, ErrorReason, ListVolumesRequest, Volume};
use basalt_interop::cluster::{Cluster, PATIENCE, Shape};
use basalt_interop::process::wait_until;
use std::collections::BTreeMap;
use std::fmt::{Display, Formatter};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const SIZE: u64 = 1 << 20;
/// How long a request may be without an answer, all attempts together.
const ANSWER: Duration = Duration::from_secs(60);
const PAGE: i32 = 500;

/// What is done.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Volumes.
    pub count: usize,
    /// Clients that create them.
    pub clients: usize,
    /// How often the leader is killed meanwhile.
    pub deaths: usize,
}

/// How it went.
#[derive(Clone, Debug)]
pub struct Report {
    /// Volumes that were created.
    pub count: usize,
    /// Leaders that were killed.
    pub deaths: usize,
    /// Attempts that had no answer, and were made again.
    pub repeated: usize,
    /// Requests whose first answer was lost, although they had taken effect.
    pub lost_answers: usize,
    /// From the first request to the last answer.
    pub time: Duration,
    /// How long each request took, with all its attempts.
    pub requests: Vec<Duration>,
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let [p50, p99, max] = distribution(&self.requests).map(|time| time.as_secs_f64() * 1e3);
        writeln!(
            f,
            "{} volumes created in {:.1} s while the metadata group's leader was killed {} times: exactly \
             {} exist, and each id names its own",
            self.count,
            self.time.as_secs_f64(),
            self.deaths,
            self.count
        )?;
        writeln!(
            f,
            "{} attempts without an answer, {} of the requests asked twice; a request took p50 {p50:.1} ms, p99 \
             {p99:.0} ms, at most {max:.0} ms",
            self.repeated, self.lost_answers
        )
    }
}

/// One request, and the answer that it had.
struct Created {
    number: usize,
    volume: Volume,
    took: Duration,
    repeated: usize,
}

/// Creates the volumes.
///
/// # Errors
/// If a request has no answer in the end, a volume is missing or there twice, or an id has two answers.
pub fn run(name: &str, plan: &Plan, tell: impl Fn(String)) -> Result<Report> {
    let shape = Shape { device: "256MiB", segment: "4MiB", ..Shape::default() };
    let mut cluster = Cluster::start_with(name, &shape)?;
    let addresses: Vec<String> = cluster.nodes.iter().map(|node| node.address()).collect();
    let pace = Arc::new(Pace::new(plan, 1));
    let began = Instant::now();
    let clients: Vec<_> = (0..plan.clients)
        .map(|client| {
            let mut addresses = addresses.clone();
            let at = client % addresses.len();
            addresses.rotate_left(at);
            let (pace, plan) = (pace.clone(), *plan);
            std::thread::spawn(move || create_share(client, &plan, addresses, &pace))
        })
        .collect();
    let killed = kill_leaders(&mut cluster, plan, &pace, &tell);
    // Clients that nobody waits for any more must not wait either.
    pace.allowed.store(usize::MAX, Ordering::Relaxed);
    let mut created = Vec::new();
    for client in clients {
        created.extend(client.join().map_err(|_| anyhow!("a client panicked"))??);
    }
    let time = began.elapsed();
    killed?;
    cluster.wait_healthy()?;
    check(&Admin::at(addresses)?, plan, &created)?;
    let report = Report {
        count: created.len(),
        deaths: plan.deaths,
        repeated: created.iter().map(|one| one.repeated).sum(),
        lost_answers: created.iter().filter(|one| one.repeated > 0).count(),
        time,
        requests: created.iter().map(|one| one.took).collect(),
    };
    cluster.finish()?;
    Ok(report)
}

/// How far the clients are, and may go: each part of the volumes is begun when the death before it is over, so that
/// every leader dies while volumes are created.
struct Pace {
    begun: AtomicUsize,
    done: AtomicUsize,
    allowed: AtomicUsize,
}

impl Pace {
    fn new(plan: &Plan, part: usize) -> Pace {
        let (begun, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Pace { begun, done, allowed: AtomicUsize::new(Pace::end(plan, part)) }
    }

    /// Where a part ends.
    fn end(plan: &Plan, part: usize) -> usize {
        plan.count * part / plan.deaths.max(1)
    }

    /// Waits for a turn.
    fn begin(&self) {
        let mine = self.begun.fetch_add(1, Ordering::Relaxed);
        while mine >= self.allowed.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn id_of(number: usize) -> String {
    format!("made-{number}")
}

fn request_of(number: usize) -> CreateVolumeRequest {
    CreateVolumeRequest {
        volume_id: id_of(number),
        size_bytes: SIZE,
        request_id: format!("create-{number}"),
        ..CreateVolumeRequest::default()
    }
}

/// What one client creates: every so manieth.
fn create_share(
    client: usize,
    plan: &Plan,
    addresses: Vec<String>,
    pace: &Pace,
) -> Result<Vec<Created>> {
    let admin = Admin::at(addresses)?;
    let mut created = Vec::new();
    for number in (client..plan.count).step_by(plan.clients) {
        pace.begin();
        created.push(create(&admin, number)?);
        pace.done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(created)
}

fn create(admin: &Admin, number: usize) -> Result<Created> {
    let (began, request, mut repeated) = (Instant::now(), request_of(number), 0);
    loop {
        let asked = admin.call(|mut client| {
            let request = request.clone();
            async move { client.create_volume(request).await }
        });
        match asked {
            Ok(volume) => {
                let took = began.elapsed();
                return Ok(Created { number, volume, took, repeated });
            }
            Err(status) => {
                ensure!(
                    may_repeat(&status) && began.elapsed() < ANSWER,
                    "{} has no answer: {}",
                    request.request_id,
                    plain(&status)
                );
                repeated += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// Kills whoever leads in the middle of each part of the volumes.
fn kill_leaders(
    cluster: &mut Cluster,
    plan: &Plan,
    pace: &Pace,
    tell: &impl Fn(String),
) -> Result<()> {
    for death in 1..=plan.deaths {
        let name = leader_of(cluster)?;
        let at = cluster.place_of(&name)?;
        let due = (Pace::end(plan, death - 1) + Pace::end(plan, death)) / 2;
        let began = Instant::now();
        while pace.done.load(Ordering::Relaxed) < due {
            ensure!(began.elapsed() < PATIENCE, "nothing is created any more");
            std::thread::sleep(Duration::from_millis(1));
        }
        cluster.nodes[at].process.kill()?;
        let created = pace.done.load(Ordering::Relaxed);
        tell(format!("{name}, which led, is killed after {created} volumes"));
        wait_until("another node leads", PATIENCE, || Ok(leader_of(cluster)? != name))?;
        cluster.nodes[at].process.restart()?;
        cluster.wait_healthy()?;
        pace.allowed.store(Pace::end(plan, death + 1), Ordering::Relaxed);
    }
    Ok(())
}

/// The node that leads the metadata group; waits until there is one.
fn leader_of(cluster: &Cluster) -> Result<String> {
    let addresses = cluster.nodes.iter().map(|node| node.address()).collect();
    let admin = Admin::at(addresses)?;
    let mut found = None;
    wait_until("somebody leads", PATIENCE, || {
        let status = admin.status()?;
        let leader = status.groups.last().context("the metadata group")?.leader;
        found = status.nodes.into_iter().find(|node| node.id == leader && node.reachable);
        Ok(found.is_some())
    })?;
    Ok(found.context("just found")?.name)
}

/// Whether exactly what was asked for exists, and every id has its answer still.
fn check(admin: &Admin, plan: &Plan, created: &[Created]) -> Result<()> {
    let volumes = all_volumes(admin)?;
    ensure!(volumes.len() == plan.count, "{} volumes exist", volumes.len());
    ensure!(created.len() == plan.count, "{} requests were answered", created.len());
    let mut numbers: Vec<u64> = volumes.values().map(|volume| volume.id).collect();
    numbers.sort_unstable();
    numbers.dedup();
    ensure!(numbers.len() == plan.count, "two volumes have one number");
    for one in created {
        let name = format!("volumes/{}", id_of(one.number));
        let found = volumes.get(&name).with_context(|| format!("{name} does not exist"))?;
        ensure!(*found == one.volume, "{name} is not what its answer said: {:?}", one.volume);
        let again = create(admin, one.number)?;
        ensure!(again.volume == one.volume, "the request of {name} has two answers");
    }
    let mut other = request_of(0);
    other.size_bytes *= 2;
    let refused = admin.call(|mut client| {
        let request = other.clone();
        async move { client.create_volume(request).await }
    });
    let reason = refused.err().and_then(|status| reason_of(&status));
    ensure!(reason == Some(ErrorReason::RequestIdReused), "an id was used twice: {reason:?}");
    ensure!(all_volumes(admin)?.len() == plan.count, "asking again made more volumes");
    Ok(())
}

fn all_volumes(admin: &Admin) -> Result<BTreeMap<String, Volume>> {
    let (mut volumes, mut page_token) = (BTreeMap::new(), String::new());
    loop {
        let page = admin.call(|mut client| {
            let page_token = page_token.clone();
            let request = ListVolumesRequest { page_size: PAGE, page_token, ..Default::default() };
            async move { client.list_volumes(request).await }
        });
        let page = page.map_err(|status| anyhow!("the list: {}", plain(&status)))?;
        volumes.extend(page.volumes.into_iter().map(|volume| (volume.name.clone(), volume)));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(volumes);
        }
    }
}
