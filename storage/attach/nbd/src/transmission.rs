//! The transmission phase: requests in, operations out, results in, replies out.
//!
//! The Linux kernel speaks compact requests and simple replies; that path parses a 28-byte header,
//! shares the received bytes with the operation, and answers with 16 bytes and, for a read, the data
//! by reference.

use crate::export::ExportInfo;
use crate::handshake::{Agreed, Headers};
use crate::input::Input;
use crate::output::Output;
use crate::proto::{self, Errno, command, flag};
use crate::reply::Replies;
use crate::session::{SessionConfig, Submission};
use basalt_client::{BlockError, BlockOp, BlockResult};
use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::buffer::Payload;
use bytes::Bytes;
use std::sync::Arc;

const BLOCK: u64 = BLOCK_BYTES as u64;
/// What zeros are written from, where a client wants them stored.
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];
/// Zeros written by one operation.
const ZERO_WRITE_MAX: u64 = 8 << 20;
/// Longest payload of a BLOCK_STATUS request: an effect length and a few context ids.
const STATUS_PAYLOAD_MAX: u64 = 4096;

/// A request as it came, its fields not yet checked.
#[derive(Clone, Copy, Debug)]
struct Request {
    flags: u16,
    kind: u16,
    cookie: u64,
    offset: u64,
    len: u64,
    /// Bytes that follow the header.
    payload: u64,
}

type Refused = (Errno, &'static str);

/// What is left to do for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Free,
    /// One operation without data in its reply.
    Plain,
    Read,
    /// Make `next..end` read as zeros, step by step.
    Zero {
        next: u64,
        end: u64,
        no_hole: bool,
    },
    Status {
        one: bool,
    },
}

#[derive(Debug)]
struct Slot {
    cookie: u64,
    offset: u64,
    len: u64,
    /// Bytes that it counts for in [`SessionConfig::in_flight_max`].
    charge: usize,
    work: Work,
    writes: bool,
}

/// The state of the phase.
pub(crate) struct Transmission {
    config: Arc<SessionConfig>,
    export: ExportInfo,
    headers: Headers,
    allocation: bool,
    min_block: u64,
    replies: Replies,
    slots: Vec<Slot>,
    free: Vec<u32>,
    in_flight: usize,
    /// Payload of refused requests that is still to come.
    skip: u64,
    /// Payload of the request whose header is next in the input.
    awaited: usize,
    blocked: bool,
    draining: Option<&'static str>,
}

impl Transmission {
    pub fn new(config: Arc<SessionConfig>, agreed: Agreed) -> Transmission {
        let min_block = if agreed.sizes_known { u64::from(config.min_block) } else { 1 };
        Transmission {
            config,
            export: agreed.export,
            headers: agreed.headers,
            allocation: agreed.allocation,
            min_block,
            replies: Replies(agreed.headers),
            slots: Vec::new(),
            free: Vec::new(),
            in_flight: 0,
            skip: 0,
            awaited: 0,
            blocked: false,
            draining: None,
        }
    }

    pub fn export(&self) -> &ExportInfo {
        &self.export
    }

    pub fn resize(&mut self, size: u64) {
        self.export.size = size;
    }

