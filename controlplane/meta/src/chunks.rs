//! The state in pieces of a bounded size: written to a store, sent to another node, kept as a backup, and read
//! again. What is read came from outside: it is checked as a whole before it is believed.

use crate::layout;
use crate::requests::KEPT_MAX;
use crate::rules;
use crate::state::{MetaState, Outcome};
use crate::tracked::{Follows, Shared, Tracked};
use basalt_api::meta::v1::request_record::Outcome as Kept;
use basalt_api::meta::v1::state_record::Record;
use basalt_api::meta::v1::{
    ClusterRecord, CutOutcome, MemberRevision, NoOutcome, OperationRecord, RequestRecord,
    SnapshotRecord, StateChunk, StateEnd, StateRecord, VolumeRecord,
};
use prost::Message;
use sha2::{Digest, Sha256};
use std::fmt::Debug;

/// Version of the format.
pub const STATE_FORMAT: u32 = 1;
/// Bytes after which a piece takes no more records.
const CHUNK_BYTES: usize = 256 << 10;
/// The longest piece that is taken.
pub const CHUNK_BYTES_MAX: usize = 1 << 20;
/// Snapshots of a cut that one record holds.
const CUT_PART: usize = 8;

/// Why pieces are no state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadState {
    /// The bytes are no piece, or one that is too long.
    #[error("piece {number} can not be read: {reason}")]
    Piece {
        /// Which, counted from 0.
        number: u32,
        /// What is wrong with it.
        reason: String,
    },
    /// A piece is of another format.
    #[error("a state of format {0}, not {STATE_FORMAT}: another version of the program wrote it")]
    Format(u32),
    /// Pieces are missing, doubled, or of several states.
    #[error(
        "piece {found} of the state of entry {found_applied} where piece {number} of {applied} should be"
    )]
    Order {
        /// The piece that should come.
        number: u32,
        /// The entry of the state.
        applied: u64,
        /// The one that came.
        found: u32,
        /// The entry of its state.
        found_applied: u64,
    },
    /// The last piece did not come.
    #[error("it ends after {0} pieces, without its end")]
    Short(u32),
    /// What was read is not what was written.
    #[error("its records do not have the digest that they were written with")]
    Digest,
    /// A record is wrong in itself, or does not fit the others.
    #[error("its records contradict each other: {0}")]
    Contradiction(String),
}

fn contradiction<T>(what: impl Into<String>) -> Result<T, BadState> {
    Err(BadState::Contradiction(what.into()))
}

impl MetaState {
    /// The state in pieces, each encoded.
    pub fn chunks(&self) -> Chunks<'_> {
        let records = Box::new(self.records());
        Chunks {
            applied: self.applied,
            records: Some(records),
            number: 0,
            count: 0,
            sum: Sha256::new(),
        }
    }

    /// The state from its pieces, in order.
    ///
    /// # Errors
    /// If they are not all the pieces of one sound state.
    pub fn from_chunks(
        chunks: impl IntoIterator<Item = impl AsRef<[u8]>>,
    ) -> Result<MetaState, BadState> {
        let mut reader = StateReader::default();
        for chunk in chunks {
            reader.add(chunk.as_ref())?;
        }
        reader.finish()
    }

    fn records(&self) -> impl Iterator<Item = Record> + '_ {
        // All fields by name, so that one more does not compile before it has its records here.
        let MetaState {
            applied: _,
            cluster,
            map_version,
            last_volume,
            volumes,
            snapshots,
            classes,
            quotas,
            operations,
            events,
            last_event,
            // Follows from the records.
            open: _,
            member_revisions,
            tokens,
            keys,
            requests,
            restored,
        } = self;
        let cluster = ClusterRecord {
            spec: cluster.as_deref().cloned(),
            map_version: *map_version,
            last_volume: *last_volume,
            last_event: *last_event,
            restored: *restored,
        };
        let revision = |(name, revision): (&String, &u64)| {
            Record::MemberRevision(MemberRevision { name: name.clone(), revision: *revision })
        };
        std::iter::once(Record::Cluster(cluster))
            .chain(member_revisions.iter().map(revision))
            .chain(classes.values().cloned().map(Record::Class))
            .chain(quotas.values().cloned().map(Record::Quota))
            .chain(volumes.values().map(|volume| Record::Volume(VolumeRecord::clone(volume))))
            .chain(snapshots.values().cloned().map(Record::Snapshot))
            .chain(operations.values().cloned().map(Record::Operation))
            .chain(events.values().cloned().map(Record::Event))
            .chain(tokens.records())
            .chain(keys.values().cloned().map(Record::Key))
            .chain(requests.iter().flat_map(|(id, body, outcome)| request(id, body, &outcome)))
    }
}

