//! Real processes, and records of real devices, under faults.
//!
//! * [`power`]: all nodes lose power at one instant.
//! * [`rounds`]: nodes are killed and stopped while fio writes and verifies.
//! * [`snapshots`]: many of them, under load.
//! * [`cuts`]: snapshots of several volumes together.
//! * [`clones`]: volumes that begin as a snapshot of another, and become their own.
//! * [`absence`]: a node that was away.
//! * [`creates`]: volumes created while leaders die.
//! * [`fence`]: a node with a volume is cut off, and the volume goes on elsewhere.
//! * [`fill`]: devices without room.
//! * [`headless`]: only the reactors run.
//! * [`heal`]: a dead node's replicas are made anew.
//! * [`overwrite`]: devices that are nearly full, for a long time.
//! * [`members`]: nodes that come and go.
//! * [`minimum`]: a volume that is guaranteed something, beside greedy ones.
//! * [`metadata`]: many changes of the metadata group, starts, and nodes that are behind its log.
//! * [`rot`]: one copy of everything is damaged.
//! * [`measure`]: what processes use. [`nbd`]: a client that can be stopped at any byte.
//!   [`load`]: random overwrites that are remembered. [`plot`]: curves over time.

pub mod absence;
mod admin;
mod api;
mod background;
pub mod clones;
mod counter;
pub mod creates;
pub mod cuts;
pub mod fence;
pub mod fill;
pub mod headless;
pub mod heal;
pub mod load;
pub mod many;
pub mod measure;
pub mod members;
pub mod metadata;
pub mod minimum;
pub mod nbd;
pub mod overwrite;
pub mod plot;
pub mod power;
pub mod random;
pub mod restore;
pub mod rot;
pub mod rounds;
pub mod snapshots;
