//! The connections of a door, found by stream and by the tags of their operations.

use crate::connection::Connection;
use basalt_node::StreamId;
use basalt_wire::time::Time;
use rustc_hash::FxHashMap;

const SLOT_BITS: u32 = 16;
const INDEX_BITS: u32 = 16;

/// Connections that a door can tell apart at a time.
pub(super) const CONNECTIONS_LIMIT: usize = 1 << INDEX_BITS;
/// Operations of a connection that can be told apart.
pub(super) const SLOTS_LIMIT: usize = 1 << SLOT_BITS;

/// One connection.
pub(super) struct Conn {
    pub stream: StreamId,
    pub connection: Connection,
    pub peer: String,
    /// The export among whose connections it counts, until it is gone.
    pub export: Option<u64>,
    /// Whether receiving is stopped.
    pub paused: bool,
    /// Whether its client takes its replies too slowly.
    pub held: bool,
    /// Whether the stream is being closed.
    pub closing: bool,
    /// Whether there may be something to send.
    pub touched: bool,
    /// Memory that it was granted for its requests.
    pub granted: usize,
    /// Whether it waits for more.
    pub starved: bool,
    /// Since when it owes the rest of a request.
    pub owes_since: Option<Time>,
}

struct Place {
    generation: u32,
    conn: Option<Conn>,
}

/// All connections. A place is used again, but under another generation, so that what an operation
/// of a connection that is gone leaves behind reaches nobody.
#[derive(Default)]
pub(super) struct Conns {
    places: Vec<Place>,
    free: Vec<u32>,
    streams: FxHashMap<StreamId, u32>,
}

impl Conns {
    pub fn len(&self) -> usize {
        self.streams.len()
    }

    pub fn add(&mut self, conn: Conn) -> u32 {
        let stream = conn.stream;
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place { generation: 0, conn: None });
            (self.places.len() - 1) as u32
        });
        self.places[index as usize].conn = Some(conn);
        self.streams.insert(stream, index);
        index
    }

    pub fn remove(&mut self, stream: StreamId) -> Option<Conn> {
        let index = self.streams.remove(&stream)?;
        let place = &mut self.places[index as usize];
        place.generation = place.generation.wrapping_add(1);
        self.free.push(index);
        place.conn.take()
    }

    pub fn index(&self, stream: StreamId) -> Option<u32> {
        self.streams.get(&stream).copied()
    }

    pub fn get_mut(&mut self, index: u32) -> Option<&mut Conn> {
        self.places.get_mut(index as usize)?.conn.as_mut()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Conn> {
        self.places.iter().filter_map(|place| place.conn.as_ref())
    }

    /// Indexes of the connections there are.
    pub fn indexes(&self) -> Vec<u32> {
        self.streams.values().copied().collect()
    }

    /// A name for an operation, unique among those under way.
    pub fn tag(&self, index: u32, slot: u32) -> u64 {
        assert!((slot as usize) < SLOTS_LIMIT, "slot {slot} of a connection");
        let generation = u64::from(self.places[index as usize].generation);
        generation << (SLOT_BITS + INDEX_BITS) | u64::from(index) << SLOT_BITS | u64::from(slot)
    }

    /// The connection and the slot that a tag names, if the connection is still there.
    pub fn by_tag(&self, tag: u64) -> Option<(u32, u32)> {
        let slot = (tag & (SLOTS_LIMIT as u64 - 1)) as u32;
        let index = ((tag >> SLOT_BITS) & (CONNECTIONS_LIMIT as u64 - 1)) as u32;
        let place = self.places.get(index as usize)?;
        let live = u64::from(place.generation) == tag >> (SLOT_BITS + INDEX_BITS);
        (live && place.conn.is_some()).then_some((index, slot))
    }
}
