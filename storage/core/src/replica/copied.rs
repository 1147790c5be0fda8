//! A replica that gets pages while the one that gives them goes on: whatever was copied when, it comes to
//! the same in the end, and what was held already is not copied.

use super::cloned::fill_of;
use super::fuzzy::{Change, changes};
use super::*;
use basalt_wire::command::{Command, encode_commands};
use basalt_wire::disk::checkpoint::Record;
use basalt_wire::ids::{GroupId, SegmentId};
use basalt_wire::pages::{GranuleSums, HeldBlocks};
use proptest::prelude::*;
use std::collections::BTreeMap;

const G: GroupId = GroupId(1);
/// Blocks of one answer: fewer than a granule may need.
const MOST: usize = 7;

#[derive(Clone, Debug)]
enum Turn {
    /// The leader applies commands for one of the volumes.
    Apply(u64, Vec<Change>),
    /// A volume is deleted.
    Delete(u64),
    /// A volume becomes a clone of another's snapshot, counted back from the current generation.
    Clone(u64, u64, u32),
    /// Blocks of a chunk of a clone are filled.
    Fill(u64, u64, u32),
    /// A clone is filled and detached.
    Flatten(u64),
    /// The follower takes so many pages of an offer.
    Offer(usize),
    /// The follower asks for what it lacks, so many questions.
    Want(usize),
    /// An answer comes late: it was given before the turns until the next of these.
    Answer,
    /// The session breaks off, and so many entries are applied from the log instead.
    Break(usize),
    /// The session comes to its end, and so many entries are applied behind it.
    Finish(usize),
    /// A checkpoint is taken.
    Checkpoint,
    /// The follower crashes, and starts from its last checkpoint.
    Crash,
}

fn turns() -> impl Strategy<Value = Turn> {
    prop_oneof![
        12 => (1u64..6, prop::collection::vec(changes(), 1..4)).prop_map(|(v, c)| Turn::Apply(v, c)),
        1 => (1u64..6).prop_map(Turn::Delete),
        2 => (1u64..6, 1u64..6, 0u32..3).prop_map(|(v, of, back)| Turn::Clone(v, of, back)),
        2 => (1u64..6, 0u64..2, 0u32..90).prop_map(|(v, chunk, n)| Turn::Fill(v, chunk, n)),
        1 => (1u64..6).prop_map(Turn::Flatten),
        6 => (1usize..3).prop_map(Turn::Offer),
        6 => (1usize..4).prop_map(Turn::Want),
        3 => Just(Turn::Answer),
        2 => (0usize..6).prop_map(Turn::Break),
        3 => (0usize..6).prop_map(Turn::Finish),
        2 => Just(Turn::Checkpoint),
        1 => Just(Turn::Crash),
    ]
}

type Answer = ((VolumeId, u64), LogIndex, Told);

/// A session, as the follower keeps it.
#[derive(Default)]
struct Session {
    start: LogIndex,
    volumes: Vec<(VolumeId, VolumeRecord)>,
    cursor: Option<(VolumeId, u64)>,
    todo: Vec<((VolumeId, u64), u8)>,
    late: Option<Answer>,
}

#[derive(Default)]
struct Entries {
    entries: Vec<(Bytes, Location)>,
    checksum: u32,
    deleted: Vec<VolumeId>,
}

struct World {
    leader: Replica,
    follower: Replica,
    log: Entries,
    session: Option<Session>,
    store: BTreeMap<Vec<u8>, Record>,
    stored: LogIndex,
    stored_ahead: LogIndex,
    /// Where the next copied block stands in the follower's log.
    next: u32,
    copied: u64,
}

impl World {
    fn new() -> World {
        World {
            leader: Replica::new(Planted::NONE),
            follower: Replica::new(Planted::NONE),
            log: Entries::default(),
            session: None,
            store: BTreeMap::new(),
            stored: LogIndex(0),
            stored_ahead: LogIndex(0),
            next: 0,
            copied: 0,
        }
    }

    fn lead(&mut self, commands: &[Command]) {
        let index = LogIndex(self.leader.applied().0 + 1);
        let location = Location { segment: SegmentId(index.0 as u32 % 9), block: 0 };
        let data = encode_commands(commands);
        self.leader.apply(index, &data, location, |_, _| {}).unwrap();
        self.log.entries.push((data, location));
    }

