//! The secret is exchanged, and certificates are renewed, while programs call: none of their calls fails.

use anyhow::{Context, Result, ensure};
use basalt_api::dial::{Channel, channel_as, plain};
use basalt_api::random::request_id;
use basalt_api::v1::admin_client::AdminClient;
use basalt_api::v1::{CreateVolumeRequest, DeleteVolumeRequest, GetClusterRequest};
use basalt_interop::cluster::{Cluster, PATIENCE, Shape};
use basalt_interop::process::{run, wait_until, work_dir};
use basalt_security::authority::Subject;
use basalt_security::keyring::Source;
use basalt_security::{Credentials, Keyring, Role, Secrets};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often certificates are renewed in the test.
const RENEWALS: usize = 4;

fn credentials(secret: &Path) -> Result<Credentials> {
    let (name, lifetime) = ("load".to_owned(), Duration::from_secs(3600));
    let subject = Subject { name, role: Role::Admin, addresses: Vec::new(), lifetime };
    let keyring = Keyring::open(Source::Secret(secret.to_owned()), subject)?;
    Ok(Credentials { keyring: Some(Arc::new(keyring)), token: None })
}

/// Calls to all nodes, on connections that stand and on new ones.
struct Load {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Load {
    fn start(cluster: &Cluster) -> Result<Load> {
        let credentials = credentials(&cluster.secret())?;
        let addresses: Vec<String> = cluster.nodes.iter().map(|node| node.address()).collect();
        let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (stop.clone(), made.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(calls(&credentials, &addresses, &stopped, &count))
        });
        Ok(Load { stop, made, thread: Some(thread) })
    }

    fn made(&self) -> u64 {
        self.made.load(Ordering::SeqCst)
    }

    /// Waits until many more calls were made, or one has failed.
    fn goes_on(&self) -> Result<()> {
        let before = self.made();
        wait_until("calls go on", PATIENCE, || {
            let ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            ensure!(!ended, "a call failed");
            Ok(self.made() >= before + 30)
        })
    }

    fn end(&mut self) -> Result<u64> {
        self.stop.store(true, Ordering::SeqCst);
        let thread = self.thread.take().context("it ran")?;
        thread.join().map_err(|_| anyhow::anyhow!("the load ended with a panic"))??;
        Ok(self.made())
    }
}

async fn calls(
    credentials: &Credentials,
    addresses: &[String],
    stop: &AtomicBool,
    made: &AtomicU64,
) -> Result<()> {
    let standing: Vec<Channel> = addresses
        .iter()
        .map(|address| channel_as(address, PATIENCE, credentials))
        .collect::<Result<_, _>>()?;
    let mut round = 0;
    while !stop.load(Ordering::SeqCst) {
        credentials.refresh()?;
        for (address, standing) in addresses.iter().zip(&standing) {
            let fresh = channel_as(address, PATIENCE, credentials)?;
            let channel = if round % 2 == 0 { standing.clone() } else { fresh };
            one_round(AdminClient::new(channel), round).await.map_err(|status| {
                anyhow::anyhow!("{address}, round {round}: {}", plain(&status))
            })?;
            made.fetch_add(3, Ordering::SeqCst);
        }
        round += 1;
    }
    Ok(())
}

/// A call that asks all nodes, and two that go to the leader through whoever is asked.
async fn one_round(mut client: AdminClient<Channel>, round: u64) -> Result<(), tonic::Status> {
    let cluster = client.get_cluster(GetClusterRequest {}).await?.into_inner();
    if let Some(node) = cluster.nodes.iter().find(|node| !node.reachable) {
        let text = format!("'{}' is not reached from there: {}", node.name, node.problem);
        return Err(tonic::Status::internal(text));
    }
    let id = format!("v{round}-{:x}", basalt_api::random::random());
    let create = CreateVolumeRequest {
        volume_id: id.clone(),
        size_bytes: 1 << 20,
        request_id: request_id("load"),
        ..CreateVolumeRequest::default()
    };
    client.create_volume(create).await?;
    let delete = DeleteVolumeRequest {
        name: format!("volumes/{id}"),
        request_id: request_id("load"),
        ..DeleteVolumeRequest::default()
    };
    client.delete_volume(delete).await.map(drop)
}

/// Waits until every node lets the holder of these secrets in, or none does.
fn wait_for_nodes(cluster: &Cluster, secrets: &Secrets, admitted: bool, file: &Path) -> Result<()> {
    let _ = std::fs::remove_file(file);
    secrets.create(file)?;
    let credentials = credentials(file)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for node in &cluster.nodes {
        wait_until("the node has taken the step", PATIENCE, || {
            let answer = runtime.block_on(async {
                let channel = channel_as(&node.address(), PATIENCE, &credentials)?;
                AdminClient::new(channel).get_cluster(GetClusterRequest {}).await
            });
            Ok(answer.is_ok() == admitted)
        })?;
    }
    Ok(())
}

/// A folder that goes when the test is over.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn no_call_fails_while_secret_and_certificates_are_exchanged() -> Result<()> {
    let folder = Folder(work_dir().join(format!("rotation-{}", std::process::id())));
    std::fs::create_dir_all(&folder.0)?;
    let secret = folder.0.join("secret");
    let old = Secrets::new();
    old.create(&secret)?;
    let shape = Shape { secret: Some(secret.clone()), ..Shape::default() };
    let cluster = Cluster::start_with("rotation", &shape)?;
    cluster.basalt(&["volume", "create", "held", "--size", "64MiB"])?;
    let mut attached = cluster.attach("held", "rotation-host", false)?;
    let mut load = Load::start(&cluster)?;
    load.goes_on()?;

    let probe = folder.0.join("probe");
    let step = |word: &str| -> Result<Secrets> {
        run("basalt", &["secret", word, &secret.to_string_lossy()])?;
        Ok(Secrets::load(&secret)?)
    };
    let both = step("add")?;
    let next_first = both.promoted().map_err(anyhow::Error::msg)?;
    wait_for_nodes(&cluster, &next_first, true, &probe)?;
    load.goes_on()?;
    let next = step("promote")?.only_first().map_err(anyhow::Error::msg)?;
    // Whoever knows only the next one takes the nodes' certificates for good.
    wait_for_nodes(&cluster, &next, true, &probe)?;
    load.goes_on()?;
    ensure!(step("drop")? == next);
    wait_for_nodes(&cluster, &old, false, &probe)?;
    load.goes_on()?;
    // A file that is new is read, and a new certificate issued.
    for _ in 0..RENEWALS {
        Secrets::load(&secret)?.replace(&secret)?;
        load.goes_on()?;
    }
    println!("{} calls, none failed", load.end()?);

    // The front door, which ran all the time, still hears of changes.
    cluster.basalt(&["volume", "resize", "held", "--size", "128MiB"])?;
    let uri = attached.uri("held");
    wait_until("the new size is offered", PATIENCE, || {
        Ok(run("nbdinfo", &["--size", &uri])?.trim() == (128 << 20).to_string())
    })?;
    attached.process.stop(PATIENCE)?;
    cluster.finish()
}
