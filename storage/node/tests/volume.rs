//! The whole path: a volume client in a tenant, reactors over loopback, real shards.

mod common;

use basalt_client::{
    BlockError, BlockOp, BlockResult, ClientEffect, ClientEvent, PoolMap, RateLimits, VolumeClient,
    VolumeConfig,
};
use basalt_core::event::Effect;
use basalt_core::shard::Phase;
use basalt_device::DeviceSpec;
use basalt_device::fault::FaultHandle;
use basalt_node::{
    HostState, ReactorConfig, ReactorHandle, Routes, Tenant, TenantCx, TenantEvent, start,
};
use basalt_wire::buffer::{IoBuf, Payload};
use basalt_wire::ids::{Epoch, Generation, NodeId, VolumeId};
use basalt_wire::time::Time;
use common::*;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

const VOLUME_BYTES: u64 = 64 << 20;
const GROUPS: u32 = 4;

type Outcome = Result<BlockResult, BlockError>;
/// A request for the tenant, and where its answer goes.
type Ask = (BlockOp, Sender<Outcome>);

/// A tenant with one session.
struct Driver {
    client: Option<VolumeClient>,
    config: VolumeConfig,
    asked: HashMap<u64, Sender<Outcome>>,
    next: u64,
    effects: Vec<ClientEffect>,
}

impl Driver {
    fn new(voters: &[u32], epoch: u64, local: Option<u32>) -> Driver {
        let group: Vec<_> = voters.iter().map(|n| address(*n)).collect();
        let groups = vec![group; GROUPS as usize];
        let config = VolumeConfig {
            volume: VolumeId(7),
            epoch: Epoch(epoch),
            generation: Generation(1),
            lineage: 7,
            size_bytes: VOLUME_BYTES,
            map: Arc::new(PoolMap { version: 1, group_count: GROUPS, groups }),
            local: local.map(NodeId),
            limits: RateLimits::default(),
            cipher: None,
        };
        Driver { client: None, config, asked: HashMap::new(), next: 0, effects: Vec::new() }
    }

    fn client(&mut self, now: Time) -> (&mut VolumeClient, &mut Vec<ClientEffect>) {
        let (config, effects) = (&self.config, &mut self.effects);
        let client =
            self.client.get_or_insert_with(|| VolumeClient::new(config.clone(), now, effects));
        (client, &mut self.effects)
    }

    fn carry_out(&mut self, cx: &mut TenantCx<'_>) {
        for effect in self.effects.drain(..) {
            match effect {
                ClientEffect::Dial { to } => cx.dial(to),
                ClientEffect::Reset { to } => cx.reset(to),
                ClientEffect::Send { to, request } => cx.request(to, request),
                ClientEffect::Complete { tag, result } => {
                    let _ = self.asked.remove(&tag).expect("an open tag").send(result);
                }
                ClientEffect::AskMap | ClientEffect::Ready | ClientEffect::Lost(_) => {}
            }
        }
    }
}

impl Tenant for Driver {
    fn event(&mut self, now: Time, event: TenantEvent, cx: &mut TenantCx<'_>) {
        let event = match event {
            TenantEvent::LinkUp { to, credit_bytes, credit_requests } => {
                ClientEvent::LinkUp { to, credit_bytes, credit_requests }
            }
            TenantEvent::LinkDown { to } => ClientEvent::LinkDown { to },
            TenantEvent::Reply { from, reply } => ClientEvent::Reply { from, reply },
            TenantEvent::Command(command) => {
                let (op, answer) =
                    *command.downcast::<Ask>().expect("the tests ask for nothing else");
                self.next += 1;
                self.asked.insert(self.next, answer);
                ClientEvent::Submit { tag: self.next, op }
            }
            _ => return,
        };
        let (client, effects) = self.client(now);
        client.handle(now, event, effects);
        self.carry_out(cx);
    }

    fn end_turn(&mut self, now: Time, cx: &mut TenantCx<'_>) {
        let (client, effects) = self.client(now);
        client.end_turn(now, effects);
        self.carry_out(cx);
    }

    fn next_deadline(&self) -> Option<Time> {
        self.client.as_ref().and_then(VolumeClient::next_deadline)
    }
}

