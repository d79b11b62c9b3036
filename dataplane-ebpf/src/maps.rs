//! Every table of the registry, once, and safe access to its rows.
//!
//! Rows are reached by pointer and copied by field: a copy of a whole large row becomes a loop of bytes.
//! Not for decisions about rows: those are in `lb`, `snat`, `route`, `flows`.
#![expect(
    unsafe_code,
    reason = "a row is shared memory that other CPUs and userspace write while it is read"
)]

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_NOEXIST};
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::maps::{
    Array, DevMapHash, HashMap, LruHashMap, PerCpuArray, PerCpuHashMap, ProgramArray,
};
use aya_ebpf::programs::SockAddrContext;
use fairlead_common::addr::Addr;
use fairlead_common::answer;
use fairlead_common::detour::{Detour, Hook};
use fairlead_common::flow::{Flow, FlowKey};
use fairlead_common::fragment::{FragmentKey, Ports};
use fairlead_common::nat::{NatFlow, NatWay};
use fairlead_common::reason::Reason;
use fairlead_common::route::{DEVICE_MASK, Device, Node};
use fairlead_common::served::{self, Sieve};
use fairlead_common::service::{
    Arrival, ArrivalKey, Backend, Count, NextHop, RingPage, SLOTS_PER_PAGE, Service, ServiceCopy,
    ServiceDrop, ServiceKey, ServingKey, Slot, SourceRange, Traffic, next_hop_flags,
};
use fairlead_common::snat::{Binding, EgressPort};
use fairlead_common::socket::{Client, TRANSLATIONS, Translation, Translations};
use fairlead_common::tables::{self, Table};

mod translated;

pub use translated::*;

/// A table of one row that programs reach by its address, which stands in their instructions ([`Kind::Global`]).
///
/// A lookup would cost every packet time for what is always the same.
///
/// It is declared in a section of its own, of which the loader makes a map ([`Table::IN_OBJECT`]).
///
/// [`Kind::Global`]: tables::Kind::Global
#[repr(transparent)]
struct Global<T>(UnsafeCell<MaybeUninit<T>>);

// SAFETY: a row is memory that userspace and all CPUs share, and is only reached by pointer.
unsafe impl<T> Sync for Global<T> {}

impl<T> Global<T> {
    const fn zero() -> Self {
        Self(UnsafeCell::new(MaybeUninit::zeroed()))
    }

