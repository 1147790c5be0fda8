//! Documents that say what resources are to be.
//!
//! What is to be done for a document follows from the records as they are and the document alone. A plan does it
//! to a copy
//! of the state, so that it says exactly what applying the same documents then would do.

use super::classes::{self, paths};
use super::{linearized, quotas, shown};
use crate::access::permit;
use crate::clones::complete;
use crate::daemon::Daemon;
use crate::snapshots;
use crate::volumes::class_of;
use basalt_api::error;
use basalt_api::reflect::{dynamic, set_fields};
use basalt_api::v1::applied::Action;
use basalt_api::v1::resource::Resource as Of;
use basalt_api::v1::{
    Applied, ApplyRequest, ApplyResponse, ErrorReason, FieldChange, Quota, Resource, Snapshot,
    StorageClass, Volume,
};
use basalt_meta::{
    CloneSource, CreateSnapshot, CreateVolume, MetaState, Op, PutClass, PutQuota, UpdateVolume,
    VOLUME_FIELDS, etag_of,
};
use basalt_security::Principal;
use prost::{Message, Name};
use serde_json::Value;
use std::sync::Arc;
use tonic::Status;

/// The most documents of one call.
const DOCUMENTS_MAX: usize = 1000;

/// What is to be done for a document.
struct Step {
    name: String,
    action: Action,
    /// Nothing if it is so already.
    op: Option<Op>,
    /// The fields that the document is about.
    paths: Vec<String>,
}

/// Applies documents, or says what applying them would do.
///
/// # Errors
/// If there are too many, or no leader can be reached. What is wrong with one document is told with it.
pub async fn apply(
    daemon: &Arc<Daemon>,
    who: &Principal,
    request: ApplyRequest,
) -> Result<ApplyResponse, Status> {
    let count = request.resources.len();
    if count > DOCUMENTS_MAX {
        let message =
            format!("{count} documents are more than {DOCUMENTS_MAX}; apply them in parts");
        return Err(error::invalid("resources", message));
    }
    let metadata = linearized(daemon).await?;
    let mut rehearsed = request.plan.then(|| metadata.look(Clone::clone));
    let mut applied = Vec::with_capacity(count);
    for (number, document) in request.resources.iter().enumerate() {
        let id = match request.request_id.as_str() {
            "" => String::new(),
            id => format!("{id}/{number}"),
        };
        let one = match (permitted(who, document), &mut rehearsed) {
            (Err(denied), _) => Err(denied),
            (Ok(()), Some(state)) => plan_one(state, document),
            (Ok(()), None) => apply_one(daemon, &id, document).await,
        };
        applied.push(one.unwrap_or_else(|status| refused(document, &status)));
    }
    Ok(ApplyResponse { applied })
}

/// Whether the caller may do one by one what the document says.
fn permitted(who: &Principal, document: &Resource) -> Result<(), Status> {
    let methods: &[&str] = match &document.resource {
        Some(Of::Volume(_)) => &["basalt.v1.Admin/CreateVolume", "basalt.v1.Admin/UpdateVolume"],
        Some(Of::Snapshot(_)) => &["basalt.v1.Admin/CreateSnapshot"],
        Some(Of::StorageClass(_)) => &["basalt.v1.StorageClasses/UpdateStorageClass"],
        Some(Of::Quota(_)) => &["basalt.v1.Quotas/UpdateQuota"],
        // It is refused as what can not be applied.
        _ => &[],
    };
    methods.iter().try_for_each(|method| permit(who, method))
}

fn plan_one(state: &mut MetaState, document: &Resource) -> Result<Applied, Status> {
    let step = derive(state, document)?;
    let before = values(state, &step);
    if let Some(op) = step.op.clone() {
        super::accepted(crate::metadata::rehearse(state, op))?;
    }
    Ok(told(&step, &before, &values(state, &step)))
}

async fn apply_one(
    daemon: &Arc<Daemon>,
    request_id: &str,
    document: &Resource,
) -> Result<Applied, Status> {
    let metadata = daemon.engine()?.metadata.clone();
    let (step, before) = metadata.look(|state| {
        let step = derive(state, document)?;
        let before = values(state, &step);
        Ok::<_, Status>((step, before))
    })?;
    if let Some(op) = step.op.clone() {
        super::change(daemon, request_id, op).await?;
    }
    Ok(metadata.look(|state| told(&step, &before, &values(state, &step))))
}

