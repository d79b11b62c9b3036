//! Memory of flows whose service's name this node has replaced by a backend's.
//!
//! A row is keyed by the flow as its answers look, {backend, port} to {client, port}, and says from which service
//! they come.
//!
//! ```text
//!   a client's packet:  NAT_FLOWS, else NAT_RECENT     -> advance
//!                       neither                        -> NAT_RECENT, as new
//!   a backend's answer: NAT_FLOWS                      -> advance, by the way in NAT_WAYS
//!                       NAT_RECENT                     -> advance; NAT_FLOWS when the backend has taken it up
//!                       neither                        -> no answer of ours
//! ```
//!
//! # Why
//! Nothing that strangers send fills `NAT_FLOWS`: a row gets there by what the backend answers, which for TCP is a
//! segment that it sends only after the handshake, and for UDP a second datagram. A SYN flood, and whatever else
//! is not answered so, turns over `NAT_RECENT`, which may forget, because every packet of the client restores the
//! row: it must live from there to the answer, no longer. A full `NAT_FLOWS` refuses nobody for the same reason.
//!
//! An answer asks the kernel for its way every [`WAY_S`] seconds, and again when the agent says that something has
//! changed (`WAY_EPOCH`): `bpf_fib_lookup` costs more than all else that an answer needs. A way is used by packets
//! without a DSCP only, because policy rules may look at that; it is never older than that, agent or not.
//!
//! A pod that reaches itself is its own client here too; only in the packets it has another name ([`mirror`]).
//!
//! Not for which backend a flow has, nor for rewriting: that is `lb`.

use fairlead_common::addr::{Addr, Port, Proto};
use fairlead_common::flow::FlowKey;
use fairlead_common::nat::WAY_S;
use fairlead_common::reason::Reason;
use fairlead_common::snat::{self, Binding, Direction, State, tcp};

use crate::maps::{Kept, Life};
use crate::parse::{Family, Network, Transport};
use crate::{clock, maps};

/// Who a pod's client seems to be that is the pod itself: its own address would be refused as a forged one.
///
/// Nobody has these addresses, and a pod's default route leads them here, whoever has set up the pod. No router
/// forwards the first (RFC 3927 §2.7; Cilium takes the same one), all discard the second (RFC 6666).
#[inline(always)]
pub const fn mirror(family: Family) -> Addr {
    match family {
        Family::V4 => Addr::from_v4_word(u32::from_ne_bytes([169, 254, 42, 1])),
        Family::V6 => Addr::from_v6_halves([(0x0100_u64 << 48).to_be(), 0xa9fe_2a01_u64.to_be()]),
    }
}

/// The flow that an answer is part of, when it is one: a pod that answers its mirror answers itself.
#[inline(always)]
pub fn answer_of(network: &Network, transport: &Transport) -> FlowKey {
    FlowKey {
        dst: client(network),
        ..transport.flow(network)
    }
}

/// The client whom an answer is for.
#[inline(always)]
pub fn client(answer: &Network) -> Addr {
    if answer.dst == mirror(answer.family) {
        answer.src
    } else {
        answer.dst
    }
}

/// Notes a client's packet to `service`, whose answers look like `answer`.
///
/// # Errors
/// [`Reason::ServiceFlowTaken`] when the client has a TCP connection from the same port to the same backend by
/// another service: the backend could not tell the two apart. A datagram takes the row over.
#[inline(always)]
pub fn sent(answer: &FlowKey, service: Addr, port: Port, tcp_flags: u8) -> Result<(), Reason> {
    let now_s = clock::now_s();
    let new = Binding {
        inside: service,
        inside_port: port,
        state: snat::advance(State::New, Direction::Out, tcp_flags) as u8,
        whose: snat::whose::POD,
        last_seen_s: now_s,
    };
    let row = match maps::nat_flow(answer) {
        Some(kept) => kept.binding(),
        None => match maps::recent_nat_flow(answer) {
            Some(row) => row,
            None => {
                maps::remember_nat_flow(answer, &new);
                return Ok(());
            }
        },
    };
    let binding = row.load();
    let old = State::from_row(binding.state);
    if binding.inside == service && binding.inside_port.wire() == port.wire() {
        let new = seen(&binding, Direction::Out, tcp_flags, now_s);
        row.renew(Life::of(&binding), Life::of(&new));
        return Ok(());
    }
    let is_free = answer.proto == Proto::UDP
        || matches!(old, State::New | State::Closed | State::Reset)
        || snat::is_expired(&binding, answer.proto, now_s);
    if is_free && row.take_over(&binding, &new) {
        return Ok(());
    }
    Err(Reason::ServiceFlowTaken)
}

