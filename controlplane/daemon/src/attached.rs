//! The volumes that are attached to this node, as its mirror has them: brought up to date by what changed, so that a
//! change of another volume costs nothing here.

use crate::metadata::Metadata;
use basalt_attach::convert;
use basalt_client::RateLimits;
use basalt_meta::feed::{Compacted, Key, Kind};
use basalt_meta::{MetaState, VolumeRecord};
use std::collections::BTreeMap;

/// Volumes by number, with what they may do in a second.
pub(crate) type Wanted = BTreeMap<u64, (VolumeRecord, RateLimits)>;

/// The volumes that are attached to this node.
#[derive(Default)]
pub(crate) struct Attached {
    volumes: Wanted,
    /// Their numbers by name: of one that is gone nothing else tells it.
    numbers: BTreeMap<String, u64>,
    /// The revision that they are of; nothing before the first look.
    seen: Option<u64>,
}

impl Attached {
    /// The volumes.
    pub(crate) fn volumes(&self) -> &Wanted {
        &self.volumes
    }

    /// Brings them up to date. Whether any of them changed.
    pub(crate) fn follow(&mut self, metadata: &Metadata, host: &str) -> bool {
        let changes = match self.seen {
            Some(seen) => metadata.changed_since(seen),
            None => Err(Compacted { oldest: 0 }),
        };
        match changes {
            Ok((latest, keys)) if !keys.iter().any(|(_, key)| key.kind == Kind::Class) => {
                self.seen = Some(latest);
                metadata.look(|state| self.look_at(state, host, &keys))
            }
            _ => metadata.look(|state| self.look_at_all(state, host)),
        }
    }

    /// Looks at what changed, as it is by now: it may have changed again since, which is then told again.
    fn look_at(&mut self, state: &MetaState, host: &str, keys: &[(u64, Key)]) -> bool {
        let mut changed = false;
        for (_, key) in keys.iter().filter(|(_, key)| key.kind == Kind::Volume) {
            let here = |v: &&VolumeRecord| v.attachment.as_ref().is_some_and(|a| a.host == host);
            let now = state.volume(&key.id).filter(here);
            if let Some(number) = self.numbers.remove(&key.id) {
                self.volumes.remove(&number);
                changed = true;
            }
            if let Some(volume) = now {
                self.take(state, volume);
                changed = true;
            }
        }
        changed
    }

    fn look_at_all(&mut self, state: &MetaState, host: &str) -> bool {
        (self.volumes, self.numbers) = (BTreeMap::new(), BTreeMap::new());
        state.attached_to(host).for_each(|volume| self.take(state, volume));
        self.seen = Some(state.applied());
        true
    }

    fn take(&mut self, state: &MetaState, volume: &VolumeRecord) {
        let limits = convert::limits(&crate::clones::complete(state, volume));
        self.numbers.insert(volume.id.clone(), volume.number);
        self.volumes.insert(volume.number, (volume.clone(), limits));
    }
}
