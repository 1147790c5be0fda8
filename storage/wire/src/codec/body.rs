//! A frame's body, field by field: every number is checked where it is read.

use super::{
    BLOCK_END_MAX, CLIENT_NAME_BYTES_MAX, CONTEXT_BYTES_MAX, CodecError, RAFT_ENTRY_KIND_MAX,
    RAFT_MESSAGE_KIND_MAX, REFUSAL_BYTES_MAX, SCORE_PATHS_MAX, TICKET_BYTES_MAX, TRACED, claim,
    digests, kind, op, outcome, pages, repair, role, trace,
};
use crate::block::{BLOCK_BYTES, CHUNK_BLOCKS, COMMAND_BLOCKS_MAX};
use crate::buffer::Payload;
use crate::command::BlockRange;
use crate::frame::{
    Challenge, Claim, ClaimBy, Frame, Hello, NodeScore, PROTOCOL_VERSION, Present, Priority,
    RaftEntry, RaftMessage, Refusal, Reply, ReplyResult, Request, RequestOp, Role, Welcome,
};
use crate::ids::{
    Address, ClusterId, Epoch, Generation, GroupId, Incarnation, LogIndex, NodeId, RequestId,
    ShardId, SnapshotId, Term, VolumeId,
};
use crate::pages::Step;
use crate::repair::RepairStep;
use bytes::Bytes;

pub(super) type Result<T> = std::result::Result<T, CodecError>;

/// Reads fields from the front of some bytes.
pub(crate) struct Reader<'a> {
    bytes: &'a Bytes,
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a Bytes) -> Reader<'a> {
        Reader { bytes, at: 0 }
    }

    pub(crate) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn fixed<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N]> {
        match self.bytes[self.at..].first_chunk::<N>() {
            Some(bytes) => {
                self.at += N;
                Ok(*bytes)
            }
            None => Err(CodecError::Short { field, need: N as u64, left: self.left() as u64 }),
        }
    }

    pub(crate) fn u8(&mut self, field: &'static str) -> Result<u8> {
        self.fixed::<1>(field).map(|bytes| bytes[0])
    }

    pub(crate) fn u16(&mut self, field: &'static str) -> Result<u16> {
        self.fixed(field).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32> {
        self.fixed(field).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, field: &'static str) -> Result<u64> {
        self.fixed(field).map(u64::from_le_bytes)
    }

    /// The next `len` bytes, borrowed.
    pub(crate) fn slice(&mut self, field: &'static str, len: usize) -> Result<&'a [u8]> {
        self.need(field, len as u64)?;
        self.at += len;
        Ok(&self.bytes[self.at - len..self.at])
    }

    /// The next `len` bytes, sharing memory.
    pub(crate) fn bytes(&mut self, field: &'static str, len: usize) -> Result<Bytes> {
        self.slice(field, len).map(|slice| self.bytes.slice_ref(slice))
    }

    /// Checks that `need` bytes are left, before anything is allocated for them.
    pub(crate) fn need(&self, field: &'static str, need: u64) -> Result<()> {
        let left = self.left() as u64;
        if need > left { Err(CodecError::Short { field, need, left }) } else { Ok(()) }
    }

    pub(crate) fn checksums(&mut self, count: u32) -> Result<Vec<u32>> {
        let bytes = self.slice("checksums", count as usize * 4)?;
        Ok(numbers(bytes).collect())
    }

    /// A range of 1 to `max` blocks within one chunk.
    pub(crate) fn range(&mut self, field: &'static str, max: u64) -> Result<BlockRange> {
        let block = self.u64(field)?;
        let count = self.u32(field)?;
        check_range(field, block, count, max)?;
        Ok(BlockRange { block, count })
    }

    /// Passes over what is left.
    fn skip(&mut self) {
        self.at = self.bytes.len();
    }

    pub(crate) fn end(self, what: &'static str) -> Result<()> {
        match self.left() as u64 {
            0 => Ok(()),
            left => Err(CodecError::Trailing { what, left }),
        }
    }

    fn text(&mut self, field: &'static str, max: usize) -> Result<String> {
        let len = usize::from(self.u16(field)?);
        bounded(field, len as u64, 0, max as u64)?;
        let bytes = self.slice(field, len)?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| CodecError::Text { field })
    }

    fn node(&mut self, field: &'static str) -> Result<NodeId> {
        let node = self.u32(field)?;
        bounded(field, u64::from(node), 1, u64::from(u32::MAX))?;
        Ok(NodeId(node))
    }

    fn address(&mut self, field: &'static str) -> Result<Address> {
        Ok(Address { node: self.node(field)?, shard: ShardId(self.u16(field)?) })
    }

    pub(super) fn group(&mut self) -> Result<GroupId> {
        self.u32("group").map(GroupId)
    }

    pub(super) fn term(&mut self) -> Result<Term> {
        self.u64("term").map(Term)
    }

    pub(super) fn index(&mut self, field: &'static str) -> Result<LogIndex> {
        self.u64(field).map(LogIndex)
    }
}