fn host(config: &mut ReactorConfig, voters: &'static [u32], epoch: u64, local: Option<u32>) {
    config.tenants.push(Box::new(move || Box::new(Driver::new(voters, epoch, local))));
}

fn ask(reactor: &ReactorHandle, op: BlockOp) -> Receiver<Outcome> {
    let (sender, answer) = channel();
    let ask: Ask = (op, sender);
    reactor.tenant(0, Box::new(ask));
    answer
}

fn block(number: u64, version: u64) -> Payload {
    let mut buf = IoBuf::zeroed(4096);
    buf[..8].copy_from_slice(&number.to_le_bytes());
    buf[8..16].copy_from_slice(&version.to_le_bytes());
    buf[4088..].copy_from_slice(&(number ^ version).to_le_bytes());
    Payload::from(buf.freeze())
}

fn write(reactor: &ReactorHandle, number: u64, version: u64) -> Receiver<Outcome> {
    let (offset, data) = (number * 4096, block(number, version));
    ask(reactor, BlockOp::Write { offset, data, fua: false })
}

fn done(answer: Receiver<Outcome>) {
    assert_eq!(answer.recv_timeout(PATIENCE).expect("an answer in time"), Ok(BlockResult::Done));
}

#[track_caller]
fn check(reactor: &ReactorHandle, number: u64, version: u64) {
    let answer = ask(reactor, BlockOp::Read { offset: number * 4096, len: 4096 });
    match answer.recv_timeout(PATIENCE).expect("an answer in time") {
        Ok(BlockResult::Data(data)) => {
            assert!(data.contiguous() == block(number, version).contiguous(), "block {number}");
        }
        other => panic!("block {number}: {other:?}"),
    }
}

/// Blocks spread over all chunks of the volume.
fn places(count: u64) -> impl Iterator<Item = u64> + Clone {
    let blocks = VOLUME_BYTES / 4096;
    (0..count).map(move |i| i * 1031 % blocks)
}

fn running(node: &ReactorHandle) -> bool {
    status(node).shard().is_some_and(|shard| shard.phase == Phase::Running)
}

#[test]
fn a_tenant_beside_the_shard_writes_and_reads_without_a_socket() {
    let mut config = node_config(1, &[1], &routes(&[1]));
    host(&mut config, &[1], 1, Some(1));
    let node = start(config).unwrap();
    let answers: Vec<_> = places(500).map(|n| write(&node, n, 1)).collect();
    answers.into_iter().for_each(done);
    places(500).for_each(|n| check(&node, n, 1));
    let status = status(&node);
    assert_eq!((status.counters.bytes_in, status.accepted), (0, 0));
    assert!(status.counters.requests >= 1000);
    node.stop().unwrap();
}

/// Three nodes on files that outlive them, and a client in a reactor of its own.
struct Cluster {
    dir: PathBuf,
    routes: Routes,
    nodes: HashMap<u32, ReactorHandle>,
    client: ReactorHandle,
}

const VOTERS: &[u32] = &[1, 2, 3];

