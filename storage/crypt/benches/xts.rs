//! What ciphering a block costs: the best of several rounds, in nanoseconds per 4 KiB.

use basalt_crypt::{VolumeCipher, VolumeKey};
use basalt_wire::buffer::{IoBuf, Payload};
use std::hint::black_box;
use std::time::Instant;

const BLOCK: usize = 4096;
const ROUNDS: usize = 9;
const BLOCKS_A_ROUND: usize = 1 << 15;

fn time(name: &str, blocks: usize, mut work: impl FnMut()) {
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        let began = Instant::now();
        (0..BLOCKS_A_ROUND / blocks).for_each(|_| work());
        best = best.min(began.elapsed().as_nanos() as f64 / BLOCKS_A_ROUND as f64);
    }
    println!("{name} {blocks:3} blocks at a time: {best:5.0} ns, {:5.1} GB/s", BLOCK as f64 / best);
}

fn main() {
    let bytes: Vec<u8> = (0..64).collect();
    let cipher = VolumeCipher::new(&VolumeKey::new(&bytes).expect("a key"));
    for blocks in [1, 8, 256] {
        let plain = Payload::from(IoBuf::copy_from(&vec![1; blocks * BLOCK]).freeze());
        let made = cipher.encrypt(0, &plain);
        let holes = Payload::from(IoBuf::zeroed(blocks * BLOCK).freeze());
        time("encrypt", blocks, || drop(black_box(cipher.encrypt(7, black_box(&plain)))));
        time("decrypt", blocks, || drop(black_box(cipher.decrypt(7, black_box(&made)))));
        time("holes  ", blocks, || drop(black_box(cipher.decrypt(7, black_box(&holes)))));
    }
}
