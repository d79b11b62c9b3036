//! From the embedded object to pinned maps and loaded programs.
//!
//! Maps are made from the registry, not from the object: a pinned map of the same layout is used
//! again with its rows, any other is made anew, and the programs are relocated to these. Programs that
//! are pinned from this very object, with all maps, are used again: the verifier takes seconds on a
//! node that is busy, and an agent that restarts has none to lose. Others are loaded anew, and
//! [`super::attach`] puts them in the place of those that run.
//!
//! Nothing that runs is disturbed until everything has been verified: new maps wait under
//! `NAME-new` and take their names after the last program is loaded.
//!
//! ```text
//!   LAYOUT row == VERSION, sizes fit?  yes -> maps/NAME        no -> maps/NAME-new
//!   all fit, LAYOUT's digest == the object's?  -> progs/NAME as they are
//!   object + maps -> verifier -> progs/NAME;  NAME-new -> NAME;  versions, digest -> LAYOUT
//! ```
//!
//! A table that was made anew is empty: fill it before attaching, so that no packet meets it so.
//!
//! Not for filling tables (`apply`), but for those of detours, whose rows are programs; nor for attaching.

use std::fmt;
use std::fs;
use std::hash::Hasher as _;
use std::io;
use std::panic::resume_unwind;
use std::path::Path;
use std::thread;

use aya::maps::{MapData, MapError, ProgramArray};
use aya::pin::PinError;
use aya::programs::{Program, ProgramError, ProgramInfo};
use aya::{Ebpf, EbpfError, EbpfLoader};
use caps::{CapSet, Capability};
use fairlead_common::detour;
use fairlead_common::tables::{
    self, DecapAddrs, Declaration, Detours, Kind, Layout, PodDetours, Reasons, Table as _,
};

use super::pins::{Lock, Pins};
use super::table::{self, Pinned};

/// The datapath, as built from `dataplane-ebpf`.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/fairlead.o"));

/// What a pin is called until everything beside it is ready.
const NEW: &str = "-new";

/// What the kernel asks of whoever loads programs and changes devices.
const NEEDED: [Capability; 3] = [
    Capability::CAP_BPF,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_PERFMON,
];

/// Why the datapath could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This process may not do it.
    #[error(
        "missing {}: run as root, or grant {} to this process (systemd: AmbientCapabilities=, Kubernetes: securityContext.capabilities.add)",
        names(missing), if missing.len() == 1 { "it" } else { "them" }
    )]
    Capabilities {
        /// What is missing.
        missing: Vec<Capability>,
    },
    /// Own capabilities could not be read.
    #[error("reading this process's capabilities: {0}")]
    ReadCapabilities(#[from] caps::errors::CapsError),
    /// A table could not be made.
    #[error("making table {table}: {source}")]
    Create {
        /// The table.
        table: &'static str,
        /// Why.
        source: MapError,
    },
    /// The object could not be read or relocated.
    #[error("loading the datapath's object: {0}")]
    Object(#[from] EbpfError),
    /// The verifier refused a program; its log is in the source's text.
    #[error("loading program {program}: {source}")]
    Program {
        /// The program.
        program: String,
        /// Why.
        source: ProgramError,
    },
    /// Something could not be pinned.
    #[error("pinning {name}: {source}")]
    Pin {
        /// What.
        name: String,
        /// Why.
        source: PinError,
    },
    /// A file operation failed.
    #[error("{doing} {}: {source}", path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// On which file.
        path: std::path::PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The versions of the tables could not be recorded.
    #[error(transparent)]
    Table(#[from] table::Error),
}

fn names(capabilities: &[Capability]) -> String {
    let names: Vec<_> = capabilities.iter().map(ToString::to_string).collect();
    names.join(", ")
}

/// The datapath in the kernel: tables and programs, pinned and ready to be attached.
#[derive(Debug)]
pub struct Loaded {
    /// Where it is pinned.
    pub pins: Pins,
    /// The tables that began empty, and why.
    pub fresh: Vec<Fresh>,
    /// The programs, all pinned.
    pub programs: Vec<LoadedProgram>,
    /// Whether the programs are those that were pinned already, from the same object.
    pub reused: bool,
}

/// A table that was made anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fresh {
    /// The table.
    pub table: &'static str,
    /// What was wrong with the map that was pinned; absent: there was none.
    pub replaced: Option<String>,
}

impl fmt::Display for Fresh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.replaced {
            Some(why) => write!(f, "table {} is made anew: {why}", self.table),
            None => write!(f, "table {} is new", self.table),
        }
    }
}

