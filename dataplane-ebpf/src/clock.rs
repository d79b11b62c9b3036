//! What time it is, coarsely.

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;

/// Coarse monotonic time in seconds (`CLOCK_MONOTONIC_COARSE`): 3 ns where the exact clock takes 28.
#[expect(unsafe_code, reason = "a helper call without arguments")]
#[inline(always)]
pub fn now_s() -> u32 {
    // SAFETY: no arguments, no memory.
    (unsafe { bpf_ktime_get_coarse_ns() } / 1_000_000_000) as u32
}
