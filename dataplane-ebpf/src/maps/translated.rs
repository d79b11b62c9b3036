//! Rows of translated flows: of pods' to the outside, and of services' to backends.
//!
//! Their binding's last word, its [`Life`], is changed by compare-and-exchange only; who loses leaves the row alone.
//! `NAT_FLOWS` is a hash table of our own ([`nat`]), the other ones are the kernel's.

use aya_ebpf::bindings::BPF_NOEXIST;
use fairlead_common::addr::{Addr, Port, Proto};
use fairlead_common::flow::FlowKey;
use fairlead_common::nat;
use fairlead_common::route::DEVICE_MASK;
use fairlead_common::snat::{self, Binding, EgressPort};

use super::{
    DEVICES, NAT_FLOWS, NAT_RECENT, NAT_WAYS, SNAT_FWD, SNAT_REV, WAY_EPOCH, device, node,
};

/// A row of `NAT_FLOWS` that holds the flow that it was sought by.
#[derive(Clone, Copy)]
pub struct Kept(*mut u64);

/// Which word of a row its binding begins at.
const BINDING: usize = 5;
/// Which half word of a row names the way: the last one of the key's words, zero in the key.
const WAY: usize = 4 * BINDING - 1;

/// The row where a flow is sought first, by its answers.
#[inline(always)]
fn nat_row(answer: &FlowKey) -> u32 {
    nat::row(answer, node().port_secret)
}

/// The row of a flow that its backend has taken up, by the flow's answers.
#[inline(always)]
pub fn nat_flow(answer: &FlowKey) -> Option<Kept> {
    let first = nat_row(answer);
    let key = answer.words();
    for probe in 0..nat::PROBES {
        let row = NAT_FLOWS
            .get_ptr_mut(nat::probe(first, probe))?
            .cast::<u64>();
        // SAFETY: a row is eight words, and the kernel keeps its memory.
        let word = |i: usize| unsafe { row.add(i).read_volatile() };
        if word(BINDING + LIFE) == Life::NONE.0 {
            return None;
        }
        let differs = (word(0) ^ key[0])
            | (word(1) ^ key[1])
            | (word(2) ^ key[2])
            | (word(3) ^ key[3])
            // But for the way.
            | (word(4) ^ key[4]) << 16;
        if differs == 0 {
            // Read after the key, which another flow may have been writing: what is busy by now is nobody's yet.
            if (word(BINDING + LIFE) >> 16) as u8 == nat::BUSY {
                return None;
            }
            return Some(Kept(row));
        }
    }
    None
}

/// Keeps a flow that its backend has taken up. Where there is no room the flow stays a recent one.
#[inline(always)]
pub fn keep_nat_flow(answer: &FlowKey, binding: &Binding, now_s: u32) {
    let first = nat_row(answer);
    for probe in 0..nat::PROBES {
        let Some(row) = NAT_FLOWS.get_ptr_mut(nat::probe(first, probe)) else {
            return;
        };
        let row = row.cast::<u64>();
        let binding_row = Kept(row).binding();
        let old = binding_row.load();
        // SAFETY: as in `nat_flow`.
        let proto = Proto((unsafe { row.add(4).read_volatile() } >> 32) as u8);
        if Life::of(&old) != Life::NONE && !snat::is_expired(&old, proto, now_s) {
            continue;
        }
        let busy = Life::of(&Binding {
            state: nat::BUSY,
            last_seen_s: now_s,
            ..Binding::default()
        });
        if !binding_row.exchange(Life::of(&old), busy) {
            return;
        }
        let key = answer.words();
        let [first, second] = binding.inside.halves();
        // SAFETY: as in `nat_flow`; the row is ours until its life is written.
        unsafe {
            row.write_volatile(key[0]);
            row.add(1).write_volatile(key[1]);
            row.add(2).write_volatile(key[2]);
            row.add(3).write_volatile(key[3]);
            row.add(4).write_volatile(key[4]);
            row.add(5).write_volatile(first);
            row.add(6).write_volatile(second);
        }
        binding_row.exchange(busy, Life::of(binding));
        return;
    }
}

/// The epoch that ways are learnt in; 0: none is.
#[inline(always)]
pub fn way_epoch() -> u8 {
    // SAFETY: an aligned word, valid whatever it is, that userspace writes.
    let epoch = unsafe { WAY_EPOCH.row().read_volatile() };
    epoch as u8
}

