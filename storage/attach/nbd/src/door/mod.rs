//! The door: NBD connections of a reactor, and the volumes that they lead to.

mod conns;
mod core;
mod exports;
mod leaders;
mod links;
mod memory;
#[cfg(test)]
mod tests;

use self::core::Core;
use crate::session::SessionConfig;
use crate::tls::TlsServer;
use basalt_client::latency::{Histogram, Latencies};
use basalt_client::trace::Traces;
use basalt_client::{
    BlockError, BlockOp, BlockResult, ClientStats, PoolMap, RateLimits, VolumeConfig,
};
use basalt_node::{StreamId, Tenant, TenantCx, TenantEvent};
use basalt_wire::frame::Request;
use basalt_wire::ids::{Address, Epoch, Generation, VolumeId};
use basalt_wire::time::Time;
use basalt_wire::trace::Stage;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;

/// Called once with the outcome of a command, on the reactor's thread: it must not block.
pub type Reply<T> = Box<dyn FnOnce(Result<T, DoorError>) + Send>;

/// How a door serves.
pub struct DoorConfig {
    /// Bounds of each connection, and the policy on TLS.
    pub session: SessionConfig,
    /// Certificates; needed unless the policy is off.
    pub tls: Option<Arc<TlsServer>>,
    /// Listeners, by their index in [`basalt_node::ReactorConfig::stream_listeners`], on which TLS is
    /// never demanded: unix sockets, which no network reaches.
    pub tls_exempt: Vec<usize>,
    /// How long a client may negotiate.
    pub handshake_time: Duration,
    /// Connections at a time. For one more, the one that negotiates for longest is closed; if none
    /// does, the new one.
    pub connections_max: usize,
    /// Connections of one export at a time; one more is refused when it names the export.
    pub export_connections_max: usize,
    /// Exports at a time.
    pub exports_max: usize,
    /// Unsent bytes of a connection above which no more requests are taken from it. To be at least
    /// the reactor's high mark, for it is its low mark that lets the connection go on.
    pub output_high: usize,
    /// Data of unanswered and half received requests, of all connections together. When it is used
    /// up, connections wait for others to finish. One is served however long its requests are.
    pub memory_max: usize,
    /// How long a client may take to send the rest of a request.
    pub request_time: Duration,
    /// Told when an export ends by itself, on the reactor's thread: it must not block.
    pub on_end: Option<Box<dyn FnMut(ExportEnd) + Send>>,
    /// Told when the groups may be elsewhere by now: a link broke or could not be made, or one is led where the
    /// map does not place it. On the reactor's thread: it must not block. See [`DoorCommand::Map`].
    pub on_old_map: Option<Box<dyn FnMut() + Send>>,
}

impl Default for DoorConfig {
    fn default() -> DoorConfig {
        DoorConfig {
            session: SessionConfig::default(),
            tls: None,
            tls_exempt: Vec::new(),
            handshake_time: Duration::from_secs(10),
            connections_max: 1024,
            export_connections_max: 128,
            exports_max: 1024,
            output_high: 4 << 20,
            memory_max: 512 << 20,
            request_time: Duration::from_secs(60),
            on_end: None,
            on_old_map: None,
        }
    }
}

/// An export that ended without being detached: its session was lost.
#[derive(Clone, Debug)]
pub struct ExportEnd {
    /// Its name.
    pub name: String,
    /// The volume.
    pub volume: VolumeId,
    /// The epoch of the session that is over.
    pub epoch: Epoch,
    /// Why.
    pub error: BlockError,
}

