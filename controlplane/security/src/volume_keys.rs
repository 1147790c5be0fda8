//! Data keys of volumes, wrapped under keys that follow from the cluster's secrets.
//!
//! A data key is ciphered with AES-256-GCM and a nonce of its own. Its identity and version are authenticated with it,
//! so that one wrapped key can not be put in another's place. By the secret that it names it is known which of
//! several opens it, and whether one is needed any more.

use crate::secret::{Purpose, Secret, Secrets};
use crate::text::{hex, random};
use basalt_crypt::{KEY_BYTES, VolumeKey};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use std::fmt;
use zeroize::Zeroizing;

/// Bytes by which a secret is known.
pub const SECRET_ID_BYTES: usize = 8;
/// Bytes by which a key is known.
pub const UID_BYTES: usize = 16;
const LABEL: &[u8] = b"basalt volume key v1";
/// The version of data keys.
const VERSION: u32 = 1;

/// A data key as it may be kept.
#[derive(Clone, PartialEq, Eq)]
pub struct Wrapped {
    /// Which key it is.
    pub uid: [u8; UID_BYTES],
    /// Its version.
    pub version: u32,
    /// The secret that opens it.
    pub secret: [u8; SECRET_ID_BYTES],
    /// The nonce, the ciphered key and the tag.
    pub bytes: Vec<u8>,
}

impl fmt::Debug for Wrapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Wrapped(version {}, secret {})", self.version, hex(&self.secret))
    }
}

/// Why a wrapped key can not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unopened {
    /// Its secret is not there.
    #[error(
        "the volume's key is wrapped under the secret {0}, which this node does not hold; put it back into the \
         secret file ('basalt doctor' tells when a secret is needed no more)"
    )]
    OtherSecret(String),
    /// It is not what was wrapped.
    #[error("the volume's wrapped key is damaged, or not that of this volume")]
    Damaged,
}

/// By what a secret is known: it follows from the secret and tells nothing of it.
pub fn id_of(secret: &Secret) -> [u8; SECRET_ID_BYTES] {
    let key = Zeroizing::new(secret.key(Purpose::VolumeKeysName));
    std::array::from_fn(|at| key[at])
}

/// The same as people read it.
pub fn shown(id: &[u8]) -> String {
    hex(id)
}

/// A new data key, wrapped under the secret that signs.
pub fn draw(secrets: &Secrets) -> Wrapped {
    let bytes = Zeroizing::new(random::<KEY_BYTES>());
    let key = VolumeKey::new(&*bytes).expect("random halves differ");
    wrap(secrets.first(), (random(), VERSION), &key)
}

fn wrap(secret: &Secret, (uid, version): ([u8; UID_BYTES], u32), key: &VolumeKey) -> Wrapped {
    let nonce: [u8; NONCE_LEN] = random();
    let mut bytes = [&nonce[..], key.bytes()].concat();
    let aad = Aad::from(identity(&uid, version));
    let sealed = sealing(secret).seal_in_place_separate_tag(
        Nonce::assume_unique_for_key(nonce),
        aad,
        &mut bytes[NONCE_LEN..],
    );
    let tag = sealed.expect("a key is short");
    bytes.extend_from_slice(tag.as_ref());
    Wrapped { uid, version, secret: id_of(secret), bytes }
}

/// The data key.
///
/// # Errors
/// If its secret is not among these, or it is not what was wrapped.
pub fn open(secrets: &Secrets, wrapped: &Wrapped) -> Result<VolumeKey, Unopened> {
    let secret = secrets
        .iter()
        .find(|secret| id_of(secret) == wrapped.secret)
        .ok_or_else(|| Unopened::OtherSecret(hex(&wrapped.secret)))?;
    let (nonce, sealed) =
        wrapped.bytes.split_first_chunk::<NONCE_LEN>().ok_or(Unopened::Damaged)?;
    let mut sealed = Zeroizing::new(sealed.to_vec());
    let aad = Aad::from(identity(&wrapped.uid, wrapped.version));
    let opened =
        sealing(secret).open_in_place(Nonce::assume_unique_for_key(*nonce), aad, &mut sealed);
    VolumeKey::new(opened.map_err(|_| Unopened::Damaged)?).map_err(|_| Unopened::Damaged)
}

/// The key under the secret that signs; nothing if it is so already.
///
/// # Errors
/// As [`open`].
pub fn rewrap(secrets: &Secrets, wrapped: &Wrapped) -> Result<Option<Wrapped>, Unopened> {
    if wrapped.secret == id_of(secrets.first()) {
        return Ok(None);
    }
    let key = open(secrets, wrapped)?;
    Ok(Some(wrap(secrets.first(), (wrapped.uid, wrapped.version), &key)))
}

fn sealing(secret: &Secret) -> LessSafeKey {
    let key = Zeroizing::new(secret.key(Purpose::VolumeKeys));
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &*key).expect("the key has its length"))
}

/// What is authenticated with a key.
fn identity(uid: &[u8; UID_BYTES], version: u32) -> Vec<u8> {
    [LABEL, uid, &version.to_le_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_opened_under_any_secret_that_is_held_and_wrapped_under_the_first() {
        let old = Secrets::new();
        let wrapped = draw(&old);
        let key = open(&old, &wrapped).expect("ours");
        assert_eq!(wrapped.bytes.len(), NONCE_LEN + KEY_BYTES + 16);
        assert!(!wrapped.bytes.windows(8).any(|part| key.bytes().windows(8).any(|k| k == part)));
        assert_eq!(rewrap(&old, &wrapped), Ok(None));
        // Added it opens nothing else; promoted it wraps; dropped the old one is needed no more.
        let both = old.with_next().expect("room");
        assert_eq!(rewrap(&both, &wrapped), Ok(None));
        let both = both.promoted().expect("two");
        let again = rewrap(&both, &wrapped).expect("ours").expect("under the new one");
        assert_eq!((again.uid, again.version), (wrapped.uid, wrapped.version));
        let new = both.only_first().expect("two");
        assert_eq!(open(&new, &again).expect("ours").bytes(), key.bytes());
        assert!(matches!(open(&new, &wrapped), Err(Unopened::OtherSecret(_))));
        assert!(matches!(open(&old, &again), Err(Unopened::OtherSecret(_))));
    }

    #[test]
    fn what_was_changed_is_not_opened() {
        let secrets = Secrets::new();
        let (wrapped, other) = (draw(&secrets), draw(&secrets));
        for at in 0..wrapped.bytes.len() {
            let mut bad = wrapped.clone();
            bad.bytes[at] ^= 1;
            assert_eq!(open(&secrets, &bad).err(), Some(Unopened::Damaged), "byte {at}");
        }
        let swapped = Wrapped { bytes: other.bytes.clone(), ..wrapped.clone() };
        assert_eq!(open(&secrets, &swapped).err(), Some(Unopened::Damaged));
        let newer = Wrapped { version: 2, ..wrapped.clone() };
        assert_eq!(open(&secrets, &newer).err(), Some(Unopened::Damaged));
        for length in [0, 11, 12, 27, 91] {
            let short = Wrapped { bytes: wrapped.bytes[..length].to_vec(), ..wrapped.clone() };
            assert_eq!(open(&secrets, &short).err(), Some(Unopened::Damaged));
        }
        assert!(!format!("{wrapped:?}").contains(&hex(&wrapped.bytes[..4])));
    }
}