impl Kept {
    /// Whose flow it is, and how it lives.
    #[inline(always)]
    pub fn binding(self) -> BindingRow {
        // SAFETY: as in [`nat_flow`].
        BindingRow(unsafe { self.0.add(BINDING) })
    }

    /// The way that was learnt for the flow, when a packet of this length may go it: the device that leads to the
    /// neighbour, four bytes, source MAC and destination MAC, as [`super::NextHopRow::macs`].
    #[inline(always)]
    pub fn way(self, total: u32) -> Option<[u64; 2]> {
        // SAFETY: as in [`nat_flow`]; an aligned half word that other CPUs write too, each value valid.
        let at = unsafe { self.0.cast::<u16>().add(WAY).read_volatile() };
        let row = NAT_WAYS.get_ptr(at.into())?.cast::<u64>();
        // SAFETY: an aligned word, {MAC, device}, which is written once.
        let way = unsafe { row.read_volatile() };
        let device = DEVICES.get((way >> 48) as u32 & DEVICE_MASK)?;
        let mut source = [0; 8];
        source[..6].copy_from_slice(&device.mac);
        let source = u64::from_ne_bytes(source);
        let fits = way != 0 && device.ifindex != 0 && total <= device.mtu;
        fits.then_some([
            u64::from(device.ifindex) | source << 32,
            source >> 32 | way << 16,
        ])
    }

    /// Learns a way for the flow: the device, the largest IP packet that goes it, and the MAC addresses as
    /// [`Self::way`] has them. False when a row cannot say it, or there is none for it.
    #[inline(always)]
    pub fn learn_way(self, ifindex: u32, mtu: u32, macs: [u64; 2]) -> bool {
        // A route may have a smaller limit than its device.
        if device(ifindex).is_none_or(|device| device.mtu != mtu) {
            return false;
        }
        let way = macs[1] >> 16 | u64::from(ifindex & DEVICE_MASK) << 48;
        let Some(at) = way_row(way) else {
            return false;
        };
        // SAFETY: as in [`Self::way`].
        unsafe { self.0.cast::<u16>().add(WAY).write_volatile(at as u16) };
        true
    }
}

/// The row of `NAT_WAYS` that holds a way, claimed when there is none.
#[inline(always)]
fn way_row(way: u64) -> Option<u32> {
    for probe in 0..nat::WAY_PROBES {
        let at = nat::way_row(way, probe);
        let row = NAT_WAYS.get_ptr_mut(at)?.cast::<u64>();
        // SAFETY: as in [`Kept::way`].
        let mut held = unsafe { row.read_volatile() };
        if held == 0 {
            held = exchange(row, 0, way);
        }
        if held == 0 || held == way {
            return Some(at);
        }
    }
    None
}

/// The row of a flow that is not kept yet.
#[inline(always)]
pub fn recent_nat_flow(answer: &FlowKey) -> Option<BindingRow> {
    NAT_RECENT
        .get_ptr_mut(answer)
        .map(|row| BindingRow(row.cast()))
}

/// Remembers a flow that has begun, or of which nothing is known. The oldest such flow makes room.
#[inline(always)]
pub fn remember_nat_flow(answer: &FlowKey, binding: &Binding) {
    let _ = NAT_RECENT.insert(answer, binding, 0);
}

/// A row of a table of translations, shared with other CPUs.
#[derive(Clone, Copy)]
pub struct BindingRow(*mut u64);

/// Which word of a [`Binding`] holds {inside port, state, whose, last seen}.
const LIFE: usize = 2;

impl BindingRow {
    /// Reads the row.
    #[inline(always)]
    pub fn load(self) -> Binding {
        // SAFETY: a binding is three words, and the kernel keeps the row's memory while the program runs.
        let word = |i: usize| unsafe { self.0.add(i).read_volatile() };
        let life = word(LIFE);
        Binding {
            inside: Addr::from_v6_halves([word(0), word(1)]),
            inside_port: Port::from_wire(life as u16),
            state: (life >> 16) as u8,
            whose: (life >> 24) as u8,
            last_seen_s: (life >> 32) as u32,
        }
    }

