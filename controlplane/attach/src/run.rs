//! The program: attach, serve, follow the pool's map and the volumes' sizes, detach.

use crate::keys;
use crate::listen::{NbdListen, open_nbd};
use crate::options::{Options, machine_name};
use crate::process::{Usage, keep_fresh, stop_signal};
use crate::scrape::{Heard, Listener};
use crate::tickets::Tickets;
use crate::{convert, latency};
use anyhow::{Context, Result, anyhow, bail};
use basalt_api::dial::{Cluster, plain};
use basalt_api::random::request_id;
use basalt_api::v1::{
    self, AttachVolumeRequest, AttachVolumeResponse, Consistency, DetachVolumeRequest,
    GetPoolMapRequest, GetSnapshotRequest, GetVolumeRequest, HostSession, IssueVolumeKeyRequest,
    LinkTicket, ListVolumesRequest, Snapshot, Volume, VolumeLatency, snapshot,
};
use basalt_client::{RateLimits, VolumeConfig};
use basalt_core::event::Effect;
use basalt_crypt::VolumeCipher;
use basalt_link::LinkAuth;
use basalt_nbd::{DoorCommand, DoorError, ExportEnd, NbdDoor};
use basalt_node::{ListenSource, Mailbox, ReactorConfig, ReactorHandle, StreamListener};
use basalt_security::Role;
use basalt_telemetry::TraceContext;
use basalt_telemetry::context::within;
use basalt_wire::ids::{Epoch, Generation};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tracing::field::Empty;
use tracing::{Instrument, Span};

/// How often the map and the sizes of the volumes are asked for.
const FOLLOW_EVERY: Duration = Duration::from_secs(2);
/// From one time that the map is asked for to the next at least, if it may be old.
const FOLLOW_AGAIN: Duration = Duration::from_millis(100);
/// Volumes in a page of an answer: the most that the API gives.
const PAGE: i32 = 1000;
/// Exit status when every session was lost to another host.
const LOST: u8 = 3;
/// How long giving the volumes back may take when the process ends: longer than an election. A volume
/// that could not be given back can be moved, or attached by the same host again.
const DETACH: Duration = Duration::from_secs(3);
/// How often an attachment is tried while the cluster has no quorum.
const ATTEMPTS: u32 = 3;
/// How long a node may take to answer what is asked now and then.
const BRIEF: Duration = Duration::from_secs(1);
const DOOR: usize = 0;

/// Attaches the volumes and serves them until the process is asked to stop, or has nothing to serve
/// any more.
///
/// # Errors
/// If a volume can not be attached, or nothing can be listened on.
pub async fn run(options: Options, inherited: Vec<ListenSource>) -> Result<ExitCode> {
    let host = match &options.host {
        Some(host) => host.clone(),
        None => format!("{}-attach", machine_name().context("give a name with --host")?),
    };
    if options.listen.is_empty() && inherited.is_empty() {
        let text =
            "nothing to listen on: give --listen 127.0.0.1:10809 or --listen unix:/path/to/socket";
        bail!(Usage(text.to_owned()));
    }
    // Before the cluster is asked for anything: files that can not be used are the machine's own.
    options.tls.load()?;
    let open = |l: &&NbdListen| !l.is_local() && !options.tls.authenticates();
    match options.listen.iter().find(open) {
        Some(listen) if !options.insecure_nbd => bail!(Usage(open_nbd(listen, "--listen"))),
        Some(listen) => tracing::warn!("whoever reaches {listen} may read and write the volumes"),
        None => {}
    }
    basalt_telemetry::describe(&[
        ("service.instance.id", host.clone()),
        ("basalt.node", host.clone()),
    ]);
    let credentials = options.credentials.credentials(&host, Role::Csi)?;
    let tickets = Tickets::new(!credentials.is_empty(), options.read_only);
    let scraped = match options.metrics {
        Some(listen) => Some(Listener::bind(listen, credentials.keyring.clone()).await?),
        None => None,
    };
    basalt_api::dial::present(credentials.clone());
    tokio::spawn(keep_fresh(credentials));
    let cluster = Cluster::new(options.cluster.clone(), options.timeout);
    let map = cluster
        .clone()
        .polled()
        .call(|mut client| async move { client.get_pool_map(GetPoolMapRequest::default()).await })
        .await
        .map_err(|status| anyhow!("the cluster's map: {}", plain(&status)))?;
    // The listeners are bound before anything is taken from another host.
    let (ends, mut ended) = mpsc::unbounded_channel();
    let trouble = Arc::new(Notify::new());
    let told = (ends, trouble.clone());
    let (handle, mut failed) =
        start_reactor(&options, &host, &map, inherited, tickets.auth(), told)?;
    let reactor = Arc::new(handle);
    let cluster_id = format!("{:016x}", map.cluster);
    basalt_telemetry::describe(&[("basalt.cluster", cluster_id.clone())]);
    let heard = Arc::new(Heard::new(cluster_id, host.clone()));
    heard.of(map.version);
    if let Some(listener) = scraped {
        tokio::spawn(listener.serve(Arc::new(reactor.mailbox()), heard.clone()));
    }
    let (held, views) = (BTreeMap::new(), 0);
    let (asked, reconnecting) = (JoinSet::new(), None);
    let mut sessions =
        Sessions { cluster, host, map, held, views, tickets, trouble, asked, heard, reconnecting };
    // One receiver for the whole life: a signal at any moment ends what is under way at that moment.
    let outcome = tokio::select! {
        outcome = sessions.live(&options, &reactor, &mut ended, &mut failed) => outcome,
        signal = stop_signal() => {
            tracing::info!("{}: detaching", signal?);
            Ok(ExitCode::SUCCESS)
        }
    };
    // What is under way is finished before the volumes are given back.
    let stopping = reactor.clone();
    let stopped = tokio::task::spawn_blocking(move || stopping.stop()).await?;
    sessions.detach_all().await;
    stopped?;
    tracing::info!("stopped");
    outcome
}

