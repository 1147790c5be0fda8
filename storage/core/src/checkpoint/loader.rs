//! Reading a checkpoint: every record is checked, and that none is missing.

use crate::consensus::Slot;
use crate::index::Page;
use crate::log::{DataLocation, Location};
use crate::planted::Planted;
use crate::replica::{PageKey, Replica};
use basalt_wire::disk::checkpoint::{
    EntryPlace, GroupManifest, Manifest, MetadataEntry, RUN_ENTRIES, Record,
};
use basalt_wire::ids::{GroupId, VolumeId};
use basalt_wire::membership::Membership;
use rustc_hash::FxHashSet;
use std::collections::BTreeMap;

/// What a checkpoint says of one group.
#[derive(Debug)]
pub struct GroupSnapshot {
    /// Its part of the manifest.
    pub manifest: GroupManifest,
    /// Its volumes.
    pub replica: Replica,
    /// Terms and places of its entries, from the manifest's first one on.
    pub entries: Vec<(u64, Slot)>,
    /// Its members as of then. Nothing of a group that was removed: only its hard state counts.
    pub members: Option<Membership>,
    /// Its commands from the manifest's first one on, if it is the metadata group.
    pub commands: Vec<MetadataEntry>,
}

/// A checkpoint that is whole.
#[derive(Debug)]
pub struct Snapshot {
    /// What it is of.
    pub manifest: Manifest,
    /// Its groups.
    pub groups: BTreeMap<GroupId, GroupSnapshot>,
}

struct Part {
    replica: Replica,
    volumes: u64,
    granules: u64,
    seen: FxHashSet<VolumeId>,
    /// Runs of entries, in order.
    runs: Vec<(u64, Vec<EntryPlace>)>,
    members: Option<Membership>,
}

/// Takes the records of a checkpoint in the order of their keys.
pub struct Loader {
    planted: Planted,
    /// Bytes of tables of pages that may be in memory, and those that are.
    index_bytes: u64,
    in_memory: u64,
    /// The page whose granules are being read.
    page: Option<(GroupId, PageKey)>,
    manifest: Option<Manifest>,
    parts: BTreeMap<GroupId, Part>,
    /// The index of the first command, and all of them.
    commands: (u64, Vec<MetadataEntry>),
    records: u64,
}

impl Default for Loader {
    fn default() -> Loader {
        Loader::new(u64::MAX, Planted::NONE)
    }
}

impl Loader {
    /// Nothing read yet. So many bytes of tables of pages stay in memory at most, but for pages that hold
    /// something for snapshots.
    pub fn new(index_bytes: u64, planted: Planted) -> Loader {
        Loader {
            planted,
            index_bytes,
            in_memory: 0,
            page: None,
            manifest: None,
            parts: BTreeMap::new(),
            commands: (1, Vec::new()),
            records: 0,
        }
    }

    /// The page whose granules were read is whole.
    fn end_page(&mut self) {
        let Some((group, page)) = self.page.take() else { return };
        let keep = self.in_memory + Page::TABLE_BYTES <= self.index_bytes;
        if self.part(group).replica.page_restored(page, keep) {
            self.in_memory += Page::TABLE_BYTES;
        }
    }

    /// Takes the next record. After an error the checkpoint can not be used.
    pub fn add(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let record = Record::decode(key, value).map_err(|e| e.to_string())?;
        self.records += 1;
        match record {
            Record::Manifest(manifest) => self.manifest = Some(manifest),
            Record::Members(group, members) => self.part(group).members = Some(members),
            Record::Command(index, entry) => {
                let (first, commands) = &mut self.commands;
                if commands.is_empty() {
                    *first = index.0;
                }
                let next = *first + commands.len() as u64;
                if index.0 != next {
                    return Err(format!("metadata command {next} is missing"));
                }
                commands.push(entry);
            }
            Record::Entries(group, run, entries) => {
                self.part(group).runs.push((run, entries));
            }
            Record::Granule(group, volume, chunk, number, granule) => {
                if self.page != Some((group, (volume, chunk))) {
                    self.end_page();
                    self.page = Some((group, (volume, chunk)));
                }
                // The manifest's key is before those of granules.
                // Pages that came from a peer hold blocks of several instants: they saw for certain only
                // entries behind all of these.
                let applied = self.manifest.as_ref().and_then(|manifest| manifest.whole(group));
                let part = self.part(group);
                part.granules += 1;
                let applied = applied.unwrap_or_default();
                part.replica.restore_granule(volume, (chunk, number), &granule, applied);
                part.seen.insert(volume);
            }
            Record::Volume(group, volume, record) => {
                let part = self.part(group);
                part.volumes += 1;
                part.seen.insert(volume);
                part.replica.restore_volume(volume, &record);
            }
        }
        Ok(())
    }

