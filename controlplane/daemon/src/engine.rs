//! A running member of a cluster: its reactor, its mirror of the metadata group, its reconciler.

use crate::checkpoints::Checkpoints;
use crate::clones::FlattenProgress;
use crate::hosts::HostsHeard;
use crate::kept::Kept;
use crate::metadata::Metadata;
use crate::moves;
use crate::options::Options;
use crate::reconcile;
use anyhow::{Context, Result, anyhow, bail, ensure};
use basalt_api::error;
use basalt_api::v1::{self, ClusterSpec, ErrorReason, Member, NodeAddress, ReplicaAddress};
use basalt_attach::convert;
use basalt_attach::door::TlsOptions;
use basalt_core::config::{GroupConfig, Limits, Scrubbing, ShardConfig, Timing};
use basalt_core::event::Effect;
use basalt_core::planted::Planted;
use basalt_core::shard::Phase;
use basalt_device::DeviceSpec;
use basalt_meta::layout;
use basalt_nbd::{ExportEnd, NbdDoor};
use basalt_node::{
    FormatPolicy, HostState, ListenSource, ReactorConfig, ReactorHandle, ReactorStatus, Routes,
    ShardSetup, StreamListener,
};
use basalt_store::{BeginningRecord, Identity, MemberRecord, ReplicaRecord, Store};
use basalt_wire::ids::{
    Address, ClusterId, Epoch, GroupId, LogIndex, NodeId, ShardId, Term, VolumeId,
};
use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, watch};
use tonic::Status;

/// Index of the NBD door among the reactor's tenants. A node that does not listen for NBD has one
/// too: it deletes the blocks of deleted volumes.
pub const DOOR: usize = 0;

/// How long the first opening of a device may take: it was just made, or holds little.
const FIRST_OPENING: Duration = Duration::from_secs(30);

/// How long the last of what the reactor told may take to be heard, and to be saved.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How long a device may be held by what a killed process left in the kernel.
const DEVICE_PATIENCE: Duration = Duration::from_secs(10);

/// A running member of a cluster.
pub struct Engine {
    /// Who this node is.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// The options of the process.
    pub options: Arc<Options>,
    /// The mirror of the metadata group.
    pub metadata: Arc<Metadata>,
    /// The reactor.
    pub reactor: ReactorHandle,
    /// Where identity and addresses are kept.
    pub store: Arc<Store>,
    /// What the door tells.
    pub door: Arc<Door>,
    /// The clones that it flattens.
    pub flattening: FlattenProgress,
    /// The snapshots that it knows to be kept before the records say so.
    pub(crate) kept: Kept,
    /// Hosts that are no nodes, as far as they were heard of.
    pub(crate) hosts: HostsHeard,
    /// Held while a replica is remembered or forgotten and the shard is told: both have one order.
    pub replicas: tokio::sync::Mutex<()>,
    spec: Mutex<ClusterSpec>,
    failed: watch::Sender<Option<String>>,
    /// Ends when everything is heard that the reactor has told before its end.
    hears: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

impl Engine {
    /// Opens the device, starts the reactor and the reconciler. Blocks: call it on a helper thread.
    ///
    /// # Errors
    /// If the device can not be opened or an address can not be used.
    pub fn start(
        options: Arc<Options>,
        store: Arc<Store>,
        identity: &Identity,
    ) -> Result<Arc<Engine>> {
        let spec = spec_of(identity);
        ensure!(is_whole(identity), "the node's identity is incomplete");
        let node = NodeId(identity.node);
        basalt_telemetry::describe(&[("basalt.cluster", format!("{:016x}", spec.id))]);
        let name = options.node_name().map_err(|e| anyhow!(e))?;
        let state = crate::state::load(&store, spec.id);
        let begins_at = LogIndex(state.applied());
        let metadata = Arc::new(Metadata::new(node, spec.id, grpc_addresses(&spec), state));
        let (notices, incoming) = mpsc::unbounded_channel();
        let door = Arc::new(Door::default());
        let mut config = reactor_config(&options, &store, &spec, node, notices, door.clone())?;
        config.shard.iter_mut().for_each(|shard| shard.config.metadata_saved = begins_at);
        wait_for_device(&options.device_path());
        let reactor = basalt_node::start(config).context("the node can not start")?;
        if !store.opened()? {
            first_opening(&reactor, &options.device_path())?;
            store.mark_opened()?;
        }
        metadata.connect(reactor.mailbox());
        let (failed, _) = watch::channel(None);
        let engine = Arc::new(Engine {
            node,
            name,
            options,
            metadata,
            reactor,
            store,
            door,
            flattening: FlattenProgress::default(),
            kept: Kept::default(),
            hosts: HostsHeard::default(),
            replicas: tokio::sync::Mutex::default(),
            spec: Mutex::new(spec),
            failed,
            hears: Mutex::default(),
        });
        let hears = tokio::spawn(hear(Arc::downgrade(&engine), engine.metadata.clone(), incoming));
        *engine.hears.lock().unwrap_or_else(PoisonError::into_inner) = Some(hears);
        tokio::spawn(crate::state::run(Arc::downgrade(&engine)));
        tokio::spawn(reconcile::run(Arc::downgrade(&engine)));
        tokio::spawn(moves::run(Arc::downgrade(&engine)));
        tokio::spawn(crate::returns::run(Arc::downgrade(&engine)));
        tokio::spawn(crate::liveness::run(Arc::downgrade(&engine)));
        tokio::spawn(crate::failover::run(Arc::downgrade(&engine)));
        tokio::spawn(crate::recovery::run(Arc::downgrade(&engine)));
        tokio::spawn(crate::scrub::remember(Arc::downgrade(&engine)));
        tokio::spawn(crate::links::follow(Arc::downgrade(&engine)));
        Ok(engine)
    }

