//! Replies as bytes, in the three shapes that a client may have agreed on.

use crate::handshake::Headers;
use crate::output::Output;
use crate::proto::{self, Errno, chunk};
use basalt_wire::buffer::Payload;

/// Extents in one reply, as the specification bounds them.
const EXTENTS_MAX: usize = 1 << 20;

/// Writes replies with the agreed headers.
#[derive(Clone, Copy)]
pub(crate) struct Replies(pub Headers);

impl Replies {
    /// Success without data.
    pub fn done(self, cookie: u64, offset: u64, output: &mut Output) {
        match self.0 {
            // Structured replies allow the shorter simple one where there is no data.
            Headers::Simple | Headers::Structured => simple(cookie, 0, output),
            Headers::Extended => self.chunk(chunk::NONE, cookie, offset, 0, output),
        }
    }

    /// The data of a read.
    pub fn data(self, cookie: u64, offset: u64, data: &Payload, output: &mut Output) {
        if self.0 == Headers::Simple {
            simple(cookie, 0, output);
        } else if data.is_empty() {
            self.chunk(chunk::NONE, cookie, offset, 0, output);
        } else {
            self.chunk(chunk::OFFSET_DATA, cookie, offset, data.len() + 8, output);
            output.put(&offset.to_be_bytes());
        }
        output.put_payload(data);
    }

    /// A failure, with a text for people where there is room for one.
    pub fn error(self, cookie: u64, offset: u64, errno: Errno, text: &str, output: &mut Output) {
        if self.0 == Headers::Simple {
            simple(cookie, errno as u32, output);
            return;
        }
        let text = &text.as_bytes()[..text.len().min(proto::STRING_MAX)];
        self.chunk(chunk::ERROR, cookie, offset, 6 + text.len(), output);
        output.put(&(errno as u32).to_be_bytes());
        output.put(&(text.len() as u16).to_be_bytes());
        output.put(text);
    }

    /// The extents from `offset` on: runs of bytes, and whether they are mapped. They are cut to
    /// `len` and to one if that was asked for; neighbours of one kind are joined.
    pub fn extents(
        self,
        cookie: u64,
        offset: u64,
        len: u64,
        one: bool,
        runs: &[(u64, bool)],
        output: &mut Output,
    ) {
        let mut joined: Vec<(u64, bool)> = Vec::with_capacity(runs.len().min(1024));
        let mut left = len;
        for &(bytes, mapped) in runs {
            let bytes = bytes.min(left);
            left -= bytes;
            let full = joined.len() == if one { 1 } else { EXTENTS_MAX };
            match joined.last_mut() {
                _ if bytes == 0 => {}
                Some(last) if last.1 == mapped => last.0 += bytes,
                _ if full => break,
                _ => joined.push((bytes, mapped)),
            }
        }
        if joined.is_empty() {
            let text = "the volume did not tell its extents";
            return self.error(cookie, offset, Errno::Io, text, output);
        }
        if self.0 == Headers::Extended {
            let kind = chunk::BLOCK_STATUS_EXT;
            self.chunk(kind, cookie, offset, 8 + 16 * joined.len(), output);
            output.put(&proto::ALLOCATION_ID.to_be_bytes());
            output.put(&(joined.len() as u32).to_be_bytes());
            for (bytes, mapped) in joined {
                output.put(&bytes.to_be_bytes());
                output.put(&u64::from(state(mapped)).to_be_bytes());
            }
        } else {
            self.chunk(chunk::BLOCK_STATUS, cookie, offset, 4 + 8 * joined.len(), output);
            output.put(&proto::ALLOCATION_ID.to_be_bytes());
            for (bytes, mapped) in joined {
                // A question is never about more than fits 32 bits when headers are compact.
                let bytes = u32::try_from(bytes).unwrap_or(!0xfff);
                output.put(&bytes.to_be_bytes());
                output.put(&state(mapped).to_be_bytes());
            }
        }
    }

    /// The header of a reply's only chunk.
    fn chunk(self, kind: u16, cookie: u64, offset: u64, len: usize, output: &mut Output) {
        let mut header = [0; 32];
        header[4..6].copy_from_slice(&chunk::DONE.to_be_bytes());
        header[6..8].copy_from_slice(&kind.to_be_bytes());
        header[8..16].copy_from_slice(&cookie.to_be_bytes());
        if self.0 == Headers::Extended {
            header[..4].copy_from_slice(&proto::EXTENDED_REPLY_MAGIC.to_be_bytes());
            header[16..24].copy_from_slice(&offset.to_be_bytes());
            header[24..].copy_from_slice(&(len as u64).to_be_bytes());
            output.put(&header);
        } else {
            header[..4].copy_from_slice(&proto::STRUCTURED_REPLY_MAGIC.to_be_bytes());
            header[16..20].copy_from_slice(&(len as u32).to_be_bytes());
            output.put(&header[..20]);
        }
    }
}

fn simple(cookie: u64, errno: u32, output: &mut Output) {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&proto::SIMPLE_REPLY_MAGIC.to_be_bytes());
    header[4..8].copy_from_slice(&errno.to_be_bytes());
    header[8..].copy_from_slice(&cookie.to_be_bytes());
    output.put(&header);
}

fn state(mapped: bool) -> u32 {
    if mapped { 0 } else { proto::STATE_HOLE_AND_ZERO }
}
