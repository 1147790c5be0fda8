//! The control plane's state of the metadata group, as pieces whose meaning is not known here.
//!
//! A state is written beside the one that is there, piece by piece under a generation of its own, and takes its
//! place with one synced write, which deletes the other one too. So memory holds one piece at a time, and a crash
//! finds the old state or the new one. What a crash left of a state that did not come to its end is deleted by the
//! next one.

use crate::checkpoint::{durable, uncached};
use crate::{Database, Store, StoreError};
use rocksdb::{Direction, IteratorMode, Options, WriteBatch};
use std::sync::PoisonError;

/// The column family.
pub(crate) const FAMILY: &str = "metadata";
/// Which generation is the state: its number, and how many pieces it has.
const CURRENT: &[u8] = b"C";
/// Keys of pieces: this, generation 8, number 4, big endian.
const PIECE: u8 = b'P';

fn key(generation: u64, number: u32) -> [u8; 13] {
    let mut key = [PIECE; 13];
    key[1..9].copy_from_slice(&generation.to_be_bytes());
    key[9..].copy_from_slice(&number.to_be_bytes());
    key
}

/// A few hundred kilobytes at a time, replaced as a whole.
pub(crate) fn options(general: &Options) -> Options {
    let mut options = general.clone();
    options.set_write_buffer_size(4 << 20);
    options
}

impl Store {
    /// Puts a state in the place of the one that is there, for good. Blocks; others go on meanwhile.
    ///
    /// # Errors
    /// If it may not be durable: then the old one is still there.
    pub fn save_metadata(&self, pieces: impl Iterator<Item = Vec<u8>>) -> Result<(), StoreError> {
        let _one_at_a_time = self.metadata.lock().unwrap_or_else(PoisonError::into_inner);
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        database.as_ref().ok_or(StoreError::Closed)?.save_metadata(pieces)
    }

    /// Gives every piece of the state to `each`, in order, until it returns an error. Says how many there are:
    /// none if no state was ever saved. Blocks.
    ///
    /// # Errors
    /// If the store can not be read, a piece is missing, or what `each` returned.
    pub fn read_metadata(
        &self,
        each: impl FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<u32, String> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let database = database.as_ref().ok_or_else(|| StoreError::Closed.to_string())?;
        database.read_metadata(each)
    }
}

impl Database {
    fn family_of_metadata(&self) -> Result<crate::checkpoint::Family<'_>, StoreError> {
        self.family_of(FAMILY)
    }

    /// Generation and pieces of the state.
    fn current_metadata(&self) -> Result<Option<(u64, u32)>, StoreError> {
        let family = self.family_of_metadata()?;
        let value = self.database.get_cf(&family, CURRENT).map_err(|e| self.failed(&e))?;
        let Some(value) = value else { return Ok(None) };
        let numbers = value.split_at_checked(8).and_then(|(generation, pieces)| {
            Some((generation.try_into().ok()?, pieces.try_into().ok()?))
        });
        let (generation, pieces) = numbers.ok_or_else(|| StoreError::Record {
            path: self.path.clone(),
            record: FAMILY.to_owned(),
            reason: format!("it has {} bytes", value.len()),
        })?;
        Ok(Some((u64::from_be_bytes(generation), u32::from_be_bytes(pieces))))
    }

    fn save_metadata(&self, pieces: impl Iterator<Item = Vec<u8>>) -> Result<(), StoreError> {
        // What tells of another state is damaged: any other generation takes its place.
        let (old, _) = self.current_metadata().ok().flatten().unwrap_or((0, 0));
        let (new, family) = (old + 1, self.family_of_metadata()?);
        let mut batch = WriteBatch::default();
        batch.delete_range_cf(&family, &key(new, 0)[..], &[PIECE + 1]);
        let mut count = 0;
        for piece in pieces {
            batch.put_cf(&family, key(new, count), piece);
            // The write that makes it the state makes all before it durable.
            let full = std::mem::take(&mut batch);
            self.database.write(full).map_err(|e| self.failed(&e))?;
            count += 1;
        }
        let value = [&new.to_be_bytes()[..], &count.to_be_bytes()[..]].concat();
        batch.put_cf(&family, CURRENT, value);
        batch.delete_range_cf(&family, &key(0, 0)[..], &key(new, 0)[..]);
        self.database.write_opt(batch, &durable()).map_err(|e| self.failed(&e))
    }

    fn read_metadata(
        &self,
        mut each: impl FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<u32, String> {
        let Some((generation, count)) = self.current_metadata().map_err(|e| e.to_string())? else {
            return Ok(0);
        };
        let family = self.family_of_metadata().map_err(|e| e.to_string())?;
        let first = key(generation, 0);
        let from = IteratorMode::From(&first, Direction::Forward);
        let mut pieces = self.database.iterator_cf_opt(&family, uncached(), from);
        for number in 0..count {
            let piece = pieces.next().transpose().map_err(|e| self.failed(&e).to_string())?;
            match piece.filter(|(found, _)| found[..] == key(generation, number)) {
                Some((_, value)) => each(&value)?,
                None => return Err(format!("piece {number} of {count} is missing in the store")),
            }
        }
        Ok(count)
    }

    /// Reads all of it, so that damage in the files is found before it is needed.
    pub(crate) fn verify_metadata(&self) -> Result<(), StoreError> {
        let family = self.family_of_metadata()?;
        for item in self.database.iterator_cf_opt(&family, uncached(), IteratorMode::Start) {
            item.map_err(|e| self.failed(&e))?;
        }
        Ok(())
    }
}
