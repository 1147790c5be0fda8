//! What Prometheus is told of a node, in the OpenMetrics text format at `/metrics` of the gRPC API's address.
//!
//! Nothing is counted here: what the node knows of itself is written down when it is asked, so that nothing costs
//! anything
//! in between, and no figure can differ from what the API shows.

use crate::daemon::Daemon;
use crate::engine::{DOOR, Engine};
use crate::status;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE as CONTENT_TYPE_NAME;
use axum::routing::get;
use basalt_api::v1::{Node, NodeReport, Scrub, Space};
use basalt_attach::metrics::{CONTENT_TYPE, Writer, sessions, traces};
use basalt_meta::MetaState;
use basalt_nbd::{DoorCommand, DoorStatus};
use prometheus_client::encoding::DescriptorEncoder;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tonic::service::Routes;

/// How long the node's parts may take to tell what they know.
const PATIENCE: Duration = Duration::from_secs(5);

/// What there is to tell.
#[derive(Debug)]
struct Told {
    cluster: String,
    report: NodeReport,
    door: Option<DoorStatus>,
    records: Records,
}

/// What the records come to.
#[derive(Debug, Default)]
struct Records {
    volumes: u64,
    attached: u64,
    provisioned_bytes: u64,
    operations: u64,
    leads: bool,
    revision: u64,
}

/// What answers at `/metrics`, beside whatever services are added.
pub fn routes(daemon: &Arc<Daemon>) -> Routes {
    let daemon = daemon.clone();
    let answer = move || {
        let daemon = daemon.clone();
        async move {
            match text(&daemon).await {
                Ok(text) => (StatusCode::OK, [(CONTENT_TYPE_NAME, CONTENT_TYPE)], text),
                Err(why) => {
                    (StatusCode::SERVICE_UNAVAILABLE, [(CONTENT_TYPE_NAME, "text/plain")], why)
                }
            }
        }
    };
    let mut routes = Routes::default();
    let services = std::mem::take(routes.axum_router_mut());
    *routes.axum_router_mut() = services.route("/metrics", get(answer));
    routes
}

/// The text, or why there is none.
async fn text(daemon: &Arc<Daemon>) -> Result<String, String> {
    let engine = daemon.engine().map_err(|status| status.message().to_owned())?;
    let report = timeout(PATIENCE, status::report(daemon)).await;
    let report = report.map_err(|_| "the reactor does not answer".to_owned())?;
    let report = report.map_err(|status| status.message().to_owned())?;
    let records = engine.metadata.look(|state| records(state, engine.metadata.leads()));
    let door = door(&engine).await;
    let cluster = format!("{:016x}", engine.cluster());
    basalt_attach::metrics::text(Told { cluster, report, door, records })
}

fn records(state: &MetaState, leads: bool) -> Records {
    Records {
        volumes: state.volume_count() as u64,
        attached: state.attached_count() as u64,
        provisioned_bytes: state.provisioned_bytes(),
        operations: state.operations().filter(|op| op.end_time_ms == 0).count() as u64,
        leads,
        revision: state.applied(),
    }
}

async fn door(engine: &Engine) -> Option<DoorStatus> {
    let (told, answer) = oneshot::channel();
    let reply = Box::new(move |status| {
        // Whoever asks may have given up.
        let _ = told.send(status);
    });
    engine.reactor.tenant(DOOR, Box::new(DoorCommand::Status { reply }));
    timeout(PATIENCE, answer).await.ok()?.ok()
}

impl prometheus_client::collector::Collector for Told {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut to = Writer::new(encoder);
        let node = self.report.node.clone().unwrap_or_default();
        self.process(&node, &mut to)?;
        self.groups(&mut to)?;
        if let Some(space) = &node.space {
            device(space, &mut to)?;
        }
        written(&node, &mut to)?;
        if let Some(scrub) = &node.scrub {
            scrubbed(scrub, &mut to)?;
        }
        peers(&node, &mut to)?;
        self.volumes(&node, &mut to)?;
        traces(&mut to)
    }
}

