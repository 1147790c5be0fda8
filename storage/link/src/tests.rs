//! Honest sides, attackers, bugs planted so that attackers get in, and bytes of no sense.

mod attacks;

use crate::grants::PresentError;
use crate::*;
use basalt_wire::block::crc32c;
use basalt_wire::codec::{DecodeLimits, Decoder, Encoder, HEADER_BYTES};
use basalt_wire::command::BlockRange;
use basalt_wire::frame::{
    Frame, Nonce, PROTOCOL_VERSION, Present, Priority, Request, RequestOp, Role, Welcome,
};
use basalt_wire::ids::{
    Address, ClusterId, Epoch, Generation, GroupId, Incarnation, LogIndex, NodeId, RequestId,
    ShardId, Term, VolumeId,
};
use bytes::Bytes;
use proptest::prelude::*;

const CLUSTER: ClusterId = ClusterId(77);
const NOW: u64 = 1_000_000;

fn node(number: u32) -> Address {
    Address { node: NodeId(number), shard: ShardId(0) }
}

fn keys(secrets: &[u8]) -> Keys {
    let secrets: Vec<[u8; 32]> = secrets.iter().map(|byte| [*byte; 32]).collect();
    Keys::new(&secrets).expect("some")
}

fn secret(secrets: &[u8]) -> LinkAuth {
    LinkAuth::Secret(keys(secrets))
}

fn grant(volume: u64, epoch: u64, access: Access) -> Grant {
    Grant { volume: VolumeId(volume), epoch: Epoch(epoch), access }
}

fn ticket(secrets: &[u8], grants: &[Grant]) -> Ticket {
    keys(secrets).issue(CLUSTER, "host", grants.to_vec(), NOW + 100).expect("a good one")
}

fn peer() -> Role {
    Role::Peer { from: node(1), boot: 5 }
}

fn client() -> Role {
    Role::Client { name: "host".to_owned() }
}

fn welcome() -> Welcome {
    let (version, from, boot) = (PROTOCOL_VERSION, node(2), 9);
    let (credit_bytes, credit_requests) = (1000, 10);
    let (refusal, proof) = (String::new(), None);
    Welcome { version, from, boot, credit_bytes, credit_requests, refusal, proof }
}

fn refusal(text: String) -> Frame {
    Frame::Welcome(Welcome { refusal: text, ..welcome() })
}

/// Frames over bytes, as on a link before it is open; nothing if the decoder refuses them.
fn over_bytes(frame: &Frame, tamper: impl FnOnce(&mut Vec<u8>)) -> Option<Frame> {
    let mut encoder = Encoder::new();
    encoder.push(frame);
    let mut bytes = encoder.take().concat();
    tamper(&mut bytes);
    decode(bytes)
}

fn decode(bytes: Vec<u8>) -> Option<Frame> {
    let mut decoder = Decoder::new(DecodeLimits::HANDSHAKE);
    decoder.push(Bytes::from(bytes));
    decoder.next().ok().flatten()
}

/// The checksums of a frame whose body was changed: an attacker can make them, too.
fn reseal(bytes: &mut [u8]) {
    let body = crc32c(&bytes[HEADER_BYTES..]);
    bytes[24..28].copy_from_slice(&body.to_le_bytes());
    let header = crc32c(&bytes[..28]);
    bytes[28..32].copy_from_slice(&header.to_le_bytes());
}

/// What the two sides made of each other.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    admitted: Option<Admission>,
    opened: Option<Proven>,
    /// It is open for the side that dialled, proven or not.
    open: bool,
    /// Why it was refused, on either side.
    why: String,
    /// What the side that dialled sent.
    sent: Vec<Frame>,
}

