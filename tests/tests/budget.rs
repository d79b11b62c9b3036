//! What the datapath may cost: instructions for the verifier, stack, memory. A ceiling that is raised is a
//! visible decision.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::EbpfLoader;
use aya::maps::Map;
use aya_obj::Object;
use fairlead_common::service::{Backend, RingPage, Slot, Traffic};
use fairlead_common::tables;
use fairlead_control::dataplane::load::OBJECT;
use fairlead_control::desired::BackendAddr;
use fairlead_control::plan::maglev::Sizes;
use fairlead_tests::kernel::on_a_node;

/// Instructions that the verifier walks through, of its one million.
const VERIFIED: [(&str, u32); 23] = [
    ("connect4", 15_000),
    ("connect6", 15_000),
    ("getpeername4", 100),
    ("getpeername6", 100),
    ("recvmsg4", 2_000),
    ("recvmsg6", 2_000),
    ("sendmsg4", 15_000),
    ("sendmsg6", 30_000),
    ("tc_answer", 130_000),
    ("tc_egress", 120_000),
    ("tc_ingress", 140_000),
    ("tc_odd", 250_000),
    ("tc_relay", 200_000),
    ("tc_to_pod", 70_000),
    ("xdp_answer", 130_000),
    ("xdp_arrival", 250_000),
    ("xdp_decap", 20_000),
    ("xdp_here", 600_000),
    ("xdp_ingress", 70_000),
    ("xdp_odd", 200_000),
    ("xdp_relay", 250_000),
    ("xdp_return", 100_000),
    ("xdp_tagged", 75_000),
];
/// Bytes of stack, of 512. The verifier adds what it needs for alignment.
const STACK_BYTES: i16 = 496;
/// Kernel memory of all tables at their full size: what they share, and what each CPU adds.
const MAP_BYTES: u64 = 240 << 20;
const MAP_BYTES_PER_CPU: u64 = 7 << 20;

#[test]
fn the_verifier_is_done_with_each_program_under_its_ceiling() {
    on_a_node(|node| {
        let found: BTreeMap<_, _> = node.verified_instructions().into_iter().collect();

        assert_eq!(found.len(), VERIFIED.len(), "{found:?}");
        for (name, ceiling) in VERIFIED {
            let verified = found[name];
            println!("{name}: {verified} of {ceiling}");
            assert!(verified <= ceiling, "{name}: {verified} of {ceiling}");
            // A ceiling far above is none.
            assert!(
                verified * 4 >= ceiling,
                "{name}: {verified} of {ceiling}: lower it"
            );
        }
    });
}

/// The lowest stack address that a program names: as the base of a load or store, or in an addition to a
/// copy of the frame pointer.
fn stack_bytes(instructions: &[aya_obj::generated::bpf_insn]) -> i16 {
    const FRAME_POINTER: u8 = 10;
    const ADD_TO_REGISTER: u8 = 0x07;
    const COPY_REGISTER: u8 = 0xbf;
    let mut lowest = 0;
    let mut pairs = instructions.iter().peekable();
    while let Some(instruction) = pairs.next() {
        let class = instruction.code & 7;
        let base = match class {
            1 => instruction.src_reg(),
            2 | 3 => instruction.dst_reg(),
            _ => 0,
        };
        if base == FRAME_POINTER {
            lowest = lowest.min(instruction.off);
        }
        if instruction.code == COPY_REGISTER
            && instruction.src_reg() == FRAME_POINTER
            && let Some(next) = pairs.peek()
            && next.code == ADD_TO_REGISTER
            && next.dst_reg() == instruction.dst_reg()
        {
            lowest = lowest.min(next.imm as i16);
        }
    }
    -lowest
}