    #[inline(always)]
    fn row(&'static self) -> *const T {
        let mut row = self.0.get().cast_const().cast::<T>();
        // The compiler sees nobody write, and would take the row for what it is in the object.
        // SAFETY: no instruction.
        unsafe {
            core::arch::asm!(
                "/* {row} */",
                row = inout(reg) row,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        row
    }
}

#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.NODE")]
static NODE: Global<Node> = Global::zero();
#[map]
static DEVICES: Array<Device> = Array::with_max_entries(tables::Devices::CAPACITY, 0);
#[map]
static TX_PORTS: DevMapHash = DevMapHash::with_max_entries(tables::TxPorts::CAPACITY, 0);
#[map]
static SERVICES: HashMap<ServiceKey, Service> =
    HashMap::with_max_entries(tables::Services::CAPACITY, 0);
#[map]
static SERVICE_CELLS: Array<u64> =
    Array::with_max_entries(tables::ServiceCells::CAPACITY, BPF_F_MMAPABLE);
#[map]
static SERVICE_COPIES: Array<ServiceCopy> =
    Array::with_max_entries(tables::ServiceCopies::CAPACITY, BPF_F_MMAPABLE);
#[map]
static RINGS: Array<RingPage> = Array::with_max_entries(tables::Rings::CAPACITY, BPF_F_MMAPABLE);
#[map]
static BACKENDS: Array<Backend> = Array::with_max_entries(tables::Backends::CAPACITY, 0);
#[map]
static FLOWS: LruHashMap<FlowKey, Flow> = LruHashMap::with_max_entries(tables::Flows::CAPACITY, 0);
#[map]
static SNAT_REV: HashMap<FlowKey, Binding> =
    HashMap::with_max_entries(tables::SnatRev::CAPACITY, 0);
#[map]
static SNAT_FWD: LruHashMap<FlowKey, EgressPort> =
    LruHashMap::with_max_entries(tables::SnatFwd::CAPACITY, 0);
#[map]
static DECAP_ADDRS: HashMap<Addr, u32> = HashMap::with_max_entries(tables::DecapAddrs::CAPACITY, 0);
#[map]
static SERVICE_STATS: PerCpuArray<Traffic> =
    PerCpuArray::with_max_entries(tables::ServiceStats::CAPACITY, 0);
#[map]
static BACKEND_STATS: PerCpuArray<Traffic> =
    PerCpuArray::with_max_entries(tables::BackendStats::CAPACITY, 0);
#[map]
static REASONS: PerCpuArray<Count> = PerCpuArray::with_max_entries(tables::Reasons::CAPACITY, 0);
#[map]
static LAYOUT: Array<u32> = Array::with_max_entries(tables::Layout::CAPACITY, 0);
#[map]
static NEXT_HOPS: Array<NextHop> = Array::with_max_entries(tables::NextHops::CAPACITY, 0);
// The kernel makes storage in sockets only with the types of its rows, which BTF maps have.
#[btf_map]
static SOCKETS: SkStorage<Translation> = SkStorage::new();
#[btf_map]
static DATAGRAMS: SkStorage<Translations> = SkStorage::new();
#[map]
static AFFINITY: LruHashMap<Client, Flow> =
    LruHashMap::with_max_entries(tables::Affinity::CAPACITY, 0);
#[map]
static DETOURS: ProgramArray = ProgramArray::with_max_entries(tables::Detours::CAPACITY, 0);
#[map]
static ADDRESSES: HashMap<Addr, u32> = HashMap::with_max_entries(tables::Addresses::CAPACITY, 0);
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.SIEVE")]
static SIEVE: Global<Sieve> = Global::zero();
// Five words behind the length: a type with the address's alignment would have a gap there.
#[map]
static SOURCE_RANGES: LpmTrie<[u32; 5], u32> =
    LpmTrie::with_max_entries(tables::SourceRanges::CAPACITY, 0);
#[map]
static SERVICE_DROPS: PerCpuHashMap<ServiceDrop, u64> =
    PerCpuHashMap::with_max_entries(tables::ServiceDrops::CAPACITY, 0);
#[map]
static NAT_FLOWS: Array<NatFlow> =
    Array::with_max_entries(tables::NatFlows::CAPACITY, BPF_F_MMAPABLE);
#[map]
static NAT_WAYS: Array<NatWay> = Array::with_max_entries(tables::NatWays::CAPACITY, 0);
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.WAY_EPOCH")]
static WAY_EPOCH: Global<u32> = Global::zero();
#[map]
static NAT_RECENT: LruHashMap<FlowKey, Binding> =
    LruHashMap::with_max_entries(tables::NatRecent::CAPACITY, 0);
#[map]
static SERVING: Array<u64> = Array::with_max_entries(tables::Serving::CAPACITY, 0);
#[map]
static ARRIVALS: HashMap<ArrivalKey, Arrival> =
    HashMap::with_max_entries(tables::Arrivals::CAPACITY, 0);
#[map]
static ANSWERS: Array<u64> = Array::with_max_entries(tables::Answers::CAPACITY, 0);
#[map]
static FRAGMENTS: LruHashMap<FragmentKey, Ports> =
    LruHashMap::with_max_entries(tables::Fragments::CAPACITY, 0);
#[map]
static POD_DETOURS: ProgramArray = ProgramArray::with_max_entries(tables::PodDetours::CAPACITY, 0);

/// What this node is; all zero until the agent has said it.
#[inline(always)]
pub fn node() -> &'static Node {
    // SAFETY: userspace may replace the row while it is read; each of its words is valid alone.
    unsafe { &*NODE.row() }
}

/// The device with this index, when packets are received on it.
#[inline(always)]
pub fn device(ifindex: u32) -> Option<&'static Device> {
    DEVICES
        .get(ifindex & DEVICE_MASK)
        .filter(|device| device.ifindex == ifindex)
}

/// The first eight bytes of a device's row: its MAC address, and two more.
#[inline(always)]
pub fn mac_word(device: &Device) -> u64 {
    // SAFETY: a row of two words.
    unsafe { core::ptr::from_ref(device).cast::<u64>().read() }
}

/// Whether XDP may redirect to the device.
#[inline(always)]
pub fn is_tx_port(ifindex: u32) -> bool {
    TX_PORTS.get_ifindex(ifindex).is_some()
}

