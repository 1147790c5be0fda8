//! The watch over all resources.
//!
//! A watcher is given resources as they are when it is told, not as they were after each change: one that is slow
//! gets
//! less, and never something that is over. What it waits for is one number, the revision; nothing is kept for it.

use super::paging::{filter_over, holds};
use super::shown::{COLLECTIONS, keys, name_of, resource};
use super::{apply, linearized};
use crate::access::caller;
use crate::daemon::Daemon;
use crate::metadata::Metadata;
use basalt_api::error;
use basalt_api::filter::Filter;
use basalt_api::v1::resource::Resource as Of;
use basalt_api::v1::resources_server::Resources;
use basalt_api::v1::watch_response::What;
use basalt_api::v1::{
    ApplyRequest, ApplyResponse, ErrorReason, Event, NodeRecord, Quota, Resource, Snapshot,
    StorageClass, Volume, WatchRequest, WatchResponse, WatchedOperation,
};
use basalt_meta::feed::{Compacted, Key, Kind};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// How often a watcher to whom nothing else is to be told is told the revision.
const BOOKMARK: Duration = Duration::from_secs(10);
/// Messages on their way to a watcher that does not take them.
const WAITING: usize = 256;

/// The service.
pub struct ResourcesService {
    daemon: Arc<Daemon>,
}

impl ResourcesService {
    /// Of this node.
    pub fn new(daemon: Arc<Daemon>) -> ResourcesService {
        ResourcesService { daemon }
    }
}

type Answer = Result<WatchResponse, Status>;

#[tonic::async_trait]
impl Resources for ResourcesService {
    type WatchStream = ReceiverStream<Answer>;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<ReceiverStream<Answer>>, Status> {
        let wanted = Wanted::read(request.get_ref())?;
        let from = request.get_ref().from_revision;
        let metadata = linearized(&self.daemon).await?;
        if from > 0 {
            // Said at once, as an error of the call.
            metadata.changed_since(from).map_err(compacted)?;
        }
        let (answers, taken) = mpsc::channel(WAITING);
        tokio::spawn(async move {
            let watcher = Watcher { metadata, wanted, answers, told: BTreeSet::new() };
            // It ends when nobody listens any more, or with an error that was told.
            let _ = watcher.run(from).await;
        });
        Ok(Response::new(ReceiverStream::new(taken)))
    }

    async fn apply(
        &self,
        request: Request<ApplyRequest>,
    ) -> Result<Response<ApplyResponse>, Status> {
        let who = caller(&request);
        apply::apply(&self.daemon, &who, request.into_inner()).await.map(Response::new)
    }
}

/// What a watcher wants to know of.
struct Wanted {
    kinds: Vec<(Kind, Filter)>,
    name: String,
}

impl Wanted {
    fn read(request: &WatchRequest) -> Result<Wanted, Status> {
        let named = |kind: &String| {
            let found = COLLECTIONS.iter().find(|(collection, _)| collection == kind);
            found.map(|(_, kind)| *kind).ok_or_else(|| unknown_kind(kind))
        };
        let kinds: Vec<Kind> = match request.kinds.is_empty() {
            true => COLLECTIONS.iter().map(|(_, kind)| *kind).collect(),
            false => request.kinds.iter().map(named).collect::<Result<_, _>>()?,
        };
        let text = &request.filter;
        let filter = |kind: Kind| match kind {
            Kind::Volume => filter_over::<Volume>(text),
            Kind::Snapshot => filter_over::<Snapshot>(text),
            Kind::Class => filter_over::<StorageClass>(text),
            Kind::Quota => filter_over::<Quota>(text),
            Kind::Node => filter_over::<NodeRecord>(text),
            Kind::Event => filter_over::<Event>(text),
            Kind::Operation => filter_over::<WatchedOperation>(text),
        };
        let kinds = kinds.into_iter().map(|kind| filter(kind).map(|filter| (kind, filter)));
        Ok(Wanted { kinds: kinds.collect::<Result<_, _>>()?, name: request.name.clone() })
    }

    fn covers(&self, key: &Key) -> bool {
        let kind = self.kinds.iter().any(|(kind, _)| *kind == key.kind);
        kind && (self.name.is_empty() || is_at_or_below(&name_of(key), &self.name))
    }

    fn holds(&self, key: &Key, resource: &Resource) -> bool {
        let Some((_, filter)) = self.kinds.iter().find(|(kind, _)| *kind == key.kind) else {
            return false;
        };
        match &resource.resource {
            Some(Of::Volume(of)) => holds(filter, of),
            Some(Of::Snapshot(of)) => holds(filter, of),
            Some(Of::StorageClass(of)) => holds(filter, of),
            Some(Of::Quota(of)) => holds(filter, of),
            Some(Of::Node(of)) => holds(filter, of),
            Some(Of::Event(of)) => holds(filter, of),
            Some(Of::Operation(of)) => holds(filter, of),
            None => false,
        }
    }

    fn filters(&self) -> bool {
        self.kinds.iter().any(|(_, filter)| !filter.is_empty())
    }
}

