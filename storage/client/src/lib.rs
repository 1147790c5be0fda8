//! The volume client: one session of one user with one volume.
//!
//! A [`VolumeClient`] takes the user's requests ([`BlockOp`], in bytes, of any alignment and size),
//! cuts them into requests to groups, finds each group's leader, sends, sends again where that is
//! safe, and answers. Like every state machine of Basalt it does no I/O, reads no clock and draws no
//! randomness: it takes [`ClientEvent`]s and the time and gives [`ClientEffect`]s, which the reactor
//! or the simulator carries out.
//!
//! A session begins by fencing: its epoch is committed in every group that holds chunks of the volume
//! before the first request is sent ([`ClientEffect::Ready`]). It ends when a higher epoch was
//! attached, or when its user closes it. As long as it lasts a request waits rather than fails when
//! nodes are away.
//!
//! * `retry`: when a write may be sent again, as a numbered story;
//! * `chunks`: the floor of reads, and the order of writes of the same blocks;
//! * `pace`: which replicas are left alone because reads are far faster elsewhere;
//! * [`latency`]: how long requests take;
//! * [`trace`]: where their time goes;
//! * `limit`: bounds on what a session may do in a second;
//! * `link`, `group`: credits and unanswered requests of a link, the leader of a group;
//! * `split`: a request cut into parts;
//! * `client`: the state machine itself;
//! * [`cut`]: snapshots of several volumes at one point in time.

mod chunks;
mod client;
pub mod cut;
mod group;
pub mod latency;
mod limit;
mod link;
mod minimum;
mod pace;
mod part;
mod retry;
mod slab;
mod split;
#[cfg(test)]
mod tests;
pub mod trace;
mod types;

pub use client::VolumeClient;
pub use cut::{Cut, CutEnd};
pub use types::{
    BlockError, BlockOp, BlockResult, ClientEffect, ClientEvent, ClientStats, EXTENT_RUNS_MAX,
    PoolMap, RateLimits, Tuning, VolumeConfig,
};
