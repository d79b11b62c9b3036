//! Bounds-checked access to a frame: the only room with raw packet pointers.
//!
//! A [`View`] is a window whose bounds were compared with the frame's end once; reads and writes inside it
//! name their place as a constant, so they are checked when the program is compiled and cost one
//! instruction. Not for meaning: that is `parse`.
#![expect(
    unsafe_code,
    reason = "the kernel hands over packets and contexts as raw addresses"
)]

use core::marker::PhantomData;

use fairlead_common::addr::{Addr, Port};
use fairlead_common::checksum::Delta;
use fairlead_common::reason::Reason;

mod anywhere;
mod tc;
mod xdp;

pub use anywhere::{half, readdress, sum};
pub use tc::Skb;
pub use xdp::Xdp;

/// A packet at a hook.
pub trait Frame {
    /// Whether it may come from a pod of this node: only such a packet can have to go back to its sender.
    const MAY_TURN: bool;

    /// The address of its first byte.
    fn start(&self) -> usize;

    /// The address after its last byte that can be read directly.
    fn end(&self) -> usize;

    /// How long it is, whether directly readable or not.
    fn bytes(&self) -> usize;

    /// The index of the device it came in by (at egress: goes out by).
    fn ifindex(&self) -> u32;

    /// The same place in the frame, of which the verifier knows nothing any more: it does not walk on for each place
    /// that it could be. Only helpers read and write there.
    fn anywhere(&self, at: usize) -> usize;

    /// The length of an IP packet of `total` bytes that must fit into the way out in one piece; 0 when it
    /// will be cut into segments that fit.
    fn length_to_fit(&self, total: u32) -> u16;

    /// Asks the kernel for the way to a destination; the answer is a `BPF_FIB_LKUP_RET_*`, or negative.
    fn find_way(&self, question: &mut FibLookup) -> i64;

    /// Reads `N` words of eight bytes from any place, in the order of memory. A helper reads them: for rare
    /// packets, whose headers stand where the verifier does not follow a [`View`].
    ///
    /// # Errors
    /// [`Reason::Malformed`] when the frame ends before.
    fn load<const N: usize>(&self, at: usize) -> Result<[u64; N], Reason>;

    /// Writes a word to any place, in the order of memory: a helper writes it, as [`Frame::load`] reads.
    ///
    /// # Errors
    /// [`Reason::HelperFailed`] when the frame is shorter.
    fn store<T: Word>(&mut self, at: usize, word: T) -> Result<(), Reason>;

    /// Writes a byte that is not covered by a checksum of its own header.
    ///
    /// # Errors
    /// [`Reason::HelperFailed`] when the frame is shorter.
    fn store_byte(&mut self, at: usize, byte: u8) -> Result<(), Reason>;

    /// Gives one end of a flow another address and port, and repairs the checksums that cover them.
    ///
    /// # Errors
    /// [`Reason::HelperFailed`]; the packet may be half written and must be dropped.
    #[inline(always)]
    fn rename(&mut self, end: &Renaming) -> Result<(), Reason>
    where
        Self: Sized,
    {
        rename_directly(self, end)
    }

    /// As [`Frame::rename`], wherever the headers stand.
    ///
    /// # Errors
    /// As [`Frame::rename`].
    #[inline(always)]
    fn rename_anywhere(&mut self, end: &Renaming) -> Result<(), Reason>
    where
        Self: Sized,
    {
        anywhere::rename(self, end)
    }
}

/// A frame whose front can be moved.
pub trait Resize: Frame {
    /// Makes room for an outer header in front of the network header. What is in the frame's bytes up to there
    /// is unknown afterwards.
    ///
    /// # Errors
    /// [`Reason::HelperFailed`] when there is no room.
    fn push(&mut self, outer: Outer) -> Result<(), Reason>;

    /// Cuts bytes off in front of the network header. What is in the frame's bytes up to there is unknown
    /// afterwards.
    ///
    /// # Errors
    /// [`Reason::HelperFailed`] when too little would be left.
    fn pull(&mut self, bytes: u32) -> Result<(), Reason>;
}

/// What stands between the Ethernet header and a packet that is wrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outer {
    /// An IPv4 header without options.
    V4,
    /// An IPv6 header.
    V6,
    /// As [`Outer::V4`], and a UDP header.
    V4Udp,
    /// As [`Outer::V6`], and a UDP header.
    V6Udp,
}

impl Outer {
    /// Its length.
    #[inline(always)]
    pub const fn bytes(self) -> u32 {
        match self {
            Self::V4 => 20,
            Self::V6 => 40,
            Self::V4Udp => 28,
            Self::V6Udp => 48,
        }
    }
}

