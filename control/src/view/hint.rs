//! What a person should look at when a peer is not as it should be.
//!
//! Not for what went wrong with objects: those have conditions.

use std::time::Duration;

use fairlead_bgp::snapshot::PeerSnapshot;

use crate::bgp_io::Md5Drops;

/// The usual traps, said where they are seen.
pub(super) fn of(peer: &PeerSnapshot, established: bool, drops: Md5Drops) -> Option<String> {
    let settled = peer.in_state > Duration::from_secs(5);
    if peer.waits_for_bfd {
        return Some(
            "no session is sought until BFD is up (`strict`); `dpctl bgp bfd` says why it is not"
                .to_owned(),
        );
    }
    if !established {
        let error = peer
            .last_error
            .as_ref()
            .map(|error| format!("not established: {error}"));
        let hints: Vec<_> = error
            .into_iter()
            .chain(signature_hint(peer, drops))
            .collect();
        return (!hints.is_empty()).then(|| hints.join("; "));
    }
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
mod tests {
    use std::collections::BTreeMap;
    use std::net::IpAddr;

    use fairlead_bgp::{Counters, State};

    use super::*;

    fn down(signed: bool) -> PeerSnapshot {
        PeerSnapshot {
            name: "tor".to_owned(),
            address: IpAddr::from([10, 0, 0, 1]),
            port: 179,
            state: State::Connect,
            in_state: Duration::from_secs(9),
            remote_as: 65000,
            router_id: None,
            hostname: None,
            internal: None,
            hold_time: None,
            keepalive_time: None,
            signed,
            bfd: None,
            waits_for_bfd: false,
            local_address: None,
            families: BTreeMap::new(),
            last_error: Some("connection: timed out".to_owned()),
            established_count: 0,
            counters: Counters::default(),
        }
    }

    #[test]
    fn signatures_are_named_only_where_the_kernel_dropped_for_them() {
        let none = Md5Drops::default();
        let all = Md5Drops {
            unsigned: 1,
            unexpected: 2,
            mismatched: 3,
        };
        let plain = "not established: connection: timed out";
        assert_eq!(of(&down(true), false, none).as_deref(), Some(plain));
        assert_eq!(
            of(&down(true), false, all).unwrap(),
            format!(
                "{plain}; TCP MD5 dropped segments on this host: 3 signed with another password: \
                 compare the two, 1 not signed: give the peer the password"
            )
        );
        assert_eq!(
            of(&down(false), false, all).unwrap(),
            format!(
                "{plain}; TCP MD5 dropped segments on this host: 2 signed, and no password is \
                 configured here: set authSecretRef"
            )
        );
    }
}
