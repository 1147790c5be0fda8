//! Links that this reactor dials: one to each peer, and one for each tenant and reactor it asks for.
//!
//! A peer's link is dialled for as long as the reactor lives; a tenant's only when the tenant asks,
//! so that the tenant sees every failure. Attempts are spaced by a pause that grows while they fail.

use crate::accept::payload_size;
use crate::conn::{Armed, Conn, Credit, Phase, Role, local_link};
use crate::net::{Net, NetEvent, Op, Timer, frame_name};
use crate::slab::Handle;
use crate::sys;
use crate::tenant::TenantEvent;
use basalt_core::event::{Event, LinkId};
use basalt_wire::codec::DecodeLimits;
use basalt_wire::frame::{Frame, Reply, Request, Role as HelloRole, Welcome};
use basalt_wire::ids::Address;
use basalt_wire::time::Time;
use io_uring::opcode;
use io_uring::types::Fd;
use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// The shortest and the longest pause between two attempts.
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_millis(500);
/// Time for connecting and the handshake together.
const DIAL_TIME: Duration = Duration::from_secs(2);
/// A link that was open this long was a success; one that broke earlier counts as a failed attempt.
const STABLE: Duration = Duration::from_secs(1);
/// The longest client name that the protocol allows.
const NAME_BYTES_MAX: usize = 64;

/// Whose link it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Owner {
    /// The shard's, for frames to a peer.
    Shard,
    /// A tenant's, for requests.
    Tenant(usize),
}

/// A link that this reactor dials. Never removed: its number stays valid.
pub(crate) struct Link {
    pub to: Address,
    pub owner: Owner,
    pub state: State,
    /// No attempt before this.
    not_before: Time,
    backoff: Duration,
    up_at: Time,
    /// Whether a ping is unanswered.
    pinged: bool,
    nonce: u64,
    /// A peer's queue reached its bound, and the shard was told.
    choked: bool,
    credit_bytes: u32,
    credit_requests: u32,
    credit: Credit,
    /// Requests beyond the credit.
    waiting: VecDeque<Request>,
    pub last_error: String,
    pub opened: u64,
    pub frames: u64,
    pub dropped: u64,
}

/// How far a link is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// Nobody wants it.
    Idle,
    /// To be dialled when the pause is over.
    Waiting,
    /// Connecting, or waiting for the Welcome.
    Dialling(Handle),
    /// Open.
    Up(Handle),
    /// Open, to the shard in this reactor.
    Local(LinkId),
}

impl Net {
    /// The link's number; made when it is asked for first.
    fn link_number(&mut self, owner: Owner, to: Address) -> usize {
        if let Some(number) = self.link_index.get(&(owner, to)) {
            return *number;
        }
        self.links.push(Link {
            to,
            owner,
            state: State::Idle,
            not_before: Time::ZERO,
            backoff: BACKOFF_MIN,
            up_at: Time::ZERO,
            pinged: false,
            nonce: 0,
            choked: false,
            credit_bytes: 0,
            credit_requests: 0,
            credit: Credit::default(),
            waiting: VecDeque::new(),
            last_error: String::new(),
            opened: 0,
            frames: 0,
            dropped: 0,
        });
        self.link_index.insert((owner, to), self.links.len() - 1);
        self.links.len() - 1
    }

    // ---- dialling ----

    /// Keeps a link to each reactor that there is a way to, from now on: groups come from and go to any of
    /// them.
    pub(crate) fn keep_peers(&mut self, now: Time) {
        let own = self.identity.address;
        let peers = self.routes.keys().copied().filter(|to| Some(*to) != own);
        for to in peers.collect::<Vec<_>>() {
            let number = self.link_number(Owner::Shard, to);
            if self.links[number].state == State::Idle {
                self.dial_soon(number, now);
            }
        }
    }

    /// A peer was heard: it is worth dialling it without a pause.
    pub(crate) fn hurry_peer(&mut self, to: Address, now: Time) {
        if let Some(number) = self.link_index.get(&(Owner::Shard, to)).copied()
            && self.links[number].state == State::Waiting
        {
            self.dial_now(number, now);
        }
    }

    /// Dials when the pause since the last attempt is over.
    fn dial_soon(&mut self, number: usize, now: Time) {
        let at = self.links[number].not_before;
        if at <= now {
            return self.dial(number, now);
        }
        self.links[number].state = State::Waiting;
        self.set_timer(at, Timer::Link(number));
    }

