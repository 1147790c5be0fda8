//! What follows from the records of volumes and snapshots, kept with each change of them: which are to be worked on,
//! which belong to what, and sums. Without it each change would have everybody who acts on the records look at all
//! of them.

use crate::quotas::{Used, selects};
use crate::tracked::{Follows, Shared};
use basalt_api::meta::v1::{QuotaRecord, SnapshotRecord, VolumeRecord};
use std::collections::{BTreeMap, BTreeSet};

/// What follows from the volumes. Volumes stand here by their numbers.
#[derive(Clone, Debug, Default)]
pub(crate) struct VolumesBy {
    numbers: BTreeMap<u64, Shared<VolumeRecord>>,
    /// Those that are attached, by host.
    hosts: BTreeMap<String, BTreeSet<u64>>,
    attached: usize,
    deleting: BTreeSet<u64>,
    reverting: BTreeSet<u64>,
    /// Clones: the volume and the generation that they hang on, and their own number.
    clones: BTreeSet<(u64, u32, u64)>,
    /// Those that have a storage class.
    classes: BTreeMap<String, BTreeSet<u64>>,
    bytes: u128,
    /// What quotas count, by the quota's id, with what selects it.
    quotas: BTreeMap<String, (BTreeMap<String, String>, Count)>,
}

/// Quotas are not the volumes' own, and what they count is compared by [`VolumesBy::counts_are_exact`].
impl PartialEq for VolumesBy {
    fn eq(&self, other: &VolumesBy) -> bool {
        let all = |by: &VolumesBy| (by.attached, by.bytes, by.numbers.len());
        all(self) == all(other)
            && self.numbers == other.numbers
            && self.hosts == other.hosts
            && self.deleting == other.deleting
            && self.reverting == other.reverting
            && self.clones == other.clones
            && self.classes == other.classes
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Count {
    volumes: u64,
    bytes: u128,
}

impl Follows<String, Shared<VolumeRecord>> for VolumesBy {
    fn enter(&mut self, _: &String, volume: &Shared<VolumeRecord>) {
        let number = volume.number;
        self.numbers.insert(number, volume.clone());
        self.bytes += u128::from(volume.size_bytes);
        if let Some(attachment) = &volume.attachment {
            self.attached += 1;
            put(&mut self.hosts, &attachment.host, number);
        }
        if volume.deleting {
            self.deleting.insert(number);
        }
        if volume.revert.is_some() {
            self.reverting.insert(number);
        }
        if let Some(parent) = &volume.parent {
            self.clones.insert((parent.volume, parent.generation, number));
        }
        if !volume.storage_class.is_empty() {
            put(&mut self.classes, &volume.storage_class, number);
        }
        for (selector, count) in self.quotas.values_mut() {
            if selects(selector, &volume.labels) {
                count.volumes += 1;
                count.bytes += u128::from(volume.size_bytes);
            }
        }
    }

    fn leave(&mut self, _: &String, volume: &Shared<VolumeRecord>) {
        let number = volume.number;
        self.numbers.remove(&number);
        self.bytes -= u128::from(volume.size_bytes);
        if let Some(attachment) = &volume.attachment {
            self.attached -= 1;
            take(&mut self.hosts, &attachment.host, number);
        }
        self.deleting.remove(&number);
        self.reverting.remove(&number);
        if let Some(parent) = &volume.parent {
            self.clones.remove(&(parent.volume, parent.generation, number));
        }
        take(&mut self.classes, &volume.storage_class, number);
        for (selector, count) in self.quotas.values_mut() {
            if selects(selector, &volume.labels) {
                count.volumes -= 1;
                count.bytes -= u128::from(volume.size_bytes);
            }
        }
    }
}

fn put(sets: &mut BTreeMap<String, BTreeSet<u64>>, name: &str, number: u64) {
    match sets.get_mut(name) {
        Some(set) => drop(set.insert(number)),
        None => drop(sets.insert(name.to_owned(), BTreeSet::from([number]))),
    }
}

fn take(sets: &mut BTreeMap<String, BTreeSet<u64>>, name: &str, number: u64) {
    if let Some(set) = sets.get_mut(name) {
        set.remove(&number);
        if set.is_empty() {
            sets.remove(name);
        }
    }
}

impl VolumesBy {
    /// A volume by its number.
    pub(crate) fn number(&self, number: u64) -> Option<&Shared<VolumeRecord>> {
        self.numbers.get(&number)
    }

    fn all<'a>(
        &'a self,
        numbers: impl Iterator<Item = &'a u64>,
    ) -> impl Iterator<Item = &'a VolumeRecord> {
        numbers.map(|number| &**self.numbers.get(number).expect("an index names what there is"))
    }

    /// Those that are attached to a host.
    pub(crate) fn attached_to(&self, host: &str) -> impl Iterator<Item = &VolumeRecord> {
        self.all(self.hosts.get(host).into_iter().flatten())
    }

