//! Carries out what the records say of clones: the leader of the metadata group has every group begin
//! them, and makes volumes of their own of those that are to be clones no more.
//!
//! Both go through its node's door, beside whatever session a volume has. Nothing of it is remembered but
//! what the records say: whoever leads next begins again, and finds filled what is filled.

use crate::admin::volume_of;
use crate::engine::{DOOR, Engine};
use crate::reconcile::done;
use crate::retry::Retries;
use crate::works;
use basalt_api::v1::{Flattening, Qos, Volume};
use basalt_attach::convert;
use basalt_client::BlockOp;
use basalt_meta::{
    CloneParent, FLATTEN_DEPTH, MetaState, Op, SettleClone, SettleFlatten, VolumeRecord,
};
use basalt_nbd::DoorCommand;
use basalt_telemetry::context::within;
use basalt_wire::ids::{Generation, GroupId, NodeId, SnapshotId, VolumeId};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};
use tracing::field::Empty;
use tracing::{Instrument, Span};

/// Clones that are begun at a time, and clones that are flattened.
const BEGUN_MAX: usize = 32;
const FLATTENED_MAX: usize = 2;
/// Bytes that are filled before it rests.
const SLICE: u64 = 16 << 20;
/// It rests this many times as long as it worked: clients have most of the devices and links for themselves.
const REST: u32 = 2;
const REST_MAX: Duration = Duration::from_secs(2);
/// A slice that takes longer waits for something, and it is said so.
const USUAL: Duration = Duration::from_secs(10);

/// How far the node has come with the clones that it flattens, by the number of the volume.
#[derive(Default)]
pub struct FlattenProgress(Mutex<BTreeMap<u64, Flattening>>);

impl FlattenProgress {
    fn all(&self) -> MutexGuard<'_, BTreeMap<u64, Flattening>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of all of them.
    pub fn list(&self) -> BTreeMap<u64, Flattening> {
        self.all().clone()
    }

    /// Of one, if it is at work on it.
    pub fn of(&self, volume: u64) -> Option<Flattening> {
        self.all().get(&volume).cloned()
    }

    fn note(&self, volume: u64, note: impl FnOnce(&mut Flattening)) {
        note(self.all().entry(volume).or_default());
    }
}

/// Clones on their way.
#[derive(Default)]
pub(crate) struct Clones {
    under_way: BTreeMap<u64, Job>,
    retries: Retries,
}

struct Job {
    volume: VolumeRecord,
    /// Begun, or flattened.
    begins: bool,
    began: Instant,
    told: bool,
    /// Part of the call that asked for it.
    span: Span,
    /// Whether it was done; not, if it was called off.
    end: oneshot::Receiver<Result<bool, String>>,
}

impl Clones {
    /// Takes up what is to be done, and writes down what is; false if something has to be tried again.
    pub(crate) async fn pass(&mut self, engine: &Arc<Engine>) -> bool {
        let clean = self.hear(engine).await;
        if !engine.metadata.leads() {
            engine.flattening.all().clear();
            return clean;
        }
        let (new, old): (Vec<VolumeRecord>, Vec<VolumeRecord>) = engine.metadata.look(|state| {
            let owned = |volumes: Vec<&VolumeRecord>| volumes.into_iter().cloned().collect();
            (owned(state.clones_to_begin()), owned(state.clones_to_flatten()))
        });
        let wanted = |number: u64| new.iter().chain(&old).any(|volume| volume.number == number);
        self.retries.retain(wanted);
        engine.flattening.all().retain(|number, _| wanted(*number));
        self.take_up(engine, new, true);
        self.take_up(engine, old, false);
        clean
    }

    /// When to look again at what did not work.
    pub(crate) fn next(&self, now: Instant) -> Option<Instant> {
        self.retries.next(now)
    }

    fn take_up(&mut self, engine: &Arc<Engine>, wanted: Vec<VolumeRecord>, begins: bool) {
        let most = if begins { BEGUN_MAX } else { FLATTENED_MAX };
        for volume in wanted {
            let count = self.under_way.values().filter(|job| job.begins == begins).count();
            let free = count < most && !self.under_way.contains_key(&volume.number);
            if free && self.retries.may(volume.number, Instant::now()) {
                self.begin(engine, volume, begins);
            }
        }
    }

