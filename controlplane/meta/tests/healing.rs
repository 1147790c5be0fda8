//! What becomes of attachments and members when nodes fail.

use basalt_api::v1::{
    ClusterSpec, ErrorReason, Failover, FailureDomain, Location, Member, MemberState,
};
use basalt_meta::failover::{self, Next};
use basalt_meta::hosts::Hosts;
use basalt_meta::{
    AttachVolume, CreateVolume, DetachVolume, ENTRY_VERSION, Entry, EvacuateMember, FailOverVolume,
    InitCluster, JudgeAttachment, JudgeMember, MetaState, Op, Outcome, PlanStop, SetFailureDomain,
    UpdateMember, UpdateVolume, VolumeRecord, encode, etag_of, layout,
};
use std::time::Duration;

struct Machine {
    state: MetaState,
    index: u64,
}

fn member(node: u32) -> Member {
    Member {
        node,
        name: format!("n{node}"),
        grpc_address: format!("127.0.0.1:{}", 7000 + node),
        data_address: format!("127.0.0.1:{}", 8000 + node),
        nbd_address: format!("127.0.0.1:{}", 9000 + node),
        ..Member::default()
    }
}

impl Machine {
    /// A cluster with one volume, "demo", of this policy.
    fn new(members: Vec<Member>, failover: Failover) -> Machine {
        let spec = layout::plan(9, members, 4).expect("a good list");
        let mut machine = Machine { state: MetaState::default(), index: 0 };
        machine.run(Op::InitCluster(InitCluster { spec: Some(spec) }));
        machine.create("demo", failover);
        machine
    }

    fn create(&mut self, id: &str, failover: Failover) {
        let (id, failover) = (id.to_owned(), failover.into());
        self.volume(Op::CreateVolume(CreateVolume {
            id,
            size_bytes: 4096,
            failover,
            ..CreateVolume::default()
        }));
    }

    fn run(&mut self, op: Op) -> Outcome {
        self.index += 1;
        let now_ms = self.index as i64 * 1000;
        let entry = Entry { version: ENTRY_VERSION, now_ms, op: Some(op), ..Entry::default() };
        let outcome = self.state.apply(self.index, &encode(&entry));
        assert!(self.state.indexes_are_exact());
        outcome
    }

    fn volume(&mut self, op: Op) -> VolumeRecord {
        match self.run(op) {
            Outcome::Volume(volume) => volume.into_inner(),
            other => panic!("expected a volume, got {other:?}"),
        }
    }

