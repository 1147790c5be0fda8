//! `basalt snapshot`.

use crate::options::{Options, SnapshotCommand, SnapshotName, label_map};
use crate::output::{self, Progress};
use crate::volume::path;
use crate::{Failure, call};
use basalt_api::dial::Cluster;
use basalt_api::random::request_id;
use basalt_api::size::show;
use basalt_api::v1::{
    CreateSnapshotRequest, DeleteSnapshotRequest, GetSnapshotRequest, ListSnapshotsRequest,
    Snapshot, snapshot,
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tonic::Code;

/// Most snapshots take some milliseconds; those that take longer are asked for less often.
pub(crate) const POLL_FIRST: Duration = Duration::from_millis(2);
const POLL_MAX: Duration = Duration::from_millis(50);
const PAGE: i32 = 500;

pub(crate) async fn run(
    options: &Options,
    cluster: &Cluster,
    command: &SnapshotCommand,
) -> Result<(), Failure> {
    match command {
        SnapshotCommand::Create { names, labels, no_wait, request_id: id } if names.len() > 1 => {
            let id = id.clone().unwrap_or_else(|| request_id("cli"));
            crate::cuts::create(options, cluster, names, (labels, id), *no_wait).await
        }
        SnapshotCommand::Create { names, labels, no_wait, request_id: id } => {
            let name = &names[0];
            let request = CreateSnapshotRequest {
                parent: path(&name.volume),
                snapshot_id: name.id.clone(),
                labels: label_map(labels),
                request_id: id.clone().unwrap_or_else(|| request_id("cli")),
                wait_ms: wait_ms(options, *no_wait),
            };
            let mut taken = call!(cluster, create_snapshot, request)?;
            if !no_wait {
                taken = wait_ready(options, cluster, name, taken).await?;
            }
            let what = if *no_wait { "is being created" } else { "created" };
            output::write(options.output, &document(&taken), || format!("snapshot {name} {what}"))
        }
        SnapshotCommand::List { volume } => list(options, cluster, volume).await,
        SnapshotCommand::Show { name } => {
            let found = get(cluster, name).await?;
            output::write(options.output, &document(&found), || text(&found))
        }
        SnapshotCommand::Diff(diff) => crate::changes::run(options, cluster, diff).await,
        SnapshotCommand::Delete { name, together: true, no_wait, change, .. } => {
            crate::cuts::delete(options, cluster, name, change.id(), *no_wait).await
        }
        SnapshotCommand::Delete { name, alone, no_wait, change, .. } => {
            let (etag, request_id) = (change.etag(), change.id());
            let wait_ms = wait_ms(options, *no_wait);
            let request = DeleteSnapshotRequest {
                name: full(name),
                etag,
                request_id,
                alone: *alone,
                wait_ms,
            };
            let deleted = call!(cluster, delete_snapshot, request)?;
            if !no_wait {
                wait_gone(options, cluster, name, &deleted).await?;
            }
            let what = if *no_wait { "is being deleted" } else { "deleted" };
            output::write(options.output, &document(&deleted), || format!("snapshot {name} {what}"))
        }
    }
}

pub(crate) async fn get(cluster: &Cluster, name: &SnapshotName) -> Result<Snapshot, Failure> {
    Ok(call!(cluster, get_snapshot, GetSnapshotRequest { name: full(name) })?)
}

async fn list(options: &Options, cluster: &Cluster, volume: &str) -> Result<(), Failure> {
    let mut snapshots: Vec<Snapshot> = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListSnapshotsRequest { parent: path(volume), page_size: PAGE, page_token };
        let page = call!(cluster, list_snapshots, request)?;
        snapshots.extend(page.snapshots);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let documents: Vec<Value> = snapshots.iter().map(document).collect();
    output::write(options.output, &json!({ "snapshots": documents }), || {
        if snapshots.is_empty() {
            return format!("no snapshots yet; 'basalt snapshot create {volume}@monday' makes one");
        }
        let row = |snapshot: &Snapshot| {
            vec![
                short(snapshot).to_owned(),
                snapshot.generation.to_string(),
                show(snapshot.size_bytes),
                state(snapshot).to_owned(),
                output::time(snapshot.create_time_ms),
                snapshot.cut.clone(),
            ]
        };
        output::table(
            &["NAME", "GENERATION", "SIZE", "STATE", "CREATED", "CUT"],
            &snapshots.iter().map(row).collect::<Vec<_>>(),
        )
    })
}

/// Waits until a snapshot is complete.
async fn wait_ready(
    options: &Options,
    cluster: &Cluster,
    name: &SnapshotName,
    taken: Snapshot,
) -> Result<Snapshot, Failure> {
    let (patience, generation) = (options.timeout, taken.generation);
    let mut progress = Progress::start(options.output);
    let deadline = Instant::now() + patience;
    let (mut found, mut poll) = (taken, POLL_FIRST);
    while found.state() == snapshot::State::Creating && found.generation == generation {
        if Instant::now() >= deadline {
            return Err(Failure::Timeout(format!(
                "the snapshot '{name}' is being created, but not complete after {} s; it goes on by \
                 itself: 'basalt snapshot show {name}', 'basalt cluster status'",
                patience.as_secs()
            )));
        }
        progress.show(|| format!("waiting for every group to keep {name}"));
        poll = rest(poll).await;
        found = get(cluster, name).await?;
    }
    Ok(found)
}

async fn wait_gone(
    options: &Options,
    cluster: &Cluster,
    name: &SnapshotName,
    deleted: &Snapshot,
) -> Result<(), Failure> {
    let patience = options.timeout;
    let mut progress = Progress::start(options.output);
    let deadline = Instant::now() + patience;
    let mut poll = POLL_FIRST;
    while Instant::now() < deadline {
        progress.show(|| format!("giving back what only {name} holds"));
        match get(cluster, name).await {
            // One of the same name, made since, is another one.
            Ok(found) if found.generation == deleted.generation => {}
            Ok(_) => return Ok(()),
            Err(Failure::Status(status)) if status.code() == Code::NotFound => return Ok(()),
            Err(failure) => return Err(failure),
        }
        poll = rest(poll).await;
    }
    Err(Failure::Timeout(format!(
        "the snapshot '{name}' is being deleted, but not gone after {} s; it goes on by itself: \
         'basalt snapshot show {name}', 'basalt cluster status'",
        patience.as_secs()
    )))
}

/// How long a node is to wait before it answers: less than this program waits for its answer.
pub(crate) fn wait_ms(options: &Options, no_wait: bool) -> u32 {
    let patience = if no_wait { Duration::ZERO } else { options.timeout / 2 };
    u32::try_from(patience.as_millis()).unwrap_or(u32::MAX)
}

/// Sleeps, and tells how long to sleep next time.
pub(crate) async fn rest(poll: Duration) -> Duration {
    tokio::time::sleep(poll).await;
    (poll * 2).min(POLL_MAX)
}

pub(crate) fn full(name: &SnapshotName) -> String {
    format!("{}/snapshots/{}", path(&name.volume), name.id)
}

fn short(snapshot: &Snapshot) -> &str {
    snapshot.name.rsplit('/').next().unwrap_or(&snapshot.name)
}

fn state(snapshot: &Snapshot) -> &'static str {
    match snapshot.state() {
        snapshot::State::Creating => "creating",
        snapshot::State::Ready => "ready",
        snapshot::State::Deleting => "deleting",
        snapshot::State::Unspecified => "unknown",
    }
}

pub(crate) fn document(snapshot: &Snapshot) -> Value {
    json!({
        "name": snapshot.name,
        "generation": snapshot.generation,
        "size_bytes": snapshot.size_bytes,
        "state": state(snapshot),
        "labels": snapshot.labels,
        "create_time": output::time(snapshot.create_time_ms),
        "etag": snapshot.etag,
        "cut": if snapshot.cut.is_empty() { None } else { Some(&snapshot.cut) },
    })
}

fn text(snapshot: &Snapshot) -> String {
    let labels: Vec<String> =
        snapshot.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let rows = [
        ("name", snapshot.name.clone()),
        ("state", state(snapshot).to_owned()),
        ("generation", snapshot.generation.to_string()),
        ("size", format!("{} ({} bytes)", show(snapshot.size_bytes), snapshot.size_bytes)),
        ("cut", if snapshot.cut.is_empty() { "none".to_owned() } else { snapshot.cut.clone() }),
        ("labels", if labels.is_empty() { "none".to_owned() } else { labels.join(", ") }),
        ("created", output::time(snapshot.create_time_ms)),
        ("etag", snapshot.etag.clone()),
    ];
    rows.iter().map(|(key, value)| format!("{key:<11} {value}\n")).collect()
}
