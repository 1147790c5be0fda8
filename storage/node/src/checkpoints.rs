//! The thread on which a shard's checkpoints are read and written.

use crate::config::{CheckpointStore, NodeError};
use crate::handle::Mailbox;
use basalt_core::checkpoint::{Loader, Snapshot, StoreDone, StoreOp};
use basalt_core::event::Event;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};

/// Hands what the shard asks of its store to the store's thread, which ends when this is dropped.
pub(crate) struct Checkpoints {
    ops: Option<Sender<StoreOp>>,
}

impl Checkpoints {
    /// Starts the thread, if there is a store. The answers come by mail.
    pub(crate) fn start(
        store: Option<Box<dyn CheckpointStore>>,
        name: &str,
        mailbox: Mailbox,
    ) -> Result<Checkpoints, NodeError> {
        let Some(store) = store else { return Ok(Checkpoints { ops: None }) };
        let (ops, incoming) = channel();
        std::thread::Builder::new()
            .name(format!("{name}-checkpoints"))
            .spawn(move || run(store, &incoming, &mailbox))
            .map_err(NodeError::system("no thread for checkpoints"))?;
        Ok(Checkpoints { ops: Some(ops) })
    }

    /// Whether there is a store.
    pub(crate) fn is_there(&self) -> bool {
        self.ops.is_some()
    }

    /// Asks for something.
    pub(crate) fn ask(&self, op: StoreOp) {
        if let Some(ops) = &self.ops {
            // The thread lives as long as its sender.
            let _ = ops.send(op);
        }
    }
}

fn run(mut store: Box<dyn CheckpointStore>, incoming: &Receiver<StoreOp>, mailbox: &Mailbox) {
    while let Ok(op) = incoming.recv() {
        // An answer is owed in any case: a shard that starts waits for it.
        let panicked = || "the store's thread panicked".to_owned();
        let done = match op {
            StoreOp::Load => StoreDone::Loaded(
                catch_unwind(AssertUnwindSafe(|| load(&mut *store)))
                    .unwrap_or_else(|_| Err(panicked())),
            ),
            StoreOp::Verify { from, bytes } => StoreDone::Verified(
                catch_unwind(AssertUnwindSafe(|| store.verify(&from, bytes)))
                    .unwrap_or_else(|_| Err(panicked())),
            ),
            StoreOp::Save(changes) => StoreDone::Saved(
                catch_unwind(AssertUnwindSafe(|| store.save(&changes)))
                    .unwrap_or_else(|_| Err(panicked())),
            ),
        };
        mailbox.event(Event::Store(done));
    }
}

fn load(store: &mut dyn CheckpointStore) -> Result<Option<Box<Snapshot>>, String> {
    let mut loader = Loader::default();
    store.load(&mut loader)?;
    loader.finish()
}
