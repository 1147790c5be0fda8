//! Newtypes for everything that has a number, so that no two of them can be mixed up.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $inner:ty, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

id!(
    /// A cluster, drawn at random once, at bootstrap. Devices and frames of another cluster are refused.
    ClusterId, u64, "c"
);
id!(
    /// A machine of the cluster; 1 or more. It is also the Raft id of each of the node's replicas.
    NodeId, u32, "n"
);
id!(
    /// One reactor of a node, counted from 0.
    ShardId, u16, "s"
);
id!(
    /// A Raft group, counted from 0. [`GroupId::METADATA`] is the control plane's own.
    GroupId, u32, "g"
);
id!(
    /// A volume, 1 or more, never used twice in a cluster.
    VolumeId, u64, "v"
);
id!(
    /// The fencing number of a volume. Each attachment has a higher one than all before it.
    Epoch, u64, "e"
);
id!(
    /// The snapshot counter of a volume.
    Generation, u32, "gen"
);
id!(
    /// A Raft term.
    Term, u64, "t"
);
id!(
    /// The index of a Raft entry within its group, 1 or more; 0 is "nothing yet".
    LogIndex, u64, "i"
);
id!(
    /// A segment of a device, counted from 0.
    SegmentId, u32, "seg"
);
id!(
    /// Names a request within one client link; chosen by the client, echoed in the reply.
    RequestId, u64, "r"
);
id!(
    /// Counts the links that one session has opened. A request of a lower incarnation than the
    /// newest seen by a leader is a late duplicate and is refused (invariant I3).
    Incarnation, u64, "inc"
);

impl GroupId {
    /// The group that holds volumes, attachments and the map. Its entries are metadata commands.
    pub const METADATA: GroupId = GroupId(u32::MAX);
}

/// A snapshot: a volume, and the generation that was frozen.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SnapshotId {
    /// The volume.
    pub volume: VolumeId,
    /// The snapshot's generation.
    pub generation: Generation,
}

/// One reactor of one node: where a frame is sent to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Address {
    /// The machine.
    pub node: NodeId,
    /// The reactor on it.
    pub shard: ShardId,
}