fn is_at_or_below(name: &str, wanted: &str) -> bool {
    name.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn unknown_kind(kind: &str) -> Status {
    let known: Vec<&str> = COLLECTIONS.iter().map(|(collection, _)| *collection).collect();
    let message =
        format!("'{}' is no collection; those are {}", kind.escape_debug(), known.join(", "));
    error::invalid("kinds", message)
}

fn compacted(Compacted { oldest }: Compacted) -> Status {
    let message = format!(
        "changes are kept from revision {oldest} on; begin the watch again without a revision, which \
         tells everything as it is first"
    );
    error::status(ErrorReason::RevisionCompacted, message, &[("oldest", oldest.to_string())])
}

/// Nobody listens any more, or the watch came to its end.
struct Over;

struct Watcher {
    metadata: Arc<Metadata>,
    wanted: Wanted,
    answers: mpsc::Sender<Answer>,
    /// What was told and not told as deleted since; only kept where a filter may make that differ from what there is.
    told: BTreeSet<Key>,
}

impl Watcher {
    async fn run(mut self, from: u64) -> Result<(), Over> {
        let mut changes = self.metadata.changes();
        changes.mark_unchanged();
        let mut at = match from {
            0 => self.tell_all().await?,
            from => from,
        };
        let mut quiet_until = Instant::now() + BOOKMARK;
        loop {
            let (latest, keys) = match self.metadata.changed_since(at) {
                Ok(found) => found,
                Err(gone) => {
                    self.send(Err(compacted(gone))).await?;
                    return Err(Over);
                }
            };
            let mut told = false;
            for (revision, key) in keys {
                told |= self.tell(revision, &key).await?;
            }
            at = latest.max(at);
            let now = Instant::now();
            if now >= quiet_until {
                self.say(at, What::Bookmark(())).await?;
            }
            if told || now >= quiet_until {
                quiet_until = now + BOOKMARK;
            }
            tokio::select! {
                changed = changes.changed() => changed.map_err(|_| Over)?,
                () = sleep_until(quiet_until) => {}
                () = self.answers.closed() => return Err(Over),
            }
        }
    }

    /// Tells everything that there is, and up to which revision that is.
    async fn tell_all(&mut self) -> Result<u64, Over> {
        // What changes meanwhile is told after it.
        let (revision, all) = self.metadata.look(|state| {
            let kinds = self.wanted.kinds.iter().map(|(kind, _)| *kind);
            let all: Vec<Key> = kinds.flat_map(|kind| keys(state, kind)).collect();
            (state.applied(), all)
        });
        for key in all {
            self.tell(revision, &key).await?;
        }
        self.say(revision, What::Synced(())).await?;
        Ok(revision)
    }

    async fn tell(&mut self, revision: u64, key: &Key) -> Result<bool, Over> {
        if !self.wanted.covers(key) {
            return Ok(false);
        }
        let found = self.metadata.look(|state| resource(state, key));
        let what = match found.filter(|resource| self.wanted.holds(key, resource)) {
            Some(resource) => {
                if self.wanted.filters() {
                    self.told.insert(key.clone());
                }
                What::Changed(resource)
            }
            None if self.wanted.filters() && !self.told.remove(key) => return Ok(false),
            None => What::Deleted(name_of(key)),
        };
        self.say(revision, what).await?;
        Ok(true)
    }

    async fn say(&self, revision: u64, what: What) -> Result<(), Over> {
        self.send(Ok(WatchResponse { revision, what: Some(what) })).await
    }

    async fn send(&self, answer: Answer) -> Result<(), Over> {
        self.answers.send(answer).await.map_err(|_| Over)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(kinds: &[&str], filter: &str, name: &str) -> WatchRequest {
        WatchRequest {
            kinds: kinds.iter().map(|kind| (*kind).to_owned()).collect(),
            filter: filter.to_owned(),
            name: name.to_owned(),
            ..WatchRequest::default()
        }
    }

    fn covers(request: &WatchRequest, kind: Kind, id: &str) -> bool {
        let wanted = Wanted::read(request).unwrap_or_else(|e| panic!("{e}"));
        wanted.covers(&Key { kind, id: id.to_owned() })
    }

    #[test]
    fn a_watch_covers_what_it_names() {
        let all = request(&[], "", "");
        assert!(covers(&all, Kind::Volume, "a") && covers(&all, Kind::Event, "3"));
        let volumes = request(&["volumes"], "", "");
        assert!(
            covers(&volumes, Kind::Volume, "a")
                && !covers(&volumes, Kind::Snapshot, "a/snapshots/b")
        );
        let below = request(&[], "", "volumes/a");
        assert!(
            covers(&below, Kind::Volume, "a") && covers(&below, Kind::Snapshot, "a/snapshots/b")
        );
        assert!(!covers(&below, Kind::Volume, "ab") && !covers(&below, Kind::Quota, "a"));
    }

    #[test]
    fn what_is_wrong_with_a_watch_is_said() {
        let problem = |request| Wanted::read(&request).err().expect("wrong").message().to_owned();
        assert!(problem(request(&["disks"], "", "")).contains("those are storageClasses"));
        assert!(
            problem(request(&["volumes"], "colour = red", "")).contains("is no field of a Volume")
        );
        // A filter has to make sense for every kind that it is put to.
        assert!(
            problem(request(&[], "size_bytes > 3", "")).contains("is no field of a StorageClass")
        );
    }
}