    pub(crate) fn link_due(&mut self, number: usize, now: Time) {
        let link = &self.links[number];
        if link.state == State::Waiting && link.not_before <= now {
            self.dial(number, now);
        }
    }

    /// Dials without regard to the pause since the last attempt.
    pub(crate) fn dial_now(&mut self, number: usize, now: Time) {
        let link = &mut self.links[number];
        (link.not_before, link.backoff) = (now, BACKOFF_MIN);
        self.dial(number, now);
    }

    fn dial(&mut self, number: usize, now: Time) {
        if self.closing {
            self.links[number].state = State::Idle;
            return;
        }
        let to = self.links[number].to;
        if let (Some(own), Owner::Tenant(tenant)) =
            (self.identity.address, self.links[number].owner)
            && own == to
        {
            return self.dial_local(number, tenant, now);
        }
        let Some(address) = self.routes.get(&to).copied() else {
            return self.dial_failed(number, "there is no route to it", now);
        };
        let fd = match sys::tcp_socket(&address) {
            Ok(fd) => fd,
            Err(e) => return self.dial_failed(number, &format!("no socket: {e}"), now),
        };
        let role = Role::Dialled { link: number };
        let mut conn = Conn::new(fd, address.to_string(), role, DecodeLimits::HANDSHAKE, now);
        let (target, len) = sys::sockaddr(&address);
        conn.ops = 1;
        let place = (&raw const **conn.target.insert(target)).cast();
        let entry = opcode::Connect::new(Fd(conn.fd.as_raw_fd()), place, len).build();
        let Some(handle) = self.conns.insert(conn) else {
            return self.dial_failed(number, "too many connections", now);
        };
        self.start(entry, Op::Connect, handle.0);
        self.links[number].state = State::Dialling(handle);
        self.set_deadline(handle, now + DIAL_TIME);
    }

    fn dial_failed(&mut self, number: usize, reason: &str, now: Time) {
        self.links[number].last_error = reason.into();
        self.link_ended(number, now);
    }

    fn dial_local(&mut self, number: usize, tenant: usize, now: Time) {
        if !self.serving {
            return self.dial_failed(number, "the shard is closed", now);
        }
        self.local_links += 1;
        let link = &mut self.links[number];
        link.state = State::Local(local_link(tenant, self.local_links));
        link.up_at = now;
        link.opened += 1;
        (link.credit_bytes, link.credit_requests) =
            (self.limits.credit_bytes, self.limits.credit_requests);
        self.announce_up(number);
    }

    pub(crate) fn on_connect(&mut self, handle: Handle, result: i32, now: Time) {
        if result < 0 {
            let error = std::io::Error::from_raw_os_error(-result);
            return self.lost(handle, &format!("connecting failed: {error}"), now);
        }
        let Some(conn) = self.conns.get_mut(handle) else { return };
        let Role::Dialled { link } = conn.role else { return };
        sys::set_nodelay(&conn.fd);
        let boot = self.identity.boot;
        let role = match (self.links[link].owner, self.identity.address) {
            (Owner::Shard, Some(from)) => HelloRole::Peer { from, boot },
            _ => HelloRole::Client { name: client_name(&self.identity.name) },
        };
        match self.greet(handle, self.links[link].to, role) {
            Ok(()) => self.arm(handle),
            Err(reason) => self.refused(handle, link, &reason, now),
        }
    }

    pub(crate) fn on_dialled_frame(
        &mut self,
        handle: Handle,
        number: usize,
        frame: Frame,
        now: Time,
    ) {
        let link = &mut self.links[number];
        match (link.state, link.owner, frame) {
            (State::Dialling(_), _, frame) => self.on_dialling_frame(handle, number, frame, now),
            (State::Up(_), _, Frame::Pong { .. }) => link.pinged = false,
            (State::Up(_), Owner::Tenant(tenant), Frame::Reply(reply)) => {
                if !link.credit.close(reply.id.0) {
                    let text = format!("it answered request {}, which was not asked", reply.id);
                    return self.fail(handle, &text, now);
                }
                let event = TenantEvent::Reply { from: link.to, reply };
                self.inbox.push(NetEvent::Tenant(tenant, event));
                self.send_waiting(number, handle);
            }
            (_, _, frame) => {
                let text = format!("it may not send a {} now", frame_name(&frame));
                self.fail(handle, &text, now);
            }
        }
    }

