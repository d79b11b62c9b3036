//! What the table remembers, and that what is used depends on nothing else.

use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

fn net(third: u8) -> IpNetwork {
    IpNetwork::new(IpAddr::from([10, 0, third, 0]), 24).unwrap()
}

fn changed(rib: &mut Rib) -> Vec<IpNetwork> {
    rib.take_changed()
        .into_iter()
        .map(|(prefix, _)| prefix)
        .collect()
}

fn rib() -> Rib {
    let mut rib = Rib::new(4);
    for peer in 1..=3 {
        rib.introduce(
            PeerId(peer),
            Source {
                internal: false,
                router_id: Ipv4Addr::from(peer),
                address: IpAddr::from(Ipv4Addr::from(0xC000_0200 + peer)),
            },
        );
    }
    rib
}

/// Where the path of an identifier goes.
fn next_hop(peer: u32, identifier: u32) -> IpAddr {
    IpAddr::from(Ipv4Addr::from(0xC000_0200 + peer + 16 * identifier))
}

fn path(peer: u32, local_pref: u32) -> Path {
    identified(peer, 0, local_pref)
}

fn identified(peer: u32, identifier: u32, local_pref: u32) -> Path {
    let mut attributes = Attributes::local(next_hop(peer, identifier));
    attributes.local_pref = Some(local_pref);
    Path {
        peer: PeerId(peer),
        attributes: Arc::new(attributes),
        rejection: None,
        stale: false,
    }
}

#[test]
fn only_changes_of_what_is_used_are_reported() {
    let mut rib = rib();
    rib.learn(net(1), 0, path(1, 100));
    assert_eq!(changed(&mut rib), [net(1)]);
    rib.learn(net(1), 0, path(1, 100));
    assert!(!rib.has_changes(), "the same again");
    rib.learn(net(1), 0, path(2, 50));
    assert!(!rib.has_changes(), "a worse one");
    rib.withdraw(net(1), PeerId(1), 0);
    assert_eq!(changed(&mut rib), [net(1)]);
    assert_eq!(rib.used(&net(1)).as_slice()[0].peer, PeerId(2));
}

#[test]
fn each_path_says_what_decided() {
    let mut rib = rib();
    rib.learn(net(1), 0, path(1, 100));
    rib.learn(net(1), 0, path(2, 200));
    let mut refused = path(3, 300);
    refused.rejection = Some(Rejection::Martian);
    rib.learn(net(1), 0, refused);
    let (_, ranked) = rib.ranked().next().unwrap();
    let shown: Vec<_> = ranked
        .iter()
        .map(|r| (r.path.peer.0, r.best, r.used, r.reason))
        .collect();
    assert_eq!(
        shown,
        [
            (2, true, true, Some(Reason::LocalPref)),
            (1, false, false, Some(Reason::LocalPref)),
            (3, false, false, None),
        ]
    );
}

#[test]
fn ties_are_used_together_up_to_the_limit_and_once_per_next_hop() {
    let mut rib = rib();
    rib.chooser.multipath_limit = 2;
    for peer in 1..=3 {
        rib.learn(net(1), 0, path(peer, 100));
    }
    let hops: Vec<_> = rib
        .used(&net(1))
        .as_slice()
        .iter()
        .map(|hop| hop.peer.0)
        .collect();
    assert_eq!(hops, [1, 2]);
    let mut twin = path(2, 100);
    twin.attributes = path(1, 100).attributes;
    rib.learn(net(1), 0, twin);
    let hops: Vec<_> = rib
        .used(&net(1))
        .as_slice()
        .iter()
        .map(|hop| hop.peer.0)
        .collect();
    assert_eq!(hops, [1, 3]);
}

#[test]
fn paths_of_one_peer_are_told_apart_by_their_identifiers_and_used_together() {
    let mut rib = rib();
    for (identifier, local_pref) in [(7, 100), (0, 100), (9, 50)] {
        rib.learn(net(1), identifier, identified(1, identifier, local_pref));
    }
    assert_eq!(rib.count(PeerId(1), Family::Ipv4Unicast).received, 3);
    let shown: Vec<_> = rib
        .ranked_of(&net(1))
        .iter()
        .map(|r| (r.identifier, r.best, r.used, r.reason))
        .collect();
    assert_eq!(
        shown,
        [
            (0, true, true, Some(Reason::PathIdentifier)),
            (7, false, true, Some(Reason::PathIdentifier)),
            (9, false, false, Some(Reason::LocalPref)),
        ]
    );
    rib.take_changed();
    rib.withdraw(net(1), PeerId(1), 3);
    assert!(!rib.has_changes(), "there is no such path");
    for identifier in [0, 9, 7] {
        rib.withdraw(net(1), PeerId(1), identifier);
    }
    assert_eq!(changed(&mut rib), [net(1)]);
    assert_eq!(rib.prefixes().count(), 0);
}

