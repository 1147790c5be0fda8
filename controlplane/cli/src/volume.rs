//! `basalt volume`.

use crate::options::{Change, NewSize, Options, QosArgs, VolumeCommand, label_map};
use crate::output::{self, Progress};
use crate::{Failure, call, class, clones, healing, snapshot};
use basalt_api::dial::{Cluster, plain};
use basalt_api::error::{self, reason_of};
use basalt_api::random::request_id;
use basalt_api::size::show;
use basalt_api::v1::{
    AttachVolumeRequest, CreateVolumeRequest, DeleteVolumeRequest, DetachVolumeRequest,
    ErrorReason, Failover, GetClusterRequest, GetVolumeRequest, ListVolumesRequest, MemberState,
    Qos, ResizeVolumeRequest, RevertVolumeRequest, UpdateVolumeRequest, Volume, volume,
};
use prost_types::FieldMask;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tonic::{Code, Status};

const POLL: Duration = Duration::from_millis(100);
const PAGE: i32 = 500;

pub(crate) async fn run(
    options: &Options,
    cluster: &Cluster,
    command: &VolumeCommand,
) -> Result<(), Failure> {
    match command {
        VolumeCommand::Create {
            name,
            size,
            from,
            labels,
            class,
            encrypted,
            qos,
            failover,
            dry_run,
            change,
        } => {
            let request = CreateVolumeRequest {
                volume_id: name.clone(),
                size_bytes: size.unwrap_or_default(),
                labels: label_map(labels),
                request_id: change.id(),
                source_snapshot: from.as_ref().map_or_else(String::new, snapshot::full),
                storage_class: class.as_deref().map_or_else(String::new, class::path),
                qos: Some(qos.given().0).filter(|qos| *qos != Qos::default()),
                failover: failover.value().into(),
                validate_only: *dry_run,
                encrypted: *encrypted,
            };
            let created = call!(cluster, create_volume, request)?;
            if *dry_run {
                return output::write(options.output, &document(&created), || {
                    format!("volume {name} would be created: {}", show(created.size_bytes))
                });
            }
            let volume = clones::wait_ready(options, cluster, name, created).await?;
            output::write(options.output, &document(&volume), || {
                let of = clones::snapshot_of(&volume);
                let of = of.map_or_else(String::new, |of| format!(", a clone of {of}"));
                let encrypted = if volume.encrypted { ", encrypted" } else { "" };
                format!("volume {name} created: {}{of}{encrypted}", show(volume.size_bytes))
            })
        }
        VolumeCommand::Flatten { name, cancel, wait, change } => {
            let volume = clones::flatten(options, cluster, name, (*cancel, *wait), change).await?;
            output::write(options.output, &document(&volume), || clones::outcome(name, &volume))
        }
        VolumeCommand::List { filter, order_by } => list(options, cluster, filter, order_by).await,
        VolumeCommand::Update { name, labels, class, qos, failover, dry_run, change } => {
            let (class, dry_run) = (class.as_deref(), *dry_run);
            let wanted = Wanted { labels, class, qos, failover: failover.value(), dry_run };
            let volume = update(cluster, name, &wanted, change).await?;
            let would = if dry_run { "would be " } else { "" };
            output::write(options.output, &document(&volume), || {
                format!("volume {name} {would}changed\n{}", text(&volume))
            })
        }
        VolumeCommand::Show { name } => {
            let volume = get(cluster, name).await?;
            output::write(options.output, &document(&volume), || text(&volume))
        }
        VolumeCommand::Resize { name, size, change } => {
            let volume = resize(cluster, name, *size, change).await?;
            output::write(options.output, &document(&volume), || {
                format!("volume {name} has {} now", show(volume.size_bytes))
            })
        }
        VolumeCommand::Revert { name, snapshot, drop_later, no_wait, change } => {
            let request = RevertVolumeRequest {
                name: path(name),
                snapshot_id: snapshot.clone(),
                drop_later: *drop_later,
                etag: change.etag(),
                request_id: change.id(),
                wait_ms: crate::snapshot::wait_ms(options, *no_wait),
            };
            let mut volume = call!(cluster, revert_volume, request)?;
            if !no_wait {
                volume = wait_reverted(options, cluster, name, volume).await?;
            }
            let what = if *no_wait { "is being reverted" } else { "reverted" };
            output::write(options.output, &document(&volume), || {
                format!("volume {name} {what} to {snapshot}")
            })
        }
        VolumeCommand::Delete { name, yes, with_snapshots, no_wait, change } => {
            let all = *with_snapshots;
            let volume = match delete(cluster, name, all, change).await {
                Err(Failure::Status(status)) if is_attached(&status) => {
                    // Being detached changed the volume, and nothing else may have.
                    let etag = detach_for_good(cluster, name, *yes, status).await?;
                    let change = Change { etag: Some(etag), ..change.clone() };
                    delete(cluster, name, all, &change).await?
                }
                other => other?,
            };
            if !no_wait {
                wait_gone(options, cluster, name, volume.id).await?;
            }
            let gone = if *no_wait { "is being deleted" } else { "deleted" };
            output::write(options.output, &document(&volume), || format!("volume {name} {gone}"))
        }
        VolumeCommand::Attach { name, host, take, change } => {
            let request = AttachVolumeRequest {
                name: path(name),
                host: host.clone(),
                r#move: *take,
                renew: false,
                etag: change.etag(),
                request_id: change.id(),
            };
            let attached = call!(cluster, attach_volume, request)?;
            let volume = attached.volume.unwrap_or_default();
            let place = place(cluster, name, host).await;
            output::write(options.output, &document(&volume), || {
                format!("volume {name} attached to {host}, epoch {}\n{place}", attached.epoch)
            })
        }
        VolumeCommand::Detach { name, host, change } => {
            let request = DetachVolumeRequest {
                name: path(name),
                host: host.clone().unwrap_or_default(),
                epoch: 0,
                etag: change.etag(),
                request_id: change.id(),
            };
            let volume = call!(cluster, detach_volume, request)?;
            output::write(options.output, &document(&volume), || format!("volume {name} detached"))
        }
    }
}

