//! A volume that is guaranteed a minimum, beside others that ask for as much as they can get.

use super::Scenario;
use crate::event::Who;
use crate::queue::MILLI;
use crate::script::{Script, Setup};
use crate::workload::{Kind, Plan};
use crate::world::{Volume, World};
use basalt_client::{ClientEvent, RateLimits};

/// What is guaranteed, in requests a second.
const MINIMUM: u64 = 500;
/// How long a device takes for a request: one of them does twice the minimum, and there are up to three.
const TURN: u64 = MILLI;
/// Requests that the promised volume and each other one have under way, and how many others there are.
const MODEST: usize = 4;
const GREEDY: usize = 32;
const OTHERS: usize = 6;
const BLOCKS: u64 = 256;

/// The scenarios of this module.
pub fn all() -> [Scenario; 1] {
    [Scenario { name: "guaranteed-minimum-is-kept-beside-greedy-volumes", play: kept, seeds: 6 }]
}

/// Volumes on devices that do one thing at a time: the script's own, which is promised something, and greedy ones.
struct Crowd {
    s: Script,
    /// The promised one first.
    clients: Vec<Who>,
    /// Requests that each asked for.
    asked: Vec<u64>,
}

fn crowd(set: Setup) -> Crowd {
    let mut s = Script::new(set, |o| {
        o.window = 128;
        o.disk_latency = 20_000;
    });
    let mut clients = vec![s.client];
    for volume in 1..=OTHERS {
        s.world.volumes.push(Volume::new(volume as u64 + 1, &s.world.options));
        clients.push(s.world.attach(volume, 0));
    }
    s.wait("all are attached", 10_000, |w, _| w.clients.iter().all(|c| c.ready.is_some()));
    for unit in (0..BLOCKS).step_by(4) {
        for client in &clients {
            s.world.submit_plan(*client, Plan { kind: Kind::Write, unit, count: 4 });
        }
        s.pass(1);
    }
    s.wait("all is written", 20_000, |w, _| w.clients.iter().all(|c| c.pending() == 0));
    let limits = RateLimits { iops_min: MINIMUM, ..RateLimits::default() };
    s.world.client_event(clients[0], ClientEvent::Limit(limits));
    for node in &mut s.world.nodes {
        node.disk.faults_mut().turn = TURN;
    }
    let asked = vec![0; clients.len()];
    Crowd { s, clients, asked }
}

impl Crowd {
    /// All read for so many milliseconds. How many were answered in a second: of the promised one, and of the others.
    fn read(&mut self, ms: u64) -> [u64; 2] {
        let before = self.answered();
        let end = self.s.world.queue.now() + ms * MILLI;
        while self.s.world.queue.now() < end {
            for at in 0..self.clients.len() {
                self.fill(at);
            }
            self.s.pass_micros(100);
        }
        let after = self.answered();
        [0, 1].map(|at| (after[at] - before[at]) * 1000 / ms)
    }

    fn fill(&mut self, at: usize) {
        let depth = if at == 0 { MODEST } else { GREEDY };
        let client = self.clients[at];
        for _ in self.s.world.client(client).pending()..depth {
            let unit = self.asked[at] * 61 % BLOCKS;
            self.asked[at] += 1;
            self.s.world.submit_plan(client, Plan { kind: Kind::Read, unit, count: 1 });
        }
    }

    fn answered(&mut self) -> [u64; 2] {
        let mut sums = [0, 0];
        for at in 0..self.clients.len() {
            let pending = self.s.world.client(self.clients[at]).pending() as u64;
            sums[at.min(1)] += self.asked[at] - pending;
        }
        sums
    }
}

fn kept(set: Setup) -> World {
    let mut crowd = crowd(set);
    crowd.read(2_000);
    let [promised, others] = crowd.read(4_000);
    crowd.s.must(promised >= MINIMUM * 9 / 10, || {
        format!(
            "{promised} requests a second of {MINIMUM} that are guaranteed, {others} of the others"
        )
    });
    // Nor is more taken from them than is needed.
    crowd.s.must(others >= MINIMUM / 2, || format!("the others have {others} requests a second"));
    for node in &mut crowd.s.world.nodes {
        node.disk.faults_mut().turn = 0;
    }
    crowd.s.end()
}
