//! Programs for benchmarks only: the baselines, and the driver that feeds a program under `BPF_PROG_TEST_RUN`.
//!
//! A test run does not restore the packet between its repetitions, and repeats one flow. So the driver puts the
//! frame back, makes it the next flow's, and calls the program under test by a tail call, which does not return.
//! Not in the agent's object.
//!
//! Live frames go through devices: `generate` writes one for a device after another, `reflect` is a peer that
//! answers each, `sink` counts what arrives.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![expect(
    clippy::inline_always,
    reason = "a BPF-to-BPF call loses what the verifier knows of the frame's bounds"
)]
#![expect(
    clippy::needless_pass_by_value,
    reason = "the macro of an entry point hands the context over"
)]

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_TX};
use aya_ebpf::bindings::{BPF_F_MMAPABLE, TC_ACT_OK, TC_ACT_SHOT};
use aya_ebpf::helpers::generated::bpf_redirect;
use aya_ebpf::macros::{classifier, map, xdp};
use aya_ebpf::maps::{Array, ProgramArray};
use aya_ebpf::programs::{TcContext, XdpContext};
use fairlead_common::addr::Addr;
use fairlead_common::checksum::Delta;
use fairlead_common::reason::Reason;
use fairlead_ebpf::forward::{self, Hop};
use fairlead_ebpf::packet::{Frame, Resize, Skb, Xdp, view, view_mut};
use fairlead_ebpf::parse::{self, Family};
use fairlead_ebpf::rewrite::{self, Tunnel, Wrap};

/// What the driver does, in words: the first eight of a frame, its bytes, the last flow's number (a power of two
/// less one), the step from flow to flow (odd), how many packets there were.
#[map]
static DRIVE: Array<[u64; 12]> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// The program under test, in row 0.
#[map]
static UNDER_TEST: ProgramArray = ProgramArray::with_max_entries(1, 0);
/// As `UNDER_TEST`, of a TC hook.
#[map]
static UNDER_TEST_TC: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Feeds IPv4 frames: the source address's last two bytes and the source port are the flow's.
#[xdp]
pub fn drive_v4(context: XdpContext) -> u32 {
    drive::<26, 34>(&context, false)
}

/// Feeds IPv6 frames.
#[xdp]
pub fn drive_v6(context: XdpContext) -> u32 {
    drive::<34, 54>(&context, false)
}

/// Feeds frames as they are, with the Ethernet header put back.
#[xdp]
pub fn drive_as_is(context: XdpContext) -> u32 {
    drive::<0, 0>(&context, false)
}

/// Feeds IPv4 frames to a program that writes to all their headers.
#[xdp]
pub fn drive_whole(context: XdpContext) -> u32 {
    drive::<26, 34>(&context, true)
}

/// Feeds answers over IPv4 to a program at a TC hook that writes to all their headers: the destination address
/// and port are the flow's.
#[classifier]
pub fn drive_answers(context: TcContext) -> i32 {
    let mut frame = Skb::new(TcContext::new(context.skb.skb));
    if restore::<30, 36>(&mut frame, true).is_some() {
        #[expect(unsafe_code, reason = "a tail call")]
        // SAFETY: the kernel checks the program; a missing one returns here.
        unsafe {
            UNDER_TEST_TC.tail_call(&context, 0);
        };
    }
    TC_ACT_OK
}

/// The floor of a TC hook.
#[classifier]
pub fn just_shoot(_: TcContext) -> i32 {
    TC_ACT_SHOT
}

/// The floor.
#[xdp]
pub fn just_drop(_: XdpContext) -> u32 {
    XDP_DROP
}

/// Parses, and turns the frame around.
#[xdp]
pub fn swap_macs(context: XdpContext) -> u32 {
    let mut frame = Xdp::new(context);
    let parsed = parse::network(&frame).and_then(|network| {
        let transport = parse::transport(&frame, &network)?;
        Ok(u64::from(transport.flow(&network).hash()))
    });
    let hop = Hop {
        ifindex: 0,
        mtu: 0,
        macs: [0x0a00_0000_0002 << 32, 0xfe00_0001_0002 << 16],
    };
    match parsed {
        Ok(_) if rewrite::macs(&mut frame, &hop).is_ok() => XDP_TX,
        Ok(_) | Err(_) => XDP_ABORTED,
    }
}

