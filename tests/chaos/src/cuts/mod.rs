//! Snapshots of several volumes at one point in time, under load: volumes that are attached in different
//! places, written in turn, are cut together again and again, also while a node dies; each cut is read
//! back. What is told to have changed between two of them is compared with what did. At last a volume goes
//! back to one of them.

mod report;

pub use report::Report;

use crate::api::Api;
use crate::counter::{self, BLOCK, Counter};
use crate::nbd::{Kind, NbdClient};
use crate::random::Random;
use anyhow::{Context, Result, bail, ensure};
use basalt_interop::cluster::{Attached, Cluster, PATIENCE};
use basalt_interop::process::wait_until;
use serde_json::Value;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

/// The volumes that are written: attached by two `basalt-attach` and by a node.
const WRITTEN: [&str; 3] = ["alpha", "beta", "gamma"];
/// One that is not attached.
const IDLE: &str = "delta";
/// Blocks of each volume that are counted on, two in each chunk.
const BLOCKS: u64 = 16;
const STRIDE: u64 = 2 << 20;
const VOLUME_BYTES: u64 = BLOCKS * STRIDE;
/// Where blocks are written and given back between cuts, apart from those that are counted on.
const SPARE: u64 = STRIDE / 2;

/// What a cut may show.
struct Taken {
    id: String,
    window: RangeInclusive<u64>,
    /// Spare blocks of the first volume that held data then.
    spare: Vec<u64>,
}

/// Takes `count` cuts under load and as many as `deaths` while a node is killed, and checks all of them.
/// `tell` hears how it goes.
///
/// # Errors
/// If the cluster can not be set up, or anything is not as promised.
pub fn run(
    name: &str,
    count: usize,
    deaths: usize,
    seed: u64,
    tell: impl Fn(String),
) -> Result<Report> {
    let mut cluster = Cluster::start(name)?;
    let mut report = Report::default();
    for volume in WRITTEN.iter().chain([&IDLE]) {
        cluster.basalt(&["volume", "create", volume, "--size", &VOLUME_BYTES.to_string()])?;
    }
    fill_idle(&cluster)?;
    let mut first = cluster.attach(WRITTEN[0], "host-one", false)?;
    let mut second = cluster.attach(WRITTEN[1], "host-two", false)?;
    let node = cluster.nodes[0].name.clone();
    cluster.basalt(&["volume", "attach", WRITTEN[2], "--host", &node])?;
    cluster.wait_served(&cluster.nodes[0].uri(WRITTEN[2]))?;
    let ports = [first.port, second.port, cluster.nodes[0].ports.nbd];
    let mut random = Random::new(seed);
    let taken = take(&mut cluster, ports, (count, deaths), &mut random, &mut report, &tell)?;
    let images = read_back(&cluster, &taken, &tell)?;
    check_changes(&cluster, &taken, &images)?;
    tell("what changed is what was told".to_owned());
    check_refusals(&cluster, &taken)?;
    first.process.stop(PATIENCE)?;
    go_back(&cluster, &taken, &images)?;
    tell("gone back".to_owned());
    give_back(&cluster)?;
    second.process.stop(PATIENCE)?;
    cluster.finish()?;
    Ok(report)
}

fn fill_idle(cluster: &Cluster) -> Result<()> {
    let mut attached = cluster.attach(IDLE, "filler", false)?;
    let mut client = NbdClient::open(attached.port, IDLE, PATIENCE)?;
    for block in 0..BLOCKS {
        client.write(block * STRIDE, &[0xD5; BLOCK])?;
    }
    drop(client);
    attached.process.stop(PATIENCE)
}

fn all_volumes() -> impl Iterator<Item = &'static str> {
    WRITTEN.into_iter().chain([IDLE])
}