/// Runs a handshake. `between` may change each message, in order, or drop it.
fn run(
    dials: &LinkAuth,
    answers: &LinkAuth,
    role: Role,
    (ours, theirs): (Nonce, Nonce),
    mut between: impl FnMut(usize, Frame) -> Option<Frame>,
) -> Outcome {
    let mut outcome = Outcome::default();
    let started = Dialler::start(dials, CLUSTER, node(2), role, ours);
    let (mut dialler, hello) = match started {
        Ok(started) => started,
        Err(why) => return Outcome { why, ..outcome },
    };
    let mut acceptor = Acceptor::default();
    let mut next = Some(Frame::Hello(hello));
    for step in 0.. {
        outcome.sent.extend(next.clone().filter(|_| step % 2 == 0));
        let Some(frame) = next.take().and_then(|frame| between(step, frame)) else { break };
        next = match step % 2 {
            0 => answer(&mut acceptor, answers, frame, theirs, &mut outcome),
            _ => match dialler.receive(frame) {
                DialStep::Send(frame) => Some(frame),
                DialStep::Open(_, proven) => {
                    (outcome.opened, outcome.open) = (proven, true);
                    None
                }
                DialStep::Refused(why) => {
                    outcome.why = why;
                    None
                }
                DialStep::Unexpected => None,
            },
        };
    }
    outcome
}

/// The side that answers, as a reactor drives it.
fn answer(
    acceptor: &mut Acceptor,
    auth: &LinkAuth,
    frame: Frame,
    nonce: Nonce,
    outcome: &mut Outcome,
) -> Option<Frame> {
    match (acceptor.awaits_proof(), frame) {
        (false, Frame::Hello(hello)) => {
            let ours = hello.version == PROTOCOL_VERSION && hello.cluster == CLUSTER;
            if !ours || hello.target != node(2) {
                return None;
            }
            match acceptor.hello(hello, auth, nonce, NOW) {
                AfterHello::Challenge(challenge) => Some(Frame::Challenge(challenge)),
                AfterHello::Refuse(why) => Some(refusal(why)),
                AfterHello::Admit(admission) => {
                    outcome.admitted = Some(admission);
                    Some(Frame::Welcome(welcome()))
                }
            }
        }
        (true, Frame::Proof(proof)) => match acceptor.proof(&proof, welcome()) {
            Ok((admission, welcome)) => {
                outcome.admitted = Some(admission);
                Some(Frame::Welcome(welcome))
            }
            Err(why) => Some(refusal(why)),
        },
        _ => None,
    }
}

fn honest(dials: &LinkAuth, answers: &LinkAuth, role: Role) -> Outcome {
    run(dials, answers, role, ([1; 32], [2; 32]), |_, frame| over_bytes(&frame, |_| {}))
}

fn request(volume: u64, epoch: u64, op: RequestOp) -> Request {
    let (id, group, volume) = (RequestId(1), GroupId(1), VolumeId(volume));
    let (epoch, incarnation) = (Epoch(epoch), Incarnation(1));
    Request {
        id,
        group,
        volume,
        epoch,
        incarnation,
        priority: Priority::BestEffort,
        traced: false,
        op,
    }
}

const RANGE: BlockRange = BlockRange { block: 0, count: 1 };

fn read(snapshot: Option<Generation>) -> RequestOp {
    RequestOp::Read { range: RANGE, floor: LogIndex(0), snapshot }
}

fn unmap() -> RequestOp {
    RequestOp::Unmap { term: Term(1), generation: Generation(1), range: RANGE }
}

fn fence() -> RequestOp {
    RequestOp::Fence { term: Term(1), generation: Generation(1) }
}

#[test]
fn both_sides_prove_the_secret_and_know_one_session() {
    for role in [peer(), client()] {
        let outcome = honest(&secret(&[1]), &secret(&[1]), role.clone());
        let admitted = outcome.admitted.expect("admitted");
        assert_eq!((&admitted.hello.role, &admitted.grants), (&role, &Grants::All));
        assert_eq!(admitted.proven, outcome.opened);
        assert!(outcome.open && outcome.opened.is_some());
    }
}

#[test]
fn every_step_of_an_exchange_of_secrets_lets_nodes_open_links() {
    // Added, promoted, dropped: each pair of neighbouring steps meets.
    let steps: [&[u8]; 4] = [&[1], &[1, 2], &[2, 1], &[2]];
    for pair in steps.windows(2) {
        for (dials, answers) in [(pair[0], pair[1]), (pair[1], pair[0])] {
            let outcome = honest(&secret(dials), &secret(answers), peer());
            assert!(outcome.admitted.is_some() && outcome.open, "{pair:?}: {}", outcome.why);
        }
    }
    let late = honest(&secret(&[1]), &secret(&[2]), peer());
    assert!(late.admitted.is_none() && late.why.contains("secret"), "{}", late.why);
}

