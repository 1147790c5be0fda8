//! One node: storage, metadata group, front doors and the gRPC API
