mod changes;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use fairlead_common::addr::Proto;

use super::*;
use crate::desired::{
    AddressKind, Advertised, Backend, BackendAddr, Egress, Home, LabelSelector, Neighbor,
    NodeState, Profile, Scope,
};

fn frontend() -> Frontend {
    Frontend {
        addr: "192.0.2.10".parse().unwrap(),
        port: 80,
        proto: Proto::TCP,
        scope: Scope::Outside,
    }
}

const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));

fn services(selector: LabelSelector) -> What {
    What::Services {
        selector,
        kinds: BTreeSet::from([AddressKind::LoadBalancer]),
        aggregate_v4: None,
        aggregate_v6: None,
    }
}

fn told(what: What) -> Advertised {
    Advertised {
        what,
        attributes: PathAttributes::default(),
    }
}

/// A peer that is told this in both families.
fn peer(told: &[Advertised]) -> Neighbor {
    let advertised = [Family::Ipv4, Family::Ipv6].map(|family| (family, told.to_vec()));
    Neighbor {
        asn: 65000,
        name: None,
        peer_config: None,
        ebgp_multihop_ttl: 1,
        connect_retry: Duration::from_mins(2),
        hold: Duration::from_secs(90),
        keepalive: Duration::from_secs(30),
        graceful_restart: None,
        interface: None,
        local_address: None,
        local_port: None,
        password: None,
        profile: Profile::default(),
        advertised: advertised.into(),
    }
}

/// A node with pods, a service with one ready backend, an egress address, and a router for all.
fn desired() -> Desired {
    let service = Service {
        object: ObjectName {
            namespace: "default".to_owned(),
            name: "web".to_owned(),
        },
        labels: BTreeMap::from([("app".to_owned(), "web".to_owned())]),
        address_kinds: BTreeSet::from([AddressKind::LoadBalancer]),
        backends: Arc::new(BTreeMap::from([(
            BackendAddr {
                addr: "10.1.1.10".parse().unwrap(),
                port: 80,
            },
            Backend {
                ready: true,
                serving: true,
                weight: 1,
                home: Home::Bare,
            },
        )])),
        ..Service::default()
    };
    let told = vec![
        told(What::PodCidrs),
        told(services(LabelSelector::default())),
    ];
    let router = VirtualRouter {
        object: "CiliumBGPPeeringPolicy a".to_owned(),
        local_asn: 65010,
        router_id: None,
        local_port: None,
        links: BTreeSet::new(),
        neighbors: BTreeMap::from([((PEER, 179), peer(&told))]),
    };
    Desired {
        node: NodeState {
            pod_cidrs: BTreeSet::from([
                "10.1.1.0/24".parse().unwrap(),
                "fd01::/64".parse().unwrap(),
            ]),
            ..NodeState::default()
        },
        other_nodes: BTreeSet::new(),
        services: OrdMap::unit(frontend(), Arc::new(service)),
        health_checks: BTreeMap::new(),
        egress: Some(Egress {
            address: Ipv4Addr::new(192, 0, 2, 9),
            is_node_address: false,
            native: BTreeSet::new(),
        }),
        routers: BTreeMap::from([("65010".to_owned(), router)]),
        conditions: Vec::new(),
    }
}

fn programmed() -> Programmed {
    Programmed {
        services: OrdMap::unit(frontend(), 1),
        attached: true,
    }
}

fn state(desired: &Desired, programmed: &Programmed, prefix: &str) -> String {
    announcements(desired, programmed)["65010"][&prefix.parse::<IpNetwork>().unwrap()]
        .state
        .to_string()
}

fn service_state(change: impl FnOnce(&mut Desired, &mut Programmed)) -> String {
    let (mut desired, mut programmed) = (desired(), programmed());
    change(&mut desired, &mut programmed);
    state(&desired, &programmed, "192.0.2.10/32")
}

/// Tells the peers something else.
fn tell(desired: &mut Desired, what: &[What]) {
    let all: Vec<_> = what.iter().cloned().map(told).collect();
    let neighbors = &mut desired.routers.get_mut("65010").unwrap().neighbors;
    *neighbors = BTreeMap::from([((PEER, 179), peer(&all))]);
}

