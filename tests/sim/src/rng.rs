//! The simulator's randomness: one seed, many independent streams.
//!
//! Every part of the world (each disk, each link, the nemesis, the workload of each client) draws
//! from a stream of its own, named by a text and a number. So a fault family that is switched off by
//! shrinking, or a part that draws once more, does not change what all the others draw.

/// xoshiro256++ (Blackman and Vigna, "Scrambled linear pseudorandom number generators", 2018),
/// seeded through splitmix64.
#[derive(Clone, Debug)]
pub struct Rng {
    s: [u64; 4],
}

/// The finalizer of splitmix64: spreads every bit of `z` over all bits of the result.
pub fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Rng {
    /// The stream `name` number `index` of a seed.
    pub fn stream(seed: u64, name: &str, index: u64) -> Rng {
        let named = name.bytes().fold(0xcbf2_9ce4_8422_2325, |h: u64, b| {
            (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let base = mix(seed ^ mix(named ^ mix(index)));
        Rng { s: [1, 2, 3, 4].map(|i: u64| mix(base.wrapping_add(i))) }
    }

    /// Sixty-four random bits.
    #[inline]
    pub fn bits(&mut self) -> u64 {
        let s = &mut self.s;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number below `n`, which is not zero. The bias of the multiplication is below `n` / 2^64.
    #[inline]
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "a number below zero was asked for");
        ((u128::from(self.bits()) * u128::from(n)) >> 64) as u64
    }

    /// A number from `low` up to and including `high`.
    pub fn within(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// A fraction in `[0, 1)`.
    #[inline]
    pub fn fraction(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// True with probability `p`. Draws nothing if `p` is zero, so that a fault that is switched off
    /// costs nothing.
    #[inline]
    pub fn chance(&mut self, p: f64) -> bool {
        p > 0.0 && self.fraction() < p
    }

    /// An exponentially distributed duration with this mean, at most twenty times the mean.
    pub fn exponential(&mut self, mean: f64) -> u64 {
        let x = -(1.0 - self.fraction()).ln() * mean;
        x.min(mean * 20.0) as u64
    }

    /// A number between `low` and `high` whose logarithm is uniform: every order of magnitude is as
    /// likely as any other.
    pub fn log_uniform(&mut self, low: f64, high: f64) -> f64 {
        low * (high / low).powf(self.fraction())
    }

    /// One of the items.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_repeat_and_differ() {
        let take = |name, index| {
            let mut r = Rng::stream(7, name, index);
            [r.bits(), r.bits(), r.bits()]
        };
        assert_eq!(take("disk", 1), take("disk", 1));
        assert_ne!(take("disk", 1), take("disk", 2));
        assert_ne!(take("disk", 1), take("net", 1));
    }

    #[test]
    fn draws_stay_in_range() {
        let mut r = Rng::stream(1, "test", 0);
        let mut sum = 0;
        for _ in 0..10_000 {
            assert!(r.below(7) < 7);
            assert!((3..=5).contains(&r.within(3, 5)));
            let x = r.log_uniform(0.1, 20.0);
            assert!((0.1..=20.0).contains(&x));
            sum += r.exponential(100.0);
        }
        assert!(
            (9_000..11_000).contains(&(sum / 100)),
            "mean of the exponential: {}",
            sum / 10_000
        );
        assert!(!r.chance(0.0) && r.chance(1.0));
    }
}
