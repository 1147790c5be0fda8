//! Checkpoints: keys and values in a column family of their own, written all together or not at all.
//!
//! A checkpoint that replaces all that there was goes to a new family, and the old one is dropped with its
//! files: damage in them would fail RocksDB's own compactions, and everything that is written after.

use crate::{Call, DB, Database, Store, StoreError};
use rocksdb::{
    BoundColumnFamily, ColumnFamilyDescriptor, DEFAULT_COLUMN_FAMILY_NAME, Direction, IteratorMode,
    Options, ReadOptions, WriteBatch, WriteOptions,
};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, mpsc};

pub(crate) const FAMILY: &str = "checkpoint";
/// Which family holds the checkpoint, if it is not the first one.
const CURRENT: &[u8] = b"checkpoint-family";
/// Bytes that are handed over at a time when a checkpoint is read.
const PIECE_BYTES: usize = 256 << 10;
const PIECES_AHEAD: usize = 4;
/// Bytes that are taken over at a time from the checkpoint that is replaced.
const CARRY_BYTES: usize = 1 << 20;

/// Takes a record, by its key and its value, or says what is wrong with it.
pub type AddRecord<V> = fn(&mut V, &[u8], &[u8]) -> Result<(), String>;
/// Adds the changes of a checkpoint to a batch.
pub(crate) type Fill = Box<dyn FnOnce(&mut CheckpointBatch<'_>) + Send>;
/// Keys and values, in the order of the keys.
pub type Records = Vec<(Box<[u8]>, Box<[u8]>)>;
pub(crate) type Pieces = mpsc::SyncSender<Records>;
pub(crate) type Family<'a> = Arc<BoundColumnFamily<'a>>;

/// Says whether the records under the prefix of a number are as they should be.
type Judge = Box<dyn Fn(usize, &Records) -> bool + Send>;

/// What a checkpoint that replaces another takes over from it.
pub(crate) struct Carry {
    /// Keys that begin with one of these.
    prefixes: Vec<Vec<u8>>,
    is_sound: Judge,
}

/// Changes that become durable together.
pub struct CheckpointBatch<'a> {
    batch: WriteBatch,
    /// Whether the family is new, so that there is nothing to be deleted.
    blank: bool,
    family: Family<'a>,
}

impl CheckpointBatch<'_> {
    /// Puts a value.
    pub fn put(&mut self, key: &[u8], value: &[u8]) {
        self.batch.put_cf(&self.family, key, value);
    }

    /// Deletes every key that begins so.
    pub fn delete_prefix(&mut self, prefix: &[u8]) {
        if self.blank {
            return;
        }
        // Keys begin with a letter, so that this is behind all of them.
        let end = behind(prefix).unwrap_or_else(|| vec![u8::MAX]);
        self.batch.delete_range_cf(&self.family, prefix, &end[..]);
    }
}

/// The first key behind all that begin so.
fn behind(prefix: &[u8]) -> Option<Vec<u8>> {
    let at = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix[..=at].to_vec();
    end[at] += 1;
    Some(end)
}

/// Values of some ten to some thousand bytes, of which a checkpoint may write many at once. On a device that is
/// overwritten at random the same keys come with every other checkpoint: in a large buffer most of them are
/// replaced before they are flushed.
pub(crate) fn options(general: &Options) -> Options {
    let mut options = general.clone();
    options.set_write_buffer_size(16 << 20);
    options
}

