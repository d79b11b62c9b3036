//! Graceful restart: whose routes stay, how long, and what ends it (RFC 4724, RFC 8538).

use super::*;
use crate::config::GracefulRestart;

pub(super) fn restartable(peer: &mut PeerConfig) {
    peer.graceful_restart = Some(GracefulRestart {
        restart_time: 30 * SECOND,
        restarting: false,
        forwarding_preserved: true,
    });
}

fn restarted(node: u8, peer: u8) -> Speaker {
    let mut speaker = Speaker::new(config(node, 65000 + u32::from(node)), 77);
    let mut peer = toward(peer, 65000 + u32::from(peer));
    restartable(&mut peer);
    if let Some(restart) = &mut peer.graceful_restart {
        restart.restarting = true;
    }
    speaker.set_peer(peer, network::origin());
    speaker
}

#[test]
fn routes_of_a_restarting_peer_stay_until_its_end_of_rib() {
    let mut network = pair(65001, 65002, restartable);
    let now = network.now();
    network
        .speaker(2)
        .set_announcements(announce(&["10.2.0.0/24", "10.2.1.0/24"]), now);
    network.run(20 * SECOND);
    network.reset_connections();
    let fresh = restarted(2, 1);
    network.replace(2, fresh);
    network.run(10 * SECOND);
    assert_eq!(state(&mut network, 1), State::Established);
    assert_eq!(hops(&mut network, 1).len(), 2, "kept until confirmed");
    assert!(
        network
            .speaker(1)
            .loc_rib()
            .iter()
            .all(|route| route.paths[0].stale)
    );
    let now = network.now();
    network
        .speaker(2)
        .set_announcements(announce(&["10.2.1.0/24", "10.2.2.0/24"]), now);
    network.run(SECOND);
    assert_eq!(
        hops(&mut network, 1).into_keys().collect::<Vec<_>>(),
        [net("10.2.1.0/24"), net("10.2.2.0/24")]
    );
    assert!(
        network
            .speaker(1)
            .loc_rib()
            .iter()
            .all(|route| !route.paths[0].stale)
    );
}

#[test]
fn routes_of_a_peer_that_does_not_come_back_go_after_its_restart_time() {
    let mut network = pair(65001, 65002, restartable);
    let now = network.now();
    network
        .speaker(2)
        .set_announcements(announce(&["10.2.0.0/24"]), now);
    network.run(20 * SECOND);
    network.reset_connections();
    network.run(Duration::from_millis(10));
    network.cut();
    network.run(29 * SECOND);
    assert_eq!(hops(&mut network, 1).len(), 1);
    network.run(2 * SECOND);
    assert!(hops(&mut network, 1).is_empty());
}

#[test]
fn a_prefix_that_became_ours_is_not_used_though_its_peer_restarts() {
    let mut network = pair(65001, 65002, restartable);
    let now = network.now();
    network
        .speaker(2)
        .set_announcements(announce(&["10.2.0.0/24", "10.2.1.0/24"]), now);
    network.run(20 * SECOND);
    network.reset_connections();
    network.run(Duration::from_millis(10));
    network.cut();
    let now = network.now();
    network
        .speaker(1)
        .set_announcements(announce(&["10.2.1.0/24"]), now);
    network.run(SECOND);
    assert_eq!(
        hops(&mut network, 1).into_keys().collect::<Vec<_>>(),
        [net("10.2.0.0/24")]
    );
}

#[test]
fn a_restart_without_preserved_forwarding_drops_the_routes_at_once() {
    let mut network = pair(65001, 65002, restartable);
    let now = network.now();
    network
        .speaker(2)
        .set_announcements(announce(&["10.2.0.0/24"]), now);
    network.run(20 * SECOND);
    network.reset_connections();
    let mut fresh = Speaker::new(config(2, 65002), 78);
    fresh.set_peer(toward(1, 65001), network.now());
    network.replace(2, fresh);
    network.run(10 * SECOND);
    assert_eq!(state(&mut network, 1), State::Established);
    assert!(hops(&mut network, 1).is_empty());
}

