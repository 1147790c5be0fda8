//! Who is in a group, and how that changes.
//!
//! | bytes | field |
//! | --- | --- |
//! | 0..1 | 1: these members enter; 2: the change under way ends |
//! | then, of 1 alone | voters, former voters, learners: of each their number 2, then node 4 and shard 2 |
//!
//! A change comes in two entries of the group's log. The first names the new members: from then on what is
//! decided needs a majority of the voters and one of the former voters. The second ends that.

use crate::ids::{Address, NodeId, ShardId};
use bytes::Bytes;

/// The most members of one list.
pub const MEMBERS_MAX: usize = 64;
/// The type of a Raft entry that changes the members: `eraftpb::EntryType::EntryConfChangeV2`.
pub const ENTRY_KIND_MEMBERS: u8 = 2;

const ENTER: u8 = 1;
const LEAVE: u8 = 2;
const ADDRESS_BYTES: usize = 6;

/// Why members were not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// The bytes are shorter or longer than they say.
    #[error("members of an impossible length")]
    Length,
    /// The first byte is not known.
    #[error("a change of members of the unknown kind {0}")]
    Kind(u8),
    /// A list is too long, out of order, or names a node that may not be there.
    #[error("members that contradict each other: {0}")]
    Contradiction(&'static str),
}

/// The members of a group. All lists are in order of their nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// Those whose majority decides.
    pub voters: Vec<Address>,
    /// The voters before, while a change is under way: their majority is needed too.
    pub outgoing: Vec<Address>,
    /// Those that hold what is decided and have no say.
    pub learners: Vec<Address>,
}

/// What an entry of a group's log says about its members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembersChange {
    /// These are the members; a majority of the former voters is needed too.
    Enter(Membership),
    /// The former voters have no say any more.
    Leave,
}

impl Membership {
    /// Voters and learners at rest, in any order.
    pub fn new(mut voters: Vec<Address>, mut learners: Vec<Address>) -> Membership {
        voters.sort_by_key(|a| a.node);
        learners.sort_by_key(|a| a.node);
        Membership { voters, outgoing: Vec::new(), learners }
    }

    /// Whether a change is under way.
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Everybody, each one once: voters first.
    pub fn all(&self) -> Vec<Address> {
        let mut all = self.voters.clone();
        for address in self.outgoing.iter().chain(&self.learners) {
            if !all.contains(address) {
                all.push(*address);
            }
        }
        all
    }

    /// Whether a node has a say, now or until the change is over.
    pub fn is_voter(&self, node: NodeId) -> bool {
        self.voters.iter().chain(&self.outgoing).any(|a| a.node == node)
    }

    /// Checks that the lists are in order and do not contradict each other.
    pub fn validate(&self) -> Result<(), MembershipError> {
        let bad = |why| Err(MembershipError::Contradiction(why));
        let lists = [&self.voters, &self.outgoing, &self.learners];
        if lists.iter().any(|list| list.len() > MEMBERS_MAX) {
            return bad("too many of them");
        }
        if lists.iter().any(|list| list.windows(2).any(|w| w[0].node >= w[1].node)) {
            return bad("out of order");
        }
        if lists.iter().any(|list| list.iter().any(|a| a.node.0 == 0)) {
            return bad("a member without a node");
        }
        if self.voters.is_empty() {
            return bad("no voters");
        }
        if self.learners.iter().any(|a| self.is_voter(a.node)) {
            return bad("a learner that votes");
        }
        if self.outgoing.iter().any(|a| self.voters.iter().any(|b| a.node == b.node && a != b)) {
            return bad("one node at two addresses");
        }
        Ok(())
    }

    /// Appends the lists.
    pub fn encode(&self, out: &mut Vec<u8>) {
        for list in [&self.voters, &self.outgoing, &self.learners] {
            out.extend_from_slice(&(list.len() as u16).to_le_bytes());
            for address in list {
                out.extend_from_slice(&address.node.0.to_le_bytes());
                out.extend_from_slice(&address.shard.0.to_le_bytes());
            }
        }
    }

