//! CPU time spent: by this process, and by the whole machine with its kernel threads.

use std::time::Duration;

/// CPU time at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuTimes {
    /// User and system time of this process, all threads.
    pub process: Duration,
    /// Time that all cores of the machine were not idle, in clock ticks' resolution: includes
    /// kernel threads, interrupts and whatever else runs.
    pub machine: Duration,
}

impl CpuTimes {
    /// Reads both clocks.
    pub fn now() -> CpuTimes {
        CpuTimes { process: process_time(), machine: machine_time().unwrap_or_default() }
    }

    /// What was spent since `earlier`.
    pub fn since(self, earlier: CpuTimes) -> CpuTimes {
        CpuTimes {
            process: self.process.saturating_sub(earlier.process),
            machine: self.machine.saturating_sub(earlier.machine),
        }
    }
}

fn process_time() -> Duration {
    let text = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    // schedstat of the process covers the main thread only; the tasks are summed instead.
    let mut total = 0u64;
    if let Ok(tasks) = std::fs::read_dir("/proc/self/task") {
        for task in tasks.flatten() {
            let one = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            total += one.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    if total == 0 {
        total = text.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
    }
    Duration::from_nanos(total)
}

/// Busy time of all cores: user, nice, system, irq, softirq of the first line of /proc/stat.
fn machine_time() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    let fields: Vec<u64> =
        text.lines().next()?.split_whitespace().skip(1).filter_map(|f| f.parse().ok()).collect();
    let busy =
        fields.first()? + fields.get(1)? + fields.get(2)? + fields.get(5)? + fields.get(6)?;
    // USER_HZ is 100 on every Linux architecture that Basalt runs on.
    Some(Duration::from_millis(busy * 10))
}
