//! What reactors and logs did: how well the batches of each edge are filled.

use basalt_node::ReactorStatus;
use serde::Serialize;

/// Counts of all reactors together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    turns: u64,
    sleeps: u64,
    enters: u64,
    sends: u64,
    receives: u64,
    frames: u64,
    bytes_out: u64,
    batches: u64,
    blocks: u64,
    log_bytes: u64,
    entries: u64,
    commands: u64,
}

/// Figures of one case, per request or per batch.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Batching {
    /// Bytes written to all logs for each byte of data and replica: headers, padding and empty
    /// batches included.
    pub write_amplification: f64,
    /// Blocks of data in a log batch, which is one device write.
    pub blocks_per_batch: f64,
    /// Log batches of all nodes.
    pub batches_per_write: f64,
    /// Requests packed into one Raft entry.
    pub writes_per_entry: f64,
    /// Sends started by all reactors.
    pub sends_per_request: f64,
    /// Receives that brought something.
    pub receives_per_request: f64,
    /// Frames queued by all reactors.
    pub frames_per_request: f64,
    /// Bytes of a send.
    pub bytes_per_send: f64,
    /// Turns of all reactors.
    pub turns_per_request: f64,
    /// Turns before which a reactor slept.
    pub sleeps_per_request: f64,
    /// System calls of all rings.
    pub enters_per_request: f64,
}

impl Totals {
    /// Adds what one reactor did.
    pub fn add(&mut self, status: &ReactorStatus) {
        let counters = &status.counters;
        self.turns += counters.turns;
        self.sleeps += counters.sleeps;
        self.enters += counters.enters;
        self.sends += counters.sends;
        self.receives += counters.receives;
        self.frames += counters.frames_out;
        self.bytes_out += counters.bytes_out;
        if let Some(shard) = status.shard() {
            self.batches += shard.log.batches;
            self.blocks += shard.log.payload_blocks;
            self.log_bytes += shard.log.bytes;
            self.entries += shard.proposed.entries;
            self.commands += shard.proposed.commands;
        }
    }

    /// What was done since `earlier` for `requests`, which wrote `data_bytes` on each of `replicas`.
    pub fn since(self, earlier: Totals, requests: u64, data_bytes: u64, replicas: u32) -> Batching {
        let ratio =
            |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
        let each = |count: u64| ratio(count, requests);
        let batches = self.batches - earlier.batches;
        let sends = self.sends - earlier.sends;
        Batching {
            write_amplification: ratio(
                self.log_bytes - earlier.log_bytes,
                data_bytes * u64::from(replicas),
            ),
            blocks_per_batch: ratio(self.blocks - earlier.blocks, batches),
            batches_per_write: if data_bytes == 0 { 0.0 } else { each(batches) },
            writes_per_entry: ratio(
                self.commands - earlier.commands,
                self.entries - earlier.entries,
            ),
            sends_per_request: each(sends),
            receives_per_request: each(self.receives - earlier.receives),
            frames_per_request: each(self.frames - earlier.frames),
            bytes_per_send: ratio(self.bytes_out - earlier.bytes_out, sends),
            turns_per_request: each(self.turns - earlier.turns),
            sleeps_per_request: each(self.sleeps - earlier.sleeps),
            enters_per_request: each(self.enters - earlier.enters),
        }
    }
}