impl Told {
    fn process(&self, node: &Node, to: &mut Writer<'_>) -> Result<(), std::fmt::Error> {
        let about = vec![
            ("cluster", self.cluster.clone()),
            ("node", node.name.clone()),
            ("version", node.version.clone()),
        ];
        to.gauges("basalt_node_info", "The node; always 1", [(about, 1)])?;
        to.gauge("basalt_uptime_seconds", "Since the process was started", node.uptime_seconds)?;
        let running = u64::from(node.state == "running");
        to.gauge("basalt_node_running", "Whether the device is open and in use", running)?;
        to.gauge("basalt_links", "Other nodes that it has a link to", node.links.len() as u64)?;
        let leads = u64::from(self.records.leads);
        to.gauge("basalt_metadata_leader", "Whether it leads the metadata group", leads)?;
        let revision = self.records.revision;
        to.gauge("basalt_metadata_revision", "Entry of the metadata group applied last", revision)?;
        to.gauge("basalt_volumes", "Volumes of the cluster", self.records.volumes)?;
        to.gauge("basalt_volumes_attached", "Volumes that a host has", self.records.attached)?;
        let bytes = self.records.provisioned_bytes;
        to.gauge("basalt_provisioned_bytes", "Sizes of the cluster's volumes together", bytes)?;
        let operations = self.records.operations;
        to.gauge("basalt_operations_open", "Operations under way in the cluster", operations)?;
        to.gauge(
            "basalt_volumes_not_served",
            "Volumes attached to the node that it does not serve",
            node.not_serving.len() as u64,
        )
    }

    fn groups(&self, to: &mut Writer<'_>) -> Result<(), std::fmt::Error> {
        let roles = ["leader", "follower", "candidate", "pre-candidate", "learner"];
        let count = |role: &str| self.report.replicas.iter().filter(|r| r.role == role).count();
        let values = roles.map(|role| (vec![("role", role.to_owned())], count(role) as u64));
        to.gauges("basalt_replicas", "Replicas on the node by their role", values)?;
        let behind = self.report.replicas.iter().map(|r| r.commit.saturating_sub(r.applied)).max();
        to.gauge(
            "basalt_replica_entries_behind",
            "Committed entries that the replica farthest behind has not applied",
            behind.unwrap_or(0),
        )
    }

    fn volumes(&self, node: &Node, to: &mut Writer<'_>) -> Result<(), std::fmt::Error> {
        let spaces = node.space.iter().flat_map(|space| &space.volumes);
        let live = spaces.filter(|of| !of.name.is_empty()).flat_map(|of| {
            let kinds = [("own", of.own_bytes), ("snapshots", of.snapshot_bytes)];
            kinds.map(|(kind, bytes)| {
                (vec![("volume", id(&of.name)), ("kind", kind.to_owned())], bytes)
            })
        });
        to.gauges("basalt_volume_live_bytes", "What a volume takes on this device", live)?;
        sessions(self.door.as_ref(), to)
    }
}

/// A name without its collection.
fn id(name: &str) -> String {
    name.split_once('/').map_or(name, |(_, id)| id).to_owned()
}

fn device(space: &Space, to: &mut Writer<'_>) -> Result<(), std::fmt::Error> {
    let parts = [
        ("live", space.live_bytes),
        ("log", space.log_bytes),
        ("garbage", space.garbage_bytes),
        ("free", space.free_bytes),
        ("reserve", space.reserve_bytes),
        ("superblock", space.superblock_bytes),
        ("unused", space.unused_bytes),
    ];
    let parts = parts.map(|(kind, bytes)| (vec![("kind", kind.to_owned())], bytes));
    to.gauges("basalt_device_bytes", "Bytes of the device by what they are for", parts)?;
    to.gauge(
        "basalt_device_capacity_bytes",
        "Live bytes that the device takes",
        space.capacity_bytes,
    )?;
    to.counter("basalt_cleaner_blocks_moved", "Blocks moved by the cleaner", space.blocks_moved)?;
    let cleaned = space.segments_cleaned;
    to.counter("basalt_cleaner_segments", "Segments that the cleaner went through", cleaned)?;
    to.gauge("basalt_index_bytes", "Memory that the index takes", space.index_bytes)?;
    to.gauge(
        "basalt_index_pages_cold",
        "Chunks whose places are in the store alone",
        space.index_pages_cold,
    )?;
    to.counter(
        "basalt_index_pages_loaded",
        "Chunks loaded from the store",
        space.index_pages_loaded,
    )
}

