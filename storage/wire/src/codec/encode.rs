//! The sending half: frames into pieces of bytes.

use super::{
    BODY_BYTES_MAX, CLIENT_NAME_BYTES_MAX, HEADER_BYTES, HEADER_VERSION, MAGIC, PAYLOAD_BYTES_MAX,
    REFUSAL_BYTES_MAX, SCORE_PATHS_MAX, TICKET_BYTES_MAX, TRACED, claim, digests, kind, op,
    outcome, pages, repair, role, trace,
};
use crate::block::{BLOCK_BYTES, crc32c};
use crate::buffer::Payload;
use crate::command::BlockRange;
use crate::frame::{
    Claim, ClaimBy, Frame, Hello, NodeScore, PROTOCOL_VERSION, RaftMessage, Reply, ReplyResult,
    Request, RequestOp, Role, Welcome,
};
use crate::ids::{Address, Generation, NodeId, Term};
use crate::pages::Step;
use crate::repair::RepairStep;
use bytes::{BufMut, Bytes, BytesMut};

/// Payload pieces shorter than this are copied into the run of small fields: another entry in a
/// gathered send costs more than copying so little.
const COPY_BELOW_BYTES: usize = 512;
/// Memory taken at a time for small fields: some hundred frames of the usual 100 bytes.
const RUN_BYTES: usize = 16 << 10;

/// Collects frames for one gathered send.
#[derive(Debug, Default)]
pub struct Encoder {
    out: Vec<Bytes>,
    run: BytesMut,
    len: usize,
}

impl Encoder {
    /// An empty one.
    pub fn new() -> Encoder {
        Encoder::default()
    }

    /// Appends a frame. Its lengths must be within [`BODY_BYTES_MAX`] and [`PAYLOAD_BYTES_MAX`]: the
    /// makers of frames keep far below, and the receiver would refuse the frame.
    pub fn push(&mut self, frame: &Frame) {
        if self.run.capacity() - self.run.len() < 256 {
            self.end_run();
            self.run = BytesMut::with_capacity(RUN_BYTES);
        }
        let at = self.run.len();
        self.run.put_bytes(0, HEADER_BYTES);
        let kind = put_body(&mut self.run, frame);
        let payload_len = payload_bytes(frame);
        self.seal(at, kind, payload_len);
        self.len += self.run.len() - at + payload_len;
        self.put_payloads(frame);
    }

    /// Bytes collected.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes collected, in order; none of the pieces is empty.
    pub fn take(&mut self) -> Vec<Bytes> {
        let mut pieces = Vec::new();
        self.take_into(&mut pieces);
        pieces
    }

    /// As [`Encoder::take`], in place of what `pieces` holds; its memory is used again.
    pub fn take_into(&mut self, pieces: &mut Vec<Bytes>) {
        self.end_run();
        self.len = 0;
        pieces.clear();
        std::mem::swap(&mut self.out, pieces);
    }

    /// Fills in the header of the frame whose body ends the run.
    fn seal(&mut self, at: usize, kind: u8, payload_len: usize) {
        let (header, body) = self.run[at..].split_at_mut(HEADER_BYTES);
        assert!(body.len() <= BODY_BYTES_MAX, "a frame's body of {} bytes", body.len());
        assert!(payload_len <= PAYLOAD_BYTES_MAX, "a frame's payload of {payload_len} bytes");
        assert!(payload_len.is_multiple_of(BLOCK_BYTES), "a payload of {payload_len} bytes");
        header[0..4].copy_from_slice(&MAGIC);
        header[4..6].copy_from_slice(&HEADER_VERSION.to_le_bytes());
        header[6] = kind;
        header[8..12].copy_from_slice(&(body.len() as u32).to_le_bytes());
        header[12..16].copy_from_slice(&(payload_len as u32).to_le_bytes());
        header[24..28].copy_from_slice(&crc32c(body).to_le_bytes());
        let own = crc32c(&header[..28]);
        header[28..32].copy_from_slice(&own.to_le_bytes());
    }

    fn put_payloads(&mut self, frame: &Frame) {
        match frame {
            Frame::Raft(message) => {
                message.entries.iter().for_each(|entry| self.put_payload(&entry.payload));
            }
            Frame::Request(Request { op: RequestOp::Write { payload, .. }, .. })
            | Frame::Reply(Reply { result: ReplyResult::Data { payload, .. }, .. }) => {
                self.put_payload(payload);
            }
            Frame::Pages(pages) => {
                if let Step::Blocks { payload, .. } = &pages.step {
                    self.put_payload(payload);
                }
            }
            Frame::Repair(repair) => {
                if let RepairStep::Have { content } = &repair.step {
                    self.put_payload(content);
                }
            }
            _ => {}
        }
    }