#[test]
fn clusters_without_a_secret_do_not_mix_with_those_that_have_one() {
    let open = honest(&LinkAuth::Open, &LinkAuth::Open, peer());
    assert!(open.open && open.admitted.is_some_and(|admitted| admitted.proven.is_none()));
    for (dials, answers) in [(LinkAuth::Open, secret(&[1])), (secret(&[1]), LinkAuth::Open)] {
        let mixed = honest(&dials, &answers, peer());
        assert!(mixed.admitted.is_none() && !mixed.open);
        assert!(mixed.why.contains("--insecure") || mixed.why.contains("--secret-file"));
        assert!(mixed.why.contains("start"), "it says what to do: {}", mixed.why);
    }
    // The other side may lie: one with a secret opens no link without a proof, and one without sends none.
    let lied = run(&secret(&[1]), &LinkAuth::Open, peer(), ([1; 32], [2; 32]), |step, frame| {
        Some(if step == 1 { Frame::Welcome(welcome()) } else { frame })
    });
    assert!(!lied.open && lied.why.contains("asks for no proof"), "{}", lied.why);
    let asked = run(&LinkAuth::Open, &LinkAuth::Open, peer(), ([1; 32], [2; 32]), |step, frame| {
        let challenge = basalt_wire::frame::Challenge { version: PROTOCOL_VERSION, nonce: [2; 32] };
        Some(if step == 1 { Frame::Challenge(challenge) } else { frame })
    });
    assert!(!asked.open && asked.why.contains("no secret"), "{}", asked.why);
}

#[test]
fn a_ticket_opens_a_link_for_its_volumes() {
    let all =
        [grant(9, 3, Access::Write), grant(4, 0, Access::Snapshots), grant(6, 2, Access::Read)];
    let shown = LinkAuth::Tickets(vec![ticket(&[1], &all)]);
    let outcome = honest(&shown, &secret(&[2, 1]), client());
    let grants = outcome.admitted.expect("admitted").grants;
    let may = |volume, epoch, op| grants.permits(&request(volume, epoch, op)).is_ok();
    assert!(may(9, 3, unmap()) && may(9, 3, fence()) && may(9, 3, read(None)));
    assert!(may(9, 3, RequestOp::Leader) && may(9, 1, read(Some(Generation(1)))));
    assert!(!may(9, 4, unmap()) && !may(9, 4, fence()) && !may(9, 2, read(None)));
    assert!(may(6, 2, read(None)) && may(6, 2, fence()) && !may(6, 2, unmap()));
    assert!(may(4, 7, read(Some(Generation(2)))) && may(4, 0, RequestOp::Leader));
    assert!(!may(4, 0, read(None)) && !may(4, 0, fence()));
    for volume in [0, 3, 5, 7, 10, u64::MAX] {
        assert!(!may(volume, 3, RequestOp::Leader), "{volume}");
    }
    let term = Term(1);
    for op in [
        RequestOp::Delete { term },
        RequestOp::Freeze { term, generation: Generation(1) },
        RequestOp::DropSnapshot { term, generation: Generation(1) },
        RequestOp::Revert { term, generation: Generation(1) },
        RequestOp::CloseGate { term, generation: Generation(1) },
        RequestOp::OpenGate { term, generation: Generation(1) },
    ] {
        assert!(!may(9, 3, op.clone()), "{op:?}");
    }
    assert!(Grants::All.permits(&request(1, 1, RequestOp::Delete { term })).is_ok());
}