/// A program in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedProgram {
    /// Its name.
    pub name: String,
    /// The kernel's hash of its instructions, as `bpftool prog` prints it.
    pub tag: String,
    /// How many instructions the verifier walked through.
    pub verified_instructions: u32,
}

impl LoadedProgram {
    fn new(name: &str, info: &ProgramInfo) -> Self {
        Self {
            name: name.to_owned(),
            tag: format!("{:016x}", info.tag()),
            verified_instructions: info.verified_instruction_count().unwrap_or_default(),
        }
    }
}

/// Fails with one line when this process lacks a capability that loading or attaching needs.
pub fn check_capabilities() -> Result<(), Error> {
    require(&NEEDED)
}

/// Fails with one line when this process lacks one of these capabilities.
pub fn require(needed: &[Capability]) -> Result<(), Error> {
    let held = caps::read(None, CapSet::Effective)?;
    let missing = missing(needed, |capability| held.contains(&capability));
    if missing.is_empty() {
        Ok(())
    } else {
        Err(Error::Capabilities { missing })
    }
}

/// CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON (capabilities(7)), not for CAP_NET_ADMIN.
fn missing(needed: &[Capability], held: impl Fn(Capability) -> bool) -> Vec<Capability> {
    needed
        .iter()
        .copied()
        .filter(|&needed| {
            let covered = needed != Capability::CAP_NET_ADMIN && held(Capability::CAP_SYS_ADMIN);
            !held(needed) && !covered
        })
        .collect()
}

/// Which part of the datapath a host needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A node: everything.
    Node,
    /// A backend behind a router: what takes packets out of the balancers' tunnels.
    Decapsulation,
}

impl Part {
    fn has_table(self, name: &str) -> bool {
        match self {
            Self::Node => true,
            Self::Decapsulation => self.tables().contains(&name),
        }
    }

    fn has_program(self, name: &str) -> bool {
        match self {
            Self::Node => true,
            Self::Decapsulation => name == "xdp_decap",
        }
    }

    /// The tables of a part that has not all of them.
    pub(super) const fn tables(self) -> &'static [&'static str] {
        match self {
            Self::Node => &[],
            Self::Decapsulation => &[DecapAddrs::NAME, Reasons::NAME, Layout::NAME],
        }
    }
}

/// Loads the whole datapath. The lock says that no other agent uses the pins; [`Pins::prepare`] has
/// made the folders.
pub fn load(pins: &Pins, owner: &Lock) -> Result<Loaded, Error> {
    load_part(pins, owner, Part::Node)
}

