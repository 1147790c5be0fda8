//! The data port against strangers: garbage, oversized lengths, half frames, silence, wrong
//! handshakes, broken rules. Each is closed with a reason, and the reactor goes on.

mod common;

use basalt_node::{Limits, ReactorHandle, start};
use basalt_wire::block::crc32c;
use basalt_wire::codec::{HEADER_BYTES, MAGIC};
use basalt_wire::frame::{
    Frame, Hello, PROTOCOL_VERSION, Priority, ReplyResult, Request, RequestOp, Role,
};
use basalt_wire::ids::{ClusterId, Epoch, GroupId, Incarnation, NodeId, RequestId, VolumeId};
use common::*;
use std::time::Duration;

fn node_with(change: impl FnOnce(&mut Limits)) -> ReactorHandle {
    let mut config = node_config(1, &[1], &routes(&[1, 2]));
    change(&mut config.limits);
    start(config).unwrap()
}

fn node() -> ReactorHandle {
    node_with(|_| {})
}

fn data(node: &ReactorHandle) -> std::net::SocketAddr {
    node.data_addr().unwrap()
}

/// The node still takes a client, and its strangers are gone.
#[track_caller]
fn still_serves(node: &ReactorHandle) {
    let mut link = RawLink::client(data(node), address(1));
    link.send(&Frame::Ping { nonce: 7 });
    assert_eq!(link.receive(), Some(Frame::Pong { nonce: 7 }));
    wait_for("strangers are gone", || status(node).strangers == 0);
}

fn request(id: u64) -> Frame {
    Frame::Request(Request {
        id: RequestId(id),
        group: GroupId(0),
        volume: VolumeId(1),
        epoch: Epoch(1),
        incarnation: Incarnation(1),
        priority: Priority::BestEffort,
        traced: false,
        op: RequestOp::Leader,
    })
}

fn header(kind: u8, body: u32, payload: u32) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4] = 1;
    bytes[6] = kind;
    bytes[8..12].copy_from_slice(&body.to_le_bytes());
    bytes[12..16].copy_from_slice(&payload.to_le_bytes());
    let sum = crc32c(&bytes[..28]);
    bytes[28..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

#[test]
fn garbage_is_named_and_closed() {
    let node = node();
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 100], &[0xff; 5000]] {
        let mut link = RawLink::connect(data(&node));
        link.send_bytes(garbage);
        link.wait_for_end();
    }
    wait_for_reason(&node, "bad magic [47, 45, 54, 20]");
    wait_for_reason(&node, "bad magic [ff, ff, ff, ff]");
    still_serves(&node);
}

#[test]
fn an_oversized_length_is_refused_before_anything_is_kept() {
    let node = node();
    for (body, payload) in [(u32::MAX, 0), (2048, 0), (100, 4096)] {
        let mut link = RawLink::connect(data(&node));
        link.send_bytes(&header(1, body, payload));
        link.wait_for_end();
    }
    wait_for_reason(&node, "body length is 4294967295");
    wait_for_reason(&node, "payload length is 4096");
    still_serves(&node);
}

#[test]
fn a_client_may_not_send_more_than_a_client_needs() {
    let node = node();
    let mut link = RawLink::client(data(&node), address(1));
    link.send_bytes(&header(4, 100, 16 << 20));
    link.wait_for_end();
    wait_for_reason(&node, "payload length is 16777216");
    still_serves(&node);
}

#[test]
fn silence_and_half_a_frame_end_with_the_handshakes_deadline() {
    let node = node_with(|limits| limits.handshake = Duration::from_millis(50));
    let mut silent = RawLink::connect(data(&node));
    let mut half = RawLink::connect(data(&node));
    let bytes = encode(&hello(address(1)));
    half.send_bytes(&bytes[..bytes.len() - 1]);
    silent.wait_for_end();
    half.wait_for_end();
    wait_for_reason(&node, "did not say who it is in time");
    still_serves(&node);
}

#[test]
fn a_hello_in_single_bytes_is_understood() {
    let node = node();
    let mut link = RawLink::connect(data(&node));
    for byte in encode(&hello(address(1))) {
        link.send_bytes(&[byte]);
    }
    assert!(matches!(link.receive(), Some(Frame::Welcome(w)) if w.refusal.is_empty()));
}

#[test]
fn a_flipped_bit_is_noticed() {
    let node = node();
    let good = encode(&hello(address(1)));
    for bit in (0..good.len() * 8).step_by(13) {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let mut link = RawLink::connect(data(&node));
        link.send_bytes(&bytes);
        link.wait_for_end();
    }
    still_serves(&node);
    wait_for("nobody is left", || status(&node).accepted == 0);
}