    /// Writes what has changed in the life of the flow that the row was read for, unless somebody was quicker.
    #[inline(always)]
    pub fn renew(self, read: Life, new: Life) {
        if read != new {
            self.exchange(read, new);
        }
    }

    /// Writes state and time of the flow that the row was read for, unless somebody was quicker.
    #[inline(always)]
    pub fn refresh(self, read: &Binding, state: u8, last_seen_s: u32) {
        let new = Binding {
            state,
            last_seen_s,
            ..*read
        };
        self.exchange(Life::of(read), Life::of(&new));
    }

    /// Gives the row of an expired flow to another one; false when somebody was quicker.
    ///
    /// The winner of the exchange owns the row at once, because the row is no longer expired; the address
    /// follows. A packet that comes back between the two stores is a late one of the old flow.
    #[inline(always)]
    pub fn take_over(self, expired: &Binding, new: &Binding) -> bool {
        if !self.exchange(Life::of(expired), Life::of(new)) {
            return false;
        }
        let [first, second] = new.inside.halves();
        // SAFETY: as in `load`.
        unsafe {
            self.0.write_volatile(first);
            self.0.add(1).write_volatile(second);
        }
        true
    }

    #[inline(always)]
    fn exchange(self, Life(old): Life, Life(new): Life) -> bool {
        // SAFETY: as in `load`.
        exchange(unsafe { self.0.add(LIFE) }, old, new) == old
    }
}

/// Writes an aligned word of a row where it is `old`; what it was.
#[cfg(target_arch = "bpf")]
#[inline(always)]
fn exchange(word: *mut u64, old: u64, new: u64) -> u64 {
    let seen: u64;
    // SAFETY: callers pass words of rows. In assembly, because `core` has no compare-and-exchange here.
    unsafe {
        core::arch::asm!(
            "r0 = cmpxchg_64({word} + 0, r0, {new})",
            word = in(reg) word,
            new = in(reg) new,
            inout("r0") old => seen,
        );
    }
    seen
}

#[cfg(not(target_arch = "bpf"))]
fn exchange(_: *mut u64, _: u64, _: u64) -> u64 {
    unreachable!("tables are in the kernel")
}

/// A binding's third word: {inside port, state, whose, last seen}.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Life(u64);

impl Life {
    /// A row that was never used, or is free again.
    const NONE: Self = Self(0);

    /// The word of a binding.
    #[inline(always)]
    pub const fn of(binding: &Binding) -> Self {
        Self(
            binding.inside_port.wire() as u64
                | (binding.state as u64) << 16
                | (binding.whose as u64) << 24
                | (binding.last_seen_s as u64) << 32,
        )
    }

    /// [`Binding::inside_port`].
    #[inline(always)]
    pub const fn inside_port(self) -> Port {
        Port::from_wire(self.0 as u16)
    }

    /// [`Binding::whose`].
    #[inline(always)]
    pub const fn whose(self) -> u8 {
        (self.0 >> 24) as u8
    }

    /// The same with another [`Binding::whose`].
    #[inline(always)]
    #[must_use]
    pub const fn with_whose(self, whose: u8) -> Self {
        Self(self.0 & !(0xff << 24) | (whose as u64) << 24)
    }
}

/// The row of a translated flow, by the flow as it looks outside.
#[inline(always)]
pub fn binding(outside: &FlowKey) -> Option<BindingRow> {
    SNAT_REV
        .get_ptr_mut(outside)
        .map(|row| BindingRow(row.cast()))
}

/// Claims a row that nobody has: 0, or a negative errno.
#[inline(always)]
pub fn claim_binding(outside: &FlowKey, binding: &Binding) -> i32 {
    match SNAT_REV.insert(outside, binding, u64::from(BPF_NOEXIST)) {
        Ok(()) => 0,
        Err(errno) => errno,
    }
}

/// The cached egress port of a flow as it looks inside.
#[inline(always)]
pub fn egress_port(inside: &FlowKey) -> Option<EgressPort> {
    // SAFETY: two bytes, valid alone.
    unsafe { SNAT_FWD.get(inside) }.copied()
}

/// Caches the egress port of a flow.
#[inline(always)]
pub fn cache_egress_port(inside: &FlowKey, port: EgressPort) {
    let _ = SNAT_FWD.insert(inside, port, 0);
}
