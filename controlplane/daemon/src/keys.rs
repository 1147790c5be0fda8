//! Keys of encrypted volumes: drawn, opened, given to those who may have them, and wrapped anew when the secret
//! changes.
//!
//! The data key of a volume is in the clear in the memory of whoever serves the volume, and of a node while it gives it
//! out. It is in no record, no answer but that of [`EncryptionService::issue_volume_key`], and no log.

use crate::access::caller;
use crate::admin::id_of;
use crate::daemon::Daemon;
use crate::engine::Engine;
use crate::reconcile::done;
use crate::services::{linearized, status_of};
use crate::snapshots;
use basalt_api::error;
use basalt_api::v1::encryption_server::Encryption;
use basalt_api::v1::{
    EncryptionStatus, ErrorReason, GetEncryptionStatusRequest, IssueVolumeKeyRequest,
    IssueVolumeKeyResponse, SecretUse,
};
use basalt_crypt::{VolumeCipher, VolumeKey};
use basalt_meta::{
    KeyRecord, MetaState, Op, Refused, RewrapKeys, VolumeRecord, WrappedKey, etag_of,
};
use basalt_security::Secrets;
use basalt_security::principal::Means;
use basalt_security::volume_keys::{self, Unopened, Wrapped};
use std::collections::BTreeMap;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Keys that one entry wraps anew.
const REWRAPPED_MAX: usize = 256;

fn secrets() -> Option<Secrets> {
    basalt_api::dial::credentials().keyring.and_then(|keyring| keyring.secrets())
}

/// A key for the volume that a change creates, if it takes one and this node can wrap it.
pub fn drawn(state: &MetaState, op: &Op) -> Option<WrappedKey> {
    match op {
        Op::CreateVolume(create) if state.wants_key(create) => {
            Some(record_of(volume_keys::draw(&secrets()?)))
        }
        _ => None,
    }
}

fn record_of(wrapped: Wrapped) -> WrappedKey {
    WrappedKey {
        uid: wrapped.uid.to_vec(),
        version: wrapped.version,
        secret: wrapped.secret.to_vec(),
        wrapped: wrapped.bytes,
    }
}

fn wrapped_of(record: &WrappedKey) -> Result<Wrapped, Unopened> {
    Ok(Wrapped {
        uid: record.uid.as_slice().try_into().map_err(|_| Unopened::Damaged)?,
        version: record.version,
        secret: record.secret.as_slice().try_into().map_err(|_| Unopened::Damaged)?,
        bytes: record.wrapped.clone(),
    })
}

/// The key of a volume that is encrypted.
fn open(state: &MetaState, volume: &VolumeRecord) -> Result<VolumeKey, String> {
    let Some(secrets) = secrets() else {
        return Err(
            "the volume is encrypted, and this node has no secret to open its key with".to_owned()
        );
    };
    let Some(key) = state.key_of(volume) else {
        return Err("the volume's key is erased, and its data are lost with it".to_owned());
    };
    let opened = wrapped_of(key).and_then(|wrapped| volume_keys::open(&secrets, &wrapped));
    opened.map_err(|problem| problem.to_string())
}

/// What a volume that is attached to this node is served with; nothing if it is not encrypted.
///
/// # Errors
/// If its key can not be opened: a sentence that says why.
pub fn cipher_of(
    state: &MetaState,
    volume: &VolumeRecord,
) -> Result<Option<Arc<VolumeCipher>>, String> {
    if volume.encryption.is_none() {
        return Ok(None);
    }
    Ok(Some(basalt_attach::keys::cipher_with(&open(state, volume)?)))
}

/// Wraps keys anew that are wrapped under another secret than the one that signs, if this node leads; false if that
/// has to be tried again.
pub async fn rewrap(engine: &Arc<Engine>) -> bool {
    if !engine.metadata.leads() {
        return true;
    }
    let Some(secrets) = secrets() else { return true };
    let held: Vec<_> = secrets.iter().map(volume_keys::id_of).collect();
    // Those whose secret is missing wait for it: whoever attaches the volume, or asks for the status, is told.
    let old = |record: &&KeyRecord| {
        let id = record.key.as_ref().map(|key| key.secret.as_slice());
        held[1..].iter().any(|one| id == Some(&one[..]))
    };
    let found: Vec<KeyRecord> = engine
        .metadata
        .look(|state| state.keys().filter(old).take(REWRAPPED_MAX).cloned().collect());
    let mut keys = Vec::new();
    for record in &found {
        let Some(key) = &record.key else { continue };
        match wrapped_of(key).and_then(|wrapped| volume_keys::rewrap(&secrets, &wrapped)) {
            Ok(Some(wrapped)) => {
                keys.push(KeyRecord { key: Some(record_of(wrapped)), ..record.clone() });
            }
            Ok(None) => {}
            Err(problem) => {
                tracing::debug!(lineage = record.lineage, "not wrapped anew: {problem}")
            }
        }
    }
    if keys.is_empty() {
        return true;
    }
    let count = keys.len();
    let op = Op::RewrapKeys(RewrapKeys { keys });
    let written = done(engine.metadata.change("", op).await, "wrapping keys anew");
    if written {
        tracing::info!(count, "keys of volumes are wrapped under the secret that signs now");
    }
    written && count < REWRAPPED_MAX
}