pub(crate) async fn get(cluster: &Cluster, name: &str) -> Result<Volume, Failure> {
    Ok(call!(cluster, get_volume, GetVolumeRequest { name: path(name) })?)
}

/// What is to be changed of a volume.
struct Wanted<'a> {
    labels: &'a [(String, Option<String>)],
    class: Option<&'a str>,
    qos: &'a QosArgs,
    failover: Failover,
    dry_run: bool,
}

async fn update(
    cluster: &Cluster,
    name: &str,
    wanted: &Wanted<'_>,
    change: &Change,
) -> Result<Volume, Failure> {
    let (qos, paths) = wanted.qos.given();
    let mut paths: Vec<String> = paths.into_iter().map(str::to_owned).collect();
    let mut volume =
        Volume { name: path(name), etag: change.etag(), qos: Some(qos), ..Volume::default() };
    if let Some(class) = wanted.class {
        paths.push("storage_class".to_owned());
        volume.storage_class = if class.is_empty() { String::new() } else { class::path(class) };
    }
    if wanted.failover != Failover::Unspecified {
        paths.push("failover".to_owned());
        volume.failover = wanted.failover.into();
    }
    if !wanted.labels.is_empty() {
        // Those that are not named stay; another change of them in between is not undone.
        let known = get(cluster, name).await?;
        volume.labels = known.labels;
        for (key, value) in wanted.labels {
            match value {
                Some(value) => drop(volume.labels.insert(key.clone(), value.clone())),
                None => drop(volume.labels.remove(key)),
            }
        }
        if volume.etag.is_empty() {
            volume.etag = known.etag;
        }
        paths.push("labels".to_owned());
    }
    if paths.is_empty() {
        return Err(Failure::Usage("nothing is to be changed; name a field".to_owned()));
    }
    let request = UpdateVolumeRequest {
        volume: Some(volume),
        update_mask: Some(FieldMask { paths }),
        request_id: change.id(),
        validate_only: wanted.dry_run,
    };
    Ok(call!(cluster, update_volume, request)?)
}

