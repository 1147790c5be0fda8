//! The feed of changes: which resources changed, in the order of the log.
//!
//! Each change is known by the index of the entry that made it, its revision. The feed names resources and holds
//! nothing of
//! them: whoever watches looks at the resource as it is by then, so that changes that come faster than they are taken
//! become one. It is bounded; who asks for what it does not hold any more is told to look at everything anew.

use crate::events::Before;
use crate::state::{MetaState, Outcome};
use basalt_api::meta::v1::entry::Op;
use std::collections::{BTreeMap, VecDeque};

/// Changes that are kept.
pub const CHANGES_MAX: usize = 64 << 10;

/// The kinds of resources that a watch tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `volumes/*`
    Volume,
    /// `volumes/*/snapshots/*`
    Snapshot,
    /// `storageClasses/*`
    Class,
    /// `quotas/*`
    Quota,
    /// `nodes/*`
    Node,
    /// `events/*`
    Event,
    /// `operations/*`
    Operation,
}

/// A resource by its kind and the part of its name behind the collection's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// Such as `demo`, and `demo/snapshots/monday` for a snapshot.
    pub id: String,
}

/// What was asked for is not kept any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compacted {
    /// The oldest revision that can be gone on from.
    pub oldest: u64,
}

/// The changes since some revision.
#[derive(Clone, Debug, Default)]
pub struct Feed {
    changes: VecDeque<(u64, Key)>,
    /// Changes up to here are not kept.
    compacted: u64,
    latest: u64,
}

impl Feed {
    /// A feed that goes on from a state.
    pub fn from(revision: u64) -> Feed {
        Feed { changes: VecDeque::new(), compacted: revision, latest: revision }
    }

    /// The revision up to which it knows all changes.
    pub fn latest(&self) -> u64 {
        self.latest
    }

    /// Takes what an entry changed.
    pub fn take(&mut self, revision: u64, keys: impl IntoIterator<Item = Key>) {
        assert!(revision > self.latest, "revision {revision} after {}", self.latest);
        self.latest = revision;
        self.changes.extend(keys.into_iter().map(|key| (revision, key)));
        while self.changes.len() > CHANGES_MAX {
            let (gone, _) = self.changes.pop_front().expect("there are many");
            // What else that entry changed is of no use alone.
            while self.changes.front().is_some_and(|(revision, _)| *revision == gone) {
                self.changes.pop_front();
            }
            self.compacted = gone;
        }
    }

    /// What changed after a revision: each resource once, with the revision of its last change, in that order.
    ///
    /// # Errors
    /// If some of that is not kept any more.
    pub fn since(&self, revision: u64) -> Result<Vec<(u64, Key)>, Compacted> {
        if revision < self.compacted {
            return Err(Compacted { oldest: self.compacted });
        }
        let from = self.changes.partition_point(|(at, _)| *at <= revision);
        let mut last: BTreeMap<&Key, u64> = BTreeMap::new();
        for (at, key) in self.changes.range(from..) {
            last.insert(key, *at);
        }
        let mut found: Vec<(u64, Key)> =
            last.into_iter().map(|(key, at)| (at, key.clone())).collect();
        found.sort();
        Ok(found)
    }
}

impl MetaState {
    /// What follows from an entry beside what it says.
    pub(crate) fn follow(&mut self, at: (u64, i64), before: Before, op: &Op, outcome: &Outcome) {
        if matches!(outcome, Outcome::Refused(_)) || matches!(op, Op::Barrier(_)) {
            return;
        }
        if self.map_version != before.map_version {
            self.touch_members(at.0);
        }
        self.begin_operations(at, op, outcome);
        self.end_operations(at);
        self.tell_of(at, before, op, outcome);
    }

    /// From here on only what the next entry changes is told.
    pub(crate) fn forget_changes(&mut self) {
        self.volumes.forget_touched();
        self.snapshots.forget_touched();
        self.classes.forget_touched();
        self.quotas.forget_touched();
        self.operations.forget_touched();
        self.events.forget_touched();
        self.member_revisions.forget_touched();
    }

    /// What the entry applied last changed. To be asked after each; what is not asked for then is not told later.
    pub fn take_changes(&mut self) -> Vec<Key> {
        let mut keys = Vec::new();
        let key = |kind, id| Key { kind, id };
        let mut volumes: Vec<String> = self.volumes.take_touched().into_keys().collect();
        for ((volume, generation), gone) in self.snapshots.take_touched() {
            let Some(s) = gone.as_ref().or_else(|| self.snapshot_of(volume, generation)) else {
                continue;
            };
            keys.push(key(Kind::Snapshot, format!("{}/snapshots/{}", s.volume_id, s.id)));
        }
        for (number, _) in self.operations.take_touched() {
            // A volume names the operation under way on it.
            let on = self.operation(number).and_then(|op| self.volume_by_number(op.volume));
            volumes.extend(on.map(|volume| volume.id.clone()));
            keys.push(key(Kind::Operation, number.to_string()));
        }
        volumes.sort();
        volumes.dedup();
        keys.extend(volumes.into_iter().map(|id| key(Kind::Volume, id)));
        keys.extend(self.classes.take_touched().into_keys().map(|id| key(Kind::Class, id)));
        keys.extend(self.quotas.take_touched().into_keys().map(|id| key(Kind::Quota, id)));
        let events = self.events.take_touched().into_keys();
        keys.extend(events.map(|number| key(Kind::Event, number.to_string())));
        let members = self.member_revisions.take_touched().into_keys();
        keys.extend(members.map(|name| key(Kind::Node, name)));
        keys
    }

    fn touch_members(&mut self, index: u64) {
        let now = self.cluster().into_iter().flat_map(|spec| &spec.members);
        let now: Vec<String> = now.map(|member| member.name.clone()).collect();
        self.member_revisions.retain(|name, _| now.contains(name));
        now.into_iter().for_each(|name| self.member_revisions.insert(name, index));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: u64) -> Key {
        Key { kind: Kind::Volume, id: id.to_string() }
    }

    #[test]
    fn a_watch_goes_on_where_it_stopped() {
        let mut feed = Feed::from(10);
        assert_eq!(feed.since(10), Ok(vec![]));
        assert_eq!(feed.since(9), Err(Compacted { oldest: 10 }));
        feed.take(11, [key(1), key(2)]);
        feed.take(12, []);
        feed.take(15, [key(1)]);
        assert_eq!(feed.since(10), Ok(vec![(11, key(2)), (15, key(1))]));
        assert_eq!(feed.since(11), Ok(vec![(15, key(1))]));
        assert_eq!(feed.since(15), Ok(vec![]));
        assert_eq!(feed.since(99), Ok(vec![]));
        assert_eq!(feed.latest(), 15);
    }

    #[test]
    fn what_is_not_kept_is_said_and_entries_go_as_a_whole() {
        let mut feed = Feed::from(0);
        for revision in 1..=(CHANGES_MAX as u64 / 2 + 1) {
            feed.take(revision, [key(revision), key(revision + 1)]);
        }
        assert_eq!(feed.since(0), Err(Compacted { oldest: 1 }));
        assert!(feed.since(1).is_ok_and(|found| found.len() == CHANGES_MAX / 2 + 1));
    }
}