/// Loads a part of the datapath; what belongs to other parts is not touched.
pub fn load_part(pins: &Pins, _owner: &Lock, part: Part) -> Result<Loaded, Error> {
    check_capabilities()?;
    discard_unfinished(&pins.maps())?;
    discard_unfinished(&pins.programs())?;

    let fresh = unfitting(pins, part)?;
    if fresh.is_empty() && pinned_object(pins) == Some(digest(OBJECT)) {
        let programs = read_programs(pins, part)?;
        if let Some(programs) = programs {
            return Ok(Loaded {
                pins: pins.clone(),
                fresh,
                programs,
                reused: true,
            });
        }
    }
    let rows = rows_of_globals(pins, part, &fresh)?;
    let mut loader = EbpfLoader::new();
    for (name, row) in &rows {
        if std::env::var_os("NO_OVERRIDE").is_none() {
            loader.override_global(name, row.as_slice(), true);
        }
    }
    // The programs hold no CO-RE relocation, and parsing the kernel's BTF takes 0.1 s.
    loader.btf(None);
    for declared in tables::ALL {
        if !part.has_table(declared.name) {
            // No program of this part uses it: it is made as small as can be, not pinned, and goes
            // with the loader.
            if !matches!(declared.kind, Kind::SocketStorage | Kind::Global) {
                loader.map_max_entries(declared.name, 1);
            }
            continue;
        }
        let mut path = pins.map(declared.name);
        if fresh.iter().any(|fresh| fresh.table == declared.name) {
            path = pins.map(&format!("{}{NEW}", declared.name));
            // The kernel wants the types of what sockets keep, which the object has: the loader makes
            // and pins these.
            if declared.kind != Kind::SocketStorage {
                create(&path, declared)?;
            }
        }
        loader.map_pin_path(declared.in_object, path);
    }
    let mut ebpf = loader.load(OBJECT)?;
    let programs = ebpf
        .programs_mut()
        .filter(|(name, _)| part.has_program(name))
        .collect();
    let programs = load_programs(programs)?;
    // From here on, until all is in its place, the pins are of no one object.
    if let Ok(mut layout) = Pinned::<Layout>::open(pins) {
        set_object(&mut layout, 0)?;
    }
    if part == Part::Node {
        // The programs that run go by the same rows: a packet's detour is the next version's from here on, and
        // what it agrees on with the way there is the tables.
        fill_detours(&mut ebpf)?;
    }
    for (name, program) in ebpf.programs_mut() {
        if part.has_program(name) {
            pin_program(pins, name, program)?;
        }
    }
    for table in &fresh {
        let path = pins.map(table.table);
        rename(&pins.map(&format!("{}{NEW}", table.table)), &path)?;
    }
    let mut layout = Pinned::<Layout>::open(pins)?;
    for (place, declared) in (0_u32..).zip(tables::ALL) {
        if !part.has_table(declared.name) {
            continue;
        }
        layout.set(&place, &declared.version)?;
    }
    if part == Part::Node {
        set_object(&mut layout, digest(OBJECT))?;
    }
    Ok(Loaded {
        pins: pins.clone(),
        fresh,
        programs,
        reused: false,
    })
}

/// The tables of a part that are not there as they are declared.
fn unfitting(pins: &Pins, part: Part) -> Result<Vec<Fresh>, Error> {
    let versions = Pinned::<Layout>::open(pins).ok();
    let mut fresh = Vec::new();
    for (place, declared) in (0_u32..).zip(tables::ALL) {
        if !part.has_table(declared.name) {
            continue;
        }
        let version = versions
            .as_ref()
            .and_then(|versions| versions.get(&place).ok().flatten());
        if let Found::Nothing { replaced } = inspect(pins, declared, version)? {
            fresh.push(Fresh {
                table: declared.name,
                replaced,
            });
        }
    }
    Ok(fresh)
}

/// The rows of global variables that are used again, by the variables' names: the loader writes each variable's row,
/// and would write what the object holds, which is zero, under the programs that run.
fn rows_of_globals(
    pins: &Pins,
    part: Part,
    fresh: &[Fresh],
) -> Result<Vec<(&'static str, Vec<u8>)>, Error> {
    let globals = tables::ALL.iter().filter(|declared| {
        declared.kind == Kind::Global
            && part.has_table(declared.name)
            && !fresh.iter().any(|fresh| fresh.table == declared.name)
    });
    globals
        .map(|declared| Ok((declared.name, table::first_row(pins, declared)?)))
        .collect()
}

