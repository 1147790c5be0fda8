//! Which hosts live that are no nodes, and serve volumes all the same: what a leader makes of what they say.
//!
//! A host says now and then, to every node, which volumes it serves under which epochs. One that never did is not
//! known
//! to be dead: it may be a program that serves and does not say so. That a host says so is written down once for each
//! attachment, and so is when it does no more, and when it does again. Nodes tell the leader what they have heard, so
//! that a host is silent only if it is for all of them.

use crate::state::MetaState;
use basalt_api::meta::v1::{AttachmentRecord, JudgeAttachment};
use basalt_api::v1::MemberState;
use std::collections::BTreeMap;
use std::time::Duration;

/// What a leader has heard of hosts. It belongs to one term.
#[derive(Clone, Debug)]
pub struct Hosts {
    /// Silence after which a host counts as dead.
    down: Duration,
    /// What came before counts as heard.
    began: Duration,
    turned: Duration,
    /// When each session was heard of last, by volume and epoch.
    heard: BTreeMap<(String, u64), Duration>,
}

impl Hosts {
    /// Of a node that leads since `now`. `down` is the silence after which a host counts as dead.
    pub fn new(down: Duration, now: Duration) -> Hosts {
        Hosts { down, began: now, turned: now, heard: BTreeMap::new() }
    }

    /// A host said at this time that it serves a volume.
    pub fn hear(&mut self, volume: &str, epoch: u64, at: Duration) {
        let last = self.heard.entry((volume.to_owned(), epoch)).or_default();
        *last = at.max(*last);
    }

    /// What is to be written down now. Nobody is declared dead unless the leader hears most of the nodes.
    pub fn judge(
        &mut self,
        now: Duration,
        state: &MetaState,
        sees_most: bool,
    ) -> Vec<JudgeAttachment> {
        if now.saturating_sub(self.turned) > self.down / 2 {
            // This process did not run, so that it could hear nothing either.
            self.began = now;
        }
        self.turned = now;
        let attached = state.hosts().flat_map(|(host, _)| state.attached_to(host));
        let epochs: BTreeMap<&str, &AttachmentRecord> = attached
            .filter_map(|volume| Some((volume.id.as_str(), volume.attachment.as_ref()?)))
            .collect();
        let stays = |(volume, epoch): &(String, u64)| {
            epochs.get(volume.as_str()).is_some_and(|attachment| attachment.epoch == *epoch)
        };
        self.heard.retain(|session, _| stays(session));
        let is_node = |host: &str| {
            state.cluster().is_some_and(|spec| spec.members.iter().any(|m| m.name == host))
        };
        let mut verdicts = Vec::new();
        for (id, attachment) in epochs {
            let heard = self.heard.get(&(id.to_owned(), attachment.epoch)).copied();
            let silence = now.saturating_sub(heard.unwrap_or(self.began).max(self.began));
            let said = heard.is_some_and(|at| now.saturating_sub(at) < self.down);
            let next = match attachment.host_state() {
                MemberState::Up if silence >= self.down && sees_most => MemberState::Down,
                MemberState::Up => continue,
                _ if said => MemberState::Up,
                _ => continue,
            };
            if !is_node(&attachment.host) {
                let (id, epoch) = (id.to_owned(), attachment.epoch);
                verdicts.push(JudgeAttachment { id, epoch, state: next.into() });
            }
        }
        verdicts
    }
}
