//! A world under the hand of a script: nothing goes wrong but what the script does.

use crate::disk::CutPolicy;
use crate::event::{Ev, Who};
use crate::options::{Families, Limits, Options, Profile};
use crate::queue::{MILLI, SECOND};
use crate::report::Class;
use crate::workload::{Kind, Plan};
use crate::world::{Volume, World};
use basalt_core::planted::Planted;
use basalt_core::shard::GroupRole;
use basalt_wire::ids::{GroupId, Term};

/// With what a script is played.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// The seed.
    pub seed: u64,
    /// Whether every event is printed.
    pub trace: bool,
    /// A bug planted in the engine.
    pub planted: Planted,
}

/// A calm world of three nodes, one group, one volume and one client, to be disturbed by hand.
pub struct Script {
    /// The world.
    pub world: World,
    /// The client attached first.
    pub client: Who,
}

impl Script {
    /// Builds the world, starts it and waits until the volume is attached. `change` may change what
    /// would be drawn.
    pub fn new(set: Setup, change: impl FnOnce(&mut Options)) -> Script {
        let mut o = Options::draw(set.seed, Profile::Tiny, &Limits::default(), set.planted);
        o.families = Families::NONE;
        o.spare = 0;
        o.victim %= o.nodes;
        o.groups = 1;
        o.volumes = 1;
        o.chunks = 1;
        o.window = 16;
        o.blocks_max = 4;
        o.unit = 4096;
        o.core_first = false;
        o.restart_last = true;
        o.horizon = u64::MAX;
        (o.scrub, o.clones, o.encrypted, o.traced) = (0, 0, false, false);
        o.segment = 256 << 10;
        o.device = (128 << 10) + (32 << 20);
        o.disk_latency = 60_000;
        (o.delay, o.delay_min) = (20_000, 20_000);
        change(&mut o);
        let mut world = World::new(o, set.trace);
        world.scripted = true;
        for n in 0..world.nodes.len() {
            world.nodes[n].control.saves = 0.0;
            world.start_node(n);
        }
        world.volumes.push(Volume::new(1, &world.options));
        let client = world.attach(0, 0);
        world.queue.push_in(crate::ending::CHECK_EVERY, Ev::Check);
        let mut script = Script { world, client };
        script.wait("the volume is attached", 10_000, |w, c| w.client(c).ready.is_some());
        script
    }

    /// Lets so many milliseconds pass.
    pub fn pass(&mut self, ms: u64) {
        let until = self.world.queue.now() + ms * MILLI;
        self.world.run_until(until);
    }

    /// Lets so many microseconds pass.
    pub fn pass_micros(&mut self, us: u64) {
        let until = self.world.queue.now() + us * 1_000;
        self.world.run_until(until);
    }

    /// Waits for something; if it does not come within so many milliseconds, the scenario fails.
    pub fn wait(&mut self, what: &str, ms: u64, come: impl Fn(&mut World, Who) -> bool) {
        for _ in 0..ms {
            if self.world.has_failed() || come(&mut self.world, self.client) {
                return;
            }
            self.pass(1);
        }
        let text = format!("waited {ms} ms in vain until {what}: {}", self.world.describe());
        self.world.fail(Class::Liveness, text);
    }

    /// Waits until everything asked is answered.
    pub fn wait_answers(&mut self, ms: u64) {
        self.wait("everything is answered", ms, |w, c| w.client(c).pending() == 0);
    }

    /// The client asks for something.
    pub fn ask(&mut self, kind: Kind, block: u64, count: u32) {
        let client = self.client;
        self.world.submit_plan(client, Plan { kind, unit: block, count });
    }

    /// Writes one block.
    pub fn write(&mut self, block: u64) {
        self.ask(Kind::Write, block, 1);
    }

    /// Reads one block.
    pub fn read(&mut self, block: u64) {
        self.ask(Kind::Read, block, 1);
    }

    /// Writes and reads here and there, with up to eight in flight, and waits for the answers.
    pub fn work(&mut self, ops: u32, ms: u64) {
        for i in 0..ops {
            let block = u64::from(i * 7 % 13);
            let kind = if i % 3 == 2 { Kind::Read } else { Kind::Write };
            self.ask(kind, block, 1 + i % 3);
            if i % 8 == 7 {
                self.wait_answers(ms);
            }
        }
        self.wait_answers(ms);
    }

    /// The node that leads the group and knows of no later term.
    pub fn leader(&mut self) -> Option<Who> {
        let mut best: Option<(Term, Who)> = None;
        for n in 0..self.world.nodes.len() {
            let Some(status) = self.world.nodes[n].shard.as_ref().map(|s| s.status()) else {
                continue;
            };
            for g in status.groups.iter().filter(|g| g.group == GroupId(0)) {
                if g.role == GroupRole::Leader && best.is_none_or(|b| b.0 < g.term) {
                    best = Some((g.term, n));
                }
            }
        }
        best.map(|b| b.1)
    }

