//! The records beside what the nodes hold: after a restore they catch up with it, and what no record names is shown.

use crate::access::caller;
use crate::daemon::Daemon;
use crate::engine::Engine;
use crate::services::{change, linearized, unexpected};
use basalt_api::v1::recovery_server::Recovery;
use basalt_api::v1::{
    AdoptVolumeRequest, ErrorReason, GetHeldRequest, GetInventoryRequest, HeldGroup, HeldVolume,
    Inventory, Lack, Member, Orphan, Volume,
};
use basalt_api::{dial, error};
use basalt_meta::restore::SETTLED_AT_ONCE;
use basalt_meta::{AdoptVolume, HeldRecord, MetaState, Op, Outcome, SettleRestore};
use basalt_wire::block::{BLOCK_BYTES, CHUNK_BLOCKS};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tonic::{Request, Response, Status};

/// From one look at a restore that is not compared yet to the next.
const LOOK: Duration = Duration::from_secs(1);
/// How long a node may take to tell what it holds.
const ASK: Duration = Duration::from_secs(10);
/// Snapshots that one entry tells of at most, besides its volumes.
const SNAPSHOTS_AT_ONCE: usize = 4096;

/// What groups hold of a volume, all together.
#[derive(Clone, Debug, Default, PartialEq)]
struct Held {
    record: HeldRecord,
    deleted: bool,
    blocks: u64,
    end_chunk: u64,
    /// Generations that some group has left behind and does not keep.
    dropped: BTreeSet<u32>,
}

/// What all groups hold.
#[derive(Clone, Debug, Default)]
struct Survey {
    volumes: BTreeMap<u64, Held>,
    /// Groups whose leader has told.
    whole: BTreeSet<u32>,
    problems: Vec<String>,
}

impl Survey {
    /// Takes what one replica holds. Whoever leads tells what counts; what others tell may be behind it.
    fn take(&mut self, group: &HeldGroup) {
        if group.whole {
            self.whole.insert(group.group);
        }
        for volume in &group.volumes {
            self.volumes.entry(volume.number).or_default().take(volume, group.whole);
        }
    }

    fn is_whole(&self, group_count: u32) -> bool {
        (0..group_count).all(|group| self.whole.contains(&group))
    }
}

impl Held {
    fn take(&mut self, volume: &HeldVolume, whole: bool) {
        let record = &mut self.record;
        record.number = volume.number;
        record.epoch = record.epoch.max(volume.epoch);
        record.generation = record.generation.max(volume.generation);
        if volume.parent != 0 {
            (record.parent, record.parent_generation) = (volume.parent, volume.parent_generation);
        }
        for generation in &volume.snapshots {
            if !record.snapshots.contains(generation) {
                record.snapshots.push(*generation);
            }
        }
        record.snapshots.sort_unstable();
        self.deleted |= volume.deleted && whole;
        self.end_chunk = self.end_chunk.max(volume.end_chunk);
        if whole {
            self.blocks += volume.blocks;
            let behind = volume.first..volume.generation;
            // A group counts each generation that it left behind, so there are as many as snapshots ever were.
            let gone = behind.filter(|generation| !volume.snapshots.contains(generation));
            self.dropped.extend(gone.take(MANY));
        }
    }
}

/// More snapshots than a volume can have in its groups.
const MANY: usize = 4096;

/// What this node's replicas hold. Blocks.
fn own(engine: &Engine) -> Result<Vec<HeldGroup>, Status> {
    let held = engine.reactor.held().map_err(|e| Status::unavailable(e.to_string()))?;
    let volume = |held: basalt_core::replica::HeldVolume| HeldVolume {
        number: held.volume.0,
        epoch: held.epoch.0,
        deleted: held.deleted,
        generation: held.generation.0,
        first: held.first.0,
        snapshots: held.snapshots.iter().map(|generation| generation.0).collect(),
        blocks: held.blocks,
        end_chunk: held.end_chunk,
        parent: held.parent.map_or(0, |parent| parent.volume.0),
        parent_generation: held.parent.map_or(0, |parent| parent.generation.0),
    };
    let group = |held: basalt_core::shard::HeldGroup| HeldGroup {
        group: held.group.0,
        whole: held.whole,
        volumes: held.volumes.into_iter().map(volume).collect(),
    };
    Ok(held.into_iter().map(group).collect())
}

