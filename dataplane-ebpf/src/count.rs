//! Per-CPU counters: one packet, one reason.
//!
//! Not for reading them: userspace sums over the CPUs.

use fairlead_common::reason::Reason;

use crate::maps;

/// Counts how a frame of `bytes` (as it arrived) ended.
#[inline(always)]
pub fn end(reason: Reason, bytes: u32) {
    maps::count_reason(reason, bytes);
}

/// Counts a frame that was sent to a backend of a service.
#[inline(always)]
pub fn balanced(service: u32, backend: u32, bytes: u32) {
    maps::count_service(service, bytes);
    maps::count_backend(backend, bytes);
}
