//! OPEN: who a speaker is and what it can do (RFC 4271 §4.2, RFC 5492).

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use bytes::Bytes;
use rustbgpd_wire::{
    AddPathFamily, AddPathMode, Afi, Capability, ExtendedNextHopFamily, GracefulRestartFamily,
    LlgrFamily, OpenMessage,
};
use serde::{Deserialize, Serialize};

use super::Family;

/// The two-octet stand-in of an AS that needs four (RFC 6793).
pub(crate) const AS_TRANS: u16 = 23456;
/// The FQDN capability, draft-walton-bgp-hostname-capability.
const FQDN: u8 = 73;
/// Capability code of the BGP role (RFC 9234 §4.1).
const ROLE: u8 = 9;
/// The one pair of families of RFC 8950 that we know.
const IPV4_BY_IPV6: ExtendedNextHopFamily = ExtendedNextHopFamily {
    nlri_afi: Afi::Ipv4,
    nlri_safi: Family::SAFI,
    next_hop_afi: Afi::Ipv6,
};

/// An OPEN.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a capability of its own"
)]
pub struct Open {
    /// The AS; the four-octet one when the capability is there.
    pub asn: u32,
    /// Proposed hold time in seconds.
    pub hold_time_s: u16,
    /// BGP identifier.
    pub router_id: Ipv4Addr,
    /// Multiprotocol families (RFC 4760); IPv4 unicast alone when the sender names none.
    pub families: BTreeSet<Family>,
    /// Whether AS numbers of four octets are understood (RFC 6793).
    pub four_octet_as: bool,
    /// Whether ROUTE-REFRESH is understood (RFC 2918).
    pub route_refresh: bool,
    /// Whether ROUTE-REFRESH marks where routes told again begin and end (RFC 7313).
    pub enhanced_route_refresh: bool,
    /// Whether IPv4 routes may have IPv6 next hops (RFC 8950).
    pub extended_next_hop: bool,
    /// What the sender says it is to us, as numbers (RFC 9234 §4.1); more than one is a fault.
    pub roles: BTreeSet<u8>,
    /// Families of which the sender may tell several paths per prefix (RFC 7911 §4).
    pub add_path_send: BTreeSet<Family>,
    /// Families of which it takes several.
    pub add_path_receive: BTreeSet<Family>,
    /// Whether messages may have 65535 octets (RFC 8654).
    pub extended_messages: bool,
    /// Graceful restart (RFC 4724, RFC 8538).
    pub graceful_restart: Option<GracefulRestartOffer>,
    /// Long-lived graceful restart, by family (RFC 9494 §3.1); `None`: not known.
    pub long_lived: Option<BTreeMap<Family, LongLived>>,
    /// The sender's name.
    pub hostname: Option<String>,
    /// Codes of capabilities that we do not know; none are sent.
    pub others: BTreeSet<u8>,
}

/// What the long-lived graceful restart capability says of a family (RFC 9494 §3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LongLived {
    /// F bit: forwarding was preserved.
    pub preserved: bool,
    /// How long the sender's routes shall be kept after the restart time; at most 2^24 - 1 s.
    pub stale_time: Duration,
}

/// The graceful restart capability.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GracefulRestartOffer {
    /// R bit: the sender has just restarted.
    pub restarting: bool,
    /// How long its routes shall be kept.
    pub restart_time: Duration,
    /// N bit: routes are also kept after a NOTIFICATION, unless it is a Hard Reset (RFC 8538 §2).
    pub notification: bool,
    /// Per family the F bit: forwarding was preserved.
    pub families: BTreeMap<Family, bool>,
}

impl Open {
    /// An OPEN without capabilities, families included.
    pub const fn bare(asn: u32, hold_time_s: u16, router_id: Ipv4Addr) -> Self {
        Self {
            asn,
            hold_time_s,
            router_id,
            families: BTreeSet::new(),
            four_octet_as: false,
            route_refresh: false,
            enhanced_route_refresh: false,
            extended_next_hop: false,
            extended_messages: false,
            roles: BTreeSet::new(),
            add_path_send: BTreeSet::new(),
            add_path_receive: BTreeSet::new(),
            graceful_restart: None,
            long_lived: None,
            hostname: None,
            others: BTreeSet::new(),
        }
    }