fn refused(document: &Resource, status: &Status) -> Applied {
    let reason = error::reason_of(status).unwrap_or(ErrorReason::Unspecified);
    let reason = reason.as_str_name().trim_start_matches("ERROR_REASON_").to_owned();
    Applied {
        name: name_in(document),
        action: Action::Refused.into(),
        changes: Vec::new(),
        problem: status.message().to_owned(),
        reason,
    }
}

fn name_in(document: &Resource) -> String {
    match &document.resource {
        Some(Of::Volume(volume)) => volume.name.clone(),
        Some(Of::Snapshot(snapshot)) => snapshot.name.clone(),
        Some(Of::StorageClass(class)) => class.name.clone(),
        Some(Of::Quota(quota)) => quota.name.clone(),
        _ => String::new(),
    }
}

/// What is to be done for a document.
fn derive(state: &MetaState, document: &Resource) -> Result<Step, Status> {
    match &document.resource {
        Some(Of::Volume(volume)) => derive_volume(state, volume),
        Some(Of::Snapshot(snapshot)) => derive_snapshot(state, snapshot),
        Some(Of::StorageClass(class)) => derive_class(state, class),
        Some(Of::Quota(quota)) => derive_quota(state, quota),
        _ => {
            let message = "only volumes, snapshots, storage classes and quotas can be applied";
            Err(error::invalid("resources", message))
        }
    }
}

fn derive_volume(state: &MetaState, wanted: &Volume) -> Result<Step, Status> {
    let id = super::id_in("volumes", &wanted.name)?;
    let paths = paths(None, set_fields(&dynamic(wanted)), &VOLUME_FIELDS)?;
    let name = wanted.name.clone();
    let storage_class = class_of(&wanted.storage_class)?;
    let Some(known) = state.volume(id) else {
        let source = crate::admin::source_of(&wanted.source_snapshot)?;
        let op = Op::CreateVolume(CreateVolume {
            id: id.to_owned(),
            size_bytes: wanted.size_bytes,
            labels: wanted.labels.clone(),
            source,
            storage_class,
            qos: wanted.qos,
            failover: wanted.failover,
            encrypted: wanted.encrypted,
        });
        return Ok(Step { name, action: Action::Create, op: Some(op), paths });
    };
    check_source(known, &wanted.source_snapshot)?;
    if wanted.encrypted && known.encryption.is_none() {
        let message = format!("the volume '{id}' is not encrypted, and can not be made so");
        return Err(error::status(ErrorReason::EncryptionDiffers, message, &[]));
    }
    let etag = if wanted.etag.is_empty() { etag_of(known) } else { wanted.etag.clone() };
    let update = UpdateVolume {
        id: id.to_owned(),
        etag,
        fields: paths.clone(),
        labels: wanted.labels.clone(),
        qos: wanted.qos,
        storage_class,
        size_bytes: wanted.size_bytes,
        failover: wanted.failover,
    };
    let is_so = |path: &String| match path.as_str() {
        "labels" => known.labels == update.labels,
        "qos" => known.qos == update.qos,
        "storage_class" => known.storage_class == update.storage_class,
        "size_bytes" => known.size_bytes == update.size_bytes,
        _ => false,
    };
    // An etag of another moment is refused even if nothing would change.
    let same = update.etag == etag_of(known) && paths.iter().all(is_so);
    let op = (!same).then_some(Op::UpdateVolume(update));
    Ok(Step { name, action: action_of(op.as_ref()), op, paths })
}

fn action_of(op: Option<&Op>) -> Action {
    if op.is_some() { Action::Update } else { Action::Unchanged }
}

/// A document that names another source than the volume has says something that can not be brought about.
fn check_source(known: &basalt_meta::VolumeRecord, wanted: &str) -> Result<(), Status> {
    let Some(CloneSource { volume, snapshot }) = crate::admin::source_of(wanted)? else {
        return Ok(());
    };
    // One that was flattened meanwhile is what it was to be, and more.
    let other = known
        .parent
        .as_ref()
        .is_some_and(|p| (&p.volume_id, &p.snapshot_id) != (&volume, &snapshot));
    if !other {
        return Ok(());
    }
    let message = format!("the volume '{}' is a clone of another snapshot than {wanted}", known.id);
    Err(error::invalid("source_snapshot", message))
}

