//! UPDATE: routes that come and go (RFC 4271 §4.3, RFC 4760, RFC 7606).

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use bytes::Bytes;
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use rustbgpd_wire::{
    AsPath, AsPathSegment, EncodeError, ErrorDisposition, Ipv4NlriEntry, Ipv4Prefix,
    Ipv4UnicastMode, Ipv6Prefix, MAX_MESSAGE_LEN, MpReachNlri, MpUnreachNlri, NlriEntry,
    PathAttribute, Prefix, UpdateMessage, UpdateValidationOptions,
};
use serde::{Deserialize, Serialize};

use super::families::strip;
use super::{Family, HEADER_LEN, Notification, RawUpdate, notification_of};

/// Octets of an UPDATE around its three sections.
const FRAME_LEN: usize = HEADER_LEN + 4;
/// Octets of MP_REACH_NLRI before its prefixes, at their longest.
const MP_REACH_LEN: usize = 4 + 3 + 1 + 32 + 1;
/// Octets of MP_UNREACH_NLRI before its prefixes.
const MP_UNREACH_LEN: usize = 4 + 3;

/// The well-known community of paths that are about to go (RFC 8326 §5).
const GRACEFUL_SHUTDOWN: u32 = 0xFFFF_0000;

/// ORIGIN (RFC 4271 §5.1.1), best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Originated inside its AS.
    Igp,
    /// Learnt by the protocol EGP.
    Egp,
    /// Learnt by other means.
    Incomplete,
}

/// A large community (RFC 8092).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LargeCommunity {
    /// The AS that gives the other two their meaning.
    pub global: u32,
    /// First local part.
    pub local1: u32,
    /// Second local part.
    pub local2: u32,
}

impl fmt::Display for LargeCommunity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.global, self.local1, self.local2)
    }
}

/// The attributes of a path that we read or write.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Attributes {
    /// Where the route comes from.
    pub origin: Origin,
    /// The ASes it went through, nearest first. Sets do not occur (RFC 9774).
    pub as_path: Vec<u32>,
    /// Where packets go.
    pub next_hop: IpAddr,
    /// The same hop's link-local address (RFC 2545).
    pub link_local: Option<Ipv6Addr>,
    /// MULTI_EXIT_DISC.
    pub med: Option<u32>,
    /// LOCAL_PREF.
    pub local_pref: Option<u32>,
    /// RFC 1997 communities.
    pub communities: Vec<u32>,
    /// RFC 8092 communities.
    pub large_communities: Vec<LargeCommunity>,
    /// The originator, when a route reflector passed it on (RFC 4456).
    pub originator_id: Option<Ipv4Addr>,
    /// The reflectors it went through (RFC 4456).
    pub cluster_list: Vec<Ipv4Addr>,
}

impl Attributes {
    /// Nothing but a next hop: a route that begins here.
    pub fn local(next_hop: IpAddr) -> Self {
        Self {
            origin: Origin::Igp,
            as_path: Vec::new(),
            next_hop,
            link_local: None,
            med: None,
            local_pref: None,
            communities: Vec::new(),
            large_communities: Vec::new(),
            originator_id: None,
            cluster_list: Vec::new(),
        }
    }

    /// Asks who hears of the path to prefer others (RFC 8326 §4.2): by the community, and towards an
    /// internal peer by LOCAL_PREF.
    pub(crate) fn shut_down_gracefully(&mut self, internal: bool) {
        self.communities.push(GRACEFUL_SHUTDOWN);
        self.communities.sort_unstable();
        if internal {
            self.local_pref = Some(0);
        }
    }

    /// Whether the path is about to go.
    pub(crate) fn is_shutting_down(&self) -> bool {
        self.communities.contains(&GRACEFUL_SHUTDOWN)
    }

