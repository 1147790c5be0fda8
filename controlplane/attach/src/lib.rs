//! `basalt-attach`, and what it shares with `basaltd`: addresses to listen on, the pool's map as the
//! data path wants it, TLS of the NBD door, what Prometheus is told of sessions, and how a process starts and ends.

pub mod convert;
pub mod door;
pub mod keys;
pub mod latency;
pub mod listen;
pub mod metrics;
pub mod options;
pub mod process;
pub mod run;
pub mod scrape;
pub mod tickets;
