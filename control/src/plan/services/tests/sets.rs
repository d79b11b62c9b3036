//! The frontends of one port have their backends in one value; that is quicker, and nothing more.

use super::*;
use crate::desired::Forwarding;

/// A service of both scopes whose backends are one value, or two that are equal.
fn node(is_one: bool, inside: Forwarding, reach_of_first: Option<Reach>) -> Node {
    let mut node = Node::new(64).with(1, &[(3, READY)]);
    node.set(2, &[(1, READY), (2, READY), (3, DRAINING)]);
    let outside = Arc::clone(&node.desired.services[&frontend(2)]);
    let backends = if is_one {
        Arc::clone(&outside.backends)
    } else {
        Arc::new(BTreeMap::clone(&outside.backends))
    };
    let service = Service {
        backends,
        forwarding: inside,
        ..Service::clone(&outside)
    };
    let inside = Frontend {
        scope: Scope::Inside,
        ..frontend(2)
    };
    node.desired.services.insert(inside, Arc::new(service));
    match reach_of_first {
        Some(reach) => node.reach.insert(at(1).addr, reach),
        None => node.reach.remove(&at(1).addr),
    };
    node
}

#[test]
fn equal_sets_of_backends_are_planned_alike_whether_they_are_one_value_or_not() {
    let reaches = [
        Some(Reach::OnLink),
        Some(Reach::Routed),
        Some(Reach::Local),
        None,
    ];
    for forwarding in [Forwarding::Auto, Forwarding::DsrL2, Forwarding::Nat] {
        for reach in reaches {
            let (mut one, mut two) = (
                node(true, forwarding, reach),
                node(false, forwarding, reach),
            );

            let plan = one.settle(T0);

            assert_eq!(plan, two.settle(T0), "{forwarding:?}, {reach:?}");
            let named = |scope| {
                let place = Frontend {
                    scope,
                    ..frontend(2)
                };
                let ring = one.actual.services[&key(&place)].ring;
                let named = one.actual.rings[&ring].iter().map(|slot| slot.current);
                named.collect::<BTreeSet<u32>>().len()
            };
            // A router passes no frame on.
            let is_left_out = |forwarding| {
                reach.is_none() || (reach == Some(Reach::Routed) && forwarding == Forwarding::DsrL2)
            };
            assert_eq!(
                named(Scope::Outside),
                2 - usize::from(is_left_out(Forwarding::Auto))
            );
            assert_eq!(
                named(Scope::Inside),
                2 - usize::from(is_left_out(forwarding))
            );
        }
    }
}
