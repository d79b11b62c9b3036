//! `cargo xtask bench lb`: what a packet of a service costs, beside programs that do less.
//!
//! ```text
//!   bench OBJECT OUT      OBJECT: the benchmark's own eBPF object; OUT: the JSON to write
//! ```
//! The real `xdp_ingress` runs under `BPF_PROG_TEST_RUN`, called by a driver that puts the packet back and
//! makes it the next flow's. A case's price is its time less the driver's (the driver alone calls a program
//! that drops), plus what a program that drops costs without a driver. Cases take turns in many short rounds,
//! so that whatever else the machine does falls on all of them.
//!
//! The kernel measures, so it does not matter how this program is built. Not a test: no figure here is a limit
//! on a busy machine; ratios within one run are.
#![expect(clippy::print_stderr, reason = "it speaks to a person")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, MapData, ProgramArray};
use aya::programs::{
    Program, ProgramError, ProgramFd, SchedClassifier, TestRun, TestRunOptions, TestRunResult, Xdp,
};
use aya::{Ebpf, EbpfLoader};
use fairlead_common::addr::{Port, Proto};
use fairlead_common::reason::Reason;
use fairlead_common::service::{ServiceKey, Slot, forward};
use fairlead_common::tables::{Flows, Services};
use fairlead_tests::kernel::{
    Node, POD, POD0, ROUTER, SkBuff, TUNNEL_V4, UP0, XdpMd, addr_of, on_a_full_node,
};
use fairlead_tests::packet::{Packet, eth, tcp};
use fairlead_tests::report::{Figures, Goal, Report, median};

mod live;
mod pods;

const SERVICE_V4: &str = "192.0.2.80";
const SERVICE_V6: &str = "2001:db8::80";
/// Slots of the ring, and backends on it.
const SLOTS: usize = 65536;
const BACKENDS: usize = 100;
/// Rounds of all cases, and packets of a case in a round.
const ROUNDS: usize = 61;
const PACKETS: u32 = 10_000;
/// Flows are visited in steps of this odd number: every flow comes, and none beside its neighbour.
const STEP: u64 = 2_654_435_761;

fn main() -> ExitCode {
    let words: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [object, out] = &words[..] else {
        eprintln!("usage: bench OBJECT OUT (`cargo xtask bench lb` says both)");
        return ExitCode::from(2);
    };
    bench(object, out).unwrap_or_else(|error| {
        eprintln!("bench lb: {error:#}");
        ExitCode::from(2)
    })
}

fn bench(object: &Path, out: &Path) -> Result<ExitCode> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "loading programs needs root"
    );
    let object = std::fs::read(object).with_context(|| format!("reading {}", object.display()))?;
    let mut report = Err(anyhow::anyhow!("the node did not run"));
    on_a_full_node(|node| report = measure(node, &object));
    report?.tell(out)
}

/// What is run in turns.
struct Case {
    name: &'static str,
    driver: Option<&'static str>,
    program: &'static str,
    frame: Vec<u8>,
    /// A power of two.
    flows: u64,
    /// Nanoseconds per packet of each round.
    rounds: Vec<f64>,
    /// The driver's own share of them is taken off.
    net: bool,
}

impl Case {
    fn new(name: &'static str, program: &'static str, flows: u64, packet: &Packet) -> Self {
        let frame = packet.clone().macs(ROUTER, UP0.mac).bytes();
        let driver = match (&frame[12..14], packet_has_ports(&frame)) {
            ([0x08, 0x00], true) => "drive_v4",
            ([0x86, 0xdd], true) => "drive_v6",
            _ => "drive_as_is",
        };
        Self {
            name,
            driver: Some(driver),
            program,
            frame,
            flows,
            rounds: Vec::new(),
            net: true,
        }
    }
}

impl Case {
    /// Clients' packets to a service whose backend is a pod of this node.
    fn of_requests(name: &'static str, program: &'static str) -> Self {
        let packet = eth().ip("10.0.0.1", pods::SERVICE).tcp(1024, 80);
        let mut case = Self::new(name, program, pods::FLOWS, &packet);
        case.frame.resize(60, 0);
        case.driver = Some("drive_whole");
        case
    }

