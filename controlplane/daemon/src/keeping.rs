//! Carries out what the records say of snapshots: the leader of the metadata group keeps generations and
//! drops them, in every group, through its node's door and beside whatever session a volume has.
//!
//! Nothing of it is remembered but what the records say: whoever leads next begins again what is not
//! settled there, and doing it twice does no harm.

use crate::admin::volume_of;
use crate::engine::{DOOR, Engine};
use crate::reconcile::done;
use crate::retry::Retries;
use crate::works;
use basalt_attach::convert;
use basalt_client::VolumeConfig;
use basalt_meta::{
    GiveUpCut, Op, PurgeSnapshot, SettleCut, SettleSnapshot, SnapshotRecord, VolumeRecord,
};
use basalt_nbd::{DoorCommand, DoorError, Reply};
use basalt_telemetry::context::within;
use basalt_wire::ids::Generation;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::field::Empty;
use tracing::{Instrument, Span};

/// How long one may take before it is said that it waits.
const USUAL: Duration = Duration::from_secs(10);

/// Snapshots on their way: one of each volume at a time.
#[derive(Default)]
pub(crate) struct Keeping {
    under_way: BTreeMap<u64, Job>,
    /// What every group has done and is being written down: volumes by their numbers, and generations.
    settling: BTreeSet<(u64, u32)>,
    settled: JoinSet<Settled>,
    /// By the number of the cut.
    cuts: BTreeMap<u64, CutJob>,
    retries: Retries,
}

/// Whether it was written down what every group has done to a generation of a volume.
struct Settled {
    of: (u64, u32),
    written: bool,
}

struct CutJob {
    volumes: Vec<u64>,
    /// Part of the call that asked for the cut.
    span: Span,
    end: oneshot::Receiver<Result<(), DoorError>>,
}

struct Job {
    snapshot: SnapshotRecord,
    began: Instant,
    told: bool,
    /// Part of the call that asked for it.
    span: Span,
    end: oneshot::Receiver<Result<(), DoorError>>,
}

impl Keeping {
    /// Takes up what is to be done, and writes down what is; false if something has to be tried again.
    pub(crate) async fn pass(&mut self, engine: &Arc<Engine>) -> bool {
        self.hear(engine);
        let clean = self.hear_of_settled() & self.hear_of_cuts(engine).await;
        if !engine.metadata.leads() {
            engine.kept.forget();
            return clean;
        }
        let wanted: Vec<(VolumeRecord, SnapshotRecord)> = engine.metadata.look(|state| {
            let pair =
                |s: &SnapshotRecord| Some((state.volume_by_number(s.volume)?.clone(), s.clone()));
            state.unsettled_snapshots().into_iter().filter_map(pair).collect()
        });
        self.retries.retain(|number| wanted.iter().any(|(volume, _)| volume.number == number));
        for (volume, snapshot) in wanted {
            let done = self.settling.contains(&(volume.number, snapshot.generation));
            let busy = done || self.is_busy(volume.number);
            if !busy && self.retries.may(volume.number, Instant::now()) {
                self.begin(engine, &volume, snapshot);
            }
        }
        self.begin_cuts(engine);
        clean
    }

    /// Whether something is being done to a volume's snapshots.
    fn is_busy(&self, volume: u64) -> bool {
        let cut = |job: &CutJob| job.volumes.contains(&volume);
        self.under_way.contains_key(&volume) || self.cuts.values().any(cut)
    }

