//! Whatever was asked for, and whatever of what follows from it was done, lost, late or done twice: deleting ends.
//! From
//! every state of every volume, snapshot, cut and attachment, with the steps that a refusal names.

use basalt_api::v1::{ErrorReason, Failover, Member, MemberState};
use basalt_meta::failover::{self, Next};
use basalt_meta::{
    AttachVolume, CloneSource, CreateCut, CreateSnapshot, CreateVolume, DeleteCut, DeleteSnapshot,
    DeleteVolume, DetachVolume, ENTRY_VERSION, Entry, FlattenVolume, GiveUpCut, InitCluster,
    JudgeMember, MetaState, NewSnapshot, Op, Outcome, PurgeSnapshot, PurgeVolume, RaiseEpoch,
    ResizeVolume, RevertVolume, SettleClone, SettleCut, SettleFlatten, SettleRevert,
    SettleSnapshot, encode, layout,
};
use proptest::prelude::*;

const VOLUMES: [&str; 5] = ["a", "b", "c", "d", "e"];
const SNAPSHOTS: [&str; 3] = ["s", "t", "u"];
const HOSTS: [&str; 4] = ["n1", "n2", "n3", "outside"];
const BLOCK: u64 = 4096;

#[derive(Clone)]
struct Machine {
    state: MetaState,
    index: u64,
    /// Steps of reconcilers that were begun and may come yet.
    late: Vec<Op>,
}

impl Machine {
    fn new() -> Machine {
        let member = |node: u32| Member {
            node,
            name: format!("n{node}"),
            grpc_address: format!("127.0.0.1:{}", 7000 + node),
            data_address: format!("127.0.0.1:{}", 8000 + node),
            nbd_address: format!("127.0.0.1:{}", 9000 + node),
            ..Member::default()
        };
        let spec = layout::plan(9, (1..=3).map(member).collect(), 4).expect("a good list");
        let mut machine = Machine { state: MetaState::default(), index: 0, late: Vec::new() };
        machine.run(Op::InitCluster(InitCluster { spec: Some(spec) }));
        machine
    }

    fn run(&mut self, op: Op) -> Outcome {
        self.index += 1;
        let entry = Entry { version: ENTRY_VERSION, now_ms: 1, op: Some(op), ..Entry::default() };
        let outcome = self.state.apply(self.index, &encode(&entry));
        assert!(self.state.indexes_are_exact());
        outcome
    }

    /// What the reconcilers would write down next, if what they do in the groups is done.
    fn steps(&self, draw: usize) -> Vec<Op> {
        let state = &self.state;
        let mut steps = Vec::new();
        for snapshot in state.unsettled_snapshots() {
            let (volume, generation) = (snapshot.volume, snapshot.generation);
            steps.push(match snapshot.deleting {
                true => Op::PurgeSnapshot(PurgeSnapshot { volume, generation }),
                false => Op::SettleSnapshot(SettleSnapshot { volume, generation }),
            });
        }
        for (cut, _) in state.unsettled_cuts() {
            steps.push(match draw % 3 {
                0 => Op::GiveUpCut(GiveUpCut { cut }),
                _ => Op::SettleCut(SettleCut { cut }),
            });
        }
        for volume in state.unsettled_reverts() {
            let generation = volume.revert.as_ref().expect("it is reverted").generation;
            steps.push(Op::RaiseEpoch(RaiseEpoch { volume: volume.number }));
            steps.push(Op::SettleRevert(SettleRevert { volume: volume.number, generation }));
        }
        for volume in state.clones_to_begin() {
            steps.push(Op::SettleClone(SettleClone { volume: volume.number }));
        }
        for volume in state.clones_to_flatten() {
            steps.push(Op::SettleFlatten(SettleFlatten { volume: volume.number }));
        }
        if let Some(volume) = state.volumes_to_delete().next() {
            steps.push(Op::RaiseEpoch(RaiseEpoch { volume: volume.number }));
            steps.push(Op::PurgeVolume(PurgeVolume { volume: volume.number }));
        }
        for next in failover::next(state, 9) {
            if let Next::Go(over) = next {
                steps.push(Op::FailOverVolume(over));
            }
        }
        steps
    }

