//! The real programs on single packets: a node in a namespace of its own, and `BPF_PROG_TEST_RUN`.
//!
//! ```text
//!   router 10.1.0.254, backends 10.1.0.11.. --- up0  10.1.0.1, fd00:1::1  }
//!   backends 10.2.0.12..                    --- up1  10.2.0.1, fd00:2::1  } the node: DEVICES, TX_PORTS
//!   pod 10.244.1.5, fd00:244:1::5           --- pod0                      }
//!   host 10.3.0.9                           --- lan0 10.3.0.1, fd00:3::1    not managed
//! ```
//! `bpf_fib_lookup` answers from the namespace's real routes and neighbours. The far ends of the links are
//! silent. Tables have few rows here, so that a test needs milliseconds.
//!
//! Every run checks what holds for every packet: exactly one reason is counted, with the frame's bytes; the
//! action is that of the reason's verdict; what is passed is untouched.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use aya::Ebpf;
use aya::programs::{
    Program, ProgramError, ProgramFd, SchedClassifier, TcAttachType, TestRun, TestRunOptions,
    TestRunResult, Xdp, XdpMode,
};
use bytemuck::Zeroable;
use fairlead_common::addr::{Addr, Cidr4, Port, Proto};
use fairlead_common::detour::Hook;
use fairlead_common::flow::FlowKey;
use fairlead_common::nat::{self, NatFlow};
use fairlead_common::reason::{Reason, Verdict};
use fairlead_common::route::{self, DEVICE_MASK, TxPort};
use fairlead_common::served;
use fairlead_common::service::{
    Backend, Count, NextHop, RingPage, SLOTS_PER_PAGE, Service, ServiceKey, Slot, flags,
    next_hop_flags,
};
use fairlead_common::snat::{self, Binding};
use fairlead_common::tables::{
    Addresses, Backends, Devices, NatFlows, NextHops, NodeTable, Rings, Services, SieveTable,
    TxPorts, WayEpoch,
};
use fairlead_control::host::namespace;

use crate::packet::{Mac, Packet, check};

mod context;
mod here;
mod place;
mod programs;
mod rare;
mod rows;
mod sockets;

pub use context::{SkBuff, XdpMd};

/// A device of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: &'static str,
    /// Its index.
    pub ifindex: u32,
    /// Its MAC address.
    pub mac: Mac,
}

const fn link(name: &'static str, ifindex: u32) -> Link {
    Link {
        name,
        ifindex,
        mac: [2, 0, 0, 0, 0, ifindex as u8],
    }
}

/// The first uplink.
pub const UP0: Link = link("up0", 10);
/// The second uplink.
pub const UP1: Link = link("up1", 11);
/// The host end of a pod.
pub const POD0: Link = link("pod0", 20);
/// A device that Fairlead does not manage.
pub const LAN0: Link = link("lan0", 30);
/// The router on `up0`: 10.1.0.254 and `fd00:1::fe`.
pub const ROUTER: Mac = [2, 0, 0, 1, 0, 0xfe];
/// The backend on `up0`: 10.1.0.11 and `fd00:1::11`.
pub const BACKEND0: Mac = [2, 0, 0, 1, 0, 0x11];
/// The backend on `up1`: 10.2.0.12 and `fd00:2::12`.
pub const BACKEND1: Mac = [2, 0, 0, 2, 0, 0x12];
/// The pod: 10.244.1.5 and `fd00:244:1::5`.
pub const POD: Mac = [2, 0, 0, 3, 0, 0x05];
/// Under this address pods leave.
pub const EGRESS: &str = "198.51.100.1";
/// The node's own addresses in tunnels.
pub const TUNNEL_V4: &str = "10.1.0.1";
/// The node's own addresses in tunnels.
pub const TUNNEL_V6: &str = "fd00:1::1";

/// The id of the service whose ring begins on page 0.
const FIRST_SERVICE: u32 = 100;

