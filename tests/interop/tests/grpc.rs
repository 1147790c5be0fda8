//! A foreign gRPC client, which knows the services by reflection alone, against a cluster.

use anyhow::{Context, Result, ensure};
use basalt_interop::cluster::Cluster;
use basalt_interop::process::{python, run};
use std::path::Path;
use std::process::Command;

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
    client.args(["-B", script, &cluster.nodes[1].address()]).args([&ca, &token]);
    let answer = client.output().context("Python does not start")?;
    let told = String::from_utf8_lossy(&answer.stdout);
    let failed = String::from_utf8_lossy(&answer.stderr);
    ensure!(answer.status.success(), "{told}\n{failed}");
    ensure!(told.lines().count() > 20, "{told}");
    cluster.finish()
}

/// What the metrics of a node are answered with to who shows a token, or none: the status, and the text.
fn scrape(address: &str, ca: &Path, token: Option<&str>) -> Result<(String, String)> {
    let ca = ca.to_str().context("a path")?;
    let mut words = vec!["-sS", "--cacert", ca, "-w", "\n%{http_code}"];
    let header = token.map(|token| format!("authorization: Bearer {token}"));
    header.iter().for_each(|header| words.extend(["-H", header]));
    let url = format!("https://{address}/metrics");
    words.push(&url);
    let said = run("curl", &words)?;
    let (text, status) = said.trim_end().rsplit_once('\n').context("a status")?;
    Ok((status.to_owned(), text.to_owned()))
}

#[test]
fn metrics_are_told_to_who_may_look() -> Result<()> {
    let cluster = Cluster::start("metrics")?;
    cluster.basalt(&["volume", "create", "demo", "--size", "64MiB"])?;
    cluster.basalt(&["volume", "attach", "demo", "--host", "node-1"])?;
    let uri = cluster.nodes[0].uri("demo");
    cluster.wait_served(&uri)?;
    run("qemu-io", &["-f", "raw", &uri, "-c", "write 0 1M", "-c", "read 0 1M"])?;
    let made = cluster.basalt(&["token", "create", "prometheus", "--role", "viewer"])?;
    let token = made["token"].as_str().context("a token")?;
    let secret = cluster.secret().to_string_lossy().into_owned();
    let authority = run("basalt", &["--secret-file", &secret, "identity", "authority"])?;
    let ca = cluster.folder().join("ca.pem");
    std::fs::write(&ca, authority)?;
    let address = cluster.nodes[0].address();
    let (_, refused) = scrape(&address, &ca, None)?;
    ensure!(!refused.contains("basalt_"), "a stranger is told {refused}");
    let (_, refused) = scrape(&address, &ca, Some("basalt-token-v1:wrong"))?;
    ensure!(!refused.contains("basalt_"), "a wrong token is told {refused}");
    let (status, text) = scrape(&address, &ca, Some(token))?;
    ensure!(status == "200", "{status}: {text}");
    for part in [
        "basalt_node_info{",
        "basalt_node_running 1",
        "basalt_volume_request_seconds_count{volume=\"demo\",kind=\"write\"}",
        "basalt_volume_bytes_total{volume=\"demo\",kind=\"read\"}",
    ] {
        ensure!(text.contains(part), "{part} is not in {text}");
    }
    cluster.finish()
}
