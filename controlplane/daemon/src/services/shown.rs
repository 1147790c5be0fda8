//! Records as the API shows them.

use crate::clones::complete;
use crate::snapshots;
use basalt_api::v1::{
    self, Event, NodeRecord, OperationMetadata, Quota, Resource, StorageClass, WatchedOperation,
    resource,
};
use basalt_meta::feed::{Key, Kind};
use basalt_meta::operation_record::Verb;
use basalt_meta::{
    ClassRecord, EventRecord, MetaState, OperationRecord, QuotaRecord, etag_of_revision,
    groups_named, layout,
};
use prost_types::Timestamp;

/// The collections, in the order in which a watch tells them.
pub const COLLECTIONS: [(&str, Kind); 7] = [
    ("storageClasses", Kind::Class),
    ("quotas", Kind::Quota),
    ("nodes", Kind::Node),
    ("volumes", Kind::Volume),
    ("snapshots", Kind::Snapshot),
    ("operations", Kind::Operation),
    ("events", Kind::Event),
];

/// The name of a resource.
pub fn name_of(key: &Key) -> String {
    let collection = match key.kind {
        // A snapshot's name begins with its volume's.
        Kind::Snapshot => "volumes",
        kind => COLLECTIONS.iter().find(|(_, k)| *k == kind).map_or("", |(name, _)| *name),
    };
    format!("{collection}/{}", key.id)
}

/// A moment from milliseconds since 1970; none from 0.
pub fn moment(ms: i64) -> Option<Timestamp> {
    let nanos = (ms.rem_euclid(1000) * 1_000_000) as i32;
    (ms != 0).then_some(Timestamp { seconds: ms.div_euclid(1000), nanos })
}

/// A storage class.
pub fn class(state: &MetaState, record: &ClassRecord) -> StorageClass {
    StorageClass {
        name: format!("storageClasses/{}", record.id),
        description: record.description.clone(),
        labels: record.labels.clone(),
        qos: record.qos,
        is_default: record.is_default,
        volume_count: state.volumes_of_class(&record.id) as u32,
        create_time: moment(record.create_time_ms),
        update_time: moment(record.update_time_ms),
        etag: etag_of_revision(record.revision),
        revision: record.revision,
        encrypted: record.encrypted,
    }
}

/// The record of a class as a caller wants it.
pub fn class_record(id: &str, class: StorageClass) -> ClassRecord {
    ClassRecord {
        id: id.to_owned(),
        description: class.description,
        labels: class.labels,
        qos: class.qos,
        is_default: class.is_default,
        encrypted: class.encrypted,
        ..ClassRecord::default()
    }
}

/// A quota.
pub fn quota(state: &MetaState, record: &QuotaRecord) -> Quota {
    let used = state.used_of(record);
    Quota {
        name: format!("quotas/{}", record.id),
        description: record.description.clone(),
        labels: record.labels.clone(),
        selector: record.selector.clone(),
        max_volumes: record.max_volumes,
        max_bytes: record.max_bytes,
        used_volumes: used.volumes as u32,
        used_bytes: used.bytes,
        max_iops_min: record.max_iops_min,
        used_iops_min: state.iops_min_of(record),
        create_time: moment(record.create_time_ms),
        update_time: moment(record.update_time_ms),
        etag: etag_of_revision(record.revision),
        revision: record.revision,
    }
}

/// The record of a quota as a caller wants it.
pub fn quota_record(id: &str, quota: Quota) -> QuotaRecord {
    QuotaRecord {
        id: id.to_owned(),
        description: quota.description,
        labels: quota.labels,
        selector: quota.selector,
        max_volumes: quota.max_volumes,
        max_bytes: quota.max_bytes,
        max_iops_min: quota.max_iops_min,
        ..QuotaRecord::default()
    }
}

/// An event.
pub fn event(record: &EventRecord) -> Event {
    Event {
        name: format!("events/{}", record.number),
        create_time: moment(record.time_ms),
        severity: record.severity as i32,
        reason: record.reason.clone(),
        target: record.target.clone(),
        message: record.message.clone(),
        revision: record.revision,
    }
}

/// A member, as its record has it.
pub fn node(state: &MetaState, name: &str) -> Option<NodeRecord> {
    let spec = state.cluster()?;
    let member = spec.members.iter().find(|m| m.name == name)?;
    let placement = |group: u32| layout::placement_of(spec, group);
    let count = |holds: &dyn Fn(&v1::Placement) -> bool| {
        (0..spec.group_count).filter(|group| holds(&placement(*group))).count() as u32
    };
    Some(NodeRecord {
        name: format!("nodes/{}", member.name),
        id: member.node,
        grpc_address: member.grpc_address.clone(),
        data_address: member.data_address.clone(),
        nbd_address: member.nbd_address.clone(),
        draining: member.draining,
        leaving: member.leaving,
        groups_placed: count(&|p| p.voters.contains(&member.node)),
        groups_going: count(&|p| p.former.contains(&member.node)),
        revision: state.member_revision(name),
    })
}

