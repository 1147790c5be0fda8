//! Which replica a read goes to.

use super::VolumeClient;
use crate::pace::{LEARN_EVERY, PROBE_EVERY};
use std::time::Duration;

impl VolumeClient {
    /// The link of the best replica to read from that was not tried in vain: the local one, then the
    /// leader, then any; those where reads take far longer than elsewhere only if there is no other, and
    /// then those that have not answered for a while.
    pub(super) fn pick_reader(&self, id: u32) -> Option<u16> {
        let fits = |suspect: bool, avoided: bool| {
            self.readers(id).find(|link| {
                let link = &self.links[usize::from(*link)];
                link.suspect == suspect && link.pace.avoided == avoided
            })
        };
        let sound = fits(false, false).or_else(|| fits(false, true));
        sound.or_else(|| fits(true, false)).or_else(|| fits(true, true))
    }

    /// The links that stand to replicas that were not tried in vain, the best first.
    fn readers(&self, id: u32) -> impl Iterator<Item = u16> {
        let part = &self.parts[id];
        let group = &self.groups[part.group.0 as usize];
        let order = group.local.into_iter().chain(group.leader).chain(0..group.voters.len());
        let untried = order.filter(|voter| !part.tried.contains(*voter));
        let links = untried.map(|voter| group.voters[voter]);
        links.filter(|link| self.links[usize::from(*link)].is_up())
    }

    /// Another link than the usual one, for one read in many: to learn whether reads are faster there, or
    /// whether they are fast again.
    pub(super) fn detour(&mut self, id: u32, usual: u16) -> Option<u16> {
        let (now, link) = (self.now, &self.links[usize::from(usual)]);
        if !link.pace.is_long() && self.avoided == 0 {
            return None;
        }
        self.slow_reads += 1;
        let sound = |link: &u16| *link != usual && !self.links[usize::from(*link)].suspect;
        if link.pace.is_long() && self.slow_reads.is_multiple_of(LEARN_EVERY) {
            let unknown = |link: &u16| self.links[usize::from(*link)].pace.known(now).is_none();
            let stranger = self.readers(id).filter(sound).find(unknown);
            if stranger.is_some() {
                return stranger;
            }
        }
        if !self.slow_reads.is_multiple_of(PROBE_EVERY) {
            return None;
        }
        let avoided = |link: &u16| self.links[usize::from(*link)].pace.avoided;
        let probed = self.readers(id).filter(sound).find(avoided)?;
        self.links[usize::from(probed)].pace.probes(now).then_some(probed)
    }

    /// A read over a link brought its data, or was given up.
    pub(super) fn note_read(&mut self, link: u16, took: Duration, weight: u64) {
        let now = self.now;
        let pace = &mut self.links[usize::from(link)].pace;
        pace.read(took, weight, now);
        if !pace.is_long() && self.avoided == 0 {
            return;
        }
        for link in 0..self.links.len() {
            let others =
                self.links.iter().enumerate().filter(|(other, l)| {
                    *other != link && l.is_up() && !l.suspect && !l.pace.avoided
                });
            let best = others.filter_map(|(_, l)| l.pace.known(now)).min();
            self.links[link].pace.judge(best, now);
        }
        self.avoided = self.links.iter().filter(|link| link.pace.avoided).count();
        self.stats.avoided = self.avoided;
    }
}
