//! A device in memory, for tests and benches: every operation ends when it is submitted.

use crate::device::{Device, DeviceInfo, DeviceKind};
use crate::error::DeviceError;
use crate::ring::{Completion, Ring};
use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::io::{DiskDone, DiskError, DiskOp, DiskOpKind};
use basalt_wire::time::Time;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a memory device holds, across its openings: dropping the device puts it back here.
#[derive(Clone)]
pub struct MemoryDisk(Arc<Mutex<Option<Vec<u8>>>>);

impl MemoryDisk {
    /// `bytes` zero bytes, rounded down to whole blocks.
    pub fn new(bytes: u64) -> MemoryDisk {
        let size = bytes - bytes % BLOCK_BYTES as u64;
        let length = usize::try_from(size).expect("a memory device fits the address space");
        MemoryDisk::from_image(vec![0; length])
    }

    /// The same on huge pages where the kernel has them, all of it resident from the start: what is
    /// measured on it is not the cost of its page faults.
    pub fn resident(bytes: u64) -> MemoryDisk {
        let size = bytes - bytes % BLOCK_BYTES as u64;
        let length = usize::try_from(size).expect("a memory device fits the address space");
        let mut image: Vec<u8> = vec![0; length];
        let start = image.as_mut_ptr();
        let head = start.addr().next_multiple_of(BLOCK_BYTES) - start.addr();
        if let Some(len) = length.checked_sub(head) {
            // SAFETY: advice about whole pages within the vector's memory; it changes no content, and
            // its failure does no harm.
            unsafe { libc::madvise(start.add(head).cast(), len, libc::MADV_HUGEPAGE) };
        }
        for block in image.chunks_mut(BLOCK_BYTES) {
            block[0] = std::hint::black_box(0);
        }
        MemoryDisk::from_image(image)
    }

    /// A disk that holds `image`, a whole number of blocks.
    pub fn from_image(image: Vec<u8>) -> MemoryDisk {
        assert!(image.len().is_multiple_of(BLOCK_BYTES), "an image of {} bytes", image.len());
        MemoryDisk(Arc::new(Mutex::new(Some(image))))
    }

    /// Opens it as a device; one at a time.
    pub fn open(&self) -> Result<MemoryDevice, DeviceError> {
        let bytes = self.lock().take().ok_or_else(|| DeviceError::InUse("(memory)".into()))?;
        let mut device = MemoryDevice::from_image(bytes);
        device.home = Some(self.clone());
        Ok(device)
    }

    /// Fills the first `bytes` with zeros, so that it can be formatted again; not while it is open.
    pub fn wipe(&self, bytes: usize) -> Result<(), DeviceError> {
        let mut image = self.lock();
        let image = image.as_mut().ok_or_else(|| DeviceError::InUse("(memory)".into()))?;
        let len = bytes.min(image.len());
        image[..len].fill(0);
        Ok(())
    }

    /// A copy of what it holds, unless it is open.
    pub fn image(&self) -> Option<Vec<u8>> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<u8>>> {
        // Moving a vector in or out can not be left half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PartialEq for MemoryDisk {
    /// Whether both are the same disk.
    fn eq(&self, other: &MemoryDisk) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for MemoryDisk {}

impl std::fmt::Debug for MemoryDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &*self.lock() {
            Some(bytes) => write!(f, "MemoryDisk({} bytes)", bytes.len()),
            None => write!(f, "MemoryDisk(open)"),
        }
    }
}

/// A device in memory. Fresh memory reads as zeros and takes no room until it is written.
pub struct MemoryDevice {
    info: DeviceInfo,
    bytes: Vec<u8>,
    done: Vec<DiskDone>,
    /// Where the bytes go when the device is dropped.
    home: Option<MemoryDisk>,
}

impl Drop for MemoryDevice {
    fn drop(&mut self) {
        if let Some(home) = &self.home {
            *home.lock() = Some(std::mem::take(&mut self.bytes));
        }
    }
}

impl MemoryDevice {
    /// A device of `bytes` zero bytes, rounded down to whole blocks, that is gone when dropped.
    pub fn new(bytes: u64) -> MemoryDevice {
        MemoryDevice::from_image(vec![0; (bytes - bytes % BLOCK_BYTES as u64) as usize])
    }

    /// A device that holds `image`, a whole number of blocks.
    pub fn from_image(image: Vec<u8>) -> MemoryDevice {
        assert!(image.len().is_multiple_of(BLOCK_BYTES), "an image of {} bytes", image.len());
        let info = DeviceInfo {
            size: image.len() as u64,
            kind: DeviceKind::Memory,
            volatile_cache: false,
            direct: true,
            memory_align: 1,
            offset_align: BLOCK_BYTES,
            description: format!("memory, {} MiB", image.len() >> 20),
        };
        MemoryDevice { info, bytes: image, done: Vec::new(), home: None }
    }

    /// What the device holds.
    pub fn image(&self) -> &[u8] {
        &self.bytes
    }

    fn range(&self, offset: u64, len: u64) -> Result<std::ops::Range<usize>, DiskError> {
        check_range(offset, len, self.info.size)?;
        // Within the size, which is the length of a vector.
        Ok(offset as usize..(offset + len) as usize)
    }
}

/// Checks a transfer against the device's end.
pub(crate) fn check_range(offset: u64, len: u64, size: u64) -> Result<(), DiskError> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(DiskError::OutOfRange),
    }
}

impl Device for MemoryDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn submit(&mut self, op: DiskOp, _ring: &mut Ring) {
        let (buf, result) = match op.kind {
            DiskOpKind::Read { offset, mut buf } => {
                let range = self.range(offset, buf.len() as u64);
                let result = range.map(|range| buf.copy_from_slice(&self.bytes[range]));
                (Some(buf), result)
            }
            DiskOpKind::Write { offset, data, .. } => {
                let range = self.range(offset, data.len() as u64);
                (None, range.map(|range| self.bytes[range].copy_from_slice(&data)))
            }
            DiskOpKind::Flush => (None, Ok(())),
            DiskOpKind::Discard { offset, len } => {
                (None, self.range(offset, len).map(|range| self.bytes[range].fill(0)))
            }
        };
        self.done.push(DiskDone { token: op.token, buf, result });
    }

    fn complete(&mut self, completion: Completion, _ring: &mut Ring) {
        panic!("a completion for a device that uses no ring: {completion:?}");
    }

    fn drain(&mut self, _ring: &mut Ring, _now: Time, out: &mut Vec<DiskDone>) {
        out.append(&mut self.done);
    }

    fn next_deadline(&self) -> Option<Time> {
        (!self.done.is_empty()).then_some(Time::ZERO)
    }

    fn in_flight(&self) -> usize {
        self.done.len()
    }

    fn close(&mut self, _ring: &mut Ring) {
        assert!(self.done.is_empty(), "{} completions were not drained", self.done.len());
    }
}