#[test]
fn a_wrong_hello_is_refused_with_a_text() {
    let node = node();
    let good = Hello {
        version: PROTOCOL_VERSION,
        cluster: CLUSTER,
        target: address(1),
        role: Role::Client { name: "test".into() },
        claim: None,
    };
    let peer = |n| Role::Peer { from: address(n), boot: 1 };
    let cases = [
        (Hello { version: 99, ..good.clone() }, "protocol version 99"),
        (Hello { cluster: ClusterId(5), ..good.clone() }, "another cluster"),
        (Hello { target: address(2), ..good.clone() }, "this is node 1"),
        (Hello { role: peer(9), ..good.clone() }, "node 9 shard 0 is not known"),
        (Hello { role: peer(1), ..good }, "own address"),
    ];
    for (hello, text) in cases {
        let mut link = RawLink::connect(data(&node));
        link.send(&Frame::Hello(hello));
        match link.receive() {
            Some(Frame::Welcome(w)) => assert!(w.refusal.contains(text), "{}", w.refusal),
            other => panic!("no Welcome but {other:?}"),
        }
        link.wait_for_end();
    }
    still_serves(&node);
}

#[test]
fn frames_that_do_not_belong_on_a_link_close_it() {
    let node = node();
    let mut early = RawLink::connect(data(&node));
    early.send(&request(1));
    early.wait_for_end();
    // Before the handshake not even the length of a request is accepted if it is a long one; a short
    // one is read and named.
    wait_for_reason(&node, "began with a request instead of a Hello");
    let mut twice = RawLink::client(data(&node), address(1));
    twice.send(&hello(address(1)));
    twice.wait_for_end();
    wait_for_reason(&node, "a client may not send a Hello");
    still_serves(&node);
}

#[test]
fn requests_beyond_the_credit_close_the_link() {
    let node = node_with(|limits| limits.credit_requests = 4);
    let mut link = RawLink::client(data(&node), address(1));
    // In one piece, so that none is answered in between.
    let many: Vec<u8> = (0..100).flat_map(|id| encode(&request(id))).collect();
    link.send_bytes(&many);
    link.wait_for_end();
    wait_for_reason(&node, "beyond the credit: 4 of 4 requests");
    still_serves(&node);
}

#[test]
fn an_id_that_is_in_use_closes_the_link() {
    let node = node();
    let mut link = RawLink::client(data(&node), address(1));
    link.send_bytes(&[encode(&request(5)), encode(&request(5))].concat());
    link.wait_for_end();
    wait_for_reason(&node, "request 5 has the id of one that is not answered yet");
    still_serves(&node);
}

#[test]
fn nonsense_in_good_form_gets_an_answer() {
    let node = node();
    let mut link = RawLink::client(data(&node), address(1));
    let mut nonsense = request(1);
    if let Frame::Request(request) = &mut nonsense {
        request.group = GroupId(4711);
    }
    link.send(&nonsense);
    match link.receive() {
        Some(Frame::Reply(reply)) => assert!(matches!(reply.result, ReplyResult::Refused(_))),
        other => panic!("no reply but {other:?}"),
    }
}

#[test]
fn a_peer_speaks_only_for_itself() {
    let node = node();
    let peer = Hello {
        version: PROTOCOL_VERSION,
        cluster: CLUSTER,
        target: address(1),
        role: Role::Peer { from: address(2), boot: 1 },
        claim: None,
    };
    let mut link = RawLink::connect(data(&node));
    link.send(&Frame::Hello(peer.clone()));
    assert!(matches!(link.receive(), Some(Frame::Welcome(w)) if w.refusal.is_empty()));
    link.send(&Frame::AskLeadership { group: GroupId(0), candidate: NodeId(3) });
    link.wait_for_end();
    wait_for_reason(&node, "node 2 spoke in the name of node 3");
    let mut link = RawLink::connect(data(&node));
    link.send(&Frame::Hello(peer));
    assert!(matches!(link.receive(), Some(Frame::Welcome(w)) if w.refusal.is_empty()));
    link.send(&request(1));
    link.wait_for_end();
    wait_for_reason(&node, "a peer may not send a request");
    still_serves(&node);
}

#[test]
fn strangers_are_bounded() {
    let node = node_with(|limits| {
        limits.handshakes = 3;
        limits.handshake = Duration::from_secs(600);
    });
    let mut held: Vec<_> = (0..3).map(|_| RawLink::connect(data(&node))).collect();
    wait_for("three strangers", || status(&node).strangers == 3);
    // One that says who it is gets in all the same, in the place of the oldest of the silent.
    let _client = RawLink::client(data(&node), address(1));
    wait_for_reason(&node, "others need its place");
    assert_eq!(status(&node).strangers, 2);
    held.remove(0).wait_for_end();
    drop(held);
    wait_for("strangers are gone", || status(&node).strangers == 0);
    still_serves(&node);
}

#[test]
fn a_client_that_falls_silent_is_dropped() {
    let node = node_with(|limits| {
        limits.silence_accepted = Duration::from_millis(50);
        limits.ping_every = Duration::from_millis(20);
    });
    let mut link = RawLink::client(data(&node), address(1));
    link.wait_for_end();
    wait_for_reason(&node, "silent for 50ms");
}