/// Another address and port for one end of a flow.
#[derive(Clone, Copy, Debug)]
pub struct Renaming {
    /// Where an IPv4 header begins, whose checksum covers the address; `None` in IPv6.
    pub v4_header: Option<usize>,
    /// Where the address stands.
    pub address_at: usize,
    /// The old and the new address, of the packet's family.
    pub addresses: (Addr, Addr),
    /// Where the port stands, or the echo identifier.
    pub port_at: usize,
    /// The old and the new port.
    pub ports: (Port, Port),
    /// The transport's checksum.
    pub checksum: Checksum,
}

/// A transport checksum.
#[derive(Clone, Copy, Debug)]
pub struct Checksum {
    /// Where it stands.
    pub at: usize,
    /// Whether 0 means "none", as in UDP.
    pub optional: bool,
    /// Whether it covers the addresses, by a pseudo header.
    pub covers_addresses: bool,
}

/// Writes an IPv4 address and repairs its header's checksum; the change, for other checksums.
#[inline(always)]
fn readdress_v4(frame: &mut impl Frame, end: &Renaming, header: usize) -> Result<Delta, Reason> {
    let (old, new) = (end.addresses.0.v4_word(), end.addresses.1.v4_word());
    let change = Delta::NONE.word(old, new);
    view_mut::<4>(frame, end.address_at)?.set::<u32, 0>(new);
    let mut checksum = view_mut::<2>(frame, header + 10)?;
    let sum = change.apply(checksum.get::<u16, 0>());
    checksum.set::<u16, 0>(sum);
    Ok(change)
}

#[inline(always)]
fn rename_directly(frame: &mut impl Frame, end: &Renaming) -> Result<(), Reason> {
    let address = if let Some(header) = end.v4_header {
        readdress_v4(frame, end, header)?
    } else {
        let (old, new) = end.addresses;
        view_mut::<16>(frame, end.address_at)?.set_v6::<0>(new);
        Delta::NONE.halves(old.halves(), new.halves())
    };
    let (old, new) = end.ports;
    view_mut::<2>(frame, end.port_at)?.set::<u16, 0>(new.wire());
    let covered = if end.checksum.covers_addresses {
        address
    } else {
        Delta::NONE
    };
    let covered = covered.half(old.wire(), new.wire());
    let mut checksum = view_mut::<2>(frame, end.checksum.at)?;
    let old = checksum.get::<u16, 0>();
    checksum.set::<u16, 0>(if end.checksum.optional {
        covered.apply_udp(old)
    } else {
        covered.apply(old)
    });
    Ok(())
}

/// A frame whose end can be moved.
pub trait Shorten: Frame {
    /// Leaves the first `bytes` of the frame.
    ///
    /// # Errors
    /// [`Reason::HelperFailed`] when it is shorter already, or too little would be left.
    fn shorten(&mut self, bytes: u32) -> Result<(), Reason>;
}

/// `struct bpf_fib_lookup`, with the unions of the kernel's header as we use them.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FibLookup {
    /// Family, protocol, source port, destination port, length: see [`FibLookup::head`].
    pub head: u64,
    /// The device it came in by; the answer's device.
    pub ifindex: u32,
    /// IPv4: the TOS byte. IPv6: traffic class and flow label as in the packet.
    pub flow_info: u32,
    /// Source address; IPv4 in the first four bytes.
    pub src: [u64; 2],
    /// Destination address; IPv4 in the first four bytes. The answer's next hop.
    pub dst: [u64; 2],
    /// The answer: a VLAN that we do not use, six bytes of source MAC, six bytes of destination MAC.
    pub macs: [u64; 2],
}

impl FibLookup {
    /// Its length, as the helper takes it.
    pub const BYTES: i32 = 64;

    /// The first eight bytes in one word: smaller fields would be merged into stores that are not aligned.
    ///
    /// `family` is `AF_INET` or `AF_INET6`; the protocol and the ports (as in the packet) are for policy
    /// rules and multipath hashing; `total` is the length to compare with the way's MTU, 0 for none.
    #[inline(always)]
    pub const fn head(family: u8, l4_protocol: u8, ports: (u16, u16), total: u16) -> u64 {
        family as u64
            | (l4_protocol as u64) << 8
            | (ports.0 as u64) << 16
            | (ports.1 as u64) << 32
            | (total as u64) << 48
    }
}

const _: () = assert!(size_of::<FibLookup>() == FibLookup::BYTES as usize);

/// A plain number that can stand at any address of a packet.
pub trait Word: Copy + sealed::Sealed {}

mod sealed {
    pub trait Sealed {}
}

macro_rules! words {
    ($($word:ty),+) => { $(impl sealed::Sealed for $word {} impl Word for $word {})+ };
}
words!(u8, u16, u32, u64);

/// `N` bytes of a frame, known to be inside it.
pub struct View<'frame, const N: usize> {
    first: *mut u8,
    frame: PhantomData<&'frame ()>,
}

