//! Checkpoints: keys and values in a column family of their own, written all together or not at all.
//!
//! A checkpoint that replaces all that there was goes to a new family, and the old one is dropped with its
//! files: damage in them would fail RocksDB's own compactions, and everything that is written after.

use crate::{Call, Database, Store, StoreError};
use rocksdb::{
    ColumnFamily, ColumnFamilyDescriptor, DB, DEFAULT_COLUMN_FAMILY_NAME, Direction, IteratorMode,
    Options, ReadOptions, WriteBatch, WriteOptions,
};
use std::path::Path;
use std::sync::mpsc;

pub(crate) const FAMILY: &str = "checkpoint";
/// Which family holds the checkpoint, if it is not the first one.
const CURRENT: &[u8] = b"checkpoint-family";
/// Bytes that are handed over at a time when a checkpoint is read.
const PIECE_BYTES: usize = 256 << 10;
const PIECES_AHEAD: usize = 4;

/// Takes a record, by its key and its value, or says what is wrong with it.
pub type AddRecord<V> = fn(&mut V, &[u8], &[u8]) -> Result<(), String>;
/// Adds the changes of a checkpoint to a batch.
pub(crate) type Fill = Box<dyn FnOnce(&mut CheckpointBatch<'_>) + Send>;
type Piece = Vec<(Box<[u8]>, Box<[u8]>)>;
pub(crate) type Pieces = mpsc::SyncSender<Piece>;

/// Changes that become durable together.
pub struct CheckpointBatch<'a> {
    batch: WriteBatch,
    /// Whether the family is new, so that there is nothing to be deleted.
    blank: bool,
    family: &'a ColumnFamily,
}

impl CheckpointBatch<'_> {
    /// Puts a value.
    pub fn put(&mut self, key: &[u8], value: &[u8]) {
        self.batch.put_cf(self.family, key, value);
    }

    /// Deletes every key that begins so.
    pub fn delete_prefix(&mut self, prefix: &[u8]) {
        if self.blank {
            return;
        }
        // Keys begin with a letter, so that this is behind all of them.
        let end = behind(prefix).unwrap_or_else(|| vec![u8::MAX]);
        self.batch.delete_range_cf(self.family, prefix, &end[..]);
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
    /// Makes changes of the checkpoint durable, all of them or none; if they are the `whole` checkpoint, in place of
    /// all that there was. Blocks.
    ///
    /// # Errors
    /// If they may not be durable.
    pub fn save_checkpoint(
        &self,
        whole: bool,
        fill: impl FnOnce(&mut CheckpointBatch<'_>) + Send + 'static,
    ) -> Result<(), StoreError> {
        self.call(|reply| Call::Save(whole, Box::new(fill), reply))
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
    names.extend([FAMILY, DEFAULT_COLUMN_FAMILY_NAME].map(str::to_owned));
    names.sort_unstable();
    names.dedup();
    let options_of = |name: &str| match name {
        DEFAULT_COLUMN_FAMILY_NAME => general.clone(),
        _ => options(general),
    };
    names.iter().map(|name| ColumnFamilyDescriptor::new(name, options_of(name))).collect()
}

impl Database {
    /// Finds the family that holds the checkpoint, and drops those that do not: a crash left them.
    pub(crate) fn settle_families(&mut self) -> Result<(), StoreError> {
        let named = self.database.get(CURRENT).map_err(|e| self.failed(&e))?;
        let named = named.map(|name| String::from_utf8_lossy(&name).into_owned());
        self.family = named.unwrap_or_else(|| FAMILY.to_owned());
        let all = DB::list_cf(&crate::options(), &self.path).map_err(|e| self.failed(&e))?;
        for name in all {
            if name != DEFAULT_COLUMN_FAMILY_NAME && name != self.family {
                self.database.drop_cf(&name).map_err(|e| self.failed(&e))?;
            }
        }
        if self.database.cf_handle(&self.family).is_none() {
            let reason = format!("the family {} of the checkpoint is missing", self.family);
            return Err(StoreError::Database { path: self.path.clone(), reason });
        }
        Ok(())
    }

    fn family(&self) -> &ColumnFamily {
        self.database.cf_handle(&self.family).expect("the store was opened with this family")
    }

    pub(crate) fn save(&mut self, whole: bool, fill: Fill) -> Result<(), StoreError> {
        if whole {
            return self.save_whole(fill);
        }
        let (batch, family) = (WriteBatch::default(), self.family());
        let mut changes = CheckpointBatch { batch, blank: false, family };
        fill(&mut changes);
        self.database.write_opt(changes.batch, &durable()).map_err(|e| self.failed(&e))
    }

    /// Writes to a new family, which takes the place of the old one with the same write.
    fn save_whole(&mut self, fill: Fill) -> Result<(), StoreError> {
        let number =
            self.family.rsplit_once('-').and_then(|(_, number)| number.parse::<u64>().ok());
        let name = format!("{FAMILY}-{}", number.unwrap_or(0) + 1);
        let created = self.database.create_cf(&name, &options(&crate::options()));
        created.map_err(|e| self.failed(&e))?;
        let family = self.database.cf_handle(&name).expect("created just now");
        let mut changes = CheckpointBatch { batch: WriteBatch::default(), blank: true, family };
        fill(&mut changes);
        let mut batch = changes.batch;
        batch.put(CURRENT, &name);
        self.database.write_opt(batch, &durable()).map_err(|e| self.failed(&e))?;
        let old = std::mem::replace(&mut self.family, name);
        self.database.drop_cf(&old).map_err(|e| self.failed(&e))
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
        }
        self.read_on(IteratorMode::From(from, Direction::Forward), bytes, to)
    }

    fn read_on(&self, from: IteratorMode<'_>, most: u64, to: &Pieces) -> Result<(), StoreError> {
        let (mut piece, mut bytes, mut all) = (Vec::new(), 0, 0);
        for item in self.database.iterator_cf_opt(self.family(), uncached(), from) {
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

fn durable() -> WriteOptions {
    let mut durable = WriteOptions::default();
    durable.set_sync(true);
    durable
}

/// Each block is verified, and none takes another's place in memory.
fn uncached() -> ReadOptions {
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
