//! One connection: its socket, what is received and what is to be sent.

use crate::chunk::{CHUNK_MAX, CHUNK_MIN, Chunk};
use basalt_core::event::LinkId;
use basalt_link::{Acceptor, Dialler, Grants, Proven};
use basalt_wire::codec::{DecodeLimits, Decoder, Encoder};
use basalt_wire::ids::Address;
use basalt_wire::time::Time;
use bytes::{Bytes, BytesMut};
use rustc_hash::FxHashMap;
use std::os::fd::OwnedFd;

/// Pieces of one gathered send; the kernel takes no more.
const PIECES_MAX: usize = 1024;
/// Stream pieces shorter than this are copied together.
const COPY_BELOW: usize = 1024;
/// Memory taken at a time for short stream pieces.
const RUN_BYTES: usize = 16 << 10;

/// A connection of any kind.
pub(crate) struct Conn {
    /// The socket; open until no operation is in the kernel any more.
    pub fd: OwnedFd,
    /// Who is at the other end, for logs.
    pub peer: String,
    pub role: Role,
    pub phase: Phase,
    pub rx: Rx,
    pub tx: Tx,
    /// Operations in the kernel.
    pub ops: u32,
    /// When something must have happened: a handshake, a flush.
    pub deadline: Option<Time>,
    pub last_heard: Time,
    /// Whether it stands in the list of connections to flush.
    pub dirty: bool,
    /// Of a link that this reactor dials, until it is open.
    pub dialler: Option<Box<Dialler>>,
    /// By what the link was opened, in a cluster with a secret.
    pub proven: Option<Proven>,
    /// The address to connect to, which the kernel reads while connecting.
    pub target: Option<Box<libc::sockaddr_storage>>,
}

/// What a connection is for.
pub(crate) enum Role {
    /// Accepted on the data port; has not said, or not proven, who it is.
    Stranger(Acceptor),
    /// A peer that dialled in.
    Peer { from: Address },
    /// A client that dialled in.
    Client(Client),
    /// Dialled by this reactor: the number of the link.
    Dialled { link: usize },
    /// A stream for a tenant.
    Stream { tenant: usize, paused: bool, above_high: bool },
}

/// A client that dialled in, and the credit that it uses.
pub(crate) struct Client {
    pub name: String,
    /// What it may ask for.
    pub grants: Grants,
    /// Whether the operator was told that it asked for more.
    pub exceeded: bool,
    pub credit: Credit,
}

/// Requests without an answer, with the bytes of their payload.
#[derive(Default)]
pub(crate) struct Credit {
    sizes: FxHashMap<u64, u32>,
    bytes: u64,
}

impl Credit {
    pub(crate) fn requests(&self) -> usize {
        self.sizes.len()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether a request of `size` bytes fits. One that is larger than the whole credit goes alone.
    pub(crate) fn fits(&self, size: u32, bytes_max: u32, requests_max: u32) -> bool {
        let bytes_fit = self.bytes == 0 || self.bytes + u64::from(size) <= u64::from(bytes_max);
        bytes_fit && self.sizes.len() < requests_max.max(1) as usize
    }

    /// Whether the id was free.
    pub(crate) fn open(&mut self, id: u64, size: u32) -> bool {
        let free = !self.sizes.contains_key(&id);
        if free {
            self.sizes.insert(id, size);
            self.bytes += u64::from(size);
        }
        free
    }

    /// Whether the id was open.
    pub(crate) fn close(&mut self, id: u64) -> bool {
        match self.sizes.remove(&id) {
            Some(size) => {
                self.bytes -= u64::from(size);
                true
            }
            None => false,
        }
    }

    pub(crate) fn clear(&mut self) {
        self.sizes.clear();
        self.bytes = 0;
    }
}

/// How far a connection is through its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    Open,
    /// To be closed once everything is sent; what arrives is thrown away.
    Flushing,
    /// Everything was sent and the other end told so; waiting for its end.
    Lingering,
    /// Its owner was told that it is gone; waiting for the kernel.
    Dead,
}

/// The receiving half.
pub(crate) struct Rx {
    pub decoder: Decoder,
    pub chunk: Option<Chunk>,
    pub armed: Armed,
    /// Size of the next chunk.
    want: usize,
    /// Bytes received since the last housekeeping.
    pub recent: usize,
    /// Whether the other end will send nothing more.
    pub ended: bool,
}

/// What the kernel is doing for the receiving half.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Armed {
    No,
    /// Waiting for bytes, holding no memory.
    Poll,
    /// Receiving into the chunk.
    Recv,
}

impl Rx {
    pub(crate) fn new(limits: DecodeLimits) -> Rx {
        let (chunk, armed) = (None, Armed::No);
        let (want, recent, ended) = (CHUNK_MIN, 0, false);
        Rx { decoder: Decoder::new(limits), chunk, armed, want, recent, ended }
    }

    /// Whether the next thing to do is waiting without memory rather than receiving.
    pub(crate) fn parked(&self) -> bool {
        self.chunk.is_none() && self.recent == 0
    }

