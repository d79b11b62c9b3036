//! What stories are made of: what is wanted, and what happens.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use fairlead_common::addr::Proto;
use fairlead_common::service::{ServiceKey, forward};
use imbl::OrdMap;
use ipnetwork::{IpNetwork, Ipv4Network};
use proptest::prelude::*;

use super::{SIZES, WINDOW};
use crate::desired::{self, BackendAddr, Desired, Frontend, Home, NodeState, Scope};
use crate::plan::maglev::Member;
use crate::plan::services::key;
use crate::plan::{Host, Reach, Wanted, Way};

/// What a story's world wants.
#[derive(Clone, Debug, Default)]
pub(super) struct World {
    pub(super) desired: Desired,
    pub(super) reach: OrdMap<IpAddr, Reach>,
    pub(super) ways: OrdMap<IpAddr, Way>,
    pub(super) host: Host,
}

impl World {
    pub(super) fn wanted(&self) -> Wanted<'_> {
        Wanted {
            desired: &self.desired,
            reach: &self.reach,
            ways: &self.ways,
            host: &self.host,
            ring_sizes: SIZES,
            drain_window: WINDOW,
        }
    }

    pub(super) fn reaches(&self, at: &BackendAddr) -> bool {
        self.reach
            .get(&at.addr)
            .is_some_and(|reach| *reach != Reach::Unreachable)
    }

    fn homes(&self, at: BackendAddr) -> BTreeSet<Home> {
        let services = self.desired.services.values();
        services
            .filter_map(|service| Some(service.backends.get(&at)?.home))
            .collect()
    }

    /// Whether it is a pod or process of this node.
    pub(super) fn is_here(&self, at: BackendAddr) -> bool {
        self.homes(at).contains(&Home::Here)
    }

    /// How packets get to a backend that is within reach.
    pub(super) fn forward(&self, at: BackendAddr) -> u8 {
        let homes = self.homes(at);
        match self.reach.get(&at.addr) {
            Some(Reach::Local) => forward::HERE,
            _ if homes.contains(&Home::Here) => forward::HERE,
            Some(Reach::OnLink | Reach::ByStack) if !homes.contains(&Home::Elsewhere) => {
                forward::L2
            }
            _ => forward::ENCAPSULATE,
        }
    }

    /// Who must be on the ring of a service.
    pub(super) fn members(&self, service: &desired::Service) -> Vec<Member> {
        let of = |ready: bool| -> Vec<Member> {
            service
                .backends
                .iter()
                .filter(|(at, backend)| {
                    self.reaches(at) && (backend.ready || (!ready && backend.serving))
                })
                .map(|(at, backend)| (*at, backend.weight))
                .collect()
        };
        let ready = of(true);
        if ready.is_empty() { of(false) } else { ready }
    }

    pub(super) fn serves(&self, service: ServiceKey, at: &BackendAddr) -> bool {
        let found = self
            .desired
            .services
            .iter()
            .find(|(frontend, _)| key(frontend) == service);
        found.is_some_and(|(_, service)| {
            let backend = service.backends.get(at);
            backend.is_some_and(|backend| backend.ready || backend.serving) && self.reaches(at)
        })
    }
}

/// What happens in a story.
#[derive(Clone, Debug)]
pub(super) enum Event {
    Change(Box<World>),
    Wait(Duration),
    /// The agent starts anew: what only it knew is lost.
    Restart,
    /// Every client closes its connections and opens others.
    Reconnect,
    /// A stranger writes a slot, a backend's row or a service's.
    Meddle(u32, u32),
}

pub(super) fn backend_at(number: u8) -> BackendAddr {
    let addr = if number.is_multiple_of(2) {
        IpAddr::from([10, 0, 0, number])
    } else {
        IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(number)])
    };
    BackendAddr { addr, port: 80 }
}

pub(super) fn frontend(number: u8) -> Frontend {
    Frontend {
        addr: IpAddr::from([192, 0, 2, number]),
        port: 80,
        proto: if number == 3 { Proto::UDP } else { Proto::TCP },
        scope: Scope::Outside,
    }
}

/// Few devices and neighbours, so that backends share next hops.
fn way() -> impl Strategy<Value = Way> {
    let mac = proptest::option::weighted(0.7, any::<[u8; 6]>());
    let mtu = prop_oneof![4 => Just(1500_u32), 1 => Just(9000)];
    (1_u32..6, 0_u8..3, mtu, mac).prop_map(|(device, neighbour, mtu, mac)| Way {
        device,
        neighbour: IpAddr::from([10, 0, 1, neighbour]),
        mtu,
        mac: mac.map(|[first, ..]| [first % 2, 0, 0, 0, neighbour, device as u8]),
    })
}

/// Sources that services may let in.
pub(super) const SOURCES: [(u8, u8); 3] = [(10, 8), (10, 16), (172, 12)];

/// One of [`SOURCES`].
pub(super) fn source((first, length): (u8, u8)) -> IpNetwork {
    let network = Ipv4Network::new_checked([first, 0, 0, 0].into(), length);
    IpNetwork::V4(network.unwrap())
}

/// What services ask for: source ranges and affinity.
fn terms() -> impl Strategy<Value = (Option<BTreeSet<IpNetwork>>, Option<Duration>)> {
    let range = proptest::sample::select(&SOURCES[..]).prop_map(source);
    let ranges = proptest::option::of(proptest::collection::btree_set(range, 0..3));
    (ranges, proptest::option::of(Just(Duration::from_hours(3))))
}

