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
pub struct Kept {
    /// Which row.
    pub at: u32,
    /// What it says.
    pub row: BindingRow,
}

/// Which word of a row its binding begins at.
const BINDING: usize = 5;

/// The row where a flow is sought first, by its answers.
#[inline(always)]
fn nat_row(answer: &FlowKey) -> u32 {
    nat::row(answer, node().map_or(0, |node| node.port_secret))
}

/// The row of a flow that its backend has taken up, by the flow's answers.
#[inline(always)]
pub fn nat_flow(answer: &FlowKey) -> Option<Kept> {
    let first = nat_row(answer);
    let key = answer.words();
    for probe in 0..nat::PROBES {
        let at = nat::probe(first, probe);
        let row = NAT_FLOWS.get_ptr_mut(at)?.cast::<u64>();
        // SAFETY: a row is eight words, and the kernel keeps its memory.
        let word = |i: usize| unsafe { row.add(i).read_volatile() };
        if word(BINDING + LIFE) == Life::NONE.0 {
            return None;
        }
        let differs = (word(0) ^ key[0])
            | (word(1) ^ key[1])
            | (word(2) ^ key[2])
            | (word(3) ^ key[3])
            | (word(4) ^ key[4]);
        if differs == 0 {
            // Read after the key, which another flow may have been writing: what is busy by now is nobody's yet.
            if (word(BINDING + LIFE) >> 16) as u8 == nat::BUSY {
                return None;
            }
            // SAFETY: as above.
            let row = BindingRow(unsafe { row.add(BINDING) });
            return Some(Kept { at, row });
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
        // SAFETY: as in `nat_flow`.
        let binding_row = BindingRow(unsafe { row.add(BINDING) });
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
    WAY_EPOCH.get(0).map_or(0, |epoch| *epoch as u8)
}

/// The way that was learnt for the flow in a row, when a packet of this length may go it: the device that leads to the
/// neighbour, four bytes, source MAC and destination MAC, as [`super::NextHopRow::macs`].
#[inline(always)]
pub fn nat_way(at: u32, total: u32) -> Option<[u64; 2]> {
    let row = NAT_WAYS.get_ptr(at)?.cast::<u64>();
    // SAFETY: an aligned word that other CPUs write too, each value valid: {MAC, device}.
    let way = unsafe { row.read_volatile() };
    let device = DEVICES.get((way >> 48) as u32 & DEVICE_MASK)?;
    let mut source = [0; 8];
    source[..6].copy_from_slice(&device.mac);
    let source = u64::from_ne_bytes(source);
    (device.ifindex != 0 && total <= device.mtu).then_some([
        u64::from(device.ifindex) | source << 32,
        source >> 32 | way << 16,
    ])
}

/// Has the way of a row in the cache by the time that its answer comes: nothing waits for this load, which would cost
/// the answer 77 ns among 64Ki flows.
#[inline(always)]
pub fn fetch_nat_way(at: u32) {
    if let Some(row) = NAT_WAYS.get_ptr(at) {
        // SAFETY: as in `nat_way`.
        let _ = unsafe { row.cast::<u64>().read_volatile() };
    }
}

/// Learns a way for the flow in a row: the device, the largest IP packet that goes it, and the MAC addresses as
/// [`nat_way`] has them. False when a row cannot say it.
#[inline(always)]
pub fn learn_nat_way(at: u32, ifindex: u32, mtu: u32, macs: [u64; 2]) -> bool {
    // A route may have a smaller limit than its device.
    match (device(ifindex), NAT_WAYS.get_ptr_mut(at)) {
        (Some(device), Some(row)) if device.mtu == mtu => {
            let way = macs[1] >> 16 | u64::from(ifindex & DEVICE_MASK) << 48;
            // SAFETY: as in `nat_way`.
            unsafe { row.cast::<u64>().write_volatile(way) };
            true
        }
        _ => false,
    }
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

    #[cfg(target_arch = "bpf")]
    #[inline(always)]
    fn exchange(self, Life(old): Life, Life(new): Life) -> bool {
        let seen: u64;
        // SAFETY: an aligned word of a row. In assembly, because `core` has no compare-and-exchange here.
        unsafe {
            core::arch::asm!(
                "r0 = cmpxchg_64({row} + 16, r0, {new})",
                row = in(reg) self.0,
                new = in(reg) new,
                inout("r0") old => seen,
            );
        }
        seen == old
    }

    #[cfg(not(target_arch = "bpf"))]
    #[expect(clippy::unused_self, reason = "stands in for the kernel's side")]
    fn exchange(self, _: Life, _: Life) -> bool {
        unreachable!("tables are in the kernel")
    }
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
