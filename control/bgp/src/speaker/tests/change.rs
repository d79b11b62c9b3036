//! What a change of a peer's configuration does to a running session.

use super::*;
use crate::config::ExportRule;

#[test]
fn a_lowered_limit_of_prefixes_counts_at_once() {
    let mut network = pair(65001, 65002, |_| {});
    let now = network.now();
    network
        .speaker(2)
        .set_announcements(announce(&["10.2.0.0/24", "10.2.1.0/24"]), now);
    network.run(20 * SECOND);
    let mut changed = toward(2, 65002);
    changed.max_prefixes = Some(1);
    let now = network.now();
    network.speaker(1).set_peer(changed, now);
    assert_ne!(state(&mut network, 1), State::Established);
    assert!(hops(&mut network, 1).is_empty());
}

#[test]
fn export_rules_mark_what_they_name_and_their_change_resets_nothing() {
    for (remote_as, local_pref) in [(65002, None), (65001, Some(200))] {
        let mut network = pair(65001, remote_as, |_| {});
        let now = network.now();
        network
            .speaker(1)
            .set_announcements(announce(&["10.1.0.0/24", "10.1.1.0/24"]), now);
        network.run(20 * SECOND);
        let rule = |community, local_pref| ExportRule {
            prefixes: [net("10.1.0.0/24")].into(),
            communities: [community].into(),
            large_communities: BTreeSet::new(),
            local_pref: Some(local_pref),
        };
        let mut marked = toward(2, remote_as);
        marked.export = vec![rule(8, 50), rule(7, 200)];
        let now = network.now();
        network.speaker(1).set_peer(marked, now);
        network.run(SECOND);
        assert_eq!(network.sessions_up(1), 1);
        let heard: BTreeMap<_, _> = network
            .speaker(2)
            .adj_rib_in("node1")
            .into_iter()
            .map(|mut route| (route.prefix, route.paths.remove(0).attributes))
            .collect();
        assert_eq!(heard[&net("10.1.0.0/24")].communities, [7, 8]);
        assert_eq!(heard[&net("10.1.0.0/24")].local_pref, local_pref);
        assert!(heard[&net("10.1.1.0/24")].communities.is_empty());
    }
}

#[test]
fn a_peer_that_is_shut_down_is_told_why_and_comes_back_when_it_is_not() {
    let mut network = pair(65001, 65002, |_| {});
    network.run(20 * SECOND);
    let mut closed = toward(2, 65002);
    closed.shutdown = Some("line card swap".to_owned());
    let now = network.now();
    network.speaker(1).set_peer(closed, now);
    network.run(20 * SECOND);
    assert_eq!(state(&mut network, 1), State::Idle);
    let now = network.now();
    let error = |network: &mut Network, node| {
        let peer = network.speaker(node).peers(now).remove(0);
        peer.last_error.unwrap()
    };
    assert_eq!(
        error(&mut network, 1),
        "shut down by configuration (\"line card swap\")"
    );
    assert!(network.events(2).iter().any(|event| matches!(event,
        Event::PeerDown { reason: DownReason::Received(told), .. }
            if told.text().as_deref() == Some("line card swap"))));

    network.speaker(1).set_peer(toward(2, 65002), now);
    network.run(20 * SECOND);
    assert_eq!(state(&mut network, 1), State::Established);
}

#[test]
fn paths_that_are_about_to_go_say_so_and_lose_against_any_other() {
    // Nodes 2 and 3 of another AS tell node 1 of the same prefix.
    let mut network = Network::new();
    for (index, local_as) in [(1, 65001), (2, 65002), (3, 65002)] {
        network.add(index, Speaker::new(config(index, local_as), index.into()));
    }
    let now = network.now();
    for other in [2, 3] {
        network.speaker(1).set_peer(toward(other, 65002), now);
        network.speaker(other).set_peer(toward(1, 65001), now);
        network
            .speaker(other)
            .set_announcements(announce(&["10.2.0.0/24"]), now);
    }
    network.run(20 * SECOND);
    assert_eq!(hops(&mut network, 1)[&net("10.2.0.0/24")].len(), 2);

    let mut draining = toward(1, 65001);
    draining.graceful_shutdown = true;
    let now = network.now();
    network.speaker(2).set_peer(draining, now);
    network.run(5 * SECOND);
    assert_eq!(hops(&mut network, 1)[&net("10.2.0.0/24")], [address(3)]);
    let told = &network.speaker(1).adj_rib_in("node2")[0].paths[0];
    assert_eq!(told.attributes.communities, [0xFFFF_0000]);
    assert_eq!(network.sessions_up(1), 2, "no session is reset");

    let now = network.now();
    network.speaker(2).set_peer(toward(1, 65001), now);
    network.run(5 * SECOND);
    assert_eq!(hops(&mut network, 1)[&net("10.2.0.0/24")].len(), 2);
}

#[test]
fn a_guarded_peer_sends_255_and_takes_what_has_come_no_farther() {
    for (remote_as, hops, ttl, least_ttl) in [
        (65002, None, Some(1), None),
        (65001, None, None, None),
        (65002, Some(1), Some(255), Some(255)),
        (65001, Some(3), Some(255), Some(253)),
    ] {
        let mut speaker = Speaker::new(config(1, 65001), 1);
        let mut peer = toward(2, remote_as);
        peer.ttl_security = hops;
        speaker.set_peer(peer, network::origin());
        let Some(ConnectionRequest::Connect { distance, .. }) = speaker.poll_connection() else {
            panic!("it does not dial")
        };
        assert_eq!(distance, Distance { ttl, least_ttl });
    }
}