#[test]
fn a_graceful_peer_that_vanished_unseen_may_replace_its_session() {
    let mut network = pair(65001, 65002, restartable);
    let now = network.now();
    network
        .speaker(2)
        .set_announcements(announce(&["10.2.0.0/24"]), now);
    network.run(20 * SECOND);
    // The node lost power: no FIN reaches node 1.
    network.forget_connections_of(2);
    let mut fresh = restarted(2, 1);
    fresh.set_announcements(announce(&["10.2.0.0/24"]), network::origin());
    network.replace(2, fresh);
    network.run(3 * SECOND);
    assert_eq!(state(&mut network, 1), State::Established);
    assert_eq!(network.sessions_up(1), 2);
    assert_eq!(hops(&mut network, 1).len(), 1);
}

#[test]
fn another_router_at_the_address_does_not_inherit_routes() {
    let mut network = pair(65001, 65002, restartable);
    let now = network.now();
    network
        .speaker(2)
        .set_announcements(announce(&["10.2.0.0/24"]), now);
    network.run(20 * SECOND);
    network.reset_connections();
    let mut other = config(2, 65002);
    other.router_id = Ipv4Addr::new(10, 255, 0, 99);
    let mut fresh = Speaker::new(other, 79);
    let mut peer = toward(1, 65001);
    restartable(&mut peer);
    fresh.set_peer(peer, network.now());
    network.replace(2, fresh);
    network.run(10 * SECOND);
    assert_eq!(state(&mut network, 1), State::Established);
    assert!(hops(&mut network, 1).is_empty());
}

#[test]
fn routes_kept_for_a_peer_go_when_its_configuration_names_another() {
    let mut network = pair(65001, 65002, restartable);
    let now = network.now();
    network
        .speaker(2)
        .set_announcements(announce(&["10.2.0.0/24"]), now);
    network.run(20 * SECOND);
    network.reset_connections();
    network.run(Duration::from_millis(10));
    network.cut();
    assert_eq!(hops(&mut network, 1).len(), 1);
    let mut changed = toward(2, 65003);
    restartable(&mut changed);
    let now = network.now();
    network.speaker(1).set_peer(changed, now);
    assert!(hops(&mut network, 1).is_empty());
}

#[test]
fn what_was_withdrawn_while_the_session_was_down_is_gone_when_it_is_back() {
    let mut network = pair(65001, 65002, |_| {});
    let now = network.now();
    network
        .speaker(2)
        .set_announcements(announce(&["10.2.0.0/24", "10.2.1.0/24"]), now);
    network.run(20 * SECOND);
    network.reset_connections();
    network.run(Duration::from_millis(10));
    let now = network.now();
    network
        .speaker(2)
        .set_announcements(announce(&["10.2.1.0/24"]), now);
    network.run(20 * SECOND);
    assert_eq!(network.sessions_up(1), 2);
    assert_eq!(
        hops(&mut network, 1).into_keys().collect::<Vec<_>>(),
        [net("10.2.1.0/24")]
    );
}

/// Two restartable nodes that know each other's routes: 10.1.0.0/24 of node 1, 10.2.0.0/24 of node 2.
fn with_routes() -> Network {
    let mut network = pair(65001, 65002, restartable);
    let now = network.now();
    for (node, prefix) in [(1, "10.1.0.0/24"), (2, "10.2.0.0/24")] {
        let speaker = network.speaker(node);
        speaker.set_announcements(announce(&[prefix]), now);
    }
    network.run(20 * SECOND);
    assert_eq!(hops(&mut network, 1).len() + hops(&mut network, 2).len(), 2);
    network
}

fn last_notification(network: &mut Network, node: u8) -> Notification {
    let now = network.now();
    let peer = network.speaker(node).peers(now).remove(0);
    peer.last_notification.unwrap().notification
}

#[test]
fn a_notification_keeps_the_routes_of_both_sides() {
    let mut network = with_routes();
    let now = network.now();
    let mut changed = toward(2, 65002);
    restartable(&mut changed);
    changed.hold_time = 12 * SECOND;
    network.speaker(1).set_peer(changed, now);
    network.run(Duration::from_millis(20));
    assert_eq!(
        last_notification(&mut network, 2),
        Notification::CONFIGURATION_CHANGED
    );
    for (node, prefix) in [(1, "10.2.0.0/24"), (2, "10.1.0.0/24")] {
        let is_kept = |event: &Event| matches!(event, Event::RoutesKept { .. });
        assert!(network.events(node).iter().any(is_kept));
        let mut kept = hops(&mut network, node).into_keys();
        assert_eq!(kept.next(), Some(net(prefix)));
    }
    network.run(20 * SECOND);
    for node in [1, 2] {
        assert_eq!(network.sessions_up(node), 2);
        let rib = network.speaker(node).loc_rib();
        assert!(rib.iter().all(|route| !route.paths[0].stale), "confirmed");
    }
}

