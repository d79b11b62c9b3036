//! The tables in memory, as the choice of a backend sees them: what the datapath would do, without a kernel.

use std::collections::BTreeMap;

use fairlead_common::addr::Addr;
use fairlead_common::choice;
use fairlead_common::flow::{Flow, FlowKey};
use fairlead_common::service::{Slot, SourceRange, flags};

use super::Actual;

/// Tables that packets of services meet.
#[derive(Debug)]
pub struct Packets<'a> {
    /// What the agent has written.
    pub actual: &'a Actual,
    /// `FLOWS`, which packets write.
    pub flows: &'a mut BTreeMap<FlowKey, Flow>,
    /// Coarse monotonic time in seconds.
    pub now_s: u32,
}

impl choice::Tables for Packets<'_> {
    fn slot(&self, place: u32) -> Option<Slot> {
        let (ring, slots) = self.actual.rings.range(..=place).next_back()?;
        slots.get((place - ring) as usize).copied()
    }

    fn is_alive(&self, backend: u32) -> bool {
        let row = self.actual.backends.get(&backend);
        row.is_some_and(|row| row.flags & flags::ALIVE != 0)
    }

    fn admits(&self, service: u32, source: Addr) -> bool {
        let mut ranges = self.actual.source_ranges.iter();
        ranges.any(|range| range.service == service && covers(range, source))
    }

    fn flow(&mut self, key: &FlowKey) -> Option<&mut Flow> {
        self.flows.get_mut(key)
    }

    fn remember(&mut self, key: &FlowKey, flow: &Flow) {
        self.flows.insert(*key, *flow);
    }

    fn now_s(&self) -> u32 {
        self.now_s
    }
}

fn covers(range: &SourceRange, source: Addr) -> bool {
    let bits = range.bits - SourceRange::new(range.service, Addr::NONE, 0).bits;
    let [range, source] = [range.addr, source].map(|addr| u128::from_be_bytes(addr.octets()));
    let differs = range ^ source;
    bits == 0 || differs >> (128 - bits.min(128)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_covers_the_sources_of_its_prefix() {
        let addr = |text: &str| Addr::new(text.parse().unwrap());
        let v4 = SourceRange::new(7, addr("203.0.113.0"), 24);
        assert!(covers(&v4, addr("203.0.113.9")));
        assert!(!covers(&v4, addr("203.0.112.9")));
        let v6 = SourceRange::new(7, addr("2001:db8::"), 32);
        assert!(covers(&v6, addr("2001:db8:9::9")));
        assert!(!covers(&v6, addr("203.0.113.9")));
        let all_v4 = SourceRange::new(7, addr("0.0.0.0"), 0);
        assert!(covers(&all_v4, addr("203.0.113.9")));
        assert!(!covers(&all_v4, addr("2001:db8::1")));
    }
}
