//! Egress translation: which ports a flow may have, and how long its binding lives.
//!
//! A flow's ports come from one bucket of 1024, chosen by the flow's hash; a packet that returns
//! shows the bucket in its port (`port >> 10`). Inside the bucket, double hashing gives the order in
//! which ports are tried. Both are pure functions of the flow, so a lost cache entry is found again by
//! walking the same order, and another node computes the same owner without any state.
//!
//! A binding is endpoint-dependent (RFC 4787's address- and port-dependent mapping): one port serves
//! many destinations. That departs from RFC 4787 REQ-1 knowingly, as every datapath translator for
//! data centres does.

use bytemuck::{Pod, Zeroable};

use crate::addr::{Addr, Port, Proto};
use crate::flow::FlowKey;

/// Ports per bucket.
pub const BUCKET_PORTS: u16 = 1024;
/// Buckets of the whole port range; bucket 0 holds the well-known ports and is never used.
pub const BUCKETS: u8 = 64;
/// Cells that a flow's hash selects from; each names a bucket this node may use.
pub const CELLS: usize = 64;
/// How many ports are tried before a new flow is refused. A scan without bound is a CPU denial of
/// service (the kernel's own translator costs 70 us per refused flow).
pub const PROBES: u32 = 32;

/// A translated flow: whose name was replaced.
///
/// It is the value of `SNAT_REV`, keyed by the flow as it looks outside ({egress, egress port} to
/// {remote, remote port}), where a pod or a client was renamed; and of `NAT_FLOWS` and `NAT_RECENT`, keyed by the flow as
/// its answers look ({backend, port} to {client, client's port}), where a service was.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Binding {
    /// The address of the pod, the client, or the service.
    pub inside: Addr,
    /// Its port, or its echo identifier.
    pub inside_port: Port,
    /// A [`State`] as a number.
    pub state: u8,
    /// In `SNAT_REV` whose flow it is ([`whose`]); in `NAT_FLOWS` the epoch in which the way of its answers was
    /// learnt (`WAY_EPOCH`), 0: not yet; zero in `NAT_RECENT`.
    pub whose: u8,
    /// Coarse monotonic time of the last packet that keeps it, in seconds.
    pub last_seen_s: u32,
}

/// Values of [`Binding::whose`].
pub mod whose {
    /// A pod's, to the outside.
    pub const POD: u8 = 0;
    /// A client's of a service, to a backend that answers through this node
    /// ([`crate::service::forward::NAT`]): what stands inside is the client.
    pub const CLIENT: u8 = 1;
}

/// The value of `SNAT_FWD`: the egress port of a flow, a cache of what `SNAT_REV` says.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct EgressPort {
    /// The port under which the flow leaves.
    pub port: Port,
}

/// How far a flow has come; it only moves forward.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Packets of the side that opened it only.
    New = 0,
    /// An answer was seen.
    Established = 1,
    /// One side has finished (TCP FIN).
    Closing = 2,
    /// Both sides have finished.
    Closed = 3,
    /// Reset by either side.
    Reset = 4,
}

impl State {
    /// Reads a row's number; an unknown one is as good as closed.
    #[inline(always)]
    pub const fn from_row(number: u8) -> Self {
        match number {
            0 => Self::New,
            1 => Self::Established,
            2 => Self::Closing,
            4 => Self::Reset,
            _ => Self::Closed,
        }
    }

    /// The printed name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Established => "established",
            Self::Closing => "closing",
            Self::Closed => "closed",
            Self::Reset => "reset",
        }
    }
}

/// Which way a packet of a flow goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the side that opened it.
    Out,
    /// The answer.
    Back,
}

/// TCP flags as they stand in byte 13 of the header (RFC 9293 §3.1).
pub mod tcp {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Opens a connection.
    pub const SYN: u8 = 0x02;
    /// Ends it at once.
    pub const RST: u8 = 0x04;
    /// The acknowledgement field counts.
    pub const ACK: u8 = 0x10;
}

/// The state after a packet. `tcp_flags` is 0 for other protocols.
///
/// A FIN while established closes one side, a FIN while closing closes both; which side sent it is
/// not kept, so a retransmitted FIN may close a connection early into [`State::Closed`], whose time is
/// still long enough for the last packets (RFC 5382 REQ-5's transitory time).
#[inline(always)]
pub const fn advance(state: State, direction: Direction, tcp_flags: u8) -> State {
    if tcp_flags & tcp::RST != 0 {
        return State::Reset;
    }
    match (state, direction) {
        // A closed flow that opens again: the same ports are used anew.
        (State::Closed | State::Reset, Direction::Out)
            if tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN =>
        {
            State::New
        }
        (State::New, Direction::Back) if tcp_flags & tcp::FIN == 0 => State::Established,
        (State::New | State::Established, _) if tcp_flags & tcp::FIN != 0 => State::Closing,
        (State::Closing, _) if tcp_flags & tcp::FIN != 0 => State::Closed,
        _ => state,
    }
}

