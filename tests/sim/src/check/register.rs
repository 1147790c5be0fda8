//! Per-unit linearizability, by zones.
//!
//! Every write of a unit has its own value, so whether a history is linearizable needs no search
//! (Gibbons and Korach, "Testing Shared Memories", 1997). A *cluster* is a write and its reads; let
//! `f` be the earliest end and `s` the latest begin of its operations. If `f < s` the value must have
//! been in the register from `f` to `s`: a *forward zone*. Otherwise all its operations overlap in
//! `[s, f]`, a *backward zone*, and the value may have been there for one moment of it. The history is
//! linearizable if and only if no read ends before its write begins, no two forward zones overlap, and
//! no backward zone lies inside a forward zone.
//!
//! Zeros are not unique. A unit that nobody zeroed begins with the one value zero, written before all
//! else; a unit that was unmapped is judged by [`super::search`].

use super::search::{self, Verdict};
use crate::rng::mix;
use std::fmt;

/// Position in the order of all calls and answers of a run; no two events share one.
pub type Moment = u32;

/// An answer that never came.
pub const NEVER: Moment = Moment::MAX;

/// What was done to a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The value was read.
    Read,
    /// The value was written.
    Write,
}

/// One operation on one unit. The value is the number of the write that it comes from, or 0 for zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Volume and unit in one number.
    pub unit: u64,
    /// What was done.
    pub action: Action,
    /// Which value.
    pub value: u32,
    /// When it was asked for.
    pub call: Moment,
    /// When it was over: the answer, or the moment after which it can not take effect any more, or
    /// [`NEVER`].
    pub end: Moment,
    /// Whether it is certain that the operation took place.
    pub certain: bool,
}

/// What a check found to be in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Units judged.
    pub units: u64,
    /// Units judged by exhaustive search.
    pub searched: u64,
    /// Units whose history was too concurrent to search.
    pub skipped: u64,
}

/// Why a history is not that of a register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The unit.
    pub unit: u64,
    /// In words.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unit {} of volume {}: {}", self.unit & 0xffff_ffff, self.unit >> 32, self.text)
    }
}

/// Judges a run's whole history. One unit in twenty that the zones accept is searched as well.
pub fn check(records: &mut [Record]) -> Result<Checked, Violation> {
    records.sort_unstable_by_key(|r| (r.unit, r.call));
    let mut checked = Checked::default();
    for group in records.chunk_by(|a, b| a.unit == b.unit) {
        let unit = group[0].unit;
        let fail = |text| Violation { unit, text };
        checked.units += 1;
        let zeroed = group.iter().any(|r| r.action == Action::Write && r.value == 0);
        if !zeroed {
            zones(group).map_err(fail)?;
            if !mix(unit).is_multiple_of(20) {
                continue;
            }
        }
        match search::judge(group) {
            Verdict::Linearizable => checked.searched += 1,
            Verdict::TooWide => checked.skipped += 1,
            Verdict::Violated(_) if !zeroed => {
                return Err(fail("the zones accept what the search refuses".to_owned()));
            }
            Verdict::Violated(text) => return Err(fail(text)),
        }
    }
    Ok(checked)
}

/// A value's write and reads.
#[derive(Clone, Copy, Debug)]
struct Cluster {
    value: u32,
    call: Moment,
    /// The earliest end.
    f: Moment,
    /// The latest begin.
    s: Moment,
    read: bool,
    certain: bool,
}

impl fmt::Display for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.value == 0 { "zeros".into() } else { format!("write {}", self.value) };
        match self.f < self.s {
            true => write!(f, "{name} held the unit from {} to {}", self.f, self.s),
            false => write!(f, "{name} took effect between {} and {}", self.s, self.f),
        }
    }
}

/// Judges one unit that nobody zeroed.
pub fn zones(group: &[Record]) -> Result<(), String> {
    let clusters = clusters(group)?;
    let mut forward: Vec<Cluster> = clusters.iter().copied().filter(|c| c.f < c.s).collect();
    forward.sort_unstable_by_key(|c| c.f);
    for pair in forward.windows(2) {
        if pair[1].f < pair[0].s {
            return Err(format!("{}, but {}", pair[0], pair[1]));
        }
    }
    for back in clusters.iter().filter(|c| c.f >= c.s) {
        let at = forward.partition_point(|c| c.f < back.s);
        if at > 0 && back.f < forward[at - 1].s {
            return Err(format!("{}, but {back}", forward[at - 1]));
        }
    }
    Ok(())
}

