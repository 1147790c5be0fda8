//! What can happen in the world.

use crate::net::LinkIndex;
use crate::options::Family;

/// A node or a client: nodes come first, clients behind them.
pub type Who = usize;

/// An event of the heap. Those about a process carry the number of its boot and are void after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ev {
    /// A process takes what arrived and ends its turn.
    Turn {
        /// Which.
        who: Who,
        /// Of which boot.
        boot: u32,
    },
    /// A process has a deadline.
    Timer {
        /// Which.
        who: Who,
        /// Of which boot.
        boot: u32,
    },
    /// A paused process goes on.
    Resume {
        /// Which.
        who: Who,
        /// Of which boot.
        boot: u32,
    },
    /// A disk operation ends.
    Disk {
        /// On which node's disk.
        node: Who,
        /// Of which boot.
        boot: u32,
        /// Which.
        id: u32,
    },
    /// A node's store does the next thing that it was asked for.
    Store {
        /// Of which node.
        node: Who,
        /// Of which boot.
        boot: u32,
    },
    /// A node's store gives pages that it was asked for.
    Pages {
        /// Of which node.
        node: Who,
        /// Of which boot.
        boot: u32,
    },
    /// A state of the metadata group is in a node's store.
    MetadataKept {
        /// Of which node.
        node: Who,
        /// Of which boot.
        boot: u32,
    },
    /// A node asks another one for its state of the metadata group.
    MetadataAsked {
        /// Which node.
        node: Who,
        /// Of which boot.
        boot: u32,
    },
    /// A link is attempted.
    Connect {
        /// Which.
        link: LinkIndex,
    },
    /// Bytes arrive at the end of a link's direction.
    Deliver {
        /// Which link.
        link: LinkIndex,
        /// 0 is from the dialling side.
        dir: u8,
    },
    /// One side of a link gives it up: because its other side lost power, or if it is silent.
    GiveUp {
        /// Which.
        link: LinkIndex,
        /// Which side gives up.
        end: u8,
        /// Whether it does so only if nothing passes on it.
        if_silent: bool,
    },
    /// A node dials a peer again.
    Redial {
        /// Which node.
        node: Who,
        /// Of which boot.
        boot: u32,
        /// Whom.
        to: Who,
    },
    /// A node is started.
    Start {
        /// Which.
        node: Who,
    },
    /// A drained or suspect process is stopped, and started again.
    Drained {
        /// Which node.
        node: Who,
        /// Of which boot.
        boot: u32,
    },
    /// A node crashes while it recovers.
    Crash {
        /// Which.
        node: Who,
        /// Whether by a power cut.
        power: bool,
    },
    /// The next fault of a family.
    Nemesis(Family),
    /// A network fault ends.
    Heal {
        /// Its number.
        fault: u32,
    },
    /// A client may submit more.
    Think {
        /// Which.
        who: Who,
    },
    /// The end of the run is looked at.
    Check,
}