/// Redirects to a device of `TX_PORTS`; the answer is the XDP action.
#[inline(always)]
pub fn redirect(ifindex: u32) -> u32 {
    TX_PORTS
        .redirect(ifindex, 0)
        .unwrap_or_else(|action| action)
}

/// Ends this program and begins the detour's; returns when there is none.
#[inline(always)]
pub fn enter(detour: Detour, context: &impl EbpfContext) {
    let rows = match detour.hook {
        Hook::Xdp => &DETOURS,
        Hook::Tc => &POD_DETOURS,
    };
    // SAFETY: the context is the kernel's, and the kernel sees to it that the program is of its kind.
    unsafe { rows.tail_call(context, detour.row) };
}

/// Whether a service may have this address; what it lets through by chance costs a read of a hash table more.
#[inline(always)]
pub fn may_be_services(addr: Addr) -> bool {
    let (word, bit) = Sieve::place(addr);
    // SAFETY: `place` answers ten bits, and the mask shows it to the verifier.
    let bits = unsafe {
        SIEVE
            .row()
            .cast::<u64>()
            .add(word & (served::SIEVE_WORDS - 1))
            .read_volatile()
    };
    bits & bit != 0
}

/// The flags of a service's address ([`served::flags`]); none for any other address.
#[inline(always)]
pub fn service_address(addr: Addr) -> Option<u32> {
    if !may_be_services(addr) {
        return None;
    }
    // SAFETY: a word, valid alone.
    unsafe { ADDRESSES.get(addr) }
        .copied()
        .filter(|flags| flags & served::flags::NODE == 0)
}

/// Whether the address is another node's.
#[inline(always)]
pub fn is_other_node(addr: Addr) -> bool {
    // SAFETY: as in `service_address`.
    unsafe { ADDRESSES.get(addr) }.is_some_and(|flags| flags & served::flags::NODE != 0)
}

/// Whether one more ICMP message of this kind ([`answer::kind`]) may be sent at this time.
#[inline(always)]
pub fn may_answer(kind: u32, now_ns: u64) -> bool {
    let Some(row) = ANSWERS.get_ptr_mut(kind) else {
        return false;
    };
    // SAFETY: an aligned word that other CPUs write too, each value valid.
    let full_ns = unsafe { row.read_volatile() };
    let Some(full_ns) = answer::take(full_ns, now_ns) else {
        return false;
    };
    // SAFETY: as above.
    unsafe { row.write_volatile(full_ns) };
    true
}

/// The ports of a fragmented packet.
#[inline(always)]
pub fn fragment(key: &FragmentKey) -> Option<Ports> {
    // SAFETY: one aligned word.
    unsafe { FRAGMENTS.get(key) }.copied()
}

/// Remembers the ports of a fragmented packet. A full table forgets its oldest.
#[inline(always)]
pub fn remember_fragment(key: &FragmentKey, ports: &Ports) {
    let _ = FRAGMENTS.insert(key, ports, 0);
}

/// The service that clients reach here.
#[inline(always)]
pub fn service(key: &ServiceKey) -> Option<&'static Service> {
    // SAFETY: a row's three words may be read while userspace replaces it; each is valid alone.
    unsafe { SERVICES.get(key) }
}

/// As [`service`], by a copy of its row where there is one: the kernel's hash costs more than all that follows it.
///
/// Its words are read here, so that the verifier walks on once, wherever they stand.
#[expect(
    clippy::cast_ptr_alignment,
    reason = "rows of a hash table begin at words (kernel/bpf/hashtab.c, htab_elem_value)"
)]
#[inline(always)]
pub fn service_at_once(key: ServiceKey) -> Option<Service> {
    let row = match copy_of(&key) {
        Some(row) => row,
        None => SERVICES.get_ptr(key)?.cast::<u64>(),
    };
    // SAFETY: a service is three words, each valid alone.
    let words = unsafe {
        [
            row.read_volatile(),
            row.add(1).read_volatile(),
            row.add(2).read_volatile(),
        ]
    };
    Some(Service::from_words(words))
}

/// The words of a service's copy.
#[inline(always)]
fn copy_of(key: &ServiceKey) -> Option<*const u64> {
    let cell = SERVICE_CELLS.get_ptr(key.cell())?;
    // SAFETY: an aligned word, which userspace stores at once.
    let at = unsafe { cell.read_volatile() } as u32;
    let copy = SERVICE_COPIES.get_ptr(at)?.cast::<u64>();
    let [first, second, last] = key.words();
    // SAFETY: a copy is six words, of which the key is three; nobody writes them while a cell names it.
    unsafe {
        let is_its =
            copy.read() == first && copy.add(1).read() == second && copy.add(2).read() == last;
        is_its.then(|| copy.add(3))
    }
}

