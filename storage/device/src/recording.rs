//! What a device was told, in order, and what a power cut could have left of it; see
//! [`crate::record`].

use basalt_wire::block::crc32c;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The first bytes of a record's file.
pub(crate) const MAGIC: &[u8; 8] = b"BSLTREC1";

/// What was recorded, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recording {
    /// The events. A power cut may come before the first, between any two, or after the last.
    pub events: Vec<RecordEvent>,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordEvent {
    /// An operation is about to be given to the device.
    Submit {
        /// Numbers the operations of a record.
        id: u64,
        /// The operation.
        op: Recorded,
    },
    /// An operation ended, and its owner is about to learn it.
    Complete {
        /// As in [`RecordEvent::Submit`].
        id: u64,
        /// Whether it took place.
        ok: bool,
    },
}

/// A recorded operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// A write.
    Write {
        /// Byte offset on the device.
        offset: u64,
        /// What was written.
        data: Bytes,
        /// Whether its completion promises durability (also because the device has no cache).
        durable: bool,
    },
    /// A flush.
    Flush,
    /// A discard: afterwards the range reads as zeros, or as before.
    Discard {
        /// Byte offset on the device.
        offset: u64,
        /// Bytes.
        len: u64,
    },
}

/// What becomes, in a power cut, of the writes that are not known to be durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutPolicy {
    /// None of them is there.
    DropAll,
    /// All of them are there, those in flight too.
    KeepAll,
    /// Each atom by itself, as a coin falls.
    Coin {
        /// Seed of the coin.
        seed: u64,
    },
    /// Only the first `keep` of them.
    Prefix {
        /// How many.
        keep: usize,
    },
    /// Only the last `keep` of them: the device wrote its cache back to front.
    Reverse {
        /// How many.
        keep: usize,
    },
    /// All but one.
    Hole {
        /// Which is missing.
        missing: usize,
    },
    /// Those whose bit is set; for all subsets of a few.
    Subset {
        /// Bit n is the n-th of them.
        mask: u64,
    },
    /// What had completed is kept; each atom in flight is kept, dropped or garbage.
    Garbage {
        /// Seed of the choice and of the garbage.
        seed: u64,
    },
}

/// Why a record could not be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It could not be read at all.
    #[error("can not read the record")]
    Io(#[from] std::io::Error),
    /// It is something else.
    #[error("this is not the record of a device")]
    NotARecord,
    /// An event in the middle is damaged.
    #[error("the record is damaged at byte {0}")]
    Damaged(usize),
}

/// A write or discard that is not known to be durable.
struct Change<'a> {
    offset: u64,
    content: Content<'a>,
    state: State,
}

enum Content<'a> {
    Data(&'a [u8]),
    Zeros(u64),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    InFlight,
    Volatile,
    Durable,
}

impl Recording {
    /// Reads a record's file. An event that the end of the process cut off is left out.
    pub fn load(path: &Path) -> Result<Recording, RecordError> {
        let bytes = Bytes::from(std::fs::read(path)?);
        if !bytes.starts_with(MAGIC) {
            return Err(RecordError::NotARecord);
        }
        let mut at = MAGIC.len();
        let mut events = Vec::new();
        while at < bytes.len() {
            match decode(&bytes, at)? {
                Some((event, next)) => {
                    events.push(event);
                    at = next;
                }
                None => break,
            }
        }
        Ok(Recording { events })
    }

    /// The cuts right before and right after each completed flush or durable write: where what must
    /// be there changes.
    pub fn boundaries(&self) -> Vec<usize> {
        let durable: BTreeSet<u64> = self
            .events
            .iter()
            .filter_map(|event| match event {
                RecordEvent::Submit { id, op: Recorded::Flush } => Some(*id),
                RecordEvent::Submit { id, op: Recorded::Write { durable: true, .. } } => Some(*id),
                _ => None,
            })
            .collect();
        let mut cuts: Vec<usize> = self
            .events
            .iter()
            .enumerate()
            .filter_map(|(at, event)| match event {
                RecordEvent::Complete { id, ok: true } if durable.contains(id) => Some(at),
                _ => None,
            })
            .flat_map(|at| [at, at + 1])
            .collect();
        cuts.dedup();
        cuts
    }