#[test]
fn further_tickets_come_on_the_link_and_stay_when_a_secret_goes() {
    let first = ticket(&[1], &[grant(1, 1, Access::Write)]);
    let outcome = honest(&LinkAuth::Tickets(vec![first]), &secret(&[1, 2]), client());
    let (mut admitted, opened) =
        (outcome.admitted.expect("admitted"), outcome.opened.expect("open"));
    let present = |ticket: &Ticket| opened.present(ticket);
    let both = keys(&[1, 2]);
    let proven = admitted.proven.clone();
    let mut show = |ticket: &Ticket| {
        admitted.grants.present(&present(ticket), proven.as_ref(), &both, CLUSTER, NOW)
    };
    show(&ticket(&[2], &[grant(2, 5, Access::Write)])).expect("a good one");
    let old = keys(&[1]).issue(CLUSTER, "host", vec![grant(3, 1, Access::Write)], NOW);
    let useless = show(&old.expect("made")).expect_err("it is over");
    assert!(
        matches!(&useless, PresentError::Useless(why) if why.contains("expired")),
        "{useless:?}"
    );
    let other = show(&ticket(&[3], &[grant(3, 1, Access::Write)])).expect_err("unknown");
    assert!(matches!(other, PresentError::Useless(_)), "{other:?}");
    // A session and the snapshots of one volume, and its next session.
    show(&ticket(&[1], &[grant(1, 0, Access::Snapshots)])).expect("a good one");
    show(&ticket(&[1], &[grant(1, 2, Access::Write)])).expect("a good one");
    let mut grants = admitted.grants;
    assert!(grants.permits(&request(1, 1, fence())).is_ok());
    assert!(grants.permits(&request(1, 2, fence())).is_ok());
    assert!(grants.permits(&request(1, 3, fence())).is_err());
    assert!(grants.permits(&request(1, 9, read(Some(Generation(1))))).is_ok());
    assert!(grants.retain(&keys(&[2])), "one was made by the secret that stays");
    assert!(grants.permits(&request(1, 2, fence())).is_err());
    assert!(grants.permits(&request(2, 5, fence())).is_ok());
    assert!(!grants.retain(&keys(&[3])));
    assert!(Grants::All.retain(&keys(&[3])));
}

#[test]
fn tickets_are_what_they_are() {
    let good = ticket(&[1], &[grant(2, 3, Access::Read), grant(1, 4, Access::Write)]);
    let read = TicketBody::parse(good.body()).expect("ours");
    assert_eq!(read.grants, [grant(1, 4, Access::Write), grant(2, 3, Access::Read)]);
    assert_eq!((read.client.as_str(), read.expires, read.cluster), ("host", NOW + 100, CLUSTER));
    assert_eq!(Ticket::new(good.body().clone(), good.secret()), Ok(good.clone()));
    assert!(Ticket::new(good.body().clone(), b"short").is_err());
    assert!(!format!("{good:?}").contains(&format!("{:?}", good.secret())), "its key is not shown");
    let many = |count| (0..count).map(|n| grant(n, 1, Access::Read)).collect::<Vec<_>>();
    let issue = |client: &str, grants| keys(&[1]).issue(CLUSTER, client, grants, NOW);
    assert!(issue(&"x".repeat(64), many(24)).is_ok_and(|most| most.body().len() <= 512));
    for (client, grants) in [("a", many(25)), ("a", many(0)), (&*"x".repeat(65), many(1))] {
        assert!(issue(client, grants).is_err());
    }
    let twice = vec![grant(1, 1, Access::Read), grant(1, 2, Access::Read)];
    assert!(issue("a", twice).is_err());
    assert!(Keys::new(&[]).is_err());
}

#[test]
fn a_client_without_a_ticket_says_so() {
    let outcome = honest(&LinkAuth::Tickets(Vec::new()), &secret(&[1]), client());
    assert!(!outcome.open && outcome.why.contains("no ticket"), "{}", outcome.why);
}

#[test]
fn no_attacker_gets_in_and_each_planted_bug_is_found() {
    for (name, attack) in attacks::ALL {
        planted::plant(None);
        assert!(!attack(), "{name}");
    }
    for bug in planted::Bug::ALL {
        planted::plant(Some(bug));
        let found: Vec<&str> =
            attacks::ALL.iter().filter(|(_, attack)| attack()).map(|(name, _)| *name).collect();
        planted::plant(None);
        println!("{bug:?}: {}", found.join(", "));
        assert!(!found.is_empty(), "no attack notices {bug:?}");
    }
}

