//! A model of a client: what it asked and what it may expect, under any cut of the stream.

use super::*;
use crate::ExportInfo;
use crate::proto;
use basalt_wire::buffer::Payload;
use proptest::prelude::*;
use std::collections::BTreeMap;

const SIZE: u64 = 1 << 20;

struct One;

impl Catalog for One {
    fn find(&self, name: &str) -> Option<ExportInfo> {
        let info = ExportInfo {
            id: 5,
            name: "vol".into(),
            description: "".into(),
            size: SIZE,
            read_only: name == "fixed",
            tls_only: false,
            full: false,
        };
        matches!(name, "vol" | "fixed").then_some(info)
    }

    fn each(&self, visit: &mut dyn FnMut(&ExportInfo)) {
        visit(&self.find("vol").expect("it is there"));
    }
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = proto::OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

fn hello() -> Vec<u8> {
    let mut bytes = 3u32.to_be_bytes().to_vec();
    bytes.extend(option(proto::option::EXPORT_NAME, b"vol"));
    bytes
}

fn request(kind: u16, flags: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = proto::REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    if kind == proto::command::WRITE && len <= 1 << 16 {
        bytes.extend(std::iter::repeat_n(cookie as u8, len as usize));
    }
    bytes
}

fn result_of(op: &BlockOp) -> Result<BlockResult, BlockError> {
    Ok(match op {
        BlockOp::Read { offset, len } => {
            let data = vec![*offset as u8; *len as usize];
            BlockResult::Data(Payload::from(Bytes::from(data)))
        }
        BlockOp::Extents { len, .. } => BlockResult::Extents(vec![(*len, true)]),
        _ => BlockResult::Done,
    })
}

fn taken(session: &mut Session) -> Vec<u8> {
    let mut pieces = Vec::new();
    session.take_output(&mut pieces);
    pieces.concat()
}

fn session_with(config: SessionConfig) -> Session {
    let mut session = Session::new(Arc::new(config));
    let mut out = Vec::new();
    session.receive(Bytes::from(hello()), &One, &mut out);
    assert_eq!((session.export(), out.len()), (Some(5), 0));
    taken(&mut session);
    session
}

/// Simple replies by cookie: error and data. `reads` tells how much data a read of a cookie has.
fn replies(mut bytes: &[u8], reads: &BTreeMap<u64, u32>) -> Vec<(u64, u32)> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        assert_eq!(bytes[..4], proto::SIMPLE_REPLY_MAGIC.to_be_bytes());
        let error = u32::from_be_bytes(bytes[4..8].try_into().expect("four bytes"));
        let cookie = u64::from_be_bytes(bytes[8..16].try_into().expect("eight bytes"));
        let data = if error == 0 { reads.get(&cookie).copied().unwrap_or(0) } else { 0 };
        bytes = &bytes[16 + data as usize..];
        found.push((cookie, error));
    }
    found
}

#[test]
fn data_of_a_write_is_shared_with_the_chunk() {
    let mut session = session_with(SessionConfig::default());
    let chunk = Bytes::from([request(1, 0, 1, 0, 4096), request(1, 0, 2, 4096, 4096)].concat());
    let mut out = Vec::new();
    session.receive(chunk.clone(), &One, &mut out);
    assert_eq!(out.len(), 2);
    let BlockOp::Write { data, .. } = &out[1].op else { panic!("a write") };
    assert_eq!(data.pieces()[0].as_ptr(), chunk[28 + 4096 + 28..].as_ptr());
}

#[test]
fn bounds_pause_and_completions_resume() {
    let config = SessionConfig { in_flight_max: 8192, requests_max: 3, ..SessionConfig::default() };
    let mut session = session_with(config);
    let mut out = Vec::new();
    let all: Vec<u8> = (0..4).flat_map(|n| request(0, 0, n, 0, 4096)).collect();
    session.receive(Bytes::from(all), &One, &mut out);
    assert_eq!((out.len(), session.paused(), session.outstanding()), (2, true, 2));
    let first = out.remove(0);
    session.complete(first.slot, result_of(&first.op), &mut out);
    assert_eq!((out.len(), session.paused()), (2, true));
    for done in std::mem::take(&mut out) {
        session.complete(done.slot, result_of(&done.op), &mut out);
    }
    assert!(!session.paused());
    // One request is always admitted, however long it is.
    let done = out.remove(0);
    session.complete(done.slot, result_of(&done.op), &mut out);
    session.receive(Bytes::from(request(0, 0, 9, 0, 65536)), &One, &mut out);
    assert_eq!((out.len(), session.paused()), (1, false));
}

