//! Foreign clients against a real cluster.
//!
//! * [`cluster`]: a cluster of real processes on loopback.
//! * [`ports`]: ports for them.
//! * [`process`]: this project's programs as child processes.
//! * [`guest`]: a Linux kernel of its own, for the kernel's NBD client.
//! * [`fio`]: fio with its NBD engine.

pub mod cluster;
pub mod fio;
pub mod guest;
pub mod ports;
pub mod process;