/// Looks at `N` bytes from `at` on.
///
/// # Errors
/// [`Reason::Malformed`] when the frame ends before.
#[inline(always)]
pub fn view<const N: usize>(frame: &impl Frame, at: usize) -> Result<View<'_, N>, Reason> {
    let first = frame.start() + at;
    // The comparison that the verifier looks for: start + constant against end.
    if first + N > frame.end() {
        return Err(Reason::Malformed);
    }
    Ok(View {
        first: first as *mut u8,
        frame: PhantomData,
    })
}

/// As [`view`], to write.
///
/// # Errors
/// [`Reason::HelperFailed`] when the frame ends before: whoever writes has read there.
#[inline(always)]
pub fn view_mut<const N: usize>(frame: &mut impl Frame, at: usize) -> Result<View<'_, N>, Reason> {
    view(&*frame, at).map_err(|_| Reason::HelperFailed)
}

impl<const N: usize> View<'_, N> {
    /// Reads the word at `AT`, in the order of memory.
    #[inline(always)]
    pub fn get<T: Word, const AT: usize>(&self) -> T {
        const { assert!(AT + size_of::<T>() <= N) };
        // SAFETY: the view's N bytes were checked when it was made, and AT lies inside them.
        unsafe { self.first.add(AT).cast::<T>().read_unaligned() }
    }

    /// Writes the word at `AT`, in the order of memory.
    #[inline(always)]
    pub fn set<T: Word, const AT: usize>(&mut self, word: T) {
        const { assert!(AT + size_of::<T>() <= N) };
        // SAFETY: as in `get`; nothing else writes a frame while its program runs.
        unsafe { self.first.add(AT).cast::<T>().write_unaligned(word) }
    }

    /// Reads the IPv6 address at `AT`. Two words: an array would be copied byte by byte.
    #[inline(always)]
    pub fn v6<const AT: usize>(&self) -> Addr {
        const { assert!(AT + 16 <= N) };
        // SAFETY: as in `get`.
        let half = |i: usize| unsafe { self.first.add(AT + 8 * i).cast::<u64>().read_unaligned() };
        Addr::from_v6_halves([half(0), half(1)])
    }

    /// Writes the IPv6 address at `AT`.
    #[inline(always)]
    pub fn set_v6<const AT: usize>(&mut self, addr: Addr) {
        const { assert!(AT + 16 <= N) };
        let [first, second] = addr.halves();
        // SAFETY: as in `set`.
        unsafe {
            self.first.add(AT).cast::<u64>().write_unaligned(first);
            self.first.add(AT + 8).cast::<u64>().write_unaligned(second);
        }
    }
}

/// A frame in a test's memory.
#[cfg(test)]
pub mod buffer {
    extern crate std;
    use std::vec::Vec;

    use super::{FibLookup, Frame, Outer, Reason, Resize, Shorten, Word};

    /// The bytes of a frame.
    pub struct Buffer(pub Vec<u8>);

    impl Frame for Buffer {
        const MAY_TURN: bool = false;

        fn start(&self) -> usize {
            self.0.as_ptr().expose_provenance()
        }
        fn end(&self) -> usize {
            self.start() + self.0.len()
        }
        fn bytes(&self) -> usize {
            self.0.len()
        }
        fn ifindex(&self) -> u32 {
            1
        }
        fn anywhere(&self, at: usize) -> usize {
            at
        }
        fn length_to_fit(&self, total: u32) -> u16 {
            total as u16
        }
        fn find_way(&self, _: &mut FibLookup) -> i64 {
            -1
        }
        fn load<const N: usize>(&self, at: usize) -> Result<[u64; N], Reason> {
            let bytes = self.0.get(at..at + N * 8).ok_or(Reason::Malformed)?;
            let (words, _) = bytes.as_chunks::<8>();
            Ok(core::array::from_fn(|i| u64::from_ne_bytes(words[i])))
        }
        fn store<T: Word>(&mut self, at: usize, word: T) -> Result<(), Reason> {
            let place = self.0.get_mut(at..at + size_of::<T>());
            let place = place.ok_or(Reason::HelperFailed)?.as_mut_ptr();
            // SAFETY: as many bytes as the word has.
            unsafe { place.cast::<T>().write_unaligned(word) };
            Ok(())
        }
        fn store_byte(&mut self, at: usize, byte: u8) -> Result<(), Reason> {
            *self.0.get_mut(at).ok_or(Reason::HelperFailed)? = byte;
            Ok(())
        }
    }

    impl Shorten for Buffer {
        fn shorten(&mut self, bytes: u32) -> Result<(), Reason> {
            self.0.truncate(bytes as usize);
            Ok(())
        }
    }

    impl Resize for Buffer {
        fn push(&mut self, outer: Outer) -> Result<(), Reason> {
            self.0.splice(..0, (0..outer.bytes()).map(|_| 0xaa));
            Ok(())
        }
        fn pull(&mut self, bytes: u32) -> Result<(), Reason> {
            self.0.drain(..bytes as usize);
            Ok(())
        }
    }
}