fn written(node: &Node, to: &mut Writer<'_>) -> Result<(), std::fmt::Error> {
    if let Some(log) = &node.log {
        to.counter("basalt_log_writes", "Writes to the log", log.batches)?;
        to.counter("basalt_log_payload_bytes", "Blocks of data in them", log.payload_bytes)?;
        to.counter("basalt_log_bytes", "All of them, headers included", log.bytes)?;
    }
    if let Some(resync) = &node.resync {
        to.counter("basalt_resync_sent_bytes", "Blocks sent to other replicas", resync.bytes_sent)?;
        to.counter("basalt_resync_taken_bytes", "Blocks taken from them", resync.bytes_taken)?;
    }
    Ok(())
}

fn scrubbed(scrub: &Scrub, to: &mut Writer<'_>) -> Result<(), std::fmt::Error> {
    to.counter("basalt_scrub_passes", "Walks over all blocks that are over", scrub.passes)?;
    to.counter(
        "basalt_scrub_blocks_verified",
        "Blocks found as they should be",
        scrub.blocks_verified,
    )?;
    to.counter("basalt_blocks_damaged", "Blocks found damaged by a scrub", scrub.blocks_bad)?;
    to.counter(
        "basalt_blocks_repaired",
        "Damaged blocks that were repaired",
        scrub.blocks_repaired,
    )?;
    to.gauge(
        "basalt_blocks_waiting",
        "Damaged blocks that wait for a repair",
        scrub.blocks_waiting,
    )?;
    to.gauge(
        "basalt_blocks_lost",
        "Of these, those that no replica could give",
        scrub.blocks_lost,
    )?;
    to.gauge(
        "basalt_pages_undecided",
        "Pages that differ, and of which no majority holds the same",
        scrub.undecided_pages,
    )
}

fn peers(node: &Node, to: &mut Writer<'_>) -> Result<(), std::fmt::Error> {
    let times = node.scores.iter().flat_map(|score| {
        let kinds = [
            ("write", score.write_microseconds),
            ("read", score.read_microseconds),
            ("way", score.way_microseconds),
        ];
        kinds.map(|(kind, time)| {
            (vec![("peer", score.node.to_string()), ("kind", kind.to_owned())], time)
        })
    });
    to.gauges("basalt_peer_microseconds", "How fast nodes are, as this one knows", times)?;
    let slow = node.scores.iter();
    let slow = slow.map(|score| (vec![("peer", score.node.to_string())], u64::from(score.slow)));
    to.gauges("basalt_peer_slow", "Whether a node is much slower than the others", slow)
}

#[cfg(test)]
mod tests {
    use super::*;
    use basalt_api::v1::{LogCounts, Replica, Score, VolumeSpace};
    use basalt_attach::scrape::sample;
    use basalt_client::latency::{BUCKETS, Latencies};
    use basalt_nbd::ExportStatus;
    use std::collections::BTreeSet;

