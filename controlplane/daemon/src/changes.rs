//! What differs between two snapshots of a volume, as the API tells it: piece by piece, each asked of the groups
//! when the one before was taken.

use crate::admin::volume_of;
use crate::engine::{DOOR, Engine};
use crate::snapshots;
use basalt_api::error;
use basalt_api::v1::{Extent, ListChangesRequest, ListChangesResponse, extent::Kind};
use basalt_attach::convert;
use basalt_client::{BlockOp, BlockResult, VolumeConfig};
use basalt_meta::{MetaState, Refused, SnapshotRecord};
use basalt_nbd::DoorCommand;
use basalt_wire::ids::Generation;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

/// Bytes of the volume that one answer is about: all its extents fit a message.
const STEP: u64 = 256 << 20;
/// Answers that are ready before the caller takes them.
const AHEAD: usize = 2;
const BLOCK: u64 = 4096;

/// Answers, in order; the last one may be an error.
pub type Answers = mpsc::Receiver<Result<ListChangesResponse, Status>>;

/// Two snapshots that are compared; the older one may be none.
struct Comparison {
    config: VolumeConfig,
    since: Option<Generation>,
}

/// Begins to tell what differs.
///
/// # Errors
/// If there are no such snapshots.
pub fn list(engine: &Arc<Engine>, request: &ListChangesRequest) -> Result<Answers, Status> {
    let comparison = compared(engine, request)?;
    let (size, mut offset) = (comparison.config.size_bytes, request.offset);
    if !offset.is_multiple_of(BLOCK) || offset > size {
        let message =
            format!("{offset} is no multiple of {BLOCK} up to the snapshot's size, {size}");
        return Err(error::invalid("offset", message));
    }
    let (answers, given) = mpsc::channel(AHEAD);
    let engine = engine.clone();
    tokio::spawn(async move {
        loop {
            let answer = comparison.step(&engine, offset).await;
            let next = answer.as_ref().ok().map(|answer| answer.next_offset);
            // The caller may have gone.
            if answers.send(answer).await.is_err() {
                return;
            }
            match next {
                Some(next) if next < size => offset = next,
                _ => return,
            }
        }
    });
    Ok(given)
}

fn compared(engine: &Engine, request: &ListChangesRequest) -> Result<Comparison, Status> {
    let volume_id = crate::admin::id_of(&request.parent)?;
    let map = Arc::new(convert::pool_map(&engine.map()).map_err(Status::internal)?);
    engine.metadata.look(|state| {
        let volume = snapshots::volume_of(state, volume_id)?;
        let find = |id: &str| complete(state, volume.number, volume_id, id);
        let to = find(&request.to_snapshot_id)?;
        let from = match request.from_snapshot_id.as_str() {
            "" => None,
            id => Some(find(id)?),
        };
        if from.as_ref().is_some_and(|from| from.generation > to.generation) {
            let message = format!(
                "'{}' is later than '{}': give the older one first",
                request.from_snapshot_id, request.to_snapshot_id
            );
            return Err(error::invalid("from_snapshot_id", message));
        }
        let record = volume_of(volume);
        let mut config = convert::volume_config(&record, volume.epoch, map, Some(engine.node));
        config.generation = Generation(to.generation);
        config.size_bytes = to.size_bytes;
        Ok(Comparison { config, since: from.map(|from| Generation(from.generation)) })
    })
}

fn complete(
    state: &MetaState,
    volume: u64,
    volume_id: &str,
    id: &str,
) -> Result<SnapshotRecord, Status> {
    let found = state.snapshot(volume, id).filter(|s| s.ready && !s.deleting).cloned();
    found.ok_or_else(|| crate::services::status_of(Refused::snapshot_not_found(volume_id, id)))
}

