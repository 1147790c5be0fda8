//! Resources of any kind, once or whenever they change.

use crate::documents::document;
use crate::options::{Format, GetArgs, Options};
use crate::{Failure, call_of, output};
use basalt_api::dial::Cluster;
use basalt_api::size::show;
use basalt_api::v1::resource::Resource as Of;
use basalt_api::v1::resources_client::ResourcesClient;
use basalt_api::v1::watch_response::What;
use basalt_api::v1::{Qos, Resource, WatchRequest, WatchResponse, event, snapshot, volume};
use prost_types::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tonic::{Code, Streaming};

pub(crate) async fn run(
    options: &Options,
    cluster: &Cluster,
    asked: &GetArgs,
) -> Result<(), Failure> {
    let mut request = WatchRequest {
        kinds: vec![asked.kind.to_owned()],
        filter: asked.filter.clone(),
        from_revision: 0,
        name: asked.name.as_deref().map_or_else(String::new, |name| full(asked.kind, name)),
    };
    let (mut stream, found) = begin(cluster, &request).await?;
    if let (Some(name), [], false) = (&asked.name, &found[..], asked.watch) {
        let text = format!("there is nothing of the name '{name}' among the {}", asked.kind);
        return Err(Failure::Status(tonic::Status::not_found(text)));
    }
    show_all(options, asked.kind, &found)?;
    if !asked.watch {
        return Ok(());
    }
    loop {
        match stream.message().await {
            Ok(Some(answer)) => {
                request.from_revision = answer.revision;
                tell(options.output, &answer)?;
            }
            // The node stopped, or the call took as long as one may: another node goes on.
            Ok(None) => stream = again(cluster, &mut request).await?,
            Err(status) if is_passing(status.code()) => {
                stream = again(cluster, &mut request).await?;
            }
            Err(status) => return Err(status.into()),
        }
    }
}

