//! What a person should look at when a peer is not as it should be.
//!
//! Not for what went wrong with objects: those have conditions.

use std::time::Duration;

use fairlead_bgp::fsm::State;
use fairlead_bgp::snapshot::{NeighborSnapshot, PeerSnapshot, Said};

use crate::bgp_io::Md5Drops;

/// The usual traps, said where they are seen; the gravest alone, for a table of peers.
pub(super) fn of(local_asn: u32, peer: &PeerSnapshot, drops: Md5Drops) -> Option<String> {
    if peer.waits_for_bfd {
        return Some(
            "no session is sought until BFD is up (`strict`); `dpctl bgp bfd` says why it is not"
                .to_owned(),
        );
    }
    if peer.state != State::Established {
        let error = peer
            .last_error
            .as_ref()
            .map(|error| format!("not established: {error}"));
        let hints: Vec<_> = error
            .into_iter()
            .chain(refusal_hint(local_asn, peer))
            .chain(signature_hint(peer, drops))
            .collect();
        return (!hints.is_empty()).then(|| hints.join("; "));
    }
    routes_hint(peer)
}

/// All of them, for one peer.
pub(super) fn all(local_asn: u32, neighbor: &NeighborSnapshot, drops: Md5Drops) -> Vec<String> {
    let peer = &neighbor.peer;
    let mut hints: Vec<_> = of(local_asn, peer, drops).into_iter().collect();
    if peer.state != State::Established {
        return hints;
    }
    hints.extend(
        peer.families
            .iter()
            .filter(|(_, counts)| !counts.negotiated)
            .map(|(family, _)| {
                format!("it does not speak {family}: activate the family there, or leave it out of `families`")
            }),
    );
    let (ours, theirs) = (
        neighbor.config.hold_time,
        peer.hold_time.unwrap_or_default(),
    );
    if theirs < Duration::from_secs(9) && !theirs.is_zero() {
        hints.push(format!(
            "a hold time of {} s ends the session when either side is busy; BFD finds failures faster and at less risk",
            theirs.as_secs()
        ));
    }
    if theirs.is_zero() && !ours.is_zero() {
        hints.push("it asks for no hold time: its failure is not noticed without BFD".to_owned());
    }
    hints
}

fn routes_hint(peer: &PeerSnapshot) -> Option<String> {
    let settled = peer.in_state > Duration::from_secs(5);
    let received: usize = peer.families.values().map(|family| family.received).sum();
    let accepted: usize = peer.families.values().map(|family| family.accepted).sum();
    let homeless: usize = peer
        .families
        .values()
        .map(|family| family.without_next_hop)
        .sum();
    if homeless > 0 {
        return Some(format!(
            "{homeless} prefixes are not advertised for want of a next hop of their family: give this node an InternalIP of that family"
        ));
    }
    if received == 0 && settled {
        return Some(
            "it sends no prefixes; FRR needs `no bgp ebgp-requires-policy` or a policy".to_owned(),
        );
    }
    if accepted == 0 && settled {
        return Some(
            "no prefix is accepted; `bgp.import` in the configuration says which are".to_owned(),
        );
    }
    None
}

/// What to do about the NOTIFICATION that the last attempt ended with.
fn refusal_hint(local_asn: u32, peer: &PeerSnapshot) -> Option<String> {
    let Said {
        by_us,
        notification,
        ..
    } = peer.last_notification.as_ref()?;
    // An older one says nothing about this attempt.
    let way = if *by_us { "sent" } else { "received" };
    if peer.last_error.as_deref() != Some(&format!("{way} {notification}")) {
        return None;
    }
    let heard = peer.heard.as_ref();
    let cause = notification.cause();
    Some(match (cause.code, cause.subcode, by_us) {
        (2, 2, true) => format!(
            "it says that it is of AS {}, and AS {} is configured: correct peerASN, or that router",
            heard?.asn, peer.remote_as
        ),
        (2, 2, false) => format!(
            "it expects another AS of us than {local_asn}: compare its `remote-as` with localASN"
        ),
        (2, 3, true) => format!(
            "its identifier {} is zero or ours: every router of an AS needs its own",
            heard?.router_id
        ),
        (2, 3, false) => {
            "our identifier is another router's in its AS, too: set routerID in a CiliumBGPNodeConfigOverride"
                .to_owned()
        }
        (2, 6, true) => format!(
            "it proposes a hold time of {} s: RFC 4271 wants none, or 3 s at least",
            heard?.hold_time_s
        ),
        (2, 6, false) => {
            "our hold time is too short for it: raise holdTimeSeconds, or lower its minimum"
                .to_owned()
        }
        (2, 7, _) => {
            "there is no address family that both sides speak: compare `families` with what is activated there"
                .to_owned()
        }
        (2, 11, _) => {
            "its role and ours do not fit, or it says none: compare `role` of the profile with its `local-role`"
                .to_owned()
        }
        (4, _, true) => {
            "nothing was heard for the hold time: packets are lost on the way, or the router is busy"
                .to_owned()
        }
        (4, _, false) => {
            "it heard nothing for the hold time: packets are lost on the way, or this node is busy"
                .to_owned()
        }
        (6, 1, true) => {
            "it sends more prefixes than bgp.maxPrefixes or its profile's maxPrefixes lets in"
                .to_owned()
        }
        (6, 1, false) => "it takes fewer prefixes than we announce: raise its `maximum-prefix`".to_owned(),
        (6, 2, false) => "it is shut down there".to_owned(),
        (6, 3 | 5, false) => {
            "it does not want this node: is it a neighbor of that router, by this address and AS?"
                .to_owned()
        }
        (6, 10, _) => "`dpctl bgp bfd` says why the peer is not reached".to_owned(),
        _ => return None,
    })
}

/// Segments that are dropped for their TCP MD5 signature look like a dead peer to both sides; the
/// kernel's counters, which are of the whole host, tell them apart.
fn signature_hint(peer: &PeerSnapshot, drops: Md5Drops) -> Option<String> {
    let counted: &[_] = if peer.signed {
        &[
            (
                drops.mismatched,
                "signed with another password: compare the two",
            ),
            (drops.unsigned, "not signed: give the peer the password"),
        ]
    } else {
        &[(
            drops.unexpected,
            "signed, and no password is configured here: set authSecretRef",
        )]
    };
    let said: Vec<_> = counted
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    (!said.is_empty())
        .then(|| format!("TCP MD5 dropped segments on this host: {}", said.join(", ")))
}

#[cfg(test)]
mod tests;
