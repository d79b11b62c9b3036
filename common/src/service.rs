//! The load balancer's rows: services, ring slots, backends, next hops.
//!
//! ```text
//!   SERVICES {addr, port, proto} -> Service {id, ring, slots}
//!   RINGS    [ring + slot(hash)] -> Slot {current, previous}
//!   BACKENDS [current]           -> Backend {addr, port, forward, next_hop}
//!   NEXT_HOPS [next_hop]         -> NextHop {ifindex, MAC addresses, mtu}
//! ```
//! The first of them is found sooner by a copy:
//! ```text
//!   SERVICE_CELLS [hash of {addr, port, proto}] -> a row of SERVICE_COPIES -> {key, Service}
//! ```
//! Where this node translates:
//! ```text
//!   ARRIVALS {service, backend's address}    -> Arrival {backend, service}: out of another node's tunnel
//!   SERVING  [bit of backend's addr, port]   -> 0: it is no backend's. 1: what it sends may be an answer
//!   NAT_FLOWS {backend -> client}            -> the service that the answer comes from
//! ```

use bytemuck::{Pod, Zeroable};

use crate::addr::{Addr, Port, Proto};
use crate::hash;

/// Where clients reach a service.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct ServiceKey {
    /// The service address.
    pub addr: Addr,
    /// The service port.
    pub port: Port,
    /// TCP or UDP.
    pub proto: Proto,
    /// Whose packets the row is for: one of [`scope`].
    pub scope: u8,
    /// Zero.
    pub pad_word: u32,
}

impl ServiceKey {
    /// Builds the key of a service as clients outside the cluster reach it.
    #[inline(always)]
    pub const fn new(addr: Addr, port: Port, proto: Proto) -> Self {
        Self {
            addr,
            port,
            proto,
            scope: scope::OUTSIDE,
            pad_word: 0,
        }
    }

    /// The same service as pods and the node's own sockets reach it.
    #[inline(always)]
    #[must_use]
    pub const fn inside(self) -> Self {
        Self {
            scope: scope::INSIDE,
            ..self
        }
    }
}

impl ServiceKey {
    /// Bits of a place in `SERVICE_CELLS`.
    const CELL_BITS: u32 = 17;
    /// Rows of `SERVICE_CELLS`: two for each service that `SERVICES` has room for.
    pub const CELLS: u32 = 1 << Self::CELL_BITS;

    /// The key in the order of memory.
    #[inline(always)]
    pub const fn words(&self) -> [u64; 3] {
        let [first, second] = self.addr.halves();
        let last = self.port.wire() as u64
            | (self.proto.0 as u64) << 16
            | (self.scope as u64) << 24
            | (self.pad_word as u64) << 32;
        [first, second, last]
    }

    /// Where the service is looked for in `SERVICE_CELLS`.
    #[inline(always)]
    pub const fn cell(&self) -> u32 {
        let [first, second, last] = self.words();
        // As the sieve begins, which is asked just before.
        let hash = hash::fold(hash::fold(hash::fold(hash::K, first), second), last);
        (hash >> (u64::BITS - Self::CELL_BITS)) as u32
    }
}

impl ServiceKey {
    /// Whether the row is for pods and the node's own sockets.
    pub const fn is_inside(&self) -> bool {
        self.scope == scope::INSIDE
    }
}

/// Values of [`ServiceKey::scope`]: where the client is. A service has a row for each scope that may reach
/// it, so that traffic policies, which differ between the two, are a matter of rings.
pub mod scope {
    /// Packets that come in by an uplink.
    pub const OUTSIDE: u8 = 0;
    /// Packets of this node's pods, and its own sockets.
    pub const INSIDE: u8 = 1;
}

/// A service: which ring decides for it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Service {
    /// Its row in `SERVICE_STATS`.
    pub id: u32,
    /// The first slot of its ring in `RINGS`, counted in slots.
    pub ring: u32,
    /// How many slots its ring has; 0 when it has no backend.
    pub slots: u32,
    /// [`service_flags`].
    pub flags: u32,
    /// Session affinity: how long a client that opens no connection stays with its backend, in seconds. 0: none.
    pub affinity_s: u32,
    /// Zero.
    pub pad: u32,
}

impl Service {
    /// A row from its words, in the order of memory.
    #[inline(always)]
    pub const fn from_words([first, second, third]: [u64; 3]) -> Self {
        Self {
            id: first as u32,
            ring: (first >> 32) as u32,
            slots: second as u32,
            flags: (second >> 32) as u32,
            affinity_s: third as u32,
            pad: 0,
        }
    }
}

/// A service as packets find it without the kernel's hash: a row of `SERVICE_COPIES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ServiceCopy {
    /// Where clients reach it.
    pub key: ServiceKey,
    /// Its row in `SERVICES`.
    pub service: Service,
}

