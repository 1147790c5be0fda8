//! Blocks that are damaged here and asked for elsewhere.
//!
//! Each is asked for from one peer after the other, by its checksum. What comes and has that checksum is
//! appended to the log as a moved block, so that a crash at any moment leaves the old place or the new one.
//! A block that nobody has stays as it is and is asked for again later. One that is overwritten or
//! unmapped meanwhile needs no repair.

use crate::log::RecordSeq;
use crate::mark;
use basalt_wire::block::crc32c;
use basalt_wire::buffer::Payload;
use basalt_wire::disk::moved::MovedBlock;
use basalt_wire::ids::{Address, SegmentId, VolumeId};
use basalt_wire::time::Time;
use rustc_hash::FxHashSet;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Blocks that are known to be damaged at a time. What is beyond is found again by the next pass.
const BLOCKS_MAX: usize = 4096;
/// Blocks of which nobody was asked yet, after which the scrub waits for repairs.
const BACKLOG: usize = 1024;
/// Questions without an answer.
const ASKS_MAX: usize = 64;
/// A block that nobody has is asked for again after this.
const LATER: Duration = Duration::from_secs(30);
/// One that found no room on the device, after this.
const ROOM_LATER: Duration = Duration::from_secs(1);

/// What was done since the shard was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RepairCounts {
    /// Blocks that were repaired.
    pub repaired: u64,
    /// Blocks that were overwritten before they were repaired.
    pub overwritten: u64,
    /// Blocks that are damaged now, as far as is known.
    pub waiting: u64,
    /// Of those, blocks that no replica could give when they were asked.
    pub lost: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// To be asked for at a time.
    Waiting(Time),
    /// Asked for; another is asked at a time.
    Asked(Address, Time),
    /// On its way to the device.
    Writing,
}

/// A block that is damaged.
#[derive(Clone, Copy, Debug)]
struct Damaged {
    slot: usize,
    block: MovedBlock,
    state: State,
    /// Peers asked in this round.
    asked: usize,
    /// Whether no peer had it in a former round.
    lost: bool,
}

/// Something that the shard must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Todo {
    /// Ask a peer.
    Ask {
        /// The peer.
        to: Address,
        /// The number of the question.
        request: u64,
        /// The group's position in the shard.
        slot: usize,
        /// The block.
        block: MovedBlock,
    },
    /// Tell the operator that no replica that answers has it.
    Lost {
        /// The group's position in the shard.
        slot: usize,
        /// The block.
        block: MovedBlock,
    },
}

/// A block that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    /// The group's position in the shard.
    pub slot: usize,
    /// The block.
    pub block: MovedBlock,
}

type Place = (VolumeId, u64, Option<(SegmentId, u32)>);

fn place_of(block: &MovedBlock) -> Place {
    (block.volume, block.block, block.from)
}

/// The damaged blocks of a shard.
#[derive(Debug, Default)]
pub struct Repairs {
    all: BTreeMap<u64, Damaged>,
    known: FxHashSet<(usize, Place)>,
    /// Questions are numbered by the block that they are about.
    next: u64,
    asks: usize,
    lost: usize,
    /// Blocks on their way to the device, in the order of their records.
    writing: VecDeque<(RecordSeq, u64)>,
    /// When something is to be done without an event.
    look_at: Option<Time>,
    repaired: u64,
    overwritten: u64,
}

impl Repairs {
    /// None; questions are numbered from a number that no earlier start has used.
    pub fn new(first: u64) -> Repairs {
        Repairs { next: first >> 1, ..Repairs::default() }
    }

    /// What was done so far.
    pub fn counts(&self) -> RepairCounts {
        RepairCounts {
            repaired: self.repaired,
            overwritten: self.overwritten,
            waiting: self.all.len() as u64,
            lost: self.lost as u64,
        }
    }

    /// Whether there is so much to be repaired that nothing more should be looked for.
    pub fn is_backlogged(&self) -> bool {
        self.all.len() - self.lost >= BACKLOG
    }

    /// When [`Repairs::plan`] must be called, unless something else happens before.
    pub fn deadline(&self) -> Option<Time> {
        self.look_at
    }

    /// Takes a damaged block. Says whether that is news and will be worked on.
    pub fn add(&mut self, now: Time, slot: usize, block: MovedBlock) -> bool {
        let place = (slot, place_of(&block));
        if self.all.len() >= BLOCKS_MAX || !self.known.insert(place) {
            return false;
        }
        mark!("damaged block to be repaired");
        self.next += 1;
        let state = State::Waiting(now);
        self.all.insert(self.next, Damaged { slot, block, state, asked: 0, lost: false });
        self.look_at = Some(now);
        true
    }

    /// The blocks that [`Repairs::plan`] would look at.
    pub fn due(&self, now: Time) -> impl Iterator<Item = (usize, &MovedBlock)> {
        let is_due = move |state| match state {
            State::Waiting(at) | State::Asked(_, at) => at <= now,
            State::Writing => false,
        };
        let due = self.all.values().filter(move |damaged| is_due(damaged.state));
        due.map(|damaged| (damaged.slot, &damaged.block))
    }

