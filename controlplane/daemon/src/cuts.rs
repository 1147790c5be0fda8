//! Cuts as the API shows them: snapshots of several volumes at one point in time.

use crate::admin::id_of;
use crate::metadata::Metadata;
use crate::services::status_of;
use crate::snapshots::shown;
use basalt_api::error;
use basalt_api::v1::{CreateCutRequest, Cut, CutMember};
use basalt_meta::{CreateCut, DeleteCut, MetaState, NewSnapshot, Op, Refused, SnapshotRecord};
use tonic::Status;

const PREFIX: &str = "cuts/";

/// The name of a cut by its number; nothing for none.
pub fn name_of(cut: u64) -> String {
    if cut == 0 { String::new() } else { format!("{PREFIX}{cut}") }
}

/// The number of a cut by its name.
///
/// # Errors
/// If it names none.
pub fn number_of(name: &str) -> Result<u64, Status> {
    let number = name.strip_prefix(PREFIX).and_then(|number| number.parse().ok());
    number.filter(|number| *number > 0 && name == name_of(*number)).ok_or_else(|| {
        let shown = name.escape_debug();
        error::invalid("name", format!("'{shown}' does not name a cut; write cuts/123"))
    })
}

/// What is asked for, as the state machine takes it.
///
/// # Errors
/// If a volume's name is none.
pub fn creation(request: CreateCutRequest) -> Result<Op, Status> {
    let new = |member: CutMember| {
        let volume = id_of(&member.parent)?.to_owned();
        Ok(NewSnapshot { volume, id: member.snapshot_id })
    };
    let snapshots: Result<Vec<NewSnapshot>, Status> =
        request.snapshots.into_iter().map(new).collect();
    Ok(Op::CreateCut(CreateCut { snapshots: snapshots?, labels: request.labels }))
}

/// The deletion of a cut.
///
/// # Errors
/// If the name is none.
pub fn deletion(name: &str) -> Result<Op, Status> {
    Ok(Op::DeleteCut(DeleteCut { cut: number_of(name)? }))
}

/// A cut, as the mirror has it.
///
/// # Errors
/// If there is none of the name.
pub fn get(metadata: &Metadata, name: &str) -> Result<Cut, Status> {
    let cut = number_of(name)?;
    let found = metadata.look(|state| of(state, cut));
    match found.snapshots.is_empty() {
        true => Err(status_of(Refused::cut_not_found(cut))),
        false => Ok(found),
    }
}

/// The cut when it is complete, or as it is after so many milliseconds.
///
/// # Errors
/// If it is given up.
pub async fn completed(metadata: &Metadata, cut: u64, wait_ms: u32) -> Result<Cut, Status> {
    let mut given_up = false;
    let settled = metadata.wait_for(wait_ms, |state| {
        let mut all = state.cut(cut).peekable();
        given_up = all.peek().is_none();
        all.all(|snapshot| {
            given_up |= snapshot.deleting && !snapshot.ready;
            snapshot.ready || snapshot.deleting
        })
    });
    settled.await;
    match given_up {
        true => Err(status_of(Refused::cut_given_up(cut))),
        false => Ok(metadata.look(|state| of(state, cut))),
    }
}

/// Waits until nothing of a cut is there, or so many milliseconds.
pub async fn gone(metadata: &Metadata, cut: u64, wait_ms: u32) {
    metadata.wait_for(wait_ms, |state| state.cut(cut).next().is_none()).await;
}

/// The number of the cut that records belong to.
pub fn number_in(records: &[SnapshotRecord]) -> u64 {
    records.first().map_or(0, |snapshot| snapshot.cut)
}

fn of(state: &MetaState, cut: u64) -> Cut {
    Cut { name: name_of(cut), snapshots: state.cut(cut).map(shown).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_belong_together() {
        assert_eq!(number_of(&name_of(17)).expect("a name"), 17);
        for bad in ["", "cuts/", "cuts/0", "cuts/x", "cuts/017", "17", "cuts/1/2"] {
            assert!(number_of(bad).is_err(), "{bad}");
        }
    }
}
