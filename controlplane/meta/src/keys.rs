//! Encrypted volumes and their keys.
//!
//! There is one data key for each lineage: a clone reads its parent's blocks, so it has its parent's key. What is kept
//! of it is wrapped, and the state machine can not read it: the proposer draws it. Keys stand in records of their
//! own and in nothing that the API shows, nor in what is kept of requests, so that one step erases them: the
//! one that marks the last volume of a lineage as being deleted.

use crate::state::{MetaState, Outcome, Refused, refusal};
use basalt_api::meta::v1::{
    CreateVolume, EncryptionRecord, KeyRecord, RewrapKeys, VolumeRecord, WrappedKey,
};
use basalt_api::v1::ErrorReason;

/// How volumes are encrypted.
pub const CIPHER: &str = "AES-256-XTS";
const UID_BYTES: usize = 16;
const SECRET_BYTES: usize = 8;
/// Nonce, key and tag.
const WRAPPED_BYTES: usize = 12 + 64 + 16;

impl MetaState {
    /// The wrapped keys, by their lineages.
    pub fn keys(&self) -> impl Iterator<Item = &KeyRecord> {
        self.keys.values()
    }

    /// The wrapped key of a volume that is encrypted, unless it is erased.
    pub fn key_of(&self, volume: &VolumeRecord) -> Option<&WrappedKey> {
        volume.encryption.as_ref()?;
        self.keys.get(&volume.lineage)?.key.as_ref()
    }

    /// Whether a key has to be drawn for a volume that is to be created.
    pub fn wants_key(&self, create: &CreateVolume) -> bool {
        let class = self.class_for(&create.storage_class);
        let by_class = class.is_ok_and(|id| self.is_encrypted_class(&id));
        create.source.is_none() && (create.encrypted || by_class)
    }

    fn is_encrypted_class(&self, id: &str) -> bool {
        self.class(id).is_some_and(|class| class.encrypted)
    }

    /// How a new volume is encrypted, if it is. A clone is as its parent: the blocks that it shares are.
    pub(crate) fn encryption_of_new(
        &self,
        create: &CreateVolume,
        class: &str,
        key: Option<&WrappedKey>,
    ) -> Result<Option<EncryptionRecord>, Refused> {
        let wanted = create.encrypted || self.is_encrypted_class(class);
        let Some(source) = &create.source else {
            return match (wanted, key) {
                (false, _) => Ok(None),
                (true, None) => Err(no_secret(&create.id)),
                (true, Some(key)) => {
                    check(key).map_err(|problem| {
                        refusal(ErrorReason::InvalidField, problem.to_owned(), vec![])
                    })?;
                    let (cipher, key_version) = (CIPHER.to_owned(), key.version);
                    Ok(Some(EncryptionRecord { cipher, key_version }))
                }
            };
        };
        let parent = self.volume(&source.volume);
        let parents = parent.and_then(|parent| parent.encryption.clone());
        if wanted && parents.is_none() {
            let why = match create.encrypted {
                true => "it can not be encrypted".to_owned(),
                false => format!("it can not have the class '{class}', whose volumes are"),
            };
            let message = format!(
                "the volume '{}' is not encrypted, and a clone shares its blocks: {why}. Clone it without that \
                 (another class: --class), or copy the data to a new volume that is encrypted",
                source.volume
            );
            let facts = vec![("volume", source.volume.clone()), ("class", class.to_owned())];
            return Err(refusal(ErrorReason::EncryptionDiffers, message, facts));
        }
        Ok(parents)
    }

    /// Keeps the key that was drawn for a volume.
    pub(crate) fn keep_key(&mut self, index: u64, volume: &VolumeRecord, key: Option<WrappedKey>) {
        if volume.encryption.is_some() && volume.parent.is_none() {
            let lineage = volume.lineage;
            self.keys.insert(lineage, KeyRecord { lineage, key, revision: index });
        }
    }

    /// Erases the key of a lineage of which no volume is left that is not being deleted.
    pub(crate) fn erase_key(&mut self, lineage: u64) {
        let needs = |volume: &VolumeRecord| volume.lineage == lineage && !volume.deleting;
        if self.keys.contains_key(&lineage) && !self.volumes().any(needs) {
            self.keys.remove(&lineage);
        }
    }

    /// Refuses to give a volume a class whose volumes are encrypted, if it is not.
    pub(crate) fn check_class_fits(
        &self,
        volume: &VolumeRecord,
        class: &str,
    ) -> Result<(), Refused> {
        if volume.encryption.is_some() || !self.is_encrypted_class(class) {
            return Ok(());
        }
        let message = format!(
            "the volume '{}' is not encrypted and can not be made so: volumes of the class '{class}' are. Copy the \
             data to a new volume of that class",
            volume.id
        );
        let facts = vec![("volume", volume.id.clone()), ("class", class.to_owned())];
        Err(refusal(ErrorReason::EncryptionDiffers, message, facts))
    }

    /// Takes keys that were wrapped anew, each unless it has changed since, or is erased.
    pub(crate) fn rewrap_keys(
        &mut self,
        index: u64,
        rewrap: RewrapKeys,
    ) -> Result<Outcome, Refused> {
        for new in rewrap.keys {
            let Some(known) = self.keys.get_mut(&new.lineage) else { continue };
            let names = |key: &WrappedKey| (key.uid.clone(), key.version);
            let same = known.key.as_ref().map(names) == new.key.as_ref().map(names);
            let sound = new.key.as_ref().is_some_and(|key| check(key).is_ok());
            if known.revision == new.revision && same && sound {
                *known = KeyRecord { revision: index, ..new };
            }
        }
        Ok(Outcome::Nothing)
    }

    /// A key from a state that is being read.
    pub(crate) fn restore_key(&mut self, record: KeyRecord) -> Result<(), String> {
        let lineage = record.lineage;
        let sound = record.key.as_ref().is_some_and(|key| check(key).is_ok());
        let last = self.keys.last_key_value().is_none_or(|(last, _)| *last < lineage);
        if !sound || !last || record.revision > self.applied {
            return Err(format!("the key of lineage {lineage} is malformed, or not in its place"));
        }
        self.keys.insert(lineage, record);
        Ok(())
    }

    /// What contradicts itself between volumes and keys in a state that was read.
    pub(crate) fn misplaced_key(&self) -> Option<String> {
        let needs = |volume: &&VolumeRecord| volume.encryption.is_some() && !volume.deleting;
        let mut wanted: Vec<u64> =
            self.volumes().filter(needs).map(|volume| volume.lineage).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let there: Vec<u64> = self.keys.keys().copied().collect();
        (wanted != there).then(|| {
            format!("encrypted volumes are of the lineages {wanted:?}, and keys of {there:?}")
        })
    }
}

/// Whether a wrapped key has the form of one.
fn check(key: &WrappedKey) -> Result<(), &'static str> {
    let lengths = (key.uid.len(), key.secret.len(), key.wrapped.len());
    match lengths == (UID_BYTES, SECRET_BYTES, WRAPPED_BYTES) && key.version > 0 {
        true => Ok(()),
        false => Err("a wrapped key that is malformed"),
    }
}

fn no_secret(id: &str) -> Refused {
    refusal(
        ErrorReason::NoSecret,
        format!(
            "the volume '{id}' is to be encrypted, and its key has to be wrapped under the cluster's secret: give \
             all nodes one ('basalt secret new', --secret-file). If they have one, ask again"
        ),
        vec![("volume", id.to_owned())],
    )
}
