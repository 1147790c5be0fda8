//! Lists and changes of volumes, as the API asks for them.

use crate::admin::id_of;
use crate::clones::complete;
use crate::daemon::Daemon;
use crate::services::classes::paths;
use crate::services::paging::{Page, filter_over, holds};
use crate::services::{self, id_in, unexpected};
use basalt_api::error;
use basalt_api::reflect::{copy_fields, dynamic, set_fields, typed};
use basalt_api::v1::{
    Consistency, ListVolumesRequest, ListVolumesResponse, UpdateVolumeRequest, Volume,
};
use basalt_meta::{
    MetaState, Op, Outcome, Refused, Shared, UpdateVolume, VOLUME_FIELDS, VolumeRecord,
};
use std::sync::Arc;
use tonic::Status;

/// The volume that a change left.
pub fn changed(outcome: Outcome) -> Result<Shared<VolumeRecord>, Status> {
    match outcome {
        Outcome::Volume(volume) => Ok(volume),
        other => Err(unexpected(&other)),
    }
}

/// The last part of a class's name; nothing of none.
pub fn class_of(name: &str) -> Result<String, Status> {
    match name {
        "" => Ok(String::new()),
        name => id_in("storageClasses", name).map(str::to_owned),
    }
}

/// Changes fields of a volume, or says what that would come to.
pub async fn update(
    daemon: &Arc<Daemon>,
    request: UpdateVolumeRequest,
) -> Result<Shared<VolumeRecord>, Status> {
    let wanted = request.volume.unwrap_or_default();
    let id = id_of(&wanted.name)?.to_owned();
    let fields =
        paths(request.update_mask.as_ref(), set_fields(&dynamic(&wanted)), &VOLUME_FIELDS)?;
    let (wanted, fields) = match fields.iter().any(|path| path.contains('.')) {
        true => merged(daemon, &id, wanted, &fields).await?,
        false => (wanted, fields),
    };
    let op = Op::UpdateVolume(UpdateVolume {
        id,
        etag: wanted.etag,
        fields,
        labels: wanted.labels,
        qos: wanted.qos,
        storage_class: class_of(&wanted.storage_class)?,
        size_bytes: wanted.size_bytes,
        failover: wanted.failover,
    });
    changed(match request.validate_only {
        true => services::rehearse(daemon, op).await?,
        false => services::change(daemon, &request.request_id, op).await?,
    })
}

/// A volume as it is to be if parts of its fields change; the fields that this makes change as a whole, and an
/// etag that
/// keeps another change in between from being undone.
async fn merged(
    daemon: &Arc<Daemon>,
    id: &str,
    wanted: Volume,
    paths: &[String],
) -> Result<(Volume, Vec<String>), Status> {
    let metadata = services::linearized(daemon).await?;
    let known = metadata.look(|state| state.volume(id).map(|known| complete(state, known)));
    let known = known.ok_or_else(|| services::status_of(Refused::volume_not_found(id)))?;
    let mut merged = dynamic(&known);
    copy_fields(&dynamic(&wanted), &mut merged, paths)
        .map_err(|problem| error::invalid("update_mask", problem))?;
    let merged: Volume = typed(&merged).map_err(|problem| error::invalid("volume", problem))?;
    let etag = if wanted.etag.is_empty() { known.etag } else { wanted.etag };
    let mut fields: Vec<String> =
        paths.iter().map(|path| path.split('.').next().unwrap_or_default().to_owned()).collect();
    fields.sort();
    fields.dedup();
    Ok((Volume { etag, ..merged }, fields))
}

/// The orders that a list of volumes can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Name,
    Size,
    Created,
}

/// An order, and whether it is turned round.
fn order_of(text: &str) -> Result<(Order, bool), Status> {
    let mut words = text.split_whitespace();
    let order = match words.next() {
        None | Some("name") => Order::Name,
        Some("size_bytes") => Order::Size,
        Some("create_time_ms") => Order::Created,
        Some(_) => return Err(bad_order(text)),
    };
    match (words.next(), words.next()) {
        (None | Some("asc"), None) => Ok((order, false)),
        (Some("desc"), None) => Ok((order, true)),
        _ => Err(bad_order(text)),
    }
}

