//! The images of cuts, and what must hold on them.

use super::ledger::{Value, value_of};
use super::record::{Instance, Run};
use super::revive::World;
use super::{CHUNKS, DEVICE_BYTES, GROUPS, HOT_BLOCKS, NODES, VOLUME};
use crate::random::Random;
use basalt_device::record::{CutPolicy, Recording};
use basalt_wire::block::{BLOCK_BYTES, CHUNK_BLOCKS, group_of_chunk};
use basalt_wire::command::BlockRange;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The kinds of cut, by number; see [`CutPolicy`]. The last lets each node draw one of the others.
pub const KINDS: [&str; 9] =
    ["drop", "keep", "coin", "prefix", "reverse", "hole", "garbage", "subset", "mixed"];
const MIXED: usize = KINDS.len() - 1;
/// The first epoch after the cut.
const EPOCH: u64 = 2;

/// One cut of one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Which instant of the run.
    pub instance: usize,
    /// Index in [`KINDS`].
    pub kind: usize,
    /// What a device never tears: 512 or 4096 bytes.
    pub atom: usize,
    /// Seed of the choices.
    pub seed: u64,
    /// Whether the power fails again while the cluster recovers.
    pub twice: bool,
}

impl Cut {
    /// Any cut of a run.
    pub fn draw(run: &Run, random: &mut Random) -> Cut {
        Cut {
            instance: random.below(run.instances.len() as u64) as usize,
            kind: random.below(KINDS.len() as u64) as usize,
            atom: if random.one_in(2) { 512 } else { 4096 },
            seed: random.bits(),
            twice: random.one_in(4),
        }
    }
}

/// Number of images that were judged.
pub type Images = u64;

/// Cuts the power, revives the cluster, and checks what it holds. Gives the number of images, or
/// what is wrong.
///
/// # Errors
/// Says what was lost, or what did not recover. A panic of the engine is an error too.
pub fn judge(run: &Run, cut: Cut) -> Result<Images, String> {
    let result = catch_unwind(AssertUnwindSafe(|| judge_unguarded(run, cut)));
    result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("the engine panicked: {}", text.unwrap_or_default()))
    })
}

/// The devices after the (first) cut.
pub fn first_images(run: &Run, cut: Cut, random: &mut Random) -> Vec<Vec<u8>> {
    let bases = vec![vec![0; DEVICE_BYTES as usize]; NODES];
    let recordings: Vec<&Recording> = run.recordings.iter().collect();
    images(&bases, &recordings, run.instances[cut.instance].lengths, cut, random)
}

fn judge_unguarded(run: &Run, cut: Cut) -> Result<Images, String> {
    let at = run.instances[cut.instance];
    let mut random = Random::new(cut.seed);
    let images = first_images(run, cut, &mut random);
    let allowed = allowed(run, at);
    let again = cut.twice.then(|| images.clone());
    let world = revive(images, run.seed, EPOCH, &allowed)?;
    let Some(bases) = again else { return Ok(NODES as u64) };
    // Again, at some instant of that recovery.
    let pick = random.below(world.instants.len() as u64) as usize;
    let lengths = world.instants[pick];
    let images = self::images(&bases, &world.recordings(), lengths, cut, &mut random);
    // The first revival may have committed the two epochs that it used.
    revive(images, run.seed, EPOCH + 2, &allowed)
        .map_err(|e| format!("after a second cut: {e}"))?;
    Ok(2 * NODES as u64)
}

fn allowed(run: &Run, at: Instance) -> BTreeMap<u64, Vec<Value>> {
    run.ledger.allowed(at.acknowledged, at.submitted)
}

fn images(
    bases: &[Vec<u8>],
    recordings: &[&Recording],
    lengths: [usize; NODES],
    cut: Cut,
    random: &mut Random,
) -> Vec<Vec<u8>> {
    (0..NODES)
        .map(|n| {
            let undecided = recordings[n].undecided(lengths[n]);
            let policy = policy(cut.kind, undecided, random);
            recordings[n].image(&bases[n], lengths[n], policy, cut.atom)
        })
        .collect()
}

fn policy(kind: usize, undecided: usize, random: &mut Random) -> CutPolicy {
    let some = random.below(undecided as u64 + 1) as usize;
    let seed = random.bits();
    match kind {
        0 => CutPolicy::DropAll,
        1 => CutPolicy::KeepAll,
        2 => CutPolicy::Coin { seed },
        3 => CutPolicy::Prefix { keep: some },
        4 => CutPolicy::Reverse { keep: some },
        5 => CutPolicy::Hole { missing: some },
        6 => CutPolicy::Garbage { seed },
        7 => CutPolicy::Subset { mask: seed },
        _ => policy(random.below(MIXED as u64) as usize, undecided, random),
    }
}

/// Opens the images; checks what the nodes hold; does both again.
fn revive(
    images: Vec<Vec<u8>>,
    seed: u64,
    epoch: u64,
    allowed: &BTreeMap<u64, Vec<Value>>,
) -> Result<World, String> {
    let mut world = World::open(images, seed);
    let first = recover(&mut world, epoch, allowed)?;
    world.reopen();
    let second = recover(&mut world, epoch + 1, allowed)
        .map_err(|e| format!("opened a second time: {e}"))?;
    if first != second {
        return Err("recovering twice gave two different volumes".to_owned());
    }
    Ok(world)
}

type Content = BTreeMap<u64, Value>;

fn recover(
    world: &mut World,
    epoch: u64,
    allowed: &BTreeMap<u64, Vec<Value>>,
) -> Result<Content, String> {
    world.settle()?;
    let floors = world.fence(epoch)?;
    world.settle()?;
    world.converged()?;
    let mut content: Option<Content> = None;
    for n in 0..NODES {
        let mut own = Content::new();
        for chunk in 0..CHUNKS {
            let group = group_of_chunk(VOLUME, chunk, GROUPS);
            let first = chunk * CHUNK_BLOCKS;
            let range = BlockRange { block: first, count: HOT_BLOCKS as u32 };
            let bytes = world.read(n, group, epoch, range, floors[group.0 as usize])?;
            for (block, bytes) in (first..).zip(bytes.chunks(BLOCK_BYTES)) {
                own.insert(block, value_of(VOLUME, block, bytes));
            }
        }
        check(n, &own, allowed)?;
        if content.as_ref().is_some_and(|other| *other != own) {
            return Err(format!("node {n} reads another volume than node 0"));
        }
        content = Some(own);
    }
    content.ok_or_else(|| "there is no node".to_owned())
}

fn check(n: usize, content: &Content, allowed: &BTreeMap<u64, Vec<Value>>) -> Result<(), String> {
    const UNTOUCHED: &[Value] = &[Value::Zero];
    for (block, value) in content {
        let allowed = allowed.get(block).map_or(UNTOUCHED, Vec::as_slice);
        if !allowed.contains(value) {
            return Err(format!(
                "block {block} of node {n} holds {value:?}, not one of {allowed:?}"
            ));
        }
    }
    Ok(())
}
