//! Thousands of services in the kernel's tables, and what a change of one of them touches there.
#![expect(
    clippy::unwrap_used,
    reason = "a story ends at the first thing that is not as it tells"
)]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use fairlead_common::addr::Proto;
use fairlead_common::service::{Slot, forward};
use fairlead_control::dataplane::apply::{self, KernelStore};
use fairlead_control::dataplane::pins::Pins;
use fairlead_control::desired::{
    Backend, BackendAddr, Desired, Frontend, Home, NodeState, Scope, Service,
};
use fairlead_control::plan::maglev::Sizes;
use fairlead_control::plan::services::key;
use fairlead_control::plan::{self, Actual, Host, Memory, Reach, Store as _, Wanted, Way};
use fairlead_tests::place::Place;
use fairlead_tests::root::is_root;
use imbl::OrdMap;

const SERVICES: u32 = 2000;
const BACKENDS: u32 = 5;

/// A node without a host, on real tables.
struct Node {
    desired: Desired,
    reach: OrdMap<IpAddr, Reach>,
    ways: OrdMap<IpAddr, Way>,
    host: Host,
    tables: Actual,
    memory: Memory,
    store: KernelStore,
    now: Duration,
}

/// Services are of both families in turn.
fn address(service: u32, number: u32) -> IpAddr {
    if service.is_multiple_of(2) {
        Ipv4Addr::from(0x0a00_0000 + number).into()
    } else {
        Ipv6Addr::from(0xfd00_u128 << 112 | u128::from(number)).into()
    }
}

fn frontend(service: u32) -> Frontend {
    Frontend {
        addr: address(service, 0x0040_0000 + service),
        port: 80,
        proto: Proto::TCP,
        scope: Scope::Outside,
    }
}

fn backend(service: u32, backend: u32) -> BackendAddr {
    BackendAddr {
        addr: address(service, service * 16 + backend),
        port: 80,
    }
}

impl Node {
    fn new(pins: &Pins) -> Self {
        let store = KernelStore::open(pins).unwrap();
        Self {
            desired: Desired {
                node: NodeState {
                    name: "node1".to_owned(),
                    ..NodeState::default()
                },
                ..Desired::default()
            },
            reach: OrdMap::new(),
            ways: OrdMap::new(),
            host: Host {
                devices: BTreeMap::from([(2, [2, 0, 0, 0, 0, 2])]),
                port_secret: 1,
                ..Host::default()
            },
            tables: store.observe().unwrap(),
            memory: Memory::default(),
            store,
            now: Duration::ZERO,
        }
    }

    fn serve(&mut self, service: u32, backends: impl Iterator<Item = u32>) {
        let ready = Backend {
            ready: true,
            serving: true,
            weight: 1,
            home: Home::Elsewhere,
        };
        let backends: BTreeMap<_, _> = backends
            .map(|number| (backend(service, number), ready))
            .collect();
        for at in backends.keys() {
            self.reach.insert(at.addr, Reach::Routed);
            let way = Way {
                device: 2,
                neighbour: address(service, 1),
                mtu: 1500,
                mac: Some([2, 0, 0, 0, 0, 1]),
            };
            self.ways.insert(at.addr, way);
        }
        let service_of = Service {
            backends: Arc::new(backends),
            ..Service::default()
        };
        self.desired
            .services
            .insert(frontend(service), Arc::new(service_of));
    }

    /// Plans and carries out; says how many steps.
    fn round(&mut self) -> usize {
        let wanted = Wanted {
            desired: &self.desired,
            reach: &self.reach,
            ways: &self.ways,
            host: &self.host,
            ring_sizes: Sizes::FLEET,
            drain_window: Duration::from_mins(1),
        };
        let plan = plan::plan(&wanted, &self.tables, &self.memory, self.now);
        let outcome = apply::run(&plan.steps, &mut self.store);
        assert!(outcome.is_complete(), "{:?}", outcome.obstacles);
        self.tables = plan.tables;
        self.memory = plan.memory;
        plan.steps.len()
    }
}

/// How many of a table's rows differ.
fn differences<K: Ord + Clone, V: PartialEq + Clone>(
    before: &OrdMap<K, V>,
    after: &OrdMap<K, V>,
) -> usize {
    before.diff(after).count()
}

#[test]
fn a_change_of_one_endpoint_among_thousands_touches_its_own_rows_only() {
    if !is_root() {
        return;
    }
    let place = Place::make().unwrap();
    place.load().unwrap();
    let mut node = Node::new(&place.pins);
    for service in 0..SERVICES {
        node.serve(service, 0..BACKENDS);
    }
    node.round();
    let all = node.store.observe().unwrap();
    assert_eq!(all, node.tables, "the plan knows what it has written");
    assert_eq!(all.services.len(), SERVICES as usize);
    assert_eq!(all.rings.len(), SERVICES as usize);
    assert_eq!(all.backends.len(), (SERVICES * BACKENDS) as usize);

    for changed in [700, 701] {
        let before = node.store.observe().unwrap();
        node.serve(changed, 1..=BACKENDS);
        let steps = node.round();
        let after = node.store.observe().unwrap();

        assert_eq!(after, node.tables);
        assert!(steps <= 4, "counters, two backends and a ring: {steps}");
        assert_eq!(differences(&before.services, &after.services), 0);
        assert_eq!(
            differences(&before.backends, &after.backends),
            2,
            "one comes, one is dead"
        );
        assert_eq!(differences(&before.next_hops, &after.next_hops), 0);
        assert_eq!(differences(&before.addresses, &after.addresses), 0);
        assert_eq!(differences(&before.rings, &after.rings), 1);
        let row = after.services[&key(&frontend(changed))];
        let slots = before.rings[&row.ring].iter().zip(&*after.rings[&row.ring]);
        let (same, others): (Vec<_>, Vec<_>) = slots.partition(|(before, after)| before == after);
        // A fifth of the ring went to the new backend, and in a ring this small Maglev moves up to as many beside.
        assert!(
            others.len() < row.slots as usize * 4 / 10,
            "{} slots",
            others.len()
        );
        assert!(same.len() > row.slots as usize * 6 / 10);
    }

    // The flows of the backends that left have their minute; then their rows go, and no others.
    let before = node.store.observe().unwrap();
    for _ in 0..2 {
        node.now += Duration::from_mins(2);
        node.round();
    }
    let after = node.store.observe().unwrap();
    assert_eq!(after, node.tables);
    assert_eq!(differences(&before.services, &after.services), 0);
    assert_eq!(differences(&before.backends, &after.backends), 2);
    assert_eq!(differences(&before.rings, &after.rings), 2);
    assert!(
        after
            .backends
            .values()
            .all(|row| row.forward == forward::ENCAPSULATE)
    );
    let slots = after.rings.values().flat_map(|slots| slots.iter());
    assert!(slots.copied().all(|Slot { previous, .. }| previous == 0));
}
