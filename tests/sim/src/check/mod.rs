//! The checkers: what must hold whatever the faults were.
//!
//! * [`register`]: each unit of a volume is a linearizable register (invariants I1, I2, I3);
//! * [`search`]: the exhaustive judge for units that were zeroed, and the register's own witness;
//! * [`oracle`]: an acknowledged write is on the media of a majority at that very moment (I1);
//! * [`raft`]: one leader a term, one vote a term, no term forgotten, equal entries at equal places.

pub mod oracle;
pub mod raft;
pub mod register;
pub mod search;
