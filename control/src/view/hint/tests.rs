use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use fairlead_bgp::wire::Open;
use fairlead_bgp::{Counters, Family, FamilySnapshot, Notification};

use super::*;

fn down(signed: bool) -> PeerSnapshot {
    PeerSnapshot {
        name: "tor".to_owned(),
        alias: None,
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
        last_reset: None,
        last_notification: None,
        heard: None,
        established_count: 0,
        counters: Counters::default(),
    }
}

fn refused(by_us: bool, code: u8, subcode: u8) -> Option<String> {
    let notification = Notification::bare(code, subcode);
    let way = if by_us { "sent" } else { "received" };
    let error = format!("{way} {notification}");
    let peer = PeerSnapshot {
        last_error: Some(error.clone()),
        last_notification: Some(Said {
            ago: Duration::ZERO,
            by_us,
            notification,
        }),
        heard: Some(Open {
            families: BTreeSet::new(),
            four_octet_as: true,
            route_refresh: true,
            ..Open::bare(65009, 2, Ipv4Addr::new(10, 0, 0, 9))
        }),
        ..down(false)
    };
    let hint = of(65001, &peer, Md5Drops::default()).unwrap();
    let rest = hint
        .strip_prefix(&format!("not established: {error}"))
        .unwrap();
    rest.strip_prefix("; ").map(ToOwned::to_owned)
}

#[test]
fn a_refusal_says_what_to_compare() {
    for (by_us, code, subcode, words) in [
        (
            true,
            2,
            2,
            "it says that it is of AS 65009, and AS 65000 is configured",
        ),
        (false, 2, 2, "it expects another AS of us than 65001"),
        (true, 2, 6, "it proposes a hold time of 2 s"),
        (false, 2, 6, "raise holdTimeSeconds"),
        (true, 2, 3, "its identifier 10.0.0.9"),
        (false, 6, 2, "shut down there"),
        (false, 6, 5, "it does not want this node"),
        (true, 6, 1, "maxPrefixes"),
    ] {
        let hint = refused(by_us, code, subcode).unwrap();
        assert!(hint.contains(words), "{hint}");
    }
    assert_eq!(refused(false, 6, 4), None, "an administrative reset passes");
}

#[test]
fn an_older_notification_does_not_explain_a_newer_failure() {
    let mut peer = down(false);
    peer.last_notification = Some(Said {
        ago: Duration::from_mins(5),
        by_us: false,
        notification: Notification::bare(2, 2),
    });
    assert_eq!(
        of(65001, &peer, Md5Drops::default()).as_deref(),
        Some("not established: connection: timed out")
    );
}

#[test]
fn an_established_peer_whose_prefixes_all_stay_outside_is_told_of() {
    let with = |received, accepted| {
        let counts = FamilySnapshot {
            negotiated: true,
            received,
            accepted,
            ..FamilySnapshot::default()
        };
        let peer = PeerSnapshot {
            state: State::Established,
            families: BTreeMap::from([(Family::Ipv4Unicast, counts)]),
            ..down(false)
        };
        of(65001, &peer, Md5Drops::default())
    };
    assert!(with(0, 0).unwrap().contains("ebgp-requires-policy"));
    assert!(with(7, 0).unwrap().contains("bgp.import"));
    assert_eq!(with(7, 1), None);
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
    assert_eq!(of(65001, &down(true), none).as_deref(), Some(plain));
    assert_eq!(
        of(65001, &down(true), all).unwrap(),
        format!(
            "{plain}; TCP MD5 dropped segments on this host: 3 signed with another password: \
             compare the two, 1 not signed: give the peer the password"
        )
    );
    assert_eq!(
        of(65001, &down(false), all).unwrap(),
        format!(
            "{plain}; TCP MD5 dropped segments on this host: 2 signed, and no password is \
             configured here: set authSecretRef"
        )
    );
}
