//! What operators see: what programs tell Prometheus is what rules and dashboard ask for, a planned stop is no death, a
//! secret is read again on SIGHUP, and logs hold no secrets.

use anyhow::{Context, Result, ensure};
use basalt_interop::cluster::{Cluster, PATIENCE, Shape};
use basalt_interop::ports::free_port;
use basalt_interop::process::{run, wait_until, work_dir};
use basalt_security::Secrets;
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;

/// What operators are given.
const RULES: &str = include_str!("../../../deploy/prometheus/basalt.rules.yml");
const DASHBOARD: &str = include_str!("../../../deploy/grafana/basalt.json");

fn mentioned(text: &str) -> BTreeSet<&str> {
    let part = |c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    text.split(part).filter(|word| word.starts_with("basalt_")).collect()
}

fn told(text: &str) -> BTreeSet<&str> {
    let values = text.lines().filter(|line| !line.starts_with('#'));
    values.filter_map(|line| line.split(['{', ' ']).next()).collect()
}

#[test]
fn rules_and_dashboard_ask_for_what_programs_tell() -> Result<()> {
    let port = free_port()?.to_string();
    // Nobody listens there: what becomes of spans is told all the same.
    let nowhere = format!("http://127.0.0.1:{}", free_port()?);
    let shape = Shape {
        attach_args: vec!["--metrics".to_owned(), port.clone()],
        variables: vec![("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), nowhere)],
        ..Shape::default()
    };
    let cluster = Cluster::start_with("observed", &shape)?;
    cluster.basalt(&["volume", "create", "own", "--size", "64MiB"])?;
    cluster.basalt(&["volume", "attach", "own", "--host", "node-1"])?;
    cluster.basalt(&["volume", "create", "beside", "--size", "64MiB"])?;
    cluster.wait_served(&cluster.nodes[0].uri("own"))?;
    let mut attached = cluster.attach("beside", "beside", false)?;
    let uri = attached.uri("beside");
    run("qemu-io", &["-f", "raw", &uri, "-c", "write 0 1M", "-c", "read 0 1M"])?;

    let of_attach = run("curl", &["-sS", &format!("http://127.0.0.1:{port}/metrics")])?;
    for part in [
        "basalt_attach_info{cluster=",
        "basalt_volume_request_seconds_count{volume=\"beside\",kind=\"write\"} ",
        "basalt_volume_session_ready{volume=\"beside\"} 1",
        "basalt_attach_map_version ",
    ] {
        ensure!(of_attach.contains(part), "{part} is not in {of_attach}");
    }
    let secret = cluster.secret().to_string_lossy().into_owned();
    let made = cluster.basalt(&["token", "create", "prometheus", "--role", "viewer"])?;
    let token = format!("authorization: Bearer {}", made["token"].as_str().context("a token")?);
    let ca = cluster.folder().join("ca.pem");
    std::fs::write(&ca, run("basalt", &["--secret-file", &secret, "identity", "authority"])?)?;
    let url = format!("https://{}/metrics", cluster.nodes[0].address());
    let ca = ca.to_string_lossy().into_owned();
    let of_node = run("curl", &["-sS", "--cacert", &ca, "-H", &token, &url])?;
    let there: BTreeSet<&str> = told(&of_attach).union(&told(&of_node)).copied().collect();
    for (what, text) in [("rules", RULES), ("dashboard", DASHBOARD)] {
        let missing: Vec<_> = mentioned(text).difference(&there).copied().collect();
        ensure!(missing.is_empty(), "{what} ask for {missing:?}");
    }
    // What both tell has the same names.
    let both = |name: &&str| name.starts_with("basalt_volume_request");
    let of = |text| told(text).into_iter().filter(both).collect::<BTreeSet<_>>();
    ensure!(of(&of_attach) == of(&of_node), "{:?} {:?}", of(&of_attach), of(&of_node));
    attached.process.stop(PATIENCE)?;
    cluster.finish()
}

fn reasons(cluster: &Cluster) -> Result<Vec<(String, String)>> {
    let found = cluster.basalt(&["events", "--last", "1000"])?;
    let events = found["events"].as_array().context("events")?;
    let text = |event: &Value, name: &str| event[name].as_str().unwrap_or_default().to_owned();
    Ok(events.iter().map(|e| (text(e, "reason"), text(e, "target"))).collect())
}

fn state_of(cluster: &Cluster, node: &str) -> Result<String> {
    let found = cluster.basalt(&["node", "show", node])?;
    Ok(found["state"].as_str().context("a state")?.to_owned())
}

#[test]
fn a_planned_stop_is_no_death() -> Result<()> {
    let words = ["--suspect-after", "1500ms", "--down-after", "4s", "--stop-grace", "60s"];
    let shape = Shape { node_args: words.map(str::to_owned).to_vec(), ..Shape::default() };
    let mut cluster = Cluster::start_with("planned", &shape)?;
    cluster.basalt(&["cluster", "failure-domain", "rack"])?;
    cluster.nodes[2].process.stop(PATIENCE)?;
    wait_until("it is shown as stopped", PATIENCE, || {
        Ok(state_of(&cluster, "node-3")? == "stopped as planned")
    })?;
    let status = cluster.basalt(&["cluster", "status"])?;
    let sentence = status["health_sentence"].as_str().context("a sentence")?;
    ensure!(sentence.contains("'node-3' was stopped as planned"), "{sentence}");
    // Twice as long as it takes to declare a node dead that said nothing.
    std::thread::sleep(Duration::from_secs(8));
    ensure!(state_of(&cluster, "node-3")? == "stopped as planned");
    cluster.nodes[2].process.restart()?;
    cluster.wait_healthy()?;
    wait_until("it is back", PATIENCE, || {
        Ok(reasons(&cluster)?.iter().any(|(reason, _)| reason == "NODE_BACK"))
    })?;
    let happened = reasons(&cluster)?;
    let has = |reason: &str, target: &str| happened.iter().any(|(r, t)| r == reason && t == target);
    ensure!(
        has("NODE_STOPPING", "nodes/node-3") && has("NODE_BACK", "nodes/node-3"),
        "{happened:?}"
    );
    ensure!(!has("NODE_DOWN", "nodes/node-3"), "{happened:?}");
    ensure!(has("FAILURE_DOMAIN_SET", "cluster"), "{happened:?}");

    // One that says nothing is dead soon, and it is said when its groups would be made anew if others were there.
    cluster.nodes[2].process.kill()?;
    wait_until("it is dead", PATIENCE, || {
        Ok(reasons(&cluster)?.iter().any(|(reason, _)| reason == "NODE_DOWN"))
    })?;
    cluster.nodes[2].process.restart()?;
    cluster.wait_healthy()?;
    cluster.finish()
}

#[test]
fn a_secret_is_read_again_on_sighup_and_stands_in_no_log() -> Result<()> {
    let secret = work_dir().join(format!("interop-{}-hangup-secret", std::process::id()));
    Secrets::new().create(&secret)?;
    let good = std::fs::read_to_string(&secret)?;
    let shape = Shape {
        nodes: 1,
        secret: Some(secret.clone()),
        node_args: ["--log-format", "json", "--log-level", "debug"].map(str::to_owned).to_vec(),
        ..Shape::default()
    };
    let cluster = Cluster::start_with("hangup", &shape)?;
    let token = cluster.basalt(&["token", "create", "ci", "--role", "viewer"])?;
    let token = token["token"].as_str().context("a token")?.to_owned();
    let log = cluster.folder().join("node-1.log");
    let warnings = || -> Result<usize> {
        Ok(std::fs::read_to_string(&log)?.matches("the credentials of before stay in use").count())
    };
    // A file that is none: what was before stays in use, which is said once.
    std::fs::write(&secret, "half a secret\n")?;
    wait_until("it is said that the file is none", PATIENCE, || Ok(warnings()? == 1))?;
    std::thread::sleep(Duration::from_secs(3));
    ensure!(warnings()? == 1, "it is said again and again");
    cluster.nodes[0].process.signal(libc::SIGHUP)?;
    wait_until("it is read again when it was asked for", PATIENCE, || Ok(warnings()? == 2))?;
    std::fs::write(&secret, &good)?;
    cluster.nodes[0].process.signal(libc::SIGHUP)?;
    cluster.basalt(&["volume", "create", "demo", "--size", "64MiB"])?;
    let file = secret.to_string_lossy().into_owned();
    let ca = cluster.folder().join("ca.pem").to_string_lossy().into_owned();
    std::fs::write(&ca, run("basalt", &["--secret-file", &file, "identity", "authority"])?)?;
    let url = format!("https://{}/metrics", cluster.nodes[0].address());
    let shown = format!("authorization: Bearer {token}");
    let told = run("curl", &["-sS", "--cacert", &ca, "-H", &shown, &url])?;
    ensure!(told.contains("basalt_node_info"), "the token is good: {told}");
    let text = std::fs::read_to_string(&log)?;
    for line in text.lines() {
        let parsed: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        ensure!(parsed["message"].is_string(), "{line}");
    }
    let call = text.lines().find(|line| line.contains("Admin/CreateVolume: Ok"));
    let call: Value = serde_json::from_str(call.context("the call stands in the log")?)?;
    ensure!(call["trace_id"].as_str().is_some_and(|id| id.len() == 32), "{call}");
    ensure!(call["volume"] == "demo" && call["request_id"].is_string(), "{call}");
    // Every word that is long enough to be one, after the token was shown to the node, too.
    let keys = good.split(|c: char| !c.is_ascii_alphanumeric() && !"+/=-_".contains(c));
    for key in keys.filter(|word| word.len() > 24).chain([token.as_str()]) {
        ensure!(!text.contains(key), "a secret stands in the log");
    }
    std::fs::remove_file(&secret)?;
    cluster.finish()
}