/// What this node's replicas hold.
///
/// # Errors
/// If the reactor has ended or does not answer.
pub async fn held(engine: &Arc<Engine>) -> Result<Vec<HeldGroup>, Status> {
    let engine = engine.clone();
    let asked = tokio::task::spawn_blocking(move || own(&engine)).await;
    asked.map_err(|e| Status::internal(e.to_string()))?
}

async fn ask(cluster: u64, member: &Member) -> Result<Vec<HeldGroup>, Status> {
    let mut client = dial::peer(&member.grpc_address, ASK)?.max_decoding_message_size(1 << 30);
    Ok(client.get_held(GetHeldRequest { cluster }).await?.into_inner().groups)
}

/// Asks all nodes.
async fn survey(engine: &Arc<Engine>) -> Survey {
    let spec = engine.spec();
    let mut asked = JoinSet::new();
    for member in spec.members {
        let (engine, cluster) = (engine.clone(), spec.id);
        asked.spawn(async move {
            let here = member.node == engine.node.0;
            let told = if here { held(&engine).await } else { ask(cluster, &member).await };
            (member.name, told)
        });
    }
    let mut survey = Survey::default();
    while let Some(answer) = asked.join_next().await {
        match answer {
            Ok((_, Ok(groups))) => groups.iter().for_each(|group| survey.take(group)),
            Ok((name, Err(status))) => {
                survey.problems.push(format!("node '{name}': {}", dial::plain(&status)));
            }
            Err(problem) => survey.problems.push(problem.to_string()),
        }
    }
    let silent = (0..spec.group_count).filter(|group| !survey.whole.contains(group)).count();
    if silent > 0 {
        survey.problems.push(format!("{silent} of {} groups have no leader", spec.group_count));
    }
    survey
}

/// Compares a restore with what the groups hold, once, as soon as all of them can be asked. Runs until the engine is
/// gone.
pub(crate) async fn run(weak: Weak<Engine>) {
    let mut told = String::new();
    loop {
        sleep(LOOK).await;
        let Some(engine) = weak.upgrade() else { return };
        let metadata = engine.metadata.clone();
        let due = metadata.look(|state| state.restored().copied().filter(|r| !r.settled));
        let Some(restored) = due.filter(|_| metadata.leads()) else { continue };
        let survey = survey(&engine).await;
        if !survey.is_whole(engine.spec().group_count) {
            let problems = survey.problems.join("; ");
            if problems != told {
                tracing::warn!(
                    "the restored records are not compared with what the nodes hold yet: {problems}"
                );
                told = problems;
            }
            continue;
        }
        match settle(&engine, restored.index, &survey).await {
            Ok(()) => tracing::info!(
                volumes = survey.volumes.len(),
                "the restored records are compared with what the nodes hold"
            ),
            Err(status) => {
                tracing::warn!("comparing the records has to wait: {}", status.message())
            }
        }
    }
}

async fn settle(engine: &Arc<Engine>, index: u64, survey: &Survey) -> Result<(), Status> {
    let mut settle = SettleRestore { index, ..SettleRestore::default() };
    let mut snapshots = 0;
    for held in survey.volumes.values().filter(|held| !held.deleted) {
        snapshots += held.record.snapshots.len();
        settle.volumes.push(held.record.clone());
        if settle.volumes.len() >= SETTLED_AT_ONCE || snapshots >= SNAPSHOTS_AT_ONCE {
            let part = std::mem::take(&mut settle.volumes);
            let part = SettleRestore { index, volumes: part, last: false };
            engine.metadata.change("", Op::SettleRestore(part)).await?;
            snapshots = 0;
        }
    }
    settle.last = true;
    engine.metadata.change("", Op::SettleRestore(settle)).await.map(drop)
}

