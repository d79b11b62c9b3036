//! Peers that dial from a range.

use super::*;
use crate::config::PeerRange;

/// Node 1 lets in who dials from the addresses of nodes 0 to 7, and announces to them.
fn hub(asns: &[u32], limit: usize) -> Network {
    let mut network = Network::new();
    network.add(1, Speaker::new(config(1, 65001), 1));
    let now = network.now();
    network.speaker(1).set_ranges(vec![range(asns, limit)], now);
    let announced = Announcement {
        peers: Some(["pods".to_owned()].into()),
        ..Announcement::default()
    };
    let announced = Announcements::unit(net("10.1.0.0/24"), announced);
    network.speaker(1).set_announcements(announced, now);
    network
}

fn range(asns: &[u32], limit: usize) -> PeerRange {
    let mut template = toward(0, 0);
    template.name = "pods".to_owned();
    PeerRange {
        prefix: net("192.0.2.0/29"),
        asns: asns.iter().copied().collect(),
        limit,
        template,
    }
}

/// Another node that dials node 1 and announces a prefix.
fn member(network: &mut Network, node: u8, asn: u32) {
    network.add(node, Speaker::new(config(node, asn), node.into()));
    let now = network.now();
    network
        .speaker(node)
        .set_announcements(announce(&[&format!("10.{node}.0.0/24")]), now);
    network.speaker(node).set_peer(toward(1, 65001), now);
}

fn names(network: &mut Network) -> Vec<String> {
    let now = network.now();
    let peers = network.speaker(1).peers(now).into_iter();
    peers.map(|peer| peer.name).collect()
}

#[test]
fn who_dials_from_a_range_is_a_peer_until_its_session_ends() {
    let mut network = hub(&[65002, 65003], 8);
    for (node, asn) in [(2, 65002), (3, 65003), (4, 65004), (9, 65002)] {
        member(&mut network, node, asn);
    }
    network.run(20 * SECOND);
    assert!(names(&mut network).starts_with(&["192.0.2.2".to_owned(), "192.0.2.3".to_owned()]));
    assert_eq!(
        hops(&mut network, 1).into_keys().collect::<Vec<_>>(),
        [net("10.2.0.0/24"), net("10.3.0.0/24")]
    );
    assert_eq!(hops(&mut network, 2).len(), 1, "the range is announced to");
    let now = network.now();
    let other = network.speaker(4).peers(now).remove(0);
    assert_eq!(
        other.last_notification.unwrap().notification.to_string(),
        "2/2 Bad Peer AS"
    );
    assert_eq!(network.sessions_up(9), 0, "192.0.2.9 is outside");
    let shown = network.speaker(1).neighbor("192.0.2.2", now).unwrap();
    assert_eq!(shown.range.as_deref(), Some("pods"));

    network.speaker(2).remove_peer("node1", now);
    network.run(SECOND);
    assert!(!names(&mut network).contains(&"192.0.2.2".to_owned()));
    assert_eq!(hops(&mut network, 1).len(), 1);
    let now = network.now();
    network.speaker(2).set_peer(toward(1, 65001), now);
    network.run(20 * SECOND);
    assert_eq!(hops(&mut network, 1).len(), 2, "it may come back");
}

#[test]
fn a_full_range_lets_nobody_in_until_one_leaves() {
    let mut network = hub(&[], 1);
    member(&mut network, 2, 65002);
    network.run(10 * SECOND);
    member(&mut network, 3, 65003);
    network.run(20 * SECOND);
    assert_eq!(names(&mut network), ["192.0.2.2"]);
    assert_eq!(network.sessions_up(3), 0);
    assert!(network.events(1).iter().any(|event| *event
        == Event::RangeFull {
            peer: "pods".to_owned(),
            address: address(3)
        }));
    let now = network.now();
    network.speaker(2).remove_peer("node1", now);
    network.run(20 * SECOND);
    assert_eq!(names(&mut network), ["192.0.2.3"]);
}

#[test]
fn members_outlive_changes_of_other_peers_and_follow_their_range() {
    let mut network = hub(&[], 8);
    member(&mut network, 2, 65002);
    member(&mut network, 3, 65003);
    network.run(20 * SECOND);
    let now = network.now();
    network.speaker(1).set_peers(vec![], now);
    let mut other = range(&[], 8);
    other.template.import = ImportPolicy::Nothing;
    network.speaker(1).set_ranges(vec![other], now);
    network.run(SECOND);
    assert_eq!(
        hops(&mut network, 1).len(),
        0,
        "nothing is imported any more"
    );
    assert_eq!(network.sessions_up(1), 2, "and no session was reset");

    // One is named now, and the range is no more.
    let now = network.now();
    network.speaker(1).set_peers(vec![toward(2, 65002)], now);
    network.speaker(1).set_ranges(vec![], now);
    network.run(20 * SECOND);
    assert_eq!(names(&mut network), ["node2"]);
    assert_eq!(
        hops(&mut network, 1).into_keys().collect::<Vec<_>>(),
        [net("10.2.0.0/24")]
    );
    let now = network.now();
    assert_ne!(network.speaker(3).peers(now)[0].state, State::Established);
}

#[test]
fn routes_of_a_restarting_member_are_kept_as_those_of_any_peer() {
    let mut network = hub(&[], 8);
    let restart = Some(crate::config::GracefulRestart {
        restart_time: 60 * SECOND,
        restarting: false,
        forwarding_preserved: true,
    });
    let mut kept = range(&[], 8);
    kept.template.graceful_restart = restart;
    let now = network.now();
    network.speaker(1).set_ranges(vec![kept], now);
    member(&mut network, 2, 65002);
    let mut toward_hub = toward(1, 65001);
    toward_hub.graceful_restart = restart;
    network.speaker(2).set_peer(toward_hub, now);
    network.run(20 * SECOND);
    assert_eq!(hops(&mut network, 1).len(), 1);
    let now = network.now();
    network.reset_connections();
    network.crash(2, Speaker::new(config(2, 65002), 9));
    network.run(10 * SECOND);
    assert_eq!(hops(&mut network, 1).len(), 1, "kept since {now:?}");
    network.run(60 * SECOND);
    assert_eq!(hops(&mut network, 1).len(), 0);
    assert_eq!(names(&mut network), [""; 0]);
}