    pub fn outstanding(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn awaited(&self) -> usize {
        self.awaited
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether requests wait for others to finish.
    pub fn paused(&self) -> bool {
        self.blocked
    }

    /// Whether nothing is taken any more, and the session ends when all is answered.
    pub fn draining(&self) -> bool {
        self.draining.is_some()
    }

    /// Takes nothing more.
    pub fn drain(&mut self, reason: &'static str) {
        self.draining.get_or_insert(reason);
        self.blocked = false;
    }

    pub fn reason(&self) -> &'static str {
        self.draining.unwrap_or_default()
    }

    /// Takes every request that has arrived whole and that the bounds admit.
    pub fn parse(&mut self, input: &mut Input, output: &mut Output, out: &mut Vec<Submission>) {
        self.blocked = false;
        self.awaited = 0;
        while !self.draining() && self.parse_one(input, output, out) {}
    }

    /// Takes one request; false if none can be taken now.
    fn parse_one(
        &mut self,
        input: &mut Input,
        output: &mut Output,
        out: &mut Vec<Submission>,
    ) -> bool {
        if self.skip > 0 {
            let take = self.skip.min(input.len() as u64);
            input.advance(take as usize);
            self.skip -= take;
            if self.skip > 0 {
                return false;
            }
        }
        let (request, header) = match self.peek(input) {
            Some(Ok(found)) => found,
            Some(Err(reason)) => {
                self.draining = Some(reason);
                return false;
            }
            None => return false,
        };
        if request.kind == command::DISC {
            self.draining = Some("");
            return false;
        }
        if request.payload > u64::from(self.config.max_payload) {
            self.draining = Some("a payload longer than the maximum");
            return false;
        }
        if let Err((errno, text)) = self.check(&request) {
            input.advance(header);
            self.skip = request.payload;
            self.replies.error(request.cookie, request.offset, errno, text, output);
            return true;
        }
        if !self.admits(&request) {
            self.blocked = true;
            return false;
        }
        if input.len() < header + request.payload as usize {
            self.awaited = request.payload as usize;
            return false;
        }
        input.advance(header);
        self.start(request, input, output, out);
        true
    }

    /// The next header and its length, if it has arrived.
    fn peek(&self, input: &Input) -> Option<Result<(Request, usize), &'static str>> {
        let extended = self.headers == Headers::Extended;
        let (magic, header_len, len) = if extended {
            let header = input.peek::<{ proto::EXTENDED_REQUEST_BYTES }>()?;
            (proto::EXTENDED_REQUEST_MAGIC, header.len(), be64(&header[24..]))
        } else {
            let header = input.peek::<{ proto::REQUEST_BYTES }>()?;
            (proto::REQUEST_MAGIC, header.len(), u64::from(be32(&header[24..])))
        };
        let header = input.peek::<24>()?;
        if be32(&header) != magic {
            return Some(Err("a request without its magic number"));
        }
        let flags = be16(&header[4..]);
        let kind = be16(&header[6..]);
        let has_payload =
            if extended { flags & flag::PAYLOAD_LEN != 0 } else { kind == command::WRITE };
        let request = Request {
            flags,
            kind,
            cookie: be64(&header[8..]),
            offset: be64(&header[16..]),
            len,
            payload: if has_payload { len } else { 0 },
        };
        Some(Ok((request, header_len)))
    }

    /// Whether the request keeps to the protocol and to the export.
    fn check(&self, r: &Request) -> Result<(), Refused> {
        let structured = self.headers >= Headers::Structured;
        let extended = self.headers == Headers::Extended;
        let payload_flag = if extended { flag::PAYLOAD_LEN } else { 0 };
        let allowed = match r.kind {
            command::READ if structured => flag::DF,
            command::READ | command::FLUSH | command::TRIM | command::CACHE => 0,
            command::WRITE => payload_flag,
            command::WRITE_ZEROES => flag::NO_HOLE | flag::FAST_ZERO,
            command::BLOCK_STATUS => flag::REQ_ONE | payload_flag,
            _ => return Err((Errno::Invalid, "unknown command")),
        };
        // Clients set FUA on any command, and the specification tells servers to bear with it.
        if r.flags & !(allowed | flag::FUA) != 0 {
            return Err((Errno::Invalid, "a flag that does not apply to the command"));
        }
        if extended && r.kind == command::WRITE && r.flags & flag::PAYLOAD_LEN == 0 {
            return Err((Errno::Invalid, "a write without its payload"));
        }
        match r.kind {
            command::FLUSH => return Ok(()),
            command::WRITE | command::TRIM | command::WRITE_ZEROES if self.export.read_only => {
                return Err((Errno::Perm, "the export is read-only"));
            }
            command::BLOCK_STATUS if !self.allocation => {
                return Err((Errno::Invalid, "no metadata context was selected"));
            }
            command::BLOCK_STATUS if r.payload > STATUS_PAYLOAD_MAX => {
                return Err((Errno::Invalid, "more metadata contexts than there are"));
            }
            // Its length follows in the payload.
            command::BLOCK_STATUS if r.payload > 0 => return Ok(()),
            command::READ if r.len > u64::from(self.config.max_payload) => {
                let errno = if structured { Errno::Overflow } else { Errno::Invalid };
                return Err((errno, "a read longer than the maximum payload"));
            }
            _ => {}
        }
        self.check_range(r.kind, r.offset, r.len)
    }

    fn check_range(&self, kind: u16, offset: u64, len: u64) -> Result<(), Refused> {
        if offset.checked_add(len).is_none_or(|end| end > self.export.size) {
            let errno = match kind {
                command::WRITE | command::WRITE_ZEROES => Errno::NoSpace,
                _ => Errno::Invalid,
            };
            return Err((errno, "the range goes beyond the end of the export"));
        }
        if !(offset | len).is_multiple_of(self.min_block) {
            return Err((Errno::Invalid, "the range is not aligned to the minimum block size"));
        }
        if kind == command::BLOCK_STATUS && len == 0 {
            return Err((Errno::Invalid, "the status of no bytes"));
        }
        Ok(())
    }

