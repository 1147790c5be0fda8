//! Strangers on every port of a cluster that works, while its load is verified.

use anyhow::Result;
use basalt_chaos::measure::resident_bytes;
use basalt_chaos::nbd::{GREETING, NbdClient, option_header};
use basalt_chaos::random::Random;
use basalt_interop::cluster::{Attached, Cluster, Shape};
use basalt_interop::fio::FioJob;
use basalt_interop::process::wait_until;
use basalt_wire::block::crc32c;
use basalt_wire::codec::{Encoder, HEADER_BYTES, HEADER_VERSION, MAGIC};
use basalt_wire::frame::{Frame, Hello, PROTOCOL_VERSION, Role};
use basalt_wire::ids::{Address, ClusterId, NodeId, ShardId};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

const VOLUME: &str = "hostile";
/// How often every kind of nonsense goes to every port.
const ATTACKS: u64 = 6;
/// Connections that are kept open in the middle of a frame.
const HELD_MAX: usize = 300;
/// Far above what a node with a little load uses, far below what the lengths that it is told would
/// make of it.
const RESIDENT_MAX: u64 = 512 << 20;
/// What a door holds at a time, and of one volume, as documented.
const DOOR_CONNECTIONS_MAX: usize = 1024;
const EXPORT_CONNECTIONS_MAX: usize = 128;
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Port {
    Grpc,
    Data,
    Nbd,
}

/// What a stranger does after it has sent its bytes.
#[derive(Clone, Copy, Debug)]
enum Then {
    Leave,
    /// Waits for what comes, or for the end.
    Listen,
    /// Stays, and never says more.
    Stay,
}

#[test]
fn strangers_on_every_port_harm_nobody() {
    let cluster = Cluster::start("hostile").expect("a cluster");
    cluster.basalt(&["volume", "create", VOLUME, "--size", "256MiB"]).expect("a volume");
    let mut attached = cluster.attach(VOLUME, "hostile-host", false).expect("attached");
    let job = FioJob {
        rate_bytes: Some(4 << 20),
        io_bytes: Some(64 << 20),
        ..FioJob::verified_writes(&attached.uri(VOLUME), 128 << 20)
    };
    let fio = job.start().expect("fio starts");
    let mut held = Vec::new();
    let mut connections = 0;
    for attack in 0..ATTACKS {
        for (port, number) in ports(&cluster, &attached) {
            for bytes in nonsense(port, &mut Random::new(attack)) {
                for then in [Then::Leave, Then::Listen, Then::Stay] {
                    connections += 1;
                    // A refused or broken connection is one of the good answers.
                    if let Ok(Some(stream)) = disturb(number, &bytes, then) {
                        held.push(stream);
                    }
                }
            }
            bad_requests(attached.port).expect("the export is served");
            held.drain(..held.len().saturating_sub(HELD_MAX));
        }
    }
    let memory = memory(&cluster, &attached);
    let result = fio.finish().expect("no error and no mismatch reaches fio");
    println!(
        "hostile: {connections} connections of strangers, {} held open, at most {} MiB resident; \
         fio: {} writes verified, longest stall {:.0} ms",
        held.len(),
        memory >> 20,
        result.write.requests,
        result.max_ms()
    );
    assert!(memory < RESIDENT_MAX, "a process grew to {} MiB", memory >> 20);
    drop(held);
    cluster.wait_healthy().expect("healthy");
    no_panic(&cluster);
    attached.process.stop(PATIENCE).expect("basalt-attach stops");
    cluster.finish().expect("the nodes stop");
}

/// More connections than a door holds, of clients that say nothing, or one byte now and then: a client
/// that means it comes through all the same, and each volume's connections are bounded.
#[test]
fn idle_and_slow_connections_keep_nobody_out() {
    let shape = Shape { nodes: 1, ..Shape::default() };
    let cluster = Cluster::start_with("idle", &shape).expect("a cluster");
    for name in ["one", "two"] {
        cluster.basalt(&["volume", "create", name, "--size", "64MiB"]).expect("a volume");
        cluster.basalt(&["volume", "attach", name, "--host", "node-1"]).expect("attached");
        cluster.wait_served(&cluster.nodes[0].uri(name)).expect("served");
    }
    basalt_node::raise_file_limit();
    let node = &cluster.nodes[0];
    let (pid, before) = (node.process.id(), memory_of(node.process.id()));
    let mut idle = Vec::new();
    for _ in 0..DOOR_CONNECTIONS_MAX + 200 {
        idle.push(TcpStream::connect(("127.0.0.1", node.ports.nbd)).expect("it listens"));
    }
    let mut good = NbdClient::open(node.ports.nbd, "one", PATIENCE).expect("there is room");
    good.read(0, 4096).expect("served");
    // Half a greeting each, so that they are in the middle of something.
    for stream in &mut idle {
        // The oldest were thrown out.
        let _ = stream.write_all(&[0, 0, 0]);
    }
    NbdClient::open(node.ports.nbd, "two", PATIENCE).expect("there is still room");

    let mut held = vec![good];
    let refused = loop {
        assert!(held.len() <= EXPORT_CONNECTIONS_MAX, "a volume has {} connections", held.len());
        match NbdClient::open(node.ports.nbd, "one", PATIENCE) {
            Ok(client) => held.push(client),
            Err(error) => break format!("{error:#}"),
        }
    };
    assert!(refused.contains("as many connections"), "{refused}");
    NbdClient::open(node.ports.nbd, "two", PATIENCE).expect("another volume has its own");
    held.pop();
    let again = || Ok(NbdClient::open(node.ports.nbd, "one", PATIENCE).is_ok());
    wait_until("there is room again", PATIENCE, again).expect("it comes");

    // The other ports: as many that say nothing, then somebody who means it.
    for port in [node.ports.grpc, node.ports.data] {
        let silent: Vec<_> =
            (0..600).filter_map(|_| TcpStream::connect(("127.0.0.1", port)).ok()).collect();
        cluster.wait_healthy().expect("the API answers");
        drop(silent);
    }
    let grown = memory_of(pid).saturating_sub(before);
    println!("hostile: {} idle connections: the node grew by {} MiB", idle.len(), grown >> 20);
    assert!(grown < 256 << 20, "the node grew by {} MiB", grown >> 20);
    no_panic(&cluster);
    cluster.finish().expect("the node stops");
}