impl Store {
    /// Makes changes of the checkpoint durable, all of them or none. Blocks.
    ///
    /// # Errors
    /// If they may not be durable.
    pub fn save_checkpoint(
        &self,
        fill: impl FnOnce(&mut CheckpointBatch<'_>) + Send + 'static,
    ) -> Result<(), StoreError> {
        self.call(|reply| Call::Save(Box::new(fill), reply))
    }

    /// Puts a checkpoint in place of all that there was, but for the records under some prefixes, which it takes
    /// over as long as they are sound. Gives the numbers of those that are not or can not be read; then nothing
    /// has changed. Blocks.
    ///
    /// # Errors
    /// If the new one may not be durable.
    pub fn replace_checkpoint(
        &self,
        carried: Vec<Vec<u8>>,
        is_sound: impl Fn(usize, &Records) -> bool + Send + 'static,
        fill: impl FnOnce(&mut CheckpointBatch<'_>) + Send + 'static,
    ) -> Result<Vec<usize>, StoreError> {
        let carry = Carry { prefixes: carried, is_sound: Box::new(is_sound) };
        self.call(|reply| Call::Replace(carry, Box::new(fill), reply))
    }

    /// Reads records of the checkpoint from a key on, about `bytes` of them, and gives each to `add`. What the
    /// system caches of the files is not read from the media. Blocks.
    ///
    /// # Errors
    /// If a record can not be read, its block does not have its checksum, or what `add` returned.
    pub fn verify_checkpoint<V: Default + Send + 'static>(
        &self,
        from: &[u8],
        bytes: u64,
        add: AddRecord<V>,
    ) -> Result<V, String> {
        let (sender, pieces) = mpsc::sync_channel(PIECES_AHEAD);
        let (reply, answer) = mpsc::channel();
        let call = Call::Verify { from: from.to_vec(), bytes, pieces: sender, reply };
        self.calls.send(call).map_err(|_| StoreError::Closed.to_string())?;
        let mut verified = V::default();
        for piece in pieces {
            piece.iter().try_for_each(|(key, value)| add(&mut verified, key, value))?;
        }
        answer.recv().map_err(|_| StoreError::Closed.to_string())?.map_err(|e| e.to_string())?;
        Ok(verified)
    }

    /// Gives every record of the checkpoint to `each`, in the order of their keys, until it returns an
    /// error. Blocks.
    ///
    /// # Errors
    /// If the store can not be read, or what `each` returned, as text.
    pub fn read_checkpoint(
        &self,
        mut each: impl FnMut(&[u8], &[u8]) -> Result<(), String>,
    ) -> Result<(), String> {
        let (sender, pieces) = mpsc::sync_channel(PIECES_AHEAD);
        let (reply, answer) = mpsc::channel();
        self.calls.send(Call::Scan(sender, reply)).map_err(|_| StoreError::Closed.to_string())?;
        for piece in pieces {
            // After an error the rest is dropped, and the scan ends when nobody takes it any more.
            piece.iter().try_for_each(|(key, value)| each(key, value))?;
        }
        answer.recv().map_err(|_| StoreError::Closed.to_string())?.map_err(|e| e.to_string())
    }
}

/// The families that a store has, and options for each.
pub(crate) fn families(path: &Path, general: &Options) -> Vec<ColumnFamilyDescriptor> {
    // A store that is not there yet has none.
    let mut names = DB::list_cf(general, path).unwrap_or_default();
    names.extend([FAMILY, crate::metadata::FAMILY, DEFAULT_COLUMN_FAMILY_NAME].map(str::to_owned));
    names.sort_unstable();
    names.dedup();
    let options_of = |name: &str| match name {
        DEFAULT_COLUMN_FAMILY_NAME => general.clone(),
        crate::metadata::FAMILY => crate::metadata::options(general),
        _ => options(general),
    };
    names.iter().map(|name| ColumnFamilyDescriptor::new(name, options_of(name))).collect()
}

/// Reads records of the checkpoint by their prefix, whatever else the store does meanwhile.
pub struct Pages(Arc<RwLock<Option<Arc<Database>>>>);

impl Pages {
    /// The records whose keys begin with a prefix, in the order of the keys. Blocks.
    ///
    /// # Errors
    /// If the store is closed or can not be read.
    pub fn read(&self, prefix: &[u8]) -> Result<Records, String> {
        let database = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let database = database.as_ref().ok_or_else(|| StoreError::Closed.to_string())?;
        database.under(prefix).map_err(|e| e.to_string())
    }
}

impl Store {
    /// What reads records of the checkpoint without waiting for what was asked for before.
    pub fn pages(&self) -> Pages {
        Pages(self.database.clone())
    }
}

impl Database {
    /// Finds the family that holds the checkpoint, and drops those that do not: a crash left them.
    pub(crate) fn settle_families(&self) -> Result<(), StoreError> {
        let named = self.database.get(CURRENT).map_err(|e| self.failed(&e))?;
        let named = named.map(|name| String::from_utf8_lossy(&name).into_owned());
        let current = named.unwrap_or_else(|| FAMILY.to_owned());
        let all = DB::list_cf(&crate::options(), &self.path).map_err(|e| self.failed(&e))?;
        for name in all {
            let others = [DEFAULT_COLUMN_FAMILY_NAME, crate::metadata::FAMILY];
            if name != current && !others.contains(&&name[..]) {
                self.database.drop_cf(&name).map_err(|e| self.failed(&e))?;
            }
        }
        if self.database.cf_handle(&current).is_none() {
            let reason = format!("the family {current} of the checkpoint is missing");
            return Err(StoreError::Database { path: self.path.clone(), reason });
        }
        self.go_over_to(current);
        Ok(())
    }

    fn under(&self, prefix: &[u8]) -> Result<Records, StoreError> {
        let mut options = ReadOptions::default();
        options.set_verify_checksums(true);
        options.set_iterate_upper_bound(behind(prefix).unwrap_or_else(|| vec![u8::MAX]));
        let from = IteratorMode::From(prefix, Direction::Forward);
        let items = self.database.iterator_cf_opt(&self.family()?, options, from);
        items.map(|item| item.map_err(|e| self.failed(&e))).collect()
    }

    fn current(&self) -> String {
        self.family.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn go_over_to(&self, family: String) -> String {
        let mut current = self.family.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut current, family)
    }

    /// The family that holds the checkpoint. Whoever reads in it when another takes its place reads on.
    fn family(&self) -> Result<Family<'_>, StoreError> {
        let current = self.family.read().unwrap_or_else(PoisonError::into_inner);
        self.family_of(&current)
    }

