//! The state and how entries change it.

use crate::index::{SnapshotsBy, VolumesBy};
use crate::requests::{Known, Requests};
use crate::rules;
use crate::tokens::Tokens;
use crate::tracked::{Shared, Touched, Tracked};
use basalt_api::meta::v1::entry::Op;
use basalt_api::meta::v1::{
    AttachVolume, AttachmentRecord, ClassRecord, CreateVolume, DeleteVolume, DetachVolume, Entry,
    EventRecord, KeyRecord, OperationRecord, QuotaRecord, ResizeVolume, RestoreRecord,
    SnapshotRecord, TokenRecord, TraceOf, VolumeRecord, WrappedKey,
};
use basalt_api::v1::{ClusterSpec, ErrorReason, Member};
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};

/// Version of the entries that this state machine writes.
pub const ENTRY_VERSION: u32 = 1;
/// The most volumes of a cluster.
const VOLUMES_MAX: usize = 100_000;

/// Why an entry changed nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Refused {
    /// For programs.
    pub reason: ErrorReason,
    /// For people: what was wrong and what to do.
    pub message: String,
    /// The message's dynamic parts, by name.
    pub facts: Vec<(&'static str, String)>,
}

/// What an entry did.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Nothing that has an answer.
    Nothing,
    /// The volume as the change left it.
    Volume(Shared<VolumeRecord>),
    /// The snapshot as the change left it.
    Snapshot(SnapshotRecord),
    /// The snapshots of a cut as the change left them.
    Cut(Vec<SnapshotRecord>),
    /// The member as the change left it.
    Member(Member),
    /// The storage class as the change left it.
    Class(ClassRecord),
    /// The quota as the change left it.
    Quota(QuotaRecord),
    /// The token as the change left it.
    Token(TokenRecord),
    /// It changed nothing.
    Refused(Refused),
}

/// Volumes, attachments, members and the map, as of some index of the log.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MetaState {
    pub(crate) applied: u64,
    pub(crate) cluster: Option<Shared<ClusterSpec>>,
    pub(crate) map_version: u64,
    pub(crate) last_volume: u64,
    pub(crate) volumes: Tracked<String, Shared<VolumeRecord>, VolumesBy>,
    /// By the volume's number and their generation.
    pub(crate) snapshots: Tracked<(u64, u32), SnapshotRecord, SnapshotsBy>,
    pub(crate) classes: Tracked<String, ClassRecord>,
    pub(crate) quotas: Tracked<String, QuotaRecord>,
    /// By number; those that ended are forgotten one after the other.
    pub(crate) operations: Tracked<u64, OperationRecord>,
    /// By number, the newest.
    pub(crate) events: Tracked<u64, EventRecord>,
    pub(crate) last_event: u64,
    /// Those under way: the number of the volume that they are about (0: none), and their own.
    pub(crate) open: BTreeSet<(u64, u64)>,
    /// Members by name, and the index of the entry that changed what is said of them last.
    pub(crate) member_revisions: Tracked<String, u64>,
    pub(crate) tokens: Tokens,
    /// Wrapped data keys, by the lineages of their volumes.
    pub(crate) keys: BTreeMap<u64, KeyRecord>,
    pub(crate) requests: Requests,
    pub(crate) restored: Option<RestoreRecord>,
}

/// The bytes of an entry.
pub fn encode(entry: &Entry) -> Vec<u8> {
    entry.encode_to_vec()
}

/// An entry from its bytes, or what is wrong with them.
///
/// # Errors
/// If the bytes are no entry, or one of a version or kind that this program does not know.
pub fn decode(bytes: &[u8]) -> Result<Entry, String> {
    let entry = Entry::decode(bytes).map_err(|e| format!("not a metadata entry: {e}"))?;
    if entry.version != ENTRY_VERSION {
        return Err(format!("a metadata entry of version {}, not {ENTRY_VERSION}", entry.version));
    }
    if entry.op.is_none() {
        return Err("a metadata entry of an unknown kind".to_owned());
    }
    Ok(entry)
}

/// What the bytes of an entry say that it is part of; nothing if they say nothing. It has no effect here.
pub fn trace_of(bytes: &[u8]) -> Vec<u8> {
    TraceOf::decode(bytes).map(|of| of.trace).unwrap_or_default()
}

/// The etag of a volume.
pub fn etag_of(volume: &VolumeRecord) -> String {
    format!("{}-{}", volume.epoch, volume.revision)
}