#[test]
fn no_program_comes_near_the_end_of_the_stack() {
    let object = Object::parse(OBJECT).expect("an object");
    assert_eq!(object.programs.len(), VERIFIED.len());
    for (name, program) in &object.programs {
        let function = &object.functions[&program.function_key()];
        let bytes = stack_bytes(&function.instructions);
        println!("{name}: {bytes} bytes of {STACK_BYTES}");

        // A program that only asks its socket needs none.
        assert!(
            bytes > 0 || name.starts_with("getpeername") || name.starts_with("recvmsg"),
            "{name} names no stack: is this the right function?"
        );
        assert!(bytes <= STACK_BYTES, "{name}: {bytes} of {STACK_BYTES}");
    }
}

#[test]
fn programs_call_the_kernel_only() {
    // A call within the object is a loop of bytes that fills or copies memory: 16 bytes cost 40 ns.
    const CALL: u8 = 0x85;
    const WITHIN_THE_OBJECT: u8 = 1;
    let object = Object::parse(OBJECT).expect("an object");
    assert_eq!(object.programs.len(), VERIFIED.len());
    for (name, program) in &object.programs {
        let function = &object.functions[&program.function_key()];
        let calls = function.instructions.iter().filter(|instruction| {
            instruction.code == CALL && instruction.src_reg() == WITHIN_THE_OBJECT
        });

        assert_eq!(calls.count(), 0, "{name}");
    }
}

#[test]
fn all_tables_at_their_full_size_fit_into_their_share_of_memory() {
    if !fairlead_tests::root::is_root() {
        return;
    }
    let ebpf = EbpfLoader::new().btf(None).load(OBJECT).expect("an object");
    let mut found = BTreeMap::new();
    for (name, map) in ebpf.maps() {
        if name.starts_with('.') && !name.starts_with(".data.") {
            continue;
        }
        let (Map::Array(data)
        | Map::PerCpuArray(data)
        | Map::HashMap(data)
        | Map::PerCpuHashMap(data)
        | Map::LruHashMap(data)
        | Map::DevMapHash(data)
        | Map::LpmTrie(data)
        | Map::SkStorage(data)
        | Map::ProgramArray(data)) = map
        else {
            panic!("{name}: a map of another kind");
        };
        found.insert(name.to_owned(), memory(data.fd().as_fd().as_raw_fd()));
    }

    assert_eq!(found.len(), tables::ALL.len());
    let total: u64 = found.values().sum();
    let cpus = aya::util::nr_cpus().expect("a number of CPUs") as u64;
    let ceiling = MAP_BYTES + cpus * MAP_BYTES_PER_CPU;
    println!("{total} of {ceiling}: {found:#?}");
    assert!(total <= ceiling, "{total} of {ceiling}: {found:#?}");
}

#[test]
fn a_ring_and_a_backend_take_what_the_documentation_says() {
    let members = |count: u32| -> Vec<_> {
        let at = |number| BackendAddr {
            addr: IpAddr::from(Ipv4Addr::from(0x0a00_0000 + number)),
            port: 80,
        };
        (0..count).map(|number| (at(number), 1)).collect()
    };
    let ring_bytes = |count| Sizes::FLEET.of(&members(count)) as usize * size_of::<Slot>();

    assert_eq!(ring_bytes(1), 4096);
    assert_eq!(ring_bytes(10), 4096);
    assert_eq!(ring_bytes(20), 8192);
    for count in 6..=1310 {
        let share = ring_bytes(count) / count as usize;
        assert!(
            (400..=820).contains(&share),
            "{count} backends: {share} bytes each"
        );
    }
    assert_eq!(size_of::<Backend>(), 24);
    assert_eq!(
        size_of::<Traffic>(),
        32,
        "on each CPU, for a backend and for a service"
    );
    // Ten thousand services with ten backends each, and five thousand with twenty, none of them in common.
    let pages = 10_000 * ring_bytes(10) / size_of::<RingPage>();
    assert!(pages <= tables::RING_PAGES as usize, "{pages} pages");
    let pages = 5_000 * ring_bytes(20) / size_of::<RingPage>();
    assert!(pages <= tables::RING_PAGES as usize, "{pages} pages");
}

/// What the kernel says that a map's memory is.
fn memory(fd: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).expect("fdinfo");
    let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
    line.expect("a map").trim().parse().expect("a number")
}
