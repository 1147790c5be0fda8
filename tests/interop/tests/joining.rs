//! New machines, and nodes that are to be open: what is given to whom, and what is refused.

use anyhow::{Context, Result, ensure};
use basalt_interop::cluster::{Cluster, PATIENCE, Shape};
use basalt_interop::ports::free_port;
use basalt_interop::process::{Program, bin_dir, run, secret_file, wait_until};
use basalt_security::Secrets;
use basalt_security::join::JoinToken;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

/// Arguments of a further node, which knows nothing of the cluster.
fn arguments(data: &Path, name: &str, more: &[&str]) -> Result<(String, Vec<String>)> {
    let address = format!("127.0.0.1:{}", free_port()?);
    let data_address = format!("127.0.0.1:{}", free_port()?);
    let data = data.to_string_lossy();
    let own =
        ["--name", name, "--data-dir", &data, "--device-size", "4GiB", "--segment-size", "16MiB"];
    let ports = ["--listen", &address, "--data-listen", &data_address];
    let all = [&own[..], &ports, more].concat();
    Ok((address.clone(), all.into_iter().map(str::to_owned).collect()))
}

fn words(all: &[String]) -> Vec<&str> {
    all.iter().map(String::as_str).collect()
}

/// A program of ours, or of the system.
fn program_path(name: &str) -> PathBuf {
    let ours = bin_dir().join(name);
    if ours.exists() { ours } else { PathBuf::from(name) }
}

/// What a program says that must end by itself, without success, and knows of no secret.
fn refused(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new("timeout")
        .args(["-k", "5", "60"])
        .arg(program_path(program))
        .args(args)
        .env_remove("BASALT_SECRET_FILE")
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success(), "{program} {args:?} must not succeed");
    ensure!(output.status.code() != Some(124), "{program} {args:?} does not end: {said}");
    Ok(said)
}

#[test]
fn a_machine_joins_with_one_command_and_its_token_counts_once() -> Result<()> {
    let cluster = Cluster::start_with("joining", &Shape { nodes: 1, ..Shape::default() })?;
    let at = cluster.nodes[0].address();
    let made = cluster.basalt(&["node", "token", "--ttl", "5m"])?;
    let token = made["join_token"].as_str().context("a token")?.to_owned();
    let data = cluster.folder().join("joined");
    let join = format!("{token}@{at}");
    let (_, args) = arguments(&data, "joined", &["--join", &join])?;
    let log = cluster.folder().join("joined.log");
    let mut node = Program::new("basaltd").bare().more_args(&words(&args)).log(log).start()?;
    let is_member = || -> Result<bool> {
        let found = cluster.basalt(&["node", "list"])?;
        let nodes = found["nodes"].as_array().context("nodes")?;
        Ok(nodes.iter().any(|one| one["name"] == "joined" && one["reachable"] == true))
    };
    wait_until("the machine is a member", PATIENCE, || {
        ensure!(node.alive(), "it ended{}", node.log_tail());
        is_member()
    })?;
    let kept = data.join("secret");
    ensure!(Secrets::load(&kept)? == Secrets::load(&secret_file())?, "another secret");
    ensure!(std::fs::metadata(&kept)?.permissions().mode() & 0o777 == 0o600);
    cluster.wait_healthy()?;

    // It is started with the same words ever after.
    node.kill()?;
    node.restart()?;
    wait_until("it is a member again", PATIENCE, is_member)?;

    let next = cluster.folder().join("next");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_millis() as u64;
    let over = JoinToken::create(&Secrets::load(&secret_file())?, now)?.text();
    let foreign = JoinToken::create(&Secrets::new(), now + 60_000)?.text();
    for (token, why) in [(token, "before"), (over, "is over"), (foreign, "certificate")] {
        let (_, args) = arguments(&next, "next", &["--join", &format!("{token}@{at}")])?;
        let said = refused("basaltd", &words(&args))?;
        ensure!(said.contains(why), "{why}: {said}");
        ensure!(!next.join("secret").exists(), "{why}: it was given the secret");
    }
    node.stop(Duration::from_secs(20))?;
    cluster.finish()
}

