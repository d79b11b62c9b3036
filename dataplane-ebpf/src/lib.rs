//! The programs that the kernel runs on packets and sockets, as a library that also compiles on the host.
//!
//! ```text
//!            xdp_ingress, tc_ingress                              tc_egress, tc_to_pod       xdp_decap
//!  packet -> parse -> classify -> lb    -> way (fib) -> rewrite   classify                   decap
//!                              -> snat  -> way (fib) -> rewrite   -> lb, snat                -> rewrite
//!                              -> route -> way (fib) -> rewrite   -> rewrite
//!                              -> the same (xdp_tagged, by a tail call: frames with VLAN tags)
//!                              -> odd   (xdp_odd, by a tail call: what is to a service and not plain)
//!                              -> relay -> lb, snat (xdp_relay, xdp_return, tc_relay, by tail calls: backends that answer us)
//!                              -> arrival -> lb (xdp_arrival, by a tail call: out of other nodes' tunnels)
//!                                           |
//!                                        forward (which port) -> one Reason -> main: action + count
//!
//!            connect, sendmsg, recvmsg, getpeername
//!  address -> sock -> another address, or a Reason -> main: refuse + count
//! ```
//!
//! Every room works on a [`packet::Frame`], so XDP, TC and a test's buffer run the same code. Errors are
//! [`fairlead_common::reason::Reason`]s carried by `?`; a packet that ends with a reason that passes has not
//! been changed, unless the reason says so.
//!
//! Not here: any decision that userspace can take before the packet comes.
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![expect(
    clippy::inline_always,
    reason = "a BPF-to-BPF call loses what the verifier knows of the frame's bounds"
)]

pub mod arrival;
pub mod classify;
pub mod clock;
pub mod count;
pub mod decap;
pub mod flows;
pub mod forward;
pub mod lb;
pub mod maps;
pub mod nat;
pub mod odd;
pub mod packet;
pub mod parse;
pub mod relay;
pub mod rewrite;
pub mod route;
pub mod snat;
pub mod sock;
pub mod sockaddr;