#[test]
fn a_held_session_takes_nothing() {
    let mut session = session_with(SessionConfig::default());
    let mut out = Vec::new();
    session.hold(true, &One, &mut out);
    session.receive(Bytes::from(request(0, 0, 1, 0, 4096)), &One, &mut out);
    assert!(out.is_empty() && session.paused());
    session.hold(false, &One, &mut out);
    assert_eq!((out.len(), session.paused()), (1, false));
}

#[test]
fn withdrawal_answers_everything() {
    let mut session = session_with(SessionConfig::default());
    let mut out = Vec::new();
    let all = [request(0, 0, 1, 0, 512), request(3, 0, 2, 0, 0)].concat();
    session.receive(Bytes::from(all), &One, &mut out);
    session.withdraw();
    assert!(session.closed());
    let late = &out[0];
    session.complete(late.slot, result_of(&late.op), &mut Vec::new());
    let errors = replies(&taken(&mut session), &BTreeMap::new());
    assert_eq!(errors, [(1, 108), (2, 108)]);
}

#[test]
fn disconnect_waits_for_the_last_reply() {
    let mut session = session_with(SessionConfig::default());
    let mut out = Vec::new();
    let all = [request(3, 0, 1, 0, 0), request(2, 0, 2, 0, 0), request(3, 0, 3, 0, 0)].concat();
    session.receive(Bytes::from(all), &One, &mut out);
    assert_eq!((out.len(), session.closed()), (1, false));
    session.complete(out[0].slot, Ok(BlockResult::Done), &mut Vec::new());
    assert!(session.closed());
    assert_eq!(replies(&taken(&mut session), &BTreeMap::new()), [(1, 0)]);
    assert_eq!(session.reason(), "");
}

#[test]
fn wrong_answers_of_a_volume_are_errors() {
    let mut session = session_with(SessionConfig::default());
    let mut out = Vec::new();
    session.receive(Bytes::from(request(0, 0, 1, 0, 4096)), &One, &mut out);
    let short = BlockResult::Data(Payload::from(Bytes::from_static(b"short")));
    session.complete(out[0].slot, Ok(short), &mut Vec::new());
    assert_eq!(replies(&taken(&mut session), &BTreeMap::new()), [(1, 5)]);
}

#[test]
fn a_client_that_pipelines_options_without_end_is_cut_off() {
    let mut session = Session::new(Arc::new(SessionConfig::default()));
    let mut bytes = 3u32.to_be_bytes().to_vec();
    (0..2000).for_each(|_| bytes.extend(option(proto::option::LIST, &[])));
    session.receive(Bytes::from(bytes), &One, &mut Vec::new());
    assert!(session.closed());
}

#[derive(Clone, Debug)]
struct Asked {
    kind: u16,
    flags: u16,
    offset: u64,
    len: u32,
}