    /// Begins the cuts whose volumes have nothing else to be done first. One that was begun before, by a
    /// node that does not lead any more, may come to an end or fail; in no case is it something else.
    fn begin_cuts(&mut self, engine: &Arc<Engine>) {
        let wanted: Vec<(u64, Vec<(VolumeRecord, SnapshotRecord)>)> =
            engine.metadata.look(|state| {
                let pair = |s: &SnapshotRecord| {
                    Some((state.volume_by_number(s.volume)?.clone(), s.clone()))
                };
                let of = |all: Vec<&SnapshotRecord>| all.into_iter().filter_map(pair).collect();
                state.unsettled_cuts().into_iter().map(|(cut, all)| (cut, of(all))).collect()
            });
        for (cut, all) in wanted {
            let volumes: Vec<u64> = all.iter().map(|(volume, _)| volume.number).collect();
            if volumes.iter().any(|volume| self.is_busy(*volume)) {
                continue;
            }
            let configs = all.iter().map(|(volume, snapshot)| config_of(engine, volume, snapshot));
            let configs = match configs.collect() {
                Ok(configs) => configs,
                Err(problem) => return tracing::error!("snapshots can not be kept: {problem}"),
            };
            let (reply, end) = ending(engine);
            engine.reactor.tenant(DOOR, Box::new(DoorCommand::Cut { configs, reply }));
            let first = all.first().map(|(_, s)| works::snapshot(&s.volume_id, &s.id));
            let asked = first.and_then(|key| engine.metadata.work_of(&key));
            let span = tracing::info_span!(
                parent: None,
                "snapshots.cut",
                cut,
                waits_for = "every group of all volumes to keep its generation behind closed gates",
                trace_id = Empty,
            );
            let span = within(span, asked);
            self.cuts.insert(cut, CutJob { volumes, span, end });
        }
    }

    /// Writes down which cuts are complete, and which are given up: nothing of these is kept.
    async fn hear_of_cuts(&mut self, engine: &Arc<Engine>) -> bool {
        let mut ended = Vec::new();
        self.cuts.retain(|cut, job| match job.end.try_recv() {
            Err(oneshot::error::TryRecvError::Empty) => true,
            end => {
                ended.push((*cut, end, job.span.clone()));
                false
            }
        });
        let mut clean = true;
        for (cut, end, span) in ended {
            let op = match end {
                Ok(Ok(())) => Op::SettleCut(SettleCut { cut }),
                Ok(Err(problem)) => {
                    let _part = span.enter();
                    tracing::warn!("the snapshots of cut {cut} are given up: {problem}");
                    Op::GiveUpCut(GiveUpCut { cut })
                }
                // The node is stopping: whoever leads next brings it to an end.
                Err(_) => continue,
            };
            let written = engine.metadata.change("", op).instrument(span).await;
            clean &= done(written, "writing a cut down");
        }
        clean
    }

    /// When to look again at what did not work.
    pub(crate) fn next(&self, now: Instant) -> Option<Instant> {
        self.retries.next(now)
    }

    fn begin(&mut self, engine: &Arc<Engine>, volume: &VolumeRecord, snapshot: SnapshotRecord) {
        let config = match config_of(engine, volume, &snapshot) {
            Ok(config) => config,
            Err(problem) => return tracing::error!("snapshots can not be kept: {problem}"),
        };
        let (reply, end) = ending(engine);
        let drop = snapshot.deleting;
        engine.reactor.tenant(DOOR, Box::new(DoorCommand::Snapshot { config, drop, reply }));
        let span = span_of(engine, &snapshot);
        let job = Job { snapshot, began: Instant::now(), told: false, span, end };
        self.under_way.insert(volume.number, job);
    }

    /// Takes what the groups answered, and has it written down.
    fn hear(&mut self, engine: &Arc<Engine>) {
        let mut ended = Vec::new();
        for (number, job) in &mut self.under_way {
            match job.end.try_recv() {
                Err(oneshot::error::TryRecvError::Empty) => job.tell_waiting(),
                Ok(Ok(())) => ended.push((*number, None)),
                Ok(Err(error)) => ended.push((*number, Some(error.to_string()))),
                Err(_) => ended.push((*number, Some("the node is stopping".to_owned()))),
            }
        }
        for (number, problem) in ended {
            let Some(job) = self.under_way.remove(&number) else { continue };
            match problem {
                None => self.complete(engine, job),
                Some(problem) => {
                    let _part = job.span.enter();
                    let random = basalt_api::random::random();
                    let pause = self.retries.failed(number, Instant::now(), random);
                    let pause = pause.as_millis();
                    tracing::warn!("{}: {problem}; tried again in {pause} ms", job.what());
                }
            }
        }
    }