/// A list of one kind, as one of its own commands shows it.
pub(crate) async fn list(
    options: &Options,
    cluster: &Cluster,
    (kind, name, filter): (&'static str, Option<&str>, &str),
) -> Result<(), Failure> {
    let name = name.map(str::to_owned);
    let asked = GetArgs { kind, name, filter: filter.to_owned(), watch: false };
    run(options, cluster, &asked).await
}

/// Whatever there is of one kind, and then each whenever it changes.
pub(crate) async fn watch_kind(
    options: &Options,
    cluster: &Cluster,
    (kind, filter): (&'static str, &str),
) -> Result<(), Failure> {
    let asked = GetArgs { kind, name: None, filter: filter.to_owned(), watch: true };
    run(options, cluster, &asked).await
}

fn full(kind: &str, name: &str) -> String {
    match (kind, name.split_once('@')) {
        ("snapshots", Some((volume, snapshot))) => format!("volumes/{volume}/snapshots/{snapshot}"),
        ("snapshots", None) if !name.contains('/') => format!("volumes/{name}"),
        _ if name.contains('/') => name.to_owned(),
        _ => format!("{kind}/{name}"),
    }
}

fn is_passing(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown)
}

async fn watch(
    cluster: &Cluster,
    request: &WatchRequest,
) -> Result<Streaming<WatchResponse>, Failure> {
    Ok(call_of!(cluster, ResourcesClient, watch, request.clone())?)
}

/// Everything that there is, and the watch that goes on behind it.
async fn begin(
    cluster: &Cluster,
    request: &WatchRequest,
) -> Result<(Streaming<WatchResponse>, Vec<Resource>), Failure> {
    let mut stream = watch(cluster, request).await?;
    let mut found = Vec::new();
    while let Some(answer) = stream.message().await? {
        match answer.what {
            Some(What::Changed(resource)) => found.push(resource),
            Some(What::Synced(())) => break,
            _ => {}
        }
    }
    Ok((stream, found))
}

/// The watch from where it stopped; if that is too long ago, from everything on.
async fn again(
    cluster: &Cluster,
    request: &mut WatchRequest,
) -> Result<Streaming<WatchResponse>, Failure> {
    match watch(cluster, request).await {
        Err(Failure::Status(status)) if status.code() == Code::OutOfRange => {
            request.from_revision = 0;
            watch(cluster, request).await
        }
        result => result,
    }
}

fn show_all(options: &Options, kind: &str, found: &[Resource]) -> Result<(), Failure> {
    let documents: Vec<Value> = found.iter().map(shown).collect();
    let mut all = BTreeMap::new();
    all.insert(kind, documents);
    output::write(options.output, &all, || match found {
        [] => format!("no {kind}"),
        found => output::table(head(kind), &found.iter().map(row).collect::<Vec<_>>()),
    })
}

fn tell(format: Format, answer: &WatchResponse) -> Result<(), Failure> {
    let revision = answer.revision;
    let (line, document) = match &answer.what {
        Some(What::Changed(resource)) => {
            let document = json!({ "revision": revision, "changed": shown(resource) });
            (row(resource).join("  "), document)
        }
        Some(What::Deleted(name)) => {
            (format!("{name}  is gone"), json!({ "revision": revision, "deleted": name }))
        }
        _ => return Ok(()),
    };
    let text = match format {
        Format::Table => line,
        Format::Json => document.to_string(),
        Format::Yaml => format!(
            "---\n{}",
            serde_yaml_ng::to_string(&document).map_err(|e| Failure::Output(e.to_string()))?
        ),
        Format::Name => name_of(&answer.what),
    };
    output::print(format!("{}\n", text.trim_end()).as_bytes())
}

fn name_of(what: &Option<What>) -> String {
    match what {
        Some(What::Changed(resource)) => {
            shown(resource)["name"].as_str().unwrap_or_default().to_owned()
        }
        Some(What::Deleted(name)) => name.clone(),
        _ => String::new(),
    }
}

fn shown(resource: &Resource) -> Value {
    match &resource.resource {
        Some(Of::Volume(of)) => document(of),
        Some(Of::Snapshot(of)) => document(of),
        Some(Of::StorageClass(of)) => document(of),
        Some(Of::Quota(of)) => document(of),
        Some(Of::Node(of)) => document(of),
        Some(Of::Event(of)) => document(of),
        Some(Of::Operation(of)) => document(of),
        None => Value::Null,
    }
}

fn head(kind: &str) -> &'static [&'static str] {
    match kind {
        "volumes" => &["NAME", "SIZE", "STATE", "ATTACHED TO", "CLASS", "IOPS", "LABELS"],
        "snapshots" => &["NAME", "SIZE", "STATE", "CREATED"],
        "storageClasses" => &["NAME", "DEFAULT", "VOLUMES", "IOPS", "BYTES/S", "DESCRIPTION"],
        "quotas" => &["NAME", "COUNTS", "VOLUMES", "BYTES", "GUARANTEED", "DESCRIPTION"],
        "nodes" => &["NAME", "ID", "GROUPS", "LEAVING IT", "STATE", "ADDRESS"],
        "events" => &["TIME", "SEVERITY", "REASON", "TARGET", "MESSAGE"],
        _ => &["NAME", "WHAT", "TARGET", "SINCE", "DONE", "PROGRESS"],
    }
}

fn row(resource: &Resource) -> Vec<String> {
    match &resource.resource {
        Some(Of::Volume(v)) => vec![
            part(&v.name),
            show(v.size_bytes),
            word(volume::State::try_from(v.state).map_or("", |s| s.as_str_name())),
            v.attachment.as_ref().map_or("-".to_owned(), |a| a.host.clone()),
            dash(part(&v.storage_class)),
            v.effective_qos.as_ref().map_or("-".to_owned(), iops),
            pairs(&v.labels),
        ],
        Some(Of::Snapshot(s)) => vec![
            part(&s.name).replace("/snapshots/", "@"),
            show(s.size_bytes),
            word(snapshot::State::try_from(s.state).map_or("", |s| s.as_str_name())),
            output::time(s.create_time_ms),
        ],
        Some(Of::StorageClass(c)) => vec![
            part(&c.name),
            if c.is_default { "yes" } else { "no" }.to_owned(),
            c.volume_count.to_string(),
            c.qos.as_ref().map_or("-".to_owned(), iops),
            c.qos.as_ref().map_or("-".to_owned(), bandwidth),
            dash(c.description.clone()),
        ],
        Some(Of::Quota(q)) => vec![
            part(&q.name),
            if q.selector.is_empty() { "all".to_owned() } else { pairs(&q.selector) },
            of(u64::from(q.used_volumes), u64::from(q.max_volumes), |n| n.to_string()),
            of(q.used_bytes, q.max_bytes, show),
            of(q.used_iops_min, q.max_iops_min, |n| n.to_string()),
            dash(q.description.clone()),
        ],
        Some(Of::Node(n)) => vec![
            part(&n.name),
            n.id.to_string(),
            n.groups_placed.to_string(),
            n.groups_going.to_string(),
            match (n.leaving, n.draining) {
                (true, _) => "leaving",
                (false, true) => "draining",
                (false, false) => "member",
            }
            .to_owned(),
            n.grpc_address.clone(),
        ],
        Some(Of::Event(e)) => vec![
            moment(e.create_time.as_ref()),
            word(event::Severity::try_from(e.severity).map_or("", |s| s.as_str_name())),
            e.reason.clone(),
            e.target.clone(),
            e.message.clone(),
        ],
        Some(Of::Operation(o)) => {
            let of = o.metadata.clone().unwrap_or_default();
            let done = if o.done { "yes" } else { "no" };
            let progress = match of.total_units {
                0 => of.sentence,
                total => format!("{} of {total}: {}", of.done_units, of.sentence),
            };
            let since = moment(of.create_time.as_ref());
            vec![part(&o.name), of.verb, of.target, since, done.to_owned(), progress]
        }
        None => Vec::new(),
    }
}

