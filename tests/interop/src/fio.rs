//! fio with its NBD engine: started, watched while it runs, its result read.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// A job on one export.
#[derive(Clone, Debug)]
pub struct FioJob {
    /// The export.
    pub uri: String,
    /// fio's `rw`: `randwrite`, `randread`, `randrw`, ...
    pub rw: String,
    /// Bytes of a request.
    pub block_bytes: u64,
    /// Requests under way.
    pub depth: u32,
    /// Bytes of the export that are touched.
    pub size_bytes: u64,
    /// Bytes to transfer; nothing: as `size_bytes`.
    pub io_bytes: Option<u64>,
    /// Bytes written a second at most.
    pub rate_bytes: Option<u64>,
    /// Ends after this time, whatever was transferred.
    pub runtime: Option<Duration>,
    /// Whether each block carries a CRC-32C that is verified: those written are read back.
    pub verify: bool,
    /// Where the random offsets begin.
    pub seed: u64,
    /// fio is killed after this time: its NBD engine waits for ever for a server that is gone.
    pub patience: Duration,
    /// Where each completion is written down, one line each with its time since 1970 in milliseconds
    /// and its latency in nanoseconds: the beginning of the file names, `_clat.log` is added.
    pub completions: Option<PathBuf>,
}

impl FioJob {
    /// 4 KiB random writes over the first `size_bytes`, verified.
    pub fn verified_writes(uri: &str, size_bytes: u64) -> FioJob {
        FioJob {
            uri: uri.to_owned(),
            rw: "randwrite".to_owned(),
            block_bytes: 4096,
            depth: 32,
            size_bytes,
            io_bytes: None,
            rate_bytes: None,
            runtime: None,
            verify: true,
            seed: 1,
            patience: Duration::from_secs(300),
            completions: None,
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new("timeout");
        command.args(["-k", "5", &self.patience.as_secs().max(1).to_string(), "fio"]);
        command.args(["--name=job", "--ioengine=nbd", "--group_reporting=1"]);
        command.args(["--output-format=json", "--status-interval=500ms"]);
        command.arg(format!("--uri={}", self.uri));
        command.arg(format!("--rw={}", self.rw));
        command.arg(format!("--bs={}", self.block_bytes));
        command.arg(format!("--iodepth={}", self.depth));
        command.arg(format!("--size={}", self.size_bytes));
        command.arg(format!("--randseed={}", self.seed));
        if let Some(bytes) = self.io_bytes {
            command.arg(format!("--io_size={bytes}"));
        }
        if let Some(bytes) = self.rate_bytes {
            command.arg(format!("--rate=,{bytes}"));
        }
        if let Some(path) = &self.completions {
            command.arg(format!("--write_lat_log={}", path.display()));
            command.args(["--per_job_logs=0", "--log_unix_epoch=1"]);
        }
        if let Some(time) = self.runtime {
            command.arg(format!("--runtime={}", time.as_secs()));
        }
        if self.verify {
            command.args(["--verify=crc32c", "--verify_fatal=1", "--serialize_overlap=1"]);
            // Otherwise it leaves a file wherever it was started.
            command.arg("--verify_state_save=0");
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts fio.
    pub fn start(&self) -> Result<RunningFio> {
        let mut child =
            self.command().spawn().context("can not start fio (Debian package: fio)")?;
        let mut stdout = child.stdout.take().context("fio has no output")?;
        let text = Arc::new(Mutex::new(String::new()));
        let sink = text.clone();
        let reader = std::thread::spawn(move || {
            let mut chunk = [0u8; 64 << 10];
            while let Ok(count @ 1..) = stdout.read(&mut chunk) {
                let mut text = sink.lock().unwrap_or_else(PoisonError::into_inner);
                text.push_str(&String::from_utf8_lossy(&chunk[..count]));
            }
        });
        Ok(RunningFio { child, text, reader: Some(reader) })
    }

    /// Runs fio to its end; an error or a mismatch is an error here.
    pub fn run(&self) -> Result<FioResult> {
        self.start()?.finish()
    }
}

/// A fio under way.
pub struct RunningFio {
    child: Child,
    text: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl RunningFio {
    /// Bytes written so far, as of fio's latest report (twice a second).
    pub fn written_bytes(&self) -> u64 {
        let text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        last_report(&text)
            .and_then(|report| report["jobs"][0]["write"]["io_bytes"].as_u64())
            .unwrap_or(0)
    }

    /// Whether fio has ended.
    pub fn ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait().context("can not wait for fio")?.is_some())
    }

    /// Waits for the end.
    pub fn finish(mut self) -> Result<FioResult> {
        let status = self.child.wait().context("can not wait for fio")?;
        if let Some(reader) = self.reader.take() {
            ensure!(reader.join().is_ok(), "the reader of fio's output panicked");
        }
        let mut complaint = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut complaint).context("fio's messages can not be read")?;
        }
        let text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        if !status.success() {
            let tail: String = text.lines().rev().take(3).collect::<Vec<_>>().join(" / ");
            bail!("fio ended with {status}: {} {tail}", complaint.trim());
        }
        let report = last_report(&text).context("fio gave no report")?;
        FioResult::from_report(&report)
    }
}

