//! Three to five shards that measure made-up devices and links, and what they think of each other.

use super::*;
use basalt_wire::buffer::IoBuf;

const MS: u64 = 1_000_000;
const TICK: Duration = Duration::from_millis(50);

struct World {
    now: Time,
    ticks: u64,
    nodes: Vec<Scores>,
    /// Nanoseconds of each node's log write; 0 for none at all.
    writes: Vec<u64>,
    /// Nanoseconds one way, by sender and receiver.
    ways: Vec<Vec<u64>>,
    /// Nanoseconds by which each node's turns come late.
    late: Vec<u64>,
    /// Scores under way: when they arrive, from, to.
    net: Vec<(Time, usize, usize, NodeScore)>,
}

fn node(at: usize) -> NodeId {
    NodeId(at as u32 + 1)
}

impl World {
    fn new(count: usize) -> World {
        let nodes = (0..count).map(|me| {
            let mut scores = Scores::new(node(me), TICK, Planted::NONE);
            (0..count).for_each(|n| scores.add_peer(node(n)));
            scores
        });
        World {
            now: Time(MS),
            ticks: 0,
            nodes: nodes.collect(),
            writes: vec![60_000; count],
            ways: vec![vec![40_000; count]; count],
            late: vec![0; count],
            net: Vec::new(),
        }
    }

    fn write(&mut self, at: usize) {
        let (token, nanos) = (self.ticks, self.writes[at]);
        let data = IoBuf::alloc(4096).freeze();
        let op = DiskOp { token, kind: DiskOpKind::Write { offset: 0, data, durable: true } };
        self.nodes[at].began(&op, self.now);
        self.nodes[at].ended(token, Time(self.now.0 + nanos));
    }

    fn deliver(&mut self) {
        let (due, later) =
            std::mem::take(&mut self.net).into_iter().partition(|(at, ..)| *at <= self.now);
        self.net = later;
        let mut due: Vec<_> = due;
        due.sort_by_key(|(at, ..)| *at);
        for (at, from, to, score) in due {
            self.nodes[to].take(node(from), score, at);
        }
    }

    fn seconds(&mut self, seconds: u64) {
        for _ in 0..seconds * 20 {
            self.now = self.now + TICK;
            self.ticks += 1;
            self.deliver();
            for at in 0..self.nodes.len() {
                self.nodes[at].turn_late(Duration::from_nanos(self.late[at]));
                if self.writes[at] > 0 {
                    self.write(at);
                }
                if self.nodes[at].tick(self.ticks, self.now) {
                    for to in (0..self.nodes.len()).filter(|to| *to != at) {
                        let score = self.nodes[at].tell(node(to), self.now);
                        let way = Duration::from_nanos(self.ways[at][to]);
                        self.net.push((self.now + way, at, to, score));
                    }
                }
            }
        }
    }

    /// Whom each node holds for slow: all must agree.
    fn slow(&self) -> Vec<usize> {
        let all: Vec<Vec<usize>> = self.nodes.iter().map(|n| self.slow_at(n)).collect();
        assert!(all.iter().all(|slow| *slow == all[0]), "{all:?}");
        all[0].clone()
    }

    fn slow_at(&self, scores: &Scores) -> Vec<usize> {
        (0..self.nodes.len()).filter(|n| scores.is_slow(node(*n))).collect()
    }

    fn heirs(&self, leader: usize) -> Vec<usize> {
        let voters: Vec<NodeId> = (0..self.nodes.len()).map(node).collect();
        let others = (0..self.nodes.len()).filter(|n| *n != leader);
        others.filter(|n| self.nodes[leader].relieves(node(*n), &voters).is_some()).collect()
    }

    fn gray_links(&mut self, of: usize, nanos: u64) {
        for n in (0..self.nodes.len()).filter(|n| *n != of) {
            (self.ways[of][n], self.ways[n][of]) = (nanos, nanos);
        }
    }
}

#[test]
fn a_slow_device_is_found_and_forgiven() {
    let mut world = World::new(3);
    world.seconds(5);
    assert_eq!((world.slow(), world.heirs(0)), (vec![], vec![]));
    world.writes[0] *= 100;
    world.seconds(2);
    assert_eq!((world.slow(), world.heirs(0)), (vec![0], vec![1, 2]));
    assert_eq!(world.heirs(1), vec![], "under another it matters to nobody");
    world.writes[0] /= 100;
    world.seconds(1);
    assert_eq!(world.slow(), vec![0], "not at once");
    world.seconds(4);
    assert_eq!(world.slow(), vec![]);
    assert!(world.nodes.iter().all(|n| !n.is_trusted(node(0)) && n.is_trusted(node(1))));
    world.seconds(7);
    assert!(world.nodes.iter().all(|n| n.is_trusted(node(0))));
}

#[test]
fn who_is_not_measured_any_more_is_not_slow() {
    let mut world = World::new(3);
    world.writes[0] *= 100;
    world.seconds(5);
    assert_eq!(world.slow(), vec![0]);
    // Nobody writes: the last figures are bad, and old.
    world.writes = vec![0; 3];
    world.seconds(4);
    assert_eq!(world.slow(), vec![0]);
    world.seconds(3);
    assert_eq!(world.slow(), vec![]);
    world.writes = vec![6 * MS, 60_000, 60_000];
    world.seconds(3);
    assert_eq!(world.slow(), vec![0], "it is found again");
    let slow = |n: &Scores, awake| n.status(awake).iter().any(|s| s.slow_for.is_some());
    assert!(world.nodes.iter().all(|n| slow(n, true) && !slow(n, false)));
    let now = world.now;
    world.nodes.iter_mut().for_each(|n| n.rest(now));
    assert_eq!(world.slow(), vec![], "all sleep");
}