    /// What that pod answers.
    fn of_answers(name: &'static str, program: &'static str) -> Self {
        let packet = eth().ip(pods::POD_ADDR, "10.0.0.1");
        let packet = packet.tcp(pods::POD_PORT, 1024).macs(POD, POD0.mac);
        let mut frame = packet.bytes();
        frame.resize(60, 0);
        Self {
            name,
            driver: Some("drive_answers"),
            program,
            frame,
            flows: pods::FLOWS,
            rounds: Vec::new(),
            net: true,
        }
    }

    /// Whether its program is one of a TC hook.
    fn is_tc(&self) -> bool {
        matches!(self.program, REAL_TC | "just_shoot")
    }
}

fn packet_has_ports(frame: &[u8]) -> bool {
    let proto = match frame[12..14] {
        [0x08, 0x00] => frame[23],
        [0x86, 0xdd] => frame[20],
        _ => 0,
    };
    matches!(proto, 6 | 17)
}

const REAL: &str = "xdp_ingress";
const REAL_TC: &str = "tc_ingress";
const ONE: &str = "tcp, 1 flow";
const MILLION: &str = "tcp, 1Mi flows";
const SYNS: &str = "syn flood, 1Mi flows";
const UDP: &str = "udp, 1 flow";
const ENCAPSULATION: &str = "baseline: parse and encapsulate";
const FLOOR: &str = "baseline: drop";
const TC_FLOOR: &str = "baseline: drop, tc";
const ICMP: &str = "not ours: icmp to the node";
const ARP: &str = "not ours: arp";

fn cases() -> Vec<Case> {
    let v4 = || eth().ip("10.0.0.1", SERVICE_V4);
    let v6 = || eth().ip("2001:db8:9::9", SERVICE_V6);
    let tcp4 = || v4().tcp(1024, 80);
    let mut arp = Case::new(ARP, REAL, 1, &v4().ping(1, 1));
    arp.frame.truncate(14);
    arp.frame[12..14].copy_from_slice(&[0x08, 0x06]);
    arp.frame.resize(60, 0);
    let mut floor = Case::new(FLOOR, "just_drop", 1, &tcp4());
    floor.driver = None;
    let drivers = [
        ("driver of ipv4", tcp4()),
        ("driver of ipv6", v6().tcp(1024, 80)),
        ("driver of the rest", v4().ping(1, 1)),
    ]
    .map(|(name, packet)| Case {
        net: false,
        ..Case::new(name, "just_drop", 1, &packet)
    });
    let mut shot = Case::of_answers(TC_FLOOR, "just_shoot");
    shot.driver = None;
    let answers = Case {
        net: false,
        ..Case::of_answers("driver of answers", "just_shoot")
    };
    let whole = Case {
        net: false,
        ..Case::of_requests("driver of whole headers", "just_drop")
    };
    let million = 1 << 20;
    let mut cases = vec![floor, shot, answers, whole];
    cases.extend(drivers);
    cases.extend([
        Case::new("baseline: parse and swap MACs", "swap_macs", 1, &tcp4()),
        Case::new(ENCAPSULATION, "encapsulate", 1, &tcp4()),
        Case::new(ONE, REAL, 1, &tcp4()),
        Case::new("tcp, 64Ki flows", REAL, 1 << 16, &tcp4()),
        Case::new(MILLION, REAL, million, &tcp4()),
        Case::new(SYNS, REAL, million, &tcp4().flags(tcp::SYN)),
        Case::new(UDP, REAL, 1, &v4().udp(1024, 80)),
        Case::new("tcp over ipv6, 1 flow", REAL, 1, &v6().tcp(1024, 80)),
        Case::new(
            "tcp over ipv6, 1Mi flows",
            REAL,
            million,
            &v6().tcp(1024, 80),
        ),
        Case::new(ICMP, REAL, 1, &eth().ip("10.0.0.1", TUNNEL_V4).ping(1, 1)),
        Case::new(
            "not ours: tcp to the node",
            REAL,
            1,
            &eth().ip("10.0.0.1", TUNNEL_V4).tcp(1024, 22),
        ),
        arp,
        Case::of_requests("to a pod of this node, 64Ki flows", REAL),
        Case::of_answers("and its answers, 64Ki flows", REAL_TC),
        Case::new(
            "next hop unresolved: the kernel is asked",
            REAL,
            1,
            &eth().ip("10.0.0.1", "192.0.2.81").tcp(1024, 80),
        ),
    ]);
    cases
}