    /// The link's handshake has ended well.
    pub(crate) fn on_welcome(
        &mut self,
        handle: Handle,
        number: usize,
        welcome: &Welcome,
        now: Time,
    ) {
        let to = self.links[number].to;
        if welcome.from != to {
            let (node, shard) = (welcome.from.node, welcome.from.shard);
            let text = format!("node {node} shard {shard} answers there");
            return self.refused(handle, number, &text, now);
        }
        let link = &mut self.links[number];
        link.state = State::Up(handle);
        link.up_at = now;
        link.opened += 1;
        (link.pinged, link.choked) = (false, false);
        (link.credit_bytes, link.credit_requests) = (welcome.credit_bytes, welcome.credit_requests);
        let limits = match link.owner {
            Owner::Shard => DecodeLimits::HANDSHAKE,
            Owner::Tenant(_) => DecodeLimits::CLIENT,
        };
        if let Some(conn) = self.conns.get_mut(handle) {
            conn.rx.decoder.set_limits(limits);
            conn.deadline = None;
        }
        tracing::info!(reactor = %self.identity.name, "{}: open", self.describe(handle));
        self.announce_up(number);
        self.want_tick();
    }

    /// A refusal is for a person to see, but once, not at each attempt.
    pub(crate) fn refused(&mut self, handle: Handle, number: usize, reason: &str, now: Time) {
        if self.links[number].last_error == reason {
            self.lost(handle, reason, now);
        } else {
            self.fail(handle, reason, now);
        }
    }

    fn announce_up(&mut self, number: usize) {
        let link = &self.links[number];
        let event = match link.owner {
            Owner::Shard => NetEvent::Shard(Event::PeerLink { peer: link.to.node, up: true }),
            Owner::Tenant(tenant) => NetEvent::Tenant(
                tenant,
                TenantEvent::LinkUp {
                    to: link.to,
                    credit_bytes: link.credit_bytes,
                    credit_requests: link.credit_requests,
                },
            ),
        };
        self.inbox.push(event);
    }

    // ---- the end of a link ----

    /// A link's connection is gone.
    pub(crate) fn link_lost(&mut self, number: usize, handle: Handle, now: Time) {
        // A link that was reset has another connection by now, or none.
        match self.links[number].state {
            State::Dialling(current) | State::Up(current) if current == handle => {
                self.link_ended(number, now);
            }
            _ => {}
        }
    }

    fn link_ended(&mut self, number: usize, now: Time) {
        let was_up = self.forget_link(number, now);
        let link = &self.links[number];
        match link.owner {
            Owner::Shard => {
                if was_up {
                    let event = Event::PeerLink { peer: link.to.node, up: false };
                    self.inbox.push(NetEvent::Shard(event));
                }
                // One that is no peer any more is left alone.
                if !self.stopping && self.routes.contains_key(&link.to) {
                    let at = link.not_before;
                    self.links[number].state = State::Waiting;
                    self.set_timer(at, Timer::Link(number));
                }
            }
            Owner::Tenant(tenant) => {
                let event = TenantEvent::LinkDown { to: link.to };
                self.inbox.push(NetEvent::Tenant(tenant, event));
            }
        }
    }

    /// Empties a link and sets the pause before the next attempt. Whether it was open.
    fn forget_link(&mut self, number: usize, now: Time) -> bool {
        let link = &mut self.links[number];
        let was_up = matches!(link.state, State::Up(_) | State::Local(_));
        if was_up && now.since(link.up_at) >= STABLE {
            (link.not_before, link.backoff) = (now, BACKOFF_MIN);
        } else {
            link.not_before = now + link.backoff;
            link.backoff = (link.backoff * 2).min(BACKOFF_MAX);
        }
        link.state = State::Idle;
        link.credit.clear();
        link.waiting.clear();
        was_up
    }

    // ---- for the shard ----

    /// Sends a frame to a peer; it is dropped when the link is down or its queue is full.
    pub(crate) fn send_peer(&mut self, to: Address, frame: &Frame) {
        let number = self.link_index.get(&(Owner::Shard, to)).copied();
        let Some(number) = number else {
            self.counters.frames_dropped += 1;
            return;
        };
        let bound = self.limits.peer_queue;
        let link = &mut self.links[number];
        if let State::Up(handle) = link.state
            && let Some(conn) = self.conns.get_mut(handle)
            && conn.phase == Phase::Open
        {
            if conn.tx.queued() <= bound {
                link.frames += 1;
                return self.queue(handle, frame);
            }
            if !std::mem::replace(&mut link.choked, true) {
                let event = Event::PeerLink { peer: to.node, up: false };
                self.inbox.push(NetEvent::Shard(event));
            }
        }
        self.links[number].dropped += 1;
        self.counters.frames_dropped += 1;
    }