fn bad_order(text: &str) -> Status {
    let message = format!(
        "'{}' is no order; write name, size_bytes or create_time_ms, and desc behind it or not",
        text.escape_debug()
    );
    error::invalid("order_by", message)
}

/// Where a volume stands in an order: twenty digits, so that texts compare as numbers do, and its name.
fn place(order: Order, volume: &VolumeRecord) -> String {
    let number = match order {
        Order::Name => 0,
        Order::Size => volume.size_bytes,
        Order::Created => volume.create_time_ms.max(0) as u64,
    };
    format!("{number:020}{}", volume.id)
}

/// A page of the volumes.
pub async fn list(
    daemon: &Arc<Daemon>,
    request: ListVolumesRequest,
) -> Result<ListVolumesResponse, Status> {
    let arguments = [request.host.as_str(), &request.filter, &request.order_by];
    let page = Page::asked(request.page_size, &request.page_token, &arguments)?;
    let filter = filter_over::<Volume>(&request.filter)?;
    let order = order_of(&request.order_by)?;
    let metadata = daemon.engine()?.metadata.clone();
    if request.consistency() != Consistency::Eventual {
        metadata.barrier().await?;
    }
    let host = request.host.as_str();
    let asked = |state: &MetaState, volume: &VolumeRecord| {
        let here = volume.attachment.as_ref().is_some_and(|a| a.host == host);
        (host.is_empty() || here) && (filter.is_empty() || holds(&filter, &complete(state, volume)))
    };
    Ok(metadata.look(|state| {
        let mut found: Vec<(String, &VolumeRecord)> = match order {
            // As they are kept: no more of them are looked at than are shown.
            (Order::Name, false) => {
                let after = page.after.as_deref().and_then(|at| at.get(20..)).unwrap_or("");
                let behind = state.volumes_after(after).filter(|v| asked(state, v));
                behind.take(page.size + 1).map(|v| (place(Order::Name, v), v)).collect()
            }
            (by, descending) => sorted(state, (by, descending), &page, asked),
        };
        let next_page_token = page.cut(&mut found, |(place, _)| place.clone());
        let volumes = found.into_iter().map(|(_, volume)| complete(state, volume)).collect();
        ListVolumesResponse { volumes, next_page_token, revision: state.applied() }
    }))
}

fn sorted<'a>(
    state: &'a MetaState,
    (by, descending): (Order, bool),
    page: &Page,
    asked: impl Fn(&MetaState, &VolumeRecord) -> bool,
) -> Vec<(String, &'a VolumeRecord)> {
    let all = state.volumes().map(|volume| (place(by, volume), volume));
    let behind = |place: &str| match page.after.as_deref() {
        None => true,
        Some(after) if descending => place < after,
        Some(after) => place > after,
    };
    let mut all: Vec<(String, &VolumeRecord)> =
        all.filter(|(place, v)| behind(place) && asked(state, v)).collect();
    all.sort_by(|(a, _), (b, _)| a.cmp(b));
    if descending {
        all.reverse();
    }
    all.truncate(page.size + 1);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read() {
        assert_eq!(order_of("").expect("the usual one"), (Order::Name, false));
        assert_eq!(order_of("size_bytes desc").expect("one"), (Order::Size, true));
        assert_eq!(order_of(" create_time_ms  asc ").expect("one"), (Order::Created, false));
        for bad in ["epoch", "name up", "name desc desc", "name,size_bytes"] {
            assert!(order_of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn places_compare_as_sizes_do() {
        let volume = |id: &str, size_bytes| VolumeRecord {
            id: id.to_owned(),
            size_bytes,
            ..VolumeRecord::default()
        };
        let places: Vec<String> = [volume("b", 4096), volume("a", 8192), volume("c", 1 << 50)]
            .iter()
            .map(|v| place(Order::Size, v))
            .collect();
        assert!(places.is_sorted(), "{places:?}");
    }
}
