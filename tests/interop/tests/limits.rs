//! Bounds on a volume hold for its host, on a node's own door and on `basalt-attach`, and change while it is written.

use anyhow::{Context, Result, ensure};
use basalt_interop::cluster::{Cluster, PATIENCE};
use basalt_interop::process::{run, wait_until};
use serde_json::Value;

const WRITES: u64 = 400;

/// Writes a second that fio comes to, with so many writes of a size.
fn rate(uri: &str, size: &str, writes: u64) -> Result<f64> {
    let number = format!("--number_ios={writes}");
    let (uri, size) = (format!("--uri={uri}"), format!("--bs={size}"));
    let job = [
        "--name=limits",
        "--ioengine=nbd",
        &uri,
        "--rw=randwrite",
        &size,
        "--iodepth=16",
        "--size=64m",
        &number,
        "--output-format=json",
    ];
    let said = run("fio", &job)?;
    let report = &said[said.find('{').context("fio's report")?..];
    let report: Value = serde_json::from_str(report).with_context(|| said.clone())?;
    report["jobs"][0]["write"]["iops_mean"]
        .as_f64()
        .filter(|iops| *iops > 0.0)
        .or_else(|| report["jobs"][0]["write"]["iops"].as_f64())
        .context("fio tells no rate")
}

/// The bounds change while the volume is served; they can only make it slower, so that a busy machine fails nothing.
fn bounded(cluster: &Cluster, volume: &str, uri: &str) -> Result<()> {
    let update = |words: &[&str]| cluster.basalt(&[&["volume", "update", volume], words].concat());
    let holds = |what: &str, most: f64, size: &str| {
        wait_until(what, PATIENCE, || {
            let found = rate(uri, size, WRITES)?;
            println!("{volume}: {what}: {found:.0} a second");
            Ok(found <= most)
        })
    };
    update(&["--iops-max", "200", "--iops-burst", "1"])?;
    holds("200 requests a second", 210.0, "4k")?;
    // 256 KiB count as eight requests.
    holds("large requests count more", 30.0, "256k")?;
    update(&["--iops-max", "0", "--iops-burst", "0", "--bandwidth-max", "4MiB"])?;
    holds("4 MiB a second", 80.0, "64k")?;
    let shown = update(&["--bandwidth-max", "0"])?;
    ensure!(shown["effective_qos"].is_null(), "{shown}");
    // A second of what would have been twenty.
    wait_until("no bound any more", PATIENCE, || Ok(rate(uri, "64k", WRITES)? > 80.0))
}

#[test]
fn bounds_hold_and_change_under_way() -> Result<()> {
    let cluster = Cluster::start("limits")?;
    cluster.basalt(&["volume", "create", "own", "--size", "64MiB"])?;
    cluster.basalt(&["volume", "attach", "own", "--host", "node-1"])?;
    let uri = cluster.nodes[0].uri("own");
    cluster.wait_served(&uri)?;
    bounded(&cluster, "own", &uri)?;
    cluster.basalt(&["volume", "create", "other", "--size", "64MiB"])?;
    let mut attached = cluster.attach("other", "host-1", false)?;
    bounded(&cluster, "other", &attached.uri("other"))?;
    attached.process.stop(PATIENCE)?;
    // Of a class, from the first request on.
    cluster.basalt(&["class", "create", "slow", "--iops-max", "100", "--iops-burst", "1"])?;
    cluster.basalt(&["volume", "update", "other", "--class", "slow"])?;
    let mut attached = cluster.attach("other", "host-2", true)?;
    let found = rate(&attached.uri("other"), "4k", 100)?;
    ensure!(found <= 105.0, "{found} a second");
    attached.process.stop(PATIENCE)?;
    cluster.finish()
}
