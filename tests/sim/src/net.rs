//! The network model: links that are ordered byte streams, like TCP, with everything that goes wrong
//! with them.
//!
//! Frames are really encoded and decoded. What a sender wrote before its end of a link closed may still
//! arrive, much later, while a new link between the two already works: that is how a late duplicate of
//! a retried request comes about. A link that is cut may end in the middle of a frame.

use crate::event::{Ev, Who};
use crate::queue::{Instant, MILLI, Queue};
use crate::rng::Rng;
use basalt_wire::buffer::IoBuf;
use basalt_wire::codec::{DecodeLimits, Decoder};
use basalt_wire::frame::Frame;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};

/// Number of a link, never used twice in a run.
pub type LinkIndex = u32;

/// Which end of a link: 0 dialled, 1 accepted.
pub type End = u8;

/// What a link carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// Frames of one node to another, one way.
    Peer,
    /// A client's requests, and the replies.
    Client,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Dialing,
    Open,
}

enum Content {
    Data(Bytes),
    /// The sender's end is closed; nothing follows.
    Fin,
}

struct Chunk {
    due: Instant,
    content: Content,
}

/// One direction of a link.
struct Stream {
    queue: VecDeque<Chunk>,
    last_due: Instant,
    /// Whether a delivery is on the heap.
    armed: bool,
    /// Whether the head of the queue waits for a partition to heal.
    stuck: bool,
    /// Nothing arrives before this: packets of this one connection are lost, and sent again later.
    stalled_until: Instant,
    decoder: Decoder,
}

struct Link {
    ends: [Who; 2],
    kind: LinkKind,
    state: State,
    open: [bool; 2],
    /// Whether it runs within one machine, where no bits flip.
    local: bool,
    streams: [Stream; 2],
}

/// What a link attempt came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connected {
    /// The link stands.
    Open,
    /// Nobody answers; it will be attempted again.
    Waiting,
    /// The other side's process is down: refused.
    Refused,
    /// The dialling side has given up meanwhile.
    Gone,
}

/// What arrived at an end.
#[derive(Debug)]
pub enum Arrival {
    /// A frame.
    Frame(Frame),
    /// The end of the stream.
    Closed,
    /// Bytes that are no frame: the receiver must drop the link.
    Corrupt(String),
}

/// How links behave in this run.
#[derive(Clone, Copy, Debug)]
pub struct NetOptions {
    /// The smallest delay.
    pub delay_min: u64,
    /// Mean delay beyond it.
    pub delay: u64,
    /// Nanoseconds for each byte.
    pub per_byte: f64,
    /// Probability that a transmission is cut into pieces at random places.
    pub split: f64,
    /// Probability that a bit of a transmission flips.
    pub corrupt: f64,
}

/// All links of the world.
pub struct Net {
    options: NetOptions,
    /// Those that stand or are being made.
    links: BTreeMap<LinkIndex, Box<Link>>,
    /// How many were dialled so far.
    dialled: LinkIndex,
    /// How many times slower the links of each are.
    gray: Vec<f64>,
    /// How many faults keep bytes from one to another, by sender and receiver.
    blocked: Vec<Vec<u16>>,
    rng: Rng,
}

impl Net {
    /// A network with no links.
    pub fn new(options: NetOptions, rng: Rng) -> Net {
        Net {
            options,
            links: BTreeMap::new(),
            dialled: 0,
            gray: Vec::new(),
            blocked: Vec::new(),
            rng,
        }
    }

    /// How links behave, to be changed by faults.
    pub fn options_mut(&mut self) -> &mut NetOptions {
        &mut self.options
    }

