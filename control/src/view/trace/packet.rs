//! Frames for `dpctl trace`: one made from what was typed, and any one said in words.
//!
//! Not for the datapath: it has its own parser.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use fairlead_common::addr::Proto;
use fairlead_common::checksum;

const ETHERNET_BYTES: usize = 14;
/// EtherTypes.
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
const PROVIDER_VLAN: u16 = 0x88a8;
/// Protocols that are packets themselves.
const IPIP: u8 = 4;
const IP6: u8 = 41;
/// GUE's port (IANA), behind which variant 1 has a packet.
const GUE_PORT: u16 = 6080;
/// From whom the frame says to come.
const SENDER: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Names of TCP flags, from the lowest bit.
const FLAGS: [&str; 6] = ["fin", "syn", "rst", "psh", "ack", "urg"];

/// What a frame is made from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    /// The MAC address of the device that it arrives at.
    pub(super) to_mac: [u8; 6],
    pub(super) src: SocketAddr,
    pub(super) dst: SocketAddr,
    /// TCP or UDP.
    pub(super) proto: Proto,
    pub(super) tcp_flags: u8,
    pub(super) ttl: u8,
    /// Bytes of the IP packet; less than its headers: as many as these.
    pub(super) size: u16,
}

/// The bits of flags that are written `syn,ack`.
pub(super) fn tcp_flags(text: &str) -> Result<u8, String> {
    let words = text.split([',', '|']).filter(|word| !word.is_empty());
    words
        .map(|word| {
            let bit = FLAGS
                .iter()
                .position(|flag| flag.eq_ignore_ascii_case(word));
            bit.map(|bit| 1 << bit)
                .ok_or_else(|| format!("{word:?} is no TCP flag; there are {}", FLAGS.join(", ")))
        })
        .try_fold(0, |flags, bit| Ok(flags | bit?))
}

/// The frame, its checksums right.
pub(super) fn frame(wish: &Wish) -> Vec<u8> {
    let transport = transport(wish);
    let (src, dst) = (wish.src.ip(), wish.dst.ip());
    let (kind, header) = ip_header(src, dst, wish.proto.0, wish.ttl, transport.len());
    [
        &wish.to_mac[..],
        &SENDER,
        &kind.to_be_bytes(),
        &header,
        &transport,
    ]
    .concat()
}

/// The frame's packet wrapped in IP, as another node's balancer sends it.
pub(super) fn wrapped(frame: &[u8], src: IpAddr, dst: IpAddr) -> Vec<u8> {
    let (ethernet, inner) = frame.split_at(ETHERNET_BYTES);
    let proto = if inner.first().is_some_and(|first| first >> 4 == 4) {
        IPIP
    } else {
        IP6
    };
    let (kind, header) = ip_header(src, dst, proto, 64, inner.len());
    [&ethernet[..12], &kind.to_be_bytes(), &header, inner].concat()
}

/// An IP header and its EtherType.
fn ip_header(src: IpAddr, dst: IpAddr, proto: u8, ttl: u8, payload: usize) -> (u16, Vec<u8>) {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut header = vec![0x45, 0];
            header.extend((payload as u16 + 20).to_be_bytes());
            // Identification 0, may not be fragmented.
            header.extend([0, 0, 0x40, 0, ttl, proto, 0, 0]);
            header.extend(src.octets());
            header.extend(dst.octets());
            let sum = checksum_of(&[&header]);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            (IPV4, header)
        }
        (src, dst) => {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend((payload as u16).to_be_bytes());
            header.extend([proto, ttl]);
            header.extend(octets(src).into_iter().chain(octets(dst)));
            (IPV6, header)
        }
    }
}

