//! A frame at a TC hook: a socket buffer, perhaps one that is cut into segments later.

use core::mem::MaybeUninit;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::bindings::{
    BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
    BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM,
};
use aya_ebpf::helpers::{
    bpf_fib_lookup, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_adjust_room,
    bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use aya_ebpf::programs::TcContext;
use fairlead_common::checksum::Delta;
use fairlead_common::reason::Reason;

use super::{
    Checksum, FibLookup, Frame, Outer, Renaming, Resize, Shorten, Word, readdress_v4, view_mut,
};

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
        // Masked: the verifier must know that the sum does not wrap.
        let bytes = context.len() & 0x00ff_ffff;
        let headers = if (bytes as usize) < HEADERS {
            bytes
        } else {
            HEADERS as u32
        };
        if context.data() + headers as usize > context.data_end() {
            // A failure leaves the frame as it is: reads beyond its linear part end as malformed.
            let _ = context.pull_data(headers);
        }
        Self { context, ifindex }
    }

    /// The kernel's context, for a detour.
    #[inline(always)]
    pub const fn context(&self) -> &TcContext {
        &self.context
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

    /// Writes bytes that the helpers know how to write where a checksum is not complete.
    #[inline(always)]
    fn write<T>(&mut self, at: usize, word: &T, flags: u32) -> Result<(), Reason> {
        // SAFETY: the helper compares the offset with the buffer's bounds; `word` lives through the call.
        refused(unsafe {
            bpf_skb_store_bytes(
                self.context.skb.skb,
                at as u32,
                core::ptr::from_ref(word).cast(),
                size_of::<T>() as u32,
                flags.into(),
            )
        })
    }

    /// Repairs a transport checksum for a change of `bytes` bytes, or, for 0, of a sum.
    #[inline(always)]
    fn repair(
        &mut self,
        checksum: Checksum,
        change: (u32, u32),
        bytes: u64,
        pseudo: u32,
    ) -> Result<(), Reason> {
        let mangled = if checksum.optional {
            u64::from(BPF_F_MARK_MANGLED_0)
        } else {
            0
        };
        // SAFETY: the helper compares the offset with the buffer's bounds.
        refused(unsafe {
            bpf_l4_csum_replace(
                self.context.skb.skb,
                checksum.at as u32,
                change.0.into(),
                change.1.into(),
                bytes | mangled | u64::from(pseudo),
            )
        })
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
    const MAY_TURN: bool = true;

    #[inline(always)]
    fn start(&self) -> usize {
        self.context.data()
    }

    #[inline(always)]
    fn end(&self) -> usize {
        self.context.data_end()
    }

    #[inline(always)]
    fn bytes(&self) -> usize {
        self.context.len() as usize
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    #[inline(always)]
    fn anywhere(&self, at: usize) -> usize {
        // SAFETY: as in `new`.
        let again = unsafe { (&raw const (*self.context.skb.skb).ifindex).read_volatile() };
        at + (again ^ self.ifindex) as usize
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

    /// A checksum that the device computed over the whole packet stays right.
    #[inline(always)]
    fn store<T: Word>(&mut self, at: usize, word: T) -> Result<(), Reason> {
        self.write(at, &word, BPF_F_RECOMPUTE_CSUM)
    }

    #[inline(always)]
    fn store_byte(&mut self, at: usize, byte: u8) -> Result<(), Reason> {
        self.store(at, byte)
    }

    /// As [`Skb::repair_transport`]; what stands where the verifier follows is written without helpers.
    #[inline(always)]
    fn rename(&mut self, end: &Renaming) -> Result<(), Reason> {
        self.repair_transport(end)?;
        if let Some(header) = end.v4_header {
            readdress_v4(self, end, header)?;
        } else {
            self.write(end.address_at, &end.addresses.1, BPF_F_RECOMPUTE_CSUM)?;
        }
        view_mut::<2>(self, end.port_at)?.set::<u16, 0>(end.ports.1.wire());
        Ok(())
    }

    #[inline(always)]
    fn rename_anywhere(&mut self, end: &Renaming) -> Result<(), Reason> {
        self.repair_transport(end)?;
        let (old, new) = end.addresses;
        if let Some(header) = end.v4_header {
            let change = (old.v4_word().into(), new.v4_word().into());
            // SAFETY: as in `repair`.
            refused(unsafe {
                bpf_l3_csum_replace(
                    self.context.skb.skb,
                    (header + 10) as u32,
                    change.0,
                    change.1,
                    4,
                )
            })?;
            self.write(end.address_at, &new.v4_word(), 0)?;
        } else {
            self.write(end.address_at, &new, BPF_F_RECOMPUTE_CSUM)?;
        }
        self.write(end.port_at, &end.ports.1, 0)
    }
}

impl Skb {
    /// Repairs a transport's checksum for an address and a port that are written next.
    ///
    /// The helpers know what a driver or a segmenter still has to fill in, which we do not. What a device
    /// computed over the whole packet stays right: the address and the checksums that cover it change by
    /// opposite amounts, the header's and the transport's in IPv4, the transport's alone in IPv6.
    #[inline(always)]
    fn repair_transport(&mut self, end: &Renaming) -> Result<(), Reason> {
        let (old, new) = end.addresses;
        let checksum = end.checksum;
        if end.v4_header.is_none() {
            let sum = Delta::NONE.halves(old.halves(), new.halves()).sum();
            self.repair(checksum, (0, sum), 0, BPF_F_PSEUDO_HDR)?;
        } else if checksum.covers_addresses {
            self.repair(
                checksum,
                (old.v4_word(), new.v4_word()),
                4,
                BPF_F_PSEUDO_HDR,
            )?;
        }
        let (old, new) = end.ports;
        self.repair(checksum, (old.wire().into(), new.wire().into()), 2, 0)
    }
}

impl Skb {
    #[inline(always)]
    fn adjust_room(&mut self, by: i32, flags: u32) -> Result<(), Reason> {
        // SAFETY: no memory is passed; views of the old bounds cannot outlive `&mut self`.
        refused(unsafe {
            bpf_skb_adjust_room(self.context.skb.skb, by, BPF_ADJ_ROOM_MAC, flags.into())
        })
    }
}

impl Shorten for Skb {
    /// A frame that would be cut into segments is one frame afterwards.
    #[inline(always)]
    fn shorten(&mut self, bytes: u32) -> Result<(), Reason> {
        // SAFETY: no memory is passed; views of the old bounds cannot outlive `&mut self`.
        refused(unsafe { bpf_skb_change_tail(self.context.skb.skb, bytes, 0) })
    }
}

impl Resize for Skb {
    /// A frame that is cut into segments later has them made smaller by the header, so that they fit.
    #[inline(always)]
    fn push(&mut self, outer: Outer) -> Result<(), Reason> {
        let flags = match outer {
            Outer::V4 => BPF_F_ADJ_ROOM_ENCAP_L3_IPV4,
            Outer::V6 => BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
            Outer::V4Udp => BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
            Outer::V6Udp => BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
        };
        self.adjust_room(outer.bytes().cast_signed(), flags)
    }

    #[inline(always)]
    fn pull(&mut self, bytes: u32) -> Result<(), Reason> {
        self.adjust_room(-bytes.cast_signed(), 0)
    }
}
