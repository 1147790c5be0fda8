//! Checkpoints: keys and values in a column family of their own, written all together or not at all.

use crate::{Call, Database, Store, StoreError};
use rocksdb::{ColumnFamily, IteratorMode, Options, ReadOptions, WriteBatch, WriteOptions};
use std::sync::mpsc;

pub(crate) const FAMILY: &str = "checkpoint";
/// Bytes that are handed over at a time when a checkpoint is read.
const PIECE_BYTES: usize = 256 << 10;
const PIECES_AHEAD: usize = 4;

/// Adds the changes of a checkpoint to a batch.
pub(crate) type Fill = Box<dyn FnOnce(&mut CheckpointBatch<'_>) + Send>;
type Piece = Vec<(Box<[u8]>, Box<[u8]>)>;
pub(crate) type Pieces = mpsc::SyncSender<Piece>;

/// Changes that become durable together.
pub struct CheckpointBatch<'a> {
    batch: WriteBatch,
    family: &'a ColumnFamily,
}

impl CheckpointBatch<'_> {
    /// Puts a value.
    pub fn put(&mut self, key: &[u8], value: &[u8]) {
        self.batch.put_cf(self.family, key, value);
    }

    /// Deletes every key that begins so.
    pub fn delete_prefix(&mut self, prefix: &[u8]) {
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

impl Database {
    fn family(&self) -> &ColumnFamily {
        self.database.cf_handle(FAMILY).expect("the store was opened with this family")
    }

    pub(crate) fn save(&self, fill: Fill) -> Result<(), StoreError> {
        let mut changes = CheckpointBatch { batch: WriteBatch::default(), family: self.family() };
        fill(&mut changes);
        let mut durable = WriteOptions::default();
        durable.set_sync(true);
        self.database.write_opt(changes.batch, &durable).map_err(|e| self.failed(&e))
    }

    pub(crate) fn scan(&self, pieces: &Pieces) -> Result<(), StoreError> {
        let mut once = ReadOptions::default();
        once.fill_cache(false);
        once.set_verify_checksums(true);
        let (mut piece, mut bytes) = (Vec::new(), 0);
        for item in self.database.iterator_cf_opt(self.family(), once, IteratorMode::Start) {
            let (key, value) = item.map_err(|e| self.failed(&e))?;
            bytes += key.len() + value.len();
            piece.push((key, value));
            if bytes >= PIECE_BYTES {
                bytes = 0;
                if pieces.send(std::mem::take(&mut piece)).is_err() {
                    return Ok(());
                }
            }
        }
        // A reader that has had enough takes nothing more.
        let _ = pieces.send(piece);
        Ok(())
    }
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
