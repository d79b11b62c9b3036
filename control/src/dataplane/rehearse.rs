//! Runs a program on a packet without sending it, and without a trace of it in the tables.
//!
//! The instructions are those that run (same tag, the kernel's hash of them), loaded once more. The tables that
//! packets only read are the real ones, by their pins; every other table, counters and remembered flows among
//! them, is a private one that begins with the rows of the real one. `BPF_PROG_TEST_RUN` then runs the program as
//! if the packet came in by the device. Nothing is sent: a redirect is only said.
//!
//! Not for explaining what came of it (`view::trace`).

use std::collections::BTreeMap;
use std::fs;
use std::io;

use aya::programs::{
    Program, ProgramError, SchedClassifier, TestRun, TestRunOptions, TestRunResult, Xdp,
};
use aya::{Ebpf, EbpfError, EbpfLoader};
use bytemuck::{Pod, Zeroable};
use fairlead_common::detour;
use fairlead_common::flow::{Flow, FlowKey};
use fairlead_common::reason::Reason;
use fairlead_common::service::{Counter, forward};
use fairlead_common::tables::{
    self, BackendStats, Backends, Flows, Kind, Reasons, ServiceDrops, ServiceStats, Services, Table,
};

use super::attach::Hook;
use super::load::{OBJECT, fill_detours};
use super::pins::Pins;
use super::table::{self, Pinned};

/// The tables that packets never write. Not those of one row ([`Kind::Global`]): the loader writes them.
const READ_ONLY: [&str; 11] = [
    tables::Devices::NAME,
    tables::TxPorts::NAME,
    tables::Services::NAME,
    tables::ServiceCells::NAME,
    tables::ServiceCopies::NAME,
    tables::Rings::NAME,
    tables::Backends::NAME,
    tables::NextHops::NAME,
    tables::DecapAddrs::NAME,
    tables::Addresses::NAME,
    tables::SourceRanges::NAME,
];
/// Room for flows beside those that are copied.
const SPARE_ROWS: u32 = 16384;
/// How far a program may make a frame longer.
const GROWTH: usize = 256;

/// Why a packet could not be tried.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No program is pinned.
    #[error("program {program} is not pinned at {}: start the agent (`fairlead run`)", path.display())]
    NotLoaded {
        /// The program.
        program: &'static str,
        /// Where its pin should be.
        path: std::path::PathBuf,
    },
    /// What runs is of another build than who asks.
    #[error(
        "the {program} that runs (tag {running}) is of another build than this one ({own}): restart the agent, or use the dpctl beside it"
    )]
    OtherBuild {
        /// The program.
        program: &'static str,
        /// The tag of what runs.
        running: String,
        /// The tag of what would be tried.
        own: String,
    },
    /// The kernel refused the run.
    #[error(
        "running {program} on the packet: {source}; for XDP the device needs a program attached, for a long packet a smaller size"
    )]
    Run {
        /// The program.
        program: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The object or the program could not be loaded.
    #[error("loading {program} to try it: {source}")]
    Load {
        /// The program.
        program: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A table could not be read or copied.
    #[error(transparent)]
    Table(#[from] table::Error),
}

/// What came of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// Why it ended as it did.
    pub reason: Reason,
    /// What the program told the kernel, by the hook's own name.
    pub action: &'static str,
    /// The frame afterwards.
    pub frame: Vec<u8>,
    /// The service that it was counted for, by id.
    pub service: Option<u32>,
    /// The backend that it was sent to, by id.
    pub backend: Option<u32>,
}

/// A program that is ready to be tried.
pub struct Rehearsal {
    ebpf: Ebpf,
    program: &'static str,
    flows: Pinned<Flows>,
    reasons: Pinned<Reasons>,
    services: Pinned<ServiceStats>,
    service_drops: Pinned<ServiceDrops>,
    backends: Pinned<BackendStats>,
}

impl std::fmt::Debug for Rehearsal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rehearsal")
            .field("program", &self.program)
            .finish_non_exhaustive()
    }
}

