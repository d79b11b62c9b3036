//! UPDATE: routes that come and go (RFC 4271 §4.3, RFC 4760, RFC 7606).

mod plain;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use rustbgpd_wire::{
    EncodeError, ErrorDisposition, Ipv4NlriEntry, Ipv4Prefix, Ipv4UnicastMode, Ipv6Prefix,
    MpReachNlri, MpUnreachNlri, NlriEntry, PathAttribute, Prefix, UpdateMessage,
    UpdateValidationOptions,
};
use serde::{Deserialize, Serialize};

use super::families::strip;
use super::{
    Attributes, EXTENDED_MESSAGE_LEN, Encoding, Family, HEADER_LEN, Notification, RawUpdate,
    notification_of,
};

/// Type code of the message (RFC 4271 §4.1).
const UPDATE: u8 = 2;
/// Octets of an UPDATE around its three sections.
const FRAME_LEN: usize = HEADER_LEN + 4;
/// Octets of MP_REACH_NLRI before its prefixes, at their longest.
const MP_REACH_LEN: usize = 4 + 3 + 1 + 32 + 1;
/// Octets of MP_UNREACH_NLRI before its prefixes.
const MP_UNREACH_LEN: usize = 4 + 3;

/// Prefixes that share their attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// What is said about them.
    pub attributes: Arc<Attributes>,
    /// The prefixes, host bits zero.
    pub prefixes: Vec<IpNetwork>,
    /// Of each prefix the identifier of its path (RFC 7911 §3); none where a prefix has one path only.
    pub identifiers: Vec<u32>,
}

/// An UPDATE after RFC 7606: what may be used, what is withdrawn, what was wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Update {
    /// Prefixes that are gone, by the peer's word or because their attributes were wrong.
    pub withdrawn: Vec<IpNetwork>,
    /// The same, of families with several paths per prefix: the path of this identifier (RFC 7911 §3).
    pub withdrawn_paths: Vec<(IpNetwork, u32)>,
    /// Prefixes that are there.
    pub reach: Vec<Reach>,
    /// The End-of-RIB marker of a family (RFC 4724 §2).
    pub end_of_rib: Option<Family>,
    /// Attribute faults that did not end the session.
    pub faults: Vec<Fault>,
}

impl Update {
    fn withdraw(&mut self, by_identifier: bool, paths: impl IntoIterator<Item = (IpNetwork, u32)>) {
        if by_identifier {
            self.withdrawn_paths.extend(paths);
        } else {
            let prefixes = paths.into_iter().map(|(prefix, _)| prefix);
            self.withdrawn.extend(prefixes);
        }
    }
}

/// An attribute fault and what it cost (RFC 7606 §2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The attribute's type code; 0 when not even that could be read.
    pub attribute: u8,
    /// What was done.
    pub action: FaultAction,
    /// What was wrong, for people.
    pub detail: String,
}

/// What an attribute fault costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultAction {
    /// The attribute alone.
    DiscardAttribute,
    /// The routes of the message.
    Withdraw,
}

/// Attributes that leave no room for a single prefix in the longest message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the attributes do not fit a message")]
pub struct TooLong;

/// The session that an UPDATE is read in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading<'a> {
    /// AS numbers take four octets.
    pub(crate) four_octet_as: bool,
    /// The peer is of our AS.
    pub(crate) internal: bool,
    /// Both sides speak these.
    pub(crate) families: &'a BTreeSet<Family>,
    /// Of which the peer tells several paths per prefix, each with an identifier (RFC 7911 §3).
    pub(crate) add_path: &'a BTreeSet<Family>,
    /// A link-local next hop alone means something, as it does on a known link.
    pub(crate) on_link: bool,
}