/// A node that runs the programs.
pub struct Node {
    ebpf: Ebpf,
    /// Every frame that went in and came out, for the pcap of a failed test.
    seen: Vec<Vec<u8>>,
    addresses: BTreeSet<Addr>,
    /// Whether what goes in is whole, so that what leaves must be.
    takes_whole: bool,
    next_backend: u32,
    next_page: u32,
    next_copy: u32,
    /// The kinds of programs whose detours are filled.
    turns_off: Vec<Hook>,
}

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// Why.
    pub reason: Reason,
    /// What the program told the kernel.
    pub action: Action,
    /// The frame as it is afterwards.
    pub frame: Vec<u8>,
}

/// What a program tells the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// To the stack, or along the chain of TC programs.
    Pass,
    /// Away with it.
    Drop,
    /// Out by the device it came from (XDP).
    Back,
    /// Out by another device.
    Redirect,
}

/// Runs `work` on a node of its own: a namespace that lives as long as the thread.
///
/// # Panics
/// The node cannot be made, or `work` panics. Then its frames stand in `target/failed/TEST.pcap`.
pub fn on_a_node(work: impl FnOnce(&mut Node) + Send) {
    run(rows::FEW_ROWS, work);
}

/// As [`on_a_node`], with tables of their full size.
pub fn on_a_full_node(work: impl FnOnce(&mut Node) + Send) {
    run(&[], work);
}

