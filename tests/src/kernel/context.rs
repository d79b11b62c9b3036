//! What programs are told of a frame besides its bytes.

use bytemuck::{Pod, Zeroable};

use super::Link;

/// `struct xdp_md` of `linux/bpf.h`: what an XDP program is told of a frame.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct XdpMd {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

impl XdpMd {
    /// Of a frame that arrives at `link`.
    pub fn of(frame: &[u8], link: Link) -> Self {
        Self {
            data_end: frame.len() as u32,
            ingress_ifindex: link.ifindex,
            ..Self::zeroed()
        }
    }
}

/// `struct __sk_buff` of `linux/bpf.h`, as words: what a TC program is told of a frame.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct SkBuff([u32; 48]);

impl SkBuff {
    const IFINDEX: usize = 10;
    const GSO_SIZE: usize = 44;

    /// Of a frame at `link`; `gso_size` is 0 for a plain one.
    pub fn of(link: Link, gso_size: u32) -> Self {
        let mut words = [0; 48];
        words[Self::IFINDEX] = link.ifindex;
        words[Self::GSO_SIZE] = gso_size;
        Self(words)
    }
}