fn auths() -> [(LinkAuth, Role); 3] {
    let shown = LinkAuth::Tickets(vec![ticket(&[1], &[grant(1, 1, Access::Write)])]);
    [(secret(&[1]), peer()), (secret(&[1]), client()), (shown, client())]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever bit of whatever message is changed, the two sides never both believe to be linked: even if the
    /// checksums are made to fit.
    #[test]
    fn a_changed_message_opens_nothing(
        which in 0..3usize,
        at_step in 0..4usize,
        bit in any::<prop::sample::Index>(),
        nonces in any::<([u8; 32], [u8; 32])>(),
    ) {
        let (dials, role) = auths()[which].clone();
        let outcome = run(&dials, &secret(&[1]), role, nonces, |step, frame| {
            over_bytes(&frame, |bytes| {
                if step == at_step {
                    let at = bit.index((bytes.len() - HEADER_BYTES) * 8);
                    bytes[HEADER_BYTES + at / 8] ^= 1 << (at % 8);
                    reseal(bytes);
                }
            })
        });
        prop_assert!(!outcome.open, "{outcome:?}");
        // Only the last message comes when the other side is content already.
        prop_assert!(outcome.admitted.is_none() || at_step == 3, "{outcome:?}");
    }

    /// No proof fits another opening: other nonces, other names, other addresses.
    #[test]
    fn no_two_openings_have_one_proof(
        first in (0..3usize, any::<([u8; 32], [u8; 32])>()),
        second in (0..3usize, any::<([u8; 32], [u8; 32])>()),
    ) {
        let proof = |(which, nonces): (usize, (Nonce, Nonce))| {
            let (dials, role) = auths()[which].clone();
            run(&dials, &secret(&[1]), role, nonces, |_, frame| Some(frame)).sent.pop()
        };
        let (a, b) = (proof(first), proof(second));
        prop_assert!(matches!(a, Some(Frame::Proof(_))));
        prop_assert_eq!(a == b, first == second);
    }

    /// Frames in any order, of any content: nothing panics, nobody is admitted.
    #[test]
    fn random_frames_admit_nobody(
        kinds in prop::collection::vec((0..24u8, prop::collection::vec(any::<u8>(), 0..200)), 1..6),
        honest_hello in any::<bool>(),
    ) {
        let mut acceptor = Acceptor::default();
        let mut outcome = Outcome::default();
        let (mut dialler, hello) =
            Dialler::start(&secret(&[1]), CLUSTER, node(2), peer(), [1; 32]).unwrap();
        if honest_hello {
            let hello = Frame::Hello(hello);
            answer(&mut acceptor, &secret(&[1]), hello, [2; 32], &mut outcome);
        }
        for (kind, body) in kinds {
            let mut bytes = b"BSLT".to_vec();
            bytes.extend([1, 0, kind, 0]);
            bytes.extend((body.len() as u32).to_le_bytes());
            bytes.extend([0; 20]);
            bytes.extend(&body);
            reseal(&mut bytes);
            let Some(frame) = decode(bytes) else { continue };
            answer(&mut acceptor, &secret(&[1]), frame.clone(), [2; 32], &mut outcome);
            prop_assert!(!matches!(dialler.receive(frame), DialStep::Open(..)));
        }
        prop_assert!(outcome.admitted.is_none());
    }

    #[test]
    fn random_bytes_are_no_ticket(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        flip in any::<prop::sample::Index>(),
    ) {
        // A version that fits, so that the reading goes on.
        let versioned = [&[1][..], &bytes].concat();
        if let Ok(read) = TicketBody::parse(&versioned) {
            prop_assert!(!read.grants.is_empty());
        }
        let good = ticket(&[1], &[grant(1, 1, Access::Write)]);
        let mut other = good.body().to_vec();
        let at = flip.index(other.len() * 8);
        other[at / 8] ^= 1 << (at % 8);
        if let Ok(changed) = Ticket::new(other.into(), good.secret()) {
            let shown = LinkAuth::Tickets(vec![changed]);
            let outcome = honest(&shown, &secret(&[1]), client());
            prop_assert!(outcome.admitted.is_none(), "{outcome:?}");
        }
    }
}