/// Parses, and wraps the packet for one backend: balancing without a balancer.
#[xdp]
pub fn encapsulate(context: XdpContext) -> u32 {
    let mut frame = Xdp::new(context);
    match wrap(&mut frame) {
        Ok(()) => XDP_TX,
        Err(_) => XDP_ABORTED,
    }
}

#[inline(always)]
fn wrap(frame: &mut Xdp) -> Result<(), Reason> {
    let network = parse::network(frame)?;
    let transport = parse::transport(frame, &network)?;
    let tunnel = Tunnel {
        family: Family::V4,
        src: Addr::from_v4_word(0x0100_010a),
        dst: Addr::from_v4_word(0x0100_320a),
        hash: transport.flow(&network).hash(),
        wrap: Wrap::Plain,
    };
    let hop = Hop {
        ifindex: 0,
        mtu: 0,
        macs: [0x0a00_0000_0002 << 32, 0xfe00_0001_0002 << 16],
    };
    rewrite::encapsulate(frame, &network, &tunnel, &hop)
}

#[inline(always)]
fn drive<const FLOW: usize, const PORT: usize>(context: &XdpContext, whole: bool) -> u32 {
    let mut frame = Xdp::new(XdpContext::new(context.ctx));
    if restore::<FLOW, PORT>(&mut frame, whole).is_some() {
        #[expect(unsafe_code, reason = "a tail call")]
        // SAFETY: the kernel checks the program; a missing one returns here.
        unsafe {
            UNDER_TEST.tail_call(context, 0);
        };
    }
    XDP_ABORTED
}

/// Puts a frame back, its Ethernet header or the `whole` of its headers, and makes it the next flow's, whose
/// address and port stand at these places.
#[inline(always)]
fn restore<const FLOW: usize, const PORT: usize>(
    frame: &mut impl Resize,
    whole: bool,
) -> Option<()> {
    let row = DRIVE.get_ptr_mut(0)?.cast::<u64>();
    #[expect(unsafe_code, reason = "shared memory")]
    // SAFETY: twelve words; one test run at a time uses them.
    let word = |i: usize| unsafe { row.add(i).read_volatile() };
    let number = word(11);
    #[expect(unsafe_code, reason = "shared memory")]
    // SAFETY: as above.
    unsafe {
        row.add(11).write_volatile(number + 1);
    };
    let flow = ((number * word(10)) & word(9)) as u32;
    // Masked: the compiler would compare start + word with end, which the verifier refuses.
    let grown = (frame.bytes() as u32 & 0x7ff).wrapping_sub(word(8) as u32 & 0x7ff);
    if grown != 0 {
        frame.pull(grown & 0xff).ok()?;
    }
    if whole {
        let mut headers = view_mut::<56>(frame, 0).ok()?;
        headers.set::<u64, 16>(word(2));
        headers.set::<u64, 24>(word(3));
        headers.set::<u64, 32>(word(4));
        headers.set::<u64, 40>(word(5));
        headers.set::<u64, 48>(word(6));
    }
    let mut ethernet = view_mut::<16>(frame, 0).ok()?;
    ethernet.set::<u64, 0>(word(0));
    ethernet.set::<u64, 8>(word(1));
    if PORT != 0 {
        let host = (0x0a00_0000 | flow & 0xffff).to_be();
        view_mut::<4>(frame, FLOW).ok()?.set::<u32, 0>(host);
        let port = (1024 + (flow >> 16) as u16).to_be();
        view_mut::<2>(frame, PORT).ok()?.set::<u16, 0>(port);
    }
    Some(())
}

/// What `generate` sends: eight words of the first flow's frame, the device, the last flow's number (a power of
/// two less one), the step from flow to flow (odd), how many frames there were.
#[map]
static GENERATE: Array<[u64; 12]> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// How many frames `sink` has seen, and in row 1 the source address of the last, as in the packet.
#[map]
static SUNK: Array<u64> = Array::with_max_entries(2, BPF_F_MMAPABLE);