impl MetaState {
    /// The index of the entry applied last.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// What the nodes agreed on, once the first entry is applied.
    pub fn cluster(&self) -> Option<&ClusterSpec> {
        self.cluster.as_deref()
    }

    /// The same, to be held: whoever holds it sees with [`Shared::is_same`] whether it has changed since.
    pub fn cluster_record(&self) -> Option<&Shared<ClusterSpec>> {
        self.cluster.as_ref()
    }

    /// Grows whenever the map of the pool changes.
    pub fn map_version(&self) -> u64 {
        self.map_version
    }

    /// The volumes in the order of their names.
    pub fn volumes(&self) -> impl Iterator<Item = &VolumeRecord> {
        self.volumes.values().map(|volume| &**volume)
    }

    /// How many volumes there are.
    pub fn volume_count(&self) -> usize {
        self.volumes.len()
    }

    /// The sizes of all volumes together, in bytes.
    pub fn provisioned_bytes(&self) -> u64 {
        self.volumes.followed().provisioned_bytes()
    }

    /// How many volumes are attached.
    pub fn attached_count(&self) -> usize {
        self.volumes.followed().attached_count()
    }

    /// The volumes that are attached to a host, by number.
    pub fn attached_to(&self, host: &str) -> impl Iterator<Item = &VolumeRecord> {
        self.volumes.followed().attached_to(host)
    }

    /// The hosts to which volumes are attached, with how many.
    pub fn hosts(&self) -> impl Iterator<Item = (&str, usize)> {
        self.volumes.followed().hosts()
    }

    /// Whether everything that is kept beside the records is what they come to. Looks at all of them.
    pub fn indexes_are_exact(&self) -> bool {
        let volumes = self.volumes.followed();
        self.volumes.is_exact() && self.snapshots.is_exact() && volumes.counts_are_exact()
    }

    /// Volumes whose names come after `id`, in order.
    pub fn volumes_after(&self, id: &str) -> impl Iterator<Item = &VolumeRecord> {
        use std::ops::Bound;
        self.volumes
            .range::<str, _>((Bound::Excluded(id), Bound::Unbounded))
            .map(|(_, volume)| &**volume)
    }

    /// Index of the entry that changed a member, or where groups are, last.
    pub fn member_revision(&self, name: &str) -> u64 {
        self.member_revisions.get(name).copied().unwrap_or(0)
    }

    /// A volume by the last part of its name.
    pub fn volume(&self, id: &str) -> Option<&VolumeRecord> {
        self.volumes.get(id).map(|volume| &**volume)
    }

    /// A volume by its number.
    pub fn volume_by_number(&self, number: u64) -> Option<&VolumeRecord> {
        self.volumes.followed().number(number).map(|volume| &**volume)
    }

    /// Applies the entry at `index`. Bytes that are no entry change nothing, on every node alike.
    pub fn apply(&mut self, index: u64, bytes: &[u8]) -> Outcome {
        assert!(index > self.applied, "entry {index} after {} was applied", self.applied);
        self.applied = index;
        self.forget_changes();
        if bytes.is_empty() {
            return Outcome::Nothing;
        }
        let entry = match decode(bytes) {
            Ok(entry) => entry,
            Err(message) => return refused(ErrorReason::InvalidField, message, vec![]),
        };
        let body = fingerprint(&entry);
        if !entry.request_id.is_empty() {
            match self.requests.look_up(&entry.request_id, body) {
                Known::New => {}
                Known::Same(outcome) => return *outcome,
                Known::Other => return request_id_reused(&entry.request_id),
            }
        }
        let Some(op) = entry.op else { return Outcome::Nothing };
        let at = (index, entry.now_ms);
        let before = self.before(&op);
        let outcome = self.change(at, op.clone(), entry.volume_key);
        self.follow(at, before, &op, &outcome);
        let took_effect = !matches!(outcome, Outcome::Refused(_));
        if took_effect && !entry.request_id.is_empty() {
            self.requests.keep(&entry.request_id, body, outcome.clone());
        }
        outcome
    }

