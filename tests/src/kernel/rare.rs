//! The programs for rare packets taken away, and what they may send used up.

use aya::maps::ProgramArray;
use fairlead_common::detour;
use fairlead_common::tables::{Answers, Detours, PodDetours, Table};

use super::Node;

impl Node {
    /// Uses up what the datapath may send of its own, for a long time.
    pub fn exhaust_answers(&mut self) {
        for kind in 0..Answers::CAPACITY {
            self.set::<Answers>(&kind, &(u64::MAX / 2));
        }
    }

    /// Empties the tables of programs for rare packets.
    pub fn close_detours(&mut self) {
        for (table, detours) in [
            (Detours::NAME, detour::ALL),
            (PodDetours::NAME, detour::OF_PODS),
        ] {
            let rows = self.ebpf.map_mut(table).expect(table);
            let mut rows: ProgramArray<_> = rows.try_into().expect(table);
            for detour in detours {
                rows.clear_index(&detour.row).expect(detour.program);
            }
        }
    }
}
