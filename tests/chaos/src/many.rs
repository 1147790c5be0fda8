//! A cluster with very many volumes: how fast they are created, listed and watched, what a change of leaders
//! costs, and
//! what each of them takes of a node's memory.

use crate::measure::{cpu_time, distribution, resident_bytes};
use anyhow::{Context, Result, anyhow, ensure};
use basalt_api::dial;
use basalt_api::error::reason_of;
use basalt_api::random::request_id;
use basalt_api::v1::admin_client::AdminClient;
use basalt_api::v1::resources_client::ResourcesClient;
use basalt_api::v1::watch_response::What;
use basalt_api::v1::{
    CreateVolumeRequest, DeleteVolumeRequest, ListVolumesRequest, UpdateVolumeRequest, Volume,
    WatchRequest, WatchResponse,
};
use basalt_interop::cluster::{Cluster, PATIENCE, Shape};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Display, Formatter};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tonic::{Code, Streaming};

const SIZE: u64 = 1 << 30;
/// Volumes after which the rate is told.
const PART: usize = 1000;
/// Changes whose way to a watcher is timed.
const WATCHED: usize = 200;
/// What the nodes do about the last change is over by then.
const REST: Duration = Duration::from_secs(5);

type Client = AdminClient<dial::Channel>;

/// What is done.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Volumes.
    pub count: usize,
    /// Calls under way at once.
    pub clients: usize,
}

/// How it went.
#[derive(Clone, Debug)]
pub struct Report {
    plan: Plan,
    /// Created in a second, part by part.
    rates: Vec<f64>,
    creations: Vec<Duration>,
    list: Duration,
    filtered: Duration,
    synced: Duration,
    watched: Vec<Duration>,
    failover: Duration,
    restart: Duration,
    /// Bytes of each node before the first volume and with all of them.
    resident: Vec<(u64, u64)>,
    /// Part of a core that all nodes together take at rest.
    idle: f64,
    /// Deleted in a second.
    deleted: f64,
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let count = self.plan.count;
        let ms = |times: &[Duration]| {
            let [p50, p99, max] = distribution(times).map(|time| time.as_secs_f64() * 1e3);
            format!("p50 {p50:.1} ms, p99 {p99:.1} ms, max {max:.0} ms")
        };
        let rates: Vec<String> = self.rates.iter().map(|rate| format!("{rate:.0}")).collect();
        writeln!(f, "{count} volumes, {} calls under way", self.plan.clients)?;
        writeln!(
            f,
            "created a second, by {PART}: {}; each {}",
            rates.join(" "),
            ms(&self.creations)
        )?;
        writeln!(
            f,
            "listed in {:.2} s, with a filter in {:.2} s; a watch told all in {:.2} s, and a change after {}",
            self.list.as_secs_f64(),
            self.filtered.as_secs_f64(),
            self.synced.as_secs_f64(),
            ms(&self.watched)
        )?;
        writeln!(
            f,
            "leader of the metadata group killed: {:.2} s until the next volume was created, {:.2} s until \
             the node was one again",
            self.failover.as_secs_f64(),
            self.restart.as_secs_f64()
        )?;
        for (number, (before, after)) in self.resident.iter().enumerate() {
            let each = after.saturating_sub(*before) / count.max(1) as u64;
            writeln!(f, "node {}: {} MiB, {each} bytes a volume", number + 1, after >> 20)?;
        }
        writeln!(
            f,
            "at rest {:.2} % of a core for all nodes; deleted {:.0} a second",
            self.idle * 100.0,
            self.deleted
        )
    }
}

/// Creates the volumes and measures.
///
/// # Errors
/// If a call fails that should not, or a volume is missing.
pub fn run(name: &str, plan: Plan, tell: impl Fn(String)) -> Result<Report> {
    crate::api::present()?;
    let shape = Shape { device: "512MiB", segment: "4MiB", ..Shape::default() };
    let mut cluster = Cluster::start_with(name, &shape)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let resident = |cluster: &Cluster| -> Result<Vec<u64>> {
        cluster.nodes.iter().map(|node| resident_bytes(node.process.id())).collect()
    };
    let before = resident(&cluster)?;
    let (rates, creations) = create_all(&runtime, &cluster, plan, &tell)?;
    std::thread::sleep(REST);
    let after = resident(&cluster)?;
    let idle = idle(&cluster)?;
    tell(format!("at rest {:.2} % of a core", idle * 100.0));
    let (list, filtered) = runtime.block_on(listed(&cluster, plan))?;
    let (synced, watched) = runtime.block_on(watched(&cluster, plan))?;
    tell(format!("listed in {list:?}, watched in {synced:?}"));
    let (failover, restart) = fail_over(&runtime, &mut cluster)?;
    tell(format!("a change of leaders in {failover:?}"));
    let deleted = runtime.block_on(delete_all(&cluster, plan))?;
    cluster.finish()?;
    let resident = before.into_iter().zip(after).collect();
    Ok(Report {
        plan,
        rates,
        creations,
        list,
        filtered,
        synced,
        watched,
        failover,
        restart,
        resident,
        idle,
        deleted,
    })
}

