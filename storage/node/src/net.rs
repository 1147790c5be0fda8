//! The reactor's sockets: what the kernel is asked to do with them, and what it answers.
//!
//! Everything that arrives becomes a [`NetEvent`] for the shard or a tenant; everything to be sent
//! is queued at its connection and started once at the end of the turn. The parts:
//!
//! * this file: the ring's operations and their completions, the life of a connection, timers;
//! * [`crate::accept`]: listeners, and the requests of clients that dialled in;
//! * [`crate::handshake`]: who is at the other end of a link, and whether that still counts;
//! * [`crate::links`]: links that this reactor dials, pings;
//! * [`crate::streams`]: the tenants' streams.
//!
//! Invariant: a connection stays in the slab, with its socket and all memory that the kernel may
//! touch, until its last operation has completed.

use crate::accept::Listener;
use crate::config::{Limits, Routes};
use crate::conn::{Armed, Conn, Phase, Role, tenant_of};
use crate::links::{Link, Owner};
use crate::slab::{HANDLE_BITS, Handle, Slab};
use crate::status::Counters;
use crate::sys;
use crate::tenant::TenantEvent;
use basalt_core::event::{Event, LinkId};
use basalt_device::{Completion, Ring};
use basalt_link::LinkAuth;
use basalt_wire::frame::{Frame, Reply};
use basalt_wire::ids::{Address, ClusterId};
use basalt_wire::time::Time;
use io_uring::types::{CancelBuilder, Fd};
use io_uring::{opcode, squeue};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// Owner byte of all operations of this module.
const OWNER: u64 = 1;
/// Reasons of closed connections that are kept for the status.
const REASONS_KEPT: usize = 32;
/// Most warnings about closed connections in one period.
const WARNINGS_MAX: u64 = 20;
const WARNINGS_PERIOD: Duration = Duration::from_secs(1);
/// Time to send what is queued on a connection that is being closed, and then for the other end to
/// close it.
const FLUSH_TIME: Duration = Duration::from_secs(5);
const LINGER_TIME: Duration = Duration::from_secs(1);

/// What an operation was, as told by its `user_data`.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Op {
    Recv = 1,
    Poll = 2,
    Send = 3,
    Connect = 4,
    Accept = 5,
    Mail = 6,
    Cancel = 7,
    /// Cancels an operation that belongs to no connection.
    CancelOther = 8,
}

const OPS: [Op; 8] =
    [Op::Recv, Op::Poll, Op::Send, Op::Connect, Op::Accept, Op::Mail, Op::Cancel, Op::CancelOther];

pub(crate) fn user_data(op: Op, number: u64) -> u64 {
    debug_assert!(number < 1 << HANDLE_BITS);
    OWNER << 56 | (op as u64) << HANDLE_BITS | number
}

/// Something for the shard or a tenant.
#[derive(Debug)]
pub(crate) enum NetEvent {
    Shard(Event),
    Tenant(usize, TenantEvent),
}

/// Who this reactor is.
pub(crate) struct Identity {
    pub name: String,
    pub cluster: ClusterId,
    pub address: Option<Address>,
    /// Random number drawn at start.
    pub boot: u64,
}

/// What must be looked at when its time comes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    Conn(Handle),
    Link(usize),
    Tick,
    Accept(usize),
}

/// All sockets of a reactor.
pub(crate) struct Net {
    /// Dropped before everything that the kernel may still touch: dropping it waits for the kernel.
    pub ring: Ring,
    pub conns: Slab<Conn>,
    pub listeners: Vec<Listener>,
    pub inbox: Vec<NetEvent>,
    pub links: Vec<Link>,
    pub link_index: BTreeMap<(Owner, Address), usize>,
    pub timers: BinaryHeap<Reverse<(Time, Timer)>>,
    pub tick_set: bool,
    dirty: Vec<Handle>,
    rearm: Vec<Handle>,
    pub identity: Identity,
    /// What is shown on links, and asked of others.
    pub auth: LinkAuth,
    pub routes: Routes,
    pub limits: Limits,
    /// Whether there is a shard that takes requests.
    pub serving: bool,
    pub stopping: bool,
    /// Whether no link may be dialled any more.
    pub closing: bool,
    /// The start of the turn.
    pub now: Time,
    /// Accepted connections of the data port, those of them that are strangers, and streams.
    pub accepted: usize,
    pub strangers: usize,
    pub streams: usize,
    pub local_links: u64,
    pub notices: Vec<(bool, String)>,
    pub closed: VecDeque<String>,
    /// When this period of warnings began, and the warnings in it.
    warned: (Time, u64),
    pub counters: Counters,
    mail: Arc<OwnedFd>,
    mail_count: Box<u64>,
    /// Whether the mailbox must be looked at.
    pub mailed: bool,
}

