//! A layer that writes down what reaches a device, and builds the images that a power cut may leave.
//!
//! The record holds every submission and every completion in the order in which they happened. What
//! a power cut after any of these events may leave behind follows from three rules:
//!
//! * a write that completed and was durable, or that had completed when a flush was submitted which
//!   then completed, is on the device;
//! * any other completed write (in the volatile cache) is there or not, atom by atom;
//! * so is a write in flight.
//!
//! An atom is what a device never tears: 512 or 4096 bytes. Zeros that a device writes by itself
//! ahead of the log are not recorded: they change nothing that can be read.

use crate::device::{Device, DeviceInfo};
use crate::ring::{Completion, Ring};
use basalt_wire::io::{DiskDone, DiskOp, DiskOpKind, OpToken};
use basalt_wire::time::Time;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use crate::recording::{CutPolicy, RecordError, RecordEvent, Recorded, Recording};

/// Where the events of one device are written down: in memory, or in a file that survives the end of
/// the process by a signal.
#[derive(Clone, Debug)]
pub struct RecordLog(Arc<Mutex<Sink>>);

#[derive(Debug)]
struct Sink {
    next: u64,
    recording: Recording,
    file: Option<File>,
}

impl RecordLog {
    /// A record in memory. It grows with every write; meant for short runs.
    pub fn memory() -> RecordLog {
        RecordLog(Arc::new(Mutex::new(Sink {
            next: 0,
            recording: Recording::default(),
            file: None,
        })))
    }

    /// A record in a new file, to be read by [`Recording::load`].
    pub fn file(path: &Path) -> std::io::Result<RecordLog> {
        let mut file = File::create(path)?;
        file.write_all(crate::recording::MAGIC)?;
        let sink = Sink { next: 0, recording: Recording::default(), file: Some(file) };
        Ok(RecordLog(Arc::new(Mutex::new(sink))))
    }

    /// A copy of what was recorded so far (in memory).
    pub fn recording(&self) -> Recording {
        self.sink().recording.clone()
    }

    /// The number of events so far (in memory).
    pub fn len(&self) -> usize {
        self.sink().recording.events.len()
    }

    /// Whether nothing was recorded (in memory).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn sink(&self) -> MutexGuard<'_, Sink> {
        // An event is added whole or not at all.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn submitted(&self, op: Recorded) -> u64 {
        let mut sink = self.sink();
        sink.next += 1;
        let id = sink.next;
        sink.add(RecordEvent::Submit { id, op });
        id
    }

    fn completed(&self, id: u64, ok: bool) {
        self.sink().add(RecordEvent::Complete { id, ok });
    }
}

impl Sink {
    fn add(&mut self, event: RecordEvent) {
        match &mut self.file {
            // One write call an event: what the kernel took survives a kill of this process.
            Some(file) => {
                let bytes = crate::recording::encode(&event);
                file.write_all(&bytes).expect("a record with a hole is no record");
            }
            None => self.recording.events.push(event),
        }
    }
}

/// The layer.
pub struct RecordDevice {
    inner: Box<dyn Device>,
    log: RecordLog,
    /// Operations in the device below; its tokens are indices into this.
    slots: Vec<Option<(OpToken, Option<u64>)>>,
    free: Vec<usize>,
}

impl RecordDevice {
    /// A layer above `inner`.
    pub fn new(inner: Box<dyn Device>, log: RecordLog) -> RecordDevice {
        RecordDevice { inner, log, slots: Vec::new(), free: Vec::new() }
    }
}

impl Device for RecordDevice {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }

    fn submit(&mut self, op: DiskOp, ring: &mut Ring) {
        let volatile = self.inner.info().volatile_cache;
        let recorded = match &op.kind {
            DiskOpKind::Read { .. } => None,
            DiskOpKind::Write { offset, data, durable } => Some(Recorded::Write {
                offset: *offset,
                data: data.clone(),
                durable: *durable || !volatile,
            }),
            DiskOpKind::Flush => Some(Recorded::Flush),
            DiskOpKind::Discard { offset, len } => {
                Some(Recorded::Discard { offset: *offset, len: *len })
            }
        };
        // Before the device sees it: a cut may come between.
        let id = recorded.map(|recorded| self.log.submitted(recorded));
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[index] = Some((op.token, id));
        self.inner.submit(DiskOp { token: index as OpToken, kind: op.kind }, ring);
    }

    fn complete(&mut self, completion: Completion, ring: &mut Ring) {
        self.inner.complete(completion, ring);
    }

    fn drain(&mut self, ring: &mut Ring, now: Time, out: &mut Vec<DiskDone>) {
        let from = out.len();
        self.inner.drain(ring, now, out);
        for done in &mut out[from..] {
            let index = usize::try_from(done.token).expect("a token of this layer");
            let (token, id) = self.slots[index].take().expect("an operation ends once");
            self.free.push(index);
            done.token = token;
            if let Some(id) = id {
                self.log.completed(id, done.result.is_ok());
            }
        }
    }

    fn next_deadline(&self) -> Option<Time> {
        self.inner.next_deadline()
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }

    fn quiesce(&mut self) {
        self.inner.quiesce();
    }

    fn close(&mut self, ring: &mut Ring) {
        self.inner.close(ring);
    }
}
