use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use fairlead_common::addr::Proto;

use super::*;
use crate::desired::{
    AddressKind, Backend, BackendAddr, Egress, Home, LabelSelector, NodeState, Scope,
};

fn frontend() -> Frontend {
    Frontend {
        addr: "192.0.2.10".parse().unwrap(),
        port: 80,
        proto: Proto::TCP,
        scope: Scope::Outside,
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
        backends: BTreeMap::from([(
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
        )]),
        ..Service::default()
    };
    let router = VirtualRouter {
        object: ObjectName::default(),
        local_asn: 65010,
        router_id: None,
        local_port: None,
        export_pod_cidr: true,
        services: Some(LabelSelector::default()),
        address_kinds: BTreeSet::from([AddressKind::LoadBalancer]),
        neighbors: BTreeMap::new(),
    };
    Desired {
        node: NodeState {
            pod_cidrs: BTreeSet::from([
                "10.1.1.0/24".parse().unwrap(),
                "fd01::/64".parse().unwrap(),
            ]),
            ..NodeState::default()
        },
        services: BTreeMap::from([(frontend(), service)]),
        health_checks: BTreeMap::new(),
        egress: Some(Egress {
            address: Ipv4Addr::new(192, 0, 2, 9),
            is_node_address: false,
            native: BTreeSet::new(),
        }),
        routers: BTreeMap::from([(65010, router)]),
        conditions: Vec::new(),
    }
}

fn programmed() -> Programmed {
    Programmed {
        services: BTreeMap::from([(frontend(), 1)]),
        attached: true,
    }
}

fn state(desired: &Desired, programmed: &Programmed, prefix: &str) -> String {
    announcements(desired, programmed)[&65010][&prefix.parse::<IpNetwork>().unwrap()]
        .state
        .to_string()
}

fn service_state(change: impl FnOnce(&mut Desired, &mut Programmed)) -> String {
    let (mut desired, mut programmed) = (desired(), programmed());
    change(&mut desired, &mut programmed);
    state(&desired, &programmed, "192.0.2.10/32")
}

fn router(desired: &mut Desired) -> &mut VirtualRouter {
    desired.routers.get_mut(&65010).unwrap()
}

/// A service at another address of the same object.
fn with(kind: AddressKind, scope: Scope) -> Desired {
    let mut desired = desired();
    let mut service = desired.services[&frontend()].clone();
    service.address_kinds = BTreeSet::from([kind]);
    let at = Frontend {
        addr: "192.0.2.77".parse().unwrap(),
        scope,
        ..frontend()
    };
    desired.services.insert(at, service);
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
        assert!(!all[&65010].contains_key(&prefix), "{kind:?} {scope:?}");
    }
}

#[test]
fn a_backend_without_a_share_announces_nothing() {
    let mut desired = desired();
    let service = desired.services.get_mut(&frontend()).unwrap();
    service.backends.values_mut().for_each(|one| one.weight = 0);

    assert_eq!(
        state(&desired, &programmed(), "192.0.2.10/32"),
        "withheld: no backend is ready"
    );
}

#[test]
fn everything_that_is_ready_is_announced() {
    let all = announcements(&desired(), &programmed());

    let prefixes: Vec<_> = all[&65010]
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
    assert!(all[&65010].values().all(|a| a.state.is_announced()));
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
        for service in d.services.values_mut() {
            service.backends.values_mut().for_each(|b| b.ready = false);
        }
    };
    assert_eq!(service_state(unready), "withheld: no backend is ready");
    assert_eq!(
        service_state(|_, p| p.services.values_mut().for_each(|ready| *ready = 0)),
        "withheld: no backend is ready"
    );
    assert_eq!(
        service_state(|d, _| router(d).services = None),
        "withheld: serviceSelector does not select it"
    );
    assert_eq!(
        service_state(|d, _| router(d).address_kinds.clear()),
        "withheld: serviceAdvertisements leaves its kind of address out"
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
        service_state(|d, _| router(d).services = Some(name("web"))),
        "announced"
    );
    assert_ne!(
        service_state(|d, _| router(d).services = Some(name("other"))),
        "announced"
    );
    let namespace = select("io.kubernetes.service.namespace", "default");
    assert_eq!(
        service_state(|d, _| router(d).services = Some(namespace)),
        "announced"
    );
}

#[test]
fn an_address_is_announced_while_one_of_its_ports_is_ready() {
    let mut desired = desired();
    let mut second = desired.services[&frontend()].clone();
    second.backends.clear();
    let https = Frontend {
        port: 443,
        ..frontend()
    };
    desired.services.insert(https, second);

    assert_eq!(state(&desired, &programmed(), "192.0.2.10/32"), "announced");
    let only_https = Programmed {
        services: BTreeMap::from([(https, 0)]),
        attached: true,
    };
    assert_ne!(state(&desired, &only_https, "192.0.2.10/32"), "announced");
}

#[test]
fn pod_prefixes_and_egress_say_why_they_are_withheld() {
    let mut desired = desired();
    router(&mut desired).export_pod_cidr = false;
    let detached = Programmed {
        attached: false,
        ..programmed()
    };

    assert_eq!(
        state(&desired, &programmed(), "10.1.1.0/24"),
        "withheld: exportPodCIDR is off"
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

    assert!(!all[&65010].contains_key(&"192.0.2.9/32".parse().unwrap()));
}
