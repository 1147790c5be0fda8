//! Events: what operators may want to know of afterwards.

use crate::state::{MetaState, Outcome, Refused, refusal};
use basalt_api::meta::v1::entry::Op;
use basalt_api::meta::v1::{AttachmentRecord, EventRecord, VolumeRecord};
use basalt_api::v1::ErrorReason;
use basalt_api::v1::event::Severity;

/// Events that are kept; the oldest go first.
pub const EVENTS_MAX: u64 = 2048;

/// What the state was about before an entry, as far as events tell of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Before {
    /// Which map it was.
    pub(crate) map_version: u64,
    /// Who had the volume that the entry attaches or detaches.
    attachment: Option<AttachmentRecord>,
    /// The volume that the entry takes away.
    volume: Option<VolumeRecord>,
    /// The name of the member that the entry removes.
    member: String,
}

impl MetaState {
    /// The events that are kept, oldest first.
    pub fn events(&self) -> impl DoubleEndedIterator<Item = &EventRecord> {
        self.events.values()
    }

    /// An event by its number.
    pub fn event(&self, number: u64) -> Option<&EventRecord> {
        self.events.get(&number)
    }

    /// Writes an event down; `what` is its reason, its target and one sentence.
    pub(crate) fn tell(
        &mut self,
        (index, now_ms): (u64, i64),
        severity: Severity,
        (reason, target, message): (&str, String, String),
    ) {
        self.last_event += 1;
        let event = EventRecord {
            number: self.last_event,
            time_ms: now_ms,
            severity: severity as u32,
            reason: reason.to_owned(),
            target,
            message,
            revision: index,
        };
        self.events.insert(event.number, event);
        if let Some(old) = self.last_event.checked_sub(EVENTS_MAX) {
            self.events.remove(&old);
        }
    }

    /// What has to be known from before an entry is applied.
    pub(crate) fn before(&self, op: &Op) -> Before {
        let attachment = |id: &str| self.volume(id).and_then(|v| v.attachment.clone());
        let member = |node: u32| {
            let spec = self.cluster().into_iter().flat_map(|spec| &spec.members);
            let found = spec.into_iter().find(|m| m.node == node);
            found.map_or_else(String::new, |m| m.name.clone())
        };
        let before = Before { map_version: self.map_version, ..Before::default() };
        match op {
            Op::AttachVolume(attach) => Before { attachment: attachment(&attach.id), ..before },
            Op::DetachVolume(detach) => Before { attachment: attachment(&detach.id), ..before },
            Op::FailOverVolume(over) => Before { attachment: attachment(&over.id), ..before },
            Op::PurgeVolume(purge) => {
                Before { volume: self.volume_by_number(purge.volume).cloned(), ..before }
            }
            Op::RemoveMember(remove) => Before { member: member(remove.node), ..before },
            _ => before,
        }
    }

    /// Tells what an entry did.
    pub(crate) fn tell_of(&mut self, at: (u64, i64), before: Before, op: &Op, outcome: &Outcome) {
        let volume = |v: &VolumeRecord| format!("volumes/{}", v.id);
        let (severity, reason, target, message) = match (op, outcome) {
            (Op::CreateVolume(_), Outcome::Volume(v)) => {
                let message = format!("created with {} bytes", v.size_bytes);
                (Severity::Info, "VOLUME_CREATED", volume(v), message)
            }
            (Op::DeleteVolume(_), Outcome::Volume(v)) if v.revision == at.0 => {
                let message = "is being deleted".to_owned();
                (Severity::Info, "VOLUME_DELETING", volume(v), message)
            }
            (Op::PurgeVolume(_), Outcome::Nothing) => match before.volume {
                Some(v) if self.volume_by_number(v.number).is_none() => {
                    (Severity::Info, "VOLUME_DELETED", volume(&v), "is gone".to_owned())
                }
                _ => return,
            },
            (Op::AttachVolume(_) | Op::FailOverVolume(_), Outcome::Volume(v))
                if v.revision == at.0 =>
            {
                return self.tell_attached(at, before.attachment, v);
            }
            (Op::DetachVolume(_), Outcome::Volume(v)) if v.revision == at.0 => {
                let host = before.attachment.map_or_else(String::new, |a| a.host);
                let message = format!("detached from '{host}'");
                (Severity::Info, "VOLUME_DETACHED", volume(v), message)
            }
            (Op::AdoptVolume(_), Outcome::Volume(v)) => {
                let message = format!("adopted: it was held under the number {}", v.number);
                (Severity::Info, "VOLUME_ADOPTED", volume(v), message)
            }
            (Op::RevertVolume(revert), Outcome::Volume(v)) => {
                let message = format!("is being reverted to '{}'", revert.snapshot);
                (Severity::Info, "VOLUME_REVERTING", volume(v), message)
            }
            (Op::AddMember(_), Outcome::Member(m)) => {
                let message = format!("added as node {}", m.node);
                (Severity::Info, "NODE_ADDED", format!("nodes/{}", m.name), message)
            }
            (Op::DrainMember(drain), Outcome::Member(m)) => {
                let (reason, message) = match drain.cancel {
                    true => ("NODE_DRAIN_CANCELLED", "is not drained any more"),
                    false => ("NODE_DRAINING", "is drained: its groups move to other nodes"),
                };
                (Severity::Info, reason, format!("nodes/{}", m.name), message.to_owned())
            }
            (Op::RemoveMember(_), Outcome::Nothing) if !before.member.is_empty() => {
                let target = format!("nodes/{}", before.member);
                (Severity::Info, "NODE_REMOVED", target, "is no member any more".to_owned())
            }
            (Op::GiveUpCut(give), Outcome::Nothing) => {
                let message = "given up: not every group answered in time".to_owned();
                (Severity::Warning, "CUT_GIVEN_UP", format!("cuts/{}", give.cut), message)
            }
            _ => match self.told_of(at.0, op, outcome) {
                Some(told) => told,
                None => return,
            },
        };
        self.tell(at, severity, (reason, target, message));
    }

    fn tell_attached(
        &mut self,
        at: (u64, i64),
        before: Option<AttachmentRecord>,
        v: &VolumeRecord,
    ) {
        let Some(now) = &v.attachment else { return };
        let (severity, reason, message) = match before {
            // The same host begins anew, as after each restart.
            Some(old) if old.host == now.host => return,
            Some(old) => {
                let message = format!(
                    "moved from '{}' to '{}' with epoch {}: the former host is shut out",
                    old.host, now.host, now.epoch
                );
                (Severity::Warning, "VOLUME_MOVED", message)
            }
            None => {
                let message = format!("attached to '{}' with epoch {}", now.host, now.epoch);
                (Severity::Info, "VOLUME_ATTACHED", message)
            }
        };
        self.tell(at, severity, (reason, format!("volumes/{}", v.id), message));
    }
}

impl Refused {
    /// There is no such event.
    pub fn event_not_found(number: &str) -> Refused {
        let shown = number.escape_debug().to_string();
        refusal(
            ErrorReason::EventNotFound,
            format!("there is no event '{shown}'; the newest {EVENTS_MAX} are kept"),
            vec![("event", shown)],
        )
    }
}