#[test]
fn silence_for_the_hold_time_keeps_the_routes_for_the_restart_time() {
    let mut network = with_routes();
    network.cut();
    network.run(10 * SECOND);
    assert!(state(&mut network, 1) < State::Established);
    assert_eq!(
        last_notification(&mut network, 1),
        Notification::HOLD_TIMER_EXPIRED
    );
    assert_eq!(hops(&mut network, 1).len(), 1);
    network.run(30 * SECOND);
    assert!(hops(&mut network, 1).is_empty());
}

#[test]
fn who_is_not_coming_back_says_so_by_a_hard_reset() {
    type End = fn(&mut Speaker, Instant);
    let ends: [(End, Notification); 3] = [
        (
            |speaker, now| speaker.remove_peer("node2", now),
            Notification::PEER_DECONFIGURED,
        ),
        (
            |speaker, now| {
                let mut peer = toward(2, 65002);
                restartable(&mut peer);
                peer.shutdown = Some("rack moves".to_owned());
                speaker.set_peer(peer, now);
            },
            Notification::administrative_shutdown("rack moves"),
        ),
        (
            |speaker, now| {
                let mut peer = toward(2, 65002);
                restartable(&mut peer);
                peer.max_prefixes = Some(0);
                speaker.set_peer(peer, now);
            },
            Notification::MAX_PREFIXES,
        ),
    ];
    for (end, why) in ends {
        let mut network = with_routes();
        let now = network.now();
        end(network.speaker(1), now);
        network.run(Duration::from_millis(20));
        assert_eq!(
            last_notification(&mut network, 2),
            Notification::hard_reset(&why)
        );
        assert!(hops(&mut network, 1).is_empty());
        assert!(hops(&mut network, 2).is_empty());
    }
}

#[test]
fn several_restarts_in_a_row_keep_what_is_stale_and_not_for_ever() {
    let mut network = with_routes();
    // It comes back and goes again before it said anything.
    for seed in 0..40 {
        network.reset_connections();
        let mut silent = restarted(2, 1);
        silent.shared.jitter = Jitter::from_seed(seed);
        network.replace(2, silent);
        network.run(10 * SECOND);
        let seconds = 10 * (seed + 1);
        // 30 s of restart time, and 6 minutes until its End-of-RIB.
        assert_eq!(
            hops(&mut network, 1).len(),
            usize::from(seconds <= 390),
            "{seconds}"
        );
    }
}

/// Restartable, and then for two minutes.
fn long_lived(peer: &mut PeerConfig) {
    restartable(peer);
    peer.long_lived_stale_time = Some(120 * SECOND);
}

const NO_LLGR: u32 = 0xFFFF_0007;
const LLGR_STALE: u32 = 0xFFFF_0006;

/// Node 2 told node 1 10.2.0.0/24, and 10.2.1.0/24 with NO_LLGR, and is cut off since.
fn long_away() -> Network {
    let mut network = pair(65001, 65002, long_lived);
    let mut announcements = announce(&["10.2.0.0/24", "10.2.1.0/24"]);
    if let Some(announcement) = announcements.get_mut(&net("10.2.1.0/24")) {
        announcement.communities = [NO_LLGR].into();
    }
    let now = network.now();
    network.speaker(2).set_announcements(announcements, now);
    network.run(20 * SECOND);
    network.reset_connections();
    network.run(Duration::from_millis(10));
    network.cut();
    network
}

fn kept(network: &mut Network) -> Vec<IpNetwork> {
    hops(network, 1).into_keys().collect()
}

