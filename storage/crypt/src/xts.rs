//! AES-256-XTS over whole blocks.
//!
//! The work of a block is done in three passes over 4 KiB, which stay in the first cache: the block is combined
//! with its 256 masks, all of it is ciphered at once, so that the processor's wide AES units are full, and it is
//! combined with the masks again. Ciphering each 16 bytes by themselves, as the mode is written down, takes six times
//! as long. The masks follow from each other by doubling; four chains of them, a quarter of the block apart, keep
//! the processor from waiting for one.

#[cfg(feature = "planted")]
use crate::Flaw;
use crate::key::VolumeKey;
use aes::cipher::consts::U16;
use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use aes::{Aes256Dec, Aes256Enc};
use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::buffer::{IoBuf, Payload};
use std::fmt;

/// What AES ciphers at a time.
const UNIT: usize = 16;
/// Such units in a block.
const UNITS: usize = BLOCK_BYTES / UNIT;
/// Masks of each of the four chains.
const CHAIN: usize = UNITS / 4;

/// A number of GF(2^128) as IEEE 1619 writes it: the low half first.
type Mask = [u64; 2];

// The step from one chain to the next is a multiplication by x^64.
const _: () = assert!(CHAIN == 64);

/// The cipher of a volume. Its keys are wiped when it is dropped, and never shown.
pub struct VolumeCipher {
    encrypt: Aes256Enc,
    decrypt: Aes256Dec,
    tweak: Aes256Enc,
    #[cfg(feature = "planted")]
    flaw: Option<Flaw>,
}

impl fmt::Debug for VolumeCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VolumeCipher(AES-256-XTS)")
    }
}

impl VolumeCipher {
    /// How it is called.
    pub const NAME: &str = "AES-256-XTS";

    /// With a volume's data key.
    pub fn new(key: &VolumeKey) -> VolumeCipher {
        let (data, tweak) = key.halves();
        VolumeCipher {
            encrypt: Aes256Enc::new(data.into()),
            decrypt: Aes256Dec::new(data.into()),
            tweak: Aes256Enc::new(tweak.into()),
            #[cfg(feature = "planted")]
            flaw: None,
        }
    }

    /// Is wrong from now on.
    #[cfg(feature = "planted")]
    pub fn planted(self, flaw: Option<Flaw>) -> VolumeCipher {
        VolumeCipher { flaw, ..self }
    }

    /// The ciphertext of whole blocks, the first of which has this number in the volume. What is given stays as it
    /// is: it may be the user's own memory.
    ///
    /// # Panics
    /// If they are not whole blocks.
    pub fn encrypt(&self, first: u64, plain: &Payload) -> Payload {
        self.each_block(first, plain, |number, from, to| {
            let mut masks = [[0; 2]; UNITS];
            self.fill_masks(number, &mut masks);
            combine_into(&masks, from, to);
            self.encrypt.encrypt_blocks(Array::<u8, U16>::slice_as_chunks_mut(to).0);
            combine(&masks, to);
        })
    }

    /// The plaintext of whole blocks, the first of which has this number in the volume. Blocks of zeros are holes,
    /// and stay so.
    ///
    /// # Panics
    /// If they are not whole blocks.
    pub fn decrypt(&self, first: u64, cipher: &Payload) -> Payload {
        self.each_block(first, cipher, |number, from, to| {
            if is_hole(from) && !self.deciphers_holes() {
                return to.fill(0);
            }
            let mut masks = [[0; 2]; UNITS];
            self.fill_masks(number, &mut masks);
            combine_into(&masks, from, to);
            self.decrypt.decrypt_blocks(Array::<u8, U16>::slice_as_chunks_mut(to).0);
            combine(&masks, to);
        })
    }