fn ready(options: &Options) {
    for volume in &options.volumes {
        for listen in &options.listen {
            tracing::info!("ready: {}", listen.uri(volume, options.tls.requires()));
        }
    }
}

type Failed = oneshot::Receiver<()>;

fn start_reactor(
    options: &Options,
    host: &str,
    map: &v1::PoolMap,
    inherited: Vec<ListenSource>,
    auth: LinkAuth,
    (ends, trouble): (mpsc::UnboundedSender<ExportEnd>, Arc<Notify>),
) -> Result<(ReactorHandle, Failed)> {
    let own = options.listen.iter().map(|listen| listen.source());
    let sources: Vec<ListenSource> = inherited.into_iter().chain(own).collect();
    let mut door = options.tls.door(&sources)?;
    door.on_end = Some(Box::new(move |end| {
        // The receiver lives as long as the program.
        let _ = ends.send(end);
    }));
    door.on_old_map = Some(Box::new(move || trouble.notify_one()));
    let mut config = ReactorConfig::new(host, convert::cluster_id(map));
    config.routes = convert::routes(map).map_err(|e| anyhow!(e))?;
    config.auth = auth;
    config.tenants = vec![Box::new(move || Box::new(NbdDoor::new(door)))];
    config.stream_listeners =
        sources.into_iter().map(|source| StreamListener { tenant: DOOR, source }).collect();
    // Dropped with the reactor: a reactor that ends by itself is noticed.
    let (alive, failed) = oneshot::channel::<()>();
    config.notices = Box::new(move |effect| {
        let _held = &alive;
        match effect {
            Effect::Notice { alarm: true, text } => tracing::error!("{text}"),
            Effect::Notice { alarm: false, text } => tracing::info!("{text}"),
            _ => {}
        }
    });
    let handle = basalt_node::start(config).context("NBD can not be served")?;
    Ok((handle, failed))
}

struct Sessions {
    /// The nodes that were named at the start; some may be no members any more.
    cluster: Cluster,
    host: String,
    map: v1::PoolMap,
    /// The volumes that are attached here, by name.
    held: BTreeMap<String, Held>,
    /// Snapshots that are served.
    views: usize,
    tickets: Tickets,
    /// Groups may be elsewhere by now.
    trouble: Arc<Notify>,
    /// Nodes that were asked for the map and have not answered.
    asked: JoinSet<Option<v1::PoolMap>>,
    /// What was heard of the cluster, for who asks for metrics.
    heard: Arc<Heard>,
    /// Groups were found to be elsewhere, or out of reach, and no newer map has come since.
    reconnecting: Option<Span>,
}

/// A volume that is attached here, as the door was told.
struct Held {
    epoch: u64,
    size_bytes: u64,
    limits: RateLimits,
    /// Where the time of its requests went lately.
    latency: Option<VolumeLatency>,
}

