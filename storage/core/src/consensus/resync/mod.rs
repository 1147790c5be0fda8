//! Bringing a replica up by pages, when the leader's log does not reach back to what it has.
//!
//! 1. The library wants to send entries that are gone; the leader says so ([`Step::Behind`]).
//! 2. The follower opens a session and is told the entry S at which it begins, the members as of S, and
//!    all volumes' epochs, generations and snapshots as of S. It walks through the pages that changed
//!    after what it has applied, compares digests, asks for the granules that differ, and writes the
//!    blocks that it lacks to its log. Each granule it then has, snapshots included, as of some entry
//!    between S and the end of the walk. Commands that commit meanwhile need no care: see
//!    [`crate::replica`]'s pages.
//! 3. When all of it is durable, the follower waits for the next checkpoint, which begins with its
//!    going over to S: its log and volumes are as of S, its pages as of S or later. Only when that
//!    checkpoint is durable it acknowledges S, and Raft goes on behind it. So a crash at any moment
//!    finds the old state or the new one, and what was written before it is found by its checksum.
//! 4. It serves no read before it has applied everything that a page can have seen.
//!
//! The metadata group has no pages: its state is the control plane's, which fetches it between the steps 2 and 3;
//! see [`super::commands`].
//!
//! The follower drives, asks again when there is no answer, and gives up when it hears nothing, or of
//! another leader. The leader keeps of a session only where it began, to leave the log behind that.

mod follower;
mod leader;

pub(super) use follower::{Fill, ToldPage, blocks_with_room, fits};
pub use follower::{Incoming, Session};
pub use leader::{Help, PageRead};

use super::group::Group;
use super::shared::Cx;
use crate::mark;
use basalt_wire::frame::Frame;
use basalt_wire::ids::{Address, GroupId};
use basalt_wire::pages::{OFFER_PAGES_MAX, Pages, Step};

/// Replicas of a shard that are brought up at a time, and that it brings up at a time.
pub const SESSIONS_MAX: usize = 2;
/// Questions of a follower that are not answered yet.
const ASKS_MAX: usize = 4;

/// What bringing replicas up by pages moved since the shard was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MovedCounts {
    /// Pages offered to other replicas.
    pub pages_offered: u64,
    /// Blocks sent to other replicas.
    pub blocks_sent: u64,
    /// Blocks taken from other replicas.
    pub blocks_taken: u64,
    /// Replicas of this shard that went over to a state that came in pages.
    pub restored: u64,
}

impl Group {
    /// Takes a message that brings a replica up.
    pub fn pages(&mut self, cx: &mut Cx<'_>, from: Address, message: Pages) {
        let known = self.address_of(u64::from(from.node.0)) == Some(from) && from.node != self.me;
        if !known || self.raft.is_none() || self.is_mute() || message.term != self.term() {
            mark!("page message of another term");
            return;
        }
        if self.take_recovered(cx, from, &message) || self.take_mending(cx, from, &message) {
            return;
        }
        if self.leads() {
            if !self.is_member(from) {
                mark!("page message of no member");
                return;
            }
            if self.has_tables_for(cx, &message.step) {
                self.help(cx, from, message);
            } else {
                self.keep_message(from, message);
            }
        } else if self.leader() == Some(from.node) {
            // Whether it is a member may not be known here yet: the term's leader is known to be it.
            self.wake(cx);
            if self.has_tables_for(cx, &message.step) {
                self.follow_pages(cx, message);
            } else {
                self.keep_message(from, message);
            }
        }
    }

    /// Moves the next piece of what waited for the pace of pages, for others or for this replica. Whether there was
    /// one.
    pub fn go_on_with_pages(&mut self, cx: &mut Cx<'_>) -> bool {
        if self.serve_next(cx) {
            return true;
        }
        let before = self.session.as_ref().map_or(0, Session::asks);
        self.ask_more(cx);
        self.session.as_ref().map_or(0, Session::asks) > before
    }

    /// Whether the tables of the pages that a message is about are in memory.
    fn has_tables_for(&mut self, cx: &mut Cx<'_>, step: &Step) -> bool {
        if self.replica.cold_pages() == 0 {
            return true;
        }
        let pages = match step {
            Step::Next { since, volume, chunk, .. } if !self.replica.is_fuzzy() => {
                self.replica.changed_page_keys(*since, (*volume, *chunk), OFFER_PAGES_MAX).0
            }
            Step::Offer { pages, .. } => {
                pages.iter().map(|page| (page.volume, page.chunk)).collect()
            }
            Step::Blocks { ask, .. } => self.page_asked_for(*ask).into_iter().collect(),
            _ => return true,
        };
        self.has_pages(cx, pages.into_iter())
    }

    /// How many sessions count among those that may be at a time: those of the metadata group move nothing here.
    pub(super) fn counted(&self, sessions: usize) -> usize {
        if self.id == GroupId::METADATA { 0 } else { sessions }
    }

    pub(super) fn send_pages(&self, cx: &mut Cx<'_>, to: Address, session: u64, step: Step) {
        let message = Pages { group: self.id, term: self.term(), session, step };
        cx.send(to, Frame::Pages(Box::new(message)));
    }
}
