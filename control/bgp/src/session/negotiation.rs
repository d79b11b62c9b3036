//! What two OPENs amount to (RFC 4271 §6.2, RFC 5492, RFC 6286).

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use crate::config::{PeerConfig, SpeakerConfig};
use crate::wire::{
    self, AS_TRANS, Encoding, Family, GracefulRestartOffer, LongLived, Notification, Open, Role,
};

/// The terms of a session.
#[derive(Debug, Clone)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a capability of its own"
)]
pub(crate) struct Negotiated {
    pub(crate) asn: u32,
    pub(crate) router_id: Ipv4Addr,
    /// Zero: no hold timer and no keepalives.
    pub(crate) hold_time: Duration,
    pub(crate) keepalive_time: Duration,
    pub(crate) families: BTreeSet<Family>,
    /// Of which the peer tells several paths per prefix (RFC 7911).
    pub(crate) add_path: BTreeSet<Family>,
    /// How either side writes UPDATEs.
    pub(crate) encoding: Encoding,
    pub(crate) route_refresh: bool,
    /// Where routes told again begin and end is marked (RFC 7313).
    pub(crate) enhanced_route_refresh: bool,
    /// IPv4 routes may have IPv6 next hops (RFC 8950).
    pub(crate) extended_next_hop: bool,
    pub(crate) graceful_restart: Option<GracefulRestartOffer>,
    /// Long-lived graceful restart, as the peer says it (RFC 9494).
    pub(crate) long_lived: Option<BTreeMap<Family, LongLived>>,
    pub(crate) hostname: Option<String>,
    /// What we are to a peer of another AS (RFC 9234).
    pub(crate) role: Option<Role>,
    /// Same AS on both sides.
    pub(crate) internal: bool,
    /// A NOTIFICATION is no reason to let go of routes, unless it is a Hard Reset (RFC 8538).
    pub(crate) survives_notification: bool,
}

/// The OPEN that we send.
pub(crate) fn our_open(speaker: &SpeakerConfig, peer: &PeerConfig, restarting: bool) -> Open {
    Open {
        families: peer.families.clone(),
        four_octet_as: true,
        route_refresh: true,
        enhanced_route_refresh: true,
        extended_next_hop: peer.extended_next_hop,
        extended_messages: true,
        graceful_restart: peer.graceful_restart.map(|restart| GracefulRestartOffer {
            restarting,
            notification: true,
            restart_time: restart.restart_time,
            families: peer
                .families
                .iter()
                .map(|family| (*family, restart.forwarding_preserved))
                .collect(),
        }),
        long_lived: peer.graceful_restart.zip(peer.long_lived_stale_time).map(
            |(restart, stale_time)| {
                let preserved = restart.forwarding_preserved;
                let said = LongLived {
                    preserved,
                    stale_time,
                };
                peer.families.iter().map(|family| (*family, said)).collect()
            },
        ),
        hostname: speaker.hostname.clone(),
        add_path_receive: if peer.add_path {
            peer.families.clone()
        } else {
            BTreeSet::new()
        },
        roles: role(speaker, peer).map(Role::number).into_iter().collect(),
        ..Open::bare(
            speaker.local_as,
            u16::try_from(peer.hold_time.as_secs()).unwrap_or(u16::MAX),
            speaker.router_id,
        )
    }
}

/// Our role, which internal peers have none of.
fn role(speaker: &SpeakerConfig, peer: &PeerConfig) -> Option<Role> {
    peer.role.filter(|_| peer.remote_as != speaker.local_as)
}

