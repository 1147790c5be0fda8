//! A volume grows while it is written and verified, on a node's own door and on `basalt-attach`.

use anyhow::{Context, Result, ensure};
use basalt_interop::cluster::{Cluster, PATIENCE};
use basalt_interop::fio::{FioJob, RunningFio};
use basalt_interop::process::{run, wait_until};
use serde_json::Value;

const MIB: u64 = 1 << 20;
/// One chunk in one group, so that growth leads into groups that the session has not fenced yet.
const BEFORE: u64 = 4 * MIB;
const BETWEEN: u64 = 64 * MIB;
const AFTER: u64 = 192 * MIB;

fn size(uri: &str) -> Result<u64> {
    Ok(run("nbdinfo", &["--size", uri])?.trim().parse()?)
}

fn wait_size(uri: &str, wanted: u64) -> Result<()> {
    wait_until(&format!("{uri} has {wanted} bytes"), PATIENCE, || Ok(size(uri)? == wanted))
}

/// qemu-io commands; a pattern that is not there is an error.
fn io(uri: &str, commands: &[&str]) -> Result<()> {
    let mut words = vec!["-f", "raw", uri];
    commands.iter().for_each(|command| words.extend(["-c", command]));
    let said = run("qemu-io", &words)?;
    ensure!(!said.contains("verification failed"), "{said}");
    Ok(())
}

fn bytes(document: &Value) -> Result<u64> {
    document["size_bytes"].as_u64().with_context(|| format!("no size in {document}"))
}

/// fio at work on what the volume had from the start, long enough for it to grow meanwhile.
fn load(uri: &str) -> Result<RunningFio> {
    let mut job = FioJob::verified_writes(uri, BEFORE);
    job.rate_bytes = Some(BEFORE / 25);
    let fio = job.start()?;
    wait_until("fio writes", PATIENCE, || Ok(fio.written_bytes() > 0))?;
    Ok(fio)
}

/// Grows a volume in two steps under a running fio, and uses what is new.
fn grow(cluster: &Cluster, volume: &str, uri: &str, fio: &mut RunningFio) -> Result<()> {
    let grown = cluster.basalt(&["volume", "resize", volume, "--size", "64MiB"])?;
    ensure!(bytes(&grown)? == BETWEEN, "{grown}");
    wait_size(uri, BETWEEN)?;
    io(uri, &["read -P 0 4M 60M", "write -P 0x5a 4M 1M", "write -P 0xa5 63M 1M"])?;
    ensure!(!fio.ended()?, "fio ended before the volume had grown");
    let grown = cluster.basalt(&["volume", "resize", volume, "--size", "+128MiB"])?;
    ensure!(bytes(&grown)? == AFTER, "{grown}");
    wait_size(uri, AFTER)?;
    io(uri, &["read -P 0 64M 128M", "write -P 0x77 64M 128M", "read -P 0x5a 4M 1M"])
}

fn check(uri: &str) -> Result<()> {
    ensure!(size(uri)? == AFTER, "the export has {} bytes", size(uri)?);
    io(
        uri,
        &["read -P 0x5a 4M 1M", "read -P 0 5M 58M", "read -P 0xa5 63M 1M", "read -P 0x77 64M 128M"],
    )
}

#[test]
fn a_volume_grows_under_load_and_stays_grown() -> Result<()> {
    let mut cluster = Cluster::start("resize")?;
    for volume in ["here", "there"] {
        cluster.basalt(&["volume", "create", volume, "--size", "4MiB"])?;
    }
    cluster.basalt(&["volume", "attach", "here", "--host", "node-2"])?;
    let here = cluster.nodes[1].uri("here");
    cluster.wait_served(&here)?;
    let mut attached = cluster.attach("there", "elsewhere", false)?;
    let there = attached.uri("there");
    let (mut one, mut other) = (load(&here)?, load(&there)?);
    grow(&cluster, "here", &here, &mut one)?;
    grow(&cluster, "there", &there, &mut other)?;
    one.finish()?;
    other.finish()?;

    let shrunk = cluster.basalt(&["volume", "resize", "here", "--size", "64MiB"]);
    ensure!(shrunk.is_err_and(|e| e.to_string().contains("can not be made smaller")));
    let twice = cluster.basalt(&["volume", "resize", "here", "--size", "192MiB"])?;
    ensure!(bytes(&twice)? == AFTER, "{twice}");
    let nothing = cluster.basalt(&["volume", "resize", "nothing", "--size", "64MiB"]);
    ensure!(nothing.is_err_and(|e| e.to_string().contains("there is no volume")));

    // What was written behind the former end is there after all processes died.
    attached.process.kill()?;
    cluster.kill()?;
    cluster.restart()?;
    cluster.wait_served(&here)?;
    check(&here)?;
    let mut attached = cluster.attach("there", "elsewhere", false)?;
    check(&attached.uri("there"))?;

    // A volume that nobody has grows too, and its next host finds it so.
    attached.process.stop(PATIENCE)?;
    cluster.basalt(&["volume", "resize", "there", "--size", "+64MiB"])?;
    let mut attached = cluster.attach("there", "another", false)?;
    let uri = attached.uri("there");
    ensure!(size(&uri)? == AFTER + 64 * MIB, "the export has {} bytes", size(&uri)?);
    io(&uri, &["read -P 0x77 64M 128M", "read -P 0 192M 64M"])?;
    attached.process.stop(PATIENCE)?;
    cluster.finish()
}