/// A service at another address of the same object.
fn with(kind: AddressKind, scope: Scope) -> Desired {
    let mut desired = desired();
    let mut service = Service::clone(&desired.services[&frontend()]);
    service.address_kinds = BTreeSet::from([kind]);
    let at = Frontend {
        addr: "192.0.2.77".parse().unwrap(),
        scope,
        ..frontend()
    };
    desired.services.insert(at, service.into());
    desired
}

#[test]
fn an_address_for_clients_inside_and_an_address_of_the_node_are_not_announced() {
    for (kind, scope) in [
        (AddressKind::Cluster, Scope::Inside),
        (AddressKind::LoadBalancer, Scope::Inside),
        (AddressKind::Node, Scope::Outside),
    ] {
        let all = announcements(&with(kind, scope), &programmed());

        let prefix: IpNetwork = "192.0.2.77/32".parse().unwrap();
        assert!(!all["65010"].contains_key(&prefix), "{kind:?} {scope:?}");
    }
}

#[test]
fn a_backend_without_a_share_announces_nothing() {
    let mut desired = desired();
    let service = desired.services.get_mut(&frontend()).unwrap();
    let backends = Arc::make_mut(&mut Arc::make_mut(service).backends);
    for backend in backends.values_mut() {
        backend.weight = 0;
    }

    assert_eq!(
        state(&desired, &programmed(), "192.0.2.10/32"),
        "withheld: no backend is ready"
    );
}

#[test]
fn everything_that_is_ready_is_announced() {
    let all = announcements(&desired(), &programmed());

    let prefixes: Vec<_> = all["65010"]
        .iter()
        .map(|(p, a)| (p.to_string(), a.source.to_string()))
        .collect();
    assert_eq!(
        prefixes,
        [
            ("10.1.1.0/24".to_owned(), "pod CIDR".to_owned()),
            ("192.0.2.9/32".to_owned(), "egress address".to_owned()),
            ("192.0.2.10/32".to_owned(), "Service default/web".to_owned()),
            ("fd01::/64".to_owned(), "pod CIDR".to_owned()),
        ]
    );
    assert!(all["65010"].values().all(|a| a.state.is_announced()));
}

#[test]
fn a_service_is_withheld_for_the_first_thing_that_is_missing() {
    assert_eq!(service_state(|_, _| ()), "announced");
    assert_eq!(
        service_state(|_, p| p.services.clear()),
        "withheld: its ring is not in the kernel yet"
    );
    assert_eq!(
        service_state(|_, p| p.attached = false),
        "withheld: no program is attached to an uplink"
    );
    let unready = |d: &mut Desired, _: &mut Programmed| {
        let service = d.services.get_mut(&frontend()).unwrap();
        let backends = Arc::make_mut(&mut Arc::make_mut(service).backends).values_mut();
        backends.for_each(|backend| backend.ready = false);
    };
    assert_eq!(service_state(unready), "withheld: no backend is ready");
    assert_eq!(
        service_state(|_, p| p.services = OrdMap::unit(frontend(), 0)),
        "withheld: no backend is ready"
    );
    assert_eq!(
        service_state(|d, _| tell(d, &[What::PodCidrs])),
        "withheld: nothing that peers are told selects it"
    );
    let mut external = services(LabelSelector::default());
    if let What::Services { kinds, .. } = &mut external {
        *kinds = BTreeSet::from([AddressKind::External]);
    }
    assert_eq!(
        service_state(|d, _| tell(d, &[external])),
        "withheld: no peer is told its kind of address"
    );
}

#[test]
fn selectors_see_the_labels_that_cilium_adds() {
    let select = |key: &str, value: &str| LabelSelector {
        match_labels: BTreeMap::from([(key.to_owned(), value.to_owned())]),
        ..LabelSelector::default()
    };
    let name = |value| select("io.kubernetes.service.name", value);

    assert_eq!(
        service_state(|d, _| tell(d, &[services(name("web"))])),
        "announced"
    );
    assert_ne!(
        service_state(|d, _| tell(d, &[services(name("other"))])),
        "announced"
    );
    let namespace = select("io.kubernetes.service.namespace", "default");
    assert_eq!(
        service_state(|d, _| tell(d, &[services(namespace)])),
        "announced"
    );
}

