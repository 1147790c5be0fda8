//! A file or block device on io_uring.
//!
//! Invariants:
//!
//! * U1: the memory of an operation is owned by its slot until its completion was taken; a device
//!   that is dropped earlier leaks it rather than hand it to someone else.
//! * U2: after a failed flush, or a failed write that counted as durable, every later write and
//!   flush fails with [`DiskError::Gone`]. What a kernel or device says about such a range
//!   afterwards can not be believed (Rebello et al., "Can applications recover from fsync
//!   failures?", ATC 2020), so nothing is tried again; the owner opens the device anew and verifies.
//! * U3: a zero never lands on data; the argument stands at the module `prewrite`.

use crate::device::{Device, DeviceInfo, DeviceSpec};
use crate::error::DeviceError;
use crate::memory::check_range;
use crate::prewrite::Prewrite;
use crate::probe;
use crate::ring::{Completion, FileSlot, Ring};
use basalt_wire::buffer::IoBuf;
use basalt_wire::io::{DiskDone, DiskError, DiskOp, DiskOpKind, OpToken};
use basalt_wire::time::Time;
use bytes::Bytes;
use io_uring::{opcode, types};
use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

/// How often an operation that the system interrupted (EINTR, EAGAIN) is tried again.
const RETRIES_MAX: u32 = 1000;
/// Most bytes of one transfer, below the kernel's own bound of 2 GiB.
pub const TRANSFER_BYTES_MAX: usize = 1 << 30;

/// A file or block device.
pub struct UringDevice {
    info: DeviceInfo,
    file: File,
    slot: Option<FileSlot>,
    registered: bool,
    ops: Vec<Option<Op>>,
    free: Vec<u32>,
    active: usize,
    /// Data writes that wait for a zero write in their way.
    held: VecDeque<Op>,
    done: Vec<DiskDone>,
    prewrite: Prewrite,
    suspect: bool,
}

struct Op {
    /// The owner's token; nothing for a zero write.
    token: Option<OpToken>,
    body: Body,
    /// Bytes transferred so far.
    progress: usize,
    retries: u32,
}

enum Body {
    Read { offset: u64, buf: IoBuf },
    Write { offset: u64, data: Bytes, durable: bool },
    Flush,
    Discard { offset: u64, len: u64 },
}

