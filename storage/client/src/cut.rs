//! One point in time of several volumes.
//!
//! Each volume's snapshot is a point in time of its own: the instant at which its session moves to the next
//! generation. A [`Cut`] makes one of all of them, without their sessions knowing of it:
//!
//! 1. In every group of every volume a gate is closed: what is written behind the snapshot from then on is
//!    carried out, but not acknowledged.
//! 2. All groups freeze their volumes' generations.
//! 3. When all have, the gates are opened.
//!
//! So whoever submits a write after another one of the next generation was acknowledged, submits it after all
//! groups have frozen: it is in no snapshot either. Only writes that meet a volume that is frozen already wait,
//! from then until its gate is opened. A gate that could not be kept closed all the while makes the cut
//! fail; the generations that it froze are to be dropped then.

use crate::types::{BlockError, BlockOp, BlockResult};
use basalt_wire::ids::Generation;
use basalt_wire::time::Time;
use std::time::Duration;

/// How long a cut may take: gates open by themselves after that.
pub const CUT_MAX: Duration = Duration::from_secs(1);

/// A snapshot of several volumes under way. Each of them has a client of its own, a view: the caller submits
/// to all what [`Cut::op`] says, and tells how each ended.
#[derive(Debug)]
pub struct Cut {
    generations: Vec<Generation>,
    step: Step,
    /// Volumes that have not ended the step.
    left: usize,
    deadline: Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Close,
    Freeze,
    Open,
    Over,
}

/// What an end of one volume's request came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CutEnd {
    /// Others are under way.
    Waits,
    /// All volumes' clients are to be given what [`Cut::op`] says now.
    Next,
    /// The cut is over. All volumes are kept as they were at one point in time; or it failed, and what was
    /// kept of it has to be dropped.
    Over(Result<(), BlockError>),
}

impl Cut {
    /// Begins a cut of volumes, each with the generation that is to be kept.
    pub fn new(generations: Vec<Generation>, now: Time) -> Cut {
        assert!(!generations.is_empty(), "a cut of no volumes");
        let left = generations.len();
        Cut { generations, step: Step::Close, left, deadline: now + CUT_MAX }
    }

    /// What the client of a volume is asked in this step.
    pub fn op(&self, volume: usize) -> BlockOp {
        let generation = self.generations[volume];
        match self.step {
            Step::Close => BlockOp::CloseGate { generation },
            Step::Freeze => BlockOp::Snapshot { generation },
            Step::Open => BlockOp::OpenGate { generation },
            Step::Over => unreachable!("a cut that is over asks for nothing"),
        }
    }

    /// How many volumes are cut.
    pub fn volumes(&self) -> usize {
        self.generations.len()
    }

    /// When [`Cut::expire`] is to be called at the latest.
    pub fn deadline(&self) -> Option<Time> {
        (self.step != Step::Over).then_some(self.deadline)
    }

    /// Takes the end of what one volume's client was asked.
    pub fn ended(&mut self, result: &Result<BlockResult, BlockError>) -> CutEnd {
        if self.step == Step::Over {
            return CutEnd::Waits;
        }
        if let Err(error) = result {
            self.step = Step::Over;
            return CutEnd::Over(Err(*error));
        }
        self.left -= 1;
        if self.left > 0 {
            return CutEnd::Waits;
        }
        self.left = self.generations.len();
        self.step = match self.step {
            Step::Close => Step::Freeze,
            Step::Freeze => Step::Open,
            Step::Open | Step::Over => Step::Over,
        };
        if self.step == Step::Over { CutEnd::Over(Ok(())) } else { CutEnd::Next }
    }

    /// Gives the cut up if it takes too long.
    pub fn expire(&mut self, now: Time) -> Option<BlockError> {
        if self.deadline()? > now {
            return None;
        }
        self.step = Step::Over;
        Some(BlockError::Io("not every group answered in time"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINE: Result<BlockResult, BlockError> = Ok(BlockResult::Done);

    fn cut() -> Cut {
        Cut::new(vec![Generation(3), Generation(7)], Time::ZERO)
    }

    #[test]
    fn no_step_begins_before_all_have_ended_the_one_before() {
        let mut cut = cut();
        let asks = |cut: &Cut| (0..2).map(|volume| format!("{:?}", cut.op(volume))).collect();
        let wanted = |step: fn(Generation) -> BlockOp| {
            [3, 7].map(|generation| format!("{:?}", step(Generation(generation)))).to_vec()
        };
        let steps: [fn(Generation) -> BlockOp; 3] = [
            |generation| BlockOp::CloseGate { generation },
            |generation| BlockOp::Snapshot { generation },
            |generation| BlockOp::OpenGate { generation },
        ];
        let ends = [CutEnd::Next, CutEnd::Next, CutEnd::Over(Ok(()))];
        for (step, end) in steps.map(wanted).into_iter().zip(ends) {
            let asked: Vec<String> = asks(&cut);
            assert_eq!(asked, step);
            assert_eq!(cut.ended(&FINE), CutEnd::Waits);
            let asked: Vec<String> = asks(&cut);
            assert_eq!(asked, step, "one of them has not ended it");
            assert_eq!(cut.ended(&FINE), end);
        }
        assert_eq!(cut.deadline(), None);
    }

    #[test]
    fn one_failure_ends_it_for_all() {
        let mut cut = cut();
        let lost = BlockError::Io("lost");
        assert_eq!(cut.ended(&FINE), CutEnd::Waits);
        assert_eq!(cut.ended(&Err(lost)), CutEnd::Over(Err(lost)));
        assert_eq!(cut.ended(&FINE), CutEnd::Waits);
    }

    #[test]
    fn it_does_not_last_for_ever() {
        let mut cut = cut();
        assert_eq!(cut.expire(Time::ZERO + CUT_MAX / 2), None);
        assert!(cut.expire(Time::ZERO + CUT_MAX).is_some());
        assert_eq!(cut.expire(Time::ZERO + CUT_MAX * 2), None);
    }
}