    /// A step of a reconciler is done now, is begun and comes late or never, or comes once more.
    fn reconcile(&mut self, step: &Reconcile, draw: usize) {
        let steps = self.steps(draw);
        let picked = (!steps.is_empty()).then(|| steps[draw % steps.len()].clone());
        match step {
            Reconcile::Now => drop(picked.map(|op| self.run(op))),
            Reconcile::Begin => self.late.extend(picked),
            Reconcile::Late | Reconcile::Again if self.late.is_empty() => {}
            Reconcile::Late => {
                let op = self.late.swap_remove(draw % self.late.len());
                self.run(op);
            }
            Reconcile::Again => {
                let op = self.late[draw % self.late.len()].clone();
                self.run(op);
            }
            Reconcile::Crash => self.late.clear(),
        }
    }

    /// The reconcilers work until nothing is left to be done.
    fn come_to_rest(&mut self, draw: usize) {
        for round in 0..1000 {
            let steps = self.steps(draw + round);
            // A volume's epoch is raised each time that its blocks are deleted or reverted; that alone is no
            // progress.
            let Some(op) = steps.into_iter().rev().find(|op| !matches!(op, Op::RaiseEpoch(_)))
            else {
                return;
            };
            self.run(op);
        }
        panic!("the reconcilers do not come to an end: {:?}", self.steps(0));
    }

    /// What came late comes now, at the very end.
    fn stragglers(&mut self) {
        for op in std::mem::take(&mut self.late) {
            self.run(op);
        }
    }

    /// Deletes a volume and what hangs on it, with the steps that refusals name.
    fn delete_volume(&mut self, id: &str, draw: usize) {
        for _ in 0..64 {
            let Some(volume) = self.state.volume(id).cloned() else { return };
            let delete =
                DeleteVolume { id: id.to_owned(), with_snapshots: true, ..Default::default() };
            match self.run(Op::DeleteVolume(delete)) {
                Outcome::Volume(deleted) => {
                    assert!(deleted.deleting);
                    self.come_to_rest(draw);
                    let left = self.state.volume(id).filter(|left| left.number == volume.number);
                    assert!(left.is_none(), "it stays: {left:?}");
                    return;
                }
                Outcome::Refused(refused) => match refused.reason {
                    ErrorReason::VolumeAttached => self.detach(id),
                    ErrorReason::HasClones => self.delete_clones(&refused.facts, draw),
                    other => panic!("{other:?}: {}", refused.message),
                },
                other => panic!("{other:?}"),
            }
        }
        panic!("'{id}' can not be deleted");
    }

