//! `basalt why` names what takes the time of a volume's requests, whoever serves the volume: a bound that was set, a
//! link that is slow.

use anyhow::{Context, Result, ensure};
use basalt_interop::cluster::{Cluster, PATIENCE, Shape};
use basalt_interop::lan::Lan;
use basalt_interop::process::{run, wait_until};
use serde_json::Value;
use std::sync::Arc;

/// Writes of a size, so many at a time, for two seconds.
fn write(uri: &str, size: &str, depth: u32) -> Result<()> {
    let (uri, size) = (format!("--uri={uri}"), format!("--bs={size}"));
    let depth = format!("--iodepth={depth}");
    let job = [
        "--name=why",
        "--ioengine=nbd",
        &uri,
        "--rw=randwrite",
        &size,
        &depth,
        "--size=64m",
        "--time_based",
        "--runtime=2",
    ];
    run("fio", &job).map(drop)
}

/// What is said of a volume's writes, of which stages add up to what they took.
fn writes(cluster: &Cluster, at: usize, volume: &str) -> Result<Option<(Value, Value)>> {
    let found = cluster.basalt_at(at, &["why", volume])?;
    let requests = found["requests"].as_array().context("requests")?;
    let Some(of) = requests.iter().find(|of| of["kind"] == "write") else { return Ok(None) };
    for band in ["all", "middle", "slowest"] {
        let total = of[band]["total_ns"].as_u64().context("a total")?;
        let parts = of[band]["parts"].as_array().context("parts")?;
        let sum: u64 = parts.iter().filter_map(|part| part["nanoseconds"].as_u64()).sum();
        ensure!(total > 0 && total.abs_diff(sum) <= parts.len() as u64, "{band} of {of}");
    }
    let of = of.clone();
    Ok(Some((found, of)))
}

/// The share of stages in the time of the ordinary writes, in percent.
fn share(of: &Value, stages: &[&str]) -> Result<u64> {
    let band = &of["middle"];
    let parts = band["parts"].as_array().context("parts")?;
    let named = parts.iter().filter(|part| stages.iter().any(|stage| part["stage"] == **stage));
    let sum: u64 = named.filter_map(|part| part["nanoseconds"].as_u64()).sum();
    Ok(sum * 100 / band["total_ns"].as_u64().context("a total")?.max(1))
}

/// Sets a bound while the volume is written, and waits until it is what takes the time.
fn names_the_bound(cluster: &Cluster, volume: &str, uri: &str) -> Result<()> {
    cluster.basalt(&["volume", "update", volume, "--iops-max", "100", "--iops-burst", "1"])?;
    wait_until("the bound is named", PATIENCE, || {
        write(uri, "4k", 16)?;
        // Any node answers.
        for at in 0..3 {
            let Some((found, of)) = writes(cluster, at, volume)? else { return Ok(false) };
            let verdict = found["verdict"].as_str().context("a verdict")?;
            println!("{volume}, asked at {}: {verdict}", at + 1);
            let named = verdict.contains("100 requests a second (--iops-max)");
            if share(&of, &["limit"])? < 60 || !named {
                return Ok(false);
            }
        }
        Ok(true)
    })
}

#[test]
fn a_bound_is_named_on_a_node_and_on_a_host() -> Result<()> {
    let cluster = Cluster::start("why")?;
    let unknown = cluster.basalt(&["volume", "create", "own", "--size", "64MiB"])?;
    ensure!(unknown["name"] == "volumes/own", "{unknown}");
    let unknown = cluster.basalt(&["why", "own"])?;
    let said = unknown["unknown"].as_str().context("why nothing is known")?;
    ensure!(said.contains("not attached"), "{unknown}");
    cluster.basalt(&["volume", "attach", "own", "--host", "node-1"])?;
    let uri = cluster.nodes[0].uri("own");
    cluster.wait_served(&uri)?;
    write(&uri, "4k", 1)?;
    let (_, of) = writes(&cluster, 1, "own")?.context("writes were traced")?;
    ensure!(of["requests"].as_u64() >= Some(5), "{of}");
    ensure!(share(&of, &["limit"])? < 10, "{of}");
    names_the_bound(&cluster, "own", &uri)?;
    cluster.basalt(&["volume", "create", "other", "--size", "64MiB"])?;
    let mut attached = cluster.attach("other", "host-1", false)?;
    names_the_bound(&cluster, "other", &attached.uri("other"))?;
    attached.process.stop(PATIENCE)?;
    cluster.finish()
}

#[test]
fn a_slow_link_is_named() -> Result<()> {
    let lan = Arc::new(Lan::new(3)?);
    let shape = Shape { lan: Some(lan.clone()), ..Shape::default() };
    let mut cluster = Cluster::start_with("why-link", &shape)?;
    cluster.basalt(&["volume", "create", "demo", "--size", "64MiB"])?;
    cluster.basalt(&["volume", "attach", "demo", "--host", "node-1"])?;
    let uri = cluster.nodes[0].uri("demo");
    cluster.wait_served(&uri)?;
    write(&uri, "64k", 1)?;
    let (_, before) = writes(&cluster, 0, "demo")?.context("writes were traced")?;
    // The only other node that is left takes a twentieth of a second to be told of 64 KiB.
    cluster.nodes[2].process.stop(PATIENCE)?;
    lan.throttle(2, "10mbit")?;
    wait_until("the link is named", PATIENCE, || {
        write(&uri, "64k", 1)?;
        let Some((found, of)) = writes(&cluster, 0, "demo")? else { return Ok(false) };
        println!("{}", found["verdict"]);
        let verdict = found["verdict"].as_str().context("a verdict")?;
        let named = verdict.contains("node-2") || verdict.contains("between the leader");
        Ok(named && share(&of, &["link", "follower_link"])? >= 60)
    })?;
    let (_, after) = writes(&cluster, 0, "demo")?.context("writes were traced")?;
    ensure!(after["median_ns"].as_u64() > before["median_ns"].as_u64(), "{before}\n{after}");
    cluster.discard();
    Ok(())
}