    fn put_payload(&mut self, payload: &Payload) {
        for piece in payload.pieces() {
            if piece.len() < COPY_BELOW_BYTES {
                self.run.extend_from_slice(piece);
            } else {
                self.end_run();
                self.out.push(piece.clone());
            }
        }
    }

    fn end_run(&mut self) {
        if !self.run.is_empty() {
            self.out.push(self.run.split().freeze());
        }
    }
}

fn payload_bytes(frame: &Frame) -> usize {
    match frame {
        Frame::Raft(message) => message.entries.iter().map(|entry| entry.payload.len()).sum(),
        Frame::Request(Request { op: RequestOp::Write { payload, .. }, .. })
        | Frame::Reply(Reply { result: ReplyResult::Data { payload, .. }, .. }) => payload.len(),
        Frame::Pages(pages) => match &pages.step {
            Step::Blocks { payload, .. } => payload.len(),
            _ => 0,
        },
        Frame::Repair(repair) => match &repair.step {
            RepairStep::Have { content } => content.len(),
            _ => 0,
        },
        _ => 0,
    }
}

/// Appends the body and tells the frame's kind.
fn put_body(out: &mut BytesMut, frame: &Frame) -> u8 {
    match frame {
        Frame::Hello(hello) => {
            put_hello(out, hello);
            kind::HELLO
        }
        Frame::Welcome(welcome) => {
            put_welcome(out, welcome);
            kind::WELCOME
        }
        Frame::Challenge(challenge) => {
            out.put_u16_le(challenge.version);
            out.extend_from_slice(&challenge.nonce);
            kind::CHALLENGE
        }
        Frame::Proof(proof) => {
            out.extend_from_slice(proof);
            kind::PROOF
        }
        Frame::Present(present) => {
            put_ticket(out, &present.body);
            out.extend_from_slice(&present.proof);
            kind::PRESENT
        }
        Frame::Raft(message) => {
            put_raft(out, message);
            kind::RAFT
        }
        Frame::Request(request) => {
            put_request(out, request);
            kind::REQUEST
        }
        Frame::Reply(reply) => {
            put_reply(out, reply);
            kind::REPLY
        }
        Frame::AskLeadership { group, candidate } => {
            out.put_u32_le(group.0);
            out.put_u32_le(candidate.0);
            kind::ASK_LEADERSHIP
        }
        Frame::LogDamaged { group, node, intact } => {
            out.put_u32_le(group.0);
            out.put_u32_le(node.0);
            out.put_u64_le(intact.0);
            kind::LOG_DAMAGED
        }
        Frame::VoteLost { group, node, loss } => {
            out.put_u32_le(group.0);
            out.put_u32_le(node.0);
            out.put_u64_le(*loss);
            kind::VOTE_LOST
        }
        Frame::Readmit { group, term, index, loss } => {
            out.put_u32_le(group.0);
            out.put_u64_le(term.0);
            out.put_u64_le(index.0);
            out.put_u64_le(*loss);
            kind::READMIT
        }
        Frame::Sleep { group, term, commit } => {
            out.put_u32_le(group.0);
            out.put_u64_le(term.0);
            out.put_u64_le(commit.0);
            kind::SLEEP
        }
        Frame::Score(score) => {
            put_score(out, score);
            kind::SCORE
        }
        Frame::Ping { nonce } => {
            out.put_u64_le(*nonce);
            kind::PING
        }
        Frame::Pong { nonce } => {
            out.put_u64_le(*nonce);
            kind::PONG
        }
        Frame::Pages(message) => {
            pages::put(out, message);
            kind::PAGES
        }
        Frame::Repair(message) => {
            repair::put(out, message);
            kind::REPAIR
        }
        Frame::Digests(message) => {
            digests::put(out, message);
            kind::DIGESTS
        }
        Frame::Watch(watch) => {
            trace::put_watch(out, watch);
            kind::WATCH
        }
        Frame::Watched(watched) => {
            trace::put_watched(out, watched);
            kind::WATCHED
        }
    }
}

fn put_score(out: &mut BytesMut, score: &NodeScore) {
    out.put_u32_le(score.window);
    for nanos in [score.write_nanos, score.read_nanos] {
        out.put_u64_le(nanos);
    }
    for nanos in [score.stamp, score.echo, score.held_nanos, score.late_nanos] {
        out.put_u64_le(nanos);
    }
    let paths = &score.paths[..score.paths.len().min(SCORE_PATHS_MAX)];
    out.put_u16_le(paths.len() as u16);
    for (node, nanos) in paths {
        out.put_u32_le(node.0);
        out.put_u64_le(*nanos);
    }
}