impl Rehearsal {
    /// Loads the program of a hook beside the one that runs.
    pub fn open(pins: &Pins, hook: Hook) -> Result<Self, Error> {
        let program = hook.program();
        let running = running_tag(pins, program)?;
        let refused =
            |source: Box<dyn std::error::Error + Send + Sync>| Error::Load { program, source };
        let mut loader = EbpfLoader::new();
        // As the agent loads it.
        loader.btf(None);
        let mut copies = Vec::new();
        macro_rules! prepare {
            ($table:ident) => {
                prepare::<tables::$table>(pins, &mut loader, &mut copies)?;
            };
        }
        fairlead_common::for_each_table!(prepare);
        let (services, backends) = used_ids(pins)?;
        loader.map_max_entries(ServiceStats::NAME, services);
        loader.map_max_entries(BackendStats::NAME, backends);
        let mut ebpf = loader
            .load(OBJECT)
            .map_err(|error: EbpfError| refused(error.into()))?;
        let own = load(&mut ebpf, program).map_err(|error| refused(error.into()))?;
        if own != running {
            return Err(Error::OtherBuild {
                program,
                running: format!("{running:016x}"),
                own: format!("{own:016x}"),
            });
        }
        for detour in detour::ALL {
            load(&mut ebpf, detour.program).map_err(|error| refused(error.into()))?;
        }
        fill_detours(&mut ebpf).map_err(|error| refused(error.into()))?;
        for copy in copies {
            copy(&ebpf)?;
        }
        Ok(Self {
            program,
            flows: private(&ebpf)?,
            reasons: private(&ebpf)?,
            services: private(&ebpf)?,
            service_drops: private(&ebpf)?,
            backends: private(&ebpf)?,
            ebpf,
        })
    }

    /// What is remembered of a flow before a packet is tried.
    pub fn flow(&self, key: &FlowKey) -> Result<Option<Flow>, Error> {
        Ok(self.flows.get(key)?)
    }

    /// Runs the program on a frame that comes in by the device of this index. What it remembers stays for the
    /// next packet that is tried here.
    pub fn run(&mut self, ifindex: u32, frame: &[u8]) -> Result<Ran, Error> {
        let name = self.program;
        let refused = |error: ProgramError| Error::Run {
            program: name,
            source: error.into(),
        };
        let program = self.ebpf.program_mut(name);
        let (action, frame) = match program {
            Some(Program::Xdp(program)) => {
                let context = XdpMd {
                    data_end: frame.len() as u32,
                    ingress_ifindex: ifindex,
                    ..XdpMd::zeroed()
                };
                let (action, frame) = test_run::<Xdp>(program, frame, bytemuck::bytes_of(&context))
                    .map_err(refused)?;
                (xdp_action(action), frame)
            }
            Some(Program::SchedClassifier(program)) => {
                let mut context = [0_u32; SK_BUFF_WORDS];
                context[SK_BUFF_IFINDEX] = ifindex;
                let context = bytemuck::cast_slice(&context);
                let (action, frame) =
                    test_run::<SchedClassifier>(program, frame, context).map_err(refused)?;
                (tc_action(action), frame)
            }
            _ => return Err(refused(ProgramError::UnexpectedProgramType)),
        };
        let reason = taken(&mut self.reasons)?.into_keys().next();
        let reason = reason.and_then(|row| Reason::ALL.get(row as usize).copied());
        let service = taken(&mut self.services)?.into_keys().next();
        let dropped = taken(&mut self.service_drops)?.into_keys().next();
        Ok(Ran {
            reason: reason.ok_or_else(|| Error::Run {
                program: name,
                source: "no reason was counted".into(),
            })?,
            action,
            frame,
            service: service.or(dropped.map(|of| of.service)),
            backend: taken(&mut self.backends)?.into_keys().next(),
        })
    }
}

/// The kernel's hash of the instructions of the program that runs.
fn running_tag(pins: &Pins, program: &'static str) -> Result<u64, Error> {
    let path = pins.program(program);
    let is_there = fs::exists(&path)
        .unwrap_or_else(|error: io::Error| error.kind() != io::ErrorKind::NotFound);
    if !is_there {
        return Err(Error::NotLoaded { program, path });
    }
    let info = aya::programs::ProgramInfo::from_pin(&path).map_err(|error| Error::Load {
        program,
        source: error.into(),
    })?;
    Ok(info.tag())
}

