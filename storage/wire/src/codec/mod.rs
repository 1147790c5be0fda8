//! Frames to bytes and back.
//!
//! A frame on the wire is a header of [`HEADER_BYTES`], a body (the small fields) and a payload
//! (whole blocks). [`Encoder`] collects frames into a list of byte pieces for one gathered send:
//! small fields are copied into runs, payload goes by reference. [`Decoder`] takes received pieces
//! and gives frames; payload is handed out as slices of what was received.
//!
//! The header, in order of bytes (little endian):
//!
//! | bytes | field | why here |
//! | --- | --- | --- |
//! | 0..4 | magic `BSLT` | a stranger on the port is told apart by the first bytes |
//! | 4..6 | header version, [`HEADER_VERSION`] | decides how all that follows is read |
//! | 6 | kind of the frame | |
//! | 7 | zero | |
//! | 8..12 | body length | checked against [`DecodeLimits`] before anything is kept |
//! | 12..16 | payload length, a multiple of 4096 | the same |
//! | 16..24 | zero | room for a later version; any other value is refused |
//! | 24..28 | CRC-32C of the body | |
//! | 28..32 | CRC-32C of bytes 0..28 | so a damaged length is noticed at once, not waited for |
//!
//! Payload is not covered here: each of its blocks has a checksum in the body, which the receiver
//! verifies where the block is used (once, while it is in cache), not at every hop.
//!
//! Absent on purpose: compression, encryption (that is the link's matter), and any recovery inside
//! a stream: after one error a decoder gives only that error, and the link must be dropped.

pub(crate) mod body;
mod decode;
mod digests;
mod encode;
mod pages;
mod repair;
#[cfg(test)]
mod tests;
mod trace;

pub use decode::Decoder;
pub use encode::Encoder;
pub(crate) use pages::volume_bytes;

use crate::block::{BLOCK_BYTES, COMMAND_BLOCKS_MAX};

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 32;
/// The first bytes of every frame.
pub const MAGIC: [u8; 4] = *b"BSLT";
/// Version of the header's layout. `Hello` and `Welcome` travel in version 1 for good, so that two
/// sides of different [`crate::frame::PROTOCOL_VERSION`]s can tell each other so.
pub const HEADER_VERSION: u16 = 1;

/// The longest body of any frame: a Raft message with the descriptors of some 40,000 unmaps, or of
/// the writes of 16 MiB of single blocks (4,096 x some 50 bytes), or a metadata command of 2 MiB.
pub const BODY_BYTES_MAX: usize = 2 << 20;
/// The longest payload of any frame: 16 MiB, which is 8 to 16 packed entries of the shard's limit of
/// 1 MiB (plus one last command of up to 1 MiB).
pub const PAYLOAD_BYTES_MAX: usize = 16 << 20;
/// The longest name of a client, in bytes; longer ones are cut when sent.
pub const CLIENT_NAME_BYTES_MAX: usize = 64;
/// The longest text with which a link is refused, in bytes; longer ones are cut when sent.
pub const REFUSAL_BYTES_MAX: usize = 512;
/// The longest ticket, in bytes: a `Hello` with one is below [`DecodeLimits::HANDSHAKE`].
pub const TICKET_BYTES_MAX: usize = 512;
/// The longest context of a Raft message, in bytes. The library's own are below 32 bytes.
pub const CONTEXT_BYTES_MAX: usize = 1024;
/// The most peers to which a score tells the way; more are left out when sent.
pub const SCORE_PATHS_MAX: usize = 256;
/// The most stages that a reply tells of: those that whoever serves it knows.
pub const STAGES_TOLD_MAX: usize = crate::trace::STAGES - crate::trace::Stage::Admission as usize;
/// The highest number of `eraftpb::MessageType`.
pub const RAFT_MESSAGE_KIND_MAX: u8 = 18;
/// The highest number of `eraftpb::EntryType`.
pub const RAFT_ENTRY_KIND_MAX: u8 = 2;
/// The first block number that no volume can have: a volume's byte offsets fit 63 bits.
pub const BLOCK_END_MAX: u64 = 1 << 51;

const _: () = assert!(PAYLOAD_BYTES_MAX.is_multiple_of(BLOCK_BYTES));

/// How long a frame may be that a decoder accepts. A length beyond is refused when the header is
/// read, so that a peer can make the receiver hold one frame of this size and no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Bytes of body.
    pub body_bytes_max: usize,
    /// Bytes of payload.
    pub payload_bytes_max: usize,
}

impl DecodeLimits {
    /// Before the handshake is over: its own frames only, which fit 1 KiB.
    pub const HANDSHAKE: DecodeLimits =
        DecodeLimits { body_bytes_max: 1 << 10, payload_bytes_max: 0 };
    /// Between a client and a node: the longest body is a reply with 1,024 runs of extents (some
    /// 4 KiB), the largest payload that of one command.
    pub const CLIENT: DecodeLimits = DecodeLimits {
        body_bytes_max: 8 << 10,
        payload_bytes_max: COMMAND_BLOCKS_MAX as usize * BLOCK_BYTES,
    };
    /// Between nodes.
    pub const PEER: DecodeLimits =
        DecodeLimits { body_bytes_max: BODY_BYTES_MAX, payload_bytes_max: PAYLOAD_BYTES_MAX };
}

