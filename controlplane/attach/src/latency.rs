//! What a door has traced of a volume's requests, as the API tells it.

use basalt_api::v1::{LatencyBand, LatencyPart, RequestLatency, StageLatency, VolumeLatency};
use basalt_client::trace::Traces;
use basalt_client::trace::summary::{Band, Part, Seen, Summary};
use basalt_nbd::DoorCommand;
use basalt_node::Mailbox;
use basalt_wire::ids::NodeId;
use basalt_wire::time::Time;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// How long a reactor may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// What was traced lately of a volume's requests; nothing if the door does not serve it, or does not answer.
pub async fn of_export(mailbox: &Mailbox, door: usize, name: &str) -> Option<VolumeLatency> {
    let (told, answer) = oneshot::channel();
    let reply = Box::new(move |traces: Option<(Traces, Time)>| {
        // Whoever asks may have given up.
        let _ = told.send(traces);
    });
    mailbox.tenant(door, Box::new(DoorCommand::Trace { name: name.to_owned(), reply }));
    let (traces, now) = timeout(PATIENCE, answer).await.ok()?.ok()??;
    Some(latency_of(&traces, now))
}

/// What was traced lately, as of a time.
pub fn latency_of(traces: &Traces, now: Time) -> VolumeLatency {
    let kinds = traces.kinds().into_iter().map(|(kind, of)| (kind, Summary::of(of, now)));
    let some = kinds.filter(|(_, summary)| summary.requests > 0);
    VolumeLatency { requests: some.map(|(kind, summary)| request(kind, &summary)).collect() }
}

fn request(kind: &str, summary: &Summary) -> RequestLatency {
    RequestLatency {
        kind: kind.to_owned(),
        requests: summary.requests,
        window_ms: u64::try_from(summary.window.as_millis()).unwrap_or(u64::MAX),
        median_ns: summary.median,
        p99_ns: summary.p99,
        all: Some(band(&summary.all)),
        middle: Some(band(&summary.middle)),
        slowest: Some(band(&summary.slowest)),
        stages: summary.seen.iter().map(seen).collect(),
        findings: Vec::new(),
    }
}

fn band(band: &Band) -> LatencyBand {
    let part = |part: &Part| LatencyPart {
        stage: part.stage.name().to_owned(),
        node: number(part.node),
        nanoseconds: part.nanos,
        requests: part.requests,
    };
    LatencyBand {
        requests: band.requests,
        total_ns: band.total,
        bytes: band.bytes,
        depth_milli: band.depth_milli,
        resent: band.resent,
        parts: band.parts.iter().map(part).collect(),
    }
}

fn seen(seen: &Seen) -> StageLatency {
    StageLatency {
        stage: seen.stage.name().to_owned(),
        node: number(seen.node),
        requests: seen.requests,
        median_ns: seen.median,
        p99_ns: seen.p99,
        best_ns: seen.best,
    }
}

fn number(node: Option<NodeId>) -> u32 {
    node.map_or(0, |node| node.0)
}
