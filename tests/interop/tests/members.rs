//! Nodes come and go while volumes are written to: growing, shrinking, a lost machine, a new generation of
//! machines.

use anyhow::{Context, Result, ensure};
use basalt_interop::cluster::{Attached, Cluster, PATIENCE, Shape};
use basalt_interop::fio::{FioJob, RunningFio};
use basalt_interop::process::{run, wait_until};
use serde_json::Value;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

const SIZE: u64 = 64 << 20;
/// How long groups may take to move: the machine may be busy.
const MOVES: Duration = Duration::from_secs(180);
/// How long a request may take, in milliseconds: several elections on a busy machine.
const STALL_MS: f64 = 10_000.0;

fn start(name: &str) -> Result<Cluster> {
    Cluster::start_with(name, &Shape { device: "512MiB", ..Shape::default() })
}

fn random_file(path: &Path) -> Result<()> {
    let mut source = File::open("/dev/urandom")?.take(SIZE);
    let mut file = File::create(path)?;
    std::io::copy(&mut source, &mut file)?;
    Ok(file.flush()?)
}

/// Random data on a volume, to be found there again.
struct Data {
    uri: String,
    written: PathBuf,
    read: PathBuf,
}

impl Data {
    fn write(cluster: &Cluster, uri: &str) -> Result<Data> {
        let file = |name: &str| cluster.folder().join(name);
        let data = Data { uri: uri.to_owned(), written: file("written"), read: file("read") };
        random_file(&data.written)?;
        run("nbdcopy", &[&data.written.to_string_lossy(), uri])?;
        Ok(data)
    }

    fn verify(&self, when: &str) -> Result<()> {
        run("nbdcopy", &[&self.uri, &self.read.to_string_lossy()])?;
        let same = std::fs::read(&self.written)? == std::fs::read(&self.read)?;
        ensure!(same, "{when}: what was read differs from what was written");
        Ok(())
    }
}

/// A volume on another host, and one that a node serves.
fn volumes(cluster: &Cluster, host: usize) -> Result<(Attached, String)> {
    for name in ["still", "busy"] {
        cluster.basalt(&["volume", "create", name, "--size", "64MiB"])?;
    }
    cluster.basalt(&["volume", "attach", "busy", "--host", &cluster.nodes[host].name])?;
    let uri = cluster.nodes[host].uri("busy");
    cluster.wait_served(&uri)?;
    Ok((cluster.attach("still", "elsewhere", false)?, uri))
}

/// Each block of a volume once, which takes half a minute, and all read back and verified then.
fn writes(uri: &str) -> Result<RunningFio> {
    let mut job = FioJob::verified_writes(uri, SIZE);
    job.rate_bytes = Some(2 << 20);
    job.start()
}

/// All was written and found again, and none of it had to wait for long.
fn check(fio: RunningFio) -> Result<()> {
    let done = fio.finish()?;
    ensure!(done.write.requests == SIZE / 4096, "{} writes", done.write.requests);
    ensure!(done.max_ms() < STALL_MS, "a request took {:.0} ms", done.max_ms());
    Ok(())
}

/// All nodes, as the one that came last knows them.
fn nodes(cluster: &Cluster) -> Result<Vec<Value>> {
    let list = cluster.basalt_at(cluster.nodes.len() - 1, &["node", "list"])?;
    list.pointer("/nodes").and_then(Value::as_array).cloned().context("no nodes")
}

/// Waits until a node is no member any more.
fn gone(cluster: &Cluster, name: &str) -> Result<()> {
    wait_until(&format!("{name} is no member any more"), MOVES, || {
        Ok(nodes(cluster)?.iter().all(|node| node["name"] != name))
    })
}

/// Waits until a node has so many groups, no group moves and no node leaves.
fn settle(cluster: &Cluster, name: &str, groups: u64) -> Result<()> {
    wait_until(&format!("{name} has {groups} groups"), MOVES, || {
        let nodes = nodes(cluster)?;
        let rests = |node: &Value| {
            let moves = [&node["coming"], &node["going"]];
            moves.iter().all(|count| **count == 0) && node["leaving"] == false
        };
        let has = nodes.iter().any(|node| node["name"] == name && node["groups"] == groups);
        Ok(has && nodes.iter().all(rests))
    })?;
    cluster.wait_healthy()
}