    pub(crate) fn from_codec(message: &OpenMessage) -> Self {
        let mut open = Self::bare(
            message.four_byte_as(),
            message.hold_time,
            message.bgp_identifier,
        );
        let mut names_families = false;
        for capability in &message.capabilities {
            open.take_capability(capability);
            names_families |= matches!(
                capability,
                Capability::MultiProtocol { .. } | Capability::Unknown { code: 1, .. }
            );
        }
        if !names_families {
            open.families.insert(Family::Ipv4Unicast);
        }
        open
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "RFC 5492 §3: a capability that is not understood is ignored"
    )]
    fn take_capability(&mut self, capability: &Capability) {
        match capability {
            Capability::MultiProtocol { afi, safi } => {
                self.families.extend(Family::from_codec(*afi, *safi));
            }
            Capability::FourOctetAs { .. } => self.four_octet_as = true,
            Capability::RouteRefresh => self.route_refresh = true,
            Capability::EnhancedRouteRefresh => self.enhanced_route_refresh = true,
            Capability::AddPath(families) => {
                for entry in families {
                    let family = Family::from_codec(entry.afi, entry.safi);
                    let mode = entry.send_receive;
                    if matches!(mode, AddPathMode::Send | AddPathMode::Both) {
                        self.add_path_send.extend(family);
                    }
                    if matches!(mode, AddPathMode::Receive | AddPathMode::Both) {
                        self.add_path_receive.extend(family);
                    }
                }
            }
            Capability::LongLivedGracefulRestart(families) => {
                let families = families.iter().filter_map(|entry| {
                    let long_lived = LongLived {
                        preserved: entry.forwarding_preserved,
                        stale_time: Duration::from_secs(entry.stale_time.into()),
                    };
                    Some((Family::from_codec(entry.afi, entry.safi)?, long_lived))
                });
                self.long_lived = Some(families.collect());
            }
            Capability::ExtendedMessage => self.extended_messages = true,
            Capability::Role { role } => {
                self.roles.insert(role.to_u8());
            }
            Capability::ExtendedNextHop(families) => {
                self.extended_next_hop |= families.contains(&IPV4_BY_IPV6);
            }
            Capability::GracefulRestart {
                restart_state,
                notification,
                restart_time,
                families,
            } => {
                self.graceful_restart = Some(GracefulRestartOffer {
                    restarting: *restart_state,
                    notification: *notification,
                    restart_time: Duration::from_secs(u64::from(*restart_time)),
                    families: families
                        .iter()
                        .filter_map(|entry| {
                            let family = Family::from_codec(entry.afi, entry.safi)?;
                            Some((family, entry.forwarding_preserved))
                        })
                        .collect(),
                });
            }
            Capability::Unknown { code: ROLE, data } if data.len() == 1 => {
                self.roles.insert(data[0]);
            }
            Capability::Unknown { code: FQDN, data } => self.hostname = hostname_of(data),
            // A family that we do not speak.
            Capability::Unknown { code: 1, .. } => {}
            other => {
                self.others.insert(other.code());
            }
        }
    }

    pub(crate) fn to_codec(&self) -> OpenMessage {
        let mut capabilities: Vec<_> = self
            .families
            .iter()
            .map(|family| Capability::MultiProtocol {
                afi: family.afi(),
                safi: Family::SAFI,
            })
            .collect();
        if self.route_refresh {
            capabilities.push(Capability::RouteRefresh);
        }
        if self.enhanced_route_refresh {
            capabilities.push(Capability::EnhancedRouteRefresh);
        }
        if self.extended_next_hop {
            capabilities.push(Capability::ExtendedNextHop(vec![IPV4_BY_IPV6]));
        }
        if self.extended_messages {
            capabilities.push(Capability::ExtendedMessage);
        }
        capabilities.extend(self.roles.iter().map(|role| Capability::Unknown {
            code: ROLE,
            data: Bytes::copy_from_slice(&[*role]),
        }));
        let add_path: Vec<_> = Family::ALL
            .into_iter()
            .filter_map(|family| {
                let sends = self.add_path_send.contains(&family);
                let receives = self.add_path_receive.contains(&family);
                let send_receive = match (sends, receives) {
                    (true, true) => AddPathMode::Both,
                    (true, false) => AddPathMode::Send,
                    (false, true) => AddPathMode::Receive,
                    (false, false) => return None,
                };
                Some(AddPathFamily {
                    afi: family.afi(),
                    safi: Family::SAFI,
                    send_receive,
                })
            })
            .collect();
        if !add_path.is_empty() {
            capabilities.push(Capability::AddPath(add_path));
        }
        if self.four_octet_as {
            capabilities.push(Capability::FourOctetAs { asn: self.asn });
        }
        if let Some(offer) = &self.graceful_restart {
            capabilities.push(Capability::GracefulRestart {
                restart_state: offer.restarting,
                notification: offer.notification,
                restart_time: u16::try_from(offer.restart_time.as_secs())
                    .unwrap_or(u16::MAX)
                    .min(4095),
                families: offer
                    .families
                    .iter()
                    .map(|(family, preserved)| GracefulRestartFamily {
                        afi: family.afi(),
                        safi: Family::SAFI,
                        forwarding_preserved: *preserved,
                    })
                    .collect(),
            });
        }
        if let Some(long_lived) = &self.long_lived {
            let families = long_lived.iter().map(|(family, said)| LlgrFamily {
                afi: family.afi(),
                safi: Family::SAFI,
                forwarding_preserved: said.preserved,
                stale_time: u32::try_from(said.stale_time.as_secs())
                    .unwrap_or(u32::MAX)
                    .min(0xFF_FFFF),
            });
            capabilities.push(Capability::LongLivedGracefulRestart(families.collect()));
        }
        if let Some(hostname) = &self.hostname {
            capabilities.push(Capability::Unknown {
                code: FQDN,
                data: fqdn(hostname),
            });
        }
        OpenMessage {
            version: 4,
            my_as: u16::try_from(self.asn).unwrap_or(AS_TRANS),
            hold_time: self.hold_time_s,
            bgp_identifier: self.router_id,
            capabilities,
        }
    }
}

/// Host name and (empty) domain name, each after its length; cut at 64 octets.
fn fqdn(hostname: &str) -> Bytes {
    let mut end = hostname.len().min(64);
    while !hostname.is_char_boundary(end) {
        end -= 1;
    }
    let mut data = vec![end as u8];
    data.extend_from_slice(&hostname.as_bytes()[..end]);
    data.push(0);
    data.into()
}

fn hostname_of(data: &[u8]) -> Option<String> {
    let (&length, rest) = data.split_first()?;
    let name = rest.get(..usize::from(length))?;
    let name = std::str::from_utf8(name).ok()?;
    (!name.is_empty() && !name.chars().any(char::is_control)).then(|| name.to_owned())
}
