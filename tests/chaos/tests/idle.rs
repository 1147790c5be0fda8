//! A cluster that nobody uses uses nothing.

use basalt_chaos::measure::{cpu_time, resident_bytes};
use basalt_interop::cluster::Cluster;
use std::time::{Duration, Instant};

/// A process that was asked to stop ends within seconds, whatever the disk does.
const PATIENCE: Duration = Duration::from_secs(20);
const MEASURED: Duration = Duration::from_secs(20);
/// What groups, links and checkpoints take to come to rest: groups sleep after five seconds.
const REST: Duration = Duration::from_secs(12);
/// The promise is 2 %; a busy machine makes each wake-up dearer.
const CPU_MAX: f64 = 0.20;
const RESIDENT_MAX: u64 = 150 << 20;

#[test]
fn an_idle_cluster_uses_little_of_a_core_and_of_memory() {
    let cluster = Cluster::start("idle").expect("a cluster");
    cluster.basalt(&["volume", "create", "idle", "--size", "1GiB"]).expect("a volume");
    let mut attached = cluster.attach("idle", "idle-host", false).expect("attached");
    // Nothing can be waited for: rest is the absence of events.
    std::thread::sleep(REST);
    let processes: Vec<u32> = cluster.nodes.iter().map(|node| node.process.id()).collect();
    let used = || -> Duration { processes.iter().map(|p| cpu_time(*p).expect("it runs")).sum() };
    let (began, before) = (Instant::now(), used());
    std::thread::sleep(MEASURED);
    let share = (used() - before).as_secs_f64() / began.elapsed().as_secs_f64();
    println!("idle: {:.2} % of a core for {} nodes together", share * 100.0, processes.len());
    for process in &processes {
        let resident = resident_bytes(*process).expect("it runs");
        println!("idle: a node keeps {} MiB in memory", resident >> 20);
        assert!(resident < RESIDENT_MAX, "an idle node keeps {} MiB", resident >> 20);
    }
    assert!(share < CPU_MAX, "an idle cluster uses {:.1} % of a core", share * 100.0);
    attached.process.stop(PATIENCE).expect("basalt-attach stops");
    cluster.finish().expect("the nodes stop");
}
