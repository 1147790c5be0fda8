//! The records and their form: JSON, so that an operator can read them with RocksDB's own tools.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

const VERSION: u32 = 1;

/// Which cluster a node belongs to, and which of its nodes it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Version of the record.
    version: u32,
    /// The cluster.
    pub cluster: u64,
    /// The node's id in it.
    pub node: u32,
    /// Volume groups of the pool.
    pub group_count: u32,
    /// Every machine of the cluster.
    pub members: Vec<MemberRecord>,
    /// Voters of each volume group, in order, by node id.
    pub groups: Vec<Vec<u32>>,
    /// Voters of the metadata group.
    pub metadata: Vec<u32>,
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
    /// An identity of the present version.
    pub fn new(
        cluster: u64,
        node: u32,
        members: Vec<MemberRecord>,
        groups: Vec<Vec<u32>>,
        metadata: Vec<u32>,
    ) -> Identity {
        let group_count = groups.len() as u32;
        Identity { version: VERSION, cluster, node, group_count, members, groups, metadata }
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
        Boots { version: VERSION, count: 0, opened: false }
    }
}

pub(crate) trait Versioned: Serialize + DeserializeOwned {
    fn version(&self) -> u32;
}

impl Versioned for Identity {
    fn version(&self) -> u32 {
        self.version
    }
}

impl Versioned for Boots {
    fn version(&self) -> u32 {
        self.version
    }
}

pub(crate) fn parse<T: Versioned>(bytes: &[u8]) -> Result<T, String> {
    let value: T = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    match value.version() {
        VERSION => Ok(value),
        other => Err(format!("version {other}, where {VERSION} is known")),
    }
}

pub(crate) fn format<T: Versioned>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("the records hold nothing that JSON can not say")
}
