//! The last question before a packet is changed: may it leave by that device?
//!
//! Not for the way itself: that is `route`.

use aya_ebpf::helpers::generated::bpf_redirect;
use fairlead_common::reason::Reason;

use crate::maps;
use crate::packet::Frame;

/// Where a packet goes next.
#[derive(Clone, Copy, Debug)]
pub struct Hop {
    /// The device it leaves by.
    pub ifindex: u32,
    /// The largest IP packet that goes this way, in bytes; 0 where nobody has asked.
    pub mtu: u32,
    /// Four unused bytes, six bytes of source MAC, six bytes of destination MAC.
    pub macs: [u64; 2],
}

impl Hop {
    /// A next hop whose first four bytes, unused in a frame, are the device's index.
    #[inline(always)]
    pub const fn known(macs: [u64; 2]) -> Self {
        Self {
            ifindex: macs[0] as u32,
            mtu: 0,
            macs,
        }
    }
}

/// A packet that was rewritten and goes out.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// Why; its verdict is "forward".
    pub reason: Reason,
    /// The device it leaves by.
    pub ifindex: u32,
}

impl Sent {
    /// Names the way a packet went.
    #[inline(always)]
    pub const fn by(hop: &Hop, reason: Reason) -> Self {
        Self {
            reason,
            ifindex: hop.ifindex,
        }
    }
}

/// Whether the hop's device is one that we send by: the one that the frame came from, or one of `TX_PORTS`.
#[inline(always)]
pub fn has_port(frame: &impl Frame, hop: &Hop) -> bool {
    hop.ifindex == frame.ifindex() || maps::is_tx_port(hop.ifindex)
}

/// Sends a socket buffer out by a device; the answer is the TC action.
#[expect(unsafe_code, reason = "a helper call without pointers")]
#[inline(always)]
pub fn redirect(ifindex: u32) -> i32 {
    // SAFETY: no memory is passed.
    (unsafe { bpf_redirect(ifindex, 0) }) as i32
}
