//! Entry points, and the one match from a packet's reason to the hook's action.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![expect(
    unsafe_code,
    reason = "programs are exported symbols in named sections"
)]

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use fairlead_common::reason::{Reason, Verdict};
use fairlead_ebpf::forward::Sent;
use fairlead_ebpf::packet::{Frame, Xdp};
use fairlead_ebpf::{classify, count, maps};

/// Uplinks: services, the way back of translations, routing.
#[xdp]
pub fn xdp_ingress(context: XdpContext) -> u32 {
    let mut frame = Xdp::new(context);
    let bytes = frame.bytes();
    let end = classify::from_uplink(&mut frame);
    xdp_end(&frame, bytes, end)
}

#[inline(always)]
fn xdp_end(frame: &Xdp, bytes: u32, end: Result<Sent, Reason>) -> u32 {
    let (mut reason, out) = match end {
        Ok(sent) => (sent.reason, sent.ifindex),
        Err(reason) => (reason, 0),
    };
    let mut action = match reason.verdict() {
        Verdict::Forward if out == frame.ifindex() => XDP_TX,
        Verdict::Forward => maps::redirect(out),
        Verdict::Pass => XDP_PASS,
        Verdict::Drop => XDP_DROP,
    };
    if reason.verdict() == Verdict::Forward && action != XDP_TX && action != XDP_REDIRECT {
        // The port went away between the question and the answer; the packet is already rewritten.
        (reason, action) = (Reason::HelperFailed, XDP_DROP);
    }
    count::end(reason, bytes);
    action
}

/// The object is for the kernel; on the host only the library is of use.
#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel calls GPL-only helpers for programs under its own licence only. The sources are MIT or
/// Apache-2.0, which is compatible with it.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
