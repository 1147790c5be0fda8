//! What was asked of a volume, what was acknowledged, and what a block may hold after a cut.

use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::buffer::IoBuf;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

const MAGIC: u64 = 0x6261_7361_6c74_2d77;

/// The content of a block that write number `write` puts at `block`: it names volume, block and
/// write, and is filled from them. No two are equal, nor are their CRC-32Cs but by chance: content that ended
/// with its own would have the same one whatever it holds, and a block in another's place would match.
pub fn content(volume: u64, block: u64, write: u64) -> Bytes {
    let mut buf = IoBuf::alloc(BLOCK_BYTES);
    for (word, value) in buf.chunks_exact_mut(8).zip([MAGIC, volume, block, write]) {
        word.copy_from_slice(&value.to_le_bytes());
    }
    let mut fill = crate::random::Random::new(block ^ write.rotate_left(32));
    for word in buf[32..].chunks_exact_mut(8) {
        word.copy_from_slice(&fill.bits().to_le_bytes());
    }
    buf.freeze()
}

/// What stands in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    /// Zeros.
    Zero,
    /// What a write put there.
    Written(u64),
    /// What no write ever put there.
    Foreign,
}

/// What the bytes of a block are.
pub fn value_of(volume: u64, block: u64, bytes: &[u8]) -> Value {
    if bytes.iter().all(|byte| *byte == 0) {
        return Value::Zero;
    }
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[24..32]);
    let write = u64::from_le_bytes(word);
    match content(volume, block, write)[..] == *bytes {
        true => Value::Written(write),
        false => Value::Foreign,
    }
}

/// One request of the user, on some blocks.
#[derive(Clone, Copy, Debug)]
struct Entry {
    first: u64,
    count: u64,
    unmap: bool,
    /// Moments: one counter numbers submissions and acknowledgements.
    submitted: u64,
    acknowledged: Option<u64>,
}

/// Everything asked of one volume. Written by the load, looked at while it runs.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: Mutex<Vec<Entry>>,
    /// The moment of the latest entry or acknowledgement.
    moment: AtomicU64,
}

impl Ledger {
    /// Notes a request before it is sent, and gives its number.
    pub fn submitted(&self, first: u64, count: u64, unmap: bool) -> u64 {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let submitted = self.moment.load(Ordering::Relaxed) + 1;
        entries.push(Entry { first, count, unmap, submitted, acknowledged: None });
        self.moment.store(submitted, Ordering::SeqCst);
        entries.len() as u64 - 1
    }

    /// Notes the acknowledgement of a request.
    pub fn acknowledged(&self, number: u64) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let moment = self.moment.load(Ordering::Relaxed) + 1;
        entries[number as usize].acknowledged = Some(moment);
        self.moment.store(moment, Ordering::SeqCst);
    }

    /// The present moment: what was acknowledged up to it is known to this side of the network.
    pub fn moment(&self) -> u64 {
        self.moment.load(Ordering::SeqCst)
    }

    /// What each block that was ever asked for may hold after a cut between two moments: everything
    /// acknowledged by `acknowledged` took place, nothing submitted after `submitted` did.
    pub fn allowed(&self, acknowledged: u64, submitted: u64) -> BTreeMap<u64, Vec<Value>> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let mut by_block: BTreeMap<u64, Vec<(u64, Entry)>> = BTreeMap::new();
        for (number, entry) in entries.iter().enumerate().filter(|(_, e)| e.submitted <= submitted)
        {
            let acked = entry.acknowledged.filter(|moment| *moment <= acknowledged);
            for block in entry.first..entry.first + entry.count {
                let entry = Entry { acknowledged: acked, ..*entry };
                by_block.entry(block).or_default().push((number as u64, entry));
            }
        }
        by_block.into_iter().map(|(block, entries)| (block, values(&entries))).collect()
    }

    /// Requests submitted.
    pub fn len(&self) -> usize {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether nothing was submitted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The values of a block that a register may hold after these requests.
fn values(entries: &[(u64, Entry)]) -> Vec<Value> {
    // Whatever ended before the latest acknowledged request began is overwritten for certain.
    let newest =
        entries.iter().filter(|(_, e)| e.acknowledged.is_some()).map(|(_, e)| e.submitted).max();
    let mut allowed: Vec<Value> = entries
        .iter()
        .filter(|(_, e)| match (e.acknowledged, newest) {
            (Some(ended), Some(began)) => ended >= began,
            _ => true,
        })
        .map(|(number, e)| if e.unmap { Value::Zero } else { Value::Written(*number) })
        .collect();
    if newest.is_none() {
        allowed.push(Value::Zero);
    }
    allowed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_names_its_write() {
        let block = content(7, 3, 9);
        assert_eq!(value_of(7, 3, &block), Value::Written(9));
        assert_eq!(value_of(7, 4, &block), Value::Foreign);
        assert_eq!(value_of(8, 3, &block), Value::Foreign);
        assert_eq!(value_of(7, 3, &[0; BLOCK_BYTES]), Value::Zero);
        let mut torn = block.to_vec();
        torn[512..1024].copy_from_slice(&content(7, 3, 8)[512..1024]);
        assert_eq!(value_of(7, 3, &torn), Value::Foreign);
    }

    #[test]
    fn what_was_acknowledged_replaces_what_ended_before_it() {
        let ledger = Ledger::default();
        let first = ledger.submitted(0, 2, false);
        assert_eq!(ledger.allowed(9, 9)[&0], [Value::Written(first), Value::Zero]);
        ledger.acknowledged(first);
        let before = ledger.moment();
        assert_eq!(ledger.allowed(before, before)[&1], [Value::Written(first)]);
        let second = ledger.submitted(1, 1, false);
        let both = [Value::Written(first), Value::Written(second)];
        assert_eq!(ledger.allowed(before, before + 1)[&1], both);
        ledger.acknowledged(second);
        assert_eq!(ledger.allowed(99, 99)[&1], [Value::Written(second)]);
        assert_eq!(ledger.allowed(before, 99)[&1], both, "not acknowledged at the cut");
        let third = ledger.submitted(0, 2, true);
        ledger.acknowledged(third);
        assert_eq!(ledger.allowed(99, 99)[&0], [Value::Zero]);
    }

    #[test]
    fn of_two_at_the_same_time_either_may_be_the_last() {
        let ledger = Ledger::default();
        let (a, b) = (ledger.submitted(5, 1, false), ledger.submitted(5, 1, false));
        ledger.acknowledged(b);
        ledger.acknowledged(a);
        assert_eq!(ledger.allowed(99, 99)[&5], [Value::Written(a), Value::Written(b)]);
    }
}
