//! Who lives, by what was heard: each rule alone, and then whatever is heard in whatever order.

use basalt_api::v1::{ClusterSpec, Member, MemberState};
use basalt_meta::JudgeMember;
use basalt_meta::liveness::{Liveness, Sign, Thresholds};
use proptest::prelude::*;
use std::time::Duration;

const SUSPECT: Duration = Duration::from_secs(3);
const DOWN: Duration = Duration::from_secs(10);
const STOP: Duration = Duration::from_secs(30);
const TURN: Duration = Duration::from_secs(1);

/// Node 1 leads, and judges once a second.
struct World {
    spec: ClusterSpec,
    liveness: Liveness,
    now: Duration,
    index: u64,
    /// What was written down: when, of whom, what.
    log: Vec<(u64, u32, MemberState)>,
}

impl World {
    fn new(nodes: u32) -> World {
        let member = |node| Member { node, name: format!("n{node}"), ..Member::default() };
        let spec = ClusterSpec { members: (1..=nodes).map(member).collect(), ..Default::default() };
        let now = Duration::from_secs(1000);
        let mut world = World { spec, liveness: leader(now), now, index: 0, log: Vec::new() };
        for _ in 0..3 {
            world.turn(|_| (true, true));
        }
        assert!(world.spec.members.iter().all(|m| m.state() == MemberState::Up));
        world.log.clear();
        world
    }

    /// A second goes by in which nodes are heard as told: by their API, by their data path.
    fn turn(&mut self, heard: impl Fn(u32) -> (bool, bool)) -> Vec<JudgeMember> {
        self.now += TURN;
        self.hear(&heard);
        self.judge()
    }

    fn hear(&mut self, heard: &impl Fn(u32) -> (bool, bool)) {
        for member in &self.spec.members {
            let (api, path) = if member.node == 1 { (true, false) } else { heard(member.node) };
            if api {
                self.liveness.hear(member.node, self.now, Sign::Api(None));
            }
            if path {
                self.liveness.hear(member.node, self.now, Sign::Path);
            }
        }
    }

    fn judge(&mut self) -> Vec<JudgeMember> {
        let verdicts = self.liveness.judge(self.now, &self.spec);
        for verdict in &verdicts {
            self.index += 1;
            let member = self.spec.members.iter_mut().find(|m| m.node == verdict.node);
            let member = member.expect("a member is judged");
            assert_eq!(member.state_index, verdict.was_index);
            assert_ne!(member.state(), verdict.state(), "only changes are written down");
            member.state = verdict.state;
            member.state_index = self.index;
            assert!(!verdict.why.is_empty());
            self.log.push((self.now.as_secs(), verdict.node, verdict.state()));
        }
        verdicts
    }

    fn turns(&mut self, count: u32, heard: impl Fn(u32) -> (bool, bool)) {
        (0..count).for_each(|_| drop(self.turn(&heard)));
    }

    fn state(&self, node: u32) -> MemberState {
        self.spec.members.iter().find(|m| m.node == node).expect("a member").state()
    }
}

fn leader(now: Duration) -> Liveness {
    Liveness::new(1, Thresholds { suspect: SUSPECT, down: DOWN, stop: STOP }, now)
}

/// All but one node are heard in both ways, and that one as told.
fn but(node: u32, as_told: (bool, bool)) -> impl Fn(u32) -> (bool, bool) {
    move |other| if other == node { as_told } else { (true, true) }
}

#[test]
fn a_silent_node_is_suspect_and_then_dead() {
    let mut w = World::new(3);
    w.turns(2, but(3, (false, false)));
    assert_eq!(w.state(3), MemberState::Up);
    let verdicts = w.turn(but(3, (false, false)));
    assert_eq!((verdicts.len(), w.state(3)), (1, MemberState::Suspect));
    assert!(verdicts[0].why.contains("neither its API nor its data path has answered for 3.0 s"));
    w.turns(6, but(3, (false, false)));
    assert_eq!(w.state(3), MemberState::Suspect);
    w.turn(but(3, (false, false)));
    assert_eq!(w.state(3), MemberState::Down);
    w.turns(60, but(3, (false, false)));
    assert_eq!(w.log.len(), 2, "{:?}", w.log);
}

#[test]
fn one_silent_way_makes_suspect_and_never_dead() {
    for (heard, word) in [((true, false), "not its data path"), ((false, true), "not its API")] {
        let mut w = World::new(3);
        let mut said = Vec::new();
        (0..120).for_each(|_| said.extend(w.turn(but(2, heard))));
        assert_eq!(w.state(2), MemberState::Suspect);
        assert!(said.len() == 1 && said[0].why.contains(word), "{said:?}");
        w.turn(|_| (true, true));
        assert_eq!(w.state(2), MemberState::Up);
    }
}

