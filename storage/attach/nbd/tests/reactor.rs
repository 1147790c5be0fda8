//! The door in a real reactor, before real shards: foreign clients against the whole path.

mod clients;

use basalt_client::{PoolMap, RateLimits, VolumeConfig};
use basalt_core::config::{GroupConfig, Limits, ShardConfig, Timing};
use basalt_core::planted::Planted;
use basalt_device::DeviceSpec;
use basalt_nbd::{DoorCommand, DoorConfig, DoorError, NbdDoor};
use basalt_node::{
    FormatPolicy, ListenSource, ReactorConfig, ReactorHandle, Routes, ShardSetup, StreamListener,
    start,
};
use basalt_wire::ids::{Address, ClusterId, Epoch, Generation, GroupId, NodeId, ShardId, VolumeId};
use clients::{Scratch, conformance, noise, run};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

const CLUSTER: ClusterId = ClusterId(7);
const GROUPS: u32 = 4;
const PATIENCE: Duration = Duration::from_secs(60);

fn address(node: u32) -> Address {
    Address { node: NodeId(node), shard: ShardId(0) }
}

/// Nodes with one shard on memory and one door each.
fn cluster(nodes: u32, device_bytes: u64) -> Vec<ReactorHandle> {
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    // All held at once, so that no port is given twice.
    let bind = |_| TcpListener::bind(loopback).expect("a free port");
    let held: Vec<TcpListener> = (0..nodes).map(bind).collect();
    let port = |held: &TcpListener| held.local_addr().expect("a bound socket has an address");
    let routes: Routes = (1..=nodes).map(address).zip(held.iter().map(port)).collect();
    drop(held);
    let voters: Vec<Address> = (1..=nodes).map(address).collect();
    let node = |number: u32| {
        let mut config = ReactorConfig::new(format!("node-{number}"), CLUSTER);
        config.address = Some(address(number));
        config.data_listen = routes.get(&address(number)).copied();
        config.routes = routes.clone();
        config.shard = Some(ShardSetup {
            config: ShardConfig {
                cluster: CLUSTER,
                address: address(number),
                device_bytes: 0,
                segment_bytes: 64 << 20,
                volatile_cache: false,
                groups: (0..GROUPS)
                    .map(|id| GroupConfig::new(GroupId(id), voters.clone()))
                    .collect(),
                timing: Timing::default(),
                limits: Limits::default(),
                checkpoint_bytes: 0,
                index_bytes: u64::MAX,
                scrub: basalt_core::config::Scrubbing::ASKED,
                metadata_saved: basalt_wire::ids::LogIndex(0),
                seed: u64::from(number),
                planted: Planted::NONE,
            },
            device: DeviceSpec::memory(device_bytes),
            format: FormatPolicy::IfBlank,
            checkpoints: None,
        });
        config.tenants.push(Box::new(|| Box::new(NbdDoor::new(DoorConfig::default()))));
        let source = ListenSource::Tcp(loopback);
        config.stream_listeners.push(StreamListener { tenant: 0, source });
        start(config).expect("a reactor starts on memory")
    };
    (1..=nodes).map(node).collect()
}

/// Attaches a volume at a node and gives its URI.
fn attach(nodes: &[ReactorHandle], at: usize, epoch: u64, size_bytes: u64) -> String {
    let group: Vec<Address> = (1..=nodes.len() as u32).map(address).collect();
    let map = PoolMap { version: 1, group_count: GROUPS, groups: vec![group; GROUPS as usize] };
    let config = VolumeConfig {
        volume: VolumeId(1),
        epoch: Epoch(epoch),
        generation: Generation(1),
        lineage: 1,
        size_bytes,
        map: Arc::new(map),
        local: Some(NodeId(at as u32 + 1)),
        limits: RateLimits::default(),
        cipher: None,
    };
    let (sender, answer) = channel::<Result<(), DoorError>>();
    let reply = Box::new(move |result| sender.send(result).expect("the test waits"));
    let (name, description) = ("vol".to_owned(), "a test".to_owned());
    let command =
        DoorCommand::Attach { name, description, read_only: false, config, view: false, reply };
    nodes[at].tenant(0, Box::new(command));
    answer.recv_timeout(PATIENCE).expect("the session begins in time").expect("it is attached");
    let listener = nodes[at].stream_addrs()[0].expect("a TCP listener");
    format!("nbd://{listener}/vol")
}

#[test]
fn conformance_of_one_node() {
    let nodes = cluster(1, 3 << 30);
    conformance(&[&attach(&nodes, 0, 1, 128 << 20)]);
    nodes.iter().for_each(|node| node.stop().expect("a graceful stop"));
}

#[test]
fn three_nodes_copy_and_move() {
    let nodes = cluster(3, 1 << 30);
    let uri = attach(&nodes, 0, 1, 64 << 20);
    let scratch = Scratch::new("reactor");
    let (source, target) = (scratch.path("in"), scratch.path("out"));
    std::fs::write(&source, noise(64 << 20)).expect("a writable scratch directory");
    run("libnbd-bin", "nbdcopy", &["--connections=4", "--requests=64", &source, &uri]);
    run("libnbd-bin", "nbdcopy", &[&uri, &target]);
    run("diffutils", "cmp", &[&source, &target]);
    // The volume moves: the old node serves it no more, the new one has all of it.
    let moved = attach(&nodes, 1, 2, 64 << 20);
    run("qemu-utils", "qemu-img", &["compare", "-f", "raw", "-F", "raw", &source, &moved]);
    let write = ["-f", "raw", uri.as_str(), "-c", "write -P 9 0 4k"];
    let fenced = clients::attempt("qemu-utils", "qemu-io", &write);
    let text = String::from_utf8_lossy(&fenced.stdout);
    assert!(!text.contains("wrote 4096"), "a fenced session wrote: {text}");
    run("qemu-utils", "qemu-img", &["compare", "-f", "raw", "-F", "raw", &source, &moved]);
    nodes.iter().for_each(|node| node.stop().expect("a graceful stop"));
}
