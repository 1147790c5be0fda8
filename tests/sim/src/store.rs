//! The simulated twin of a node's store: checkpoints that land whole or not at all, late, and that are
//! lost, damaged or put back to an older state while nobody looks.

use crate::event::{Ev, Who};
use crate::metadata::State;
use crate::rng::Rng;
use crate::world::World;
use basalt_core::checkpoint::{
    Change, Changes, Loader, SaveError, Snapshot, StoreDone, StoreOp, Verified, page_content,
    prefix_of,
};
use basalt_core::consensus::PageId;
use basalt_core::event::Event;
use basalt_core::index::{Page, PageContent};
use basalt_core::planted::{Bug, Planted};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};

type Content = BTreeMap<Vec<u8>, Bytes>;

/// Older states that are remembered, to be put back.
const HISTORY: usize = 4;

/// The store of one node.
pub struct Store {
    content: Content,
    /// The control plane's state of the metadata group.
    pub metadata: State,
    history: VecDeque<(Content, State)>,
    /// What was asked and has not taken place.
    waiting: VecDeque<StoreOp>,
    /// Pages that were asked for and not given.
    asked: VecDeque<Vec<PageId>>,
    /// Checkpoints that landed.
    pub saved: u64,
    rng: Rng,
}

impl Store {
    /// An empty store.
    pub fn new(rng: Rng) -> Store {
        let (content, history, waiting) = (Content::new(), VecDeque::new(), VecDeque::new());
        let (metadata, asked) = (State::default(), VecDeque::new());
        Store { content, metadata, history, waiting, asked, saved: 0, rng }
    }

    /// The next operation takes place.
    fn perform(&mut self, planted: Planted) -> Option<StoreDone> {
        Some(match self.waiting.pop_front()? {
            StoreOp::Load { index_bytes } => StoreDone::Loaded(self.load(index_bytes, planted)),
            StoreOp::Pages(pages) => self.read(pages),
            StoreOp::Verify { from, bytes } => {
                StoreDone::Verified(self.verify(from, bytes, planted))
            }
            StoreOp::Save(changes) => StoreDone::Saved(self.save(&changes)),
        })
    }

    fn read(&self, pages: Vec<PageId>) -> StoreDone {
        StoreDone::Pages(pages.into_iter().map(|page| (page, self.page(&page))).collect())
    }

    /// What it holds of a page.
    pub fn page(&self, page: &PageId) -> Result<PageContent, String> {
        let prefix = prefix_of(page);
        let records = self.content.range(prefix.clone()..);
        let records = records.take_while(|(key, _)| key.starts_with(&prefix));
        page_content(page, records.map(|(key, value)| (&key[..], &value[..])))
    }

    fn load(&self, index_bytes: u64, planted: Planted) -> Result<Option<Box<Snapshot>>, String> {
        let mut loader = Loader::new(index_bytes, planted);
        self.content.iter().try_for_each(|(key, value)| loader.add(key, value))?;
        loader.finish()
    }

    fn verify(&self, from: Vec<u8>, bytes: u64, planted: Planted) -> Result<Verified, String> {
        let mut verified = Verified::default();
        let blind = planted.is(Bug::RecordsUnchecked);
        for (key, value) in self.content.range(from..) {
            match verified.add(key, value) {
                Err(_) if blind => {}
                added => added?,
            }
            if verified.bytes >= bytes {
                return Ok(verified);
            }
        }
        Ok(Verified { next: None, ..verified })
    }

    fn save(&mut self, changes: &Changes) -> Result<(), SaveError> {
        let (mut kept, mut lost) = (Content::new(), Vec::new());
        for carried in changes.carried() {
            let prefix = prefix_of(&carried.page);
            let records = self.content.range(prefix.clone()..);
            let records = records.take_while(|(key, _)| key.starts_with(&prefix));
            if !carried.is_sound(records.clone().map(|(key, value)| (&key[..], &value[..]))) {
                lost.push(carried.page);
            }
            kept.extend(records.map(|(key, value)| (key.clone(), value.clone())));
        }
        if !lost.is_empty() {
            return Err(SaveError::Lost(lost));
        }
        self.saved += 1;
        self.history.push_back((self.content.clone(), self.metadata));
        if self.history.len() > HISTORY {
            self.history.pop_front();
        }
        for change in changes.iter() {
            match change {
                Change::Put { key, value } => {
                    self.content.insert(key.to_vec(), Bytes::copy_from_slice(value));
                }
                Change::DeletePrefix(prefix) => {
                    self.content.retain(|key, _| !key.starts_with(prefix));
                }
            }
        }
        self.content.append(&mut kept);
        Ok(())
    }

