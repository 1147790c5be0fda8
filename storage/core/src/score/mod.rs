//! How fast the devices and links of a shard and its peers are, and who is much slower than the others.
//!
//! Slow is worse than dead: a dead leader is replaced within a second, a slow one would hold up its groups
//! for ever. Every shard measures its own log writes and reads ([`meter`]), tells its peers a few times a
//! second, and learns from stamps that come back how long the way to each of them is. From the same
//! figures all judge all ([`verdict`]):
//!
//! * a node is slow if a log write and the way to the nearest half of the others take it many times what
//!   they take the others, for several windows in a row;
//! * [`Scores::commit_nanos`] is what a write would take under a given leader. A slow leader hands over to
//!   whom that is much less under; so if all are slow, or the majority is, nothing moves.
//!
//! A processor that has no time for a node is no slow device and no slow link: what a shard's own turns, or
//! those of the peer, were late lately is not counted, and a way counts only beyond [`WAY_FREE`].
//!
//! The present decides. Who is slow is sound two seconds after the figures are, and is only trusted with
//! leadership later; a figure that is never confirmed says nothing any more. Nothing is said or judged
//! while all groups sleep, and nobody is slow then.

mod meter;
mod verdict;

pub use meter::per_operation;

use crate::planted::{Bug, Planted};
use basalt_wire::codec::SCORE_PATHS_MAX;
use basalt_wire::frame::NodeScore;
use basalt_wire::ids::NodeId;
use basalt_wire::io::{DiskOp, DiskOpKind, OpToken};
use basalt_wire::time::Time;
use meter::Meter;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use verdict::Verdict;

/// Ticks of a window.
const WINDOW_TICKS: u64 = 5;
/// What was told counts for so many windows.
const TOLD_WINDOWS: u64 = 8;
/// Stamps that came back of which the fastest counts: a pause of a process is no slow link.
const WAYS: usize = 4;
/// The part of a way that does not count: what waits in sockets and for turns of a busy node.
pub const WAY_FREE: Duration = Duration::from_millis(5);
const WAY_FREE_NANOS: u64 = WAY_FREE.as_nanos() as u64;
/// A leader is relieved if under another a write takes at most one part in so many.
const GAIN: u64 = 3;

/// One peer, as it is known here.
#[derive(Debug, Default)]
struct Peer {
    /// What it told last, and when that arrived.
    told: Option<(Time, NodeScore)>,
    /// How long the latest stamps took to come back; 0 for none.
    ways: [u64; WAYS],
    ways_seen: usize,
    /// The last stamp that came back.
    echo: u64,
}

impl Peer {
    /// Nanoseconds to it and back.
    fn way(&self) -> Option<u64> {
        self.ways.iter().copied().filter(|nanos| *nanos > 0).min()
    }

    fn forget_way(&mut self) {
        *self = Peer { told: self.told.take(), ..Peer::default() };
        if let Some((_, told)) = &mut self.told {
            told.stamp = 0;
        }
    }
}

/// What a shard knows about speed.
#[derive(Debug)]
pub struct Scores {
    me: NodeId,
    planted: Planted,
    writes: Meter,
    reads: Meter,
    /// Windows in which writes were measured.
    window: u32,
    window_nanos: u64,
    /// The tick at which the window ends.
    ends_at: u64,
    peers: BTreeMap<NodeId, Peer>,
    /// By node, this one included, and the last of its windows that was judged.
    verdicts: BTreeMap<NodeId, (Verdict, u32)>,
    judged_at: Time,
    /// By how many nanoseconds a turn of the shard came late at most, in this window and the one before.
    late: [u64; 2],
}

/// A node's speed, for operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScoreStatus {
    /// The node.
    pub node: NodeId,
    /// Mean time of a log write lately; nothing if it is not known.
    pub write: Option<Duration>,
    /// Mean time of a device read lately; nothing if it is not known.
    pub read: Option<Duration>,
    /// The longest log write lately; of this node only.
    pub worst_write: Option<Duration>,
    /// The mean of a log write, and of a read, in the best window since the shard was opened: what its device can do.
    /// Of this node only.
    pub best_write: Option<Duration>,
    /// See `best_write`.
    pub best_read: Option<Duration>,
    /// Time to it and back; nothing if it is not known or this node.
    pub way: Option<Duration>,
    /// For how long it has been much slower than the others.
    pub slow_for: Option<Duration>,
}

impl Scores {
    /// Knows nothing yet. `tick` is the length of a tick.
    pub fn new(me: NodeId, tick: Duration, planted: Planted) -> Scores {
        let window = tick * WINDOW_TICKS as u32;
        Scores {
            me,
            planted,
            writes: Meter::default(),
            reads: Meter::default(),
            window: 0,
            window_nanos: u64::try_from(window.as_nanos()).unwrap_or(u64::MAX),
            ends_at: WINDOW_TICKS,
            peers: BTreeMap::new(),
            verdicts: BTreeMap::from([(me, Default::default())]),
            judged_at: Time::ZERO,
            late: [0; 2],
        }
    }

