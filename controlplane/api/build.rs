//! Compiles the proto files with a compiler written in Rust: no system `protoc` is needed.

use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new("proto");
    let files = [
        "basalt/v1/admin.proto",
        "basalt/v1/node.proto",
        "basalt/v1/resources.proto",
        "basalt/v1/security.proto",
        "basalt/v1/why.proto",
        "basalt/meta/v1/meta.proto",
        "basalt/meta/v1/state.proto",
        "basalt/meta/v1/security.proto",
        "basalt/meta/v1/trace.proto",
        "google/longrunning/operations.proto",
        "google/rpc/status.proto",
        "basalt/v1/heal.proto",
        "basalt/v1/restore.proto",
        "basalt/meta/v1/restore.proto",
        "basalt/v1/crypt.proto",
        "basalt/meta/v1/crypt.proto",
        "basalt/v1/link.proto",
    ];
    for file in files {
        println!("cargo::rerun-if-changed={}", root.join(file).display());
    }
    let mut compiler = protox::Compiler::new([root])?;
    compiler.include_source_info(true).include_imports(true).open_files(files)?;
    // As a compiler made it, with what reflection and the test of the conventions need to know of it.
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;
    // Maps are ordered, so that equal messages have equal bytes: the state machine of the metadata
    // group compares requests by their encoding.
    let mut config = tonic_prost_build::Config::new();
    config.enable_type_names();
    // Keys are not shown: see `src/hidden.rs`.
    config.skip_debug([".basalt.meta.v1.WrappedKey", ".basalt.v1.IssueVolumeKeyResponse"]);
    tonic_prost_build::configure()
        .btree_map(".")
        .compile_fds_with_config(compiler.file_descriptor_set(), config)?;
    Ok(())
}