/// The records of a request that took effect.
fn request(id: &str, body: u64, outcome: &Outcome) -> Vec<Record> {
    let mut parts = Vec::new();
    let cut = |all: &[SnapshotRecord]| CutOutcome { snapshots: all.to_vec() };
    let outcome = match outcome {
        Outcome::Nothing => Kept::Nothing(NoOutcome {}),
        Outcome::Volume(volume) => Kept::Volume(VolumeRecord::clone(volume)),
        Outcome::Snapshot(snapshot) => Kept::Snapshot(snapshot.clone()),
        Outcome::Member(member) => Kept::Member(member.clone()),
        Outcome::Class(class) => Kept::Class(class.clone()),
        Outcome::Quota(quota) => Kept::Quota(quota.clone()),
        Outcome::Token(token) => Kept::Token(token.clone()),
        Outcome::Cut(snapshots) => {
            let mut all = snapshots.chunks(CUT_PART);
            let first = all.next().unwrap_or_default();
            parts.extend(all.map(|part| Record::CutPart(cut(part))));
            Kept::Cut(cut(first))
        }
        Outcome::Refused(_) => unreachable!("what was refused took no effect, and is not kept"),
    };
    parts.insert(
        0,
        Record::Request(RequestRecord { id: id.to_owned(), body, outcome: Some(outcome) }),
    );
    parts
}

/// The pieces of a state, one after the other.
pub struct Chunks<'a> {
    applied: u64,
    /// What is left; nothing once the end was given.
    records: Option<Box<dyn Iterator<Item = Record> + Send + 'a>>,
    number: u32,
    count: u64,
    sum: Sha256,
}

impl Iterator for Chunks<'_> {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let rest = self.records.as_mut()?;
        let mut chunk = StateChunk {
            format: STATE_FORMAT,
            number: self.number,
            applied: self.applied,
            ..StateChunk::default()
        };
        let mut bytes = 0;
        while bytes < CHUNK_BYTES
            && let Some(record) = rest.next()
        {
            let record = StateRecord { record: Some(record) };
            bytes += record.encoded_len();
            chunk.records.push(record);
        }
        if chunk.records.is_empty() {
            let digest = self.sum.finalize_reset().to_vec();
            chunk.end = Some(StateEnd { records: self.count, digest });
            self.records = None;
        }
        self.number += 1;
        self.count += chunk.records.len() as u64;
        let encoded = chunk.encode_to_vec();
        add_to(&mut self.sum, &encoded);
        Some(encoded)
    }
}

fn add_to(sum: &mut Sha256, piece: &[u8]) {
    sum.update((piece.len() as u32).to_le_bytes());
    sum.update(piece);
}

/// Reads a state, piece by piece.
#[derive(Debug, Default)]
pub struct StateReader {
    state: MetaState,
    number: u32,
    count: u64,
    sum: Sha256,
    /// Whether the end has come, and the digest that it names.
    ended: bool,
    digest: Vec<u8>,
}

impl StateReader {
    /// The entry of the state that is being read, once the first piece has come.
    pub fn applied(&self) -> Option<u64> {
        (self.number > 0).then_some(self.state.applied)
    }

    /// Whether all pieces have come.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// The digest over all pieces; empty before they have come.
    pub fn digest(&self) -> &[u8] {
        &self.digest
    }

