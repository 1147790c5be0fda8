//! Nodes and a client as reactors of one process, over loopback sockets: what the data path costs,
//! without the control plane.

use crate::load::{Job, Load, Outcome, Run};
use crate::totals::Totals;
use anyhow::{Context, Result, bail};
use basalt_client::{PoolMap, VolumeConfig};
use basalt_core::config::{GroupConfig, Limits, ShardConfig, Timing};
use basalt_core::event::{Effect, Event};
use basalt_core::planted::Planted;
use basalt_device::DeviceSpec;
use basalt_device::memory::MemoryDisk;
use basalt_node::{FormatPolicy, ReactorConfig, ReactorHandle, Routes, ShardSetup, TenantFactory};
use basalt_wire::buffer::IoBuf;
use basalt_wire::disk::SUPERBLOCK_AREA_BYTES;
use basalt_wire::ids::{Address, ClusterId, Epoch, Generation, GroupId, NodeId, ShardId, VolumeId};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

const CLUSTER: ClusterId = ClusterId(1);
/// Time for all leaders to move to one node.
const LEADERS_TIME: Duration = Duration::from_secs(30);

/// What a node keeps its data on.
#[derive(Clone, Debug)]
pub enum Media {
    /// Memory of the process: a disk for each node.
    Memory(Vec<MemoryDisk>),
    /// A file for each node in this folder, opened with O_DIRECT and made durable with each write.
    Files(PathBuf),
}

/// Where the load runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// In a reactor of its own; leaders are wherever elections put them.
    Apart,
    /// On the first node's reactor, which leads all groups: a volume attached at a node.
    AtNode1,
}

/// Shape of a cluster.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Nodes; each group has a replica on each of the first three.
    pub nodes: u32,
    /// Volume groups, a power of two.
    pub groups: u32,
    /// Bytes of each node's device.
    pub device_bytes: u64,
    /// Bytes of the volume.
    pub volume_bytes: u64,
    /// What the devices are.
    pub media: Media,
    /// Where the load runs.
    pub placement: Placement,
    /// Tells two lives of the same devices apart.
    pub life: u64,
    /// One request in so long is traced; all of them if it is no time.
    pub trace_period: Duration,
}

/// A running cluster with one client.
pub struct LocalCluster {
    nodes: Vec<ReactorHandle>,
    /// Nothing if the load runs on the first node's reactor.
    client: Option<ReactorHandle>,
}

fn address(node: u32) -> Address {
    Address { node: NodeId(node), shard: ShardId(0) }
}

fn device(media: &Media, node: u32) -> DeviceSpec {
    match media {
        Media::Memory(disks) => DeviceSpec::disk(disks[node as usize - 1].clone()),
        Media::Files(folder) => DeviceSpec::path(file_of(folder, node)),
    }
}

fn file_of(folder: &Path, node: u32) -> PathBuf {
    folder.join(format!("device-{node}"))
}

/// Makes every device blank, as a new one that was in use before: its superblocks are zeros, and no
/// part of a file is unwritten, whose first write would cost the file system a journal commit.
pub fn blank_devices(shape: &Shape) -> Result<()> {
    let head = SUPERBLOCK_AREA_BYTES as usize;
    match &shape.media {
        Media::Memory(disks) => disks.iter().try_for_each(|disk| disk.wipe(head))?,
        Media::Files(folder) => {
            for node in 1..=shape.nodes {
                let path = file_of(folder, node);
                blank_file(&path, shape.device_bytes)
                    .with_context(|| format!("can not prepare {}", path.display()))?;
            }
        }
    }
    Ok(())
}

/// Written past the page cache: a direct write to what is cached goes through a kernel thread that has
/// to drop it first, and what a device of a node holds never is.
fn blank_file(path: &Path, bytes: u64) -> std::io::Result<()> {
    let direct = libc::O_DIRECT;
    let mut options = File::options();
    let mut file =
        options.write(true).create(true).truncate(false).custom_flags(direct).open(path)?;
    let written = file.metadata()?.len() == bytes;
    let zeros = IoBuf::zeroed(4 << 20);
    let mut left = if written { SUPERBLOCK_AREA_BYTES } else { bytes };
    while left > 0 {
        let len = left.min(zeros.len() as u64);
        file.write_all(&zeros[..len as usize])?;
        left -= len;
    }
    file.sync_all()
}

/// Prints what a person must see; a bench with such a line measured something else.
fn tell(who: &str, effect: Effect) {
    match effect {
        Effect::Notice { alarm: true, text } => eprintln!("{who}: {text}"),
        Effect::DeviceSuspect { reason } => eprintln!("{who}: the device is suspect: {reason}"),
        _ => {}
    }
}

