//! What `basalt-attach` and `basaltd` share: addresses to listen on, the pool's map as the data path
//! wants it, and how a process starts, logs and ends.

pub mod convert;
pub mod listen;
pub mod process;
