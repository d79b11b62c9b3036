//! Entry points, and the one match from a packet's reason to the hook's action.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![expect(
    clippy::inline_always,
    reason = "a BPF-to-BPF call loses what the verifier knows of the frame's bounds"
)]

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX};
use aya_ebpf::bindings::{TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::{cgroup_sock_addr, classifier, xdp};
use aya_ebpf::programs::{SockAddrContext, TcContext, XdpContext};
use fairlead_common::detour;
use fairlead_common::reason::{Reason, Verdict};
use fairlead_common::route::Device;
use fairlead_common::service::scope;
use fairlead_ebpf::forward::Sent;
use fairlead_ebpf::packet::{Frame, Skb, Xdp};
use fairlead_ebpf::sockaddr::{Address, V4, V6};
use fairlead_ebpf::{classify, count, decap, forward, maps, odd, relay, sock};

/// Uplinks: services, the way back of translations, routing.
#[xdp]
#[inline(always)]
pub fn xdp_ingress(context: XdpContext) -> u32 {
    let mut frame = Xdp::new(context);
    let bytes = frame.bytes();
    let device = maps::device(frame.ifindex());
    let end = match device {
        Some(device) => classify::from_uplink(&mut frame, device),
        None => Err(Reason::OtherDevice),
    };
    if end.is_err_and(|reason| reason == Reason::Tagged) {
        maps::enter(detour::TAGGED, frame.context());
    }
    turn_off(&frame, end);
    let may_turn = device.is_some_and(Device::may_turn);
    xdp_end_by(&frame, bytes, end, || may_turn)
}

/// Where `xdp_ingress` turns off for tagged frames.
#[xdp]
#[inline(always)]
pub fn xdp_tagged(context: XdpContext) -> u32 {
    let mut frame = Xdp::new(context);
    let bytes = frame.bytes();
    let end = classify::from_vlan(&mut frame);
    turn_off(&frame, end);
    xdp_end(&frame, bytes, end)
}

/// Where both turn off, by what has become of the packet.
#[inline(always)]
fn turn_off(frame: &Xdp, end: Result<Sent, Reason>) {
    match end {
        Err(Reason::ServiceOdd) => maps::enter(detour::ODD, frame.context()),
        Err(Reason::ServiceUntranslated) => maps::enter(detour::HERE, frame.context()),
        Err(Reason::Wrapped) => maps::enter(detour::ARRIVAL, frame.context()),
        Err(Reason::ServiceRelay) => maps::enter(detour::RELAY, frame.context()),
        Err(Reason::ServiceTooBig | Reason::ServiceNoBackend | Reason::ServiceTtl) => {
            maps::enter(detour::ANSWER, frame.context());
        }
        Ok(_) | Err(_) => {}
    }
}

/// Where `xdp_ingress` turns off for packets that carry another one.
#[xdp]
#[inline(always)]
pub fn xdp_arrival(context: XdpContext) -> u32 {
    let mut frame = Xdp::new(context);
    let bytes = frame.bytes();
    let end = classify::from_tunnel(&mut frame);
    match end {
        Err(Reason::ServiceOdd) => maps::enter(detour::ODD, frame.context()),
        Err(Reason::ServiceRelay) => maps::enter(detour::RELAY, frame.context()),
        Err(Reason::ServiceUntranslated) => maps::enter(detour::HERE, frame.context()),
        Err(Reason::ServiceTooBig | Reason::ServiceTtl) => {
            maps::enter(detour::ANSWER, frame.context());
        }
        Ok(_) | Err(_) => {}
    }
    xdp_end(&frame, bytes, end)
}

/// Where both turn off for packets to and from backends that answer through this node.
#[xdp]
#[inline(always)]
pub fn xdp_relay(context: XdpContext) -> u32 {
    let mut frame = Xdp::new(context);
    let bytes = frame.bytes();
    let end = relay::ask(&mut frame);
    if let Err(Reason::ServiceRelay) = end {
        maps::enter(detour::RETURN, frame.context());
    }
    xdp_end(&frame, bytes, end)
}

/// Where `xdp_relay` turns off for answers.
#[xdp]
#[inline(always)]
pub fn xdp_return(context: XdpContext) -> u32 {
    let mut frame = Xdp::new(context);
    let bytes = frame.bytes();
    let end = relay::answer(&mut frame);
    xdp_end(&frame, bytes, end)
}

/// Where `xdp_ingress` turns off for packets to the addresses of services that are not plain.
#[xdp]
#[inline(always)]
pub fn xdp_odd(context: XdpContext) -> u32 {
    let mut frame = Xdp::new(context);
    let bytes = frame.bytes();
    let end = odd::take(&mut frame).map_err(|refusal| {
        if refusal.reason == Reason::ServiceUntranslated {
            maps::enter(detour::HERE, frame.context());
        }
        if refusal.is_to_be_told {
            maps::enter(detour::ANSWER, frame.context());
        }
        refusal.reason
    });
    xdp_end(&frame, bytes, end)
}

/// Where all turn off for packets that are not plain, to backends that this node translates for.
#[xdp]
#[inline(always)]
pub fn xdp_here(context: XdpContext) -> u32 {
    let mut frame = Xdp::new(context);
    let bytes = frame.bytes();
    let end = odd::translate(&mut frame, scope::OUTSIDE).map_err(|refusal| {
        if refusal.is_to_be_told {
            maps::enter(detour::ANSWER, frame.context());
        }
        refusal.reason
    });
    xdp_end(&frame, bytes, end)
}

/// Where all turn off for packets that no service takes: tells their senders.
#[xdp]
pub fn xdp_answer(context: XdpContext) -> u32 {
    let mut frame = Xdp::new(context);
    let bytes = frame.bytes();
    let end = odd::answer(&mut frame, scope::OUTSIDE);
    xdp_end(&frame, bytes, end)
}

/// Backends: packets out of the balancers' tunnels.
#[xdp]
#[inline(always)]
pub fn xdp_decap(context: XdpContext) -> u32 {
    let mut frame = Xdp::new(context);
    let bytes = frame.bytes();
    let reason = match decap::unwrap(&mut frame) {
        Ok(()) => Reason::Decapsulated,
        Err(reason) => reason,
    };
    count::end(reason, bytes);
    match reason.verdict() {
        Verdict::Drop => XDP_DROP,
        Verdict::Pass | Verdict::Forward => XDP_PASS,
    }
}

/// The host's ends of pods, and LAN interfaces: services, answers, routing.
#[classifier]
#[inline(always)]
pub fn tc_ingress(context: TcContext) -> i32 {
    let mut frame = Skb::new(context);
    let bytes = frame.bytes();
    let end = classify::from_pod(&mut frame);
    match end {
        Err(Reason::PodOdd) => maps::enter(detour::POD_ODD, frame.context()),
        Err(Reason::ServiceTooBig) => maps::enter(detour::POD_ANSWER, frame.context()),
        Err(Reason::ServiceRelay) => maps::enter(detour::POD_RELAY, frame.context()),
        Ok(_) | Err(_) => {}
    }
    tc_end(bytes, end)
}

/// Where `tc_ingress` turns off for packets to backends that answer through this node.
#[classifier]
#[inline(always)]
pub fn tc_relay(context: TcContext) -> i32 {
    let mut frame = Skb::new(context);
    let bytes = frame.bytes();
    let end = relay::ask(&mut frame);
    tc_end(bytes, end)
}

/// Where `tc_ingress` turns off for what pods send that is not plain.
#[classifier]
#[inline(always)]
pub fn tc_odd(context: TcContext) -> i32 {
    let mut frame = Skb::new(context);
    let bytes = frame.bytes();
    let end = odd::from_pod(&mut frame);
    tc_end(bytes, end)
}

/// Where `tc_ingress` turns off for packets of pods that no service takes: tells the pods.
#[classifier]
#[inline(always)]
pub fn tc_answer(context: TcContext) -> i32 {
    let mut frame = Skb::new(context);
    let bytes = frame.bytes();
    let end = odd::answer(&mut frame, scope::INSIDE);
    tc_end(bytes, end)
}

/// Uplinks, on the way out: translation.
#[classifier]
#[inline(always)]
pub fn tc_egress(context: TcContext) -> i32 {
    let mut frame = Skb::new(context);
    let bytes = frame.bytes();
    let end = match classify::to_wire(&mut frame) {
        Ok(()) => Reason::Translated,
        Err(reason) => reason,
    };
    tc_end(bytes, Err(end))
}

/// The host's ends of pods, and LAN interfaces, on the way to them: answers of processes of this node. What is
/// none is not counted: it has ended elsewhere.
#[classifier]
#[inline(always)]
pub fn tc_to_pod(context: TcContext) -> i32 {
    let mut frame = Skb::new(context);
    let bytes = frame.bytes();
    match classify::to_pod(&mut frame) {
        Ok(()) => TC_ACT_UNSPEC,
        Err(reason) => tc_end(bytes, Err(reason)),
    }
}

/// Sockets of this node, IPv4: they connect to services.
#[cgroup_sock_addr(connect4)]
pub fn connect4(context: SockAddrContext) -> i32 {
    let mut address = V4::new(context);
    let end = sock::connect(&mut address);
    sock_end(&address, end)
}

/// As [`connect4`], IPv6.
#[cgroup_sock_addr(connect6)]
pub fn connect6(context: SockAddrContext) -> i32 {
    let mut address = V6::new(context);
    let end = sock::connect(&mut address);
    sock_end(&address, end)
}

/// Unconnected UDP sockets of this node, IPv4: they send to services.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(context: SockAddrContext) -> i32 {
    let mut address = V4::new(context);
    let end = sock::send(&mut address);
    sock_end(&address, end)
}

