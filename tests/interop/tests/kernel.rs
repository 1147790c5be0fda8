//! The Linux kernel's NBD client against the three-node cluster.

use anyhow::{Context, Result, bail};
use basalt_interop::cluster::{Cluster, Node, PATIENCE, Shape};
use basalt_interop::guest::{Guest, Segment};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A job takes a minute or two; the machine may be busy.
const JOB: Duration = Duration::from_secs(600);

fn node<'a>(cluster: &'a mut Cluster, number: &str) -> Result<&'a mut Node> {
    let number: usize = number.parse().context("a node's number")?;
    cluster.nodes.get_mut(number.wrapping_sub(1)).context("no such node")
}

/// What a job may ask for.
fn carry_out(cluster: &mut Cluster, words: &[&str]) -> Result<()> {
    match words {
        ["kill", number] => node(cluster, number)?.process.kill(),
        ["start", number] => {
            node(cluster, number)?.process.restart()?;
            cluster.wait_healthy()
        }
        ["freeze", number] => node(cluster, number)?.freeze(),
        ["thaw", number] => {
            node(cluster, number)?.thaw()?;
            cluster.wait_healthy()
        }
        _ => bail!("nobody knows how to '{}'", words.join(" ")),
    }
}

#[test]
fn file_systems_and_raw_access_of_a_real_kernel() -> Result<()> {
    let segment = Segment::new()?;
    let shape = Shape { device: "6GiB", ..Shape::default() };
    let mut cluster = Cluster::start_with("kernel", &shape)?;
    cluster.basalt(&["volume", "create", "disk", "--size", "512MiB"])?;
    let socket = segment.listen_nbd()?;
    let mut attached = cluster.attach_on("disk", "client", false, Some(socket))?;
    let folder = cluster.folder().to_owned();
    let mut guest = Guest::boot(&segment, &folder, "filesystems.sh", &[])?;
    guest.run(JOB, |words| carry_out(&mut cluster, words))?;
    print!("{}", guest.said());
    drop(guest);
    attached.process.stop(PATIENCE)?;
    cluster.finish()
}

/// Where the bank tells of its transfers.
const BANK_PORT: u16 = 10811;
const CUTS: u32 = 4;
/// Transfers of a round before the power goes: the first that come, and a number that differs from
/// round to round.
const TRANSFERS: u64 = 60;

/// Tells the bank of the next round which transfer was the last of which the host knows, and listens
/// for more until the guest is gone.
fn listen_to_bank(listener: &TcpListener, told: &Arc<AtomicU64>) -> Result<()> {
    let (listener, told) = (listener.try_clone()?, told.clone());
    std::thread::spawn(move || -> Result<()> {
        let (mut stream, _) = listener.accept()?;
        writeln!(stream, "{}", told.load(Ordering::SeqCst))?;
        for line in BufReader::new(stream).lines() {
            told.fetch_max(line?.parse()?, Ordering::SeqCst);
        }
        Ok(())
    });
    Ok(())
}

#[test]
fn a_bank_in_sqlite_balances_after_every_power_cut() -> Result<()> {
    let segment = Segment::new()?;
    let mut cluster = Cluster::start("bank")?;
    cluster.basalt(&["volume", "create", "bank", "--size", "128MiB"])?;
    let folder = cluster.folder().to_owned();
    let bank = segment.listen(BANK_PORT)?;
    let told = Arc::new(AtomicU64::new(0));
    for round in 1..=CUTS {
        let socket = segment.listen_nbd()?;
        let mut attached = cluster.attach_on("bank", "client", false, Some(socket))?;
        listen_to_bank(&bank, &told)?;
        let setting = format!("BASALT_ROUND={round}");
        let mut guest = Guest::boot(&segment, &folder, "bank.sh", &[&setting])?;
        let goal = told.load(Ordering::SeqCst) + TRANSFERS + 7 * u64::from(round);
        guest.run_until(JOB, || told.load(Ordering::SeqCst) >= goal)?;
        // The guest and the storage lose power, now the one first, now the other.
        if round % 2 == 0 {
            cluster.kill()?;
            guest.cut_power()?;
            attached.process.kill()?;
        } else {
            guest.cut_power()?;
            attached.process.kill()?;
            cluster.kill()?;
        }
        cluster.restart()?;
    }
    let socket = segment.listen_nbd()?;
    let mut attached = cluster.attach_on("bank", "client", false, Some(socket))?;
    listen_to_bank(&bank, &told)?;
    let mut guest = Guest::boot(&segment, &folder, "bank.sh", &["BASALT_ROUND=0"])?;
    guest.run(JOB, |words| carry_out(&mut cluster, words))?;
    print!("{}", guest.said());
    drop(guest);
    attached.process.stop(PATIENCE)?;
    cluster.finish()
}