    /// A send to a link completed: a peer's queue that was full may have room again.
    pub(crate) fn link_sent(&mut self, number: usize, handle: Handle) {
        let bound = self.limits.peer_queue;
        let Some(conn) = self.conns.get(handle) else { return };
        let link = &mut self.links[number];
        if link.choked && link.state == State::Up(handle) && conn.tx.queued() < bound / 2 {
            link.choked = false;
            let event = Event::PeerLink { peer: link.to.node, up: true };
            self.inbox.push(NetEvent::Shard(event));
        }
    }

    /// Tells a shard that was just opened which peers can be reached.
    pub(crate) fn announce_peers(&mut self) {
        for number in 0..self.links.len() {
            let link = &self.links[number];
            if link.owner == Owner::Shard && matches!(link.state, State::Up(_)) {
                self.announce_up(number);
            }
        }
    }

    /// The shard is gone, and everything that it had not answered: its clients' links end.
    pub(crate) fn drop_clients(&mut self, now: Time) {
        let clients: Vec<Handle> = self
            .conns
            .iter()
            .filter(|(_, conn)| matches!(conn.role, Role::Client(_)))
            .map(|(handle, _)| handle)
            .collect();
        for handle in clients {
            self.lost(handle, "the shard was closed", now);
        }
        for number in 0..self.links.len() {
            if matches!(self.links[number].state, State::Local(_)) {
                self.dial_failed(number, "the shard was closed", now);
            }
        }
    }

    // ---- for tenants ----

    pub(crate) fn tenant_dial(&mut self, tenant: usize, to: Address, now: Time) {
        let number = self.link_number(Owner::Tenant(tenant), to);
        match self.links[number].state {
            State::Idle => self.dial_soon(number, now),
            State::Up(_) | State::Local(_) => self.announce_up(number),
            State::Waiting | State::Dialling(_) => {}
        }
    }

    pub(crate) fn tenant_reset(&mut self, tenant: usize, to: Address, now: Time) {
        let number = self.link_number(Owner::Tenant(tenant), to);
        let state = self.links[number].state;
        match state {
            State::Up(handle) => {
                self.forget_link(number, now);
                self.lost(handle, "reset by its tenant", now);
            }
            State::Local(link) => {
                self.forget_link(number, now);
                self.inbox.push(NetEvent::Shard(Event::LinkClosed { link }));
            }
            State::Idle => {}
            // Nothing was sent on it yet.
            State::Waiting | State::Dialling(_) => return,
        }
        self.dial_soon(number, now);
    }

    pub(crate) fn tenant_request(&mut self, tenant: usize, to: Address, request: Request) {
        let Some(number) = self.link_index.get(&(Owner::Tenant(tenant), to)).copied() else {
            return;
        };
        self.links[number].frames += 1;
        match self.links[number].state {
            State::Local(link) => {
                self.counters.requests += 1;
                let event = Event::Request { link, remote: false, request };
                self.inbox.push(NetEvent::Shard(event));
            }
            State::Up(handle) => {
                self.links[number].waiting.push_back(request);
                self.send_waiting(number, handle);
            }
            _ => {}
        }
    }

    /// Sends what waits on a tenant's link, as far as its credit goes.
    fn send_waiting(&mut self, number: usize, handle: Handle) {
        loop {
            let link = &mut self.links[number];
            let Some(request) = link.waiting.front() else { return };
            let size = payload_size(request);
            if !link.credit.fits(size, link.credit_bytes, link.credit_requests) {
                return;
            }
            let Some(request) = link.waiting.pop_front() else { return };
            if !link.credit.open(request.id.0, size) {
                let text = format!("request {} has the id of an unanswered one", request.id);
                return self.fail(handle, &text, self.now);
            }
            self.queue(handle, &Frame::Request(request));
        }
    }

