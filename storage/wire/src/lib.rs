//! The vocabulary of Basalt: what travels between the state machines, the disks and the network.
//!
//! Nothing in this crate performs I/O. It holds
//!
//! * [`ids`]: the newtypes that name things (nodes, groups, volumes, terms, ...);
//! * [`block`]: the 4 KiB block, its arithmetic and its checksum;
//! * [`buffer`]: aligned memory for device transfers, and [`buffer::Payload`], block data in pieces;
//! * [`io`]: device operations and their completions, shared by the real devices and the simulator;
//! * [`blockset`]: some blocks of a range;
//! * [`command`]: what a Raft entry of a volume group says (write, unmap, fence);
//! * [`frame`]: the messages between nodes and between a client and a node;
//! * [`pages`]: the messages that bring a replica up that is too far behind for the log;
//! * [`repair`]: the messages that repair a damaged block;
//! * [`digests`]: the message that compares replicas while they work;
//! * [`codec`]: frames to bytes and back, with length checked before allocation;
//! * [`disk`]: the structures on a device: superblock, batch header, records;
//! * [`time`]: monotonic time as the state machines see it;
//! * [`trace`]: where the time of a request goes.
//!
//! Every decoder validates before any field is used: bytes from disks, peers and clients are data.

pub mod block;
pub mod blockset;
pub mod buffer;
pub mod codec;
pub mod command;
pub mod digests;
pub mod disk;
pub mod frame;
pub mod ids;
pub mod io;
pub mod membership;
pub mod pages;
pub mod repair;
pub mod time;
pub mod trace;
