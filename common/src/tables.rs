//! The registry: every table of the datapath, declared once.
//!
//! The eBPF statics, the typed pinned handles, `dpctl maps`, the capacity metrics and the layout test
//! all derive from the marker types here. A table is a BPF map, pinned by its [`Table::NAME`].

use bytemuck::Pod;

use crate::addr::Addr;
use crate::answer;
use crate::flow::{Flow, FlowKey};
use crate::fragment::{FragmentKey, Ports};
use crate::nat::{self, NatFlow, NatWay};
use crate::reason::Reason;
use crate::route::{DEVICE_MASK, Device, Node, TxPort};
use crate::served::Sieve;
use crate::service::{
    Arrival, ArrivalKey, Backend, Count, NextHop, RingPage, Service, ServiceCopy, ServiceDrop,
    ServiceKey, ServingKey, SourceRange, Traffic,
};
use crate::snat::{Binding, EgressPort};
use crate::socket::{Client, Translation, Translations};

/// What kind of BPF map a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `BPF_MAP_TYPE_ARRAY`.
    Array,
    /// `BPF_MAP_TYPE_ARRAY` with `BPF_F_MMAPABLE`: userspace writes by store, not by syscall.
    MappedArray,
    /// `BPF_MAP_TYPE_ARRAY` of one row, a global variable of the programs: they reach it by its address
    /// (`BPF_PSEUDO_MAP_VALUE`), without a lookup.
    Global,
    /// `BPF_MAP_TYPE_PERCPU_ARRAY`.
    PerCpuArray,
    /// `BPF_MAP_TYPE_HASH`, preallocated.
    Hash,
    /// `BPF_MAP_TYPE_PERCPU_HASH`, preallocated.
    PerCpuHash,
    /// `BPF_MAP_TYPE_LRU_HASH`: only for what may be forgotten.
    LruHash,
    /// `BPF_MAP_TYPE_DEVMAP_HASH`.
    DevMapHash,
    /// `BPF_MAP_TYPE_SK_STORAGE`: a row is kept in a socket and ends with it. The capacity is 0: there is no
    /// limit but the sockets themselves.
    SocketStorage,
    /// `BPF_MAP_TYPE_PROG_ARRAY`.
    ProgramArray,
    /// `BPF_MAP_TYPE_LPM_TRIE`, never preallocated: the longest prefix that covers a key.
    LpmTrie,
}

impl Kind {
    /// The printed name, as `bpftool` says it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Array => "array",
            Self::MappedArray => "array (mapped)",
            Self::Global => "array (global)",
            Self::PerCpuArray => "percpu_array",
            Self::Hash => "hash",
            Self::PerCpuHash => "percpu_hash",
            Self::LruHash => "lru_hash",
            Self::DevMapHash => "devmap_hash",
            Self::SocketStorage => "sk_storage",
            Self::ProgramArray => "prog_array",
            Self::LpmTrie => "lpm_trie",
        }
    }
}

/// A BPF map that the kernel side and userspace share.
pub trait Table {
    /// Its name: the eBPF static's, the pin's, `dpctl`'s. At most 15 bytes, as the kernel keeps.
    const NAME: &'static str;
    /// What the object calls it: as [`Self::NAME`], but the row of a [`Kind::Global`] is a section.
    const IN_OBJECT: &'static str;
    /// How many rows it holds at most.
    const CAPACITY: u32;
    /// What kind of map it is.
    const KIND: Kind;
    /// The version of its layout: raised whenever the meaning of a row changes. A pinned map of
    /// another version is re-created.
    const VERSION: u32;
    /// What it is for, in one sentence.
    const ABOUT: &'static str;
    /// The key; `u32` for arrays.
    type Key: Pod;
    /// The value; per-CPU tables have one per possible CPU.
    type Value: Pod;
}

/// A table's declaration as a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Declaration {
    /// [`Table::NAME`].
    pub name: &'static str,
    /// [`Table::IN_OBJECT`].
    pub in_object: &'static str,
    /// [`Table::CAPACITY`].
    pub capacity: u32,
    /// [`Table::KIND`].
    pub kind: Kind,
    /// [`Table::VERSION`].
    pub version: u32,
    /// [`Table::ABOUT`].
    pub about: &'static str,
    /// Bytes of a key.
    pub key_bytes: u32,
    /// Bytes of a value.
    pub value_bytes: u32,
}

