//! The raft library's messages as frames, and back, with every rule checked that the library itself
//! answers with a panic.

use basalt_wire::frame::RaftMessage;
use basalt_wire::ids::{GroupId, LogIndex, NodeId, Term};
use basalt_wire::membership::ENTRY_KIND_MEMBERS;
use raft::eraftpb::{self, EntryType, MessageType};

/// Terms and indexes beyond this are taken for damage: nothing can count so far.
const NUMBER_MAX: u64 = 1 << 60;

/// The message types that replicas send each other.
pub fn message_type(kind: u8) -> Option<MessageType> {
    use MessageType::*;
    const TYPES: [MessageType; 9] = [
        MsgAppend,
        MsgAppendResponse,
        MsgRequestVote,
        MsgRequestVoteResponse,
        MsgHeartbeat,
        MsgHeartbeatResponse,
        MsgTimeoutNow,
        MsgRequestPreVote,
        MsgRequestPreVoteResponse,
    ];
    TYPES.into_iter().find(|t| *t as u8 == kind)
}

/// What the receiver of a message knows of its own group.
#[derive(Clone, Copy, Debug)]
pub struct Receiver {
    /// The group.
    pub group: GroupId,
    /// The receiving node.
    pub node: NodeId,
    /// Its last entry.
    pub last: LogIndex,
}

/// Checks a message as far as it can be checked alone. The sender is a node of the cluster.
pub fn check(message: &RaftMessage, receiver: Receiver) -> Result<MessageType, &'static str> {
    let kind = message_type(message.kind).ok_or("a message of a kind that replicas do not send")?;
    if message.group != receiver.group || message.to != receiver.node {
        return Err("a message for another replica");
    }
    if message.term.0 == 0 {
        return Err("a message without a term");
    }
    let numbers = [message.term.0, message.log_term.0, message.index.0, message.commit.0];
    let more = [message.commit_term.0, message.reject_hint.0, message.request_snapshot.0];
    if numbers.iter().chain(&more).any(|n| *n > NUMBER_MAX) {
        return Err("a number beyond anything possible");
    }
    if message.request_snapshot.0 != 0 {
        return Err("a snapshot is asked for, and there are none");
    }
    match kind {
        MessageType::MsgAppend => check_append(message)?,
        _ if !message.entries.is_empty() => return Err("entries in a message that has none"),
        MessageType::MsgAppendResponse => {
            if !message.reject && message.index > receiver.last {
                return Err("an entry is acknowledged that the leader does not have");
            }
            if message.reject && message.reject_hint > message.index {
                return Err("a rejection hints beyond what it rejects");
            }
        }
        _ => {}
    }
    Ok(kind)
}

fn check_append(message: &RaftMessage) -> Result<(), &'static str> {
    if (message.index.0 == 0) != (message.log_term.0 == 0) {
        return Err("the entry before the first has no term, every other has one");
    }
    if message.log_term > message.term {
        return Err("an entry of a later term than its leader's");
    }
    let (mut index, mut term) = (message.index.0, message.log_term);
    for entry in &message.entries {
        index += 1;
        if entry.index.0 != index {
            return Err("the entries have a gap");
        }
        if entry.term < term || entry.term.0 == 0 || entry.term > message.term {
            return Err("the entries' terms are out of order");
        }
        if entry.kind != 0 && entry.kind != ENTRY_KIND_MEMBERS {
            return Err("an entry of a kind that is not known");
        }
        term = entry.term;
    }
    Ok(())
}

/// A frame as the library's message. Data and payload of the entries stay outside.
pub fn to_library(message: &RaftMessage, kind: MessageType) -> eraftpb::Message {
    let mut out = eraftpb::Message {
        to: u64::from(message.to.0),
        from: u64::from(message.from.0),
        term: message.term.0,
        log_term: message.log_term.0,
        index: message.index.0,
        commit: message.commit.0,
        commit_term: message.commit_term.0,
        reject: message.reject,
        reject_hint: message.reject_hint.0,
        context: message.context.clone(),
        ..Default::default()
    };
    out.set_msg_type(kind);
    let entries: Vec<_> = message
        .entries
        .iter()
        .map(|e| {
            let mut entry =
                eraftpb::Entry { term: e.term.0, index: e.index.0, ..Default::default() };
            if e.kind == ENTRY_KIND_MEMBERS {
                entry.set_entry_type(EntryType::EntryConfChangeV2);
            }
            entry
        })
        .collect();
    out.set_entries(entries.into());
    out
}

