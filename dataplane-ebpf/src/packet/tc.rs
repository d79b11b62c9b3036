//! A frame at a TC hook: a socket buffer, perhaps one that is cut into segments later.

use core::mem::MaybeUninit;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM};
use aya_ebpf::helpers::{
    bpf_fib_lookup, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_load_bytes,
    bpf_skb_store_bytes,
};
use aya_ebpf::programs::TcContext;
use fairlead_common::reason::Reason;

use super::{FibLookup, Frame};

/// Bytes that must be directly readable: Ethernet, IPv6, TCP.
const HEADERS: usize = 14 + 40 + 20;
/// `PACKET_HOST` of `linux/if_packet.h`: the frame's destination is the device's own address.
const PACKET_HOST: u32 = 0;

/// The frame of a [`TcContext`].
pub struct Skb {
    context: TcContext,
    ifindex: u32,
}

impl Skb {
    /// Takes the context and makes the headers directly readable.
    #[inline(always)]
    pub fn new(context: TcContext) -> Self {
        // SAFETY: the kernel's context; the field is always there.
        let ifindex = unsafe { (*context.skb.skb).ifindex };
        let bytes = context.len();
        let headers = if (bytes as usize) < HEADERS {
            bytes
        } else {
            HEADERS as u32
        };
        if context.data() + HEADERS > context.data_end() {
            // A failure leaves the frame as it is: reads beyond its linear part end as malformed.
            let _ = context.pull_data(headers);
        }
        Self { context, ifindex }
    }

    /// Whether the frame is addressed to the device it came in by.
    #[inline(always)]
    pub fn is_to_device(&self) -> bool {
        // SAFETY: as in `new`.
        unsafe { (*self.context.skb.skb).pkt_type == PACKET_HOST }
    }

    /// Whether a VLAN tag was taken off the frame and kept beside it.
    #[inline(always)]
    pub fn is_tagged(&self) -> bool {
        // SAFETY: as in `new`.
        unsafe { (*self.context.skb.skb).vlan_present != 0 }
    }

    /// Replaces four bytes at `at`, and repairs the header checksum at `header_checksum` and the transport
    /// checksum at `checksum` (0: none), which covers them through the pseudo header.
    ///
    /// The helpers know what a driver or a segmenter still has to fill in, which we do not.
    ///
    /// # Errors
    /// [`Reason::HelperFailed`] when the kernel refuses; the packet must then be dropped.
    #[inline(always)]
    pub fn replace_address(
        &mut self,
        at: usize,
        old: u32,
        new: u32,
        header_checksum: usize,
        checksum: Option<Checksum>,
    ) -> Result<(), Reason> {
        let skb = self.context.skb.skb;
        if let Some(checksum) = checksum {
            let flags = u64::from(BPF_F_PSEUDO_HDR) | 4 | checksum.flags();
            // SAFETY: offsets are compared with the buffer's bounds by the helpers.
            let failed = unsafe {
                bpf_l4_csum_replace(skb, checksum.at as u32, old.into(), new.into(), flags)
            };
            refused(failed)?;
        }
        // SAFETY: as above; `new` lives through the call.
        unsafe {
            refused(bpf_l3_csum_replace(
                skb,
                header_checksum as u32,
                old.into(),
                new.into(),
                4,
            ))?;
            refused(bpf_skb_store_bytes(
                skb,
                at as u32,
                (&raw const new).cast(),
                4,
                0,
            ))
        }
    }

    /// Replaces two bytes at `at` that the transport checksum covers.
    ///
    /// # Errors
    /// As [`Skb::replace_address`].
    #[inline(always)]
    pub fn replace_port(
        &mut self,
        at: usize,
        old: u16,
        new: u16,
        checksum: Checksum,
    ) -> Result<(), Reason> {
        let skb = self.context.skb.skb;
        // SAFETY: as in `replace_address`.
        unsafe {
            refused(bpf_l4_csum_replace(
                skb,
                checksum.at as u32,
                old.into(),
                new.into(),
                2 | checksum.flags(),
            ))?;
            refused(bpf_skb_store_bytes(
                skb,
                at as u32,
                (&raw const new).cast(),
                2,
                0,
            ))
        }
    }
}

/// A transport checksum.
#[derive(Clone, Copy, Debug)]
pub struct Checksum {
    /// Where it stands.
    pub at: usize,
    /// Whether 0 means "none", as in UDP.
    pub optional: bool,
}

impl Checksum {
    #[inline(always)]
    fn flags(self) -> u64 {
        if self.optional {
            u64::from(BPF_F_MARK_MANGLED_0)
        } else {
            0
        }
    }
}

#[inline(always)]
fn refused(answer: i64) -> Result<(), Reason> {
    match answer {
        0 => Ok(()),
        _ => Err(Reason::HelperFailed),
    }
}

impl Frame for Skb {
    #[inline(always)]
    fn start(&self) -> usize {
        self.context.data()
    }

    #[inline(always)]
    fn end(&self) -> usize {
        self.context.data_end()
    }

    #[inline(always)]
    fn bytes(&self) -> u32 {
        self.context.len()
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    #[inline(always)]
    fn length_to_fit(&self, total: u32) -> u16 {
        // SAFETY: as in `new`.
        match unsafe { (*self.context.skb.skb).gso_size } {
            0 => total as u16,
            _ => 0,
        }
    }

    #[inline(always)]
    fn find_way(&self, question: &mut FibLookup) -> i64 {
        // SAFETY: `FibLookup` has the layout of `struct bpf_fib_lookup` and its size is given.
        unsafe {
            bpf_fib_lookup(
                self.context.as_ptr(),
                core::ptr::from_mut(question).cast(),
                FibLookup::BYTES,
                0,
            )
        }
    }

    #[inline(always)]
    fn load<const N: usize>(&self, at: usize) -> Result<[u64; N], Reason> {
        let mut words = MaybeUninit::<[u64; N]>::uninit();
        // SAFETY: the helper compares the place with the buffer's end, and fills all of the words or fails.
        unsafe {
            match bpf_skb_load_bytes(
                self.context.as_ptr(),
                at as u32,
                words.as_mut_ptr().cast(),
                (N * 8) as u32,
            ) {
                0 => Ok(words.assume_init()),
                _ => Err(Reason::Malformed),
            }
        }
    }

    #[inline(always)]
    fn store_byte(&mut self, at: usize, byte: u8) -> Result<(), Reason> {
        // SAFETY: the helper compares the offset with the buffer's bounds. It keeps a checksum that the
        // device computed over the whole packet right.
        refused(unsafe {
            bpf_skb_store_bytes(
                self.context.skb.skb,
                at as u32,
                (&raw const byte).cast(),
                1,
                u64::from(BPF_F_RECOMPUTE_CSUM),
            )
        })
    }
}
