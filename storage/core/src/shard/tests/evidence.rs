//! What damage to the log costs a replica that has a checkpoint: a row for each place of the damage.
//!
//! A checkpoint lets replay begin at a place P and stands for a batch Q. Its pages hold what is applied;
//! the term and the vote as of then stand in it too. Whatever is damaged, a replica must come back with
//! the vote that it gave and the entries that it acknowledged, or take no part before a leader readmits it.
//!
//! | damaged | what is known of it | checkpoint | vote | end of the log |
//! | --- | --- | --- | --- | --- |
//! | before P | nothing needs it | used | kept | kept |
//! | P to Q, a hard state alone | the next batch tells | used | told | kept |
//! | P to Q, entries that its pages have seen | the next batch tells | refused | told | nothing believed, impaired |
//! | P to Q, two in a row | nothing | refused | lost, mute | nothing believed |
//! | behind Q, a hard state alone | the next batch tells | used | told | kept |
//! | behind Q, entries | the next batch tells | used | told | before them, impaired |
//! | behind Q, two in a row | nothing | refused | lost, mute | nothing believed |
//! | Q and all behind it | the checkpoint proves it | refused | lost, mute | nothing believed |
//! | all from before P on | the checkpoint proves it | refused | lost, mute | nothing believed |
//! | what stands there is another history | the checkpoint proves it | refused | lost, mute | nothing believed |
//! | the last batch behind Q, never sealed | a torn write looks the same | used | as of before | before it |

use super::world::{G, Options, World, address, node};
use super::*;
use crate::config::Limits;
use crate::log::HardState;
use crate::planted::Planted;
use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::disk::batch::{BatchHeader, Descriptor};

const SEGMENTS_AT: usize = 128 << 10;
const SEGMENT_BYTES: usize = 256 << 10;

/// A batch on a device.
struct Batch {
    at: usize,
    header: BatchHeader,
}

impl Batch {
    fn entries(&self) -> Vec<u64> {
        let of_group = self.header.records().filter_map(|record| match record {
            Descriptor::Entry { group: G, index, .. } => Some(index.0),
            _ => None,
        });
        of_group.collect()
    }

    fn is_hard_state_alone(&self) -> bool {
        self.header.record_count() > 0
            && self.header.records().all(|r| matches!(r, Descriptor::HardState { .. }))
    }
}

/// The batches of a device, in order.
fn batches(disk: &[u8]) -> Vec<Batch> {
    let (mut at, mut found) = (SEGMENTS_AT, Vec::<Batch>::new());
    while let Ok(header) = BatchHeader::decode(&disk[at..]) {
        if found.last().is_some_and(|last| last.header.fields.seq + 1 != header.fields.seq) {
            break;
        }
        let next = match header.is_closing() {
            true => SEGMENTS_AT + header.fields.next_segment as usize * SEGMENT_BYTES,
            false => at + header.blocks() as usize * BLOCK_BYTES,
        };
        found.push(Batch { at, header });
        at = next;
    }
    found
}

/// Node 1 with a checkpoint, entries and votes around it, crashed. The numbers of P and Q.
struct Case {
    world: World,
    from: u64,
    until: u64,
    /// What it had recorded last.
    hard: HardState,
    last: u64,
    /// The device before all that.
    early: Vec<u8>,
}

