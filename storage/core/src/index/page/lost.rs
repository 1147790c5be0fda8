//! A page whose table is out of memory and that the store has lost: what it held comes back from another replica.

use super::Page;
use super::cold::Body;
use crate::index::Usage;
use basalt_wire::disk::checkpoint::Granule;
use basalt_wire::ids::LogIndex;

/// What it means that the store has lost a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Nothing: it is in memory, or not known.
    Harmless,
    /// It was to be emptied and is empty now.
    Gone,
    /// What it holds must come from elsewhere.
    Needed,
}

impl Page {
    /// Whether neither memory nor the store holds what it maps.
    pub fn is_lost(&self) -> bool {
        matches!(self.body, Body::Lost(_))
    }

    /// The last entry that emptied some of it since its table left memory, if it is lost.
    pub(in crate::index) fn emptied_at(&self) -> Option<LogIndex> {
        match self.body {
            Body::Lost(at) => Some(at),
            _ => None,
        }
    }

    /// The store does not hold what left memory. Where its blocks stood is not known any more, so that they
    /// count as live where they are.
    pub(in crate::index) fn lose(&mut self, usage: &mut Usage) -> Loss {
        let at = match &self.body {
            Body::Cold(_) => LogIndex(0),
            Body::Doomed(doom) => doom.emptied_at(),
            _ => return Loss::Harmless,
        };
        let emptied = matches!(&self.body, Body::Doomed(doom) if doom.is_whole());
        usage.lost += u64::from(std::mem::take(&mut self.mapped));
        self.body = Body::Lost(at);
        if emptied {
            self.abandon(at);
            return Loss::Gone;
        }
        Loss::Needed
    }

    /// An entry empties a lost page: all of it, or some granules, which whoever gives the others knows.
    pub(in crate::index) fn empty_lost(&mut self, granules: u64, at: LogIndex) -> bool {
        if granules == u64::MAX {
            self.abandon(at);
            return true;
        }
        self.body = Body::Lost(at);
        false
    }

    /// Makes a lost page one that holds nothing.
    pub(in crate::index) fn abandon(&mut self, at: LogIndex) {
        (self.body, self.zeros) = (Body::Empty, None);
        self.changed(at, self.stored);
    }

    /// Takes all granules of a lost page as another replica told them.
    pub(in crate::index) fn recover(
        &mut self,
        granules: impl Iterator<Item = (u8, Granule)>,
        usage: &mut Usage,
    ) {
        assert!(self.is_lost(), "what a page holds is not replaced by what it held elsewhere");
        (self.body, self.zeros) = (Body::Empty, None);
        self.dirty |= self.stored;
        for (number, granule) in granules {
            let mapped = granule.places.iter().any(Option::is_some);
            if mapped || granule.zeros != 0 || !granule.deltas.is_empty() {
                self.dirty |= 1 << number;
            }
            self.put(number, &granule, usage);
        }
        self.settle();
    }
}