    /// The hosts to which volumes are attached, with how many.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = (&str, usize)> {
        self.hosts.iter().map(|(host, volumes)| (host.as_str(), volumes.len()))
    }

    /// How many are attached.
    pub(crate) fn attached_count(&self) -> usize {
        self.attached
    }

    /// The sizes of all together.
    pub(crate) fn provisioned_bytes(&self) -> u64 {
        u64::try_from(self.bytes).unwrap_or(u64::MAX)
    }

    /// Those that are being deleted.
    pub(crate) fn deleting(&self) -> impl Iterator<Item = &VolumeRecord> {
        self.all(self.deleting.iter())
    }

    /// Those that are being reverted.
    pub(crate) fn reverting(&self) -> impl Iterator<Item = &VolumeRecord> {
        self.all(self.reverting.iter())
    }

    /// All clones.
    pub(crate) fn clones(&self) -> impl Iterator<Item = &VolumeRecord> {
        self.all(self.clones.iter().map(|(_, _, number)| number))
    }

    /// The clones that hang on a volume, or on one of its snapshots.
    pub(crate) fn clones_of(
        &self,
        volume: u64,
        generation: Option<u32>,
    ) -> impl Iterator<Item = &VolumeRecord> {
        let (first, last) = (generation.unwrap_or(0), generation.unwrap_or(u32::MAX));
        let found = self.clones.range((volume, first, 0)..=(volume, last, u64::MAX));
        self.all(found.map(|(_, _, number)| number))
    }

    /// Those of a storage class.
    pub(crate) fn of_class(&self, class: &str) -> impl Iterator<Item = &VolumeRecord> {
        self.all(self.classes.get(class).into_iter().flatten())
    }

    /// What is used of a quota that is counted.
    pub(crate) fn used_of(&self, quota: &str) -> Option<Used> {
        let (_, Count { volumes, bytes }) = self.quotas.get(quota)?;
        Some(Used { volumes: *volumes, bytes: u64::try_from(*bytes).unwrap_or(u64::MAX) })
    }

    /// Counts for a quota from now on, and looks at all volumes for that once.
    pub(crate) fn count_for(&mut self, quota: &QuotaRecord) {
        let count = self.counted(&quota.selector);
        self.quotas.insert(quota.id.clone(), (quota.selector.clone(), count));
    }

    /// A quota is not there any more.
    pub(crate) fn count_no_more(&mut self, quota: &str) {
        self.quotas.remove(quota);
    }

    fn counted(&self, selector: &BTreeMap<String, String>) -> Count {
        let counted = self.numbers.values().filter(|v| selects(selector, &v.labels));
        counted.fold(Count::default(), |count, volume| Count {
            volumes: count.volumes + 1,
            bytes: count.bytes + u128::from(volume.size_bytes),
        })
    }

    /// Whether what is counted for quotas is what there is.
    pub(crate) fn counts_are_exact(&self) -> bool {
        self.quotas.values().all(|(selector, count)| self.counted(selector) == *count)
    }
}

/// What follows from the snapshots.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct SnapshotsBy {
    /// Those that have to be kept or dropped yet, by the volume's number and their generation.
    unsettled: BTreeSet<(u64, u32)>,
    /// Those of cuts: the cut, and the same.
    cuts: BTreeSet<(u64, u64, u32)>,
    /// Generations by the volume's number and the snapshot's name there.
    names: BTreeMap<u64, BTreeMap<String, u32>>,
}

impl Follows<(u64, u32), SnapshotRecord> for SnapshotsBy {
    fn enter(&mut self, key: &(u64, u32), snapshot: &SnapshotRecord) {
        if !snapshot.ready || snapshot.deleting {
            self.unsettled.insert(*key);
        }
        if snapshot.cut != 0 {
            self.cuts.insert((snapshot.cut, key.0, key.1));
        }
        self.names.entry(key.0).or_default().insert(snapshot.id.clone(), key.1);
    }

    fn leave(&mut self, key: &(u64, u32), snapshot: &SnapshotRecord) {
        self.unsettled.remove(key);
        self.cuts.remove(&(snapshot.cut, key.0, key.1));
        if let Some(names) = self.names.get_mut(&key.0) {
            names.remove(&snapshot.id);
            if names.is_empty() {
                self.names.remove(&key.0);
            }
        }
    }
}

impl SnapshotsBy {
    /// Those that have to be kept or dropped yet.
    pub(crate) fn unsettled(&self) -> impl Iterator<Item = &(u64, u32)> {
        self.unsettled.iter()
    }

    /// The generation of a volume's snapshot by its name.
    pub(crate) fn named(&self, volume: u64, id: &str) -> Option<u32> {
        self.names.get(&volume)?.get(id).copied()
    }

    /// How many snapshots a volume has.
    pub(crate) fn count(&self, volume: u64) -> usize {
        self.names.get(&volume).map_or(0, BTreeMap::len)
    }

    /// Those of a cut.
    pub(crate) fn of_cut(&self, cut: u64) -> impl Iterator<Item = (u64, u32)> {
        let found = self.cuts.range((cut, 0, 0)..=(cut, u64::MAX, u32::MAX));
        found.map(|(_, volume, generation)| (*volume, *generation))
    }
}