#[test]
fn a_cluster_grows_and_shrinks_under_writes() -> Result<()> {
    let mut cluster = start("members")?;
    let (still, busy) = volumes(&cluster, 0)?;
    let data = Data::write(&cluster, &still.uri("still"))?;
    let fio = writes(&busy)?;

    let fourth = cluster.add_node(None)?;
    let name = cluster.nodes[fourth].name.clone();
    // 16 groups of 3 replicas on 4 nodes.
    settle(&cluster, &name, 12)?;
    cluster.basalt(&["node", "drain", "node-2", "--wait", "180"])?;
    settle(&cluster, "node-2", 0)?;
    check(fio)?;
    data.verify("drained")?;

    cluster.basalt(&["node", "remove", "node-2"])?;
    gone(&cluster, "node-2")?;
    cluster.discard_node(1)?;
    cluster.wait_healthy()?;
    data.verify("removed")?;
    // What came to a node is there again after a start, and what went is not.
    cluster.kill()?;
    cluster.restart()?;
    settle(&cluster, &name, 16)?;
    data.verify("started again")?;
    cluster.finish()
}

#[test]
fn a_lost_machine_is_replaced() -> Result<()> {
    let mut cluster = start("replaced")?;
    let (still, busy) = volumes(&cluster, 0)?;
    let data = Data::write(&cluster, &still.uri("still"))?;
    let fio = writes(&busy)?;
    cluster.discard_node(2)?;
    let new = cluster.add_node(Some("node-3"))?;
    let name = cluster.nodes[new].name.clone();
    gone(&cluster, "node-3")?;
    settle(&cluster, &name, 16)?;
    check(fio)?;
    data.verify("replaced")?;
    // It counts: another one may be away now.
    cluster.nodes[1].process.kill()?;
    data.verify("with the new node in a quorum")?;
    cluster.nodes[1].process.restart()?;
    cluster.wait_healthy()?;
    cluster.finish()
}

#[test]
fn a_node_that_lost_all_it_knew_does_not_vote_again_under_its_number() -> Result<()> {
    let mut cluster = start("amnesia")?;
    let (still, _) = volumes(&cluster, 0)?;
    let data = Data::write(&cluster, &still.uri("still"))?;
    // Its machine gets a new disk, and comes up with its old name and addresses.
    cluster.nodes[2].process.kill()?;
    std::fs::remove_dir_all(&cluster.nodes[2].folder)?;
    cluster.nodes[2].process.restart()?;
    cluster.nodes[2].wait_answers()?;
    let addresses: Vec<String> = cluster.nodes.iter().map(|node| node.address()).collect();
    let mut words = vec!["cluster", "bootstrap"];
    words.extend(addresses.iter().flat_map(|address| ["--node", address]));
    let refused = cluster.basalt(&words).err().context("it was taken for what it was")?;
    ensure!(format!("{refused:#}").contains("--replaces node-3"), "{refused:#}");

    // Asked of the others: it belongs to no cluster itself.
    let others = cluster.nodes[..2].iter().map(|node| node.address()).collect::<Vec<_>>().join(",");
    cluster.ask(&others, &["node", "add", &addresses[2], "--replaces", "node-3"])?;
    let old = |node: &Value| node["id"] == 3;
    wait_until("the new node has taken over", MOVES, || {
        let list = cluster.ask(&others, &["node", "list"])?;
        let named = list.pointer("/nodes").and_then(Value::as_array).context("no nodes")?;
        Ok(named.len() == 3 && named.iter().all(|node| !old(node)))
    })?;
    settle(&cluster, "node-3", 16)?;
    data.verify("replaced by itself")?;
    cluster.nodes[0].process.kill()?;
    data.verify("with the new node in a quorum")?;
    cluster.nodes[0].process.restart()?;
    cluster.wait_healthy()?;
    cluster.finish()
}

