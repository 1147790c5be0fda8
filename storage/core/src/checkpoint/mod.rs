//! Checkpoints: the state of a shard's replicas, in the node's store, so that a start replays only the
//! log behind it.
//!
//! A checkpoint is a shortcut and nothing else: whatever it says also follows from the log. It is
//! taken once so many bytes of log were written, in slices between other work ([`Taker`]):
//!
//! 1. The end of the log is noted: replay will begin there, once every entry that stands before it is
//!    applied. Where that takes too long, or room is needed, replay will begin with the segment of the first
//!    entry that is not.
//! 2. The groups' epochs and applied indexes are noted at one instant. Pages and entries that changed
//!    since the last checkpoint are encoded in slices, each page as it is when its turn comes: it may
//!    hold later entries already. Replaying an entry once more over such a page changes nothing, so it is
//!    enough that a start replays beyond the last entry that any page has seen, which is noted too.
//! 3. It is waited until everything that was recorded by then is durable, unless the log is full. The last
//!    durable batch is noted: a log without that batch is not the one that the checkpoint was taken of.
//! 4. The driver puts all records into the store, together or not at all.
//!
//! At a start [`Loader`] checks the records one by one, and their numbers; the log checks that the
//! batches from the noted end to the noted batch are there, undamaged; the groups check that entries
//! and state fit each other. If anything is wrong the whole log is replayed.

use crate::consensus::PageId;
use crate::index::PageContent;
use basalt_wire::disk::checkpoint::Record;

mod carried;
mod changes;
mod loader;
mod outlook;
mod taker;

pub use carried::{Carried, SaveError, page_content, prefix_of};
pub use changes::{Change, Changes};
pub use loader::{GroupSnapshot, Loader, Snapshot};
pub use outlook::{pinned_from, replay_from, would_be_pinned_from};
pub use taker::{Departed, Taker};

/// What the driver is to do with its store, one after the other.
#[derive(Debug)]
pub enum StoreOp {
    /// Give all records of the checkpoint to a [`Loader`] that keeps so many bytes of the index in memory.
    /// Answered by [`StoreDone::Loaded`].
    Load {
        /// Bytes of tables of pages.
        index_bytes: u64,
    },
    /// Give the records of these pages. May be done before what was asked for before. Answered by
    /// [`StoreDone::Pages`].
    Pages(Vec<PageId>),
    /// Make the changes durable, all or none. Answered by [`StoreDone::Saved`].
    Save(Changes),
    /// Read records from a key on, and see whether they are as they were written. Answered by
    /// [`StoreDone::Verified`].
    Verify {
        /// The first key.
        from: Vec<u8>,
        /// Bytes that are read, and no more than a record beyond.
        bytes: u64,
    },
}

/// Records that the store has read and that are as they should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// How many.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The next key, if there are more.
    pub next: Option<Vec<u8>>,
}

impl Verified {
    /// Counts a record.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn add(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        Record::decode(key, value).map_err(|e| e.to_string())?;
        self.records += 1;
        self.bytes += (key.len() + value.len()) as u64;
        // The first key behind it.
        self.next = Some([key, &[0]].concat());
        Ok(())
    }
}

/// The end of a [`StoreOp`].
#[derive(Debug)]
pub enum StoreDone {
    /// What the store holds; nothing if it holds no checkpoint.
    Loaded(Result<Option<Box<Snapshot>>, String>),
    /// Whether the changes are durable.
    Saved(Result<(), SaveError>),
    /// What was read, or what is damaged.
    Verified(Result<Verified, String>),
    /// What the durable checkpoint holds of pages.
    Pages(Vec<(PageId, Result<PageContent, String>)>),
}
