//! Many cuts of many runs.

use super::check::{Cut, Images, KINDS, first_images, judge};
use super::record::Run;
use crate::random::Random;
use anyhow::{Result, bail};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How much is done.
#[derive(Clone, Copy, Debug)]
pub struct Campaign {
    /// Seed of everything that is drawn. The runs themselves are of real threads, and differ.
    pub seed: u64,
    /// Runs that are recorded.
    pub runs: u64,
    /// Cuts of each run: one of each kind and atom at the last instant, the others drawn.
    pub cuts: u64,
    /// Whether the devices lie about durability.
    pub lying: bool,
}

/// How it went.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Instants that were noted.
    pub instances: u64,
    /// Cuts that were judged.
    pub cuts: u64,
    /// Images that were built, opened and read.
    pub images: Images,
    /// Time spent on cuts.
    pub time: Duration,
    /// What was found, with the cut.
    pub findings: Vec<String>,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let minutes = self.time.as_secs_f64() / 60.0;
        write!(
            f,
            "{} instants noted, {} power cuts, {} images, {:.0} images a minute, {} with a loss",
            self.instances,
            self.cuts,
            self.images,
            self.images as f64 / minutes.max(1e-9),
            self.findings.len()
        )
    }
}

impl Campaign {
    /// Carries it out, with the devices of the runs in `folder`.
    ///
    /// # Errors
    /// If a run fails with the power on. What cuts reveal is in the report.
    pub fn carry_out(&self, folder: &Path) -> Result<Report> {
        let mut report = Report::default();
        for number in 0..self.runs {
            let seed = self.seed.wrapping_add(number);
            let mut run = Run::record(&folder.join(format!("run-{seed}")), seed)?;
            if run.instances.len() < 2 {
                bail!("the run {seed} was too quick to be observed");
            }
            if self.lying {
                run = run.on_lying_devices();
            }
            report.instances += run.instances.len() as u64;
            let before = report.findings.len();
            let first = self.judge_all(&run, &mut report);
            if let Some(cut) = first.filter(|_| !self.lying) {
                keep(&run, cut, &folder.join(format!("finding-{seed}")))?;
            }
            let found = report.findings.len() - before;
            println!(
                "run {seed}: {} instants, {found} of its cuts with a loss",
                run.instances.len()
            );
        }
        Ok(report)
    }

    /// Gives the first cut that found something.
    fn judge_all(&self, run: &Run, report: &mut Report) -> Option<Cut> {
        let cuts = self.cuts_of(run);
        let began = Instant::now();
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let (next, images) = (AtomicU64::new(0), AtomicU64::new(0));
        let findings = Mutex::new(Vec::new());
        let work = || {
            while let Some(cut) = cuts.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                match judge(run, *cut) {
                    Ok(count) => _ = images.fetch_add(count, Ordering::Relaxed),
                    Err(text) => {
                        let (kind, at) = (KINDS[cut.kind], run.instances[cut.instance]);
                        let line = format!("run {} {kind} {cut:?} {at:?}: {text}", run.seed);
                        findings.lock().unwrap_or_else(PoisonError::into_inner).push((*cut, line));
                    }
                }
            }
        };
        std::thread::scope(|scope| (0..threads).for_each(|_| _ = scope.spawn(work)));
        report.time += began.elapsed();
        report.cuts += cuts.len() as u64;
        report.images += images.into_inner();
        let findings = findings.into_inner().unwrap_or_else(PoisonError::into_inner);
        let first = findings.first().map(|(cut, _)| *cut);
        report.findings.extend(findings.into_iter().map(|(_, line)| line));
        first
    }

    fn cuts_of(&self, run: &Run) -> Vec<Cut> {
        let mut random = Random::new(run.seed ^ 0x6375_7473);
        let instance = run.instances.len() - 1;
        let mut cuts = Vec::new();
        for kind in 0..KINDS.len() {
            for atom in [512, 4096] {
                cuts.push(Cut { instance, kind, atom, seed: random.bits(), twice: false });
            }
        }
        while (cuts.len() as u64) < self.cuts {
            cuts.push(Cut::draw(run, &mut random));
        }
        cuts
    }
}

/// Keeps the devices after a cut, for whoever looks for the reason.
fn keep(run: &Run, cut: Cut, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let images = first_images(run, cut, &mut Random::new(cut.seed));
    for (n, image) in images.iter().enumerate() {
        std::fs::write(folder.join(format!("device-{n}")), image)?;
    }
    println!("the devices of {cut:?} are kept in {}", folder.display());
    Ok(())
}