    /// The follower applies entries from the log.
    fn follow(&mut self, count: usize) {
        for _ in 0..count {
            let at = self.follower.applied().0;
            let Some((data, location)) = self.log.entries.get(at as usize) else { break };
            self.follower.apply(LogIndex(at + 1), data, *location, |_, _| {}).unwrap();
        }
    }

    fn session(&mut self) -> &mut Session {
        let leader = &self.leader;
        self.session.get_or_insert_with(|| Session {
            start: leader.applied(),
            volumes: leader.volume_states(),
            cursor: Some((VolumeId(0), 0)),
            ..Session::default()
        })
    }

    /// Begins a session if it makes sense.
    fn is_behind(&mut self) -> bool {
        self.session.is_some() || self.leader.applied() > self.follower.applied()
    }

    fn offer(&mut self, most: usize) {
        let Some(from) = self.session().cursor else { return };
        let (pages, more) = self.leader.changed_pages(self.follower.applied(), from, most);
        let at = self.leader.applied();
        self.follower.note_ahead(at);
        let last = pages.last().map(|page| (page.volume, page.chunk + 1));
        self.session().cursor = last.filter(|_| more);
        for page in pages {
            let wanted = self.follower.compare(&page, at);
            let key = (page.volume, page.chunk);
            self.session().todo.extend(wanted.into_iter().map(|number| (key, number)));
        }
    }

    fn want(&mut self, late: bool) {
        let Some((page, number)) = self.session().todo.pop() else { return };
        let held: Vec<HeldBlocks> = self.follower.held(page, &[number]);
        let told = self.leader.tell(page, &held, MOST);
        let answer = (page, self.leader.applied(), told);
        if late {
            self.answer();
            self.session().late = Some(answer);
        } else {
            self.take(answer);
        }
    }

    fn answer(&mut self) {
        if let Some(answer) = self.session().late.take() {
            self.take(answer);
        }
    }

    /// An answer comes: its blocks are durable, and its granule is put in its place if it can.
    fn take(&mut self, (page, at, told): Answer) {
        let first = Location { segment: SegmentId(20), block: self.next };
        self.next += told.blocks.len() as u32;
        self.copied += told.blocks.len() as u64;
        self.follower.stage(page, &told.blocks, first);
        let granule: &GranuleSums = &told.granules[0];
        if !self.follower.install(page, granule, told.changed_at, at) {
            self.session().todo.push((page, granule.number));
        }
    }

    /// Brings the session to its end.
    fn finish(&mut self) {
        while self.session().cursor.is_some() {
            self.offer(2);
        }
        while !self.session().todo.is_empty() || self.session().late.is_some() {
            self.answer();
            self.want(false);
        }
        let session = self.session.take().unwrap();
        self.follower.start_at(session.start, &session.volumes);
        self.checkpoint();
    }

    fn checkpoint(&mut self) {
        let applied = self.follower.applied();
        let (records, deleted) = self.follower.take_dirty_volumes(G);
        let pages = self.follower.take_dirty_pages();
        self.store.retain(
            |_, record| !matches!(record, Record::Granule(_, id, ..) if deleted.contains(id)),
        );
        let mut put = |record: Record| {
            let mut key = Vec::new();
            record.key(&mut key);
            self.store.insert(key, record);
        };
        records.into_iter().for_each(&mut put);
        for (id, chunk) in pages {
            while let Some((number, granule)) = self.follower.take_granule(id, chunk, 1) {
                put(Record::Granule(G, id, chunk, number, granule));
            }
        }
        (self.stored, self.stored_ahead) = (applied, self.follower.ahead());
    }

    fn crash(&mut self) {
        self.session = None;
        self.follower = Replica::new(Planted::NONE);
        for record in self.store.values() {
            match record {
                Record::Granule(_, id, chunk, number, granule) => {
                    self.follower.restore_granule(*id, (*chunk, *number), granule, self.stored);
                }
                Record::Volume(_, id, record) => self.follower.restore_volume(*id, record),
                other => panic!("{other:?}"),
            }
        }
        self.follower.restored(self.stored).unwrap();
        self.follower.note_ahead(self.stored_ahead);
    }