#[test]
fn a_dead_node_has_to_be_heard_for_a_while() {
    let mut w = World::new(3);
    w.turns(11, but(3, (false, false)));
    assert_eq!(w.state(3), MemberState::Down);
    w.turns(30, but(3, (true, false)));
    assert_eq!(w.state(3), MemberState::Down, "one way is not enough to rise again");
    w.turns(3, |_| (true, true));
    assert_eq!(w.state(3), MemberState::Down);
    w.turn(|_| (true, true));
    assert_eq!(w.state(3), MemberState::Up);
}

#[test]
fn a_failed_device_is_told_from_a_dead_node() {
    let mut w = World::new(3);
    w.now += TURN;
    w.hear(&|_| (true, true));
    w.liveness.hear(2, w.now, Sign::Api(Some("it broke".to_owned())));
    let verdicts = w.judge();
    assert_eq!(w.state(2), MemberState::Failed);
    assert!(verdicts[0].why.contains("it broke"));
    w.turns(11, but(2, (false, false)));
    assert_eq!(w.state(2), MemberState::Down);
    w.turns(10, |_| (true, true));
    assert_eq!(w.state(2), MemberState::Up);
}

#[test]
fn a_new_leader_waits_a_whole_period() {
    let mut w = World::new(3);
    w.turns(9, but(3, (false, false)));
    w.liveness = leader(w.now);
    w.turns(9, but(3, (false, false)));
    assert_eq!(w.state(3), MemberState::Suspect);
    w.turn(but(3, (false, false)));
    assert_eq!(w.state(3), MemberState::Down);
}

#[test]
fn a_leader_that_was_stopped_itself_buries_nobody() {
    let mut w = World::new(3);
    w.now += Duration::from_secs(600);
    assert!(w.judge().is_empty(), "it heard nobody, as it did not listen");
    w.turns(20, |_| (true, true));
    assert!(w.log.is_empty(), "{:?}", w.log);
}

#[test]
fn a_leader_that_hears_a_minority_declares_nobody_dead() {
    let mut w = World::new(5);
    let alone = |node: u32| if node <= 2 { (true, true) } else { (false, false) };
    w.turns(60, alone);
    assert!(w.log.iter().all(|(_, _, state)| *state == MemberState::Suspect), "{:?}", w.log);
    assert_eq!(w.log.len(), 3);
    // With the third it hears most of them.
    w.turns(3, |node| if node <= 3 { (true, true) } else { (false, false) });
    assert_eq!((w.state(4), w.state(5)), (MemberState::Down, MemberState::Down));
    // Nodes that were given up count no more: of the three that are left two are most.
    w.spec.members.iter_mut().filter(|m| m.node > 3).for_each(|m| m.evacuated = true);
    w.turns(12, alone);
    assert_eq!(w.state(3), MemberState::Down);
}

#[test]
fn a_node_that_comes_and_goes_changes_its_state_ever_more_seldom() {
    let mut w = World::new(3);
    for _ in 0..60 {
        w.turns(4, but(2, (false, false)));
        w.turns(6, |_| (true, true));
    }
    let changes = w.log.len();
    assert!(changes <= 10, "600 s of coming and going: {changes} entries, {:?}", w.log);
    w.turns(60, |_| (true, true));
    assert_eq!(w.state(2), MemberState::Up, "in the end it is there");
    // Long ago is forgotten.
    w.turns(700, |_| (true, true));
    w.log.clear();
    w.turns(4, but(2, (false, false)));
    w.turn(|_| (true, true));
    assert_eq!((w.log.len(), w.state(2)), (2, MemberState::Up));
}

#[test]
fn a_node_is_given_up_when_it_was_lost_for_long_and_enough_others_are_there() {
    let after = Duration::from_secs(600);
    let mut w = World::new(4);
    w.spec.group_count = 4;
    w.spec.groups = vec![basalt_api::v1::Voters { nodes: vec![1, 2, 3] }; 4];
    w.turns(11, but(3, (false, false)));
    w.spec.members[2].state_since_ms = 1_000_000;
    let give_up = |w: &mut World, now_ms: i64| w.liveness.give_up(w.now, now_ms, &w.spec, after);
    assert!(give_up(&mut w, 1_000_000).is_empty());
    // A clock that is far ahead is believed only after a while.
    assert!(give_up(&mut w, 9_000_000_000).is_empty());
    w.now += DOWN;
    let lost = give_up(&mut w, 1_600_000);
    assert_eq!((lost.len(), lost[0].node), (1, 3));
    assert_eq!(lost[0].was_index, w.spec.members[2].state_index);
    // Without a clock that can be used the time counts that this leader has known of it.
    assert!(give_up(&mut w, 0).is_empty());
    w.now += after;
    assert_eq!(give_up(&mut w, 0).len(), 1);
    w.spec.members[3].draining = true;
    assert!(give_up(&mut w, 0).is_empty(), "two nodes can not hold three replicas");
}

