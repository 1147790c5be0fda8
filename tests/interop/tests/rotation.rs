//! The secret is exchanged, and certificates are renewed, while programs call and a volume is written: no call
//! and no request fails.

use anyhow::{Context, Result, ensure};
use basalt_api::dial::{Channel, channel_as, plain};
use basalt_api::random::request_id;
use basalt_api::v1::admin_client::AdminClient;
use basalt_api::v1::{CreateVolumeRequest, DeleteVolumeRequest, GetClusterRequest};
use basalt_interop::cluster::{Cluster, PATIENCE, Shape};
use basalt_interop::fio::{FioJob, RunningFio};
use basalt_interop::process::{run, wait_until, work_dir};
use basalt_link::{DialStep, Dialler, Keys, LinkAuth};
use basalt_security::authority::Subject;
use basalt_security::keyring::Source;
use basalt_security::secret::Purpose;
use basalt_security::{Credentials, Keyring, Role, Secrets};
use basalt_wire::codec::{DecodeLimits, Decoder, Encoder};
use basalt_wire::frame::{Frame, Role as LinkRole};
use basalt_wire::ids::{Address, ClusterId, NodeId, ShardId};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often certificates are renewed in the test.
const RENEWALS: usize = 4;
/// Bytes that are written in a second, 128 times: longer than all steps take.
const RATE: u64 = 1 << 20;

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

/// Whether a holder of the first of these secrets opens links to the nodes: to all, or to none.
fn links_open(cluster: &Cluster, secrets: &Secrets) -> Result<bool> {
    let keys = Keys::new(&secrets.keys(Purpose::DataPath)).map_err(anyhow::Error::msg)?;
    let status = cluster.basalt(&["cluster", "status"])?;
    let id = status["id"].as_str().context("the cluster's id")?;
    let id = ClusterId(u64::from_str_radix(id, 16)?);
    let mut open = Vec::new();
    for (number, node) in (1..).zip(&cluster.nodes) {
        let to = Address { node: NodeId(number), shard: ShardId(0) };
        let role = LinkRole::Client { name: "rotation".to_owned() };
        let auth = LinkAuth::Secret(keys.clone());
        let (mut dialler, hello) = Dialler::start(&auth, id, to, role, basalt_link::nonce())
            .map_err(anyhow::Error::msg)?;
        let mut stream = TcpStream::connect(("127.0.0.1", node.ports.data))?;
        let mut decoder = Decoder::new(DecodeLimits::HANDSHAKE);
        let mut next = Some(Frame::Hello(hello));
        let opened = loop {
            if let Some(frame) = next.take() {
                let mut encoder = Encoder::new();
                encoder.push(&frame);
                stream.write_all(&encoder.take().concat())?;
            }
            let Some(frame) = decoder.next()? else {
                let mut buffer = [0; 2048];
                let len = stream.read(&mut buffer)?;
                ensure!(len > 0, "{} ends links without a word", node.name);
                decoder.push(buffer[..len].to_vec().into());
                continue;
            };
            match dialler.receive(frame) {
                DialStep::Send(frame) => next = Some(frame),
                DialStep::Open(..) => break true,
                DialStep::Refused(_) | DialStep::Unexpected => break false,
            }
        };
        open.push(opened);
    }
    Ok(open.iter().all(|opened| *opened))
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
    cluster.basalt(&["volume", "create", "held", "--size", "256MiB"])?;
    let mut attached = cluster.attach("held", "rotation-host", false)?;
    let mut load = Load::start(&cluster)?;
    load.goes_on()?;
    let fio = FioJob {
        rate_bytes: Some(RATE),
        io_bytes: Some(128 * RATE),
        ..FioJob::verified_writes(&attached.uri("held"), 256 << 20)
    };
    let mut fio = fio.start()?;
    let writes_go_on = |fio: &mut RunningFio| -> Result<()> {
        let before = fio.written_bytes();
        wait_until("the volume is written", PATIENCE, || {
            ensure!(!fio.ended()?, "the writes have ended");
            Ok(fio.written_bytes() > before + RATE)
        })
    };
    writes_go_on(&mut fio)?;
    let data_path = |secrets: &Secrets| links_open(&cluster, secrets);
    ensure!(data_path(&old)?, "the data path knows the first secret");

    let probe = folder.0.join("probe");
    let step = |word: &str| -> Result<Secrets> {
        run("basalt", &["secret", word, &secret.to_string_lossy()])?;
        Ok(Secrets::load(&secret)?)
    };
    let both = step("add")?;
    let next_first = both.promoted().map_err(anyhow::Error::msg)?;
    wait_for_nodes(&cluster, &next_first, true, &probe)?;
    load.goes_on()?;
    writes_go_on(&mut fio)?;
    let news = next_first.only_first().map_err(anyhow::Error::msg)?;
    ensure!(data_path(&old)? && data_path(&news)?, "the data path knows both");
    let next = step("promote")?.only_first().map_err(anyhow::Error::msg)?;
    // Whoever knows only the next one takes the nodes' certificates for good.
    wait_for_nodes(&cluster, &next, true, &probe)?;
    load.goes_on()?;
    writes_go_on(&mut fio)?;
    ensure!(step("drop")? == next);
    wait_for_nodes(&cluster, &old, false, &probe)?;
    load.goes_on()?;
    writes_go_on(&mut fio)?;
    wait_until("the data path has forgotten the old secret", PATIENCE, || Ok(!data_path(&old)?))?;
    ensure!(data_path(&next)?, "the data path knows the new secret");
    writes_go_on(&mut fio)?;
    // A file that is new is read, and a new certificate issued.
    for _ in 0..RENEWALS {
        Secrets::load(&secret)?.replace(&secret)?;
        load.goes_on()?;
    }
    println!("{} calls, none failed", load.end()?);
    let written = fio.finish()?.write;
    println!("{} writes, none failed; the longest took {} ms", written.requests, written.max_ms);

    // The front door, which ran all the time, still hears of changes.
    cluster.basalt(&["volume", "resize", "held", "--size", "512MiB"])?;
    let uri = attached.uri("held");
    wait_until("the new size is offered", PATIENCE, || {
        Ok(run("nbdinfo", &["--size", &uri])?.trim() == (512 << 20).to_string())
    })?;
    attached.process.stop(PATIENCE)?;
    cluster.finish()
}
