//! The programs for rare packets taken away, and what they may send used up.

use aya::maps::ProgramArray;
use fairlead_common::detour::{self, Detour, Hook};
use fairlead_common::tables::{Answers, Detours, PodDetours, Table};

use super::Node;

impl Node {
    /// Takes frames that are not whole from here on, and does not ask of those that leave that they are.
    pub fn accept_spoilt(&mut self) {
        self.takes_whole = false;
    }

    /// Uses up what the datapath may send of its own, for a long time.
    pub fn exhaust_answers(&mut self) {
        for kind in 0..Answers::CAPACITY {
            self.set::<Answers>(&kind, &(u64::MAX / 2));
        }
    }

    /// Empties the tables of programs for rare packets.
    pub fn close_detours(&mut self) {
        for detour in detour::ALL {
            self.close_detour(*detour);
        }
    }

    /// Takes one program for rare packets away.
    pub fn close_detour(&mut self, detour: Detour) {
        // What is filled now is not filled again.
        self.load_beside(detour.program);
        let name = match detour.hook {
            Hook::Xdp => Detours::NAME,
            Hook::Tc => PodDetours::NAME,
        };
        let rows = self.ebpf.map_mut(name).expect(name);
        let mut rows: ProgramArray<_> = rows.try_into().expect(name);
        rows.clear_index(&detour.row).expect(detour.program);
    }
}