impl Declaration {
    /// The declaration of a table.
    pub const fn of<T: Table>() -> Self {
        Self {
            name: T::NAME,
            in_object: T::IN_OBJECT,
            capacity: T::CAPACITY,
            kind: T::KIND,
            version: T::VERSION,
            about: T::ABOUT,
            key_bytes: size_of::<T::Key>() as u32,
            value_bytes: size_of::<T::Value>() as u32,
        }
    }
}

macro_rules! tables {
    ($($(#[doc = $about:literal])+ $table:ident = $name:literal v $version:literal
        $kind:ident<$key:ty, $value:ty>[$capacity:expr],)+) => {
        $(
            $(#[doc = $about])+
            #[derive(Clone, Copy, Debug)]
            pub enum $table {}

            impl Table for $table {
                const NAME: &'static str = $name;
                const IN_OBJECT: &'static str = match Kind::$kind {
                    Kind::Global => concat!(".data.", $name),
                    _ => $name,
                };
                const CAPACITY: u32 = $capacity;
                const KIND: Kind = Kind::$kind;
                const VERSION: u32 = $version;
                const ABOUT: &'static str = concat!($($about,)+).trim_ascii();
                type Key = $key;
                type Value = $value;
            }
        )+

        /// Every table, in the order of the registry.
        pub const ALL: &[Declaration] = &[$(Declaration::of::<$table>(),)+];

        /// Calls `$visit!(Table)` for every table type: the way to code that must know the types.
        #[macro_export]
        macro_rules! for_each_table {
            ($visit:ident) => { $($visit!($table);)+ };
        }
    };
}

/// The rows of `LAYOUT` that hold the digest of the object that all pinned programs are from: its upper half, its
/// lower half. 0: of no one object.
pub const OBJECT_ROWS: [u32; 2] = [Layout::CAPACITY - 2, Layout::CAPACITY - 1];

tables! {
    /// What this node is: tunnel sources, egress address, CIDRs, port buckets.
    NodeTable = "NODE" v 3 Global<u32, Node>[1],
    /// The devices that packets arrive on, by ifindex modulo the capacity.
    Devices = "DEVICES" v 3 Array<u32, Device>[DEVICE_MASK + 1],
    /// The devices that XDP may redirect to, by ifindex.
    TxPorts = "TX_PORTS" v 1 DevMapHash<u32, TxPort>[4096],
    /// Where clients reach services, and the ring of each.
    Services = "SERVICES" v 2 Hash<ServiceKey, Service>[65536],
    /// Where the copy of a service stands in SERVICE_COPIES, by a hash of its key. 0: SERVICES says it.
    ServiceCells = "SERVICE_CELLS" v 1 MappedArray<u32, u64>[ServiceKey::CELLS],
    /// Rows of SERVICES once more, which packets find by SERVICE_CELLS.
    ServiceCopies = "SERVICE_COPIES" v 1 MappedArray<u32, ServiceCopy>[131_072],
    /// The slots of all rings, 512 to a row.
    Rings = "RINGS" v 1 MappedArray<u32, RingPage>[RING_PAGES],
    /// Backends by id.
    Backends = "BACKENDS" v 3 Array<u32, Backend>[131_072],
    /// Flows that began while their slot was in transition.
    Flows = "FLOWS" v 2 LruHash<FlowKey, Flow>[262_144],
    /// Translations by the flow as it looks outside: the truth.
    SnatRev = "SNAT_REV" v 1 Hash<FlowKey, Binding>[262_144],
    /// Egress ports by the flow as it looks inside: a cache of SNAT_REV.
    SnatFwd = "SNAT_FWD" v 1 LruHash<FlowKey, EgressPort>[262_144],
    /// Service addresses that this host, as a backend, takes packets for out of a tunnel.
    DecapAddrs = "DECAP_ADDRS" v 1 Hash<Addr, u32>[1024],
    /// Packets, bytes and new flows by service id.
    ServiceStats = "SERVICE_STATS" v 2 PerCpuArray<u32, Traffic>[65536],
    /// Packets, bytes and new flows by backend id.
    BackendStats = "BACKEND_STATS" v 2 PerCpuArray<u32, Traffic>[131_072],
    /// Packets and bytes by reason.
    Reasons = "REASONS" v 1 PerCpuArray<u32, Count>[Reason::COUNT],
    /// The version of each table's layout, by its place in the registry, and of which object all pinned programs are.
    Layout = "LAYOUT" v 1 Array<u32, u32>[64],
    /// The neighbours that packets to backends are sent to, by id.
    NextHops = "NEXT_HOPS" v 1 Array<u32, NextHop>[65536],
    /// The service that a connected socket of this node asked for, kept in the socket.
    Sockets = "SOCKETS" v 1 SocketStorage<u32, Translation>[0],
    /// The services that an unconnected UDP socket of this node sent to, kept in the socket.
    Datagrams = "DATAGRAMS" v 1 SocketStorage<u32, Translations>[0],
    /// Which backend a client on this node stays with, and when it last connected.
    Affinity = "AFFINITY" v 1 LruHash<Client, Flow>[65536],
    /// Programs for rare packets, by the row of their detour.
    Detours = "DETOURS" v 1 ProgramArray<u32, u32>[8],
    /// The addresses of services, and whether anybody serves there; and those of other nodes.
    Addresses = "ADDRESSES" v 1 Hash<Addr, u32>[65536],
    /// Which addresses services in SERVICES may have, by bit.
    SieveTable = "SIEVE" v 2 Global<u32, Sieve>[1],
    /// Sources that services with `loadBalancerSourceRanges` let in, by service id and prefix.
    SourceRanges = "SOURCE_RANGES" v 1 LpmTrie<SourceRange, u32>[65536],
    /// Packets dropped, by service id and reason; a service that drops nothing has no row.
    ServiceDrops = "SERVICE_DROPS" v 1 PerCpuHash<ServiceDrop, u64>[16384],
    /// Flows that this node translates to backends, by their answers, once the backend has taken them up.
    NatFlows = "NAT_FLOWS" v 3 MappedArray<u32, NatFlow>[nat::ROWS],
    /// The same before that, and those for which NAT_FLOWS has no room: the flow's next packet restores a row.
    NatRecent = "NAT_RECENT" v 1 LruHash<FlowKey, Binding>[65536],
    /// Where backends may listen for which this node translates, 64 places in a row.
    Serving = "SERVING" v 2 Array<u32, u64>[ServingKey::WORDS],
    /// Whom packets are for that other nodes' balancers have wrapped for backends of this node.
    Arrivals = "ARRIVALS" v 1 Hash<ArrivalKey, Arrival>[65536],
    /// When each kind of ICMP message of our own may be sent again at full rate, in nanoseconds.
    Answers = "ANSWERS" v 1 Array<u32, u64>[answer::kind::COUNT],
    /// The ports of fragmented packets to services.
    Fragments = "FRAGMENTS" v 1 LruHash<FragmentKey, Ports>[16384],
    /// As DETOURS, for what pods send.
    PodDetours = "POD_DETOURS" v 1 ProgramArray<u32, u32>[8],
    /// The ways of answers of flows in NAT_FLOWS, whose rows name them.
    NatWays = "NAT_WAYS" v 2 Array<u32, NatWay>[nat::WAYS],
    /// In which epoch ways are: what was learnt in another one holds no longer. 0: nothing is learnt.
    WayEpoch = "WAY_EPOCH" v 1 Global<u32, u32>[1],
}

/// Pages of slots, 64 MiB: rings of ten thousand services with ten backends each take 40, those of five
/// thousand with twenty as many.
pub const RING_PAGES: u32 = 16384;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_into_the_kernel() {
        for table in ALL {
            assert!(table.name.len() <= 15, "{}", table.name);
        }
    }

    #[test]
    fn the_layout_table_has_a_row_for_every_table() {
        assert!(ALL.len() <= OBJECT_ROWS[0] as usize);
        assert!(OBJECT_ROWS.iter().all(|row| *row < Layout::CAPACITY));
    }

    #[test]
    fn rows_are_whole_words() {
        assert_eq!(size_of::<FlowKey>(), 40);
        assert_eq!(size_of::<ServiceKey>(), 24);
        assert_eq!(size_of::<crate::service::Service>(), 24);
        assert_eq!(size_of::<ServiceCopy>(), 48);
        assert_eq!(size_of::<crate::service::Slot>(), 8);
        assert_eq!(size_of::<RingPage>(), 4096);
        assert_eq!(size_of::<Backend>(), 24);
        assert_eq!(size_of::<NextHop>(), 40);
        assert_eq!(size_of::<Binding>(), 24);
        assert_eq!(size_of::<TxPort>(), 8);
        assert_eq!(size_of::<Translation>(), 40);
        assert_eq!(size_of::<Translations>(), 648);
        assert_eq!(size_of::<Client>(), 16);
        assert_eq!(size_of::<SourceRange>(), 24);
        assert_eq!(size_of::<ArrivalKey>(), 40);
        assert_eq!(size_of::<Arrival>(), 8);
    }
}
