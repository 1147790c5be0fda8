//! Reactors of a cluster with a secret, over loopback: who gets in, who does not, and what becomes of links
//! when the secret is exchanged.

mod common;

use basalt_link::{Access, DialStep, Dialler, Grant, Keys, LinkAuth, Proven, Ticket};
use basalt_node::{ReactorHandle, start};
use basalt_wire::frame::{
    Frame, Hello, PROTOCOL_VERSION, Priority, Refusal, ReplyResult, Request, RequestOp, Role,
};
use basalt_wire::ids::{
    ClusterId, Epoch, Generation, GroupId, Incarnation, RequestId, Term, VolumeId,
};
use common::*;
use std::time::{Duration, Instant, SystemTime};

fn keys(secrets: &[u8]) -> Keys {
    let secrets: Vec<[u8; 32]> = secrets.iter().map(|byte| [*byte; 32]).collect();
    Keys::new(&secrets).expect("some")
}

fn secret(secrets: &[u8]) -> LinkAuth {
    LinkAuth::Secret(keys(secrets))
}

fn node(auth: LinkAuth) -> ReactorHandle {
    let mut config = node_config(1, &[1], &routes(&[1, 2]));
    config.auth = auth;
    start(config).unwrap()
}

fn data(node: &ReactorHandle) -> std::net::SocketAddr {
    node.data_addr().unwrap()
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

fn ticket(key: u8, volume: u64, epoch: u64, access: Access, expires: u64) -> Ticket {
    let grant = Grant { volume: VolumeId(volume), epoch: Epoch(epoch), access };
    keys(&[key]).issue(CLUSTER, "host", vec![grant], expires).expect("a good one")
}

fn client() -> Role {
    Role::Client { name: "host".into() }
}

/// Opens a link as a good dialler does; the text if it is refused.
fn dial(
    node: &ReactorHandle,
    auth: &LinkAuth,
    role: Role,
) -> Result<(RawLink, Option<Proven>), String> {
    let mut link = RawLink::connect(data(node));
    let (mut dialler, hello) =
        Dialler::start(auth, CLUSTER, address(1), role, basalt_link::nonce())?;
    link.send(&Frame::Hello(hello));
    loop {
        let frame = link.receive().ok_or("the link was closed")?;
        match dialler.receive(frame) {
            DialStep::Send(frame) => link.send(&frame),
            DialStep::Open(_, proven) => return Ok((link, proven)),
            DialStep::Refused(why) => return Err(why),
            DialStep::Unexpected => return Err("an unexpected frame".into()),
        }
    }
}

fn refused(node: &ReactorHandle, auth: &LinkAuth, role: Role) -> String {
    match dial(node, auth, role) {
        Ok(_) => panic!("it was let in"),
        Err(why) => why,
    }
}

fn ask(link: &mut RawLink, id: u64, volume: u64, epoch: u64, op: RequestOp) -> ReplyResult {
    let (id, group, volume) = (RequestId(id), GroupId(0), VolumeId(volume));
    let (epoch, incarnation) = (Epoch(epoch), Incarnation(1));
    link.send(&Frame::Request(Request {
        id,
        group,
        volume,
        epoch,
        incarnation,
        priority: Priority::BestEffort,
        traced: false,
        op,
    }));
    match link.receive() {
        Some(Frame::Reply(reply)) => reply.result,
        other => panic!("no reply but {other:?}"),
    }
}

const DENIED: ReplyResult = ReplyResult::Refused(Refusal::NotPermitted);

fn fence() -> RequestOp {
    RequestOp::Fence { term: Term(1), generation: Generation(1) }
}

#[test]
fn nothing_but_the_handshake_is_taken_from_a_stranger() {
    let node = node(secret(&[1]));
    let mut bare = RawLink::connect(data(&node));
    bare.send(&hello(address(1)));
    match bare.receive() {
        Some(Frame::Welcome(w)) => assert!(w.refusal.contains("--secret-file"), "{}", w.refusal),
        other => panic!("no Welcome but {other:?}"),
    }
    bare.wait_for_end();
    // What comes between Hello and proof ends the link, a ping as well as a request.
    for early in [Frame::Ping { nonce: 1 }, hello(address(1)), Frame::Proof([0; 32])] {
        let is_proof = matches!(early, Frame::Proof(_));
        let mut link = RawLink::connect(data(&node));
        let (_, hello) =
            Dialler::start(&secret(&[1]), CLUSTER, address(1), client(), [1; 32]).unwrap();
        link.send(&Frame::Hello(hello));
        assert!(matches!(link.receive(), Some(Frame::Challenge(_))));
        link.send(&early);
        match (is_proof, link.receive()) {
            (true, Some(Frame::Welcome(w))) => {
                assert!(w.refusal.contains("proof"), "{}", w.refusal)
            }
            (false, None) => {}
            other => panic!("{other:?}"),
        }
        link.wait_for_end();
    }
    wait_for_reason(&node, "sent a Ping instead of a Proof");
    wait_for_reason(&node, "the proof is wrong");
    wait_for("strangers are gone", || status(&node).strangers == 0);
    assert_eq!(status(&node).counters.requests, 0);
}

#[test]
fn whoever_stops_before_the_proof_is_closed_in_time() {
    let mut config = node_config(1, &[1], &routes(&[1, 2]));
    config.auth = secret(&[1]);
    config.limits.handshake = Duration::from_millis(50);
    let node = start(config).unwrap();
    let mut link = RawLink::connect(data(&node));
    let (_, hello) = Dialler::start(&secret(&[1]), CLUSTER, address(1), client(), [1; 32]).unwrap();
    link.send(&Frame::Hello(hello));
    link.wait_for_end();
    wait_for_reason(&node, "did not prove who it is in time");
}

#[test]
fn wrong_keys_and_tickets_are_refused_with_a_text() {
    let node = node(secret(&[1, 2]));
    let later = now() + 100;
    let shown = |ticket| LinkAuth::Tickets(vec![ticket]);
    let good = ticket(2, 7, 1, Access::Write, later);
    let peer = || Role::Peer { from: address(2), boot: 1 };
    assert!(dial(&node, &secret(&[2]), peer()).is_ok());
    assert!(dial(&node, &shown(good.clone()), client()).is_ok());
    assert!(refused(&node, &secret(&[3]), peer()).contains("not accepted"));
    assert!(refused(&node, &LinkAuth::Open, client()).contains("--secret-file"));
    assert!(refused(&node, &shown(good.clone()), peer()).contains("for clients"));
    let old = ticket(1, 7, 1, Access::Write, now() - 1);
    assert!(refused(&node, &shown(old), client()).contains("expired"));
    let unknown = ticket(3, 7, 1, Access::Write, later);
    assert!(refused(&node, &shown(unknown), client()).contains("not accepted"));
    let grant = Grant { volume: VolumeId(7), epoch: Epoch(1), access: Access::Write };
    let foreign = keys(&[1]).issue(ClusterId(1), "host", vec![grant], later).unwrap();
    assert!(refused(&node, &shown(foreign), client()).contains("another cluster"));
    for at in 0..good.body().len() {
        let mut body = good.body().to_vec();
        body[at] ^= 1;
        if let Ok(tampered) = Ticket::new(body.into(), good.secret()) {
            refused(&node, &shown(tampered), client());
        }
    }
}

#[test]
fn a_secured_side_and_an_open_one_tell_each_other_what_to_do() {
    let open = node(LinkAuth::Open);
    assert!(dial(&open, &LinkAuth::Open, client()).is_ok());
    let why = refused(&open, &secret(&[1]), client());
    assert!(why.contains("--insecure") && why.contains("secret"), "{why}");
    let mut old = RawLink::connect(data(&open));
    let (version, target) = (PROTOCOL_VERSION - 1, address(1));
    let hello = Hello { version, cluster: CLUSTER, target, role: client(), claim: None };
    old.send(&Frame::Hello(hello));
    match old.receive() {
        Some(Frame::Welcome(w)) => assert!(w.refusal.contains("version 5 is not spoken here")),
        other => panic!("no Welcome but {other:?}"),
    }
}

#[test]
fn a_request_beyond_the_ticket_is_refused_and_the_link_goes_on() {
    let node = node(secret(&[1]));
    wait_for("the group has a leader", || {
        let (mut link, _) = dial(&node, &secret(&[1]), client()).unwrap();
        matches!(
            ask(&mut link, 1, 7, 1, RequestOp::Leader),
            ReplyResult::Leader { leader: Some(_), .. }
        )
    });
    let later = now() + 100;
    let shown = LinkAuth::Tickets(vec![ticket(1, 7, 3, Access::Read, later)]);
    let (mut link, proven) = dial(&node, &shown, client()).unwrap();
    let write = || RequestOp::Unmap {
        term: Term(1),
        generation: Generation(1),
        range: basalt_wire::command::BlockRange { block: 0, count: 1 },
    };
    assert!(matches!(ask(&mut link, 1, 7, 3, RequestOp::Leader), ReplyResult::Leader { .. }));
    assert_eq!(ask(&mut link, 2, 8, 3, RequestOp::Leader), DENIED);
    wait_for_reason(&node, "a request is refused: no ticket of the link names volume 8");
    assert_eq!(ask(&mut link, 3, 7, 3, write()), DENIED);
    assert_eq!(ask(&mut link, 4, 7, 4, fence()), DENIED);
    let term = Term(1);
    assert_eq!(ask(&mut link, 5, 7, 3, RequestOp::Delete { term }), DENIED);
    // One more ticket, on the same link.
    let proven = proven.expect("proven");
    link.send(&Frame::Present(proven.present(&ticket(1, 8, 1, Access::Write, later))));
    assert!(matches!(ask(&mut link, 6, 8, 1, RequestOp::Leader), ReplyResult::Leader { .. }));
    assert_ne!(ask(&mut link, 7, 8, 1, write()), DENIED);
    // One that is over changes nothing; one that is forged ends the link.
    link.send(&Frame::Present(proven.present(&ticket(1, 9, 1, Access::Write, now() - 1))));
    assert_eq!(ask(&mut link, 8, 9, 1, RequestOp::Leader), DENIED);
    let mut forged = proven.present(&ticket(1, 9, 1, Access::Write, later));
    forged.proof[0] ^= 1;
    link.send(&Frame::Present(forged));
    link.wait_for_end();
    wait_for_reason(&node, "without knowing the ticket's key");
    wait_for_reason(&node, "a ticket is not taken");
}

#[test]
fn links_follow_the_exchange_of_the_secret() {
    let all = routes(&[1, 2]);
    let nodes: Vec<ReactorHandle> = [1, 2]
        .map(|n| {
            let mut config = node_config(n, &[1, 2], &all);
            config.auth = secret(&[1]);
            start(config).unwrap()
        })
        .into();
    let up = |node: &ReactorHandle| status(node).links.iter().all(|link| link.up);
    let opened = |node: &ReactorHandle| status(node).links.iter().map(|l| l.opened).sum::<u64>();
    wait_for("both links", || nodes.iter().all(up));
    // A client whose tickets are renewed keeps its link, one whose are not loses it.
    let later = now() + 100;
    let shown = LinkAuth::Tickets(vec![ticket(1, 7, 3, Access::Write, later)]);
    let (mut renewed, proven) = dial(&nodes[0], &shown, client()).unwrap();
    let (mut late, _) = dial(&nodes[0], &shown, client()).unwrap();
    let before = opened(&nodes[0]);
    for step in [&[1, 2][..], &[2, 1]] {
        nodes.iter().for_each(|node| node.auth(secret(step)));
        wait_for("both links", || nodes.iter().all(up));
    }
    assert_eq!(opened(&nodes[0]), before, "until a secret goes no link has to be opened anew");
    let next = ticket(2, 7, 3, Access::Write, later);
    renewed.send(&Frame::Present(proven.expect("proven").present(&next)));
    assert!(matches!(ask(&mut renewed, 1, 7, 3, RequestOp::Leader), ReplyResult::Leader { .. }));
    nodes.iter().for_each(|node| node.auth(secret(&[2])));
    late.wait_for_end();
    wait_for("both links are new", || nodes.iter().all(up) && opened(&nodes[0]) > before);
    assert!(matches!(ask(&mut renewed, 2, 7, 3, RequestOp::Leader), ReplyResult::Leader { .. }));
    assert!(refused(&nodes[0], &shown, client()).contains("not accepted"));
}

/// What it takes to open a link: run with `--nocapture` for the figures.
#[test]
fn opening_a_link_takes_no_noticeable_time() {
    const LINKS: u32 = 200;
    let time = |auth: LinkAuth, shown: LinkAuth| {
        let node = node(auth);
        let began = Instant::now();
        for _ in 0..LINKS {
            dial(&node, &shown, client()).unwrap();
        }
        began.elapsed() / LINKS
    };
    let open = time(LinkAuth::Open, LinkAuth::Open);
    let by_secret = time(secret(&[1]), secret(&[1]));
    let ticket = LinkAuth::Tickets(vec![ticket(1, 7, 1, Access::Write, now() + 100)]);
    let by_ticket = time(secret(&[1]), ticket);
    println!("a link: open {open:?}, by secret {by_secret:?}, by ticket {by_ticket:?}");
    assert!(by_ticket < Duration::from_millis(50), "{by_ticket:?}");
}
