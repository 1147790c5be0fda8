//! What a reactor is told at its start, and why a start can fail.

use crate::tenant::Tenant;
use basalt_core::checkpoint::{Changes, Loader, SaveError, Verified};
use basalt_core::config::ShardConfig;
use basalt_core::consensus::PageId;
use basalt_core::event::Effect;
use basalt_device::DeviceSpec;
use basalt_link::LinkAuth;
use basalt_wire::ids::{Address, ClusterId};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

/// Where each reactor of the cluster is reached.
pub type Routes = BTreeMap<Address, SocketAddr>;
/// Builds a tenant on the reactor's thread.
pub type TenantFactory = Box<dyn FnOnce() -> Box<dyn Tenant> + Send>;
/// Hears what the control path must know: `Proposed`, `Applied`, `LeaderChanged`, `Drained`,
/// `DeviceSuspect` and `Notice`. Called on the reactor's thread: it must not block.
pub type Notices = Box<dyn FnMut(Effect) + Send>;

/// Everything that a reactor needs to know.
pub struct ReactorConfig {
    /// Name of the thread, and of this end of client links in the logs of others.
    pub name: String,
    /// The cluster. Links of another one are refused.
    pub cluster: ClusterId,
    /// This reactor's address; nothing if it hosts no shard.
    pub address: Option<Address>,
    /// The shard to host.
    pub shard: Option<ShardSetup>,
    /// Where peers and clients dial in.
    pub data_listen: Option<SocketAddr>,
    /// What it shows on its links, and asks of others.
    pub auth: LinkAuth,
    /// Where other reactors are reached. A shard keeps a link to each of them.
    pub routes: Routes,
    /// The tenants to host.
    pub tenants: Vec<TenantFactory>,
    /// Where streams for the tenants are accepted.
    pub stream_listeners: Vec<StreamListener>,
    /// Who hears what the control path must know.
    pub notices: Notices,
    /// Whether to wait for events by spinning.
    pub polling: Polling,
    /// Bounds.
    pub limits: Limits,
}

impl ReactorConfig {
    /// A reactor without shard, listeners and tenants, to be filled in.
    pub fn new(name: impl Into<String>, cluster: ClusterId) -> ReactorConfig {
        ReactorConfig {
            name: name.into(),
            cluster,
            address: None,
            shard: None,
            data_listen: None,
            auth: LinkAuth::Open,
            routes: Routes::new(),
            tenants: Vec::new(),
            stream_listeners: Vec::new(),
            notices: Box::new(|_| {}),
            polling: Polling::default(),
            limits: Limits::default(),
        }
    }
}

/// The shard of a reactor and its device.
pub struct ShardSetup {
    /// The shard's configuration. `device_bytes` 0 stands for the whole device, `index_bytes` 0 for what is
    /// usual for it, and `volatile_cache` is taken from the device in any case.
    pub config: ShardConfig,
    /// The device.
    pub device: DeviceSpec,
    /// Whether a device may be formatted.
    pub format: FormatPolicy,
    /// Where the shard's checkpoints are kept. Without it none are taken.
    pub checkpoints: Option<Box<dyn CheckpointStore>>,
}

/// Keeps the records of a shard's checkpoints. It is called on a thread of its own, and may block.
pub trait CheckpointStore: Send {
    /// Gives every record to the loader, in the order of the keys.
    ///
    /// # Errors
    /// If the store can not be read, or the loader refuses a record.
    fn load(&mut self, loader: &mut Loader) -> Result<(), String>;

    /// Makes the changes durable, all of them or none.
    ///
    /// # Errors
    /// If they may not be durable, or pages that they take over from the present checkpoint are damaged.
    fn save(&mut self, changes: &Changes) -> Result<(), SaveError>;

    /// Reads records from a key on, about so many bytes, past what is cached, and sees whether they are as they
    /// were written.
    ///
    /// # Errors
    /// If one is not, or can not be read.
    fn verify(&mut self, from: &[u8], bytes: u64) -> Result<Verified, String>;

    /// What reads single pages of the durable checkpoint, while others of its changes are being saved.
    fn pages(&self) -> Box<dyn PageStore>;
}

/// Reads pages of a shard's checkpoint. It is called on a thread of its own, and may block.
pub trait PageStore: Send {
    /// The records of one page: keys and values, in the order of the keys.
    ///
    /// # Errors
    /// If the store can not be read.
    fn read(&mut self, page: &PageId) -> Result<PageRecords, String>;
}

/// Keys and values of records.
pub type PageRecords = Vec<(Box<[u8]>, Box<[u8]>)>;

/// Whether a device may be formatted at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FormatPolicy {
    /// Format a device whose superblock area holds nothing but zeros; never one with content.
    IfBlank,
    /// Refuse a blank device: its content was expected.
    Never,
}

