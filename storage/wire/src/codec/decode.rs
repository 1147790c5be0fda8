//! The receiving half: pieces of bytes into frames.

use super::body::{bounded, parse};
use super::{CodecError, DecodeLimits, HEADER_BYTES, HEADER_VERSION, MAGIC, kind};
use crate::block::{BLOCK_BYTES, crc32c};
use crate::buffer::{IoBuf, Payload};
use crate::frame::Frame;
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;

/// A received piece shorter than this is copied when a frame waits for more: a peer that trickles
/// single bytes must not pin a whole receive buffer with each of them.
const KEEP_FROM_BYTES: usize = 2048;

/// Gives the frames of one byte stream.
///
/// Payload is handed out in pieces that are whole blocks: slices of what was received, except for
/// blocks that two received pieces share, which are put together by one copy into aligned memory.
#[derive(Debug)]
pub struct Decoder {
    limits: DecodeLimits,
    stream: Stream,
    header: Option<Header>,
    failed: Option<CodecError>,
}

impl Decoder {
    /// A decoder at the start of a stream.
    pub fn new(limits: DecodeLimits) -> Decoder {
        Decoder { limits, stream: Stream::default(), header: None, failed: None }
    }

    /// Changes the limits for the frames after the one under way: a handshake's are narrower.
    pub fn set_limits(&mut self, limits: DecodeLimits) {
        self.limits = limits;
    }

    /// Takes what was received. Call [`Decoder::next`] until it gives nothing before receiving more:
    /// that bounds what is kept to one frame and one received piece.
    pub fn push(&mut self, bytes: Bytes) {
        if self.failed.is_none() {
            self.stream.push(bytes);
        }
    }

    /// Bytes received that are not part of a frame given out yet.
    pub fn buffered(&self) -> usize {
        self.stream.len
    }

    /// The next whole frame, or nothing until more is received. After an error every call gives the
    /// same error.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Frame>, CodecError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.step();
        if let Err(error) = &result {
            self.failed = Some(error.clone());
            self.stream = Stream::default();
        }
        result
    }

    fn step(&mut self) -> Result<Option<Frame>, CodecError> {
        let header = match self.header {
            Some(header) => header,
            None => {
                if self.stream.len < HEADER_BYTES {
                    return self.stream.look_at_magic().map(|()| None);
                }
                *self.header.insert(Header::parse(&self.stream.take_header(), &self.limits)?)
            }
        };
        if self.stream.len < header.body_len + header.payload_len {
            return Ok(None);
        }
        self.header = None;
        let body = self.stream.take_bytes(header.body_len);
        let computed = crc32c(&body);
        if computed != header.body_checksum {
            let found = header.body_checksum;
            return Err(CodecError::Checksum { what: "frame's body", found, computed });
        }
        let stream = &mut self.stream;
        parse(header.kind, &body, header.payload_len, &mut |len| stream.take_payload(len)).map(Some)
    }
}

#[derive(Clone, Copy, Debug)]
struct Header {
    kind: u8,
    body_len: usize,
    payload_len: usize,
    body_checksum: u32,
}

impl Header {
    fn parse(bytes: &[u8; HEADER_BYTES], limits: &DecodeLimits) -> Result<Header, CodecError> {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        check_magic(&bytes[..4])?;
        let version = u16::from_le_bytes([bytes[4], bytes[5]]);
        if version != HEADER_VERSION {
            let (what, known) = ("frame's header", HEADER_VERSION);
            return Err(CodecError::Version { what, found: version, known });
        }
        let (found, computed) = (word(28), crc32c(&bytes[..28]));
        if found != computed {
            return Err(CodecError::Checksum { what: "frame's header", found, computed });
        }
        bounded("frame kind", u64::from(bytes[6]), 1, u64::from(kind::MAX))?;
        let reserved = u64::from(bytes[7]) | u64::from(word(16)) | u64::from(word(20));
        bounded("reserved bytes of the header", reserved, 0, 0)?;
        let (body_len, payload_len) = (word(8), word(12));
        bounded("body length", u64::from(body_len), 0, limits.body_bytes_max as u64)?;
        bounded("payload length", u64::from(payload_len), 0, limits.payload_bytes_max as u64)?;
        let (body_len, payload_len) = (body_len as usize, payload_len as usize);
        if !payload_len.is_multiple_of(BLOCK_BYTES) {
            let expected = (payload_len / BLOCK_BYTES * BLOCK_BYTES) as u64;
            let (field, value) = ("payload length", payload_len as u64);
            return Err(CodecError::Mismatch { field, value, expected });
        }
        Ok(Header { kind: bytes[6], body_len, payload_len, body_checksum: word(24) })
    }
}