    /// How many writes and discards a cut after the first `cut` events finds in flight or in the
    /// cache: what a [`CutPolicy`] counts.
    pub fn undecided(&self, cut: usize) -> usize {
        self.changes(cut).iter().filter(|change| change.state != State::Durable).count()
    }

    /// The device after a power cut that came after the first `cut` events, made from `base`, what
    /// it held before the record began. `atom` is 512 or 4096: what is never torn.
    pub fn image(&self, base: &[u8], cut: usize, policy: CutPolicy, atom: usize) -> Vec<u8> {
        assert!(atom.is_power_of_two() && atom <= 4096, "an atom of {atom} bytes");
        let mut image = base.to_vec();
        let changes = self.changes(cut);
        let total = changes.iter().filter(|change| change.state != State::Durable).count();
        let mut undecided = 0;
        for change in &changes {
            let decided = change.state == State::Durable;
            let number = undecided;
            undecided += usize::from(!decided);
            change.apply(&mut image, atom, |atom_number| match decided {
                true => Fate::Kept,
                false => policy.fate(number, total, atom_number, change.state == State::InFlight),
            });
        }
        image
    }

    /// Everything that changes the device in the first `cut` events: in the order of completion,
    /// then those in flight in the order of submission.
    fn changes(&self, cut: usize) -> Vec<Change<'_>> {
        let mut in_flight: BTreeMap<u64, &Recorded> = BTreeMap::new();
        let mut completed: Vec<(u64, Change<'_>)> = Vec::new();
        // For each flush in flight, how many changes had completed when it was submitted.
        let mut flushes: BTreeMap<u64, usize> = BTreeMap::new();
        for event in &self.events[..cut] {
            match event {
                RecordEvent::Submit { id, op: Recorded::Flush } => {
                    flushes.insert(*id, completed.len());
                }
                RecordEvent::Submit { id, op } => {
                    in_flight.insert(*id, op);
                }
                RecordEvent::Complete { id, ok } => {
                    if let Some(covered) = flushes.remove(id) {
                        let covered = if *ok { covered } else { 0 };
                        completed[..covered].iter_mut().for_each(|(_, c)| c.state = State::Durable);
                    } else if let Some(op) = in_flight.remove(id) {
                        // A failed write may have taken place, as one in flight.
                        let state = if *ok { state_of(op) } else { State::InFlight };
                        completed.extend(change_of(op, state).map(|change| (*id, change)));
                    }
                }
            }
        }
        let pending = in_flight.values().filter_map(|op| change_of(op, State::InFlight));
        completed.into_iter().map(|(_, change)| change).chain(pending).collect()
    }
}

fn state_of(op: &Recorded) -> State {
    match op {
        Recorded::Write { durable: true, .. } => State::Durable,
        _ => State::Volatile,
    }
}

fn change_of(op: &Recorded, state: State) -> Option<Change<'_>> {
    let (offset, content) = match op {
        Recorded::Write { offset, data, .. } => (*offset, Content::Data(data)),
        Recorded::Discard { offset, len } => (*offset, Content::Zeros(*len)),
        Recorded::Flush => return None,
    };
    Some(Change { offset, content, state })
}

/// What becomes of one atom of a change.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Kept,
    Dropped,
    Garbage(u64),
}

impl CutPolicy {
    fn fate(self, number: usize, total: usize, atom: usize, in_flight: bool) -> Fate {
        let kept = match self {
            CutPolicy::DropAll => false,
            CutPolicy::KeepAll => true,
            CutPolicy::Prefix { keep } => number < keep,
            CutPolicy::Reverse { keep } => number >= total.saturating_sub(keep),
            CutPolicy::Hole { missing } => number != missing,
            CutPolicy::Subset { mask } => number < 64 && mask >> number & 1 == 1,
            CutPolicy::Coin { seed } => mix(seed, number, atom) & 1 == 1,
            CutPolicy::Garbage { .. } if !in_flight => true,
            CutPolicy::Garbage { seed } => match mix(seed, number, atom) % 3 {
                0 => false,
                1 => true,
                _ => return Fate::Garbage(mix(seed, number, atom)),
            },
        };
        if kept { Fate::Kept } else { Fate::Dropped }
    }
}

