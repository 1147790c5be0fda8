//! Pages of a volume whose tables are out of memory: who goes, who comes back.

use super::page::{Cooling, CoolingRule, Loss, PageContent};
use super::{Usage, VolumeIndex};
use basalt_wire::disk::checkpoint::Granule;
use basalt_wire::ids::{Generation, LogIndex};

impl VolumeIndex {
    /// Whether the table of a page is out of memory.
    pub fn is_cold(&self, chunk: u64) -> bool {
        self.pages.get(&chunk).is_some_and(|page| page.is_cold())
    }

    /// The pages whose tables are out of memory, with a bit for each granule that the store holds.
    pub fn cold_granules(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let cold = self.pages.iter().filter(|(_, page)| page.is_cold());
        cold.map(|(chunk, page)| (*chunk, page.stored()))
    }

    /// Asks that a page stay in memory for a while. Says whether all that is known of it is there.
    pub fn hold(&self, chunk: u64, clock: u64) -> bool {
        self.pages.get(&chunk).is_none_or(|page| page.hold(clock))
    }

    /// Notes that a page may go out of memory; says whether it was not noted before.
    pub fn list(&mut self, chunk: u64) -> bool {
        self.pages.get_mut(&chunk).is_some_and(|page| page.list())
    }

    /// Has the table of a page leave memory, if that may be.
    pub fn cool(&mut self, chunk: u64, rule: &CoolingRule, usage: &mut Usage) -> Cooling {
        let Some(page) = self.pages.get_mut(&chunk) else { return Cooling::Never };
        let before = page.footprint();
        let cooling = page.cool(rule);
        let after = page.footprint();
        self.account(before, after, usage);
        cooling
    }

    /// Takes back the table of a page as the store holds it. Says whether the page changed with it, so that
    /// it is to be given to a checkpoint. Fails if the table is not the one that left memory.
    pub fn warm(
        &mut self,
        chunk: u64,
        content: &PageContent,
        clock: u64,
        careless: bool,
        usage: &mut Usage,
    ) -> Result<bool, &'static str> {
        let Some(page) = self.pages.get_mut(&chunk) else { return Ok(false) };
        let before = page.footprint();
        let warmed = page.warm(content, clock, careless, usage);
        let (after, dirty) = (page.footprint(), page.is_dirty());
        self.account(before, after, usage);
        warmed?;
        self.doomed.remove(&chunk);
        Ok(dirty)
    }

    /// The store has lost a page whose table is out of memory.
    pub fn lose(&mut self, chunk: u64, usage: &mut Usage) -> Loss {
        let Some(page) = self.pages.get_mut(&chunk) else { return Loss::Harmless };
        let before = page.footprint();
        let loss = page.lose(usage);
        let after = page.footprint();
        self.account(before, after, usage);
        if loss != Loss::Harmless {
            self.doomed.remove(&chunk);
        }
        loss
    }

    /// Makes a lost page one that holds nothing (a planted bug).
    pub fn abandon(&mut self, chunk: u64, usage: &mut Usage) {
        let Some(page) = self.pages.get_mut(&chunk) else { return };
        let before = page.footprint();
        page.abandon(LogIndex(0));
        let after = page.footprint();
        self.account(before, after, usage);
    }

    /// Whether the store has lost a page, and the last entry that emptied a part of it since it left memory.
    pub fn lost(&self, chunk: u64) -> Option<LogIndex> {
        self.pages.get(&chunk)?.emptied_at()
    }

    /// Takes what another replica told of a lost page.
    pub fn recover(
        &mut self,
        chunk: u64,
        granules: impl Iterator<Item = (u8, Granule)>,
        usage: &mut Usage,
    ) {
        let Some(page) = self.pages.get_mut(&chunk) else { return };
        let before = page.footprint();
        page.recover(granules, usage);
        let after = page.footprint();
        self.account(before, after, usage);
    }

    /// The first pages that are to be emptied and wait for their tables.
    pub fn doomed(&self) -> impl Iterator<Item = u64> + '_ {
        self.doomed.iter().copied()
    }

    /// Whether any page is.
    pub fn has_doomed(&self) -> bool {
        !self.doomed.is_empty()
    }

    /// Gives everything back for good. Of pages whose tables are out of memory that takes place when they are
    /// back; then the others stay, empty, until the store was told. Gives chunks as [`VolumeIndex::map`] does.
    pub fn give_back(&mut self, at: LogIndex, usage: &mut Usage) -> Vec<u64> {
        let cold = self.pages.iter_mut().filter(|(_, page)| page.is_cold() && !page.is_lost());
        for (chunk, page) in cold {
            page.doom(u64::MAX, at);
            self.doomed.insert(*chunk);
        }
        if self.doomed.is_empty() {
            self.each_page(at, usage, |page, _, _| page.is_lost() && page.empty_lost(u64::MAX, at));
            self.clear(usage);
            return Vec::new();
        }
        self.each_page(at, usage, |page, _, usage| match page.is_lost() {
            true => page.empty_lost(u64::MAX, at),
            false => !page.is_cold() && page.clear(Generation(u32::MAX), u64::MAX, at, usage),
        })
    }

    /// Whether nothing is known of any page.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }
}
