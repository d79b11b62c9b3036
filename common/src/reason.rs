//! Every way a packet can end, with the one name that `dpctl` and Prometheus print.

use core::fmt;

/// What happens to a packet, whatever the hook calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Sent on by the datapath.
    Forward,
    /// Given to the stack (XDP), or along the hook chain (TC): untouched, unless the reason says so.
    Pass,
    /// Dropped.
    Drop,
}

impl Verdict {
    /// The printed name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Pass => "pass",
            Self::Drop => "drop",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

macro_rules! reasons {
    ($($(#[doc = $about:literal])+ $variant:ident = $verdict:ident $name:literal,)+) => {
        /// Why a packet ended as it did. The discriminant is its row in the `REASONS` table.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $($(#[doc = $about])+ $variant,)+
        }

        impl Reason {
            /// Every reason, in the order of its rows.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The printed name: lower case, hyphenated.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What happened to the packet.
            #[inline(always)]
            pub const fn verdict(self) -> Verdict {
                match self { $(Self::$variant => Verdict::$verdict,)+ }
            }

            /// One sentence for people.
            pub const fn about(self) -> &'static str {
                match self { $(Self::$variant => concat!($($about,)+).trim_ascii(),)+ }
            }
        }
    };
}

reasons! {
    /// To a service: sent to a backend on the link by rewriting the MAC addresses.
    ServiceL2 = Forward "service-l2",
    /// To a service: encapsulated to a backend behind a router (IPIP, IP6IP6, GUE).
    ServiceEncapsulated = Forward "service-encapsulated",
    /// To a service, from a socket of this node: the socket was given a backend before it sent anything.
    ServiceSocket = Pass "service-socket",
    /// An ICMP error about a flow of a service: sent to that flow's backend, or from there to its client.
    ServiceIcmpError = Forward "service-icmp-error",
    /// An echo request to a service address: answered.
    ServiceEcho = Forward "service-echo",
    /// To a service: translated to a pod of this node, or to a host that answers through this node.
    ServiceTranslated = Forward "service-translated",
    /// To a service: translated to a process of this node; the stack takes it.
    ServiceToStack = Pass "service-to-stack",
    /// From a backend to a client of its service: given the service's address back and forwarded.
    ServiceAnswered = Forward "service-answered",
    /// From a backend to a client of its service: given the service's address back; the stack finds the way.
    ServiceAnsweredByStack = Pass "service-answered-by-stack",
    /// To a service, and too large for the way to the backend: its sender was told the MTU.
    ServiceTooBigTold = Forward "service-too-big-told",
    /// To a service without a backend, or a port of a service address that no service has: refused by an ICMP
    /// error.
    ServiceRefused = Forward "service-refused",
    /// To a service, and its TTL or hop limit ends here: its sender was told.
    ServiceTtlTold = Forward "service-ttl-told",
    /// An encapsulated packet from a balancer, unwrapped for this backend.
    Decapsulated = Pass "decapsulated",
    /// Forwarded by the routing table.
    Routed = Forward "routed",
    /// Left under an egress address.
    Translated = Pass "translated",
    /// Came back to an egress address and was forwarded to its pod.
    TranslatedBack = Forward "translated-back",
    /// Came back to an egress address; translated, and the stack finds the way to its pod.
    TranslatedToStack = Pass "translated-to-stack",

    /// Neither IPv4 nor IPv6 (ARP, LLDP and so on).
    NotIp = Pass "not-ip",
    /// The frame is not addressed to this device: broadcast, multicast or another host's.
    OtherMac = Pass "other-mac",
    /// Tagged for a VLAN, and not for a service or while the program for such frames is missing; the stack's VLAN
    /// device takes it.
    Tagged = Pass "tagged",
    /// From or to an address that must not cross a router (loopback, link-local, multicast).
    Unforwardable = Pass "unforwardable",
    /// An address of this node, or one that no route covers: the stack takes it or answers.
    Local = Pass "local",
    /// A route refuses it (blackhole, unreachable, prohibit), or the device does not forward.
    NoRoute = Pass "no-route",
    /// The way in or out is a device that Fairlead does not manage.
    OtherDevice = Pass "other-device",
    /// The next hop's MAC address is not known yet; the stack resolves it.
    NeighbourUnresolved = Pass "neighbour-unresolved",
    /// The TTL or hop limit ends here; the stack answers.
    TtlExceeded = Pass "ttl-exceeded",
    /// Larger than the MTU of the way out; the stack answers or fragments.
    MtuExceeded = Pass "mtu-exceeded",
    /// IPv4 options or IPv6 extension headers; the stack handles them.
    IpOptions = Pass "ip-options",
    /// From a pod, and not plain, while the program for such packets is missing.
    PodOdd = Pass "pod-odd",
    /// A fragment that is not ours.
    Fragment = Pass "fragment",
    /// Headers cut short or contradicting themselves; the stack counts and drops it.
    Malformed = Pass "malformed",
    /// Inside the native routing CIDR: needs no translation.
    Native = Pass "native",
    /// Not sent by a pod of this node: needs no translation.
    NotFromPod = Pass "not-from-pod",
    /// A pod's packet to the outside while this node has no egress address.
    TranslationOff = Pass "translation-off",
    /// Not encapsulated, or encapsulated and on its way to another host.
    NotEncapsulated = Pass "not-encapsulated",
    /// Encapsulated, and what is inside is to a service but not plain, and for no backend of this node; or the program
    /// for packets out of other nodes' tunnels is missing.
    Wrapped = Pass "wrapped",
    /// Encapsulated, but the packet inside is not for a service address of this backend.
    InnerForeign = Pass "inner-foreign",

    /// To a service whose ring has no backend for it.
    ServiceNoBackend = Drop "service-no-backend",
    /// To a service, from a socket of this node: no backend lives, and the socket was told so.
    ServiceSocketRefused = Drop "service-socket-refused",
    /// To a service whose backend's next hop has no MAC address yet.
    ServiceUnresolved = Drop "service-unresolved",
    /// To a service whose backend no route reaches.
    ServiceNoRoute = Drop "service-no-route",
    /// To a service, and too large for the way to the backend; its sender must not be told (an ICMP error, a
    /// later fragment).
    ServiceTooBig = Drop "service-too-big",
    /// To a service, and its TTL or hop limit ends here; its sender must not be told.
    ServiceTtl = Drop "service-ttl",
    /// To a service address and not plain, while the program for such packets is missing.
    ServiceOdd = Drop "service-odd",
    /// To a service address, of a port or protocol that no service there has.
    ServiceOther = Drop "service-other",
    /// An echo request to a service address where no service has a backend.
    ServiceEchoUnserved = Drop "service-echo-unserved",
    /// An ICMP error to a service address about a packet that no service there sent.
    ServiceIcmpForeign = Drop "service-icmp-foreign",
    /// An ICMP error to a service address that quotes too little to tell the flow (a later fragment, no ports).
    ServiceIcmpUnreadable = Drop "service-icmp-unreadable",
    /// To a service address, with IPv4 options or IPv6 extension headers that hide the transport header or
    /// forbid an answer.
    ServiceHeaders = Drop "service-headers",
    /// An ICMP error was due to a client of a service, and too many have been sent already.
    ServiceAnswerLimited = Drop "service-answer-limited",
    /// To a service address, and a fragment whose first one was not seen.
    ServiceFragmentUnknown = Drop "service-fragment-unknown",
    /// To a service that does not let its source in (`loadBalancerSourceRanges`).
    ServiceSourceDenied = Drop "service-source-denied",
    /// To a service whose backend is translated to, and not plain (a fragment, options, an ICMP error, a tag), while
    /// the program for such packets is missing.
    ServiceUntranslated = Drop "service-untranslated",
    /// To or from a backend that answers through this node, while the program for such packets is missing.
    ServiceRelay = Drop "service-relay",
    /// To a service, from a client's port that has a connection to the same backend by another service.
    ServiceFlowTaken = Drop "service-flow-taken",
    /// Every probed port of the egress address is taken for this destination.
    PortsExhausted = Drop "ports-exhausted",
    /// The table of translations is full.
    BindingsFull = Drop "bindings-full",
    /// A pod's packet of a protocol that is not translated; it must not leave under its own address.
    ProtocolUntranslatable = Drop "protocol-untranslatable",
    /// A pod's fragment; it must not leave untranslated.
    FragmentUntranslatable = Drop "fragment-untranslatable",
    /// A pod's packet with headers cut short; it must not leave untranslated.
    MalformedUntranslatable = Drop "malformed-untranslatable",
    /// To an egress address, or a backend's to this node, and no translation is known for it.
    NoBinding = Drop "no-binding",
    /// An ICMP error to an egress address.
    IcmpErrorUntranslated = Drop "icmp-error-untranslated",
    /// Encapsulated and marked congested, but the packet inside cannot carry the mark (RFC 6040 §4.2).
    CongestionLost = Drop "congestion-lost",
    /// The kernel refused to grow, shrink or write the packet.
    HelperFailed = Drop "helper-failed",
}

impl Reason {
    /// How many there are: the capacity of the `REASONS` table.
    pub const COUNT: u32 = Self::ALL.len() as u32;
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_reason_stands_at_its_own_row() {
        for (row, &reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(reason as usize, row);
        }
    }

    #[test]
    fn names_are_unique_and_hyphenated() {
        let names: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();

        assert_eq!(names.len(), Reason::ALL.len());
        for name in names {
            assert!(
                name.bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
                "{name}"
            );
        }
    }
}
