//! The contract between the kernel and userspace: everything both sides must agree on, said once.
//!
//! ```text
//!   fairlead (agent)                              xdp_ingress, tc_*, xdp_decap
//!   desired -> plan -> rows  ==[ BPF maps ]==>  rows -> decisions -> counters
//!                      \________ fairlead-common ________/
//! ```
//!
//! **Byte order.** [`addr::Addr`] and [`addr::Port`] hold network byte order inside and speak plain
//! values outside. Every other integer in a row (ids, slots, seconds, counts) is in host order.
//!
//! Rows are `#[repr(C)]` and derive [`bytemuck::Pod`], so padding is a compile error; they hold no
//! `bool`, `enum` or `Option`, because a map can hold any bytes.
//!
//! Not here: anything that needs `std`, a kernel or a clock.
#![no_std]
#![forbid(unsafe_code)]
#![allow(
    clippy::inline_always,
    reason = "the datapath's own arithmetic: a BPF-to-BPF call costs more than it and spills five registers"
)]

pub mod addr;
pub mod answer;
pub mod checksum;
pub mod choice;
pub mod detour;
pub mod flow;
pub mod fragment;
pub mod hash;
pub mod nat;
pub mod reason;
pub mod route;
pub mod served;
pub mod service;
pub mod snat;
pub mod socket;
pub mod tables;
