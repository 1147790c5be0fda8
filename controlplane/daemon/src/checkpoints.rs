//! Where the shard's checkpoints are kept: in the node's store.

use basalt_core::checkpoint::{Change, Changes, Loader, SaveError, Verified, prefix_of};
use basalt_core::consensus::PageId;
use basalt_node::{CheckpointStore, PageRecords, PageStore};
use basalt_store::{CheckpointBatch, Pages, Records, Store};
use std::sync::Arc;

/// The node's store, for checkpoints.
pub struct Checkpoints(pub Arc<Store>);

impl CheckpointStore for Checkpoints {
    fn load(&mut self, loader: &mut Loader) -> Result<(), String> {
        self.0.read_checkpoint(|key, value| loader.add(key, value))
    }

    fn save(&mut self, changes: &Changes) -> Result<(), SaveError> {
        let (whole, carried) = (changes.is_whole(), changes.carried().to_vec());
        let changes = changes.clone();
        let fill = move |batch: &mut CheckpointBatch<'_>| {
            for change in changes.iter() {
                match change {
                    Change::Put { key, value } => batch.put(key, value),
                    Change::DeletePrefix(prefix) => batch.delete_prefix(prefix),
                }
            }
        };
        let failed = |error: basalt_store::StoreError| SaveError::Failed(error.to_string());
        if !whole {
            return self.0.save_checkpoint(fill).map_err(failed);
        }
        let prefixes = carried.iter().map(|carried| prefix_of(&carried.page)).collect();
        let pages: Vec<PageId> = carried.iter().map(|carried| carried.page).collect();
        let is_sound = move |number: usize, records: &Records| {
            carried[number].is_sound(records.iter().map(|(key, value)| (&key[..], &value[..])))
        };
        let lost = self.0.replace_checkpoint(prefixes, is_sound, fill).map_err(failed)?;
        match lost.is_empty() {
            true => Ok(()),
            false => Err(SaveError::Lost(lost.into_iter().map(|number| pages[number]).collect())),
        }
    }

    fn verify(&mut self, from: &[u8], bytes: u64) -> Result<Verified, String> {
        self.0.verify_checkpoint(from, bytes, Verified::add)
    }

    fn pages(&self) -> Box<dyn PageStore> {
        Box::new(CheckpointPages(self.0.pages()))
    }
}

/// Single pages of them.
struct CheckpointPages(Pages);

impl PageStore for CheckpointPages {
    fn read(&mut self, page: &PageId) -> Result<PageRecords, String> {
        self.0.read(&prefix_of(page))
    }
}
