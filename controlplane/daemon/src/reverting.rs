//! Carries out what the records say of reverts: the leader of the metadata group has every group make a volume
//! what it was in a snapshot, under an epoch of its own for each attempt.
//!
//! Nobody can attach the volume before all groups have done it, so doing it twice comes to the same.

use crate::admin::volume_of;
use crate::engine::{DOOR, Engine};
use crate::reconcile::done;
use crate::retry::Retries;
use crate::works;
use basalt_attach::convert;
use basalt_meta::{Op, Outcome, RaiseEpoch, SettleRevert, VolumeRecord};
use basalt_nbd::{DoorCommand, DoorError};
use basalt_telemetry::context::within;
use basalt_wire::ids::Generation;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::field::Empty;
use tracing::{Instrument, Span};

/// Reverts on their way, by volume.
#[derive(Default)]
pub(crate) struct Reverting {
    under_way: BTreeMap<u64, Job>,
    retries: Retries,
}

struct Job {
    generation: u32,
    /// Part of the call that asked for it.
    span: Span,
    end: oneshot::Receiver<Result<(), DoorError>>,
}

impl Reverting {
    /// Takes up what is to be done, and writes down what is; false if something has to be tried again.
    pub(crate) async fn pass(&mut self, engine: &Arc<Engine>) -> bool {
        let mut clean = self.hear(engine).await;
        if !engine.metadata.leads() {
            return clean;
        }
        let wanted: Vec<(u64, u32)> = engine.metadata.look(|state| {
            let of = |v: &VolumeRecord| Some((v.number, v.revert.as_ref()?.generation));
            state.unsettled_reverts().filter_map(of).collect()
        });
        self.retries.retain(|number| wanted.iter().any(|(volume, _)| *volume == number));
        for (number, generation) in wanted {
            let free = !self.under_way.contains_key(&number);
            if free && self.retries.may(number, Instant::now()) {
                let span = span_of(engine, number);
                let begun = self.begin(engine, number, generation, span.clone());
                clean &= begun.instrument(span).await;
            }
        }
        clean
    }

    /// When to look again at what did not work.
    pub(crate) fn next(&self, now: Instant) -> Option<Instant> {
        self.retries.next(now)
    }

    async fn begin(
        &mut self,
        engine: &Arc<Engine>,
        number: u64,
        generation: u32,
        span: Span,
    ) -> bool {
        // A session can be begun once under an epoch, and one that was begun before is shut out.
        let op = Op::RaiseEpoch(RaiseEpoch { volume: number });
        let volume = match engine.metadata.change("", op).await {
            Ok(Outcome::Volume(volume)) => volume,
            Ok(_) => return true,
            Err(status) => {
                tracing::warn!("reverting a volume has to wait: {}", status.message());
                return false;
            }
        };
        let map = match convert::pool_map(&engine.map()) {
            Ok(map) => Arc::new(map),
            Err(problem) => {
                tracing::error!(volume = %volume.id, "can not be reverted: {problem}");
                return false;
            }
        };
        let record = volume_of(&volume);
        let config = convert::volume_config(&record, volume.epoch, map, Some(engine.node));
        let (ended, end) = oneshot::channel();
        let door = engine.door.clone();
        let reply = Box::new(move |result| {
            // The reconciler may be gone.
            let _ = ended.send(result);
            door.changed.notify_one();
        });
        let command = DoorCommand::Revert { config, generation: Generation(generation), reply };
        engine.reactor.tenant(DOOR, Box::new(command));
        self.under_way.insert(number, Job { generation, span, end });
        true
    }

    async fn hear(&mut self, engine: &Arc<Engine>) -> bool {
        let mut ended = Vec::new();
        self.under_way.retain(|number, job| match job.end.try_recv() {
            Err(oneshot::error::TryRecvError::Empty) => true,
            Ok(end) => {
                let end = end.map_err(|error| error.to_string());
                ended.push((*number, (job.generation, job.span.clone()), end));
                false
            }
            Err(_) => {
                let end = Err("the node is stopping".to_owned());
                ended.push((*number, (job.generation, job.span.clone()), end));
                false
            }
        });
        let mut clean = true;
        for (volume, (generation, span), end) in ended {
            match end {
                Ok(()) => {
                    let op = Op::SettleRevert(SettleRevert { volume, generation });
                    let written = engine.metadata.change("", op).instrument(span).await;
                    clean &= done(written, "writing a revert down");
                }
                Err(problem) => {
                    let random = basalt_api::random::random();
                    let pause = self.retries.failed(volume, Instant::now(), random).as_millis();
                    let _part = span.enter();
                    tracing::warn!("not reverted yet: {problem}; tried again in {pause} ms");
                }
            }
        }
        clean
    }
}

/// The span of a revert, as a part of the call that asked for it.
fn span_of(engine: &Engine, number: u64) -> Span {
    let id = engine.metadata.look(|state| state.volume_by_number(number).map(|v| v.id.clone()));
    let id = id.unwrap_or_default();
    let span = tracing::info_span!(
        parent: None,
        "volume.revert",
        volume = id,
        waits_for = "every group to make the volume what it was in the snapshot",
        trace_id = Empty,
    );
    within(span, engine.metadata.work_of(&works::volume(&id)))
}
