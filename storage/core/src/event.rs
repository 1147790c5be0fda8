//! What a [`crate::Shard`] takes in and gives out.
//!
//! A shard is stepped by a driver: the reactor of `storage/node` or the simulator of `tests/sim`.
//! The driver hands it everything that arrived ([`Event`]s), ends the turn, and carries out the
//! [`Effect`]s in order.

use crate::checkpoint::{StoreDone, StoreOp};
use crate::config::GroupConfig;
use basalt_wire::frame::{Frame, Reply, Request};
use basalt_wire::ids::{Address, GroupId, LogIndex, NodeId, Term};
use basalt_wire::io::{DiskDone, DiskOp};
use bytes::Bytes;

/// A client's link to this shard, numbered by the driver, never used twice in a run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LinkId(pub u64);

/// Something that happened.
#[derive(Debug)]
pub enum Event {
    /// A device operation ended.
    Disk(DiskDone),
    /// A peer's frame arrived, decoded and validated for shape.
    Peer {
        /// The sender, as its link's handshake proved.
        from: Address,
        /// The frame.
        frame: Frame,
    },
    /// Frames to a peer go out again, or are being dropped until further notice.
    PeerLink {
        /// The peer.
        peer: NodeId,
        /// Whether its link is up.
        up: bool,
    },
    /// A client's request arrived.
    Request {
        /// The link to answer on.
        link: LinkId,
        /// Whether the request crossed a network, so that its payload must be verified.
        remote: bool,
        /// The request.
        request: Request,
    },
    /// A client's link is gone; its requests need no answer.
    LinkClosed {
        /// The link.
        link: LinkId,
    },
    /// Propose a command to the metadata group. Answered by [`Effect::Proposed`].
    Propose {
        /// Returned with the answer.
        token: u64,
        /// The command, opaque to the shard.
        command: Bytes,
    },
    /// The control plane has the state of the metadata group as of an entry in its own store, for good: its own,
    /// or one that it fetched. It is told no command up to there any more, and they may be forgotten.
    MetadataSaved {
        /// The entry.
        index: LogIndex,
    },
    /// The node that should lead a group, by the placement policy.
    Prefer {
        /// The group.
        group: GroupId,
        /// Where its leader should be.
        node: NodeId,
    },
    /// A replica of a group is to be here from now on: it starts empty. Whoever runs the shard has made sure
    /// that the group is among [`crate::config::ShardConfig::groups`] at the next start. Without effect if it is
    /// here, or before the log is open.
    Join(GroupConfig),
    /// Who the members of a group should be, at rest. To be stated to all its replicas until their status
    /// says that it is so; a leader brings it about as soon as it may.
    Configure {
        /// The group.
        group: GroupId,
        /// Those that vote. A new one must be a learner first.
        voters: Vec<Address>,
        /// Those that only hold what is decided.
        learners: Vec<Address>,
    },
    /// The replica of a group here is no member any more: it stops, and what it held is given back. To be
    /// stated until the status does not name the group.
    Retire(GroupId),
    /// An [`Effect::Store`] ended.
    Store(StoreDone),
    /// Look at every block of the device at once, as fast as [`crate::config::Scrubbing`] allows.
    Scrub,
    /// Hand over every leadership and refuse new ones: the node is about to stop.
    Drain,
}

/// Something to be done by the driver.
#[derive(Debug)]
pub enum Effect {
    /// Start a device operation.
    Disk(DiskOp),
    /// Do something with the node's store, after everything asked of it before.
    Store(StoreOp),
    /// Send a frame to a peer. It may be lost; it is never delivered twice on one link.
    Send {
        /// The receiver.
        to: Address,
        /// The frame.
        frame: Frame,
    },
    /// Answer a client.
    Reply {
        /// The link of the request.
        link: LinkId,
        /// The answer.
        reply: Reply,
    },
    /// The end of a metadata proposal.
    Proposed {
        /// As in [`Event::Propose`].
        token: u64,
        /// The index of the committed entry, or why there is none.
        result: Result<LogIndex, ProposeError>,
    },
    /// A committed metadata command. Since the shard was opened each behind the state that the control plane has
    /// is told exactly once, in order, without a gap.
    Applied {
        /// Its index.
        index: LogIndex,
        /// Its term.
        term: Term,
        /// The command. Empty for the entry with which a leader starts its term.
        command: Bytes,
    },
    /// The log that is left does not lead from the state that the control plane has to the present one. It is to
    /// get a later state from another node, keep it, and say so ([`Event::MetadataSaved`]). Replaces what was
    /// asked for before.
    FetchMetadata {
        /// A node that should have it, if one is known: others may have it too.
        from: Option<NodeId>,
        /// The first entry that would do.
        at_least: LogIndex,
    },
    /// A group's leader, as this replica sees it, changed.
    LeaderChanged {
        /// The group.
        group: GroupId,
        /// The leader, if there is one.
        leader: Option<NodeId>,
        /// The replica's term.
        term: Term,
    },
    /// Every group leads elsewhere or has nobody to hand over to: the node may stop.
    Drained,
    /// The device can not be trusted any more (a write or flush failed). The shard acknowledges
    /// nothing from here on; the driver must stop it and open it again, which verifies the log.
    DeviceSuspect {
        /// What failed, for the operator.
        reason: String,
    },
    /// A line for the operator's log.
    Notice {
        /// Whether a person must look (a damaged log, a lost vote).
        alarm: bool,
        /// The line.
        text: String,
    },
}

/// Why a metadata proposal did not commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This replica does not lead. Nothing took effect.
    #[error("not the leader of the metadata group")]
    NotLeader(Option<NodeId>),
    /// The leader lost its place: the command may or may not take effect.
    #[error("the leader changed while the command was under way; its outcome is not known")]
    Unknown,
    /// Too much is queued, or the shard is starting or stopping. Nothing took effect.
    #[error("the metadata group is not ready")]
    Unavailable,
}
