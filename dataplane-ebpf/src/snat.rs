//! Translation: a pod leaves under the egress address, and what comes back finds it.
//!
//! `SNAT_REV` is the truth; `SNAT_FWD` only saves the walk over the ports that a flow may have. Every packet
//! of a pod that leaves for the outside ends as translated or dropped: there is no third way.
//!
//! ```text
//!   out:  SNAT_FWD hit, and SNAT_REV says the same   -> refresh, rewrite
//!         else walk the flow's 32 ports: its own     -> cache, refresh, rewrite
//!         else the first free or expired one         -> claim, cache, rewrite
//!         else                                       -> ports-exhausted
//!   back: SNAT_REV                                   -> advance, rewrite, route
//! ```
//!
//! # Why
//! A flow that is not in the cache looks at all its ports before it claims one: a free port before its own
//! would change the port of a living flow. A TCP SYN skips that walk, for it begins a flow.
//!
//! Clients of services get a port of this node's own address in the same way: `relay` asks for it.
//!
//! Not for which ports a flow may have and how long it lives: that is `fairlead_common::snat`.

use fairlead_common::addr::{Addr, Port, Proto};
use fairlead_common::flow::FlowKey;
use fairlead_common::reason::Reason;
use fairlead_common::route::{Node, node_flags};
use fairlead_common::snat::{self, Binding, Direction, EgressPort, PROBES, State, tcp, whose};

use crate::forward::{self, Sent};
use crate::packet::{Frame, Skb};
use crate::parse::{self, Kind, Network, Transport};
use crate::rewrite::{self, End};
use crate::route::{self, Question};
use crate::{clock, maps};

/// `E2BIG`: the table has no row left.
const E2BIG: i32 = 7;

/// Lets a pod's packet out under the egress address.
///
/// # Errors
/// Why it is dropped.
#[inline(always)]
pub fn out(frame: &mut Skb, node: &Node, network: &Network) -> Result<(), Reason> {
    let transport = parse::transport(frame, network).map_err(untranslatable)?;
    if !matches!(transport.kind, Kind::Ports | Kind::EchoRequest) {
        return Err(Reason::ProtocolUntranslatable);
    }
    let flow = Flow::new(transport.flow(network), whose::POD, transport.tcp_flags);
    let outside = Outside {
        addr: node.egress,
        node,
    };
    let port = egress_port(&flow, &outside)?;
    rewrite::name(frame, network, &transport, End::Source, node.egress, port)
}

/// Under which address flows leave.
pub struct Outside<'a> {
    /// The address.
    pub addr: Addr,
    /// Which of its ports they may have, and what keys the hash that picks them.
    pub node: &'a Node,
}

impl Outside<'_> {
    /// The flow as it looks outside under a port.
    #[inline(always)]
    fn key(&self, flow: &Flow, port: Port) -> FlowKey {
        snat::outside(&flow.inside, self.addr, port)
    }
}

/// A flow at this moment.
pub struct Flow {
    /// As it looks inside; its scope says whose it is.
    inside: FlowKey,
    tcp_flags: u8,
    now_s: u32,
}

impl Flow {
    /// A flow as it looks inside, and [`whose`] it is.
    #[inline(always)]
    pub fn new(inside: FlowKey, whose: u8, tcp_flags: u8) -> Self {
        Self {
            inside: inside.of_scope(whose),
            tcp_flags,
            now_s: clock::now_s(),
        }
    }

    /// Whether a row is this flow's.
    #[inline(always)]
    fn owns(&self, binding: &Binding) -> bool {
        binding.inside == self.inside.src
            && binding.whose == self.inside.scope
            && binding.inside_port.wire() == self.inside.src_port.wire()
    }

    /// The row of this flow as it begins.
    #[inline(always)]
    fn begin(&self) -> Binding {
        Binding {
            inside: self.inside.src,
            inside_port: self.inside.src_port,
            state: snat::advance(State::New, Direction::Out, self.tcp_flags) as u8,
            whose: self.inside.scope,
            last_seen_s: self.now_s,
        }
    }

    /// Notes a packet from inside in the flow's row, at most once a second unless the state changes.
    #[inline(always)]
    fn note(&self, row: maps::BindingRow, binding: &Binding) {
        let state = snat::advance(
            State::from_row(binding.state),
            Direction::Out,
            self.tcp_flags,
        ) as u8;
        if state != binding.state || self.now_s != binding.last_seen_s {
            row.refresh(binding, state, self.now_s);
        }
    }
}

/// The port under which a flow leaves.
///
/// # Errors
/// [`Reason::PortsExhausted`], or [`Reason::BindingsFull`].
#[inline(always)]
pub fn egress_port(flow: &Flow, outside: &Outside<'_>) -> Result<Port, Reason> {
    let inside = &flow.inside;
    if let Some(EgressPort { port }) = maps::egress_port(inside)
        && let Some(row) = maps::binding(&outside.key(flow, port))
    {
        let binding = row.load();
        if flow.owns(&binding) {
            flow.note(row, &binding);
            return Ok(port);
        }
    }
    let node = outside.node;
    let buckets = match inside.scope {
        whose::CLIENT => &node.own_buckets,
        _ => &node.buckets,
    };
    let hash = snat::port_hash(inside, node.port_secret);
    let bucket = buckets[snat::cell(hash)];
    if bucket == 0 {
        return Err(Reason::PortsExhausted);
    }
    let opens = flow.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
    let port = match find(flow, outside, hash, bucket, opens) {
        Some(port) => port,
        None => claim(flow, outside, hash, bucket)?,
    };
    maps::cache_egress_port(inside, EgressPort { port });
    Ok(port)
}