#[test]
fn routes_of_a_peer_that_is_long_away_stay_marked_but_those_that_shall_not() {
    let mut network = long_away();
    network.run(29 * SECOND);
    assert_eq!(kept(&mut network).len(), 2);
    network.run(2 * SECOND);
    assert_eq!(kept(&mut network), [net("10.2.0.0/24")]);
    let path = &network.speaker(1).loc_rib()[0].paths[0];
    assert_eq!(path.attributes.communities, [LLGR_STALE]);
    assert!(path.stale);
    let outlive = network.events(1).iter().filter_map(|event| {
        if let Event::RoutesOutlive { dropped, .. } = event {
            Some(*dropped)
        } else {
            None
        }
    });
    assert_eq!(outlive.collect::<Vec<_>>(), [1, 0], "IPv4, IPv6");
    network.run(118 * SECOND);
    assert_eq!(kept(&mut network).len(), 1);
    network.run(3 * SECOND);
    assert!(kept(&mut network).is_empty());
}

#[test]
fn a_peer_that_is_back_after_long_confirms_its_routes_and_the_mark_is_gone() {
    let mut network = long_away();
    network.run(60 * SECOND);
    network.heal();
    let mut back = Speaker::new(config(2, 65002), 80);
    let mut peer = toward(1, 65001);
    long_lived(&mut peer);
    back.set_peer(peer, network.now());
    network.replace(2, back);
    network.run(10 * SECOND);
    assert_eq!(state(&mut network, 1), State::Established);
    let path = &network.speaker(1).loc_rib()[0].paths[0];
    assert_eq!(
        path.attributes.communities,
        [LLGR_STALE],
        "not confirmed yet"
    );
    let now = network.now();
    network
        .speaker(2)
        .set_announcements(announce(&["10.2.0.0/24"]), now);
    network.run(SECOND);
    let path = &network.speaker(1).loc_rib()[0].paths[0];
    assert!(path.attributes.communities.is_empty() && !path.stale);
}

#[test]
fn a_peer_that_is_back_and_did_not_preserve_its_forwarding_loses_what_was_kept() {
    let mut network = long_away();
    network.run(60 * SECOND);
    assert_eq!(kept(&mut network).len(), 1);
    network.heal();
    let mut back = Speaker::new(config(2, 65002), 80);
    let mut peer = toward(1, 65001);
    long_lived(&mut peer);
    if let Some(restart) = &mut peer.graceful_restart {
        restart.forwarding_preserved = false;
    }
    back.set_peer(peer, network.now());
    network.replace(2, back);
    network.run(10 * SECOND);
    assert_eq!(state(&mut network, 1), State::Established);
    assert!(kept(&mut network).is_empty());
}

#[test]
fn the_shorter_of_both_long_lived_times_counts_and_one_side_alone_means_none() {
    for (ours, theirs, lasts) in [
        (Some(40), Some(900), 40),
        (Some(900), Some(40), 40),
        (None, Some(40), 0),
        (Some(40), None, 0),
    ] {
        let mut network = pair(65001, 65002, |peer| {
            restartable(peer);
            // Node 2's word is in its configuration of node 1.
            let seconds = if peer.name == "node2" { ours } else { theirs };
            peer.long_lived_stale_time = seconds.map(Duration::from_secs);
        });
        let now = network.now();
        network
            .speaker(2)
            .set_announcements(announce(&["10.2.0.0/24"]), now);
        network.run(20 * SECOND);
        network.reset_connections();
        network.run(Duration::from_millis(10));
        network.cut();
        network.run(31 * SECOND);
        assert_eq!(
            kept(&mut network).len(),
            usize::from(lasts > 0),
            "{ours:?} {theirs:?}"
        );
        network.run(Duration::from_secs(lasts));
        assert!(kept(&mut network).is_empty(), "{ours:?} {theirs:?}");
    }
}

#[test]
fn marked_paths_are_passed_on_to_who_knows_the_mark_only() {
    for knows in [true, false] {
        let mut network = pair(65001, 65002, long_lived);
        network.add(3, Speaker::new(config(3, 65003), 3));
        let now = network.now();
        for (node, other) in [(1, 3), (3, 1)] {
            let mut peer = toward(other, 65000 + u32::from(other));
            if knows {
                long_lived(&mut peer);
            }
            peer.transit = true;
            network.speaker(node).set_peer(peer, now);
        }
        let mut marked = announce(&["10.2.0.0/24", "10.2.1.0/24"]);
        if let Some(announcement) = marked.get_mut(&net("10.2.1.0/24")) {
            announcement.communities = [LLGR_STALE].into();
        }
        network.speaker(2).set_announcements(marked, now);
        network.run(20 * SECOND);
        assert_eq!(hops(&mut network, 3).len(), 1 + usize::from(knows));
    }
}