/// Little-endian numbers of 32 bits.
pub(crate) fn numbers(bytes: &[u8]) -> impl ExactSizeIterator<Item = u32> + Clone + '_ {
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

/// Checks `min <= value <= max`.
pub(crate) fn bounded(field: &'static str, value: u64, min: u64, max: u64) -> Result<()> {
    if (min..=max).contains(&value) {
        Ok(())
    } else {
        Err(CodecError::OutOfBounds { field, value, min, max })
    }
}

fn equal(field: &'static str, value: u64, expected: u64) -> Result<()> {
    if value == expected { Ok(()) } else { Err(CodecError::Mismatch { field, value, expected }) }
}

pub(crate) fn check_range(field: &'static str, block: u64, count: u32, max: u64) -> Result<()> {
    bounded(field, u64::from(count), 1, max)?;
    bounded(field, block, 0, BLOCK_END_MAX - 1)?;
    if block % CHUNK_BLOCKS + u64::from(count) > CHUNK_BLOCKS {
        return Err(CodecError::AcrossChunk { field, block, count });
    }
    Ok(())
}

/// A body's frame. `payload` gives the next bytes of the frame's payload, of which there are
/// `payload_len`; it is called for exactly that many, and only once all lengths were found to agree.
pub(super) fn parse(
    kind: u8,
    body: &Bytes,
    payload_len: usize,
    payload: &mut dyn FnMut(usize) -> Payload,
) -> Result<Frame> {
    let mut r = Reader::new(body);
    let (frame, want) = match kind {
        kind::HELLO => (Frame::Hello(hello(&mut r)?), 0),
        kind::WELCOME => (Frame::Welcome(welcome(&mut r)?), 0),
        kind::CHALLENGE => {
            let (version, nonce) = (r.u16("protocol version")?, r.fixed("nonce")?);
            (Frame::Challenge(Challenge { version, nonce }), 0)
        }
        kind::PROOF => (Frame::Proof(r.fixed("proof")?), 0),
        kind::PRESENT => {
            let (body, proof) = (ticket(&mut r)?, r.fixed("proof")?);
            (Frame::Present(Present { body, proof }), 0)
        }
        kind::RAFT => return raft(r, payload_len, payload).map(Frame::Raft),
        kind::REQUEST => {
            let request = request(&mut r)?;
            let want = request_blocks(&request.op);
            (Frame::Request(request), want)
        }
        kind::REPLY => {
            let reply = reply(&mut r)?;
            let want = reply_blocks(&reply.result);
            (Frame::Reply(reply), want)
        }
        kind::PAGES => {
            let pages = pages::parse(&mut r)?;
            let want = pages::payload_blocks(&pages);
            (Frame::Pages(Box::new(pages)), want)
        }
        kind::REPAIR => {
            let repair = repair::parse(&mut r)?;
            let want = repair::payload_blocks(&repair);
            (Frame::Repair(Box::new(repair)), want)
        }
        kind::DIGESTS => (Frame::Digests(Box::new(digests::parse(&mut r)?)), 0),
        _ => (small(kind, &mut r)?, 0),
    };
    r.end("frame's body")?;
    equal("payload length", payload_len as u64, want as u64 * BLOCK_BYTES as u64)?;
    Ok(with_payload(frame, payload_len, payload))
}