    /// There is such a peer.
    pub fn add_peer(&mut self, node: NodeId) {
        if node != self.me {
            self.peers.entry(node).or_default();
            self.verdicts.entry(node).or_default();
        }
    }

    /// The device is asked for something.
    pub fn began(&mut self, op: &DiskOp, now: Time) {
        match &op.kind {
            DiskOpKind::Write { data, .. } => self.writes.began(op.token, data.len(), now),
            DiskOpKind::Read { buf, .. } => self.reads.began(op.token, buf.len(), now),
            _ => {}
        }
    }

    /// The device is done with something.
    pub fn ended(&mut self, token: OpToken, now: Time) {
        let late = self.late_nanos();
        self.writes.ended(token, now, late);
        self.reads.ended(token, now, late);
    }

    /// A turn came later than the shard had asked for.
    pub fn turn_late(&mut self, by: Duration) {
        let nanos = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        self.late[0] = self.late[0].max(nanos);
    }

    /// By how many nanoseconds turns came late lately, at most.
    fn late_nanos(&self) -> u64 {
        self.late[0].max(self.late[1])
    }

    /// All groups sleep: nothing is measured or told, so nobody is slow.
    pub fn rest(&mut self, now: Time) {
        self.verdicts.values_mut().for_each(|(verdict, _)| verdict.rest(now));
    }