fn clusters(group: &[Record]) -> Result<Vec<Cluster>, String> {
    let initial = Cluster { value: 0, call: 0, f: 0, s: 0, read: false, certain: true };
    let mut clusters = vec![initial];
    for r in group.iter().filter(|r| r.action == Action::Write) {
        let (value, call) = (r.value, r.call);
        clusters.push(Cluster { value, call, f: r.end, s: call, read: false, certain: r.certain });
    }
    clusters.sort_unstable_by_key(|c| c.value);
    if let Some(pair) = clusters.windows(2).find(|p| p[0].value == p[1].value) {
        return Err(format!("the value {} was written twice", pair[0].value));
    }
    for r in group.iter().filter(|r| r.action == Action::Read) {
        let Ok(at) = clusters.binary_search_by_key(&r.value, |c| c.value) else {
            return Err(format!(
                "the read from {} to {} returned the value {}, which nobody wrote here",
                r.call, r.end, r.value
            ));
        };
        let c = &mut clusters[at];
        if r.end < c.call {
            return Err(format!(
                "the read from {} to {} returned write {}, which began at {} only",
                r.call, r.end, r.value, c.call
            ));
        }
        c.f = c.f.min(r.end);
        c.s = c.s.max(r.call);
        c.read = true;
    }
    clusters.retain(|c| c.certain || c.read);
    Ok(clusters)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::search::brute_force;
    use crate::rng::Rng;

    fn record(action: Action, value: u32, call: Moment, end: Moment) -> Record {
        Record { unit: 1, action, value, call, end, certain: end != NEVER }
    }

    #[test]
    fn plain_cases() {
        use Action::{Read, Write};
        let old = [record(Write, 1, 1, 2), record(Write, 2, 3, 4), record(Read, 1, 5, 6)];
        let text = zones(&old).unwrap_err();
        assert_eq!(
            text,
            "write 1 held the unit from 2 to 5, but write 2 took effect between 3 and 4"
        );
        let lost = [record(Write, 1, 1, 2), record(Read, 0, 3, 4)];
        assert!(zones(&lost).is_err());
        let unknown = [record(Write, 1, 1, NEVER), record(Read, 0, 3, 4), record(Read, 1, 5, 6)];
        assert_eq!(zones(&unknown), Ok(()));
        let back = [unknown[0], unknown[2], record(Read, 0, 7, 8)];
        assert!(zones(&back).is_err());
    }

    /// A random history of up to six operations whose values are mostly plausible.
    fn history(rng: &mut Rng, zeroing: bool) -> Vec<Record> {
        let ops = rng.within(2, 6);
        let mut moments: Vec<Moment> = (1..=2 * ops as Moment).collect();
        for i in (1..moments.len()).rev() {
            moments.swap(i, rng.below(i as u64 + 1) as usize);
        }
        let mut next = 1;
        let mut out = Vec::new();
        for pair in moments.chunks(2) {
            let (call, end) = (pair[0].min(pair[1]), pair[0].max(pair[1]));
            if rng.chance(0.5) {
                let value = if zeroing && rng.chance(0.3) { 0 } else { next };
                next += 1;
                let certain = rng.chance(0.8);
                // An uncertain write has no end, or one after which it can not take effect.
                let end = if certain || rng.chance(0.3) { end } else { NEVER };
                out.push(Record { unit: 1, action: Action::Write, value, call, end, certain });
            } else {
                let value = rng.below(u64::from(next) + 1) as u32;
                out.push(record(Action::Read, value, call, end));
            }
        }
        out.sort_unstable_by_key(|r| r.call);
        out
    }

    #[test]
    fn zones_and_search_agree_with_brute_force() {
        let mut rng = Rng::stream(11, "histories", 0);
        let mut good = 0;
        for round in 0..20_000 {
            let zeroing = round % 2 == 1;
            let h = history(&mut rng, zeroing);
            let expected = brute_force(&h);
            good += u32::from(expected);
            let found = matches!(search::judge(&h), Verdict::Linearizable);
            assert_eq!(found, expected, "search on {h:?}");
            if !h.iter().any(|r| r.action == Action::Write && r.value == 0) {
                assert_eq!(zones(&h).is_ok(), expected, "zones on {h:?}");
            }
        }
        assert!((2_000..18_000).contains(&good), "{good} of 20000 histories are linearizable");
    }
}
