//! A frame at an XDP hook.

use core::mem::MaybeUninit;

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::{bpf_xdp_load_bytes, bpf_xdp_store_bytes};
use aya_ebpf::helpers::{bpf_fib_lookup, bpf_xdp_adjust_head, bpf_xdp_adjust_tail};
use aya_ebpf::programs::XdpContext;
use fairlead_common::reason::Reason;

use super::{FibLookup, Frame, Outer, Resize, Shorten, Word, view_mut};

/// The frame of an [`XdpContext`]. All of it is directly readable: we do not ask for multi-buffer frames.
pub struct Xdp {
    context: XdpContext,
    ifindex: u32,
}

impl Xdp {
    /// Takes the context.
    #[inline(always)]
    pub fn new(context: XdpContext) -> Self {
        let ifindex = context.ingress_ifindex() as u32;
        Self { context, ifindex }
    }

    /// The kernel's context, for a detour.
    #[inline(always)]
    pub const fn context(&self) -> &XdpContext {
        &self.context
    }
}

impl Frame for Xdp {
    const MAY_TURN: bool = false;

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
        self.context.data_end() - self.context.data()
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    #[inline(always)]
    fn anywhere(&self, at: usize) -> usize {
        // SAFETY: the kernel's context; the field is always there.
        let again = unsafe { (&raw const (*self.context.ctx).ingress_ifindex).read_volatile() };
        at + (again ^ self.ifindex) as usize
    }

    #[inline(always)]
    fn length_to_fit(&self, total: u32) -> u16 {
        total as u16
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
        // SAFETY: the helper compares the place with the frame's end, and fills all of the words or fails.
        unsafe {
            match bpf_xdp_load_bytes(
                self.context.ctx,
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
    fn store<T: Word>(&mut self, at: usize, mut word: T) -> Result<(), Reason> {
        // SAFETY: the helper compares the place with the frame's end; `word` lives through the call.
        match unsafe {
            bpf_xdp_store_bytes(
                self.context.ctx,
                at as u32,
                core::ptr::from_mut(&mut word).cast(),
                size_of::<T>() as u32,
            )
        } {
            0 => Ok(()),
            _ => Err(Reason::HelperFailed),
        }
    }

    #[inline(always)]
    fn store_byte(&mut self, at: usize, byte: u8) -> Result<(), Reason> {
        view_mut::<1>(self, at)?.set::<u8, 0>(byte);
        Ok(())
    }
}

impl Xdp {
    #[inline(always)]
    fn move_start(&mut self, by: i32) -> Result<(), Reason> {
        // SAFETY: the context is the kernel's; views of the old bounds cannot outlive `&mut self`.
        match unsafe { bpf_xdp_adjust_head(self.context.ctx, by) } {
            0 => Ok(()),
            _ => Err(Reason::HelperFailed),
        }
    }
}

impl Shorten for Xdp {
    #[inline(always)]
    fn shorten(&mut self, bytes: u32) -> Result<(), Reason> {
        let by = bytes.cast_signed() - (self.bytes() as u32).cast_signed();
        // SAFETY: as in `move_start`.
        match unsafe { bpf_xdp_adjust_tail(self.context.ctx, by) } {
            0 => Ok(()),
            _ => Err(Reason::HelperFailed),
        }
    }
}

impl Resize for Xdp {
    #[inline(always)]
    fn push(&mut self, outer: Outer) -> Result<(), Reason> {
        self.move_start(-outer.bytes().cast_signed())
    }

    #[inline(always)]
    fn pull(&mut self, bytes: u32) -> Result<(), Reason> {
        self.move_start(bytes.cast_signed())
    }
}