#[derive(Debug, Clone)]
enum Operation {
    Learn(u8, u32, u32, u32, bool),
    Withdraw(u8, u32, u32),
    Stale(u32),
    Sweep(u32),
    Forget(u32),
}

fn operation() -> impl Strategy<Value = Operation> {
    let peer = 1..=3_u32;
    let identifier = prop_oneof![2 => Just(0_u32), 1 => 1..=2_u32];
    prop_oneof![
        4 => (0..4_u8, peer.clone(), identifier.clone(), 0..3_u32, any::<bool>()).prop_map(
            |(net, peer, identifier, pref, refused)| Operation::Learn(net, peer, identifier, pref, refused)
        ),
        2 => (0..4_u8, peer.clone(), identifier)
            .prop_map(|(net, peer, identifier)| Operation::Withdraw(net, peer, identifier)),
        1 => peer.clone().prop_map(Operation::Stale),
        1 => peer.clone().prop_map(Operation::Sweep),
        1 => peer.prop_map(Operation::Forget),
    ]
}

proptest! {
    #[test]
    fn the_table_equals_a_plain_model(operations in proptest::collection::vec(operation(), 0..60)) {
        let family = Family::Ipv4Unicast;
        let mut rib = rib();
        let mut model: BTreeMap<(u8, u32, u32), (u32, bool, bool)> = BTreeMap::new();
        let mut followed: BTreeMap<IpNetwork, Selection> = BTreeMap::new();
        for operation in operations {
            match operation {
                Operation::Learn(third, peer, identifier, pref, refused) => {
                    let mut path = identified(peer, identifier, pref);
                    path.rejection = refused.then_some(Rejection::NotImported);
                    rib.learn(net(third), identifier, path);
                    model.insert((third, peer, identifier), (pref, refused, false));
                }
                Operation::Withdraw(third, peer, identifier) => {
                    rib.withdraw(net(third), PeerId(peer), identifier);
                    model.remove(&(third, peer, identifier));
                }
                Operation::Stale(peer) => {
                    rib.mark_stale(PeerId(peer), family);
                    for ((_, owner, _), path) in &mut model {
                        path.2 |= *owner == peer;
                    }
                }
                Operation::Sweep(peer) => {
                    rib.sweep_stale(PeerId(peer), family);
                    model.retain(|(_, owner, _), path| *owner != peer || !path.2);
                }
                Operation::Forget(peer) => {
                    rib.forget(PeerId(peer), family);
                    model.retain(|(_, owner, _), _| *owner != peer);
                }
            }
            followed.extend(rib.take_changed());
        }
        for peer in 1..=3 {
            let of_peer = |refused: bool| {
                model.iter().filter(|((_, owner, _), path)| *owner == peer && (refused || !path.1)).count()
            };
            let count = rib.count(PeerId(peer), family);
            prop_assert_eq!(count, Count { received: of_peer(true), accepted: of_peer(false) });
        }
        for third in 0..4 {
            let usable = || model.iter().filter(|((n, _, _), path)| *n == third && !path.1);
            let top = usable().map(|(_, path)| path.0).max();
            let expected: Vec<_> = usable()
                .filter(|(_, path)| Some(path.0) == top)
                .map(|((_, peer, identifier), _)| next_hop(*peer, *identifier))
                .take(4)
                .collect();
            let used = rib.used(&net(third));
            prop_assert_eq!(used.as_slice().iter().map(|hop| hop.next_hop).collect::<Vec<_>>(), expected);
            let told = |paths: Vec<Ranked<'_>>| {
                let told = paths.iter().map(|one| (third, one.path.peer.0, one.identifier));
                told.collect::<std::collections::BTreeSet<_>>()
            };
            let known = model.keys().filter(|(n, _, _)| *n == third).copied().collect();
            prop_assert_eq!(told(rib.ranked_of(&net(third))), known);
            prop_assert_eq!(followed.get(&net(third)).cloned().unwrap_or_default(), used);
        }
    }
}
