//! The records and their form: JSON, so that an operator can read them with RocksDB's own tools.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The metadata group's number.
const METADATA: u32 = u32::MAX;

/// Which cluster a node belongs to, which of its nodes it is, and which replicas it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Version of the record.
    pub(crate) version: u32,
    /// The cluster.
    pub cluster: u64,
    /// The node's id in it.
    pub node: u32,
    /// Volume groups of the pool.
    pub group_count: u32,
    /// Every machine of the cluster.
    pub members: Vec<MemberRecord>,
    /// The voters that each volume group began with, in order, by node id.
    pub groups: Vec<Vec<u32>>,
    /// Those that the metadata group began with.
    pub metadata: Vec<u32>,
    /// The groups that have a replica here.
    pub replicas: Vec<ReplicaRecord>,
    /// Whether the node ever began as this member. Until then it has promised nothing to anybody.
    pub begun: bool,
}

/// A group that has a replica on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplicaRecord {
    /// The group; the metadata group has the highest number.
    pub group: u32,
    /// Term of the leader that had the node as a member when the replica began; 0 for a founder's.
    pub term: u64,
    /// What that leader had applied; 0 for a founder's.
    pub index: u64,
}

/// A machine of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberRecord {
    /// Its id.
    pub node: u32,
    /// Its name.
    pub name: String,
    /// Where its gRPC API listens.
    pub grpc: String,
    /// Where its data path listens.
    pub data: String,
    /// Where it serves NBD, empty if it does not.
    pub nbd: String,
}

impl Identity {
    /// An identity of the present version: that of a node that holds the groups which it founded, and
    /// has not begun.
    pub fn new(
        cluster: u64,
        node: u32,
        members: Vec<MemberRecord>,
        groups: Vec<Vec<u32>>,
        metadata: Vec<u32>,
    ) -> Identity {
        let group_count = groups.len() as u32;
        let founders = groups.iter().zip(0..).chain([(&metadata, METADATA)]);
        let founded = founders.filter(|(voters, _)| voters.contains(&node));
        let replicas = founded.map(|(_, group)| ReplicaRecord { group, term: 0, index: 0 });
        let replicas = replicas.collect();
        let version = Identity::VERSION;
        let begun = false;
        Identity { version, cluster, node, group_count, members, groups, metadata, replicas, begun }
    }

    /// Whether it is a founder of any group.
    pub fn is_founder(&self) -> bool {
        self.groups.iter().chain([&self.metadata]).any(|founders| founders.contains(&self.node))
    }

    /// The replica of a group here.
    pub fn replica(&self, group: u32) -> Option<ReplicaRecord> {
        self.replicas.iter().copied().find(|replica| replica.group == group)
    }
}

/// How far the node has come with looking for damage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScrubRecord {
    /// Version of the record.
    pub(crate) version: u32,
    /// When the last pass began, in seconds since 1970.
    pub began: u64,
    /// Where it stands, if it is not over.
    pub place: Option<ScrubPlaceRecord>,
}

/// Where a pass stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScrubPlaceRecord {
    /// The group that it is at.
    pub group: u32,
    /// The volume that it is at.
    pub volume: u64,
    /// The first chunk of it that was not looked at.
    pub chunk: u64,
    /// Groups that are not looked at yet, with this one.
    pub left: u64,
}

impl ScrubRecord {
    /// A record of the present version.
    pub fn new(began: u64, place: Option<ScrubPlaceRecord>) -> ScrubRecord {
        ScrubRecord { version: ScrubRecord::VERSION, began, place }
    }
}

/// Where the metadata group began anew, from a state that was restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BeginningRecord {
    /// Version of the record.
    pub(crate) version: u32,
    /// The term of the entry at which it began: what has a lower one is not of it.
    pub term: u64,
    /// The entry.
    pub index: u64,
}

impl BeginningRecord {
    /// A record of the present version.
    pub fn new(term: u64, index: u64) -> BeginningRecord {
        BeginningRecord { version: BeginningRecord::VERSION, term, index }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Boots {
    pub version: u32,
    /// Starts of the node.
    pub count: u64,
    /// Whether its device was opened once.
    pub opened: bool,
}

impl Default for Boots {
    fn default() -> Boots {
        Boots { version: Boots::VERSION, count: 0, opened: false }
    }
}

pub(crate) trait Versioned: Serialize + DeserializeOwned {
    /// The version that is written, and the only one that is read.
    const VERSION: u32;
}

impl Versioned for Identity {
    const VERSION: u32 = 3;
}

impl Versioned for ScrubRecord {
    const VERSION: u32 = 1;
}

impl Versioned for BeginningRecord {
    const VERSION: u32 = 1;
}

impl Versioned for Boots {
    const VERSION: u32 = 1;
}

/// What is looked at first: fields that came or went must not hide that the version is another one.
#[derive(Deserialize)]
struct Header {
    version: u32,
}

pub(crate) fn parse<T: Versioned>(bytes: &[u8]) -> Result<T, String> {
    let header: Header = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if header.version != T::VERSION {
        return Err(format!("version {}, where {} is known", header.version, T::VERSION));
    }
    serde_json::from_slice(bytes).map_err(|e| e.to_string())
}

pub(crate) fn format<T: Versioned>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("the records hold nothing that JSON can not say")
}