/// Reads an UPDATE in the context of its session. What belongs to other families is left out and is a fault.
///
/// # Errors
/// The NOTIFICATION to send when the routes themselves cannot be read (RFC 7606 §3 (j), §5).
pub(crate) fn decode_update(raw: &RawUpdate, reading: Reading<'_>) -> Result<Update, Notification> {
    plain::read(&raw.0, &reading).map_or_else(|| decode_any(raw, reading), Ok)
}

/// Reads any UPDATE by the codec.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "only the two multiprotocol attributes and NEXT_HOP carry routes"
)]
fn decode_any(raw: &RawUpdate, reading: Reading<'_>) -> Result<Update, Notification> {
    let Reading {
        four_octet_as,
        internal,
        families,
        add_path,
        on_link,
    } = reading;
    let has_identifiers = |family: Family| add_path.contains(&family);
    let by_identifier: Vec<_> = add_path.iter().map(|f| (f.afi(), Family::SAFI)).collect();
    let mut update = Update::default();
    let mut message = raw.0.clone();
    let stripped = strip(&message.path_attributes, families)?;
    let is_stripped = stripped.is_some();
    if let Some(stripped) = stripped {
        message.path_attributes = stripped.attributes;
        update.faults = stripped.faults;
    }
    let (parsed, _) = message
        .parse_revised_observed_with_error_context(
            four_octet_as,
            internal,
            has_identifiers(Family::Ipv4Unicast),
            &by_identifier,
        )
        .map_err(|context| notification_of(&context.error))?;
    let attributes = &parsed.update.attributes;

    let mut body_next_hop = None;
    let mut multiprotocol = None;
    let mut carries_others = false;
    for attribute in attributes {
        match attribute {
            PathAttribute::MpReachNlri(reach) => multiprotocol = Some(reach),
            PathAttribute::MpUnreachNlri(unreach) => {
                if let Some(family) = Family::from_codec(unreach.afi, unreach.safi) {
                    let entries = unreach.withdrawn.iter();
                    let paths = entries.filter_map(|entry| Some((network(entry)?, entry.path_id)));
                    update.withdraw(has_identifiers(family), paths);
                    if unreach.withdrawn.is_empty() && attributes.len() == 1 {
                        update.end_of_rib = Some(family);
                    }
                }
            }
            PathAttribute::NextHop(address) => {
                body_next_hop = Some(IpAddr::V4(*address));
                carries_others = true;
            }
            _ => carries_others = true,
        }
    }
    let body = &parsed.update.announced;
    let path_v4 = |entry: &Ipv4NlriEntry| Some((network_v4(entry)?, entry.path_id));
    let v4_by_identifier = has_identifiers(Family::Ipv4Unicast);
    let gone = parsed.update.withdrawn.iter().filter_map(path_v4);
    update.withdraw(v4_by_identifier, gone);
    let empty = raw.0.withdrawn_routes.is_empty()
        && raw.0.path_attributes.is_empty()
        && raw.0.nlri.is_empty();
    if empty && families.contains(&Family::Ipv4Unicast) {
        update.end_of_rib = Some(Family::Ipv4Unicast);
    }
    let has_nlri = !body.is_empty() || multiprotocol.is_some();

    for malformed in &parsed.malformed {
        update.faults.push(Fault {
            attribute: malformed.type_code,
            action: match malformed.disposition {
                ErrorDisposition::AttributeDiscard => FaultAction::DiscardAttribute,
                ErrorDisposition::TreatAsWithdraw => FaultAction::Withdraw,
                ErrorDisposition::SessionReset => return Err(notification_of(&malformed.error)),
            },
            detail: malformed.error.to_string(),
        });
    }
    let mut options = UpdateValidationOptions::default();
    options.link_local_next_hop = on_link;
    options.allow_ipv4_link_local_mp_reach_next_hop = on_link;
    if let Err(invalid) = rustbgpd_wire::validate::validate_update_attributes_with_context(
        attributes,
        has_nlri,
        !body.is_empty(),
        !internal,
        options,
    ) {
        let notification = Notification {
            code: 3,
            subcode: invalid.error.subcode,
            data: invalid.error.data,
        };
        update.faults.push(Fault {
            attribute: invalid.type_code,
            action: match invalid.error.disposition {
                ErrorDisposition::AttributeDiscard => FaultAction::DiscardAttribute,
                ErrorDisposition::TreatAsWithdraw => FaultAction::Withdraw,
                ErrorDisposition::SessionReset => return Err(notification),
            },
            detail: notification.to_string(),
        });
    }
    if !body.is_empty() && body_next_hop.is_none() {
        update.faults.push(Fault {
            attribute: 3,
            action: FaultAction::Withdraw,
            detail: "NEXT_HOP is missing".to_owned(),
        });
    }

    let withdraw = update
        .faults
        .iter()
        .any(|fault| fault.action == FaultAction::Withdraw);
    // RFC 7606 §5.2: attributes without any reachable prefix, and one of them wrong: the prefixes
    // may have been lost with it. Those of another family are no loss.
    if withdraw && !has_nlri && !is_stripped && (carries_others || !parsed.malformed.is_empty()) {
        return Err(Notification::bare(3, 1));
    }
    let mut reach = Vec::new();
    if let Some(next_hop) = body_next_hop {
        let paths: Vec<_> = body.iter().filter_map(path_v4).collect();
        reach.push((next_hop, None, v4_by_identifier, paths));
    } else {
        update.withdraw(v4_by_identifier, body.iter().filter_map(path_v4));
    }
    if let Some(mp) = multiprotocol
        && let Some(family) = Family::from_codec(mp.afi, mp.safi)
    {
        let entries = mp.announced.iter();
        let paths = entries.filter_map(|entry| Some((network(entry)?, entry.path_id)));
        let by_identifier = has_identifiers(family);
        let link_local = mp.link_local_next_hop;
        reach.push((mp.next_hop, link_local, by_identifier, paths.collect()));
    }
    for (next_hop, link_local, by_identifier, paths) in reach {
        if paths.is_empty() {
            continue;
        }
        if withdraw {
            update.withdraw(by_identifier, paths);
            continue;
        }
        let mut read = Attributes::from_codec(attributes, next_hop, internal);
        read.link_local = link_local;
        update.reach.push(Reach {
            attributes: Arc::new(read),
            prefixes: paths.iter().map(|(prefix, _)| *prefix).collect(),
            identifiers: if by_identifier {
                paths.iter().map(|(_, identifier)| *identifier).collect()
            } else {
                Vec::new()
            },
        });
    }
    Ok(update)
}

