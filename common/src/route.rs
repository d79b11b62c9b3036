//! What the datapath must know of this node and its devices to forward a packet.

use bytemuck::{Pod, Zeroable};

use crate::addr::{Addr, Cidr4};

/// How many native routing CIDRs a node may have.
pub const NATIVE_CIDRS: usize = 8;
/// How many pod CIDRs a node may have in one family.
pub const POD_CIDRS: usize = 4;

/// What this node is; the one row of the `NODE` table.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Node {
    /// Source of encapsulated packets over IPv4.
    pub tunnel_v4: Addr,
    /// Source of encapsulated packets over IPv6.
    pub tunnel_v6: Addr,
    /// The address under which pods leave; none switches translation off.
    pub egress: Addr,
    /// IPv4 destinations that are reached without translation (`ipv4NativeRoutingCIDR`).
    pub native: [Cidr4; NATIVE_CIDRS],
    /// IPv4 sources that are pods of this node.
    pub pods: [Cidr4; POD_CIDRS],
    /// The port bucket of each hash cell: see [`crate::snat::bucket`].
    pub buckets: [u8; crate::snat::CELLS],
    /// As `buckets`, for flows that leave under an address of this node as answers to [`Node::tunnel_v4`] and
    /// [`Node::tunnel_v6`] do: ports that the host's own connections use are left out.
    pub own_buckets: [u8; crate::snat::CELLS],
    /// Keys the hash that picks ports, so that outsiders cannot predict them.
    pub port_secret: u64,
    /// [`node_flags`].
    pub flags: u32,
    /// The least and the greatest node port of services that all nodes serve alike, in host order; zeros: none.
    pub node_ports: [u16; 2],
    /// The cookie of the node's own network namespace: a loopback address is the node's in this one only.
    pub namespace: u64,
}

impl Node {
    /// Whether an address is one that the node wraps packets from.
    #[inline(always)]
    pub fn is_at(&self, addr: Addr) -> bool {
        addr == self.tunnel_v4 || addr == self.tunnel_v6
    }
}

/// Bits of [`Node::flags`].
pub mod node_flags {
    /// The egress address is one of this node's own (masquerade): what comes to it without a
    /// translation is for the stack.
    pub const EGRESS_IS_LOCAL: u32 = 1;
    /// A process of this node is a backend ([`crate::service::flags::STACK`]): what leaves may be its answer.
    pub const ANSWERS_LEAVE: u32 = 2;
    /// A host is a backend that answers through this node ([`crate::service::forward::NAT`]): what comes to the
    /// node's address may be its answer.
    pub const ANSWERS_RETURN: u32 = 8;
    /// What comes to the address of a service and has no backend is refused by an ICMP error, not dropped.
    pub const REFUSES: u32 = 4;
}

/// A value of `TX_PORTS`, as the kernel lays out `struct bpf_devmap_val`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct TxPort {
    /// The device's index.
    pub ifindex: u32,
    /// Written: the descriptor of a program to run on the way out, 0 for none. Read: its id.
    pub program: u32,
}

/// Uplinks and pods are reached by device index; `DEVICES` has a row per device at `ifindex & MASK`.
pub const DEVICE_MASK: u32 = 4095;

/// A device that the datapath receives on.
///
/// Its MAC address comes first, so that it is compared with a frame's in one word.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Device {
    /// Its MAC address.
    pub mac: [u8; 6],
    /// [`device_flags`].
    pub flags: u8,
    /// Zero.
    pub pad: u8,
    /// The device's index: another one may share the row's cell, so this must match. 0: empty.
    pub ifindex: u32,
    /// The largest IP packet that it takes, in bytes; 0: not known yet.
    pub mtu: u32,
}

impl Device {
    /// Whether packets may leave by it that came in by it, without a redirect.
    #[inline(always)]
    pub const fn may_turn(&self) -> bool {
        self.flags & device_flags::NO_TURN == 0
    }
}

/// Bits of [`Device::flags`].
pub mod device_flags {
    /// A packet that leaves by the device it came in by is redirected, not turned around (`XDP_TX`).
    ///
    /// veth needs it: its `XDP_TX` wakes the other end only when an XDP program is attached there
    /// (`veth_xdp_flush`, drivers/net/veth.c), so frames lie in the ring until something else comes.
    /// A redirect wakes it as long as it runs NAPI.
    pub const NO_TURN: u8 = 1;
}
