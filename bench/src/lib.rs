//! Benches of the whole system.
//!
//! [`local::LocalCluster`] runs three nodes and a client as reactors of one process, over loopback
//! sockets; [`load::Load`] is a tenant that keeps a number of requests under way and times each;
//! [`totals`] tells how well the batches of each edge were filled; [`cpu`] reads what the process, or
//! the whole machine, spent. The figure that carries from machine to machine is CPU time per I/O over
//! every thread involved.

pub mod cpu;
pub mod load;
pub mod local;
pub mod totals;