/// Takes the cuts while the counter goes from volume to volume, and the first volume's spare blocks change from cut
/// to cut.
fn take(
    cluster: &mut Cluster,
    ports: [u16; 3],
    (count, deaths): (usize, usize),
    random: &mut Random,
    report: &mut Report,
    tell: &impl Fn(String),
) -> Result<Vec<Taken>> {
    let open = |(port, volume): (u16, &str)| NbdClient::open(port, volume, PATIENCE);
    let clients: Result<Vec<NbdClient>> = ports.into_iter().zip(WRITTEN).map(open).collect();
    let offsets = (0..BLOCKS).map(|block| block * STRIDE).collect();
    let counter = Counter::start(clients?, offsets)?;
    let mut spare_client = NbdClient::open(ports[0], WRITTEN[0], PATIENCE)?;
    let calm = Instant::now() + Duration::from_secs(2);
    wait_until("it counts", PATIENCE, || {
        counter.check()?;
        Ok(counter.acknowledged() > 1 && Instant::now() >= calm)
    })?;
    report.writes_calm = counter.latencies();
    let api = Api::new(cluster)?;
    let (mut taken, mut spare) = (Vec::new(), Vec::new());
    for number in 0..count {
        change_spare(&mut spare_client, number as u64, &mut spare)?;
        let (id, before) = (format!("cut{number:03}"), counter.acknowledged());
        let began = Instant::now();
        match api.cut(&all_volumes().collect::<Vec<_>>(), &id)? {
            true => {
                report.creations.push(began.elapsed());
                taken.push(Taken { id, window: before..=counter.begun(), spare: spare.clone() });
            }
            false => report.given_up += 1,
        }
        counter.check()?;
    }
    report.writes_during = counter.latencies();
    tell(format!("{} cuts, {}", taken.len(), report.creation()));
    for number in 0..deaths {
        let (id, before) = (format!("death{number:03}"), counter.acknowledged());
        // The first node serves a volume, and the connection to it would end.
        let node = 1 + random.below(cluster.nodes.len() as u64 - 1) as usize;
        let pause = Duration::from_micros(random.below(8_000));
        let kept = cut_while_a_node_dies(cluster, &api, node, pause, &id)?;
        tell(format!("{id}: node {node} died after {pause:?}, kept: {kept}"));
        match kept {
            true => {
                report.kept_at_deaths += 1;
                taken.push(Taken { id, window: before..=counter.begun(), spare: spare.clone() });
            }
            false => report.given_up_at_deaths += 1,
        }
        cluster.nodes[node].process.restart()?;
        cluster.wait_healthy()?;
        counter.check()?;
    }
    counter.stop()?;
    ensure!(!taken.is_empty(), "no cut was completed");
    Ok(taken)
}

/// Writes some spare blocks and gives back one of those of before.
fn change_spare(client: &mut NbdClient, number: u64, spare: &mut Vec<u64>) -> Result<()> {
    let at = number % BLOCKS * STRIDE + SPARE + number / BLOCKS * BLOCK as u64;
    client.write(at, &[number as u8 | 1; BLOCK])?;
    spare.push(at);
    if number % 3 == 2 {
        let gone = spare.remove(0);
        let answer = client.order(Kind::Trim, gone, BLOCK as u32)?;
        ensure!(answer.error == 0, "a block can not be given back: {answer:?}");
    }
    Ok(())
}

/// Whether all snapshots were kept; none is there otherwise.
fn cut_while_a_node_dies(
    cluster: &Cluster,
    api: &Api,
    node: usize,
    pause: Duration,
    id: &str,
) -> Result<bool> {
    let killed = std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            std::thread::sleep(pause);
            cluster.nodes[node].process.signal(libc::SIGKILL)
        });
        let kept = api.cut(&all_volumes().collect::<Vec<_>>(), id);
        let killed = killer.join().map_err(|_| anyhow::anyhow!("the killer panicked"))?;
        killed.and(kept)
    });
    let kept = killed?;
    for volume in all_volumes() {
        wait_until("nothing is left half done", PATIENCE, || {
            let list = cluster.basalt(&["snapshot", "list", volume])?;
            let all = list["snapshots"].as_array().context("no list")?;
            let name = format!("volumes/{volume}/snapshots/{id}");
            let found = all.iter().find(|snapshot| snapshot["name"] == name.as_str());
            Ok(match found {
                Some(snapshot) => kept && snapshot["state"] == "ready",
                None => !kept,
            })
        })?;
    }
    Ok(kept)
}

fn image(port: u16, export: &str) -> Result<Vec<u8>> {
    let mut client = NbdClient::open(port, export, PATIENCE)?;
    let mut all = Vec::with_capacity(VOLUME_BYTES as usize);
    while (all.len() as u64) < VOLUME_BYTES {
        all.extend(client.read(all.len() as u64, 1 << 20)?);
    }
    Ok(all)
}