    /// Links that stand or are being made.
    pub fn live(&self) -> impl Iterator<Item = LinkIndex> + '_ {
        self.links.keys().copied()
    }

    /// The two sides of a link.
    pub fn ends(&self, link: LinkIndex) -> Option<[Who; 2]> {
        self.get(link).map(|l| l.ends)
    }

    /// What a link carries.
    pub fn kind(&self, link: LinkIndex) -> Option<LinkKind> {
        self.get(link).map(|l| l.kind)
    }

    fn get(&self, link: LinkIndex) -> Option<&Link> {
        self.links.get(&link).map(Box::as_ref)
    }

    /// Whether bytes pass between two, both ways.
    pub fn is_passable(&self, a: Who, b: Who) -> bool {
        !self.is_blocked(a, b) && !self.is_blocked(b, a)
    }

    fn is_blocked(&self, from: Who, to: Who) -> bool {
        self.blocked.get(from).and_then(|row| row.get(to)).is_some_and(|n| *n > 0)
    }

    /// Starts making a link.
    pub fn dial(&mut self, from: Who, to: Who, kind: LinkKind, queue: &mut Queue<Ev>) -> LinkIndex {
        let index = self.dialled;
        self.dialled += 1;
        let limits = match kind {
            LinkKind::Peer => DecodeLimits::PEER,
            LinkKind::Client => DecodeLimits::CLIENT,
        };
        let stream = || Stream {
            queue: VecDeque::new(),
            last_due: 0,
            armed: false,
            stuck: false,
            stalled_until: 0,
            decoder: Decoder::new(limits),
        };
        let made = Box::new(Link {
            ends: [from, to],
            kind,
            state: State::Dialing,
            open: [true, false],
            local: false,
            streams: [stream(), stream()],
        });
        self.links.insert(index, made);
        let delay = 2 * self.delay_between([from, to]);
        queue.push_in(delay, Ev::Connect { link: index });
        index
    }

    /// Says that a link runs within one machine: nothing on it is damaged.
    pub fn set_local(&mut self, link: LinkIndex) {
        if let Some(l) = self.links.get_mut(&link) {
            l.local = true;
        }
    }

    /// Makes all links of a node so many times slower; 1 for as they were.
    pub fn set_gray(&mut self, who: Who, times: f64) {
        if self.gray.len() <= who {
            self.gray.resize(who + 1, 1.0);
        }
        self.gray[who] = times;
    }

    fn delay_between(&mut self, ends: [Who; 2]) -> u64 {
        let times = ends.map(|who| self.gray.get(who).copied().unwrap_or(1.0));
        (self.delay() as f64 * times[0].max(times[1])) as u64
    }

    fn delay(&mut self) -> u64 {
        self.options.delay_min + self.rng.exponential(self.options.delay as f64)
    }

    /// Attempts a link; `listening` says whether the other side's process runs.
    pub fn connect(
        &mut self,
        link: LinkIndex,
        listening: bool,
        queue: &mut Queue<Ev>,
    ) -> Connected {
        let Some(l) = self.get(link) else { return Connected::Gone };
        let [from, to] = l.ends;
        if self.is_blocked(from, to) || self.is_blocked(to, from) {
            let again = 50 * MILLI + self.rng.below(200 * MILLI);
            queue.push_in(again, Ev::Connect { link });
            return Connected::Waiting;
        }
        if !listening {
            self.links.remove(&link);
            return Connected::Refused;
        }
        let l = self.links.get_mut(&link).expect("looked up above");
        l.state = State::Open;
        l.open = [true, true];
        Connected::Open
    }

    /// Whether a link stands and this end of it is open.
    pub fn is_open(&self, link: LinkIndex, end: End) -> bool {
        self.get(link).is_some_and(|l| l.state == State::Open && l.open[usize::from(end)])
    }

    /// Sends bytes from one end; dropped if the end is closed.
    pub fn send(&mut self, link: LinkIndex, end: End, pieces: Vec<Bytes>, queue: &mut Queue<Ev>) {
        if !self.is_open(link, end) {
            return;
        }
        let now = queue.now();
        let (ends, local) = self.get(link).map_or(([0; 2], false), |l| (l.ends, l.local));
        // What stays within a machine crosses no link.
        let delay = if local { self.delay() } else { self.delay_between(ends) };
        let pieces = self.cut_up(pieces, local);
        let per_byte = self.options.per_byte;
        let l = self.links.get_mut(&link).expect("it is open");
        let stream = &mut l.streams[usize::from(end)];
        let mut due = stream.last_due.max(now + delay);
        for piece in pieces {
            due += (piece.len() as f64 * per_byte) as u64;
            stream.queue.push_back(Chunk { due, content: Content::Data(piece) });
        }
        stream.last_due = due;
        arm(stream, link, end, queue);
    }

    /// Receivers see pieces as the sender made them, or one run of bytes cut at random places.
    fn cut_up(&mut self, pieces: Vec<Bytes>, local: bool) -> Vec<Bytes> {
        let corrupt = self.rng.chance(self.options.corrupt) && !local;
        if !corrupt && !self.rng.chance(self.options.split) {
            return pieces;
        }
        let len = pieces.iter().map(Bytes::len).sum();
        let mut buf = IoBuf::alloc(len);
        let mut at = 0;
        for piece in &pieces {
            buf[at..at + piece.len()].copy_from_slice(piece);
            at += piece.len();
        }
        if corrupt && len > 0 {
            let at = self.rng.below(len as u64) as usize;
            buf[at] ^= 1 << self.rng.below(8);
        }
        let mut rest = buf.freeze();
        let mut out = Vec::new();
        for _ in 0..self.rng.below(4) {
            if rest.len() > 1 {
                let at = self.rng.within(1, rest.len() as u64 - 1) as usize;
                out.push(rest.split_to(at));
            }
        }
        out.push(rest);
        out
    }

    /// Bytes arrive. `dir` is the end that sent them.
    pub fn deliver(&mut self, link: LinkIndex, dir: End, queue: &mut Queue<Ev>) -> Vec<Arrival> {
        let mut out = Vec::new();
        let Some(l) = self.get(link) else { return out };
        let receiver = 1 - dir;
        let (from, to) = (l.ends[usize::from(dir)], l.ends[usize::from(receiver)]);
        let blocked = self.is_blocked(from, to);
        let l = self.links.get_mut(&link).expect("looked up above");
        let open = l.open[usize::from(receiver)];
        let stream = &mut l.streams[usize::from(dir)];
        stream.armed = false;
        if blocked {
            stream.stuck = true;
            return out;
        }
        stream.stuck = false;
        if stream.stalled_until > queue.now() {
            stream.armed = true;
            queue.push(stream.stalled_until, Ev::Deliver { link, dir });
            return out;
        }
        while stream.queue.front().is_some_and(|c| c.due <= queue.now()) {
            match stream.queue.pop_front().expect("the front was just looked at").content {
                Content::Data(bytes) if open => stream.decoder.push(bytes),
                Content::Data(_) => {}
                Content::Fin if open => {
                    drain(stream, &mut out);
                    out.push(Arrival::Closed);
                    break;
                }
                Content::Fin => break,
            }
        }
        if open && !matches!(out.last(), Some(Arrival::Closed)) {
            drain(stream, &mut out);
        }
        arm(stream, link, dir, queue);
        out
    }

    /// One end closes. Bytes that it sent may still arrive; `keep` is how much of what is under way
    /// does, in 256ths, and a frame may be cut in its middle. A silent end (no power) sends no word of
    /// it.
    pub fn close(
        &mut self,
        link: LinkIndex,
        end: End,
        keep: u64,
        silent: bool,
        queue: &mut Queue<Ev>,
    ) {
        let Some(l) = self.links.get_mut(&link) else { return };
        if l.state == State::Dialing {
            // The accepting side knows nothing of it yet; if its process is gone, the attempt will be
            // refused.
            if end == 0 {
                self.links.remove(&link);
            }
            return;
        }
        if !std::mem::replace(&mut l.open[usize::from(end)], false) {
            return;
        }
        let stream = &mut l.streams[usize::from(end)];
        let kept = (stream.queue.len() as u64 * keep / 256) as usize;
        if let Some(Chunk { content: Content::Data(bytes), .. }) = stream.queue.get_mut(kept) {
            // The first chunk that does not arrive whole: a part of it does.
            let part = (bytes.len() as u64 * keep / 256) as usize;
            bytes.truncate(part);
            stream.queue.truncate(kept + 1);
        }
        let due = stream.last_due.max(queue.now());
        if silent {
            let give_up = if end == 1 { SILENCE } else { SILENCE_ACCEPTED };
            queue.push_in(give_up, Ev::GiveUp { link, end: 1 - end, if_silent: false });
        } else {
            let due = due + self.options.delay_min;
            stream.queue.push_back(Chunk { due, content: Content::Fin });
            stream.last_due = due;
            arm(stream, link, end, queue);
        }
        self.forget_if_done(link);
    }

    /// Frees a link of which both ends are closed and nothing is under way to an open end.
    fn forget_if_done(&mut self, link: LinkIndex) {
        let Some(l) = self.get(link) else { return };
        if l.open == [false, false] {
            self.links.remove(&link);
        }
    }

    /// Whether one of a link's directions carries nothing now: pings over it are not answered.
    pub fn is_silent(&self, link: LinkIndex, now: Instant) -> bool {
        self.get(link).is_some_and(|l| {
            let [a, b] = l.ends;
            let stalled = l.streams.iter().any(|s| s.stalled_until > now);
            stalled || self.is_blocked(a, b) || self.is_blocked(b, a)
        })
    }

    /// Keeps bytes of one direction of one link from arriving for a while; other links between the
    /// same two are not concerned.
    pub fn stall(&mut self, link: LinkIndex, dir: End, until: Instant, queue: &mut Queue<Ev>) {
        if let Some(l) = self.links.get_mut(&link) {
            l.streams[usize::from(dir)].stalled_until = until;
            watch(link, queue);
        }
    }

    /// Keeps bytes of each pair's first from reaching its second, until [`Net::unblock`] is called as often.
    pub fn block(&mut self, pairs: &[(Who, Who)], queue: &mut Queue<Ev>) {
        for (from, to) in pairs {
            let size = from.max(to) + 1;
            if self.blocked.len() < size {
                self.blocked.resize(size, Vec::new());
            }
            if self.blocked[*from].len() < size {
                self.blocked[*from].resize(size, 0);
            }
            self.blocked[*from][*to] += 1;
        }
        // Both ends will look whether their link is silent, when the patience of their drivers ends.
        for (link, l) in &self.links {
            let [a, b] = l.ends;
            if self.is_blocked(a, b) || self.is_blocked(b, a) {
                watch(*link, queue);
            }
        }
    }

    /// Takes back one [`Net::block`]. What was stuck arrives soon.
    pub fn unblock(&mut self, pairs: &[(Who, Who)], queue: &mut Queue<Ev>) {
        for (from, to) in pairs {
            self.blocked[*from][*to] -= 1;
        }
        for (link, l) in &mut self.links {
            for dir in 0..2u8 {
                let stream = &mut l.streams[usize::from(dir)];
                let (from, to) = (l.ends[usize::from(dir)], l.ends[usize::from(1 - dir)]);
                let blocked = self.blocked.get(from).and_then(|row| row.get(to));
                if stream.stuck && !stream.armed && blocked.is_none_or(|n| *n == 0) {
                    stream.armed = true;
                    // The longer a connection was cut, the longer it waits before it tries again; each
                    // has its own timer.
                    let retransmit = match self.rng.chance(0.3) {
                        true => self.rng.log_uniform(1e6, 8e9) as u64,
                        false => self.rng.below(100 * MILLI),
                    };
                    queue.push_in(retransmit, Ev::Deliver { link: *link, dir });
                }
            }
        }
    }
}

