//! The gRPC API of the control plane: messages, clients and servers generated from `proto/`, and the
//! errors that all services answer with.

mod connect;
pub mod dial;
pub mod error;
pub mod filter;
mod hidden;
pub mod random;
pub mod reflect;
pub mod size;
pub mod stream;
pub mod traced;

/// The administrative API and the calls between nodes, package `basalt.v1`.
pub mod v1 {
    #![allow(missing_docs, clippy::all)]
    tonic::include_proto!("basalt.v1");
}

/// Every service and message, as an encoded `google.protobuf.FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Work that takes longer than a call, package `google.longrunning`.
pub mod longrunning {
    #![allow(missing_docs, clippy::all)]
    tonic::include_proto!("google.longrunning");
}

/// The status of such work that failed, package `google.rpc`.
pub mod rpc {
    #![allow(missing_docs, clippy::all)]
    tonic::include_proto!("google.rpc");
}

/// What stands in the log of the metadata group, package `basalt.meta.v1`.
pub mod meta {
    /// Version 1.
    pub mod v1 {
        #![allow(missing_docs, clippy::all)]
        tonic::include_proto!("basalt.meta.v1");
    }
}
