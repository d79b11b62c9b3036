//! How many ICMP messages the datapath may send of its own (RFC 1812 §4.3.2.8, RFC 4443 §2.4(f)).
//!
//! # Why
//! All CPUs share a bucket: it is written only when a message goes out, so a flood that empties it only reads
//! it. Two CPUs may take the same message out of it; that is a few too many, never a few too few.
//!
//! A token bucket in one word (the virtual scheduling algorithm of ITU-T I.371): the time at which the bucket
//! will be full again.

/// Rows of `ANSWERS`: one kind of message does not use up another's share.
pub mod kind {
    /// "Too big".
    pub const TOO_BIG: u32 = 0;
    /// "Port unreachable".
    pub const REFUSED: u32 = 1;
    /// "Time exceeded".
    pub const EXPIRED: u32 = 2;
    /// How many kinds there are.
    pub const COUNT: u32 = 3;
}

/// Nanoseconds in which one more message may be sent: 1000 in a second.
pub const PERIOD_NS: u64 = 1_000_000;
/// How many may be sent at once.
pub const BURST: u64 = 100;

/// Takes one message out of a bucket that is full at `full_ns`, and says when it will be full then; none when it
/// is empty. Nanoseconds of one monotonic clock.
#[inline(always)]
pub const fn take(full_ns: u64, now_ns: u64) -> Option<u64> {
    let full_ns = if full_ns > now_ns { full_ns } else { now_ns };
    if full_ns - now_ns > (BURST - 1) * PERIOD_NS {
        return None;
    }
    Some(full_ns + PERIOD_NS)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many messages go out of a bucket when one is due in every step.
    fn sent(full_ns: &mut u64, from_ns: u64, steps: u64, step_ns: u64) -> u64 {
        let mut sent = 0;
        for step in 0..steps {
            if let Some(next) = take(*full_ns, from_ns + step * step_ns) {
                *full_ns = next;
                sent += 1;
            }
        }
        sent
    }

    #[test]
    fn a_full_bucket_holds_a_burst_and_no_more() {
        assert_eq!(sent(&mut 0, 5_000_000_000, 1000, 0), BURST);
    }

    #[test]
    fn an_empty_bucket_fills_at_its_rate() {
        let mut full_ns = 0;
        let second = 1_000_000_000;
        sent(&mut full_ns, second, 1000, 0);

        let in_a_second = sent(&mut full_ns, second, 100_000, second / 100_000);

        assert!((999..=1001).contains(&in_a_second), "{in_a_second}");
    }

    #[test]
    fn a_rest_does_not_fill_it_above_its_burst() {
        let mut full_ns = 0;
        sent(&mut full_ns, 1, 1000, 0);

        assert_eq!(sent(&mut full_ns, 3_600_000_000_000, 1000, 0), BURST);
    }
}