fn with_payload(
    mut frame: Frame,
    payload_len: usize,
    take: &mut dyn FnMut(usize) -> Payload,
) -> Frame {
    match &mut frame {
        Frame::Request(Request { op: RequestOp::Write { payload, .. }, .. })
        | Frame::Reply(Reply { result: ReplyResult::Data { payload, .. }, .. }) => {
            *payload = take(payload_len);
        }
        Frame::Pages(pages) => {
            if let Step::Blocks { payload, .. } = &mut pages.step {
                *payload = take(payload_len);
            }
        }
        Frame::Repair(repair) => {
            if let RepairStep::Have { content } = &mut repair.step {
                *content = take(payload_len);
            }
        }
        _ => {}
    }
    frame
}

fn request_blocks(op: &RequestOp) -> usize {
    match op {
        RequestOp::Write { checksums, .. } => checksums.len(),
        _ => 0,
    }
}

fn reply_blocks(result: &ReplyResult) -> usize {
    match result {
        ReplyResult::Data { checksums, .. } => checksums.len(),
        _ => 0,
    }
}

fn small(kind: u8, r: &mut Reader<'_>) -> Result<Frame> {
    Ok(match kind {
        kind::ASK_LEADERSHIP => {
            Frame::AskLeadership { group: r.group()?, candidate: r.node("candidate")? }
        }
        kind::LOG_DAMAGED => Frame::LogDamaged {
            group: r.group()?,
            node: r.node("node")?,
            intact: r.index("intact index")?,
        },
        kind::VOTE_LOST => {
            Frame::VoteLost { group: r.group()?, node: r.node("node")?, loss: r.u64("loss")? }
        }
        kind::READMIT => Frame::Readmit {
            group: r.group()?,
            term: r.term()?,
            index: r.index("index")?,
            loss: r.u64("loss")?,
        },
        kind::SLEEP => {
            Frame::Sleep { group: r.group()?, term: r.term()?, commit: r.index("commit index")? }
        }
        kind::SCORE => Frame::Score(score(r)?),
        kind::WATCH => Frame::Watch(trace::watch(r)?),
        kind::WATCHED => Frame::Watched(trace::watched(r)?),
        kind::PING => Frame::Ping { nonce: r.u64("nonce")? },
        kind::PONG => Frame::Pong { nonce: r.u64("nonce")? },
        _ => {
            let max = u64::from(kind::MAX);
            return Err(CodecError::OutOfBounds {
                field: "frame kind",
                value: u64::from(kind),
                min: 1,
                max,
            });
        }
    })
}

fn score(r: &mut Reader<'_>) -> Result<NodeScore> {
    let mut score = NodeScore {
        window: r.u32("window")?,
        write_nanos: r.u64("nanoseconds of a write")?,
        read_nanos: r.u64("nanoseconds of a read")?,
        stamp: r.u64("stamp")?,
        echo: r.u64("echo")?,
        held_nanos: r.u64("nanoseconds held")?,
        late_nanos: r.u64("nanoseconds late")?,
        paths: Vec::new(),
    };
    bounded("stamp", score.stamp, 1, u64::MAX)?;
    let count = r.u16("number of paths")?;
    bounded("number of paths", u64::from(count), 0, SCORE_PATHS_MAX as u64)?;
    r.need("paths", u64::from(count) * PATH_BYTES)?;
    score.paths.reserve_exact(usize::from(count));
    for _ in 0..count {
        score.paths.push((r.node("peer")?, r.u64("nanoseconds of a path")?));
    }
    Ok(score)
}