fn put_address(out: &mut BytesMut, address: Address) {
    out.put_u32_le(address.node.0);
    out.put_u16_le(address.shard.0);
}

fn put_range(out: &mut BytesMut, range: BlockRange) {
    out.put_u64_le(range.block);
    out.put_u32_le(range.count);
}

fn put_checksums(out: &mut BytesMut, checksums: &[u32]) {
    out.reserve(checksums.len() * 4);
    checksums.iter().for_each(|checksum| out.put_u32_le(*checksum));
}

/// The longest beginning of `text` of at most `max` bytes: names and refusals are for people, and
/// cutting one is better than losing the link over it.
fn cut(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

fn put_hello(out: &mut BytesMut, hello: &Hello) {
    out.put_u16_le(hello.version);
    out.put_u64_le(hello.cluster.0);
    put_address(out, hello.target);
    match &hello.role {
        Role::Peer { from, boot } => {
            out.put_u8(role::PEER);
            put_address(out, *from);
            out.put_u64_le(*boot);
        }
        Role::Client { name } => {
            let name = cut(name, CLIENT_NAME_BYTES_MAX);
            out.put_u8(role::CLIENT);
            out.put_u16_le(name.len() as u16);
            out.extend_from_slice(name.as_bytes());
        }
    }
    if hello.version == PROTOCOL_VERSION {
        put_claim(out, hello.claim.as_ref());
    }
}

fn put_claim(out: &mut BytesMut, claim: Option<&Claim>) {
    let Some(claim) = claim else { return out.put_u8(claim::NONE) };
    match &claim.by {
        ClaimBy::Secret { key } => {
            out.put_u8(claim::SECRET);
            out.put_u64_le(*key);
        }
        ClaimBy::Ticket { body } => {
            out.put_u8(claim::TICKET);
            put_ticket(out, body);
        }
    }
    out.extend_from_slice(&claim.nonce);
}

fn put_ticket(out: &mut BytesMut, body: &Bytes) {
    assert!(body.len() <= TICKET_BYTES_MAX, "a ticket of {} bytes", body.len());
    out.put_u16_le(body.len() as u16);
    out.extend_from_slice(body);
}

fn put_welcome(out: &mut BytesMut, welcome: &Welcome) {
    let refusal = cut(&welcome.refusal, REFUSAL_BYTES_MAX);
    out.put_u16_le(welcome.version);
    put_address(out, welcome.from);
    out.put_u64_le(welcome.boot);
    out.put_u32_le(welcome.credit_bytes);
    out.put_u32_le(welcome.credit_requests);
    out.put_u16_le(refusal.len() as u16);
    out.extend_from_slice(refusal.as_bytes());
    if let Some(proof) = welcome.proof.filter(|_| welcome.version == PROTOCOL_VERSION) {
        out.extend_from_slice(&proof);
    }
}

fn put_raft(out: &mut BytesMut, m: &RaftMessage) {
    out.put_u32_le(m.group.0);
    out.put_u8(m.kind);
    out.put_u8(u8::from(m.reject));
    out.put_u32_le(m.from.0);
    out.put_u32_le(m.to.0);
    let numbers = [m.term.0, m.log_term.0, m.index.0, m.commit.0, m.commit_term.0, m.reject_hint.0];
    numbers.iter().for_each(|number| out.put_u64_le(*number));
    out.put_i64_le(m.priority);
    out.put_u64_le(m.request_snapshot.0);
    out.put_u16_le(u16::try_from(m.context.len()).expect("a Raft context is short"));
    out.put_u32_le(m.entries.len() as u32);
    out.extend_from_slice(&m.context);
    for entry in &m.entries {
        assert!(entry.payload.len().is_multiple_of(BLOCK_BYTES), "an entry's payload is in blocks");
        out.put_u8(entry.kind);
        out.put_u64_le(entry.term.0);
        out.put_u64_le(entry.index.0);
        out.put_u32_le(entry.data.len() as u32);
        out.put_u32_le((entry.payload.len() / BLOCK_BYTES) as u32);
    }
    m.entries.iter().for_each(|entry| out.extend_from_slice(&entry.data));
}

fn put_request(out: &mut BytesMut, request: &Request) {
    out.put_u64_le(request.id.0);
    out.put_u32_le(request.group.0);
    out.put_u64_le(request.volume.0);
    out.put_u64_le(request.epoch.0);
    out.put_u64_le(request.incarnation.0);
    out.put_u8(request.priority as u8);
    let op_at = out.len();
    put_request_op(out, &request.op);
    if request.traced {
        out[op_at] |= TRACED;
    }
}

fn put_request_op(out: &mut BytesMut, op: &RequestOp) {
    match op {
        RequestOp::Write { term, generation, range, checksums, payload: _ } => {
            out.put_u8(op::WRITE);
            out.put_u64_le(term.0);
            out.put_u32_le(generation.0);
            put_range(out, *range);
            put_checksums(out, checksums);
        }
        RequestOp::Unmap { term, generation, range } => {
            out.put_u8(op::UNMAP);
            out.put_u64_le(term.0);
            out.put_u32_le(generation.0);
            put_range(out, *range);
        }
        RequestOp::Read { range, floor, snapshot } => {
            put_read(out, op::READ, *range, floor.0, *snapshot);
        }
        RequestOp::Extents { range, floor, snapshot } => {
            put_read(out, op::EXTENTS, *range, floor.0, *snapshot);
        }
        RequestOp::Changes { range, floor, since, snapshot } => {
            put_read(out, op::CHANGES, *range, floor.0, *snapshot);
            out.put_u32_le(since.0);
        }
        RequestOp::Fence { term, generation } => put_control(out, op::FENCE, *term, *generation),
        RequestOp::Freeze { term, generation } => put_control(out, op::FREEZE, *term, *generation),
        RequestOp::CloseGate { term, generation } => {
            put_control(out, op::CLOSE_GATE, *term, *generation);
        }
        RequestOp::OpenGate { term, generation } => {
            put_control(out, op::OPEN_GATE, *term, *generation);
        }
        RequestOp::DropSnapshot { term, generation } => {
            put_control(out, op::DROP_SNAPSHOT, *term, *generation);
        }
        RequestOp::Revert { term, generation } => put_control(out, op::REVERT, *term, *generation),
        RequestOp::Delete { term } => {
            out.put_u8(op::DELETE);
            out.put_u64_le(term.0);
        }
        RequestOp::Clone { term, parent } => {
            put_control(out, op::CLONE, *term, parent.generation);
            out.put_u64_le(parent.volume.0);
        }
        RequestOp::Fill { term, parent, range } => {
            put_control(out, op::FILL, *term, parent.generation);
            out.put_u64_le(parent.volume.0);
            put_range(out, *range);
        }
        RequestOp::Detach { term, parent } => {
            put_control(out, op::DETACH, *term, parent.generation);
            out.put_u64_le(parent.volume.0);
        }
        RequestOp::Leader => out.put_u8(op::LEADER),
    }
}

fn put_read(
    out: &mut BytesMut,
    op: u8,
    range: BlockRange,
    floor: u64,
    snapshot: Option<Generation>,
) {
    out.put_u8(op);
    put_range(out, range);
    out.put_u64_le(floor);
    out.put_u8(u8::from(snapshot.is_some()));
    out.put_u32_le(snapshot.unwrap_or_default().0);
}

fn put_control(out: &mut BytesMut, op: u8, term: Term, generation: Generation) {
    out.put_u8(op);
    out.put_u64_le(term.0);
    out.put_u32_le(generation.0);
}

fn put_reply(out: &mut BytesMut, reply: &Reply) {
    out.put_u64_le(reply.id.0);
    out.put_u32_le(reply.group.0);
    let outcome_at = out.len();
    put_result(out, &reply.result);
    if let Some(trace) = &reply.trace {
        out[outcome_at] |= TRACED;
        trace::put(out, trace);
    }
}

fn put_result(out: &mut BytesMut, result: &ReplyResult) {
    match result {
        ReplyResult::Done { index } => {
            out.put_u8(outcome::DONE);
            out.put_u64_le(index.0);
        }
        ReplyResult::Data { index, checksums, payload: _ } => {
            out.put_u8(outcome::DATA);
            out.put_u64_le(index.0);
            out.put_u32_le(checksums.len() as u32);
            put_checksums(out, checksums);
        }
        ReplyResult::Extents { index, runs } => {
            out.put_u8(outcome::EXTENTS);
            out.put_u64_le(index.0);
            out.put_u32_le(runs.len() as u32);
            runs.iter().for_each(|(count, mapped)| {
                out.put_u32_le(count << 1 | u32::from(*mapped));
            });
        }
        ReplyResult::Leader { leader, term } => {
            out.put_u8(outcome::LEADER);
            out.put_u32_le(leader.unwrap_or(NodeId(0)).0);
            out.put_u64_le(term.0);
        }
        ReplyResult::Refused(refusal) => {
            out.put_u8(outcome::REFUSED);
            out.put_u8(*refusal as u8);
        }
        ReplyResult::Unknown => out.put_u8(outcome::UNKNOWN),
    }
}