async fn list(
    options: &Options,
    cluster: &Cluster,
    filter: &str,
    order_by: &str,
) -> Result<(), Failure> {
    let mut volumes = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListVolumesRequest {
            page_size: PAGE,
            page_token,
            filter: filter.to_owned(),
            order_by: order_by.to_owned(),
            ..Default::default()
        };
        let page = call!(cluster, list_volumes, request)?;
        volumes.extend(page.volumes);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let documents: Vec<Value> = volumes.iter().map(document).collect();
    output::write(options.output, &json!({ "volumes": documents }), || {
        if volumes.is_empty() && !filter.is_empty() {
            return "there is no such volume".to_owned();
        }
        if volumes.is_empty() {
            return "no volumes yet; 'basalt volume create demo --size 1GiB' makes one".to_owned();
        }
        let row = |volume: &Volume| {
            vec![
                short(volume).to_owned(),
                show(volume.size_bytes),
                state(volume).to_owned(),
                volume.attachment.as_ref().map_or("-".to_owned(), |a| a.host.clone()),
                clones::snapshot_of(volume).unwrap_or_else(|| "-".to_owned()),
                volume.epoch.to_string(),
                output::time(volume.create_time_ms),
            ]
        };
        output::table(
            &["NAME", "SIZE", "STATE", "ATTACHED TO", "CLONE OF", "EPOCH", "CREATED"],
            &volumes.iter().map(row).collect::<Vec<_>>(),
        )
    })
}

async fn resize(
    cluster: &Cluster,
    name: &str,
    size: NewSize,
    change: &Change,
) -> Result<Volume, Failure> {
    let (size_bytes, etag) = match size {
        NewSize::Whole(bytes) => (bytes, change.etag()),
        // The sum is of the volume as it is now, and another change in between would make it wrong.
        NewSize::More(bytes) => {
            if change.request_id.is_some() {
                let text = "--request-id needs the whole size: repeated, '+' would add once more";
                return Err(error::invalid("request_id", text).into());
            }
            let volume = get(cluster, name).await?;
            let etag = change.etag.clone().unwrap_or(volume.etag);
            (volume.size_bytes.saturating_add(bytes), etag)
        }
    };
    let request =
        ResizeVolumeRequest { name: path(name), size_bytes, etag, request_id: change.id() };
    Ok(call!(cluster, resize_volume, request)?)
}

async fn delete(
    cluster: &Cluster,
    name: &str,
    with_snapshots: bool,
    change: &Change,
) -> Result<Volume, Failure> {
    let (etag, request_id) = (change.etag(), change.id());
    let request = DeleteVolumeRequest { name: path(name), etag, request_id, with_snapshots };
    Ok(call!(cluster, delete_volume, request)?)
}

fn is_attached(status: &Status) -> bool {
    reason_of(status) == Some(ErrorReason::VolumeAttached)
}

/// Detaches a volume that is to be deleted while it is in use, if that is what the operator wants:
/// exactly the attachment that the operator was told of. Gives the etag of the detached volume.
async fn detach_for_good(
    cluster: &Cluster,
    name: &str,
    yes: bool,
    refused: Status,
) -> Result<String, Failure> {
    let volume = get(cluster, name).await?;
    let Some(attachment) = &volume.attachment else { return Ok(volume.etag) };
    let host = &attachment.host;
    if !yes {
        let question = format!(
            "The volume '{name}' ({}) is attached to '{host}', which loses it with everything in it.\n\
             Type its name to delete it for good:",
            show(volume.size_bytes)
        );
        match output::ask(&question) {
            Some(answer) if answer == *name => {}
            Some(_) => return Err(Failure::Output("nothing was deleted".to_owned())),
            None => {
                let facts = [("volume", name.to_owned()), ("host", host.clone())];
                let text = format!("{}, or give --yes to delete it all the same", plain(&refused));
                return Err(error::status(ErrorReason::VolumeAttached, text, &facts).into());
            }
        }
    }
    let request = DetachVolumeRequest {
        name: path(name),
        host: host.clone(),
        epoch: attachment.epoch,
        etag: String::new(),
        request_id: request_id("cli"),
    };
    Ok(call!(cluster, detach_volume, request)?.etag)
}