    fn admits(&self, request: &Request) -> bool {
        let outstanding = self.outstanding();
        outstanding == 0
            || (outstanding < self.config.requests_max
                && self.in_flight + charge(request) <= self.config.in_flight_max)
    }

    /// Starts a request that was checked; its payload is next in the input.
    fn start(
        &mut self,
        request: Request,
        input: &mut Input,
        output: &mut Output,
        out: &mut Vec<Submission>,
    ) {
        let Request { flags, kind, cookie, offset, len, payload } = request;
        if len == 0 && kind != command::FLUSH {
            match kind {
                command::READ => self.replies.data(cookie, offset, &Payload::empty(), output),
                _ => self.replies.done(cookie, offset, output),
            }
            return;
        }
        let (work, op) = match kind {
            command::READ => (Work::Read, BlockOp::Read { offset, len: len as u32 }),
            command::WRITE => {
                let data = input.take_blocks(payload as usize, offset);
                let fua = flags & flag::FUA != 0;
                (Work::Plain, BlockOp::Write { offset, data, fua })
            }
            command::FLUSH => (Work::Plain, BlockOp::Flush),
            command::BLOCK_STATUS => {
                let effect = if payload > 0 {
                    self.status_payload(offset, &input.take(payload as usize))
                } else {
                    Ok(len)
                };
                match effect {
                    Ok(len) => {
                        let len = len.min(self.config.range_max);
                        let one = flags & flag::REQ_ONE != 0;
                        (Work::Status { one }, BlockOp::Extents { offset, len })
                    }
                    Err((errno, text)) => {
                        self.replies.error(cookie, offset, errno, text, output);
                        return;
                    }
                }
            }
            command::TRIM | command::WRITE_ZEROES => {
                let work = zero_work(kind, flags, offset, len);
                match work.and_then(|work| Some((work, self.step(work)?))) {
                    Some((work, (op, next))) => (advance(work, next), op),
                    None if flags & flag::FAST_ZERO != 0 => {
                        let text = "no faster than a write of zeros";
                        self.replies.error(cookie, offset, Errno::NotSupported, text, output);
                        return;
                    }
                    // A trim within one block is a hint that cannot be taken.
                    None => return self.replies.done(cookie, offset, output),
                }
            }
            // Nothing stands between a replica's device and a read that could be warmed.
            _ => return self.replies.done(cookie, offset, output),
        };
        let charge = charge(&request);
        let writes = matches!(kind, command::WRITE | command::WRITE_ZEROES);
        let len = if let BlockOp::Extents { len, .. } = &op { *len } else { len };
        let slot = self.occupy(Slot { cookie, offset, len, charge, work, writes });
        out.push(Submission { slot, op });
    }

    /// The effect length of a BLOCK_STATUS request with a payload: every context id must be known
    /// and named once.
    fn status_payload(&self, offset: u64, payload: &[u8]) -> Result<u64, Refused> {
        let ids = payload.get(8..).unwrap_or_default();
        if ids.len() != 4 || be32(ids) != proto::ALLOCATION_ID {
            return Err((Errno::Invalid, "unknown, repeated or missing metadata context ids"));
        }
        let len = be64(payload);
        self.check_range(command::BLOCK_STATUS, offset, len)?;
        Ok(len)
    }

    fn occupy(&mut self, slot: Slot) -> u32 {
        self.in_flight += slot.charge;
        if let Some(index) = self.free.pop() {
            self.slots[index as usize] = slot;
            return index;
        }
        self.slots.push(slot);
        (self.slots.len() - 1) as u32
    }

    /// The next operation that brings zeros nearer, and where the one after it starts.
    fn step(&self, work: Work) -> Option<(BlockOp, u64)> {
        let Work::Zero { next, end, no_hole } = work else {
            return None;
        };
        if next >= end {
            return None;
        }
        let edge = !next.is_multiple_of(BLOCK) || end - next < BLOCK;
        if edge || no_hole {
            let stop = if no_hole {
                end.min(next + ZERO_WRITE_MAX)
            } else {
                end.min((next + 1).next_multiple_of(BLOCK))
            };
            let op = BlockOp::Write { offset: next, data: zeros(stop - next), fua: false };
            return Some((op, stop));
        }
        let len = ((end - next) / BLOCK * BLOCK).min(self.config.range_max);
        Some((BlockOp::Unmap { offset: next, len }, next + len))
    }

