//! Programs for rare packets: entered by a tail call, with a stack and a verifier's budget of their own, so that
//! the program that every packet runs through does not grow with them.
//!
//! Whoever makes a detour has not changed the packet, but for [`RELAY`]. When the row is empty the call returns, and the packet
//! ends with the reason that led there: it is counted, and never lost silently.

/// A program that is entered by a tail call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detour {
    /// Its row in `DETOURS` or `POD_DETOURS`.
    pub row: u32,
    /// Its name in the object.
    pub program: &'static str,
}

/// Packets to the addresses of services that are not plain packets of a service: fragments, options, ICMP,
/// other ports.
pub const ODD: Detour = Detour {
    row: 0,
    program: "xdp_odd",
};

/// Packets that carry another one: perhaps another node's balancer has wrapped it for a backend of this node.
pub const ARRIVAL: Detour = Detour {
    row: 1,
    program: "xdp_arrival",
};

/// Packets that no service takes, and whose sender is to be told.
pub const ANSWER: Detour = Detour {
    row: 2,
    program: "xdp_answer",
};

/// Packets to backends that answer through this node, and, on the way to [`RETURN`], from them.
pub const RELAY: Detour = Detour {
    row: 3,
    program: "xdp_relay",
};

/// Answers of such backends.
pub const RETURN: Detour = Detour {
    row: 4,
    program: "xdp_return",
};

/// As [`RELAY`], where a pod is the client.
pub const POD_RELAY: Detour = Detour {
    row: 0,
    program: "tc_relay",
};

/// Every detour of packets that come in by an uplink: the rows of `DETOURS`.
pub const ALL: &[Detour] = &[ODD, ARRIVAL, ANSWER, RELAY, RETURN];

/// Every detour of packets that a pod sends: the rows of `POD_DETOURS`.
pub const OF_PODS: &[Detour] = &[POD_RELAY];