    fn begin(&mut self, engine: &Arc<Engine>, volume: VolumeRecord, begins: bool) {
        let (ended, end) = oneshot::channel();
        let (weak, record) = (Arc::downgrade(engine), volume.clone());
        let span = span_of(engine, &volume, begins);
        let work = async move {
            let result = match begins {
                true => begin_clone(&weak, &record).await,
                false => flatten(&weak, &record).await,
            };
            // The reconciler may be gone.
            let _ = ended.send(result);
            if let Some(engine) = weak.upgrade() {
                engine.door.changed.notify_one();
            }
        };
        tokio::spawn(work.instrument(span.clone()));
        let (number, began) = (volume.number, Instant::now());
        self.under_way.insert(number, Job { volume, begins, began, told: false, span, end });
    }

    async fn hear(&mut self, engine: &Arc<Engine>) -> bool {
        let mut ended = Vec::new();
        for (number, job) in &mut self.under_way {
            match job.end.try_recv() {
                Err(oneshot::error::TryRecvError::Empty) => job.tell_waiting(),
                Ok(result) => ended.push((*number, result)),
                Err(_) => ended.push((*number, Err("the node is stopping".to_owned()))),
            }
        }
        let mut clean = true;
        for (number, result) in ended {
            let Some(job) = self.under_way.remove(&number) else { continue };
            match result {
                Ok(true) => clean &= settle(engine, &job).instrument(job.span.clone()).await,
                Ok(false) => {}
                Err(problem) => {
                    let _part = job.span.enter();
                    let random = basalt_api::random::random();
                    let pause = self.retries.failed(number, Instant::now(), random).as_millis();
                    tracing::warn!("{}: {problem}; tried again in {pause} ms", job.what());
                    if !job.begins {
                        engine.flattening.note(number, |progress| progress.problem = problem);
                    }
                }
            }
        }
        clean
    }
}

impl Job {
    fn what(&self) -> String {
        let what = if self.begins { "created" } else { "flattened" };
        format!("the clone {} is not {what} yet", self.volume.id)
    }

    fn tell_waiting(&mut self) {
        if self.begins && !self.told && self.began.elapsed() >= USUAL {
            self.told = true;
            let _part = self.span.enter();
            tracing::warn!(
                "{}: it waits for groups that do not answer ('basalt cluster status')",
                self.what()
            );
        }
    }
}

/// The span of what is done for a clone, as a part of the call that asked for it.
fn span_of(engine: &Engine, volume: &VolumeRecord, begins: bool) -> Span {
    let (name, what) = match begins {
        true => ("clone.begin", "every group to begin the clone"),
        false => ("clone.flatten", "blocks of its own for all that it shares"),
    };
    let span = tracing::info_span!(
        parent: None,
        "clone",
        otel.name = name,
        volume = volume.id,
        waits_for = what,
        trace_id = Empty,
    );
    within(span, engine.metadata.work_of(&works::volume(&volume.id)))
}

/// Writes down that every group has done it.
async fn settle(engine: &Arc<Engine>, job: &Job) -> bool {
    let volume = job.volume.number;
    let op = match job.begins {
        true => Op::SettleClone(SettleClone { volume }),
        false => Op::SettleFlatten(SettleFlatten { volume }),
    };
    done(engine.metadata.change("", op).await, "writing a clone down")
}

fn parent_of(volume: &VolumeRecord) -> Option<(SnapshotId, &CloneParent)> {
    let parent = volume.parent.as_ref()?;
    let (volume, generation) = (VolumeId(parent.volume), Generation(parent.generation));
    Some((SnapshotId { volume, generation }, parent))
}

async fn begin_clone(weak: &Weak<Engine>, volume: &VolumeRecord) -> Result<bool, String> {
    let Some((parent, _)) = parent_of(volume) else { return Ok(false) };
    change(weak, volume, BlockOp::Clone { parent }).await.map(|()| true)
}

