//! `basaltd`: one node of a cluster.
//!
//! A node is one reactor (storage, data path, front door) and, beside it, the control path on tokio:
//! gRPC, the mirror of the metadata group, and reconcilers. The two talk through the reactor's
//! mailbox and its notices, and never wait for each other.
//!
//! * [`options`]: the command line;
//! * [`daemon`]: the life of the process: locked, waiting for bootstrap, running, stopped;
//! * [`engine`]: a running member of a cluster;
//! * [`metadata`]: the mirror of the metadata group, proposals and linearizable reads;
//! * `state`: where the state of the metadata group is kept, and how it comes from other nodes;
//! * [`reconcile`]: what makes the node do what the records say, [`retry`]: when it tries again;
//! * `moves`: what has groups move from node to node;
//! * `liveness`: who lives, `failover`: attachments of nodes that do not, `stops`: who stops as planned;
//! * [`calls`]: calls as parts of traces, `works`: what goes on after them;
//! * [`access`]: who may call what; [`joining`]: how a new machine gets the cluster's secret;
//! * [`admin`], [`services`], [`peer`], [`security`]: the gRPC services; [`bootstrap`], [`nodes`],
//!   [`snapshots`], [`cuts`], [`changes`], [`status`]: their longer stories.

pub mod access;
pub mod admin;
mod along;
mod attached;
pub mod bootstrap;
pub mod calls;
pub mod changes;
mod checkpoints;
mod clones;
pub mod cuts;
pub mod daemon;
mod deletions;
pub mod engine;
mod failover;
mod hosts;
mod incoming;
pub mod joining;
mod keeping;
mod kept;
mod keys;
mod links;
mod liveness;
pub mod metadata;
mod metrics;
mod moves;
pub mod nodes;
pub mod options;
pub mod peer;
mod placement;
pub mod reconcile;
pub mod recovery;
pub mod restore;
pub mod retry;
mod returns;
mod reverting;
pub mod scrub;
pub mod security;
pub mod services;
pub mod snapshots;
mod state;
pub mod status;
mod stops;
mod volumes;
mod why;
mod works;