impl Net {
    pub(crate) fn new(
        ring: Ring,
        mail: Arc<OwnedFd>,
        identity: Identity,
        routes: Routes,
        limits: Limits,
    ) -> Net {
        let mut net = Net {
            ring,
            conns: Slab::new(),
            listeners: Vec::new(),
            inbox: Vec::new(),
            links: Vec::new(),
            link_index: BTreeMap::new(),
            timers: BinaryHeap::new(),
            tick_set: false,
            dirty: Vec::new(),
            rearm: Vec::new(),
            identity,
            auth: LinkAuth::Open,
            routes,
            limits,
            serving: false,
            stopping: false,
            closing: false,
            now: Time::ZERO,
            accepted: 0,
            strangers: 0,
            streams: 0,
            local_links: 0,
            notices: Vec::new(),
            closed: VecDeque::new(),
            warned: (Time::ZERO, 0),
            counters: Counters::default(),
            mail,
            mail_count: Box::new(0),
            mailed: false,
        };
        net.wait_for_mail();
        net
    }

    pub(crate) fn local_address(&self) -> Option<Address> {
        self.identity.address
    }

    /// Starts an operation. `entry` may point only to memory of this value that stays in place
    /// until the operation completes.
    pub(crate) fn start(&mut self, entry: squeue::Entry, op: Op, number: u64) {
        // SAFETY: operations point to a connection's chunk, message or address, or to the mail
        // counter: all of them on the heap and kept, by this module's invariant, until the
        // operation has completed; and the ring is dropped first.
        unsafe { self.ring.push(entry.user_data(user_data(op, number))) };
    }

    pub(crate) fn wait_for_mail(&mut self) {
        let place = (&raw mut *self.mail_count).cast();
        let entry = opcode::Read::new(Fd(self.mail.as_raw_fd()), place, 8).build();
        self.start(entry, Op::Mail, 0);
    }

    /// Takes a completion of an operation of this module.
    pub(crate) fn complete(&mut self, completion: Completion, now: Time) {
        let number = completion.user_data & ((1 << HANDLE_BITS) - 1);
        let op = completion.user_data >> HANDLE_BITS & 0xf;
        let op = OPS.into_iter().find(|known| *known as u64 == op);
        let op = op.expect("only operations of this module carry its owner byte");
        let (handle, result) = (Handle(number), completion.result);
        match op {
            Op::Mail => return self.mailed = true,
            Op::Accept => return self.on_accept(number as usize, result, now),
            Op::CancelOther => return,
            _ => {}
        }
        let conn = self.conns.get_mut(handle).expect("a connection outlives its operations");
        assert!(conn.ops > 0, "a completion without an operation");
        conn.ops -= 1;
        match op {
            Op::Recv | Op::Poll => conn.rx.armed = Armed::No,
            _ => {}
        }
        if conn.phase == Phase::Dead {
            return self.bury(handle);
        }
        match op {
            Op::Recv => self.on_recv(handle, result, now),
            Op::Poll => self.start_recv(handle),
            Op::Send => self.on_send(handle, result, now),
            Op::Connect => self.on_connect(handle, result, now),
            Op::Cancel | Op::CancelOther | Op::Mail | Op::Accept => {}
        }
    }

    // ---- receiving ----

    fn on_recv(&mut self, handle: Handle, result: i32, now: Time) {
        let Some(conn) = self.conns.get_mut(handle) else { return };
        match result {
            0 if conn.phase == Phase::Flushing => {
                // The other end sends nothing more, but may still read what is queued.
                conn.rx.ended = true;
                return;
            }
            0 if conn.phase != Phase::Open => return self.kill(handle, now),
            0 => return self.lost(handle, "the other end closed it", now),
            r if r < 0 => {
                conn.rx.chunk = None;
                match -r {
                    libc::ECANCELED | libc::EINTR | libc::EAGAIN | libc::ENOBUFS => {}
                    code => {
                        let error = std::io::Error::from_raw_os_error(code);
                        return self.lost(handle, &format!("receiving failed: {error}"), now);
                    }
                }
            }
            len => {
                // The sign was checked above.
                let bytes = conn.rx.received(len as usize);
                conn.last_heard = now;
                self.counters.receives += 1;
                self.counters.bytes_in += len as u64;
                match (&conn.role, conn.phase) {
                    (Role::Stream { tenant, .. }, Phase::Open) => {
                        let event = TenantEvent::Received { stream: handle.into(), bytes };
                        self.inbox.push(NetEvent::Tenant(*tenant, event));
                    }
                    (_, Phase::Open) => {
                        conn.rx.decoder.push(bytes);
                        self.decode(handle, now);
                    }
                    _ => drop(bytes),
                }
            }
        }
        self.rearm.push(handle);
    }

