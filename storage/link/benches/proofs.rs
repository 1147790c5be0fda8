//! What proofs cost: a handshake, the look at a request, and what a MAC over each frame would cost beside the checksum
//! that each block has. `cargo bench -p basalt-link`.

use basalt_link::{
    Acceptor, Access, AfterHello, DialStep, Dialler, Grant, Keys, LinkAuth, Proven, nonce,
};
use basalt_wire::block::crc32c;
use basalt_wire::frame::{Frame, PROTOCOL_VERSION, Priority, Request, RequestOp, Role, Welcome};
use basalt_wire::ids::{
    Address, ClusterId, Epoch, GroupId, Incarnation, NodeId, RequestId, ShardId, VolumeId,
};
use ring::{aead, digest, hmac};
use std::hint::black_box;
use std::time::Instant;

const CLUSTER: ClusterId = ClusterId(1);
const BLOCK: usize = 4096;

/// The least time of ten rounds, in nanoseconds a call.
fn time(calls: u32, mut call: impl FnMut()) -> f64 {
    let round = |call: &mut dyn FnMut()| {
        let began = Instant::now();
        (0..calls).for_each(|_| call());
        began.elapsed().as_secs_f64() * 1e9 / f64::from(calls)
    };
    (0..10).map(|_| round(&mut call)).fold(f64::INFINITY, f64::min)
}

fn address() -> Address {
    Address { node: NodeId(1), shard: ShardId(0) }
}

fn welcome() -> Welcome {
    let (version, from, boot) = (PROTOCOL_VERSION, address(), 1);
    let (credit_bytes, credit_requests) = (1, 1);
    let (refusal, proof) = (String::new(), None);
    Welcome { version, from, boot, credit_bytes, credit_requests, refusal, proof }
}

/// Both sides of a handshake, without the network.
fn handshake(dials: &LinkAuth, answers: &LinkAuth) -> (Proven, basalt_link::Grants) {
    let role = Role::Client { name: "bench".to_owned() };
    let started = Dialler::start(dials, CLUSTER, address(), role, nonce());
    let (mut dialler, hello) = started.expect("something to show");
    let mut acceptor = Acceptor::default();
    let AfterHello::Challenge(challenge) = acceptor.hello(hello, answers, nonce(), 1) else {
        panic!("no challenge")
    };
    let DialStep::Send(Frame::Proof(proof)) = dialler.receive(Frame::Challenge(challenge)) else {
        panic!("no proof")
    };
    let (admission, welcome) = acceptor.proof(&proof, welcome()).expect("a good proof");
    let DialStep::Open(_, Some(proven)) = dialler.receive(Frame::Welcome(welcome)) else {
        panic!("not open")
    };
    (proven, admission.grants)
}

fn main() {
    let keys = Keys::new(&[[1; 32]]).expect("a key");
    let secret = LinkAuth::Secret(keys.clone());
    let grant = |volume| Grant { volume: VolumeId(volume), epoch: Epoch(1), access: Access::Write };
    let ticket = |volumes: std::ops::Range<u64>| {
        keys.issue(CLUSTER, "bench", volumes.map(grant).collect(), 1000).expect("a ticket")
    };
    let shown = LinkAuth::Tickets(vec![ticket(0..1)]);
    for (name, dials) in [("secret", &secret), ("ticket", &shown)] {
        let nanos = time(2000, || {
            black_box(handshake(dials, &secret));
        });
        println!("handshake by {name}, both sides: {:.1} us", nanos / 1000.0);
    }
    for volumes in [1, 24] {
        let shown = LinkAuth::Tickets(vec![ticket(0..volumes)]);
        let (_, grants) = handshake(&shown, &secret);
        let request = Request {
            id: RequestId(1),
            group: GroupId(1),
            volume: VolumeId(volumes - 1),
            epoch: Epoch(1),
            incarnation: Incarnation(1),
            priority: Priority::BestEffort,
            traced: false,
            op: RequestOp::Leader,
        };
        let nanos = time(1_000_000, || {
            black_box(grants.permits(black_box(&request)).is_ok());
        });
        println!("look at a request, {volumes} volumes: {nanos:.1} ns");
    }
    let block = vec![7u8; BLOCK];
    let rate = |name: &str, nanos: f64| {
        println!("{name} over 4 KiB: {nanos:.0} ns, {:.2} GB/s", BLOCK as f64 / nanos);
    };
    rate(
        "CRC-32C",
        time(100_000, || {
            black_box(crc32c(black_box(&block)));
        }),
    );
    let key = hmac::Key::new(hmac::HMAC_SHA256, &[1; 32]);
    rate(
        "HMAC-SHA256",
        time(20_000, || {
            black_box(hmac::sign(&key, black_box(&block)));
        }),
    );
    rate(
        "SHA-256",
        time(20_000, || {
            black_box(digest::digest(&digest::SHA256, black_box(&block)));
        }),
    );
    let key = aead::UnboundKey::new(&aead::AES_128_GCM, &[1; 16]).expect("a key");
    let key = aead::LessSafeKey::new(key);
    let zero = || aead::Nonce::assume_unique_for_key([0; 12]);
    // All of the block as additional data: GMAC.
    rate(
        "GMAC (AES-128)",
        time(20_000, || {
            let tag = key.seal_in_place_separate_tag(zero(), aead::Aad::from(&block), &mut []);
            black_box(tag.is_ok());
        }),
    );
    let mut sealed = block.clone();
    rate(
        "AES-128-GCM",
        time(20_000, || {
            let tag = key.seal_in_place_separate_tag(zero(), aead::Aad::empty(), &mut sealed);
            black_box(tag.is_ok());
        }),
    );
}