/// Bits of [`Service::flags`].
pub mod service_flags {
    /// Only sources in `SOURCE_RANGES` are let in.
    pub const SOURCE_RANGES: u32 = 1;
    /// Session affinity: the slot is chosen by the client's address alone.
    pub const AFFINITY: u32 = 2;
}

/// Sources that a service lets in: a key of `SOURCE_RANGES`, as the kernel's longest prefix match has it.
///
/// Prefixes of all services stand in one table, apart by the id in front of the address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct SourceRange {
    /// How many bits of what follows count: those of the id and those of the prefix.
    pub bits: u32,
    /// [`Service::id`].
    pub service: u32,
    /// The prefix; an IPv4 one in its IPv4-mapped form.
    pub addr: Addr,
}

impl SourceRange {
    const ID_BITS: u32 = 32;
    const MAPPED_BITS: u32 = 96;

    /// The key of a prefix of `length` bits, counted in the address's own family.
    pub const fn new(service: u32, addr: Addr, length: u8) -> Self {
        let in_front = if addr.is_v4() { Self::MAPPED_BITS } else { 0 };
        Self {
            bits: Self::ID_BITS + in_front + length as u32,
            service,
            addr,
        }
    }

    /// The key of one source.
    #[inline(always)]
    pub const fn of_source(service: u32, addr: Addr) -> Self {
        Self {
            bits: Self::ID_BITS + 128,
            service,
            addr,
        }
    }

    /// The prefix's length in its own family.
    pub const fn length(&self) -> u8 {
        let in_front = if self.addr.is_v4() {
            Self::MAPPED_BITS
        } else {
            0
        };
        self.bits.saturating_sub(Self::ID_BITS + in_front) as u8
    }
}

/// One slot of a ring: who serves the flows that hash to it.
///
/// `previous` is 0 in the steady state. While it is not, the slot is in transition: a new flow goes
/// to `current` and is remembered in `FLOWS`; a flow that is not remembered began before the change
/// and stays with `previous` while that lives. Eight aligned bytes, so that one store by userspace is
/// seen whole or not at all.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Slot {
    /// Backend id; 0: none.
    pub current: u32,
    /// Backend id before the change; 0: not in transition.
    pub previous: u32,
}

/// Slots per value of `RINGS`: one page, so that the array can be mapped.
pub const SLOTS_PER_PAGE: u32 = 512;

/// A value of `RINGS`.
pub type RingPage = [Slot; SLOTS_PER_PAGE as usize];

/// A backend and how packets get to it. Row 0 is never used: id 0 means "none".
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Backend {
    /// Its address.
    pub addr: Addr,
    /// Its port: the service's, unless this node or the backend's own translates.
    pub port: Port,
    /// One of [`forward`]; [`forward::FREE`] in an unused row.
    pub forward: u8,
    /// [`flags`].
    pub flags: u8,
    /// Its row in `NEXT_HOPS`; 0: none, the kernel is asked for the way of each packet.
    pub next_hop: u32,
}

/// A next hop: the neighbour that packets to backends are sent to, and the device that leads to it. Row 0 is
/// never used.
///
/// A row belongs to {device, neighbour, MTU} as long as a backend names it, so a neighbour whose MAC address
/// changes is one write for all backends behind it. Its first 16 bytes are a frame's addresses as
/// `bpf_fib_lookup` answers them. The flags stand last: whoever sees [`next_hop_flags::RESOLVED`] sees the
/// addresses that were written before it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct NextHop {
    /// The device's index; 0 in an unused row.
    pub ifindex: u32,
    /// The device's MAC address.
    pub source: [u8; 6],
    /// The neighbour's MAC address.
    pub destination: [u8; 6],
    /// The neighbour's address.
    pub addr: Addr,
    /// The largest IP packet that goes this way, in bytes.
    pub mtu: u32,
    /// [`next_hop_flags`].
    pub flags: u32,
}

/// Bits of [`NextHop::flags`].
pub mod next_hop_flags {
    /// The MAC addresses are known and packets may be sent to them; otherwise the kernel is asked.
    pub const RESOLVED: u32 = 1;
}

/// How packets get to a backend.
pub mod forward {
    /// The row is not used.
    pub const FREE: u8 = 0;
    /// It is on a link of this node: rewrite the MAC addresses only.
    pub const L2: u8 = 1;
    /// It is behind a router, or a pod of another node: wrap the packet in IPv4 or IPv6, by the backend's
    /// family.
    pub const ENCAPSULATE: u8 = 2;
    /// A pod or a process of this node: translate address and port here, and back on the reply.
    pub const HERE: u8 = 3;
    /// A host that does not carry the service's address: both ends get other names here, so that it answers this
    /// node, and its answers get the service's back.
    pub const NAT: u8 = 5;
    /// As [`ENCAPSULATE`], with UDP and GUE (draft-ietf-intarea-gue, variant 1) between the headers.
    pub const GUE: u8 = 4;
}

