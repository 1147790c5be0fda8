//! Attachments whose node is dead go to another one, if their volumes are told to. The node that leads the metadata
//! group looks at the records, as soon as they change, and never at what changed.

use crate::engine::Engine;
use crate::works;
use basalt_meta::failover::{self, Next};
use basalt_meta::{FailOverVolume, Op, Outcome};
use basalt_telemetry::context::within;
use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::field::Empty;
use tracing::{Instrument, Span};

/// Volumes that are moved at a time.
const AT_A_TIME: usize = 64;
/// From one look to the next at least, and at most.
const PAUSE: Duration = Duration::from_millis(20);
const LOOK: Duration = Duration::from_secs(1);

/// Runs until the engine is gone.
pub(crate) async fn run(weak: Weak<Engine>) {
    let mut waiting = BTreeSet::new();
    loop {
        let Some(engine) = weak.upgrade() else { return };
        let (mut changes, mut elections) = (engine.metadata.changes(), engine.metadata.elections());
        changes.mark_unchanged();
        elections.mark_unchanged();
        if engine.metadata.leads() {
            pass(&engine, &mut waiting).await;
        }
        drop(engine);
        let look = Instant::now() + LOOK;
        sleep(PAUSE).await;
        tokio::select! {
            _ = changes.changed() => {}
            _ = elections.changed() => {}
            () = sleep_until(look) => {}
        }
    }
}

/// Moves what there is to move. `waiting` are the volumes for which there is no node, which is said once.
async fn pass(engine: &Arc<Engine>, waiting: &mut BTreeSet<String>) {
    let next = engine.metadata.look(|state| failover::next(state, AT_A_TIME));
    let mut under_way = JoinSet::new();
    let mut still = BTreeSet::new();
    for step in next {
        match step {
            Next::Go(over) => {
                let span = span_of(engine, &over);
                under_way.spawn(move_one(engine.clone(), over).instrument(span));
            }
            Next::Waits(volume, host) => {
                if !waiting.contains(&volume) {
                    tracing::error!(
                        %volume,
                        "its node '{host}' is down, and no other node that serves NBD is there to take it"
                    );
                }
                still.insert(volume);
            }
        }
    }
    *waiting = still;
    while under_way.join_next().await.is_some() {}
}

/// The span of a failover, as a part of the death of the node that had the volume.
fn span_of(engine: &Engine, over: &FailOverVolume) -> Span {
    let attachment =
        engine.metadata.look(|state| state.volume(&over.id).and_then(|v| v.attachment.clone()));
    let host = attachment.map_or_else(String::new, |attachment| attachment.host);
    let span = tracing::info_span!(
        parent: None,
        "volume.failover",
        volume = over.id,
        from = host,
        node = over.node,
        trace_id = Empty,
    );
    within(span, engine.metadata.work_of(&works::node(&host)))
}

async fn move_one(engine: Arc<Engine>, over: FailOverVolume) {
    let (volume, node) = (over.id.clone(), over.node);
    match engine.metadata.change("", Op::FailOverVolume(over)).await {
        Ok(Outcome::Volume(moved)) => {
            let epoch = moved.attachment.as_ref().map_or(0, |attachment| attachment.epoch);
            tracing::warn!(%volume, node, epoch, "its node is down: attached to another one");
        }
        // It was attached or detached by somebody else, or its node is back.
        Ok(Outcome::Refused(refused)) => tracing::info!(%volume, "not moved: {}", refused.message),
        Ok(_) => {}
        Err(status) => tracing::warn!(%volume, "not moved yet: {}", status.message()),
    }
}