/// Writes the announcement of prefixes of one family in as few messages as may be.
///
/// IPv4 prefixes with an IPv4 next hop go into the body, all others into MP_REACH_NLRI.
///
/// # Errors
/// [`TooLong`] when the attributes leave no room for a prefix; then nothing is written.
pub fn write_announcements(
    attributes: &Attributes,
    family: Family,
    prefixes: &[IpNetwork],
    encoding: Encoding,
    out: &mut BytesMut,
) -> Result<(), TooLong> {
    let body_next_hop = match (family, attributes.next_hop) {
        (Family::Ipv4Unicast, IpAddr::V4(next_hop)) => Some(next_hop),
        (Family::Ipv4Unicast | Family::Ipv6Unicast, _) => None,
    };
    let mut shared = Vec::with_capacity(128);
    let written = attributes.write(body_next_hop, encoding.four_octet_as, &mut shared);
    written.map_err(|_| TooLong)?;
    let framing = if body_next_hop.is_some() {
        0
    } else {
        MP_REACH_LEN
    };
    let room = usize::from(encoding.longest)
        .checked_sub(FRAME_LEN + shared.len() + framing)
        .filter(|room| *room >= 17)
        .ok_or(TooLong)?;
    let begin = out.len();
    for chunk in chunks(prefixes, room) {
        if body_next_hop.is_some() {
            frame(&[&shared], nlri_len(chunk), out);
            for prefix in chunk {
                write_prefix(prefix, out);
            }
            continue;
        }
        let reach = PathAttribute::MpReachNlri(Box::new(mp_reach(family, attributes, chunk)));
        let Ok(reach) = build(&[], &[], &[reach], encoding.four_octet_as) else {
            out.truncate(begin);
            return Err(TooLong);
        };
        // RFC 7606 §5.1: MP_REACH_NLRI is the first attribute.
        frame(&[&reach.path_attributes, &shared], 0, out);
    }
    Ok(())
}