    fn part(&mut self, group: GroupId) -> &mut Part {
        let planted = self.planted;
        self.parts.entry(group).or_insert_with(|| Part {
            replica: Replica::new(planted),
            volumes: 0,
            granules: 0,
            seen: FxHashSet::default(),
            runs: Vec::new(),
            members: None,
        })
    }

    /// The checkpoint, or nothing if there is none.
    pub fn finish(mut self) -> Result<Option<Box<Snapshot>>, String> {
        if self.records == 0 {
            return Ok(None);
        }
        self.end_page();
        let manifest = self.manifest.take().ok_or("it has no manifest")?;
        let mut groups = BTreeMap::new();
        for group in &manifest.groups {
            self.part(group.group);
            let part = self.parts.remove(&group.group).expect("made just now");
            let commands = match group.group {
                GroupId::METADATA => std::mem::take(&mut self.commands),
                _ => (group.first.0, Vec::new()),
            };
            groups.insert(group.group, join(group, part, commands)?);
        }
        if let Some(group) = self.parts.keys().next() {
            return Err(format!(
                "it has records of group {group}, which its manifest does not name"
            ));
        }
        Ok(Some(Box::new(Snapshot { manifest, groups })))
    }
}

/// Checks that nothing of a group is missing.
fn join(
    group: &GroupManifest,
    part: Part,
    (first, commands): (u64, Vec<MetadataEntry>),
) -> Result<GroupSnapshot, String> {
    let Part { mut replica, volumes, granules, seen, runs, members } = part;
    let metadata = group.group == GroupId::METADATA;
    let commands_named = if metadata { group.applied.0 + 1 - group.first.0 } else { 0 };
    let entries = if metadata { Vec::new() } else { join_runs(group, &runs)? };
    let numbers = [
        ("volumes", volumes, group.volumes),
        ("volumes with granules", seen.len() as u64, group.volumes),
        ("granules", granules, group.granules),
        ("commands", commands.len() as u64, commands_named),
    ];
    for (what, found, named) in numbers {
        if found != named {
            let id = group.group;
            return Err(format!("group {id} has {found} {what}, its manifest says {named}"));
        }
    }
    if !commands.is_empty() && first != group.first.0 {
        let named = group.first;
        return Err(format!("its metadata commands begin at {first}, its manifest says {named}"));
    }
    if members.is_none() != group.gone {
        return Err(format!("group {} has no members, or is gone and has some", group.group));
    }
    let terms = || entries.iter().map(|e| e.0).chain(commands.iter().map(|c| c.term.0));
    if !terms().is_sorted() {
        return Err(format!("the terms of group {} are out of order", group.group));
    }
    if terms().next().is_some_and(|term| term < group.before.0) {
        return Err(format!("the terms of group {} begin too low", group.group));
    }
    replica.restored(group.applied).map_err(|e| format!("group {}: {e}", group.group))?;
    replica.note_ahead(group.ahead);
    Ok(GroupSnapshot { manifest: *group, replica, entries, members, commands })
}

/// The entries from the first one that is held to the last one applied. A run ends where the next one
/// begins, so its length tells where it begins.
fn join_runs(
    group: &GroupManifest,
    runs: &[(u64, Vec<EntryPlace>)],
) -> Result<Vec<(u64, Slot)>, String> {
    let (id, applied, first) = (group.group, group.applied.0, group.first.0);
    let mut entries: Vec<(u64, Slot)> = Vec::new();
    for (run, places) in runs {
        let end = run.saturating_add(1).saturating_mul(RUN_ENTRIES as u64).min(applied);
        let next = first + entries.len() as u64;
        let start = end.saturating_add(1).saturating_sub(places.len() as u64);
        if start <= run.saturating_mul(RUN_ENTRIES as u64) || start > next {
            return Err(format!("entries of group {id} from {next} on are missing"));
        }
        entries.extend(places.iter().skip((next - start) as usize).map(slot_of));
    }
    let next = first + entries.len() as u64;
    if next - 1 != applied {
        return Err(format!("entries of group {id} from {next} on are missing"));
    }
    Ok(entries)
}

fn slot_of(entry: &EntryPlace) -> (u64, Slot) {
    let slot = Slot {
        location: Location { segment: entry.segment, block: entry.block },
        blocks: entry.blocks,
        data_at: DataLocation {
            segment: entry.segment,
            block: entry.batch_block,
            record: entry.record,
        },
        placed: true,
        kind: entry.kind,
    };
    (entry.term.0, slot)
}
