//! What processes use.

use anyhow::{Context, Result};
use std::time::Duration;

/// CPU time that a process has used so far, all of its threads together.
///
/// # Errors
/// If there is no such process.
pub fn cpu_time(process: u32) -> Result<Duration> {
    let path = format!("/proc/{process}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    // The second field is the name in parentheses, which may hold anything.
    let rest = text.rsplit_once(')').context("a name in parentheses")?.1;
    let field = |n: usize| -> Result<u64> {
        Ok(rest.split_whitespace().nth(n).with_context(|| path.clone())?.parse()?)
    };
    // SAFETY: plain system call without pointers.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    let ticks = u64::try_from(ticks).ok().filter(|t| *t > 0).context("the length of a tick")?;
    let (user, system) = (field(11)?, field(12)?);
    Ok(Duration::from_nanos((user + system) * 1_000_000_000 / ticks))
}

/// Memory of a process that is in RAM, in bytes.
///
/// # Errors
/// If there is no such process.
pub fn resident_bytes(process: u32) -> Result<u64> {
    let path = format!("/proc/{process}/status");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse().context("VmRSS")?;
    Ok(kib << 10)
}

/// Bytes that a process had the machine write to storage so far, those of writes without a cache included.
///
/// # Errors
/// If there is no such process.
pub fn written_bytes(process: u32) -> Result<u64> {
    let path = format!("/proc/{process}/io");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes:"));
    line.context("write_bytes")?.trim().parse().context("write_bytes")
}

/// Whether all threads of a process are stopped: a signal says so only to be on its way.
///
/// # Errors
/// If there is no such process.
pub fn is_stopped(process: u32) -> Result<bool> {
    let path = format!("/proc/{process}/task");
    for thread in std::fs::read_dir(&path).with_context(|| path.clone())? {
        let text = std::fs::read_to_string(thread?.path().join("stat"))?;
        let rest = text.rsplit_once(')').context("a name in parentheses")?.1;
        if rest.split_whitespace().next() != Some("T") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The median, the 99th percentile and the longest of some times; zeros if there are none.
pub fn distribution(times: &[Duration]) -> [Duration; 3] {
    [500, 990, 1000].map(|share| permille(times, share))
}

/// What so many thousandths of some times do not exceed; zero if there are none.
pub fn permille(times: &[Duration], share: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let index = (sorted.len() * share).div_ceil(1000).saturating_sub(1);
    sorted.get(index).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_measured() {
        let process = std::process::id();
        assert!(resident_bytes(process).expect("it runs") > 100_000);
        cpu_time(process).expect("it runs");
        written_bytes(process).expect("it runs");
    }

    #[test]
    fn percentiles_are_of_the_sorted() {
        let times: Vec<Duration> = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(distribution(&times), [50, 99, 100].map(Duration::from_millis));
        assert_eq!(distribution(&[]), [Duration::ZERO; 3]);
        let many: Vec<Duration> = (1..=2000).map(Duration::from_millis).collect();
        assert_eq!(permille(&many, 999), Duration::from_millis(1998));
    }
}
