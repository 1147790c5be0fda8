//! The nemesis: does the faults of each family at the family's pace.

use crate::disk::{CutPolicy, Damage};
use crate::event::{Ev, Who};
use crate::net::{LinkIndex, LinkKind};
use crate::node::address;
use crate::options::Family;
use crate::queue::{MICRO, MILLI, SECOND};
use crate::world::World;
use basalt_core::event::Event;
use basalt_core::shard::Phase;
use basalt_wire::ids::{GroupId, LogIndex};
use bytes::Bytes;

/// Mean nanoseconds of an operation of a gray disk, and of a message on a gray link, at most.
pub const GRAY_MAX: u64 = 200 * MILLI;

impl World {
    /// Sets the conditions that hold for the whole run, and the first fault of each family.
    pub fn unleash(&mut self) {
        let families = self.options.families;
        let mut rng = crate::rng::Rng::stream(self.options.seed, "conditions", 0);
        let corrupt = rng.log_uniform(1e-4, 1e-2);
        let gray = (rng.below(self.nodes.len() as u64) as usize, rng.log_uniform(2.0, 50.0));
        let write_error = rng.log_uniform(2e-4, 1e-2);
        let (read_error, read_wrong) = (rng.log_uniform(1e-3, 5e-2), rng.log_uniform(1e-3, 5e-2));
        if families.has(Family::Corrupt) {
            self.net.options_mut().corrupt = corrupt;
        }
        if families.has(Family::SlowDisk) {
            self.nodes[gray.0].disk.faults_mut().slowness = gray.1;
        }
        self.turn_gray(families.has(Family::GrayDisk), families.has(Family::GrayLink), &mut rng);
        if families.has(Family::WriteFault) {
            for node in &mut self.nodes {
                node.disk.faults_mut().write_error = write_error;
            }
        }
        if families.has(Family::ReadFault) {
            let victim = self.options.victim as usize;
            let faults = self.nodes[victim].disk.faults_mut();
            (faults.read_error, faults.read_wrong) = (read_error, read_wrong);
        }
        for family in families.iter() {
            self.next_fault(family);
        }
    }

    /// Makes one node's disk, or its links, slow for good: a hundred times, but not beyond what a client
    /// would take for an end.
    fn turn_gray(&mut self, disk: bool, link: bool, rng: &mut crate::rng::Rng) {
        let (slow, far) = (rng.below(self.nodes.len() as u64), rng.below(self.nodes.len() as u64));
        if disk {
            let most = GRAY_MAX as f64 / self.options.disk_latency as f64;
            self.nodes[slow as usize].disk.faults_mut().slowness = most.clamp(1.0, 100.0);
        }
        if link {
            let most = GRAY_MAX as f64 / (self.options.delay + self.options.delay_min) as f64;
            self.net.set_gray(far as Who, most.clamp(1.0, 100.0));
        }
    }

    fn next_fault(&mut self, family: Family) {
        let paced = matches!(
            family,
            Family::Reset
                | Family::Clog
                | Family::Partition
                | Family::Damage
                | Family::Kill
                | Family::Power
                | Family::Pause
                | Family::Move
                | Family::Operator
                | Family::Grow
                | Family::Snapshot
                | Family::Members
        );
        if paced {
            let mean = self.options.pace[family as usize] as f64;
            let delay = self.fault_rng.exponential(mean);
            self.queue.push_in(delay, Ev::Nemesis(family));
        }
    }

    /// Does the next fault of a family.
    pub fn nemesis(&mut self, family: Family) {
        if self.ending.is_some() {
            return;
        }
        self.counts.faults += 1;
        match family {
            Family::Reset => self.reset_some_link(),
            Family::Clog => self.clog(),
            Family::Partition => self.partition(),
            Family::Damage => self.damage(),
            Family::Kill => self.kill(),
            Family::Power => self.power(),
            Family::Pause => self.pause(),
            Family::Move => self.move_attachment(),
            Family::Operator => self.operate(),
            Family::Grow => self.grow_some_volume(),
            Family::Snapshot => self.disturb_snapshots(),
            Family::Members => self.move_some_group(),
            _ => {}
        }
        self.next_fault(family);
    }

    fn some_node(&mut self) -> Who {
        self.fault_rng.below(self.nodes.len() as u64) as Who
    }

    fn everyone(&self) -> usize {
        self.nodes.len() + self.clients.len()
    }