    fn change(&mut self, (index, now_ms): (u64, i64), op: Op, key: Option<WrappedKey>) -> Outcome {
        let result = match op {
            Op::Barrier(_) => Ok(Outcome::Nothing),
            Op::InitCluster(init) => self.init_cluster(init.spec),
            Op::UpdateMember(update) => self.update_member(update.member),
            Op::CreateVolume(create) => self.create_volume((index, now_ms), create, key),
            Op::DeleteVolume(delete) => self.delete_volume(index, delete),
            Op::RaiseEpoch(raise) => self.raise_epoch(index, raise.volume),
            Op::PurgeVolume(purge) => self.purge_volume(purge.volume),
            Op::AttachVolume(attach) => self.attach_volume(index, now_ms, attach),
            Op::DetachVolume(detach) => self.detach_volume(index, detach),
            Op::ResizeVolume(resize) => self.resize_volume(index, resize),
            Op::CreateSnapshot(create) => self.create_snapshot(index, now_ms, create),
            Op::SettleSnapshot(settle) => self.settle_snapshot(&settle),
            Op::DeleteSnapshot(delete) => self.delete_snapshot(index, delete),
            Op::PurgeSnapshot(purge) => self.purge_snapshot(purge),
            Op::CreateCut(create) => self.create_cut(index, now_ms, create),
            Op::SettleCut(settle) => self.settle_cut(&settle),
            Op::GiveUpCut(give) => self.give_up_cut(index, &give),
            Op::DeleteCut(delete) => self.delete_cut(index, &delete),
            Op::RevertVolume(revert) => self.revert_volume(index, &revert),
            Op::SettleRevert(settle) => self.settle_revert(index, &settle),
            Op::AddMember(add) => self.add_member(add),
            Op::DrainMember(drain) => self.drain_member(&drain),
            Op::RemoveMember(remove) => self.remove_member(&remove),
            Op::MoveGroup(to) => self.move_group(to),
            Op::SettleGroup(settle) => self.settle_group(&settle),
            Op::SettleClone(settle) => self.settle_clone(index, &settle),
            Op::FlattenVolume(flatten) => self.flatten_volume(index, &flatten),
            Op::SettleFlatten(settle) => self.settle_flatten(index, &settle),
            Op::UpdateVolume(update) => self.update_volume(index, update),
            Op::PutClass(put) => self.put_class((index, now_ms), put),
            Op::DeleteClass(delete) => self.delete_class(&delete),
            Op::PutQuota(put) => self.put_quota((index, now_ms), put),
            Op::DeleteQuota(delete) => self.delete_quota(&delete),
            Op::ForgetOperation(forget) => self.forget_operation(&forget),
            Op::JudgeMember(judge) => self.judge_member(index, now_ms, judge),
            Op::EvacuateMember(evacuate) => self.evacuate_member(index, &evacuate),
            Op::FailOverVolume(over) => self.fail_over_volume(index, now_ms, over),
            Op::SetFailureDomain(set) => self.set_failure_domain(&set),
            Op::JudgeAttachment(judge) => self.judge_attachment(now_ms, &judge),
            Op::CreateToken(create) => self.create_token(now_ms, create),
            Op::RevokeToken(revoke) => self.revoke_token(&revoke),
            Op::UseJoinToken(join) => self.use_join_token(join),
            Op::SettleRestore(settle) => self.settle_restore(index, now_ms, &settle),
            Op::AdoptVolume(adopt) => self.adopt_volume(index, now_ms, adopt),
            Op::RewrapKeys(rewrap) => self.rewrap_keys(index, rewrap),
            Op::PlanStop(plan) => self.plan_stop(index, now_ms, &plan),
        };
        result.unwrap_or_else(Outcome::Refused)
    }

    fn init_cluster(&mut self, spec: Option<ClusterSpec>) -> Result<Outcome, Refused> {
        let spec = spec.unwrap_or_default();
        match &self.cluster {
            Some(known) if known.id == spec.id => return Ok(Outcome::Nothing),
            Some(known) => {
                let message = format!("the metadata group belongs to cluster {:016x}", known.id);
                return Err(refusal(ErrorReason::AlreadyBootstrapped, message, vec![]));
            }
            None => {}
        }
        crate::layout::validate(&spec)
            .map_err(|e| refusal(ErrorReason::InvalidField, e, vec![]))?;
        self.cluster = Some(spec.into());
        self.map_version = 1;
        Ok(Outcome::Nothing)
    }