/// The ring's entry for what is left of an operation. A macro, for the two kinds of file have
/// different types and the trait over them can not be named outside its crate.
macro_rules! entry {
    ($file:expr, $op:expr, $volatile:expr, $ring:expr) => {{
        let progress = $op.progress;
        match &mut $op.body {
            Body::Read { offset, buf } => {
                let rest = &mut buf[progress..];
                let (memory, len) = (rest.as_mut_ptr(), rest.len() as u32);
                let at = *offset + progress as u64;
                match $ring.registered(memory, rest.len()) {
                    Some(slot) => {
                        opcode::ReadFixed::new($file, memory, len, slot).offset(at).build()
                    }
                    None => opcode::Read::new($file, memory, len).offset(at).build(),
                }
            }
            Body::Write { offset, data, durable } => {
                let rest = &data[progress..];
                let flags = if *durable && $volatile { libc::RWF_DSYNC } else { 0 };
                let (memory, len) = (rest.as_ptr(), rest.len() as u32);
                let at = *offset + progress as u64;
                match $ring.registered(memory, rest.len()) {
                    Some(slot) => opcode::WriteFixed::new($file, memory, len, slot)
                        .offset(at)
                        .rw_flags(flags)
                        .build(),
                    None => {
                        opcode::Write::new($file, memory, len).offset(at).rw_flags(flags).build()
                    }
                }
            }
            Body::Flush => opcode::Fsync::new($file).flags(types::FsyncFlags::DATASYNC).build(),
            Body::Discard { offset, len } => opcode::Fallocate::new($file, *len)
                .offset(*offset)
                .mode(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
                .build(),
        }
    }};
}

impl UringDevice {
    /// Opens, and creates if asked to, the file or block device at `path`.
    pub fn open(path: &Path, spec: &DeviceSpec) -> Result<UringDevice, DeviceError> {
        let opened = probe::open(path, spec)?;
        let prewrite = Prewrite::new(opened.unwritten, spec.prewrite_bytes);
        Ok(UringDevice {
            info: opened.info,
            file: opened.file,
            slot: None,
            registered: false,
            ops: Vec::new(),
            free: Vec::new(),
            active: 0,
            held: VecDeque::new(),
            done: Vec::new(),
            prewrite,
            suspect: false,
        })
    }

    /// Whether a durable write or flush failed, so that nothing more is written.
    pub fn is_suspect(&self) -> bool {
        self.suspect
    }

    fn check(&self, kind: &DiskOpKind) -> Result<(), DiskError> {
        let (offset, len, memory) = match kind {
            DiskOpKind::Read { offset, buf } => (*offset, buf.len(), buf.as_ptr()),
            DiskOpKind::Write { offset, data, .. } => (*offset, data.len(), data.as_ptr()),
            DiskOpKind::Discard { offset, len } => {
                return check_range(*offset, *len, self.info.size);
            }
            DiskOpKind::Flush => return Ok(()),
        };
        assert!(len <= TRANSFER_BYTES_MAX, "a transfer of {len} bytes");
        assert!(
            offset.is_multiple_of(self.info.offset_align as u64)
                && len.is_multiple_of(self.info.offset_align),
            "a transfer of {len} bytes at {offset} is not aligned to {}",
            self.info.offset_align
        );
        assert!(
            memory.addr().is_multiple_of(self.info.memory_align),
            "memory at {memory:?} is not aligned to {}",
            self.info.memory_align
        );
        check_range(offset, len as u64, self.info.size)
    }

    /// Starts an operation, or holds it if a zero write is in its way.
    fn start(&mut self, mut op: Op, ring: &mut Ring) {
        if let (Some(_), Body::Write { offset, data, .. }) = (op.token, &op.body) {
            let end = offset + data.len() as u64;
            self.prewrite.data_write(*offset, end);
            if self.prewrite.holds(*offset, end) {
                self.held.push_back(op);
                return;
            }
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.ops.push(None);
            u32::try_from(self.ops.len() - 1).expect("operations are far fewer than 2^32")
        });
        self.active += 1;
        self.push(index, &mut op, ring);
        self.ops[index as usize] = Some(op);
    }

    /// Gives an operation, or the rest of it, to the ring.
    fn push(&self, index: u32, op: &mut Op, ring: &mut Ring) {
        let entry = match self.slot {
            Some(FileSlot(slot)) => entry!(types::Fixed(slot), op, self.info.volatile_cache, ring),
            None => {
                let file = types::Fd(self.file.as_raw_fd());
                entry!(file, op, self.info.volatile_cache, ring)
            }
        };
        // SAFETY: the entry points into the buffer that `op` owns. The operation stays in its slot
        // until its completion is taken (U1), and moving it does not move the buffer's memory.
        unsafe { ring.push(entry.user_data(u64::from(index))) };
    }

    fn finish(&mut self, op: Op, result: Result<(), DiskError>) {
        let durable = match op.body {
            Body::Flush => true,
            // Without a volatile cache every completed write counts as durable.
            Body::Write { durable, .. } => durable || !self.info.volatile_cache,
            _ => false,
        };
        let Some(token) = op.token else {
            self.prewrite.ended(result.is_ok());
            return;
        };
        if durable && result.is_err() {
            self.suspect = true;
            self.prewrite.stop();
        }
        let buf = match op.body {
            Body::Read { buf, .. } => Some(buf),
            _ => None,
        };
        self.done.push(DiskDone { token, buf, result });
    }

    /// Starts what waited for a zero write, and the next zero write.
    fn advance(&mut self, ring: &mut Ring) {
        for _ in 0..self.held.len() {
            let op = self.held.pop_front().expect("counted above");
            if self.suspect {
                self.finish(op, Err(DiskError::Gone));
            } else {
                self.start(op, ring);
            }
        }
        if let Some((offset, data)) = self.prewrite.next() {
            let body = Body::Write { offset, data, durable: false };
            self.start(Op { token: None, body, progress: 0, retries: 0 }, ring);
        }
    }
}

impl Device for UringDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn submit(&mut self, op: DiskOp, ring: &mut Ring) {
        if !self.registered {
            self.registered = true;
            self.slot = ring.register_file(&self.file);
        }
        let checked = self.check(&op.kind);
        let writes = !matches!(op.kind, DiskOpKind::Read { .. });
        let empty = match &op.kind {
            DiskOpKind::Read { buf, .. } => buf.is_empty(),
            DiskOpKind::Write { data, .. } => data.is_empty(),
            DiskOpKind::Discard { len, .. } => *len == 0,
            DiskOpKind::Flush => false,
        };
        let at_once = match checked {
            Ok(()) if writes && self.suspect => Some(Err(DiskError::Gone)),
            Ok(()) if empty => Some(Ok(())),
            Ok(()) => None,
            Err(e) => Some(Err(e)),
        };
        if let Some(result) = at_once {
            let buf = match op.kind {
                DiskOpKind::Read { buf, .. } => Some(buf),
                _ => None,
            };
            self.done.push(DiskDone { token: op.token, buf, result });
            return;
        }
        let body = match op.kind {
            DiskOpKind::Read { offset, buf } => Body::Read { offset, buf },
            DiskOpKind::Write { offset, data, durable } => Body::Write { offset, data, durable },
            DiskOpKind::Flush => Body::Flush,
            DiskOpKind::Discard { offset, len } => Body::Discard { offset, len },
        };
        self.start(Op { token: Some(op.token), body, progress: 0, retries: 0 }, ring);
    }

    fn complete(&mut self, completion: Completion, ring: &mut Ring) {
        let index = u32::try_from(completion.user_data).expect("a completion of this device");
        let mut op = self.ops[index as usize].take().expect("an operation completes once");
        match judge(&mut op, completion.result) {
            Verdict::Again => {
                self.push(index, &mut op, ring);
                self.ops[index as usize] = Some(op);
            }
            Verdict::End(result) => {
                self.active -= 1;
                self.free.push(index);
                let zeros = op.token.is_none();
                self.finish(op, result);
                if zeros {
                    self.advance(ring);
                }
            }
        }
    }

    fn drain(&mut self, ring: &mut Ring, _now: Time, out: &mut Vec<DiskDone>) {
        out.append(&mut self.done);
        self.advance(ring);
    }

    fn next_deadline(&self) -> Option<Time> {
        (!self.done.is_empty()).then_some(Time::ZERO)
    }

    fn in_flight(&self) -> usize {
        self.active + self.held.len() + self.done.len()
    }

    fn quiesce(&mut self) {
        self.prewrite.stop();
    }

    fn close(&mut self, ring: &mut Ring) {
        assert_eq!(self.in_flight(), 0, "a device is closed with operations in flight");
        if let Some(slot) = self.slot.take() {
            ring.unregister_file(slot);
        }
    }
}

