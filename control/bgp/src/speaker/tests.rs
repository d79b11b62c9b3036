//! Speakers that talk over a simulated network in virtual time.

mod add_path;
mod broken_peer;
mod carried;
mod change;
mod fabric;
mod groups;
mod hold;
mod link;
mod network;
mod random;
mod ranges;
mod raw;
mod reach;
mod refresh;
mod restart;
mod roles;
mod shown;
mod transit;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnetwork::IpNetwork;

use super::*;
use crate::config::{Announcement, ImportPolicy};
use crate::fsm::State;
use crate::policy::Rejection;
use network::{Network, address};

const SECOND: Duration = Duration::from_secs(1);

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn config(index: u8, local_as: u32) -> SpeakerConfig {
    SpeakerConfig {
        local_as,
        router_id: Ipv4Addr::new(10, 255, 0, index),
        hostname: Some(format!("node{index}")),
        multipath_limit: 8,
    }
}

/// Peer `index` as seen from another node: imports all, has an IPv6 next hop.
fn toward(index: u8, remote_as: u32) -> PeerConfig {
    let mut peer = PeerConfig::new(format!("node{index}"), address(index), remote_as);
    peer.import = ImportPolicy::All;
    peer.connect_retry_time = 5 * SECOND;
    peer.hold_time = 9 * SECOND;
    peer.keepalive_time = 3 * SECOND;
    // Of whoever speaks to this peer: not what the peer itself says.
    peer.next_hop_v6 = Some(Ipv6Addr::new(
        0xfd00,
        0,
        0,
        0,
        0,
        0,
        0,
        100 + u16::from(index),
    ));
    peer
}

fn announce(prefixes: &[&str]) -> Announcements {
    prefixes
        .iter()
        .map(|prefix| (net(prefix), Announcement::default()))
        .collect()
}

/// Two speakers that know each other, not yet started.
fn pair(as_1: u32, as_2: u32, change: impl Fn(&mut PeerConfig)) -> Network {
    let mut network = Network::new();
    network.add(1, Speaker::new(config(1, as_1), 1));
    network.add(2, Speaker::new(config(2, as_2), 2));
    let now = network.now();
    let mut two = toward(2, as_2);
    let mut one = toward(1, as_1);
    change(&mut two);
    change(&mut one);
    network.speaker(1).set_peer(two, now);
    network.speaker(2).set_peer(one, now);
    network
}

fn state(network: &mut Network, node: u8) -> State {
    let now = network.now();
    network.speaker(node).peers(now)[0].state
}

fn hops(network: &mut Network, node: u8) -> BTreeMap<IpNetwork, Vec<IpAddr>> {
    network
        .speaker(node)
        .learnt()
        .into_iter()
        .map(|(prefix, paths)| (prefix, paths.iter().map(|path| path.next_hop).collect()))
        .collect()
}

#[test]
fn two_speakers_that_dial_each_other_end_with_one_session_and_each_others_routes() {
    let mut network = pair(65001, 65002, |_| {});
    let now = network.now();
    network
        .speaker(1)
        .set_announcements(announce(&["10.1.0.0/24", "2001:db8:1::/64"]), now);
    network
        .speaker(2)
        .set_announcements(announce(&["10.2.0.0/24"]), now);
    network.run(20 * SECOND);
    assert_eq!(state(&mut network, 1), State::Established);
    assert_eq!(state(&mut network, 2), State::Established);
    assert_eq!(network.open_connections(), 1);
    let v6_hop = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 102));
    assert_eq!(
        hops(&mut network, 2),
        BTreeMap::from([
            (net("10.1.0.0/24"), vec![address(1)]),
            (net("2001:db8:1::/64"), vec![v6_hop]),
        ])
    );
    assert_eq!(
        hops(&mut network, 1),
        BTreeMap::from([(net("10.2.0.0/24"), vec![address(2)])])
    );
    let path = &network.speaker(2).adj_rib_in("node1")[0].paths[0];
    assert_eq!(path.attributes.as_path, [65001]);
    assert_eq!(path.attributes.local_pref, None);
}

/// Two speakers that dial each other at the same instant.
fn collide(ids: [u8; 2], ases: [u32; 2]) -> Network {
    let mut network = Network::new();
    let now = network.now();
    for (node, other) in [(0, 1), (1, 0)] {
        let mut speaker = Speaker::new(config(ids[node], ases[node]), 1);
        speaker.set_peer(toward(other as u8 + 1, ases[other]), now);
        network.add(node as u8 + 1, speaker);
    }
    network.run(20 * SECOND);
    assert_eq!(network.connections_made(), 2, "they did collide");
    assert_eq!(network.sessions_up(1), 1);
    assert_eq!(network.sessions_up(2), 1);
    network
}