    fn decode(&mut self, handle: Handle, now: Time) {
        while let Some(conn) = self.conns.get_mut(handle)
            && conn.phase == Phase::Open
        {
            match conn.rx.decoder.next() {
                Ok(Some(frame)) => {
                    self.counters.frames_in += 1;
                    self.on_frame(handle, frame, now);
                }
                Ok(None) => return,
                Err(error) => return self.fail(handle, &error.to_string(), now),
            }
        }
    }

    fn on_frame(&mut self, handle: Handle, frame: Frame, now: Time) {
        let Some(conn) = self.conns.get_mut(handle) else { return };
        if let Frame::Ping { nonce } = frame
            && !matches!(conn.role, Role::Stranger(_))
            && conn.dialler.is_none()
        {
            // Whoever does not read gets no more answers than it left room for.
            if conn.tx.queued() <= self.limits.client_pause {
                self.queue(handle, &Frame::Pong { nonce });
            }
            return;
        }
        match &conn.role {
            Role::Stranger(_) => self.on_stranger_frame(handle, frame, now),
            Role::Peer { from } => {
                let from = *from;
                self.on_peer_frame(handle, from, frame, now);
            }
            Role::Client(_) => self.on_client_frame(handle, frame, now),
            Role::Dialled { link } => {
                let link = *link;
                self.on_dialled_frame(handle, link, frame, now);
            }
            Role::Stream { .. } => unreachable!("streams are not decoded"),
        }
    }

    fn on_peer_frame(&mut self, handle: Handle, from: Address, frame: Frame, now: Time) {
        let claimed = match &frame {
            Frame::Raft(message) => message.from,
            Frame::LogDamaged { node, .. } | Frame::VoteLost { node, .. } => *node,
            Frame::AskLeadership { candidate, .. } => *candidate,
            Frame::Sleep { .. }
            | Frame::Readmit { .. }
            | Frame::Pages(_)
            | Frame::Score(_)
            | Frame::Watch(_)
            | Frame::Watched(_)
            | Frame::Repair(_)
            | Frame::Digests(_) => from.node,
            other => {
                let text = format!("a peer may not send a {}", frame_name(other));
                return self.fail(handle, &text, now);
            }
        };
        if claimed != from.node {
            let text = format!("node {} spoke in the name of node {claimed}", from.node);
            return self.fail(handle, &text, now);
        }
        self.inbox.push(NetEvent::Shard(Event::Peer { from, frame }));
    }

    /// Waits for bytes on a connection, if it should.
    pub(crate) fn arm(&mut self, handle: Handle) {
        let client_pause = self.limits.client_pause;
        let Some(conn) = self.conns.get_mut(handle) else { return };
        let held = match &conn.role {
            Role::Stream { paused, .. } => *paused && conn.phase == Phase::Open,
            Role::Client(_) => conn.tx.queued() > client_pause && conn.phase == Phase::Open,
            Role::Dialled { .. } | Role::Peer { .. } | Role::Stranger(_) => false,
        };
        if conn.phase == Phase::Dead || conn.rx.armed != Armed::No || conn.rx.ended || held {
            return;
        }
        if !conn.is_link() && conn.rx.parked() {
            conn.rx.armed = Armed::Poll;
            conn.ops += 1;
            let mask = u32::from(libc::POLLIN.cast_unsigned());
            let entry = opcode::PollAdd::new(Fd(conn.fd.as_raw_fd()), mask).build();
            return self.start(entry, Op::Poll, handle.0);
        }
        self.start_recv(handle);
    }

