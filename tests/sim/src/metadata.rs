//! The simulated twin of the control plane's state of the metadata group: made by the commands that a node is told,
//! saved now and then, fetched from another node when the node's shard asks for it.
//!
//! The state is a digest over all commands in order, so that a command that was left out, done twice, or done in
//! another place shows as soon as two nodes have come to the same entry.

use crate::event::{Ev, Who};
use crate::node::node_of;
use crate::report::Class;
use crate::rng::{Rng, mix};
use crate::world::World;
use basalt_core::event::Event;
use basalt_core::shard::GroupStatus;
use basalt_wire::block::crc32c;
use basalt_wire::ids::{Address, GroupId, LogIndex, NodeId, ShardId};
use std::collections::VecDeque;

/// The state as of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The entry.
    pub index: u64,
    digest: u64,
}

impl State {
    /// One that came another way.
    pub fn restored(index: u64, digest: u64) -> State {
        State { index, digest }
    }

    fn with(self, command: &[u8]) -> State {
        let index = self.index + 1;
        State { index, digest: mix(self.digest ^ u64::from(crc32c(command)) ^ index << 32) }
    }
}

/// The control plane of a node.
pub struct ControlPlane {
    /// The state in memory.
    pub state: State,
    /// The last entry that a state was fetched of: commands up to there may be told late.
    fetched: u64,
    /// What is being written to the store.
    landing: VecDeque<State>,
    /// What the shard has asked for: from whom, and as of which entry at least.
    wanted: Option<(Option<NodeId>, u64)>,
    /// Whether an attempt to fetch it is under way.
    asking: bool,
    /// States that came from other nodes.
    pub fetches: u64,
    /// Whether what its store held of the state was lost, or put back to an older one.
    pub harmed: bool,
    /// How likely a command is followed by a save.
    pub saves: f64,
    rng: Rng,
}

impl ControlPlane {
    /// One that knows nothing.
    pub fn new(mut rng: Rng) -> ControlPlane {
        let saves = *rng.pick(&[0.0, 0.02, 0.2, 1.0]);
        ControlPlane {
            state: State::default(),
            fetched: 0,
            landing: VecDeque::new(),
            wanted: None,
            asking: false,
            fetches: 0,
            harmed: false,
            saves,
            rng,
        }
    }

    /// The process starts with what its store holds.
    pub fn start(&mut self, kept: State) -> LogIndex {
        (self.state, self.fetched, self.wanted, self.asking) = (kept, 0, None, false);
        LogIndex(kept.index)
    }

    /// Whether it may complain that it lacks the state.
    pub fn may_lack(&self, notice: &str) -> bool {
        self.harmed && notice.contains("the control plane's state of the metadata group reaches")
    }

    /// The process is gone: what it was writing is there or is not.
    pub fn crash(&mut self) -> Option<State> {
        let written = self.landing.drain(..).next();
        written.filter(|_| self.rng.chance(0.5))
    }

    /// Whether a loss of the store takes the state with it, and whether it takes the rest.
    pub fn draw_loss(&mut self) -> (bool, bool) {
        let what = self.rng.below(3);
        (what != 1, what != 2)
    }
}

impl World {
    /// A node's shard tells a command.
    pub fn metadata_told(&mut self, n: Who, index: LogIndex, command: &[u8]) {
        let plane = &mut self.nodes[n].control;
        let before = plane.state.index;
        if index.0 <= before && index.0 <= plane.fetched {
            // The shard did not know yet that the state stands for it.
            return;
        }
        if index.0 != before + 1 {
            let text = format!("node {n} was told metadata entry {index} behind entry {before}");
            self.fail(Class::Raft, text);
            return;
        }
        plane.state = plane.state.with(command);
        let state = plane.state;
        let saves = plane.landing.is_empty() && plane.rng.chance(plane.saves);
        if let Err(text) = self.raft.applied(GroupId::METADATA.0, index, command) {
            self.fail(Class::Raft, text);
        }
        let known = *self.metadata.entry(state.index).or_insert(state.digest);
        if known != state.digest {
            let text = format!("node {n} holds another metadata state as of entry {index}");
            self.fail(Class::Divergence, text);
        }
        if saves {
            self.save_metadata(n, state);
        }
    }

    fn save_metadata(&mut self, n: Who, state: State) {
        let node = &mut self.nodes[n];
        node.control.landing.push_back(state);
        let delay = node.control.rng.log_uniform(10e3, 500e6) as u64;
        self.queue.push_in(delay, Ev::MetadataKept { node: n, boot: node.boot });
    }

    /// A state is in a node's store, for good.
    pub fn metadata_kept(&mut self, n: Who) {
        let node = &mut self.nodes[n];
        let Some(state) = node.control.landing.pop_front() else { return };
        if state.index > node.store.metadata.index {
            node.store.metadata = state;
        }
        if state.index > node.control.state.index {
            node.control.state = state;
            node.control.fetched = state.index;
            node.control.fetches += 1;
        }
        self.trace(|| format!("node {n} keeps the metadata state of entry {}", state.index));
        self.give(n, Event::MetadataSaved { index: LogIndex(state.index) }, 0);
    }

    /// A node's shard asks for a later state.
    pub fn metadata_wanted(&mut self, n: Who, from: Option<NodeId>, at_least: LogIndex) {
        self.trace(|| {
            format!("node {n} wants the metadata state of entry {at_least} from {from:?}")
        });
        let plane = &mut self.nodes[n].control;
        plane.wanted = Some((from, at_least.0));
        if !std::mem::replace(&mut plane.asking, true) {
            self.ask_for_metadata_later(n);
        }
    }

    fn ask_for_metadata_later(&mut self, n: Who) {
        let node = &mut self.nodes[n];
        let delay = node.control.rng.log_uniform(50e3, 300e6) as u64;
        self.queue.push_in(delay, Ev::MetadataAsked { node: n, boot: node.boot });
    }

    /// An attempt of a node to fetch a state from another one.
    pub fn ask_for_metadata(&mut self, n: Who) {
        let count = self.nodes.len() as u64;
        let plane = &mut self.nodes[n].control;
        let Some((from, at_least)) = plane.wanted else { return };
        let any = plane.rng.below(count) as Who;
        let address = |node| Address { node, shard: ShardId(0) };
        let hinted = from.filter(|_| plane.rng.chance(0.6)).map(|node| node_of(address(node)));
        let (fails, from) = (plane.rng.chance(0.2), hinted.unwrap_or(any));
        if plane.state.index >= at_least {
            // It came to it without anybody's help, or fetched it before.
            let own = plane.state;
            (plane.wanted, plane.asking) = (None, false);
            self.save_metadata(n, own);
            return;
        }
        let there = &self.nodes[from];
        let now = self.queue.now();
        let answers = there.is_up() && there.paused_until <= now && self.net.is_passable(n, from);
        let state = there.control.state;
        if fails || !answers || state.index < at_least {
            self.ask_for_metadata_later(n);
            return;
        }
        self.trace(|| {
            format!("node {n} gets the metadata state of entry {} from {from}", state.index)
        });
        let plane = &mut self.nodes[n].control;
        (plane.wanted, plane.asking) = (None, false);
        self.save_metadata(n, state);
    }

    /// Whether the state of a node is as of what its shard has applied.
    pub fn metadata_is_whole(&self, n: Who, status: &GroupStatus) -> bool {
        status.group != GroupId::METADATA || self.nodes[n].control.state.index == status.applied.0
    }
}