#[test]
fn of_two_colliding_connections_the_one_of_the_higher_identifier_stays() {
    assert_eq!(collide([1, 2], [65001, 65002]).openers(), [2]);
    assert_eq!(collide([2, 1], [65001, 65002]).openers(), [1]);
    assert_eq!(collide([1, 2], [65001, 65001]).openers(), [2]);
}

#[test]
fn equal_identifiers_leave_the_collision_to_the_higher_as() {
    assert_eq!(collide([1, 1], [65001, 65002]).openers(), [2]);
    assert_eq!(collide([1, 1], [65002, 65001]).openers(), [1]);
}

#[test]
fn an_internal_peer_hears_local_preference_and_an_empty_path() {
    let mut network = pair(65001, 65001, |_| {});
    let now = network.now();
    let mut announcements = announce(&["10.1.0.0/24", "10.1.1.0/24"]);
    announcements
        .get_mut(&net("10.1.1.0/24"))
        .unwrap()
        .local_pref = Some(300);
    network.speaker(1).set_announcements(announcements, now);
    network.run(20 * SECOND);
    let routes = network.speaker(2).adj_rib_in("node1");
    let preferences: Vec<_> = routes
        .iter()
        .map(|route| route.paths[0].attributes.local_pref)
        .collect();
    assert_eq!(preferences, [Some(100), Some(300)]);
    assert!(
        routes
            .iter()
            .all(|route| route.paths[0].attributes.as_path.is_empty())
    );
}

#[test]
fn an_announcement_carries_its_attributes_and_reaches_chosen_peers_only() {
    let mut network = pair(65001, 65002, |_| {});
    let now = network.now();
    let announcement = Announcement {
        communities: [65001 << 16 | 7].into(),
        large_communities: [crate::LargeCommunity {
            global: 65001,
            local1: 1,
            local2: 2,
        }]
        .into(),
        med: Some(50),
        prepend: 2,
        ..Announcement::default()
    };
    let hidden = Announcement {
        peers: Some(["somebody else".to_owned()].into()),
        ..Announcement::default()
    };
    network.speaker(1).set_announcements(
        Announcements::from_iter([
            (net("10.1.0.0/24"), announcement),
            (net("10.9.0.0/24"), hidden),
        ]),
        now,
    );
    network.run(20 * SECOND);
    let routes = network.speaker(2).adj_rib_in("node1");
    assert_eq!(routes.len(), 1);
    let attributes = &routes[0].paths[0].attributes;
    assert_eq!(attributes.as_path, [65001, 65001, 65001]);
    assert_eq!(attributes.med, Some(50));
    assert_eq!(attributes.communities, [65001 << 16 | 7]);
    assert_eq!(attributes.large_communities.len(), 1);
}

#[test]
fn a_change_of_announcements_is_told_as_a_difference() {
    let mut network = pair(65001, 65002, |_| {});
    let now = network.now();
    network
        .speaker(1)
        .set_announcements(announce(&["10.1.0.0/24", "10.1.1.0/24"]), now);
    network.run(20 * SECOND);
    let now = network.now();
    let sent = network.speaker(1).peers(now)[0].counters.sent.updates;
    network
        .speaker(1)
        .set_announcements(announce(&["10.1.1.0/24", "10.1.2.0/24"]), now);
    network.run(SECOND);
    assert_eq!(
        hops(&mut network, 2).into_keys().collect::<Vec<_>>(),
        [net("10.1.1.0/24"), net("10.1.2.0/24")]
    );
    let now = network.now();
    let after = network.speaker(1).peers(now)[0].counters.sent.updates;
    assert_eq!(after - sent, 2, "one withdrawal and one announcement");
    network.speaker(1).withdraw_all(now);
    network.run(SECOND);
    assert!(hops(&mut network, 2).is_empty());
    assert_eq!(state(&mut network, 2), State::Established);
}

#[test]
fn learnt_routes_are_not_passed_on() {
    let mut network = pair(65001, 65002, |_| {});
    network.add(3, Speaker::new(config(3, 65003), 3));
    let now = network.now();
    network.speaker(2).set_peer(toward(3, 65003), now);
    network.speaker(3).set_peer(toward(2, 65002), now);
    network
        .speaker(1)
        .set_announcements(announce(&["10.1.0.0/24"]), now);
    network.run(20 * SECOND);
    assert_eq!(hops(&mut network, 2).len(), 1);
    assert!(hops(&mut network, 3).is_empty());
    assert_eq!(state(&mut network, 3), State::Established);
}