    fn update_member(&mut self, member: Option<Member>) -> Result<Outcome, Refused> {
        let member = member.unwrap_or_default();
        let known = self
            .cluster
            .as_mut()
            .and_then(|spec| spec.members.iter_mut().find(|m| m.node == member.node));
        let Some(known) = known else {
            let message = format!("node {} is not a member of the cluster", member.node);
            return Err(refusal(ErrorReason::InvalidField, message, vec![]));
        };
        // A node keeps the name under which volumes are attached to it, and tells only its addresses.
        let member = crate::healing::with_record_of(known, member);
        let member = Member { name: known.name.clone(), ..member };
        if *known != member {
            *known = member;
            self.map_version += 1;
        }
        Ok(Outcome::Nothing)
    }

    fn create_volume(
        &mut self,
        (index, now_ms): (u64, i64),
        create: CreateVolume,
        key: Option<WrappedKey>,
    ) -> Result<Outcome, Refused> {
        let invalid = |field: &str, message: String| {
            refusal(ErrorReason::InvalidField, message, vec![("field", field.to_owned())])
        };
        rules::check_volume_id(&create.id).map_err(|e| invalid("volume_id", e))?;
        let clone = create.source.as_ref().map(|source| self.clone_of(source, create.size_bytes));
        let clone = clone.transpose()?;
        let size_bytes = clone.as_ref().map_or(create.size_bytes, |clone| clone.size_bytes);
        rules::check_size(size_bytes).map_err(|e| invalid("size_bytes", e))?;
        rules::check_qos(create.qos.as_ref()).map_err(|e| invalid("qos", e))?;
        let storage_class = self.class_for(&create.storage_class)?;
        rules::check_labels(create.labels.iter()).map_err(|e| invalid("labels", e))?;
        let encryption = self.encryption_of_new(&create, &storage_class, key.as_ref())?;
        if let Some(known) = self.volumes.get(&create.id) {
            let state = if known.deleting { ", and is being deleted" } else { "" };
            return Err(refusal(
                ErrorReason::VolumeExists,
                format!("the volume '{}' exists already{state}; choose another name", create.id),
                vec![("volume", create.id)],
            ));
        }
        if self.volumes.len() >= VOLUMES_MAX {
            let message = format!("the cluster has {VOLUMES_MAX} volumes, the most it can have");
            return Err(refusal(ErrorReason::Limit, message, vec![]));
        }
        self.check_quotas(&create.id, &create.labels, size_bytes)?;
        let number = self.last_volume + 1;
        let volume = Shared::new(VolumeRecord {
            number,
            id: create.id.clone(),
            size_bytes,
            lineage: clone.as_ref().map_or(number, |clone| clone.lineage),
            epoch: 0,
            generation: 0,
            deleting: false,
            labels: create.labels,
            attachment: None,
            create_time_ms: now_ms,
            revision: index,
            cloning: clone.is_some(),
            parent: clone.map(|clone| clone.parent),
            flattening: false,
            revert: None,
            storage_class,
            qos: create.qos,
            failover: create.failover,
            encryption,
        });
        if self.effective_qos(&volume).iops_min > 0 {
            self.check_minimums(Some(&volume), None)?;
        }
        self.last_volume = number;
        self.keep_key(index, &volume, key);
        self.volumes.insert(create.id, volume.clone());
        Ok(Outcome::Volume(volume))
    }

    fn delete_volume(&mut self, index: u64, delete: DeleteVolume) -> Result<Outcome, Refused> {
        self.check_no_clones(&delete.id, None)?;
        let known = self.volumes.get(&delete.id).ok_or_else(|| not_found(&delete.id))?;
        check_etag(known, &delete.etag)?;
        if let Some(attachment) = &known.attachment {
            return Err(refusal(
                ErrorReason::VolumeAttached,
                format!(
                    "the volume '{}' is attached to '{}'; detach it first",
                    delete.id, attachment.host
                ),
                vec![("volume", delete.id), ("host", attachment.host.clone())],
            ));
        }
        if known.deleting {
            return Ok(Outcome::Volume(known.clone()));
        }
        crate::snapshots::delete_with_volume(self, index, known.number, &delete)?;
        let mut volume = find(&mut self.volumes, &delete.id)?;
        volume.deleting = true;
        volume.revision = index;
        let deleted = volume.clone();
        drop(volume);
        self.erase_key(deleted.lineage);
        Ok(Outcome::Volume(deleted))
    }