impl Sessions {
    /// Attaches, and serves as long as there is something to serve.
    async fn live(
        &mut self,
        options: &Options,
        mailbox: &Mailbox,
        ended: &mut mpsc::UnboundedReceiver<ExportEnd>,
        failed: &mut Failed,
    ) -> Result<ExitCode> {
        self.attach_all(options, mailbox).await?;
        ready(options);
        self.serve(mailbox, ended, failed).await
    }

    async fn attach_all(&mut self, options: &Options, mailbox: &Mailbox) -> Result<()> {
        let mut waiting = Vec::new();
        for volume in &options.volumes {
            if let Some((parent, id)) = volume.split_once('@') {
                let found = self.look_at(parent, id).await?;
                self.open_links(volume, 0, None, mailbox).await?;
                let name = found.1.name.clone();
                let request = IssueVolumeKeyRequest { name, ..IssueVolumeKeyRequest::default() };
                let cipher = match found.0.encrypted {
                    true => Some(keys::fetch(&self.known(self.cluster.timeout()), request).await?),
                    false => None,
                };
                let begun = self.show_snapshot(volume, found, cipher, mailbox)?;
                waiting.push((volume.clone(), begun, Span::none()));
                continue;
            }
            let span = tracing::info_span!(
                parent: None,
                "volume.attach",
                volume,
                host = self.host,
                waits_for = "the record, then every group to begin the session",
                trace_id = Empty,
            );
            let span = within(span, TraceContext::of_environment());
            let attached = self.attach(volume, options.take).instrument(span.clone()).await?;
            let map = attached.map.clone().context("the cluster's answer has no map")?;
            self.adopt(map, mailbox).await;
            self.open_links(volume, attached.epoch, attached.ticket.clone(), mailbox).await?;
            let cipher = self.cipher_of(&attached).await?;
            let attached = (attached, cipher);
            let given = span.in_scope(|| self.give_to_door(volume, attached, options, mailbox));
            waiting.push((volume.clone(), given?, span));
        }
        for (volume, begun, span) in waiting {
            let begun = begun.instrument(span).await?;
            begun.with_context(|| format!("the volume '{volume}' can not be served"))?;
        }
        Ok(())
    }

    /// The reactor shows the nodes what it may do with a volume, before it is to do it.
    async fn open_links(
        &mut self,
        volume: &str,
        epoch: u64,
        given: Option<LinkTicket>,
        mailbox: &Mailbox,
    ) -> Result<()> {
        let cluster = self.known(self.cluster.timeout());
        self.tickets.open((volume, &self.host, epoch), given, &cluster, mailbox).await
    }

    async fn attach(&self, volume: &str, take: bool) -> Result<AttachVolumeResponse> {
        // One id for all attempts: an attempt whose answer was lost is not a second attachment.
        let request = AttachVolumeRequest {
            name: format!("volumes/{volume}"),
            host: self.host.clone(),
            r#move: take,
            renew: true,
            etag: String::new(),
            request_id: request_id("attach"),
        };
        let mut last = None;
        for _ in 0..ATTEMPTS {
            let request = &request;
            let cluster = self.known(self.cluster.timeout());
            let answer = cluster.call(|mut client| {
                let request = request.clone();
                async move { client.attach_volume(request).await }
            });
            match answer.await {
                Ok(response) => return Ok(response),
                Err(status) if status.code() == tonic::Code::Unavailable => {
                    tracing::warn!("attaching '{volume}' has to wait: {}", plain(&status));
                    last = Some(status);
                    sleep(Duration::from_millis(500)).await;
                }
                Err(status) => bail!("{}", plain(&status)),
            }
        }
        let why = last.map_or_else(String::new, |status| plain(&status));
        bail!("the volume '{volume}' can not be attached: {why}")
    }

    fn give_to_door(
        &mut self,
        name: &str,
        (attached, cipher): (AttachVolumeResponse, Option<Arc<VolumeCipher>>),
        options: &Options,
        mailbox: &Mailbox,
    ) -> Result<oneshot::Receiver<Result<(), DoorError>>> {
        let volume = attached.volume.context("the cluster's answer names no volume")?;
        let pool = Arc::new(convert::pool_map(&self.map).map_err(|e| anyhow!(e))?);
        let (epoch, size_bytes) = (attached.epoch, volume.size_bytes);
        let config = convert::volume_config(&volume, epoch, pool, None);
        let limits = convert::limits(&volume);
        self.held.insert(name.to_owned(), Held { epoch, size_bytes, limits, latency: None });
        let (told, begun) = oneshot::channel();
        let reply = Box::new(move |result| {
            // The program may be on its way out.
            let _ = told.send(result);
        });
        let command = DoorCommand::Attach {
            name: name.to_owned(),
            description: convert::description(name, size_bytes),
            read_only: options.read_only,
            config: VolumeConfig { cipher, ..config },
            view: false,
            reply,
        };
        mailbox.tenant(DOOR, Box::new(command));
        tracing::info!(volume = name, epoch, host = %self.host, "attached");
        Ok(begun)
    }