/// The records beside what is held.
fn inventory(state: &MetaState, survey: &Survey, group_count: u32) -> Inventory {
    let whole = survey.is_whole(group_count);
    let orphan =
        |held: &&Held| !held.deleted && state.volume_by_number(held.record.number).is_none();
    let shown = |held: &Held| Orphan {
        number: held.record.number,
        bytes: held.blocks * BLOCK_BYTES as u64,
        end_bytes: held.end_chunk * CHUNK_BLOCKS * BLOCK_BYTES as u64,
        epoch: held.record.epoch,
        generation: held.record.generation,
        snapshots: held.record.snapshots.clone(),
        parent: held.record.parent,
        parent_generation: held.record.parent_generation,
    };
    Inventory {
        whole,
        problems: survey.problems.clone(),
        restored_revision: state.restored().map_or(0, |restored| restored.index),
        settling: state.is_settling(),
        orphans: survey.volumes.values().filter(orphan).map(shown).collect(),
        lacks: if whole { lacks(state, survey) } else { Vec::new() },
    }
}

fn lacks(state: &MetaState, survey: &Survey) -> Vec<Lack> {
    let mut found = Vec::new();
    for volume in state.volumes().filter(|volume| !volume.deleting) {
        let Some(held) = survey.volumes.get(&volume.number) else { continue };
        let name = format!("volumes/{}", volume.id);
        if held.deleted {
            let problem = "its blocks were deleted after the backup was taken: it can not be attached, and there is \
                           nothing left to do but delete it";
            found.push(Lack { name, problem: problem.to_owned() });
            continue;
        }
        let snapshots = state.snapshots_after(volume.number, None);
        let gone =
            snapshots.filter(|s| s.ready && !s.deleting && held.dropped.contains(&s.generation));
        found.extend(gone.map(|snapshot| {
            Lack {
                name: format!("{name}/snapshots/{}", snapshot.id),
                problem: "it was deleted after the backup was taken: it can not be read; delete it"
                    .to_owned(),
            }
        }));
    }
    found
}

/// The service.
pub struct RecoveryService {
    daemon: Arc<Daemon>,
}

impl RecoveryService {
    /// Of this node.
    pub fn new(daemon: Arc<Daemon>) -> RecoveryService {
        RecoveryService { daemon }
    }
}

#[tonic::async_trait]
impl Recovery for RecoveryService {
    async fn get_inventory(
        &self,
        _request: Request<GetInventoryRequest>,
    ) -> Result<Response<Inventory>, Status> {
        let metadata = linearized(&self.daemon).await?;
        let engine = self.daemon.engine()?;
        let survey = survey(&engine).await;
        let groups = engine.spec().group_count;
        Ok(Response::new(metadata.look(|state| inventory(state, &survey, groups))))
    }

    async fn adopt_volume(
        &self,
        request: Request<AdoptVolumeRequest>,
    ) -> Result<Response<Volume>, Status> {
        let who = caller(&request).to_string();
        let request = request.into_inner();
        linearized(&self.daemon).await?;
        let engine = self.daemon.engine()?;
        let survey = survey(&engine).await;
        if !survey.is_whole(engine.spec().group_count) {
            let message = format!(
                "not every group can be asked what it holds: {}. See 'basalt cluster status'",
                survey.problems.join("; ")
            );
            return Err(error::status(ErrorReason::NoQuorum, message, &[]));
        }
        let held = survey.volumes.get(&request.number).filter(|held| !held.deleted);
        let held = held.ok_or_else(|| {
            let message = format!(
                "no node holds anything under the number {}; 'basalt cluster orphans' shows what they hold",
                request.number
            );
            error::status(ErrorReason::VolumeNotFound, message, &[])
        })?;
        let end = held.end_chunk.max(1) * CHUNK_BLOCKS * BLOCK_BYTES as u64;
        let size_bytes = if request.size_bytes == 0 { end } else { request.size_bytes };
        tracing::warn!(number = request.number, volume = %request.volume_id, %who, "adopted");
        let op = Op::AdoptVolume(AdoptVolume {
            held: Some(held.record.clone()),
            id: request.volume_id,
            size_bytes,
            delete: request.delete,
        });
        let outcome = change(&self.daemon, &request.request_id, op).await?;
        let Outcome::Volume(volume) = outcome else { return Err(unexpected(&outcome)) };
        Ok(Response::new(crate::admin::volume_of(&volume)))
    }
}
