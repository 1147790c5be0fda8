//! `basalt snapshot` of several volumes at one point in time.

use crate::options::{Options, SnapshotName, label_map};
use crate::output;
use crate::snapshot::{POLL_FIRST, document, get, rest, wait_ms};
use crate::volume::path;
use crate::{Failure, call};
use basalt_api::dial::Cluster;
use basalt_api::error;
use basalt_api::v1::{
    CreateCutRequest, Cut, CutMember, DeleteCutRequest, ErrorReason, GetCutRequest, snapshot,
};
use serde_json::{Value, json};
use std::time::Instant;
use tonic::Code;

/// Takes snapshots together.
pub(crate) async fn create(
    options: &Options,
    cluster: &Cluster,
    names: &[SnapshotName],
    (labels, request_id): (&[(String, String)], String),
    no_wait: bool,
) -> Result<(), Failure> {
    let member = |name: &SnapshotName| CutMember {
        parent: path(&name.volume),
        snapshot_id: name.id.clone(),
    };
    let request = CreateCutRequest {
        snapshots: names.iter().map(member).collect(),
        labels: label_map(labels),
        request_id,
        wait_ms: wait_ms(options, no_wait),
    };
    let cut = call!(cluster, create_cut, request)?;
    let taken = cut_ready(options, cluster, cut, no_wait).await?;
    let documents: Vec<Value> = taken.snapshots.iter().map(document).collect();
    let what = if no_wait { "are being created" } else { "created, one point in time" };
    output::write(options.output, &json!({ "cut": taken.name, "snapshots": documents }), || {
        format!("{} snapshots {what} ({})", taken.snapshots.len(), taken.name)
    })
}

/// Deletes a snapshot with all that were taken together with it.
pub(crate) async fn delete(
    options: &Options,
    cluster: &Cluster,
    name: &SnapshotName,
    request_id: String,
    no_wait: bool,
) -> Result<(), Failure> {
    let cut = get(cluster, name).await?.cut;
    if cut.is_empty() {
        let text = format!("the snapshot '{name}' was not taken together with others");
        return Err(Failure::Status(error::invalid("name", text)));
    }
    let wait_ms = wait_ms(options, no_wait);
    let request = DeleteCutRequest { name: cut.clone(), request_id, wait_ms };
    call!(cluster, delete_cut, request)?;
    if !no_wait {
        cut_gone(options, cluster, &cut).await?;
    }
    let what = if no_wait { "are being deleted" } else { "deleted" };
    output::write(options.output, &json!({ "cut": cut }), || {
        format!("snapshot {name} and those taken together with it {what}")
    })
}

/// Waits until a cut is complete, unless nobody waits.
async fn cut_ready(
    options: &Options,
    cluster: &Cluster,
    cut: Cut,
    no_wait: bool,
) -> Result<Cut, Failure> {
    let (patience, name) = (options.timeout, cut.name.clone());
    let deadline = Instant::now() + patience;
    let (mut found, mut poll) = (cut, POLL_FIRST);
    let creating = |cut: &Cut| cut.snapshots.iter().any(|s| s.state() == snapshot::State::Creating);
    while !no_wait && creating(&found) {
        if Instant::now() >= deadline {
            return Err(Failure::Timeout(format!(
                "the snapshots are being created, but not complete after {} s: 'basalt snapshot list', \
                 'basalt cluster status'",
                patience.as_secs()
            )));
        }
        poll = rest(poll).await;
        found = match call!(cluster, get_cut, GetCutRequest { name: name.clone() }) {
            Err(status) if status.code() == Code::NotFound => return Err(given_up()),
            answer => answer?,
        };
    }
    match found.snapshots.iter().any(|s| s.state() == snapshot::State::Deleting) {
        true => Err(given_up()),
        false => Ok(found),
    }
}

fn given_up() -> Failure {
    let text = "not every group of the volumes answered in time; none of the snapshots is kept";
    Failure::Status(error::status(ErrorReason::CutGivenUp, text, &[]))
}

async fn cut_gone(options: &Options, cluster: &Cluster, name: &str) -> Result<(), Failure> {
    let deadline = Instant::now() + options.timeout;
    let mut poll = POLL_FIRST;
    while Instant::now() < deadline {
        match call!(cluster, get_cut, GetCutRequest { name: name.to_owned() }) {
            Ok(_) => poll = rest(poll).await,
            Err(status) if status.code() == Code::NotFound => return Ok(()),
            Err(status) => return Err(status.into()),
        }
    }
    Err(Failure::Timeout(format!(
        "the snapshots of {name} are being deleted, but not gone after {} s; it goes on by itself: \
         'basalt cluster status'",
        options.timeout.as_secs()
    )))
}