    fn reason(&mut self, op: Op) -> ErrorReason {
        let before = self.state.clone();
        match self.run(op) {
            Outcome::Refused(refused) => {
                assert_eq!(before.cluster(), self.state.cluster());
                assert!(before.volumes().eq(self.state.volumes()));
                refused.reason
            }
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    fn spec(&self) -> &ClusterSpec {
        self.state.cluster().expect("made first")
    }

    fn member(&self, node: u32) -> &Member {
        self.spec().members.iter().find(|m| m.node == node).expect("a member")
    }

    fn judge(&mut self, node: u32, state: MemberState) {
        let was_index = self.member(node).state_index;
        let (state, why) = (state.into(), "as the test says".to_owned());
        let judge = JudgeMember { node, state, why, was_index };
        assert!(matches!(self.run(Op::JudgeMember(judge)), Outcome::Member(_)));
    }

    fn host(&self, id: &str) -> (String, u64) {
        let attachment = self.state.volume(id).and_then(|v| v.attachment.clone());
        let attachment = attachment.expect("it is attached");
        (attachment.host, attachment.epoch)
    }
}

fn attach(id: &str, host: &str) -> Op {
    let (id, host) = (id.to_owned(), host.to_owned());
    Op::AttachVolume(AttachVolume { id, host, ..AttachVolume::default() })
}

fn over(id: &str, node: u32, epoch: u64) -> Op {
    Op::FailOverVolume(FailOverVolume { id: id.to_owned(), node, epoch })
}

#[test]
fn a_stop_is_planned_once_and_ends_with_the_return_or_a_verdict() {
    let mut m = Machine::new((1..=3).map(member).collect(), Failover::None);
    let plan = |back| Op::PlanStop(PlanStop { node: 3, back });
    assert_eq!(m.run(plan(true)), Outcome::Nothing, "it never stopped");
    let version = m.state.map_version();
    assert!(matches!(m.run(plan(false)), Outcome::Member(_)));
    let said = m.member(3).stopping_index;
    assert_eq!((said, m.member(3).stopping_since_ms > 0), (m.state.applied(), true));
    // What it tells of itself meanwhile changes nothing of that, and nothing moves.
    let moved = Member { grpc_address: "127.0.0.1:1".to_owned(), ..member(3) };
    assert_eq!(m.state.map_version(), version);
    m.run(Op::UpdateMember(UpdateMember { member: Some(moved) }));
    assert_eq!(m.member(3).stopping_index, said);
    m.judge(3, MemberState::Suspect);
    assert_eq!(m.member(3).stopping_index, said);
    assert!(matches!(m.run(plan(true)), Outcome::Member(_)));
    assert_eq!((m.member(3).stopping_index, m.member(3).stopping_since_ms), (0, 0));
    m.run(plan(false));
    m.judge(3, MemberState::Down);
    assert_eq!(m.member(3).stopping_index, 0, "it did not come back as it was planned");
    assert_eq!(
        m.reason(Op::PlanStop(PlanStop { node: 9, back: false })),
        ErrorReason::NodeNotFound
    );
    let reasons = m.state.events().map(|event| event.reason.as_str());
    let stops: Vec<&str> = reasons.filter(|r| ["NODE_STOPPING", "NODE_BACK"].contains(r)).collect();
    assert_eq!(stops, ["NODE_STOPPING", "NODE_BACK", "NODE_STOPPING"]);
}

#[test]
fn a_failure_domain_that_is_set_is_an_event() {
    let mut m = Machine::new((1..=3).map(member).collect(), Failover::None);
    let failure_domain = FailureDomain::Zone.into();
    m.run(Op::SetFailureDomain(SetFailureDomain { failure_domain }));
    let event = m.state.events().last().expect("an event");
    assert_eq!((&*event.reason, &*event.target), ("FAILURE_DOMAIN_SET", "cluster"));
    assert!(event.message.contains("zone"), "{}", event.message);
}

#[test]
fn what_a_judgement_did_not_know_makes_it_void() {
    let mut m = Machine::new((1..=3).map(member).collect(), Failover::None);
    let down = |was_index| {
        let (state, why) = (MemberState::Down.into(), "silence".to_owned());
        Op::JudgeMember(JudgeMember { node: 3, state, why, was_index })
    };
    assert!(matches!(m.run(down(0)), Outcome::Member(_)));
    let since = (m.member(3).state_since_ms, m.member(3).state_index);
    assert_eq!(since, (3000, 3));
    assert_eq!(m.member(3).state_why, "silence");
    // One that comes late, of a leader that leads no more.
    m.judge(3, MemberState::Up);
    assert_eq!(m.reason(down(3)), ErrorReason::MemberChanged);
    assert_eq!(m.reason(down(0)), ErrorReason::MemberChanged);
    let of = |node, state: MemberState, why: String| {
        Op::JudgeMember(JudgeMember { node, state: state.into(), why, was_index: 0 })
    };
    assert_eq!(m.reason(of(9, MemberState::Down, String::new())), ErrorReason::NodeNotFound);
    assert_eq!(m.reason(of(1, MemberState::Unspecified, String::new())), ErrorReason::InvalidField);
    assert_eq!(m.reason(of(1, MemberState::Down, "x".repeat(513))), ErrorReason::InvalidField);
    // A judgement changes no map, and addresses that a node tells change no judgement.
    let version = m.state.map_version();
    m.judge(3, MemberState::Suspect);
    assert_eq!(m.state.map_version(), version);
    let moved = Member { grpc_address: "127.0.0.1:1".to_owned(), ..member(3) };
    m.run(Op::UpdateMember(UpdateMember { member: Some(moved) }));
    assert_eq!(m.member(3).state(), MemberState::Suspect);
}

#[test]
fn the_volume_of_a_dead_node_is_there_for_whoever_asks() {
    let mut m = Machine::new((1..=3).map(member).collect(), Failover::None);
    m.volume(attach("demo", "n3"));
    for state in [MemberState::Up, MemberState::Suspect, MemberState::Failed] {
        m.judge(3, state);
        assert_eq!(m.reason(attach("demo", "n1")), ErrorReason::VolumeAttached, "{state:?}");
    }
    m.judge(3, MemberState::Down);
    let before = m.host("demo").1;
    let taken = m.volume(attach("demo", "elsewhere"));
    assert_eq!(
        m.host("demo"),
        ("elsewhere".to_owned(), before + 1),
        "a new epoch fences the old one"
    );
    // A straggler of the dead node clears nothing.
    let detach = |host: &str, epoch| {
        let (id, host) = ("demo".to_owned(), host.to_owned());
        Op::DetachVolume(DetachVolume { id, host, epoch, etag: String::new() })
    };
    assert_eq!(m.reason(detach("n3", before)), ErrorReason::AttachmentChanged);
    assert_eq!(m.reason(detach("", before)), ErrorReason::AttachmentChanged);
    assert_eq!(m.state.volume("demo"), Some(&taken));
    // Hosts that are no nodes are not known to be dead.
    assert_eq!(m.reason(attach("demo", "n1")), ErrorReason::VolumeAttached);
    // And one that is dead is detached at once.
    m.volume(Op::AttachVolume(AttachVolume { r#move: true, ..attach_of("demo", "n3") }));
    assert!(m.volume(detach("n3", 0)).attachment.is_none());
}

fn attach_of(id: &str, host: &str) -> AttachVolume {
    AttachVolume { id: id.to_owned(), host: host.to_owned(), ..AttachVolume::default() }
}

#[test]
fn a_volume_that_fails_over_goes_once_and_only_from_the_dead() {
    let mut m = Machine::new((1..=3).map(member).collect(), Failover::Node);
    m.volume(attach("demo", "n3"));
    let epoch = m.host("demo").1;
    assert!(failover::next(&m.state, 9).is_empty());
    assert_eq!(m.reason(over("demo", 1, epoch)), ErrorReason::AttachmentChanged, "it lives");
    m.judge(3, MemberState::Down);
    let steps = failover::next(&m.state, 9);
    let Next::Go(step) = &steps[0] else { panic!("{steps:?}") };
    assert_eq!((steps.len(), step.node, step.epoch), (1, 1, epoch));
    for (node, epoch, why) in
        [(3, epoch, "to the dead one"), (9, epoch, "to none"), (1, epoch + 1, "another attachment")]
    {
        assert_eq!(m.reason(over("demo", node, epoch)), ErrorReason::AttachmentChanged, "{why}");
    }
    m.volume(Op::FailOverVolume(step.clone()));
    assert_eq!(m.host("demo"), ("n1".to_owned(), epoch + 1));
    // The same again, from a leader that did not hear of it.
    assert_eq!(m.reason(Op::FailOverVolume(step.clone())), ErrorReason::AttachmentChanged);
    assert!(failover::next(&m.state, 9).is_empty());
    // Back in time: nothing moves, though it was planned.
    m.judge(1, MemberState::Down);
    let steps = failover::next(&m.state, 9);
    let Next::Go(late) = &steps[0] else { panic!("{steps:?}") };
    m.judge(1, MemberState::Up);
    assert_eq!(m.reason(Op::FailOverVolume(late.clone())), ErrorReason::AttachmentChanged);
    let set = |failover: Failover, etag: String| {
        let (fields, failover) = (vec!["failover".to_owned()], failover.into());
        let id = "demo".to_owned();
        Op::UpdateVolume(UpdateVolume { id, fields, failover, etag, ..UpdateVolume::default() })
    };
    assert_eq!(m.reason(set(Failover::None, "0-0".to_owned())), ErrorReason::EtagMismatch);
    let etag = etag_of(m.state.volume("demo").expect("there"));
    m.volume(set(Failover::None, etag));
    m.judge(1, MemberState::Down);
    assert!(failover::next(&m.state, 9).is_empty(), "it is told to stay");
}

#[test]
fn volumes_go_to_the_zone_of_the_dead_node_and_evenly() {
    let at = |node: u32, zone: &str| {
        let location = Location { zone: zone.to_owned(), ..Location::default() };
        Member { location: Some(location), ..member(node) }
    };
    let mut members = vec![at(1, "a"), at(2, "a"), at(3, "b"), at(4, "b"), at(5, "b"), at(6, "c")];
    members[4].nbd_address.clear();
    let mut m = Machine::new(members, Failover::Node);
    for id in ["v1", "v2", "v3", "v4", "v5"] {
        m.create(id, Failover::Node);
        m.volume(attach(id, "n1"));
    }
    m.volume(attach("demo", "n2"));
    m.judge(1, MemberState::Down);
    let nodes = |m: &Machine| -> Vec<u32> {
        let steps = failover::next(&m.state, 99);
        let node = |step: &Next| match step {
            Next::Go(over) => over.node,
            Next::Waits(..) => 0,
        };
        steps.iter().map(node).collect()
    };
    assert_eq!(nodes(&m), [2; 5], "in its zone");
    assert_eq!(failover::next(&m.state, 2).len(), 2, "a few at a time");
    m.judge(2, MemberState::Suspect);
    // Not to one that is suspect, nor to one that serves no NBD.
    assert_eq!(nodes(&m), [3, 4, 6, 3, 4]);
    for node in [3, 4] {
        m.judge(node, MemberState::Failed);
    }
    assert_eq!(nodes(&m), [6; 5]);
    m.judge(6, MemberState::Down);
    assert_eq!(nodes(&m), [0; 5], "they wait");
}

#[test]
fn a_node_is_given_up_only_while_it_is_lost_and_others_are_there() {
    let mut m = Machine::new((1..=4).map(member).collect(), Failover::None);
    let give_up = |m: &Machine| {
        Op::EvacuateMember(EvacuateMember { node: 4, was_index: m.member(4).state_index })
    };
    let op = give_up(&m);
    assert_eq!(m.reason(op), ErrorReason::MemberChanged, "it lives");
    m.judge(4, MemberState::Down);
    let stale = give_up(&m);
    m.judge(3, MemberState::Suspect);
    assert_eq!(m.reason(stale.clone()), ErrorReason::TooFewNodes);
    m.judge(3, MemberState::Up);
    assert!(matches!(m.run(stale.clone()), Outcome::Member(given) if given.evacuated));
    assert!(!layout::is_active(m.member(4)));
    // It is suspect or failed for a while, and then works: only that ends it.
    m.judge(4, MemberState::Failed);
    assert!(m.member(4).evacuated);
    m.judge(4, MemberState::Up);
    assert!(layout::is_active(m.member(4)));
    assert_eq!(m.reason(stale), ErrorReason::MemberChanged);
}

#[test]
fn the_failure_domain_is_one_that_there_is() {
    let mut m = Machine::new((1..=3).map(member).collect(), Failover::None);
    assert_eq!(m.spec().failure_domain(), FailureDomain::Unspecified);
    let set = |domain: FailureDomain| {
        Op::SetFailureDomain(SetFailureDomain { failure_domain: domain.into() })
    };
    assert_eq!(m.run(set(FailureDomain::Zone)), Outcome::Nothing);
    assert_eq!(m.spec().failure_domain(), FailureDomain::Zone);
    assert_eq!(m.reason(set(FailureDomain::Unspecified)), ErrorReason::InvalidField);
    let bad = Location { zone: "a b".to_owned(), ..Location::default() };
    let bad = Member { location: Some(bad), node: 0, ..member(4) };
    let add = basalt_meta::AddMember { member: Some(bad), replaces: 0 };
    assert_eq!(m.reason(Op::AddMember(add)), ErrorReason::InvalidField);
}

/// A second goes by for each, and the leader hears of some sessions.
fn seconds(
    m: &mut Machine,
    hosts: &mut Hosts,
    now: &mut Duration,
    count: u64,
    heard: &[(&str, u64)],
) -> Vec<(String, MemberState)> {
    let mut said = Vec::new();
    for _ in 0..count {
        *now += Duration::from_secs(1);
        heard.iter().for_each(|(volume, epoch)| hosts.hear(volume, *epoch, *now));
        for verdict in hosts.judge(*now, &m.state, true) {
            said.push((verdict.id.clone(), verdict.state()));
            assert_eq!(m.run(Op::JudgeAttachment(verdict)), Outcome::Nothing);
        }
    }
    said
}

#[test]
fn a_host_that_said_that_it_serves_and_says_so_no_more_has_lost_the_volume() {
    let mut m = Machine::new((1..=3).map(member).collect(), Failover::Node);
    for (id, host) in [("demo", "outside"), ("silent", "other"), ("node", "n1")] {
        if id != "demo" {
            m.create(id, Failover::None);
        }
        m.volume(attach(id, host));
    }
    let down = Duration::from_secs(10);
    let mut now = Duration::from_secs(500);
    let mut hosts = Hosts::new(down, now);
    let epoch = m.host("demo").1;
    let said = seconds(&mut m, &mut hosts, &mut now, 5, &[("demo", epoch), ("node", 1)]);
    assert_eq!(said, [("demo".to_owned(), MemberState::Up)], "once, and not of a node");
    assert!(seconds(&mut m, &mut hosts, &mut now, 9, &[]).is_empty());
    assert_eq!(m.reason(attach("demo", "n2")), ErrorReason::VolumeAttached);
    let said = seconds(&mut m, &mut hosts, &mut now, 1, &[]);
    assert_eq!(said, [("demo".to_owned(), MemberState::Down)]);
    assert!(failover::next(&m.state, 9).is_empty(), "who uses it is there, and not at a node");
    // It speaks again.
    let said = seconds(&mut m, &mut hosts, &mut now, 1, &[("demo", epoch)]);
    assert_eq!(said, [("demo".to_owned(), MemberState::Up)]);
    // Another leader waits a whole time, and so does one that was stopped; one that hears few nodes says nothing.
    let mut hosts = Hosts::new(down, now);
    assert!(seconds(&mut m, &mut hosts, &mut now, 9, &[]).is_empty());
    now += Duration::from_secs(60);
    assert!(hosts.judge(now, &m.state, true).is_empty());
    assert!(seconds(&mut m, &mut hosts, &mut now, 9, &[]).is_empty());
    now += Duration::from_secs(1);
    assert!(hosts.judge(now, &m.state, false).is_empty());
    let said = seconds(&mut m, &mut hosts, &mut now, 1, &[]);
    assert_eq!(said, [("demo".to_owned(), MemberState::Down)]);
    m.volume(attach("demo", "n2"));
    let late = JudgeAttachment { id: "demo".to_owned(), epoch, state: MemberState::Up.into() };
    assert_eq!(m.reason(Op::JudgeAttachment(late)), ErrorReason::AttachmentChanged);
    // What never said so is not known to be dead.
    seconds(&mut m, &mut hosts, &mut now, 60, &[]);
    assert_eq!(m.reason(attach("silent", "n2")), ErrorReason::VolumeAttached);
}