    /// What the members agreed on, with their latest addresses.
    pub fn spec(&self) -> ClusterSpec {
        self.spec.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The cluster's id.
    pub fn cluster(&self) -> u64 {
        self.spec.lock().unwrap_or_else(PoisonError::into_inner).id
    }

    /// Whether a peer's call is meant for this node's cluster.
    ///
    /// # Errors
    /// If the peer belongs to another one.
    pub fn check_cluster(&self, cluster: u64) -> Result<(), Status> {
        let own = self.cluster();
        if cluster == own {
            return Ok(());
        }
        let message = format!("this node belongs to cluster {own:016x}, not to {cluster:016x}");
        Err(error::status(ErrorReason::AlreadyBootstrapped, message, &[]))
    }

    /// Takes new members, and new addresses of members: keeps them, dials them. Blocks.
    ///
    /// # Errors
    /// If they can not be kept or resolved; the old ones stay in use.
    pub fn adopt_spec(&self, spec: &ClusterSpec) -> Result<()> {
        self.store.update(identity_of(spec, self.node.0))?;
        self.reactor.routes(routes_of(spec)?);
        self.metadata.set_peers(grpc_addresses(spec));
        *self.spec.lock().unwrap_or_else(PoisonError::into_inner) = spec.clone();
        Ok(())
    }

    /// The map of the pool as this node knows it.
    pub fn map(&self) -> v1::PoolMap {
        let known = self
            .metadata
            .look(|state| state.cluster().map(|spec| map_of(spec, state.map_version())));
        let map = known.unwrap_or_else(|| map_of(&self.spec(), 0));
        v1::PoolMap { ticket_key: crate::links::ticket_key(), ..map }
    }

    /// The reactor's state.
    ///
    /// # Errors
    /// If the reactor has ended or does not answer.
    pub async fn status(self: &Arc<Engine>) -> Result<ReactorStatus> {
        let engine = self.clone();
        Ok(tokio::task::spawn_blocking(move || engine.reactor.status()).await??)
    }

    /// Stops the reactor and keeps the state of the metadata group, so that the next start has little to do again.
    ///
    /// # Errors
    /// If the reactor fails.
    pub async fn stop(self: &Arc<Engine>) -> Result<()> {
        let engine = self.clone();
        tokio::task::spawn_blocking(move || engine.reactor.stop()).await??;
        let hears = self.hears.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(hears) = hears {
            // It ends with the reactor that it hears.
            let _ = tokio::time::timeout(LAST_WORDS, hears).await;
        }
        if tokio::time::timeout(LAST_WORDS, crate::state::save(self)).await.is_err() {
            tracing::warn!("the state of the metadata group is not saved in time");
        }
        Ok(())
    }

    /// Ends when the reactor has failed, with the reason.
    pub async fn failure(&self) -> String {
        let mut failed = self.failed.subscribe();
        loop {
            if let Some(reason) = failed.borrow_and_update().clone() {
                return reason;
            }
            if failed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// What the door told: which volumes are served, and which sessions were lost.
#[derive(Default)]
pub struct Door {
    told: Mutex<Told>,
    /// Wakes the reconciler.
    pub changed: Notify,
}

#[derive(Default)]
struct Told {
    ready: BTreeMap<String, u64>,
    lost: Vec<ExportEnd>,
    refused: Vec<(VolumeId, Epoch)>,
    /// Why volumes are not served that should be.
    problems: BTreeMap<String, String>,
}

impl Door {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session has begun: its epoch is committed in every group.
    pub fn ready(&self, name: &str, epoch: u64) {
        let mut told = self.told();
        told.ready.insert(name.to_owned(), epoch);
        told.problems.remove(name);
        drop(told);
        self.changed.notify_one();
    }

    /// A session was lost.
    pub fn ended(&self, end: ExportEnd) {
        let mut told = self.told();
        if told.ready.get(&end.name) == Some(&end.epoch.0) {
            told.ready.remove(&end.name);
        }
        told.problems.insert(end.name.clone(), format!("its session was lost: {}", end.error));
        told.lost.push(end);
        drop(told);
        self.changed.notify_one();
    }

    /// The door did not begin a session.
    pub fn refused(&self, name: &str, volume: VolumeId, epoch: Epoch, reason: String) {
        let mut told = self.told();
        told.problems.insert(name.to_owned(), reason);
        told.refused.push((volume, epoch));
        drop(told);
        self.changed.notify_one();
    }

    /// A volume is not to be served any more.
    pub fn withdrawn(&self, name: &str) {
        self.told().ready.remove(name);
    }

    /// Forgets the problems of volumes that need not be served any more.
    pub fn retain_problems(&self, wanted: impl Fn(&str) -> bool) {
        self.told().problems.retain(|name, _| wanted(name));
    }

    /// The volumes that should be served and are not, and why.
    pub fn not_serving(&self) -> BTreeMap<String, String> {
        self.told().problems.clone()
    }

    /// The names of the volumes that are served.
    pub fn serving(&self) -> Vec<String> {
        self.told().ready.keys().cloned().collect()
    }

    /// The sessions lost since this was asked last.
    pub fn take_lost(&self) -> Vec<ExportEnd> {
        std::mem::take(&mut self.told().lost)
    }

    /// The sessions that the door did not begin since this was asked last.
    pub fn take_refused(&self) -> Vec<(VolumeId, Epoch)> {
        std::mem::take(&mut self.told().refused)
    }
}

/// Whether an identity says where each group began; founders may be no members any more.
fn is_whole(identity: &Identity) -> bool {
    let groups = identity.groups.len();
    identity.cluster != 0
        && groups.is_power_of_two()
        && u32::try_from(groups) == Ok(identity.group_count)
        && identity.groups.iter().chain([&identity.metadata]).all(|founders| !founders.is_empty())
}

/// Waits until the shard has read its new device, so that a node with a wrong one does not count as
/// a member that works, and may be given another one.
fn first_opening(reactor: &ReactorHandle, device: &Path) -> Result<()> {
    let device = device.display();
    let deadline = Instant::now() + FIRST_OPENING;
    while Instant::now() < deadline {
        let status = reactor.status()?;
        if let Some(HostState::Failed(reason)) = status.shard.as_ref().map(|host| &host.state) {
            bail!("the device {device}: {reason}. A new node takes a blank device (--device)");
        }
        if status.shard().is_some_and(|shard| shard.phase != Phase::Opening) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    bail!("the device {device} was not opened within {} s", FIRST_OPENING.as_secs())
}

async fn hear(
    engine: std::sync::Weak<Engine>,
    metadata: Arc<Metadata>,
    mut incoming: mpsc::UnboundedReceiver<Effect>,
) {
    while let Some(effect) = incoming.recv().await {
        match effect {
            Effect::Notice { alarm: true, text } => tracing::error!("{text}"),
            Effect::Notice { alarm: false, text } => tracing::info!("{text}"),
            Effect::DeviceSuspect { reason } => {
                tracing::error!("the device can not be trusted, it is opened again: {reason}");
            }
            other => {
                if let (Err(reason), Some(engine)) = (metadata.notice(other), engine.upgrade()) {
                    engine.failed.send_replace(Some(reason));
                }
            }
        }
        if let Some(engine) = engine.upgrade()
            && let Some(Err(reason)) = engine.reactor.ended()
        {
            engine.failed.send_replace(Some(reason));
        }
    }
}

/// After a process was killed the kernel goes on for a moment with what its io_uring had under way,
/// and holds the device's lock until that is done. The data directory is locked by this process, so
/// that nobody else should have the device.
fn wait_for_device(path: &Path) {
    let deadline = Instant::now() + DEVICE_PATIENCE;
    let Ok(file) = File::open(path) else { return };
    let mut told = false;
    while let Err(TryLockError::WouldBlock) = file.try_lock_shared() {
        if Instant::now() >= deadline {
            return;
        }
        if !told {
            tracing::info!("the device {} is still held; waiting for it", path.display());
            told = true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn reactor_config(
    options: &Options,
    store: &Arc<Store>,
    spec: &ClusterSpec,
    node: NodeId,
    notices: mpsc::UnboundedSender<Effect>,
    told: Arc<Door>,
) -> Result<ReactorConfig> {
    let name = options.node_name().map_err(|e| anyhow!(e))?;
    let mut config = ReactorConfig::new(name, ClusterId(spec.id));
    config.address = Some(address_of(node.0));
    config.shard = Some(shard_setup(options, store, spec, node)?);
    config.data_listen = Some(options.data_listen);
    config.auth = crate::links::auth()?;
    config.routes = routes_of(spec)?;
    let listeners: Vec<ListenSource> =
        options.nbd_listen.iter().map(basalt_attach::listen::NbdListen::source).collect();
    // The certificates that the node shows in its calls.
    let own = basalt_api::dial::credentials().keyring.filter(|_| options.nbd_uses_own());
    let mut door = match own {
        Some(keyring) => TlsOptions::own_door(keyring, &listeners),
        None => options.tls.door(&listeners)?,
    };
    door.on_end = Some(Box::new(move |end| told.ended(end)));
    config.tenants = vec![Box::new(move || Box::new(NbdDoor::new(door)))];
    config.stream_listeners =
        listeners.into_iter().map(|source| StreamListener { tenant: DOOR, source }).collect();
    config.notices = Box::new(move |effect| {
        // The receiver lives as long as the engine.
        let _ = notices.send(effect);
    });
    Ok(config)
}

fn shard_setup(
    options: &Options,
    store: &Arc<Store>,
    spec: &ClusterSpec,
    node: NodeId,
) -> Result<ShardSetup> {
    let mut device = DeviceSpec::path(options.device_path());
    device.allow_buffered = options.allow_buffered;
    let opened = store.opened()?;
    // A name under /dev is a device or a mistake, never a file to be made; and a device that was in
    // use before is not made anew.
    if !opened && !options.device_path().starts_with("/dev") {
        device = device.create(options.device_size);
    }
    let config = ShardConfig {
        cluster: ClusterId(spec.id),
        address: address_of(node.0),
        device_bytes: 0,
        segment_bytes: options.segment_size,
        volatile_cache: true,
        groups: groups_of(spec, store.identity()?.as_ref(), store.beginning()?),
        timing: Timing::default(),
        limits: Limits {
            log_retain_bytes: options.log_retain,
            pages_least_bytes: options.rebuild_least,
            metadata_retain_entries: options.metadata_retain,
            ..Limits::default()
        },
        seed: basalt_api::random::random(),
        checkpoint_bytes: options.checkpoint_every,
        scrub: Scrubbing {
            every: options.scrub_interval,
            resume: crate::scrub::resumed(store)?,
            ..Scrubbing::ASKED
        },
        index_bytes: options.index_memory,
        metadata_saved: LogIndex(0),
        planted: Planted::default(),
    };
    let format = if opened { FormatPolicy::Never } else { FormatPolicy::IfBlank };
    let checkpoints = Some(Box::new(Checkpoints(store.clone())) as _);
    Ok(ShardSetup { config, device, format, checkpoints })
}

/// The groups that have a replica here, as the node remembers them.
fn groups_of(
    spec: &ClusterSpec,
    identity: Option<&Identity>,
    beginning: Option<BeginningRecord>,
) -> Vec<GroupConfig> {
    let held = identity.iter().flat_map(|identity| &identity.replicas);
    let mut groups: Vec<GroupConfig> =
        held.filter_map(|replica| config_of(spec, replica)).collect();
    let metadata = groups.iter_mut().find(|group| group.id == GroupId::METADATA);
    if let (Some(metadata), Some(beginning)) = (metadata, beginning) {
        metadata.begins = (Term(beginning.term), LogIndex(beginning.index));
    }
    groups
}

/// A replica as the shard is told of it; nothing if there is no such group.
pub fn config_of(spec: &ClusterSpec, replica: &ReplicaRecord) -> Option<GroupConfig> {
    let founders = layout::founders_of(spec, replica.group);
    let voters = founders.iter().map(|node| address_of(*node)).collect();
    let since = (Term(replica.term), LogIndex(replica.index));
    let config = GroupConfig { since, ..GroupConfig::new(GroupId(replica.group), voters) };
    (!founders.is_empty()).then_some(config)
}

/// Where the reactor of each member is reached, whether it holds a group or not.
///
/// # Errors
/// If an address can not be understood or resolved.
fn routes_of(spec: &ClusterSpec) -> Result<Routes> {
    let resolve = |member: &Member| {
        let found = convert::resolve(&member.name, &member.data_address);
        found.map(|at| (address_of(member.node), at)).map_err(|e| anyhow!(e))
    };
    spec.members.iter().map(resolve).collect()
}

/// The reactor of a node: each has one.
pub fn address_of(node: u32) -> Address {
    Address { node: NodeId(node), shard: ShardId(0) }
}

/// The map of a cluster for clients. A group that moves may be led by any that it moves from or to.
pub fn map_of(spec: &ClusterSpec, version: u64) -> v1::PoolMap {
    let replica = |node: u32| ReplicaAddress { node, shard: 0 };
    let groups = (0..spec.group_count).map(|group| {
        let v1::Placement { voters, former, .. } = layout::placement_of(spec, group);
        v1::GroupVoters { voters: voters.into_iter().chain(former).map(replica).collect() }
    });
    let nodes = spec.members.iter().map(|member| NodeAddress {
        node: member.node,
        name: member.name.clone(),
        data_address: member.data_address.clone(),
        grpc_address: member.grpc_address.clone(),
    });
    let (groups, nodes) = (groups.collect(), nodes.collect());
    v1::PoolMap { version, cluster: spec.id, groups, nodes, ticket_key: 0 }
}

fn grpc_addresses(spec: &ClusterSpec) -> BTreeMap<NodeId, String> {
    spec.members.iter().map(|m| (NodeId(m.node), m.grpc_address.clone())).collect()
}

/// The stored form of a membership.
pub fn identity_of(spec: &ClusterSpec, node: u32) -> Identity {
    let members = spec.members.iter().map(|m| MemberRecord {
        node: m.node,
        name: m.name.clone(),
        grpc: m.grpc_address.clone(),
        data: m.data_address.clone(),
        nbd: m.nbd_address.clone(),
    });
    let groups = spec.groups.iter().map(|voters| voters.nodes.clone()).collect();
    let metadata = spec.metadata.clone().unwrap_or_default().nodes;
    Identity::new(spec.id, node, members.collect(), groups, metadata)
}

/// The membership of a stored identity.
pub fn spec_of(identity: &Identity) -> ClusterSpec {
    let members = identity.members.iter().map(|m| Member {
        node: m.node,
        name: m.name.clone(),
        grpc_address: m.grpc.clone(),
        data_address: m.data.clone(),
        nbd_address: m.nbd.clone(),
        ..Member::default()
    });
    let voters = |nodes: &Vec<u32>| v1::Voters { nodes: nodes.clone() };
    ClusterSpec {
        id: identity.cluster,
        group_count: identity.group_count,
        members: members.collect(),
        groups: identity.groups.iter().map(voters).collect(),
        metadata: Some(voters(&identity.metadata)),
        ..ClusterSpec::default()
    }
}
