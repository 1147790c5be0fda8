//! The life of the process: its data directory locked, its API up, waiting to be made part of a
//! cluster or running as part of one, stopped in order.

use crate::access::AccessLayer;
use crate::access::recorder::Recorder;
use crate::admin::AdminService;
use crate::bootstrap::is_same;
use crate::engine::{Engine, identity_of};
use crate::incoming::Incoming;
use crate::keys::EncryptionService;
use crate::options::Options;
use crate::peer::PeerService;
use crate::recovery::RecoveryService;
use crate::security::SecurityService;
use crate::services;
use crate::services::classes::ClassesService;
use crate::services::events::EventsService;
use crate::services::operations::OperationsService;
use crate::services::pools::PoolsService;
use crate::services::quotas::QuotasService;
use crate::services::watch::ResourcesService;
use anyhow::{Context, Result, anyhow, bail, ensure};
use basalt_api::longrunning::operations_server::OperationsServer;
use basalt_api::v1::admin_server::AdminServer;
use basalt_api::v1::encryption_server::EncryptionServer;
use basalt_api::v1::events_server::EventsServer;
use basalt_api::v1::peer_server::PeerServer;
use basalt_api::v1::pools_server::PoolsServer;
use basalt_api::v1::quotas_server::QuotasServer;
use basalt_api::v1::recovery_server::RecoveryServer;
use basalt_api::v1::resources_server::ResourcesServer;
use basalt_api::v1::security_server::SecurityServer;
use basalt_api::v1::storage_classes_server::StorageClassesServer;
use basalt_api::v1::{ClusterSpec, ErrorReason, Member};
use basalt_api::{dial, error};
use basalt_attach::listen::NbdListen;
use basalt_attach::process::{self, Usage};
use basalt_meta::layout;
use basalt_security::authority::Subject;
use basalt_security::keyring::{LIFETIME, Source};
use basalt_security::{Credentials, Keyring, Role, Secrets};
use basalt_store::{Identity, Store, StoreError};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, watch};
use tonic::Status;

/// Calls under way on one connection.
const CALLS_MAX: usize = 256;
/// How long calls may go on after the node was asked to stop.
const LAST_CALLS: Duration = Duration::from_secs(2);
/// How long a call may take at all; the longest is a bootstrap.
const CALL: Duration = Duration::from_secs(120);
/// How long a connection stands before its client is asked to make a new one, with the certificates of then.
const CONNECTION: Duration = Duration::from_secs(3600);

/// One process.
pub struct Daemon {
    /// Its command line.
    pub options: Arc<Options>,
    /// How often the node was started, with this time.
    pub boots: u64,
    /// When this process began.
    pub began: Instant,
    /// The node's certificates; nothing if it asks nobody who he is.
    pub keyring: Option<Arc<Keyring>>,
    /// What becomes of calls.
    pub recorder: Arc<Recorder>,
    store: Arc<Store>,
    name: String,
    engine: watch::Sender<Option<Arc<Engine>>>,
    joining: Mutex<()>,
}

impl Daemon {
    /// The node's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The running member of a cluster.
    ///
    /// # Errors
    /// While the node waits for bootstrap.
    pub fn engine(&self) -> Result<Arc<Engine>, Status> {
        self.engine.borrow().clone().ok_or_else(|| {
            let message = format!(
                "the node '{}' belongs to no cluster yet; run 'basalt cluster bootstrap --node ...' \
                 with the addresses of all nodes, or 'basalt node add' at a cluster",
                self.name
            );
            error::status(ErrorReason::NotBootstrapped, message, &[("node", self.name.clone())])
        })
    }

    /// Tells when the node becomes a running member of a cluster.
    pub fn engines(&self) -> watch::Receiver<Option<Arc<Engine>>> {
        self.engine.subscribe()
    }

