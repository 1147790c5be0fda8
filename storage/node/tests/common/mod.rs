//! What the tests of this crate share: reactors over loopback, and a client that can misbehave.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use basalt_core::config::{GroupConfig, Limits as ShardLimits, ShardConfig, Timing};
use basalt_core::event::Effect;
use basalt_core::planted::Planted;
use basalt_device::DeviceSpec;
use basalt_node::{FormatPolicy, ReactorConfig, ReactorHandle, ReactorStatus, Routes, ShardSetup};
use basalt_wire::codec::{DecodeLimits, Decoder, Encoder};
use basalt_wire::frame::{Frame, Hello, PROTOCOL_VERSION, Role};
use basalt_wire::ids::{Address, ClusterId, GroupId, NodeId, ShardId};
use bytes::Bytes;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub const CLUSTER: ClusterId = ClusterId(0xba5a_1700_0000_0001);
/// Long enough for the slowest machine; a test that passes never waits for it.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub fn address(node: u32) -> Address {
    Address { node: NodeId(node), shard: ShardId(0) }
}

/// Waits until a condition holds.
#[track_caller]
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Notices of a reactor, as far as they have come.
#[derive(Clone, Default)]
pub struct Notices(Arc<Mutex<Vec<Effect>>>);

impl Notices {
    pub fn sink(&self) -> Box<dyn FnMut(Effect) + Send> {
        let list = self.0.clone();
        Box::new(move |effect| list.lock().unwrap().push(effect))
    }

    pub fn any(&self, test: impl Fn(&Effect) -> bool) -> bool {
        self.0.lock().unwrap().iter().any(test)
    }
}

pub fn shard_config(node: u32, voters: &[u32], groups: u32) -> ShardConfig {
    let voters: Vec<Address> = voters.iter().map(|node| address(*node)).collect();
    let group = |id| GroupConfig::new(GroupId(id), voters.clone());
    ShardConfig {
        cluster: CLUSTER,
        address: address(node),
        device_bytes: 0,
        segment_bytes: 4 << 20,
        volatile_cache: false,
        groups: (0..groups).map(group).collect(),
        timing: Timing::default(),
        limits: ShardLimits::default(),
        checkpoint_bytes: 0,
        index_bytes: u64::MAX,
        scrub: basalt_core::config::Scrubbing::ASKED,
        metadata_saved: basalt_wire::ids::LogIndex(0),
        seed: u64::from(node),
        planted: Planted::NONE,
    }
}

/// A reactor with one shard on memory.
pub fn node_config(node: u32, voters: &[u32], routes: &Routes) -> ReactorConfig {
    let mut config = ReactorConfig::new(format!("node-{node}"), CLUSTER);
    config.address = Some(address(node));
    config.data_listen = Some(routes.get(&address(node)).copied().unwrap_or_else(loopback));
    config.routes = routes.clone();
    config.shard = Some(ShardSetup {
        config: shard_config(node, voters, 4),
        device: DeviceSpec::memory(256 << 20),
        format: FormatPolicy::IfBlank,
        checkpoints: None,
    });
    config
}

pub fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// Routes to free ports of loopback.
pub fn routes(nodes: &[u32]) -> Routes {
    // All held at once, so that no port is given twice.
    let held: Vec<_> = nodes.iter().map(|_| TcpListener::bind(loopback()).unwrap()).collect();
    let ports = held.iter().map(|listener| listener.local_addr().unwrap());
    nodes.iter().map(|node| address(*node)).zip(ports).collect()
}

pub fn status(reactor: &ReactorHandle) -> ReactorStatus {
    reactor.status().expect("the reactor lives")
}

/// Waits until a connection was closed for a reason that contains `text`.
#[track_caller]
pub fn wait_for_reason(reactor: &ReactorHandle, text: &str) {
    let mut seen = Vec::new();
    let started = Instant::now();
    while !seen.iter().any(|line: &String| line.contains(text)) {
        assert!(started.elapsed() < PATIENCE, "no connection was closed for {text:?}: {seen:#?}");
        std::thread::sleep(Duration::from_millis(2));
        seen = status(reactor).closed;
    }
}

/// A connection to a data port that sends whatever it is told.
pub struct RawLink {
    pub stream: TcpStream,
    decoder: Decoder,
}

impl RawLink {
    pub fn connect(to: SocketAddr) -> RawLink {
        let stream = TcpStream::connect(to).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        RawLink { stream, decoder: Decoder::new(DecodeLimits::PEER) }
    }

    /// A client's link after its handshake.
    pub fn client(to: SocketAddr, target: Address) -> RawLink {
        let mut link = RawLink::connect(to);
        link.send(&hello(target));
        match link.receive() {
            Some(Frame::Welcome(welcome)) => assert_eq!(welcome.refusal, ""),
            other => panic!("no Welcome but {other:?}"),
        }
        link
    }

    pub fn send(&mut self, frame: &Frame) {
        self.send_bytes(&encode(frame));
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The next frame, or nothing when the other end has closed the connection.
    pub fn receive(&mut self) -> Option<Frame> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            if let Some(frame) = self.decoder.next().unwrap() {
                return Some(frame);
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(len) => self.decoder.push(Bytes::copy_from_slice(&buffer[..len])),
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(e) => panic!("receiving failed: {e}"),
            }
        }
    }

    /// Reads until the other end closes the connection.
    pub fn wait_for_end(&mut self) {
        while self.receive().is_some() {}
    }
}

pub fn hello(target: Address) -> Frame {
    let role = Role::Client { name: "test".into() };
    Frame::Hello(Hello { version: PROTOCOL_VERSION, cluster: CLUSTER, target, role, claim: None })
}

pub fn encode(frame: &Frame) -> Vec<u8> {
    let mut encoder = Encoder::new();
    encoder.push(frame);
    encoder.take().concat()
}
