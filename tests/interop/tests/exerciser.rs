//! Random requests on several connections against a model, in quiet and while nodes die.

use anyhow::{Result, ensure};
use basalt_interop::cluster::{Cluster, PATIENCE, Shape};
use basalt_interop::process::{Program, wait_until};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the rest of a run may take once it is past its last fault.
const END: Duration = Duration::from_secs(300);

/// A run of `exerciser.py`.
struct Run {
    program: Program,
    log: PathBuf,
}

impl Run {
    fn start(uri: &str, folder: &Path, seed: u32, requests: u32) -> Result<Run> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/exerciser.py");
        let log = folder.join(format!("exerciser-{seed}.log"));
        let program = Program::new("/usr/bin/python3")
            .args(["-B", script, uri, &seed.to_string(), &requests.to_string()])
            .log(log.clone())
            .start()?;
        Ok(Run { program, log })
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Requests begun so far.
    fn requests(&self) -> u32 {
        let said = self.said();
        let counts = said.lines().filter_map(|line| line.strip_suffix(" requests"));
        counts.filter_map(|count| count.parse().ok()).next_back().unwrap_or(0)
    }

    fn wait_for(&mut self, requests: u32) -> Result<()> {
        wait_until(&format!("{requests} requests were made"), PATIENCE, || {
            let alive = self.program.alive();
            ensure!(alive, "the exerciser ended{}", self.program.log_tail());
            Ok(self.requests() >= requests)
        })
    }

    fn finish(mut self) -> Result<()> {
        self.program.wait(END)?;
        let said = self.said();
        let verdict = said.lines().last().unwrap_or_default();
        ensure!(verdict.contains("no difference"), "the exerciser did not finish: {said}");
        println!("{verdict}");
        Ok(())
    }
}

#[test]
fn random_requests_in_quiet_and_while_nodes_die() -> Result<()> {
    let shape = Shape { device: "8GiB", ..Shape::default() };
    let mut cluster = Cluster::start_with("exerciser", &shape)?;
    cluster.basalt(&["volume", "create", "disk", "--size", "24MiB"])?;
    let mut attached = cluster.attach("disk", "client", false)?;
    let uri = attached.uri("disk");
    Run::start(&uri, cluster.folder(), 1, 12_000)?.finish()?;

    let mut run = Run::start(&uri, cluster.folder(), 2, 16_000)?;
    for (step, node) in [0, 1, 2].into_iter().enumerate() {
        let at = 4_000 * step as u32 + 2_000;
        run.wait_for(at)?;
        cluster.nodes[node].process.kill()?;
        run.wait_for(at + 1_000)?;
        cluster.nodes[node].process.restart()?;
        cluster.wait_healthy()?;
    }
    run.wait_for(13_000)?;
    cluster.nodes[0].freeze()?;
    run.wait_for(14_000)?;
    cluster.nodes[0].thaw()?;
    run.finish()?;

    // All at once, with requests under way: the clients wait until the nodes are there again.
    let mut run = Run::start(&uri, cluster.folder(), 3, 4_000)?;
    run.wait_for(1_000)?;
    cluster.kill()?;
    cluster.restart()?;
    run.finish()?;
    attached.process.stop(PATIENCE)?;
    cluster.finish()
}
