//! Where the blocks of a granule stand, in few bytes: most of what checkpoints write is this.
//!
//! The mask of the mapped blocks is known. For each of them, in order: a number, the block in its segment
//! unless the number is 0, the checksum of its content 4. The number is 0 for a block that stands right behind
//! the one before it, else 1 and the distance from the segment of the one before it: 2n onwards, 2n - 1
//! backwards. Before the first one stands what would be block -1 of segment 0. Numbers and blocks are written
//! seven bits to a byte, the lowest first, with the highest bit set where another byte follows.

use super::{CheckpointError, GRANULE_BLOCKS, Place};
use crate::disk::{SEGMENTS_MAX, field};
use crate::ids::SegmentId;

/// The places of a granule's blocks.
pub type Places = [Option<Place>; GRANULE_BLOCKS];

/// The most bytes of a number.
const NUMBER_BYTES: usize = 5;
/// Blocks of a segment have lower numbers than this; those from it on have other meanings in memory.
const BLOCKS_END: u32 = u32::MAX - 1;

/// A bit for each block that is mapped.
pub fn mapped(places: &Places) -> u16 {
    places.iter().enumerate().fold(0, |m, (i, p)| m | u16::from(p.is_some()) << i)
}

/// Appends the places of the blocks that are mapped.
pub fn put_places(places: &Places, out: &mut Vec<u8>) {
    let (mut segment, mut next) = (0, 0);
    for (id, block, checksum) in places.iter().flatten() {
        if (id.0, u64::from(*block)) == (segment, next) {
            put_number(0, out);
        } else {
            let distance = i64::from(id.0) - i64::from(segment);
            put_number(1 + (distance << 1 ^ distance >> 63) as u64, out);
            put_number(u64::from(*block), out);
        }
        out.extend_from_slice(&checksum.to_le_bytes());
        (segment, next) = (id.0, u64::from(*block) + 1);
    }
}

/// The places of a mask's blocks, and the bytes behind them.
///
/// # Errors
/// If they end too soon, or name a place that no device has.
pub fn places(mask: u16, mut bytes: &[u8]) -> Result<(Places, &[u8]), CheckpointError> {
    let (mut places, mut segment, mut next) = (Places::default(), 0, 0);
    for (_, slot) in places.iter_mut().enumerate().filter(|(i, _)| mask >> i & 1 == 1) {
        let number = take_number(&mut bytes)?;
        if let Some(distance) = number.checked_sub(1) {
            segment += (distance >> 1) as i64 ^ -((distance & 1) as i64);
            next = take_number(&mut bytes)?;
        }
        if !(0..i64::from(SEGMENTS_MAX)).contains(&segment) {
            return Err(CheckpointError::Field("segment"));
        }
        let block = u32::try_from(next).ok().filter(|block| *block < BLOCKS_END);
        let block = block.ok_or(CheckpointError::Field("block"))?;
        let (checksum, rest) = bytes.split_at_checked(4).ok_or(CheckpointError::Length)?;
        *slot = Some((SegmentId(segment as u32), block, field::u32(checksum, 0)));
        (next, bytes) = (next + 1, rest);
    }
    Ok((places, bytes))
}

fn put_number(mut number: u64, out: &mut Vec<u8>) {
    while number >= 1 << 7 {
        out.push(number as u8 | 1 << 7);
        number >>= 7;
    }
    out.push(number as u8);
}

fn take_number(bytes: &mut &[u8]) -> Result<u64, CheckpointError> {
    let mut number = 0;
    for at in 0..NUMBER_BYTES {
        let (byte, rest) = bytes.split_first().ok_or(CheckpointError::Length)?;
        number |= u64::from(byte & 0x7f) << (7 * at);
        *bytes = rest;
        if *byte < 1 << 7 {
            return Ok(number);
        }
    }
    Err(CheckpointError::Field("number"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(places: &Places) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_places(places, &mut bytes);
        bytes
    }

    fn place() -> impl Strategy<Value = Option<Place>> {
        let block = prop_oneof![0..8u32, 0..(1u32 << 18), Just(BLOCKS_END - 1)];
        let segment = prop_oneof![0..4u32, 0..SEGMENTS_MAX];
        proptest::option::of((segment.prop_map(SegmentId), block, any::<u32>()))
    }

    proptest! {
        #[test]
        fn places_survive_a_round_trip(all in proptest::array::uniform16(place()), tail in any::<u8>()) {
            let mut bytes = encoded(&all);
            bytes.push(tail);
            prop_assert_eq!(places(mapped(&all), &bytes), Ok((all, &[tail][..])));
            for len in 0..bytes.len() - 1 {
                prop_assert_eq!(places(mapped(&all), &bytes[..len]), Err(CheckpointError::Length));
            }
        }

        #[test]
        fn any_bytes_are_places_or_refused(
            mask in any::<u16>(),
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            if let Ok((all, rest)) = places(mask, &bytes) {
                prop_assert_eq!(mapped(&all), mask);
                prop_assert!(all.iter().flatten().all(|p| p.0.0 < SEGMENTS_MAX && p.1 < BLOCKS_END));
                prop_assert!(rest.len() <= bytes.len());
            }
        }
    }

    #[test]
    fn a_run_takes_five_bytes_a_block_and_others_at_most_eight_on_a_small_device() {
        let run = std::array::from_fn(|n| Some((SegmentId(200), 700 + n as u32, n as u32)));
        assert_eq!(encoded(&run).len(), 8 + 15 * 5);
        let spread = std::array::from_fn(|n| Some((SegmentId(n as u32 * 97 % 256), 1023, 5)));
        assert!(encoded(&spread).len() <= 16 * 8, "{}", encoded(&spread).len());
    }

    #[test]
    fn places_that_no_device_has_are_refused() {
        let refused = |bytes: &[u8]| match places(1, bytes) {
            Err(CheckpointError::Field(what)) => what,
            other => panic!("{other:?}"),
        };
        let mut far = Vec::new();
        put_number(1 + 2 * u64::from(SEGMENTS_MAX), &mut far);
        far.extend([0; 5]);
        assert_eq!(refused(&far), "segment");
        // One segment back from the first.
        assert_eq!(refused(&[2, 0, 0, 0, 0, 0]), "segment");
        assert_eq!(refused(&[1, 0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0, 0, 0]), "block");
        assert_eq!(refused(&[1, 0xff, 0xff, 0xff, 0xff, 0x7f, 0, 0, 0, 0]), "block");
        assert_eq!(refused(&[0xff; 12]), "number");
        // Behind the last block that a segment can have.
        let last = [1, 0xfd, 0xff, 0xff, 0xff, 0x0f, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(places(3, &last), Err(CheckpointError::Field("block")));
    }
}
