//! What goes on after the call that asked for it, as parts of that call's trace.
//!
//! A reconciler is woken by the records, on whichever node leads by then. What the call was part of therefore goes
//! with the entry that it made, and each node remembers it for the records that the entry changed: in memory,
//! bounded, and not in the replicated state, which is the same whether somebody traces or not. See the decision
//! "traces go with the entry".

use crate::metadata::Leader;
use basalt_meta::feed::{Key, Kind};
use basalt_meta::{Entry, Op, Outcome};
use basalt_telemetry::TraceContext;
use std::collections::{BTreeMap, VecDeque};
use tracing::Span;
use tracing::field::Empty;

/// Records of which it is remembered what changed them last; the oldest go first.
const KEPT_MAX: usize = 4096;

/// What changed records last, as far as it was part of a trace.
#[derive(Debug, Default)]
pub(crate) struct Works {
    by_key: BTreeMap<Key, (u64, TraceContext)>,
    order: VecDeque<(u64, Key)>,
    last: u64,
}

impl Works {
    /// An entry that was part of a trace changed these.
    pub(crate) fn note(&mut self, context: TraceContext, changed: &[Key]) {
        for key in changed.iter().filter(|key| key.kind != Kind::Event) {
            self.last += 1;
            self.by_key.insert(key.clone(), (self.last, context));
            self.order.push_back((self.last, key.clone()));
        }
        // What was noted again stands in the order twice.
        while self.by_key.len() > KEPT_MAX || self.order.len() > 2 * KEPT_MAX {
            let Some((number, key)) = self.order.pop_front() else { return };
            if self.by_key.get(&key).is_some_and(|(last, _)| *last == number) {
                self.by_key.remove(&key);
            }
        }
    }

    /// What changed a record last.
    pub(crate) fn of(&self, key: &Key) -> Option<TraceContext> {
        self.by_key.get(key).map(|(_, context)| *context)
    }
}

/// The records that an entry is about, of those that it changed: all members change with the map.
pub(crate) fn subjects(changed: &[Key], outcome: &Outcome) -> Vec<Key> {
    let subject = match outcome {
        Outcome::Member(member) => Some(member.name.as_str()),
        _ => None,
    };
    let is_meant = |key: &&Key| key.kind != Kind::Node || Some(key.id.as_str()) == subject;
    changed.iter().filter(is_meant).cloned().collect()
}

/// A volume among records.
pub(crate) fn volume(id: &str) -> Key {
    Key { kind: Kind::Volume, id: id.to_owned() }
}

/// A snapshot among records.
pub(crate) fn snapshot(volume: &str, id: &str) -> Key {
    Key { kind: Kind::Snapshot, id: format!("{volume}/snapshots/{id}") }
}

/// A node among records, by its name.
pub(crate) fn node(name: &str) -> Key {
    Key { kind: Kind::Node, id: name.to_owned() }
}

/// Whether somebody has to do something because of such an entry. Others are steps of such work: what is done next
/// goes on with what the work began in, not with them.
fn begins_work(op: &Op) -> bool {
    matches!(
        op,
        Op::CreateVolume(_)
            | Op::DeleteVolume(_)
            | Op::AttachVolume(_)
            | Op::DetachVolume(_)
            | Op::ResizeVolume(_)
            | Op::UpdateVolume(_)
            | Op::FlattenVolume(_)
            | Op::RevertVolume(_)
            | Op::CreateSnapshot(_)
            | Op::DeleteSnapshot(_)
            | Op::CreateCut(_)
            | Op::DeleteCut(_)
            | Op::AddMember(_)
            | Op::DrainMember(_)
            | Op::RemoveMember(_)
            | Op::JudgeMember(_)
            | Op::EvacuateMember(_)
            | Op::FailOverVolume(_)
    )
}

/// Writes into an entry what it is part of, if others go on with it.
pub(crate) fn carry(entry: &mut Entry) {
    if entry.op.as_ref().is_some_and(begins_work) {
        entry.trace = TraceContext::current().map(|c| c.to_bytes()).unwrap_or_default();
    }
}

/// What an encoded entry is part of.
pub(crate) fn carried(command: &[u8]) -> Option<TraceContext> {
    TraceContext::from_bytes(&basalt_meta::trace_of(command))
}

/// The span of a change of the records, from its proposal until it is applied here. What is part of nothing has none.
pub(crate) fn change_span(entry: &Entry) -> Span {
    if Span::current().is_none() {
        return Span::none();
    }
    let op = entry.op.as_ref().map(|op| format!("{op:?}")).unwrap_or_default();
    let kind = op.split('(').next().unwrap_or_default();
    tracing::info_span!(
        "metadata.change",
        otel.name = format!("metadata {kind}"),
        group = "metadata",
        change = kind,
        entry = Empty,
    )
}

/// The span of the time in which the leader, as it is known here, has an entry committed.
pub(crate) fn propose_span(leader: Option<Leader>) -> Span {
    if Span::current().is_none() {
        return Span::none();
    }
    let leader = leader.and_then(|leader| leader.node).map_or(0, |node| node.0);
    tracing::info_span!("metadata.propose", leader)
}

/// The span of the time from when an entry is committed until this node has applied it.
pub(crate) fn apply_span(entry: u64) -> Span {
    match Span::current().is_none() {
        true => Span::none(),
        false => tracing::info_span!("metadata.apply", entry),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_forgotten_and_the_last_change_counts() {
        let (mut works, one) = (Works::default(), TraceContext::unsampled());
        let name = |n: usize| volume(&format!("v{n}"));
        for n in 0..KEPT_MAX {
            works.note(one, &[name(n)]);
        }
        let other = TraceContext::unsampled();
        works.note(other, &[name(0), Key { kind: Kind::Event, id: "7".to_owned() }]);
        assert_eq!((works.of(&name(0)), works.of(&name(1))), (Some(other), Some(one)));
        works.note(other, &[name(KEPT_MAX)]);
        assert_eq!((works.of(&name(0)), works.of(&name(1))), (Some(other), None));
        for _ in 0..3 * KEPT_MAX {
            works.note(one, &[name(2)]);
        }
        assert!(works.by_key.len() <= KEPT_MAX && works.order.len() <= 2 * KEPT_MAX);
        assert_eq!(works.of(&name(2)), Some(one));
    }

    #[test]
    fn an_entry_carries_its_trace_and_steps_carry_none() {
        let context = TraceContext::unsampled();
        let entry = Entry { version: 1, trace: context.to_bytes(), ..Entry::default() };
        assert_eq!(carried(&basalt_meta::encode(&entry)), Some(context));
        assert_eq!(carried(&basalt_meta::encode(&Entry::default())), None);
        assert_eq!(carried(&[]), None);
        assert!(begins_work(&Op::DeleteVolume(Default::default())));
        assert!(!begins_work(&Op::PurgeVolume(Default::default())));
        assert!(!begins_work(&Op::RaiseEpoch(Default::default())));
    }
}