fn asked() -> impl Strategy<Value = Asked> {
    let kind =
        prop_oneof![4 => 0u16..8, 1 => any::<u16>()].prop_map(|k| if k == 2 { 0 } else { k });
    let flags = prop_oneof![4 => Just(0u16), 1 => 0u16..64];
    let offset =
        prop_oneof![4 => (0u64..256).prop_map(|n| n * 4096), 1 => 0..SIZE + 9, 1 => any::<u64>()];
    let len = prop_oneof![4 => (0u32..16).prop_map(|n| n * 512), 1 => 0u32..65536];
    (kind, flags, offset, len).prop_map(|(kind, flags, offset, len)| Asked {
        kind,
        flags,
        offset,
        len,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Every request is answered exactly once, and the answers do not depend on how the stream was
    /// cut or in which order operations end.
    #[test]
    fn every_request_is_answered_once(
        asked in proptest::collection::vec(asked(), 1..40),
        cuts in proptest::collection::vec(1usize..5000, 1..30),
        order in any::<u64>(),
        fail in any::<bool>(),
    ) {
        let config = SessionConfig { requests_max: 8, in_flight_max: 1 << 16, ..SessionConfig::default() };
        let mut session = session_with(config);
        let mut reads = BTreeMap::new();
        let mut stream = Vec::new();
        for (cookie, a) in asked.iter().enumerate() {
            stream.extend(request(a.kind, a.flags, cookie as u64, a.offset, a.len));
            if a.kind == proto::command::READ {
                reads.insert(cookie as u64, a.len);
            }
        }
        let (mut at, mut cut, mut turn) = (0, cuts.iter().cycle(), order);
        let (mut pending, mut said) = (Vec::new(), Vec::new());
        while at < stream.len() || !pending.is_empty() {
            turn = turn.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            if at < stream.len() && !session.paused() && (pending.is_empty() || turn >> 63 == 0) {
                let end = (at + cut.next().expect("a cycle")).min(stream.len());
                session.receive(Bytes::copy_from_slice(&stream[at..end]), &One, &mut pending);
                at = end;
            } else {
                prop_assert!(!pending.is_empty(), "paused without anything to wait for");
                let done: Submission = pending.swap_remove((turn >> 33) as usize % pending.len());
                let result = if fail { Err(BlockError::NoSpace) } else { result_of(&done.op) };
                session.complete(done.slot, result, &mut pending);
            }
            prop_assert!(session.outstanding() <= 8);
            said.extend(taken(&mut session));
        }
        prop_assert!(!session.closed());
        let mut cookies: Vec<u64> = replies(&said, &reads).iter().map(|(cookie, _)| *cookie).collect();
        cookies.sort_unstable();
        prop_assert_eq!(cookies, (0..asked.len() as u64).collect::<Vec<_>>());
    }

    /// Nothing that a client sends makes a session panic or hold more than it may.
    #[test]
    fn garbage_never_panics(
        flips in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..8), 0..20),
        noise in proptest::collection::vec(any::<u8>(), 0..300),
        which in 0usize..4,
        cut in 1usize..200,
    ) {
        let mut stream = 3u32.to_be_bytes().to_vec();
        let go = [&3u32.to_be_bytes()[..], b"vol", &1u16.to_be_bytes(), &3u16.to_be_bytes()].concat();
        let meta = [&3u32.to_be_bytes()[..], b"vol", &1u32.to_be_bytes(), &15u32.to_be_bytes(),
            b"base:allocation"].concat();
        match which {
            0 => stream = hello(),
            1 => stream.extend(option(proto::option::STRUCTURED_REPLY, &[])),
            _ => stream.extend(option(proto::option::EXTENDED_HEADERS, &[])),
        }
        if which > 0 {
            stream.extend(option(proto::option::SET_META_CONTEXT, &meta));
            stream.extend(option(proto::option::GO, &go));
        }
        if which == 3 {
            let status: Vec<u8> = [0x21e4_1c71u32.to_be_bytes(), [0, 32, 0, 7], [0; 4], [0; 4],
                [0; 4], [0; 4], [0; 4], [0, 0, 0, 12], [0; 4], [0, 0, 16, 0], [0, 0, 0, 1]].concat();
            stream.extend(status);
        }
        (0..5).for_each(|n| stream.extend(request(n, 0, n.into(), 4096, 4096)));
        stream.extend(noise);
        for (at, bit) in flips {
            let at = at.index(stream.len());
            stream[at] ^= 1 << bit;
        }
        let mut session = Session::new(Arc::new(SessionConfig::default()));
        let mut pending = Vec::new();
        for chunk in stream.chunks(cut) {
            session.receive(Bytes::copy_from_slice(chunk), &One, &mut pending);
            let mut steps = 0;
            while let Some(done) = pending.pop() {
                steps += 1;
                prop_assert!(steps < 10_000);
                session.complete(done.slot, result_of(&done.op), &mut pending);
            }
            taken(&mut session);
        }
    }
}
