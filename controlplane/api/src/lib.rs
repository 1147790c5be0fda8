//! The gRPC API of the control plane
