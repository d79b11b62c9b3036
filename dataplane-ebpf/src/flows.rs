//! Memory of flows that began while their ring slot was in transition.
//!
//! Only slots in transition come here: in the steady state no flow table is read or written.

use fairlead_common::flow::{Flow, FlowKey};
use fairlead_common::service::{Slot, flags};

use crate::{clock, maps};

/// The backend of a flow whose slot is in transition.
///
/// A new flow takes `current` and is remembered. A remembered one stays where it began while that backend is
/// alive, and takes `current` otherwise. Anything else began before the change: `previous` while it is alive.
#[inline(always)]
pub fn backend_in_transition(key: &FlowKey, slot: Slot, is_new: bool) -> u32 {
    let now_s = clock::now_s();
    if is_new {
        maps::remember_flow(
            key,
            &Flow {
                backend: slot.current,
                last_seen_s: now_s,
            },
        );
        return slot.current;
    }
    if let Some(flow) = maps::flow(key) {
        if !is_alive(flow.backend) {
            return slot.current;
        }
        if flow.last_seen_s != now_s {
            flow.last_seen_s = now_s;
        }
        return flow.backend;
    }
    if is_alive(slot.previous) {
        slot.previous
    } else {
        slot.current
    }
}

#[inline(always)]
fn is_alive(backend: u32) -> bool {
    maps::backend(backend).is_some_and(|backend| backend.flags & flags::ALIVE != 0)
}