/// What the control path asks of a door, as [`TenantEvent::Command`].
pub enum DoorCommand {
    /// Serve a volume. A volume that is served already under a lower epoch changes over to the new
    /// session; its connections are closed.
    Attach {
        /// The export's name: the volume's.
        name: String,
        /// One line for people.
        description: String,
        /// Whether writes are refused.
        read_only: bool,
        /// The volume and the session.
        config: VolumeConfig,
        /// The volume's snapshot of the configured generation is served, not the volume: there may be
        /// any number of such sessions beside the volume's own, and they take no epoch.
        view: bool,
        /// Called when the session has begun: its epoch is committed in every group.
        reply: Reply<()>,
    },
    /// Keep a generation of a volume as a snapshot, or drop it, beside whatever session the volume has.
    Snapshot {
        /// The volume with the generation.
        config: VolumeConfig,
        /// Whether it is dropped.
        drop: bool,
        /// Called when every group has done it.
        reply: Reply<()>,
    },
    /// Keep generations of several volumes as snapshots of one point in time, beside whatever sessions the
    /// volumes have. If that fails, what was kept of them is to be dropped.
    Cut {
        /// The volumes with their generations.
        configs: Vec<VolumeConfig>,
        /// Called when it is done in every group, or given up: after a second at the latest.
        reply: Reply<()>,
    },
    /// Serve a volume no more. Outstanding requests are answered with ESHUTDOWN.
    Detach {
        /// The export.
        name: String,
        /// Called when nothing is served any more.
        reply: Reply<()>,
    },
    /// Delete all blocks of a volume, under an epoch that was drawn for this.
    Delete {
        /// The volume and the session.
        config: VolumeConfig,
        /// Called when every group has deleted them.
        reply: Reply<()>,
    },
    /// Make a volume what it was in a snapshot, under an epoch that was drawn for this.
    Revert {
        /// The volume and the session.
        config: VolumeConfig,
        /// The snapshot's generation.
        generation: Generation,
        /// Called when every group has done it.
        reply: Reply<()>,
    },
    /// Ask something of a snapshot of a volume, beside whatever session the volume has.
    Ask {
        /// The volume with the snapshot's generation.
        config: VolumeConfig,
        /// What is asked.
        op: BlockOp,
        /// Called with the answer.
        reply: Reply<BlockResult>,
    },
    /// A volume was made larger. Connections that come from now on are told the new size; those that
    /// there are may use it, although the protocol has no way to tell them.
    Resize {
        /// The export.
        name: String,
        /// The session that is meant; another one began with a size of its own.
        epoch: Epoch,
        /// One line for people.
        description: String,
        /// Bytes; less than the volume has changes nothing.
        size_bytes: u64,
        /// The generation that writes go to, as the record says that also says the size.
        generation: Generation,
        /// Called when requests are held against it.
        reply: Reply<()>,
    },
    /// What a volume's session may do in a second has changed.
    Limit {
        /// The export.
        name: String,
        /// The session that is meant.
        epoch: Epoch,
        /// The bounds from now on.
        limits: RateLimits,
        /// Called when they hold.
        reply: Reply<()>,
    },
    /// The pool changed.
    Map(Arc<PoolMap>),
    /// Tell where the time of a volume's requests went that were traced.
    Trace {
        /// The export.
        name: String,
        /// Called with that and the present time, or with nothing if the volume is not served here.
        reply: TraceReply,
    },
    /// Tell what is served.
    Status {
        /// Called with it.
        reply: Box<dyn FnOnce(DoorStatus) + Send>,
    },
}

/// Takes what traced requests told, and the time at which they did; nothing if there is no such export.
pub type TraceReply = Box<dyn FnOnce(Option<(Traces, Time)>) + Send>;

/// Why a command was not carried out.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum DoorError {
    /// There is an export of that name.
    #[error("'{0}' is attached here already")]
    Attached(String),
    /// There is no export of that name.
    #[error("'{0}' is not attached here")]
    Unknown(String),
    /// The protocol does not allow the name.
    #[error("'{0}' can not be the name of an export: it must have 1 to 4096 bytes")]
    Name(String),
    /// A session of that epoch, or of a higher one, was begun here before: it takes a new epoch.
    #[error("the volume was attached here with epoch {} already; another session needs another", .0.0)]
    Spent(Epoch),
    /// The bound on exports is reached.
    #[error("no more than {0} volumes can be attached here")]
    TooMany(usize),
    /// The session with the volume ended, or could not do what was asked.
    #[error("{0}")]
    Lost(BlockError),
    /// The reactor is stopping.
    #[error("the server is stopping")]
    Stopping,
}

