//! Encryption of volumes, done by the client of the volume.
//!
//! Each block of 4096 bytes is a data unit of AES-256-XTS (IEEE 1619) whose number is that of the block in the
//! volume: it stays when groups move, and a clone, which has its parent's key, reads its parent's blocks with it.
//! Ciphertext is as long as the plaintext, so that nothing else changes on the way: checksums are computed over
//! what is sent and stored, nodes and devices never see anything else, and neither of them holds a key.
//!
//! A block that was never written, or was unmapped, reads as zeros from the nodes, and is given to the user as it
//! is. A block of ciphertext that is all zeros is taken for one; that there is one by chance has the probability
//! 2^-32768.
//!
//! XTS hides content and does not prove that it is genuine: whoever can change what is stored can put an older
//! ciphertext of a block in its place.

mod key;
mod xts;

pub use key::{BadKey, KEY_BYTES, VolumeKey};
pub use xts::VolumeCipher;

/// A way to be wrong, for the simulator.
#[cfg(feature = "planted")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Blocks are numbered from the beginning of what is asked for in one piece, not of the volume.
    TweakOfPart,
    /// What was never written is deciphered like what was.
    HolesDeciphered,
}