fn derive_snapshot(state: &MetaState, wanted: &Snapshot) -> Result<Step, Status> {
    let (volume, id) = snapshots::ids_of(&wanted.name)?;
    let number = snapshots::volume_of(state, volume)?.number;
    let known = state.snapshot(number, id);
    let op = known.is_none().then(|| {
        Op::CreateSnapshot(CreateSnapshot {
            volume: volume.to_owned(),
            id: id.to_owned(),
            labels: wanted.labels.clone(),
        })
    });
    let action = if op.is_some() { Action::Create } else { Action::Unchanged };
    Ok(Step { name: wanted.name.clone(), action, op, paths: vec!["labels".to_owned()] })
}

fn derive_class(state: &MetaState, wanted: &StorageClass) -> Result<Step, Status> {
    let id = super::id_in("storageClasses", &wanted.name)?;
    let paths = paths(None, set_fields(&dynamic(wanted)), &classes::FIELDS)?;
    let name = wanted.name.clone();
    let Some(known) = state.class(id) else {
        let class = Some(shown::class_record(id, wanted.clone()));
        let op = Some(Op::PutClass(PutClass { class, create: true, etag: String::new() }));
        return Ok(Step { name, action: Action::Create, op, paths });
    };
    let before = shown::class(state, known);
    if wanted.encrypted && !known.encrypted {
        let message =
            format!("volumes of the storage class '{id}' are not encrypted; make another class");
        return Err(error::status(ErrorReason::EncryptionDiffers, message, &[]));
    }
    let (_, after) = classes::merged(state, wanted, &paths)?;
    let etag = if wanted.etag.is_empty() { before.etag.clone() } else { wanted.etag.clone() };
    let op = (after != before || etag != before.etag).then(|| {
        let class = Some(shown::class_record(id, after));
        Op::PutClass(PutClass { class, create: false, etag })
    });
    Ok(Step { name, action: action_of(op.as_ref()), op, paths })
}

fn derive_quota(state: &MetaState, wanted: &Quota) -> Result<Step, Status> {
    let id = super::id_in("quotas", &wanted.name)?;
    let paths = paths(None, set_fields(&dynamic(wanted)), &quotas::FIELDS)?;
    let name = wanted.name.clone();
    let Some(known) = state.quota(id) else {
        let quota = Some(shown::quota_record(id, wanted.clone()));
        let op = Some(Op::PutQuota(PutQuota { quota, create: true, etag: String::new() }));
        return Ok(Step { name, action: Action::Create, op, paths });
    };
    let before = shown::quota(state, known);
    let (_, after) = quotas::merged(state, wanted, &paths)?;
    let etag = if wanted.etag.is_empty() { before.etag.clone() } else { wanted.etag.clone() };
    let op = (after != before || etag != before.etag).then(|| {
        let quota = Some(shown::quota_record(id, after));
        Op::PutQuota(PutQuota { quota, create: false, etag })
    });
    Ok(Step { name, action: action_of(op.as_ref()), op, paths })
}

/// The fields that a step is about, as they are.
fn values(state: &MetaState, step: &Step) -> Value {
    fn json<M: Message + Name>(message: &M) -> Value {
        serde_json::to_value(dynamic(message)).unwrap_or_default()
    }
    let id = |collection: &str| super::id_in(collection, &step.name).ok();
    if let Some(volume) = id("volumes").and_then(|id| state.volume(id)) {
        return json(&complete(state, volume));
    }
    if let Ok((volume, id)) = snapshots::ids_of(&step.name) {
        let number = state.volume(volume).map_or(0, |volume| volume.number);
        return state.snapshot(number, id).map_or(Value::Null, |s| json(&snapshots::shown(s)));
    }
    if let Some(class) = id("storageClasses").and_then(|id| state.class(id)) {
        return json(&shown::class(state, class));
    }
    if let Some(quota) = id("quotas").and_then(|id| state.quota(id)) {
        return json(&shown::quota(state, quota));
    }
    Value::Null
}

/// What became of a document.
fn told(step: &Step, before: &Value, after: &Value) -> Applied {
    let mut changes = Vec::new();
    for path in &step.paths {
        let key = camel(path);
        changes_between(path, before.get(&key), after.get(&key), &mut changes);
    }
    Applied {
        name: step.name.clone(),
        action: step.action.into(),
        changes,
        problem: String::new(),
        reason: String::new(),
    }
}