fn run(rows: &[(&str, u32)], work: impl FnOnce(&mut Node) + Send) {
    if !crate::root::is_root() {
        return;
    }
    let name = std::thread::current().name().unwrap_or("test").to_owned();
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name(name)
            .spawn_scoped(scope, || work(&mut Node::new(rows)))
            .expect("a thread")
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// Moves this thread into a namespace like a node's, without programs.
pub fn bare_place() {
    place::make();
}

impl Node {
    fn new(rows: &[(&str, u32)]) -> Self {
        place::make();
        let mut node = Self {
            ebpf: programs::load_object(rows),
            seen: Vec::new(),
            addresses: BTreeSet::new(),
            takes_whole: true,
            next_backend: 1,
            next_page: 0,
            next_copy: 0,
            turns_off: Vec::new(),
        };
        for link in [UP0, UP1, POD0] {
            node.manage(link);
        }
        node.set::<NodeTable>(&0, &a_node());
        node.set::<WayEpoch>(&0, &1);
        // A veth has receive queues for XDP only while a program is attached.
        let program = node.ebpf.program_mut("xdp_ingress").expect("xdp_ingress");
        programs::load_program("xdp_ingress", program);
        let program: &mut Xdp = program.try_into().expect("xdp_ingress");
        for link in [UP0, UP1] {
            program
                .attach(link.name, XdpMode::Driver)
                .expect("attaching to a veth");
        }
        node
    }

    /// Puts a device into `DEVICES` and `TX_PORTS`.
    pub fn manage(&mut self, link: Link) {
        let device = route::Device {
            ifindex: link.ifindex,
            mac: link.mac,
            flags: 0,
            pad: 0,
            mtu: 1500,
        };
        self.set::<Devices>(&(link.ifindex & DEVICE_MASK), &device);
        let port = TxPort {
            ifindex: link.ifindex,
            program: 0,
        };
        self.set::<TxPorts>(&link.ifindex, &port);
    }

    /// The rows that a flow may have in `NAT_FLOWS`.
    fn kept_rows(&mut self, answer: &FlowKey) -> impl Iterator<Item = u32> + use<> {
        let node = self.get::<NodeTable>(&0).expect("a node");
        let first = nat::row(answer, node.port_secret);
        (0..nat::PROBES).map(move |probe| nat::probe(first, probe))
    }

    /// Where a flow that this node translates is kept, and what is known of it, by its answers.
    pub fn kept_flow(&mut self, answer: &FlowKey) -> Option<(u32, Binding)> {
        self.kept_rows(answer).find_map(|at| {
            let row = self.get::<NatFlows>(&at).expect("a row");
            (row.answer() == *answer && row.binding.last_seen_s != 0).then_some((at, row.binding))
        })
    }

    /// Keeps a flow that this node translates, by its answers.
    pub fn keep_flow(&mut self, answer: &FlowKey, binding: &Binding) {
        let free = self
            .kept_rows(answer)
            .find(|at| self.get::<NatFlows>(at) == Some(NatFlow::default()));
        let row = NatFlow::new(answer, *binding);
        self.set::<NatFlows>(&free.expect("a free row"), &row);
    }

    /// Adds a backend and returns its id.
    pub fn backend(&mut self, addr: &str, forward: u8) -> u32 {
        let id = self.next_backend;
        self.next_backend += 1;
        let backend = Backend {
            addr: addr_of(addr),
            port: Port::new(80),
            forward,
            flags: flags::ALIVE,
            next_hop: 0,
        };
        self.set::<Backends>(&id, &backend);
        id
    }

    /// Gives a backend a next hop of its own: a neighbour with this MAC address, or one that is not resolved.
    pub fn next_hop(&mut self, backend: u32, link: Link, mac: Option<Mac>, mtu: u32) {
        let next_hop = NextHop {
            ifindex: link.ifindex,
            source: link.mac,
            destination: mac.unwrap_or_default(),
            addr: addr_of("10.1.0.99"),
            mtu,
            flags: mac.map_or(0, |_| next_hop_flags::RESOLVED),
        };
        self.set::<NextHops>(&backend, &next_hop);
        let mut row = self.get::<Backends>(&backend).expect("a row");
        row.next_hop = backend;
        self.set::<Backends>(&backend, &row);
    }

    /// Adds a service with a ring of these slots and returns its id.
    pub fn service(&mut self, addr: &str, port: u16, proto: Proto, ring: &[Slot]) -> u32 {
        let first_page = self.next_page;
        for slots in ring.chunks(SLOTS_PER_PAGE as usize) {
            let mut page = RingPage::zeroed();
            page[..slots.len()].copy_from_slice(slots);
            let index = self.next_page;
            self.set::<Rings>(&index, &page);
            self.next_page += 1;
        }
        let service = Service {
            id: FIRST_SERVICE + first_page,
            ring: first_page * SLOTS_PER_PAGE,
            slots: ring.len() as u32,
            ..Service::default()
        };
        let key = ServiceKey::new(addr_of(addr), Port::new(port), proto);
        self.set::<Services>(&key, &service);
        self.set::<Services>(&key.inside(), &service);
        let served = if ring.is_empty() {
            0
        } else {
            served::flags::SERVED
        };
        self.own(addr_of(addr), served);
        service.id
    }

    /// Makes an address a service's.
    fn own(&mut self, addr: Addr, flags: u32) {
        let held = self.get::<Addresses>(&addr).unwrap_or_default();
        self.set::<Addresses>(&addr, &(held | flags));
        self.lets_through(addr);
    }

    /// Has the sieve let an address through.
    pub fn lets_through(&mut self, addr: Addr) {
        self.addresses.insert(addr);
        let sieve = self.addresses.iter().copied().collect();
        self.set::<SieveTable>(&0, &sieve);
    }

    /// Writes a kernel parameter of the node's namespace.
    pub fn sysctl(&self, path: &str, value: &str) {
        place::sysctl(path, value);
    }

    /// Runs lines of `ip` in the node's namespace.
    pub fn ip(&self, lines: &str) {
        place::ip(lines);
    }

    /// Replaces the ring of a service that [`Node::service`] made, of at most a page.
    pub fn set_ring(&mut self, service: u32, ring: &[Slot]) {
        let mut page = RingPage::zeroed();
        page[..ring.len()].copy_from_slice(ring);
        self.set::<Rings>(&(service - FIRST_SERVICE), &page);
    }

    /// Changes what the node is.
    pub fn change(&mut self, change: impl FnOnce(&mut route::Node)) {
        let mut row = self.get::<NodeTable>(&0).expect("a row");
        change(&mut row);
        self.set::<NodeTable>(&0, &row);
    }

    /// Runs `xdp_ingress` on a frame that arrives at `link`, addressed to it.
    pub fn arrives(&mut self, link: Link, packet: &Packet) -> Ran {
        let packet = packet.clone().macs(ROUTER, link.mac);
        self.xdp("xdp_ingress", link, &packet.bytes())
    }

    /// Runs `tc_ingress` on a frame that a pod sends, addressed to the pod's gateway.
    pub fn pod_sends(&mut self, packet: &Packet) -> Ran {
        let packet = packet.clone().macs(POD, POD0.mac);
        self.tc("tc_ingress", POD0, &packet.bytes(), 0)
    }

    /// Runs `tc_egress` on a frame that leaves by `up0` for the router.
    pub fn leaves(&mut self, packet: &Packet) -> Ran {
        let packet = packet.clone().macs(UP0.mac, ROUTER);
        self.tc("tc_egress", UP0, &packet.bytes(), 0)
    }

    /// Runs an XDP program.
    pub fn xdp(&mut self, program: &str, link: Link, frame: &[u8]) -> Ran {
        let context = XdpMd::of(frame, link);
        let before = self.reasons();
        let program: &mut Xdp = self.program(program);
        let (action, out) = test_run(program, frame, bytemuck::bytes_of(&context));
        let action = match action {
            1 => Action::Drop,
            2 => Action::Pass,
            3 => Action::Back,
            4 => Action::Redirect,
            number => panic!("XDP action {number}"),
        };
        self.ran(&before, action, frame, out)
    }

    /// Runs a TC program on a frame at `link`; `gso_size` is 0 for a plain one.
    pub fn tc(&mut self, program: &str, link: Link, frame: &[u8], gso_size: u32) -> Ran {
        let context = SkBuff::of(link, gso_size);
        let before = self.reasons();
        let program: &mut SchedClassifier = self.program(program);
        let (action, out) = test_run(program, frame, bytemuck::bytes_of(&context));
        let action = match action {
            u32::MAX => Action::Pass,
            2 => Action::Drop,
            7 => Action::Redirect,
            number => panic!("TC action {number}"),
        };
        self.ran(&before, action, frame, out)
    }

    /// A loaded program, for other programs to call.
    pub fn descriptor(&mut self, program: &str) -> ProgramFd {
        self.load_beside(program);
        let program = self.ebpf.program(program).expect(program);
        let fd = program.fd().expect("a loaded program");
        fd.try_clone().expect("a descriptor")
    }

    /// Attaches a TC program where frames from `link` come in.
    pub fn attach_tc(&mut self, program: &str, link: Link) {
        let program: &mut SchedClassifier = self.program(program);
        program
            .attach(link.name, TcAttachType::Ingress)
            .expect("attaching to a veth");
    }

    /// How long one run of an XDP program takes, on average over `repeat` runs on the same frame.
    pub fn time_xdp(&mut self, program: &str, link: Link, frame: &[u8], repeat: u32) -> Duration {
        let context = XdpMd::of(frame, link);
        let program: &mut Xdp = self.program(program);
        let mut out = vec![0; frame.len() + 256];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(bytemuck::bytes_of(&context)),
            repeat,
            ..TestRunOptions::default()
        };
        program.test_run(options).expect("a test run").duration
    }

    /// How many instructions the verifier walked through for each program.
    pub fn verified_instructions(&mut self) -> Vec<(String, u32)> {
        for one_of_each in ["xdp_ingress", "tc_ingress", "connect4"] {
            self.load_beside(one_of_each);
        }
        let of = |name: &str, info: Result<aya::programs::ProgramInfo, ProgramError>| {
            let count = info.ok().and_then(|info| info.verified_instruction_count());
            (name.to_owned(), count.expect("a kernel that says it"))
        };
        self.ebpf
            .programs()
            .map(|(name, program)| of(name, program.info()))
            .collect()
    }

    fn program<'a, P: 'a>(&'a mut self, name: &str) -> &'a mut P
    where
        &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
    {
        self.load_beside(name);
        let program = self.ebpf.program_mut(name).expect(name);
        program.try_into().expect(name)
    }

    /// Checks what holds for every packet.
    fn ran(&mut self, before: &[Count], action: Action, frame: &[u8], out: Vec<u8>) -> Ran {
        self.seen.extend([frame.to_vec(), out.clone()]);
        let counted: Vec<_> = self
            .reasons()
            .into_iter()
            .zip(before)
            .zip(Reason::ALL)
            .map(|((after, before), &reason)| {
                (
                    reason,
                    after.packets - before.packets,
                    after.bytes - before.bytes,
                )
            })
            .filter(|&(_, packets, _)| packets != 0)
            .collect();
        let [(reason, 1, bytes)] = counted[..] else {
            panic!("one packet, and counted were {counted:?}");
        };
        assert_eq!(bytes, frame.len() as u64, "bytes counted for {reason}");
        let verdict = match action {
            Action::Pass => Verdict::Pass,
            Action::Drop => Verdict::Drop,
            Action::Back | Action::Redirect => Verdict::Forward,
        };
        assert_eq!(verdict, reason.verdict(), "action {action:?} for {reason}");
        let changes = matches!(
            reason,
            Reason::Translated
                | Reason::TranslatedToStack
                | Reason::Decapsulated
                | Reason::ServiceToStack
                | Reason::ServiceAnsweredByStack
        );
        if verdict == Verdict::Pass && !changes {
            assert_eq!(frame, out, "passed as {reason}, and not untouched");
        }
        if self.takes_whole && (verdict == Verdict::Forward || changes) {
            check(&out);
        }
        Ran {
            reason,
            action,
            frame: out,
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Err(error) = write_pcap(&self.seen)
        {
            #[expect(clippy::print_stderr, reason = "a test has failed: say what else did")]
            {
                eprintln!("writing the frames of the failed test: {error}");
            }
        }
    }
}

fn write_pcap(frames: &[Vec<u8>]) -> anyhow::Result<()> {
    let name = std::thread::current()
        .name()
        .unwrap_or("test")
        .replace("::", "-");
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/failed");
    std::fs::create_dir_all(&folder)?;
    let path = folder.join(format!("{name}.pcap"));
    let file = std::fs::File::create(&path)?;
    let mut pcap = pcap_file::pcap::PcapWriter::new(file)?;
    for (second, frame) in (0..).zip(frames) {
        let packet = pcap_file::pcap::PcapPacket::new(
            Duration::from_secs(second),
            frame.len() as u32,
            frame,
        );
        pcap.write_packet(&packet)?;
    }
    #[expect(clippy::print_stderr, reason = "a test has failed: say where to look")]
    {
        eprintln!("frames in and out, in turn: {}", path.display());
    }
    Ok(())
}

/// The node's row: its tunnel and egress addresses, one pod CIDR, one native CIDR, all buckets.
fn a_node() -> route::Node {
    let mut node = route::Node::zeroed();
    node.tunnel_v4 = addr_of(TUNNEL_V4);
    node.tunnel_v6 = addr_of(TUNNEL_V6);
    node.egress = addr_of(EGRESS);
    node.native = [Cidr4::NONE; route::NATIVE_CIDRS];
    node.native[0] = Cidr4::new([10, 0, 0, 0].into(), 8);
    node.pods = [Cidr4::NONE; route::POD_CIDRS];
    node.pods[0] = Cidr4::new([10, 244, 1, 0].into(), 24);
    node.buckets = snat::cells(1..64).expect("buckets");
    node.own_buckets = snat::cells([1, 60].into_iter()).expect("buckets");
    node.port_secret = 0x5eed;
    node.namespace = namespace::cookie().expect("a cookie");
    node
}

/// An address of either family.
///
/// # Panics
/// It is none.
pub fn addr_of(text: &str) -> Addr {
    Addr::new(
        text.parse()
            .unwrap_or_else(|error| panic!("{text}: {error}")),
    )
}

/// The key of a flow between two {address, port}.
pub fn flow(src: (&str, u16), dst: (&str, u16), proto: Proto) -> FlowKey {
    FlowKey::new(
        addr_of(src.0),
        Port::new(src.1),
        addr_of(dst.0),
        Port::new(dst.1),
        proto,
    )
}

/// Rows of `SNAT_REV` on a test's node.
pub const SNAT_ROWS: u32 = 4096;

fn test_run<P>(program: &P, frame: &[u8], context: &[u8]) -> (u32, Vec<u8>)
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult>,
{
    let mut out = vec![0; frame.len() + 256];
    let result = program
        .test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(context),
            ..TestRunOptions::default()
        })
        .expect("a test run");
    out.truncate(result.data_size_out as usize);
    (result.return_value, out)
}
