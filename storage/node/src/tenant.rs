//! Tenants: what a reactor hosts beside (or without) a shard.
//!
//! A tenant is a front door, such as the NBD server: a state machine that serves byte streams and
//! asks shards for blocks. Like a shard it is stepped by the reactor, on the reactor's thread; it
//! must never block.

use crate::net::Net;
use basalt_wire::buffer::Payload;
use basalt_wire::frame::{Reply, Request};
use basalt_wire::ids::Address;
use basalt_wire::time::Time;
use bytes::Bytes;
use std::any::Any;

/// An accepted byte stream. Ids are never used twice in a run, so that an event about a stream that
/// is gone can not be taken for one about another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct StreamId(pub(crate) u64);

impl StreamId {
    /// An id for unit tests of tenants that have no reactor under them.
    pub fn for_test(number: u64) -> StreamId {
        StreamId(number)
    }
}

/// A state machine hosted by a reactor.
pub trait Tenant {
    /// Something happened.
    fn event(&mut self, now: Time, event: TenantEvent, cx: &mut TenantCx<'_>);

    /// All events of a turn were given, or [`Tenant::next_deadline`] has come. Called at least once
    /// after every event.
    fn end_turn(&mut self, now: Time, cx: &mut TenantCx<'_>);

    /// When `end_turn` must be called although nothing happens.
    fn next_deadline(&self) -> Option<Time>;

    /// Asked after [`TenantEvent::Stopping`]: whether everything is put in order, so that the
    /// reactor may stop. It stops anyway when its patience ends.
    fn may_stop(&self) -> bool {
        true
    }
}

/// What a tenant is told.
#[derive(Debug)]
pub enum TenantEvent {
    /// A stream was accepted. Nothing is known of its other end but what it sends.
    Accepted {
        /// The stream.
        stream: StreamId,
        /// Index of the listener in [`crate::ReactorConfig::stream_listeners`].
        listener: usize,
    },
    /// Bytes arrived. They are shared with the receive buffer: keep them only as long as needed.
    Received {
        /// The stream.
        stream: StreamId,
        /// The bytes; never empty.
        bytes: Bytes,
    },
    /// The send queue was above [`crate::Limits::stream_high`] and fell below
    /// [`crate::Limits::stream_low`].
    Drained {
        /// The stream.
        stream: StreamId,
    },
    /// The stream is gone: the other end closed it, it broke, or [`TenantCx::close`] is done. Given
    /// exactly once for every accepted stream, and last.
    Closed {
        /// The stream.
        stream: StreamId,
    },
    /// A link that was dialled is open.
    LinkUp {
        /// The reactor at its other end.
        to: Address,
        /// Bytes of request payload that may be unanswered. What exceeds it waits in the reactor.
        credit_bytes: u32,
        /// Requests that may be unanswered. What exceeds it waits in the reactor.
        credit_requests: u32,
    },
    /// A link broke, or could not be opened. Requests without an answer may or may not take effect.
    /// The reactor dials again only when asked to.
    LinkDown {
        /// The reactor at its other end.
        to: Address,
    },
    /// An answer.
    Reply {
        /// The answering reactor.
        from: Address,
        /// The answer.
        reply: Reply,
    },
    /// A command of the control path; see [`crate::ReactorHandle::tenant`].
    Command(Box<dyn Any + Send>),
    /// The reactor is about to stop: no stream is accepted any more. See [`Tenant::may_stop`].
    Stopping,
}

/// What a tenant can do. Everything takes effect at the end of the turn.
pub struct TenantCx<'a> {
    pub(crate) net: &'a mut Net,
    pub(crate) tenant: usize,
    pub(crate) now: Time,
}

impl TenantCx<'_> {
    /// Queues bytes on a stream. Short pieces are put together, long ones are not copied.
    /// Sending on a stream that is closed or closing does nothing.
    pub fn send(&mut self, stream: StreamId, bytes: Bytes) {
        self.net.stream_send(self.tenant, stream, bytes);
    }

    /// Queues a copy of bytes that are not shared, such as a header built on the stack.
    pub fn send_copy(&mut self, stream: StreamId, bytes: &[u8]) {
        self.net.stream_send_copy(self.tenant, stream, bytes);
    }

    /// Queues block data, not copied.
    pub fn send_payload(&mut self, stream: StreamId, payload: &Payload) {
        for piece in payload.pieces() {
            self.net.stream_send(self.tenant, stream, piece.clone());
        }
    }

    /// Bytes queued on a stream and not yet taken by the kernel.
    pub fn queued(&self, stream: StreamId) -> usize {
        self.net.stream_queued(self.tenant, stream)
    }

    /// Stops (or goes on) receiving on a stream, so that its other end is held back. What was
    /// received already is still given.
    pub fn pause(&mut self, stream: StreamId, paused: bool) {
        self.net.stream_pause(self.tenant, stream, paused);
    }

    /// Closes a stream after what is queued was sent. [`TenantEvent::Closed`] follows.
    pub fn close(&mut self, stream: StreamId) {
        self.net.stream_close(self.tenant, stream, self.now);
    }

    /// Who is at the other end of a stream, for logs.
    pub fn peer(&self, stream: StreamId) -> String {
        self.net.stream_peer(self.tenant, stream)
    }

    /// Asks for a link to a reactor; each tenant has links of its own. Answered by
    /// [`TenantEvent::LinkUp`] (again, if the link is open already) or, after a failed attempt, by
    /// [`TenantEvent::LinkDown`]. Attempts in quick succession are spaced by a growing pause.
    pub fn dial(&mut self, to: Address) {
        self.net.tenant_dial(self.tenant, to, self.now);
    }

    /// Drops the link and dials anew: none of its unanswered requests will be answered, and nothing
    /// sent before arrives after what is sent next. Answered like [`TenantCx::dial`]; the drop
    /// itself is not announced.
    pub fn reset(&mut self, to: Address) {
        self.net.tenant_reset(self.tenant, to, self.now);
    }

    /// Sends a request. Its id must differ from those of all unanswered requests of this tenant to
    /// that reactor. Without an open link it is dropped: [`TenantEvent::LinkDown`] was given.
    pub fn request(&mut self, to: Address, request: Request) {
        self.net.tenant_request(self.tenant, to, request);
    }

    /// The address of the shard in this reactor, if there is one. Requests to it cross no socket.
    pub fn local(&self) -> Option<Address> {
        self.net.local_address()
    }

    /// A line for the operator; see [`basalt_core::event::Effect::Notice`].
    pub fn notice(&mut self, alarm: bool, text: String) {
        self.net.notices.push((alarm, text));
    }

    /// Whether the reactor is stopping.
    pub fn stopping(&self) -> bool {
        self.net.stopping
    }
}
