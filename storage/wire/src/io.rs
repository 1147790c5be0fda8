//! Device operations and their completions.
//!
//! The state machines ask for these, `storage/device` carries them out on real hardware, and the
//! simulator carries them out on its disk model.

use crate::buffer::IoBuf;
use bytes::Bytes;

/// Chosen by the asker of an operation, returned with its completion.
pub type OpToken = u64;

/// One operation on one device. Offsets and lengths are multiples of 4096 bytes.
#[derive(Debug)]
pub struct DiskOp {
    /// Returned in [`DiskDone::token`].
    pub token: OpToken,
    /// What to do.
    pub kind: DiskOpKind,
}

/// What a [`DiskOp`] does.
#[derive(Debug)]
pub enum DiskOpKind {
    /// Fill `buf` from `offset`. The buffer comes back with the completion.
    Read {
        /// Byte offset on the device.
        offset: u64,
        /// Where to read to; its length is the length of the read.
        buf: IoBuf,
    },
    /// Write `data` (in memory aligned to 4096) at `offset`.
    Write {
        /// Byte offset on the device.
        offset: u64,
        /// What to write.
        data: Bytes,
        /// Whether completion promises durability: FUA, DSYNC, or write and flush.
        durable: bool,
    },
    /// Make everything durable that completed before this was submitted.
    Flush,
    /// Say that a range's content is not needed any more; it may read as anything afterwards.
    Discard {
        /// Byte offset on the device.
        offset: u64,
        /// Bytes.
        len: u64,
    },
}

/// The end of a [`DiskOp`].
#[derive(Debug)]
pub struct DiskDone {
    /// The operation's token.
    pub token: OpToken,
    /// A read's buffer, whatever the result.
    pub buf: Option<IoBuf>,
    /// Whether the whole operation took place. A short transfer is an error.
    pub result: Result<(), DiskError>,
}

/// Why a device operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// The device could not read or write the range (EIO, a latent sector error).
    #[error("the device reported an I/O error")]
    Io,
    /// The device or file has no room (ENOSPC).
    #[error("the device or its file system has no space left")]
    NoSpace,
    /// The operation goes beyond the end of the device.
    #[error("the operation goes beyond the end of the device")]
    OutOfRange,
    /// The device transferred less than asked, twice.
    #[error("the device transferred less than asked")]
    Short,
    /// The device is gone or was closed.
    #[error("the device is gone")]
    Gone,
}
