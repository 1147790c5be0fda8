//! The whole way once: bootstrap, create, attach, data in and out, restarts, moves, deletion.

use anyhow::{Context, Result, ensure};
use basalt_interop::cluster::{Cluster, PATIENCE};
use basalt_interop::process::{run, wait_until};
use serde_json::Value;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

const SIZE: u64 = 64 << 20;

fn random_file(path: &Path) -> Result<()> {
    let mut source = File::open("/dev/urandom")?.take(SIZE);
    let mut file = File::create(path)?;
    std::io::copy(&mut source, &mut file)?;
    Ok(file.flush()?)
}

fn same(one: &Path, other: &Path) -> Result<bool> {
    Ok(std::fs::read(one)? == std::fs::read(other)?)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

fn field<'a>(document: &'a Value, path: &str) -> Result<&'a Value> {
    document.pointer(path).with_context(|| format!("no {path} in {document}"))
}

#[test]
fn a_volume_lives_through_restarts_moves_and_deletion() -> Result<()> {
    let mut cluster = Cluster::start("smoke")?;
    let (data, back) = (cluster.folder().join("data"), cluster.folder().join("back"));
    random_file(&data)?;
    cluster.basalt(&["volume", "create", "demo", "--size", "64MiB", "--label", "of=smoke"])?;
    let shown = cluster.basalt(&["volume", "show", "demo"])?;
    ensure!(field(&shown, "/size_bytes")? == SIZE && field(&shown, "/labels/of")? == "smoke");
    let twice = cluster.basalt(&["volume", "create", "demo", "--size", "64MiB"]);
    ensure!(twice.is_err_and(|e| e.to_string().contains("exists already")));

    // A node serves it.
    cluster.basalt(&["volume", "attach", "demo", "--host", "node-2"])?;
    let uri = cluster.nodes[1].uri("demo");
    cluster.wait_served(&uri)?;
    let size = run("nbdinfo", &["--size", &uri])?;
    ensure!(size.trim() == SIZE.to_string(), "the export has {size} bytes");
    run("nbdcopy", &[text(&data), &uri])?;
    run("nbdcopy", &[&uri, text(&back)])?;
    ensure!(same(&data, &back)?, "what was read differs from what was written");

    // Everything stops in order and starts again: it is served again, by a new session.
    cluster.stop()?;
    cluster.restart()?;
    cluster.wait_served(&uri)?;
    run("nbdcopy", &[&uri, text(&back)])?;
    ensure!(same(&data, &back)?, "a restart changed the data");

    // Another host is refused, unless the volume is moved; then it is the first that is shut out.
    let refused = cluster.basalt(&["volume", "attach", "demo", "--host", "node-1"]);
    ensure!(refused.is_err_and(|e| e.to_string().contains("attached to 'node-2'")));
    let mut attached = cluster.attach("demo", "elsewhere", true)?;
    wait_until("node-2 serves it no more", PATIENCE, || {
        Ok(run("nbdinfo", &["--size", &uri]).is_err())
    })?;
    run("nbdcopy", &[&attached.uri("demo"), text(&back)])?;
    ensure!(same(&data, &back)?, "the move changed the data");

    // A node dies: the front door goes on with the other two. All die: nothing is lost.
    cluster.nodes[0].process.kill()?;
    random_file(&data)?;
    run("nbdcopy", &[text(&data), &attached.uri("demo")])?;
    cluster.nodes[0].process.restart()?;
    cluster.kill()?;
    cluster.restart()?;
    run("nbdcopy", &[&attached.uri("demo"), text(&back)])?;
    ensure!(same(&data, &back)?, "power was lost, and data with it");

    // Deletion is refused while it is attached; a clean stop detaches it.
    let early = cluster.basalt(&["volume", "delete", "demo"]);
    ensure!(early.is_err_and(|e| e.to_string().contains("detach it first")));
    attached.process.stop(PATIENCE)?;
    cluster.basalt(&["volume", "delete", "demo"])?;
    let list = cluster.basalt(&["volume", "list"])?;
    ensure!(field(&list, "/volumes")?.as_array().is_some_and(Vec::is_empty), "{list}");
    cluster.finish()
}
