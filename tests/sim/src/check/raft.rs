//! Raft monitors: rules of consensus, judged from the messages that leave the nodes.
//!
//! What a replica says binds it, whatever it remembers: these rules hold across restarts, and they
//! show a broken promise at once, long before it costs data.

use basalt_wire::block::crc32c;
use basalt_wire::frame::RaftMessage;
use basalt_wire::ids::LogIndex;
use rustc_hash::FxHashMap;

/// Numbers of `eraftpb::MessageType` that the rules speak of.
mod kind {
    pub const APPEND: u8 = 3;
    pub const APPEND_RESPONSE: u8 = 4;
    pub const REQUEST_VOTE: u8 = 5;
    pub const REQUEST_VOTE_RESPONSE: u8 = 6;
    pub const HEARTBEAT: u8 = 8;
    pub const REQUEST_PRE_VOTE: u8 = 17;
    pub const REQUEST_PRE_VOTE_RESPONSE: u8 = 18;
}

/// Term and index of an entry, in the order in which Raft compares logs.
type Position = (u64, u64);

/// What a follower promised last: under which leader's term, and up to which entry.
struct Promise {
    leader_term: u64,
    position: Position,
}

/// Watches every Raft message of a run.
#[derive(Default)]
pub struct RaftMonitor {
    leaders: FxHashMap<(u32, u64), u32>,
    votes: FxHashMap<(u32, u64, u32), u32>,
    terms: FxHashMap<(u32, u32), u64>,
    entries: FxHashMap<(u32, u64, u64), u32>,
    /// The term of the entry at an index, as a leader sent it last.
    term_at: FxHashMap<(u32, u64), u64>,
    promises: FxHashMap<(u32, u32), Promise>,
    candidacies: FxHashMap<(u32, u64, u32), Position>,
    acknowledged: FxHashMap<(u32, u64), u64>,
    commits: FxHashMap<(u32, u64), u32>,
    /// By group and volume: epochs with the index of their fence, or of their last write.
    fences: FxHashMap<(u32, u64), Vec<(u64, u64)>>,
    writes: FxHashMap<(u32, u64), Vec<(u64, u64)>>,
}

impl RaftMonitor {
    /// A message leaves a node. A node with a damaged disk may have lost its term, if its log says so;
    /// `damaged` lifts the rule about terms for it, and only that.
    pub fn sent(&mut self, m: &RaftMessage, damaged: bool) -> Result<(), String> {
        let (group, term) = (m.group.0, m.term.0);
        let (from, to) = (m.from.0, m.to.0);
        if !matches!(m.kind, kind::REQUEST_PRE_VOTE | kind::REQUEST_PRE_VOTE_RESPONSE) && term > 0 {
            let known = self.terms.entry((from, group)).or_default();
            if term < *known && !damaged {
                return Err(format!(
                    "node {from} speaks in term {term} of group {group}, after term {known}: it forgot"
                ));
            }
            *known = term.max(*known);
        }
        match m.kind {
            kind::APPEND | kind::HEARTBEAT => self.leads(m),
            kind::APPEND_RESPONSE if !m.reject => {
                self.promise(m);
                Ok(())
            }
            kind::REQUEST_VOTE => {
                self.candidacies.insert((group, term, from), (m.log_term.0, m.index.0));
                self.votes_for(group, term, from, from)
            }
            kind::REQUEST_VOTE_RESPONSE if !m.reject => {
                self.votes_for(group, term, from, to)?;
                self.kept_promise(group, term, from, to)
            }
            _ => Ok(()),
        }
    }

    fn leads(&mut self, m: &RaftMessage) -> Result<(), String> {
        let (group, term, from) = (m.group.0, m.term.0, m.from.0);
        let leader = *self.leaders.entry((group, term)).or_insert(from);
        if leader != from {
            return Err(format!(
                "nodes {leader} and {from} both lead group {group} in term {term}"
            ));
        }
        for e in &m.entries {
            let sum = crc32c(&e.data) ^ e.payload.len() as u32;
            let known = *self.entries.entry((group, e.index.0, e.term.0)).or_insert(sum);
            if known != sum {
                return Err(format!(
                    "two different entries at index {} of term {} in group {group}",
                    e.index, e.term
                ));
            }
            self.term_at.insert((group, e.index.0), e.term.0);
        }
        if !m.entries.is_empty()
            && self.promises.get(&(m.to.0, group)).is_some_and(|p| p.leader_term < term)
        {
            // From here on the follower may rightly hold other entries than it promised.
            self.promises.remove(&(m.to.0, group));
        }
        Ok(())
    }

    fn promise(&mut self, m: &RaftMessage) {
        let (group, index) = (m.group.0, m.index.0);
        let Some(entry_term) = self.term_at.get(&(group, index)).copied() else { return };
        let position = (entry_term, index);
        let leader_term = m.term.0;
        match self.promises.get_mut(&(m.from.0, group)) {
            Some(p) if p.leader_term == leader_term => p.position = p.position.max(position),
            _ => {
                self.promises.insert((m.from.0, group), Promise { leader_term, position });
            }
        }
    }

    fn votes_for(
        &mut self,
        group: u32,
        term: u64,
        voter: u32,
        candidate: u32,
    ) -> Result<(), String> {
        let first = *self.votes.entry((group, term, voter)).or_insert(candidate);
        if first == candidate {
            return Ok(());
        }
        Err(format!(
            "node {voter} voted for node {first} and for node {candidate} in term {term} of group {group}"
        ))
    }

