//! What somebody on the network may try who does not know the secret. Each says whether it came through.

use super::*;

type Attack = fn() -> bool;

pub(super) const ALL: [(&str, Attack); 14] = [
    ("a proof that is made up", made_up),
    ("the key of another cluster under a name that is known", wrong_key),
    ("a handshake that was listened to, played again", replayed),
    ("a node that is none", false_node),
    ("its own proof sent back", reflected),
    ("a ticket that was changed", tampered_ticket),
    ("a ticket that has expired", expired_ticket),
    ("a ticket of another cluster", foreign_ticket),
    ("a ticket to be a node", ticket_for_a_peer),
    ("a further ticket that was listened to", present_replayed),
    ("a volume of somebody else", other_volume),
    ("the session of somebody else", other_session),
    ("writing with a ticket for reading", reader_writes),
    ("going on when the secret was exchanged", outlived),
];

fn pass(_: usize, frame: Frame) -> Option<Frame> {
    Some(frame)
}

fn made_up() -> bool {
    let outcome = run(&secret(&[1]), &secret(&[1]), peer(), ([1; 32], [2; 32]), |step, frame| {
        Some(if step == 2 { Frame::Proof([0; 32]) } else { frame })
    });
    outcome.admitted.is_some()
}

fn wrong_key() -> bool {
    // The name of a key is public, the key is not.
    let known = keys(&[1]).first_id().0;
    let outcome = run(&secret(&[7]), &secret(&[1]), peer(), ([1; 32], [2; 32]), |step, frame| {
        let Frame::Hello(mut hello) = frame else { return Some(frame) };
        assert_eq!(step, 0);
        let claim = hello.claim.as_mut().expect("it claims");
        claim.by = basalt_wire::frame::ClaimBy::Secret { key: known };
        Some(Frame::Hello(hello))
    });
    outcome.admitted.is_some() || outcome.open
}

fn replayed() -> bool {
    let good = run(&secret(&[1]), &secret(&[1]), peer(), ([1; 32], [2; 32]), pass);
    let mut outcome = Outcome::default();
    let mut acceptor = Acceptor::default();
    for frame in good.sent {
        answer(&mut acceptor, &secret(&[1]), frame, [3; 32], &mut outcome);
    }
    outcome.admitted.is_some()
}

fn false_node() -> bool {
    let (mut dialler, _) =
        Dialler::start(&secret(&[1]), CLUSTER, node(2), peer(), [1; 32]).expect("a key");
    let challenge = basalt_wire::frame::Challenge { version: PROTOCOL_VERSION, nonce: [4; 32] };
    dialler.receive(Frame::Challenge(challenge));
    let said = Welcome { proof: Some([0; 32]), ..welcome() };
    matches!(dialler.receive(Frame::Welcome(said)), DialStep::Open(..))
}

fn reflected() -> bool {
    let (mut dialler, hello) =
        Dialler::start(&secret(&[1]), CLUSTER, node(2), peer(), [1; 32]).expect("a key");
    // The nonces are the same, too: nothing but the direction tells the proofs apart.
    let nonce = hello.claim.expect("it claims").nonce;
    let challenge = basalt_wire::frame::Challenge { version: PROTOCOL_VERSION, nonce };
    let DialStep::Send(Frame::Proof(own)) = dialler.receive(Frame::Challenge(challenge)) else {
        return false;
    };
    let said = Welcome { proof: Some(own), ..welcome() };
    matches!(dialler.receive(Frame::Welcome(said)), DialStep::Open(..))
}

fn admitted_with(shown: Ticket, role: Role) -> Option<Grants> {
    let outcome = honest(&LinkAuth::Tickets(vec![shown]), &secret(&[1]), role);
    outcome.admitted.map(|admitted| admitted.grants)
}

fn tampered_ticket() -> bool {
    let own = ticket(&[1], &[grant(1, 1, Access::Read)]);
    let mut body = own.body().to_vec();
    // Access stands last.
    let last = body.len() - 1;
    body[last] = Access::Write as u8;
    let changed = Ticket::new(body.into(), own.secret()).expect("a ticket");
    let grants = admitted_with(changed, client());
    grants.is_some_and(|grants| grants.permits(&request(1, 1, unmap())).is_ok())
}

fn expired_ticket() -> bool {
    let grants = vec![grant(1, 1, Access::Write)];
    let old = keys(&[1]).issue(CLUSTER, "host", grants, NOW).expect("made");
    admitted_with(old, client()).is_some()
}

fn foreign_ticket() -> bool {
    let grants = vec![grant(1, 1, Access::Write)];
    let other = keys(&[1]).issue(ClusterId(78), "host", grants, NOW + 100).expect("made");
    admitted_with(other, client()).is_some()
}

fn ticket_for_a_peer() -> bool {
    admitted_with(ticket(&[1], &[grant(1, 1, Access::Write)]), peer()).is_some()
}

/// Two clients with a link each; one has listened to what the other one showed on its own.
fn present_replayed() -> bool {
    let own = |volume| LinkAuth::Tickets(vec![ticket(&[1], &[grant(volume, 1, Access::Write)])]);
    let link = |volume, nonce| {
        run(&own(volume), &secret(&[1]), client(), ([volume as u8; 32], nonce), pass)
    };
    let (theirs, ours) = (link(1, [5; 32]), link(2, [6; 32]));
    let (Some(theirs), Some(mut ours)) = (theirs.opened, ours.admitted) else { return false };
    let shown: Present = theirs.present(&ticket(&[1], &[grant(3, 1, Access::Write)]));
    let proven = ours.proven.clone();
    let taken = ours.grants.present(&shown, proven.as_ref(), &keys(&[1]), CLUSTER, NOW);
    taken.is_ok() && ours.grants.permits(&request(3, 1, unmap())).is_ok()
}

fn other_volume() -> bool {
    let grants = admitted_with(ticket(&[1], &[grant(1, 1, Access::Write)]), client());
    grants.is_some_and(|grants| grants.permits(&request(2, 1, unmap())).is_ok())
}

fn other_session() -> bool {
    let grants = admitted_with(ticket(&[1], &[grant(1, 1, Access::Write)]), client());
    grants.is_some_and(|grants| grants.permits(&request(1, 2, fence())).is_ok())
}

fn reader_writes() -> bool {
    let grants = admitted_with(ticket(&[1], &[grant(1, 1, Access::Read)]), client());
    grants.is_some_and(|grants| grants.permits(&request(1, 1, unmap())).is_ok())
}

fn outlived() -> bool {
    let grants = admitted_with(ticket(&[1], &[grant(1, 1, Access::Write)]), client());
    grants.is_some_and(|mut grants| grants.retain(&keys(&[2])))
}
