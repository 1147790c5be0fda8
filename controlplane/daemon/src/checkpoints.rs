//! Where the shard's checkpoints are kept: in the node's store.

use basalt_core::checkpoint::{Change, Changes, Loader, Verified};
use basalt_node::CheckpointStore;
use basalt_store::Store;
use std::sync::Arc;

/// The node's store, for checkpoints.
pub struct Checkpoints(pub Arc<Store>);

impl CheckpointStore for Checkpoints {
    fn load(&mut self, loader: &mut Loader) -> Result<(), String> {
        self.0.read_checkpoint(|key, value| loader.add(key, value))
    }

    fn save(&mut self, changes: &Changes) -> Result<(), String> {
        let changes = changes.clone();
        let whole = matches!(changes.iter().next(), Some(Change::DeletePrefix(b"")));
        let saved = self.0.save_checkpoint(whole, move |batch| {
            for change in changes.iter() {
                match change {
                    Change::Put { key, value } => batch.put(key, value),
                    Change::DeletePrefix(prefix) => batch.delete_prefix(prefix),
                }
            }
        });
        saved.map_err(|e| e.to_string())
    }

    fn verify(&mut self, from: &[u8], bytes: u64) -> Result<Verified, String> {
        self.0.verify_checkpoint(from, bytes, Verified::add)
    }
}
