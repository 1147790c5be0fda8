//! A killed cluster replays only the log behind its checkpoints.

use anyhow::{Context, Result, ensure};
use basalt_interop::cluster::{Cluster, PATIENCE, Shape};
use basalt_interop::process::{run, wait_until};
use serde_json::Value;
use std::fs::File;
use std::io::{Read, Write};

const SIZE: u64 = 128 << 20;
const EVERY: u64 = 8 << 20;

/// A number that each node says about itself.
fn each(cluster: &Cluster, field: &str) -> Result<Vec<u64>> {
    let status = cluster.basalt(&["cluster", "status"])?;
    let nodes = status.pointer("/nodes").and_then(Value::as_array).context("no nodes")?;
    let number = |node: &Value| node.get(field).and_then(Value::as_u64).unwrap_or(0);
    Ok(nodes.iter().map(number).collect())
}

#[test]
fn a_killed_node_replays_only_what_lies_behind_its_checkpoint() -> Result<()> {
    let every = EVERY.to_string();
    let shape = Shape { node_args: vec!["--checkpoint-every".into(), every], ..Shape::default() };
    let mut cluster = Cluster::start_with("reopen", &shape)?;
    let (data, back) = (cluster.folder().join("data"), cluster.folder().join("back"));
    let mut file = File::create(&data)?;
    std::io::copy(&mut File::open("/dev/urandom")?.take(SIZE), &mut file)?;
    file.flush()?;
    let (data, back) = (data.to_str().unwrap_or_default(), back.to_str().unwrap_or_default());
    cluster.basalt(&["volume", "create", "demo", "--size", "128MiB"])?;
    cluster.basalt(&["volume", "attach", "demo", "--host", "node-2"])?;
    let uri = cluster.nodes[1].uri("demo");
    cluster.wait_served(&uri)?;
    run("nbdcopy", &[data, &uri])?;
    // All of it is in every log; now a checkpoint reaches near its end on each node.
    wait_until("every node has taken checkpoints", PATIENCE, || {
        Ok(each(&cluster, "checkpoint")?.iter().all(|number| *number >= 4))
    })?;
    cluster.kill()?;
    cluster.restart()?;
    let replayed = each(&cluster, "replayed_bytes")?;
    let from = each(&cluster, "opened_from_checkpoint")?;
    ensure!(from.iter().all(|number| *number >= 4), "opened from checkpoints {from:?}");
    // The one under way when the nodes were killed may be lost, and the log goes on while it is taken.
    ensure!(replayed.iter().all(|bytes| *bytes < SIZE / 2), "replayed {replayed:?} bytes");
    cluster.wait_served(&uri)?;
    run("nbdcopy", &[&uri, back])?;
    ensure!(std::fs::read(data)? == std::fs::read(back)?, "what is read differs");
    cluster.finish()
}