#[test]
fn a_node_that_stops_as_planned_has_its_time() {
    let mut w = World::new(3);
    let plan = |w: &mut World, index| w.spec.members[2].stopping_index = index;
    plan(&mut w, 77);
    w.turns(29, but(3, (false, false)));
    assert_eq!(w.log, [], "neither suspect nor dead");
    // It is back, and says so.
    w.turns(3, |_| (true, true));
    plan(&mut w, 0);
    w.turns(3, but(3, (false, false)));
    assert_eq!(w.state(3), MemberState::Up, "it was known to be back two seconds ago");
    w.turn(but(3, (false, false)));
    assert_eq!(w.state(3), MemberState::Suspect, "this silence was not planned");
    w.turns(8, but(3, (false, false)));
    assert_eq!(w.state(3), MemberState::Down);

    // It said so, and this leader has not heard it itself yet: what was silent as planned is not held against it.
    let mut w = World::new(3);
    plan(&mut w, 77);
    w.turns(20, but(3, (false, false)));
    plan(&mut w, 0);
    w.turn(but(3, (false, false)));
    w.turns(3, |_| (true, true));
    assert_eq!(w.log, [], "neither suspect nor dead");

    let mut w = World::new(3);
    plan(&mut w, 78);
    let mut why = String::new();
    for _ in 0..35 {
        let verdicts = w.turn(but(3, (false, false)));
        why = verdicts.into_iter().map(|v| v.why).next().unwrap_or(why);
    }
    assert_eq!(w.log.iter().map(|(_, _, state)| *state).collect::<Vec<_>>(), [MemberState::Down]);
    assert!(why.contains("longer than a planned stop may take"), "{why}");

    // Whoever leads next gives it the whole time again, and a device that fails meanwhile has failed.
    let mut w = World::new(3);
    plan(&mut w, 79);
    w.turns(20, but(3, (false, false)));
    w.liveness = leader(w.now);
    w.turns(20, but(3, (false, false)));
    assert_eq!(w.log, []);
    w.liveness.hear(3, w.now, Sign::Api(Some("it is gone".to_owned())));
    w.judge();
    assert_eq!(w.state(3), MemberState::Failed);
}

#[derive(Clone, Debug)]
enum Step {
    /// For so many seconds these nodes are heard by API and data path; bit n is node n + 2.
    Hear(u8, u8, u8),
    /// The leader is stopped for so many seconds.
    Stop(u16),
    /// Another one leads, which is node 1 here again.
    Elect,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (any::<u8>(), any::<u8>(), 1u8..15).prop_map(|(a, p, t)| Step::Hear(a, p, t)),
        6 => (1u8..30).prop_map(|t| Step::Hear(0xff, 0xff, t)),
        1 => (1u16..300).prop_map(Step::Stop),
        1 => Just(Step::Elect),
    ]
}

proptest! {
    /// Whatever is heard: nobody counts as dead who was heard in any way within the time, nor while most are
    /// silent, nor sooner than a whole period after the leader began or was stopped. And all who are heard long
    /// enough are up.
    #[test]
    fn only_the_dead_are_buried(
        nodes in 2u32..7,
        script in prop::collection::vec(any_step(), 1..40),
    ) {
        let mut w = World::new(nodes);
        let mut last = vec![w.now; nodes as usize + 1];
        let mut began = w.now;
        for step in &script {
            match step {
                Step::Hear(api, path, seconds) => {
                    for _ in 0..*seconds {
                        let bit = |bits: u8, node: u32| bits >> (node - 2) & 1 == 1;
                        let heard = |node: u32| (bit(*api, node), bit(*path, node));
                        let verdicts = w.turn(heard);
                        let now = w.now;
                        for node in 2..=nodes {
                            if heard(node) != (false, false) {
                                last[node as usize] = now;
                            }
                        }
                        last[1] = now;
                        let fresh = last[1..].iter().filter(|at| now - **at < SUSPECT).count();
                        for dead in verdicts.iter().filter(|v| v.state() == MemberState::Down) {
                            prop_assert!(now - last[dead.node as usize] >= DOWN, "{dead:?}");
                            prop_assert!(now - began >= DOWN, "{dead:?}");
                            prop_assert!(2 * fresh > nodes as usize, "{dead:?}");
                            prop_assert!(dead.node != 1);
                        }
                    }
                }
                Step::Stop(seconds) => {
                    w.now += Duration::from_secs((*seconds).into());
                    if Duration::from_secs((*seconds).into()) > SUSPECT {
                        began = w.now;
                    }
                    let verdicts = w.judge();
                    let dead = verdicts.iter().filter(|v| v.state() == MemberState::Down);
                    prop_assert!(dead.count() == 0 || *seconds <= 3);
                }
                Step::Elect => {
                    w.liveness = leader(w.now);
                    began = w.now;
                }
            }
        }
        w.turns(70, |_| (true, true));
        prop_assert!(w.spec.members.iter().all(|m| m.state() == MemberState::Up), "{:?}", w.spec.members);
        // And the dead are found, if most are there.
        w.turns(11, but(nodes, (false, false)));
        prop_assert_eq!(w.state(nodes) == MemberState::Down, nodes > 2);
    }
}