/// Every cut is one point in time, no earlier and no later than it may be. Gives the first volume's images.
fn read_back(cluster: &Cluster, taken: &[Taken], tell: &impl Fn(String)) -> Result<Vec<Vec<u8>>> {
    let mut images = Vec::new();
    for cut in taken {
        let names: Vec<String> = all_volumes().map(|v| format!("{v}@{}", cut.id)).collect();
        let mut shown = cluster.attach(&names.join(","), "view", false)?;
        let mut of: Vec<Vec<u8>> = Vec::new();
        for name in &names {
            of.push(image(shown.port, name)?);
        }
        shown.process.stop(PATIENCE)?;
        let idle = of.pop().context("no image")?;
        let kept = (0..BLOCKS).all(|b| idle[(b * STRIDE) as usize..][..BLOCK] == [0xD5; BLOCK]);
        ensure!(kept, "{} of the volume that nobody writes is something else", cut.id);
        let count = counter::prefix(counted(&of)).with_context(|| cut.id.clone())?;
        let window = &cut.window;
        ensure!(window.contains(&count), "{} shows {count}, not in {window:?}", cut.id);
        images.push(of.swap_remove(0));
    }
    tell(format!("{} cuts read back", taken.len()));
    Ok(images)
}

/// The blocks that are counted on, in the order in which they are written.
fn counted(images: &[Vec<u8>]) -> impl Iterator<Item = &[u8]> {
    let of = |block| images.iter().map(move |image| &image[(block * STRIDE) as usize..][..BLOCK]);
    (0..BLOCKS).flat_map(of)
}

/// What is told to have changed: extents of bytes, and whether they hold data.
fn changes(cluster: &Cluster, from: &str, to: &str) -> Result<Vec<(usize, usize, bool)>> {
    let told = cluster.basalt(&["snapshot", "diff", WRITTEN[0], from, to])?;
    ensure!(told["next_offset"] == VOLUME_BYTES, "it does not reach the end: {told}");
    let extents = told["extents"].as_array().context("no extents")?;
    let number = |extent: &Value, key: &str| extent[key].as_u64().map(|n| n as usize);
    let read = |e: &Value| Some((number(e, "offset")?, number(e, "length")?, e["kind"] == "data"));
    extents.iter().map(|extent| read(extent).context("a bad extent")).collect()
}

/// Blocks that are told to have changed are all that differ, and such as were written: nothing else.
fn check_changes(cluster: &Cluster, taken: &[Taken], images: &[Vec<u8>]) -> Result<()> {
    let mut pairs: Vec<(usize, usize)> = (1..taken.len()).map(|to| (to - 1, to)).collect();
    pairs.push((0, taken.len() - 1));
    for (from, to) in pairs {
        let told = changes(cluster, &taken[from].id, &taken[to].id)?;
        let pair = format!("{} to {}", taken[from].id, taken[to].id);
        check_told(&told, &images[to], Some(&images[from])).context(pair)?;
    }
    for (cut, image) in taken.iter().zip(images) {
        let told = changes(cluster, "-", &cut.id)?;
        check_told(&told, image, None).with_context(|| format!("all of {}", cut.id))?;
        ensure!(told.iter().all(|(.., data)| *data), "{} has zeros that are told", cut.id);
        let has = |at: u64| told.iter().any(|(o, l, _)| (*o..o + l).contains(&(at as usize)));
        ensure!(cut.spare.iter().all(|at| has(*at)), "{} lacks a spare block", cut.id);
    }
    Ok(())
}