    fn from_codec(attributes: &[PathAttribute], next_hop: IpAddr, internal: bool) -> Self {
        let mut read = Self::local(next_hop);
        for attribute in attributes {
            read.take(attribute, internal);
        }
        read
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "attributes that a node does not use are not kept: it passes no route on"
    )]
    fn take(&mut self, attribute: &PathAttribute, internal: bool) {
        match attribute {
            PathAttribute::Origin(origin) => {
                self.origin = match origin {
                    rustbgpd_wire::Origin::Igp => Origin::Igp,
                    rustbgpd_wire::Origin::Egp => Origin::Egp,
                    rustbgpd_wire::Origin::Incomplete => Origin::Incomplete,
                };
            }
            PathAttribute::AsPath(path) => self.as_path = path.asns().collect(),
            PathAttribute::Med(med) => self.med = Some(*med),
            // RFC 4271 §5.1.5: from an external peer it is ignored.
            PathAttribute::LocalPref(preference) if internal => {
                self.local_pref = Some(*preference);
            }
            PathAttribute::OriginatorId(id) if internal => self.originator_id = Some(*id),
            PathAttribute::ClusterList(list) if internal => self.cluster_list.clone_from(list),
            other => {
                if let Some(communities) = other.communities() {
                    self.communities = communities.to_vec();
                }
                if let Some(communities) = other.large_communities() {
                    self.large_communities = communities
                        .iter()
                        .map(|community| LargeCommunity {
                            global: community.global_admin,
                            local1: community.local_data1,
                            local2: community.local_data2,
                        })
                        .collect();
                }
            }
        }
    }

    /// All but the next hop, in the order of their type codes.
    fn to_codec(&self) -> Vec<PathAttribute> {
        let segments = if self.as_path.is_empty() {
            Vec::new()
        } else {
            vec![AsPathSegment::AsSequence(self.as_path.clone())]
        };
        let mut attributes = vec![
            PathAttribute::Origin(match self.origin {
                Origin::Igp => rustbgpd_wire::Origin::Igp,
                Origin::Egp => rustbgpd_wire::Origin::Egp,
                Origin::Incomplete => rustbgpd_wire::Origin::Incomplete,
            }),
            PathAttribute::AsPath(AsPath { segments }),
        ];
        attributes.extend(self.med.map(PathAttribute::Med));
        attributes.extend(self.local_pref.map(PathAttribute::LocalPref));
        if !self.communities.is_empty() {
            attributes.push(PathAttribute::Communities(self.communities.clone()));
        }
        if !self.large_communities.is_empty() {
            attributes.push(PathAttribute::LargeCommunities(
                self.large_communities
                    .iter()
                    .map(|c| rustbgpd_wire::LargeCommunity::new(c.global, c.local1, c.local2))
                    .collect(),
            ));
        }
        attributes
    }
}

/// Prefixes that share their attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// What is said about them.
    pub attributes: Arc<Attributes>,
    /// The prefixes, host bits zero.
    pub prefixes: Vec<IpNetwork>,
}

/// An UPDATE after RFC 7606: what may be used, what is withdrawn, what was wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Update {
    /// Prefixes that are gone, by the peer's word or because their attributes were wrong.
    pub withdrawn: Vec<IpNetwork>,
    /// Prefixes that are there.
    pub reach: Vec<Reach>,
    /// The End-of-RIB marker of a family (RFC 4724 §2).
    pub end_of_rib: Option<Family>,
    /// Attribute faults that did not end the session.
    pub faults: Vec<Fault>,
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

/// Attributes that leave no room for a single prefix in 4096 octets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the attributes do not fit a message of 4096 octets")]
pub struct TooLong;