    /// The process is gone: what it asked for takes place or does not, in order.
    pub fn crash(&mut self) {
        while let Some(op) = self.waiting.pop_front() {
            match op {
                StoreOp::Save(changes) => {
                    if !self.rng.chance(0.5) || self.save(&changes).is_err() {
                        break;
                    }
                }
                StoreOp::Load { .. } | StoreOp::Pages(_) | StoreOp::Verify { .. } => {}
            }
        }
        self.waiting.clear();
        self.asked.clear();
    }

    /// The checkpoint is gone, the state of the metadata group, or both.
    pub fn lose(&mut self, (checkpoint, metadata): (bool, bool)) {
        if checkpoint {
            self.content.clear();
        }
        if metadata {
            self.metadata = State::default();
        }
    }

    /// An older state is put back, if there is one.
    pub fn go_back(&mut self) -> bool {
        match self.history.is_empty() {
            true => false,
            false => {
                let at = self.rng.below(self.history.len() as u64) as usize;
                (self.content, self.metadata) = self.history[at].clone();
                true
            }
        }
    }

    /// A bit of a record flips. False if there is none.
    pub fn rot(&mut self) -> bool {
        if self.content.is_empty() {
            return false;
        }
        let at = self.rng.below(self.content.len() as u64) as usize;
        let value = self.content.values_mut().nth(at).expect("counted just now");
        let mut bytes = value.to_vec();
        let bit = self.rng.below(bytes.len() as u64 * 8) as usize;
        bytes[bit / 8] ^= 1 << (bit % 8);
        *value = bytes.into();
        true
    }

    /// Whether every record can be read.
    pub fn is_sound(&self) -> bool {
        self.verify(Vec::new(), u64::MAX, Planted::NONE).is_ok()
            && self.load(u64::MAX, Planted::NONE).is_ok()
    }

    /// A record of a page is damaged or lost. False if there is none.
    pub fn harm_page(&mut self, page: &PageId) -> bool {
        let prefix = prefix_of(page);
        let keys: Vec<Vec<u8>> =
            self.content.keys().filter(|key| key.starts_with(&prefix)).cloned().collect();
        if keys.is_empty() {
            return false;
        }
        let key = self.rng.pick(&keys).clone();
        let mut value = self.content[&key].to_vec();
        if self.rng.chance(0.5) {
            self.content.remove(&key);
            return true;
        }
        let bit = self.rng.below(value.len() as u64 * 8) as usize;
        value[bit / 8] ^= 1 << (bit % 8);
        self.content.insert(key, value.into());
        true
    }

    /// A record is damaged, or lost, or stands under another's key.
    pub fn damage(&mut self) -> Option<&'static str> {
        if self.content.is_empty() {
            return None;
        }
        let mut keys = self.content.keys();
        let at = self.rng.below(keys.len() as u64) as usize;
        let key = keys.nth(at).expect("counted just now").clone();
        Some(match self.rng.below(3) {
            0 => {
                self.content.remove(&key);
                "a record is lost"
            }
            1 => {
                let other = self.rng.below(self.content.len() as u64) as usize;
                let value = self.content.values().nth(other).expect("counted just now").clone();
                self.content.insert(key, value);
                "a record holds another's value"
            }
            _ => {
                let mut value = self.content[&key].to_vec();
                let bit = self.rng.below(value.len() as u64 * 8) as usize;
                value[bit / 8] ^= 1 << (bit % 8);
                self.content.insert(key, value.into());
                "a bit flips"
            }
        })
    }
}