/// The library's message as a frame, still without its entries.
pub fn to_frame(message: &mut eraftpb::Message, group: GroupId) -> RaftMessage {
    RaftMessage {
        group,
        kind: message.get_msg_type() as u8,
        from: NodeId(message.from as u32),
        to: NodeId(message.to as u32),
        term: Term(message.term),
        log_term: Term(message.log_term),
        index: LogIndex(message.index),
        commit: LogIndex(message.commit),
        commit_term: Term(message.commit_term),
        reject: message.reject,
        reject_hint: LogIndex(message.reject_hint),
        priority: 0,
        request_snapshot: LogIndex(message.request_snapshot),
        context: std::mem::take(&mut message.context),
        entries: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use basalt_wire::buffer::Payload;
    use basalt_wire::frame::RaftEntry;
    use bytes::Bytes;

    const RECEIVER: Receiver = Receiver { group: GroupId(4), node: NodeId(2), last: LogIndex(9) };

    fn append(entries: &[(u64, u64)]) -> RaftMessage {
        let mut library = eraftpb::Message {
            to: 2,
            from: 1,
            term: 7,
            log_term: 3,
            index: 8,
            commit: 6,
            ..Default::default()
        };
        library.set_msg_type(MessageType::MsgAppend);
        let mut message = to_frame(&mut library, GroupId(4));
        message.entries = entries
            .iter()
            .map(|(index, term)| RaftEntry {
                kind: 0,
                term: Term(*term),
                index: LogIndex(*index),
                data: Bytes::new(),
                payload: Payload::empty(),
            })
            .collect();
        message
    }

    #[test]
    fn a_message_survives_the_way_there_and_back() {
        let mut message = append(&[(9, 3), (10, 7)]);
        message.context = Bytes::from_static(b"context");
        let kind = check(&message, RECEIVER).unwrap();
        let mut library = to_library(&message, kind);
        assert_eq!(library.entries.iter().map(|e| e.index).collect::<Vec<_>>(), [9, 10]);
        let mut back = to_frame(&mut library, GroupId(4));
        back.entries = message.entries.clone();
        assert_eq!(back, message);
    }

    #[test]
    fn what_would_break_the_library_is_refused() {
        type Spoil = fn(&mut RaftMessage);
        let spoils: [Spoil; 14] = [
            |m| m.kind = 2,
            |m| m.kind = 7,
            |m| m.kind = 200,
            |m| m.group = GroupId(5),
            |m| m.to = NodeId(3),
            |m| m.term = Term(0),
            |m| m.term = Term(u64::MAX),
            |m| m.log_term = Term(0),
            |m| m.log_term = Term(8),
            |m| m.request_snapshot = LogIndex(1),
            |m| m.entries[0].index = LogIndex(11),
            |m| m.entries[1].term = Term(2),
            |m| m.entries[1].term = Term(8),
            |m| m.entries[0].kind = 1,
        ];
        for (i, spoil) in spoils.iter().enumerate() {
            let mut message = append(&[(9, 3), (10, 7)]);
            assert!(check(&message, RECEIVER).is_ok());
            spoil(&mut message);
            assert!(check(&message, RECEIVER).is_err(), "spoil {i}");
        }
    }

    #[test]
    fn an_acknowledgement_beyond_the_log_is_refused() {
        let mut message = append(&[]);
        message.kind = MessageType::MsgAppendResponse as u8;
        message.index = LogIndex(9);
        assert!(check(&message, RECEIVER).is_ok());
        message.index = LogIndex(10);
        assert!(check(&message, RECEIVER).is_err());
        message.reject = true;
        message.reject_hint = LogIndex(11);
        assert!(check(&message, RECEIVER).is_err());
    }
}
