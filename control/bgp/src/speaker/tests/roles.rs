//! Who may hear of what only customers may (RFC 9234 §5): node 1 hears of node 2, and passes it on to node 3.

use super::*;
use crate::wire::Role;

/// What was heard of a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    Nothing,
    Unmarked,
    /// This AS said that it is for customers only.
    MarkedBy(u32),
}

use Heard::{MarkedBy, Nothing, Unmarked};

/// What node 3 knows of 10.2.0.0/24, which node 2 originates, by node 1's roles towards both, and of 10.1.0.0/24, which
/// node 1 does.
fn heard(toward_2: Option<Role>, toward_3: Option<Role>) -> [Heard; 2] {
    let mut network = Network::new();
    let now = network.now();
    for node in 1..=3 {
        let as_of = 65000 + u32::from(node);
        network.add(node, Speaker::new(config(node, as_of), node.into()));
    }
    for (node, role) in [(2, toward_2), (3, toward_3)] {
        let mut it = toward(node, 65000 + u32::from(node));
        it.transit = true;
        it.role = role;
        network.speaker(1).set_peer(it, now);
        network.speaker(node).set_peer(toward(1, 65001), now);
    }
    for node in [1, 2] {
        let prefix = format!("10.{node}.0.0/24");
        network
            .speaker(node)
            .set_announcements(announce(&[&prefix]), now);
    }
    network.run(20 * SECOND);
    ["10.2.0.0/24", "10.1.0.0/24"].map(|prefix| {
        let paths = network.speaker(3).paths(&net(prefix));
        match paths
            .first()
            .map(|path| path.attributes.rare().only_to_customer)
        {
            None => Nothing,
            Some(None) => Unmarked,
            Some(Some(asn)) => MarkedBy(asn),
        }
    })
}

#[test]
fn what_a_provider_or_peer_told_goes_to_customers_only_and_says_so() {
    for source in [Role::Customer, Role::Peer, Role::RsClient] {
        for heir in [Role::Provider, Role::RsServer] {
            let [passed_on, ours] = heard(Some(source), Some(heir));
            assert_eq!(passed_on, MarkedBy(65002), "{source} {heir}");
            assert_eq!(ours, MarkedBy(65001));
        }
        for heir in [Role::Customer, Role::RsClient, Role::Peer] {
            let [passed_on, ours] = heard(Some(source), Some(heir));
            assert_eq!(passed_on, Nothing, "{source} {heir}");
            let is_beside = heir == Role::Peer;
            let marked = if is_beside { MarkedBy(65001) } else { Unmarked };
            assert_eq!(ours, marked, "{heir}");
        }
        assert_eq!(heard(Some(source), None)[0], MarkedBy(65002));
    }
}

#[test]
fn what_a_customer_told_goes_to_all_and_is_marked_towards_those_below_and_beside() {
    for (heir, marked) in [
        (Some(Role::Provider), MarkedBy(65001)),
        (Some(Role::RsServer), MarkedBy(65001)),
        (Some(Role::Peer), MarkedBy(65001)),
        (Some(Role::Customer), Unmarked),
        (Some(Role::RsClient), Unmarked),
        (None, Unmarked),
    ] {
        for source in [Some(Role::Provider), Some(Role::RsServer), None] {
            assert_eq!(heard(source, heir), [marked; 2], "{source:?} {heir:?}");
        }
    }
}

#[test]
fn a_changed_role_needs_another_session() {
    let mut network = pair(65001, 65002, |_| {});
    network.run(20 * SECOND);
    let mut changed = toward(2, 65002);
    changed.role = Some(Role::Customer);
    let now = network.now();
    network.speaker(1).set_peer(changed.clone(), now);
    network.run(20 * SECOND);
    assert_eq!(network.sessions_up(1), 2);
    changed.role_strict = true;
    let now = network.now();
    network.speaker(1).set_peer(changed, now);
    network.run(20 * SECOND);
    assert!(
        state(&mut network, 1) < State::Established,
        "node 2 says no role"
    );
}