/// Writes an UPDATE without withdrawals, up to the prefixes of its body, which are to take this many octets.
fn frame(attributes: &[&[u8]], body_len: usize, out: &mut BytesMut) {
    let attributes_len: usize = attributes.iter().map(|part| part.len()).sum();
    out.reserve(FRAME_LEN + attributes_len + body_len);
    out.put_slice(&[0xff; 16]);
    out.put_u16((FRAME_LEN + attributes_len + body_len) as u16);
    out.put_u8(UPDATE);
    out.put_u16(0);
    out.put_u16(attributes_len as u16);
    for part in attributes {
        out.put_slice(part);
    }
}

fn write_prefix(prefix: &IpNetwork, out: &mut BytesMut) {
    out.put_u8(prefix.prefix());
    let len = octets(prefix);
    match prefix {
        IpNetwork::V4(prefix) => out.put_slice(&prefix.network().octets()[..len]),
        IpNetwork::V6(prefix) => out.put_slice(&prefix.network().octets()[..len]),
    }
}

/// Encodes the withdrawal of prefixes of one family in as few messages as may be.
pub fn pack_withdrawals(family: Family, prefixes: &[IpNetwork], encoding: Encoding) -> Vec<Bytes> {
    let room = usize::from(encoding.longest) - FRAME_LEN - MP_UNREACH_LEN;
    chunks(prefixes, room)
        .map(|chunk| withdrawal(family, chunk))
        .collect()
}

/// The End-of-RIB marker of a family (RFC 4724 §2).
pub(crate) fn end_of_rib(family: Family) -> Bytes {
    withdrawal(family, &[])
}

fn withdrawal(family: Family, prefixes: &[IpNetwork]) -> Bytes {
    let message = match family {
        Family::Ipv4Unicast => build(&[], &body_entries(prefixes), &[], true),
        Family::Ipv6Unicast => build(
            &[],
            &[],
            &[PathAttribute::MpUnreachNlri(Box::new(MpUnreachNlri {
                afi: family.afi(),
                safi: Family::SAFI,
                withdrawn: prefixes.iter().map(nlri).collect(),
                flowspec_withdrawn: Vec::new(),
                evpn_withdrawn: Vec::new(),
                bgpls_withdrawn: Vec::new(),
                vpn_withdrawn: Vec::new(),
                labeled_withdrawn: Vec::new(),
                rtc_withdrawn: Vec::new(),
            }))],
            true,
        ),
    };
    match message.and_then(|message| finish(&message)) {
        Ok(bytes) => bytes,
        Err(error) => unreachable!("a withdrawal of bounded size did not encode: {error}"),
    }
}

fn mp_reach(family: Family, attributes: &Attributes, prefixes: &[IpNetwork]) -> MpReachNlri {
    MpReachNlri {
        afi: family.afi(),
        safi: Family::SAFI,
        next_hop: attributes.next_hop,
        link_local_next_hop: attributes.link_local,
        announced: prefixes.iter().map(nlri).collect(),
        flowspec_announced: Vec::new(),
        evpn_announced: Vec::new(),
        bgpls_announced: Vec::new(),
        vpn_announced: Vec::new(),
        labeled_announced: Vec::new(),
        rtc_announced: Vec::new(),
    }
}