    /// Reads and validates lists that are all there is.
    pub fn decode(mut bytes: &[u8]) -> Result<Membership, MembershipError> {
        let mut members = Membership::default();
        for list in [&mut members.voters, &mut members.outgoing, &mut members.learners] {
            let (count, rest) = bytes.split_at_checked(2).ok_or(MembershipError::Length)?;
            let count = usize::from(u16::from_le_bytes([count[0], count[1]]));
            if count > MEMBERS_MAX {
                return Err(MembershipError::Contradiction("too many of them"));
            }
            let (named, rest) =
                rest.split_at_checked(count * ADDRESS_BYTES).ok_or(MembershipError::Length)?;
            list.extend(named.chunks_exact(ADDRESS_BYTES).map(|b| Address {
                node: NodeId(u32::from_le_bytes([b[0], b[1], b[2], b[3]])),
                shard: ShardId(u16::from_le_bytes([b[4], b[5]])),
            }));
            bytes = rest;
        }
        if !bytes.is_empty() {
            return Err(MembershipError::Length);
        }
        members.validate()?;
        Ok(members)
    }
}

impl MembersChange {
    /// The data of its entry.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::new();
        match self {
            MembersChange::Enter(members) => {
                out.push(ENTER);
                members.encode(&mut out);
            }
            MembersChange::Leave => out.push(LEAVE),
        }
        Bytes::from(out)
    }

    /// Reads and validates the data of an entry.
    pub fn decode(data: &[u8]) -> Result<MembersChange, MembershipError> {
        match data.split_first() {
            None => Err(MembershipError::Length),
            Some((&ENTER, rest)) => {
                let members = Membership::decode(rest)?;
                if members.is_joint() {
                    return Err(MembershipError::Contradiction("former voters of new members"));
                }
                Ok(MembersChange::Enter(members))
            }
            Some((&LEAVE, [])) => Ok(MembersChange::Leave),
            Some((&LEAVE, _)) => Err(MembershipError::Length),
            Some((kind, _)) => Err(MembershipError::Kind(*kind)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(nodes: &[u32]) -> Vec<Address> {
        nodes.iter().map(|n| Address { node: NodeId(*n), shard: ShardId(1) }).collect()
    }

    #[test]
    fn changes_survive_a_round_trip() {
        let enter = Membership::new(at(&[3, 1, 2]), at(&[7, 5]));
        assert_eq!(enter.voters, at(&[1, 2, 3]));
        let joint = Membership { outgoing: at(&[1, 9]), ..enter.clone() };
        for change in [MembersChange::Enter(enter), MembersChange::Leave] {
            let data = change.encode();
            assert_eq!(MembersChange::decode(&data), Ok(change));
            for len in 0..data.len() {
                assert!(MembersChange::decode(&data[..len]).is_err(), "cut at {len}");
            }
            let mut longer = data.to_vec();
            longer.push(0);
            assert!(MembersChange::decode(&longer).is_err());
        }
        let mut bytes = Vec::new();
        joint.encode(&mut bytes);
        assert_eq!(Membership::decode(&bytes), Ok(joint.clone()));
        assert!(MembersChange::decode(&MembersChange::Enter(joint.clone()).encode()).is_err());
        assert_eq!(joint.all(), at(&[1, 2, 3, 9, 5, 7]));
        assert!(joint.is_voter(NodeId(9)) && !joint.is_voter(NodeId(5)));
    }

    #[test]
    fn contradictions_are_refused() {
        let other = vec![Address { node: NodeId(1), shard: ShardId(2) }];
        let bad = [
            Membership::default(),
            Membership { voters: at(&[2, 1]), ..Membership::default() },
            Membership { voters: at(&[1, 1]), ..Membership::default() },
            Membership { voters: at(&[0, 1]), ..Membership::default() },
            Membership { learners: at(&[1]), ..Membership::new(at(&[1, 2]), Vec::new()) },
            Membership { outgoing: other, ..Membership::new(at(&[1, 2]), Vec::new()) },
            Membership::new((1..=65).flat_map(|n| at(&[n])).collect(), Vec::new()),
        ];
        for members in bad {
            let mut bytes = Vec::new();
            members.encode(&mut bytes);
            assert!(Membership::decode(&bytes).is_err(), "{members:?}");
        }
    }
}
