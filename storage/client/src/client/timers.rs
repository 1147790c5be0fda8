//! What happens when time passes: links are dialled again, overdue requests are looked at, groups
//! without a leader are asked.

use super::{Out, VolumeClient};
use crate::link::LinkState;
use crate::part::SentFor;
use crate::types::ClientEffect;
use basalt_wire::ids::GroupId;

impl VolumeClient {
    pub(super) fn look_after_links(&mut self, out: &mut Out) {
        for link in 0..self.links.len() as u16 {
            let state = &mut self.links[usize::from(link)];
            if state.deadline(&self.tuning).is_none_or(|at| at > self.now) {
                continue;
            }
            match state.state {
                LinkState::Dialling(_) => self.reset(link, out),
                LinkState::Down(_) => {
                    state.state = LinkState::Dialling(self.now + self.tuning.dial_timeout);
                    out.push(ClientEffect::Dial { to: state.address });
                }
                LinkState::Up => {
                    let oldest = state.oldest().expect("a link without requests has no deadline");
                    if self.now.since(oldest) >= self.tuning.request_timeout {
                        self.reset(link, out);
                    } else {
                        self.look_at_overdue(link);
                    }
                }
            }
        }
    }

    /// Requests are overdue. Reads go to another replica if there is one. What changes blocks can not
    /// be sent again to the same leader, but there may be a new one: the others are asked. If nothing
    /// at all came over the link for a while, it is avoided by reads until something does.
    fn look_at_overdue(&mut self, link: u16) {
        let (now, after) = (self.now, self.tuning.suspect_after);
        let state = &mut self.links[usize::from(link)];
        state.look_at = now + after / 2;
        state.suspect = now.since(state.heard) >= after;
        if state.suspect {
            let queue = std::mem::take(&mut state.queue);
            self.todo.extend(queue);
        }
        for i in 0..self.links[usize::from(link)].sent.len() {
            let (id, at) = self.links[usize::from(link)].sent[i];
            if now.since(at) < after {
                break;
            }
            let Some(slot) = self.find_sent(id) else { continue };
            if let SentFor::Part(part) = self.sent[slot].what {
                if let Some(weight) = self.sent[slot].read {
                    self.note_read(link, now.since(at), weight);
                }
                self.overdue(part, link);
            }
        }
    }

    fn overdue(&mut self, id: u32, link: u16) {
        let number = self.parts[id].group;
        let group = &self.groups[number.0 as usize];
        if !self.parts[id].is_read() {
            self.group(number).doubted = true;
            return self.look_after(number, self.now);
        }
        let Some(voter) = group.voters.iter().position(|l| *l == link) else { return };
        let tried = self.parts[id].tried;
        self.parts[id].tried.insert(voter);
        match self.pick_reader(id) {
            Some(other) if !self.links[usize::from(other)].suspect => self.give_up_copy(id),
            _ => self.parts[id].tried = tried,
        }
    }

    pub(super) fn look_after_groups(&mut self, out: &mut Out) {
        let mut due = Vec::new();
        let (groups, now) = (&mut self.groups, self.now);
        self.listed.retain(|number| {
            let group = &mut groups[number.0 as usize];
            group.listed = group.next_at > now;
            if !group.listed {
                due.push(*number);
            }
            group.listed
        });
        for number in due {
            self.round(number, out);
        }
    }

    /// A round: asks for the leader if there is none to send to, and tries again what waits.
    fn round(&mut self, number: GroupId, out: &mut Out) {
        let group = &self.groups[number.0 as usize];
        let settled = group.leader.is_some_and(|leader| {
            let link = &self.links[usize::from(group.voters[leader])];
            link.is_up() && !link.suspect
        });
        if !settled || group.doubted {
            self.ask_for_leader(number, out);
        }
        let (tuning, now) = (self.tuning, self.now);
        let group = self.group(number);
        group.doubted = false;
        group.round_done(&tuning, now);
        for i in 0..self.group(number).waiting.len() {
            let id = self.group(number).waiting[i];
            self.parts[id].tried.clear();
        }
        self.wake(number);
    }
}