fn shard_config(shape: &Shape, node: u32) -> ShardConfig {
    let voters: Vec<Address> = (1..=shape.nodes.min(3)).map(address).collect();
    ShardConfig {
        cluster: CLUSTER,
        address: address(node),
        device_bytes: 0,
        segment_bytes: 64 << 20,
        volatile_cache: true,
        groups: (0..shape.groups).map(|id| GroupConfig::new(GroupId(id), voters.clone())).collect(),
        timing: Timing::default(),
        limits: Limits::default(),
        checkpoint_bytes: 0,
        index_bytes: u64::MAX,
        scrub: basalt_core::config::Scrubbing::ASKED,
        metadata_saved: basalt_wire::ids::LogIndex(0),
        seed: shape.life << 32 | u64::from(node),
        planted: Planted::NONE,
    }
}

fn node_config(shape: &Shape, node: u32) -> Result<ReactorConfig> {
    let mut config = ReactorConfig::new(format!("node-{node}"), CLUSTER);
    config.address = Some(address(node));
    config.shard = Some(ShardSetup {
        config: shard_config(shape, node),
        device: device(&shape.media, node),
        format: FormatPolicy::IfBlank,
        checkpoints: None,
    });
    config.data_listen = Some("127.0.0.1:0".parse().context("loopback")?);
    config.notices = Box::new(move |effect| tell(&format!("node {node}"), effect));
    Ok(config)
}

/// The tenant that loads the volume.
fn load(shape: &Shape) -> TenantFactory {
    let map = PoolMap {
        version: 1,
        group_count: shape.groups,
        groups: (0..shape.groups)
            .map(|_| (1..=shape.nodes.min(3)).map(address).collect())
            .collect(),
    };
    let volume = VolumeConfig {
        volume: VolumeId(1),
        epoch: Epoch(1),
        generation: Generation(1),
        lineage: 1,
        size_bytes: shape.volume_bytes,
        map: Arc::new(map),
        local: (shape.placement == Placement::AtNode1).then_some(address(1).node),
        limits: basalt_client::RateLimits::default(),
        cipher: None,
    };
    let trace_period = shape.trace_period;
    Box::new(move || Box::new(Load::new(volume, trace_period)))
}

impl LocalCluster {
    /// Starts the nodes on free ports and a client that attaches the volume.
    pub fn start(shape: &Shape) -> Result<LocalCluster> {
        let local = shape.placement == Placement::AtNode1;
        let mut nodes = Vec::new();
        let mut routes = Routes::new();
        for node in 1..=shape.nodes {
            let mut config = node_config(shape, node)?;
            if local && node == 1 {
                config.tenants = vec![load(shape)];
            }
            let handle = basalt_node::start(config)?;
            let bound = handle.data_addr().context("the data port is not bound")?;
            routes.insert(address(node), bound);
            nodes.push(handle);
        }
        for node in &nodes {
            node.routes(routes.clone());
        }
        let client = if local {
            None
        } else {
            let mut config = ReactorConfig::new("client", CLUSTER);
            config.routes = routes;
            config.tenants = vec![load(shape)];
            config.notices = Box::new(|effect| tell("client", effect));
            Some(basalt_node::start(config)?)
        };
        let cluster = LocalCluster { nodes, client };
        if local {
            cluster.draw_leaders(shape.groups)?;
        }
        Ok(cluster)
    }

    /// Moves every group's leader to the first node, as for a volume that is attached there.
    fn draw_leaders(&self, groups: u32) -> Result<()> {
        let node = address(1).node;
        let until = Instant::now() + LEADERS_TIME;
        loop {
            let status = self.nodes[0].status()?;
            let shard = status.shard().context("node 1 has no shard")?;
            if shard.groups.iter().all(|group| group.leader == Some(node)) {
                return Ok(());
            }
            if Instant::now() >= until {
                bail!("node 1 does not lead all groups after {LEADERS_TIME:?}");
            }
            for handle in &self.nodes {
                for group in (0..groups).map(GroupId) {
                    handle.event(Event::Prefer { group, node });
                }
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Runs a job to its end.
    pub fn run(&self, job: Job) -> Result<Outcome> {
        let (reply, outcome) = mpsc::channel();
        let patience = job.duration + Duration::from_secs(60);
        let began = Instant::now();
        self.client.as_ref().unwrap_or(&self.nodes[0]).tenant(0, Box::new(Run { job, reply }));
        match outcome.recv_timeout(patience) {
            Ok(outcome) => Ok(outcome),
            Err(_) => bail!("the load gave no result within {:?}", began.elapsed()),
        }
    }

    /// What all reactors and logs together have done so far.
    pub fn totals(&self) -> Result<Totals> {
        let mut totals = Totals::default();
        for handle in self.nodes.iter().chain(&self.client) {
            totals.add(&handle.status()?);
        }
        Ok(totals)
    }

    /// Stops everything.
    pub fn stop(self) -> Result<()> {
        for handle in self.client.into_iter().chain(self.nodes) {
            handle.stop()?;
        }
        Ok(())
    }
}