    fn start_recv(&mut self, handle: Handle) {
        let Some(conn) = self.conns.get_mut(handle) else { return };
        conn.rx.armed = Armed::Recv;
        conn.ops += 1;
        let fd = Fd(conn.fd.as_raw_fd());
        let chunk = conn.rx.chunk();
        let room = u32::try_from(chunk.room()).expect("a chunk is far below 4 GiB");
        let entry = opcode::Recv::new(fd, chunk.target(), room).build();
        self.start(entry, Op::Recv, handle.0);
        self.want_tick();
    }

    /// Makes the kernel give back the receive's memory.
    pub(crate) fn cancel_recv(&mut self, handle: Handle) {
        let Some(conn) = self.conns.get_mut(handle) else { return };
        conn.ops += 1;
        let entry = opcode::AsyncCancel::new(user_data(Op::Recv, handle.0)).build();
        self.start(entry, Op::Cancel, handle.0);
    }

    // ---- sending ----

    /// Queues a frame on a link that is open.
    pub(crate) fn queue(&mut self, handle: Handle, frame: &Frame) {
        let Some(conn) = self.conns.get_mut(handle) else { return };
        if conn.phase == Phase::Open {
            conn.tx.encoder.push(frame);
            self.counters.frames_out += 1;
            self.touch(handle);
        }
    }

    /// Notes that a connection has something to send at the end of the turn.
    pub(crate) fn touch(&mut self, handle: Handle) {
        let Some(conn) = self.conns.get_mut(handle) else { return };
        if !conn.dirty {
            conn.dirty = true;
            self.dirty.push(handle);
        }
    }

    /// The answer of the shard to a client or a tenant.
    pub(crate) fn reply(&mut self, link: LinkId, reply: Reply, now: Time) {
        if let Some(tenant) = tenant_of(link) {
            return self.reply_local(tenant, link, reply);
        }
        let (handle, bound) = (Handle(link.0), self.limits.client_queue);
        let Some(conn) = self.conns.get_mut(handle) else { return };
        let Role::Client(client) = &mut conn.role else { return };
        client.credit.close(reply.id.0);
        if conn.phase != Phase::Open {
            return;
        }
        conn.tx.encoder.push(&Frame::Reply(reply));
        self.counters.frames_out += 1;
        if conn.tx.queued() > bound {
            return self.fail(handle, "the client does not read its replies", now);
        }
        self.touch(handle);
    }