    fn told() -> Told {
        let volumes = vec![VolumeSpace {
            id: 1,
            name: "volumes/demo".to_owned(),
            own_bytes: 4096,
            snapshot_bytes: 8192,
        }];
        let node = Node {
            name: "n1".to_owned(),
            version: "1".to_owned(),
            state: "running".to_owned(),
            space: Some(Space { live_bytes: 12288, volumes, ..Space::default() }),
            scrub: Some(Scrub { blocks_lost: 2, ..Scrub::default() }),
            log: Some(LogCounts { bytes: 9, ..LogCounts::default() }),
            resync: Some(Default::default()),
            scores: vec![Score {
                node: 2,
                write_microseconds: 300,
                slow: true,
                ..Score::default()
            }],
            ..Node::default()
        };
        let replica =
            Replica { role: "leader".to_owned(), commit: 9, applied: 7, ..Replica::default() };
        let report =
            NodeReport { node: Some(node), replicas: vec![replica], ..NodeReport::default() };
        let mut latencies = Latencies::default();
        latencies.read.buckets[0] = 3;
        latencies.read.buckets[BUCKETS] = 1;
        latencies.read.sum_ns = 10_000_000_000;
        let export = ExportStatus {
            name: "demo".to_owned(),
            volume: basalt_wire::ids::VolumeId(1),
            epoch: basalt_wire::ids::Epoch(1),
            size_bytes: 1 << 20,
            read_only: false,
            ready: true,
            connections: vec!["one".to_owned()],
            client: Default::default(),
            latencies: Box::new(latencies),
            stages: vec![("read", basalt_wire::trace::Stage::DeviceRead, latencies.read)],
        };
        let door = Some(DoorStatus { exports: vec![export], connections: 1 });
        let records = Records { volumes: 5, leads: true, ..Records::default() };
        Told { cluster: "c".to_owned(), report, door, records }
    }

    fn text() -> String {
        basalt_attach::metrics::text(told()).expect("text")
    }

    #[test]
    fn figures_are_told_with_their_labels() {
        let text = text();
        for line in [
            "basalt_node_info{cluster=\"c\",node=\"n1\",version=\"1\"} 1",
            "basalt_volumes 5",
            "basalt_replicas{role=\"leader\"} 1",
            "basalt_replica_entries_behind 2",
            "basalt_device_bytes{kind=\"live\"} 12288",
            "basalt_log_bytes_total 9",
            "basalt_blocks_lost 2",
            "basalt_peer_microseconds{peer=\"2\",kind=\"write\"} 300",
            "basalt_peer_slow{peer=\"2\"} 1",
            "basalt_volume_live_bytes{volume=\"demo\",kind=\"snapshots\"} 8192",
            "basalt_volume_clients{volume=\"demo\"} 1",
            "basalt_volume_request_seconds_count{volume=\"demo\",kind=\"read\"} 4",
            "basalt_volume_request_seconds_sum{volume=\"demo\",kind=\"read\"} 10.0",
            "basalt_volume_stage_seconds_count{volume=\"demo\",kind=\"read\",stage=\"device_read\"} 4",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        let buckets: Vec<&str> = text
            .lines()
            .filter(|line| {
                line.starts_with("basalt_volume_request_seconds_bucket")
                    && line.contains("\"read\"")
            })
            .collect();
        assert_eq!(buckets.len(), BUCKETS + 1, "{buckets:?}");
        assert!(buckets[0].ends_with(" 3") && buckets[BUCKETS - 1].ends_with(" 3"), "{buckets:?}");
        assert!(
            buckets[BUCKETS].contains("+Inf") && buckets[BUCKETS].ends_with(" 4"),
            "{buckets:?}"
        );
    }

    /// The names of metrics that a text of another language mentions.
    fn mentioned(text: &str) -> BTreeSet<&str> {
        let part = |c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        text.split(part).filter(|word| word.starts_with("basalt_")).collect()
    }

    /// Told by programs that export traces alone.
    const SPANS: &str = "basalt_spans_exported_total 0\nbasalt_spans_dropped_total 0\nbasalt_spans_failed_total 0\n";

    #[test]
    fn alerts_and_dashboard_ask_for_what_there_is() {
        let text = format!("{}{}{SPANS}", text(), sample());
        let there: BTreeSet<&str> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split(['{', ' ']).next())
            .collect();
        let alerts = include_str!("../../../deploy/prometheus/basalt.rules.yml");
        let dashboard = include_str!("../../../deploy/grafana/basalt.json");
        for (what, text) in [("alerts", alerts), ("dashboard", dashboard)] {
            let asked = mentioned(text);
            assert!(asked.len() > 8, "{what}: {asked:?}");
            let missing: Vec<_> = asked.difference(&there).collect();
            assert!(missing.is_empty(), "{what}: {missing:?}");
        }
    }
}