#[test]
fn the_same_prefix_from_two_peers_is_used_over_both_and_falls_back_to_one() {
    let mut network = Network::new();
    for index in 1..=3 {
        let speaker = Speaker::new(config(index, 65000 + u32::from(index)), index.into());
        network.add(index, speaker);
    }
    let now = network.now();
    for index in [2, 3] {
        let as_number = 65000 + u32::from(index);
        network.speaker(1).set_peer(toward(index, as_number), now);
        network.speaker(index).set_peer(toward(1, 65001), now);
        network
            .speaker(index)
            .set_announcements(announce(&["10.9.0.0/24"]), now);
    }
    network.run(20 * SECOND);
    assert_eq!(
        hops(&mut network, 1),
        BTreeMap::from([(net("10.9.0.0/24"), vec![address(2), address(3)])])
    );
    let now = network.now();
    network.speaker(2).withdraw_all(now);
    network.run(SECOND);
    assert_eq!(
        hops(&mut network, 1),
        BTreeMap::from([(net("10.9.0.0/24"), vec![address(3)])])
    );
}

#[test]
fn a_lost_connection_loses_its_routes_and_comes_back_within_seconds() {
    let mut network = pair(65001, 65002, |_| {});
    let now = network.now();
    network
        .speaker(2)
        .set_announcements(announce(&["10.2.0.0/24"]), now);
    network.run(20 * SECOND);
    network.reset_connections();
    network.run(Duration::from_millis(50));
    assert!(hops(&mut network, 1).is_empty());
    network.run(4 * SECOND);
    assert_eq!(hops(&mut network, 1).len(), 1);
    assert_eq!(network.open_connections(), 1);
}

#[test]
fn connections_lost_in_the_middle_of_a_collision_do_not_leave_both_sides_waiting() {
    for ms in 1..40 {
        let mut network = pair(65001, 65002, |_| {});
        network.run(Duration::from_millis(ms));
        network.reset_connections();
        network.run(20 * SECOND);
        assert_eq!(state(&mut network, 1), State::Established, "after {ms} ms");
    }
}

#[test]
fn a_passive_peer_waits_to_be_dialled() {
    let mut network = pair(65001, 65002, |_| {});
    let now = network.now();
    let mut passive = toward(2, 65002);
    passive.passive = true;
    let mut fresh = Speaker::new(config(1, 65001), 9);
    fresh.set_peer(passive, now);
    assert!(fresh.poll_connection().is_none());
    assert_eq!(fresh.peers(now)[0].state, State::Active);
    network.replace(1, fresh);
    network.run(60 * SECOND);
    assert_eq!(state(&mut network, 1), State::Established);
}

#[test]
fn a_wrong_as_is_refused_with_bad_peer_as_and_tried_again_ever_more_slowly() {
    let mut network = pair(65001, 65002, |_| {});
    let now = network.now();
    network.speaker(1).remove_peer("node2", now);
    network.speaker(1).set_peer(toward(2, 65999), now);
    network.run(600 * SECOND);
    let now = network.now();
    let one = &network.speaker(1).peers(now)[0];
    assert_ne!(one.state, State::Established);
    assert_eq!(one.last_error.as_deref(), Some("sent 2/2 Bad Peer AS"));
    assert!(
        one.counters.sent.total() < 120,
        "{} messages",
        one.counters.sent.total()
    );
    assert!(
        one.counters.sent.total() > 6,
        "{} messages",
        one.counters.sent.total()
    );
}

#[test]
fn as_zero_accepts_any_peer_and_shows_its_as() {
    let mut network = pair(65001, 65002, |peer| peer.remote_as = 0);
    network.run(20 * SECOND);
    let now = network.now();
    assert_eq!(network.speaker(1).peers(now)[0].remote_as, 65002);
}

#[test]
fn only_changes_of_the_open_reset_a_session() {
    let mut network = pair(65001, 65002, |_| {});
    let now = network.now();
    network
        .speaker(2)
        .set_announcements(announce(&["10.2.0.0/24"]), now);
    network.run(20 * SECOND);
    let now = network.now();
    let mut changed = toward(2, 65002);
    changed.import = ImportPolicy::Nothing;
    changed.connect_retry_time = 77 * SECOND;
    network.speaker(1).set_peer(changed.clone(), now);
    network.run(SECOND);
    assert_eq!(network.sessions_up(1), 1);
    assert!(hops(&mut network, 1).is_empty());
    let rejected = &network.speaker(1).adj_rib_in("node2")[0].paths[0];
    assert_eq!(rejected.rejection, Some(Rejection::NotImported));

    changed.import = ImportPolicy::All;
    changed.hold_time = 30 * SECOND;
    let now = network.now();
    network.speaker(1).set_peer(changed, now);
    network.run(30 * SECOND);
    assert_eq!(network.sessions_up(1), 2);
    assert_eq!(hops(&mut network, 1).len(), 1);
}

