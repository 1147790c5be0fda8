//! Snapshots as the API shows them.

use crate::admin::id_of;
use crate::engine::Engine;
use crate::kept;
use crate::metadata::Metadata;
use crate::services::paging::{Page, bad_token};
use crate::services::status_of;
use basalt_api::error;
use basalt_api::v1::{
    AwaitSnapshotRequest, ListSnapshotsRequest, ListSnapshotsResponse, Snapshot, snapshot,
};
use basalt_meta::{MetaState, Refused, SnapshotRecord, VolumeRecord, etag_of_snapshot};
use basalt_wire::ids::GroupId;
use tonic::Status;

const PART: &str = "/snapshots/";

/// A snapshot as the API shows it.
pub fn shown(record: &SnapshotRecord) -> Snapshot {
    let state = match record {
        SnapshotRecord { deleting: true, .. } => snapshot::State::Deleting,
        SnapshotRecord { ready: true, .. } => snapshot::State::Ready,
        _ => snapshot::State::Creating,
    };
    Snapshot {
        name: path_of(&record.volume_id, &record.id),
        generation: record.generation,
        size_bytes: record.size_bytes,
        state: state.into(),
        labels: record.labels.clone(),
        create_time_ms: record.create_time_ms,
        etag: etag_of_snapshot(record),
        cut: crate::cuts::name_of(record.cut),
    }
}

/// The name of a snapshot of a volume.
pub fn path_of(volume: &str, id: &str) -> String {
    format!("volumes/{volume}{PART}{id}")
}

/// The volume and the snapshot that a name names.
pub fn ids_of(name: &str) -> Result<(&str, &str), Status> {
    let parts = name.split_once(PART).filter(|(_, id)| !id.is_empty() && !id.contains('/'));
    match parts.map(|(volume, id)| (id_of(volume), id)) {
        Some((Ok(volume), id)) => Ok((volume, id)),
        _ => Err(error::invalid(
            "name",
            format!(
                "'{}' does not name a snapshot; write volumes/demo/snapshots/monday",
                name.escape_debug()
            ),
        )),
    }
}

/// One snapshot, as the mirror has it.
pub fn get(metadata: &Metadata, name: &str) -> Result<Snapshot, Status> {
    let (volume, id) = ids_of(name)?;
    metadata.look(|state| {
        let number = volume_of(state, volume)?.number;
        let found = state.snapshot(number, id).map(shown);
        found.ok_or_else(|| status_of(Refused::snapshot_not_found(volume, id)))
    })
}

/// A page of a volume's snapshots, as the mirror has them.
pub fn list(
    metadata: &Metadata,
    request: &ListSnapshotsRequest,
) -> Result<ListSnapshotsResponse, Status> {
    let volume = id_of(&request.parent)?;
    let page = Page::asked(request.page_size, &request.page_token, &[&request.parent])?;
    let after = page.after.as_deref().map(str::parse::<u32>).transpose();
    let after = after.map_err(|_| bad_token())?;
    metadata.look(|state| {
        let number = volume_of(state, volume)?.number;
        let found = state.snapshots_after(number, after).take(page.size + 1);
        let mut snapshots: Vec<Snapshot> = found.map(shown).collect();
        let next_page_token = page.cut(&mut snapshots, |s| s.generation.to_string());
        Ok(ListSnapshotsResponse { snapshots, next_page_token })
    })
}

/// The snapshot as it is when it is complete, when it is to be deleted, or after so many milliseconds. It is
/// complete when every group keeps it: from then on it is there for good, and whoever leads writes that down. What
/// this
/// answer saves is the time of that, a third of all.
pub async fn completed(engine: &Engine, snapshot: SnapshotRecord, wait_ms: u32) -> SnapshotRecord {
    let kept = kept_by_all(engine, (snapshot.volume, snapshot.generation), wait_ms);
    tokio::select! {
        biased;
        record = settled(&engine.metadata, snapshot.clone(), wait_ms) => record,
        () = kept => SnapshotRecord { ready: true, ..snapshot },
    }
}

/// Ends when every group is known to keep a snapshot; never if that is not heard.
async fn kept_by_all(engine: &Engine, (volume, generation): (u64, u32), wait_ms: u32) {
    if wait_ms == 0 {
        return std::future::pending().await;
    }
    let leader = engine.metadata.leader(GroupId::METADATA).and_then(|leader| leader.node);
    let kept = if leader == Some(engine.node) {
        kept::known_within(engine, (volume, generation), wait_ms).await
    } else {
        let others = engine.metadata.others(leader).into_iter();
        let client =
            others.filter(|(node, _)| Some(*node) == leader).map(|(_, client)| client).next();
        let cluster = engine.cluster();
        let request = AwaitSnapshotRequest { cluster, volume, generation, wait_ms };
        match client {
            Some(mut client) => {
                client.await_snapshot(request).await.is_ok_and(|a| a.get_ref().kept)
            }
            None => false,
        }
    };
    if !kept {
        std::future::pending::<()>().await;
    }
}

async fn settled(metadata: &Metadata, snapshot: SnapshotRecord, wait_ms: u32) -> SnapshotRecord {
    let (volume, generation) = (snapshot.volume, snapshot.generation);
    let mut last = snapshot;
    let settled = metadata.wait_for(wait_ms, |state| {
        match state.snapshot_of(volume, generation) {
            Some(found) => last.clone_from(found),
            None => last.deleting = true,
        }
        last.ready || last.deleting
    });
    settled.await;
    last
}

/// Waits until a snapshot is gone, or so many milliseconds.
pub async fn gone(metadata: &Metadata, snapshot: &SnapshotRecord, wait_ms: u32) {
    let (volume, generation) = (snapshot.volume, snapshot.generation);
    metadata.wait_for(wait_ms, |state| state.snapshot_of(volume, generation).is_none()).await;
}

/// A volume by the last part of its name.
pub(crate) fn volume_of<'a>(
    state: &'a MetaState,
    volume: &str,
) -> Result<&'a VolumeRecord, Status> {
    state.volume(volume).ok_or_else(|| status_of(Refused::volume_not_found(volume)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        assert_eq!(ids_of("volumes/a/snapshots/b").expect("a name"), ("a", "b"));
        for bad in
            ["", "volumes/a", "a/snapshots/b", "volumes/a/snapshots/", "volumes/a/snapshots/b/c"]
        {
            assert!(ids_of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_snapshot_being_deleted_is_shown_so_whether_it_was_complete_or_not() {
        for ready in [false, true] {
            let record = SnapshotRecord { ready, deleting: true, ..SnapshotRecord::default() };
            assert_eq!(shown(&record).state(), snapshot::State::Deleting);
        }
    }
}