    pub(crate) fn family_of(&self, name: &str) -> Result<Family<'_>, StoreError> {
        self.database.cf_handle(name).ok_or_else(|| {
            let reason = format!("the column family {name} is missing");
            StoreError::Database { path: self.path.clone(), reason }
        })
    }

    pub(crate) fn save(&self, fill: Fill) -> Result<(), StoreError> {
        let (batch, family) = (WriteBatch::default(), self.family()?);
        let mut changes = CheckpointBatch { batch, blank: false, family };
        fill(&mut changes);
        self.database.write_opt(changes.batch, &durable()).map_err(|e| self.failed(&e))
    }

    /// Writes to a new family, which takes the place of the old one with the last write.
    pub(crate) fn replace(&self, carry: &Carry, fill: Fill) -> Result<Vec<usize>, StoreError> {
        let old = self.current();
        let number = old.rsplit_once('-').and_then(|(_, number)| number.parse::<u64>().ok());
        let name = format!("{FAMILY}-{}", number.unwrap_or(0) + 1);
        let created = self.database.create_cf(&name, &options(&crate::options()));
        created.map_err(|e| self.failed(&e))?;
        let written = self.carry(carry, &name).and_then(|lost| {
            if !lost.is_empty() {
                return Ok(lost);
            }
            let (batch, family) = (WriteBatch::default(), self.family_of(&name)?);
            let mut changes = CheckpointBatch { batch, blank: true, family };
            fill(&mut changes);
            let mut batch = changes.batch;
            batch.put(CURRENT, &name);
            self.database.write_opt(batch, &durable()).map_err(|e| self.failed(&e))?;
            Ok(lost)
        });
        let unused = match &written {
            Ok(lost) if lost.is_empty() => self.go_over_to(name),
            _ => name,
        };
        let dropped = self.database.drop_cf(&unused).map_err(|e| self.failed(&e));
        written.and_then(|lost| dropped.map(|()| lost))
    }

    /// Takes records over into a new family. Gives the numbers of the prefixes under which they are not sound.
    fn carry(&self, carry: &Carry, to: &str) -> Result<Vec<usize>, StoreError> {
        let family = self.family_of(to)?;
        let (mut lost, mut batch) = (Vec::new(), WriteBatch::default());
        for (number, prefix) in carry.prefixes.iter().enumerate() {
            match self.under(prefix) {
                Ok(records) if (carry.is_sound)(number, &records) => {
                    records.iter().for_each(|(key, value)| batch.put_cf(&family, key, value));
                }
                _ => lost.push(number),
            }
            if batch.size_in_bytes() >= CARRY_BYTES {
                // The write that makes the family the current one makes all before it durable.
                let full = std::mem::take(&mut batch);
                self.database.write(full).map_err(|e| self.failed(&e))?;
            }
        }
        self.database.write(batch).map_err(|e| self.failed(&e))?;
        Ok(lost)
    }

    pub(crate) fn scan(&self, pieces: &Pieces) -> Result<(), StoreError> {
        self.read_on(IteratorMode::Start, u64::MAX, pieces)
    }

    /// Reads from a key on. With the first key of all, what else the store holds is read too.
    pub(crate) fn verify(&self, from: &[u8], bytes: u64, to: &Pieces) -> Result<(), StoreError> {
        if from.is_empty() {
            for item in self.database.iterator_opt(IteratorMode::Start, uncached()) {
                item.map_err(|e| self.failed(&e))?;
            }
            self.verify_metadata()?;
        }
        self.read_on(IteratorMode::From(from, Direction::Forward), bytes, to)
    }

    fn read_on(&self, from: IteratorMode<'_>, most: u64, to: &Pieces) -> Result<(), StoreError> {
        let (mut piece, mut bytes, mut all) = (Vec::new(), 0, 0);
        for item in self.database.iterator_cf_opt(&self.family()?, uncached(), from) {
            let (key, value) = item.map_err(|e| self.failed(&e))?;
            bytes += key.len() + value.len();
            all += (key.len() + value.len()) as u64;
            piece.push((key, value));
            if bytes >= PIECE_BYTES {
                bytes = 0;
                if to.send(std::mem::take(&mut piece)).is_err() {
                    return Ok(());
                }
            }
            if all >= most {
                break;
            }
        }
        // A reader that has had enough takes nothing more.
        let _ = to.send(piece);
        Ok(())
    }
}

pub(crate) fn durable() -> WriteOptions {
    let mut durable = WriteOptions::default();
    durable.set_sync(true);
    durable
}

/// Each block is verified, and none takes another's place in memory.
pub(crate) fn uncached() -> ReadOptions {
    let mut once = ReadOptions::default();
    once.fill_cache(false);
    once.set_verify_checksums(true);
    once
}

#[cfg(test)]
mod tests {
    use super::behind;

    #[test]
    fn the_end_of_a_prefix_is_behind_all_that_begin_so() {
        assert_eq!(behind(b"Pab"), Some(b"Pac".to_vec()));
        assert_eq!(behind(&[b'P', 255, 255]), Some(b"Q".to_vec()));
        assert_eq!(behind(b""), None);
    }
}