    /// Every group has done it: that is written down, and meanwhile the volume's next one may begin.
    fn complete(&mut self, engine: &Arc<Engine>, job: Job) {
        let of = (job.snapshot.volume, job.snapshot.generation);
        self.settling.insert(of);
        let (engine, snapshot) = (engine.clone(), job.snapshot);
        let settling = async move {
            let written = complete(&engine, &snapshot).await;
            engine.door.changed.notify_one();
            Settled { of, written }
        };
        self.settled.spawn(settling.instrument(job.span));
    }

    /// False if something was not written down: the groups are asked again.
    fn hear_of_settled(&mut self) -> bool {
        let mut clean = true;
        while let Some(ended) = self.settled.try_join_next() {
            let Settled { of, written } = ended.expect("writing down does not panic");
            self.settling.remove(&of);
            clean &= written;
        }
        clean
    }
}

impl Job {
    fn what(&self) -> String {
        let SnapshotRecord { volume_id, id, deleting, .. } = &self.snapshot;
        let what = if *deleting { "dropped" } else { "kept" };
        format!("the snapshot {volume_id}@{id} is not {what} yet")
    }

    fn tell_waiting(&mut self) {
        if !self.told && self.began.elapsed() >= USUAL {
            self.told = true;
            let _part = self.span.enter();
            tracing::warn!(
                "{}: it waits for groups that do not answer ('basalt cluster status')",
                self.what()
            );
        }
    }
}

/// The span of what is done for a snapshot, as a part of the call that asked for it.
fn span_of(engine: &Engine, snapshot: &SnapshotRecord) -> Span {
    let key = works::snapshot(&snapshot.volume_id, &snapshot.id);
    let (name, what) = match snapshot.deleting {
        true => ("snapshot.drop", "every group to give back what only the snapshot held"),
        false => ("snapshot.keep", "every group to freeze the generation"),
    };
    let span = tracing::info_span!(
        parent: None,
        "snapshot",
        otel.name = name,
        volume = snapshot.volume_id,
        snapshot = snapshot.id,
        generation = snapshot.generation,
        waits_for = what,
        trace_id = Empty,
    );
    within(span, engine.metadata.work_of(&key))
}

/// A view of a volume that keeps a generation, or drops it. The volume's size is what it is now: a group that
/// it grew into may keep the generation too.
fn config_of(
    engine: &Engine,
    volume: &VolumeRecord,
    snapshot: &SnapshotRecord,
) -> Result<VolumeConfig, String> {
    let map = Arc::new(convert::pool_map(&engine.map())?);
    let record = volume_of(volume);
    let mut config = convert::volume_config(&record, volume.epoch, map, Some(engine.node));
    config.generation = Generation(snapshot.generation);
    Ok(config)
}

/// A reply that wakes the reconciler.
fn ending(engine: &Engine) -> (Reply<()>, oneshot::Receiver<Result<(), DoorError>>) {
    let (ended, end) = oneshot::channel();
    let door = engine.door.clone();
    let reply = Box::new(move |result| {
        // The reconciler may be gone.
        let _ = ended.send(result);
        door.changed.notify_one();
    });
    (reply, end)
}

/// Tells that every group has done it, and writes it down. Who waits for it hears of it when that is on its way:
/// whatever he asks for then comes behind it.
async fn complete(engine: &Arc<Engine>, snapshot: &SnapshotRecord) -> bool {
    let (volume, generation) = (snapshot.volume, snapshot.generation);
    let telling = async {
        if !snapshot.deleting {
            engine.kept.tell(volume, generation);
        }
    };
    let (settled, ()) = tokio::join!(biased; settle(engine, snapshot), telling);
    if settled {
        engine.kept.settled(volume, generation);
    }
    settled
}

/// Writes down that every group has done it.
async fn settle(engine: &Arc<Engine>, snapshot: &SnapshotRecord) -> bool {
    let (volume, generation) = (snapshot.volume, snapshot.generation);
    let written = match snapshot.deleting {
        true => {
            let op = Op::PurgeSnapshot(PurgeSnapshot { volume, generation });
            engine.metadata.change("", op).await
        }
        false => {
            let op = Op::SettleSnapshot(SettleSnapshot { volume, generation });
            engine.metadata.change_along(op).await
        }
    };
    done(written, "writing a snapshot down")
}
