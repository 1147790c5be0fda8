//! Carries out what the records say of snapshots: the leader of the metadata group keeps generations and
//! drops them, in every group, through its node's door and beside whatever session a volume has.
//!
//! Nothing of it is remembered but what the records say: whoever leads next begins again what is not
//! settled there, and doing it twice does no harm.

use crate::admin::volume_of;
use crate::engine::{DOOR, Engine};
use crate::reconcile::done;
use crate::retry::Retries;
use basalt_attach::convert;
use basalt_meta::{Op, PurgeSnapshot, SettleSnapshot, SnapshotRecord, VolumeRecord};
use basalt_nbd::{DoorCommand, DoorError};
use basalt_wire::ids::Generation;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// How long one may take before it is said that it waits.
const USUAL: Duration = Duration::from_secs(10);

/// Snapshots on their way: one of each volume at a time.
#[derive(Default)]
pub(crate) struct Keeping {
    under_way: BTreeMap<u64, Job>,
    retries: Retries,
}

struct Job {
    snapshot: SnapshotRecord,
    began: Instant,
    told: bool,
    end: oneshot::Receiver<Result<(), DoorError>>,
}

impl Keeping {
    /// Takes up what is to be done, and writes down what is; false if something has to be tried again.
    pub(crate) async fn pass(&mut self, engine: &Arc<Engine>) -> bool {
        let clean = self.hear(engine).await;
        if !engine.metadata.leads() {
            return clean;
        }
        let wanted: Vec<(VolumeRecord, SnapshotRecord)> = engine.metadata.look(|state| {
            let pair =
                |s: &SnapshotRecord| Some((state.volume_by_number(s.volume)?.clone(), s.clone()));
            state.unsettled_snapshots().into_iter().filter_map(pair).collect()
        });
        self.retries.retain(|number| wanted.iter().any(|(volume, _)| volume.number == number));
        for (volume, snapshot) in wanted {
            let free = !self.under_way.contains_key(&volume.number);
            if free && self.retries.may(volume.number, Instant::now()) {
                self.begin(engine, &volume, snapshot);
            }
        }
        clean
    }

    /// When to look again at what did not work.
    pub(crate) fn next(&self, now: Instant) -> Option<Instant> {
        self.retries.next(now)
    }

    fn begin(&mut self, engine: &Arc<Engine>, volume: &VolumeRecord, snapshot: SnapshotRecord) {
        let map = match convert::pool_map(&engine.map()) {
            Ok(map) => Arc::new(map),
            Err(problem) => return tracing::error!("snapshots can not be kept: {problem}"),
        };
        // The volume's size as it is now: a group that it grew into may keep the generation too.
        let record = volume_of(volume);
        let mut config = convert::volume_config(&record, volume.epoch, map, Some(engine.node));
        config.generation = Generation(snapshot.generation);
        let (ended, end) = oneshot::channel();
        let door = engine.door.clone();
        let reply = Box::new(move |result| {
            // The reconciler may be gone.
            let _ = ended.send(result);
            door.changed.notify_one();
        });
        let drop = snapshot.deleting;
        engine.reactor.tenant(DOOR, Box::new(DoorCommand::Snapshot { config, drop, reply }));
        let job = Job { snapshot, began: Instant::now(), told: false, end };
        self.under_way.insert(volume.number, job);
    }

    async fn hear(&mut self, engine: &Arc<Engine>) -> bool {
        let mut ended = Vec::new();
        for (number, job) in &mut self.under_way {
            match job.end.try_recv() {
                Err(oneshot::error::TryRecvError::Empty) => job.tell_waiting(),
                Ok(Ok(())) => ended.push((*number, None)),
                Ok(Err(error)) => ended.push((*number, Some(error.to_string()))),
                Err(_) => ended.push((*number, Some("the node is stopping".to_owned()))),
            }
        }
        let mut clean = true;
        for (number, problem) in ended {
            let Some(job) = self.under_way.remove(&number) else { continue };
            match problem {
                None => clean &= settle(engine, &job.snapshot).await,
                Some(problem) => {
                    let random = basalt_api::random::random();
                    let pause = self.retries.failed(number, Instant::now(), random);
                    let pause = pause.as_millis();
                    tracing::warn!("{}: {problem}; tried again in {pause} ms", job.what());
                }
            }
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
            tracing::warn!(
                "{}: it waits for groups that do not answer ('basalt cluster status')",
                self.what()
            );
        }
    }
}

/// Writes down that every group has done it.
async fn settle(engine: &Arc<Engine>, snapshot: &SnapshotRecord) -> bool {
    let (volume, generation) = (snapshot.volume, snapshot.generation);
    let op = match snapshot.deleting {
        true => Op::PurgeSnapshot(PurgeSnapshot { volume, generation }),
        false => Op::SettleSnapshot(SettleSnapshot { volume, generation }),
    };
    done(engine.metadata.change("", op).await, "writing a snapshot down")
}
