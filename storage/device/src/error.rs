//! Why a ring or a device could not be opened.

use std::path::PathBuf;

/// Why a ring or a device could not be opened. Errors of single operations are
/// [`basalt_wire::io::DiskError`].
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The kernel (or a sandbox around this process) offers no io_uring at all.
    #[error(
        "io_uring is not available here ({0}): a Linux kernel from 6.1 on is needed, and neither \
         the sysctl kernel.io_uring_disabled nor a seccomp filter may forbid it"
    )]
    NoRing(#[source] std::io::Error),
    /// The kernel's io_uring lacks something.
    #[error("the kernel's io_uring lacks: {}", .0.join(", "))]
    RingLacks(Vec<&'static str>),
    /// The device does not exist and was not to be created.
    #[error("the device {} does not exist", .0.display())]
    NotFound(PathBuf),
    /// Another process (or another opener in this one) has the device.
    #[error(
        "the device {} is in use: another process holds its lock (see `fuser {}`)",
        .0.display(), .0.display()
    )]
    InUse(PathBuf),
    /// The file system does not do O_DIRECT.
    #[error(
        "the file system of {} ({file_system}) refuses O_DIRECT: {reason}; put the device on ext4 \
         or XFS, give a block device, or allow buffered I/O (slower, for tests)",
        .path.display()
    )]
    NoDirect {
        /// The device's path.
        path: PathBuf,
        /// Name of the file system.
        file_system: String,
        /// What was refused.
        reason: String,
    },
    /// The path names something that can not be a device.
    #[error("{} can not be a device: {reason}", .path.display())]
    Unfit {
        /// The device's path.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A system call failed.
    #[error("{} the device {}", .action, .path.display())]
    System {
        /// The device's path.
        path: PathBuf,
        /// What was being done, as "can not open".
        action: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// A system call on the ring failed.
    #[error("can not {action}")]
    Ring {
        /// What was being done.
        action: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}