    /// Fills new memory block by block. A block that stands in two pieces is put together first.
    fn each_block(
        &self,
        first: u64,
        payload: &Payload,
        mut work: impl FnMut(u64, &[u8; BLOCK_BYTES], &mut [u8; BLOCK_BYTES]),
    ) -> Payload {
        assert!(payload.len().is_multiple_of(BLOCK_BYTES), "whole blocks");
        let first = self.base(first);
        let mut buffer = IoBuf::alloc(payload.len());
        let mut targets = (first..).zip(buffer.as_chunks_mut::<BLOCK_BYTES>().0);
        let mut next = || targets.next().expect("the buffer has as many blocks as the payload");
        let mut split: Vec<u8> = Vec::new();
        for piece in payload.pieces() {
            let mut rest = &piece[..];
            if !split.is_empty() {
                let take = (BLOCK_BYTES - split.len()).min(rest.len());
                split.extend_from_slice(&rest[..take]);
                rest = &rest[take..];
                let Ok(from) = split.as_slice().try_into() else { continue };
                let (number, to) = next();
                work(number, from, to);
                split.clear();
            }
            let (blocks, end) = rest.as_chunks::<BLOCK_BYTES>();
            for from in blocks {
                let (number, to) = next();
                work(number, from, to);
            }
            split.extend_from_slice(end);
        }
        Payload::from(buffer.freeze())
    }

    /// The masks of a block: its number, ciphered with the second key, and what follows by doubling.
    fn fill_masks(&self, number: u64, masks: &mut [Mask; UNITS]) {
        let mut first = Array::<u8, U16>::default();
        first[..8].copy_from_slice(&number.to_le_bytes());
        self.tweak.encrypt_block(&mut first);
        let first = u128::from_le_bytes(first.into());
        let mut a = [first as u64, (first >> 64) as u64];
        let mut b = times_x64(a);
        let mut c = times_x64(b);
        let mut d = times_x64(c);
        let (low, high) = masks.split_at_mut(2 * CHAIN);
        let ((first, second), (third, fourth)) =
            (low.split_at_mut(CHAIN), high.split_at_mut(CHAIN));
        let places = first.iter_mut().zip(second).zip(third.iter_mut().zip(fourth));
        for ((in_a, in_b), (in_c, in_d)) in places {
            (*in_a, *in_b, *in_c, *in_d) = (a, b, c, d);
            (a, b, c, d) = (doubled(a), doubled(b), doubled(c), doubled(d));
        }
    }

    #[cfg(not(feature = "planted"))]
    fn base(&self, first: u64) -> u64 {
        first
    }

    #[cfg(feature = "planted")]
    fn base(&self, first: u64) -> u64 {
        if self.flaw == Some(Flaw::TweakOfPart) { 0 } else { first }
    }

    #[cfg(not(feature = "planted"))]
    fn deciphers_holes(&self) -> bool {
        false
    }

    #[cfg(feature = "planted")]
    fn deciphers_holes(&self) -> bool {
        self.flaw == Some(Flaw::HolesDeciphered)
    }
}

/// Multiplies by x.
#[inline]
fn doubled([low, high]: Mask) -> Mask {
    let carry = (high as i64 >> 63) as u64 & 0x87;
    [low << 1 ^ carry, high << 1 | low >> 63]
}

/// Multiplies by x^64: x^128 is x^7 + x^2 + x + 1.
#[inline]
fn times_x64([low, high]: Mask) -> Mask {
    [high ^ high << 1 ^ high << 2 ^ high << 7, low ^ high >> 63 ^ high >> 62 ^ high >> 57]
}

fn combine_into(masks: &[Mask; UNITS], from: &[u8; BLOCK_BYTES], to: &mut [u8; BLOCK_BYTES]) {
    let pairs = to.as_chunks_mut::<8>().0.iter_mut().zip(from.as_chunks::<8>().0);
    for ((to, from), mask) in pairs.zip(masks.as_flattened()) {
        *to = (u64::from_le_bytes(*from) ^ mask).to_le_bytes();
    }
}

fn combine(masks: &[Mask; UNITS], block: &mut [u8; BLOCK_BYTES]) {
    for (part, mask) in block.as_chunks_mut::<8>().0.iter_mut().zip(masks.as_flattened()) {
        *part = (u64::from_le_bytes(*part) ^ mask).to_le_bytes();
    }
}

/// Whether a block is all zeros. Nearly every other one is known by its first bytes.
fn is_hole(block: &[u8; BLOCK_BYTES]) -> bool {
    let any = |part: &[u8; 128]| {
        part.as_chunks::<8>().0.iter().fold(0, |any, word| any | u64::from_ne_bytes(*word))
    };
    block.as_chunks::<128>().0.iter().all(|part| any(part) == 0)
}

#[cfg(test)]
mod tests;