    /// A peer's link went down or came up: what was known about the way is void.
    pub fn peer_link(&mut self, peer: NodeId) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.forget_way();
        }
    }

    /// Takes what a peer tells. Of a node that is no peer nothing is kept.
    pub fn take(&mut self, from: NodeId, score: NodeScore, now: Time) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        if score.echo > peer.echo && score.echo <= now.0 {
            let late = self.late[0].max(self.late[1]).saturating_add(score.late_nanos);
            let nanos = (now.0 - score.echo).saturating_sub(score.held_nanos).saturating_sub(late);
            peer.ways[peer.ways_seen % WAYS] = nanos.max(1);
            peer.ways_seen += 1;
            peer.echo = score.echo;
        }
        peer.told = Some((now, score));
    }

    /// Ends the window if it is time, and judges everybody. Then it is to be told to all.
    pub fn tick(&mut self, tick: u64, now: Time) -> bool {
        if tick < self.ends_at {
            return false;
        }
        self.ends_at = tick + WINDOW_TICKS;
        let late = self.late_nanos();
        self.reads.close(now, self.window_nanos, late);
        if self.writes.close(now, self.window_nanos, late) {
            self.window = self.window.wrapping_add(1);
        }
        self.judged_at = now;
        self.judge(now);
        self.late = [0, self.late[0]];
        true
    }

    /// What a peer is told.
    pub fn tell(&self, to: NodeId, now: Time) -> NodeScore {
        let (echo, held_nanos) = match self.peers.get(&to).and_then(|peer| peer.told.as_ref()) {
            Some((at, told)) => (told.stamp, now.0.saturating_sub(at.0)),
            None => (0, 0),
        };
        let known = |(node, peer): (&NodeId, &Peer)| Some((*node, peer.way()?));
        NodeScore {
            window: self.window,
            write_nanos: self.writes.mean(),
            read_nanos: self.reads.mean(),
            stamp: now.0.max(1),
            echo,
            held_nanos,
            late_nanos: self.late_nanos(),
            paths: self.peers.iter().filter_map(known).take(SCORE_PATHS_MAX).collect(),
        }
    }

    /// Whether a node is much slower than the others, as far as is known here.
    pub fn is_slow(&self, node: NodeId) -> bool {
        self.verdicts.get(&node).is_some_and(|(verdict, _)| verdict.slow_since().is_some())
    }

    /// Whether a node may get leadership back: it is not slow, and was not until just now.
    pub fn is_trusted(&self, node: NodeId) -> bool {
        self.verdicts.get(&node).is_none_or(|(verdict, _)| verdict.is_trusted(self.judged_at))
    }

    /// Nanoseconds until a write is durable on a majority of the voters if `leader` leads, its own log
    /// included; nothing if that is not known.
    pub fn commit_nanos(&self, leader: NodeId, voters: &[NodeId]) -> Option<u64> {
        let own = self.write_nanos(leader)?;
        let others = voters.iter().copied().filter(|node| *node != leader);
        let mut acknowledged: Vec<u64> = others
            .filter_map(|node| Some(self.way_nanos(leader, node)? + self.write_nanos(node)?))
            .collect();
        acknowledged.sort_unstable();
        match voters.len() / 2 {
            0 => Some(own),
            needed => acknowledged.get(needed - 1).map(|nanos| own.max(*nanos)),
        }
    }

    /// Whether it is worth the trouble that `heir` leads instead of this node.
    pub fn relieves(&self, heir: NodeId, voters: &[NodeId]) -> Option<u64> {
        let heirs = self.commit_nanos(heir, voters)?;
        let gains = heirs.saturating_mul(GAIN) <= self.commit_nanos(self.me, voters)?;
        let hasty = self.planted.is(Bug::HandsOverWhenAllSlow);
        ((gains && !self.is_slow(heir)) || hasty).then_some(heirs)
    }

    /// What is known of every node, this one first. Nobody is slow unless the shard is `awake`.
    pub fn status(&self, awake: bool) -> Vec<ScoreStatus> {
        let time = |nanos: u64| (nanos > 0).then(|| Duration::from_nanos(nanos));
        let own = std::iter::once(self.me);
        let status = |node: NodeId| {
            let peer = self.peers.get(&node);
            let told = peer.and_then(|peer| peer.told.as_ref()).map(|(_, told)| told);
            let of_peer = |nanos: fn(&NodeScore) -> u64| told.map_or(0, nanos);
            let here = node == self.me;
            let since = self.verdicts.get(&node).and_then(|(verdict, _)| verdict.slow_since());
            ScoreStatus {
                node,
                write: time(if here { self.writes.mean() } else { of_peer(|s| s.write_nanos) }),
                read: time(if here { self.reads.mean() } else { of_peer(|s| s.read_nanos) }),
                worst_write: time(if here { self.writes.worst() } else { 0 }),
                best_write: time(if here { self.writes.best() } else { 0 }),
                best_read: time(if here { self.reads.best() } else { 0 }),
                way: peer.and_then(Peer::way).and_then(time),
                slow_for: since.filter(|_| awake).map(|since| self.judged_at.since(since)),
            }
        };
        own.chain(self.peers.keys().copied()).map(status).collect()
    }

    /// What a peer told, if that is not too long ago.
    fn told(&self, node: NodeId) -> Option<&NodeScore> {
        let (at, told) = self.peers.get(&node)?.told.as_ref()?;
        let age = self.judged_at.since(*at).as_nanos();
        (age <= u128::from(TOLD_WINDOWS * self.window_nanos)).then_some(told)
    }

    fn window_of(&self, node: NodeId) -> Option<u32> {
        if node == self.me { Some(self.window) } else { self.told(node).map(|told| told.window) }
    }

    fn write_nanos(&self, node: NodeId) -> Option<u64> {
        let nanos = if node == self.me { self.writes.mean() } else { self.told(node)?.write_nanos };
        // What a peer says may be anything: sums stay far from the end of the numbers.
        (nanos > 0).then_some(nanos.min(1 << 60))
    }

    /// Nanoseconds from one node to another and back, as far as they count.
    fn way_nanos(&self, a: NodeId, b: NodeId) -> Option<u64> {
        let says = |from: NodeId, to: NodeId| {
            if from == self.me {
                return self.peers.get(&to)?.way();
            }
            let paths = &self.told(from)?.paths;
            paths.iter().find(|(node, _)| *node == to).map(|(_, nanos)| *nanos)
        };
        let nanos = says(a, b).or_else(|| says(b, a))?;
        Some(nanos.min(1 << 60).saturating_sub(WAY_FREE_NANOS))
    }

    /// What a node costs by itself: its log write, and the way to the nearest half of the others.
    fn own_nanos(&self, node: NodeId, all: &[NodeId]) -> Option<u64> {
        let others = all.iter().copied().filter(|other| *other != node);
        let ways = others.filter_map(|other| self.way_nanos(node, other)).collect();
        Some(self.write_nanos(node)? + lower_median(ways)?)
    }

    fn judge(&mut self, now: Time) {
        let nodes: Vec<NodeId> = self.verdicts.keys().copied().collect();
        let all: Vec<NodeId> =
            nodes.into_iter().filter(|node| self.window_of(*node).is_some()).collect();
        let costs: Vec<(NodeId, u64)> =
            all.iter().filter_map(|node| Some((*node, self.own_nanos(*node, &all)?))).collect();
        let mut news = BTreeSet::new();
        for (node, nanos) in &costs {
            let others = costs.iter().filter(|(other, _)| other != node).map(|(_, n)| *n);
            let Some(others) = lower_median(others.collect()) else { continue };
            let others = if self.planted.is(Bug::HandsOverWhenAllSlow) { 0 } else { others };
            let window = self.window_of(*node).expect("it is among all");
            let (verdict, judged) = self.verdicts.get_mut(node).expect("taken from there");
            // A figure that is no news says nothing again.
            if *judged != window {
                *judged = window;
                verdict.window(*nanos, others, now);
                news.insert(*node);
            }
        }
        let silent = self.verdicts.iter_mut().filter(|(node, _)| !news.contains(node));
        silent.for_each(|(_, (verdict, _))| verdict.silence(now));
    }
}

/// The middle of some figures, or the lower of two.
fn lower_median(mut figures: Vec<u64>) -> Option<u64> {
    figures.sort_unstable();
    figures.get(figures.len().checked_sub(1)? / 2).copied()
}

#[cfg(test)]
mod tests;