/// Checks as much of the magic as there is, so that a stranger is not waited for.
fn check_magic(start: &[u8]) -> Result<(), CodecError> {
    let len = start.len().min(MAGIC.len());
    if start[..len] == MAGIC[..len] {
        return Ok(());
    }
    let mut found = [0; 4];
    found[..len].copy_from_slice(&start[..len]);
    Err(CodecError::Magic { found })
}

/// Received bytes not given out yet: whole pieces, and behind them a tail of copied small ones.
#[derive(Debug, Default)]
struct Stream {
    pieces: VecDeque<Bytes>,
    tail: BytesMut,
    len: usize,
}

impl Stream {
    fn push(&mut self, bytes: Bytes) {
        self.len += bytes.len();
        let waits = self.len > bytes.len();
        if waits && bytes.len() < KEEP_FROM_BYTES {
            self.tail.extend_from_slice(&bytes);
        } else if !bytes.is_empty() {
            self.end_tail();
            self.pieces.push_back(bytes);
        }
    }

    fn end_tail(&mut self) {
        if !self.tail.is_empty() {
            self.pieces.push_back(self.tail.split().freeze());
        }
    }

    fn look_at_magic(&self) -> Result<(), CodecError> {
        match self.pieces.front() {
            Some(piece) => check_magic(piece),
            None => Ok(()),
        }
    }

    fn take_header(&mut self) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        self.copy_out(&mut header);
        header
    }

    /// The next `len` bytes in one piece. The caller checked that there are as many.
    fn take_bytes(&mut self, len: usize) -> Bytes {
        if len == 0 {
            return Bytes::new();
        }
        if let Some(bytes) = self.take_within(len) {
            return bytes;
        }
        let mut whole = vec![0; len];
        self.copy_out(&mut whole);
        whole.into()
    }

    fn take_payload(&mut self, len: usize) -> Payload {
        let mut payload = Payload::empty();
        while payload.len() < len {
            let want = len - payload.len();
            self.end_tail_if_first();
            let front = self.pieces.front().map_or(0, Bytes::len);
            let whole_blocks = front.min(want) / BLOCK_BYTES * BLOCK_BYTES;
            if whole_blocks > 0 {
                payload.push(self.take_within(whole_blocks).expect("the front piece is as long"));
            } else {
                let mut block = IoBuf::alloc(BLOCK_BYTES);
                self.copy_out(&mut block);
                payload.push(block.freeze());
            }
        }
        payload
    }

    fn end_tail_if_first(&mut self) {
        if self.pieces.is_empty() {
            self.end_tail();
        }
    }

    /// The next `len` bytes if the front piece holds them all.
    fn take_within(&mut self, len: usize) -> Option<Bytes> {
        self.end_tail_if_first();
        let front = self.pieces.front_mut()?;
        if front.len() < len {
            return None;
        }
        self.len -= len;
        if front.len() == len { self.pieces.pop_front() } else { Some(front.split_to(len)) }
    }

    fn copy_out(&mut self, target: &mut [u8]) {
        let mut at = 0;
        while at < target.len() {
            self.end_tail_if_first();
            let front = self.pieces.front().map_or(0, Bytes::len);
            assert!(front > 0, "the caller checked that there are as many bytes");
            let len = front.min(target.len() - at);
            let bytes = self.take_within(len).expect("the front piece is as long");
            target[at..at + len].copy_from_slice(&bytes);
            at += len;
        }
    }
}