/// The terms that the peer's OPEN and ours allow.
///
/// # Errors
/// The NOTIFICATION that refuses the OPEN.
pub(crate) fn negotiate(
    open: Open,
    speaker: &SpeakerConfig,
    peer: &PeerConfig,
) -> Result<Negotiated, Notification> {
    // RFC 7607: AS 0 is nobody. RFC 6793: nor is the stand-in of those with four octets.
    let is_nobody = open.asn == 0 || open.asn == u32::from(AS_TRANS);
    if is_nobody || (peer.remote_as != 0 && peer.remote_as != open.asn) {
        return Err(Notification::BAD_PEER_AS);
    }
    let internal = open.asn == speaker.local_as;
    // RFC 6286 §2.2: identifiers need to differ within an AS only.
    if open.router_id.is_unspecified() || (internal && open.router_id == speaker.router_id) {
        return Err(Notification::BAD_IDENTIFIER);
    }
    if matches!(open.hold_time_s, 1 | 2) {
        return Err(Notification::UNACCEPTABLE_HOLD_TIME);
    }
    let families: BTreeSet<_> = open
        .families
        .intersection(&peer.families)
        .copied()
        .collect();
    if families.is_empty() {
        return Err(unsupported_capability(&peer.families));
    }
    let hold_time = peer
        .hold_time
        .min(Duration::from_secs(u64::from(open.hold_time_s)));
    let role = role(speaker, peer).filter(|_| !internal);
    if let Some(role) = role {
        // RFC 9234 §4.2: two roles are as bad as a wrong one.
        let is_counterpart = |said: &u8| *said == role.counterpart().number();
        let is_silent = open.roles.is_empty() && !peer.role_strict;
        let fits = open.roles.len() == 1 && open.roles.iter().all(is_counterpart);
        if !is_silent && !fits {
            return Err(Notification::ROLE_MISMATCH);
        }
    }
    let survives_notification = peer.graceful_restart.is_some()
        && open
            .graceful_restart
            .as_ref()
            .is_some_and(|o| o.notification);
    Ok(Negotiated {
        asn: open.asn,
        router_id: open.router_id,
        hold_time,
        keepalive_time: peer.keepalive_time.min(hold_time / 3),
        add_path: families
            .iter()
            .filter(|family| peer.add_path && open.add_path_send.contains(family))
            .copied()
            .collect(),
        families,
        encoding: Encoding {
            four_octet_as: open.four_octet_as,
            // RFC 8654 §4: who offers it may send long messages to who offers it; we always do.
            longest: if open.extended_messages {
                wire::EXTENDED_MESSAGE_LEN
            } else {
                wire::MAX_MESSAGE_LEN
            },
        },
        route_refresh: open.route_refresh,
        enhanced_route_refresh: open.enhanced_route_refresh,
        extended_next_hop: open.extended_next_hop && peer.extended_next_hop,
        // RFC 9494 §3.1: it means nothing without the other one.
        long_lived: open.long_lived.filter(|_| open.graceful_restart.is_some()),
        graceful_restart: open.graceful_restart,
        hostname: open.hostname,
        role,
        internal,
        survives_notification,
    })
}