fn hello(r: &mut Reader<'_>) -> Result<Hello> {
    let version = r.u16("protocol version")?;
    let cluster = ClusterId(r.u64("cluster")?);
    let target = r.address("target")?;
    let role = match r.u8("role")? {
        role::PEER => Role::Peer { from: r.address("from")?, boot: r.u64("boot")? },
        role::CLIENT => Role::Client { name: r.text("client name", CLIENT_NAME_BYTES_MAX)? },
        other => {
            let value = u64::from(other);
            return Err(CodecError::OutOfBounds { field: "role", value, min: 1, max: 2 });
        }
    };
    if version != PROTOCOL_VERSION {
        // What else another release says is its own matter; it is refused by its version.
        r.skip();
        return Ok(Hello { version, cluster, target, role, claim: None });
    }
    let by = match r.u8("claim")? {
        claim::NONE => return Ok(Hello { version, cluster, target, role, claim: None }),
        claim::SECRET => ClaimBy::Secret { key: r.u64("key")? },
        claim::TICKET => ClaimBy::Ticket { body: ticket(r)? },
        other => {
            let value = u64::from(other);
            return Err(CodecError::OutOfBounds { field: "claim", value, min: 0, max: 2 });
        }
    };
    let claim = Some(Claim { by, nonce: r.fixed("nonce")? });
    Ok(Hello { version, cluster, target, role, claim })
}

fn ticket(r: &mut Reader<'_>) -> Result<Bytes> {
    let len = usize::from(r.u16("ticket")?);
    bounded("ticket", len as u64, 1, TICKET_BYTES_MAX as u64)?;
    // Copied: it is kept as long as its link, and must not hold a receive buffer.
    r.slice("ticket", len).map(Bytes::copy_from_slice)
}

fn welcome(r: &mut Reader<'_>) -> Result<Welcome> {
    let mut welcome = Welcome {
        version: r.u16("protocol version")?,
        from: r.address("from")?,
        boot: r.u64("boot")?,
        credit_bytes: r.u32("credit in bytes")?,
        credit_requests: r.u32("credit in requests")?,
        refusal: r.text("refusal", REFUSAL_BYTES_MAX)?,
        proof: None,
    };
    if welcome.version != PROTOCOL_VERSION {
        r.skip();
    } else if r.left() > 0 {
        welcome.proof = Some(r.fixed("proof")?);
    }
    Ok(welcome)
}

/// Bytes of a path: node, nanoseconds.
const PATH_BYTES: u64 = 4 + 8;
/// Bytes of an entry's descriptor: kind, term, index, length of its data, blocks of its payload.
const ENTRY_BYTES: u64 = 1 + 8 + 8 + 4 + 4;

fn raft(
    mut r: Reader<'_>,
    payload_len: usize,
    payload: &mut dyn FnMut(usize) -> Payload,
) -> Result<RaftMessage> {
    let (mut message, entry_count) = raft_fields(&mut r)?;
    r.need("entries", u64::from(entry_count) * ENTRY_BYTES)?;
    let mut lengths = Vec::with_capacity(entry_count as usize);
    message.entries.reserve_exact(entry_count as usize);
    let (mut data_total, mut blocks_total) = (0, 0);
    for _ in 0..entry_count {
        let kind = r.u8("entry kind")?;
        bounded("entry kind", u64::from(kind), 0, u64::from(RAFT_ENTRY_KIND_MAX))?;
        let (term, index) = (r.term()?, r.index("entry index")?);
        let (data, blocks) = (r.u32("entry's data length")?, r.u32("entry's payload")?);
        data_total += u64::from(data);
        blocks_total += u64::from(blocks);
        lengths.push((data as usize, blocks as usize * BLOCK_BYTES));
        let (data, payload) = (Bytes::new(), Payload::empty());
        message.entries.push(RaftEntry { kind, term, index, data, payload });
    }
    equal("entries' data", r.left() as u64, data_total)?;
    equal("payload length", payload_len as u64, blocks_total * BLOCK_BYTES as u64)?;
    for (entry, (data_len, payload_len)) in message.entries.iter_mut().zip(lengths) {
        entry.data = r.bytes("entry's data", data_len)?;
        entry.payload = payload(payload_len);
    }
    Ok(message)
}