/// An operation.
pub fn operation(state: &MetaState, record: &OperationRecord) -> WatchedOperation {
    let (done_units, total_units) = progress(state, record);
    let verb = record.verb().as_str_name().trim_start_matches("VERB_").to_ascii_lowercase();
    let metadata = OperationMetadata {
        target: record.target.clone(),
        verb,
        create_time: moment(record.create_time_ms),
        end_time: moment(record.end_time_ms),
        done_units,
        total_units,
        sentence: sentence(state, record),
        revision: record.revision,
    };
    WatchedOperation {
        name: format!("operations/{}", record.number),
        done: record.end_time_ms != 0,
        metadata: Some(metadata),
    }
}

fn progress(state: &MetaState, record: &OperationRecord) -> (u64, u64) {
    match (record.verb(), state.cluster()) {
        (Verb::Drain, Some(spec)) if record.end_time_ms == 0 => {
            let left = groups_named(spec, record.node) as u64;
            let total = u64::from(spec.group_count);
            (total.saturating_sub(left), total)
        }
        _ => (0, 0),
    }
}

/// What an operation waits for, or came to.
fn sentence(state: &MetaState, record: &OperationRecord) -> String {
    match (record.end_time_ms != 0, record.cancelled) {
        (true, true) => return "called off, or what it was about is gone".to_owned(),
        (true, false) => return "done".to_owned(),
        _ => {}
    }
    let volume = state.volume_by_number(record.volume);
    let whole_volume = record.generation == u32::MAX && record.cut == 0 && record.node == 0;
    match (record.verb(), whole_volume) {
        (Verb::Create, true) => "waits until every group has begun the clone".to_owned(),
        (Verb::Create, false) => "waits until every group has frozen what is kept".to_owned(),
        (Verb::Delete, _) if volume.is_some_and(|v| state.is_held_by_clones(v)) => {
            "waits for clones that are being deleted too".to_owned()
        }
        (Verb::Delete, _) => "its blocks are being given back".to_owned(),
        (Verb::Flatten, _) => {
            "copies what it shares with the snapshot that it is a clone of".to_owned()
        }
        (Verb::Revert, _) => "waits until every group has gone back to the snapshot".to_owned(),
        (Verb::Drain, _) => match state.cluster().map_or(0, |spec| groups_named(spec, record.node))
        {
            1 => "1 group is still on it or on its way".to_owned(),
            left => format!("{left} groups are still on it or on their way"),
        },
        (Verb::Remove, _) => "waits until it has left the metadata group".to_owned(),
        _ => String::new(),
    }
}

/// A resource as it is; nothing if there is none.
pub fn resource(state: &MetaState, key: &Key) -> Option<Resource> {
    use resource::Resource as Of;
    let number = || key.id.parse().ok();
    let found = match key.kind {
        Kind::Volume => Of::Volume(complete(state, state.volume(&key.id)?)),
        Kind::Snapshot => {
            let (volume, id) = key.id.split_once("/snapshots/")?;
            let number = state.volume(volume)?.number;
            Of::Snapshot(snapshots::shown(state.snapshot(number, id)?))
        }
        Kind::Class => Of::StorageClass(class(state, state.class(&key.id)?)),
        Kind::Quota => Of::Quota(quota(state, state.quota(&key.id)?)),
        Kind::Node => Of::Node(node(state, &key.id)?),
        Kind::Event => Of::Event(event(state.event(number()?)?)),
        Kind::Operation => Of::Operation(operation(state, state.operation(number()?)?)),
    };
    Some(Resource { resource: Some(found) })
}

/// All resources of a kind, in the order of their names or numbers.
pub fn keys(state: &MetaState, kind: Kind) -> Vec<Key> {
    let key = |id: String| Key { kind, id };
    match kind {
        Kind::Volume => state.volumes().map(|v| key(v.id.clone())).collect(),
        Kind::Snapshot => state
            .volumes()
            .flat_map(|v| state.snapshots_after(v.number, None))
            .map(|s| key(format!("{}/snapshots/{}", s.volume_id, s.id)))
            .collect(),
        Kind::Class => state.classes().map(|c| key(c.id.clone())).collect(),
        Kind::Quota => state.quotas().map(|q| key(q.id.clone())).collect(),
        Kind::Node => {
            let members = state.cluster().into_iter().flat_map(|spec| &spec.members);
            members.map(|m| key(m.name.clone())).collect()
        }
        Kind::Event => state.events().map(|e| key(e.number.to_string())).collect(),
        Kind::Operation => state.operations().map(|o| key(o.number.to_string())).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_exact() {
        assert_eq!(moment(0), None);
        assert_eq!(moment(1_500), Some(Timestamp { seconds: 1, nanos: 500_000_000 }));
        assert_eq!(moment(-1), Some(Timestamp { seconds: -1, nanos: 999_000_000 }));
    }
}