/// Finds a flow's own port, when it has one. Nothing is found for a flow that opens.
#[inline(always)]
fn find(flow: &Flow, outside: &Outside<'_>, hash: u64, bucket: u8, opens: bool) -> Option<Port> {
    if opens {
        return None;
    }
    for probe in 0..PROBES {
        let port = snat::port(hash, bucket, probe);
        if let Some(row) = maps::binding(&outside.key(flow, port)) {
            let binding = row.load();
            if flow.owns(&binding) {
                flow.note(row, &binding);
                return Some(port);
            }
        }
    }
    None
}

/// Claims the first of a flow's ports that nobody has.
#[inline(always)]
fn claim(flow: &Flow, outside: &Outside<'_>, hash: u64, bucket: u8) -> Result<Port, Reason> {
    let begin = flow.begin();
    for probe in 0..PROBES {
        let port = snat::port(hash, bucket, probe);
        let key = outside.key(flow, port);
        match maps::binding(&key) {
            None => match maps::claim_binding(&key, &begin) {
                0 => return Ok(port),
                errno if errno == -E2BIG => return Err(Reason::BindingsFull),
                // Another CPU was quicker: the next port.
                _ => {}
            },
            Some(row) => {
                let binding = row.load();
                if flow.owns(&binding) {
                    flow.note(row, &binding);
                    return Ok(port);
                }
                if snat::is_expired(&binding, flow.inside.proto, flow.now_s)
                    && row.take_over(&binding, &begin)
                {
                    return Ok(port);
                }
            }
        }
    }
    Err(Reason::PortsExhausted)
}

/// Notes a packet from outside in its flow's row: it keeps an established TCP connection, and nothing else.
#[inline(always)]
fn note_back(row: maps::BindingRow, binding: &Binding, proto: Proto, tcp_flags: u8, now_s: u32) {
    let old = State::from_row(binding.state);
    let state = snat::advance(old, Direction::Back, tcp_flags);
    let refreshes = proto == Proto::TCP && state == State::Established;
    let last_seen_s = if refreshes {
        now_s
    } else {
        binding.last_seen_s
    };
    if state as u8 != binding.state || last_seen_s != binding.last_seen_s {
        row.refresh(binding, state as u8, last_seen_s);
    }
}

/// The client to whom an answer goes that came to this node, by its flow as it looks outside.
#[inline(always)]
pub fn client(outside: &FlowKey, tcp_flags: u8) -> Option<(Addr, Port)> {
    let row = maps::binding(outside)?;
    let binding = row.load();
    let now_s = clock::now_s();
    if binding.whose != whose::CLIENT || snat::is_expired(&binding, outside.proto, now_s) {
        return None;
    }
    note_back(row, &binding, outside.proto, tcp_flags, now_s);
    Some((binding.inside, binding.inside_port))
}

/// Why a pod's packet cannot be translated.
#[inline(always)]
fn untranslatable(reason: Reason) -> Reason {
    if reason == Reason::Fragment {
        Reason::FragmentUntranslatable
    } else if reason == Reason::IpOptions {
        Reason::ProtocolUntranslatable
    } else {
        Reason::MalformedUntranslatable
    }
}

/// Brings a packet that came to the egress address to its pod.
///
/// Inbound packets do not keep a binding alive, but for an established TCP connection's (RFC 4787 REQ-6: an
/// outsider must not hold a port).
///
/// # Errors
/// Why it is dropped or passed. [`Reason::TranslatedToStack`] when it was translated and only the stack knows
/// the way.
#[inline(always)]
pub fn back(
    frame: &mut impl Frame,
    node: &Node,
    network: &Network,
    transport: Result<Transport, Reason>,
) -> Result<Sent, Reason> {
    let is_local = node.flags & node_flags::EGRESS_IS_LOCAL != 0;
    let transport = match transport {
        Ok(transport) => transport,
        Err(reason) if is_local => return Err(reason),
        Err(_) => return Err(Reason::NoBinding),
    };
    let unknown = match (is_local, transport.kind) {
        (true, _) => Reason::Local,
        (false, Kind::IcmpError) => Reason::IcmpErrorUntranslated,
        (false, _) => Reason::NoBinding,
    };
    if !matches!(transport.kind, Kind::Ports | Kind::EchoReply) {
        return Err(unknown);
    }
    let row = maps::binding(&transport.flow(network).reversed()).ok_or(unknown)?;
    let binding = row.load();
    let now_s = clock::now_s();
    if binding.whose != whose::POD || snat::is_expired(&binding, network.proto, now_s) {
        return Err(unknown);
    }
    if network.is_tagged() {
        return Err(Reason::Tagged);
    }
    route::may_be_routed(frame, network)?;
    if network.ttl <= 1 {
        return Err(Reason::TtlExceeded);
    }

    note_back(row, &binding, network.proto, transport.tcp_flags, now_s);

    let hop = route::way(
        frame,
        &Question {
            dst: binding.inside,
            ports: (transport.src_port.wire(), binding.inside_port.wire()),
            ..Question::about(network, &transport)
        },
    );
    rewrite::name(
        frame,
        network,
        &transport,
        End::Destination,
        binding.inside,
        binding.inside_port,
    )?;
    match hop {
        Ok(hop) if forward::has_port(frame, &hop) => {
            rewrite::macs(frame, &hop)?;
            rewrite::decrement_ttl(frame, network)?;
            Ok(Sent::by(&hop, Reason::TranslatedBack))
        }
        _ => Err(Reason::TranslatedToStack),
    }
}