/// Writes a TCP frame over IPv4 and sends it by a device. A live frame's memory is used again as the device
/// left it, so everything is written each time; the checksums are right, because conntrack looks at them.
#[xdp]
pub fn generate(context: XdpContext) -> u32 {
    let Some(row) = GENERATE.get_ptr_mut(0) else {
        return XDP_ABORTED;
    };
    let row = row.cast::<u64>();
    #[expect(unsafe_code, reason = "shared memory")]
    // SAFETY: twelve words; one test run at a time uses them.
    let word = |i: usize| unsafe { row.add(i).read_volatile() };
    let number = word(11);
    #[expect(unsafe_code, reason = "shared memory")]
    // SAFETY: as above.
    unsafe {
        row.add(11).write_volatile(number + 1);
    };
    let flow = ((number * word(10)) & word(9)) as u32;
    let mut frame = Xdp::new(context);
    let Ok(mut header) = view_mut::<64>(&mut frame, 0) else {
        return XDP_ABORTED;
    };
    header.set::<u64, 0>(word(0));
    header.set::<u64, 8>(word(1));
    header.set::<u64, 16>(word(2));
    header.set::<u64, 24>(word(3));
    header.set::<u64, 32>(word(4));
    header.set::<u64, 40>(word(5));
    header.set::<u64, 48>(word(6));
    header.set::<u64, 56>(word(7));
    let (address, port) = (header.get::<u16, 28>(), header.get::<u16, 34>());
    let host = (flow as u16).to_be();
    let source = (u16::from_be(port) + (flow >> 16) as u16).to_be();
    let moved = Delta::NONE.half(address, host);
    let ip = moved.apply(header.get::<u16, 24>());
    let tcp = moved.half(port, source).apply(header.get::<u16, 50>());
    header.set::<u16, 28>(host);
    header.set::<u16, 34>(source);
    header.set::<u16, 24>(ip);
    header.set::<u16, 50>(tcp);
    send(word(8) as u32)
}

/// Answers a TCP segment over IPv4 as its receiver would: to whom it came from, by the device that it came by. At a TC
/// hook, because a pod takes and sends socket buffers. The sum of the words is the same, and so are the checksums.
#[classifier]
pub fn reflect(context: TcContext) -> i32 {
    let mut frame = Skb::new(context);
    let device = frame.ifindex();
    let Ok(mut header) = view_mut::<46>(&mut frame, 0) else {
        return TC_ACT_SHOT;
    };
    let (to, to_end) = (header.get::<u32, 0>(), header.get::<u16, 4>());
    let (from, from_end) = (header.get::<u32, 6>(), header.get::<u16, 10>());
    header.set::<u32, 0>(from);
    header.set::<u16, 4>(from_end);
    header.set::<u32, 6>(to);
    header.set::<u16, 10>(to_end);
    let (src, dst) = (header.get::<u32, 26>(), header.get::<u32, 30>());
    header.set::<u32, 26>(dst);
    header.set::<u32, 30>(src);
    let (src, dst) = (header.get::<u16, 34>(), header.get::<u16, 36>());
    header.set::<u16, 34>(dst);
    header.set::<u16, 36>(src);
    let (sequence, acknowledged) = (header.get::<u32, 38>(), header.get::<u32, 42>());
    header.set::<u32, 38>(acknowledged);
    header.set::<u32, 42>(sequence);
    forward::redirect(device)
}

/// Counts a frame and drops it.
#[xdp]
pub fn sink(context: XdpContext) -> u32 {
    let frame = Xdp::new(context);
    if let Ok(header) = view::<30>(&frame, 0) {
        note(1, |_| header.get::<u32, 26>().into());
    }
    note(0, |sunk| sunk + 1);
    XDP_DROP
}

#[inline(always)]
fn note(row: u32, change: impl FnOnce(u64) -> u64) {
    if let Some(row) = SUNK.get_ptr_mut(row) {
        #[expect(unsafe_code, reason = "shared memory")]
        // SAFETY: a word; frames arrive on one CPU at a time.
        unsafe {
            row.write_volatile(change(row.read_volatile()));
        };
    }
}

#[expect(unsafe_code, reason = "a helper call without pointers")]
#[expect(clippy::cast_sign_loss, reason = "the answer is an XDP action")]
#[inline(always)]
fn send(device: u32) -> u32 {
    // SAFETY: no memory is passed.
    (unsafe { bpf_redirect(device, 0) }) as u32
}

/// The object is for the kernel only.
#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// As in the agent's object.
#[cfg(target_arch = "bpf")]
#[expect(
    unsafe_code,
    reason = "the kernel looks for the licence in a named section"
)]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