fn client(cluster: &Cluster, at: usize) -> Result<Client> {
    Ok(dial::admin(&cluster.nodes[at % cluster.nodes.len()].address(), PATIENCE)?)
}

fn id_of(number: usize) -> String {
    format!("v{number:05}")
}

fn creation(number: usize) -> CreateVolumeRequest {
    let team = format!("t{}", number % 100);
    CreateVolumeRequest {
        volume_id: id_of(number),
        size_bytes: SIZE,
        labels: [("team".to_owned(), team)].into(),
        request_id: request_id("many"),
        ..CreateVolumeRequest::default()
    }
}

fn create_all(
    runtime: &Runtime,
    cluster: &Cluster,
    plan: Plan,
    tell: &impl Fn(String),
) -> Result<(Vec<f64>, Vec<Duration>)> {
    let (mut rates, mut times) = (Vec::new(), Vec::new());
    for part in 0..plan.count.div_ceil(PART) {
        let numbers = part * PART..((part + 1) * PART).min(plan.count);
        let (began, count) = (Instant::now(), numbers.len());
        times.extend(runtime.block_on(create(cluster, plan.clients, numbers))?);
        let rate = count as f64 / began.elapsed().as_secs_f64();
        tell(format!("{} volumes, {rate:.0} a second", part * PART + count));
        rates.push(rate);
    }
    Ok((rates, times))
}

async fn create(
    cluster: &Cluster,
    clients: usize,
    numbers: std::ops::Range<usize>,
) -> Result<Vec<Duration>> {
    let mut tasks = Vec::new();
    for at in 0..clients {
        let mut client = client(cluster, at)?;
        let mine: Vec<usize> = numbers.clone().skip(at).step_by(clients).collect();
        tasks.push(tokio::spawn(async move {
            let mut times = Vec::with_capacity(mine.len());
            for number in mine {
                let began = Instant::now();
                client.create_volume(creation(number)).await?;
                times.push(began.elapsed());
            }
            Ok::<_, tonic::Status>(times)
        }));
    }
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await??);
    }
    Ok(times)
}

fn idle(cluster: &Cluster) -> Result<f64> {
    let used = || -> Result<Duration> {
        cluster.nodes.iter().map(|node| cpu_time(node.process.id())).sum()
    };
    let (began, before) = (Instant::now(), used()?);
    std::thread::sleep(REST);
    Ok((used()? - before).as_secs_f64() / began.elapsed().as_secs_f64())
}

async fn list(cluster: &Cluster, filter: &str) -> Result<Vec<Volume>> {
    let (mut client, mut found) = (client(cluster, 0)?, Vec::new());
    let mut request =
        ListVolumesRequest { page_size: 1000, filter: filter.to_owned(), ..Default::default() };
    loop {
        let page = client.list_volumes(request.clone()).await?.into_inner();
        found.extend(page.volumes);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return Ok(found);
        }
    }
}

async fn listed(cluster: &Cluster, plan: Plan) -> Result<(Duration, Duration)> {
    let began = Instant::now();
    let all = list(cluster, "").await?;
    let whole = began.elapsed();
    let names: BTreeSet<&String> = all.iter().map(|volume| &volume.name).collect();
    ensure!(names.len() == plan.count && all.len() == plan.count, "{} volumes listed", all.len());
    let began = Instant::now();
    let some = list(cluster, "labels.team = t7").await?;
    let filtered = began.elapsed();
    let wanted = (0..plan.count).filter(|number| number % 100 == 7).count();
    ensure!(some.len() == wanted, "{} volumes with a label", some.len());
    Ok((whole, filtered))
}

async fn next(stream: &mut Streaming<WatchResponse>) -> Result<What> {
    let answer = stream.message().await?.ok_or_else(|| anyhow!("the watch ended"))?;
    answer.what.context("nothing was told")
}

