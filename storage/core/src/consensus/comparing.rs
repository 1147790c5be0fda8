//! Comparing replicas while they work, so that a divergence is found in seconds and not when a replica
//! is read by chance (invariant I6).
//!
//! Every two seconds a leader tells the digests of the pages that changed since the last round, and of some
//! others in turn, as of what it has applied; of all pages one after the other when a scrub begins. A follower
//! looks at each page once it has applied as much, if the page has not changed since; if it differs, see
//! [`super::mending`]. Nothing is kept up to date for this while entries are applied: a digest is made of a page
//! when it is asked for.

use super::group::Group;
use super::shared::Cx;
use crate::mark;
use basalt_wire::digests::{Digests, DigestsKind, PageDigest};
use basalt_wire::frame::Frame;
use basalt_wire::ids::{Address, LogIndex, NodeId, VolumeId};
use std::collections::{BTreeMap, BTreeSet};

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
    /// Whether all pages are to be compared at once, and what was applied when that began.
    all: Option<LogIndex>,
    /// The next of the other pages.
    others: (VolumeId, u64),
    /// What a follower can not look at yet.
    waiting: Option<Digests>,
    /// Others' questions that can not be answered yet, by who asked: the last one of each.
    asked: BTreeMap<NodeId, (Address, Digests)>,
    /// Pages that differ from the leader's.
    differ: BTreeSet<(VolumeId, u64)>,
}

impl Comparing {
    /// Whether all pages are being compared.
    pub(super) fn is_busy(&self) -> bool {
        self.all.is_some()
    }

    /// A page is what the majority holds, whatever the leader does.
    pub(super) fn is_right(&mut self, page: Page) {
        self.differ.remove(&page);
    }
}

/// A page of a volume.
pub(super) type Page = (VolumeId, u64);

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
        if self.comparing.all.is_some() {
            self.comparing.next = cx.shared.tick + 1;
        }
        if first || !self.leads() || self.replica.is_fuzzy() {
            return;
        }
        // What differed when another replica led is looked at by those who follow this one.
        self.comparing.differ.clear();
        let pages: Vec<PageDigest> = self
            .pages_to_compare()
            .into_iter()
            .filter_map(|(volume, chunk)| {
                let digest = self.replica.page_digest(volume, chunk)?;
                Some(PageDigest { volume, chunk, digest })
            })
            .collect();
        if pages.is_empty() {
            return;
        }
        let (kind, at) = (DigestsKind::Round, self.replica.applied());
        let digests = Digests { group: self.id, kind, at, pages };
        let peers: Vec<Address> =
            self.peers().filter(|peer| !cx.shared.down.contains(&peer.node)).collect();
        for peer in peers {
            cx.send(peer, Frame::Digests(Box::new(digests.clone())));
        }
    }

    /// Has all pages compared, one round each tick, as soon as this replica leads. Wakes the group: while it sleeps
    /// nothing is compared.
    pub fn compare_all(&mut self, cx: &mut Cx<'_>) {
        if self.raft.is_none() {
            return;
        }
        self.wake(cx);
        let Comparing { told, sweep, all, next, .. } = &mut self.comparing;
        (*told, *sweep) = (LogIndex(0), None);
        *all = Some(self.replica.applied());
        *next = cx.shared.tick.max(1);
    }

    fn pages_to_compare(&mut self) -> BTreeSet<Page> {
        let Comparing { told, sweep, others, all, .. } = &mut self.comparing;
        let (at, from) = sweep.unwrap_or((self.replica.applied(), (VolumeId(0), 0)));
        let changed = self.replica.pages_from(*told, from, CHANGED_MAX);
        match changed.last().filter(|_| changed.len() == CHANGED_MAX) {
            Some(last) => *sweep = Some((at, behind(*last))),
            None => {
                (*told, *sweep) = (at, None);
                *all = all.filter(|begun| at < *begun);
            }
        }
        let more = self.replica.pages_from(LogIndex(0), *others, OTHERS_MAX);
        let last = more.last().filter(|_| more.len() == OTHERS_MAX);
        *others = last.map_or((VolumeId(0), 0), |last| behind(*last));
        changed.into_iter().chain(more).collect()
    }

    /// Takes digests of another replica: a leader's round, a question, or the answer to one.
    pub fn digests(&mut self, cx: &mut Cx<'_>, from: Address, digests: Digests) {
        if !self.is_member(from) || from.node == self.me {
            mark!("digests of no member");
            return;
        }
        match digests.kind {
            DigestsKind::Round => {
                if self.leader() == Some(from.node) && !self.leads() {
                    self.comparing.waiting = Some(digests);
                }
            }
            DigestsKind::Ask => {
                self.wake(cx);
                self.comparing.asked.insert(from.node, (from, digests));
            }
            DigestsKind::Answer => self.take_answer(cx, from, &digests),
        }
        self.compare(cx);
    }

    /// Compares what others told, once as much is applied here.
    pub(super) fn compare(&mut self, cx: &mut Cx<'_>) {
        // What a replica is told while it is brought up it looks at when that is over.
        if !self.has_settled_pages() {
            return;
        }
        let applied = self.replica.applied();
        let is_due = |digests: &Digests| digests.at <= applied;
        let round = self.comparing.waiting.take_if(|digests| is_due(digests));
        let asked = &mut self.comparing.asked;
        let asked: Vec<_> = asked.extract_if(.., |_, (_, digests)| is_due(digests)).collect();
        for (_, (from, digests)) in asked {
            self.answer(cx, from, digests);
        }
        if let Some(digests) = round {
            self.compare_round(cx, digests);
        }
    }

    /// Tells another replica what it asked for, and looks into it if there is a difference.
    fn answer(&mut self, cx: &mut Cx<'_>, to: Address, asked: Digests) {
        let mut pages = Vec::new();
        for PageDigest { volume, chunk, digest: theirs } in asked.pages {
            let own = self.replica.page_digest_at(volume, chunk, asked.at);
            if let Some(digest) = own {
                pages.push(PageDigest { volume, chunk, digest });
                if digest != theirs {
                    self.mending.suspect((volume, chunk));
                }
            }
        }
        if !pages.is_empty() {
            let digests = Digests { kind: DigestsKind::Answer, pages, ..asked };
            cx.send(to, Frame::Digests(Box::new(digests)));
        }
    }

    fn compare_round(&mut self, cx: &mut Cx<'_>, digests: Digests) {
        for PageDigest { volume, chunk, digest } in digests.pages {
            let same = match self.replica.page_digest_at(volume, chunk, digests.at) {
                Some(own) => own == digest,
                None => continue,
            };
            let page = (volume, chunk);
            if same {
                self.comparing.differ.remove(&page);
                self.mending.agrees(page);
                continue;
            }
            self.mending.suspect(page);
            if self.comparing.differ.len() < DIFFER_MAX && self.comparing.differ.insert(page) {
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

    /// Pages that are known to differ from the leader's, or from another replica's.
    pub fn differing_pages(&self) -> usize {
        self.comparing.differ.union(&self.mending.suspects()).count()
    }

    /// Whether it is known to hold something else than the majority, or follows and holds something else
    /// than its leader.
    pub fn differs(&self) -> bool {
        self.mending.is_wrong() || !self.comparing.differ.is_empty() && !self.leads()
    }
}