impl Case {
    fn new(planted: Planted) -> Case {
        let mut world = World::new(Options {
            planted,
            segments: 96,
            checkpoint_bytes: 64 << 10,
            // No checkpoint comes before it is due.
            index_bytes: u64::MAX,
            // Votes and entries come in batches of their own.
            limits: Limits { gather_bytes: 0, ..Limits::default() },
            ..Options::default()
        });
        world.fence(1);
        let early = world.nodes[&1].disk.clone();
        for i in 0..8 {
            index(&world.write(1, i, 1));
            elect_another(&mut world);
        }
        // P is the batch of this entry. What follows becomes durable while the checkpoint is under way: a
        // vote given to nobody yet, and entries.
        index(&world.write(1, 8, 2));
        world.nodes.get_mut(&1).unwrap().writes_held = true;
        for i in 0..3 {
            elect_another(&mut world);
            index(&world.write(1, i, 3));
        }
        let number = world.shard(1).status().checkpoint;
        world.nodes.get_mut(&1).unwrap().shard.as_mut().unwrap().taker.ask();
        world.run();
        assert_eq!(world.shard(1).status().checkpoint, number, "it waits for what is recorded");
        world.nodes.get_mut(&1).unwrap().writes_held = false;
        world.run();
        assert_eq!(world.shard(1).status().checkpoint, number + 1);
        world.nodes.get_mut(&1).unwrap().saves_held = true;
        for i in 0..4 {
            elect_another(&mut world);
            index(&world.write(1, i, 4));
            index(&world.write(1, i, 5));
            world.pass(ms(30));
        }
        world.pass(ms(1000));
        let status = world.status(1);
        let (term, last) = (status.term, status.last.0);
        world.crash_silently(1);
        let snapshot =
            super::world::load(&world.nodes[&1].store, 0).unwrap().expect("a checkpoint");
        let (from, until) = (snapshot.manifest.from.seq, snapshot.manifest.until.0);
        let all = batches(&world.nodes[&1].disk);
        let states = all.iter().flat_map(|b| b.header.records().collect::<Vec<_>>());
        let hard = states.filter_map(|record| match record {
            Descriptor::HardState { group: G, state } => {
                Some(HardState { term: state.term, vote: state.vote, commit: state.commit })
            }
            _ => None,
        });
        let hard = hard.last().expect("a hard state");
        assert_eq!(hard.term, term);
        Case { world, from, until, hard, last, early }
    }

    fn all(&self) -> Vec<Batch> {
        batches(&self.world.nodes[&1].disk)
    }

    /// Damages the headers of batches from one number on, up to another.
    fn damage(&mut self, seqs: std::ops::RangeInclusive<u64>) {
        for batch in self.all() {
            if seqs.contains(&batch.header.fields.seq) {
                self.world.nodes.get_mut(&1).unwrap().disk[batch.at + 40] ^= 0x10;
            }
        }
    }

    /// The number of a batch for which something holds, with a batch behind it that holds.
    fn find(&self, what: impl Fn(u64, &Batch) -> bool) -> u64 {
        let all = self.all();
        let found = all.iter().rev().skip(1).find(|b| what(b.header.fields.seq, b));
        found.expect("such a batch").header.fields.seq
    }

    /// Starts the node alone.
    fn start(&mut self) -> Seen {
        self.world.isolate(1, true);
        self.world.start(1);
        let report = self.world.shard(1).status().open_report.expect("the log opens");
        let status = self.world.status(1);
        let shard = self.world.shard(1);
        let recorded = shard.groups[shard.by_id[&G]].recorded();
        let mute = self.world.notices.iter().any(|n| n.contains("a vote may be lost"));
        Seen {
            used: report.checkpoint.is_some(),
            hard: (recorded.term, recorded.vote),
            last: status.last.0,
            impaired: status.role == GroupRole::Impaired,
            mute,
        }
    }