    /// What the members of the node's cluster agreed on, if it belongs to one: also when it could
    /// not start as a member yet.
    pub fn spec(&self) -> Option<ClusterSpec> {
        if let Some(engine) = self.engine.borrow().as_ref() {
            return Some(engine.spec());
        }
        let stored = self.store.identity().ok().flatten();
        stored.map(|identity| crate::engine::spec_of(&identity))
    }

    /// What a node that leaves its cluster says to users: it hears of no change any more, and would show the
    /// cluster as it was. Whoever asks goes on to the next node.
    fn refuse_if_leaving(&self) -> Result<(), Status> {
        let Ok(engine) = self.engine() else { return Ok(()) };
        let leaves = engine.metadata.look(|state| {
            let own = |member: &&Member| member.node == engine.node.0;
            state
                .cluster()
                .and_then(|spec| spec.members.iter().find(own))
                .is_some_and(|m| m.leaving)
        });
        if !leaves {
            return Ok(());
        }
        let message = format!(
            "the node '{}' was removed from the cluster; ask another one, and stop this one",
            self.name
        );
        Err(error::status(ErrorReason::NodeUnreachable, message, &[("node", self.name.clone())]))
    }

    /// The node's number in its cluster, 0 if it belongs to none: also when it could not start as a
    /// member yet.
    pub fn node(&self) -> u32 {
        if let Some(engine) = self.engine.borrow().as_ref() {
            return engine.node.0;
        }
        self.store.identity().ok().flatten().map_or(0, |identity| identity.node)
    }

    /// Whether this node ever began as a member.
    pub fn has_begun(&self) -> bool {
        self.engine().is_ok() || self.store.identity().ok().flatten().is_some_and(|id| id.begun)
    }

    /// Makes this node a member, or only has it remember that it is to become one (`prepare`). The same again
    /// is done already.
    ///
    /// # Errors
    /// If it belongs to another cluster, can not run as this member, or is to begin as a founder without having
    /// been prepared: then it has lost its store, and what it promised with it.
    pub async fn join(
        self: &Arc<Daemon>,
        spec: ClusterSpec,
        node: u32,
        prepare: bool,
    ) -> Result<(), Status> {
        let _one_at_a_time = self.joining.lock().await;
        layout::validate(&spec).map_err(|problem| error::invalid("cluster", problem))?;
        crate::bootstrap::check_awaited(self.options.only_cluster.unwrap_or(0), spec.id)?;
        let own = crate::bootstrap::own_member(&self.options, node).map_err(Status::internal)?;
        if self.engine().is_ok_and(|engine| engine.cluster() == spec.id) {
            return Ok(());
        }
        if !spec.members.iter().any(|member| is_same(member, &own)) {
            let message = format!(
                "the node at {} is '{}' with data path {}, which is not member {node} of the layout",
                own.grpc_address, own.name, own.data_address
            );
            return Err(error::invalid("cluster", message));
        }
        let daemon = self.clone();
        let runtime = tokio::runtime::Handle::current();
        let started = tokio::task::spawn_blocking(move || -> Result<Option<Arc<Engine>>> {
            let _inside = runtime.enter();
            let identity = identity_of(&spec, node);
            let blank = daemon.store.identity()?.is_none();
            ensure!(!blank || prepare || !identity.is_founder(), "{}", lost(node));
            daemon.store.adopt(identity.clone())?;
            if prepare {
                return Ok(None);
            }
            daemon.store.begin()?;
            Engine::start(daemon.options.clone(), daemon.store.clone(), &identity).map(Some)
        });
        let engine = started
            .await
            .map_err(|e| Status::internal(e.to_string()))?
            .map_err(|problem| join_failed(&self.name, &problem))?;
        let Some(engine) = engine else { return Ok(()) };
        tracing::info!(node, cluster = format!("{:016x}", engine.cluster()), "joined the cluster");
        self.engine.send_replace(Some(engine));
        Ok(())
    }
}

fn lost(node: u32) -> String {
    format!("it knows nothing of its cluster, whose node {node} may have voted already")
}

