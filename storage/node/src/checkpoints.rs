//! The threads on which a shard's checkpoints are read and written, and single pages of them read.

use crate::config::{CheckpointStore, NodeError, PageStore};
use crate::handle::Mailbox;
use basalt_core::checkpoint::{Loader, SaveError, Snapshot, StoreDone, StoreOp, page_content};
use basalt_core::consensus::PageId;
use basalt_core::event::Event;
use basalt_core::index::PageContent;
use basalt_core::planted::Planted;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};

/// Hands what the shard asks of its store to the store's threads, which end when this is dropped.
pub(crate) struct Checkpoints {
    ops: Option<Sender<StoreOp>>,
    /// Pages: who waits for one does not wait for a checkpoint that is being written.
    pages: Option<Sender<Vec<PageId>>>,
}

impl Checkpoints {
    /// Starts the threads, if there is a store. The answers come by mail.
    pub(crate) fn start(
        store: Option<Box<dyn CheckpointStore>>,
        name: &str,
        mailbox: Mailbox,
    ) -> Result<Checkpoints, NodeError> {
        let Some(store) = store else { return Ok(Checkpoints { ops: None, pages: None }) };
        let ((ops, incoming), (pages, asked)) = (channel(), channel());
        let (reader, mail) = (store.pages(), mailbox.clone());
        std::thread::Builder::new()
            .name(format!("{name}-checkpoints"))
            .spawn(move || run(store, &incoming, &mailbox))
            .map_err(NodeError::system("no thread for checkpoints"))?;
        std::thread::Builder::new()
            .name(format!("{name}-pages"))
            .spawn(move || read_pages(reader, &asked, &mail))
            .map_err(NodeError::system("no thread for pages"))?;
        Ok(Checkpoints { ops: Some(ops), pages: Some(pages) })
    }

    /// Whether there is a store.
    pub(crate) fn is_there(&self) -> bool {
        self.ops.is_some()
    }

    /// Asks for something.
    pub(crate) fn ask(&self, op: StoreOp) {
        // The threads live as long as their senders.
        match (op, &self.ops, &self.pages) {
            (StoreOp::Pages(pages), _, Some(sender)) => drop(sender.send(pages)),
            (op, Some(sender), _) => drop(sender.send(op)),
            _ => {}
        }
    }
}

fn panicked() -> String {
    "the store's thread panicked".to_owned()
}

fn run(mut store: Box<dyn CheckpointStore>, incoming: &Receiver<StoreOp>, mailbox: &Mailbox) {
    while let Ok(op) = incoming.recv() {
        // An answer is owed in any case: a shard that starts waits for it.
        let done = match op {
            StoreOp::Load { index_bytes } => StoreDone::Loaded(
                catch_unwind(AssertUnwindSafe(|| load(&mut *store, index_bytes)))
                    .unwrap_or_else(|_| Err(panicked())),
            ),
            StoreOp::Verify { from, bytes } => StoreDone::Verified(
                catch_unwind(AssertUnwindSafe(|| store.verify(&from, bytes)))
                    .unwrap_or_else(|_| Err(panicked())),
            ),
            StoreOp::Save(changes) => StoreDone::Saved(
                catch_unwind(AssertUnwindSafe(|| store.save(&changes)))
                    .unwrap_or_else(|_| Err(SaveError::Failed(panicked()))),
            ),
            StoreOp::Pages(_) => continue,
        };
        mailbox.event(Event::Store(done));
    }
}

fn load(
    store: &mut dyn CheckpointStore,
    index_bytes: u64,
) -> Result<Option<Box<Snapshot>>, String> {
    let mut loader = Loader::new(index_bytes, Planted::NONE);
    store.load(&mut loader)?;
    loader.finish()
}

fn read_pages(mut store: Box<dyn PageStore>, asked: &Receiver<Vec<PageId>>, mailbox: &Mailbox) {
    while let Ok(pages) = asked.recv() {
        let mut read = |page: PageId| {
            let content = catch_unwind(AssertUnwindSafe(|| read_page(&mut *store, &page)));
            (page, content.unwrap_or_else(|_| Err(panicked())))
        };
        let pages = pages.into_iter().map(&mut read).collect();
        mailbox.event(Event::Store(StoreDone::Pages(pages)));
    }
}

fn read_page(store: &mut dyn PageStore, page: &PageId) -> Result<PageContent, String> {
    let records = store.read(page)?;
    page_content(page, records.iter().map(|(key, value)| (&key[..], &value[..])))
}