    /// The chunk to receive into, with room worth a system call.
    pub(crate) fn chunk(&mut self) -> &mut Chunk {
        let want = self.want;
        let chunk = self.chunk.get_or_insert_with(|| Chunk::new(want));
        chunk.rewind_if_free();
        let outgrown = chunk.capacity() < want && chunk.room() == chunk.capacity();
        if outgrown || chunk.room() < chunk.capacity() / 4 {
            *chunk = Chunk::new(want);
        }
        chunk
    }

    /// Shares what was received and learns from its size how large the next chunk should be.
    pub(crate) fn received(&mut self, len: usize) -> Bytes {
        let chunk = self.chunk.as_mut().expect("a receive was armed, so there is a chunk");
        if len == chunk.room() {
            self.want = (self.want * 8).min(CHUNK_MAX);
        }
        self.recent += len;
        chunk.take(len)
    }

    /// Housekeeping: whether so little arrived that the memory should be given back. The receive
    /// that holds it must be cancelled then.
    pub(crate) fn idle(&mut self) -> bool {
        let quiet = self.recent < CHUNK_MIN;
        let silent = self.recent == 0;
        self.recent = 0;
        let large = self.chunk.as_ref().is_some_and(|chunk| chunk.capacity() > CHUNK_MIN);
        if quiet {
            self.want = CHUNK_MIN;
        }
        quiet && (large || (silent && self.chunk.is_some()))
    }
}

/// The sending half: what is queued, and the one send that is in the kernel.
pub(crate) struct Tx {
    pub encoder: Encoder,
    pieces: Vec<Bytes>,
    run: BytesMut,
    /// Bytes in `pieces` and `run`.
    queued: usize,
    flight: Flight,
}

/// A send in the kernel. Everything that the kernel reads stands still until it completes.
struct Flight {
    pieces: Vec<Bytes>,
    /// Pieces sent, and bytes of the next one.
    sent: (usize, usize),
    left: usize,
    vectors: Vec<libc::iovec>,
    header: Box<libc::msghdr>,
}

impl Tx {
    pub(crate) fn new() -> Tx {
        // SAFETY: all zeros is a valid `msghdr`: null pointers and zero lengths.
        let header = Box::new(unsafe { std::mem::zeroed() });
        let (pieces, vectors) = (Vec::new(), Vec::new());
        let flight = Flight { pieces, sent: (0, 0), left: 0, vectors, header };
        let (encoder, run) = (Encoder::new(), BytesMut::new());
        Tx { encoder, pieces: Vec::new(), run, queued: 0, flight }
    }

    /// Bytes not yet taken by the kernel.
    pub(crate) fn queued(&self) -> usize {
        self.queued + self.encoder.len() + self.flight.left
    }

    pub(crate) fn in_flight(&self) -> bool {
        self.flight.left > 0
    }

    /// Queues bytes; long ones are not copied.
    pub(crate) fn push(&mut self, bytes: Bytes) {
        if bytes.len() < COPY_BELOW {
            return self.push_copy(&bytes);
        }
        self.end_run();
        self.queued += bytes.len();
        self.pieces.push(bytes);
    }

    pub(crate) fn push_copy(&mut self, bytes: &[u8]) {
        if self.run.capacity() - self.run.len() < bytes.len() {
            self.end_run();
            self.run = BytesMut::with_capacity(RUN_BYTES.max(bytes.len()));
        }
        self.run.extend_from_slice(bytes);
        self.queued += bytes.len();
    }

    fn end_run(&mut self) {
        if !self.run.is_empty() {
            self.pieces.push(self.run.split().freeze());
        }
    }

    /// Forgets what is queued; what the kernel is sending stays.
    pub(crate) fn clear(&mut self) {
        self.encoder = Encoder::new();
        self.pieces = Vec::new();
        self.run = BytesMut::new();
        self.queued = 0;
    }

    /// Takes what is queued as the next send. Whether there is one to start.
    pub(crate) fn load(&mut self) -> bool {
        if self.in_flight() {
            return false;
        }
        self.flight.pieces.clear();
        if !self.encoder.is_empty() {
            self.flight.left = self.encoder.len();
            self.encoder.take_into(&mut self.flight.pieces);
        } else if self.queued > 0 {
            self.end_run();
            std::mem::swap(&mut self.flight.pieces, &mut self.pieces);
            self.flight.left = std::mem::take(&mut self.queued);
        }
        self.flight.sent = (0, 0);
        self.in_flight()
    }

    /// The message for the kernel: everything of the send that is left, up to the kernel's bound.
    /// It stays where it is until [`Tx::sent`] is called or this value is dropped.
    pub(crate) fn message(&mut self) -> *const libc::msghdr {
        let flight = &mut self.flight;
        let (first, skip) = flight.sent;
        flight.vectors.clear();
        for (at, piece) in flight.pieces[first..].iter().take(PIECES_MAX).enumerate() {
            let piece = if at == 0 { &piece[skip..] } else { &piece[..] };
            let iov_base = piece.as_ptr().cast_mut().cast();
            flight.vectors.push(libc::iovec { iov_base, iov_len: piece.len() });
        }
        flight.header.msg_iov = flight.vectors.as_mut_ptr();
        flight.header.msg_iovlen = flight.vectors.len();
        &raw const *flight.header
    }

