//! `basalt-attach`, and what it shares with `basaltd`: addresses to listen on, the pool's map as the
//! data path wants it, TLS of the NBD door, and how a process starts, logs and ends.

pub mod convert;
pub mod door;
pub mod keys;
pub mod listen;
pub mod options;
pub mod process;
pub mod run;
pub mod tickets;
