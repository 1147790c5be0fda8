//! The frames that open a link.

use super::*;

pub(super) fn handshake() -> impl Strategy<Value = Frame> {
    let role = prop_oneof![
        (address(), any::<u64>()).prop_map(|(from, boot)| Role::Peer { from, boot }),
        "\\PC{0,16}".prop_map(|name| Role::Client { name }),
    ];
    let version = || prop_oneof![Just(PROTOCOL_VERSION), any::<u16>()];
    let secret = any::<u64>().prop_map(|key| ClaimBy::Secret { key });
    let by = prop_oneof![secret, ticket().prop_map(|body| ClaimBy::Ticket { body })];
    let claim = (by, any::<[u8; 32]>()).prop_map(|(by, nonce)| Claim { by, nonce });
    let claim = prop::option::of(claim);
    let proof = prop::option::of(any::<[u8; 32]>());
    prop_oneof![
        (version(), any::<u64>(), address(), role, claim).prop_map(
            |(v, cluster, target, role, c)| {
                let claim = c.filter(|_| v == PROTOCOL_VERSION);
                Frame::Hello(Hello { version: v, cluster: ClusterId(cluster), target, role, claim })
            }
        ),
        (version(), any::<(u64, u32, u32)>(), address(), "\\PC{0,40}", proof).prop_map(
            |(version, n, from, refusal, proof)| {
                Frame::Welcome(Welcome {
                    version,
                    from,
                    boot: n.0,
                    credit_bytes: n.1,
                    credit_requests: n.2,
                    refusal,
                    proof: proof.filter(|_| version == PROTOCOL_VERSION),
                })
            }
        ),
        (any::<u16>(), any::<[u8; 32]>())
            .prop_map(|(version, nonce)| Frame::Challenge(Challenge { version, nonce })),
        any::<[u8; 32]>().prop_map(Frame::Proof),
        (ticket(), any::<[u8; 32]>())
            .prop_map(|(body, proof)| Frame::Present(Present { body, proof })),
    ]
}

fn ticket() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 1..80).prop_map(Bytes::from)
}

/// Releases that do not fit have to be able to tell each other so, whatever else they say.
#[test]
fn what_another_release_adds_to_its_handshake_is_passed_over() {
    let target = Address { node: NodeId(1), shard: ShardId(0) };
    let role = Role::Client { name: "old".to_owned() };
    let hello = Hello { version: 9, cluster: ClusterId(1), target, role, claim: None };
    let refusal = "no".to_owned();
    let (credit_bytes, credit_requests) = (1, 2);
    let (version, from, boot, proof) = (9, target, 3, None);
    let welcome = Welcome { version, from, boot, credit_bytes, credit_requests, refusal, proof };
    for frame in [Frame::Hello(hello), Frame::Welcome(welcome)] {
        let mut bytes = wire(std::slice::from_ref(&frame));
        bytes.extend(b"something new");
        let body = (bytes.len() - HEADER_BYTES) as u32;
        bytes[8..12].copy_from_slice(&body.to_le_bytes());
        reseal(&mut bytes);
        same(decode(&bytes).unwrap(), &[frame]);
    }
}
