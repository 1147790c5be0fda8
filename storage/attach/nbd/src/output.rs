//! Bytes to be sent: short runs written here, and data passed on by reference.

use basalt_wire::buffer::Payload;
use bytes::{BufMut, Bytes, BytesMut};

/// Data up to this length is copied beside the headers: a reference would cost more.
const COPY_MAX: usize = 256;
const RUN_BYTES: usize = 4096;

/// What a session wants to send, in order.
#[derive(Default)]
pub(crate) struct Output {
    pieces: Vec<Bytes>,
    run: BytesMut,
    len: usize,
}

impl Output {
    /// Bytes waiting to be taken.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Appends bytes by copying them.
    pub fn put(&mut self, bytes: &[u8]) {
        if self.run.capacity() - self.run.len() < bytes.len() {
            self.run.reserve(bytes.len().max(RUN_BYTES));
        }
        self.run.put_slice(bytes);
        self.len += bytes.len();
    }

    /// Appends data by reference.
    pub fn put_payload(&mut self, payload: &Payload) {
        for piece in payload.pieces() {
            if piece.len() <= COPY_MAX {
                self.put(piece);
            } else {
                self.end_run();
                self.pieces.push(piece.clone());
                self.len += piece.len();
            }
        }
    }

    /// Moves everything into `into`, in order.
    pub fn take(&mut self, into: &mut Vec<Bytes>) {
        self.end_run();
        into.append(&mut self.pieces);
        self.len = 0;
    }

    fn end_run(&mut self) {
        if !self.run.is_empty() {
            self.pieces.push(self.run.split().freeze());
        }
    }
}
