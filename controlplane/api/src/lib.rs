//! The gRPC API of the control plane: messages, clients and servers generated from `proto/`, and the
//! errors that all services answer with.

pub mod dial;
pub mod error;
pub mod random;
pub mod size;

/// The administrative API and the calls between nodes, package `basalt.v1`.
pub mod v1 {
    #![allow(missing_docs, clippy::all)]
    tonic::include_proto!("basalt.v1");
}

/// What stands in the log of the metadata group, package `basalt.meta.v1`.
pub mod meta {
    /// Version 1.
    pub mod v1 {
        #![allow(missing_docs, clippy::all)]
        tonic::include_proto!("basalt.meta.v1");
    }
}
