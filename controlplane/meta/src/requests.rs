//! Request ids and their effects.
//!
//! How long an id is kept is counted in changes, not in time: the only times that every node knows
//! alike are those that proposers write into entries, and one proposer whose clock is a year ahead
//! would have made all nodes forget everybody's requests.

use crate::state::Outcome;
use crate::tracked::Shared;
use basalt_api::meta::v1::VolumeRecord;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// How many effects are kept; the oldest go first.
pub const KEPT_MAX: usize = 16 << 10;

#[derive(Clone, Debug, PartialEq)]
struct Kept {
    body: u64,
    outcome: Compact,
}

/// An outcome in little room: most are of volumes, and the largest of all is many times larger.
#[derive(Clone, Debug, PartialEq)]
enum Compact {
    Volume(Shared<VolumeRecord>),
    Other(Box<Outcome>),
}

impl From<Outcome> for Compact {
    fn from(outcome: Outcome) -> Compact {
        match outcome {
            Outcome::Volume(volume) => Compact::Volume(volume),
            other => Compact::Other(Box::new(other)),
        }
    }
}

impl Compact {
    fn outcome(&self) -> Outcome {
        match self {
            Compact::Volume(volume) => Outcome::Volume(volume.clone()),
            Compact::Other(other) => Outcome::clone(other),
        }
    }
}

/// The effects of recent requests.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Requests {
    by_id: BTreeMap<Arc<str>, Kept>,
    /// The ids in the order in which they took effect.
    order: VecDeque<Arc<str>>,
}

/// What is known of a request id.
pub enum Known {
    /// Nothing: it is new.
    New,
    /// It took effect before, with the same body.
    Same(Box<Outcome>),
    /// It was used with another body.
    Other,
}

impl Requests {
    /// Looks an id up.
    pub fn look_up(&self, id: &str, body: u64) -> Known {
        match self.by_id.get(id) {
            None => Known::New,
            Some(kept) if kept.body == body => Known::Same(Box::new(kept.outcome.outcome())),
            Some(_) => Known::Other,
        }
    }

    /// Keeps the effect of a request whose id was looked up and is new, and forgets the oldest.
    pub fn keep(&mut self, id: &str, body: u64, outcome: Outcome) {
        let (id, outcome) = (Arc::<str>::from(id), outcome.into());
        let before = self.by_id.insert(id.clone(), Kept { body, outcome });
        assert!(before.is_none(), "the request id '{id}' took effect twice");
        self.order.push_back(id);
        if self.order.len() > KEPT_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_id.remove(&oldest);
        }
    }

    /// All that are kept, in the order in which they took effect: id, body, outcome.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64, Outcome)> {
        self.order.iter().map(|id| {
            let kept = self.by_id.get(id).expect("each id is kept with its effect");
            (&**id, kept.body, kept.outcome.outcome())
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

    /// The effect of the newest one, if it is about something else than a volume.
    pub fn newest_mut(&mut self) -> Option<&mut Outcome> {
        match &mut self.by_id.get_mut(self.order.back()?)?.outcome {
            Compact::Other(other) => Some(other),
            Compact::Volume(_) => None,
        }
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
        assert!(
            matches!(requests.look_up("r2", 7), Known::Same(same) if *same == Outcome::Nothing)
        );
        assert!(matches!(requests.look_up("r2", 8), Known::Other));
        assert_eq!(requests.by_id.len(), KEPT_MAX);
    }
}