/// Why received bytes are not a frame, or bytes of an entry not a list of commands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Whatever talks there does not speak this protocol.
    #[error("bad magic {found:02x?}: not a Basalt frame")]
    Magic {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// The version of a header or of a command list is not known.
    #[error("unknown version {found} of the {what}, known is {known}")]
    Version {
        /// Of what.
        what: &'static str,
        /// The version found.
        found: u16,
        /// The version that this program speaks.
        known: u16,
    },
    /// A header or a body does not match its checksum.
    #[error("checksum of the {what} is {found:#010x}, computed {computed:#010x}")]
    Checksum {
        /// Of what.
        what: &'static str,
        /// The checksum received.
        found: u32,
        /// The checksum of what was received.
        computed: u32,
    },
    /// A length, a count or a number is beyond its bound.
    #[error("{field} is {value}, allowed is {min} to {max}")]
    OutOfBounds {
        /// Which field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// The lowest value allowed.
        min: u64,
        /// The highest value allowed.
        max: u64,
    },
    /// Members of a group were not accepted.
    #[error(transparent)]
    Members(crate::membership::MembershipError),
    /// Two fields that must agree do not.
    #[error("{field} is {value}, but must be {expected}")]
    Mismatch {
        /// Which field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// The value that the other fields ask for.
        expected: u64,
    },
    /// A range of blocks crosses a chunk.
    #[error("{field} of {count} blocks at {block} crosses a chunk")]
    AcrossChunk {
        /// Which field.
        field: &'static str,
        /// The first block.
        block: u64,
        /// Blocks.
        count: u32,
    },
    /// The bytes end before the field does.
    #[error("{field} needs {need} bytes, {left} are left")]
    Short {
        /// Which field.
        field: &'static str,
        /// Bytes needed.
        need: u64,
        /// Bytes left.
        left: u64,
    },
    /// Bytes follow the last field.
    #[error("{left} bytes follow the end of the {what}")]
    Trailing {
        /// Of what.
        what: &'static str,
        /// Bytes too many.
        left: u64,
    },
    /// A text is not UTF-8.
    #[error("{field} is not UTF-8")]
    Text {
        /// Which field.
        field: &'static str,
    },
}

/// Numbers of the kinds of frames. A number is never given a second meaning.
mod kind {
    pub const HELLO: u8 = 1;
    pub const WELCOME: u8 = 2;
    pub const RAFT: u8 = 3;
    pub const REQUEST: u8 = 4;
    pub const REPLY: u8 = 5;
    pub const ASK_LEADERSHIP: u8 = 6;
    pub const LOG_DAMAGED: u8 = 7;
    pub const SLEEP: u8 = 8;
    pub const PING: u8 = 9;
    pub const PONG: u8 = 10;
    pub const PAGES: u8 = 11;
    pub const REPAIR: u8 = 12;
    pub const DIGESTS: u8 = 13;
    pub const SCORE: u8 = 16;
    pub const VOTE_LOST: u8 = 17;
    pub const READMIT: u8 = 18;
    pub const CHALLENGE: u8 = 20;
    pub const PROOF: u8 = 21;
    pub const PRESENT: u8 = 22;
    pub const WATCH: u8 = 24;
    pub const WATCHED: u8 = 25;
    pub const MAX: u8 = WATCHED;
}

/// Numbers of the roles in `Hello`.
mod role {
    pub const PEER: u8 = 1;
    pub const CLIENT: u8 = 2;
}

/// Numbers of what a claim in `Hello` goes by.
mod claim {
    pub const NONE: u8 = 0;
    pub const SECRET: u8 = 1;
    pub const TICKET: u8 = 2;
}

/// Numbers of what a request asks.
mod op {
    pub const WRITE: u8 = 1;
    pub const UNMAP: u8 = 2;
    pub const READ: u8 = 3;
    pub const EXTENTS: u8 = 4;
    pub const FENCE: u8 = 5;
    pub const DELETE: u8 = 6;
    pub const LEADER: u8 = 7;
    pub const FREEZE: u8 = 8;
    pub const DROP_SNAPSHOT: u8 = 9;
    pub const REVERT: u8 = 10;
    pub const CHANGES: u8 = 11;
    pub const CLONE: u8 = 12;
    pub const FILL: u8 = 13;
    pub const DETACH: u8 = 14;
    pub const CLOSE_GATE: u8 = 16;
    pub const OPEN_GATE: u8 = 17;
    pub const MAX: u8 = OPEN_GATE;
}

/// Set in the operation of a traced request, and in the outcome of a reply that a trace follows.
const TRACED: u8 = 0x80;

/// Numbers of a reply's outcomes.
mod outcome {
    pub const DONE: u8 = 1;
    pub const DATA: u8 = 2;
    pub const EXTENTS: u8 = 3;
    pub const LEADER: u8 = 4;
    pub const REFUSED: u8 = 5;
    pub const UNKNOWN: u8 = 6;
}
