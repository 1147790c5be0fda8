//! What a device is to a reactor, and how one is asked for.

use crate::error::DeviceError;
use crate::fault::{FaultDevice, FaultHandle};
use crate::memory::MemoryDisk;
use crate::record::{RecordDevice, RecordLog};
use crate::ring::{Completion, Ring};
use crate::uring::UringDevice;
use basalt_wire::io::{DiskDone, DiskOp};
use basalt_wire::time::Time;
use std::path::PathBuf;

/// One device, driven by a reactor:
///
/// 1. [`Device::submit`] starts operations;
/// 2. completions of the ring whose owner byte is 0 go to [`Device::complete`];
/// 3. once a turn, and at [`Device::next_deadline`], [`Device::drain`] gives what ended.
///
/// Operations may end in any order. A read sees a write that ended before it was submitted; of two
/// operations in flight on one range nothing is promised.
pub trait Device: Send {
    /// What the device is.
    fn info(&self) -> &DeviceInfo;
    /// Starts an operation. Its end comes from [`Device::drain`], whatever becomes of it.
    fn submit(&mut self, op: DiskOp, ring: &mut Ring);
    /// Takes a completion of the ring that belongs to the device.
    fn complete(&mut self, completion: Completion, ring: &mut Ring);
    /// Appends all operations that ended to `out`. Layers that act later (a delay) see the time
    /// only here.
    fn drain(&mut self, ring: &mut Ring, now: Time, out: &mut Vec<DiskDone>);
    /// When [`Device::drain`] wants to be called although no completion arrives;
    /// [`Time::ZERO`] if it has something to give already.
    fn next_deadline(&self) -> Option<Time>;
    /// Operations submitted and not drained yet, the device's own (pre-writing) included: the ring
    /// may be closed when this is zero.
    fn in_flight(&self) -> usize;
    /// Starts no new work of the device's own, so that [`Device::in_flight`] falls to zero when the
    /// owner submits nothing more.
    fn quiesce(&mut self) {}
    /// Lets go of the ring's table entries. Called last, with nothing in flight; the device's lock
    /// is released when both this was called and the device was dropped.
    fn close(&mut self, ring: &mut Ring);
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Usable bytes, a multiple of 4096.
    pub size: u64,
    /// What stands behind it.
    pub kind: DeviceKind,
    /// Whether completed writes may stand in a volatile cache: ask for durability with each write
    /// that counts, or flush.
    pub volatile_cache: bool,
    /// Whether the page cache is bypassed.
    pub direct: bool,
    /// Alignment of memory for direct transfers, in bytes.
    pub memory_align: usize,
    /// Alignment of offsets and lengths for direct transfers, in bytes.
    pub offset_align: usize,
    /// For the operator: path, kind, file system, how durability is reached.
    pub description: String,
}

/// What stands behind a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A regular file on some file system.
    File,
    /// A whole disk, a partition or a namespace.
    Block,
    /// Memory of this process; gone with it.
    Memory,
    /// A simulated or test device.
    Simulated,
}

/// A device to open.
#[derive(Clone, Debug)]
pub struct DeviceSpec {
    /// What to open.
    pub source: DeviceSource,
    /// Bytes for a file that does not exist yet; without it the device must exist. Rounded down to
    /// 4096.
    pub create_bytes: Option<u64>,
    /// Accept a file system without O_DIRECT, through its page cache. For tests.
    pub allow_buffered: bool,
    /// Believe this about the volatile cache instead of asking the system.
    pub volatile_cache: Option<bool>,
    /// How far ahead of the log the unwritten part of a file is written through; 0 for not at all.
    pub prewrite_bytes: u64,
    /// A layer of faults above the device, armed through this handle.
    pub faults: Option<FaultHandle>,
    /// A layer below the faults that records every write and flush that reaches the device.
    pub record: Option<RecordLog>,
}

/// What to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceSource {
    /// A file or a block device.
    Path(PathBuf),
    /// Memory, whose content outlives the device: opening the same disk again finds it.
    Memory(MemoryDisk),
}

impl std::fmt::Display for DeviceSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DeviceSource::Path(path) => path.display().fmt(f),
            DeviceSource::Memory(_) => f.write_str("in memory"),
        }
    }
}

/// How far ahead of the log a file is written through: what a log at 500 MB/s uses in an eighth of a
/// second.
pub const PREWRITE_BYTES: u64 = 64 << 20;

impl DeviceSpec {
    /// A file or block device that exists.
    pub fn path(path: impl Into<PathBuf>) -> DeviceSpec {
        DeviceSpec::of(DeviceSource::Path(path.into()))
    }

    /// A new disk in memory of `bytes` bytes; every clone of this means the same disk.
    pub fn memory(bytes: u64) -> DeviceSpec {
        DeviceSpec::disk(MemoryDisk::new(bytes))
    }

    /// A disk in memory.
    pub fn disk(disk: MemoryDisk) -> DeviceSpec {
        DeviceSpec::of(DeviceSource::Memory(disk))
    }

    /// Creates the file with `bytes` bytes if it does not exist.
    pub fn create(mut self, bytes: u64) -> DeviceSpec {
        self.create_bytes = Some(bytes);
        self
    }

    /// Puts a layer of faults above the device.
    pub fn with_faults(mut self, faults: FaultHandle) -> DeviceSpec {
        self.faults = Some(faults);
        self
    }

    /// Records what reaches the device.
    pub fn with_record(mut self, record: RecordLog) -> DeviceSpec {
        self.record = Some(record);
        self
    }

    fn of(source: DeviceSource) -> DeviceSpec {
        DeviceSpec {
            source,
            create_bytes: None,
            allow_buffered: false,
            volatile_cache: None,
            prewrite_bytes: PREWRITE_BYTES,
            faults: None,
            record: None,
        }
    }
}

/// Opens a device with its layers.
pub fn open(spec: &DeviceSpec) -> Result<Box<dyn Device>, DeviceError> {
    let mut device: Box<dyn Device> = match &spec.source {
        DeviceSource::Path(path) => Box::new(UringDevice::open(path, spec)?),
        DeviceSource::Memory(disk) => Box::new(disk.open()?),
    };
    if let Some(record) = &spec.record {
        device = Box::new(RecordDevice::new(device, record.clone()));
    }
    if let Some(faults) = &spec.faults {
        device = Box::new(FaultDevice::new(device, faults.clone()));
    }
    Ok(device)
}