impl Drop for RunningFio {
    fn drop(&mut self) {
        // An error says that it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// fio prints one JSON document after another, with lines of other text between them.
fn last_report(text: &str) -> Option<Value> {
    let starts: Vec<usize> = text.match_indices("{\n  \"fio version\"").map(|(at, _)| at).collect();
    starts.iter().rev().find_map(|at| {
        serde_json::Deserializer::from_str(&text[*at..]).into_iter::<Value>().next()?.ok()
    })
}

/// How a job went.
#[derive(Clone, Debug)]
pub struct FioResult {
    /// Reads.
    pub read: Direction,
    /// Writes.
    pub write: Direction,
}

/// One direction of a job.
#[derive(Clone, Copy, Debug, Default)]
pub struct Direction {
    /// Requests.
    pub requests: u64,
    /// Requests a second.
    pub iops: f64,
    /// Median latency in microseconds.
    pub p50_us: f64,
    /// 99th percentile in microseconds.
    pub p99_us: f64,
    /// 99.9th percentile in microseconds.
    pub p999_us: f64,
    /// The longest in milliseconds: the longest stall that a user of the volume saw.
    pub max_ms: f64,
}

impl FioResult {
    fn from_report(report: &Value) -> Result<FioResult> {
        let job = &report["jobs"][0];
        let error = job["error"].as_i64().context("fio's report has no error field")?;
        ensure!(error == 0, "fio reports error {error}");
        Ok(FioResult { read: direction(&job["read"]), write: direction(&job["write"]) })
    }

    /// The longest stall of both directions, in milliseconds.
    pub fn max_ms(&self) -> f64 {
        self.read.max_ms.max(self.write.max_ms)
    }
}

fn direction(value: &Value) -> Direction {
    let latency = &value["clat_ns"];
    let percentile = |name: &str| latency["percentile"][name].as_f64().unwrap_or(0.0) / 1e3;
    Direction {
        requests: value["total_ios"].as_u64().unwrap_or(0),
        iops: value["iops"].as_f64().unwrap_or(0.0),
        p50_us: percentile("50.000000"),
        p99_us: percentile("99.000000"),
        p999_us: percentile("99.900000"),
        max_ms: latency["max"].as_f64().unwrap_or(0.0) / 1e6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_whole_report_counts() {
        let one = "{\n  \"fio version\" : \"fio-3\",\n  \"jobs\" : [{\"error\":0,\"write\":{\"io_bytes\":1}}]}\n";
        let two = one.replace("\"io_bytes\":1", "\"io_bytes\":2");
        let text = format!("fio: a line\n{one}fio: another\n{two}{}", &one[..30]);
        let report = last_report(&text).expect("a report");
        assert_eq!(report["jobs"][0]["write"]["io_bytes"], 2);
        assert!(FioResult::from_report(&report).is_ok());
    }
}