    /// Notes that the kernel took `len` bytes. Whether more of the send is left.
    pub(crate) fn sent(&mut self, len: usize) -> bool {
        let flight = &mut self.flight;
        assert!(len <= flight.left, "{len} bytes sent of {}", flight.left);
        flight.left -= len;
        let (mut piece, mut offset) = (flight.sent.0, flight.sent.1 + len);
        while piece < flight.pieces.len() && offset >= flight.pieces[piece].len() {
            offset -= flight.pieces[piece].len();
            piece += 1;
        }
        flight.sent = (piece, offset);
        if flight.left == 0 {
            flight.pieces.clear();
        }
        flight.left > 0
    }

    /// The send failed; nothing of it is in the kernel any more.
    pub(crate) fn abandon(&mut self) {
        self.flight.pieces.clear();
        self.flight.left = 0;
    }
}

impl Conn {
    pub(crate) fn new(
        fd: OwnedFd,
        peer: String,
        role: Role,
        limits: DecodeLimits,
        now: Time,
    ) -> Conn {
        Conn {
            fd,
            peer,
            role,
            phase: Phase::Open,
            rx: Rx::new(limits),
            tx: Tx::new(),
            ops: 0,
            deadline: None,
            last_heard: now,
            dirty: false,
            dialler: None,
            proven: None,
            target: None,
        }
    }

    /// Whether frames travel on it (as opposed to a tenant's stream).
    pub(crate) fn is_link(&self) -> bool {
        !matches!(self.role, Role::Stream { .. })
    }
}

/// A client's or tenant's link in the shard's words. The numbers of local links have the top bit.
pub(crate) fn local_link(tenant: usize, count: u64) -> LinkId {
    assert!(tenant < 1 << 15 && count < 1 << 48, "local link {count} of tenant {tenant}");
    LinkId(1 << 63 | (tenant as u64) << 48 | count)
}

/// The tenant of a local link.
pub(crate) fn tenant_of(link: LinkId) -> Option<usize> {
    (link.0 >> 63 == 1).then_some((link.0 >> 48 & 0x7fff) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_stream_pieces_travel_together_and_long_ones_by_reference() {
        let mut tx = Tx::new();
        let long = Bytes::from(vec![7; 5000]);
        tx.push_copy(b"head");
        tx.push(Bytes::from_static(b"er"));
        tx.push(long.clone());
        tx.push_copy(b"tail");
        assert_eq!(tx.queued(), 5010);
        assert!(tx.load());
        assert_eq!(tx.flight.pieces.len(), 3);
        assert_eq!(tx.flight.pieces[1].as_ptr(), long.as_ptr());
        assert_eq!(tx.queued(), 5010);
    }

    #[test]
    fn a_partial_send_goes_on_where_it_stopped() {
        let mut tx = Tx::new();
        tx.push(Bytes::from(vec![1; 2000]));
        tx.push(Bytes::from(vec![2; 3000]));
        assert!(tx.load());
        assert!(tx.sent(2500));
        tx.message();
        assert_eq!(tx.flight.vectors.len(), 1);
        assert_eq!(tx.flight.vectors[0].iov_len, 2500);
        assert!(!tx.sent(2500));
        assert!(!tx.in_flight() && tx.queued() == 0);
    }

    #[test]
    fn more_pieces_than_the_kernel_takes_go_in_several_sends() {
        let mut tx = Tx::new();
        for _ in 0..1500 {
            tx.push(Bytes::from(vec![3; 2000]));
        }
        assert!(tx.load());
        tx.message();
        assert_eq!(tx.flight.vectors.len(), PIECES_MAX);
        assert!(tx.sent(PIECES_MAX * 2000));
        tx.message();
        assert_eq!(tx.flight.vectors.len(), 1500 - PIECES_MAX);
    }

    #[test]
    fn credit_counts_requests_and_bytes_but_lets_one_pass() {
        let mut credit = Credit::default();
        assert!(credit.fits(1 << 20, 4096, 2));
        assert!(credit.open(1, 4096) && !credit.open(1, 9));
        assert!(!credit.fits(1, 4096, 2));
        assert!(credit.close(1) && !credit.close(1));
    }

    #[test]
    fn the_receive_memory_grows_with_traffic_and_is_given_back() {
        let mut rx = Rx::new(DecodeLimits::HANDSHAKE);
        assert!(rx.parked());
        for _ in 0..3 {
            let room = rx.chunk().room();
            drop(rx.received(room));
        }
        assert_eq!(rx.chunk().capacity(), CHUNK_MAX);
        assert!(!rx.idle());
        assert!(rx.idle());
        rx.chunk = None;
        assert!(rx.parked());
    }

    #[test]
    fn local_links_name_their_tenant() {
        assert_eq!(tenant_of(local_link(3, 9)), Some(3));
        assert_eq!(tenant_of(LinkId(1 << 51)), None);
    }
}