async fn wait_reverted(
    options: &Options,
    cluster: &Cluster,
    name: &str,
    volume: Volume,
) -> Result<Volume, Failure> {
    let deadline = Instant::now() + options.timeout;
    let mut progress = Progress::start(options.output);
    let mut found = volume;
    while found.state() == volume::State::Reverting {
        if Instant::now() >= deadline {
            return Err(Failure::Timeout(format!(
                "the volume '{name}' is being reverted, but not done after {} s; it goes on by itself: \
                 'basalt volume show {name}', 'basalt cluster status'",
                options.timeout.as_secs()
            )));
        }
        progress.show(|| format!("waiting for every group to revert {name}"));
        tokio::time::sleep(POLL).await;
        found = get(cluster, name).await?;
    }
    Ok(found)
}

async fn wait_gone(
    options: &Options,
    cluster: &Cluster,
    name: &str,
    number: u64,
) -> Result<(), Failure> {
    let patience = options.timeout;
    let mut progress = Progress::start(options.output);
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        progress.show(|| format!("deleting the blocks of volume {name}"));
        match get(cluster, name).await {
            // A volume of the same name, made since, is another one.
            Ok(found) if found.id == number => {}
            Ok(_) => return Ok(()),
            Err(Failure::Status(status)) if status.code() == Code::NotFound => return Ok(()),
            Err(failure) => return Err(failure),
        }
        tokio::time::sleep(POLL).await;
    }
    Err(Failure::Timeout(format!(
        "the volume '{name}' is being deleted, but not gone after {} s; it goes on by itself: \
         'basalt volume show {name}', 'basalt cluster status'",
        patience.as_secs()
    )))
}

/// Where an attached volume is reached, for people.
async fn place(cluster: &Cluster, name: &str, host: &str) -> String {
    let asked = call!(cluster, get_cluster, GetClusterRequest {});
    let Ok(found) = asked else { return String::new() };
    match found.nodes.iter().find(|node| node.name == host) {
        Some(node) if node.nbd_address.starts_with("unix:") => {
            let socket = node.nbd_address.trim_start_matches("unix:");
            format!("served at nbd+unix:///{name}?socket={socket}")
        }
        Some(node) if !node.nbd_address.is_empty() => {
            format!("served at nbd://{}/{name}", node.nbd_address)
        }
        Some(_) => format!("the node {host} does not serve NBD (basaltd --nbd-listen)"),
        None => format!(
            "{host} is no node of the cluster: run basalt-attach --volume {name} --host {host} there"
        ),
    }
}

pub(crate) fn path(name: &str) -> String {
    format!("volumes/{name}")
}

fn short(volume: &Volume) -> &str {
    volume.name.strip_prefix("volumes/").unwrap_or(&volume.name)
}

fn state(volume: &Volume) -> &'static str {
    match volume.state() {
        volume::State::Ready if volume.attachment.is_some() => "attached",
        volume::State::Ready => "ready",
        volume::State::Deleting => "deleting",
        volume::State::Creating => "creating",
        volume::State::Reverting => "reverting",
        volume::State::Unspecified => "unknown",
    }
}

