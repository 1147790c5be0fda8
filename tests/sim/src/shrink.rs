//! Makes a failing run smaller: fewer kinds of faults, then fewer clients, then fewer operations, then
//! less time, as long as the same class of rule is broken.

use crate::options::{Families, Family, Limits, Options};
use crate::report::{Class, Failure};
use crate::runner::{Job, run};

/// A smaller job that breaks the same class of rule, and how it fails. `say` is told each step.
pub fn shrink(job: &Job, class: Class, mut say: impl FnMut(String)) -> (Job, Option<Failure>) {
    let mut best = job.clone();
    let mut failure = None;
    let mut attempt = |candidate: Limits, best: &mut Job, what: String| {
        let trial = Job { limits: candidate, ..best.clone() };
        let found = run(&trial, false).failure.filter(|f| f.class == class);
        let smaller = found.is_some();
        if let Some(found) = found {
            say(format!("still fails {what}: {found}"));
            *best = trial;
            failure = Some(found);
        }
        smaller
    };
    let drawn = |job: &Job| Options::draw(job.seed, job.profile, &job.limits, job.planted);
    for family in drawn(&best).families.iter().collect::<Vec<Family>>() {
        let mut limits = best.limits.clone();
        limits.without = limits.without.with(family);
        attempt(limits, &mut best, format!("without {}", family.name()));
    }
    let volumes = drawn(&best).volumes;
    for clients in 1..volumes {
        let limits = Limits { clients: Some(clients), ..best.limits.clone() };
        if attempt(limits, &mut best, format!("with {clients} clients")) {
            break;
        }
    }
    let mut ops = drawn(&best).ops;
    while ops > 1 {
        ops /= 2;
        let limits = Limits { ops: Some(ops), ..best.limits.clone() };
        if !attempt(limits, &mut best, format!("with {ops} operations")) {
            break;
        }
    }
    let mut horizon = drawn(&best).horizon;
    while horizon > crate::queue::SECOND / 8 {
        horizon /= 2;
        let limits = Limits { horizon: Some(horizon), ..best.limits.clone() };
        if !attempt(limits, &mut best, format!("within {:.3} s", horizon as f64 / 1e9)) {
            break;
        }
    }
    (best, failure)
}

/// The arguments of the command line that repeat a job.
pub fn arguments(job: &Job, bug: Option<&str>) -> String {
    let mut out = format!("{} --profile {}", job.seed, job.profile.name());
    if job.limits.without != Families::NONE {
        out += &format!(" --without {:?}", job.limits.without);
    }
    if let Some(clients) = job.limits.clients {
        out += &format!(" --clients {clients}");
    }
    if let Some(ops) = job.limits.ops {
        out += &format!(" --ops {ops}");
    }
    if let Some(horizon) = job.limits.horizon {
        out += &format!(" --horizon {}", horizon / crate::queue::MILLI);
    }
    if let Some(bug) = bug {
        out += &format!(" --planted {bug}");
    }
    out
}