    pub(crate) fn resize_volume(
        &mut self,
        index: u64,
        resize: ResizeVolume,
    ) -> Result<Outcome, Refused> {
        rules::check_size(resize.size_bytes).map_err(|e| {
            refusal(ErrorReason::InvalidField, e, vec![("field", "size_bytes".to_owned())])
        })?;
        let volume = self.volume(&resize.id).ok_or_else(|| not_found(&resize.id))?;
        let busy = self.cut_under_way(volume.number).is_some();
        let allowed = self.check_quotas(&resize.id, &volume.labels, resize.size_bytes);
        let mut volume = find(&mut self.volumes, &resize.id)?;
        check_etag(&volume, &resize.etag)?;
        if volume.deleting {
            return Err(being_deleted(&resize.id, "resized"));
        }
        if busy || volume.revert.is_some() {
            return Err(Refused::volume_busy(&volume, "resized"));
        }
        if resize.size_bytes < volume.size_bytes {
            // What is behind the new end would be lost, and would be there again after the next growth.
            return Err(refusal(
                ErrorReason::VolumeShrinks,
                format!(
                    "the volume '{}' has {} bytes and can not be made smaller ({}); copy what is to be \
                     kept to a new one",
                    resize.id, volume.size_bytes, resize.size_bytes
                ),
                vec![("volume", resize.id), ("size_bytes", volume.size_bytes.to_string())],
            ));
        }
        if resize.size_bytes > volume.size_bytes {
            allowed?;
            volume.size_bytes = resize.size_bytes;
            volume.revision = index;
        }
        Ok(Outcome::Volume(volume.clone()))
    }

    fn raise_epoch(&mut self, index: u64, number: u64) -> Result<Outcome, Refused> {
        let id = self.volume_by_number(number).filter(|v| v.deleting || v.revert.is_some());
        let volume = id.map(|v| v.id.clone()).and_then(|id| self.volumes.get_mut(&id));
        let Some(mut volume) = volume else {
            let message = format!("no volume of number {number} is being deleted or reverted");
            return Err(refusal(ErrorReason::VolumeNotFound, message, vec![]));
        };
        volume.epoch += 1;
        volume.revision = index;
        Ok(Outcome::Volume(volume.clone()))
    }

    fn purge_volume(&mut self, number: u64) -> Result<Outcome, Refused> {
        // A record that is gone already is what was wanted, and one that clones hang on stays.
        if self.holds_clones(number, None) {
            return Ok(Outcome::Nothing);
        }
        let going = self.volume_by_number(number).filter(|volume| volume.deleting);
        if let Some(id) = going.map(|volume| volume.id.clone()) {
            self.volumes.remove(&id);
        }
        if self.volume_by_number(number).is_none() {
            let keys: Vec<(u64, u32)> = self.snapshot_keys(number).collect();
            keys.iter().for_each(|key| self.snapshots.remove(key));
        }
        Ok(Outcome::Nothing)
    }

    pub(crate) fn attach_volume(
        &mut self,
        index: u64,
        now_ms: i64,
        attach: AttachVolume,
    ) -> Result<Outcome, Refused> {
        rules::check_host(&attach.host).map_err(|e| {
            refusal(ErrorReason::InvalidField, e, vec![("field", "host".to_owned())])
        })?;
        self.check_settled("attached")?;
        let free = self.volume(&attach.id).is_some_and(|v| self.may_take(v.attachment.as_ref()));
        let mut volume = find(&mut self.volumes, &attach.id)?;
        check_etag(&volume, &attach.etag)?;
        if volume.deleting {
            return Err(being_deleted(&attach.id, "attached"));
        }
        crate::clones::check_begun(&volume)?;
        if volume.revert.is_some() {
            return Err(Refused::volume_busy(&volume, "attached"));
        }
        let current = volume.attachment.as_ref();
        let epoch_now = current.map_or(0, |a| a.epoch);
        if attach.expected_epoch != 0 && attach.expected_epoch != epoch_now {
            return Err(attachment_changed(&attach.id, current));
        }
        match current {
            Some(a) if a.host == attach.host && !attach.renew => {
                return Ok(Outcome::Volume(volume.clone()));
            }
            Some(a) if a.host != attach.host && !attach.r#move && !free => {
                return Err(refusal(
                    ErrorReason::VolumeAttached,
                    format!(
                        "the volume '{}' is attached to '{}'; detach it there, or move it with the \
                         move flag (--move), which shuts the other session out for good",
                        attach.id, a.host
                    ),
                    vec![("volume", attach.id), ("host", a.host.clone())],
                ));
            }
            _ => {}
        }
        volume.epoch += 1;
        volume.revision = index;
        let (host, epoch) = (attach.host, volume.epoch);
        let made = AttachmentRecord { host, epoch, since_ms: now_ms, index, ..Default::default() };
        volume.attachment = Some(made);
        Ok(Outcome::Volume(volume.clone()))
    }

    fn detach_volume(&mut self, index: u64, detach: DetachVolume) -> Result<Outcome, Refused> {
        let mut volume = find(&mut self.volumes, &detach.id)?;
        check_etag(&volume, &detach.etag)?;
        let Some(current) = &volume.attachment else {
            return Ok(Outcome::Volume(volume.clone()));
        };
        let other_host = !detach.host.is_empty() && detach.host != current.host;
        let other_epoch = detach.epoch != 0 && detach.epoch != current.epoch;
        if other_host || other_epoch {
            return Err(attachment_changed(&detach.id, Some(current)));
        }
        volume.attachment = None;
        volume.revision = index;
        Ok(Outcome::Volume(volume.clone()))
    }
}