    /// Plans what is due: `is_live` says whether the index still refers to a block, `peers` who else has
    /// the group and can be reached. A peer that does not answer within `patience` is left out.
    pub fn plan(
        &mut self,
        now: Time,
        patience: Duration,
        is_live: impl Fn(usize, &MovedBlock) -> bool,
        peers: impl Fn(usize) -> Vec<Address>,
    ) -> Vec<Todo> {
        let mut todo = Vec::new();
        if self.look_at.is_none_or(|at| at > now) {
            return todo;
        }
        let mut gone = Vec::new();
        for (request, damaged) in &mut self.all {
            match damaged.state {
                State::Asked(_, until) if until <= now => {
                    mark!("repair is not answered");
                    self.asks -= 1;
                    damaged.asked += 1;
                    damaged.state = State::Waiting(now);
                }
                _ => {}
            }
            if !matches!(damaged.state, State::Waiting(at) if at <= now) || self.asks >= ASKS_MAX {
                continue;
            }
            let (slot, block) = (damaged.slot, damaged.block);
            if !is_live(slot, &block) {
                gone.push(*request);
                continue;
            }
            let peers = peers(slot);
            match peers.get(damaged.asked) {
                Some(to) => {
                    self.asks += 1;
                    damaged.state = State::Asked(*to, now + patience);
                    todo.push(Todo::Ask { to: *to, request: *request, slot, block });
                }
                None => {
                    damaged.asked = 0;
                    damaged.state = State::Waiting(now + LATER);
                    if !std::mem::replace(&mut damaged.lost, true) {
                        self.lost += 1;
                        todo.push(Todo::Lost { slot, block });
                    }
                }
            }
        }
        for request in gone {
            mark!("damaged block overwritten");
            self.overwritten += 1;
            self.forget(request);
        }
        self.look_at = self.next_look(now);
        todo
    }

    /// When the next time passes that something waits for. What waits for a question to be answered is
    /// looked at with the answer.
    fn next_look(&self, now: Time) -> Option<Time> {
        let full = self.asks >= ASKS_MAX;
        let times = self.all.values().filter_map(|damaged| match damaged.state {
            State::Waiting(at) if at > now || !full => Some(at),
            State::Asked(_, until) => Some(until),
            _ => None,
        });
        times.min()
    }

    fn forget(&mut self, request: u64) {
        if let Some(damaged) = self.all.remove(&request) {
            self.known.remove(&(damaged.slot, place_of(&damaged.block)));
            self.lost -= usize::from(damaged.lost);
        }
    }

    /// Takes note of an answer. Gives the block if it was asked of this peer.
    fn answered(&mut self, now: Time, from: Address, request: u64) -> Option<&mut Damaged> {
        let damaged = self.all.get_mut(&request)?;
        if !matches!(damaged.state, State::Asked(peer, _) if peer == from) {
            return None;
        }
        self.asks -= 1;
        self.look_at = Some(now);
        damaged.state = State::Waiting(now);
        Some(damaged)
    }

    /// A peer does not have it: the next one is asked.
    pub fn refused(&mut self, now: Time, from: Address, request: u64) {
        if let Some(damaged) = self.answered(now, from, request) {
            damaged.asked += 1;
        }
    }

    /// A peer gave content. Gives the block if it is what was asked for; if `trust`, in any case (a planted
    /// bug).
    pub fn given(
        &mut self,
        now: Time,
        (from, request): (Address, u64),
        content: &Payload,
        trust: bool,
    ) -> Option<Given> {
        let damaged = self.answered(now, from, request)?;
        let fits = content.pieces().iter().all(|piece| !piece.is_empty())
            && crc32c(&content.contiguous()) == damaged.block.checksum;
        if !fits && !trust {
            mark!("repair with damaged content");
            damaged.asked += 1;
            return None;
        }
        Some(Given { slot: damaged.slot, block: damaged.block })
    }

    /// There is no room for it now.
    pub fn no_room(&mut self, now: Time, request: u64) {
        if let Some(damaged) = self.all.get_mut(&request) {
            mark!("no room for a repair");
            damaged.state = State::Waiting(now + ROOM_LATER);
        }
    }

    /// It was handed to the log.
    pub fn recorded(&mut self, request: u64, seq: RecordSeq) {
        if let Some(damaged) = self.all.get_mut(&request) {
            damaged.state = State::Writing;
            self.writing.push_back((seq, request));
        }
    }

    /// A record is durable and the index points at it, or `moved` is false because the block was overwritten
    /// before. If it was a repair, gives the segment in which the block was damaged.
    pub fn durable(&mut self, seq: RecordSeq, moved: bool) -> Option<SegmentId> {
        let (_, request) = self.writing.pop_front_if(|(record, _)| *record == seq)?;
        let from = self.all.get(&request)?.block.from;
        match moved {
            true => self.repaired += 1,
            false => self.overwritten += 1,
        }
        self.forget(request);
        from.map(|(segment, _)| segment)
    }
}