/// The name of a field in JSON.
fn camel(path: &str) -> String {
    let mut words = path.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |mut name, word| {
        let mut letters = word.chars();
        name.extend(letters.next().map(|letter| letter.to_ascii_uppercase()));
        name.push_str(letters.as_str());
        name
    })
}

fn changes_between(
    path: &str,
    before: Option<&Value>,
    after: Option<&Value>,
    into: &mut Vec<FieldChange>,
) {
    if before == after {
        return;
    }
    let keys = |value: Option<&Value>| -> Option<Vec<String>> {
        value.map_or(Some(Vec::new()), |v| Some(v.as_object()?.keys().cloned().collect()))
    };
    if let (Some(mut all), Some(more)) = (keys(before), keys(after)) {
        all.extend(more);
        all.sort();
        all.dedup();
        for key in all {
            let part = |value: Option<&'_ Value>| value.and_then(|v| v.get(&key)).cloned();
            changes_between(
                &format!("{path}.{key}"),
                part(before).as_ref(),
                part(after).as_ref(),
                into,
            );
        }
        return;
    }
    let text = |value: Option<&Value>| match value {
        None => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    };
    into.push(FieldChange { path: path.to_owned(), before: text(before), after: text(after) });
}

#[cfg(test)]
mod tests {
    use super::*;
    use basalt_api::v1::Qos;

    fn volume(size_bytes: u64, labels: &[(&str, &str)]) -> Resource {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let name = "volumes/demo".to_owned();
        let volume = Volume { name, size_bytes, labels, ..Volume::default() };
        Resource { resource: Some(Of::Volume(volume)) }
    }

    fn class(iops_max: u64) -> Resource {
        let qos = Some(Qos { iops_max, ..Qos::default() });
        let name = "storageClasses/fast".to_owned();
        let class = StorageClass { name, qos, ..StorageClass::default() };
        Resource { resource: Some(Of::StorageClass(class)) }
    }

    fn planned(state: &mut MetaState, document: &Resource) -> (Action, Vec<String>) {
        let applied = plan_one(state, document).unwrap_or_else(|status| refused(document, &status));
        let changes = applied.changes.iter();
        let changes = changes.map(|c| format!("{}: {} -> {}", c.path, c.before, c.after)).collect();
        (applied.action(), changes)
    }

    #[test]
    fn a_document_creates_changes_and_then_changes_nothing() {
        let mut state = MetaState::default();
        let (action, changes) = planned(&mut state, &volume(1 << 30, &[("env", "prod")]));
        assert_eq!(action, Action::Create);
        assert_eq!(changes, ["size_bytes:  -> 1073741824", "labels.env:  -> prod"]);
        let same = volume(1 << 30, &[("env", "prod")]);
        assert_eq!(planned(&mut state, &same), (Action::Unchanged, vec![]));
        let other = volume(2 << 30, &[("env", "dev")]);
        let (action, changes) = planned(&mut state, &other);
        assert_eq!(action, Action::Update);
        assert_eq!(changes, ["size_bytes: 1073741824 -> 2147483648", "labels.env: prod -> dev"]);
        // What is not set stays.
        assert_eq!(planned(&mut state, &volume(0, &[])), (Action::Unchanged, vec![]));
        assert_eq!(planned(&mut state, &volume(4096, &[])).0, Action::Refused);
    }

    #[test]
    fn the_documents_of_one_plan_build_on_each_other() {
        let mut state = MetaState::default();
        let Resource { resource: Some(Of::Volume(demo)) } = volume(1 << 30, &[]) else {
            panic!("it is one")
        };
        let demo = Volume { storage_class: "storageClasses/fast".to_owned(), ..demo };
        let demo = Resource { resource: Some(Of::Volume(demo)) };
        assert_eq!(planned(&mut state.clone(), &demo).0, Action::Refused);
        assert_eq!(planned(&mut state, &class(100)).0, Action::Create);
        assert_eq!(planned(&mut state, &demo).0, Action::Create);
        let (action, changes) = planned(&mut state, &class(200));
        assert_eq!((action, changes), (Action::Update, vec!["qos.iopsMax: 100 -> 200".to_owned()]));
    }

    #[test]
    fn names_of_fields_become_those_of_json() {
        assert_eq!(
            ["labels", "size_bytes", "is_default"].map(camel),
            ["labels", "sizeBytes", "isDefault"]
        );
    }
}
