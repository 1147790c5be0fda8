//! The gRPC services beside [`crate::admin`]: what is declared, what happened, what is under way, and the watch
//! over all of
//! it; and what all of them share.

pub mod apply;
pub mod classes;
pub mod events;
pub mod health;
pub mod operations;
pub mod paging;
pub mod pools;
pub mod quotas;
pub mod shown;
pub mod watch;

use crate::daemon::Daemon;
use crate::metadata::Metadata;
use basalt_api::error;
use basalt_meta::{Op, Outcome, Refused};
use std::sync::Arc;
use tonic::Status;

const REQUEST_ID_MAX: usize = 128;

/// Makes a change of the records.
///
/// # Errors
/// If it was refused, or did not come through in time.
pub async fn change(daemon: &Arc<Daemon>, request_id: &str, op: Op) -> Result<Outcome, Status> {
    if request_id.len() > REQUEST_ID_MAX {
        let message = format!("a request id has at most {REQUEST_ID_MAX} bytes; use a UUID");
        return Err(error::invalid("request_id", message));
    }
    accepted(daemon.engine()?.metadata.change(request_id, op).await?)
}

/// What a change would come to, with all that was committed before.
///
/// # Errors
/// If it would be refused, or no leader could be reached.
pub async fn rehearse(daemon: &Arc<Daemon>, op: Op) -> Result<Outcome, Status> {
    let metadata = linearized(daemon).await?;
    let mut state = metadata.look(Clone::clone);
    accepted(crate::metadata::rehearse(&mut state, op))
}

/// The mirror, with everything in it that was committed before the call.
///
/// # Errors
/// If the node belongs to no cluster, or no leader could be reached.
pub async fn linearized(daemon: &Arc<Daemon>) -> Result<Arc<Metadata>, Status> {
    let metadata = daemon.engine()?.metadata.clone();
    metadata.barrier().await?;
    Ok(metadata)
}

/// The outcome of a change that was not refused.
///
/// # Errors
/// The refusal.
pub fn accepted(outcome: Outcome) -> Result<Outcome, Status> {
    match outcome {
        Outcome::Refused(refused) => Err(status_of(refused)),
        outcome => Ok(outcome),
    }
}

/// A refusal as the API tells it.
pub fn status_of(refused: Refused) -> Status {
    error::status(refused.reason, refused.message, &refused.facts)
}

/// What a change that came to something else than it should is answered with.
pub fn unexpected(outcome: &Outcome) -> Status {
    Status::internal(format!("a change came to {outcome:?}"))
}

/// The last part of the name of a resource of a collection.
///
/// # Errors
/// If the name is none of that collection.
pub fn id_in<'a>(collection: &str, name: &'a str) -> Result<&'a str, Status> {
    let id = name.strip_prefix(collection).and_then(|rest| rest.strip_prefix('/'));
    match id {
        Some(id) if !id.is_empty() && !id.contains('/') => Ok(id),
        _ => Err(error::invalid(
            "name",
            format!(
                "'{}' names none of the {collection}; write {collection}/NAME",
                name.escape_debug()
            ),
        )),
    }
}

/// The number that a name of a collection of numbered resources ends with.
///
/// # Errors
/// If the name is none of that collection.
pub fn number_in(collection: &str, name: &str) -> Result<Option<u64>, Status> {
    Ok(id_in(collection, name)?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        assert_eq!(id_in("quotas", "quotas/a").expect("a name"), "a");
        assert_eq!(number_in("events", "events/12").expect("a name"), Some(12));
        assert_eq!(number_in("events", "events/x").expect("a name"), None);
        for bad in ["", "quotas", "quotas/", "quotas/a/b", "volumes/a", "quotasx/a"] {
            assert!(id_in("quotas", bad).is_err(), "{bad}");
        }
    }
}
