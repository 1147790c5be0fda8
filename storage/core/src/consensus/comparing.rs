//! Comparing replicas while they work, so that a divergence is found in seconds and not when a replica
//! is read by chance (invariant I6).
//!
//! Every two seconds a leader tells the digests of the pages that changed since the last round, and of some
//! others in turn, as of what it has applied. A follower looks at each page once it has applied as
//! much, if the page has not changed since. Nothing is kept up to date for this while entries are applied:
//! a digest is made of a page when it is asked for.

use super::group::Group;
use super::shared::Cx;
use crate::mark;
use basalt_wire::digests::{Digests, PageDigest};
use basalt_wire::frame::Frame;
use basalt_wire::ids::{Address, LogIndex, VolumeId};
use std::collections::BTreeSet;

/// Time between two rounds, in ticks: two seconds.
const ROUND_TICKS: u64 = 40;
/// Pages of a round that changed since the last one, and others.
const CHANGED_MAX: usize = 64;
const OTHERS_MAX: usize = 16;
/// Pages that are known to differ.
const DIFFER_MAX: usize = 1024;

/// What a replica keeps to be compared.
#[derive(Debug, Default)]
pub struct Comparing {
    /// The tick of the next round.
    next: u64,
    /// A leader has told of all pages that changed up to this entry, and of those that changed since up to a
    /// page, in a sweep that began when the second entry was applied last.
    told: LogIndex,
    sweep: Option<(LogIndex, (VolumeId, u64))>,
    /// The next of the other pages.
    others: (VolumeId, u64),
    /// What a follower can not look at yet.
    waiting: Option<Digests>,
    /// Pages that differ from the leader's.
    differ: BTreeSet<(VolumeId, u64)>,
}

type Page = (VolumeId, u64);

fn behind((volume, chunk): Page) -> Page {
    (volume, chunk + 1)
}

impl Group {
    /// Tells the followers digests of pages, if it is time to.
    pub(super) fn tell_digests(&mut self, cx: &mut Cx<'_>) {
        if cx.shared.tick < self.comparing.next {
            return;
        }
        // The groups of a shard take turns.
        let first = self.comparing.next == 0;
        let after = if first { u64::from(self.id.0) % ROUND_TICKS } else { 0 };
        self.comparing.next = cx.shared.tick + ROUND_TICKS + after;
        if first || !self.leads() || self.replica.is_fuzzy() {
            return;
        }
        // What differed when another replica led is looked at by those who follow this one.
        self.comparing.differ.clear();
        let pages: Vec<PageDigest> = self
            .pages_to_compare()
            .into_iter()
            .map(|(volume, chunk)| PageDigest {
                volume,
                chunk,
                digest: self.replica.page_digest(volume, chunk),
            })
            .collect();
        if pages.is_empty() {
            return;
        }
        let digests = Digests { group: self.id, at: self.replica.applied(), pages };
        let peers: Vec<Address> =
            self.peers().filter(|peer| !cx.shared.down.contains(&peer.node)).collect();
        for peer in peers {
            cx.send(peer, Frame::Digests(Box::new(digests.clone())));
        }
    }

    fn pages_to_compare(&mut self) -> BTreeSet<Page> {
        let Comparing { told, sweep, others, .. } = &mut self.comparing;
        let (at, from) = sweep.unwrap_or((self.replica.applied(), (VolumeId(0), 0)));
        let changed = self.replica.pages_from(*told, from, CHANGED_MAX);
        match changed.last().filter(|_| changed.len() == CHANGED_MAX) {
            Some(last) => *sweep = Some((at, behind(*last))),
            None => (*told, *sweep) = (at, None),
        }
        let more = self.replica.pages_from(LogIndex(0), *others, OTHERS_MAX);
        let last = more.last().filter(|_| more.len() == OTHERS_MAX);
        *others = last.map_or((VolumeId(0), 0), |last| behind(*last));
        changed.into_iter().chain(more).collect()
    }

    /// Takes a leader's digests.
    pub fn digests(&mut self, cx: &mut Cx<'_>, from: Address, digests: Digests) {
        if self.leader() == Some(from.node) && !self.leads() {
            self.comparing.waiting = Some(digests);
            self.compare(cx);
        }
    }

    /// Compares what a leader told, once as much is applied here.
    pub(super) fn compare(&mut self, cx: &mut Cx<'_>) {
        let applied = self.replica.applied();
        let ready = |digests: &mut Digests| digests.at <= applied;
        let Some(digests) = self.comparing.waiting.take_if(ready) else { return };
        let brought_up = self.session.is_some() || self.limbo.is_some() || self.impaired.is_some();
        if brought_up || self.replica.is_fuzzy() {
            return;
        }
        for PageDigest { volume, chunk, digest } in digests.pages {
            let same = match self.replica.page_digest_at(volume, chunk, digests.at) {
                Some(own) => own == digest,
                None => continue,
            };
            let page = (volume, chunk);
            if same {
                self.comparing.differ.remove(&page);
            } else if self.comparing.differ.len() < DIFFER_MAX && self.comparing.differ.insert(page)
            {
                mark!("replica differs from its leader");
                let (group, at, me) = (self.id, digests.at, self.me);
                let text = format!(
                    "group {group}: chunk {chunk} of volume {volume} on node {me} is not what the leader \
                     has after entry {at}: this replica answers no reads until they agree"
                );
                cx.notice(true, text);
            }
        }
    }

    /// Pages that are known to differ from the leader's.
    pub fn differing_pages(&self) -> usize {
        self.comparing.differ.len()
    }

    /// Whether it follows, and is known to hold something else than its leader.
    pub fn differs(&self) -> bool {
        !self.comparing.differ.is_empty() && !self.leads()
    }
}
