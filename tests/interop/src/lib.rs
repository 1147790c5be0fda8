//! Foreign clients against a real cluster.
//!
//! * [`cluster`]: a cluster of real processes on loopback.
//! * [`lan`]: a network for them, whose cables can be pulled. [`ports`]: ports.
//! * [`process`]: this project's programs as child processes.
//! * [`guest`]: a Linux kernel of its own, for the kernel's NBD client.
//! * [`fio`]: fio with its NBD engine.

pub mod cluster;
pub mod fio;
pub mod guest;
pub mod lan;
pub mod ports;
pub mod process;