    fn reset_some_link(&mut self) {
        let live: Vec<LinkIndex> = self.net.live().filter(|l| self.net.is_open(*l, 0)).collect();
        if !live.is_empty() {
            let link = *self.fault_rng.pick(&live);
            let end = self.fault_rng.below(2) as u8;
            self.trace(|| format!("link {link} is reset by end {end}"));
            self.break_link(link, end);
        }
    }

    fn clog(&mut self) {
        let live: Vec<LinkIndex> = self.net.live().collect();
        if live.is_empty() {
            return;
        }
        let mut link = *self.fault_rng.pick(&live);
        let mut end = self.fault_rng.below(2) as u8;
        let requests = |l: &LinkIndex| self.net.kind(*l) == Some(LinkKind::Client);
        if self.fault_rng.chance(0.4)
            && let Some(newest) = live.iter().copied().rfind(requests)
        {
            // Requests that are stuck while the client goes on over another link.
            (link, end) = (newest, 0);
        }
        let Some([a, b]) = self.net.ends(link) else { return };
        let (from, to) = if end == 0 { (a, b) } else { (b, a) };
        let length = self.fault_rng.log_uniform(5e6, 8e9) as u64;
        if self.fault_rng.chance(0.5) {
            self.trace(|| {
                format!("link {link} is stalled from end {end} for {} ms", length / MILLI)
            });
            let until = self.queue.now() + length;
            self.net.stall(link, end, until, &mut self.queue);
            return;
        }
        self.cut_network(vec![(from, to)], length);
    }

    fn partition(&mut self) {
        let all = self.everyone();
        let mut side: Vec<bool> = (0..all).map(|_| self.fault_rng.chance(0.5)).collect();
        if self.fault_rng.chance(0.6) {
            // The common case: one node alone.
            let alone = self.some_node();
            side = (0..all).map(|w| w == alone).collect();
        }
        // Clients may see both sides of a partition of the nodes.
        if self.fault_rng.chance(0.5) {
            let nodes = self.nodes.len();
            let bridge = self.fault_rng.chance(0.5);
            side.iter_mut().skip(nodes).for_each(|s| *s = bridge);
        }
        let both = self.fault_rng.chance(0.6);
        let mut pairs = Vec::new();
        let nodes = self.nodes.len();
        for a in 0..all {
            // Clients have no links with each other.
            let others = if a < nodes { all } else { nodes };
            for b in (0..others).filter(|b| side[a] && !side[*b]) {
                pairs.push((a, b));
                if both {
                    pairs.push((b, a));
                }
            }
        }
        let length = self.fault_rng.log_uniform(100e6, 10e9) as u64;
        self.cut_network(pairs, length);
    }

    /// Keeps bytes of some pairs from passing, for a while.
    pub fn cut_network(&mut self, pairs: Vec<(Who, Who)>, length: u64) {
        self.trace(|| format!("cut {pairs:?} for {} ms", length / MILLI));
        self.net.block(&pairs, &mut self.queue);
        let fault = self.cuts.len() as u32;
        self.cuts.push(pairs);
        self.queue.push_in(length, Ev::Heal { fault });
    }

    /// Ends a network fault, if it still lasts.
    pub fn heal(&mut self, fault: u32) {
        let pairs = std::mem::take(&mut self.cuts[fault as usize]);
        self.net.unblock(&pairs, &mut self.queue);
    }

    fn damage(&mut self) {
        let victim = self.options.victim as usize;
        if self.fault_rng.chance(0.2) {
            self.disturb_store(victim, true);
            return;
        }
        let kind = *self.fault_rng.pick(&Damage::ALL);
        if let Some(text) = self.nodes[victim].disk.damage(kind) {
            self.damaged = true;
            self.trace(|| format!("node {victim} disk damage: {text}"));
        }
    }

    fn kill(&mut self) {
        let n = self.some_node();
        self.stop_node(n, None);
        self.start_later(n);
    }

    fn power(&mut self) {
        let all = self.fault_rng.chance(0.3);
        let one = self.some_node();
        for n in 0..self.nodes.len() {
            if all || n == one {
                let policy = *self.fault_rng.pick(&CutPolicy::ALL);
                self.stop_node(n, Some(policy));
                self.start_later(n);
            }
        }
    }