/// The fields before the entries, and the number of entries.
fn raft_fields(r: &mut Reader<'_>) -> Result<(RaftMessage, u32)> {
    let group = r.group()?;
    let kind = r.u8("Raft message kind")?;
    bounded("Raft message kind", u64::from(kind), 0, u64::from(RAFT_MESSAGE_KIND_MAX))?;
    let reject = flag("reject", r.u8("reject")?)?;
    let mut message = RaftMessage {
        group,
        kind,
        from: r.node("from")?,
        to: r.node("to")?,
        term: r.term()?,
        log_term: Term(r.u64("log term")?),
        index: r.index("index")?,
        commit: r.index("commit index")?,
        commit_term: Term(r.u64("commit term")?),
        reject,
        reject_hint: r.index("reject hint")?,
        priority: r.u64("priority")? as i64,
        request_snapshot: r.index("snapshot index")?,
        context: Bytes::new(),
        entries: Vec::new(),
    };
    let context_len = r.u16("context")?;
    bounded("context", u64::from(context_len), 0, CONTEXT_BYTES_MAX as u64)?;
    let entry_count = r.u32("entry count")?;
    message.context = r.bytes("context", usize::from(context_len))?;
    Ok((message, entry_count))
}

fn flag(field: &'static str, value: u8) -> Result<bool> {
    bounded(field, u64::from(value), 0, 1)?;
    Ok(value == 1)
}

fn request(r: &mut Reader<'_>) -> Result<Request> {
    let (id, group) = (RequestId(r.u64("request id")?), r.group()?);
    let (volume, epoch) = (VolumeId(r.u64("volume")?), Epoch(r.u64("epoch")?));
    let incarnation = Incarnation(r.u64("incarnation")?);
    let priority = priority(r.u8("priority")?)?;
    let number = r.u8("operation")?;
    let (traced, op) = (number & TRACED != 0, request_op(number & !TRACED, r)?);
    Ok(Request { id, group, volume, epoch, incarnation, priority, traced, op })
}

fn priority(value: u8) -> Result<Priority> {
    bounded("priority", u64::from(value), 0, 2)?;
    Ok([Priority::BestEffort, Priority::Guaranteed, Priority::Behind][usize::from(value)])
}

fn generation(r: &mut Reader<'_>) -> Result<Generation> {
    r.u32("generation").map(Generation)
}

/// The snapshot of a read: a flag, and a generation that is zero if there is none.
fn snapshot(r: &mut Reader<'_>) -> Result<Option<Generation>> {
    let some = flag("snapshot", r.u8("snapshot")?)?;
    let generation = generation(r)?;
    if !some {
        bounded("generation of no snapshot", u64::from(generation.0), 0, 0)?;
    }
    Ok(some.then_some(generation))
}

fn request_op(number: u8, r: &mut Reader<'_>) -> Result<RequestOp> {
    let command_max = u64::from(COMMAND_BLOCKS_MAX);
    Ok(match number {
        op::WRITE => {
            let (term, generation) = (r.term()?, generation(r)?);
            let range = r.range("write's range", command_max)?;
            let checksums = r.checksums(range.count)?;
            RequestOp::Write { term, generation, range, checksums, payload: Payload::empty() }
        }
        op::UNMAP => RequestOp::Unmap {
            term: r.term()?,
            generation: generation(r)?,
            range: r.range("unmap's range", CHUNK_BLOCKS)?,
        },
        op::READ => RequestOp::Read {
            range: r.range("read's range", command_max)?,
            floor: r.index("floor")?,
            snapshot: snapshot(r)?,
        },
        op::EXTENTS => RequestOp::Extents {
            range: r.range("extents' range", CHUNK_BLOCKS)?,
            floor: r.index("floor")?,
            snapshot: snapshot(r)?,
        },
        op::FENCE => RequestOp::Fence { term: r.term()?, generation: generation(r)? },
        op::DELETE => RequestOp::Delete { term: r.term()? },
        op::LEADER => RequestOp::Leader,
        op::FREEZE => RequestOp::Freeze { term: r.term()?, generation: generation(r)? },
        op::CLOSE_GATE => RequestOp::CloseGate { term: r.term()?, generation: generation(r)? },
        op::OPEN_GATE => RequestOp::OpenGate { term: r.term()?, generation: generation(r)? },
        op::DROP_SNAPSHOT => {
            RequestOp::DropSnapshot { term: r.term()?, generation: generation(r)? }
        }
        op::CHANGES => RequestOp::Changes {
            range: r.range("changes' range", CHUNK_BLOCKS)?,
            floor: r.index("floor")?,
            snapshot: snapshot(r)?,
            since: generation(r)?,
        },
        op::REVERT => RequestOp::Revert { term: r.term()?, generation: generation(r)? },
        op::CLONE | op::FILL | op::DETACH => {
            let (term, generation) = (r.term()?, generation(r)?);
            let parent = SnapshotId { volume: VolumeId(r.u64("parent")?), generation };
            match number {
                op::CLONE => RequestOp::Clone { term, parent },
                op::DETACH => RequestOp::Detach { term, parent },
                _ => {
                    let range = r.range("filled range", command_max)?;
                    RequestOp::Fill { term, parent, range }
                }
            }
        }
        other => {
            let (value, max) = (u64::from(other), u64::from(op::MAX));
            return Err(CodecError::OutOfBounds { field: "operation", value, min: 1, max });
        }
    })
}

