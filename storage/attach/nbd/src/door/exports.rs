//! The exports of a door: volumes that are attached here, each with its client.

use super::Reply;
use super::leaders::Leaders;
use crate::export::{Catalog, ExportInfo};
use basalt_client::{BlockOp, BlockResult, ClientEffect, Tuning, VolumeClient, VolumeConfig};
use basalt_wire::ids::{Epoch, VolumeId};
use basalt_wire::time::Time;
use std::collections::BTreeMap;

/// Volumes whose epochs are remembered; more than a cluster has.
const BEGUN_MAX: usize = 64 << 10;

/// What a session with a volume is for.
pub(super) enum Purpose {
    /// To be served; the reply is due when the session has begun.
    Serve { attached: Option<Reply<()>> },
    /// To do one thing to the volume, and be over.
    Change { op: BlockOp, told: Option<Reply<BlockResult>> },
    /// To be cut together with others, at this place among them.
    Cut { cut: u64, place: usize },
}

/// What a new session is told.
pub(super) struct NewExport {
    pub name: String,
    pub description: String,
    pub read_only: bool,
    pub config: VolumeConfig,
    /// Whether it is a view of a snapshot.
    pub view: bool,
    pub purpose: Purpose,
}

/// One session with a volume.
pub(super) struct Export {
    pub info: ExportInfo,
    pub volume: VolumeId,
    pub epoch: Epoch,
    pub client: VolumeClient,
    pub purpose: Purpose,
    pub ready: bool,
    /// Connections that chose it.
    pub connections: usize,
    /// The top bits of the ids of its requests.
    pub tag: u16,
    /// As its client last said.
    pub deadline: Option<Time>,
    /// Whether its client's turn has to be ended.
    pub touched: bool,
}

impl Export {
    pub fn served(&self) -> bool {
        matches!(self.purpose, Purpose::Serve { .. })
    }
}

/// All exports, by number in the order in which they were attached.
pub(super) struct Exports {
    all: BTreeMap<u64, Export>,
    /// Connections that each may have.
    connections_max: usize,
    /// The highest epoch under which a session was begun here, of each volume.
    begun: BTreeMap<VolumeId, Epoch>,
    leaders: Leaders,
    last: u64,
    last_tag: u16,
}

impl Exports {
    /// None yet; each may have so many connections.
    pub fn new(connections_max: usize) -> Exports {
        let (all, begun, leaders) = (BTreeMap::new(), BTreeMap::new(), Leaders::default());
        Exports { all, connections_max, begun, leaders, last: 0, last_tag: 0 }
    }

    fn show(&self, export: &Export) -> ExportInfo {
        let full = export.connections >= self.connections_max;
        ExportInfo { full, ..export.info.clone() }
    }

    /// Begins a session with a volume.
    pub fn add(&mut self, new: NewExport, now: Time, effects: &mut Vec<ClientEffect>) -> u64 {
        let NewExport { name, description, read_only, config, view, purpose } = new;
        if !view {
            self.begun.insert(config.volume, config.epoch);
        }
        if self.begun.len() > BEGUN_MAX {
            // Volumes are numbered in order and numbers are not used again: the oldest is gone first.
            self.begun.pop_first();
        }
        self.last += 1;
        // A tag is not used again soon, so that a late reply finds no other export.
        loop {
            self.last_tag = self.last_tag.wrapping_add(1);
            if self.all.values().all(|export| export.tag != self.last_tag) {
                break;
            }
        }
        let info = ExportInfo {
            id: self.last,
            name: name.as_str().into(),
            description: description.as_str().into(),
            size: config.size_bytes,
            read_only: read_only || view,
            tls_only: false,
            full: false,
        };
        let (volume, epoch) = (config.volume, config.epoch);
        let tuning = Tuning { request_tag: self.last_tag, ..Tuning::default() };
        let mut client = match view {
            true => VolumeClient::view(config, tuning, now, effects),
            false => VolumeClient::with_tuning(config, tuning, now, effects),
        };
        self.leaders.give(&mut client);
        let export = Export {
            info,
            volume,
            epoch,
            client,
            purpose,
            ready: false,
            connections: 0,
            tag: self.last_tag,
            deadline: None,
            touched: true,
        };
        self.all.insert(self.last, export);
        self.last
    }

    /// Whether a session of this epoch, or of a higher one, was begun here before.
    ///
    /// A client counts its links from 1 and relies on being the first of its session: a second one
    /// under the same epoch would count the same numbers again, and what the first one left in the
    /// network could take effect behind what the second one wrote.
    pub fn is_spent(&self, volume: VolumeId, epoch: Epoch) -> bool {
        self.begun.get(&volume).is_some_and(|begun| *begun >= epoch)
    }

    pub fn get_mut(&mut self, id: u64) -> Option<&mut Export> {
        self.all.get_mut(&id)
    }

    /// Takes an export away; what its session knows of leaders stays.
    pub fn remove(&mut self, id: u64) -> Option<Export> {
        let export = self.all.remove(&id)?;
        self.leaders.take(&export.client);
        Some(export)
    }

    /// Keeps what a session that has begun knows of leaders.
    pub fn keep_leaders(&mut self, id: u64) {
        if let Some(export) = self.all.get(&id) {
            self.leaders.take(&export.client);
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Export> {
        self.all.values()
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Export> {
        self.all.values_mut()
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn by_name(&self, name: &str) -> Option<&Export> {
        self.all.values().find(|export| export.served() && &*export.info.name == name)
    }

    pub fn by_tag(&self, tag: u16) -> Option<u64> {
        self.all.values().find(|export| export.tag == tag).map(|export| export.info.id)
    }
}

impl Catalog for Exports {
    fn find(&self, name: &str) -> Option<ExportInfo> {
        if name.is_empty() {
            // Where there is only one volume, it is the one that is meant.
            let mut served = self.all.values().filter(|export| export.served());
            let only = served.next()?;
            return served.next().is_none().then(|| self.show(only));
        }
        self.by_name(name).map(|export| self.show(export))
    }

    fn each(&self, visit: &mut dyn FnMut(&ExportInfo)) {
        self.all.values().filter(|export| export.served()).for_each(|export| visit(&export.info));
    }
}
