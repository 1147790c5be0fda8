//! What makes the node do what the records say. One task, woken by changes of the mirror and of
//! leaders, and now and then without a reason; it looks at the present state only, never at what
//! woke it, and each step may be repeated.

use crate::attached::{Attached, Wanted};
use crate::clones::Clones;
use crate::deletions::Deletions;
use crate::engine::{DOOR, Engine};
use crate::keeping::Keeping;
use crate::retry::Retries;
use crate::reverting::Reverting;
use crate::works;
use basalt_api::v1::{ClusterSpec, Member};
use basalt_attach::convert;
use basalt_client::{BlockError, RateLimits};
use basalt_core::event::Event;
use basalt_meta::{
    AttachVolume, InitCluster, Op, Outcome, Shared, UpdateMember, VolumeRecord, layout,
};
use basalt_nbd::{DoorCommand, DoorError, ExportEnd};
use basalt_telemetry::context::{link, within};
use basalt_wire::ids::{Epoch, Generation, GroupId, NodeId, VolumeId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::Span;
use tracing::field::Empty;

/// After which time everything is looked at again, whether it changed or not.
const RESYNC: Duration = Duration::from_secs(10);
/// How long it rests after something did not work.
const PAUSE: Duration = Duration::from_millis(500);

/// What this process has done so far.
struct Reconciler {
    /// Entries up to here were committed before this process came up: an attachment made by one of
    /// them may have been served by a process that is dead, and needs a new epoch.
    began: u64,
    /// Volumes that are to be served here.
    attached: Attached,
    /// Volumes given to the door, by number.
    served: BTreeMap<u64, Served>,
    /// The latest epoch of each volume whose session was lost: it can not be served any more.
    lost: BTreeMap<u64, u64>,
    /// Volumes whose session was lost or did not begin, and when to try again.
    retries: Retries,
    /// The cluster's record as it was carried out last; nothing if something of it has to be tried again.
    carried_out: Option<Shared<ClusterSpec>>,
    /// The members to which volumes are attached, as groups were told by that who should lead them; nothing if they
    /// are to be told anew.
    hosts: Option<Vec<u32>>,
    preferred: BTreeMap<GroupId, NodeId>,
    /// Version of the map that the door has.
    mapped: u64,
    deletions: Deletions,
    keeping: Keeping,
    reverting: Reverting,
    clones: Clones,
}

/// What the door was told of a volume.
struct Served {
    name: String,
    epoch: u64,
    size_bytes: u64,
    limits: RateLimits,
}

/// Runs until the engine is gone.
pub async fn run(weak: Weak<Engine>) {
    let Some(began) = catch_up(&weak).await else { return };
    let mut reconciler = Reconciler {
        began,
        attached: Attached::default(),
        served: BTreeMap::new(),
        lost: BTreeMap::new(),
        retries: Retries::default(),
        carried_out: None,
        hosts: None,
        preferred: BTreeMap::new(),
        mapped: 0,
        deletions: Deletions::default(),
        keeping: Keeping::default(),
        reverting: Reverting::default(),
        clones: Clones::default(),
    };
    let mut whole = Instant::now() + RESYNC;
    loop {
        let Some(engine) = weak.upgrade() else { return };
        if Instant::now() >= whole {
            reconciler.carried_out = None;
            whole = Instant::now() + RESYNC;
        }
        let (mut changes, mut elections) = (engine.metadata.changes(), engine.metadata.elections());
        changes.mark_unchanged();
        elections.mark_unchanged();
        let door = engine.door.clone();
        let clean = reconciler.pass(&engine).await;
        drop(engine);
        let now = Instant::now();
        let rest = if clean { whole } else { now + PAUSE };
        let Reconciler { retries, keeping, reverting, clones, deletions, .. } = &reconciler;
        let tries = [
            retries.next(now),
            keeping.next(now),
            reverting.next(now),
            clones.next(now),
            deletions.next(now),
        ];
        let rest = tries.into_iter().flatten().fold(rest, Instant::min);
        tokio::select! {
            _ = changes.changed() => {}
            _ = elections.changed() => {}
            () = door.changed.notified() => {}
            () = sleep_until(rest) => {}
        }
    }
}

async fn catch_up(weak: &Weak<Engine>) -> Option<u64> {
    loop {
        let engine = weak.upgrade()?;
        // The others can not send what is missing here to an address that they do not know.
        tell_addresses(&engine, &known_spec(&engine)).await;
        let metadata = engine.metadata.clone();
        drop(engine);
        match metadata.barrier().await {
            Ok(index) => return Some(index),
            Err(status) => tracing::warn!("waiting for the metadata group: {}", status.message()),
        }
        sleep(PAUSE).await;
    }
}

impl Reconciler {
    /// Brings everything into line; false if something has to be tried again.
    async fn pass(&mut self, engine: &Arc<Engine>) -> bool {
        let mut clean = self.cluster(engine).await;
        self.attachments(engine).await;
        self.preferences(engine);
        clean &= self.keeping.pass(engine).await;
        clean &= self.reverting.pass(engine).await;
        clean &= self.clones.pass(engine).await;
        clean &= crate::keys::rewrap(engine).await;
        self.deletions.pass(engine);
        clean
    }

    /// Does what the cluster's record says, if that has changed. Most changes are of volumes, and looking at all
    /// members and groups for each of them would take longer than to carry it out.
    async fn cluster(&mut self, engine: &Arc<Engine>) -> bool {
        let now = engine.metadata.look(|state| state.cluster_record().cloned());
        if let (Some(now), Some(before)) = (&now, &self.carried_out)
            && now.is_same(before)
        {
            return true;
        }
        let mut clean = self.write_bootstrap(engine).await;
        clean &= addresses(engine).await;
        clean &= crate::stops::back(engine, self.began).await;
        clean &= self.tell_map(engine);
        self.hosts = None;
        self.carried_out = now.filter(|_| clean);
        clean
    }

    /// The leader writes down what was agreed at bootstrap.
    async fn write_bootstrap(&self, engine: &Arc<Engine>) -> bool {
        let metadata = &engine.metadata;
        if !metadata.leads() || metadata.look(|state| state.cluster().is_some()) {
            return true;
        }
        let spec = engine.spec();
        let request = format!("bootstrap-{:016x}", spec.id);
        let op = Op::InitCluster(InitCluster { spec: Some(spec) });
        done(metadata.change(&request, op).await, "writing the cluster's record")
    }

    /// All sessions of the door are told where the groups are, after the reactor was told where the nodes are.
    fn tell_map(&mut self, engine: &Engine) -> bool {
        let map = engine.map();
        if map.version <= self.mapped {
            return true;
        }
        match convert::pool_map(&map) {
            Ok(pool) => engine.reactor.tenant(DOOR, Box::new(DoorCommand::Map(Arc::new(pool)))),
            Err(problem) => {
                tracing::error!("the pool's new map is not in use: {problem}");
                return false;
            }
        }
        self.mapped = map.version;
        true
    }

    /// Volumes that are attached to this node are served; others are not.
    async fn attachments(&mut self, engine: &Arc<Engine>) {
        if engine.options.nbd_listen.is_none() {
            return;
        }
        let changed = self.attached.follow(&engine.metadata, &engine.name);
        let heard = self.hear_door(engine);
        let due = self.retries.is_due(Instant::now());
        if !(changed || heard || due) {
            return;
        }
        // What is to be served is not changed meanwhile.
        let attached = std::mem::take(&mut self.attached);
        self.serve_attached(engine, attached.volumes()).await;
        self.attached = attached;
    }

    async fn serve_attached(&mut self, engine: &Arc<Engine>, wanted: &Wanted) {
        self.withdraw(engine, wanted);
        self.grow(engine, wanted);
        self.retries.retain(|number| wanted.contains_key(&number));
        let names: BTreeSet<&str> = wanted.values().map(|(v, _)| v.id.as_str()).collect();
        engine.door.retain_problems(|name| names.contains(name));
        for (volume, limits) in wanted.values() {
            let waits = !self.retries.may(volume.number, Instant::now());
            if waits || self.served.contains_key(&volume.number) {
                continue;
            }
            let Some(attachment) = &volume.attachment else { continue };
            let lost = self.lost.get(&volume.number).is_some_and(|e| *e >= attachment.epoch);
            let begun = match attachment.index > self.began && !lost {
                true => self.serve(engine, volume, attachment.epoch, *limits),
                false => renew(engine, volume).await,
            };
            if !begun {
                self.failed(&volume.id, volume.number);
            }
        }
    }

    /// Takes what the door told: sessions that are over, and such as did not begin. Whether there were any.
    fn hear_door(&mut self, engine: &Engine) -> bool {
        let (lost, refused) = (engine.door.take_lost(), engine.door.take_refused());
        let any = !lost.is_empty() || !refused.is_empty();
        for end in lost {
            tracing::warn!(volume = %end.name, epoch = end.epoch.0, "session lost: {}", end.error);
            self.lost.insert(end.volume.0, end.epoch.0);
            self.ended(end.volume, end.epoch);
        }
        for (volume, epoch) in refused {
            self.ended(volume, epoch);
        }
        any
    }

    fn ended(&mut self, volume: VolumeId, epoch: Epoch) {
        let current = self.served.get(&volume.0).is_some_and(|served| served.epoch == epoch.0);
        if current && let Some(served) = self.served.remove(&volume.0) {
            self.failed(&served.name, volume.0);
        }
    }

    fn failed(&mut self, name: &str, number: u64) {
        let pause = self.retries.failed(number, Instant::now(), basalt_api::random::random());
        tracing::info!(volume = %name, "not served; tried again in {} ms", pause.as_millis());
    }

    fn withdraw(&mut self, engine: &Engine, wanted: &Wanted) {
        let epoch_of = |number: &u64| wanted.get(number)?.0.attachment.as_ref().map(|a| a.epoch);
        self.served.retain(|number, Served { name, epoch, .. }| {
            let keep = epoch_of(number) == Some(*epoch);
            if !keep {
                tracing::info!(volume = %name, epoch, "no longer attached here; withdrawn");
                let reply = Box::new(|_| {});
                let command = DoorCommand::Detach { name: name.clone(), reply };
                engine.reactor.tenant(DOOR, Box::new(command));
                engine.door.withdrawn(name);
            }
            keep
        });
    }

    /// Volumes that are served and have grown, or have other bounds. Only what is served under the epoch of the
    /// record is
    /// left here, as [`basalt_client::ClientEvent::Resize`] demands.
    fn grow(&mut self, engine: &Engine, wanted: &Wanted) {
        for (number, served) in &mut self.served {
            let Some((volume, limits)) = wanted.get(number) else { continue };
            if served.limits != *limits {
                served.limits = *limits;
                let command = convert::limit_command(&served.name, served.epoch, *limits);
                engine.reactor.tenant(DOOR, Box::new(command));
            }
            if volume.size_bytes <= served.size_bytes {
                continue;
            }
            served.size_bytes = volume.size_bytes;
            let name = volume.id.clone();
            let reply = move |result: Result<(), DoorError>| match result {
                Ok(()) => tracing::info!(volume = %name, "grown"),
                // The session is over; the next one begins with the new size.
                Err(problem) => tracing::info!(volume = %name, "not grown: {problem}"),
            };
            let command = DoorCommand::Resize {
                name: volume.id.clone(),
                epoch: Epoch(served.epoch),
                description: convert::description(&volume.id, volume.size_bytes),
                size_bytes: volume.size_bytes,
                generation: Generation(volume.generation),
                reply: Box::new(reply),
            };
            engine.reactor.tenant(DOOR, Box::new(command));
        }
    }

    fn serve(
        &mut self,
        engine: &Engine,
        volume: &VolumeRecord,
        epoch: u64,
        limits: RateLimits,
    ) -> bool {
        let map = match convert::pool_map(&engine.map()) {
            Ok(map) => Arc::new(map),
            Err(problem) => {
                tracing::error!(volume = %volume.id, "can not be served: {problem}");
                return false;
            }
        };
        let record = crate::admin::volume_of(volume);
        let mut config = convert::volume_config(&record, epoch, map, Some(engine.node));
        config.limits = limits;
        match engine.metadata.look(|state| crate::keys::cipher_of(state, volume)) {
            Ok(cipher) => config.cipher = cipher,
            Err(problem) => {
                tracing::error!(volume = %volume.id, "can not be served: {problem}");
                engine.door.refused(&volume.id, config.volume, config.epoch, problem);
                return false;
            }
        }
        let (door, name) = (engine.door.clone(), volume.id.clone());
        let (number, session) = (config.volume, config.epoch);
        let span = self.span_of_serving(engine, volume, epoch);
        let reply = move |result: Result<(), DoorError>| {
            span.in_scope(|| match result {
                Ok(()) => {
                    tracing::info!(volume = %name, epoch, "attached here; served");
                    door.ready(&name, epoch);
                }
                // What was begun before can not be begun again: a new epoch is needed, as after a loss.
                Err(DoorError::Spent(_)) => {
                    let error = BlockError::Closed;
                    door.ended(ExportEnd { name, volume: number, epoch: session, error });
                }
                Err(DoorError::Lost(error)) => {
                    door.ended(ExportEnd { name, volume: number, epoch: session, error });
                }
                Err(problem) => {
                    tracing::warn!(volume = %name, epoch, "not served: {problem}");
                    door.refused(&name, number, session, problem.to_string());
                }
            })
        };
        let command = DoorCommand::Attach {
            name: volume.id.clone(),
            description: convert::description(&volume.id, volume.size_bytes),
            read_only: false,
            config,
            view: false,
            reply: Box::new(reply),
        };
        engine.reactor.tenant(DOOR, Box::new(command));
        let size_bytes = volume.size_bytes;
        let served = Served { name: volume.id.clone(), epoch, size_bytes, limits };
        self.served.insert(volume.number, served);
        true
    }

    /// The span of the beginning of a session: part of what attached the volume here, if that was just now, or linked
    /// to it, if it is served anew.
    fn span_of_serving(&self, engine: &Engine, volume: &VolumeRecord, epoch: u64) -> Span {
        let span = tracing::info_span!(
            parent: None,
            "volume.serve",
            volume = volume.id,
            node = engine.name,
            epoch,
            waits_for = "every group to begin the session under its epoch",
            trace_id = Empty,
        );
        let asked = engine.metadata.work_of(&works::volume(&volume.id));
        let again = self.lost.contains_key(&volume.number);
        let span = within(span, asked.filter(|_| !again));
        if let Some(before) = asked.filter(|_| again) {
            link(&span, before);
        }
        span
    }

    /// Tells the shard which of its groups should lead where.
    fn preferences(&mut self, engine: &Engine) {
        let hosts: Vec<u32> = engine.metadata.look(|state| {
            let attached = |name: &str| state.attached_to(name).next().is_some();
            let members = state.cluster().into_iter().flat_map(|spec| &spec.members);
            members.filter(|m| attached(&m.name)).map(|m| m.node).collect()
        });
        if self.hosts.as_ref() == Some(&hosts) {
            return;
        }
        let spec = engine.spec();
        let leaders = layout::preferred_leaders(&spec, &hosts);
        for (group, leader) in leaders.into_iter().enumerate() {
            let (group, node) = (GroupId(group as u32), NodeId(leader));
            let placement = layout::placement_of(&spec, group.0);
            // A replica that is on its way may not be there yet to hear of it.
            if placement.moving || !placement.voters.contains(&engine.node.0) {
                self.preferred.remove(&group);
            } else if self.preferred.insert(group, node) != Some(node) {
                engine.reactor.event(Event::Prefer { group, node });
            }
        }
        self.hosts = Some(hosts);
    }
}

/// Addresses: this node's into the record, the others' from it.
async fn addresses(engine: &Arc<Engine>) -> bool {
    let Some(record) = engine.metadata.look(|state| state.cluster().cloned()) else { return true };
    if record != engine.spec() {
        let (engine, record) = (engine.clone(), record.clone());
        let adopted = tokio::task::spawn_blocking(move || engine.adopt_spec(&record)).await;
        if let Ok(Err(error)) = adopted {
            tracing::warn!("the members' new addresses are not in use: {error:#}");
            return false;
        }
    }
    tell_addresses(engine, &record).await
}

/// What the members agreed on as this node remembers it. Where they stand it does not: that is compared when the
/// records have come.
fn known_spec(engine: &Engine) -> ClusterSpec {
    let mut spec = engine.spec();
    if let Some(own) = spec.members.iter_mut().find(|member| member.node == engine.node.0) {
        own.location = engine.options.healing.location();
    }
    spec
}

/// This node's addresses into the record, if they are others there.
async fn tell_addresses(engine: &Arc<Engine>, record: &ClusterSpec) -> bool {
    let own = match crate::bootstrap::own_member(&engine.options, engine.node.0) {
        Ok(own) => own,
        Err(problem) => {
            tracing::error!("this node's addresses: {problem}");
            return false;
        }
    };
    let is_other = |m: &Member| m.node == own.node && !crate::bootstrap::is_same(m, &own);
    if record.members.iter().any(is_other) {
        tracing::info!("this node has new addresses; telling the others");
        let op = Op::UpdateMember(UpdateMember { member: Some(own) });
        return done(engine.metadata.change("", op).await, "telling this node's addresses");
    }
    true
}

/// A restarted process is a new session: it takes a higher epoch before it serves.
async fn renew(engine: &Arc<Engine>, volume: &VolumeRecord) -> bool {
    let op = Op::AttachVolume(AttachVolume {
        id: volume.id.clone(),
        host: engine.name.clone(),
        renew: true,
        expected_epoch: volume.attachment.as_ref().map_or(0, |a| a.epoch),
        ..AttachVolume::default()
    });
    done(engine.metadata.change("", op).await, "attaching a volume again")
}

/// Whether a change is settled: made, or refused because the state is another one already.
pub(crate) fn done(result: Result<Outcome, tonic::Status>, what: &str) -> bool {
    match result {
        Ok(Outcome::Refused(refused)) => {
            tracing::info!("{what}: {}", refused.message);
            true
        }
        Ok(_) => true,
        Err(status) => {
            tracing::warn!("{what} has to wait: {}", status.message());
            false
        }
    }
}
