//! Request ids and their effects.

use crate::state::Outcome;
use std::collections::{BTreeMap, BTreeSet};

/// How long the effect of a request id is kept.
pub const KEPT_MS: i64 = 24 * 60 * 60 * 1000;
/// How many are kept at most; the oldest go first.
pub const KEPT_MAX: usize = 16 << 10;

#[derive(Clone, Debug, PartialEq)]
struct Kept {
    body: u64,
    at_ms: i64,
    outcome: Outcome,
}

/// The effects of recent requests.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Requests {
    by_id: BTreeMap<String, Kept>,
    by_time: BTreeSet<(i64, String)>,
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

    /// Keeps the effect of a request, and forgets what is too old or too much.
    pub fn keep(&mut self, id: &str, body: u64, now_ms: i64, outcome: Outcome) {
        self.by_id.insert(id.to_owned(), Kept { body, at_ms: now_ms, outcome });
        self.by_time.insert((now_ms, id.to_owned()));
        while let Some((at_ms, oldest)) = self.by_time.first().cloned() {
            if now_ms.saturating_sub(at_ms) <= KEPT_MS && self.by_id.len() <= KEPT_MAX {
                break;
            }
            self.by_time.pop_first();
            self.by_id.remove(&oldest);
        }
    }
}