fn reply(r: &mut Reader<'_>) -> Result<Reply> {
    let (id, group) = (RequestId(r.u64("request id")?), r.group()?);
    let number = r.u8("outcome")?;
    let result = match number & !TRACED {
        outcome::DONE => ReplyResult::Done { index: r.index("index")? },
        outcome::DATA => {
            let index = r.index("index")?;
            let count = r.u32("checksum count")?;
            bounded("checksum count", u64::from(count), 1, u64::from(COMMAND_BLOCKS_MAX))?;
            let checksums = r.checksums(count)?;
            ReplyResult::Data { index, checksums, payload: Payload::empty() }
        }
        outcome::EXTENTS => ReplyResult::Extents { index: r.index("index")?, runs: runs(r)? },
        outcome::LEADER => {
            let leader = r.u32("leader")?;
            let leader = (leader != 0).then_some(NodeId(leader));
            ReplyResult::Leader { leader, term: r.term()? }
        }
        outcome::REFUSED => ReplyResult::Refused(refusal(r.u8("refusal")?)?),
        outcome::UNKNOWN => ReplyResult::Unknown,
        other => {
            let (value, max) = (u64::from(other), u64::from(outcome::UNKNOWN));
            return Err(CodecError::OutOfBounds { field: "outcome", value, min: 1, max });
        }
    };
    let told = number & TRACED != 0;
    let trace = if told { Some(Box::new(trace::parse(r)?)) } else { None };
    Ok(Reply { id, group, result, trace })
}

/// Runs of mapped and unmapped blocks within one chunk, none empty.
fn runs(r: &mut Reader<'_>) -> Result<Vec<(u32, bool)>> {
    let count = r.u32("run count")?;
    bounded("run count", u64::from(count), 1, CHUNK_BLOCKS)?;
    r.need("runs", u64::from(count) * 4)?;
    let mut runs = Vec::with_capacity(count as usize);
    let mut total = 0;
    for _ in 0..count {
        let word = r.u32("run")?;
        let blocks = word >> 1;
        bounded("run", u64::from(blocks), 1, CHUNK_BLOCKS)?;
        total += u64::from(blocks);
        runs.push((blocks, word & 1 == 1));
    }
    bounded("runs' blocks", total, 1, CHUNK_BLOCKS)?;
    Ok(runs)
}

fn refusal(number: u8) -> Result<Refusal> {
    const ALL: [Refusal; 19] = [
        Refusal::Fenced,
        Refusal::LateDuplicate,
        Refusal::Behind,
        Refusal::Busy,
        Refusal::NoSpace,
        Refusal::Damaged,
        Refusal::Invalid,
        Refusal::NotHere,
        Refusal::Unavailable,
        Refusal::NotAttached,
        Refusal::BadChecksum,
        Refusal::Frozen,
        Refusal::NoSnapshot,
        Refusal::TooManySnapshots,
        Refusal::HasClones,
        Refusal::TooDeep,
        Refusal::Exists,
        Refusal::GateLost,
        Refusal::NotPermitted,
    ];
    ALL.into_iter().find(|refusal| *refusal as u8 == number).ok_or(CodecError::OutOfBounds {
        field: "refusal",
        value: u64::from(number),
        min: 1,
        max: Refusal::NotPermitted as u64,
    })
}