    fn delete_clones(&mut self, facts: &[(&'static str, String)], draw: usize) {
        let named = facts.iter().find(|(name, _)| *name == "clones").expect("it names them");
        for clone in named.1.split(',').map(str::to_owned).collect::<Vec<_>>() {
            self.delete_volume(&clone, draw);
        }
    }

    fn detach(&mut self, id: &str) {
        let detach = DetachVolume { id: id.to_owned(), ..DetachVolume::default() };
        let Outcome::Volume(volume) = self.run(Op::DetachVolume(detach)) else {
            panic!("'{id}' can not be detached")
        };
        assert!(volume.attachment.is_none());
    }

    fn delete_snapshot(&mut self, volume: &str, id: &str, draw: usize) {
        let number = self.state.volume(volume).expect("its volume").number;
        for _ in 0..64 {
            let Some(snapshot) = self.state.snapshot(number, id).cloned() else { return };
            let delete = DeleteSnapshot {
                volume: volume.to_owned(),
                id: id.to_owned(),
                alone: true,
                ..DeleteSnapshot::default()
            };
            match self.run(Op::DeleteSnapshot(delete)) {
                Outcome::Snapshot(_) => {
                    // One that clones hang on which are being deleted goes after them.
                    self.come_to_rest(draw);
                    let left = self.state.snapshot(number, id);
                    let left = left.filter(|left| left.generation == snapshot.generation);
                    assert!(left.is_none(), "it stays: {left:?}");
                    return;
                }
                Outcome::Refused(refused) => match refused.reason {
                    ErrorReason::HasClones => self.delete_clones(&refused.facts, draw),
                    // It is not complete yet: ask again, or delete all of them.
                    ErrorReason::SnapshotInCut if draw.is_multiple_of(2) => self.come_to_rest(draw),
                    ErrorReason::SnapshotInCut => self.delete_cut(snapshot.cut, draw),
                    other => panic!("{other:?}: {}", refused.message),
                },
                other => panic!("{other:?}"),
            }
        }
        panic!("'{volume}@{id}' can not be deleted");
    }

    fn delete_cut(&mut self, cut: u64, draw: usize) {
        for _ in 0..64 {
            match self.run(Op::DeleteCut(DeleteCut { cut })) {
                Outcome::Cut(_) => {
                    self.come_to_rest(draw);
                    assert_eq!(self.state.cut(cut).count(), 0, "it stays");
                    return;
                }
                Outcome::Refused(refused) => match refused.reason {
                    ErrorReason::CutNotFound => return,
                    ErrorReason::HasClones => self.delete_clones(&refused.facts, draw),
                    other => panic!("{other:?}: {}", refused.message),
                },
                other => panic!("{other:?}"),
            }
        }
        panic!("the cut {cut} can not be deleted");
    }

    /// All volumes by name, and all snapshots by name.
    fn names(&self) -> (Vec<String>, Vec<(String, String, u64)>) {
        let volumes: Vec<(String, u64)> =
            self.state.volumes().map(|v| (v.id.clone(), v.number)).collect();
        let snapshots = volumes.iter().flat_map(|(id, number)| {
            let all = self.state.snapshots_after(*number, None);
            all.map(|s| (id.clone(), s.id.clone(), s.cut)).collect::<Vec<_>>()
        });
        let snapshots = snapshots.collect();
        (volumes.into_iter().map(|(id, _)| id).collect(), snapshots)
    }
}

#[derive(Clone, Debug)]
enum Reconcile {
    Now,
    Begin,
    Late,
    Again,
    Crash,
}

#[derive(Clone, Debug)]
enum Step {
    User(Box<Op>),
    Reconcile(Reconcile),
}

fn any_step() -> impl Strategy<Value = Step> {
    let name = |of: &'static [&'static str]| prop::sample::select(of).prop_map(str::to_owned);
    let (volume, snapshot, host) = (|| name(&VOLUMES), || name(&SNAPSHOTS), || name(&HOSTS));
    let failover = prop::sample::select(vec![0, Failover::None.into(), Failover::Node.into()]);
    let source = prop::option::of((volume(), snapshot()))
        .prop_map(|of| of.map(|(volume, snapshot)| CloneSource { volume, snapshot }));
    let create = (volume(), source, failover).prop_map(|(id, source, failover)| {
        let size_bytes = if source.is_some() { 0 } else { BLOCK };
        Op::CreateVolume(CreateVolume { id, size_bytes, source, failover, ..Default::default() })
    });
    let cut = prop::collection::btree_map(volume(), snapshot(), 1..4).prop_map(|all| {
        let new = all.into_iter().map(|(volume, id)| NewSnapshot { volume, id });
        Op::CreateCut(CreateCut { snapshots: new.collect(), ..CreateCut::default() })
    });
    let judge = (1u32..=3, 1i32..=4).prop_map(|(node, state)| {
        Op::JudgeMember(JudgeMember { node, state, why: "drawn".to_owned(), was_index: 0 })
    });
    let user = prop_oneof![
        6 => create,
        6 => (volume(), snapshot()).prop_map(|(volume, id)| {
            Op::CreateSnapshot(CreateSnapshot { volume, id, ..CreateSnapshot::default() })
        }),
        3 => cut,
        4 => (volume(), host(), any::<bool>()).prop_map(|(id, host, take)| {
            Op::AttachVolume(AttachVolume { id, host, r#move: take, ..AttachVolume::default() })
        }),
        2 => volume().prop_map(|id| Op::DetachVolume(DetachVolume { id, ..Default::default() })),
        3 => (volume(), snapshot(), any::<bool>()).prop_map(|(id, snapshot, drop_later)| {
            Op::RevertVolume(RevertVolume { id, snapshot, drop_later, etag: String::new() })
        }),
        3 => (volume(), any::<bool>()).prop_map(|(id, cancel)| {
            Op::FlattenVolume(FlattenVolume { id, cancel, etag: String::new() })
        }),
        1 => (volume(), 1u64..9).prop_map(|(id, blocks)| {
            Op::ResizeVolume(ResizeVolume { id, size_bytes: blocks * BLOCK, etag: String::new() })
        }),
        2 => (volume(), any::<bool>()).prop_map(|(id, with_snapshots)| {
            Op::DeleteVolume(DeleteVolume { id, with_snapshots, etag: String::new() })
        }),
        2 => (volume(), snapshot(), any::<bool>()).prop_map(|(volume, id, alone)| {
            Op::DeleteSnapshot(DeleteSnapshot { volume, id, alone, etag: String::new() })
        }),
        1 => (1u64..40).prop_map(|cut| Op::DeleteCut(DeleteCut { cut })),
        2 => judge,
    ];
    let reconcile = prop_oneof![
        5 => Just(Reconcile::Now),
        3 => Just(Reconcile::Begin),
        2 => Just(Reconcile::Late),
        1 => Just(Reconcile::Again),
        1 => Just(Reconcile::Crash),
    ];
    prop_oneof![3 => user.prop_map(|op| Step::User(Box::new(op))), 2 => reconcile.prop_map(Step::Reconcile)]
}

fn carry_out(machine: &mut Machine, step: &Step, draw: usize) {
    match step {
        Step::User(op) => {
            let mut op = op.as_ref().clone();
            if let Op::JudgeMember(judge) = &mut op {
                let members = &machine.state.cluster().expect("made first").members;
                judge.was_index = members[judge.node as usize - 1].state_index;
            }
            // Refusals are as good as any other outcome here.
            machine.run(op);
        }
        Step::Reconcile(step) => machine.reconcile(step, draw),
    }
}

proptest! {
    #[test]
    fn deleting_ends(
        script in prop::collection::vec((any_step(), any::<usize>()), 1..80),
        draw in 0usize..1000,
    ) {
        let mut machine = Machine::new();
        for (step, draw) in &script {
            carry_out(&mut machine, step, *draw);
        }
        let (volumes, snapshots) = machine.names();
        // Each alone, from the state as it is, and with what is late coming before and after.
        for early in [false, true] {
            for id in &volumes {
                let mut alone = machine.clone();
                if early { alone.stragglers(); }
                alone.delete_volume(id, draw);
                alone.stragglers();
                alone.come_to_rest(draw);
            }
            for (volume, id, cut) in &snapshots {
                let mut alone = machine.clone();
                if early { alone.stragglers(); }
                if alone.state.volume(volume).is_some() {
                    alone.delete_snapshot(volume, id, draw);
                }
                let mut alone = machine.clone();
                if early { alone.stragglers(); }
                if *cut != 0 {
                    alone.delete_cut(*cut, draw);
                }
            }
        }
        // And everything: nothing is left.
        for id in &volumes {
            machine.delete_volume(id, draw);
        }
        machine.stragglers();
        machine.come_to_rest(draw);
        prop_assert_eq!(machine.names(), (vec![], vec![]));
        prop_assert!(machine.steps(draw).is_empty());
    }

    /// What is attached to a dead node and fails over comes to rest where a node lives, if one does; no straggler
    /// takes
    /// it back.
    #[test]
    fn volumes_come_to_nodes_that_live(
        script in prop::collection::vec((any_step(), any::<usize>()), 1..60),
        draw in 0usize..1000,
    ) {
        let mut machine = Machine::new();
        for (step, draw) in &script {
            carry_out(&mut machine, step, *draw);
        }
        machine.come_to_rest(draw);
        machine.stragglers();
        machine.come_to_rest(draw);
        let members = machine.state.cluster().expect("made first").members.clone();
        let lives = |m: &Member| matches!(m.state(), MemberState::Up | MemberState::Unspecified);
        if members.iter().any(lives) {
            for volume in machine.state.volumes().filter(|v| v.failover() == Failover::Node) {
                let host = volume.attachment.as_ref().map(|a| a.host.clone()).unwrap_or_default();
                let dead = |m: &Member| m.name == host && m.state() == MemberState::Down;
                prop_assert!(!members.iter().any(dead), "{:?}", volume);
            }
        }
    }
}
