//! Programs for rare packets: entered by a tail call, with a stack and a verifier's budget of their own, so that
//! the program that every packet runs through does not grow with them.
//!
//! Whoever makes a detour has not changed the packet, but for [`RELAY`]. When the row is empty the call returns, and the packet
//! ends with the reason that led there: it is counted, and never lost silently.

/// The kind of program that turns off, which is that of the program that it turns off to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Rows of `DETOURS`.
    Xdp,
    /// Rows of `POD_DETOURS`.
    Tc,
}

/// A program that is entered by a tail call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detour {
    /// Whose table it stands in.
    pub hook: Hook,
    /// Its row there.
    pub row: u32,
    /// Its name in the object.
    pub program: &'static str,
}

/// Packets to the addresses of services that are not plain packets of a service: fragments, options, ICMP,
/// other ports.
pub const ODD: Detour = Detour {
    hook: Hook::Xdp,
    row: 0,
    program: "xdp_odd",
};

/// Packets that carry another one: perhaps another node's balancer has wrapped it for a backend of this node.
pub const ARRIVAL: Detour = Detour {
    hook: Hook::Xdp,
    row: 1,
    program: "xdp_arrival",
};

/// Packets that no service takes, and whose sender is to be told.
pub const ANSWER: Detour = Detour {
    hook: Hook::Xdp,
    row: 2,
    program: "xdp_answer",
};

/// Packets that are not plain, to backends that this node translates for.
pub const HERE: Detour = Detour {
    hook: Hook::Xdp,
    row: 3,
    program: "xdp_here",
};

/// Packets to backends that answer through this node, and, on the way to [`RETURN`], from them.
pub const RELAY: Detour = Detour {
    hook: Hook::Xdp,
    row: 4,
    program: "xdp_relay",
};

/// Answers of such backends.
pub const RETURN: Detour = Detour {
    hook: Hook::Xdp,
    row: 5,
    program: "xdp_return",
};

/// Tagged frames: what comes in them is taken as what comes without.
pub const TAGGED: Detour = Detour {
    hook: Hook::Xdp,
    row: 6,
    program: "xdp_tagged",
};

/// What pods send that is not plain: fragments, options, ICMP errors.
pub const POD_ODD: Detour = Detour {
    hook: Hook::Tc,
    row: 0,
    program: "tc_odd",
};

/// Packets of pods that no service takes, and whose sender is to be told.
pub const POD_ANSWER: Detour = Detour {
    hook: Hook::Tc,
    row: 1,
    program: "tc_answer",
};

/// As [`RELAY`], where a pod is the client.
pub const POD_RELAY: Detour = Detour {
    hook: Hook::Tc,
    row: 2,
    program: "tc_relay",
};

/// Every detour.
pub const ALL: &[Detour] = &[
    ODD, ARRIVAL, ANSWER, HERE, RELAY, RETURN, TAGGED, POD_ODD, POD_ANSWER, POD_RELAY,
];
