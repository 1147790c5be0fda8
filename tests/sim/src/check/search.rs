//! Exhaustive judgement of one unit's history, for values that are not unique.
//!
//! The history is walked in time, with the set of all states that the register may be in: its value,
//! and which of the operations under way have already taken effect (Wing and Gong's search with
//! Lowe's memory of visited states, one step at a time). When an operation ends, every state in which
//! it has not taken effect is developed until it has, or dropped.

use super::register::{Action, NEVER, Record};
use rustc_hash::FxHashSet;

/// The outcome of a search.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order that explains the history.
    Linearizable,
    /// There is none.
    Violated(String),
    /// Too many operations overlap for the search to end in reasonable time.
    TooWide,
}

/// Operations that may overlap; more are not searched.
const SLOTS: u32 = 24;
/// States that may be open at a time; more are not searched.
const STATES_MAX: usize = 50_000;

/// The register's value, and a bit for each slot whose operation has taken effect.
type State = (u32, u32);

#[derive(Clone, Copy)]
struct Step {
    at: u32,
    begins: bool,
    record: usize,
}

struct Search<'a> {
    records: Vec<&'a Record>,
    /// Which record occupies a slot.
    slots: [Option<usize>; SLOTS as usize],
    slot_of: Vec<u32>,
    states: FxHashSet<State>,
}

/// Judges the history of one unit, which begins as zeros.
pub fn judge(group: &[Record]) -> Verdict {
    // A value that was never read, of a write that may never have been, explains nothing.
    let read = |v: u32| group.iter().any(|r| r.action == Action::Read && r.value == v);
    let records: Vec<&Record> =
        group.iter().filter(|r| r.certain || r.action == Action::Read || read(r.value)).collect();
    let mut steps = Vec::with_capacity(records.len() * 2);
    for (record, r) in records.iter().enumerate() {
        steps.push(Step { at: r.call, begins: true, record });
        if r.end != NEVER {
            steps.push(Step { at: r.end, begins: false, record });
        }
    }
    steps.sort_unstable_by_key(|s| (s.at, s.begins));
    let slot_of = vec![0; records.len()];
    let states = FxHashSet::from_iter([(0, 0)]);
    let mut search = Search { records, slots: [None; SLOTS as usize], slot_of, states };
    for step in steps {
        if let Err(verdict) = search.step(step) {
            return verdict;
        }
    }
    Verdict::Linearizable
}

impl Search<'_> {
    fn step(&mut self, step: Step) -> Result<(), Verdict> {
        if step.begins {
            let free = self.slots.iter().position(Option::is_none).ok_or(Verdict::TooWide)?;
            self.slots[free] = Some(step.record);
            self.slot_of[step.record] = free as u32;
            return Ok(());
        }
        let bit = 1 << self.slot_of[step.record];
        let reached = self.develop(bit)?;
        let record = self.records[step.record];
        let before = std::mem::take(&mut self.states);
        self.states = reached.into_iter().map(|(v, mask)| (v, mask & !bit)).collect();
        if !record.certain {
            // It may as well never have taken effect.
            self.states.extend(before.into_iter().filter(|(_, mask)| mask & bit == 0));
        }
        self.slots[self.slot_of[step.record] as usize] = None;
        if self.states.is_empty() {
            return Err(Verdict::Violated(format!(
                "no order of events explains the {} from {} to {} with value {}",
                if record.action == Action::Read { "read" } else { "write" },
                record.call,
                record.end,
                record.value
            )));
        }
        Ok(())
    }

    /// All states in which the operation of `bit` has taken effect.
    fn develop(&self, bit: u32) -> Result<FxHashSet<State>, Verdict> {
        let mut reached = FxHashSet::default();
        let mut seen: FxHashSet<State> = self.states.clone();
        let mut open: Vec<State> = self.states.iter().copied().collect();
        while let Some((value, mask)) = open.pop() {
            if mask & bit != 0 {
                reached.insert((value, mask));
                continue;
            }
            for (slot, record) in self.slots.iter().enumerate() {
                let Some(record) = record.map(|r| self.records[r]) else { continue };
                let own = 1 << slot;
                if mask & own != 0 || (record.action == Action::Read && record.value != value) {
                    continue;
                }
                let next = (record.value, mask | own);
                if seen.insert(next) {
                    open.push(next);
                }
            }
            if seen.len() > STATES_MAX {
                return Err(Verdict::TooWide);
            }
        }
        Ok(reached)
    }
}

/// Judges by trying every order: only for histories of a few operations, to test the judges.
#[cfg(test)]
pub fn brute_force(group: &[Record]) -> bool {
    fn go(left: &mut Vec<Record>, value: u32) -> bool {
        if left.iter().all(|r| !r.certain) {
            return true;
        }
        let frontier = left.iter().filter(|r| r.certain).map(|r| r.end).min().unwrap_or(NEVER);
        for i in 0..left.len() {
            let r = left[i];
            // Whatever is certain and has ended before `r` begins comes first.
            if r.call > frontier || (r.action == Action::Read && r.value != value) {
                continue;
            }
            left.remove(i);
            // An uncertain write that can not take effect after its end drops out with the first
            // operation that begins later.
            let mut rest: Vec<Record> =
                left.iter().copied().filter(|o| o.certain || o.end > r.call).collect();
            let found = go(&mut rest, r.value);
            left.insert(i, r);
            if found {
                return true;
            }
        }
        false
    }
    go(&mut group.to_vec(), 0)
}