/// RFC 5492 §5: the data lists the capabilities that we would have needed.
fn unsupported_capability(families: &BTreeSet<Family>) -> Notification {
    let data = families
        .iter()
        .flat_map(|family| {
            let afi = match family {
                Family::Ipv4Unicast => 1,
                Family::Ipv6Unicast => 2,
            };
            [1, 4, 0, afi, 0, 1]
        })
        .collect();
    Notification {
        code: 2,
        subcode: 7,
        data,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    fn speaker() -> SpeakerConfig {
        SpeakerConfig {
            local_as: 65001,
            router_id: Ipv4Addr::new(10, 0, 0, 1),
            hostname: None,
            multipath_limit: 1,
        }
    }

    fn peer(remote_as: u32) -> PeerConfig {
        PeerConfig::new("tor", IpAddr::from([10, 0, 0, 2]), remote_as)
    }

    fn theirs(change: impl FnOnce(&mut Open)) -> Open {
        let mut speaker = speaker();
        speaker.local_as = 65002;
        speaker.router_id = Ipv4Addr::new(10, 0, 0, 2);
        let mut open = our_open(&speaker, &peer(65001), false);
        change(&mut open);
        open
    }

    fn refused(remote_as: u32, change: impl FnOnce(&mut Open)) -> (u8, u8) {
        let error = negotiate(theirs(change), &speaker(), &peer(remote_as)).unwrap_err();
        (error.code, error.subcode)
    }

    #[test]
    fn the_shorter_hold_time_wins_and_bounds_the_keepalive() {
        let open = theirs(|open| open.hold_time_s = 9);
        let terms = negotiate(open, &speaker(), &peer(65002)).unwrap();
        assert_eq!(terms.hold_time, Duration::from_secs(9));
        assert_eq!(terms.keepalive_time, Duration::from_secs(3));
    }

    #[test]
    fn a_keepalive_shorter_than_a_third_is_kept() {
        let mut peer = peer(65002);
        peer.keepalive_time = Duration::from_secs(1);
        let terms = negotiate(theirs(|_| {}), &speaker(), &peer).unwrap();
        assert_eq!(terms.keepalive_time, Duration::from_secs(1));
    }

    #[test]
    fn peer_as_zero_learns_the_as_from_the_open() {
        let open = theirs(|open| open.asn = 4_200_000_001);
        let terms = negotiate(open, &speaker(), &peer(0)).unwrap();
        assert_eq!(terms.asn, 4_200_000_001);
    }

    #[test]
    fn an_unexpected_as_is_a_bad_peer_as() {
        assert_eq!(refused(65003, |_| {}), (2, 2));
        assert_eq!(refused(0, |open| open.asn = 0), (2, 2));
        assert_eq!(refused(0, |open| open.asn = 23456), (2, 2));
    }

    #[test]
    fn an_identifier_must_not_be_zero_nor_ours_within_the_as() {
        let ours = speaker().router_id;
        assert_eq!(
            refused(0, |open| open.router_id = Ipv4Addr::UNSPECIFIED),
            (2, 3)
        );
        assert_eq!(
            refused(65001, |open| {
                open.asn = 65001;
                open.router_id = ours;
            }),
            (2, 3)
        );
        let external = theirs(|open| open.router_id = ours);
        assert!(negotiate(external, &speaker(), &peer(65002)).is_ok());
    }

    #[test]
    fn hold_times_of_one_and_two_seconds_are_refused_and_zero_means_no_timers() {
        assert_eq!(refused(65002, |open| open.hold_time_s = 1), (2, 6));
        assert_eq!(refused(65002, |open| open.hold_time_s = 2), (2, 6));
        let open = theirs(|open| open.hold_time_s = 0);
        let terms = negotiate(open, &speaker(), &peer(65002)).unwrap();
        assert!(terms.hold_time.is_zero() && terms.keepalive_time.is_zero());
    }

    #[test]
    fn roles_that_do_not_fit_refuse_the_open_and_none_does_so_when_that_is_asked() {
        let outcome = |ours: Role, strict: bool, theirs_say: &[u8], internal: bool| {
            let mut peer = peer(0);
            (peer.role, peer.role_strict) = (Some(ours), strict);
            let open = theirs(|open| {
                open.roles = theirs_say.iter().copied().collect();
                if internal {
                    open.asn = 65001;
                }
            });
            negotiate(open, &speaker(), &peer).map(|terms| terms.role)
        };
        // RFC 9234 §4.2, table 2: provider 0, route server 1, its client 2, customer 3, peer 4.
        for (ours, fitting) in [
            (Role::Provider, 3),
            (Role::Customer, 0),
            (Role::RsServer, 2),
            (Role::RsClient, 1),
            (Role::Peer, 4),
        ] {
            for said in 0..=5 {
                let expected = if said == fitting {
                    Ok(Some(ours))
                } else {
                    Err(Notification::ROLE_MISMATCH)
                };
                assert_eq!(
                    outcome(ours, false, &[said], false),
                    expected,
                    "{ours} {said}"
                );
                assert_eq!(
                    outcome(ours, true, &[said], false),
                    expected,
                    "{ours} {said}"
                );
            }
            assert_eq!(outcome(ours, false, &[], false), Ok(Some(ours)));
            for mismatch in [(true, &[][..]), (false, &[fitting, 9])] {
                let refused = outcome(ours, mismatch.0, mismatch.1, false);
                assert_eq!(refused, Err(Notification::ROLE_MISMATCH));
            }
            assert_eq!(
                outcome(ours, true, &[9], true),
                Ok(None),
                "an internal peer"
            );
        }
    }

    #[test]
    fn several_paths_are_read_of_families_that_the_peer_sends_and_we_asked_for() {
        for (wanted, sends, expected) in [
            (false, &Family::ALL[..], &[][..]),
            (true, &[], &[]),
            (true, &Family::ALL[..1], &Family::ALL[..1]),
            (true, &Family::ALL, &Family::ALL),
        ] {
            let mut peer = peer(65002);
            peer.add_path = wanted;
            let ours = our_open(&speaker(), &peer, false);
            assert_eq!(ours.add_path_receive.len(), if wanted { 2 } else { 0 });
            assert!(ours.add_path_send.is_empty(), "we tell one path");
            let open = theirs(|open| open.add_path_send = sends.iter().copied().collect());
            let terms = negotiate(open, &speaker(), &peer).unwrap();
            assert_eq!(terms.add_path, expected.iter().copied().collect());
        }
    }

    #[test]
    fn a_role_is_offered_to_external_peers_only() {
        for (remote_as, said) in [(65002, vec![3]), (0, vec![3]), (65001, vec![])] {
            let mut peer = peer(remote_as);
            peer.role = Some(Role::Customer);
            let open = our_open(&speaker(), &peer, false);
            assert_eq!(open.roles.into_iter().collect::<Vec<_>>(), said);
        }
    }

    #[test]
    fn only_common_families_are_used_and_none_refuses_the_open() {
        let open = theirs(|open| open.families = BTreeSet::from([Family::Ipv4Unicast]));
        let terms = negotiate(open, &speaker(), &peer(65002)).unwrap();
        assert_eq!(terms.families, BTreeSet::from([Family::Ipv4Unicast]));
        assert_eq!(refused(65002, |open| open.families.clear()), (2, 7));
    }
}