    /// Takes the next piece. After an error the rest is of no use.
    ///
    /// # Errors
    /// If it is none, not the next one, or its records can not be.
    pub fn add(&mut self, bytes: &[u8]) -> Result<(), BadState> {
        let unreadable = |reason: String| BadState::Piece { number: self.number, reason };
        if bytes.len() > CHUNK_BYTES_MAX {
            return Err(unreadable(format!("it has {} bytes", bytes.len())));
        }
        let chunk = StateChunk::decode(bytes).map_err(|e| unreadable(e.to_string()))?;
        if chunk.format != STATE_FORMAT {
            return Err(BadState::Format(chunk.format));
        }
        if self.number == 0 {
            self.state.applied = chunk.applied;
        }
        let (number, applied) = (self.number, self.state.applied);
        if self.ended || (chunk.number, chunk.applied) != (number, applied) {
            let (found, found_applied) = (chunk.number, chunk.applied);
            return Err(BadState::Order { number, applied, found, found_applied });
        }
        if let Some(end) = chunk.end {
            if end.records != self.count || end.digest != self.sum.finalize_reset()[..] {
                return Err(BadState::Digest);
            }
            (self.ended, self.digest) = (true, end.digest);
        } else {
            add_to(&mut self.sum, bytes);
        }
        for record in chunk.records {
            let record =
                record.record.map_or_else(|| contradiction("a record of an unknown kind"), Ok)?;
            self.take(record)?;
            self.count += 1;
        }
        self.number += 1;
        Ok(())
    }

    fn take(&mut self, record: Record) -> Result<(), BadState> {
        if matches!(record, Record::Cluster(_)) != (self.count == 0) {
            return contradiction("the cluster's record is not the first, or there are two");
        }
        match record {
            Record::Cluster(cluster) => self.take_cluster(cluster),
            Record::Volume(volume) => self.take_volume(volume),
            Record::Snapshot(snapshot) => self.take_snapshot(snapshot),
            Record::Request(request) => self.take_request(request),
            Record::Class(class) => {
                self.check_revision(class.revision)?;
                put_in_order(&mut self.state.classes, class.id.clone(), class)
            }
            Record::Quota(quota) => {
                self.check_revision(quota.revision)?;
                self.state.volumes.followed_mut().count_for(&quota);
                put_in_order(&mut self.state.quotas, quota.id.clone(), quota)
            }
            Record::Operation(operation) => self.take_operation(operation),
            Record::Event(event) => {
                if event.number > self.state.last_event {
                    return contradiction(format!("the event {} is to come", event.number));
                }
                self.check_revision(event.revision)?;
                put_in_order(&mut self.state.events, event.number, event)
            }
            Record::MemberRevision(MemberRevision { name, revision }) => {
                self.check_revision(revision)?;
                put_in_order(&mut self.state.member_revisions, name, revision)
            }
            Record::Token(token) => {
                self.state.tokens.restore(token).map_err(BadState::Contradiction)
            }
            Record::JoinToken(used) => {
                self.state.tokens.restore_joined(used).map_err(BadState::Contradiction)
            }
            Record::Key(key) => self.state.restore_key(key).map_err(BadState::Contradiction),
            Record::CutPart(part) => match self.state.requests.newest_mut() {
                Some(Outcome::Cut(snapshots)) => {
                    snapshots.extend(part.snapshots);
                    Ok(())
                }
                _ => contradiction("a part of a cut that is no request's outcome"),
            },
        }
    }

    fn take_cluster(&mut self, cluster: ClusterRecord) -> Result<(), BadState> {
        if let Some(spec) = &cluster.spec {
            layout::validate(spec).map_err(BadState::Contradiction)?;
        }
        self.state.cluster = cluster.spec.map(Shared::new);
        self.state.map_version = cluster.map_version;
        self.state.last_volume = cluster.last_volume;
        self.state.last_event = cluster.last_event;
        if cluster.restored.is_some_and(|restored| restored.index > self.state.applied) {
            return contradiction("a restore that is to come");
        }
        self.state.restored = cluster.restored;
        Ok(())
    }

    fn take_volume(&mut self, volume: VolumeRecord) -> Result<(), BadState> {
        let id = volume.id.clone();
        rules::check_volume_id(&id).map_err(BadState::Contradiction)?;
        rules::check_size(volume.size_bytes).map_err(BadState::Contradiction)?;
        rules::check_qos(volume.qos.as_ref()).map_err(BadState::Contradiction)?;
        rules::check_labels(volume.labels.iter()).map_err(BadState::Contradiction)?;
        let number = volume.number;
        let known = self.state.volume_by_number(number).is_some();
        if number == 0 || number > self.state.last_volume || known {
            return contradiction(format!("the volume '{id}' has the number {number}"));
        }
        if volume.attachment.as_ref().is_some_and(|held| held.epoch > volume.epoch) {
            return contradiction(format!("the volume '{id}' is attached with an epoch to come"));
        }
        self.check_revision(volume.revision)?;
        put_in_order(&mut self.state.volumes, id, Shared::new(volume))
    }

