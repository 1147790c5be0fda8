//! The blocks of deleted volumes: the metadata group's leader has them deleted, several volumes at a time.
//!
//! A deletion is a session of the control plane's own under a new epoch, so that no host that had the volume
//! before can
//! write to it any more. Nothing is remembered but the records: the next leader begins again what is not done.

use crate::engine::{DOOR, Engine};
use crate::reconcile::done;
use crate::retry::Retries;
use crate::works;
use basalt_attach::convert;
use basalt_meta::{Op, Outcome, PurgeVolume, RaiseEpoch};
use basalt_nbd::DoorCommand;
use basalt_telemetry::context::within;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::field::Empty;
use tracing::{Instrument, Span};

/// Volumes whose blocks are deleted at the same time. Each is an entry in every group.
const AT_ONCE: usize = 16;

/// What is being deleted.
#[derive(Default)]
pub struct Deletions {
    /// By number; each tells whether it came to its end.
    under_way: BTreeMap<u64, oneshot::Receiver<bool>>,
    retries: Retries,
}

impl Deletions {
    /// When the next one that failed is tried again.
    pub fn next(&self, now: Instant) -> Option<Instant> {
        self.retries.next(now)
    }

    /// Begins what is to be deleted, and hears of what was.
    pub fn pass(&mut self, engine: &Arc<Engine>) {
        let now = Instant::now();
        let (mut failed, mut over) = (Vec::new(), Vec::new());
        for (number, end) in &mut self.under_way {
            match end.try_recv() {
                Err(oneshot::error::TryRecvError::Empty) => {}
                Ok(true) => over.push(*number),
                _ => failed.push(*number),
            }
        }
        for number in over.iter().chain(&failed) {
            self.under_way.remove(number);
        }
        self.retries.retain(|number| !over.contains(&number));
        for number in failed {
            self.retries.failed(number, now, basalt_api::random::random());
        }
        if !engine.metadata.leads() {
            return;
        }
        let (under_way, retries) = (&self.under_way, &self.retries);
        let free = AT_ONCE.saturating_sub(under_way.len());
        if free == 0 {
            return;
        }
        let may = |number: &u64| !under_way.contains_key(number) && retries.may(*number, now);
        let next: Vec<u64> = engine.metadata.look(|state| {
            let all = state.volumes_to_delete().map(|volume| volume.number);
            all.filter(may).take(free).collect()
        });
        for number in next {
            let (end, told) = oneshot::channel();
            self.under_way.insert(number, told);
            let span = span_of(engine, number);
            tokio::spawn(delete(engine.clone(), number, end).instrument(span));
        }
    }
}

/// The span of a deletion, as a part of the call that asked for it.
fn span_of(engine: &Engine, number: u64) -> Span {
    let id = engine.metadata.look(|state| state.volume_by_number(number).map(|v| v.id.clone()));
    let id = id.unwrap_or_default();
    let span = tracing::info_span!(
        parent: None,
        "volume.delete",
        volume = id,
        waits_for = "every group to delete the volume's blocks",
        trace_id = Empty,
    );
    within(span, engine.metadata.work_of(&works::volume(&id)))
}

/// Deletes the blocks of a volume, and then its record.
async fn delete(engine: Arc<Engine>, number: u64, end: oneshot::Sender<bool>) {
    let result = blocks(&engine, number).await;
    if let Err(problem) = &result {
        tracing::warn!("its blocks are not deleted yet: {problem}");
    }
    let purged = result.is_ok() && {
        let op = Op::PurgeVolume(PurgeVolume { volume: number });
        done(engine.metadata.change("", op).await, "purging a volume")
    };
    // The reconciler may be gone.
    let _ = end.send(purged);
    engine.door.changed.notify_one();
}

async fn blocks(engine: &Arc<Engine>, number: u64) -> Result<(), String> {
    let op = Op::RaiseEpoch(RaiseEpoch { volume: number });
    let volume = match engine.metadata.change("", op).await {
        Ok(Outcome::Volume(volume)) => volume,
        // It is gone already, and purging it does no harm.
        Ok(_) => return Ok(()),
        Err(status) => return Err(status.message().to_owned()),
    };
    let map = Arc::new(convert::pool_map(&engine.map())?);
    let record = crate::admin::volume_of(&volume);
    let config = convert::volume_config(&record, volume.epoch, map, Some(engine.node));
    let (done, outcome) = oneshot::channel();
    let reply = Box::new(move |result| {
        // Whoever waits may have been dropped with the runtime.
        let _ = done.send(result);
    });
    engine.reactor.tenant(DOOR, Box::new(DoorCommand::Delete { config, reply }));
    match outcome.await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("the node is stopping".to_owned()),
    }
}