fn build(
    announced: &[Ipv4NlriEntry],
    withdrawn: &[Ipv4NlriEntry],
    attributes: &[PathAttribute],
    four_octet_as: bool,
) -> Result<UpdateMessage, EncodeError> {
    UpdateMessage::try_build(
        announced,
        withdrawn,
        attributes,
        four_octet_as,
        false,
        Ipv4UnicastMode::Body,
    )
}

fn finish(message: &UpdateMessage) -> Result<Bytes, EncodeError> {
    let mut bytes = bytes::BytesMut::with_capacity(message.encoded_len());
    // Its length was bounded by whoever chose its prefixes.
    message.encode_with_limit(&mut bytes, EXTENDED_MESSAGE_LEN)?;
    Ok(bytes.freeze())
}

/// Splits prefixes so that each part's NLRI takes at most `room` octets.
fn chunks(prefixes: &[IpNetwork], room: usize) -> impl Iterator<Item = &[IpNetwork]> {
    let mut rest = prefixes;
    std::iter::from_fn(move || {
        let mut used = 0;
        let fitting = rest
            .iter()
            .take_while(|prefix| {
                used += 1 + octets(prefix);
                used <= room
            })
            .count();
        let (chunk, after) = rest.split_at(fitting);
        rest = after;
        (!chunk.is_empty()).then_some(chunk)
    })
}

/// How many octets a prefix takes after its length.
fn octets(prefix: &IpNetwork) -> usize {
    usize::from(prefix.prefix().div_ceil(8))
}

/// How many octets prefixes take.
fn nlri_len(prefixes: &[IpNetwork]) -> usize {
    prefixes.iter().map(|prefix| 1 + octets(prefix)).sum()
}

fn body_entries(prefixes: &[IpNetwork]) -> Vec<Ipv4NlriEntry> {
    prefixes
        .iter()
        .filter_map(|prefix| match prefix {
            IpNetwork::V4(prefix) => Some(Ipv4NlriEntry {
                path_id: 0,
                prefix: Ipv4Prefix::new(prefix.ip(), prefix.prefix()),
            }),
            IpNetwork::V6(_) => None,
        })
        .collect()
}

fn nlri(prefix: &IpNetwork) -> NlriEntry {
    NlriEntry {
        path_id: 0,
        prefix: match prefix {
            IpNetwork::V4(prefix) => Prefix::V4(Ipv4Prefix::new(prefix.ip(), prefix.prefix())),
            IpNetwork::V6(prefix) => Prefix::V6(Ipv6Prefix::new(prefix.ip(), prefix.prefix())),
        },
    }
}

fn network(entry: &NlriEntry) -> Option<IpNetwork> {
    match entry.prefix {
        Prefix::V4(prefix) => Ipv4Network::new(prefix.addr, prefix.len)
            .ok()
            .map(Into::into),
        Prefix::V6(prefix) => Ipv6Network::new(prefix.addr, prefix.len)
            .ok()
            .map(Into::into),
    }
}

fn network_v4(entry: &Ipv4NlriEntry) -> Option<IpNetwork> {
    Ipv4Network::new(entry.prefix.addr, entry.prefix.len)
        .ok()
        .map(Into::into)
}

/// What [`write_announcements`] writes, message by message.
#[cfg(test)]
pub(crate) fn pack_announcements(
    attributes: &Attributes,
    family: Family,
    prefixes: &[IpNetwork],
    encoding: Encoding,
) -> Result<Vec<Bytes>, TooLong> {
    let mut all = BytesMut::new();
    write_announcements(attributes, family, prefixes, encoding, &mut all)?;
    let mut messages = Vec::new();
    while let Ok(Some(length)) = super::message_length(&all, EXTENDED_MESSAGE_LEN) {
        messages.push(all.split_to(length).freeze());
    }
    assert!(all.is_empty(), "half a message is left");
    Ok(messages)
}

#[cfg(test)]
mod tests;
