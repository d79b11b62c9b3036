//! Routes of one peer that another one is told.

use super::*;
use crate::wire::Attributes;

const ALL: [&str; 3] = ["10.2.0.0/24", "10.2.1.0/24", "2001:db8:2::/64"];

/// Node 2 announces to node 1, which passes on to node 3.
fn chain(ases: [u32; 3]) -> Network {
    let mut network = Network::new();
    let now = network.now();
    for (index, local_as) in (1..).zip(ases) {
        let mut speaker = Speaker::new(config(index, local_as), index.into());
        speaker.set_announcements(Announcements::new(), now);
        network.add(index, speaker);
    }
    let mut three = toward(3, ases[2]);
    three.transit = true;
    for (node, peer) in [
        (1, toward(2, ases[1])),
        (1, three),
        (2, toward(1, ases[0])),
        (3, toward(1, ases[0])),
    ] {
        network.speaker(node).set_peer(peer, now);
    }
    network.speaker(2).set_announcements(announce(&ALL), now);
    network
}

fn heard(network: &mut Network, node: u8) -> BTreeMap<IpNetwork, Attributes> {
    let routes = network.speaker(node).adj_rib_in("node1");
    let mut routes: BTreeMap<_, _> = routes
        .into_iter()
        .map(|mut route| (route.prefix, route.paths.remove(0).attributes))
        .collect();
    routes.retain(|prefix, _| !prefix.to_string().starts_with("10.1."));
    routes
}

fn prefixes(network: &mut Network, node: u8) -> Vec<String> {
    heard(network, node)
        .keys()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn what_one_peer_tells_another_one_hears_and_its_end() {
    let mut network = chain([65001, 65002, 65003]);
    network.run(20 * SECOND);
    let told = heard(&mut network, 3);
    assert_eq!(prefixes(&mut network, 3), ALL);
    let v4 = &told[&net("10.2.0.0/24")];
    assert_eq!(
        (v4.as_path.as_slice(), v4.next_hop),
        (&[65001, 65002][..], address(1))
    );
    assert_eq!(told[&net("2001:db8:2::/64")].as_path, [65001, 65002]);
    assert_eq!(prefixes(&mut network, 2), [""; 0], "it is not told its own");
    let shown: Vec<_> = network.speaker(1).adj_rib_out("node3");
    assert_eq!(shown.len(), 3);
    assert_eq!(shown[0].attributes, *v4);
    for family in Family::ALL {
        assert!(network.events(3).iter().any(|event| matches!(event,
            Event::EndOfRib { family: of, .. } if *of == family)));
    }

    let now = network.now();
    network
        .speaker(2)
        .set_announcements(announce(&ALL[1..]), now);
    network.run(SECOND);
    assert_eq!(prefixes(&mut network, 3), ALL[1..]);
    network.speaker(1).remove_peer("node2", now);
    network.run(SECOND);
    assert_eq!(prefixes(&mut network, 3), [""; 0]);
    assert_eq!(network.sessions_up(3), 1);
}

#[test]
fn it_is_switched_on_and_off_without_a_reset_and_told_again_on_request() {
    let mut network = chain([65001, 65002, 65003]);
    network.run(20 * SECOND);
    let now = network.now();
    network.speaker(1).set_peer(toward(3, 65003), now);
    network.run(SECOND);
    assert_eq!(prefixes(&mut network, 3), [""; 0]);
    let mut three = toward(3, 65003);
    three.transit = true;
    network.speaker(1).set_peer(three, now);
    network.run(SECOND);
    assert_eq!(prefixes(&mut network, 3), ALL);

    let sent = |network: &mut Network| {
        let now = network.now();
        let peers = network.speaker(1).peers(now);
        peers[1].counters.sent.updates
    };
    let before = sent(&mut network);
    let now = network.now();
    assert!(
        network
            .speaker(3)
            .request_refresh("node1", Family::Ipv4Unicast, now)
    );
    network.run(SECOND);
    assert_eq!(sent(&mut network), before + 1);
    assert_eq!(network.sessions_up(3), 1);
}

#[test]
fn communities_and_inner_peers_hold_routes_back() {
    let mut network = chain([65001, 65002, 65003]);
    let now = network.now();
    let mut marked = announce(&ALL);
    for (prefix, community) in [(ALL[0], 0xFFFF_FF01), (ALL[1], 0xFFFF_FF02)] {
        let announcement = marked.get_mut(&net(prefix)).unwrap();
        announcement.communities.insert(community);
    }
    network.speaker(2).set_announcements(marked, now);
    network.run(20 * SECOND);
    assert_eq!(prefixes(&mut network, 3), ALL[2..]);

    // From within to without, but not from within to within.
    for (ases, expected) in [
        ([65001, 65001, 65001], 0),
        ([65001, 65001, 65003], 3),
        ([65001, 65002, 65001], 3),
    ] {
        let mut network = chain(ases);
        network.run(20 * SECOND);
        assert_eq!(prefixes(&mut network, 3).len(), expected, "{ases:?}");
    }
}

#[test]
fn our_own_announcement_goes_before_what_is_passed_on() {
    let mut network = chain([65001, 65002, 65003]);
    network.run(20 * SECOND);
    let now = network.now();
    network
        .speaker(1)
        .set_announcements(announce(&ALL[..1]), now);
    network.run(SECOND);
    assert_eq!(heard(&mut network, 3)[&net(ALL[0])].as_path, [65001]);
    assert_eq!(prefixes(&mut network, 3), ALL);
    network
        .speaker(1)
        .set_announcements(Announcements::new(), now);
    network.run(SECOND);
    assert_eq!(heard(&mut network, 3)[&net(ALL[0])].as_path, [65001, 65002]);
}

#[test]
fn a_better_path_is_told_in_the_place_of_the_one_before() {
    let mut network = chain([65001, 65002, 65003]);
    network.run(20 * SECOND);
    let now = network.now();
    let mut longer = announce(&ALL);
    longer.get_mut(&net(ALL[0])).unwrap().prepend = 2;
    network.speaker(2).set_announcements(longer, now);
    network.run(SECOND);
    assert_eq!(
        heard(&mut network, 3)[&net(ALL[0])].as_path,
        [65001, 65002, 65002, 65002]
    );
    assert_eq!(hops(&mut network, 1).len(), 3);
}