/// A binding after one more packet. What was learnt of the way holds for the [`WAY_S`] seconds that it was learnt in.
#[inline(always)]
const fn seen(binding: &Binding, direction: Direction, tcp_flags: u8, now_s: u32) -> Binding {
    let state = snat::advance(State::from_row(binding.state), direction, tcp_flags) as u8;
    let whose = if now_s / WAY_S == binding.last_seen_s / WAY_S {
        binding.whose
    } else {
        0
    };
    Binding {
        state,
        whose,
        last_seen_s: now_s,
        ..*binding
    }
}

/// What is known of an answer.
#[derive(Clone, Copy)]
pub struct Asked {
    /// The service's address.
    pub service: Addr,
    /// The flow's row in `NAT_FLOWS`.
    kept: Option<Kept>,
    /// What the row says of the flow's life by now.
    life: Life,
}

/// The service that a backend's packet comes from, when it is an answer.
#[inline(always)]
pub fn answered(answer: &FlowKey, tcp_flags: u8) -> Option<Asked> {
    let kept = maps::nat_flow(answer);
    let row = match kept {
        Some(kept) => kept.binding(),
        None => maps::recent_nat_flow(answer)?,
    };
    let binding = row.load();
    let now_s = clock::now_s();
    if snat::is_expired(&binding, answer.proto, now_s) {
        return None;
    }
    let old = State::from_row(binding.state);
    let new = seen(&binding, Direction::Back, tcp_flags, now_s);
    if kept.is_none() && is_taken_up(answer.proto, old, tcp_flags) {
        maps::keep_nat_flow(answer, &new, now_s);
    }
    row.renew(Life::of(&binding), Life::of(&new));
    Some(Asked {
        service: binding.inside,
        kept,
        life: Life::of(&new),
    })
}

impl Asked {
    /// The service's port.
    #[inline(always)]
    pub const fn port(&self) -> Port {
        self.life.inside_port()
    }

    /// The way that the flow's answers went last, when it was found in these [`WAY_S`] seconds and in this epoch, as
    /// [`Kept::way`] has it.
    #[inline(always)]
    pub fn way(&self, epoch: u8, total: u32) -> Option<[u64; 2]> {
        if epoch == 0 || self.life.whose() != epoch {
            return None;
        }
        self.kept?.way(total)
    }

    /// Remembers the way of the flow's answers, which was asked for in this epoch or a later one.
    #[inline(always)]
    pub fn remember(&self, epoch: u8, ifindex: u32, mtu: u32, macs: [u64; 2]) {
        if let Some(kept) = self.kept
            && epoch != 0
            && kept.learn_way(ifindex, mtu, macs)
        {
            kept.binding().renew(self.life, self.life.with_whose(epoch));
        }
    }
}

/// The service of a flow, by its answers: for what speaks of the flow and is none of its packets.
#[inline(always)]
pub fn known(answer: &FlowKey) -> Option<(Addr, Port)> {
    let row = match maps::nat_flow(answer) {
        Some(kept) => kept.binding(),
        None => maps::recent_nat_flow(answer)?,
    };
    let binding = row.load();
    if snat::is_expired(&binding, answer.proto, clock::now_s()) {
        return None;
    }
    Some((binding.inside, binding.inside_port))
}

/// Whether an answer shows that the backend goes on with the flow.
#[inline(always)]
const fn is_taken_up(proto: Proto, before: State, tcp_flags: u8) -> bool {
    match proto {
        Proto::TCP => tcp_flags & (tcp::SYN | tcp::RST) == 0,
        _ => !matches!(before, State::New),
    }
}
