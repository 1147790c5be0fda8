//! Compiles the proto files with a compiler written in Rust: no system `protoc` is needed.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new("proto");
    let files = ["basalt/v1/admin.proto", "basalt/v1/node.proto", "basalt/meta/v1/meta.proto"];
    for file in files {
        println!("cargo::rerun-if-changed={}", root.join(file).display());
    }
    let descriptors = protox::compile(files, [root])?;
    // Maps are ordered, so that equal messages have equal bytes: the state machine of the metadata
    // group compares requests by their encoding.
    tonic_prost_build::configure().btree_map(".").compile_fds(descriptors)?;
    Ok(())
}
