//! Per-CPU counters: one packet, one reason.
//!
//! Not for reading them: userspace sums over the CPUs.

use fairlead_common::reason::{Reason, Verdict};
use fairlead_common::service::Traffic;

use crate::maps;

/// Counts how a frame of `bytes` (as it arrived) ended.
#[inline(always)]
pub fn end(reason: Reason, bytes: usize) {
    maps::count_reason(reason, bytes);
}

/// Counts a frame that was sent to a backend of a service.
#[inline(always)]
pub fn balanced(service: u32, backend: u32, packet: &Traffic) {
    maps::count_service(service, packet);
    maps::count_backend(backend, packet);
}

/// Counts a socket's flow to a backend of a service: its packets are not seen.
#[inline(always)]
pub fn connected(service: u32, backend: u32) {
    let flow = Traffic {
        packets: 0,
        bytes: 0,
        new_flows: 1,
        in_transition: 0,
    };
    balanced(service, backend, &flow);
}

/// Counts a frame of a service that goes to no backend, or a socket, when it is refused for that. What another
/// program takes on is not.
#[inline(always)]
pub fn refused(service: u32, reason: Reason) {
    if reason.verdict() == Verdict::Drop && reason != Reason::ServiceUntranslated {
        maps::count_service_drop(service, reason);
    }
}