    /// What an attached volume is served with; nothing if it is not encrypted.
    async fn cipher_of(
        &self,
        attached: &AttachVolumeResponse,
    ) -> Result<Option<Arc<VolumeCipher>>> {
        let volume = attached.volume.as_ref().filter(|volume| volume.encrypted);
        let Some(volume) = volume else { return Ok(None) };
        let request = IssueVolumeKeyRequest {
            name: volume.name.clone(),
            host: self.host.clone(),
            epoch: attached.epoch,
        };
        keys::fetch(&self.known(self.cluster.timeout()), request).await.map(Some)
    }

    /// A snapshot, its volume, and where they are. It needs no attachment: it never changes.
    async fn look_at(&self, volume: &str, id: &str) -> Result<(Volume, Snapshot, v1::PoolMap)> {
        let name = format!("volumes/{volume}");
        let snapshot = GetSnapshotRequest { name: format!("{name}/snapshots/{id}") };
        let request = &snapshot;
        let cluster = self.known(self.cluster.timeout());
        let asked = cluster.call(|mut client| {
            let request = request.clone();
            async move { client.get_snapshot(request).await }
        });
        let snapshot = asked.await.map_err(|status| anyhow!("{}", plain(&status)))?;
        if snapshot.state() != snapshot::State::Ready {
            bail!("the snapshot '{volume}@{id}' is not complete, or is being deleted");
        }
        let request = &GetVolumeRequest { name };
        let asked = cluster.call(|mut client| {
            let request = request.clone();
            async move { client.get_volume(request).await }
        });
        let volume = asked.await.map_err(|status| anyhow!("{}", plain(&status)))?;
        Ok((volume, snapshot, self.map.clone()))
    }

    fn show_snapshot(
        &mut self,
        name: &str,
        (volume, snapshot, map): (Volume, Snapshot, v1::PoolMap),
        cipher: Option<Arc<VolumeCipher>>,
        mailbox: &Mailbox,
    ) -> Result<oneshot::Receiver<Result<(), DoorError>>> {
        let pool = Arc::new(convert::pool_map(&map).map_err(|e| anyhow!(e))?);
        let mut config = convert::volume_config(&volume, volume.epoch, pool, None);
        config.generation = Generation(snapshot.generation);
        config.size_bytes = snapshot.size_bytes;
        config.cipher = cipher;
        let (told, begun) = oneshot::channel();
        let reply = Box::new(move |result| {
            // The program may be on its way out.
            let _ = told.send(result);
        });
        let command = DoorCommand::Attach {
            name: name.to_owned(),
            description: convert::description(name, snapshot.size_bytes),
            read_only: true,
            config,
            view: true,
            reply,
        };
        mailbox.tenant(DOOR, Box::new(command));
        self.views += 1;
        tracing::info!(snapshot = name, "shown");
        Ok(begun)
    }