#[test]
fn an_address_is_announced_while_one_of_its_ports_is_ready() {
    let mut desired = desired();
    let mut second = desired.services[&frontend()].clone();
    Arc::make_mut(&mut second).backends = Arc::default();
    let https = Frontend {
        port: 443,
        ..frontend()
    };
    desired.services.insert(https, second);

    assert_eq!(state(&desired, &programmed(), "192.0.2.10/32"), "announced");
    let only_https = Programmed {
        services: OrdMap::unit(https, 0),
        attached: true,
    };
    assert_ne!(state(&desired, &only_https, "192.0.2.10/32"), "announced");
}

#[test]
fn pod_prefixes_and_egress_say_why_they_are_withheld() {
    let mut desired = desired();
    tell(&mut desired, &[]);
    let detached = Programmed {
        attached: false,
        ..programmed()
    };

    assert_eq!(
        state(&desired, &programmed(), "10.1.1.0/24"),
        "withheld: no peer is told pod CIDRs"
    );
    assert_eq!(
        state(&desired, &detached, "192.0.2.9/32"),
        "withheld: no program is attached to an uplink"
    );
}

#[test]
fn the_nodes_own_address_is_never_announced_for_egress() {
    let mut desired = desired();
    desired.egress.as_mut().unwrap().is_node_address = true;

    let all = announcements(&desired, &programmed());

    assert!(!all["65010"].contains_key(&"192.0.2.9/32".parse::<IpNetwork>().unwrap()));
}

#[test]
fn each_peer_is_told_its_own_and_what_several_say_of_a_path_is_joined() {
    let mut desired = desired();
    let marked = |community, local_preference| Advertised {
        what: services(LabelSelector::default()),
        attributes: PathAttributes {
            communities: BTreeSet::from([community]),
            local_preference,
            ..PathAttributes::default()
        },
    };
    let both = [marked(1, Some(100)), marked(2, Some(300))];
    let neighbors = &mut desired.routers.get_mut("65010").unwrap().neighbors;
    neighbors.insert((PEER, 179), peer(&both));
    neighbors.insert((OTHER, 179), peer(&[told(What::PodCidrs)]));

    let all = &announcements(&desired, &programmed())["65010"];

    let service = &all[&"192.0.2.10/32".parse::<IpNetwork>().unwrap()];
    assert_eq!(service.peers.keys().collect::<Vec<_>>(), [&PEER]);
    let attributes = &service.peers[&PEER];
    assert_eq!(attributes.communities, BTreeSet::from([1, 2]));
    assert_eq!(attributes.local_preference, Some(300));
    let pods = &all[&"10.1.1.0/24".parse::<IpNetwork>().unwrap()];
    assert_eq!(pods.peers.keys().collect::<Vec<_>>(), [&OTHER]);
    let egress = &all[&"192.0.2.9/32".parse::<IpNetwork>().unwrap()];
    assert_eq!(egress.peers.len(), 2);
}

#[test]
fn addresses_of_a_device_are_announced_as_host_routes_to_the_peers_that_are_told_them() {
    let mut desired = desired();
    let device = |name: &str, addresses: &[&str]| What::Interface {
        name: name.to_owned(),
        addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
    };
    let neighbors = &mut desired.routers.get_mut("65010").unwrap().neighbors;
    let lo = told(device("lo", &["198.51.100.1", "2001:db8::1"]));
    neighbors.insert((PEER, 179), peer(&[lo]));
    let dummy = told(device("dummy0", &["198.51.100.1", "198.51.100.2"]));
    neighbors.insert((OTHER, 179), peer(&[dummy]));

    let all = &announcements(&desired, &Programmed::default())["65010"];

    for (prefix, source, peers) in [
        ("198.51.100.1/32", "address of dummy0", &[PEER, OTHER][..]),
        ("198.51.100.2/32", "address of dummy0", &[OTHER]),
        ("2001:db8::1/128", "address of lo", &[PEER]),
    ] {
        let announcement = &all[&prefix.parse::<IpNetwork>().unwrap()];
        assert!(announcement.state.is_announced());
        assert_eq!(announcement.source.to_string(), source);
        let told: BTreeSet<_> = announcement.peers.keys().collect();
        assert_eq!(told, peers.iter().collect());
    }
}