#[test]
fn own_prefixes_are_judged_again_when_they_change() {
    let mut network = pair(65001, 65002, |_| {});
    let now = network.now();
    network
        .speaker(2)
        .set_announcements(announce(&["10.9.0.0/24", "10.8.0.0/24"]), now);
    network.run(20 * SECOND);
    assert_eq!(hops(&mut network, 1).len(), 2);
    let now = network.now();
    network
        .speaker(1)
        .set_announcements(announce(&["10.9.0.0/24"]), now);
    network.run(SECOND);
    assert_eq!(
        hops(&mut network, 1).into_keys().collect::<Vec<_>>(),
        [net("10.8.0.0/24")]
    );
    let now = network.now();
    network.speaker(1).withdraw_all(now);
    network.run(SECOND);
    assert_eq!(hops(&mut network, 1).len(), 2);
}

#[test]
fn too_many_prefixes_end_the_session_with_cease() {
    let mut network = pair(65001, 65002, |peer| peer.max_prefixes = Some(2));
    let now = network.now();
    network.speaker(2).set_announcements(
        announce(&["10.2.0.0/24", "10.2.1.0/24", "10.2.2.0/24"]),
        now,
    );
    network.run(4 * SECOND);
    assert_ne!(state(&mut network, 1), State::Established);
    let now = network.now();
    assert_eq!(
        network.speaker(1).peers(now)[0].last_error.as_deref(),
        Some("sent 6/1 Maximum Number of Prefixes Reached")
    );
    assert!(hops(&mut network, 1).is_empty());
}

#[test]
fn a_shutdown_tells_its_text_and_stays_down() {
    let mut network = pair(65001, 65002, |_| {});
    network.run(20 * SECOND);
    let now = network.now();
    network.speaker(1).shutdown("node drains", now);
    network.run(Duration::from_millis(100));
    let now = network.now();
    let error = network.speaker(2).peers(now)[0].last_error.clone().unwrap();
    assert_eq!(
        error,
        "received 6/2 Administrative Shutdown (\"node drains\")"
    );
    network.run(60 * SECOND);
    assert_eq!(state(&mut network, 1), State::Idle);
    assert_eq!(network.open_connections(), 0);
}

#[test]
fn a_removed_peer_is_told_and_its_routes_are_gone() {
    let mut network = pair(65001, 65002, |_| {});
    let now = network.now();
    network
        .speaker(2)
        .set_announcements(announce(&["10.2.0.0/24"]), now);
    network.run(20 * SECOND);
    let now = network.now();
    network.speaker(1).set_peers(Vec::new(), now);
    network.run(SECOND);
    assert!(hops(&mut network, 1).is_empty());
    let now = network.now();
    assert!(network.speaker(1).peers(now).is_empty());
    let two = &network.speaker(2).peers(now)[0];
    assert_ne!(two.state, State::Established);
}

#[test]
fn a_refresh_brings_all_routes_again() {
    let mut network = pair(65001, 65002, |_| {});
    let now = network.now();
    network
        .speaker(2)
        .set_announcements(announce(&["10.2.0.0/24", "2001:db8:2::/64"]), now);
    network.run(20 * SECOND);
    let now = network.now();
    let before = network.speaker(1).peers(now)[0].counters.received.updates;
    assert!(
        network
            .speaker(1)
            .request_refresh("node2", Family::Ipv4Unicast, now)
    );
    network.run(SECOND);
    let now = network.now();
    let after = network.speaker(1).peers(now)[0].counters.received.updates;
    assert_eq!(after - before, 1, "the other family is not told again");
    assert_eq!(hops(&mut network, 1).len(), 2);
}

#[test]
fn ipv6_without_a_next_hop_is_withheld_and_said_so() {
    let mut network = pair(65001, 65002, |peer| peer.next_hop_v6 = None);
    let now = network.now();
    network
        .speaker(1)
        .set_announcements(announce(&["2001:db8:1::/64", "10.1.0.0/24"]), now);
    network.run(20 * SECOND);
    assert_eq!(hops(&mut network, 2).len(), 1);
    let now = network.now();
    let families = &network.speaker(1).peers(now)[0].families;
    assert_eq!(families[&Family::Ipv6Unicast].without_next_hop, 1);
    assert_eq!(families[&Family::Ipv4Unicast].advertised, 1);
}

#[test]
fn snapshots_are_serialisable() {
    let mut network = pair(65001, 65002, |_| {});
    let now = network.now();
    network
        .speaker(2)
        .set_announcements(announce(&["10.2.0.0/24"]), now);
    network.run(20 * SECOND);
    let now = network.now();
    let peers = network.speaker(1).peers(now);
    let text = serde_json::to_string(&peers).unwrap();
    assert_eq!(
        serde_json::from_str::<Vec<PeerSnapshot>>(&text).unwrap(),
        peers
    );
    let routes = network.speaker(1).loc_rib();
    let text = serde_json::to_string(&routes).unwrap();
    assert_eq!(
        serde_json::from_str::<Vec<RouteSnapshot>>(&text).unwrap(),
        routes
    );
}