/// How long a binding lives without a packet from inside, in seconds.
///
/// TCP: RFC 5382 REQ-5 (established at least 2 h 4 min) and RFC 7857 §2.1 (partial and closing times
/// are configurable). UDP: RFC 4787 REQ-5, with a shorter time while nothing has answered. ICMP: RFC
/// 5508 REQ-2. A reset flow is kept 10 s where RFC 7857 asks for 4 min: ports are scarcer than the
/// rare connection that survives a stray reset.
#[inline(always)]
pub const fn timeout_s(proto: Proto, state: State) -> u32 {
    match (proto, state) {
        (Proto::TCP, State::New) => 120,
        (Proto::TCP, State::Established) => 7440,
        (Proto::TCP, State::Closing) => 240,
        (Proto::TCP, State::Closed) => 120,
        (_, State::Reset) => 10,
        (Proto::UDP, State::New) => 30,
        (Proto::UDP, _) => 300,
        (_, _) => 60,
    }
}

/// Whether a binding has outlived its time at `now_s` (coarse monotonic time in seconds).
#[inline(always)]
pub const fn is_expired(binding: &Binding, proto: Proto, now_s: u32) -> bool {
    // A clock read on another CPU may be a tick behind: the difference wraps, and is not "old".
    let age = now_s.wrapping_sub(binding.last_seen_s).cast_signed();
    age > timeout_s(proto, State::from_row(binding.state)).cast_signed()
}

/// The cell of a flow: an index into [`crate::route::Node::buckets`].
#[inline(always)]
pub const fn cell(hash: u64) -> usize {
    (hash >> 58) as usize & (CELLS - 1)
}

/// The bucket that a port belongs to.
#[inline(always)]
pub const fn bucket(port: Port) -> u8 {
    (port.number() >> 10) as u8
}

/// The hash of a flow as it looks inside; `secret` is the node's.
#[inline(always)]
pub const fn port_hash(inside: &FlowKey, secret: u64) -> u64 {
    inside.hash_keyed(secret)
}

/// The `probe`-th port that a flow tries in its bucket. Double hashing: the step is odd, so all 1024
/// ports of the bucket come up before one comes twice.
#[inline(always)]
pub const fn port(hash: u64, bucket: u8, probe: u32) -> Port {
    let start = hash as u32;
    let step = (hash >> 16) as u32 | 1;
    let offset = start.wrapping_add(probe.wrapping_mul(step)) & (BUCKET_PORTS as u32 - 1);
    Port::new(((bucket as u16 & (BUCKETS as u16 - 1)) << 10) | offset as u16)
}

/// The flow as it looks outside: the key of `SNAT_REV`.
#[inline(always)]
pub const fn outside(inside: &FlowKey, egress: Addr, port: Port) -> FlowKey {
    // Word by word: LLVM's back end for BPF crashes on a copy that is aligned to 16 bytes, as keys may be.
    let [first, second] = inside.dst.halves();
    let remote = Addr::from_v6_halves([first, second]);
    FlowKey::new(egress, port, remote, inside.dst_port, inside.proto)
}

/// Spreads the buckets a node owns over the cells of [`crate::route::Node::buckets`]. Bucket 0 is
/// never among them. Returns `None` when nothing is left.
pub fn cells(owned: impl Iterator<Item = u8> + Clone) -> Option<[u8; CELLS]> {
    let usable = owned.filter(|bucket| (1..BUCKETS).contains(bucket));
    let mut cells = [0; CELLS];
    let mut cycle = usable.cycle();
    for cell in &mut cells {
        *cell = cycle.next()?;
    }
    Some(cells)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_probed_port_lies_in_its_bucket_and_differs(hash in any::<u64>(), bucket_of in 1_u8..64) {
            let ports: BTreeSet<_> = (0..PROBES).map(|probe| port(hash, bucket_of, probe)).collect();

            prop_assert_eq!(ports.len(), PROBES as usize);
            for port in ports {
                prop_assert_eq!(bucket(port), bucket_of);
                prop_assert!(port.number() >= 1024);
            }
        }

        #[test]
        fn a_state_moves_forward_unless_a_syn_opens_the_flow_again(
            from in 0_u8..5, back in any::<bool>(), flags in any::<u8>(),
        ) {
            let from = State::from_row(from);
            let direction = if back { Direction::Back } else { Direction::Out };
            let to = advance(from, direction, flags);

            prop_assert!(to >= from || to == State::New && flags & tcp::SYN != 0 && !back);
        }
    }

    #[test]
    fn a_binding_lives_exactly_its_time() {
        let binding = Binding {
            last_seen_s: 100,
            ..Binding::default()
        };

        assert!(!is_expired(&binding, Proto::UDP, 130));
        assert!(is_expired(&binding, Proto::UDP, 131));
        assert!(!is_expired(&binding, Proto::UDP, 99));
    }

    #[test]
    fn owned_buckets_share_the_cells_without_the_well_known_ports() {
        let cells = cells([0, 1, 2, 3].into_iter()).unwrap();

        assert_eq!(cells[..4], [1, 2, 3, 1]);
        assert_eq!(super::cells([0].into_iter()), None);
    }

    #[test]
    fn a_tcp_flow_opens_talks_and_closes() {
        let steps = [
            (Direction::Out, tcp::SYN, State::New),
            (Direction::Back, tcp::SYN | tcp::ACK, State::Established),
            (Direction::Out, tcp::ACK, State::Established),
            (Direction::Out, tcp::FIN | tcp::ACK, State::Closing),
            (Direction::Back, tcp::FIN | tcp::ACK, State::Closed),
            (Direction::Out, tcp::ACK, State::Closed),
            (Direction::Out, tcp::SYN, State::New),
        ];
        let mut state = State::New;
        for (direction, flags, expected) in steps {
            state = advance(state, direction, flags);
            assert_eq!(state, expected);
        }
    }
}
