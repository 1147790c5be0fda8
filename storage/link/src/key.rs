//! The keys of the data path.

use basalt_wire::frame::{Mac, Nonce};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use std::fmt;

/// Names a key to those who know it, and tells nothing of it to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyId(pub u64);

/// What keys of different uses are derived with.
const ID: &[u8] = b"basalt link v1: name of a key";
const PROOFS: &[u8] = b"basalt link v1: proofs of nodes";
const TICKETS: &[u8] = b"basalt link v1: keys of tickets";

/// The key of one secret of the cluster.
#[derive(Clone)]
pub(crate) struct Key {
    pub id: KeyId,
    /// By which nodes prove who they are.
    pub proofs: hmac::Key,
    /// From which the keys of tickets follow.
    pub tickets: hmac::Key,
}

impl Key {
    fn new(bytes: &[u8; 32]) -> Key {
        let root = hmac_key(bytes);
        let id = mac(&root, &[ID]);
        let id = u64::from_le_bytes(*id.first_chunk().expect("a MAC has 32 bytes"));
        let derived = |label| hmac_key(&mac(&root, &[label]));
        Key { id: KeyId(id), proofs: derived(PROOFS), tickets: derived(TICKETS) }
    }
}

/// The keys of the cluster's secrets. Links are opened by the first, all are accepted.
#[derive(Clone)]
pub struct Keys(Vec<Key>);

impl Keys {
    /// Those of these secrets, as derived for the data path.
    ///
    /// # Errors
    /// If there is none.
    pub fn new(secrets: &[[u8; 32]]) -> Result<Keys, String> {
        if secrets.is_empty() {
            return Err("the data path was given no key".to_owned());
        }
        Ok(Keys(secrets.iter().map(Key::new).collect()))
    }

    pub(crate) fn first(&self) -> &Key {
        &self.0[0]
    }

    /// The name of the key by which links are opened and tickets made.
    pub fn first_id(&self) -> KeyId {
        self.first().id
    }

    pub(crate) fn find(&self, id: KeyId) -> Option<&Key> {
        self.0.iter().find(|key| key.id == id)
    }

    /// Whether a key is accepted.
    pub fn accepts(&self, id: KeyId) -> bool {
        self.find(id).is_some()
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|key| key.id)).finish()
    }
}

pub(crate) fn hmac_key(bytes: &[u8; 32]) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, bytes)
}

/// Several parts as one message: each with its length, so that no two lists of parts are the same bytes.
fn joined(parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(parts.iter().map(|part| part.len() + 4).sum());
    for part in parts {
        let len = u32::try_from(part.len()).expect("parts are short");
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(part);
    }
    bytes
}

/// The MAC over several parts.
pub(crate) fn mac(key: &hmac::Key, parts: &[&[u8]]) -> Mac {
    let tag = hmac::sign(key, &joined(parts));
    *tag.as_ref().first_chunk().expect("an HMAC-SHA256 has 32 bytes")
}

/// Whether a MAC is the one over these parts, in a time that does not depend on where they differ.
pub(crate) fn is_mac(key: &hmac::Key, parts: &[&[u8]], found: &Mac) -> bool {
    hmac::verify(key, &joined(parts), found).is_ok()
}

/// A number that nobody can foresee.
///
/// # Panics
/// If the system gives no random bytes.
pub fn nonce() -> Nonce {
    let mut bytes = [0; 32];
    let drawn = SystemRandom::new().fill(&mut bytes);
    assert!(drawn.is_ok(), "the system gives no random bytes");
    bytes
}
