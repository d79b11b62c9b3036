//! Programs are loaded when a test first asks one of their kind: the verifier takes its time for each.

use aya::programs::{Program, ProgramType};
use aya::{Ebpf, EbpfLoader};
use fairlead_common::detour::Hook;
use fairlead_control::dataplane::load::{self, OBJECT};

use super::Node;

/// The object, with tables of these sizes and no program loaded.
pub(super) fn load_object(rows: &[(&str, u32)]) -> Ebpf {
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    for &(name, rows) in rows {
        loader.map_max_entries(name, rows);
    }
    loader.load(OBJECT).expect("an object that loads")
}

/// Loads one program.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "aya knows 29 kinds of programs, the datapath has three"
)]
pub(super) fn load_program(name: &str, program: &mut Program) {
    let result = match program {
        Program::Xdp(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        _ => panic!("{name}: a program of another kind"),
    };
    result.unwrap_or_else(|error| panic!("{name}: {error:?}"));
}

impl Node {
    /// Loads a program, and all of its kind, which it may turn off to: the verifier takes its time for each.
    pub(super) fn load_beside(&mut self, name: &str) {
        let kind = self.ebpf.program(name).expect(name).prog_type();
        for (name, program) in self.ebpf.programs_mut() {
            if program.prog_type() == kind && program.fd().is_err() {
                load_program(name, program);
            }
        }
        let hook = if kind == ProgramType::Xdp {
            Hook::Xdp
        } else if kind == ProgramType::SchedClassifier {
            Hook::Tc
        } else {
            // Those of sockets turn off to nowhere.
            return;
        };
        if !self.turns_off.contains(&hook) {
            self.turns_off.push(hook);
            load::fill_detours_of(&mut self.ebpf, hook).expect("programs for every detour");
        }
    }
}
