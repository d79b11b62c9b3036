//! What time it is, coarsely.

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;

/// Coarse monotonic time in nanoseconds (`CLOCK_MONOTONIC_COARSE`: steps of a tick).
#[expect(unsafe_code, reason = "a helper call without arguments")]
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: no arguments, no memory.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// Coarse monotonic time in seconds (`CLOCK_MONOTONIC_COARSE`): 3 ns where the exact clock takes 28.
#[inline(always)]
pub fn now_s() -> u32 {
    (now_ns() / 1_000_000_000) as u32
}
