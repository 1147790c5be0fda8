//! The state machines of Basalt, with no I/O.
//!
//! A [`Shard`] is one core's share of a node: its segment log, its block index and the replicas of
//! its Raft groups. It takes [`event::Event`]s and the time, changes its own fields and gives
//! [`event::Effect`]s to a list that the caller owns. It reads no clock, draws no randomness beyond
//! the seed it was given, starts no thread and opens nothing.
//!
//! * [`log`]: the segment log: batches appended, durable in order, recovered by a decision table.
//! * [`index`]: where each block of each volume stands in the log.
//! * [`cleaner`]: makes room by moving live blocks out of segments that hold garbage.
//! * [`scrub`]: looks for damaged blocks and has them repaired from other replicas.
//! * [`checkpoint`]: the state of the replicas in the node's store, so that a start replays less.
//! * [`consensus`]: Raft groups over the log, with payload beside the entries.
//! * [`replica`]: applies committed commands, serves reads, holds epochs.

pub mod checkpoint;
pub mod cleaner;
pub mod config;
pub mod consensus;
pub mod event;
pub mod index;
pub mod log;
pub mod planted;
pub mod replica;
pub mod score;
pub mod scrub;
pub mod shard;

pub use shard::{GroupRole, GroupStatus, Phase, Shard, ShardStatus};