/// A socket on which streams for a tenant are accepted.
pub struct StreamListener {
    /// Index of the tenant.
    pub tenant: usize,
    /// The socket.
    pub source: ListenSource,
}

/// A listening socket.
pub enum ListenSource {
    /// A TCP address; port 0 picks a free one.
    Tcp(SocketAddr),
    /// A unix socket, made with mode 0600 and removed at the end.
    Unix {
        /// Its path.
        path: PathBuf,
        /// Whether a socket that nobody listens on is removed first.
        unlink_stale: bool,
    },
    /// A listening socket of the parent process (socket activation).
    Inherited(OwnedFd),
}

impl ListenSource {
    /// Whether it is a unix socket, which no network reaches.
    pub fn is_unix(&self) -> bool {
        match self {
            ListenSource::Tcp(_) => false,
            ListenSource::Unix { .. } => true,
            ListenSource::Inherited(fd) => crate::sys::is_unix(fd),
        }
    }
}

/// Whether a reactor that has nothing to do spins for a moment before it sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Polling {
    /// The longest time to spin; zero never spins. Within it the reactor spins only while that pays,
    /// as told by the time between arrivals.
    pub spin_max: Duration,
}

impl Polling {
    /// Sleep at once.
    pub const NEVER: Polling = Polling { spin_max: Duration::ZERO };
}

impl Default for Polling {
    /// Up to 30 µs, on machines with more than four cores; spinning with more pollers than cores is
    /// many times worse than sleeping.
    fn default() -> Polling {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        Polling { spin_max: Duration::from_micros(if cores > 4 { 30 } else { 0 }) }
    }
}

/// Bounds of a reactor.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Accepted connections of the data port.
    pub connections: usize,
    /// Accepted connections of the data port that have not said, and proven, who they are.
    pub handshakes: usize,
    /// Accepted streams of all tenants together.
    pub streams: usize,
    /// Time in which a connection must say, and prove, who it is.
    pub handshake: Duration,
    /// Request payload that a client may have unanswered on a link.
    pub credit_bytes: u32,
    /// Requests that a client may have unanswered on a link.
    pub credit_requests: u32,
    /// Bytes queued for a peer; frames beyond are dropped.
    pub peer_queue: usize,
    /// Bytes queued for a client above which nothing more is received from it.
    pub client_pause: usize,
    /// Bytes queued for a client at which it is disconnected.
    pub client_queue: usize,
    /// Bytes queued on a stream above which the tenant hears when they are sent.
    pub stream_high: usize,
    /// Bytes queued on a stream below which they count as sent.
    pub stream_low: usize,
    /// Bytes queued on a stream at which it is closed.
    pub stream_queue: usize,
    /// Time between two pings of a link.
    pub ping_every: Duration,
    /// Silence after which a link with an unanswered ping counts as broken.
    pub silence: Duration,
    /// Silence after which an accepted link counts as broken.
    pub silence_accepted: Duration,
    /// Time for a graceful stop: handing over leaderships, then sending what is queued.
    pub stop: Duration,
    /// How often a suspect device is opened again.
    pub reopen_attempts: u32,
    /// Entries of the reactor's io_uring.
    pub ring_entries: u32,
    /// Bytes of memory on huge pages that the reactor's buffers come from, resident from the start
    /// where the kernel lets the ring register it. What does not fit comes from the heap.
    pub arena_bytes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 8192,
            handshakes: 512,
            streams: 8192,
            handshake: Duration::from_secs(5),
            credit_bytes: 32 << 20,
            credit_requests: 1024,
            peer_queue: 64 << 20,
            client_pause: 8 << 20,
            client_queue: 256 << 20,
            stream_high: 4 << 20,
            stream_low: 1 << 20,
            stream_queue: 256 << 20,
            ping_every: Duration::from_millis(500),
            silence: Duration::from_millis(1250),
            silence_accepted: Duration::from_secs(5),
            stop: Duration::from_secs(2),
            reopen_attempts: 3,
            ring_entries: 1024,
            arena_bytes: 32 << 20,
        }
    }
}

/// Why a reactor can not start, or can not answer.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The configuration contradicts itself.
    #[error("the reactor's configuration is wrong: {0}")]
    Config(String),
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The device can not be used.
    #[error("device {device}: {reason}")]
    Device {
        /// Which.
        device: String,
        /// Why.
        reason: String,
    },
    /// The reactor has ended.
    #[error("the reactor has ended: {0}")]
    Ended(String),
    /// The reactor did not answer in time.
    #[error("the reactor did not answer within {0:?}")]
    Timeout(Duration),
}

impl NodeError {
    pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> NodeError {
        let what = what.into();
        move |source| NodeError::System { what, source }
    }
}

/// An error with everything that caused it, in one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
