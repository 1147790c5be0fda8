use super::*;
use bytes::Bytes;
use proptest::prelude::*;

/// IEEE 1619, vector 10: XTS-AES-256, data unit 0xff of 512 bytes. The masks of a longer unit begin alike, so that
/// these are the first bytes of ours.
const KEY: &str = "2718281828459045235360287471352662497757247093699959574966967627\
    3141592653589793238462643383279502884197169399375105820974944592";
const CIPHER: &str = "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b\
    5d31e276f8fe4a8d66b317f9ac683f44680a86ac35adfc3345befecb4bb188fd\
    5776926c49a3095eb108fd1098baec70aaa66999a72a82f27d848b21d4a741b0\
    c5cd4d5fff9dac89aeba122961d03a757123e9870f8acf1000020887891429ca\
    2a3e7a7d7df7b10355165c8b9a6d0a7de8b062c4500dc4cd120c0f7418dae3d0\
    b5781c34803fa75421c790dfe1de1834f280d7667b327f6c8cd7557e12ac3a0f\
    93ec05c52e0493ef31a12d3d9260f79a289d6a379bc70c50841473d1a8cc81ec\
    583e9645e07b8d9670655ba5bbcfecc6dc3966380ad8fecb17b6ba02469a020a\
    84e18e8f84252070c13e9f1f289be54fbc481457778f616015e1327a02b140f1\
    505eb309326d68378f8374595c849d84f4c333ec4423885143cb47bd71c5edae\
    9be69a2ffeceb1bec9de244fbe15992b11b77c040f12bd8f6a975a44a0f90c29\
    a9abc3d4d893927284c58754cce294529f8614dcd2aba991925fedc4ae74ffac\
    6e333b93eb4aff0479da9a410e4450e0dd7ae4c6e2910900575da401fc07059f\
    645e8b7e9bfdef33943054ff84011493c27b3429eaedb4ed5376441a77ed4385\
    1ad77f16f541dfd269d50d6a5f14fb0aab1cbb4c1550be97f7ab4066193c4caa\
    773dad38014bd2092fa755c824bb5e54c4f36ffda9fcea70b9c6e693e148c151";

fn hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().as_chunks::<2>().0.iter();
    digits.map(|d| u8::from_str_radix(&String::from_utf8_lossy(d), 16).expect("hex")).collect()
}

fn cipher(seed: u8) -> VolumeCipher {
    let bytes: Vec<u8> = (0..64u8).map(|n| n.wrapping_mul(seed | 1) ^ seed).collect();
    VolumeCipher::new(&VolumeKey::new(&bytes).expect("a key"))
}

fn payload(bytes: &[u8]) -> Payload {
    Payload::from(Bytes::copy_from_slice(bytes))
}

/// The mode as it is written down, 16 bytes after 16 bytes.
fn by_the_book(cipher: &VolumeCipher, number: u64, plain: &[u8]) -> Vec<u8> {
    let mut mask = Array::<u8, U16>::default();
    mask[..8].copy_from_slice(&number.to_le_bytes());
    cipher.tweak.encrypt_block(&mut mask);
    let mut out = Vec::new();
    for unit in plain.as_chunks::<16>().0 {
        let mut block: Array<u8, U16> = std::array::from_fn(|at| unit[at] ^ mask[at]).into();
        cipher.encrypt.encrypt_block(&mut block);
        out.extend((0..16).map(|at| block[at] ^ mask[at]));
        let mut carry = 0;
        for byte in mask.iter_mut() {
            (*byte, carry) = (*byte << 1 | carry, *byte >> 7);
        }
        mask[0] ^= 0x87 * carry;
    }
    out
}