/// Drivers ping their links. The dialling side takes one that is silent for this long for dead.
pub const SILENCE: u64 = 1_250 * MILLI;
/// The accepting side has more patience.
const SILENCE_ACCEPTED: u64 = 5_000 * MILLI;

fn watch(link: LinkIndex, queue: &mut Queue<Ev>) {
    queue.push_in(SILENCE, Ev::GiveUp { link, end: 0, if_silent: true });
    queue.push_in(SILENCE_ACCEPTED, Ev::GiveUp { link, end: 1, if_silent: true });
}

fn arm(stream: &mut Stream, link: LinkIndex, dir: End, queue: &mut Queue<Ev>) {
    if stream.armed || stream.stuck {
        return;
    }
    if let Some(chunk) = stream.queue.front() {
        stream.armed = true;
        queue.push(chunk.due, Ev::Deliver { link, dir });
    }
}

fn drain(stream: &mut Stream, out: &mut Vec<Arrival>) {
    loop {
        match stream.decoder.next() {
            Ok(Some(frame)) => out.push(Arrival::Frame(frame)),
            Ok(None) => return,
            Err(error) => {
                out.push(Arrival::Corrupt(error.to_string()));
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use basalt_wire::codec::Encoder;

    fn net() -> (Net, Queue<Ev>) {
        let options =
            NetOptions { delay_min: 10, delay: 1_000, per_byte: 0.0, split: 0.5, corrupt: 0.0 };
        let queue = Queue::new(Rng::stream(1, "heap", 0));
        (Net::new(options, Rng::stream(1, "net", 0)), queue)
    }

    fn ping(nonce: u64) -> Vec<Bytes> {
        let mut e = Encoder::new();
        e.push(&Frame::Ping { nonce });
        e.take()
    }

    /// Runs the heap dry and gives the nonces that arrived at the accepting end.
    fn arrived(net: &mut Net, queue: &mut Queue<Ev>) -> Vec<u64> {
        let mut out = Vec::new();
        while let Some((_, event)) = queue.pop() {
            match event {
                Ev::Connect { link } => {
                    net.connect(link, true, queue);
                }
                Ev::Deliver { link, dir } => {
                    for a in net.deliver(link, dir, queue) {
                        if let Arrival::Frame(Frame::Ping { nonce }) = a {
                            out.push(nonce);
                        }
                    }
                }
                _ => {}
            }
        }
        out
    }

    #[test]
    fn a_link_keeps_order_and_cuts_streams_anywhere() {
        let (mut net, mut queue) = net();
        let link = net.dial(0, 1, LinkKind::Peer, &mut queue);
        arrived(&mut net, &mut queue);
        for nonce in 0..200 {
            net.send(link, 0, ping(nonce), &mut queue);
        }
        assert_eq!(arrived(&mut net, &mut queue), (0..200).collect::<Vec<_>>());
    }

    #[test]
    fn an_old_link_delivers_after_a_new_one() {
        let (mut net, mut queue) = net();
        let old = net.dial(0, 1, LinkKind::Client, &mut queue);
        let new = net.dial(0, 1, LinkKind::Client, &mut queue);
        arrived(&mut net, &mut queue);
        net.block(&[(0, 1)], &mut queue);
        net.send(old, 0, ping(1), &mut queue);
        assert_eq!(arrived(&mut net, &mut queue), vec![]);
        net.close(old, 0, 256, false, &mut queue);
        net.unblock(&[(0, 1)], &mut queue);
        net.send(new, 0, ping(2), &mut queue);
        let mut got = arrived(&mut net, &mut queue);
        got.sort_unstable();
        assert_eq!(got, vec![1, 2]);
    }

    #[test]
    fn a_cut_link_may_end_within_a_frame() {
        let (mut net, mut queue) = net();
        let link = net.dial(0, 1, LinkKind::Peer, &mut queue);
        arrived(&mut net, &mut queue);
        for nonce in 0..20 {
            net.send(link, 0, ping(nonce), &mut queue);
        }
        net.close(link, 0, 100, false, &mut queue);
        let got = arrived(&mut net, &mut queue);
        assert!(got.len() < 20 && got == (0..got.len() as u64).collect::<Vec<_>>());
    }
}