    /// Ends the turn: starts one send for each connection that has something queued, and waits for
    /// more on those that received.
    pub(crate) fn flush(&mut self, now: Time) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for handle in dirty.drain(..) {
            if let Some(conn) = self.conns.get_mut(handle) {
                conn.dirty = false;
                self.start_send(handle, now);
            }
        }
        self.dirty = dirty;
        let mut rearm = std::mem::take(&mut self.rearm);
        for handle in rearm.drain(..) {
            self.arm(handle);
        }
        self.rearm = rearm;
    }

    fn start_send(&mut self, handle: Handle, now: Time) {
        let Some(conn) = self.conns.get_mut(handle) else { return };
        if conn.phase == Phase::Dead || conn.tx.in_flight() {
            return;
        }
        if conn.tx.load() {
            self.counters.sends += 1;
            self.send_rest(handle);
        } else if conn.phase == Phase::Flushing && conn.rx.ended {
            self.kill(handle, now);
        } else if conn.phase == Phase::Flushing {
            conn.phase = Phase::Lingering;
            sys::shutdown(&conn.fd, Shutdown::Write);
            self.set_deadline(handle, now + LINGER_TIME);
        }
    }

    fn send_rest(&mut self, handle: Handle) {
        let Some(conn) = self.conns.get_mut(handle) else { return };
        conn.ops += 1;
        let fd = Fd(conn.fd.as_raw_fd());
        // The kernel goes on by itself after a partial send.
        let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL).cast_unsigned();
        let entry = opcode::SendMsg::new(fd, conn.tx.message()).flags(flags).build();
        self.start(entry, Op::Send, handle.0);
    }

    fn on_send(&mut self, handle: Handle, result: i32, now: Time) {
        let Some(conn) = self.conns.get_mut(handle) else { return };
        if result < 0 && !matches!(-result, libc::EINTR | libc::EAGAIN | libc::ENOBUFS) {
            conn.tx.abandon();
            let error = std::io::Error::from_raw_os_error(-result);
            return self.lost(handle, &format!("sending failed: {error}"), now);
        }
        let len = usize::try_from(result).unwrap_or(0);
        self.counters.bytes_out += len as u64;
        if conn.tx.sent(len) {
            return self.send_rest(handle);
        }
        match &conn.role {
            Role::Client(_) => self.rearm.push(handle),
            Role::Stream { .. } => self.stream_sent(handle),
            Role::Dialled { link } => {
                let link = *link;
                self.link_sent(link, handle);
            }
            _ => {}
        }
        self.touch(handle);
    }

    // ---- the end of a connection ----

    /// Closes a connection that did something wrong, with one line for the operator.
    pub(crate) fn fail(&mut self, handle: Handle, reason: &str, now: Time) {
        let line = format!("{}: closed: {reason}", self.describe(handle));
        self.remember(line);
        self.note_error(handle, reason);
        self.kill(handle, now);
    }

    /// Closes a connection that broke, which is nobody's fault.
    pub(crate) fn lost(&mut self, handle: Handle, reason: &str, now: Time) {
        tracing::debug!(reactor = %self.identity.name, "{}: {reason}", self.describe(handle));
        self.note_error(handle, reason);
        self.kill(handle, now);
    }

    /// Tells the operator why a connection was closed.
    pub(crate) fn remember(&mut self, line: String) {
        self.counters.closed_for_cause += 1;
        self.tell_operator(line);
    }

    /// Tells the operator what somebody did, but not so often that whoever provokes it fills the log.
    pub(crate) fn tell_operator(&mut self, line: String) {
        if self.now.since(self.warned.0) >= WARNINGS_PERIOD {
            if self.warned.1 > WARNINGS_MAX {
                let more = self.warned.1 - WARNINGS_MAX;
                tracing::warn!(reactor = %self.identity.name, "{more} more such lines");
            }
            self.warned = (self.now, 0);
        }
        self.warned.1 += 1;
        if self.warned.1 <= WARNINGS_MAX {
            tracing::warn!(reactor = %self.identity.name, "{line}");
        }
        self.closed.push_back(line);
        if self.closed.len() > REASONS_KEPT {
            self.closed.pop_front();
        }
    }

    fn note_error(&mut self, handle: Handle, reason: &str) {
        if let Some(Role::Dialled { link }) = self.conns.get(handle).map(|conn| &conn.role) {
            self.links[*link].last_error = reason.into();
        }
    }

    /// A connection in the words of an operator.
    pub(crate) fn describe(&self, handle: Handle) -> String {
        let Some(conn) = self.conns.get(handle) else { return "a connection".into() };
        let peer = &conn.peer;
        match &conn.role {
            Role::Stranger(_) => format!("connection from {peer}"),
            Role::Peer { from } => {
                format!("link from node {} shard {} ({peer})", from.node, from.shard)
            }
            Role::Client(client) => format!("link from client {:?} ({peer})", client.name),
            Role::Dialled { link } => {
                let to = self.links[*link].to;
                format!("link to node {} shard {} ({peer})", to.node, to.shard)
            }
            Role::Stream { .. } => format!("stream from {peer}"),
        }
    }

    /// Closes a connection once everything that is queued was sent.
    pub(crate) fn close_after_flush(&mut self, handle: Handle, now: Time) {
        let Some(conn) = self.conns.get_mut(handle) else { return };
        if conn.phase == Phase::Open {
            conn.phase = Phase::Flushing;
            self.set_deadline(handle, now + FLUSH_TIME);
            self.touch(handle);
            // What arrives is thrown away, so that the other end can finish.
            self.rearm.push(handle);
        }
    }

    /// Ends a connection now: tells its owner, and asks the kernel to let go of it.
    pub(crate) fn kill(&mut self, handle: Handle, now: Time) {
        let Some(conn) = self.conns.get_mut(handle) else { return };
        if conn.phase == Phase::Dead {
            return;
        }
        conn.phase = Phase::Dead;
        conn.deadline = None;
        conn.tx.clear();
        sys::shutdown(&conn.fd, Shutdown::Both);
        if conn.ops > 0 {
            conn.ops += 1;
            let all = CancelBuilder::fd(Fd(conn.fd.as_raw_fd())).all();
            self.start(opcode::AsyncCancel2::new(all).build(), Op::Cancel, handle.0);
        }
        self.tell_owner(handle, now);
        self.bury(handle);
    }

    /// Closes every connection once everything that is queued was sent.
    pub(crate) fn close_all_after_flush(&mut self, now: Time) {
        for handle in self.all_conns() {
            self.close_after_flush(handle, now);
        }
    }

    /// Ends every connection now.
    pub(crate) fn kill_all(&mut self, now: Time) {
        for handle in self.all_conns() {
            self.kill(handle, now);
        }
    }

    fn all_conns(&self) -> Vec<Handle> {
        self.conns.iter().map(|(handle, _)| handle).collect()
    }

    fn tell_owner(&mut self, handle: Handle, now: Time) {
        let Some(conn) = self.conns.get(handle) else { return };
        match &conn.role {
            Role::Stranger(_) => {
                self.accepted -= 1;
                self.strangers -= 1;
            }
            Role::Peer { .. } => self.accepted -= 1,
            Role::Client(_) => {
                self.accepted -= 1;
                let event = Event::LinkClosed { link: LinkId(handle.0) };
                self.inbox.push(NetEvent::Shard(event));
            }
            Role::Dialled { link } => {
                let link = *link;
                self.link_lost(link, handle, now);
            }
            Role::Stream { tenant, .. } => {
                self.streams -= 1;
                let event = TenantEvent::Closed { stream: handle.into() };
                self.inbox.push(NetEvent::Tenant(*tenant, event));
            }
        }
    }

    /// Forgets a dead connection when the kernel has let go of it.
    fn bury(&mut self, handle: Handle) {
        if self.conns.get(handle).is_some_and(|c| c.phase == Phase::Dead && c.ops == 0) {
            self.conns.remove(handle);
        }
    }

    // ---- time ----

    pub(crate) fn next_deadline(&self) -> Option<Time> {
        self.timers.peek().map(|Reverse((time, _))| *time)
    }

    pub(crate) fn set_timer(&mut self, at: Time, timer: Timer) {
        self.timers.push(Reverse((at, timer)));
    }

    pub(crate) fn set_deadline(&mut self, handle: Handle, at: Time) {
        if let Some(conn) = self.conns.get_mut(handle) {
            conn.deadline = Some(at);
            self.set_timer(at, Timer::Conn(handle));
        }
    }

    /// Does what is due. Timers are never taken back: each looks whether it still means something.
    pub(crate) fn expire(&mut self, now: Time) {
        while let Some(Reverse((at, timer))) = self.timers.peek().copied()
            && at <= now
        {
            self.timers.pop();
            match timer {
                Timer::Conn(handle) => self.conn_due(handle, now),
                Timer::Link(link) => self.link_due(link, now),
                Timer::Tick => self.tick(now),
                Timer::Accept(listener) => self.accept_next(listener),
            }
        }
    }

    fn conn_due(&mut self, handle: Handle, now: Time) {
        let Some(conn) = self.conns.get(handle) else { return };
        if conn.deadline.is_none_or(|at| at > now) {
            return;
        }
        match (conn.phase, &conn.role) {
            (Phase::Open, Role::Stranger(acceptor)) => {
                let did = if acceptor.awaits_proof() { "prove" } else { "say" };
                self.fail(handle, &format!("it did not {did} who it is in time"), now);
            }
            (Phase::Open, Role::Dialled { .. }) => {
                self.lost(handle, "no answer in time", now);
            }
            (Phase::Flushing, _) => self.fail(handle, "what was queued could not be sent", now),
            (Phase::Lingering, _) => self.kill(handle, now),
            _ => {}
        }
    }
}

/// The name of a frame, for error messages.
pub(crate) fn frame_name(frame: &Frame) -> &'static str {
    match frame {
        Frame::Hello(_) => "Hello",
        Frame::Welcome(_) => "Welcome",
        Frame::Challenge(_) => "Challenge",
        Frame::Proof(_) => "Proof",
        Frame::Present(_) => "ticket",
        Frame::Raft(_) => "Raft message",
        Frame::Request(_) => "request",
        Frame::Reply(_) => "reply",
        Frame::AskLeadership { .. } => "request for leadership",
        Frame::LogDamaged { .. } => "report of a damaged log",
        Frame::VoteLost { .. } => "report of a lost vote",
        Frame::Readmit { .. } => "answer to a lost vote",
        Frame::Sleep { .. } => "request to sleep",
        Frame::Pages(_) => "page message",
        Frame::Score(_) => "score",
        Frame::Repair(_) => "message about a repair",
        Frame::Digests(_) => "message of digests",
        Frame::Ping { .. } => "Ping",
        Frame::Pong { .. } => "Pong",
        Frame::Watch(_) => "question about a log write",
        Frame::Watched(_) => "answer about a log write",
    }
}
