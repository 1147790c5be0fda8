//! Foreign clients against a real cluster.
//!
//! * [`cluster`]: a cluster of real processes on loopback.
//! * [`ports`]: ports for them.
//! * [`process`]: this project's programs as child processes.
//! * [`fio`]: fio with its NBD engine.

pub mod cluster;
pub mod fio;
pub mod ports;
pub mod process;