/// Whether a service with source ranges lets this source in.
#[inline(always)]
pub fn admits(service: u32, source: Addr) -> bool {
    let range = SourceRange::of_source(service, source);
    // SAFETY: both are {length, 20 bytes} without gaps, and the packed one may stand anywhere.
    let key = unsafe { &*(&raw const range).cast::<Key<[u32; 5]>>() };
    SOURCE_RANGES.get(key).is_some()
}

/// The slot at a place in `RINGS`.
#[inline(always)]
pub fn slot(place: u32) -> Option<Slot> {
    let page = RINGS.get_ptr(place / SLOTS_PER_PAGE)?.cast::<u64>();
    // One aligned load of eight bytes: userspace writes a slot by one store, and it is never seen torn.
    // SAFETY: the mask keeps the index inside the page, visibly to the verifier.
    let word = unsafe {
        page.add((place & (SLOTS_PER_PAGE - 1)) as usize)
            .read_volatile()
    };
    Some(Slot {
        current: word as u32,
        previous: (word >> 32) as u32,
    })
}

/// The backend with this id; 0 is no backend.
#[inline(always)]
pub fn backend(id: u32) -> Option<&'static Backend> {
    if id == 0 {
        return None;
    }
    BACKENDS.get(id)
}

/// A row of `NEXT_HOPS` that is resolved.
#[derive(Clone, Copy)]
pub struct NextHopRow(*const u64);

impl NextHopRow {
    /// The device that leads to the neighbour, four bytes, source MAC and destination MAC, as
    /// [`crate::forward::Hop`] has them.
    #[inline(always)]
    pub fn macs(self) -> [u64; 2] {
        // SAFETY: the kernel keeps the row; userspace may replace it meanwhile, and each word is valid alone.
        unsafe { [self.0.read_volatile(), self.0.add(1).read_volatile()] }
    }

    /// The largest IP packet that goes this way.
    #[inline(always)]
    pub fn mtu(self) -> u32 {
        // SAFETY: as in `macs`; the row's last word is {mtu, flags}.
        (unsafe { self.0.add(LIMITS).read_volatile() }) as u32
    }
}

/// Which word of a [`NextHop`] holds {mtu, flags}.
const LIMITS: usize = 4;

/// The next hop with this id, when packets may be sent to it without asking; 0 is none.
#[inline(always)]
pub fn next_hop(id: u32) -> Option<NextHopRow> {
    if id == 0 {
        return None;
    }
    let row = NEXT_HOPS.get_ptr(id)?.cast::<u64>();
    // SAFETY: a next hop is five words.
    let limits = unsafe { row.add(LIMITS).read_volatile() };
    ((limits >> 32) as u32 & next_hop_flags::RESOLVED != 0).then_some(NextHopRow(row))
}

/// The memory of a flow that began in a transition.
#[inline(always)]
pub fn flow(key: &FlowKey) -> Option<&'static mut Flow> {
    // A copy: the key itself need not stand in memory, where nothing is remembered.
    let row = FLOWS.get_ptr_mut(*key)?;
    // SAFETY: the kernel keeps the row's memory while the program runs; its words may be written by
    // another CPU, and each is valid alone.
    Some(unsafe { &mut *row })
}

/// Remembers a flow. A full table forgets its oldest: then the flow counts as not remembered.
#[inline(always)]
pub fn remember_flow(key: &FlowKey, flow: &Flow) {
    let _ = FLOWS.insert(*key, flow, 0);
}

/// Whether a backend may listen there for which this node translates.
#[inline(always)]
pub fn may_serve(key: &ServingKey) -> bool {
    let (word, bit) = key.place();
    // SAFETY: an aligned word, valid whatever it is, that userspace writes.
    let bits = SERVING
        .get_ptr(word)
        .map(|row| unsafe { row.read_volatile() });
    bits.is_some_and(|bits| bits & bit != 0)
}

/// Whom a packet out of a tunnel is for.
#[inline(always)]
pub fn arrival(key: &ArrivalKey) -> Option<Arrival> {
    // SAFETY: two words, and userspace replaces a row as a whole.
    unsafe { ARRIVALS.get(key) }.copied()
}