fn join_failed(name: &str, problem: &anyhow::Error) -> Status {
    if let Some(StoreError::Belongs { cluster, .. }) = problem.downcast_ref::<StoreError>() {
        let message = format!("the node '{name}' already belongs to cluster {cluster:016x}");
        return error::status(ErrorReason::AlreadyBootstrapped, message, &[]);
    }
    let message = format!("the node '{name}' can not join: {problem:#}");
    tracing::warn!("{message}");
    error::status(ErrorReason::NodeUnreachable, message, &[("node", name.to_owned())])
}

/// Runs a node until it is asked to stop.
///
/// # Errors
/// If it can not start, or has to end.
pub async fn run(options: Options) -> Result<()> {
    let checked = options.check().and_then(|()| crate::bootstrap::own_member(&options, 0));
    checked.map_err(Usage)?;
    // Now, not when the node joins a cluster: the files are this machine's own.
    if !options.nbd_uses_own() {
        options.tls.load()?;
    }
    let secured = options.check_access().map_err(Usage)?;
    warn_of_what_is_open(&options, secured);
    let _lock = lock_directory(&options.data_dir)?;
    let secret = options.secret_path();
    if let Some(join) = options.join.as_ref().filter(|_| !secret.exists()) {
        let name = options.node_name().map_err(|e| anyhow!(e))?;
        crate::joining::get_secret(join, &name, &secret).await?;
    }
    if secured {
        // Now, before anything is opened: a secret that can not be used is this machine's own matter.
        Secrets::load(&secret)?;
    }
    let store = Arc::new(Store::open(&options.data_dir.join("store"))?);
    let end = match take_restored(&options, &store).await {
        Ok(()) => run_with(options, &store).await,
        Err(problem) => Err(problem),
    };
    store.close();
    if end.is_ok() {
        tracing::info!("stopped");
    }
    end
}

/// Goes over to the state of a backup, if that is wanted and was not done before.
async fn take_restored(options: &Options, store: &Arc<Store>) -> Result<()> {
    let Some(file) = options.restore.clone() else { return Ok(()) };
    let (options, store) = (options.clone(), store.clone());
    tokio::task::spawn_blocking(move || crate::restore::take(&options, &store, &file)).await?
}

fn warn_of_what_is_open(options: &Options, secured: bool) {
    if !secured {
        tracing::warn!("--insecure: whoever uses this machine may read and change everything");
    }
    if let Some(nbd) = options.nbd_listen.as_ref().filter(|_| options.insecure_nbd) {
        tracing::warn!(
            "--insecure-nbd: whoever reaches {nbd} may read and write the volumes there"
        );
    }
}

/// The node's certificates, which all its calls show from now on.
fn open_keyring(options: &Options, name: &str) -> Result<Arc<Keyring>> {
    let mut addresses = vec!["localhost".to_owned(), name.to_owned()];
    addresses.extend(options.advertise.clone());
    let nbd = match options.nbd_listen {
        Some(NbdListen::Tcp(at)) => Some(at),
        _ => None,
    };
    let ips = [Some(options.listen), nbd].into_iter().flatten().map(|at| at.ip());
    addresses.extend(ips.filter(|ip| !ip.is_unspecified()).map(|ip| ip.to_string()));
    addresses.push("127.0.0.1".to_owned());
    let (name, role) = (name.to_owned(), Role::Node);
    let subject = Subject { name, role, addresses, lifetime: LIFETIME };
    let keyring = Arc::new(Keyring::open(Source::Secret(options.secret_path()), subject)?);
    let shown = Credentials { keyring: Some(keyring.clone()), token: None };
    dial::present(shown.clone());
    tokio::spawn(process::keep_fresh(shown));
    Ok(keyring)
}

