//! Changes of the store: encoded in a few large pieces, so that handing them on costs nothing.

use super::Carried;
use basalt_wire::disk::checkpoint::Record;
use bytes::Bytes;

const PUT: u8 = 1;
const DELETE_PREFIX: u8 = 2;
/// A piece is closed once it is this long.
const PIECE_BYTES: usize = 256 << 10;

/// One change of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// Puts a value.
    Put {
        /// Its key.
        key: &'a [u8],
        /// The value.
        value: &'a [u8],
    },
    /// Deletes every key that begins so.
    DeletePrefix(&'a [u8]),
}

/// Changes in order.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    pieces: Vec<Bytes>,
    open: Vec<u8>,
    bytes: usize,
    carried: Vec<Carried>,
}

impl Changes {
    /// Puts a record.
    pub fn put(&mut self, record: &Record) {
        let start = self.begin(PUT);
        record.key(&mut self.open);
        let key_end = self.open.len();
        let key: Vec<u8> = self.open[start..key_end].to_vec();
        record.value(&key, &mut self.open);
        self.end(start, key_end);
    }

    /// Deletes every record whose key begins with `prefix`.
    pub fn delete_prefix(&mut self, prefix: &[u8]) {
        let start = self.begin(DELETE_PREFIX);
        self.open.extend_from_slice(prefix);
        let end = self.open.len();
        self.end(start, end);
    }

    /// Takes pages over from the store that is emptied by these changes.
    pub fn carry(&mut self, pages: impl Iterator<Item = Carried>) {
        self.carried.extend(pages);
    }

    /// The pages that are taken over as the store holds them, although it is emptied.
    pub fn carried(&self) -> &[Carried] {
        &self.carried
    }

    /// Whether they take the place of all that the store holds.
    pub fn is_whole(&self) -> bool {
        matches!(self.iter().next(), Some(Change::DeletePrefix(b"")))
    }

    fn begin(&mut self, what: u8) -> usize {
        self.open.push(what);
        self.open.extend_from_slice(&[0; 5]);
        self.open.len()
    }

    fn end(&mut self, start: usize, key_end: usize) {
        let value_len = (self.open.len() - key_end) as u32;
        self.open[start - 5] = (key_end - start) as u8;
        self.open[start - 4..start].copy_from_slice(&value_len.to_le_bytes());
        if self.open.len() >= PIECE_BYTES {
            self.close_piece();
        }
    }

    fn close_piece(&mut self) {
        self.bytes += self.open.len();
        self.pieces.push(Bytes::from(std::mem::take(&mut self.open)));
    }

    /// Bytes of all changes.
    pub fn bytes(&self) -> usize {
        self.bytes + self.open.len()
    }

    /// The changes in order.
    pub fn iter(&self) -> impl Iterator<Item = Change<'_>> + '_ {
        let pieces = self.pieces.iter().map(|piece| &piece[..]).chain([&self.open[..]]);
        pieces.flat_map(|piece| Piece { rest: piece })
    }
}

struct Piece<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Piece<'a> {
    type Item = Change<'a>;

    fn next(&mut self) -> Option<Change<'a>> {
        let (head, rest) = self.rest.split_at_checked(6)?;
        let value_len = u32::from_le_bytes([head[2], head[3], head[4], head[5]]) as usize;
        let (key, rest) = rest.split_at(usize::from(head[1]));
        let (value, rest) = rest.split_at(value_len);
        self.rest = rest;
        Some(match head[0] {
            PUT => Change::Put { key, value },
            _ => Change::DeletePrefix(key),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use basalt_wire::disk::checkpoint::VolumeRecord;
    use basalt_wire::ids::{Epoch, GroupId, VolumeId};

    #[test]
    fn changes_are_read_as_they_were_made() {
        let mut changes = Changes::default();
        changes.delete_prefix(b"");
        let volume = |n| VolumeRecord { epoch: Epoch(n), ..VolumeRecord::default() };
        let record = |n| Record::Volume(GroupId(1), VolumeId(n), volume(n));
        (0..20_000).for_each(|n| changes.put(&record(n)));
        changes.delete_prefix(b"Pabc");
        let all: Vec<Change<'_>> = changes.iter().collect();
        assert!(changes.pieces.len() > 1);
        assert_eq!(all.len(), 20_002);
        assert_eq!(all[0], Change::DeletePrefix(b""));
        assert_eq!(all[20_001], Change::DeletePrefix(b"Pabc"));
        for (n, change) in (0..20_000).zip(&all[1..]) {
            let Change::Put { key, value } = change else { panic!("{change:?}") };
            assert_eq!(Record::decode(key, value), Ok(record(n)));
        }
    }
}
