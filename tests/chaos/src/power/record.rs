//! A run of a real cluster with recorded devices, and the instants at which its power may fail.

use super::ledger::Ledger;
use super::writer::{Books, Writer};
use super::{CHUNKS, CLUSTER, DEVICE_BYTES, GROUPS, NODES, VOLUME, address, shard_config};
use anyhow::{Context, Result, ensure};
use basalt_client::{PoolMap, VolumeConfig};
use basalt_core::event::Effect;
use basalt_device::DeviceSpec;
use basalt_device::record::{RecordEvent, RecordLog, Recorded, Recording};
use basalt_node::{FormatPolicy, ReactorConfig, ReactorHandle, Routes, ShardSetup};
use basalt_wire::block::{BLOCK_BYTES, CHUNK_BLOCKS};
use basalt_wire::ids::{Epoch, Generation, VolumeId};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Requests after which a run ends: what its devices have room for.
const REQUESTS: usize = 220;
/// A run takes a second or two; one that does not end is broken.
const PATIENCE: Duration = Duration::from_secs(120);

/// An instant at which the power could have failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Events in each device's record by then.
    pub lengths: [usize; NODES],
    /// Everything acknowledged up to this moment of the ledger was acknowledged by then.
    pub acknowledged: u64,
    /// Nothing submitted after this moment had been submitted by then.
    pub submitted: u64,
}

/// A run.
pub struct Run {
    /// What was asked, and what was acknowledged.
    pub ledger: Ledger,
    /// What reached each device.
    pub recordings: Vec<Recording>,
    /// Instants, oldest first.
    pub instances: Vec<Instance>,
    /// The seed of the shards.
    pub seed: u64,
}

impl Run {
    /// Runs a cluster with devices in `folder`.
    ///
    /// # Errors
    /// If the cluster does not do its work even with the power on.
    pub fn record(folder: &Path, seed: u64) -> Result<Run> {
        // A run that failed may have left devices, and the record must begin with blank ones.
        if folder.exists() {
            std::fs::remove_dir_all(folder).context("old devices can not be removed")?;
        }
        std::fs::create_dir_all(folder).context("a folder for the devices")?;
        let logs: Vec<RecordLog> = (0..NODES).map(|_| RecordLog::memory()).collect();
        let books = Arc::new(Books::default());
        let complaints = Arc::new(Mutex::new(Vec::new()));
        let (nodes, client) = start(folder, seed, &logs, &books, &complaints)?;
        client.tenant(0, Box::new(()));
        let observed = observe(&logs, &books);
        client.stop()?;
        nodes.iter().try_for_each(ReactorHandle::kill)?;
        let complaints = complaints.lock().unwrap_or_else(PoisonError::into_inner).join("; ");
        ensure!(complaints.is_empty(), "the run with power on failed: {complaints}");
        let recordings = logs.iter().map(RecordLog::recording).collect();
        let instances = observed?;
        drop((nodes, client));
        std::fs::remove_dir_all(folder).context("the devices can not be removed")?;
        let books = Arc::into_inner(books).context("the load still runs")?;
        Ok(Run { ledger: books.ledger, recordings, instances, seed })
    }

    /// The same run on devices that promised durability and lied, from the first instant on.
    pub fn on_lying_devices(mut self) -> Run {
        let honest = self.instances.first().map_or([0; NODES], |first| first.lengths);
        for (recording, honest) in self.recordings.iter_mut().zip(honest) {
            for event in recording.events.iter_mut().skip(honest) {
                if let RecordEvent::Submit { op: Recorded::Write { durable, .. }, .. } = event {
                    *durable = false;
                }
            }
            // A flush would make good what the writes before it promised.
            let flushes: Vec<u64> = recording.events[honest..]
                .iter()
                .filter_map(|event| match event {
                    RecordEvent::Submit { id, op: Recorded::Flush } => Some(*id),
                    _ => None,
                })
                .collect();
            for event in &mut recording.events {
                if let RecordEvent::Complete { id, ok } = event
                    && flushes.contains(id)
                {
                    *ok = false;
                }
            }
        }
        self
    }
}

type Complaints = Arc<Mutex<Vec<String>>>;