    fn start_later(&mut self, n: Who) {
        if self.fault_rng.chance(0.1) && self.declares_damage(n) {
            self.disturb_store(n, false);
            self.damaged = true;
        }
        let down = self.fault_rng.log_uniform(1e6, 4e9) as u64;
        self.queue.push_in(down, Ev::Start { node: n });
        if self.fault_rng.chance(0.3) {
            // A crash during recovery, and perhaps one during the recovery from that.
            let again = down + self.fault_rng.log_uniform(20e3, 50e6) as u64;
            let power = self.fault_rng.chance(0.5);
            self.queue.push_in(again, Ev::Crash { node: n, power });
            let later = again + self.fault_rng.log_uniform(1e6, 1e9) as u64;
            self.queue.push_in(later, Ev::Start { node: n });
        }
    }

    /// A crash that was planned for some moment after a start.
    pub fn crash(&mut self, n: Who, power: bool) {
        if self.ending.is_none() {
            let policy = *self.fault_rng.pick(&CutPolicy::ALL);
            self.stop_node(n, power.then_some(policy));
        }
    }

    fn pause(&mut self) {
        let who = self.fault_rng.below(self.everyone() as u64) as Who;
        let length = self.fault_rng.log_uniform(1e6, 6e9) as u64;
        let until = self.queue.now() + length;
        if who >= self.nodes.len() {
            let c = self.client(who);
            c.paused_until = c.paused_until.max(until);
        } else if self.fault_rng.chance(0.5) {
            self.nodes[who].hold_next = true;
        } else {
            let node = &mut self.nodes[who];
            node.paused_until = node.paused_until.max(until);
            self.watch_paused(who);
        }
        self.trace(|| format!("{who} is paused for {} ms", length / MILLI));
    }

    /// Another client attaches the volume, whatever the present one is doing.
    fn move_attachment(&mut self) {
        let volume = self.some_volume();
        let old = self.volumes[volume].client;
        let budget = self.client(old).budget;
        let left = self.fault_rng.below(u64::from(budget) / 4 + 1) as u32;
        if self.fault_rng.chance(0.6) {
            let length = self.fault_rng.log_uniform(1e6, 5e9) as u64;
            let until = self.queue.now() + length;
            self.client(old).paused_until = until;
        }
        self.client(old).budget = left;
        self.attach(volume, budget - left);
    }

    /// A volume that was handed out.
    pub fn some_volume(&mut self) -> usize {
        let begun = self.begun_volumes();
        *self.fault_rng.pick(&begun)
    }

    fn grow_some_volume(&mut self) {
        let volume = self.some_volume();
        if !self.is_being_cut(volume) {
            self.grow(volume, 1);
        }
    }

    fn operate(&mut self) {
        let n = self.some_node();
        let running =
            self.nodes[n].shard.as_ref().is_some_and(|s| s.status().phase == Phase::Running);
        match self.fault_rng.below(10) {
            _ if !running => {}
            0 => {
                self.trace(|| format!("node {n} is drained"));
                self.give(n, Event::Drain, 0);
                // A drain that cannot end is cut short.
                let patience = self.fault_rng.within(500, 3_000) * MILLI;
                let boot = self.nodes[n].boot;
                self.queue.push_in(patience, Ev::Drained { node: n, boot });
            }
            1..=4 => {
                let group = GroupId(self.fault_rng.below(u64::from(self.options.groups)) as u32);
                let voters: Vec<_> = self.map.groups[group.0 as usize].clone();
                let node = self.fault_rng.pick(&voters).node;
                for n in 0..self.nodes.len() {
                    if voters.contains(&address(n)) {
                        self.give(n, Event::Prefer { group, node }, 0);
                    }
                }
            }
            _ => self.propose(n),
        }
    }

    /// A node's operator proposes a metadata command.
    pub fn propose(&mut self, n: Who) {
        let token = self.proposals.len() as u64;
        let command = Bytes::copy_from_slice(&(token + 1).to_le_bytes());
        self.proposals.push(None);
        self.give(n, Event::Propose { token, command }, 0);
    }

    /// A metadata proposal ended.
    pub fn proposed(&mut self, token: u64, index: Option<LogIndex>) {
        self.proposals[token as usize] = index;
        if let Some(index) = index {
            let command = (token + 1).to_le_bytes();
            if let Err(text) = self.raft.applied(GroupId::METADATA.0, index, &command) {
                self.fail(crate::report::Class::Raft, text);
            }
        }
    }

    /// A drained or given-up process is stopped and started again.
    pub fn recycle(&mut self, n: Who, boot: u32) {
        if self.nodes[n].boot == boot && self.nodes[n].is_up() {
            self.stop_node(n, None);
            let down = self.fault_rng.log_uniform(MILLI as f64, SECOND as f64) as u64;
            self.queue.push_in(down.max(MICRO), Ev::Start { node: n });
        }
    }
}
