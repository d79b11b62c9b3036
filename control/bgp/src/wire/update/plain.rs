//! The UPDATE that nearly all are: IPv4 prefixes in the body, and usual attributes, each once and without a fault.
//!
//! A full table is told in some hundred thousand messages, and the codec's care of each is a fifth of what it costs.
//! Whatever is unusual in any way is not read here: the codec has the last word of it. A property test holds that
//! both say the same of what both read.
//!
//! Not for faults: what is read here has none.

use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnetwork::{IpNetwork, Ipv4Network};
use rustbgpd_wire::UpdateMessage;

use super::{Reach, Reading, Update};
use crate::wire::attributes::{AS_SEQUENCE, EXTENDED_LENGTH, OPTIONAL, TRANSITIVE};
use crate::wire::{Attributes, Family, LargeCommunity, Origin};

/// ORIGIN, AS_PATH and NEXT_HOP, as bits (RFC 4271 §5).
const MANDATORY: u64 = 1 << 1 | 1 << 2 | 1 << 3;
/// More large communities are the codec's to look through for those that are there twice (RFC 8092 §5).
const FEW: usize = 16;

/// Reads an UPDATE; `None`: it is not plain.
pub(super) fn read(message: &UpdateMessage, reading: &Reading<'_>) -> Option<Update> {
    let is_plain = reading.four_octet_as && !reading.add_path.contains(&Family::Ipv4Unicast);
    if !is_plain || message.nlri.is_empty() {
        return None;
    }
    let reach = Reach {
        attributes: Arc::new(attributes(&message.path_attributes, reading.internal)?),
        prefixes: prefixes(&message.nlri)?,
        identifiers: Vec::new(),
    };
    Some(Update {
        withdrawn: prefixes(&message.withdrawn_routes)?,
        reach: vec![reach],
        ..Update::default()
    })
}

fn prefixes(mut octets: &[u8]) -> Option<Vec<IpNetwork>> {
    // Most are /24.
    let mut prefixes = Vec::with_capacity(octets.len().div_ceil(4));
    while let Some((length, rest)) = octets.split_first() {
        let (told, after) = rest.split_at_checked(length.div_ceil(8).into())?;
        octets = after;
        let mut address = [0; 4];
        address.get_mut(..told.len())?.copy_from_slice(told);
        let mask = u32::MAX.checked_shl(32 - u32::from(*length));
        let network = u32::from_be_bytes(address) & mask.unwrap_or(0);
        prefixes.push(Ipv4Network::new(network.into(), *length).ok()?.into());
    }
    Some(prefixes)
}

fn attributes(mut octets: &[u8], internal: bool) -> Option<Attributes> {
    const OF_ALL: u8 = OPTIONAL | TRANSITIVE;
    let mut read = Attributes::local(Ipv4Addr::UNSPECIFIED.into());
    let mut seen = 0;
    while !octets.is_empty() {
        let ([flags, code], rest) = octets.split_first_chunk()?;
        let (length, rest) = if flags & EXTENDED_LENGTH == 0 {
            let (length, rest) = rest.split_first()?;
            (usize::from(*length), rest)
        } else {
            let (length, rest) = rest.split_first_chunk()?;
            (usize::from(u16::from_be_bytes(*length)), rest)
        };
        let (value, after) = rest.split_at_checked(length)?;
        octets = after;
        let bit = 1_u64.checked_shl((*code).into())?;
        if seen & bit != 0 {
            return None;
        }
        seen |= bit;
        match (code, flags & !EXTENDED_LENGTH) {
            (1, TRANSITIVE) => {
                read.origin = match value {
                    [0] => Origin::Igp,
                    [1] => Origin::Egp,
                    [2] => Origin::Incomplete,
                    _ => return None,
                }
            }
            (2, TRANSITIVE) => read.as_path = as_path(value)?,
            (3, TRANSITIVE) => read.next_hop = next_hop(value)?.into(),
            (4, OPTIONAL) => read.med = Some(number(value)?),
            (5, TRANSITIVE) if internal => read.local_pref = Some(number(value)?),
            (8, OF_ALL) => read.communities = numbers(value).filter(|all| !all.is_empty())?,
            (32, OF_ALL) => read.large_communities = large_communities(value)?,
            _ => return None,
        }
    }
    (seen & MANDATORY == MANDATORY).then_some(read)
}

/// Sequences only, with an AS in each, and none of them 0 (RFC 7607, RFC 9774).
fn as_path(mut octets: &[u8]) -> Option<Vec<u32>> {
    let mut path = Vec::new();
    while !octets.is_empty() {
        let ([kind, count], rest) = octets.split_first_chunk()?;
        let (segment, after) = rest.split_at_checked(usize::from(*count) * 4)?;
        octets = after;
        let ases = numbers(segment)?;
        if *kind != AS_SEQUENCE || ases.is_empty() || ases.contains(&0) {
            return None;
        }
        if path.is_empty() {
            path = ases;
        } else {
            path.extend(ases);
        }
    }
    Some(path)
}

/// One that packets may be sent to (RFC 4271 §6.3).
fn next_hop(octets: &[u8]) -> Option<Ipv4Addr> {
    let hop = Ipv4Addr::from(number(octets)?);
    let is_host = !hop.is_unspecified() && !hop.is_loopback() && hop.octets()[0] < 224;
    is_host.then_some(hop)
}

fn large_communities(octets: &[u8]) -> Option<Vec<LargeCommunity>> {
    let (parts, []) = octets.as_chunks::<12>() else {
        return None;
    };
    if parts.is_empty() || parts.len() > FEW {
        return None;
    }
    let mut communities = Vec::with_capacity(parts.len());
    for part in parts {
        let [global, local1, local2] = numbers(part)?.try_into().ok()?;
        let community = LargeCommunity {
            global,
            local1,
            local2,
        };
        if communities.contains(&community) {
            return None;
        }
        communities.push(community);
    }
    Some(communities)
}

fn number(octets: &[u8]) -> Option<u32> {
    octets.try_into().ok().map(u32::from_be_bytes)
}

fn numbers(octets: &[u8]) -> Option<Vec<u32>> {
    let (numbers, []) = octets.as_chunks::<4>() else {
        return None;
    };
    Some(numbers.iter().map(|n| u32::from_be_bytes(*n)).collect())
}
