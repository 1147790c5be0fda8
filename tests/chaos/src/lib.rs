//! Real processes, and records of real devices, under faults.

pub mod power;
pub mod random;
