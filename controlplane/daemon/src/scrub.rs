//! Scrubs that a user asks for, and how far the node's own has come: remembered, so that the next start goes on
//! there.

use crate::daemon::Daemon;
use crate::engine::Engine;
use basalt_api::v1::{ErrorReason, Member, ScrubRequest, StartScrubResponse};
use basalt_api::{dial, error};
use basalt_core::config::{ScrubPlace, ScrubResume};
use basalt_core::event::Event;
use basalt_store::{ScrubPlaceRecord, ScrubRecord, Store, StoreError};
use basalt_wire::ids::{GroupId, VolumeId};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::task::JoinSet;
use tonic::Status;

/// How often it is remembered how far the scrub has come: what a start does once more.
const REMEMBER: Duration = Duration::from_secs(60);

/// How long a node may take to begin.
const BEGIN: Duration = Duration::from_secs(5);

/// Has this node look at all of its blocks.
///
/// # Errors
/// If it belongs to no cluster yet.
pub fn begin(daemon: &Daemon) -> Result<(), Status> {
    daemon.engine()?.reactor.event(Event::Scrub);
    Ok(())
}

/// Has one node, or all, look at all of their blocks.
///
/// # Errors
/// If there is no such node.
pub async fn start(daemon: &Arc<Daemon>, only: &str) -> Result<StartScrubResponse, Status> {
    let engine = daemon.engine()?;
    let mut members = engine.spec().members;
    members.retain(|m| only.is_empty() || m.name == only || m.node.to_string() == only);
    if members.is_empty() {
        let text = format!("the cluster has no node '{only}'");
        return Err(error::status(ErrorReason::InvalidField, text, &[]));
    }
    let mut asked = JoinSet::new();
    for member in members {
        let daemon = daemon.clone();
        let here = member.node == engine.node.0;
        asked.spawn(async move {
            let began = if here { begin(&daemon) } else { ask(&member).await };
            (member.name, began)
        });
    }
    let mut answer = StartScrubResponse::default();
    while let Some(began) = asked.join_next().await {
        let (name, began) = began.map_err(|e| Status::internal(e.to_string()))?;
        match began {
            Ok(()) => answer.started.push(name),
            Err(status) => {
                answer.problems.insert(name, dial::plain(&status));
            }
        }
    }
    answer.started.sort_unstable();
    Ok(answer)
}

async fn ask(member: &Member) -> Result<(), Status> {
    dial::peer(&member.grpc_address, BEGIN)?.scrub(ScrubRequest {}).await?;
    Ok(())
}

/// How far an earlier start had come.
///
/// # Errors
/// If the store can not be read.
pub fn resumed(store: &Store) -> Result<Option<ScrubResume>, StoreError> {
    let record = store.scrubbed()?;
    Ok(record.map(|record| {
        let place = record.place.map(|at| ScrubPlace {
            group: GroupId(at.group),
            page: (VolumeId(at.volume), at.chunk),
            left: usize::try_from(at.left).unwrap_or(usize::MAX),
        });
        // A clock that was put back makes a pass look younger than it is, no more.
        let since = Duration::from_secs(seconds_now().saturating_sub(record.began));
        ScrubResume { since, place }
    }))
}

/// Remembers how far the scrub has come, as long as the engine runs.
pub async fn remember(engine: Weak<Engine>) {
    let (mut begun, mut began, mut last) = (0, None, None);
    loop {
        tokio::time::sleep(REMEMBER).await;
        let Some(engine) = engine.upgrade() else { return };
        let Ok(status) = engine.status().await else { return };
        let Some(scrub) = status.shard().map(|shard| shard.scrub) else { continue };
        if scrub.scrub.begun > begun {
            (begun, began) = (scrub.scrub.begun, Some(seconds_now()));
        }
        let place = scrub.position.map(|at| ScrubPlaceRecord {
            group: at.group.0,
            volume: at.page.0.0,
            chunk: at.page.1,
            left: at.left as u64,
        });
        let store = engine.store.clone();
        let before = last.clone();
        let noted =
            tokio::task::spawn_blocking(move || -> Result<Option<ScrubRecord>, StoreError> {
                let known = store.scrubbed()?.map(|record| record.began);
                let Some(began) = began.or(known) else { return Ok(None) };
                let record = ScrubRecord::new(began, place);
                if before.as_ref() != Some(&record) {
                    store.note_scrub(record.clone())?;
                }
                Ok(Some(record))
            });
        match noted.await {
            Ok(Ok(record)) => last = record,
            Ok(Err(problem)) => tracing::warn!("where the scrub stands is not noted: {problem}"),
            Err(_) => return,
        }
    }
}

fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
