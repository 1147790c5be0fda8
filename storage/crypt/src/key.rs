//! The data key of a volume.

use std::fmt;
use zeroize::Zeroizing;

/// Bytes of a data key: two keys of AES-256.
pub const KEY_BYTES: usize = 64;

/// Why bytes are no data key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    /// It has another length.
    #[error("a data key has {KEY_BYTES} bytes, not {0}")]
    Length(usize),
    /// Both halves are one key, with which XTS is weaker than it should be.
    #[error("the two halves of the data key are equal")]
    EqualHalves,
}

/// The data key of a volume: the key of the data, then the key of the tweaks. It is wiped when it is dropped, and
/// never shown.
#[derive(Clone)]
pub struct VolumeKey(Box<Zeroizing<[u8; KEY_BYTES]>>);

impl VolumeKey {
    /// A key of these bytes.
    ///
    /// # Errors
    /// If they are not 64, or their halves are equal.
    pub fn new(bytes: &[u8]) -> Result<VolumeKey, BadKey> {
        if bytes.len() != KEY_BYTES {
            return Err(BadKey::Length(bytes.len()));
        }
        let (data, tweak) = bytes.split_at(KEY_BYTES / 2);
        // Not in constant time: whether it is so says nothing of a key that was drawn at random.
        if data == tweak {
            return Err(BadKey::EqualHalves);
        }
        let mut key = Box::new(Zeroizing::new([0; KEY_BYTES]));
        key.copy_from_slice(bytes);
        Ok(VolumeKey(key))
    }

    /// Its bytes, to be wrapped or handed to a client that may have them.
    pub fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    pub(crate) fn halves(&self) -> (&[u8; 32], &[u8; 32]) {
        let (data, tweak) = self.0.split_at(KEY_BYTES / 2);
        let half = "half of a key has 32 bytes";
        (data.try_into().expect(half), tweak.try_into().expect(half))
    }
}

impl fmt::Debug for VolumeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VolumeKey(...)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_checked_and_never_shown() {
        assert_eq!(VolumeKey::new(&[7; 63]).err(), Some(BadKey::Length(63)));
        assert_eq!(VolumeKey::new(&[7; 64]).err(), Some(BadKey::EqualHalves));
        let mut bytes = [0xab; KEY_BYTES];
        bytes[63] = 0xcd;
        let key = VolumeKey::new(&bytes).expect("a key");
        assert_eq!(key.bytes(), &bytes);
        let shown = format!("{key:?} {key:#?}");
        assert!(!shown.contains("171") && !shown.contains("ab, "), "{shown}");
    }
}