/// A well-mixed number of three (the finalizer of splitmix64 over their combination).
fn mix(seed: u64, number: usize, atom: usize) -> u64 {
    let mut z = seed
        .wrapping_add((number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
        .wrapping_add((atom as u64).wrapping_mul(0xd1b5_4a32_d192_ed03));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Change<'_> {
    fn apply(&self, image: &mut [u8], atom: usize, fate: impl Fn(usize) -> Fate) {
        let len = match self.content {
            Content::Data(data) => data.len(),
            Content::Zeros(len) => len as usize,
        };
        // A write that the device refused for its range never took place.
        let Some(target) = usize::try_from(self.offset)
            .ok()
            .and_then(|start| image.get_mut(start..start.checked_add(len)?))
        else {
            return;
        };
        for (number, piece) in target.chunks_mut(atom).enumerate() {
            let from = number * atom;
            match (fate(number), &self.content) {
                (Fate::Dropped, _) => {}
                (Fate::Kept, Content::Data(data)) => {
                    piece.copy_from_slice(&data[from..from + piece.len()]);
                }
                (Fate::Kept, Content::Zeros(_)) => piece.fill(0),
                (Fate::Garbage(seed), _) => {
                    piece.iter_mut().enumerate().for_each(|(i, b)| *b = mix(seed, i, 0) as u8);
                }
            }
        }
    }
}

/// Bytes of an event before its data: kind, durable, id, offset, length, checksum of all of it.
const HEADER_BYTES: usize = 1 + 1 + 8 + 8 + 8 + 4;

/// An event as it stands in a record's file.
pub(crate) fn encode(event: &RecordEvent) -> Vec<u8> {
    let empty = Bytes::new();
    let (kind, flag, id, offset, len, data) = match event {
        RecordEvent::Submit { id, op: Recorded::Write { offset, data, durable } } => {
            (1, u8::from(*durable), *id, *offset, data.len() as u64, data)
        }
        RecordEvent::Submit { id, op: Recorded::Flush } => (2, 0, *id, 0, 0, &empty),
        RecordEvent::Submit { id, op: Recorded::Discard { offset, len } } => {
            (3, 0, *id, *offset, *len, &empty)
        }
        RecordEvent::Complete { id, ok } => (4, u8::from(*ok), *id, 0, 0, &empty),
    };
    let mut out = Vec::with_capacity(HEADER_BYTES + data.len());
    out.extend([kind, flag]);
    out.extend(id.to_le_bytes());
    out.extend(offset.to_le_bytes());
    out.extend(len.to_le_bytes());
    out.extend(crc32c(&out).to_le_bytes());
    out.extend(data);
    out
}

/// The event at `at` and where the next one stands; nothing if the file ends within it.
fn decode(bytes: &Bytes, at: usize) -> Result<Option<(RecordEvent, usize)>, RecordError> {
    let Some(header) = bytes.get(at..at + HEADER_BYTES) else { return Ok(None) };
    let number = |from: usize| {
        let mut eight = [0; 8];
        eight.copy_from_slice(&header[from..from + 8]);
        u64::from_le_bytes(eight)
    };
    let (fields, sum) = header.split_at(HEADER_BYTES - 4);
    if crc32c(fields).to_le_bytes() != sum {
        return Err(RecordError::Damaged(at));
    }
    let (flag, id, offset, len) = (header[1] != 0, number(2), number(10), number(18));
    let body = at + HEADER_BYTES;
    let mut next = body;
    let event = match header[0] {
        1 => {
            let end = usize::try_from(len).ok().and_then(|len| body.checked_add(len));
            let Some(end) = end.filter(|end| *end <= bytes.len()) else { return Ok(None) };
            next = end;
            let data = bytes.slice(body..end);
            RecordEvent::Submit { id, op: Recorded::Write { offset, data, durable: flag } }
        }
        2 => RecordEvent::Submit { id, op: Recorded::Flush },
        3 => RecordEvent::Submit { id, op: Recorded::Discard { offset, len } },
        4 => RecordEvent::Complete { id, ok: flag },
        _ => return Err(RecordError::Damaged(at)),
    };
    Ok(Some((event, next)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ATOM: usize = 512;

    fn write(id: u64, atom: u64, fill: u8, atoms: usize, durable: bool) -> RecordEvent {
        let data = Bytes::from(vec![fill; atoms * ATOM]);
        RecordEvent::Submit { id, op: Recorded::Write { offset: atom * 512, data, durable } }
    }

    fn flush(id: u64) -> RecordEvent {
        RecordEvent::Submit { id, op: Recorded::Flush }
    }

    fn ok(id: u64) -> RecordEvent {
        RecordEvent::Complete { id, ok: true }
    }

    /// The first byte of each atom of the image.
    fn image(events: &[RecordEvent], cut: usize, policy: CutPolicy) -> Vec<u8> {
        let recording = Recording { events: events.to_vec() };
        let image = recording.image(&[0; 4 * ATOM], cut, policy, ATOM);
        image.chunks(ATOM).map(|atom| atom[0]).collect()
    }

    #[test]
    fn a_flush_covers_what_had_completed_when_it_was_submitted() {
        let events = [
            write(1, 0, 1, 1, false),
            ok(1),
            write(2, 1, 2, 1, false),
            flush(3),
            write(4, 2, 4, 1, false),
            ok(2),
            ok(4),
            ok(3),
        ];
        assert_eq!(image(&events, 8, CutPolicy::DropAll), [1, 0, 0, 0]);
        assert_eq!(image(&events, 8, CutPolicy::KeepAll), [1, 2, 4, 0]);
        // Before the flush ended nothing is certain.
        assert_eq!(image(&events, 7, CutPolicy::DropAll), [0, 0, 0, 0]);
        let recording = Recording { events: events.to_vec() };
        assert_eq!((recording.undecided(7), recording.undecided(8)), (3, 2));
    }

    #[test]
    fn a_failed_flush_covers_nothing_and_a_failed_write_may_be_there() {
        let failed = |id| RecordEvent::Complete { id, ok: false };
        let events = [
            write(1, 0, 1, 1, false),
            ok(1),
            flush(2),
            failed(2),
            write(3, 1, 3, 1, true),
            failed(3),
        ];
        assert_eq!(image(&events, 6, CutPolicy::DropAll), [0, 0, 0, 0]);
        assert_eq!(image(&events, 6, CutPolicy::KeepAll), [1, 3, 0, 0]);
    }

    #[test]
    fn an_older_write_never_covers_a_newer_durable_one() {
        let events = [write(1, 0, 1, 1, false), ok(1), write(2, 0, 2, 1, true), ok(2)];
        assert_eq!(image(&events, 4, CutPolicy::KeepAll), [2, 0, 0, 0]);
        assert_eq!(image(&events, 4, CutPolicy::DropAll), [2, 0, 0, 0]);
        assert_eq!(image(&events, 3, CutPolicy::Subset { mask: 0b01 }), [1, 0, 0, 0]);
    }

    #[test]
    fn policies_choose() {
        let events: Vec<_> = (1..4).flat_map(|n| [write(n, n, n as u8, 1, false), ok(n)]).collect();
        let of = |policy| image(&events, 6, policy);
        assert_eq!(of(CutPolicy::Prefix { keep: 1 }), [0, 1, 0, 0]);
        assert_eq!(of(CutPolicy::Reverse { keep: 1 }), [0, 0, 0, 3]);
        assert_eq!(of(CutPolicy::Hole { missing: 1 }), [0, 1, 0, 3]);
        assert_eq!(of(CutPolicy::Subset { mask: 0b101 }), [0, 1, 0, 3]);
    }

    #[test]
    fn a_write_in_flight_tears_at_its_atoms_and_the_same_seed_tears_the_same() {
        let events = [write(1, 0, 9, 4, true)];
        let mut seen = BTreeSet::new();
        for seed in 0..200 {
            let torn = image(&events, 1, CutPolicy::Coin { seed });
            assert_eq!(torn, image(&events, 1, CutPolicy::Coin { seed }));
            assert!(torn.iter().all(|b| [0, 9].contains(b)));
            seen.insert(torn);
        }
        assert_eq!(seen.len(), 16, "every way to tear four atoms comes up");
        let garbage = (0..200).map(|seed| image(&events, 1, CutPolicy::Garbage { seed }));
        assert!(garbage.flatten().any(|b| b != 0 && b != 9));
    }
}