/// Gives a clone blocks of its own, slice by slice, and detaches it then. Says whether it came to that: it ends
/// early when that is not wanted any more.
async fn flatten(weak: &Weak<Engine>, volume: &VolumeRecord) -> Result<bool, String> {
    let Some((parent, of)) = parent_of(volume) else { return Ok(false) };
    let mut offset = 0;
    while offset < of.size_bytes {
        if !is_wanted(weak, volume, (offset, of.size_bytes))? {
            return Ok(false);
        }
        let (len, began) = (SLICE.min(of.size_bytes - offset), Instant::now());
        change(weak, volume, BlockOp::Fill { offset, len, parent }).await?;
        offset += len;
        sleep((began.elapsed() * REST).min(REST_MAX)).await;
    }
    if !is_wanted(weak, volume, (offset, of.size_bytes))? {
        return Ok(false);
    }
    change(weak, volume, BlockOp::Detach { parent }).await?;
    let (above, snapshot) = (&of.volume_id, &of.snapshot_id);
    tracing::info!(volume = %volume.id, "flattened; it is no clone of {above}@{snapshot} any more");
    Ok(true)
}

/// Notes how far it is, and whether it is to go on.
fn is_wanted(
    weak: &Weak<Engine>,
    volume: &VolumeRecord,
    (done_bytes, total_bytes): (u64, u64),
) -> Result<bool, String> {
    let engine = weak.upgrade().ok_or("the node is stopping")?;
    let now = engine.metadata.look(|state| {
        let found = state.volume_by_number(volume.number);
        found.filter(|volume| state.is_to_be_flattened(volume)).cloned()
    });
    let wanted = engine.metadata.leads() && now.is_some_and(|now| now.parent == volume.parent);
    if !wanted {
        return Ok(false);
    }
    engine.flattening.note(volume.number, |progress| {
        *progress = Flattening { done_bytes, total_bytes, ..Flattening::default() };
    });
    Ok(true)
}

/// Has one thing done to a volume in all its groups, beside whatever session it has.
async fn change(weak: &Weak<Engine>, volume: &VolumeRecord, op: BlockOp) -> Result<(), String> {
    let outcome = {
        let engine = weak.upgrade().ok_or("the node is stopping")?;
        let map = Arc::new(convert::pool_map(&engine.map())?);
        let record = volume_of(volume);
        let config = convert::volume_config(&record, volume.epoch, map, Some(engine.node));
        let (ended, outcome) = oneshot::channel();
        let reply = Box::new(move |result| {
            // Whoever asked may have given up.
            let _ = ended.send(result);
        });
        engine.reactor.tenant(DOOR, Box::new(DoorCommand::Ask { config, op, reply }));
        outcome
    };
    match outcome.await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the node is stopping".to_owned()),
    }
}

/// A volume as the API shows it, with what its record does not say: how deep it hangs, and whether it is
/// flattened without being asked for.
pub(crate) fn complete(state: &MetaState, record: &VolumeRecord) -> Volume {
    let mut volume = volume_of(record);
    volume.clone_depth = state.clone_depth(record);
    volume.effective_qos = Some(state.effective_qos(record)).filter(|qos| *qos != Qos::default());
    volume.operation = state
        .operation_on(record.number)
        .map_or_else(String::new, |operation| format!("operations/{}", operation.number));
    if state.is_to_be_flattened(record) {
        let automatic = !record.flattening && volume.clone_depth > FLATTEN_DEPTH;
        volume.flattening = Some(Flattening { automatic, ..Flattening::default() });
    }
    volume
}

/// Asks whoever flattens a volume how far it is. If that can not be told now, nothing is.
pub(crate) async fn ask_progress(engine: &Engine, volume: &mut Volume) {
    let number = volume.id;
    let Some(shown) = &mut volume.flattening else { return };
    let told = match engine.metadata.leads() {
        true => engine.flattening.of(number),
        false => {
            let leader = engine.metadata.leader(GroupId::METADATA).and_then(|leader| leader.node);
            let members = engine.spec().members;
            let member = members.iter().find(|m| Some(NodeId(m.node)) == leader);
            let report = match member {
                Some(member) => crate::status::ask(member).await.ok(),
                None => None,
            };
            let all = report.into_iter().flat_map(|report| report.flattening);
            all.into_iter().find(|of| of.volume == number).and_then(|of| of.progress)
        }
    };
    if let Some(told) = told {
        *shown = Flattening { automatic: shown.automatic, ..told };
    }
}
