//! What a packet that is not plain is about: the flow that it belongs to, or that it speaks of.

use fairlead_common::addr::{Addr, Proto};
use fairlead_common::flow::FlowKey;
use fairlead_common::reason::Reason;
use fairlead_common::service::{ArrivalKey, Service, ServiceKey};

use super::{icmp, ports};
use crate::lb::{self, Choice};
use crate::packet::Frame;
use crate::parse::chain::{self, Chain, Part, Quoted};
use crate::parse::{self, Network, Transport};
use crate::{decap, maps};

/// A packet of a service, perhaps in a tunnel.
pub(super) struct Subject {
    /// The packet; its protocol is the transport's.
    pub network: Network,
    /// What stands between its network header and the transport's.
    pub chain: Chain,
    /// Where the outermost network header begins: its own, but for a tunnel.
    pub outer_at: usize,
    /// The destination of that.
    outer_dst: Addr,
    /// Whether it is in a tunnel.
    pub is_wrapped: bool,
    /// Its traffic class.
    outer_traffic_class: u8,
}

/// What a packet of a service is.
pub(super) enum Message {
    /// One of a flow's packets, or a part of one.
    Part(Transport),
    /// An ICMP error about a packet of the service.
    Error(Quoted),
}

impl Message {
    /// The flow, as the client's packets have it.
    #[inline(always)]
    pub const fn flow(&self, network: &Network) -> FlowKey {
        match self {
            Self::Part(transport) => transport.flow(network),
            Self::Error(quoted) => quoted.flow.reversed(),
        }
    }

    /// Where the client found the service.
    #[inline(always)]
    const fn service(&self, network: &Network) -> ServiceKey {
        let flow = self.flow(network);
        ServiceKey::new(flow.dst, flow.dst_port, flow.proto)
    }

    /// Whether it opens a connection.
    #[inline(always)]
    pub const fn opens(&self) -> bool {
        match self {
            Self::Part(transport) => transport.opens(),
            Self::Error(_) => false,
        }
    }
}

impl Subject {
    /// Finds the packet in a frame: to the address of a service, or in a tunnel.
    ///
    /// # Errors
    /// Why there is none, or what is wrong with it.
    #[inline(always)]
    pub fn find(frame: &impl Frame) -> Result<Self, Reason> {
        let outer = parse::network(frame)?;
        // The node's own addresses are no service's, though node ports are there.
        let inside = match maps::service_address(outer.dst) {
            Some(_) => None,
            None => decap::place(frame, &outer).ok(),
        };
        let is_wrapped = inside.is_some();
        let (family, at) = inside.unwrap_or((outer.family, outer.at));
        let foreign = |reason| if is_wrapped { Reason::Wrapped } else { reason };
        // Read once more where it was read already: of two networks, one would be chosen by copying bytes. And from
        // here on the verifier walks once, not for each number of tags and kind of tunnel.
        let packet = chain::network(frame, family, frame.anywhere(at)).map_err(foreign)?;
        if packet.at + packet.total as usize > outer.at + outer.total as usize {
            return Err(foreign(Reason::Malformed));
        }
        let chain = chain::follow(frame, &packet).map_err(foreign)?;
        Ok(Self {
            network: Network {
                proto: chain.proto,
                ..packet
            },
            chain,
            outer_at: outer.at,
            outer_dst: outer.dst,
            is_wrapped,
            outer_traffic_class: outer.traffic_class,
        })
    }

    /// The traffic class that the packet goes on with.
    ///
    /// # Errors
    /// [`Reason::CongestionLost`].
    #[inline(always)]
    pub fn traffic_class(&self) -> Result<u8, Reason> {
        if self.is_wrapped {
            decap::leaving(self.network.traffic_class, self.outer_traffic_class)
        } else {
            Ok(self.network.traffic_class)
        }
    }

    /// What the packet is.
    ///
    /// # Errors
    /// Why it is none of a service. What is in a tunnel is [`Reason::Wrapped`] then: it may be on its way to
    /// another node.
    #[inline(always)]
    pub fn message(&self, frame: &impl Frame) -> Result<Message, Reason> {
        self.read(frame).map_err(|reason| {
            if self.is_wrapped {
                Reason::Wrapped
            } else {
                reason
            }
        })
    }

    #[inline(always)]
    fn read(&self, frame: &impl Frame) -> Result<Message, Reason> {
        let (network, chain) = (&self.network, &self.chain);
        if matches!(chain.proto, Proto::TCP | Proto::UDP) {
            return Ok(Message::Part(ports(frame, network, chain)?));
        }
        if chain.part != Part::Whole || !icmp::is_error(frame, network, chain)? {
            return Err(Reason::ServiceOther);
        }
        let quoted = chain::quoted(frame, network.family, chain.at + 8, chain.end)?;
        if quoted.flow.src != network.dst {
            return Err(Reason::ServiceIcmpForeign);
        }
        Ok(Message::Error(quoted))
    }

    /// The service that the packet is for, where it is in no tunnel.
    #[inline(always)]
    pub fn service(&self, message: &Message, scope: u8) -> Option<&'static Service> {
        let key = message.service(&self.network);
        maps::service(&ServiceKey { scope, ..key })
    }

    /// The service's id, and the backend that the packet goes to: the one that another node has chosen, or that
    /// the ring says.
    ///
    /// # Errors
    /// [`Reason::Wrapped`] for a packet out of a tunnel that is for no backend of this node, or why no backend is
    /// chosen.
    #[inline(always)]
    pub fn choose(&self, message: &Message, scope: u8) -> Result<(u32, Choice), Reason> {
        if self.is_wrapped {
            let key = ArrivalKey::new(&message.service(&self.network), self.outer_dst);
            let arrival = maps::arrival(&key).ok_or(Reason::Wrapped)?;
            let choice = Choice::made(&arrival, message.opens())?;
            return Ok((arrival.service, choice));
        }
        let service = self.service(message, scope).ok_or(Reason::ServiceOther)?;
        let flow = message.flow(&self.network);
        let choice = lb::choose(service, &flow.of_scope(scope), message.opens())?;
        Ok((service.id, choice))
    }
}