/// Tells one build of the object from another; never zero.
#[expect(
    deprecated,
    reason = "pins outlive an agent, so the digest must be the same in every build: this hasher's is"
)]
fn digest(object: &[u8]) -> u64 {
    let mut hasher = std::hash::SipHasher::new();
    hasher.write(object);
    hasher.finish().max(1)
}

/// The digest of the object that all pinned programs are from; absent: of none, or of several.
fn pinned_object(pins: &Pins) -> Option<u64> {
    let layout = Pinned::<Layout>::open(pins).ok()?;
    let [high, low] = tables::OBJECT_ROWS.map(|row| layout.get(&row).ok().flatten());
    let digest = (u64::from(high?) << 32) | u64::from(low?);
    (digest != 0).then_some(digest)
}

fn set_object(layout: &mut Pinned<Layout>, digest: u64) -> Result<(), Error> {
    let [high, low] = tables::OBJECT_ROWS;
    let halves = [(high, digest >> 32), (low, digest & u64::from(u32::MAX))];
    for (row, half) in halves {
        layout.set(&row, &u32::try_from(half).unwrap_or_default())?;
    }
    Ok(())
}

/// What the kernel says of the pinned programs; absent when not all are there.
fn read_programs(pins: &Pins, part: Part) -> Result<Option<Vec<LoadedProgram>>, Error> {
    let object = aya_obj::Object::parse(OBJECT).map_err(EbpfError::ParseError)?;
    let names = object.programs.keys().filter(|name| part.has_program(name));
    let mut programs = Vec::new();
    for name in names {
        let Ok(info) = ProgramInfo::from_pin(pins.program(name)) else {
            return Ok(None);
        };
        programs.push(LoadedProgram::new(name, &info));
    }
    Ok(Some(programs))
}

/// Puts the loaded programs for rare packets into `DETOURS` and `POD_DETOURS`.
///
/// # Errors
/// The object lacks one of them, or the kernel refuses.
pub fn fill_detours(ebpf: &mut Ebpf) -> Result<(), Error> {
    fill_detours_of(ebpf, detour::Hook::Xdp)?;
    fill_detours_of(ebpf, detour::Hook::Tc)
}

/// As [`fill_detours`], of one kind of program.
///
/// # Errors
/// As [`fill_detours`].
pub fn fill_detours_of(ebpf: &mut Ebpf, hook: detour::Hook) -> Result<(), Error> {
    for detour in detour::ALL.iter().filter(|detour| detour.hook == hook) {
        let wrong = |source| Error::Program {
            program: detour.program.to_owned(),
            source,
        };
        let program = ebpf
            .program(detour.program)
            .ok_or(ProgramError::NotLoaded)
            .and_then(Program::fd)
            .and_then(|fd| fd.try_clone().map_err(ProgramError::IOError))
            .map_err(wrong)?;
        let name = match detour.hook {
            detour::Hook::Xdp => Detours::NAME,
            detour::Hook::Tc => PodDetours::NAME,
        };
        let table = ebpf.map_mut(name).ok_or(MapError::InvalidName {
            name: name.to_owned(),
        });
        table
            .and_then(ProgramArray::try_from)
            .and_then(|mut rows| rows.set(detour.row, &program, 0))
            .map_err(|error| wrong(error.into()))?;
    }
    Ok(())
}

enum Found {
    Fitting,
    Nothing { replaced: Option<String> },
}

fn inspect(pins: &Pins, declared: &Declaration, version: Option<u32>) -> Result<Found, Error> {
    let path = pins.map(declared.name);
    if !path.exists() {
        return Ok(Found::Nothing { replaced: None });
    }
    let unreadable = |source| Error::Create {
        table: declared.name,
        source,
    };
    let map = MapData::from_pin(&path).map_err(unreadable)?;
    let difference = table::difference(declared, &map).map_err(unreadable)?;
    let replaced = difference.or_else(|| match version {
        Some(version) if version == declared.version => None,
        Some(version) => Some(format!(
            "its layout has version {version}, now {}",
            declared.version
        )),
        None => Some("the version of its layout is not known".to_owned()),
    });
    Ok(replaced.map_or(Found::Fitting, |why| Found::Nothing {
        replaced: Some(why),
    }))
}