#[test]
fn the_vector_of_the_standard() {
    let cipher = VolumeCipher::new(&VolumeKey::new(&hex(KEY)).expect("a key"));
    let plain: Vec<u8> = (0..BLOCK_BYTES).map(|at| at as u8).collect();
    let made = cipher.encrypt(0xff, &payload(&plain)).contiguous();
    assert_eq!(made[..512], hex(CIPHER));
    assert_eq!(cipher.decrypt(0xff, &payload(&made)).contiguous()[..], plain);
    // The same with a whole block as the unit, as OpenSSL 3 gives it.
    let made = cipher.encrypt(0x12_3456_789a, &payload(&plain)).contiguous();
    let part = |at: usize| made[at..at + 16].to_vec();
    assert_eq!(part(0), hex("50ea7b0e72da7912892bcd0c7496baa4"));
    assert_eq!(part(2048), hex("3b7c4419fa7567e8c9753a8e793526ad"));
    assert_eq!(part(4080), hex("0b75a0c634a926f692822eb6ee8494bb"));
}

#[test]
fn holes_stay_holes_and_zeros_do_not() {
    let cipher = cipher(5);
    let zeros = payload(&[0; 2 * BLOCK_BYTES]);
    assert_eq!(cipher.decrypt(9, &zeros), zeros);
    let written = cipher.encrypt(9, &zeros).contiguous();
    assert!(!is_hole(written.as_chunks().0.first().expect("two")));
    assert_ne!(written[..BLOCK_BYTES], written[BLOCK_BYTES..], "each block has its own");
    assert_eq!(cipher.decrypt(9, &payload(&written)), zeros);
    // A hole between two blocks that were written.
    let mixed = [&written[..BLOCK_BYTES], &[0; BLOCK_BYTES], &written[BLOCK_BYTES..]].concat();
    let read = cipher.decrypt(9, &payload(&mixed)).contiguous();
    assert_eq!(read[..2 * BLOCK_BYTES], [0; 2 * BLOCK_BYTES]);
    let mut nearly = [0; BLOCK_BYTES];
    nearly[BLOCK_BYTES - 1] = 1;
    assert!(!is_hole(&nearly));
}

#[test]
fn another_key_or_number_shows_nothing() {
    let plain = payload(&[b'x'; BLOCK_BYTES]);
    let made = cipher(5).encrypt(7, &plain);
    assert_eq!(cipher(5).decrypt(7, &made), plain);
    assert_ne!(cipher(5).decrypt(8, &made), plain);
    assert_ne!(cipher(7).decrypt(7, &made), plain);
    assert_eq!(format!("{:?}", cipher(5)), "VolumeCipher(AES-256-XTS)");
}

proptest! {
    #[test]
    fn it_is_the_mode_however_the_data_are_cut(
        seed in any::<u8>(),
        first in prop_oneof![0..1024u64, any::<u32>().prop_map(|n| u64::from(n) << 10)],
        blocks in 1..5usize,
        cuts in prop::collection::vec(0..5 * BLOCK_BYTES, 0..6),
        fill in any::<u64>(),
    ) {
        let cipher = cipher(seed);
        let plain: Vec<u8> = (0..blocks * BLOCK_BYTES)
            .map(|at| (fill.rotate_left(at as u32) as u8) ^ (at / 251) as u8)
            .collect();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(plain.len())).collect();
        cuts.extend([0, plain.len()]);
        cuts.sort_unstable();
        let mut pieces = Payload::empty();
        for cut in cuts.windows(2) {
            pieces.push(Bytes::copy_from_slice(&plain[cut[0]..cut[1]]));
        }
        let before = pieces.clone();
        let made = cipher.encrypt(first, &pieces);
        prop_assert_eq!(&pieces, &before, "what was given stays as it is");
        let book: Vec<u8> = (first..)
            .zip(plain.chunks(BLOCK_BYTES))
            .flat_map(|(number, block)| by_the_book(&cipher, number, block))
            .collect();
        prop_assert_eq!(&made.contiguous()[..], &book[..]);
        prop_assert_eq!(&cipher.decrypt(first, &made).contiguous()[..], &plain[..]);
        // Each block by itself gives the same as all of them together.
        let last = (blocks - 1) * BLOCK_BYTES;
        let alone = cipher.decrypt(first + blocks as u64 - 1, &made.slice(last, BLOCK_BYTES));
        prop_assert_eq!(&alone.contiguous()[..], &plain[last..]);
    }
}
