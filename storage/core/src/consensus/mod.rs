//! Raft groups over the segment log.
//!
//! A [`Group`] is one replica's part in its group. The raft library (tikv's `raft`, a `RawNode` a
//! group) decides about terms and indexes only: it never holds a byte of what the entries say. Data
//! and payload stand beside ([`table`]) and are joined again when a message leaves ([`outbox`]).
//!
//! * A leader sends its appends at once; its own write counts when it is durable, as each follower's.
//! * What a follower or candidate answers is held until everything it recorded before is durable.
//! * Nothing in here depends on the library's random numbers: election timeouts are drawn from the
//!   shard's seed.
//! * The library panics when its invariants break. Messages are checked before they reach it, and a
//!   group that breaks all the same is stopped alone.

mod announce;
mod checkpoint;
mod commands;
mod comparing;
mod convert;
mod election;
mod gates;
mod group;
mod health;
mod loads;
mod members;
mod mending;
mod outbox;
mod pace;
mod propose;
mod readmission;
mod ready;
mod recovering;
mod relief;
mod resync;
mod shared;
mod table;
mod traces;
mod waits;

pub use checkpoint::{Frozen, Retention};
#[cfg(test)]
pub(crate) use gates::CLOSED_MAX;
pub use group::{Group, Role};
pub use health::{Impaired, OpenState};
pub use loads::{LoadCounts, Loads, PageId};
pub use mending::MendedCounts;
pub use propose::{Asker, Proposal};
pub use resync::MovedCounts;
pub use shared::{ClientRead, Cx, Filling, LogRead, Room, RoomState, Shared, Slab, Written};
pub use table::{Content, Slot, Table};
pub use traces::{Arrival, Traces, read_trace};
