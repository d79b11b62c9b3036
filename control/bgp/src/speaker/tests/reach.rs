//! What BFD does to sessions and routes.

use super::restart::restartable;
use super::*;
use crate::bfd::{Diagnostic, Hops, Key, Standing, Timing};
use crate::config::BfdConfig;

fn watched(peer: &mut PeerConfig) {
    peer.bfd = Some(BfdConfig {
        timing: Timing::default(),
        hops: Hops::Single,
        strict: false,
    });
}

fn strict(peer: &mut PeerConfig) {
    watched(peer);
    if let Some(bfd) = &mut peer.bfd {
        bfd.strict = true;
    }
}

const fn key(node: u8) -> Key {
    Key {
        peer: IpAddr::V4(Ipv4Addr::new(192, 0, 2, node)),
        local: None,
        hops: Hops::Single,
    }
}

const UP: Standing = Standing {
    state: bfd::State::Up,
    ..Standing::UNHEARD
};
const FAILED: Standing = Standing {
    diagnostic: Diagnostic::TIME_EXPIRED,
    ..Standing::UNHEARD
};
const LEFT: Standing = Standing {
    diagnostic: Diagnostic::NEIGHBOR_DOWN,
    peer_admin_down: true,
    ..Standing::UNHEARD
};

fn tell(network: &mut Network, node: u8, peer: u8, standing: Standing) {
    let now = network.now();
    network.speaker(node).handle_bfd(&key(peer), standing, now);
}

fn running(change: impl Fn(&mut PeerConfig)) -> Network {
    let mut network = pair(65001, 65002, change);
    let now = network.now();
    network
        .speaker(2)
        .set_announcements(announce(&["10.2.0.0/24"]), now);
    network.run(20 * SECOND);
    network
}

fn last_error(network: &mut Network, node: u8) -> String {
    let now = network.now();
    network.speaker(node).peers(now)[0]
        .last_error
        .clone()
        .unwrap_or_default()
}

#[test]
fn a_session_comes_up_without_bfd_and_ends_with_its_routes_when_bfd_fails() {
    let mut network = running(|peer| {
        watched(peer);
        restartable(peer);
    });
    assert_eq!(state(&mut network, 1), State::Established);
    // Down from the beginning is no failure.
    tell(&mut network, 1, 2, FAILED);
    assert_eq!(state(&mut network, 1), State::Established);

    tell(&mut network, 1, 2, UP);
    tell(&mut network, 1, 2, FAILED);
    // At once, and no graceful restart keeps what is not reached.
    assert!(hops(&mut network, 1).is_empty());
    assert_ne!(state(&mut network, 1), State::Established);
    assert_eq!(
        last_error(&mut network, 1),
        "sent 6/9 Hard Reset: 6/10 BFD Down"
    );
    network.run(SECOND / 2);
    assert_eq!(
        last_error(&mut network, 2),
        "received 6/9 Hard Reset: 6/10 BFD Down"
    );
    // It is sought again, without waiting for BFD.
    network.run(10 * SECOND);
    assert_eq!(state(&mut network, 1), State::Established);
    assert_eq!(network.sessions_up(1), 2);
}

#[test]
fn a_peer_that_takes_no_part_in_bfd_any_more_has_not_failed() {
    let mut network = running(watched);
    tell(&mut network, 1, 2, UP);
    tell(&mut network, 1, 2, LEFT);
    network.run(5 * SECOND);
    assert_eq!(state(&mut network, 1), State::Established);
    assert_eq!(network.sessions_up(1), 1);
    assert_eq!(hops(&mut network, 1).len(), 1);
}

#[test]
fn a_strict_peer_waits_for_bfd_each_time() {
    let mut network = running(strict);
    assert_eq!(state(&mut network, 1), State::Idle);
    let now = network.now();
    assert!(network.speaker(1).peers(now)[0].waits_for_bfd);
    tell(&mut network, 1, 2, UP);
    network.run(5 * SECOND);
    // The other end waits as well, and does not let us in.
    assert_ne!(state(&mut network, 1), State::Established);
    tell(&mut network, 2, 1, UP);
    network.run(15 * SECOND);
    assert_eq!(state(&mut network, 1), State::Established);
    tell(&mut network, 1, 2, FAILED);
    network.run(15 * SECOND);
    assert_eq!(state(&mut network, 1), State::Idle);

    // Without BFD nobody waits for it.
    let now = network.now();
    network.speaker(1).set_peer(toward(2, 65002), now);
    network.run(15 * SECOND);
    assert_eq!(state(&mut network, 1), State::Established);
}

#[test]
fn routes_kept_over_a_restart_go_only_if_bfd_does_not_depend_on_what_restarts() {
    for (independent, kept) in [(false, 1), (true, 0)] {
        let mut network = running(|peer| {
            watched(peer);
            restartable(peer);
        });
        let up = Standing { independent, ..UP };
        tell(&mut network, 1, 2, up);
        network.reset_connections();
        network.run(Duration::from_millis(10));
        network.cut();
        assert_eq!(hops(&mut network, 1).len(), 1);
        tell(
            &mut network,
            1,
            2,
            Standing {
                independent,
                ..FAILED
            },
        );
        assert_eq!(
            hops(&mut network, 1).len(),
            kept,
            "independent: {independent}"
        );
    }
}

#[test]
fn another_bfd_timing_or_strictness_resets_nothing() {
    let mut network = running(watched);
    tell(&mut network, 1, 2, UP);
    let mut peer = toward(2, 65002);
    strict(&mut peer);
    if let Some(bfd) = &mut peer.bfd {
        bfd.timing.multiplier = 9;
    }
    let now = network.now();
    network.speaker(1).set_peer(peer, now);
    network.run(20 * SECOND);
    assert_eq!(state(&mut network, 1), State::Established);
    assert_eq!(network.sessions_up(1), 1);
}

#[test]
fn no_path_is_used_by_a_next_hop_that_bfd_lost_whoever_told_it() {
    // Nodes 2 and 3 tell node 1 of the same prefix; node 3 by way of node 2's address.
    let mut network = Network::new();
    for index in 1..=3 {
        network.add(index, Speaker::new(config(index, 65001), index.into()));
    }
    let now = network.now();
    for other in [2, 3] {
        let mut peer = toward(other, 65001);
        watched(&mut peer);
        network.speaker(1).set_peer(peer, now);
        let mut one = toward(1, 65001);
        one.next_hop_v4 = Some(Ipv4Addr::new(192, 0, 2, 2));
        network.speaker(other).set_peer(one, now);
    }
    network
        .speaker(3)
        .set_announcements(announce(&["10.3.0.0/24"]), now);
    network.run(20 * SECOND);
    let by_two = BTreeMap::from([(net("10.3.0.0/24"), vec![address(2)])]);
    assert_eq!(hops(&mut network, 1), by_two);
    tell(&mut network, 1, 2, UP);
    tell(&mut network, 1, 2, FAILED);
    assert!(hops(&mut network, 1).is_empty());
    let path = &network.speaker(1).adj_rib_in("node3")[0].paths[0];
    assert_eq!(path.rejection, Some(Rejection::NextHopDown));
    tell(&mut network, 1, 2, UP);
    assert_eq!(hops(&mut network, 1), by_two);
    // A peer that is not watched any more is not known to be lost.
    tell(&mut network, 1, 2, FAILED);
    assert!(hops(&mut network, 1).is_empty());
    let now = network.now();
    network.speaker(1).remove_peer("node2", now);
    assert_eq!(hops(&mut network, 1), by_two);
}