/// As [`sendmsg4`], IPv6.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(context: SockAddrContext) -> i32 {
    let mut address = V6::new(context);
    let end = sock::send(&mut address);
    sock_end(&address, end)
}

/// UDP sockets of this node, IPv4: answers come from services.
#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(context: SockAddrContext) -> i32 {
    sock::receive(&mut V4::new(context));
    PROCEED
}

/// As [`recvmsg4`], IPv6.
#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(context: SockAddrContext) -> i32 {
    sock::receive(&mut V6::new(context));
    PROCEED
}

/// Sockets of this node, IPv4: their peers are services.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(context: SockAddrContext) -> i32 {
    sock::peer(&mut V4::new(context));
    PROCEED
}

/// As [`getpeername4`], IPv6.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(context: SockAddrContext) -> i32 {
    sock::peer(&mut V6::new(context));
    PROCEED
}

/// The system call goes on, with the address as it is by then.
const PROCEED: i32 = 1;
/// The system call fails.
const REFUSE: i32 = 0;
const EPERM: i32 = 1;
const ENOMEM: i32 = 12;
const ECONNREFUSED: i32 = 111;

#[inline(always)]
fn sock_end(address: &impl Address, end: Option<Reason>) -> i32 {
    let Some(reason) = end else {
        return PROCEED;
    };
    count::end(reason, 0);
    match reason.verdict() {
        Verdict::Pass | Verdict::Forward => PROCEED,
        Verdict::Drop => {
            let is_denied = reason == Reason::ServiceSourceDenied;
            let is_refused = reason == Reason::ServiceSocketRefused;
            address.set_errno(if is_refused {
                ECONNREFUSED
            } else if is_denied {
                // As a firewall of the host says it.
                EPERM
            } else {
                ENOMEM
            });
            REFUSE
        }
    }
}

