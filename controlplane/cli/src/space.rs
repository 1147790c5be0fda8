//! `basalt space`.

use crate::Failure;
use crate::options::{Options, SpaceCommand};
use crate::output;
use basalt_api::dial;
use basalt_api::error::status;
use basalt_api::size::show;
use basalt_api::v1::{ErrorReason, GetClusterRequest, Node, Space, VolumeSpace};
use serde_json::{Value, json};
use std::fmt::Write;

pub(crate) async fn run(
    options: &Options,
    cluster: &dial::Cluster,
    command: &SpaceCommand,
) -> Result<(), Failure> {
    let SpaceCommand::Explain { node: only } = command;
    let found = cluster
        .call(|mut client| async move { client.get_cluster(GetClusterRequest {}).await })
        .await?;
    let asked = |node: &&Node| match only {
        Some(only) => node.name == *only || node.id.to_string() == *only,
        None => true,
    };
    let nodes: Vec<&Node> = found.nodes.iter().filter(asked).collect();
    if let (Some(only), true) = (only, nodes.is_empty()) {
        let text = format!("the cluster has no node '{only}'");
        return Err(Failure::Status(status(ErrorReason::InvalidField, text, &[])));
    }
    output::write(options.output, &document(&nodes), || text(&nodes))
}

/// The parts of a device in the order in which they are shown: they sum up to all of it.
fn parts(space: &Space) -> [(&'static str, u64, &'static str); 7] {
    [
        ("live", space.live_bytes, "blocks of volumes"),
        ("garbage", space.garbage_bytes, "blocks that nothing needs, and their headers"),
        ("log", space.log_bytes, "headers, and blocks that the Raft logs still need"),
        ("free", space.free_bytes, "open to all"),
        ("reserve", space.reserve_bytes, "kept for Raft and for the cleaner"),
        ("superblock", space.superblock_bytes, "whose device it is"),
        ("unused", space.unused_bytes, "behind the last whole segment"),
    ]
}

fn document(nodes: &[&Node]) -> Value {
    let volume = |volume: &VolumeSpace| {
        json!({
            "id": volume.id,
            "name": volume.name,
            "own_bytes": volume.own_bytes,
            "snapshot_bytes": volume.snapshot_bytes,
        })
    };
    let node = |node: &&Node| {
        let Some(space) = &node.space else {
            return json!({ "id": node.id, "name": node.name, "space": null });
        };
        json!({
            "id": node.id,
            "name": node.name,
            "space": {
                "device_bytes": space.device_bytes,
                "superblock_bytes": space.superblock_bytes,
                "live_bytes": space.live_bytes,
                "log_bytes": space.log_bytes,
                "garbage_bytes": space.garbage_bytes,
                "free_bytes": space.free_bytes,
                "reserve_bytes": space.reserve_bytes,
                "unused_bytes": space.unused_bytes,
                "capacity_bytes": space.capacity_bytes,
                "volumes": space.volumes.iter().map(volume).collect::<Vec<_>>(),
                "blocks_moved": space.blocks_moved,
                "segments_cleaned": space.segments_cleaned,
                "blocks_bad": space.blocks_bad,
                "segments_released": space.segments_released,
                "index_bytes": space.index_bytes,
                "index_pages": space.index_pages,
                "index_pages_cold": space.index_pages_cold,
                "index_pages_loaded": space.index_pages_loaded,
                "index_memory_bytes": space.index_memory_bytes,
            },
        })
    };
    json!({ "nodes": nodes.iter().map(node).collect::<Vec<_>>() })
}

fn text(nodes: &[&Node]) -> String {
    let mut text = String::new();
    for node in nodes {
        if !text.is_empty() {
            text.push('\n');
        }
        // Writing to a string does not fail.
        match &node.space {
            Some(space) => {
                let all = show(space.device_bytes);
                let _ = writeln!(text, "node {} ({}): device of {all}", node.id, node.name);
                text.push_str(&explained(space));
            }
            None => {
                let _ = writeln!(text, "node {} ({}): its device is not open", node.id, node.name);
            }
        }
    }
    text
}

fn explained(space: &Space) -> String {
    let row = |what: &str, bytes: u64, why: &str| {
        let share = bytes as f64 * 100.0 / space.device_bytes.max(1) as f64;
        vec![
            what.to_owned(),
            bytes.to_string(),
            show(bytes),
            format!("{share:.1} %"),
            why.to_owned(),
        ]
    };
    let mut rows: Vec<Vec<String>> =
        parts(space).iter().map(|(what, bytes, why)| row(what, *bytes, why)).collect();
    let sum = parts(space).iter().map(|(_, bytes, _)| bytes).sum();
    rows.push(row("all", sum, "the sum"));
    let mut text = output::table(&["PART", "BYTES", "SIZE", "SHARE", "WHAT"], &rows);
    if space.capacity_bytes > 0 {
        let _ = writeln!(
            text,
            "takes {} of live data; {} blocks were moved out of {} segments, {} segments came back",
            show(space.capacity_bytes),
            space.blocks_moved,
            space.segments_cleaned,
            space.segments_released,
        );
    }
    let _ = writeln!(
        text,
        "index: {} in memory, of {} chunks; those of {} chunks are in the data directory alone, {} were loaded since \
         the start",
        show(space.index_bytes),
        space.index_pages,
        space.index_pages_cold,
        space.index_pages_loaded,
    );
    if space.blocks_bad > 0 {
        let _ = writeln!(text, "{} blocks do not match their checksums", space.blocks_bad);
    }
    let volume = |v: &VolumeSpace| {
        let name = if v.name.is_empty() { "(deleted)" } else { &v.name };
        vec![v.id.to_string(), name.to_owned(), show(v.own_bytes), show(v.snapshot_bytes)]
    };
    if !space.volumes.is_empty() {
        let rows: Vec<Vec<String>> = space.volumes.iter().map(volume).collect();
        text.push_str(&output::table(&["VOLUME", "NAME", "OWN", "KEPT FOR SNAPSHOTS"], &rows));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_explained() {
        let space = Space {
            device_bytes: 1000,
            superblock_bytes: 1,
            live_bytes: 400,
            log_bytes: 20,
            garbage_bytes: 300,
            free_bytes: 200,
            reserve_bytes: 70,
            unused_bytes: 9,
            capacity_bytes: 800,
            volumes: vec![VolumeSpace {
                id: 3,
                name: "volumes/demo".to_owned(),
                own_bytes: 300,
                snapshot_bytes: 100,
            }],
            ..Space::default()
        };
        let sum: u64 = parts(&space).iter().map(|(_, bytes, _)| bytes).sum();
        assert_eq!(sum, space.device_bytes);
        let text = explained(&space);
        assert!(text.contains("garbage") && text.contains("30.0 %"), "{text}");
        assert!(text.contains("volumes/demo"), "{text}");
    }
}