impl Comparison {
    /// What differs from an offset on, for some way.
    async fn step(&self, engine: &Engine, offset: u64) -> Result<ListChangesResponse, Status> {
        let size_bytes = self.config.size_bytes;
        let len = STEP.min(size_bytes - offset);
        if len == 0 {
            return Ok(ListChangesResponse {
                extents: Vec::new(),
                next_offset: offset,
                size_bytes,
            });
        }
        let mapped = self.ask(engine, BlockOp::Extents { offset, len }).await?;
        let changed = match self.since {
            Some(since) => self.ask(engine, BlockOp::Changes { offset, len, since }).await?,
            None => mapped.clone(),
        };
        let (extents, covered) = merged(offset, &changed, &mapped);
        if covered == 0 {
            return Err(Status::internal("the groups told of nothing"));
        }
        Ok(ListChangesResponse { extents, next_offset: offset + covered, size_bytes })
    }

    async fn ask(&self, engine: &Engine, op: BlockOp) -> Result<Vec<(u64, bool)>, Status> {
        let (told, answer) = oneshot::channel();
        let reply = Box::new(move |result| {
            // The caller may have gone.
            let _ = told.send(result);
        });
        let config = self.config.clone();
        engine.reactor.tenant(DOOR, Box::new(DoorCommand::Ask { config, op, reply }));
        match answer.await {
            Ok(Ok(BlockResult::Extents(runs))) => Ok(runs),
            Ok(Ok(other)) => Err(Status::internal(format!("extents came as {other:?}"))),
            Ok(Err(problem)) => Err(Status::aborted(format!(
                "{problem}; one of the snapshots may have been deleted meanwhile"
            ))),
            Err(_) => Err(Status::unavailable("the node is stopping")),
        }
    }
}

/// The extents of what changed, by whether it is mapped, and how far both lists reach.
fn merged(start: u64, changed: &[(u64, bool)], mapped: &[(u64, bool)]) -> (Vec<Extent>, u64) {
    let mut extents: Vec<Extent> = Vec::new();
    let (mut changed, mut mapped) = (changed.iter().copied(), mapped.iter().copied());
    let (mut change, mut map) = (changed.next(), mapped.next());
    let mut at = start;
    while let (Some((left, is_changed)), Some((room, is_mapped))) = (change, map) {
        let length = left.min(room);
        if is_changed {
            let kind = if is_mapped { Kind::Data } else { Kind::Zero }.into();
            match extents.last_mut().filter(|e| e.kind == kind && e.offset + e.length == at) {
                Some(last) => last.length += length,
                None => extents.push(Extent { offset: at, length, kind }),
            }
        }
        at += length;
        change = if left > length { Some((left - length, is_changed)) } else { changed.next() };
        map = if room > length { Some((room - length, is_mapped)) } else { mapped.next() };
    }
    (extents, at - start)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(start: u64, changed: &[(u64, bool)], mapped: &[(u64, bool)]) -> Vec<(u64, u64, Kind)> {
        let (extents, covered) = merged(start, changed, mapped);
        let sum = |runs: &[(u64, bool)]| runs.iter().map(|run| run.0).sum::<u64>();
        assert_eq!(covered, sum(changed).min(sum(mapped)));
        extents.iter().map(|e| (e.offset, e.length, e.kind())).collect()
    }

    #[test]
    fn what_changed_is_data_or_zeros() {
        let (b, d, z) = (BLOCK, Kind::Data, Kind::Zero);
        let changed = [(2 * b, false), (4 * b, true), (b, false), (b, true)];
        let mapped = [(3 * b, true), (2 * b, false), (3 * b, true)];
        let found = told(b, &changed, &mapped);
        assert_eq!(found, [(3 * b, b, d), (4 * b, 2 * b, z), (6 * b, b, d), (8 * b, b, d)]);
    }

    #[test]
    fn the_shorter_list_ends_it_and_neighbours_are_one() {
        let b = BLOCK;
        let found = told(0, &[(b, true), (b, true), (b, true)], &[(b, true), (b, true)]);
        assert_eq!(found, [(0, 2 * b, Kind::Data)]);
        assert_eq!(told(0, &[], &[(b, true)]), []);
    }
}