/// A volume that may be changed.
pub(crate) type Found<'a> = Touched<'a, String, Shared<VolumeRecord>, VolumesBy>;

pub(crate) fn find<'a>(
    volumes: &'a mut Tracked<String, Shared<VolumeRecord>, VolumesBy>,
    id: &str,
) -> Result<Found<'a>, Refused> {
    volumes.get_mut(id).ok_or_else(|| not_found(id))
}

impl MetaState {
    /// A volume by its number, to be changed.
    pub(crate) fn find_number(&mut self, number: u64) -> Option<Found<'_>> {
        let id = self.volume_by_number(number)?.id.clone();
        self.volumes.get_mut(&id)
    }
}

/// The refusal for a volume that does not exist.
pub(crate) fn not_found(id: &str) -> Refused {
    let shown = id.escape_debug().to_string();
    refusal(
        ErrorReason::VolumeNotFound,
        format!("there is no volume '{shown}'; 'basalt volume list' shows those that there are"),
        vec![("volume", shown)],
    )
}

impl Refused {
    /// There is no such volume.
    pub fn volume_not_found(id: &str) -> Refused {
        not_found(id)
    }
}

pub(crate) fn check_etag(volume: &VolumeRecord, etag: &str) -> Result<(), Refused> {
    let now = etag_of(volume);
    if etag.is_empty() || etag == now {
        return Ok(());
    }
    Err(refusal(
        ErrorReason::EtagMismatch,
        format!("the volume '{}' changed in between; read it again and decide anew", volume.id),
        vec![("volume", volume.id.clone()), ("etag", now)],
    ))
}

pub(crate) fn being_deleted(id: &str, what: &str) -> Refused {
    refusal(
        ErrorReason::VolumeDeleting,
        format!("the volume '{id}' is being deleted; it can not be {what}"),
        vec![("volume", id.to_owned())],
    )
}

fn attachment_changed(id: &str, current: Option<&AttachmentRecord>) -> Refused {
    let (now, host) = match current {
        Some(a) => (format!("attached to '{}' with epoch {}", a.host, a.epoch), a.host.clone()),
        None => ("not attached".to_owned(), String::new()),
    };
    refusal(
        ErrorReason::AttachmentChanged,
        format!("the attachment that was meant is over: the volume '{id}' is {now}"),
        vec![("volume", id.to_owned()), ("host", host)],
    )
}

fn request_id_reused(id: &str) -> Outcome {
    let shown = id.escape_debug().to_string();
    refused(
        ErrorReason::RequestIdReused,
        format!("the request id '{shown}' was used with another body; draw a new one"),
        vec![("request_id", shown)],
    )
}

pub(crate) fn refusal(
    reason: ErrorReason,
    message: String,
    facts: Vec<(&'static str, String)>,
) -> Refused {
    Refused { reason, message, facts }
}

fn refused(reason: ErrorReason, message: String, facts: Vec<(&'static str, String)>) -> Outcome {
    Outcome::Refused(refusal(reason, message, facts))
}

/// FNV-1a over the operation alone: what the proposer chose (time, id) does not count.
fn fingerprint(entry: &Entry) -> u64 {
    let op = Entry { op: entry.op.clone(), ..Entry::default() };
    op.encode_to_vec().iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