impl World {
    /// A node asks something of its store.
    pub fn ask_store(&mut self, n: Who, op: StoreOp) {
        let node = &mut self.nodes[n];
        let boot = node.boot;
        if let StoreOp::Pages(pages) = op {
            node.store.asked.push_back(pages);
            let delay = node.store.rng.log_uniform(10e3, 5e6) as u64;
            self.queue.push_in(delay, Ev::Pages { node: n, boot });
            return;
        }
        let quick = matches!(op, StoreOp::Load { .. }) || node.store.rng.chance(0.5);
        let delay = node.store.rng.log_uniform(10e3, if quick { 2e6 } else { 500e6 }) as u64;
        node.store.waiting.push_back(op);
        self.queue.push_in(delay, Ev::Store { node: n, boot });
    }

    /// A node's store has done the next thing.
    pub fn store_done(&mut self, n: Who) {
        let planted = self.options.planted;
        if let Some(done) = self.nodes[n].store.perform(planted) {
            self.trace(|| match &done {
                StoreDone::Loaded(found) => {
                    let number = found.as_ref().map(|s| s.as_ref().map(|s| s.manifest.number));
                    format!("node {n} store gives checkpoint {number:?}")
                }
                StoreDone::Verified(result) => format!("node {n} store verifies: {result:?}"),
                StoreDone::Saved(Ok(())) => format!("node {n} store holds a new checkpoint"),
                StoreDone::Saved(Err(error)) => {
                    format!("node {n} store keeps no checkpoint: {error:?}")
                }
                StoreDone::Pages(_) => format!("node {n} store gives pages"),
            });
            self.give(n, Event::Store(done), 0);
        }
    }

    /// A node's store gives pages.
    pub fn pages_read(&mut self, n: Who) {
        let store = &mut self.nodes[n].store;
        if let Some(pages) = store.asked.pop_front() {
            let done = store.read(pages);
            self.trace(|| format!("node {n} store gives pages"));
            self.give(n, Event::Store(done), 0);
        }
    }

    /// The store of a node loses something of so many pages that are out of its memory. Says of how many.
    pub fn harm_cold_pages(&mut self, n: Who, most: usize) -> usize {
        let Some(shard) = &self.nodes[n].shard else { return 0 };
        let mut pages = shard.cold_pages();
        let store = &mut self.nodes[n].store;
        let mut harmed = Vec::new();
        while harmed.len() < most && !pages.is_empty() {
            let at = store.rng.below(pages.len() as u64) as usize;
            let page = pages.swap_remove(at);
            if store.harm_page(&page) {
                harmed.push(page);
            }
        }
        self.trace(|| format!("the store of node {n} is harmed: {harmed:?}"));
        harmed.len()
    }

    /// Something happens to a store behind its node's back: harm that must be noticed if `may_harm`,
    /// or a loss or an older state. A replica that came in pages then lacks what it acknowledged.
    pub fn disturb_store(&mut self, n: Who, may_harm: bool) {
        let up = self.nodes[n].is_up();
        let lost = self.nodes[n].control.draw_loss();
        let store = &mut self.nodes[n].store;
        let text = match store.rng.below(if may_harm { 4 } else { 2 }) {
            // A store that a process has open is not exchanged under it.
            0 | 1 if up => return,
            0 => {
                store.lose(lost);
                self.nodes[n].control.harmed |= lost.1;
                "is lost"
            }
            1 if store.go_back() => {
                self.nodes[n].control.harmed = true;
                "is put back to an older state"
            }
            1 => return,
            _ => match store.damage() {
                Some(text) => {
                    self.damaged = true;
                    text
                }
                None => return,
            },
        };
        self.trace(|| format!("the store of node {n}: {text}"));
    }
}

/// Bytes of memory for the index of a node: in half of the runs so few that nearly nothing stays there that
/// may leave.
pub fn draw_index(rng: &mut Rng) -> u64 {
    match rng.chance(0.5) {
        true => rng.below(6) * Page::TABLE_BYTES,
        false => u64::MAX,
    }
}

/// Bytes of log between two checkpoints of a node: tiny, so that a run takes some.
pub fn draw_interval(rng: &mut Rng) -> u64 {
    rng.log_uniform(4096.0, (1 << 20) as f64) as u64
}