/// A name without its collection.
fn part(name: &str) -> String {
    name.split_once('/').map_or(name, |(_, rest)| rest).to_owned()
}

fn dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

/// The name of a value without that of its enum.
fn word(name: &str) -> String {
    name.split_once('_').map_or(name, |(_, rest)| rest).to_ascii_lowercase()
}

fn pairs<'a>(labels: impl IntoIterator<Item = (&'a String, &'a String)>) -> String {
    let all: Vec<String> = labels.into_iter().map(|(k, v)| format!("{k}={v}")).collect();
    dash(all.join(","))
}

fn iops(qos: &Qos) -> String {
    if qos.iops_max == 0 { "-".to_owned() } else { qos.iops_max.to_string() }
}

fn bandwidth(qos: &Qos) -> String {
    if qos.bandwidth_max == 0 { "-".to_owned() } else { show(qos.bandwidth_max) }
}

fn of(used: u64, most: u64, show: impl Fn(u64) -> String) -> String {
    match most {
        0 => show(used),
        most => format!("{} of {}", show(used), show(most)),
    }
}

pub(crate) fn moment(time: Option<&Timestamp>) -> String {
    time.map_or("-".to_owned(), |t| output::time(t.seconds * 1000 + i64::from(t.nanos) / 1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_made_whole() {
        assert_eq!(full("volumes", "demo"), "volumes/demo");
        assert_eq!(full("volumes", "volumes/demo"), "volumes/demo");
        assert_eq!(full("snapshots", "demo@monday"), "volumes/demo/snapshots/monday");
        assert_eq!(full("snapshots", "demo"), "volumes/demo");
        assert_eq!(full("storageClasses", "fast"), "storageClasses/fast");
    }

    #[test]
    fn each_kind_has_a_row_as_wide_as_its_head() {
        use basalt_api::v1::{
            Event, NodeRecord, Quota, Snapshot, StorageClass, Volume, WatchedOperation,
        };
        let all = [
            ("volumes", Of::Volume(Volume::default())),
            ("snapshots", Of::Snapshot(Snapshot::default())),
            ("storageClasses", Of::StorageClass(StorageClass::default())),
            ("quotas", Of::Quota(Quota::default())),
            ("nodes", Of::Node(NodeRecord::default())),
            ("events", Of::Event(Event::default())),
            ("operations", Of::Operation(WatchedOperation::default())),
        ];
        for (kind, of) in all {
            let resource = Resource { resource: Some(of) };
            assert_eq!(row(&resource).len(), head(kind).len(), "{kind}");
        }
    }

    #[test]
    fn values_are_shown_for_people() {
        assert_eq!(word("STATE_READY"), "ready");
        assert_eq!(of(3, 0, |n| n.to_string()), "3");
        assert_eq!(of(3, 5, |n| n.to_string()), "3 of 5");
        assert_eq!(iops(&Qos { iops_max: 10, ..Qos::default() }), "10");
    }
}
