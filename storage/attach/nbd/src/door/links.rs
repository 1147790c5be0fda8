//! Links shared by volume clients.
//!
//! The door has one link to each reactor, and every client believes that it has one of its own. A
//! client hears of a link only what it asked for: that it stands after its own dial, and that it
//! broke if it stood for it, also when it was another client that had it dropped.

use basalt_wire::ids::Address;
use std::collections::BTreeMap;

/// What a link allows to be unanswered: bytes and requests.
pub(super) type Credits = (u32, u32);

#[derive(Default)]
struct Link {
    up: Option<Credits>,
    /// Exports that dialled, and whether the link was announced to them.
    users: BTreeMap<u64, bool>,
}

/// All links of the door.
#[derive(Default)]
pub(super) struct Links {
    links: BTreeMap<Address, Link>,
}

impl Links {
    /// An export's client dials. The credits if the link stands already; if not, the link has to be
    /// dialled.
    pub fn dial(&mut self, export: u64, to: Address) -> Option<Credits> {
        let link = self.links.entry(to).or_default();
        link.users.insert(export, link.up.is_some());
        link.up
    }

    /// An export's client has the link dropped and made anew. Gives the others that lose it.
    pub fn reset(&mut self, export: u64, to: Address) -> Vec<u64> {
        let link = self.links.entry(to).or_default();
        link.up = None;
        let told = |(user, linked): (&u64, &bool)| (*linked && *user != export).then_some(*user);
        let losers: Vec<u64> = link.users.iter().filter_map(told).collect();
        link.users.retain(|_, linked| !*linked);
        link.users.insert(export, false);
        losers
    }

    /// The link stands. Gives those that wait for it.
    pub fn up(&mut self, to: Address, credits: Credits) -> Vec<u64> {
        let link = self.links.entry(to).or_default();
        link.up = Some(credits);
        let mut waiting = Vec::new();
        for (user, linked) in &mut link.users {
            if !std::mem::replace(linked, true) {
                waiting.push(*user);
            }
        }
        waiting
    }

    /// The link broke or could not be made. Gives those that used it or waited for it.
    pub fn down(&mut self, to: Address) -> Vec<u64> {
        match self.links.get_mut(&to) {
            Some(link) => {
                link.up = None;
                std::mem::take(&mut link.users).into_keys().collect()
            }
            None => Vec::new(),
        }
    }

    /// The export is gone.
    pub fn forget(&mut self, export: u64) {
        for link in self.links.values_mut() {
            link.users.remove(&export);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use basalt_wire::ids::{NodeId, ShardId};

    #[test]
    fn a_link_is_announced_once_to_each_that_dialled() {
        let to = Address { node: NodeId(1), shard: ShardId(0) };
        let mut links = Links::default();
        assert_eq!(links.dial(1, to), None);
        assert_eq!(links.dial(2, to), None);
        assert_eq!(links.up(to, (9, 9)), [1, 2]);
        assert_eq!(links.dial(3, to), Some((9, 9)));
        assert_eq!(links.up(to, (9, 9)), [0; 0]);
        assert_eq!(links.reset(2, to), [1, 3]);
        assert_eq!(links.dial(1, to), None);
        assert_eq!(links.up(to, (8, 8)), [1, 2]);
        links.forget(1);
        assert_eq!(links.down(to), [2]);
        assert_eq!(links.down(to), [0; 0]);
    }
}
