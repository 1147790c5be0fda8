//! Request ids and their effects.
//!
//! How long an id is kept is counted in changes, not in time: the only times that every node knows
//! alike are those that proposers write into entries, and one proposer whose clock is a year ahead
//! would have made all nodes forget everybody's requests.

use crate::state::Outcome;
use std::collections::{BTreeMap, VecDeque};

/// How many effects are kept; the oldest go first.
pub const KEPT_MAX: usize = 16 << 10;

#[derive(Clone, Debug, PartialEq)]
struct Kept {
    body: u64,
    outcome: Outcome,
}

/// The effects of recent requests.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Requests {
    by_id: BTreeMap<String, Kept>,
    /// The ids in the order in which they took effect.
    order: VecDeque<String>,
}

/// What is known of a request id.
pub enum Known<'a> {
    /// Nothing: it is new.
    New,
    /// It took effect before, with the same body.
    Same(&'a Outcome),
    /// It was used with another body.
    Other,
}

impl Requests {
    /// Looks an id up.
    pub fn look_up(&self, id: &str, body: u64) -> Known<'_> {
        match self.by_id.get(id) {
            None => Known::New,
            Some(kept) if kept.body == body => Known::Same(&kept.outcome),
            Some(_) => Known::Other,
        }
    }

    /// Keeps the effect of a request whose id was looked up and is new, and forgets the oldest.
    pub fn keep(&mut self, id: &str, body: u64, outcome: Outcome) {
        let before = self.by_id.insert(id.to_owned(), Kept { body, outcome });
        assert!(before.is_none(), "the request id '{id}' took effect twice");
        self.order.push_back(id.to_owned());
        if self.order.len() > KEPT_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_id.remove(&oldest);
        }
    }

    /// All that are kept, in the order in which they took effect: id, body, outcome.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64, &Outcome)> {
        self.order.iter().map(|id| {
            let kept = self.by_id.get(id).expect("each id is kept with its effect");
            (id.as_str(), kept.body, &kept.outcome)
        })
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether an id is kept.
    pub fn holds(&self, id: &str) -> bool {
        self.by_id.contains_key(id)
    }

    /// The effect of the newest one.
    pub fn newest_mut(&mut self) -> Option<&mut Outcome> {
        let kept = self.by_id.get_mut(self.order.back()?);
        kept.map(|kept| &mut kept.outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_forgotten_and_no_sooner() {
        let mut requests = Requests::default();
        for n in 0..KEPT_MAX + 2 {
            requests.keep(&format!("r{n}"), 7, Outcome::Nothing);
        }
        assert!(matches!(requests.look_up("r1", 7), Known::New));
        assert!(matches!(requests.look_up("r2", 7), Known::Same(Outcome::Nothing)));
        assert!(matches!(requests.look_up("r2", 8), Known::Other));
        assert_eq!(requests.by_id.len(), KEPT_MAX);
    }
}
