//! The structures on a device.
