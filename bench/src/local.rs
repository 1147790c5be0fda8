//! Nodes and a client as reactors of one process, over loopback sockets: what the data path costs,
//! without the control plane.

use crate::load::{Job, Load, Outcome, Run};
use anyhow::{Context, Result, bail};
use basalt_client::{PoolMap, VolumeConfig};
use basalt_core::config::{GroupConfig, Limits, ShardConfig, Timing};
use basalt_core::event::Effect;
use basalt_core::planted::Planted;
use basalt_device::DeviceSpec;
use basalt_node::{FormatPolicy, ReactorConfig, ReactorHandle, Routes, ShardSetup};
use basalt_wire::ids::{Address, ClusterId, Epoch, Generation, GroupId, NodeId, ShardId, VolumeId};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// What a node keeps its data on.
#[derive(Clone, Debug)]
pub enum Media {
    /// Memory of the process.
    Memory,
    /// A file for each node in this folder, opened with O_DIRECT and made durable with each write.
    Files(PathBuf),
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
}

/// A running cluster with one client.
pub struct LocalCluster {
    nodes: Vec<ReactorHandle>,
    client: ReactorHandle,
}

fn address(node: u32) -> Address {
    Address { node: NodeId(node), shard: ShardId(0) }
}

fn device(media: &Media, node: u32, bytes: u64) -> DeviceSpec {
    match media {
        Media::Memory => DeviceSpec::memory(bytes),
        Media::Files(folder) => DeviceSpec::path(file_of(folder, node)).create(bytes),
    }
}

fn file_of(folder: &Path, node: u32) -> PathBuf {
    folder.join(format!("device-{node}"))
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
        cluster: ClusterId(1),
        address: address(node),
        device_bytes: 0,
        segment_bytes: 64 << 20,
        volatile_cache: true,
        groups: (0..shape.groups)
            .map(|id| GroupConfig { id: GroupId(id), voters: voters.clone() })
            .collect(),
        timing: Timing::default(),
        limits: Limits::default(),
        seed: u64::from(node),
        planted: Planted::NONE,
    }
}

impl LocalCluster {
    /// Starts the nodes on free ports and a client that attaches the volume.
    pub fn start(shape: &Shape) -> Result<LocalCluster> {
        let cluster = ClusterId(1);
        let mut nodes = Vec::new();
        let mut routes = Routes::new();
        for node in 1..=shape.nodes {
            let mut config = ReactorConfig::new(format!("node-{node}"), cluster);
            config.address = Some(address(node));
            config.shard = Some(ShardSetup {
                config: shard_config(shape, node),
                device: device(&shape.media, node, shape.device_bytes),
                format: FormatPolicy::IfBlank,
            });
            config.data_listen = Some("127.0.0.1:0".parse().context("loopback")?);
            config.notices = Box::new(move |effect| tell(&format!("node {node}"), effect));
            let handle = basalt_node::start(config)?;
            let bound = handle.data_addr().context("the data port is not bound")?;
            routes.insert(address(node), bound);
            nodes.push(handle);
        }
        for node in &nodes {
            node.routes(routes.clone());
        }
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
            local: None,
        };
        let mut config = ReactorConfig::new("client", cluster);
        config.routes = routes;
        config.tenants = vec![Box::new(move || Box::new(Load::new(volume)))];
        config.notices = Box::new(|effect| tell("client", effect));
        Ok(LocalCluster { nodes, client: basalt_node::start(config)? })
    }

    /// Runs a job to its end.
    pub fn run(&self, job: Job) -> Result<Outcome> {
        let (reply, outcome) = mpsc::channel();
        let patience = job.duration + Duration::from_secs(60);
        let began = Instant::now();
        self.client.tenant(0, Box::new(Run { job, reply }));
        match outcome.recv_timeout(patience) {
            Ok(outcome) => Ok(outcome),
            Err(_) => bail!("the load gave no result within {:?}", began.elapsed()),
        }
    }

    /// Bytes that the first node's log has taken, in whole segments.
    pub fn segments_used(&self) -> Result<u32> {
        let status = self.nodes[0].status()?;
        let shard = status.shard().context("node 1 has no shard")?;
        Ok(shard.segments_total - shard.segments_free)
    }

    /// Stops everything.
    pub fn stop(self) -> Result<()> {
        self.client.stop()?;
        for node in self.nodes {
            node.stop()?;
        }
        Ok(())
    }
}