/// The service that a socket is connected to.
#[inline(always)]
pub fn socket(context: &SockAddrContext) -> Option<&'static mut Translation> {
    // SAFETY: the row lives as long as its socket, which is locked while the program runs.
    unsafe { SOCKETS.get_ptr_mut(context).as_mut() }
}

/// As [`socket`], made when there is none; `None` when the kernel has no memory for it.
#[inline(always)]
pub fn socket_or_new(context: &SockAddrContext) -> Option<&'static mut Translation> {
    // SAFETY: as in `socket`; a new row is zero.
    unsafe { SOCKETS.get_or_insert_ptr_mut(context, None).as_mut() }
}

/// The services that an unconnected socket sent to.
#[inline(always)]
pub fn datagrams(context: &SockAddrContext) -> Option<&'static mut Translations> {
    // SAFETY: as in `socket`.
    unsafe { DATAGRAMS.get_ptr_mut(context).as_mut() }
}

/// As [`datagrams`], made when there is none; `None` when the kernel has no memory for it.
#[inline(always)]
pub fn datagrams_or_new(context: &SockAddrContext) -> Option<&'static mut Translations> {
    // SAFETY: as in `socket_or_new`.
    unsafe { DATAGRAMS.get_or_insert_ptr_mut(context, None).as_mut() }
}

/// The row of the service that was last sent to.
///
/// Its place is read from memory, so that the verifier forgets by which of sixteen ways it got there and walks
/// on once.
#[inline(always)]
pub fn last(rows: &mut Translations) -> &mut Translation {
    // SAFETY: a field of the row that is borrowed.
    let last = unsafe { (&raw const rows.last).read_volatile() };
    &mut rows.rows[last as usize & (TRANSLATIONS - 1)]
}

/// Which backend a client stays with.
#[inline(always)]
pub fn affinity(client: &Client) -> Option<&'static mut Flow> {
    let row = AFFINITY.get_ptr_mut(client)?;
    // SAFETY: as in `flow`.
    Some(unsafe { &mut *row })
}

/// Remembers which backend a client stays with. A full table forgets who was away the longest.
#[inline(always)]
pub fn remember_affinity(client: &Client, row: &Flow) {
    let _ = AFFINITY.insert(client, row, 0);
}

/// A number that nobody can predict well enough to choose his backend by it.
#[inline(always)]
pub fn random() -> u32 {
    // SAFETY: no arguments, no memory.
    unsafe { bpf_get_prandom_u32() }
}

/// Whether this host takes packets for the address out of a tunnel.
#[inline(always)]
pub fn is_decap_addr(addr: &Addr) -> bool {
    DECAP_ADDRS.get_ptr(addr).is_some()
}

/// Adds a packet to the row of a service.
#[inline(always)]
pub fn count_service(id: u32, packet: &Traffic) {
    carry(&SERVICE_STATS, id, packet);
}

/// Adds a packet to the row of a backend.
#[inline(always)]
pub fn count_backend(id: u32, packet: &Traffic) {
    carry(&BACKEND_STATS, id, packet);
}

#[inline(always)]
fn carry(table: &PerCpuArray<Traffic>, row: u32, packet: &Traffic) {
    if let Some(all) = table.get_ptr_mut(row) {
        // SAFETY: the row belongs to this CPU, and a program is not interrupted by itself.
        unsafe {
            (*all).packets += packet.packets;
            (*all).bytes += packet.bytes;
            (*all).new_flows += packet.new_flows;
            (*all).in_transition += packet.in_transition;
        }
    }
}

/// Counts a dropped packet of a service. Without a free row it is counted by its reason only.
#[inline(always)]
pub fn count_service_drop(service: u32, reason: Reason) {
    let key = ServiceDrop {
        service,
        reason: reason as u32,
    };
    match SERVICE_DROPS.get_ptr_mut(key) {
        // SAFETY: the row belongs to this CPU, and a program is not interrupted by itself.
        Some(packets) => unsafe { *packets += 1 },
        None => drop(SERVICE_DROPS.insert(key, 1, u64::from(BPF_NOEXIST))),
    }
}

/// Counts a packet's end.
#[inline(always)]
pub fn count_reason(reason: Reason, bytes: usize) {
    if let Some(count) = REASONS.get_ptr_mut(reason as u32) {
        // SAFETY: the row belongs to this CPU, and a program is not interrupted by itself.
        unsafe {
            (*count).packets += 1;
            (*count).bytes += bytes as u64;
        }
    }
}