    /// An operation ended: answers its request, or goes on with it.
    pub fn complete(
        &mut self,
        index: u32,
        result: Result<BlockResult, BlockError>,
        output: &mut Output,
        out: &mut Vec<Submission>,
    ) {
        let Some(work) = self.slots.get(index as usize).map(|slot| slot.work) else {
            return;
        };
        if work == Work::Free {
            return;
        }
        if result == Ok(BlockResult::Done)
            && let Some((op, next)) = self.step(work)
        {
            self.slots[index as usize].work = advance(work, next);
            out.push(Submission { slot: index, op });
            return;
        }
        let slot = &mut self.slots[index as usize];
        slot.work = Work::Free;
        self.free.push(index);
        self.in_flight -= slot.charge;
        answer(self.replies, slot, work, result, output);
    }

    /// Answers everything that is outstanding with ESHUTDOWN.
    pub fn withdraw(&mut self, output: &mut Output) {
        for slot in &mut self.slots {
            if slot.work != Work::Free {
                slot.work = Work::Free;
                let text = "the export was withdrawn";
                self.replies.error(slot.cookie, slot.offset, Errno::Shutdown, text, output);
            }
        }
        self.slots.clear();
        self.free.clear();
        self.in_flight = 0;
    }
}

/// Answers a request whose last operation ended.
fn answer(
    replies: Replies,
    slot: &Slot,
    work: Work,
    result: Result<BlockResult, BlockError>,
    output: &mut Output,
) {
    let (cookie, offset) = (slot.cookie, slot.offset);
    match (work, result) {
        (Work::Read, Ok(BlockResult::Data(data))) if data.len() as u64 == slot.len => {
            replies.data(cookie, offset, &data, output);
        }
        (Work::Plain | Work::Zero { .. }, Ok(BlockResult::Done)) => {
            replies.done(cookie, offset, output);
        }
        (Work::Status { one }, Ok(BlockResult::Extents(runs))) => {
            replies.extents(cookie, offset, slot.len, one, &runs, output);
        }
        (_, Ok(_)) => {
            let text = "the volume gave an answer of the wrong kind or length";
            replies.error(cookie, offset, Errno::Io, text, output);
        }
        (_, Err(error)) => {
            let (errno, text) = refusal(error, slot.writes);
            replies.error(cookie, offset, errno, text, output);
        }
    }
}

fn refusal(error: BlockError, writes: bool) -> Refused {
    match error {
        BlockError::Fenced => (Errno::Shutdown, "the volume was attached elsewhere"),
        BlockError::Closed => (Errno::Shutdown, "the volume was detached"),
        BlockError::NoSpace => (Errno::NoSpace, "the pool is full"),
        BlockError::Io(text) => (Errno::Io, text),
        BlockError::OutOfRange if writes => (Errno::NoSpace, "beyond the end of the volume"),
        BlockError::OutOfRange => (Errno::Invalid, "beyond the end of the volume"),
        BlockError::Invalid => (Errno::Invalid, "the volume refused the request"),
        BlockError::ReadOnly => (Errno::Perm, "a snapshot can not be written to"),
    }
}

/// How to bring zeros to a range; `None` if there is nothing to do, or nothing fast.
fn zero_work(kind: u16, flags: u16, offset: u64, len: u64) -> Option<Work> {
    let end = offset + len;
    let no_hole = flags & flag::NO_HOLE != 0;
    // Only whole blocks can be unmapped, which is what makes zeros faster than a write.
    let (inner, inner_end) = (offset.next_multiple_of(BLOCK), end / BLOCK * BLOCK);
    let whole_blocks = inner < inner_end;
    if kind == command::TRIM {
        return whole_blocks.then_some(Work::Zero { next: inner, end: inner_end, no_hole: false });
    }
    if flags & flag::FAST_ZERO != 0 && (no_hole || !whole_blocks) {
        return None;
    }
    Some(Work::Zero { next: offset, end, no_hole })
}

fn advance(work: Work, to: u64) -> Work {
    match work {
        Work::Zero { end, no_hole, .. } => Work::Zero { next: to, end, no_hole },
        other => other,
    }
}

fn zeros(len: u64) -> Payload {
    let mut payload = Payload::empty();
    let mut left = len as usize;
    while left > 0 {
        let take = left.min(ZEROS.len());
        payload.push(Bytes::from_static(&ZEROS[..take]));
        left -= take;
    }
    payload
}

fn charge(request: &Request) -> usize {
    match request.kind {
        command::READ | command::WRITE => request.len as usize,
        _ => 0,
    }
}

fn be16(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}

fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn be64(bytes: &[u8]) -> u64 {
    u64::from(be32(bytes)) << 32 | u64::from(be32(&bytes[4..]))
}