async fn run_with(mut options: Options, store: &Arc<Store>) -> Result<()> {
    let identity = store.identity()?;
    let name = settled_name(&mut options, identity.as_ref())?;
    basalt_telemetry::describe(&[
        ("service.instance.id", name.clone()),
        ("basalt.node", name.clone()),
    ]);
    let boots = store.boot()?;
    let listener = TcpListener::bind(options.listen)
        .await
        .with_context(|| format!("the gRPC API can not listen on {} (--listen)", options.listen))?;
    let keyring = (!options.insecure).then(|| open_keyring(&options, &name)).transpose()?;
    let folder = options.data_dir.join("audit");
    let recorder = Recorder::open(&folder)
        .with_context(|| format!("the audit in {} can not be used", folder.display()))?;
    let recorder = Arc::new(recorder);
    Recorder::keep_synced(&recorder);
    let daemon = Arc::new(Daemon {
        options: Arc::new(options),
        boots,
        began: Instant::now(),
        keyring,
        recorder,
        store: store.clone(),
        name,
        engine: watch::channel(None).0,
        joining: Mutex::new(()),
    });
    if let Some(identity) = identity.filter(|identity| identity.begun) {
        tracing::info!(node = identity.node, boots, "opening the device");
        let (options, store) = (daemon.options.clone(), store.clone());
        let runtime = tokio::runtime::Handle::current();
        let start = move || {
            let _inside = runtime.enter();
            Engine::start(options, store, &identity)
        };
        daemon.engine.send_replace(Some(tokio::task::spawn_blocking(start).await??));
    } else {
        tracing::info!(name = %daemon.name, listen = %daemon.options.listen, "waiting for bootstrap");
        if let Some(join) = daemon.options.join.clone() {
            tokio::spawn(crate::joining::ask_to_be_added(daemon.clone(), join));
        }
    }
    let end = serve(&daemon, listener).await;
    daemon.recorder.sync();
    end
}

/// The node's name: that under which its cluster knows it, as volumes are attached to it by that
/// name, else that of the options. Two nodes that answered to one name would serve the same volumes.
fn settled_name(options: &mut Options, identity: Option<&Identity>) -> Result<String> {
    let known =
        identity.and_then(|known| known.members.iter().find(|member| member.node == known.node));
    let Some(known) = known else { return options.node_name().map_err(|e| anyhow!(e)) };
    if options.node_name().is_ok_and(|name| name != known.name) {
        tracing::warn!(
            name = %known.name,
            "a node keeps the name with which it joined its cluster; the other one (--name, or the \
             machine's) is not used"
        );
    }
    options.name = Some(known.name.clone());
    Ok(known.name.clone())
}