async fn watched(cluster: &Cluster, plan: Plan) -> Result<(Duration, Vec<Duration>)> {
    let channel = dial::channel(&cluster.nodes[1].address(), PATIENCE)?;
    let request = WatchRequest { kinds: vec!["volumes".to_owned()], ..WatchRequest::default() };
    let began = Instant::now();
    let mut stream = ResourcesClient::new(channel).watch(request).await?.into_inner();
    let mut told = 0;
    while !matches!(next(&mut stream).await?, What::Synced(())) {
        told += 1;
    }
    let synced = began.elapsed();
    ensure!(told == plan.count, "the watch told {told} volumes");
    let (mut client, mut times) = (client(cluster, 2)?, Vec::new());
    for number in 0..WATCHED.min(plan.count) {
        let labels: BTreeMap<_, _> = [("seen".to_owned(), "yes".to_owned())].into();
        let name = format!("volumes/{}", id_of(number));
        let volume = Volume { name: name.clone(), labels, ..Volume::default() };
        let request = UpdateVolumeRequest { volume: Some(volume), ..Default::default() };
        let began = Instant::now();
        client.update_volume(request).await?;
        loop {
            use basalt_api::v1::resource::Resource as Of;
            let What::Changed(changed) = next(&mut stream).await? else { continue };
            if matches!(&changed.resource, Some(Of::Volume(volume)) if volume.name == name) {
                break;
            }
        }
        times.push(began.elapsed());
    }
    Ok((synced, times))
}

/// Kills who leads the metadata group: how long until the next volume is created, and until the node is one again.
fn fail_over(runtime: &Runtime, cluster: &mut Cluster) -> Result<(Duration, Duration)> {
    let status = cluster.basalt(&["cluster", "status", "--groups"])?;
    let groups = status["groups"].as_array().context("groups")?;
    let metadata =
        groups.iter().find(|group| group["id"] == "metadata").context("the metadata group")?;
    let leader = metadata["leader"].as_u64().context("a leader")?;
    let nodes = status["nodes"].as_array().context("nodes")?;
    let found =
        nodes.iter().find(|node| node["id"].as_u64() == Some(leader)).context("the leader")?;
    let at = cluster.place_of(found["name"].as_str().unwrap_or_default())?;
    cluster.nodes[at].process.kill()?;
    let began = Instant::now();
    runtime.block_on(created_somewhere(cluster, at))?;
    let failover = began.elapsed();
    let began = Instant::now();
    cluster.nodes[at].process.restart()?;
    cluster.wait_healthy()?;
    Ok((failover, began.elapsed()))
}

async fn created_somewhere(cluster: &Cluster, but: usize) -> Result<()> {
    let mut client = client(cluster, but + 1)?;
    let request = CreateVolumeRequest { volume_id: "after".to_owned(), ..creation(0) };
    let deadline = Instant::now() + PATIENCE;
    loop {
        match client.create_volume(request.clone()).await {
            Ok(_) => return Ok(()),
            Err(status) if Instant::now() < deadline && status.code() == Code::Unavailable => {}
            Err(status) => return Err(status).context("after the leader's death"),
        }
    }
}

async fn delete_all(cluster: &Cluster, plan: Plan) -> Result<f64> {
    let began = Instant::now();
    let mut tasks = Vec::new();
    for at in 0..plan.clients {
        let mut client = client(cluster, at)?;
        let mine: Vec<usize> = (at..plan.count).step_by(plan.clients).collect();
        tasks.push(tokio::spawn(async move {
            for number in mine {
                let name = format!("volumes/{}", id_of(number));
                let request_id = request_id("many");
                let request = DeleteVolumeRequest { name, request_id, ..Default::default() };
                client.delete_volume(request).await?;
            }
            Ok::<_, tonic::Status>(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    while list(cluster, "").await?.len() > 1 {
        ensure!(
            began.elapsed() < PATIENCE * 10,
            "volumes are left: {:?}",
            reason_left(cluster).await
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(plan.count as f64 / began.elapsed().as_secs_f64())
}

async fn reason_left(cluster: &Cluster) -> Option<String> {
    match list(cluster, "").await {
        Ok(left) => {
            left.first().map(|volume| format!("{} and others: {}", volume.name, left.len()))
        }
        Err(problem) => {
            problem.downcast_ref().and_then(reason_of).map(|reason| format!("{reason:?}"))
        }
    }
}