/// What a door serves.
#[derive(Clone, Debug)]
pub struct DoorStatus {
    /// The exports, in the order in which they were attached.
    pub exports: Vec<ExportStatus>,
    /// Connections, those included that have not chosen an export.
    pub connections: usize,
}

/// One export.
#[derive(Clone, Debug)]
pub struct ExportStatus {
    /// Its name.
    pub name: String,
    /// The volume.
    pub volume: VolumeId,
    /// The session's epoch.
    pub epoch: Epoch,
    /// Bytes.
    pub size_bytes: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether the session has begun.
    pub ready: bool,
    /// Who is connected.
    pub connections: Vec<String>,
    /// What its client did.
    pub client: ClientStats,
    /// How long requests took.
    pub latencies: Box<Latencies>,
    /// The times of those that were traced, by kind and stage.
    pub stages: Vec<(&'static str, Stage, Histogram)>,
}

/// The NBD server of a reactor. Give it to [`basalt_node::ReactorConfig::tenants`] and its
/// listening sockets to `stream_listeners`; command it by [`basalt_node::Mailbox::tenant`] with a
/// boxed [`DoorCommand`].
pub struct NbdDoor {
    core: Core,
}

impl NbdDoor {
    /// A door that serves nothing yet.
    pub fn new(config: DoorConfig) -> NbdDoor {
        assert!(
            config.session.tls == crate::TlsPolicy::Off || config.tls.is_some(),
            "a policy on TLS needs certificates"
        );
        assert!(config.session.requests_max <= conns::SLOTS_LIMIT, "too many requests to name");
        assert!(config.connections_max <= conns::CONNECTIONS_LIMIT, "too many connections to name");
        NbdDoor { core: Core::new(config) }
    }
}

impl Tenant for NbdDoor {
    fn event(&mut self, now: Time, event: TenantEvent, cx: &mut TenantCx<'_>) {
        self.core.event(now, event, cx);
    }

    fn end_turn(&mut self, now: Time, cx: &mut TenantCx<'_>) {
        self.core.end_turn(now, cx);
    }

    fn next_deadline(&self) -> Option<Time> {
        self.core.next_deadline()
    }

    fn may_stop(&self) -> bool {
        self.core.may_stop()
    }
}

/// What a door needs of its reactor, so that it can be tested without one.
trait Host {
    fn send(&mut self, stream: StreamId, bytes: Bytes);
    fn queued(&self, stream: StreamId) -> usize;
    fn pause(&mut self, stream: StreamId, paused: bool);
    fn close(&mut self, stream: StreamId);
    fn peer(&self, stream: StreamId) -> String;
    fn dial(&mut self, to: Address);
    fn reset(&mut self, to: Address);
    fn request(&mut self, to: Address, request: Request);
    fn notice(&mut self, alarm: bool, text: String);
}

impl Host for TenantCx<'_> {
    fn send(&mut self, stream: StreamId, bytes: Bytes) {
        TenantCx::send(self, stream, bytes);
    }

    fn queued(&self, stream: StreamId) -> usize {
        TenantCx::queued(self, stream)
    }

    fn pause(&mut self, stream: StreamId, paused: bool) {
        TenantCx::pause(self, stream, paused);
    }

    fn close(&mut self, stream: StreamId) {
        TenantCx::close(self, stream);
    }

    fn peer(&self, stream: StreamId) -> String {
        TenantCx::peer(self, stream)
    }

    fn dial(&mut self, to: Address) {
        TenantCx::dial(self, to);
    }

    fn reset(&mut self, to: Address) {
        TenantCx::reset(self, to);
    }

    fn request(&mut self, to: Address, request: Request) {
        TenantCx::request(self, to, request);
    }

    fn notice(&mut self, alarm: bool, text: String) {
        TenantCx::notice(self, alarm, text);
    }
}
