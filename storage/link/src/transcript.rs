//! What both sides of a link say to each other before they believe each other, as one string of bytes.

use crate::key::{is_mac, mac};
use crate::planted::{self, Bug};
use basalt_wire::frame::{ClaimBy, Hello, Mac, Nonce, Role, Welcome};
use basalt_wire::ids::Address;
use bytes::{BufMut, BytesMut};
use ring::hmac;

/// Each proof has a label of its own: none passes as another.
const DIALLER: &[u8] = b"basalt link v1: the side that dialled";
const ACCEPTOR: &[u8] = b"basalt link v1: the side that answered";
const PRESENT: &[u8] = b"basalt link v1: a further ticket";
const SESSION: &[u8] = b"basalt link v1: session";

/// Everything that was said up to the challenge.
#[derive(Clone)]
pub(crate) struct Transcript(Vec<u8>);

impl Transcript {
    /// Of a `Hello` with a claim, and the nonce of the challenge.
    pub(crate) fn new(hello: &Hello, challenge: &Nonce) -> Transcript {
        let mut out = BytesMut::with_capacity(1024);
        out.put_u16_le(hello.version);
        out.put_u64_le(hello.cluster.0);
        put_address(&mut out, hello.target);
        match &hello.role {
            Role::Peer { from, boot } => {
                out.put_u8(1);
                put_address(&mut out, *from);
                out.put_u64_le(*boot);
            }
            Role::Client { name } => {
                out.put_u8(2);
                put_bytes(&mut out, name.as_bytes());
            }
        }
        if let Some(claim) = &hello.claim {
            match &claim.by {
                ClaimBy::Secret { key } => {
                    out.put_u8(1);
                    out.put_u64_le(*key);
                }
                ClaimBy::Ticket { body } => {
                    out.put_u8(2);
                    put_bytes(&mut out, body);
                }
            }
            out.extend_from_slice(&claim.nonce);
        }
        if !planted::is(Bug::NonceLeftOut) {
            out.extend_from_slice(challenge);
        }
        Transcript(out.to_vec())
    }

    /// What the side that dialled proves.
    pub(crate) fn dialler(&self, key: &hmac::Key) -> Mac {
        mac(key, &[DIALLER, &self.0])
    }

    pub(crate) fn is_dialler(&self, key: &hmac::Key, found: &Mac) -> bool {
        is_mac(key, &[DIALLER, &self.0], found) || planted::is(Bug::DiallerUnproven)
    }

    /// What the side that answers proves: also what its `Welcome` says.
    pub(crate) fn acceptor(&self, key: &hmac::Key, welcome: &Welcome) -> Mac {
        mac(key, &[ACCEPTOR, &self.0, &words(welcome)])
    }

    pub(crate) fn is_acceptor(&self, key: &hmac::Key, welcome: &Welcome) -> bool {
        let said = words(welcome);
        let right = |found| is_mac(key, &[ACCEPTOR, &self.0, &said], found);
        welcome.proof.as_ref().is_some_and(right) || planted::is(Bug::AcceptorUnproven)
    }

    /// What tells the link from all others.
    pub(crate) fn session(&self, key: &hmac::Key) -> Mac {
        mac(key, &[SESSION, &self.0])
    }
}

/// What proves on a link that a client knows the key of one more ticket.
pub(crate) fn present(key: &hmac::Key, session: &Mac, body: &[u8]) -> Mac {
    let session: &[u8] = if planted::is(Bug::PresentUnbound) { &[] } else { session };
    mac(key, &[PRESENT, session, body])
}

pub(crate) fn is_present(key: &hmac::Key, session: &Mac, body: &[u8], found: &Mac) -> bool {
    let session: &[u8] = if planted::is(Bug::PresentUnbound) { &[] } else { session };
    is_mac(key, &[PRESENT, session, body], found)
}

fn words(welcome: &Welcome) -> BytesMut {
    let mut out = BytesMut::with_capacity(64);
    out.put_u16_le(welcome.version);
    put_address(&mut out, welcome.from);
    out.put_u64_le(welcome.boot);
    out.put_u32_le(welcome.credit_bytes);
    out.put_u32_le(welcome.credit_requests);
    out
}

fn put_address(out: &mut BytesMut, address: Address) {
    out.put_u32_le(address.node.0);
    out.put_u16_le(address.shard.0);
}

fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u16_le(u16::try_from(bytes.len()).expect("names and tickets are short"));
    out.extend_from_slice(bytes);
}