fn create(path: &Path, declared: &Declaration) -> Result<(), Error> {
    let definition = aya_obj::Map::new_from_params(
        table::map_type(declared.kind) as u32,
        declared.key_bytes,
        declared.value_bytes,
        declared.capacity,
        table::flags(declared.kind),
    );
    let map = MapData::create(definition, declared.name, None).map_err(|source| Error::Create {
        table: declared.name,
        source,
    })?;
    map.pin(path).map_err(|source| Error::Pin {
        name: declared.name.to_owned(),
        source,
    })
}

/// Loads programs, those of XDP beside the others: the verifier walks through a program on one core, and takes seconds
/// for all. Two at a time, for it needs memory for each.
fn load_programs(programs: Vec<(&str, &mut Program)>) -> Result<Vec<LoadedProgram>, Error> {
    let (xdp, others): (Vec<_>, Vec<_>) = programs
        .into_iter()
        .partition(|(_, program)| matches!(program, Program::Xdp(_)));
    let load = |programs: Vec<(&str, &mut Program)>| -> Result<Vec<_>, Error> {
        let loaded = programs.into_iter();
        loaded
            .map(|(name, program)| load_program(name, program))
            .collect()
    };
    thread::scope(|scope| {
        let others = scope.spawn(|| load(others));
        let mut loaded = load(xdp)?;
        let others = others.join().unwrap_or_else(|panic| resume_unwind(panic));
        loaded.extend(others?);
        Ok(loaded)
    })
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "aya knows 29 kinds of programs, the datapath has three"
)]
fn load_program(name: &str, program: &mut Program) -> Result<LoadedProgram, Error> {
    let wrong = |source| Error::Program {
        program: name.to_owned(),
        source,
    };
    let info = match program {
        Program::Xdp(xdp) => xdp.load().and_then(|()| xdp.info()),
        Program::SchedClassifier(tc) => tc.load().and_then(|()| tc.info()),
        Program::CgroupSockAddr(sock) => sock.load().and_then(|()| sock.info()),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
    .map_err(wrong)?;
    Ok(LoadedProgram::new(name, &info))
}

fn pin_program(pins: &Pins, name: &str, program: &mut Program) -> Result<(), Error> {
    let waiting = pins.program(&format!("{name}{NEW}"));
    program.pin(&waiting).map_err(|source| Error::Pin {
        name: name.to_owned(),
        source,
    })?;
    rename(&waiting, &pins.program(name))
}

fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    fs::rename(from, to).map_err(|source| Error::File {
        doing: "replacing",
        path: to.to_owned(),
        source,
    })
}

/// Removes what an agent that died while loading left behind.
fn discard_unfinished(folder: &Path) -> Result<(), Error> {
    let failed = |source| Error::File {
        doing: "cleaning",
        path: folder.to_owned(),
        source,
    };
    for file in fs::read_dir(folder).map_err(failed)? {
        let path = file.map_err(failed)?.path();
        if path.to_string_lossy().ends_with(NEW) {
            fs::remove_file(&path).map_err(failed)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_capability_is_named_with_what_to_do() {
        let missing = missing(&NEEDED, |capability| {
            capability == Capability::CAP_NET_ADMIN
        });

        assert_eq!(
            Error::Capabilities { missing }.to_string(),
            "missing CAP_BPF, CAP_PERFMON: run as root, or grant them to this process (systemd: \
             AmbientCapabilities=, Kubernetes: securityContext.capabilities.add)"
        );
    }

    #[test]
    fn an_administrator_needs_only_the_network_besides() {
        let missing = missing(&NEEDED, |capability| {
            capability == Capability::CAP_SYS_ADMIN
        });

        assert_eq!(missing, [Capability::CAP_NET_ADMIN]);
    }
}