    /// A voter may not elect a candidate that lacks what the voter acknowledged.
    fn kept_promise(
        &self,
        group: u32,
        term: u64,
        voter: u32,
        candidate: u32,
    ) -> Result<(), String> {
        let asked = self.candidacies.get(&(group, term, candidate));
        let (Some(asked), Some(promise)) = (asked, self.promises.get(&(voter, group))) else {
            return Ok(());
        };
        if *asked >= promise.position || promise.leader_term >= term {
            return Ok(());
        }
        let ((a, b), (c, d)) = (*asked, promise.position);
        Err(format!(
            "node {voter} acknowledged entry {d} of term {c} in group {group}, then voted in term \
             {term} for node {candidate}, whose log ends at entry {b} of term {a}"
        ))
    }

    /// A client is told that its command took effect as entry `index` of `term`.
    pub fn acknowledged(&mut self, group: u32, index: LogIndex, term: u64) -> Result<(), String> {
        let known = *self.acknowledged.entry((group, index.0)).or_insert(term);
        if known == term {
            return Ok(());
        }
        Err(format!(
            "entry {index} of group {group} was acknowledged with term {known} and with term {term}"
        ))
    }

    /// A fence of an epoch is acknowledged as entry `index`.
    pub fn fenced(
        &mut self,
        group: u32,
        volume: u64,
        epoch: u64,
        index: LogIndex,
    ) -> Result<(), String> {
        self.fences.entry((group, volume)).or_default().push((epoch, index.0));
        let writes = self.writes.get(&(group, volume));
        let late = writes.and_then(|w| w.iter().find(|w| w.0 < epoch && w.1 > index.0));
        late.map_or(Ok(()), |w| Err(late_write(group, volume, *w, (epoch, index.0))))
    }

    /// A write or unmap of an epoch is acknowledged as entry `index`.
    pub fn written(
        &mut self,
        group: u32,
        volume: u64,
        epoch: u64,
        index: LogIndex,
    ) -> Result<(), String> {
        let writes = self.writes.entry((group, volume)).or_default();
        match writes.iter_mut().find(|w| w.0 == epoch) {
            Some(w) => w.1 = w.1.max(index.0),
            None => writes.push((epoch, index.0)),
        }
        let fences = self.fences.get(&(group, volume));
        let fence = fences.and_then(|f| f.iter().find(|f| f.0 > epoch && f.1 < index.0));
        fence.map_or(Ok(()), |f| Err(late_write(group, volume, (epoch, index.0), *f)))
    }

    /// A metadata command is applied: all nodes must see the same at one index.
    pub fn applied(&mut self, group: u32, index: LogIndex, command: &[u8]) -> Result<(), String> {
        let sum = crc32c(command);
        let known = *self.commits.entry((group, index.0)).or_insert(sum);
        if known == sum {
            return Ok(());
        }
        Err(format!("two different commands were applied at index {index} of group {group}"))
    }
}

fn late_write(group: u32, volume: u64, write: (u64, u64), fence: (u64, u64)) -> String {
    format!(
        "a write of epoch {} to volume {volume} is acknowledged as entry {} of group {group}, behind \
         the fence of epoch {} at entry {}",
        write.0, write.1, fence.0, fence.1
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use basalt_wire::ids::{GroupId, NodeId, Term};
    use bytes::Bytes;

    fn message(kind: u8, from: u32, to: u32, term: u64) -> RaftMessage {
        RaftMessage {
            group: GroupId(1),
            kind,
            from: NodeId(from),
            to: NodeId(to),
            term: Term(term),
            log_term: Term(1),
            index: LogIndex(1),
            commit: LogIndex(0),
            commit_term: Term(0),
            reject: false,
            reject_hint: LogIndex(0),
            priority: 0,
            request_snapshot: LogIndex(0),
            context: Bytes::new(),
            entries: Vec::new(),
        }
    }

    #[test]
    fn broken_rules_are_seen() {
        let mut m = RaftMonitor::default();
        m.sent(&message(kind::HEARTBEAT, 1, 2, 5), false).unwrap();
        assert!(
            m.sent(&message(kind::HEARTBEAT, 3, 2, 5), false).unwrap_err().contains("both lead")
        );
        m.sent(&message(kind::REQUEST_VOTE_RESPONSE, 2, 1, 6), false).unwrap();
        let again = m.sent(&message(kind::REQUEST_VOTE_RESPONSE, 2, 3, 6), false);
        assert!(again.unwrap_err().contains("voted for node 1 and for node 3"));
        let back = m.sent(&message(kind::APPEND_RESPONSE, 2, 1, 4), false);
        assert!(back.unwrap_err().contains("it forgot"));
    }

    #[test]
    fn a_vote_against_a_promise_is_seen() {
        let mut m = RaftMonitor::default();
        let entry = basalt_wire::frame::RaftEntry {
            kind: 0,
            term: Term(2),
            index: LogIndex(9),
            data: Bytes::new(),
            payload: Default::default(),
        };
        m.sent(&RaftMessage { entries: vec![entry], ..message(kind::APPEND, 1, 2, 2) }, false)
            .unwrap();
        m.sent(
            &RaftMessage { index: LogIndex(9), ..message(kind::APPEND_RESPONSE, 2, 1, 2) },
            false,
        )
        .unwrap();
        m.sent(&message(kind::REQUEST_VOTE, 3, 2, 3), false).unwrap();
        let vote = m.sent(&message(kind::REQUEST_VOTE_RESPONSE, 2, 3, 3), false);
        assert!(vote.unwrap_err().contains("acknowledged entry 9"));
    }
}