fn check_told(told: &[(usize, usize, bool)], now: &[u8], then: Option<&Vec<u8>>) -> Result<()> {
    let zeros = vec![0; now.len()];
    let then = then.unwrap_or(&zeros);
    let mut blocks = vec![None; now.len() / BLOCK];
    for (offset, length, data) in told {
        ensure!(offset.is_multiple_of(BLOCK) && length.is_multiple_of(BLOCK), "half a block");
        for told in &mut blocks[offset / BLOCK..(offset + length) / BLOCK] {
            ensure!(told.replace(*data).is_none(), "an extent at {offset} is told twice");
        }
    }
    for (block, told) in blocks.iter().enumerate() {
        let range = block * BLOCK..(block + 1) * BLOCK;
        let (is, was) = (&now[range.clone()], &then[range]);
        ensure!(is == was || told.is_some(), "block {block} differs, which is not told");
        let blank = is.iter().all(|byte| *byte == 0);
        ensure!(*told != Some(false) || blank, "block {block} is told to be zeros, and is not");
        let stride = STRIDE as usize / BLOCK;
        let written = block.is_multiple_of(stride) || block % stride >= stride / 2;
        ensure!(told.is_none() || written, "block {block} is told, which nobody wrote");
    }
    Ok(())
}

fn refused(result: Result<Value>, reason: &str) -> Result<()> {
    match result {
        Ok(answer) => bail!("it was not refused as {reason}: {answer}"),
        Err(error) => {
            let text = format!("{error:#}");
            ensure!(text.contains(reason), "it was not refused as {reason}: {text}");
            Ok(())
        }
    }
}

/// What is not to be done without saying so, is refused.
fn check_refusals(cluster: &Cluster, taken: &[Taken]) -> Result<()> {
    let last = &taken[taken.len() - 1].id;
    let member = format!("{}@{last}", WRITTEN[1]);
    refused(cluster.basalt(&["snapshot", "delete", &member]), "SNAPSHOT_IN_CUT")?;
    refused(cluster.basalt(&["volume", "revert", WRITTEN[1], last]), "VOLUME_ATTACHED")?;
    let twice = [format!("{IDLE}@x"), format!("{IDLE}@y")];
    let words = ["snapshot", "create", &twice[0], &twice[1]];
    refused(cluster.basalt(&words), "INVALID_FIELD")?;
    // One that exists keeps all of them from being made.
    let (fresh, known) = (format!("{IDLE}@new"), format!("{}@{last}", WRITTEN[2]));
    refused(cluster.basalt(&["snapshot", "create", &fresh, &known]), "SNAPSHOT_EXISTS")?;
    refused(cluster.basalt(&["snapshot", "show", &fresh]), "SNAPSHOT_NOT_FOUND")
}

/// The first volume becomes what it was in the middle; what came later is gone, what came before is there.
fn go_back(cluster: &Cluster, taken: &[Taken], images: &[Vec<u8>]) -> Result<()> {
    let volume = WRITTEN[0];
    let (to, id) = (taken.len() / 2, &taken[taken.len() / 2].id);
    if to + 1 < taken.len() {
        refused(cluster.basalt(&["volume", "revert", volume, id]), "LATER_SNAPSHOTS")?;
    }
    cluster.basalt(&["volume", "revert", volume, id, "--drop-later"])?;
    let mut attached: Attached = cluster.attach(volume, "host-back", false)?;
    ensure!(image(attached.port, volume)? == images[to], "{volume} is not what it was in {id}");
    let list = cluster.basalt(&["snapshot", "list", volume])?;
    let left = list["snapshots"]
        .as_array()
        .map_or(0, |all| all.iter().filter(|snapshot| snapshot["state"] == "ready").count());
    ensure!(left == to + 1, "{left} snapshots are left, not {}", to + 1);
    // It goes on from there.
    let mut client = NbdClient::open(attached.port, volume, PATIENCE)?;
    client.write(0, &[0xEE; BLOCK])?;
    ensure!(client.read(0, BLOCK as u32)? == [0xEE; BLOCK], "what was written behind it is lost");
    attached.process.stop(PATIENCE)
}

/// All cuts are deleted together, and nothing is kept for them.
fn give_back(cluster: &Cluster) -> Result<()> {
    for volume in all_volumes() {
        let list = cluster.basalt(&["snapshot", "list", volume])?;
        for snapshot in list["snapshots"].as_array().context("no list")? {
            let name = snapshot["name"].as_str().unwrap_or_default();
            let id = name.rsplit('/').next().unwrap_or_default();
            if snapshot["state"] == "ready" {
                let name = format!("{volume}@{id}");
                cluster.basalt(&["snapshot", "delete", &name, "--together"])?;
            }
        }
    }
    wait_until("all space of snapshots is given back", PATIENCE, || {
        Ok(crate::snapshots::kept(cluster)? == 0)
    })
}