/// Services with a full ring, behind one router.
fn furnish(node: &mut Node) {
    let backends: Vec<u32> = (0..BACKENDS)
        .map(|n| {
            let id = node.backend(&format!("10.50.0.{}", n + 1), forward::ENCAPSULATE);
            node.next_hop(id, UP0, Some(ROUTER), 1500);
            id
        })
        .collect();
    let ring: Vec<Slot> = (0..SLOTS)
        .map(|slot| Slot {
            current: backends[slot * 7 % BACKENDS],
            previous: 0,
        })
        .collect();
    node.service(SERVICE_V4, 80, Proto::TCP, &ring);
    let key = |addr, proto| ServiceKey::new(addr_of(addr), Port::new(80), proto);
    let row = node.get::<Services>(&key(SERVICE_V4, Proto::TCP));
    let row = row.expect("a row that was written");
    for key in [key(SERVICE_V4, Proto::UDP), key(SERVICE_V6, Proto::TCP)] {
        node.set::<Services>(&key, &row);
        node.lets_through(key.addr);
    }
    let asking = node.backend("10.50.1.1", forward::ENCAPSULATE);
    let slot = Slot {
        current: asking,
        previous: 0,
    };
    node.service("192.0.2.81", 80, Proto::TCP, &[slot]);
}

/// The benchmark's object, and the real programs to call.
struct Bench {
    ebpf: Ebpf,
    real: ProgramFd,
    real_tc: ProgramFd,
    drive: Array<MapData, [u64; 12]>,
    under_test: ProgramArray<MapData>,
    under_test_tc: ProgramArray<MapData>,
}

impl Bench {
    fn open(object: &[u8], node: &mut Node) -> Result<Self> {
        let mut ebpf = EbpfLoader::new().btf(None).load(object)?;
        for (name, program) in ebpf.programs_mut() {
            let loaded = if let Program::SchedClassifier(program) = program {
                program.load()
            } else {
                <&mut Xdp>::try_from(program).and_then(Xdp::load)
            };
            loaded.with_context(|| format!("loading {name}"))?;
        }
        let mut take = |name: &str| ebpf.take_map(name).with_context(|| format!("no {name}"));
        Ok(Self {
            drive: take("DRIVE")?.try_into()?,
            under_test: take("UNDER_TEST")?.try_into()?,
            under_test_tc: take("UNDER_TEST_TC")?.try_into()?,
            ebpf,
            real: node.descriptor(REAL),
            real_tc: node.descriptor(REAL_TC),
        })
    }

    fn descriptor(&self, name: &str) -> Result<ProgramFd> {
        let program = self.ebpf.program(name);
        let program = program.with_context(|| format!("no {name}"))?;
        Ok(program.fd()?.try_clone()?)
    }

