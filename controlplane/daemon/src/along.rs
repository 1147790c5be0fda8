//! What can wait a moment, and goes along with what comes next.
//!
//! A durable commit costs the same for one entry as for several. Who writes down what everybody knows already
//! leaves it here: whatever is sent next takes it along, ahead of itself, so that nothing that is asked for
//! later comes before it.

use std::sync::{Mutex, PoisonError};

/// Things that wait for the next one.
pub(crate) struct Along<T>(Mutex<Vec<T>>);

impl<T> Default for Along<T> {
    fn default() -> Along<T> {
        Along(Mutex::default())
    }
}

impl<T> Along<T> {
    /// Leaves something until the next call of [`Along::send`].
    pub(crate) fn leave(&self, one: T) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(one);
    }

    /// Sends what was left, in order, and then `last`. Nobody else sends meanwhile.
    pub(crate) fn send(&self, last: Option<T>, send: impl FnMut(T)) {
        let mut left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        left.drain(..).chain(last).for_each(send);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_goes_ahead_of_what_is_sent_next_and_once() {
        let (along, mut sent) = (Along::default(), Vec::new());
        along.send(Some(1), |one| sent.push(one));
        along.leave(2);
        along.leave(3);
        assert_eq!(sent, [1]);
        along.send(Some(4), |one| sent.push(one));
        along.send(Some(5), |one| sent.push(one));
        along.leave(6);
        along.send(None, |one| sent.push(one));
        assert_eq!(sent, [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn nobody_overtakes_what_was_left() {
        let (along, mut sent) = (Along::default(), 0);
        along.leave(1);
        along.send(Some(2), |_| {
            assert!(along.0.try_lock().is_err(), "somebody else may send now");
            sent += 1;
        });
        assert_eq!(sent, 2);
    }
}