    async fn serve(
        &mut self,
        mailbox: &Mailbox,
        ended: &mut mpsc::UnboundedReceiver<ExportEnd>,
        failed: &mut Failed,
    ) -> Result<ExitCode> {
        let mut ticks = interval(FOLLOW_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let trouble = self.trouble.clone();
        let (mut since, mut again) = (Instant::now(), false);
        loop {
            tokio::select! {
                end = ended.recv() => {
                    let Some(end) = end else { bail!("the NBD door is gone") };
                    let span = tracing::info_span!(parent: None, "volume.lost", trace_id = Empty);
                    let part = within(span, None).entered();
                    tracing::error!(volume = %end.name, "served no more: {}", end.error);
                    drop(part);
                    self.held.remove(&end.name);
                    self.tickets.close(&end.name);
                    if self.held.is_empty() && self.views == 0 {
                        tracing::error!("every session was lost; the process ends");
                        return Ok(ExitCode::from(LOST));
                    }
                }
                _ = &mut *failed => {
                    let reason = mailbox.ended().and_then(Result::err).unwrap_or_default();
                    bail!("the reactor had to end: {reason}");
                }
                Some(answer) = self.asked.join_next(), if !self.asked.is_empty() => {
                    if let Ok(Some(map)) = answer {
                        self.heard.of(map.version);
                        self.tickets.heard(map.ticket_key);
                        self.adopt(map, mailbox).await;
                    }
                }
                _ = ticks.tick() => {
                    (since, again) = (Instant::now(), false);
                    self.reconnecting = None;
                    self.note_latencies(mailbox).await;
                    self.ask_for_map();
                    let cluster = self.brief();
                    self.tickets.renew(&cluster, mailbox).await;
                    self.follow_sizes(mailbox).await;
                }
                () = trouble.notified(), if !again => {
                    again = true;
                    self.reconnecting.get_or_insert_with(reconnecting);
                }
                () = sleep_until(since + FOLLOW_AGAIN), if again => {
                    (since, again) = (Instant::now(), false);
                    self.ask_for_map();
                }
            }
        }
    }

    /// Looks where the time of the volumes' requests went: the nodes are told with what else they are.
    async fn note_latencies(&mut self, mailbox: &Mailbox) {
        for (name, held) in &mut self.held {
            held.latency = latency::of_export(mailbox, DOOR, name).await;
        }
    }

    /// Asks all nodes for the map that they have: one that is no member any more, or is cut off, answers with
    /// what it knew then. Whoever answers first with a newer one is heard first.
    fn ask_for_map(&mut self) {
        // It is how they know that this host lives.
        let session = |(volume, held): (&String, &Held)| HostSession {
            volume: volume.clone(),
            epoch: held.epoch,
            age_ms: 0,
            latency: held.latency.clone(),
        };
        let sessions: Vec<HostSession> = self.held.iter().map(session).collect();
        for address in self.known_addresses() {
            let (node, cluster) = (Cluster::new(vec![address], BRIEF).polled(), self.map.cluster);
            let request = GetPoolMapRequest { sessions: sessions.clone() };
            self.asked.spawn(async move {
                let asked = node.call(|mut client| {
                    let request = request.clone();
                    async move { client.get_pool_map(request).await }
                });
                match asked.await {
                    Ok(map) => Some(map).filter(|map| map.cluster == cluster),
                    Err(status) => {
                        tracing::debug!("the map: {}", plain(&status));
                        None
                    }
                }
            });
        }
    }

    /// Goes over to a newer map: where the nodes are first, then where the groups are.
    async fn adopt(&mut self, map: v1::PoolMap, mailbox: &Mailbox) {
        if map.version <= self.map.version {
            return;
        }
        let copy = map.clone();
        let resolved = tokio::task::spawn_blocking(move || convert::routes(&copy)).await;
        match (resolved, convert::pool_map(&map)) {
            (Ok(Ok(routes)), Ok(pool)) => {
                mailbox.routes(routes);
                mailbox.tenant(DOOR, Box::new(DoorCommand::Map(Arc::new(pool))));
                let part = self.reconnecting.take().unwrap_or_else(Span::none).entered();
                tracing::info!(version = map.version, "the map of the pool is a newer one");
                drop(part);
                self.map = map;
            }
            (Ok(Err(problem)), _) | (_, Err(problem)) => {
                tracing::warn!("the pool's new map is not in use: {problem}");
            }
            (Err(problem), _) => tracing::warn!("the pool's new map is not in use: {problem}"),
        }
    }

    /// Volumes that were made larger are larger for NBD clients too.
    async fn follow_sizes(&mut self, mailbox: &Mailbox) {
        let (brief, mut page_token) = (self.brief(), String::new());
        loop {
            // What the asked node has heard of is enough: it is asked again soon.
            let request = ListVolumesRequest {
                page_size: PAGE,
                page_token,
                host: self.host.clone(),
                consistency: Consistency::Eventual.into(),
                ..ListVolumesRequest::default()
            };
            let request = &request;
            let asked = brief.call(|mut client| {
                let request = request.clone();
                async move { client.list_volumes(request).await }
            });
            let page = match asked.await {
                Ok(page) => page,
                Err(status) => {
                    return tracing::debug!("sizes could not be asked for: {}", plain(&status));
                }
            };
            for volume in &page.volumes {
                self.grow(volume, mailbox);
                self.limit(volume, mailbox);
            }
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return;
            }
        }
    }