    /// It takes no part as long as it and another one are the only ones: no vote is given, none is asked for,
    /// and nothing is acknowledged. With a third it comes to hold everything, and then votes.
    fn comes_back_without_its_vote(&mut self) {
        let seen = self.start();
        assert!(!seen.used && seen.mute && seen.impaired, "{seen:?}: {:#?}", self.world.notices);
        assert_eq!(seen.last, 0, "entries are believed");
        self.world.log.clear();
        let down = self.world.elect();
        assert_ne!(down, 1);
        self.world.crash(down);
        self.world.isolate(1, false);
        self.world.pass(ms(5000));
        assert_eq!(self.world.leader(), None, "a lost vote is given again");
        let said: Vec<_> = self.world.log.iter().filter(|l| l.starts_with("1->")).collect();
        assert!(said.iter().all(|l| !l.contains("Raft(")), "{said:#?}");
        // The same again, as long as nothing is committed without it.
        self.world.crash_silently(1);
        self.world.nodes.get_mut(&1).unwrap().saves_held = false;
        assert!(self.start().mute);
        self.world.isolate(1, false);
        self.world.start(down);
        self.world.pass(ms(5000));
        assert_eq!(self.world.status(1).role, GroupRole::Follower, "{:#?}", self.world.notices);
        self.world.check_converged();
        // Its vote counts again.
        let leader = self.world.elect();
        self.world.crash(leader);
        self.world.pass(ms(5000));
        assert!(self.world.leader().is_some(), "it votes");
        index(&self.world.write(1, 1, 7));
        self.world.start(leader);
        self.world.pass(ms(3000));
        self.world.check_converged();
        // What it holds now is what a start finds.
        self.world.crash_silently(1);
        let seen = self.start();
        assert!(seen.used && !seen.impaired, "{seen:?}: {:#?}", self.world.notices);
    }

    /// It comes back with what it had.
    fn is_whole(&mut self) {
        let seen = self.start();
        assert!(seen.used && !seen.mute && !seen.impaired, "{seen:?}: {:#?}", self.world.notices);
        assert_eq!((seen.hard, seen.last), ((self.hard.term, self.hard.vote), self.last));
    }

    /// It knows its vote, and which entries it lacks.
    fn lacks_from(&mut self, first: u64, used: bool) {
        let seen = self.start();
        assert!(seen.used == used && !seen.mute && seen.impaired, "{seen:?}");
        // Without a checkpoint nothing says that what stands before a gap is what was committed there.
        let believed = if used { first - 1 } else { 0 };
        assert_eq!((seen.hard, seen.last), ((self.hard.term, self.hard.vote), believed));
        self.world.isolate(1, false);
        self.world.pass(ms(3000));
        assert_eq!(self.world.status(1).role, GroupRole::Follower, "{:#?}", self.world.notices);
        self.world.check_converged();
    }
}

#[derive(Debug)]
struct Seen {
    used: bool,
    hard: (Term, NodeId),
    last: u64,
    impaired: bool,
    mute: bool,
}

/// Has one of the nodes 2 and 3 elected that does not lead, with the vote of node 1.
fn elect_another(world: &mut World) {
    let leader = world.elect();
    let to = if leader == 2 { 3 } else { 2 };
    for n in 1..=3 {
        world.event(n, Event::Prefer { group: G, node: node(to) });
    }
    for _ in 0..100 {
        world.pass(ms(50));
        if world.leader() == Some(to) && world.elect() == to {
            return;
        }
    }
    panic!("node {to} does not come to lead: {:#?}", world.tell());
}

#[test]
fn damage_before_the_place_where_replay_begins() {
    let mut case = Case::new(Planted::NONE);
    let from = case.from;
    case.damage(2..=from - 1);
    case.is_whole();
}

#[test]
fn a_vote_between_the_place_and_the_last_batch_of_the_checkpoint() {
    let mut case = Case::new(Planted::NONE);
    let (from, until) = (case.from, case.until);
    let seq = case.find(|seq, b| (from..=until).contains(&seq) && b.is_hard_state_alone());
    case.damage(seq..=seq);
    case.is_whole();
}

#[test]
fn entries_that_the_pages_have_seen() {
    let mut case = Case::new(Planted::NONE);
    let (from, until) = (case.from, case.until);
    let seq = case.find(|seq, b| seq == from && seq < until && !b.entries().is_empty());
    let first = case.all().iter().find(|b| b.header.fields.seq == seq).unwrap().entries()[0];
    case.damage(seq..=seq);
    case.lacks_from(first, false);
}

#[test]
fn two_neighbours_of_which_the_pages_have_seen_something() {
    let mut case = Case::new(Planted::NONE);
    let (from, until) = (case.from, case.until);
    assert!(from < until);
    case.damage(from..=from + 1);
    case.comes_back_without_its_vote();
}