/// The service.
pub struct EncryptionService {
    daemon: Arc<Daemon>,
}

impl EncryptionService {
    /// Of this node.
    pub fn new(daemon: Arc<Daemon>) -> EncryptionService {
        EncryptionService { daemon }
    }
}

fn no_key(volume: &str, message: impl Into<String>) -> Status {
    error::status(ErrorReason::NoKey, message, &[("volume", volume.to_owned())])
}

/// The volume of which a key is asked for, if the caller has a session with it, or may look at the snapshot.
fn session_of<'a>(
    state: &'a MetaState,
    request: &IssueVolumeKeyRequest,
) -> Result<&'a VolumeRecord, Status> {
    let (id, snapshot) = match request.name.contains("/snapshots/") {
        true => snapshots::ids_of(&request.name).map(|(volume, id)| (volume, Some(id)))?,
        false => (id_of(&request.name)?, None),
    };
    let volume = state.volume(id).ok_or_else(|| status_of(Refused::volume_not_found(id)))?;
    if let Some(name) = snapshot {
        let found = state.snapshot(volume.number, name);
        let found = found.filter(|snapshot| snapshot.ready && !snapshot.deleting);
        return match found {
            Some(_) => Ok(volume),
            None => Err(status_of(Refused::snapshot_not_found(id, name))),
        };
    }
    let held = volume.attachment.as_ref();
    match held.is_some_and(|a| a.host == request.host && a.epoch == request.epoch) {
        true => Ok(volume),
        false => {
            let message = format!(
                "the volume '{id}' is not attached to '{}' with epoch {}; its key is given to who has it attached",
                request.host.escape_debug(),
                request.epoch
            );
            let facts = [("volume", id.to_owned()), ("etag", etag_of(volume))];
            Err(error::status(ErrorReason::AttachmentChanged, message, &facts))
        }
    }
}

#[tonic::async_trait]
impl Encryption for EncryptionService {
    async fn issue_volume_key(
        &self,
        request: Request<IssueVolumeKeyRequest>,
    ) -> Result<Response<IssueVolumeKeyResponse>, Status> {
        let who = caller(&request);
        let request = request.into_inner();
        if who.means == Means::Insecure {
            let message = "keys are given over TLS only, and this cluster has no secret";
            return Err(error::status(ErrorReason::NoSecret, message, &[]));
        }
        let metadata = linearized(&self.daemon).await?;
        metadata.look(|state| {
            let volume = session_of(state, &request)?;
            let Some(encryption) = &volume.encryption else {
                return Err(no_key(
                    &volume.id,
                    format!("the volume '{}' is not encrypted", volume.id),
                ));
            };
            let key = open(state, volume).map_err(|problem| no_key(&volume.id, problem))?;
            Ok(Response::new(IssueVolumeKeyResponse {
                cipher: encryption.cipher.clone(),
                key_version: encryption.key_version,
                key: key.bytes().to_vec(),
            }))
        })
    }

    async fn get_encryption_status(
        &self,
        _request: Request<GetEncryptionStatusRequest>,
    ) -> Result<Response<EncryptionStatus>, Status> {
        let metadata = linearized(&self.daemon).await?;
        let held: Vec<String> = secrets().iter().flat_map(Secrets::iter).map(name_of).collect();
        Ok(Response::new(metadata.look(|state| status(state, &held))))
    }
}

fn name_of(secret: &basalt_security::Secret) -> String {
    volume_keys::shown(&volume_keys::id_of(secret))
}

/// What is wrapped under which secret. `held` is what this node has, the one that signs first.
fn status(state: &MetaState, held: &[String]) -> EncryptionStatus {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for key in state.keys().filter_map(|record| record.key.as_ref()) {
        *counts.entry(volume_keys::shown(&key.secret)).or_default() += 1;
    }
    let mut secrets: Vec<SecretUse> = Vec::new();
    for (at, id) in held.iter().enumerate() {
        let keys = counts.remove(id).unwrap_or_default();
        secrets.push(SecretUse { id: id.clone(), held: true, signs: at == 0, keys });
    }
    let unknown = counts.into_iter();
    secrets.extend(unknown.map(|(id, keys)| SecretUse { id, held: false, signs: false, keys }));
    let missing: u64 = secrets.iter().filter(|s| !s.held).map(|s| s.keys).sum();
    let old: u64 = secrets.iter().filter(|s| s.held && !s.signs).map(|s| s.keys).sum();
    let sentence = match (missing, old, held.len()) {
        (0, 0, 0) => "the cluster has no secret: no volume can be encrypted".to_owned(),
        (0, 0, 1) => "all keys are wrapped under the secret that signs".to_owned(),
        (0, 0, _) => {
            "all keys are wrapped under the secret that signs; none of the others is needed for keys".to_owned()
        }
        (0, old, _) => format!(
            "{old} key(s) are still wrapped under a secret that does not sign: do not drop it yet"
        ),
        (missing, ..) => format!(
            "{missing} key(s) are wrapped under a secret that this node does not hold: their volumes can not be \
             attached until it is in the secret file again"
        ),
    };
    let encrypted = |volume: &&VolumeRecord| volume.encryption.is_some();
    let encrypted_volumes = state.volumes().filter(encrypted).count() as u64;
    EncryptionStatus { secrets, encrypted_volumes, sentence }
}