    fn turn(&mut self, turn: &Turn) {
        match turn {
            Turn::Apply(volume, changes) => {
                let id = VolumeId(*volume);
                if self.leader.epoch(id) == Epoch(0) && !self.log.deleted.contains(&id) {
                    // Groups hear of a volume late.
                    let generation = Generation(*volume as u32);
                    self.lead(&[Command::Fence { volume: id, epoch: Epoch(1), generation }]);
                }
                let (current, sum) = (self.leader.generations(id), &mut self.log.checksum);
                let current = current.map_or(0, |(current, _)| current.0);
                let commands = Change::commands(changes, id, current, sum);
                self.lead(&commands);
            }
            Turn::Delete(volume) => {
                let volume = VolumeId(*volume);
                self.log.deleted.push(volume);
                self.lead(&[Command::Delete { volume }]);
            }
            Turn::Clone(volume, of, back) => {
                let (volume, of) = (VolumeId(*volume), VolumeId(*of));
                let current = self.leader.generations(of).map_or(0, |(current, _)| current.0);
                let generation = Generation(current.saturating_sub(*back));
                let parent = SnapshotId { volume: of, generation };
                self.lead(&[Command::Clone { volume, parent }]);
            }
            Turn::Fill(volume, chunk, first) => {
                let range = BlockRange { block: chunk * 1024 + u64::from(*first), count: 20 };
                let fill = fill_of(&self.leader, VolumeId(*volume), range);
                self.lead(fill.as_slice());
            }
            Turn::Flatten(volume) => {
                let id = VolumeId(*volume);
                let parent = self.leader.volumes.get(&id).and_then(|volume| volume.parent);
                let Some(parent) = parent else { return };
                for part in 0..8 {
                    let range = BlockRange { block: part * 256, count: 256 };
                    let fill = fill_of(&self.leader, id, range);
                    self.lead(fill.as_slice());
                }
                self.lead(&[Command::Detach { volume: id, parent }]);
            }
            Turn::Offer(most) if self.is_behind() => self.offer(*most),
            Turn::Want(count) if self.session.is_some() => {
                (0..*count).for_each(|_| self.want(false));
            }
            Turn::Answer if self.session.is_some() => self.want(true),
            Turn::Break(count) => {
                self.session = None;
                self.follower.unstage();
                self.follow(*count);
            }
            Turn::Finish(count) if self.is_behind() => {
                self.finish();
                self.follow(*count);
            }
            Turn::Checkpoint => self.checkpoint(),
            Turn::Crash => self.crash(),
            _ => {}
        }
    }
}

proptest! {
    #[test]
    fn copied_pages_come_to_the_same(all in prop::collection::vec(turns(), 1..120)) {
        let mut world = World::new();
        for turn in &all {
            world.turn(turn);
            prop_assert_eq!(world.follower.usage(), &world.follower.recount(|_| Vec::new()));
        }
        world.session = None;
        world.follower.unstage();
        world.follow(usize::MAX);
        let (leader, follower) = (&world.leader, &world.follower);
        prop_assert!(!follower.is_fuzzy());
        prop_assert_eq!(follower.digest(), leader.digest());
        prop_assert_eq!(follower.usage(), &follower.recount(|_| Vec::new()));
        let total = |replica: &Replica| (replica.mapped_blocks(), replica.kept_blocks());
        prop_assert_eq!(total(follower), total(leader));
        prop_assert_eq!(follower.usage().total(), total(follower).0 + total(follower).1);
        world.checkpoint();
        world.crash();
        prop_assert_eq!(world.follower.digest(), world.leader.digest());
    }

    /// Once it is brought up, a second session at rest moves nothing, and one over few changes little.
    #[test]
    fn what_is_held_is_not_copied(
        first in prop::collection::vec(changes(), 1..60),
        then in prop::collection::vec((0u64..2048, any::<bool>()), 0..8),
    ) {
        let mut world = World::new();
        world.turn(&Turn::Apply(1, first));
        world.turn(&Turn::Finish(0));
        world.copied = 0;
        let freezes = then.iter().filter(|(_, freeze)| *freeze).count();
        for (block, freeze) in &then {
            let change = if *freeze { Change::Freeze } else { Change::Write(*block, 1) };
            world.turn(&Turn::Apply(1, vec![change]));
        }
        world.turn(&Turn::Finish(0));
        prop_assert!(world.copied as usize <= then.len() - freezes, "{} copied", world.copied);
        prop_assert_eq!(world.follower.digest(), world.leader.digest());
    }
}