#[test]
fn a_vote_behind_the_checkpoint() {
    let mut case = Case::new(Planted::NONE);
    let until = case.until;
    let seq = case.find(|seq, b| seq > until && b.is_hard_state_alone());
    case.damage(seq..=seq);
    case.is_whole();
}

#[test]
fn entries_behind_the_checkpoint() {
    let mut case = Case::new(Planted::NONE);
    let until = case.until;
    let seq = case.find(|seq, b| seq > until + 1 && !b.entries().is_empty());
    let first = case.all().iter().find(|b| b.header.fields.seq == seq).unwrap().entries()[0];
    case.damage(seq..=seq);
    case.lacks_from(first, true);
}

#[test]
fn a_vote_and_its_neighbour_behind_the_checkpoint() {
    let mut case = Case::new(Planted::NONE);
    let until = case.until;
    let seq = case.find(|seq, b| seq > until + 1 && b.is_hard_state_alone());
    case.damage(seq..=seq + 1);
    case.comes_back_without_its_vote();
}

/// All batches from a number on are damaged.
fn end_is_gone(planted: Planted, from: impl Fn(&Case) -> u64) -> Case {
    let mut case = Case::new(planted);
    let first = from(&case);
    case.damage(first..=u64::MAX);
    case
}

#[test]
fn the_last_batch_of_the_checkpoint_and_all_behind_it() {
    end_is_gone(Planted::NONE, |case| case.until).comes_back_without_its_vote();
}

#[test]
fn all_from_before_the_place_where_replay_begins() {
    end_is_gone(Planted::NONE, |case| case.from - 2).comes_back_without_its_vote();
}

#[test]
fn nothing_is_left_of_the_log() {
    end_is_gone(Planted::NONE, |_| 1).comes_back_without_its_vote();
}

#[test]
fn an_older_image_of_the_device() {
    let mut case = Case::new(Planted::NONE);
    case.world.nodes.get_mut(&1).unwrap().disk = case.early.clone();
    case.comes_back_without_its_vote();
}

#[test]
fn another_history_on_an_older_image() {
    let mut case = Case::new(Planted::NONE);
    // It went on from the older image without the checkpoint, which then comes back.
    let store = std::mem::take(&mut case.world.nodes.get_mut(&1).unwrap().store);
    case.world.nodes.get_mut(&1).unwrap().disk = case.early.clone();
    case.world.start(1);
    case.world.pass(ms(3000));
    case.world.elect();
    case.world.crash_silently(1);
    case.world.nodes.get_mut(&1).unwrap().store = store;
    case.comes_back_without_its_vote();
}

#[test]
fn the_last_batch_before_it_was_sealed() {
    let mut case = Case::new(Planted::NONE);
    // The last one is the seal: both look as if they had been cut off while they were written.
    let (end, last) = (case.all().len() as u64, case.last);
    assert!(case.until < end - 1);
    case.damage(end - 1..=end);
    let seen = case.start();
    assert!(seen.used && !seen.mute && !seen.impaired, "{seen:?}");
    assert!(seen.last == last || seen.last == last - 1, "{seen:?}");
}

#[cfg(feature = "planted")]
#[test]
fn a_forgotten_proof_is_noticed() {
    let planted = Planted::new(crate::planted::Bug::CheckpointProofForgotten);
    let seen = end_is_gone(planted, |case| case.until).start();
    assert!(!seen.mute && !seen.impaired, "{seen:?}");
}

#[test]
fn an_answer_to_another_loss_readmits_nobody() {
    let mut case = end_is_gone(Planted::NONE, |case| case.until);
    assert!(case.start().mute);
    let (group, term, index) = (G, Term(1000), LogIndex(1));
    let frame = Frame::Readmit { group, term, index, loss: 1 };
    case.world.event(1, Event::Peer { from: address(2), frame });
    let shard = case.world.shard(1);
    assert!(!shard.groups[shard.by_id[&G]].is_sound(), "an old answer counts");
    assert_ne!(case.world.status(1).term, term);
}