fn load(ebpf: &mut Ebpf, name: &str) -> Result<u64, ProgramError> {
    match ebpf.program_mut(name) {
        Some(Program::Xdp(program)) => {
            program.load()?;
            Ok(program.info()?.tag())
        }
        Some(Program::SchedClassifier(program)) => {
            program.load()?;
            Ok(program.info()?.tag())
        }
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// Fills a private table of a loaded object.
type Copy = Box<dyn FnOnce(&Ebpf) -> Result<(), Error>>;

/// Shares a table that packets only read; of any other one remembers the rows.
fn prepare<T: Table>(
    pins: &Pins,
    loader: &mut EbpfLoader<'_>,
    copies: &mut Vec<Copy>,
) -> Result<(), Error> {
    if READ_ONLY.contains(&T::NAME) {
        loader.map_pin_path(T::NAME, pins.map(T::NAME));
        return Ok(());
    }
    match T::KIND {
        // Counters begin at zero; sockets and programs are no rows; no packet writes into a trie.
        Kind::PerCpuArray
        | Kind::PerCpuHash
        | Kind::DevMapHash
        | Kind::SocketStorage
        | Kind::ProgramArray
        | Kind::LpmTrie => return Ok(()),
        Kind::Array | Kind::MappedArray | Kind::Global | Kind::Hash | Kind::LruHash => {}
    }
    let rows: Vec<_> = Pinned::<T>::open(pins)?.rows().collect::<Result<_, _>>()?;
    if matches!(T::KIND, Kind::Hash | Kind::LruHash) {
        let enough = (rows.len() as u32)
            .saturating_mul(2)
            .saturating_add(SPARE_ROWS);
        loader.map_max_entries(T::NAME, enough.min(T::CAPACITY));
    }
    copies.push(Box::new(move |ebpf| {
        let mut table: Pinned<T> = private(ebpf)?;
        for (key, value) in &rows {
            table.set(key, value)?;
        }
        Ok(())
    }));
    Ok(())
}

/// How many rows the counters of services and of backends need.
fn used_ids(pins: &Pins) -> Result<(u32, u32), Error> {
    let (mut services, mut backends) = (0, 0);
    for row in Pinned::<Services>::open(pins)?.rows() {
        services = services.max(row?.1.id);
    }
    for row in Pinned::<Backends>::open(pins)?.rows() {
        let (id, backend) = row?;
        if backend.forward != forward::FREE {
            backends = backends.max(id);
        }
    }
    Ok((services + 1, backends + 1))
}

/// A table of a loaded object that is not pinned.
fn private<T: Table>(ebpf: &Ebpf) -> Result<Pinned<T>, Error> {
    let Some(map) = ebpf.map(T::IN_OBJECT) else {
        unreachable!("the object's maps are the registry's tables")
    };
    Ok(Pinned::of(map)?)
}

/// The counters that are not zero, which are set back.
fn taken<T: Table<Value: Counter>>(
    table: &mut Pinned<T>,
) -> Result<BTreeMap<T::Key, T::Value>, Error>
where
    T::Key: Ord,
{
    let counted: BTreeMap<_, _> = table.counts()?.into_iter().collect();
    for key in counted.keys() {
        table.remove(key)?;
    }
    Ok(counted)
}

fn test_run<P>(program: &P, frame: &[u8], context: &[u8]) -> Result<(u32, Vec<u8>), ProgramError>
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult>,
{
    let mut out = vec![0; frame.len() + GROWTH];
    let result = program.test_run(TestRunOptions {
        data_in: Some(frame),
        data_out: Some(&mut out),
        ctx_in: Some(context),
        ..TestRunOptions::default()
    })?;
    out.truncate(result.data_size_out as usize);
    Ok((result.return_value, out))
}

/// `enum xdp_action` of `linux/bpf.h`.
const fn xdp_action(number: u32) -> &'static str {
    match number {
        0 => "XDP_ABORTED",
        1 => "XDP_DROP",
        2 => "XDP_PASS",
        3 => "XDP_TX",
        4 => "XDP_REDIRECT",
        _ => "unknown",
    }
}

/// `TC_ACT_…` of `linux/pkt_cls.h`.
const fn tc_action(number: u32) -> &'static str {
    match number {
        u32::MAX => "TCX_NEXT",
        0 => "TC_ACT_OK",
        2 => "TC_ACT_SHOT",
        7 => "TC_ACT_REDIRECT",
        _ => "unknown",
    }
}

/// `struct xdp_md` of `linux/bpf.h`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct XdpMd {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

/// Words of `struct __sk_buff` of `linux/bpf.h`, and the place of `ifindex` among them.
const SK_BUFF_WORDS: usize = 48;
const SK_BUFF_IFINDEX: usize = 10;
