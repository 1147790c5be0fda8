//! The device edge: io_uring files and block devices, memory, and fault layers.
//!
//! A reactor has one [`Ring`] for everything that it waits for. A [`Device`] carries out the
//! operations of [`basalt_wire::io`] on it:
//!
//! * [`uring::UringDevice`]: a file or block device, O_DIRECT, with its lock, its alignment and the
//!   nature of its cache found out when it is opened;
//! * [`memory::MemoryDevice`]: memory, for tests and benches;
//! * [`fault::FaultDevice`]: a layer above any other device that fails, delays, hangs or corrupts
//!   operations, armed at run time through a [`fault::FaultHandle`];
//! * [`record::RecordDevice`]: a layer that writes down everything written, with order and flushes,
//!   from which the images of power cuts are built.
//!
//! The simulated twin of these is the disk of `tests/sim`. [`conformance`] is the one body of tests
//! that all of them pass.
//!
//! ```no_run
//! use basalt_device::{DeviceSpec, Ring, open};
//! use basalt_wire::{buffer::IoBuf, io::{DiskOp, DiskOpKind}, time::Time};
//!
//! let mut ring = Ring::new(256)?;
//! let mut device = open(&DeviceSpec::path("/var/lib/basalt/device").create(1 << 30))?;
//! let kind = DiskOpKind::Read { offset: 0, buf: IoBuf::alloc(4096) };
//! device.submit(DiskOp { token: 1, kind }, &mut ring);
//! let (mut completions, mut done) = (Vec::new(), Vec::new());
//! while done.is_empty() {
//!     ring.submit_and_wait(1, None)?;
//!     ring.reap(&mut completions);
//!     for completion in completions.drain(..) {
//!         device.complete(completion, &mut ring);
//!     }
//!     device.drain(&mut ring, Time::ZERO, &mut done);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod conformance;
pub mod device;
pub mod error;
pub mod fault;
mod fault_spec;
pub mod memory;
mod prewrite;
mod probe;
pub mod record;
mod recording;
pub mod ring;
pub mod uring;

pub use device::{Device, DeviceInfo, DeviceKind, DeviceSource, DeviceSpec, open};
pub use error::DeviceError;
pub use ring::{Completion, FileSlot, Ring};