#[test]
fn a_node_without_a_secret_runs_only_if_told_to_and_on_this_machine() -> Result<()> {
    let folder = std::env::temp_dir().join(format!("basalt-insecure-{}", std::process::id()));
    let data = folder.join("node");
    let (address, args) = arguments(&data, "alone", &[])?;
    let said = refused("basaltd", &words(&args))?;
    ensure!(said.contains("basalt secret new") && said.contains("--insecure"), "{said}");
    for (option, value) in
        [("--listen", "0.0.0.0:1"), ("--data-listen", "10.0.0.1:1"), ("--nbd-listen", "[::]:1")]
    {
        let open = [
            "--data-dir",
            &data.to_string_lossy(),
            "--advertise",
            "x",
            "--insecure",
            option,
            value,
        ];
        let said = refused("basaltd", &open)?;
        ensure!(said.contains(option) && said.contains("other machines"), "{said}");
    }
    let open = ["--cluster", "127.0.0.1:1", "--volume", "v", "--listen", "0.0.0.0:1"];
    let said = refused("basalt-attach", &open)?;
    ensure!(said.contains("--tls-client-ca"), "{said}");

    std::fs::create_dir_all(&folder)?;
    let mut node = Program::new("basaltd")
        .bare()
        .more_args(&words(&args))
        .args(["--insecure"])
        .log(folder.join("log"))
        .start()?;
    let basalt = |words: &[&str]| {
        let output = Command::new(bin_dir().join("basalt"))
            .args(["--cluster", &address])
            .args(words)
            .env_remove("BASALT_SECRET_FILE")
            .output()?;
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        anyhow::Ok((output.status.success(), text))
    };
    wait_until("it answers", PATIENCE, || {
        ensure!(node.alive(), "it ended{}", node.log_tail());
        Ok(basalt(&["cluster", "status"])?.0)
    })?;
    let (good, said) = basalt(&["cluster", "bootstrap", "--node", &address])?;
    ensure!(good, "{said}");
    let (good, said) = basalt(&["identity", "show"])?;
    ensure!(good && said.contains("insecure"), "{said}");
    // There is nothing to give.
    let (good, said) = basalt(&["node", "token"])?;
    ensure!(!good && said.contains("--insecure"), "{said}");
    node.stop(Duration::from_secs(20))?;
    std::fs::remove_dir_all(folder)?;
    Ok(())
}

#[test]
fn a_program_that_says_nothing_is_told_what_to_say() -> Result<()> {
    let cluster = Cluster::start_with("silent", &Shape { nodes: 1, ..Shape::default() })?;
    let said = refused("basalt", &["--cluster", &cluster.addresses(), "volume", "list"])?;
    ensure!(said.contains("--secret-file"), "{said}");
    let readable = cluster.folder().join("readable");
    Secrets::new().create(&readable)?;
    std::fs::set_permissions(&readable, PermissionsExt::from_mode(0o644))?;
    let readable = readable.to_string_lossy().into_owned();
    let words = ["--secret-file", &readable, "--cluster", &cluster.addresses(), "volume", "list"];
    let said = refused("basalt", &words)?;
    ensure!(said.contains("chmod 600"), "{said}");
    let other = cluster.folder().join("other").to_string_lossy().into_owned();
    run("basalt", &["secret", "new", &other])?;
    let words = ["--secret-file", &other, "--cluster", &cluster.addresses(), "volume", "list"];
    let said = refused("basalt", &words)?;
    ensure!(said.contains("certificate"), "{said}");
    cluster.finish()
}

#[test]
fn nbd_with_the_nodes_own_certificate_asks_for_one() -> Result<()> {
    let node_args = ["--tls", "required"].map(str::to_owned).to_vec();
    let shape = Shape { nodes: 1, node_args, ..Shape::default() };
    let cluster = Cluster::start_with("nbd-own", &shape)?;
    cluster.basalt(&["volume", "create", "disk", "--size", "64MiB"])?;
    cluster.basalt(&["volume", "attach", "disk", "--host", "node-1"])?;
    let secret = cluster.secret().to_string_lossy().into_owned();
    let issue = |role: &str| -> Result<String> {
        let out = cluster.folder().join(role).to_string_lossy().into_owned();
        let words =
            ["--secret-file", &secret, "identity", "issue", role, "--role", role, "--out", &out];
        run("basalt", &words)?;
        Ok(out)
    };
    let uri = |folder: &str| {
        format!("nbds://127.0.0.1:{}/disk?tls-certificates={folder}", cluster.nodes[0].ports.nbd)
    };
    let operator = issue("operator")?;
    cluster.wait_served(&uri(&operator))?;
    let info = run("nbdinfo", &["--json", &uri(&issue("csi")?)])?;
    ensure!(info.contains("\"TLS\": true"), "{info}");
    refused("nbdinfo", &[&cluster.nodes[0].uri("disk")])?;
    refused("nbdinfo", &[&uri(&issue("viewer")?)])?;
    let plain = cluster.folder().join("plain");
    std::fs::create_dir_all(&plain)?;
    std::fs::copy(Path::new(&operator).join("ca-cert.pem"), plain.join("ca-cert.pem"))?;
    refused("nbdinfo", &[&uri(&plain.to_string_lossy())])?;
    cluster.finish()
}