    /// Waits until there is a leader other than `not`.
    pub fn wait_leader(&mut self, not: Option<Who>, ms: u64) -> Who {
        for _ in 0..ms {
            if let Some(n) = self.leader().filter(|n| Some(*n) != not) {
                return n;
            }
            if self.world.has_failed() {
                break;
            }
            self.pass(1);
        }
        self.world.fail(Class::Liveness, format!("no leader other than {not:?} within {ms} ms"));
        0
    }

    /// The highest term that a node has seen of the group.
    pub fn term(&self, n: Who) -> u64 {
        let status = self.world.nodes[n].shard.as_ref().map(|s| s.status());
        status
            .and_then(|s| s.groups.iter().find(|g| g.group == GroupId(0)).map(|g| g.term.0))
            .unwrap_or(0)
    }

    /// The highest term that any replica of any group knows.
    pub fn highest_term(&self) -> u64 {
        let shards = self.world.nodes.iter().filter_map(|n| n.shard.as_ref());
        shards.flat_map(|s| s.status().groups).map(|g| g.term.0).max().unwrap_or(0)
    }

    /// Asks for a write, and for a metadata command of every node that leads its group.
    pub fn ask_all(&mut self) {
        self.write(3);
        for n in 0..3 {
            self.world.propose(n);
        }
    }

    /// Fails the scenario unless the volume and the metadata group serve within so many milliseconds.
    pub fn serves(&mut self, ms: u64) {
        self.ask(Kind::Write, 2, 1);
        let from = self.world.proposals.len();
        for waited in 0..ms {
            if self.world.has_failed() {
                return;
            }
            if waited % 50 == 0 {
                (0..3).for_each(|n| self.world.propose(n));
            }
            let served = self.world.proposals[from..].iter().any(Option::is_some);
            if served && self.world.client(self.client).pending() == 0 {
                return;
            }
            self.pass(1);
        }
        let text = format!("not every group serves within {ms} ms: {}", self.world.describe());
        self.world.fail(Class::Liveness, text);
    }

    /// A node that is not this one.
    pub fn other(&self, n: Who) -> Who {
        (n + 1) % self.world.nodes.len()
    }

    /// Kills a node's process.
    pub fn kill(&mut self, n: Who) {
        self.world.stop_node(n, None);
    }

    /// Cuts a node's power.
    pub fn power_cut(&mut self, n: Who, policy: CutPolicy) {
        self.world.stop_node(n, Some(policy));
    }

    /// Starts a node.
    pub fn start(&mut self, n: Who) {
        self.world.start_node(n);
    }

    /// Keeps bytes from `from` to `to` until [`Script::heal`].
    pub fn cut(&mut self, from: Who, to: Who) {
        self.world.cut_network(vec![(from, to)], 100_000 * SECOND);
    }

    /// What the client sends to a node over its present link arrives only after so many milliseconds;
    /// another link between the two is not concerned.
    pub fn stall_requests(&mut self, to: Who, ms: u64) {
        let ends = Some([self.client, to]);
        let until = self.world.queue.now() + ms * MILLI;
        let links: Vec<_> =
            self.world.net.live().filter(|l| self.world.net.ends(*l) == ends).collect();
        for link in links {
            self.world.net.stall(link, 0, until, &mut self.world.queue);
        }
    }

    /// Cuts a node off from all others, clients included, both ways.
    pub fn isolate(&mut self, n: Who) {
        let all = self.world.nodes.len() + self.world.clients.len();
        let pairs = (0..all).filter(|w| *w != n).flat_map(|w| [(w, n), (n, w)]).collect();
        self.world.cut_network(pairs, 100_000 * SECOND);
    }

    /// Ends all cuts.
    pub fn heal(&mut self) {
        for fault in 0..self.world.cuts.len() as u32 {
            self.world.heal(fault);
        }
    }

    /// Attaches the volume elsewhere; the new client is the script's from here on.
    pub fn attach_elsewhere(&mut self) -> Who {
        let old = self.client;
        self.client = self.world.attach(0, 0);
        old
    }

    /// Fails the scenario unless something holds.
    pub fn must(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.world.fail(Class::Raft, what());
        }
    }

    /// Faults end; everything must be answered, replicas must agree, before and after a restart.
    pub fn end(mut self) -> World {
        if !self.world.has_failed() {
            self.world.begin_ending();
            self.world.run_until_end();
        }
        self.world
    }
}