    fn take_snapshot(&mut self, snapshot: SnapshotRecord) -> Result<(), BadState> {
        let key = (snapshot.volume, snapshot.generation);
        let (volume_id, id) = (&snapshot.volume_id, &snapshot.id);
        let name = || format!("{volume_id}@{id}").escape_debug().to_string();
        rules::check_snapshot_id(id).map_err(BadState::Contradiction)?;
        let fits = self.state.volumes.get(volume_id).is_some_and(|volume| {
            volume.number == snapshot.volume && snapshot.generation < volume.generation
        });
        if !fits {
            return contradiction(format!("the snapshot '{}' is of no volume", name()));
        }
        self.check_revision(snapshot.revision)?;
        put_in_order(&mut self.state.snapshots, key, snapshot)
    }

    fn take_operation(&mut self, operation: OperationRecord) -> Result<(), BadState> {
        let number = operation.number;
        self.check_revision(number.max(operation.revision))?;
        if operation.end_time_ms == 0 {
            self.state.open.insert((operation.volume, number));
        }
        put_in_order(&mut self.state.operations, number, operation)
    }

    fn take_request(&mut self, request: RequestRecord) -> Result<(), BadState> {
        let RequestRecord { id, body, outcome } = request;
        let outcome = match outcome {
            None => return contradiction("a request whose outcome is not known"),
            Some(Kept::Nothing(_)) => Outcome::Nothing,
            Some(Kept::Volume(volume)) => Outcome::Volume(self.shared(volume)),
            Some(Kept::Snapshot(snapshot)) => Outcome::Snapshot(snapshot),
            Some(Kept::Cut(cut)) => Outcome::Cut(cut.snapshots),
            Some(Kept::Member(member)) => Outcome::Member(member),
            Some(Kept::Class(class)) => Outcome::Class(class),
            Some(Kept::Quota(quota)) => Outcome::Quota(quota),
            Some(Kept::Token(token)) => Outcome::Token(token),
        };
        if id.is_empty() || self.state.requests.holds(&id) || self.state.requests.len() >= KEPT_MAX
        {
            return contradiction("requests that are too many, doubled, or without an id");
        }
        self.state.requests.keep(&id, body, outcome);
        Ok(())
    }

    /// A volume as a request left it: mostly it still is so, and held once.
    fn shared(&self, volume: VolumeRecord) -> Shared<VolumeRecord> {
        let known = self.state.volumes.get(&volume.id).filter(|known| ***known == volume);
        known.cloned().unwrap_or_else(|| Shared::new(volume))
    }

    fn check_revision(&self, revision: u64) -> Result<(), BadState> {
        if revision > self.state.applied {
            return contradiction(format!("a record of entry {revision}, which is to come"));
        }
        Ok(())
    }

    /// The state, if all of it has come and fits together.
    ///
    /// # Errors
    /// If something is missing.
    pub fn finish(mut self) -> Result<MetaState, BadState> {
        if !self.ended {
            return Err(BadState::Short(self.number));
        }
        let hangs = |volume: &VolumeRecord| {
            let parent = volume.parent.as_ref();
            parent.is_none_or(|parent| {
                parent.volume != volume.number
                    && self.state.volume_by_number(parent.volume).is_some()
            })
        };
        if let Some(clone) = self.state.volumes().find(|volume| !hangs(volume)) {
            return contradiction(format!("the volume '{}' is a clone of nothing", clone.id));
        }
        if let Some(problem) = self.state.misplaced_key() {
            return contradiction(problem);
        }
        // That it was read is no change that anybody watches for.
        self.state.forget_changes();
        Ok(self.state)
    }
}

/// Puts a record behind all of its kind.
fn put_in_order<K: Ord + Clone + Debug, V, F: Follows<K, V>>(
    map: &mut Tracked<K, V, F>,
    key: K,
    value: V,
) -> Result<(), BadState> {
    if map.last_key_value().is_some_and(|(last, _)| *last >= key) {
        return contradiction(format!("the record {key:?} is out of order"));
    }
    map.insert(key, value);
    Ok(())
}
