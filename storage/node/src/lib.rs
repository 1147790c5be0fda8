//! A storage node: reactors, connections and devices wired to the state machines.
//!
//! A reactor ([`start`]) is one thread with one io_uring for its device and all its sockets. It
//! hosts a [`basalt_core::Shard`], or tenants such as the NBD server ([`Tenant`]), or both. Nothing
//! on its data path is shared with another thread; the control path talks to it through a mailbox
//! ([`ReactorHandle`], [`Mailbox`]) and hears from it through [`ReactorConfig::notices`].
//!
//! * [`config`]: what a reactor is told at its start;
//! * [`tenant`]: what a tenant hears and can do;
//! * [`handle`]: starting, asking, stopping;
//! * [`status`]: counters and states.

mod accept;
mod checkpoints;
mod chunk;
pub mod config;
mod conn;
pub mod handle;
mod handshake;
mod host;
mod links;
mod memory;
mod net;
mod polling;
mod private;
mod reactor;
mod slab;
pub mod status;
mod streams;
mod sys;
pub mod tenant;

pub use config::{
    CheckpointStore, FormatPolicy, Limits, ListenSource, NodeError, PageRecords, PageStore,
    Polling, ReactorConfig, Routes, ShardSetup, StreamListener, TenantFactory,
};
pub use handle::{Mailbox, ReactorHandle, start};
pub use memory::{give_back_memory, huge_pages_where_asked_for};
pub use private::keep_private;
pub use status::{Counters, HostState, HostStatus, LinkStatus, ReactorStatus};
pub use sys::raise_file_limit;
pub use tenant::{StreamId, Tenant, TenantCx, TenantEvent};