    /// A reply of the shard in this reactor.
    pub(crate) fn reply_local(&mut self, tenant: usize, link: LinkId, reply: Reply) {
        let Some(own) = self.identity.address else { return };
        let number = self.link_index.get(&(Owner::Tenant(tenant), own)).copied();
        if number.is_some_and(|number| self.links[number].state == State::Local(link)) {
            let event = TenantEvent::Reply { from: own, reply };
            self.inbox.push(NetEvent::Tenant(tenant, event));
        }
    }

    // ---- routes ----

    /// Takes over a new table; links whose address changed, and those of peers that it does not name, are dropped.
    pub(crate) fn set_routes(&mut self, routes: crate::config::Routes, now: Time) {
        let old = std::mem::replace(&mut self.routes, routes);
        for number in 0..self.links.len() {
            let (to, state) = (self.links[number].to, self.links[number].state);
            if old.get(&to) == self.routes.get(&to) {
                continue;
            }
            match state {
                State::Up(handle) | State::Dialling(handle) => {
                    self.lost(handle, "its route changed", now);
                }
                State::Waiting => {
                    self.links[number].not_before = now;
                    self.dial(number, now);
                }
                State::Idle | State::Local(_) => {}
            }
        }
        if self.identity.address.is_some() {
            self.keep_peers(now);
        }
        let is_gone = |conn: &Conn| match conn.role {
            Role::Peer { from } => !self.routes.contains_key(&from),
            _ => false,
        };
        let gone = self.conns.iter().filter(|(_, conn)| is_gone(conn));
        for handle in gone.map(|(handle, _)| handle).collect::<Vec<_>>() {
            self.lost(handle, "it is no peer any more", now);
        }
    }

    // ---- housekeeping ----

    /// Asks for the next housekeeping, on a common grid so that all pings share a wake-up.
    pub(crate) fn want_tick(&mut self) {
        if !self.tick_set {
            self.tick_set = true;
            let at = self.now + self.limits.ping_every;
            self.set_timer(at, Timer::Tick);
        }
    }

    /// Pings all links, ends those that fell silent, and takes memory from those that are idle.
    pub(crate) fn tick(&mut self, now: Time) {
        self.tick_set = false;
        for number in 0..self.links.len() {
            if let State::Up(handle) = self.links[number].state {
                self.ping(number, handle, now);
            }
        }
        let accepted_bound = self.limits.silence_accepted;
        let mut silent = Vec::new();
        let mut idle = Vec::new();
        let mut again = false;
        for (handle, conn) in self.conns.iter_mut() {
            if conn.phase == Phase::Dead {
                continue;
            }
            let accepted = matches!(conn.role, Role::Peer { .. } | Role::Client(_));
            if accepted && now.since(conn.last_heard) > accepted_bound {
                silent.push(handle);
            }
            let shrink = conn.rx.idle();
            match conn.rx.armed {
                Armed::Recv if shrink => idle.push(handle),
                Armed::No if shrink => conn.rx.chunk = None,
                _ => {}
            }
            if shrink && conn.tx.queued() == 0 {
                conn.tx.clear();
            }
            again |= conn.is_link() || conn.rx.armed == Armed::Recv;
        }
        for handle in silent {
            self.fail(handle, &format!("silent for {accepted_bound:?}"), now);
        }
        for handle in idle {
            self.cancel_recv(handle);
        }
        if again {
            self.want_tick();
        }
    }

    fn ping(&mut self, number: usize, handle: Handle, now: Time) {
        let bound = self.limits.silence;
        let heard = self.conns.get(handle).map_or(now, |conn| conn.last_heard);
        let link = &mut self.links[number];
        if link.pinged && now.since(heard) > bound {
            return self.fail(handle, &format!("silent for {bound:?}"), now);
        }
        link.pinged = true;
        link.nonce += 1;
        let nonce = link.nonce;
        self.queue(handle, &Frame::Ping { nonce });
    }

    /// This thread did not run for a while (a stopped process, a starved machine): silence in that
    /// time says nothing about others.
    pub(crate) fn forgive_silence(&mut self, now: Time) {
        for (_, conn) in self.conns.iter_mut() {
            conn.last_heard = now;
        }
    }
}

/// The reactor's name, cut to what the protocol allows.
fn client_name(name: &str) -> String {
    let mut end = name.len().min(NAME_BYTES_MAX);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name[..end].into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_between_characters() {
        assert_eq!(client_name("node-1"), "node-1");
        assert_eq!(client_name(&"ä".repeat(40)).len(), 64);
        assert_eq!(client_name(&format!("x{}", "ä".repeat(40))).len(), 63);
    }
}