impl Drop for UringDevice {
    fn drop(&mut self) {
        if self.active > 0 {
            // U1: the kernel may still write to these buffers.
            Box::leak(Box::new(std::mem::take(&mut self.ops)));
        }
    }
}

enum Verdict {
    Again,
    End(Result<(), DiskError>),
}

/// What becomes of an operation whose completion says `result`.
fn judge(op: &mut Op, result: i32) -> Verdict {
    if result < 0 {
        return match -result {
            libc::EINTR | libc::EAGAIN if op.retries < RETRIES_MAX => {
                op.retries += 1;
                Verdict::Again
            }
            // A hint that the device does not know is no failure.
            libc::EOPNOTSUPP if matches!(op.body, Body::Discard { .. }) => Verdict::End(Ok(())),
            errno => Verdict::End(Err(error_of(errno))),
        };
    }
    let len = match &op.body {
        Body::Read { buf, .. } => buf.len(),
        Body::Write { data, .. } => data.len(),
        Body::Flush | Body::Discard { .. } => return Verdict::End(Ok(())),
    };
    let first = op.progress == 0;
    op.progress += result as usize;
    assert!(op.progress <= len, "the kernel transferred {} bytes of {len}", op.progress);
    // A rest that is not whole blocks could not be transferred directly.
    let whole = op.progress.is_multiple_of(basalt_wire::block::BLOCK_BYTES);
    match op.progress == len {
        true => Verdict::End(Ok(())),
        false if first && result > 0 && whole => Verdict::Again,
        false => Verdict::End(Err(DiskError::Short)),
    }
}

fn error_of(errno: i32) -> DiskError {
    match errno {
        libc::ENOSPC | libc::EDQUOT | libc::EFBIG => DiskError::NoSpace,
        libc::ENODEV | libc::ENXIO | libc::EBADF | libc::ESHUTDOWN | libc::ECANCELED => {
            DiskError::Gone
        }
        _ => DiskError::Io,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::settle;

    #[test]
    fn a_write_into_what_is_being_zeroed_waits() {
        let path = std::env::temp_dir().join(format!("basalt-held-{}", std::process::id()));
        let mut spec = DeviceSpec::path(&path).create(8 << 20);
        spec.prewrite_bytes = 4 << 20;
        let opened = UringDevice::open(&path, &spec);
        // The device keeps the file; a file system without O_DIRECT can not have this test.
        let _ = std::fs::remove_file(&path);
        let mut device = match opened {
            Err(e @ DeviceError::NoDirect { .. }) => return eprintln!("skipped: {e}"),
            opened => opened.expect("a device in the directory for temporary files"),
        };
        let mut ring = Ring::new(8).expect("the kernel has io_uring");
        let write = |token, offset| {
            let data = IoBuf::zeroed(4096).freeze();
            DiskOp { token, kind: DiskOpKind::Write { offset, data, durable: false } }
        };
        device.submit(write(1, 0), &mut ring);
        device.drain(&mut ring, Time::ZERO, &mut Vec::new());
        assert_eq!(device.active, 2, "a zero write follows the first data write");
        device.submit(write(2, 8192), &mut ring);
        device.submit(write(3, 6 << 20), &mut ring);
        assert_eq!((device.active, device.held.len()), (3, 1));
        let done = settle(&mut device, &mut ring);
        assert!(done.iter().all(|done| done.result.is_ok()));
        assert_eq!((done.len(), device.held.len()), (3, 0));
        device.close(&mut ring);
    }
}
