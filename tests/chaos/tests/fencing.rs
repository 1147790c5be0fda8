//! Two clients on one volume: the one that lost it can change nothing any more, awake or asleep.

use basalt_chaos::measure::is_stopped;
use basalt_chaos::nbd::NbdClient;
use basalt_interop::cluster::Cluster;
use basalt_interop::process::wait_until;
use std::collections::BTreeSet;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);
const BLOCK: usize = 4096;
/// Requests that the old client has under way when it is stopped, and that it is given while it is.
const UNDER_WAY: u64 = 64;
const AREA_BLOCKS: u64 = 128;
const OLD: u8 = 0x0d;
const NEW: u8 = 0x4e;

#[test]
fn nothing_of_a_fenced_client_lands_after_it_was_resumed() {
    let cluster = Cluster::start("fencing").expect("a cluster");
    cluster.basalt(&["volume", "create", "shared", "--size", "64MiB"]).expect("a volume");
    let mut old = cluster.attach("shared", "old-host", false).expect("attached");
    let mut client = NbdClient::open(old.port, "shared", PATIENCE).expect("the export");
    client.write(0, &[OLD; BLOCK]).expect("a write before all this");

    for n in 0..UNDER_WAY {
        client.send_write(n * BLOCK as u64, &[OLD; BLOCK]).expect("sent");
    }
    old.process.signal(libc::SIGSTOP).expect("stopped");
    wait_until("it is stopped", PATIENCE, || is_stopped(old.process.id())).expect("stopped");
    // These stand in the socket until the process is resumed: they reach the cluster last of all.
    let late: BTreeSet<u64> = (0..UNDER_WAY)
        .map(|n| {
            let block = UNDER_WAY + n;
            client.send_write(block * BLOCK as u64, &[OLD; BLOCK]).expect("sent")
        })
        .collect();

    let mut new = cluster.attach("shared", "new-host", true).expect("moved");
    let mut owner = NbdClient::open(new.port, "shared", PATIENCE).expect("the export");
    for block in 0..AREA_BLOCKS {
        owner.write(block * BLOCK as u64, &[NEW; BLOCK]).expect("the new owner writes");
    }

    old.process.signal(libc::SIGCONT).expect("resumed");
    let mut failed = 0;
    while let Some(answer) = client.answer().expect("an answer or an end") {
        let is_late = late.contains(&answer.number);
        assert!(answer.error != 0 || !is_late, "a fenced write was acknowledged: {answer:?}");
        failed += u64::from(answer.error != 0);
        if answer.error != 0 && client.write(0, &[OLD; BLOCK]).is_ok() {
            panic!("the fenced client writes on");
        }
    }
    println!("fencing: {failed} writes of the old client failed before its connection was closed");
    assert!(NbdClient::open(old.port, "shared", PATIENCE).is_err(), "the old export is served");

    for block in 0..AREA_BLOCKS {
        let data = owner.read(block * BLOCK as u64, BLOCK as u32).expect("a read");
        assert!(data.iter().all(|byte| *byte == NEW), "block {block} holds something old");
    }
    wait_until("the process without a session ends", PATIENCE, || Ok(!old.process.alive()))
        .expect("it has nothing left to serve");
    new.process.stop(PATIENCE).expect("the new owner stops");
    cluster.finish().expect("the nodes stop");
}
