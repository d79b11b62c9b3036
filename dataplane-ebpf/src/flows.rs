//! The tables that decide which backend a flow gets, as the kernel holds them.

use fairlead_common::addr::Addr;
use fairlead_common::choice;
use fairlead_common::flow::{Flow, FlowKey};
use fairlead_common::service::{Slot, flags};

use crate::{clock, maps};

/// The kernel's maps.
pub struct Tables;

impl choice::Tables for Tables {
    #[inline(always)]
    fn slot(&self, place: u32) -> Option<Slot> {
        maps::slot(place)
    }

    #[inline(always)]
    fn is_alive(&self, backend: u32) -> bool {
        maps::backend(backend).is_some_and(|backend| backend.flags & flags::ALIVE != 0)
    }

    #[inline(always)]
    fn admits(&self, service: u32, source: Addr) -> bool {
        maps::admits(service, source)
    }

    #[inline(always)]
    fn flow(&mut self, key: &FlowKey) -> Option<&mut Flow> {
        maps::flow(key)
    }

    #[inline(always)]
    fn remember(&mut self, key: &FlowKey, flow: &Flow) {
        maps::remember_flow(key, flow);
    }

    #[inline(always)]
    fn now_s(&self) -> u32 {
        clock::now_s()
    }
}