pub(super) fn world() -> impl Strategy<Value = World> {
    let backend = prop_oneof![
        6 => Just((true, true)),
        2 => Just((false, true)),
        1 => Just((false, false)),
    ];
    let home =
        prop_oneof![2 => Just(Home::Bare), 2 => Just(Home::Here), 1 => Just(Home::Elsewhere)];
    let backend = (
        backend,
        prop_oneof![6 => Just(1_u32), 1 => Just(3), 1 => Just(7)],
        home,
    );
    let backends = proptest::collection::btree_map(0_u8..7, backend, 0..6);
    let services = proptest::collection::btree_map(0_u8..5, (backends, terms()), 0..5);
    let reach = prop_oneof![
        5 => Just(Reach::OnLink),
        2 => Just(Reach::ByStack),
        3 => Just(Reach::Routed),
        1 => Just(Reach::Local),
        1 => Just(Reach::Unreachable),
    ];
    // Some services share what another one has.
    let alike = proptest::option::of((0_u8..5, 0_u8..5));
    let devices = proptest::collection::btree_map(1_u32..6, any::<[u8; 6]>(), 0..3);
    (
        services,
        proptest::collection::vec((reach, proptest::option::weighted(0.8, way())), 7),
        alike,
        devices,
    )
        .prop_map(|(mut services, ways, alike, devices)| {
            if let Some((from, to)) = alike
                && let Some(service) = services.get(&from).cloned()
            {
                services.insert(to, service);
            }
            let services = services
                .into_iter()
                .map(|(number, (backends, (source_ranges, affinity)))| {
                    let backends = backends
                        .into_iter()
                        .map(|(at, ((ready, serving), weight, home))| {
                            let backend = desired::Backend {
                                ready,
                                serving,
                                weight,
                                home,
                            };
                            (backend_at(at), backend)
                        })
                        .collect();
                    // One of them is a node port.
                    let kind = match number {
                        4 => desired::AddressKind::Node,
                        _ => desired::AddressKind::LoadBalancer,
                    };
                    let service = desired::Service {
                        address_kinds: BTreeSet::from([kind]),
                        affinity,
                        source_ranges,
                        backends: Arc::new(backends),
                        ..desired::Service::default()
                    };
                    (frontend(number), Arc::new(service))
                })
                .collect();
            let addresses = (0..7).map(|number| backend_at(number).addr);
            let (reach, ways): (Vec<_>, Vec<_>) = ways.into_iter().unzip();
            let reach = addresses.clone().zip(reach).collect();
            let mut macs = BTreeMap::new();
            let ways = addresses
                .zip(ways)
                .filter_map(|(addr, way)| {
                    let mut way = way?;
                    // One neighbour has one MAC address at a time.
                    way.mac = *macs.entry((way.device, way.neighbour)).or_insert(way.mac);
                    Some((addr, way))
                })
                .collect();
            World {
                desired: Desired {
                    node: NodeState {
                        name: "node1".to_owned(),
                        ..NodeState::default()
                    },
                    services,
                    ..Desired::default()
                },
                reach,
                ways,
                host: Host {
                    devices,
                    port_secret: 1,
                    ..Host::default()
                },
            }
        })
}

pub(super) fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => world().prop_map(|world| Event::Change(Box::new(world))),
        3 => (0_u64..90).prop_map(|s| Event::Wait(Duration::from_secs(s))),
        1 => Just(Event::Restart),
        1 => (any::<u32>(), any::<u32>()).prop_map(|(what, value)| Event::Meddle(what, value)),
    ]
}

/// A day on which backends of one service come, drain and go faster than windows end, and every client
/// connects anew now and then.
pub(super) fn busy_day() -> impl Strategy<Value = Vec<Event>> {
    let state = prop_oneof![
        4 => Just(Some((true, true))),
        3 => Just(Some((false, true))),
        2 => Just(None),
    ];
    // A weight that is great makes the ring grow.
    let weight = prop_oneof![8 => Just(1_u32), 1 => Just(5)];
    let state = (state, weight).prop_map(|(state, weight)| Some((state?, weight)));
    let change = proptest::collection::vec(state, 6).prop_map(|states| {
        let backends = (0..6)
            .map(backend_at)
            .zip(states)
            .filter_map(|(at, state)| {
                let ((ready, serving), weight) = state?;
                Some((
                    at,
                    desired::Backend {
                        ready,
                        serving,
                        weight,
                        home: Home::Bare,
                    },
                ))
            })
            .collect();
        let service = desired::Service {
            backends: Arc::new(backends),
            ..desired::Service::default()
        };
        let mut world = World {
            reach: (0..6)
                .map(|n| (backend_at(n).addr, Reach::OnLink))
                .collect(),
            ..World::default()
        };
        world
            .desired
            .services
            .insert(frontend(1), Arc::new(service));
        Event::Change(Box::new(world))
    });
    let wait = prop_oneof![Just(20_u64), Just(30), Just(40), Just(60)];
    let wait = wait.prop_map(|s| Event::Wait(Duration::from_secs(s)));
    let event = prop_oneof![4 => change, 3 => wait, 1 => Just(Event::Reconnect)];
    proptest::collection::vec(event, 6..24)
}
