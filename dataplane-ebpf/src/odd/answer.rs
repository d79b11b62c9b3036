//! What a client is told when its packet cannot be delivered.
//!
//! # Why
//! "Too big" is told about IPv4 packets without DF too: XDP cannot make two packets of one, and the first device
//! on the way would drop what exceeds its MTU before a router could fragment the outer packet. Senders that
//! fragment by themselves take the hint (Linux lowers the path's MTU whatever the quoted DF says), so the packet
//! that was lost is the last one; Katran and Cilium tell as well.

use fairlead_common::addr::Proto;
use fairlead_common::answer::kind;
use fairlead_common::reason::Reason;
use fairlead_common::route::node_flags;

use super::subject::{Message, Subject};
use crate::forward::Sent;
use crate::packet::{Frame, Resize, Shorten};
use crate::parse::{Family, Network};
use crate::rewrite::{self, IcmpError};
use crate::{clock, lb, maps, route};

/// Whether a reason is one that a packet's sender may be told.
#[inline(always)]
pub(super) const fn is_to_be_told(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::ServiceTooBig
            | Reason::ServiceNoBackend
            | Reason::ServiceTtl
            | Reason::ServiceOther
    )
}

/// Tells the sender of a packet why it ends here, where that is to be told. Why it ends is found anew: nothing
/// comes along with a tail call but the packet.
///
/// # Errors
/// The reason, when nobody is to be told: about ICMP, a later fragment, or an address that is no single host's
/// (RFC 1122 §3.2.2, RFC 4443 §2.4(e)), or one of a service here. [`Reason::ServiceAnswerLimited`] when too much
/// was told already.
#[inline(always)]
pub fn answer(frame: &mut (impl Resize + Shorten), scope: u8) -> Result<Sent, Reason> {
    let subject = Subject::find(frame)?;
    let (network, chain) = (&subject.network, &subject.chain);
    if !matches!(chain.proto, Proto::TCP | Proto::UDP) {
        return Err(Reason::ServiceOther);
    }
    let message = subject.message(frame)?;
    let (reason, mtu) = match obstacle(frame, &subject, &message, scope) {
        Ok(mtu) => (Reason::ServiceTooBig, mtu),
        Err(reason) => (reason, 0),
    };
    let (kind, told) = if reason == Reason::ServiceTooBig && mtu != 0 {
        (kind::TOO_BIG, Reason::ServiceTooBigTold)
    } else if reason == Reason::ServiceTtl {
        (kind::EXPIRED, Reason::ServiceTtlTold)
    } else if (reason == Reason::ServiceNoBackend || reason == Reason::ServiceOther) && refuses() {
        (kind::REFUSED, Reason::ServiceRefused)
    } else {
        return Err(reason);
    };
    if !chain.has_ports()
        || !route::is_wide(network.src)
        || maps::service_address(network.src).is_some()
    {
        return Err(reason);
    }
    let error = match kind {
        kind::TOO_BIG => too_big(network, mtu),
        kind::REFUSED => port_unreachable(network),
        _ => time_exceeded(network),
    };
    if error.src.is_none() {
        return Err(reason);
    }
    if !maps::may_answer(kind, clock::now_ns()) {
        return Err(Reason::ServiceAnswerLimited);
    }
    let bare = Network {
        at: subject.outer_at,
        ..*network
    };
    if subject.is_wrapped {
        rewrite::decapsulate(frame, bare.at, network.at - bare.at, bare.family)?;
    }
    rewrite::icmp_error(frame, &bare, &error)?;
    Ok(Sent {
        reason: told,
        ifindex: frame.ifindex(),
    })
}

#[inline(always)]
fn refuses() -> bool {
    maps::node().flags & node_flags::REFUSES != 0
}

/// Why no service takes the packet; or the largest that its flow's backend would have got.
#[inline(always)]
fn obstacle(
    frame: &impl Frame,
    subject: &Subject,
    message: &Message,
    scope: u8,
) -> Result<u32, Reason> {
    let network = &subject.network;
    if network.ttl <= 1 {
        let is_served = subject.is_wrapped || subject.service(message, scope).is_some();
        return Err(if is_served {
            Reason::ServiceTtl
        } else {
            Reason::ServiceOther
        });
    }
    // As a packet in the middle of its flow: a SYN was remembered when it was found too big.
    let (_, choice) = subject.choose(message, scope)?;
    lb::limit(frame, network, &message.flow(network), &choice)
}

/// RFC 1191 §4, RFC 4443 §3.2. From the service: no router on the way may be told apart from it.
#[inline(always)]
const fn too_big(network: &Network, mtu: u32) -> IcmpError {
    let (kind, code) = match network.family {
        Family::V4 => (3, 4),
        Family::V6 => (2, 0),
    };
    IcmpError {
        src: network.dst,
        kind,
        code,
        rest: mtu.to_be(),
    }
}

/// RFC 1122 §3.2.2.1, RFC 4443 §3.1: from the service, as its host would.
#[inline(always)]
const fn port_unreachable(network: &Network) -> IcmpError {
    let (kind, code) = match network.family {
        Family::V4 => (3, 3),
        Family::V6 => (1, 4),
    };
    IcmpError {
        src: network.dst,
        kind,
        code,
        rest: 0,
    }
}

/// RFC 792, RFC 4443 §3.3: from this node, as a router, for `traceroute`.
#[inline(always)]
fn time_exceeded(network: &Network) -> IcmpError {
    let (kind, src) = match network.family {
        Family::V4 => (11, maps::node().tunnel_v4),
        Family::V6 => (3, maps::node().tunnel_v6),
    };
    IcmpError {
        src,
        kind,
        code: 0,
        rest: 0,
    }
}