#[test]
fn a_way_of_a_few_milliseconds_is_not_slow_however_short_the_others_are() {
    let mut world = World::new(3);
    world.gray_links(0, 2 * MS);
    world.seconds(10);
    assert_eq!((world.slow(), world.heirs(0)), (vec![], vec![]));
}

#[test]
fn a_late_processor_is_no_slow_device_and_no_slow_link() {
    let mut world = World::new(3);
    world.seconds(3);
    // All that node 0 hears of its device and its peers it hears 25 ms late.
    let late = 25 * MS;
    world.late[0] = late;
    world.writes[0] += late;
    (world.ways[1][0], world.ways[2][0]) = (late, late);
    world.seconds(20);
    assert_eq!((world.slow(), world.heirs(0)), (vec![], vec![]));
    // A device that is slower than that is found all the same.
    world.writes[0] += 10 * MS;
    world.seconds(3);
    assert_eq!((world.slow(), world.heirs(0)), (vec![0], vec![1, 2]));
    world.writes[0] -= 10 * MS;
    world.seconds(5);
    assert_eq!(world.slow(), vec![]);
    // When the processor has time again, the same figures are those of the device and the links.
    world.late[0] = 0;
    world.seconds(5);
    assert_eq!(world.slow(), vec![0]);
}

#[test]
fn slow_links_of_one_node_are_found() {
    let mut world = World::new(3);
    world.seconds(3);
    world.gray_links(0, 50 * MS);
    world.seconds(6);
    assert_eq!((world.slow(), world.heirs(0)), (vec![0], vec![1, 2]));
    world.gray_links(0, 40_000);
    world.seconds(15);
    assert_eq!(world.slow(), vec![]);
}

#[test]
fn one_slow_link_is_nobodys_fault() {
    let mut world = World::new(3);
    (world.ways[0][1], world.ways[1][0]) = (50 * MS, 50 * MS);
    world.seconds(10);
    assert_eq!((world.slow(), world.heirs(0)), (vec![], vec![]));
}

#[test]
fn where_all_or_most_are_slow_nothing_helps() {
    let mut world = World::new(3);
    world.seconds(3);
    world.writes = vec![60 * MS; 3];
    (0..3).for_each(|n| world.gray_links(n, 30 * MS));
    world.seconds(10);
    assert_eq!((world.slow(), world.heirs(0)), (vec![], vec![]));
    let mut world = World::new(3);
    world.writes = vec![6 * MS, 6 * MS, 60_000];
    world.seconds(10);
    assert_eq!(world.slow(), vec![0, 1]);
    assert_eq!(world.heirs(0), vec![], "the only fast one needs a slow one for its majority");
    let mut world = World::new(5);
    world.writes = vec![6 * MS, 6 * MS, 60_000, 60_000, 60_000];
    world.seconds(10);
    assert_eq!((world.slow(), world.heirs(0)), (vec![0, 1], vec![2, 3, 4]));
}

#[test]
fn who_says_nothing_or_writes_nothing_is_no_heir() {
    let mut world = World::new(3);
    world.writes = vec![6 * MS, 0, 60_000];
    world.seconds(10);
    assert_eq!(world.slow(), vec![0]);
    assert_eq!(world.heirs(0), vec![], "there is nobody whose write would count for the heir");
    let mut world = World::new(3);
    world.writes[0] = 6 * MS;
    world.seconds(3);
    // Node 1 is not heard any more: under node 2 a write would wait for node 0 as it does now.
    world.ways[1] = vec![1 << 50; 3];
    world.seconds(5);
    assert_eq!(world.heirs(0), vec![]);
}

#[test]
fn a_pause_or_a_strangers_score_means_nothing() {
    let mut world = World::new(3);
    world.seconds(3);
    for _ in 0..20 {
        // One write in a window of several, and what was under way on one link.
        world.writes[0] = 700 * MS;
        world.ways[0][1] = 700 * MS;
        world.write(0);
        world.writes[0] = 60_000;
        world.seconds(1);
        world.ways[0][1] = 40_000;
        world.seconds(3);
        assert_eq!(world.slow(), vec![]);
    }
    let mut scores = Scores::new(NodeId(1), TICK, Planted::NONE);
    scores.add_peer(NodeId(2));
    let wild = NodeScore {
        window: u32::MAX,
        write_nanos: u64::MAX,
        read_nanos: u64::MAX,
        stamp: u64::MAX,
        echo: u64::MAX,
        held_nanos: u64::MAX,
        late_nanos: u64::MAX,
        paths: vec![(NodeId(1), u64::MAX), (NodeId(9), 0)],
    };
    scores.take(NodeId(7), wild.clone(), Time(5));
    assert!(!scores.peers.contains_key(&NodeId(7)) && !scores.is_slow(NodeId(7)));
    for tick in 1..200 {
        scores.take(NodeId(2), wild.clone(), Time(tick));
        scores.tick(tick, Time(tick * 50 * MS));
    }
    assert_eq!(scores.tell(NodeId(2), Time(9)).paths, vec![], "no stamp of ours came back");
    assert_eq!(scores.status(true).len(), 2);
}