fn start(
    folder: &Path,
    seed: u64,
    logs: &[RecordLog],
    books: &Arc<Books>,
    complaints: &Complaints,
) -> Result<(Vec<ReactorHandle>, ReactorHandle)> {
    let mut nodes = Vec::new();
    let mut routes = Routes::new();
    for (n, log) in logs.iter().enumerate() {
        let mut device = DeviceSpec::path(folder.join(format!("device-{n}")))
            .create(DEVICE_BYTES)
            .with_record(log.clone());
        device.volatile_cache = Some(true);
        device.allow_buffered = true;
        let mut config = ReactorConfig::new(format!("node-{n}"), CLUSTER);
        config.address = Some(address(n));
        config.shard = Some(ShardSetup {
            config: shard_config(n, seed),
            device,
            format: FormatPolicy::IfBlank,
            checkpoints: None,
        });
        config.data_listen = Some("127.0.0.1:0".parse().context("loopback")?);
        config.notices = notices(complaints.clone());
        let handle = basalt_node::start(config)?;
        routes.insert(address(n), handle.data_addr().context("the data port is not bound")?);
        nodes.push(handle);
    }
    nodes.iter().for_each(|node| node.routes(routes.clone()));
    let voters: Vec<_> = (0..NODES).map(address).collect();
    let groups = vec![voters; GROUPS as usize];
    let volume = VolumeConfig {
        volume: VolumeId(VOLUME),
        epoch: Epoch(1),
        generation: Generation(1),
        lineage: VOLUME,
        size_bytes: CHUNKS * CHUNK_BLOCKS * BLOCK_BYTES as u64,
        map: Arc::new(PoolMap { version: 1, group_count: GROUPS, groups }),
        local: None,
        limits: basalt_client::RateLimits::default(),
        cipher: None,
    };
    let mut config = ReactorConfig::new("client", CLUSTER);
    config.routes = routes;
    let shared = books.clone();
    config.tenants = vec![Box::new(move || Box::new(Writer::new(volume, shared, seed)))];
    config.notices = notices(complaints.clone());
    Ok((nodes, basalt_node::start(config)?))
}

/// Keeps what a run with the power on must not say.
fn notices(complaints: Complaints) -> Box<dyn FnMut(Effect) + Send> {
    Box::new(move |effect| {
        let text = match effect {
            Effect::Notice { alarm: true, text } => text,
            Effect::DeviceSuspect { reason } => reason,
            _ => return,
        };
        complaints.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    })
}

/// Watches the records grow until enough was written and all of it is answered.
fn observe(logs: &[RecordLog], books: &Books) -> Result<Vec<Instance>> {
    let began = Instant::now();
    let mut instances: Vec<Instance> = Vec::new();
    loop {
        ensure!(began.elapsed() < PATIENCE, "the load did not end: {books:?}");
        if !books.ready.load(Ordering::Relaxed) {
            ensure!(!books.failed.load(Ordering::Relaxed), "the load did not begin");
            std::thread::yield_now();
            continue;
        }
        // In this order: all that is acknowledged by now is in the records that are measured next.
        let acknowledged = books.ledger.moment();
        let lengths = lengths(logs);
        // Measured twice: if nothing changed there was one instant at which all of it held.
        if lengths != self::lengths(logs) {
            continue;
        }
        let submitted = books.ledger.moment();
        match instances.last_mut().filter(|last| last.lengths == lengths) {
            Some(last) => {
                last.acknowledged = acknowledged;
                last.submitted = last.submitted.max(acknowledged);
            }
            None => instances.push(Instance { lengths, acknowledged, submitted }),
        }
        let answered = books.answered.load(Ordering::Relaxed);
        if books.ledger.len() >= REQUESTS {
            books.enough.store(true, Ordering::Relaxed);
        }
        let all = books.enough.load(Ordering::Relaxed) && answered == books.ledger.len();
        if all || books.failed.load(Ordering::Relaxed) {
            return Ok(instances);
        }
    }
}

fn lengths(logs: &[RecordLog]) -> [usize; NODES] {
    std::array::from_fn(|n| logs[n].len())
}