#[test]
fn a_node_that_comes_back_blank_takes_its_own_place() -> Result<()> {
    let node_args = ["--replace-blank-after", "2s"].map(str::to_owned).to_vec();
    let shape = Shape { device: "512MiB", node_args, ..Shape::default() };
    let mut cluster = Cluster::start_with("blank", &shape)?;
    let (still, busy) = volumes(&cluster, 0)?;
    let data = Data::write(&cluster, &still.uri("still"))?;
    let fio = writes(&busy)?;
    // One that was only away is what it was.
    cluster.nodes[2].process.kill()?;
    cluster.nodes[2].process.restart()?;
    cluster.wait_healthy()?;
    cluster.nodes[2].process.kill()?;
    std::fs::remove_dir_all(&cluster.nodes[2].folder)?;
    cluster.nodes[2].process.restart()?;
    cluster.nodes[2].wait_answers()?;
    // Asked of the others: it belongs to no cluster itself at first.
    let others = cluster.nodes[..2].iter().map(|node| node.address()).collect::<Vec<_>>().join(",");
    wait_until("it is replaced by itself", MOVES, || {
        let list = cluster.ask(&others, &["node", "list"])?;
        let named = list.pointer("/nodes").and_then(Value::as_array).context("no nodes")?;
        Ok(named.len() == 3 && named.iter().any(|node| node["id"] == 4))
    })?;
    settle(&cluster, "node-3", 16)?;
    cluster.wait_healthy()?;
    check(fio)?;
    data.verify("replaced by itself")?;
    // Once, and it counts: another one may be away now.
    cluster.nodes[0].process.kill()?;
    data.verify("with the new node in a quorum")?;
    cluster.nodes[0].process.restart()?;
    cluster.wait_healthy()?;
    let list = cluster.basalt(&["node", "list"])?;
    let named = list.pointer("/nodes").and_then(Value::as_array).context("no nodes")?;
    let mut numbers: Vec<_> = named.iter().filter_map(|node| node["id"].as_u64()).collect();
    numbers.sort_unstable();
    ensure!(numbers == [1, 2, 4], "{list}");
    cluster.finish()
}

#[test]
fn a_volume_outlives_all_the_nodes_that_it_began_with() -> Result<()> {
    let mut cluster = start("generations")?;
    cluster.basalt(&["volume", "create", "still", "--size", "64MiB"])?;
    let mut still = cluster.attach("still", "elsewhere", false)?;
    let data = Data::write(&cluster, &still.uri("still"))?;
    for old in ["node-1", "node-2", "node-3"] {
        let new = cluster.add_node(Some(old))?;
        let name = cluster.nodes[new].name.clone();
        gone(&cluster, old)?;
        cluster.discard_node(cluster.place_of(old)?)?;
        settle(&cluster, &name, 16)?;
        data.verify(old)?;
    }
    cluster.wait_healthy()?;
    ensure!(still.process.alive(), "basalt-attach ended{}", still.process.log_tail());
    still.process.stop(PATIENCE)?;
    let shown = cluster.basalt(&["volume", "show", "still"])?;
    ensure!(shown["attachment"].is_null(), "it was given back to nodes that are gone: {shown}");
    cluster.finish()
}

#[test]
fn a_device_that_failed_is_replaced_by_one_command() -> Result<()> {
    let mut cluster = start("device")?;
    cluster.basalt(&["volume", "create", "still", "--size", "64MiB"])?;
    let mut still = cluster.attach("still", "elsewhere", false)?;
    let data = Data::write(&cluster, &still.uri("still"))?;
    let replace = ["device", "replace", "node-3", "--wait", "180"];
    let refused = cluster.basalt(&replace).err().context("its device is at work")?;
    ensure!(format!("{refused:#}").contains("at work"), "{refused:#}");
    // The node is stopped, and comes back with neither its records nor its data.
    let at = cluster.place_of("node-3")?;
    cluster.nodes[at].process.kill()?;
    std::fs::remove_dir_all(&cluster.nodes[at].folder)?;
    cluster.nodes[at].process.restart()?;
    cluster.nodes[at].wait_answers()?;
    cluster.basalt(&replace)?;
    cluster.wait_healthy()?;
    let list = cluster.basalt(&["device", "list"])?;
    let devices = list["devices"].as_array().context("no devices")?;
    ensure!(devices.len() == 3, "{list}");
    ensure!(devices.iter().all(|device| device["state"] == "running"), "{list}");
    // It counts: another one may be away now.
    cluster.nodes[0].process.kill()?;
    data.verify("with the new device in a quorum")?;
    cluster.nodes[0].process.restart()?;
    cluster.wait_healthy()?;
    still.process.stop(PATIENCE)?;
    cluster.finish()
}