async fn serve(daemon: &Arc<Daemon>, listener: TcpListener) -> Result<()> {
    let (stop, mut stopping) = watch::channel(false);
    let (reporter, health) = tonic_health::server::health_reporter();
    tokio::spawn(services::health::run(Arc::downgrade(daemon), reporter));
    // Tools ask for one version or the other.
    let [reflection, older] = [(); 2].map(|()| {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(basalt_api::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    });
    let server = tonic::transport::Server::builder()
        // For /metrics.
        .accept_http1(true)
        .concurrency_limit_per_connection(CALLS_MAX)
        .timeout(CALL)
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
        .max_connection_age(CONNECTION)
        .layer(crate::calls::CallLayer)
        .layer(AccessLayer::new(daemon.clone(), daemon.recorder.clone()))
        .add_routes(crate::metrics::routes(daemon))
        .add_service(AdminServer::with_interceptor(AdminService::new(daemon.clone()), {
            let daemon = daemon.clone();
            move |request| daemon.refuse_if_leaving().map(|()| request)
        }))
        .add_service(PeerServer::new(PeerService::new(daemon.clone())))
        .add_service(SecurityServer::new(SecurityService::new(daemon.clone())))
        .add_service(EncryptionServer::new(EncryptionService::new(daemon.clone())))
        .add_service(StorageClassesServer::new(ClassesService::new(daemon.clone())))
        .add_service(QuotasServer::new(QuotasService::new(daemon.clone())))
        .add_service(PoolsServer::new(PoolsService::new(daemon.clone())))
        .add_service(EventsServer::new(EventsService::new(daemon.clone())))
        .add_service(OperationsServer::new(OperationsService::new(daemon.clone())))
        .add_service(RecoveryServer::new(RecoveryService::new(daemon.clone())))
        .add_service(ResourcesServer::new(ResourcesService::new(daemon.clone())))
        .add_service(health)
        .add_service(reflection.build_v1()?)
        .add_service(older.build_v1alpha()?)
        .serve_with_incoming_shutdown(
            Incoming::new(listener, daemon.keyring.clone()),
            async move {
                // Both mean that it is time to stop.
                let _ = stopping.wait_for(|stop| *stop).await;
            },
        );
    let mut server = tokio::spawn(server);
    tracing::info!(listen = %daemon.options.listen, version = env!("CARGO_PKG_VERSION"), "ready");
    let end: Result<()> = tokio::select! {
        signal = basalt_attach::process::stop_signal() => {
            tracing::info!("{}: stopping", signal?);
            Ok(())
        }
        reason = failure(daemon) => Err(anyhow!("the node had to end: {reason}")),
        ended = &mut server => match ended? {
            Ok(()) => bail!("the gRPC API ended"),
            Err(problem) => return Err(problem).context("the gRPC API failed"),
        },
    };
    if end.is_ok() {
        stop_engine(daemon).await?;
    }
    stop.send_replace(true);
    // A client that does not let go must not hold up the end.
    let _ = tokio::time::timeout(LAST_CALLS, server).await;
    end
}

async fn failure(daemon: &Arc<Daemon>) -> String {
    let mut engines = daemon.engine.subscribe();
    let running = engines.wait_for(Option::is_some).await.ok().and_then(|engine| engine.clone());
    match running {
        Some(engine) => engine.failure().await,
        None => std::future::pending().await,
    }
}

async fn stop_engine(daemon: &Arc<Daemon>) -> Result<()> {
    let Ok(engine) = daemon.engine() else { return Ok(()) };
    crate::stops::announce(&engine).await;
    engine.stop().await
}

/// Makes sure that no other process uses the directory, and keeps it so as long as the file lives.
fn lock_directory(directory: &Path) -> Result<File> {
    std::fs::create_dir_all(directory)
        .with_context(|| format!("the data directory {} can not be made", directory.display()))?;
    let path = directory.join("lock");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("{} can not be opened", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Who it is only makes the message better.
            let _ = file.read_to_string(&mut holder);
            let holder = holder.trim();
            bail!(
                "the data directory {} is in use by another basaltd (process {holder}); stop that \
                 one, or give this one a directory of its own with --data-dir",
                directory.display()
            );
        }
        Err(TryLockError::Error(problem)) => {
            return Err(problem).with_context(|| format!("{} can not be locked", path.display()));
        }
    }
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_keeps_its_name() {
        use clap::Parser;
        let mut options = Options::try_parse_from(["basaltd", "--data-dir", "/d", "--name", "new"])
            .expect("good options");
        assert_eq!(settled_name(&mut options, None).expect("the option's"), "new");
        let member = |node: u32| basalt_store::MemberRecord {
            node,
            name: format!("old-{node}"),
            grpc: String::new(),
            data: String::new(),
            nbd: String::new(),
        };
        let identity = Identity::new(1, 2, vec![member(1), member(2)], Vec::new(), vec![1, 2]);
        assert_eq!(settled_name(&mut options, Some(&identity)).expect("the cluster's"), "old-2");
        assert_eq!(options.node_name().expect("settled"), "old-2");
    }

    #[test]
    fn a_directory_has_one_user() {
        let path = std::env::temp_dir().join(format!("basaltd-lock-{}", std::process::id()));
        let first = lock_directory(&path).expect("free");
        let second = lock_directory(&path).expect_err("in use").to_string();
        assert!(second.contains(&format!("process {}", std::process::id())), "{second}");
        drop(first);
        lock_directory(&path).expect("free again");
        std::fs::remove_dir_all(&path).expect("removed");
    }
}
