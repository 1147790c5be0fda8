//! The exports of a door: volumes that are attached here, each with its client.

use super::Reply;
use crate::export::{Catalog, ExportInfo};
use basalt_client::{ClientEffect, Tuning, VolumeClient, VolumeConfig};
use basalt_wire::ids::{Epoch, VolumeId};
use basalt_wire::time::Time;
use std::collections::BTreeMap;

/// What a session with a volume is for.
pub(super) enum Purpose {
    /// To be served; the reply is due when the session has begun.
    Serve { attached: Option<Reply<()>> },
    /// To delete the volume's blocks.
    Delete { deleted: Option<Reply<()>> },
}

/// What a new session is told.
pub(super) struct NewExport {
    pub name: String,
    pub description: String,
    pub read_only: bool,
    pub config: VolumeConfig,
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
#[derive(Default)]
pub(super) struct Exports {
    all: BTreeMap<u64, Export>,
    last: u64,
    last_tag: u16,
}

impl Exports {
    /// Begins a session with a volume.
    pub fn add(&mut self, new: NewExport, now: Time, effects: &mut Vec<ClientEffect>) -> u64 {
        let NewExport { name, description, read_only, config, purpose } = new;
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
            read_only,
            tls_only: false,
        };
        let (volume, epoch) = (config.volume, config.epoch);
        let tuning = Tuning { request_tag: self.last_tag, ..Tuning::default() };
        let client = VolumeClient::with_tuning(config, tuning, now, effects);
        let export = Export {
            info,
            volume,
            epoch,
            client,
            purpose,
            ready: false,
            tag: self.last_tag,
            deadline: None,
            touched: true,
        };
        self.all.insert(self.last, export);
        self.last
    }

    pub fn get_mut(&mut self, id: u64) -> Option<&mut Export> {
        self.all.get_mut(&id)
    }

    pub fn remove(&mut self, id: u64) -> Option<Export> {
        self.all.remove(&id)
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
            return served.next().is_none().then(|| only.info.clone());
        }
        self.by_name(name).map(|export| export.info.clone())
    }

    fn each(&self, visit: &mut dyn FnMut(&ExportInfo)) {
        self.all.values().filter(|export| export.served()).for_each(|export| visit(&export.info));
    }
}
