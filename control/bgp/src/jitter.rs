//! Spreads timers so that many speakers do not act in step.
//!
//! Seeded by the embedder, so a run can be repeated. Not for anything that must be secret.

use std::time::Duration;

/// A splitmix64 sequence.
#[derive(Debug)]
pub(crate) struct Jitter {
    state: u64,
}

impl Jitter {
    pub(crate) const fn from_seed(seed: u64) -> Self {
        Self { state: seed }
    }

    /// A duration in `[low, low + width)`; `low` when `width` is zero.
    pub(crate) fn between(&mut self, low: Duration, width: Duration) -> Duration {
        let width_ns = u64::try_from(width.as_nanos()).unwrap_or(u64::MAX);
        if width_ns == 0 {
            return low;
        }
        low + Duration::from_nanos(self.next() % width_ns)
    }

    /// Any number.
    pub(crate) fn number(&mut self) -> u32 {
        (self.next() >> 32) as u32
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_lies_in_its_interval_and_depends_on_the_seed() {
        let second = Duration::from_secs(1);
        let draw = |seed| {
            let mut jitter = Jitter::from_seed(seed);
            (0..1000)
                .map(|_| jitter.between(second, second))
                .collect::<Vec<_>>()
        };
        assert!(draw(1).iter().all(|d| (second..2 * second).contains(d)));
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }
}
