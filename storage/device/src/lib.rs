//! The device edge: io_uring files and block devices, memory, and fault layers