fn memory_of(process: u32) -> u64 {
    resident_bytes(process).expect("it runs")
}

fn ports(cluster: &Cluster, attached: &Attached) -> Vec<(Port, u16)> {
    let nodes = cluster.nodes.iter().map(|node| node.ports);
    let of = |p: basalt_interop::cluster::Ports| {
        [(Port::Grpc, p.grpc), (Port::Data, p.data), (Port::Nbd, p.nbd)]
    };
    nodes.flat_map(of).chain([(Port::Nbd, attached.port)]).collect()
}

fn memory(cluster: &Cluster, attached: &Attached) -> u64 {
    let nodes = cluster.nodes.iter().map(|node| node.process.id());
    let all = nodes.chain([attached.process.id()]);
    all.map(|process| resident_bytes(process).expect("it runs")).max().unwrap_or(0)
}

/// Looks through everything that the processes said.
fn no_panic(cluster: &Cluster) {
    for entry in std::fs::read_dir(cluster.folder()).expect("the folder of logs") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "log") {
            let text = std::fs::read_to_string(&path).expect("a log");
            assert!(!text.contains("panicked"), "a panic in {}", path.display());
        }
    }
}

/// Byte sequences that no good client sends.
fn nonsense(port: Port, random: &mut Random) -> Vec<Vec<u8>> {
    let garbage: Vec<u8> = (0..20_000).map(|_| random.bits() as u8).collect();
    let good = opening(port);
    let mut flipped = good.clone();
    let at = random.below(flipped.len() as u64) as usize;
    flipped[at] ^= 1 << random.below(8);
    let half = good[..1 + random.below(good.len() as u64 - 1) as usize].to_vec();
    let followed = [good.clone(), garbage.clone()].concat();
    vec![Vec::new(), garbage, half, flipped, followed, oversized(port)]
}

/// How a good client begins.
fn opening(port: Port) -> Vec<u8> {
    match port {
        Port::Grpc => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec(),
        Port::Nbd => {
            let mut bytes = vec![0, 0, 0, 3];
            bytes.extend(option_header(3, 0));
            bytes
        }
        Port::Data => {
            let hello = Hello {
                version: PROTOCOL_VERSION,
                cluster: ClusterId(1),
                target: Address { node: NodeId(1), shard: ShardId(0) },
                role: Role::Client { name: "a stranger".to_owned() },
                claim: None,
            };
            let mut encoder = Encoder::new();
            encoder.push(&Frame::Hello(hello));
            encoder.take().concat()
        }
    }
}

/// A beginning that announces more than anybody has room for.
fn oversized(port: Port) -> Vec<u8> {
    match port {
        Port::Grpc => {
            let mut bytes = opening(port);
            bytes.extend([0xff, 0xff, 0xff, 0x01, 0x04, 0, 0, 0, 1]);
            bytes
        }
        Port::Nbd => {
            let mut bytes = vec![0, 0, 0, 3];
            bytes.extend(option_header(7, u32::MAX));
            bytes.extend([b'x'; 4096]);
            bytes
        }
        Port::Data => {
            // A header whose own checksum is right.
            let mut bytes = vec![0; HEADER_BYTES];
            bytes[..4].copy_from_slice(&MAGIC);
            bytes[4..6].copy_from_slice(&HEADER_VERSION.to_le_bytes());
            bytes[6] = 1;
            bytes[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
            bytes[12..16].copy_from_slice(&(u32::MAX - 4095).to_le_bytes());
            let sum = crc32c(&bytes[..28]);
            bytes[28..32].copy_from_slice(&sum.to_le_bytes());
            bytes
        }
    }
}

fn disturb(port: u16, bytes: &[u8], then: Then) -> Result<Option<TcpStream>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_millis(20)))?;
    stream.set_write_timeout(Some(Duration::from_millis(500)))?;
    stream.write_all(bytes)?;
    match then {
        Then::Leave => Ok(None),
        Then::Listen => {
            stream.shutdown(Shutdown::Write)?;
            let mut answer = [0; 4096];
            while stream.read(&mut answer)? > 0 {}
            Ok(None)
        }
        Then::Stay => Ok(Some(stream)),
    }
}

/// A client that passed the handshake asks for what can not be: it hears an error, or is thrown out.
fn bad_requests(port: u16) -> Result<()> {
    assert_eq!(GREETING.len(), 16);
    let mut client = NbdClient::open(port, VOLUME, PATIENCE)?;
    client.send_write(u64::MAX - 8191, &[1; 4096])?;
    let answer = client.answer()?;
    assert!(answer.is_none_or(|answer| answer.error != 0), "beyond the end: {answer:?}");
    let mut client = NbdClient::open(port, VOLUME, PATIENCE)?;
    assert!(client.read(0, u32::MAX).is_err(), "a read of 4 GiB");
    Ok(())
}