fn document(volume: &Volume) -> Value {
    let attachment = volume.attachment.as_ref().map(|a| {
        json!({
            "host": a.host,
            "epoch": a.epoch,
            "since": output::time(a.since_ms),
            "host_state": healing::host_state(a),
        })
    });
    let flattening = volume.flattening.as_ref().map(|f| {
        json!({
            "done_bytes": f.done_bytes,
            "total_bytes": f.total_bytes,
            "problem": f.problem,
            "automatic": f.automatic,
        })
    });
    json!({
        "name": volume.name,
        "id": volume.id,
        "size_bytes": volume.size_bytes,
        "lineage": volume.lineage,
        "epoch": volume.epoch,
        "generation": volume.generation,
        "state": state(volume),
        "labels": volume.labels,
        "attachment": attachment,
        "source_snapshot": clones::snapshot_of(volume),
        "clone_depth": volume.clone_depth,
        "flattening": flattening,
        "storage_class": volume.storage_class,
        "qos": volume.qos.as_ref().map(crate::documents::document),
        "effective_qos": volume.effective_qos.as_ref().map(crate::documents::document),
        "operation": volume.operation,
        "failover": healing::failover(volume),
        "encrypted": volume.encrypted,
        "cipher": volume.cipher,
        "key_version": volume.key_version,
        "create_time": output::time(volume.create_time_ms),
        "etag": volume.etag,
    })
}

/// The bounds that hold for a volume, for people.
fn bounds(qos: &Qos) -> String {
    let all = [
        (qos.iops_min, format!("{} requests/s guaranteed", qos.iops_min)),
        (qos.iops_max, format!("{} requests/s at most", qos.iops_max)),
        (qos.iops_burst, format!("bursts of {} requests", qos.iops_burst)),
        (qos.bandwidth_max, format!("{}/s at most", show(qos.bandwidth_max))),
        (qos.bandwidth_burst, format!("bursts of {}", show(qos.bandwidth_burst))),
    ];
    let set = all.into_iter().filter(|(bound, _)| *bound > 0).map(|(_, text)| text);
    set.collect::<Vec<_>>().join(", ")
}

fn text(volume: &Volume) -> String {
    let labels: Vec<String> =
        volume.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let attached = volume.attachment.as_ref().map_or("to nobody".to_owned(), |a| {
        let lost = match a.host_state() {
            MemberState::Down => {
                format!(", not heard since {}", output::time(a.host_state_since_ms))
            }
            _ => String::new(),
        };
        format!("to {} since {}, epoch {}{lost}", a.host, output::time(a.since_ms), a.epoch)
    });
    let clone = match (clones::snapshot_of(volume), &volume.flattening) {
        (None, _) => "no".to_owned(),
        (Some(of), None) => format!("of {of}, depth {}", volume.clone_depth),
        (Some(of), Some(_)) => format!(
            "of {of}, depth {}; being flattened: {}",
            volume.clone_depth,
            clones::how_far(volume)
        ),
    };
    let rows = [
        ("name", short(volume).to_owned()),
        ("size", format!("{} ({} bytes)", show(volume.size_bytes), volume.size_bytes)),
        ("state", state(volume).to_owned()),
        ("attached", attached),
        ("clone", clone),
        (
            "class",
            match volume.storage_class.as_str() {
                "" => "none".to_owned(),
                class => class.trim_start_matches("storageClasses/").to_owned(),
            },
        ),
        ("bounds", volume.effective_qos.as_ref().map_or("none".to_owned(), bounds)),
        (
            "encrypted",
            match volume.encrypted {
                true => format!("yes, {}, key version {}", volume.cipher, volume.key_version),
                false => "no".to_owned(),
            },
        ),
        ("failover", healing::failover(volume).to_owned()),
        ("labels", if labels.is_empty() { "none".to_owned() } else { labels.join(", ") }),
        ("id", volume.id.to_string()),
        ("created", output::time(volume.create_time_ms)),
        ("etag", volume.etag.clone()),
    ];
    rows.iter().map(|(key, value)| format!("{key:<9} {value}\n")).collect()
}