#[test]
fn what_a_node_has_of_a_pool_is_announced_to_the_peers_that_are_told_of_it() {
    let mut desired = desired();
    let pool = |name: &str, prefixes: &[&str]| What::Pool {
        name: name.to_owned(),
        prefixes: prefixes.iter().map(|text| text.parse().unwrap()).collect(),
    };
    let neighbors = &mut desired.routers.get_mut("65010").unwrap().neighbors;
    let blue = told(pool("blue", &["10.20.0.0/24", "fd20::/112"]));
    neighbors.insert((PEER, 179), peer(&[blue.clone(), told(pool("red", &[]))]));
    neighbors.insert(
        (OTHER, 179),
        peer(&[told(pool("green", &["10.30.0.0/24"])), blue]),
    );

    let all = &announcements(&desired, &Programmed::default())["65010"];

    for (prefix, source, peers) in [
        ("10.20.0.0/24", "pod IP pool blue", &[PEER, OTHER][..]),
        ("fd20::/112", "pod IP pool blue", &[PEER, OTHER]),
        ("10.30.0.0/24", "pod IP pool green", &[OTHER]),
    ] {
        let announcement = &all[&prefix.parse::<IpNetwork>().unwrap()];
        assert!(announcement.state.is_announced());
        assert_eq!(announcement.source.to_string(), source);
        let told: BTreeSet<_> = announcement.peers.keys().collect();
        assert_eq!(told, peers.iter().collect());
    }
    let of_pools = all
        .values()
        .filter(|one| matches!(one.source, Source::Pool(_)));
    assert_eq!(of_pools.count(), 3);
}

#[test]
fn an_aggregate_is_announced_in_place_of_its_addresses_and_needs_a_blackhole() {
    let mut desired = desired();
    let mut second = Service::clone(&desired.services[&frontend()]);
    second.backends = Arc::default();
    let other = Frontend {
        addr: "192.0.2.77".parse().unwrap(),
        ..frontend()
    };
    desired.services.insert(other, second.into());
    let mut aggregated = services(LabelSelector::default());
    if let What::Services { aggregate_v4, .. } = &mut aggregated {
        *aggregate_v4 = Some(24);
    }
    tell(&mut desired, &[aggregated, What::PodCidrs]);

    let all = &announcements(&desired, &programmed())["65010"];

    let whole: IpNetwork = "192.0.2.0/24".parse().unwrap();
    // One of the two is ready: that is enough.
    assert!(all[&whole].state.is_announced());
    assert!(!all.contains_key(&"192.0.2.10/32".parse::<IpNetwork>().unwrap()));
    assert_eq!(aggregates(all).collect::<Vec<_>>(), [whole]);

    // Where each node serves it by its own backends, the whole would draw what is for other nodes.
    let mut local = desired.clone();
    Arc::make_mut(local.services.get_mut(&frontend()).unwrap()).only_local = true;
    let all = &announcements(&local, &programmed())["65010"];
    assert!(
        all[&"192.0.2.10/32".parse::<IpNetwork>().unwrap()]
            .state
            .is_announced()
    );
    assert!(!all[&whole].state.is_announced());

    let nothing = Programmed {
        services: OrdMap::new(),
        attached: true,
    };
    let all = &announcements(&desired, &nothing)["65010"];
    assert!(!all[&whole].state.is_announced());
    assert_eq!(aggregates(all).count(), 0);
}

#[test]
fn what_a_node_serves_to_its_own_pods_alone_is_not_announced() {
    let mut desired = desired();
    let service = desired.services.remove(&frontend()).unwrap();
    let inside = Frontend {
        scope: Scope::Inside,
        ..frontend()
    };
    desired.services.insert(inside, service);

    let all = &announcements(&desired, &programmed())["65010"];

    assert!(!all.contains_key(&"192.0.2.10/32".parse::<IpNetwork>().unwrap()));
}