/// The action of a program that did not ask for the device that the packet came by.
#[inline(always)]
fn xdp_end(frame: &Xdp, bytes: usize, end: Result<Sent, Reason>) -> u32 {
    xdp_end_by(frame, bytes, end, || {
        maps::device(frame.ifindex()).is_some_and(Device::may_turn)
    })
}

#[inline(always)]
fn xdp_end_by(
    frame: &Xdp,
    bytes: usize,
    end: Result<Sent, Reason>,
    may_turn: impl Fn() -> bool,
) -> u32 {
    let (reason, action) = match end {
        Ok(Sent { reason, ifindex }) => {
            let action = if ifindex == frame.ifindex() && may_turn() {
                XDP_TX
            } else {
                maps::redirect(ifindex)
            };
            match action {
                XDP_TX | XDP_REDIRECT => (reason, action),
                // The port went away between the question and the answer; the packet is already rewritten.
                _ => (Reason::HelperFailed, XDP_DROP),
            }
        }
        Err(reason) if reason.verdict() == Verdict::Drop => (reason, XDP_DROP),
        Err(reason) => (reason, XDP_PASS),
    };
    count::end(reason, bytes);
    action
}

/// `TC_ACT_UNSPEC` is `TCX_NEXT`: what we pass, the next program of the chain sees.
#[inline(always)]
fn tc_end(bytes: usize, end: Result<Sent, Reason>) -> i32 {
    let (reason, action) = match end {
        Ok(Sent { reason, ifindex }) => match forward::redirect(ifindex) {
            TC_ACT_REDIRECT => (reason, TC_ACT_REDIRECT),
            _ => (Reason::HelperFailed, TC_ACT_SHOT),
        },
        Err(reason) if reason.verdict() == Verdict::Drop => (reason, TC_ACT_SHOT),
        Err(reason) => (reason, TC_ACT_UNSPEC),
    };
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
#[expect(
    unsafe_code,
    reason = "the kernel looks for the licence in a named section"
)]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
