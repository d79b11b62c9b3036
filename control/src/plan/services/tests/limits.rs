//! What does not fit: backends, services and rings beyond what the tables hold.

use fairlead_common::tables::{self, RING_PAGES};

use super::*;

#[test]
fn more_backends_than_slots_are_a_condition() {
    let three = [(1, READY), (2, READY), (3, READY)];
    let mut node = Node::new(2).with(1, &three);

    let plan = node.settle(T0);

    assert_eq!(
        only(&plan).2,
        "192.0.2.1:80/tcp: 3 backends do not fit 2 slots, so the last ones get no flow; divide them among services"
    );
    assert_eq!(node.actual.backends.len(), 2);
}

#[test]
fn a_full_table_of_backends_is_a_condition_and_others_are_served() {
    let mut node = Node::new(16).with(1, &[(1, READY)]);
    node.settle(T0);
    let strange = |id: u32| rows::Backend {
        addr: Addr::from(std::net::Ipv4Addr::from(0x0b00_0000 + id)),
        forward: forward::L2,
        ..rows::Backend::default()
    };
    node.actual
        .backends
        .extend((2..tables::Backends::CAPACITY).map(|id| (id, strange(id))));

    node.set(2, &[(1, READY), (2, READY)]);
    let plan = node.settle(T0);

    assert_eq!(
        only(&plan),
        (
            "Service default/s2",
            "BackendsFull",
            "192.0.2.2:80/tcp: the table of backends is full, so 1 of them get no flow; remove services or backends"
        )
    );
    assert_eq!(plan.programmed[&frontend(2)], 1);
}

#[test]
fn a_full_table_of_services_is_a_condition() {
    let mut node = Node::new(16).with(1, &[]);
    let strange = |id: u32| {
        let addr = Addr::from(std::net::Ipv4Addr::from(0x0b00_0000 + id));
        let row = rows::Service {
            id,
            ..rows::Service::default()
        };
        (ServiceKey::new(addr, Port::new(1), Proto::UDP), row)
    };
    node.actual.services = (1..65536).map(strange).collect();

    let plan = node.plan(T0);

    assert_eq!(
        only(&plan),
        (
            "Service default/s1",
            "ServicesFull",
            "192.0.2.1:80/tcp: the table of services is full; remove services"
        )
    );
}

#[test]
fn a_ring_without_room_waits_for_one_and_others_are_served() {
    // A few great rings fill all pages.
    let slots: u32 = 1 << 17;
    let room = u32::from(u8::try_from(RING_PAGES / slots.div_ceil(SLOTS_PER_PAGE)).unwrap());
    let mut node = Node::new(slots);
    for service in 0..=room as u8 {
        node.set(service, &[(service, READY)]);
    }

    let plan = node.settle(T0);

    let last = room as u8;
    assert_eq!(
        only(&plan),
        (
            "Service default/s64",
            "NoRoomForRing",
            "192.0.2.64:80/tcp: no room for another ring of 131072 slots, so it is not served; remove services, or let some have equal backends and share a ring"
        )
    );
    assert_eq!(plan.programmed.len(), room as usize);
    assert_eq!(node.row(last).slots, 0);
    assert_eq!(plan.wake, None, "nothing will change by itself");

    node.desired.services.remove(&frontend(3));
    let plan = node.settle(T0);
    assert_eq!(plan.wake, Some(T0), "a place became free");
    let plan = node.settle(T0);
    assert_eq!(
        node.row(last).ring,
        3 * slots.div_ceil(SLOTS_PER_PAGE) * SLOTS_PER_PAGE
    );
    assert_eq!(plan.conditions, []);
}

#[test]
fn a_ring_that_cannot_grow_goes_on_where_it_is() {
    let mut node = Node::with_rings(Sizes {
        least: 1 << 17,
        most: 1 << 18,
        each: 1 << 17,
    });
    let room = u8::try_from((RING_PAGES * SLOTS_PER_PAGE) >> 17).unwrap();
    for service in 0..room {
        node.set(service, &[(service, READY)]);
    }
    node.settle(T0);

    node.set(3, &[(3, READY), (100, READY)]);
    let plan = node.settle(T0);

    assert_eq!(
        only(&plan).2,
        "192.0.2.3:80/tcp: no room for another ring of 262144 slots, so it has a smaller one than on other nodes; remove services, or let some have equal backends and share a ring"
    );
    assert_eq!(node.row(3).slots, 1 << 17);
    let currents: BTreeSet<u32> = node.ring(3).iter().map(|slot| slot.current).collect();
    assert_eq!(currents, [node.id(3), node.id(100)].into());
}