/// Reads an UPDATE in the context of its session: width of AS numbers, internal or external peer,
/// address families, whether a link-local next hop alone means something, as it does on a known link. What
/// belongs to other families is left out and is a fault.
///
/// # Errors
/// The NOTIFICATION to send when the routes themselves cannot be read (RFC 7606 §3 (j), §5).
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "only the two multiprotocol attributes and NEXT_HOP carry routes"
)]
pub(crate) fn decode_update(
    raw: &RawUpdate,
    four_octet_as: bool,
    internal: bool,
    families: &BTreeSet<Family>,
    on_link: bool,
) -> Result<Update, Notification> {
    let mut update = Update::default();
    let mut message = raw.0.clone();
    let stripped = strip(&message.path_attributes, families)?;
    let is_stripped = stripped.is_some();
    if let Some(stripped) = stripped {
        message.path_attributes = stripped.attributes;
        update.faults = stripped.faults;
    }
    let (parsed, _) = message
        .parse_revised_observed_with_error_context(four_octet_as, internal, false, &[])
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
                    update
                        .withdrawn
                        .extend(unreach.withdrawn.iter().filter_map(network));
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
    update
        .withdrawn
        .extend(parsed.update.withdrawn.iter().filter_map(network_v4));
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
        reach.push((
            next_hop,
            None,
            body.iter().filter_map(network_v4).collect::<Vec<_>>(),
        ));
    } else {
        update.withdrawn.extend(body.iter().filter_map(network_v4));
    }
    if let Some(mp) = multiprotocol
        && Family::from_codec(mp.afi, mp.safi).is_some()
    {
        reach.push((
            mp.next_hop,
            mp.link_local_next_hop,
            mp.announced.iter().filter_map(network).collect(),
        ));
    }
    for (next_hop, link_local, prefixes) in reach {
        if prefixes.is_empty() {
            continue;
        }
        if withdraw {
            update.withdrawn.extend(prefixes);
            continue;
        }
        let mut read = Attributes::from_codec(attributes, next_hop, internal);
        read.link_local = link_local;
        update.reach.push(Reach {
            attributes: Arc::new(read),
            prefixes,
        });
    }
    Ok(update)
}

/// Encodes the announcement of prefixes of one family in as few messages as fit 4096 octets.
///
/// IPv4 prefixes with an IPv4 next hop go into the body, all others into MP_REACH_NLRI.
///
/// # Errors
/// [`TooLong`] when the attributes leave no room for a prefix.
pub fn pack_announcements(
    attributes: &Attributes,
    family: Family,
    prefixes: &[IpNetwork],
    four_octet_as: bool,
) -> Result<Vec<Bytes>, TooLong> {
    let shared = attributes.to_codec();
    let shared_len = build(&[], &[], &shared, four_octet_as)
        .map_err(|_| TooLong)?
        .path_attributes
        .len();
    let in_body = family == Family::Ipv4Unicast && attributes.next_hop.is_ipv4();
    let framing = if in_body { 7 } else { MP_REACH_LEN };
    let room = usize::from(MAX_MESSAGE_LEN)
        .checked_sub(FRAME_LEN + shared_len + framing)
        .filter(|room| *room >= 17)
        .ok_or(TooLong)?;
    chunks(prefixes, room)
        .map(|chunk| {
            let message = if let (true, IpAddr::V4(next_hop)) = (in_body, attributes.next_hop) {
                let mut all = shared.clone();
                all.insert(2, PathAttribute::NextHop(next_hop));
                build(&body_entries(chunk), &[], &all, four_octet_as)
            } else {
                // RFC 7606 §5.1: MP_REACH_NLRI is the first attribute.
                let mut all = vec![PathAttribute::MpReachNlri(Box::new(mp_reach(
                    family, attributes, chunk,
                )))];
                all.extend_from_slice(&shared);
                build(&[], &[], &all, four_octet_as)
            };
            message
                .and_then(|message| finish(&message))
                .map_err(|_| TooLong)
        })
        .collect()
}

/// Encodes the withdrawal of prefixes of one family in as few messages as fit 4096 octets.
pub fn pack_withdrawals(family: Family, prefixes: &[IpNetwork]) -> Vec<Bytes> {
    let room = usize::from(MAX_MESSAGE_LEN) - FRAME_LEN - MP_UNREACH_LEN;
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
    message.encode(&mut bytes)?;
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
                used += 1 + usize::from(prefix.prefix().div_ceil(8));
                used <= room
            })
            .count();
        let (chunk, after) = rest.split_at(fitting);
        rest = after;
        (!chunk.is_empty()).then_some(chunk)
    })
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

#[cfg(test)]
mod tests;