    /// Tells the door, if the record is of the session that is served: see
    /// [`basalt_client::ClientEvent::Resize`].
    fn grow(&mut self, volume: &Volume, mailbox: &Mailbox) {
        let name = volume.name.strip_prefix("volumes/").unwrap_or(&volume.name);
        let Some(held) = self.held.get_mut(name) else { return };
        let epoch = volume.attachment.as_ref().map(|attachment| attachment.epoch);
        if epoch != Some(held.epoch) || volume.size_bytes <= held.size_bytes {
            return;
        }
        held.size_bytes = volume.size_bytes;
        let shown = name.to_owned();
        let reply = move |result: Result<(), DoorError>| match result {
            Ok(()) => tracing::info!(volume = %shown, "grown"),
            // The session is over.
            Err(problem) => tracing::info!(volume = %shown, "not grown: {problem}"),
        };
        let command = DoorCommand::Resize {
            name: name.to_owned(),
            epoch: Epoch(held.epoch),
            description: convert::description(name, volume.size_bytes),
            size_bytes: volume.size_bytes,
            generation: Generation(volume.generation),
            reply: Box::new(reply),
        };
        mailbox.tenant(DOOR, Box::new(command));
    }

    /// Tells the door what the session may do in a second, if that has changed.
    fn limit(&mut self, volume: &Volume, mailbox: &Mailbox) {
        let name = volume.name.strip_prefix("volumes/").unwrap_or(&volume.name);
        let Some(held) = self.held.get_mut(name) else { return };
        let epoch = volume.attachment.as_ref().map(|attachment| attachment.epoch);
        let limits = convert::limits(volume);
        if epoch != Some(held.epoch) || limits == held.limits {
            return;
        }
        held.limits = limits;
        let command = convert::limit_command(name, held.epoch, limits);
        mailbox.tenant(DOOR, Box::new(command));
    }

    /// The cluster, asked briefly: a node that does not answer must not hold up a stop for long.
    fn brief(&self) -> Cluster {
        self.known(BRIEF).polled()
    }

    fn known(&self, timeout: Duration) -> Cluster {
        Cluster::new(self.known_addresses(), timeout)
    }

    /// The addresses that the map names, then those given at the start.
    fn known_addresses(&self) -> Vec<String> {
        let members = self.map.nodes.iter().map(|node| node.grpc_address.clone());
        let mut all: Vec<String> = members.collect();
        let given = self.cluster.addresses().iter();
        let more: Vec<String> = given.filter(|a| !all.contains(a)).cloned().collect();
        all.extend(more);
        all
    }

    /// Gives the volumes back, all at once. The process ends whatever becomes of it.
    async fn detach_all(&mut self) {
        let cluster = self.known(DETACH / 2);
        let mut asked = JoinSet::new();
        for (volume, held) in std::mem::take(&mut self.held) {
            let span = tracing::info_span!(
                parent: None,
                "volume.detach",
                volume,
                host = self.host,
                epoch = held.epoch,
                trace_id = Empty,
            );
            let span = within(span, TraceContext::of_environment());
            let detached = detach(cluster.clone(), volume, self.host.clone(), held.epoch);
            asked.spawn(detached.instrument(span));
        }
        while asked.join_next().await.is_some() {}
    }
}

/// From when the groups of a volume are found to be elsewhere, or out of reach, until that is known.
fn reconnecting() -> Span {
    let span = tracing::info_span!(
        parent: None,
        "session.reconnect",
        waits_for = "a map that says where groups are now",
        trace_id = Empty,
    );
    within(span, None)
}

async fn detach(cluster: Cluster, volume: String, host: String, epoch: u64) {
    let request = DetachVolumeRequest {
        name: format!("volumes/{volume}"),
        host: host.clone(),
        epoch,
        etag: String::new(),
        // Another node may be asked after one that did not answer.
        request_id: request_id("detach"),
    };
    let request = &request;
    let answer = cluster.call(|mut client| {
        let request = request.clone();
        async move { client.detach_volume(request).await }
    });
    let problem = match timeout(DETACH, answer).await {
        Ok(Ok(_)) => return tracing::info!(%volume, "detached"),
        Ok(Err(status)) => plain(&status),
        Err(_) => format!("the cluster did not answer within {} s", DETACH.as_secs()),
    };
    tracing::warn!(
        %volume,
        "stays attached to '{host}' in the records, which keeps nothing from attaching it there \
         again, or to another host with --move: {problem}"
    );
}
