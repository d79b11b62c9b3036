//! The table that is sent: prefixes in order, and attributes of their own for each UPDATE.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::INJECTOR_AS;

/// A table.
pub struct Load {
    /// What people call it.
    pub name: &'static str,
    /// How many prefixes, 1,048,576 at most.
    pub prefixes: u32,
    /// Prefixes that share an UPDATE.
    pub per_update: u32,
    /// IPv6 by a session over IPv6; else IPv4 over IPv4.
    pub ipv6: bool,
}

impl Load {
    /// Where the speaker listens on a link.
    pub fn speaker(&self, link: u8) -> SocketAddr {
        SocketAddr::new(address(self.ipv6, link, 1), 179)
    }

    /// Where the injector is.
    pub fn injector(&self) -> IpAddr {
        address(self.ipv6, 1, 2)
    }

    /// Where a monitor is.
    pub fn monitor(&self, number: u8) -> IpAddr {
        address(self.ipv6, 2, 2 + number)
    }

    /// All UPDATEs, one after the other.
    pub fn updates(&self) -> Vec<u8> {
        let mut all = Vec::new();
        let mut seed = 1_u32;
        let mut first = 0;
        while first < self.prefixes {
            let end = self.prefixes.min(first + self.per_update);
            let nlri: Vec<u8> = (first..end).flat_map(|index| self.prefix(index)).collect();
            self.update(&mut all, &nlri, &mut seed);
            first = end;
        }
        all
    }

    /// 16.0.0.0/4 in /24s, 2a00::/12 in /48s.
    fn prefix(&self, index: u32) -> Vec<u8> {
        if self.ipv6 {
            let bits = 0x2a00_0000_0000_u64 + u64::from(index);
            let mut bytes = vec![48];
            bytes.extend_from_slice(&bits.to_be_bytes()[2..]);
            bytes
        } else {
            let bits = 0x0010_0000 + index;
            let mut bytes = vec![24];
            bytes.extend_from_slice(&bits.to_be_bytes()[1..]);
            bytes
        }
    }

    fn update(&self, all: &mut Vec<u8>, nlri: &[u8], seed: &mut u32) {
        let mut next = || {
            *seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *seed >> 16
        };
        let mut attributes = Vec::new();
        let mut put = |flags: u8, kind: u8, value: &[u8]| match u8::try_from(value.len()) {
            Ok(length) => {
                attributes.extend_from_slice(&[flags, kind, length]);
                attributes.extend_from_slice(value);
            }
            Err(_) => {
                attributes.extend_from_slice(&[flags | 0x10, kind]);
                attributes.extend_from_slice(&length16(value.len()));
                attributes.extend_from_slice(value);
            }
        };
        if self.ipv6 {
            let mut reach = vec![0, 2, 1, 16];
            if let IpAddr::V6(next_hop) = address(true, 1, 2) {
                reach.extend_from_slice(&next_hop.octets());
            }
            reach.push(0);
            reach.extend_from_slice(nlri);
            put(0x80, 14, &reach);
        }
        put(0x40, 1, &[0]);
        let path = [
            INJECTOR_AS,
            1000 + next() % 30_000,
            1000 + next() % 30_000,
            1000 + next() % 30_000,
        ];
        let mut segment = vec![2, 4];
        segment.extend(path.iter().flat_map(|number| number.to_be_bytes()));
        put(0x40, 2, &segment);
        if let (false, IpAddr::V4(next_hop)) = (self.ipv6, address(false, 1, 2)) {
            put(0x40, 3, &next_hop.octets());
        }
        let communities = [
            (path[1] << 16) | (next() % 1000),
            (path[2] << 16) | (next() % 1000),
        ];
        let communities: Vec<u8> = communities
            .iter()
            .flat_map(|one| one.to_be_bytes())
            .collect();
        put(0xC0, 8, &communities);

        let body = if self.ipv6 { &[][..] } else { nlri };
        all.extend_from_slice(&[0xFF; 16]);
        all.extend_from_slice(&length16(23 + attributes.len() + body.len()));
        all.extend_from_slice(&[2, 0, 0]);
        all.extend_from_slice(&length16(attributes.len()));
        all.extend_from_slice(&attributes);
        all.extend_from_slice(body);
    }
}

/// A host's address on a link; the speaker is host 1.
pub fn address(ipv6: bool, link: u8, host: u8) -> IpAddr {
    if ipv6 {
        Ipv6Addr::new(0xfd00, link.into(), 0, 0, 0, 0, 0, host.into()).into()
    } else {
        Ipv4Addr::new(10, 0, link, host).into()
    }
}

fn length16(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes()
}