fn transport(wish: &Wish) -> Vec<u8> {
    let ports = [wish.src.port().to_be_bytes(), wish.dst.port().to_be_bytes()].concat();
    let ip_bytes = if wish.dst.is_ipv4() { 20 } else { 40 };
    let room = usize::from(wish.size).saturating_sub(ip_bytes);
    let (mut bytes, checksum_at) = if wish.proto == Proto::TCP {
        // Sequence and acknowledgement 1, five words, a window of 64 KiB.
        let rest = [
            0,
            0,
            0,
            1,
            0,
            0,
            0,
            1,
            0x50,
            wish.tcp_flags,
            0xff,
            0xff,
            0,
            0,
            0,
            0,
        ];
        ([ports, rest.to_vec()].concat(), 16)
    } else {
        let length = room.max(8) as u16;
        (
            [ports, length.to_be_bytes().to_vec(), vec![0, 0]].concat(),
            6,
        )
    };
    bytes.resize(bytes.len().max(room), 0);
    let (src, dst) = match (wish.src.ip(), wish.dst.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => (src.octets().to_vec(), dst.octets().to_vec()),
        (src, dst) => (octets(src).to_vec(), octets(dst).to_vec()),
    };
    let length = (bytes.len() as u32).to_be_bytes();
    let sum = match checksum_of(&[&src, &dst, &length, &[0, wish.proto.0], &bytes]) {
        // Of UDP, 0 means "none" (RFC 768).
        0 => 0xffff,
        sum => sum,
    };
    bytes[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
    bytes
}

fn octets(addr: IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The Internet checksum (RFC 1071) of pieces of even length, the last one of any.
fn checksum_of(pieces: &[&[u8]]) -> u16 {
    let words = pieces.iter().flat_map(|piece| piece.chunks(2));
    let sum = words
        .map(|pair| {
            u64::from(u16::from_be_bytes([
                pair[0],
                pair.get(1).copied().unwrap_or(0),
            ]))
        })
        .sum();
    !checksum::fold(sum)
}

/// The headers of a frame, a line each, the outermost first.
pub(super) fn describe(frame: &[u8]) -> Vec<String> {
    let mut lines = Vec::new();
    if ethernet(frame, &mut lines).is_none() {
        lines.push("the rest is cut short".to_owned());
    }
    lines
}

fn ethernet(frame: &[u8], lines: &mut Vec<String>) -> Option<()> {
    let mac = |at: usize| -> Option<String> {
        let bytes = frame.get(at..at + 6)?;
        Some(
            bytes
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<Vec<_>>()
                .join(":"),
        )
    };
    lines.push(format!(
        "Ethernet {} -> {}, {} bytes",
        mac(6)?,
        mac(0)?,
        frame.len()
    ));
    let mut at = ETHERNET_BYTES;
    let mut kind = half(frame, at - 2)?;
    while kind == VLAN || kind == PROVIDER_VLAN {
        lines.push(format!("VLAN {}", half(frame, at)? & 0xfff));
        at += 4;
        kind = half(frame, at - 2)?;
    }
    match kind {
        IPV4 | IPV6 => packet(frame.get(at..)?, lines),
        other => {
            lines.push(format!("EtherType {other:#06x}"));
            Some(())
        }
    }
}

fn packet(bytes: &[u8], lines: &mut Vec<String>) -> Option<()> {
    let (proto, payload) = if bytes.first()? >> 4 == 4 {
        let [src, dst] = [12, 16].map(|at| -> Option<Ipv4Addr> {
            let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
            Some(octets.into())
        });
        let (ttl, proto) = (bytes.get(8)?, *bytes.get(9)?);
        let total = half(bytes, 2)?;
        lines.push(format!(
            "IPv4 {} -> {}, ttl {ttl}, {total} bytes",
            src?, dst?
        ));
        (proto, bytes.get(usize::from(bytes[0] & 0xf) * 4..)?)
    } else {
        let [src, dst] = [8, 24].map(|at| -> Option<Ipv6Addr> {
            let octets: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
            Some(octets.into())
        });
        let (proto, ttl) = (*bytes.get(6)?, bytes.get(7)?);
        let total = usize::from(half(bytes, 4)?) + 40;
        lines.push(format!(
            "IPv6 {} -> {}, hop limit {ttl}, {total} bytes",
            src?, dst?
        ));
        (proto, bytes.get(40..)?)
    };
    if proto == IPIP || proto == IP6 {
        return packet(payload, lines);
    }
    let name = Proto(proto).to_string().to_uppercase();
    if proto != Proto::TCP.0 && proto != Proto::UDP.0 {
        lines.push(name);
        return Some(());
    }
    let (from, to) = (half(payload, 0)?, half(payload, 2)?);
    if proto == Proto::TCP.0 {
        let flags = *payload.get(13)?;
        let set = FLAGS
            .iter()
            .enumerate()
            .filter(|(bit, _)| flags & (1 << bit) != 0);
        let set: Vec<_> = set.map(|(_, name)| *name).collect();
        lines.push(format!("{name} {from} -> {to} [{}]", set.join(",")));
        return Some(());
    }
    lines.push(format!("{name} {from} -> {to}"));
    match payload.get(8) {
        Some(first) if to == GUE_PORT && matches!(first >> 4, 4 | 6) => {
            packet(&payload[8..], lines)
        }
        _ => Some(()),
    }
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(src: &str, dst: &str, proto: Proto, size: u16) -> Wish {
        Wish {
            to_mac: [2, 0, 0, 0, 0, 9],
            src: src.parse().unwrap(),
            dst: dst.parse().unwrap(),
            proto,
            tcp_flags: tcp_flags("syn,ack").unwrap(),
            ttl: 64,
            size,
        }
    }

    #[test]
    fn a_frame_says_what_it_was_made_from() {
        let v4 = frame(&wish("192.0.2.7:40000", "203.0.113.10:80", Proto::TCP, 0));
        assert_eq!(
            describe(&v4),
            [
                "Ethernet 02:00:00:00:00:01 -> 02:00:00:00:00:09, 54 bytes",
                "IPv4 192.0.2.7 -> 203.0.113.10, ttl 64, 40 bytes",
                "TCP 40000 -> 80 [syn,ack]",
            ]
        );
        let v6 = frame(&wish(
            "[2001:db8::7]:40000",
            "[2001:db8::10]:53",
            Proto::UDP,
            1280,
        ));
        assert_eq!(
            describe(&v6),
            [
                "Ethernet 02:00:00:00:00:01 -> 02:00:00:00:00:09, 1294 bytes",
                "IPv6 2001:db8::7 -> 2001:db8::10, hop limit 64, 1280 bytes",
                "UDP 40000 -> 53",
            ]
        );
    }

    #[test]
    fn a_wrapped_packet_is_said_from_the_outside_in() {
        let inner = frame(&wish("192.0.2.7:40000", "203.0.113.10:80", Proto::TCP, 0));
        let mut outer = frame(&wish("[fd00::1]:1", "[fd00::2]:1", Proto(IPIP), 0));
        outer.truncate(ETHERNET_BYTES + 40);
        outer.extend(&inner[ETHERNET_BYTES..]);

        let said = describe(&outer);

        assert_eq!(said.len(), 4, "{said:?}");
        assert!(said[1].starts_with("IPv6 fd00::1 -> fd00::2"), "{said:?}");
        assert!(
            said[2].starts_with("IPv4 192.0.2.7 -> 203.0.113.10"),
            "{said:?}"
        );
    }

    #[test]
    fn no_bytes_make_it_fail() {
        let whole = frame(&wish("192.0.2.7:40000", "203.0.113.10:80", Proto::TCP, 0));
        for length in 0..whole.len() {
            let said = describe(&whole[..length]);
            assert!(!said.is_empty());
        }
    }

    #[test]
    fn checksums_are_right() {
        let v4 = frame(&wish("192.0.2.7:40000", "203.0.113.10:80", Proto::TCP, 101));
        let (header, rest) = v4[ETHERNET_BYTES..].split_at(20);
        assert_eq!(checksum_of(&[header]), 0);
        let pseudo = [&header[12..20], &[0, 6], &(rest.len() as u16).to_be_bytes()].concat();
        assert_eq!(checksum_of(&[&pseudo, rest]), 0);
    }

    #[test]
    fn an_unknown_flag_is_said() {
        assert_eq!(
            tcp_flags("syn,nix").unwrap_err(),
            "\"nix\" is no TCP flag; there are fin, syn, rst, psh, ack, urg"
        );
        assert_eq!(tcp_flags(""), Ok(0));
    }
}
