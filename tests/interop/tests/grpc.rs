//! A foreign gRPC client, which knows the services by reflection alone, against a cluster.

use anyhow::{Context, Result, ensure};
use basalt_interop::cluster::Cluster;
use basalt_interop::process::run;
use std::path::PathBuf;
use std::process::Command;

/// The Python that `scripts/setup.sh test` installed gRPC for.
fn python() -> Result<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache =
        cache.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    let python = cache.context("there is no home directory")?.join("basalt/python/bin/python");
    ensure!(python.exists(), "{} is missing; run scripts/setup.sh test", python.display());
    Ok(python)
}

#[test]
fn a_client_without_proto_files_uses_the_api() -> Result<()> {
    let cluster = Cluster::start("grpc")?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/grpc_client.py");
    let mut client = Command::new(python()?);
    // It knows the cluster by its authority and is known by a token, as programs of others are.
    let made = cluster.basalt(&["token", "create", "python", "--role", "admin"])?;
    let token = cluster.folder().join("token");
    std::fs::write(&token, made["token"].as_str().context("a token")?)?;
    let secret = cluster.secret().to_string_lossy().into_owned();
    let authority = run("basalt", &["--secret-file", &secret, "identity", "authority"])?;
    let ca = cluster.folder().join("ca.pem");
    std::fs::write(&ca, authority)?;
    client.args(["-B", script, &cluster.nodes[1].address()]).args([ca, token]);
    let answer = client.output().context("Python does not start")?;
    let told = String::from_utf8_lossy(&answer.stdout);
    let failed = String::from_utf8_lossy(&answer.stderr);
    ensure!(answer.status.success(), "{told}\n{failed}");
    ensure!(told.lines().count() > 20, "{told}");
    cluster.finish()
}