    fn program<'a, P: 'a>(&'a mut self, name: &str) -> Result<&'a mut P>
    where
        &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
    {
        let program = self.ebpf.program_mut(name);
        Ok(program.with_context(|| format!("no {name}"))?.try_into()?)
    }

    /// Nanoseconds per packet over `packets`, with flows visited in this step.
    fn run(&mut self, case: &Case, packets: u32, step: u64) -> Result<f64> {
        let mut drive = words(&case.frame);
        let counted = self.drive.get(&0, 0)?[11];
        drive[8..].copy_from_slice(&[case.frame.len() as u64, case.flows - 1, step, counted]);
        self.drive.set(0, drive, 0)?;
        let under_test = match case.program {
            REAL => self.real.try_clone()?,
            REAL_TC => self.real_tc.try_clone()?,
            name => self.descriptor(name)?,
        };
        let driver = case.driver.unwrap_or(case.program);
        let result = if case.is_tc() {
            self.under_test_tc.set(0, &under_test, 0)?;
            let context = SkBuff::of(POD0, 0);
            let program: &mut SchedClassifier = self.program(driver)?;
            repeat(program, &case.frame, bytemuck::bytes_of(&context), packets)
        } else {
            self.under_test.set(0, &under_test, 0)?;
            let context = XdpMd::of(&case.frame, UP0);
            let program: &mut Xdp = self.program(driver)?;
            repeat(program, &case.frame, bytemuck::bytes_of(&context), packets)
        };
        let result = result.with_context(|| format!("running {}", case.name))?;
        ensure!(
            result.return_value != 0,
            "{}: the run was aborted",
            case.name
        );
        Ok(result.duration.as_secs_f64() * 1e9)
    }
}

/// The first 64 bytes of a frame, padded, as programs read them; the rest of the row is zero.
fn words(frame: &[u8]) -> [u64; 12] {
    let mut frame = frame.to_vec();
    frame.resize(64, 0);
    let mut words = [0; 12];
    for (word, eight) in words.iter_mut().zip(frame.as_chunks::<8>().0) {
        *word = u64::from_ne_bytes(*eight);
    }
    words
}

fn repeat<P>(program: &P, frame: &[u8], context: &[u8], repeat: u32) -> Result<TestRunResult>
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult>,
{
    let mut out = vec![0; frame.len() + 256];
    Ok(program.test_run(TestRunOptions {
        data_in: Some(frame),
        data_out: Some(&mut out),
        ctx_in: Some(context),
        repeat,
        ..TestRunOptions::default()
    })?)
}

fn measure(node: &mut Node, object: &[u8]) -> Result<Report> {
    furnish(node);
    pods::furnish(node)?;
    let mut bench = Bench::open(object, node)?;
    let mut cases = cases();
    for case in &cases {
        // Every flow once, in another order, so that nothing is seen for the first time later; and what becomes of it.
        bench.run(case, (case.flows as u32).max(PACKETS), 1)?;
    }
    for _ in 0..ROUNDS {
        for case in &mut cases {
            let ns = bench.run(case, PACKETS, STEP)?;
            case.rounds.push(ns);
        }
    }
    let sent = node.reasons();
    let encapsulated = sent[Reason::ServiceEncapsulated as usize].packets;
    ensure!(
        encapsulated > 7 * ROUNDS as u64 * u64::from(PACKETS),
        "only {encapsulated} packets were balanced: this is not the measurement that was meant"
    );
    let of = |reason: Reason| sent[reason as usize].packets;
    let turns = ROUNDS as u64 * u64::from(PACKETS);
    for reason in [Reason::ServiceTranslated, Reason::ServiceAnswered] {
        ensure!(
            of(reason) > turns,
            "only {} packets ended as {reason}: this is not the measurement that was meant",
            of(reason)
        );
    }
    let remembered = u32::try_from(node.rows::<Flows>().len())?;
    let mut report = report(&cases, remembered);
    let mut frames = live::Frames::open(&mut bench.ebpf)?;
    live::measure(node, &mut frames, &mut report)?;
    pods::measure(node, &mut frames, &mut report)?;
    Ok(report)
}

fn report(cases: &[Case], remembered: u32) -> Report {
    let floor_of = |name: &str| {
        let floor = cases.iter().find(|case| case.name == name);
        median(floor.map_or(&[][..], |case| &case.rounds))
    };
    let floor = floor_of(FLOOR);
    let driver_of = |case: &Case| {
        let is_its = |one: &&Case| !one.net && one.driver == case.driver;
        cases.iter().find(is_its).map(|one| &one.rounds)
    };
    let figures = cases.iter().map(|case| {
        let driver = driver_of(case).filter(|_| case.net && case.driver.is_some());
        // The driver's share is one number for all rounds: differences of single rounds are noise.
        let below = floor_of(if case.is_tc() { TC_FLOOR } else { FLOOR });
        let share = driver.map_or(0.0, |rounds| median(rounds) - below);
        Figures::of(case.name, "ns/packet", &case.rounds).less(share)
    });
    let mut report = Report {
        figures: figures.collect(),
        ratios: Vec::new(),
    };
    let not_ours = 2.0 * floor + 5.0;
    let ratios = [
        (
            "one flow / encapsulation",
            ONE,
            report.median(ENCAPSULATION),
            3.0,
        ),
        (
            "a million flows / one flow",
            MILLION,
            report.median(ONE),
            2.4,
        ),
        // Equal but for what two medians of the same thing differ by.
        (
            "syn flood / a million flows",
            SYNS,
            report.median(MILLION),
            1.05,
        ),
        ("udp / tcp", UDP, report.median(ONE), 1.15),
        ("icmp to the node / (2 floors + 5 ns)", ICMP, not_ours, 1.0),
        ("arp / (2 floors + 5 ns)", ARP, not_ours, 1.0),
    ];
    for (name, case, beside, most) in ratios {
        report.ratio(name, report.median(case) / beside, Goal::AtMost(most));
    }
    report.ratio(
        "rows of FLOWS afterwards",
        remembered.into(),
        Goal::AtMost(0.0),
    );
    report
}