/// Bits of [`Backend::flags`].
pub mod flags {
    /// It answers; flows that began with it stay with it through a transition.
    pub const ALIVE: u8 = 1;
    /// It is a process in this node's own network: the stack takes what is translated for it.
    pub const STACK: u8 = 2;
    /// Packets are wrapped for it even when it is on a link of this node.
    pub const ALWAYS_WRAPPED: u8 = 4;
}

/// A packet that another node's balancer has wrapped for a backend of this node: the key of `ARRIVALS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct ArrivalKey {
    /// The service address, the inner destination; `backend` for a node port, which is at the addresses of
    /// whatever node has wrapped the packet.
    pub service: Addr,
    /// The backend's address, the outer destination.
    pub backend: Addr,
    /// The service port.
    pub port: Port,
    /// TCP or UDP.
    pub proto: Proto,
    /// Zero.
    pub pad: u8,
    /// Zero.
    pub pad_word: u32,
}

impl ArrivalKey {
    /// Builds a key; the service's scope does not matter, for its client may be anywhere.
    #[inline(always)]
    pub const fn new(service: &ServiceKey, backend: Addr) -> Self {
        Self {
            service: service.addr,
            backend,
            port: service.port,
            proto: service.proto,
            pad: 0,
            pad_word: 0,
        }
    }

    /// The key of the same port at any node's address.
    #[inline(always)]
    #[must_use]
    pub const fn at_any_node(self) -> Self {
        Self {
            service: self.backend,
            ..self
        }
    }

    /// Whether it is one of those.
    pub fn is_at_any_node(&self) -> bool {
        self.service == self.backend
    }
}

/// Whom a packet out of a tunnel is for.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Arrival {
    /// Backend id.
    pub backend: u32,
    /// The service's row in `SERVICE_STATS`.
    pub service: u32,
}

/// Where a backend listens for which this node translates. TCP and UDP are not told apart: the flow's row does that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServingKey {
    /// Its address.
    pub addr: Addr,
    /// Its port.
    pub port: Port,
}

impl ServingKey {
    /// Rows of `SERVING`: 8 KiB, which stay in the first-level cache.
    pub const WORDS: u32 = 1024;

    /// Builds a key.
    #[inline(always)]
    pub const fn new(addr: Addr, port: Port) -> Self {
        Self { addr, port }
    }

    /// The row of `SERVING` that its bit is in, and the bit. Others may share it: then what they send is looked for
    /// among the flows, in vain.
    #[inline(always)]
    pub const fn place(&self) -> (u32, u64) {
        let [first, second] = self.addr.halves();
        let hash = hash::fold(hash::fold(hash::K, first), second);
        let hash = hash::fold(hash, self.port.wire() as u64);
        ((hash >> 54) as u32, 1 << (hash >> 48 & 63))
    }
}

/// Packets and bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes of their frames as they arrived.
    pub bytes: u64,
}

/// What a service or a backend has carried, and how its flows began.
///
/// 32 bytes: half a cache line, which is written for each packet anyway.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes of their frames as they arrived.
    pub bytes: u64,
    /// Flows that sockets of this node began, and TCP flows: packets with SYN and without ACK, repeated ones
    /// included. Of other protocols
    /// nothing says that a packet is a flow's first, and nothing is counted.
    pub new_flows: u64,
    /// Packets whose slot was in transition, so that the flow's memory was asked.
    pub in_transition: u64,
}

/// A service and the reason for which packets of it were dropped.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct ServiceDrop {
    /// [`Service::id`].
    pub service: u32,
    /// `Reason as u32`.
    pub reason: u32,
}

/// What each CPU counts for itself, and readers sum.
pub trait Counter: Pod + Default + PartialEq {
    /// The sum of two.
    #[must_use]
    fn plus(self, other: Self) -> Self;
}

impl Counter for u64 {
    fn plus(self, other: Self) -> Self {
        self.wrapping_add(other)
    }
}

impl Counter for Count {
    fn plus(self, other: Self) -> Self {
        Self {
            packets: self.packets.plus(other.packets),
            bytes: self.bytes.plus(other.bytes),
        }
    }
}

impl Counter for Traffic {
    fn plus(self, other: Self) -> Self {
        Self {
            packets: self.packets.plus(other.packets),
            bytes: self.bytes.plus(other.bytes),
            new_flows: self.new_flows.plus(other.new_flows),
            in_transition: self.in_transition.plus(other.in_transition),
        }
    }
}