impl Cluster {
    fn new(name: &str) -> Cluster {
        let dir = std::env::temp_dir().join(format!("basalt-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let routes = routes(VOTERS);
        let mut config = ReactorConfig::new("client", CLUSTER);
        config.routes = routes.clone();
        host(&mut config, VOTERS, 1, None);
        let client = start(config).unwrap();
        let mut cluster = Cluster { dir, routes, nodes: HashMap::new(), client };
        VOTERS.iter().for_each(|n| cluster.start(*n, None));
        cluster
    }

    fn start(&mut self, node: u32, faults: Option<FaultHandle>) {
        let mut config = node_config(node, VOTERS, &self.routes);
        let path = self.dir.join(format!("device-{node}"));
        let mut device = DeviceSpec::path(path).create(160 << 20);
        device.allow_buffered = true;
        device.faults = faults;
        config.shard.as_mut().unwrap().device = device;
        self.nodes.insert(node, start(config).unwrap());
    }

    fn kill(&mut self, node: u32) {
        self.nodes.remove(&node).unwrap().kill().unwrap();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.nodes.clear();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

#[test]
fn a_replicated_volume_survives_each_node_in_turn() {
    let mut cluster = Cluster::new("survives");
    places(300)
        .map(|n| write(&cluster.client, n, 1))
        .collect::<Vec<_>>()
        .into_iter()
        .for_each(done);
    for (round, node) in [(2, 1), (3, 2), (4, 3)] {
        let under_way: Vec<_> = places(200).map(|n| write(&cluster.client, n, round)).collect();
        cluster.kill(node);
        under_way.into_iter().for_each(done);
        places(200).for_each(|n| check(&cluster.client, n, round));
        cluster.start(node, None);
        wait_for("the node is back", || running(&cluster.nodes[&node]));
    }
    places(300)
        .for_each(|n| check(&cluster.client, n, 1 + 3 * u64::from(places(200).any(|m| m == n))));
}

#[test]
fn a_restart_of_everything_keeps_what_was_acknowledged() {
    let mut cluster = Cluster::new("restart");
    places(300)
        .map(|n| write(&cluster.client, n, 5))
        .collect::<Vec<_>>()
        .into_iter()
        .for_each(done);
    VOTERS.iter().for_each(|n| cluster.kill(*n));
    VOTERS.iter().for_each(|n| cluster.start(*n, None));
    places(300).for_each(|n| check(&cluster.client, n, 5));
}

#[test]
fn a_device_that_fails_a_write_is_opened_again() {
    let faults = FaultHandle::new();
    let notices = Notices::default();
    let mut config = node_config(1, &[1], &routes(&[1]));
    config.notices = notices.sink();
    host(&mut config, &[1], 1, Some(1));
    let dir = std::env::temp_dir().join(format!("basalt-suspect-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let mut device = DeviceSpec::path(dir.join("device")).create(160 << 20);
    device.allow_buffered = true;
    config.shard.as_mut().unwrap().device = device.with_faults(faults.clone());
    let node = start(config).unwrap();
    places(50).map(|n| write(&node, n, 1)).collect::<Vec<_>>().into_iter().for_each(done);
    faults.arm("error:write:count=1").unwrap();
    places(50).map(|n| write(&node, n, 2)).collect::<Vec<_>>().into_iter().for_each(done);
    assert!(notices.any(|n| matches!(n, Effect::DeviceSuspect { .. })));
    places(50).for_each(|n| check(&node, n, 2));
    assert_eq!(status(&node).shard.unwrap().state, HostState::Open);
    node.stop().unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_device_that_goes_on_failing_is_given_up() {
    let faults = FaultHandle::new();
    let notices = Notices::default();
    let mut config = node_config(1, &[1], &routes(&[1]));
    config.notices = notices.sink();
    config.limits.reopen_attempts = 2;
    host(&mut config, &[1], 1, Some(1));
    let dir = std::env::temp_dir().join(format!("basalt-given-up-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let mut device = DeviceSpec::path(dir.join("device")).create(160 << 20);
    device.allow_buffered = true;
    config.shard.as_mut().unwrap().device = device.with_faults(faults.clone());
    let node = start(config).unwrap();
    done(write(&node, 1, 1));
    faults.arm("error:write").unwrap();
    let _unanswered = write(&node, 1, 2);
    wait_for("the device is given up", || {
        matches!(status(&node).shard.unwrap().state, HostState::Failed(_))
    });
    assert!(
        notices.any(
            |n| matches!(n, Effect::Notice { alarm: true, text } if text.contains("given up"))
        )
    );
    node.stop().unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_device_with_foreign_content_is_refused_and_left_alone() {
    let dir = std::env::temp_dir().join(format!("basalt-foreign-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("device");
    let mut content = vec![0; 160 << 20];
    content[65536 + 1080] = 0x53;
    std::fs::write(&path, &content).unwrap();
    let mut config = node_config(1, &[1], &routes(&[1]));
    let mut device = DeviceSpec::path(&path);
    (device.allow_buffered, device.prewrite_bytes) = (true, 0);
    config.shard.as_mut().unwrap().device = device;
    let node = start(config).unwrap();
    wait_for("the device is refused", || {
        matches!(status(&node).shard.unwrap().state, HostState::Failed(_))
    });
    node.stop().unwrap();
    assert!(std::fs::read(&path).unwrap() == content, "the foreign content was changed");
    std::fs::remove_dir_all(&dir).unwrap();
}
