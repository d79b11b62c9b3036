//! The programs for rare packets taken away, and what they may send used up.

use aya::maps::ProgramArray;
use fairlead_common::detour;
use fairlead_common::tables::{Answers, Detours, Table};

use super::Node;

impl Node {
    /// Uses up what the datapath may send of its own, for a long time.
    pub fn exhaust_answers(&mut self) {
        for kind in 0..Answers::CAPACITY {
            self.set::<Answers>(&kind, &(u64::MAX / 2));
        }
    }

    /// Empties the table of programs for rare packets.
    pub fn close_detours(&mut self) {
        let rows = self.ebpf.map_mut(Detours::NAME).expect(Detours::NAME);
        let mut rows: ProgramArray<_> = rows.try_into().expect(Detours::NAME);
        for detour in detour::ALL {
            rows.clear_index(&detour.row).expect(detour.program);
        }
    }
}
