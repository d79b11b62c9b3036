//! Packets as sentences: `eth().ipv4("10.0.0.1", "192.0.2.1").tcp(40000, 80).payload(b"GET /")`.
//!
//! Lengths, protocols and checksums follow from the layers, unless a test spoils them on purpose.
//! [`check`] asks etherparse for a second opinion on what comes out of the kernel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use fairlead_common::checksum;

/// A MAC address.
pub type Mac = [u8; 6];

/// A packet under construction: layers from the outside to the inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    layers: Vec<Layer>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Layer {
    Ethernet { to: Mac, from: Mac },
    Vlan(u16),
    EtherType(u16),
    V4(V4),
    V6(V6),
    Extension { kind: u8, body: Vec<u8> },
    Next(u8),
    Tcp { ports: (u16, u16), flags: u8 },
    Udp { ports: (u16, u16), checksum: bool },
    Icmp { kind: u8, code: u8, rest: u32 },
    Payload(Vec<u8>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct V4 {
    src: Ipv4Addr,
    dst: Ipv4Addr,
    ttl: u8,
    traffic_class: u8,
    id: u16,
    /// Flags and offset as in the header.
    fragment: u16,
    proto: Option<u8>,
    options: Vec<u8>,
    checksum_error: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct V6 {
    src: Ipv6Addr,
    dst: Ipv6Addr,
    ttl: u8,
    traffic_class: u8,
    flow_label: u32,
    next_header: Option<u8>,
}

/// TCP flags.
pub mod tcp {
    /// No more data.
    pub const FIN: u8 = 0x01;
    /// Opens.
    pub const SYN: u8 = 0x02;
    /// Resets.
    pub const RST: u8 = 0x04;
    /// Acknowledges.
    pub const ACK: u8 = 0x10;
}

/// Begins a frame without addresses.
pub fn eth() -> Packet {
    Packet {
        layers: vec![Layer::Ethernet {
            to: [0; 6],
            from: [0; 6],
        }],
    }
}

impl Packet {
    /// Addresses the frame.
    #[must_use]
    pub fn macs(mut self, from: Mac, to: Mac) -> Self {
        self.layers[0] = Layer::Ethernet { to, from };
        self
    }

    /// Adds an 802.1Q tag.
    #[must_use]
    pub fn vlan(self, id: u16) -> Self {
        self.with(Layer::Vlan(id))
    }

    /// Says what follows, when it is not IP.
    #[must_use]
    pub fn ether_type(self, number: u16) -> Self {
        self.with(Layer::EtherType(number))
    }

    /// Adds an IP header of the addresses' family.
    ///
    /// # Panics
    /// Two families, or no addresses.
    #[must_use]
    pub fn ip(self, src: &str, dst: &str) -> Self {
        match (address(src), address(dst)) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => self.with(Layer::V4(V4 {
                src,
                dst,
                ttl: 64,
                traffic_class: 0,
                id: 0x1234,
                fragment: 0x4000,
                proto: None,
                options: Vec::new(),
                checksum_error: 0,
            })),
            (IpAddr::V6(src), IpAddr::V6(dst)) => self.with(Layer::V6(V6 {
                src,
                dst,
                ttl: 64,
                traffic_class: 0,
                flow_label: 0x12345,
                next_header: None,
            })),
            (src, dst) => panic!("{src} and {dst} are of two families"),
        }
    }

    /// Adds an IPv6 extension header of this kind: its bytes after "next header", 7 and a multiple of 8.
    #[must_use]
    pub fn extension(self, kind: u8, body: &[u8]) -> Self {
        let body = body.to_vec();
        self.with(Layer::Extension { kind, body })
    }

    /// Adds an IPv6 fragment header: offset in units of 8 bytes, and whether more follow.
    #[must_use]
    pub fn fragment_header(self, id: u32, offset: u16, more: bool) -> Self {
        let field = (offset << 3 | u16::from(more)).to_be_bytes();
        self.extension(44, &[&[0], &field[..], &id.to_be_bytes()].concat())
    }

    /// Says what follows an extension header, when it is bytes.
    #[must_use]
    pub fn next(self, number: u8) -> Self {
        self.with(Layer::Next(number))
    }

    /// Adds a TCP header, of a segment in the middle of a connection.
    #[must_use]
    pub fn tcp(self, from: u16, to: u16) -> Self {
        self.with(Layer::Tcp {
            ports: (from, to),
            flags: tcp::ACK,
        })
    }

    /// Adds a UDP header.
    #[must_use]
    pub fn udp(self, from: u16, to: u16) -> Self {
        self.with(Layer::Udp {
            ports: (from, to),
            checksum: true,
        })
    }

    /// Adds an ICMP echo request.
    #[must_use]
    pub fn ping(self, identifier: u16, sequence: u16) -> Self {
        self.icmp(8, 0, u32::from(identifier) << 16 | u32::from(sequence))
    }

    /// Adds an ICMP echo reply.
    #[must_use]
    pub fn pong(self, identifier: u16, sequence: u16) -> Self {
        self.icmp(0, 0, u32::from(identifier) << 16 | u32::from(sequence))
    }

    /// Adds an ICMP header (ICMPv6 in an IPv6 packet).
    #[must_use]
    pub fn icmp(self, kind: u8, code: u8, rest: u32) -> Self {
        self.with(Layer::Icmp { kind, code, rest })
    }

    /// Adds bytes.
    #[must_use]
    pub fn payload(self, bytes: impl Into<Vec<u8>>) -> Self {
        self.with(Layer::Payload(bytes.into()))
    }

    /// Sets the flags of the last TCP header.
    #[must_use]
    pub fn flags(mut self, new: u8) -> Self {
        match self.layers.last_mut() {
            Some(Layer::Tcp { flags, .. }) => *flags = new,
            layer => panic!("no TCP header: {layer:?}"),
        }
        self
    }

    /// Sends the last UDP header without a checksum.
    #[must_use]
    pub fn without_checksum(mut self) -> Self {
        match self.layers.last_mut() {
            Some(Layer::Udp { checksum, .. }) => *checksum = false,
            layer => panic!("no UDP header: {layer:?}"),
        }
        self
    }

    /// Sets the TTL or hop limit of the outermost IP header.
    #[must_use]
    pub fn ttl(self, new: u8) -> Self {
        self.outer(|v4| v4.ttl = new, |v6| v6.ttl = new)
    }

    /// Sets DSCP and ECN of the outermost IP header.
    #[must_use]
    pub fn traffic_class(self, new: u8) -> Self {
        self.outer(|v4| v4.traffic_class = new, |v6| v6.traffic_class = new)
    }

    /// Sets the identification of the outermost IPv4 header.
    #[must_use]
    pub fn id(self, new: u16) -> Self {
        self.outer(|v4| v4.id = new, |_| panic!("not IPv4"))
    }

    /// Sets the flow label of the outermost IPv6 header.
    #[must_use]
    pub fn flow_label(self, new: u32) -> Self {
        self.outer(|_| panic!("not IPv6"), |v6| v6.flow_label = new)
    }

    /// Sets protocol or next header of the outermost IP header, whatever follows.
    #[must_use]
    pub fn proto(self, number: u8) -> Self {
        self.outer(
            |v4| v4.proto = Some(number),
            |v6| v6.next_header = Some(number),
        )
    }

    /// Makes the outermost IPv4 header a fragment's: offset in units of 8 bytes, and whether more follow.
    #[must_use]
    pub fn fragment(self, offset: u16, more: bool) -> Self {
        let fragment = offset | if more { 0x2000 } else { 0 };
        self.outer(|v4| v4.fragment = fragment, |_| panic!("not IPv4"))
    }

    /// Gives the outermost IPv4 header options, a multiple of 4 bytes.
    #[must_use]
    pub fn options(self, bytes: &[u8]) -> Self {
        self.outer(|v4| v4.options = bytes.to_vec(), |_| panic!("not IPv4"))
    }

    /// Spoils the checksum of the outermost IPv4 header.
    #[must_use]
    pub fn bad_header_checksum(self) -> Self {
        self.outer(|v4| v4.checksum_error = 0x0101, |_| panic!("not IPv4"))
    }

    /// Replaces the addresses of the outermost IP header.
    #[must_use]
    pub fn addresses(self, src: &str, dst: &str) -> Self {
        let (src, dst) = (address(src), address(dst));
        self.outer(
            |v4| match (src, dst) {
                (IpAddr::V4(src), IpAddr::V4(dst)) => (v4.src, v4.dst) = (src, dst),
                _ => panic!("not IPv4"),
            },
            |v6| match (src, dst) {
                (IpAddr::V6(src), IpAddr::V6(dst)) => (v6.src, v6.dst) = (src, dst),
                _ => panic!("not IPv6"),
            },
        )
    }

    /// Replaces the ports of the last TCP or UDP header.
    #[must_use]
    pub fn ports(mut self, from: u16, to: u16) -> Self {
        for layer in &mut self.layers {
            if let Layer::Tcp { ports, .. } | Layer::Udp { ports, .. } = layer {
                *ports = (from, to);
            }
        }
        self
    }

    /// Puts the IP packet of another frame inside.
    #[must_use]
    pub fn inside(mut self, frame: &Self) -> Self {
        self.layers.extend_from_slice(&frame.layers[1..]);
        self
    }

    /// The packet as it stands on the wire.
    pub fn bytes(&self) -> Vec<u8> {
        encode(&self.layers, None)
    }

    fn with(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    fn outer(mut self, v4: impl FnOnce(&mut V4), v6: impl FnOnce(&mut V6)) -> Self {
        for layer in &mut self.layers {
            if let Layer::V4(header) = layer {
                v4(header);
                return self;
            }
            if let Layer::V6(header) = layer {
                v6(header);
                return self;
            }
        }
        panic!("no IP header")
    }
}

fn address(text: &str) -> IpAddr {
    text.parse()
        .unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// The bytes of the layers; `ends` are the addresses that a transport checksum covers.
fn encode(layers: &[Layer], ends: Option<(IpAddr, IpAddr)>) -> Vec<u8> {
    let Some((layer, rest)) = layers.split_first() else {
        return Vec::new();
    };
    match layer {
        Layer::Ethernet { to, from } => {
            [&to[..], from, &ether_type(rest), &encode(rest, None)].concat()
        }
        Layer::Vlan(id) => [
            &id.to_be_bytes()[..],
            &ether_type(rest),
            &encode(rest, None),
        ]
        .concat(),
        Layer::EtherType(_) | Layer::Next(_) => encode(rest, ends),
        Layer::Extension { body, .. } => {
            [&[proto(rest, 58)], &body[..], &encode(rest, ends)].concat()
        }
        Layer::V4(header) => header.encode(rest),
        Layer::V6(header) => header.encode(rest),
        Layer::Tcp { ports, flags } => {
            let mut bytes = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
            bytes.extend([0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x50, *flags]);
            bytes.extend([0x72, 0x10, 0, 0, 0, 0]);
            bytes.extend(encode(rest, None));
            sum_into(&mut bytes, 16, ends, 6);
            bytes
        }
        Layer::Udp { ports, checksum } => {
            let body = encode(rest, None);
            let length = 8 + body.len() as u16;
            let mut bytes = [ports.0, ports.1, length, 0].map(u16::to_be_bytes).concat();
            bytes.extend(body);
            if *checksum {
                sum_into(&mut bytes, 6, ends, 17);
                if bytes[6..8] == [0, 0] {
                    bytes[6..8].fill(0xff);
                }
            }
            bytes
        }
        Layer::Icmp {
            kind,
            code,
            rest: word,
        } => {
            let mut bytes = vec![*kind, *code, 0, 0];
            bytes.extend(word.to_be_bytes());
            bytes.extend(encode(rest, None));
            let ends = ends.filter(|(src, _)| src.is_ipv6());
            sum_into(&mut bytes, 2, ends, 58);
            bytes
        }
        Layer::Payload(bytes) => [&bytes[..], &encode(rest, None)].concat(),
    }
}

fn ether_type(rest: &[Layer]) -> [u8; 2] {
    let number: u16 = match rest.first() {
        Some(Layer::Vlan(_)) => 0x8100,
        Some(Layer::V4(_)) => 0x0800,
        Some(Layer::V6(_)) => 0x86dd,
        Some(Layer::EtherType(number)) => *number,
        layer => panic!("no EtherType for {layer:?}"),
    };
    number.to_be_bytes()
}

fn proto(rest: &[Layer], icmp: u8) -> u8 {
    match rest.first() {
        Some(Layer::Extension { kind, .. } | Layer::Next(kind)) => *kind,
        // "No next header".
        Some(Layer::Payload(_)) if icmp == 58 => 59,
        Some(Layer::Tcp { .. }) => 6,
        Some(Layer::Udp { .. }) => 17,
        Some(Layer::Icmp { .. }) => icmp,
        Some(Layer::V4(_)) => 4,
        Some(Layer::V6(_)) => 41,
        layer => panic!("no protocol for {layer:?}: say it with `proto`"),
    }
}

impl V4 {
    fn encode(&self, rest: &[Layer]) -> Vec<u8> {
        let body = encode(rest, Some((self.src.into(), self.dst.into())));
        let words = 5 + self.options.len() / 4;
        let total = (words * 4 + body.len()) as u16;
        let proto = self.proto.unwrap_or_else(|| proto(rest, 1));
        let mut header = vec![0x40 | words as u8, self.traffic_class];
        header.extend(
            [total, self.id, self.fragment]
                .map(u16::to_be_bytes)
                .concat(),
        );
        header.extend([self.ttl, proto, 0, 0]);
        header.extend(self.src.octets());
        header.extend(self.dst.octets());
        header.extend(&self.options);
        let sum = checksum::of(&header) ^ self.checksum_error;
        header[10..12].copy_from_slice(&sum.to_ne_bytes());
        [header, body].concat()
    }
}

impl V6 {
    fn encode(&self, rest: &[Layer]) -> Vec<u8> {
        let body = encode(rest, Some((self.src.into(), self.dst.into())));
        let next = self.next_header.unwrap_or_else(|| proto(rest, 58));
        let first = 6 << 28 | u32::from(self.traffic_class) << 20 | self.flow_label;
        let mut header = first.to_be_bytes().to_vec();
        header.extend((body.len() as u16).to_be_bytes());
        header.extend([next, self.ttl]);
        header.extend(self.src.octets());
        header.extend(self.dst.octets());
        [header, body].concat()
    }
}

/// Computes the checksum over the pseudo header of `ends` (if any) and `bytes`, and puts it at `at`.
fn sum_into(bytes: &mut [u8], at: usize, ends: Option<(IpAddr, IpAddr)>, proto: u8) {
    let mut covered = match ends {
        Some((IpAddr::V4(src), IpAddr::V4(dst))) => [src.octets(), dst.octets()].concat(),
        Some((IpAddr::V6(src), IpAddr::V6(dst))) => [src.octets(), dst.octets()].concat(),
        _ => Vec::new(),
    };
    if ends.is_some() {
        covered.extend([0, proto]);
        covered.extend((bytes.len() as u16).to_be_bytes());
    }
    covered.extend(&*bytes);
    let sum = checksum::of(&covered);
    bytes[at..at + 2].copy_from_slice(&sum.to_ne_bytes());
}

/// Asks etherparse whether every header of a frame is consistent and every checksum right, to the
/// innermost packet of a tunnel.
///
/// # Panics
/// Says what is wrong.
pub fn check(frame: &[u8]) {
    let sliced = SlicedPacket::from_ethernet(frame)
        .unwrap_or_else(|error| panic!("etherparse: {error}: {frame:02x?}"));
    check_sliced(&sliced);
}

fn check_sliced(sliced: &SlicedPacket<'_>) {
    match &sliced.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header().to_header();
            assert_eq!(
                header.header_checksum,
                header.calc_header_checksum(),
                "IPv4 header checksum"
            );
            if matches!(ip.payload().ip_number.0, 4 | 41) {
                return check_inner(ip.payload().payload);
            }
        }
        Some(NetSlice::Ipv6(ip)) => {
            if matches!(ip.payload().ip_number.0, 4 | 41) {
                return check_inner(ip.payload().payload);
            }
        }
        other => panic!("no IP header: {other:?}"),
    }
    check_transport(sliced);
}

fn check_inner(packet: &[u8]) {
    let sliced = SlicedPacket::from_ip(packet)
        .unwrap_or_else(|error| panic!("etherparse, inside the tunnel: {error}"));
    check_sliced(&sliced);
}

fn check_transport(sliced: &SlicedPacket<'_>) {
    // GUE variant 1: the datagram is a packet. The checksum may be left out over IPv6, too (RFC 6935 §5).
    if let Some(TransportSlice::Udp(udp)) = &sliced.transport
        && (udp.destination_port(), udp.checksum()) == (6080, 0)
        && matches!(udp.payload().first().map(|first| first >> 4), Some(4 | 6))
    {
        return check_inner(udp.payload());
    }
    let (expected, found) = match (&sliced.net, &sliced.transport) {
        (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Tcp(tcp))) => (
            tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination()),
            tcp.checksum(),
        ),
        (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Tcp(tcp))) => (
            tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination()),
            tcp.checksum(),
        ),
        (Some(NetSlice::Ipv4(_)), Some(TransportSlice::Udp(udp))) if udp.checksum() == 0 => return,
        (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Udp(udp))) => (
            udp.to_header().calc_checksum_ipv4_raw(
                ip.header().source(),
                ip.header().destination(),
                udp.payload(),
            ),
            udp.checksum(),
        ),
        (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Udp(udp))) => (
            udp.to_header().calc_checksum_ipv6_raw(
                ip.header().source(),
                ip.header().destination(),
                udp.payload(),
            ),
            udp.checksum(),
        ),
        (_, Some(TransportSlice::Icmpv4(icmp))) => {
            assert_eq!(checksum::of(icmp.slice()), 0, "ICMP checksum");
            return;
        }
        (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Icmpv6(icmp))) => {
            let (src, dst) = (ip.header().source(), ip.header().destination());
            assert!(icmp.is_checksum_valid(src, dst), "ICMPv6 checksum");
            return;
        }
        // A fragment, or a protocol whose checksum (if it has one) is not ours to repair.
        (Some(net), None)
            if net
                .ip_payload_ref()
                .is_some_and(|ip| ip.fragmented || !matches!(ip.ip_number.0, 1 | 6 | 17 | 58)) =>
        {
            return;
        }
        (net, transport) => panic!("no checksum is known for {transport:?} in {net:?}"),
    };
    assert_eq!(
        expected.unwrap_or_else(|error| panic!("etherparse: {error}")),
        found,
        "transport checksum"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etherparse_agrees_with_what_is_built() {
        for packet in [
            eth().ip("10.0.0.1", "10.0.0.2").tcp(1, 2).payload(*b"odd"),
            eth().ip("10.0.0.1", "10.0.0.2").udp(1, 2).payload(*b"odd"),
            eth().ip("10.0.0.1", "10.0.0.2").ping(7, 1).payload(*b"odd"),
            eth().vlan(3).ip("fd00::1", "fd00::2").tcp(1, 2),
            eth().ip("fd00::1", "fd00::2").udp(1, 2).payload(*b"odd"),
            eth()
                .ip("fd00::1", "fd00::2")
                .ip("10.0.0.1", "10.0.0.2")
                .tcp(1, 2),
        ] {
            check(&packet.bytes());
        }
    }

    #[test]
    #[should_panic(expected = "IPv4 header checksum")]
    fn a_spoilt_checksum_is_found() {
        check(
            &eth()
                .ip("10.0.0.1", "10.0.0.2")
                .bad_header_checksum()
                .tcp(1, 2)
                .bytes(),
        );
    }
}
