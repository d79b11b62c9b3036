//! Services, their addresses and their backends.

use std::collections::{BTreeMap, BTreeSet};

use super::{NODE, SLICE, WEB, backend, desired, endpoints_of, frontend, only, outside, said};
use crate::desired::{AddressKind, Backend, Forwarding, Home};

#[test]
fn a_service_has_the_backends_of_its_slices_with_kubernetes_defaults() {
    let desired = desired(&[NODE, WEB, SLICE]);

    let service = &desired.services[&frontend("192.0.2.10", 80)];
    assert_eq!(service.object.to_string(), "default/web");
    assert_eq!(
        service.address_kinds,
        BTreeSet::from([AddressKind::LoadBalancer])
    );
    let state = |ready, serving| Backend {
        ready,
        serving,
        weight: 1,
        home: Home::Bare,
    };
    assert_eq!(
        *service.backends,
        BTreeMap::from([
            (backend("10.1.1.10"), state(true, true)),
            (backend("10.1.2.10"), state(false, true)),
            (backend("10.1.3.10"), state(false, false)),
        ])
    );
    assert_eq!(desired.conditions, []);
}

#[test]
fn not_ready_addresses_are_published_where_the_service_wants_it() {
    let web = format!("{WEB}  publishNotReadyAddresses: true\n");

    let desired = desired(&[NODE, &web, SLICE]);

    let service = &desired.services[&frontend("192.0.2.10", 80)];
    assert!(service.backends.values().all(|backend| backend.ready));
}

#[test]
fn every_kind_of_address_is_served_and_known() {
    let web = WEB.replace(
        "  loadBalancerIP: 192.0.2.10\n",
        "  loadBalancerIP: 192.0.2.10\n  externalIPs: [192.0.2.11, 'fd00::11']\n",
    ) + "status: {loadBalancer: {ingress: [{ip: 192.0.2.12}, {ip: 192.0.2.11}, {hostname: x}]}}\n";

    let desired = desired(&[NODE, &web]);

    let kinds: Vec<_> = outside(&desired)
        .map(|(at, service)| {
            (
                at.addr.to_string(),
                service.address_kinds.iter().copied().collect::<Vec<_>>(),
            )
        })
        .collect();
    assert_eq!(
        kinds,
        [
            ("192.0.2.10".to_owned(), vec![AddressKind::LoadBalancer]),
            (
                "192.0.2.11".to_owned(),
                vec![AddressKind::LoadBalancer, AddressKind::External]
            ),
            ("192.0.2.12".to_owned(), vec![AddressKind::LoadBalancer]),
            ("fd00::11".to_owned(), vec![AddressKind::External]),
        ]
    );
}

#[test]
fn external_addresses_are_served_for_any_type_and_balancer_addresses_only_for_theirs() {
    let web = WEB.replace(
        "type: LoadBalancer",
        "type: ClusterIP\n  externalIPs: [192.0.2.11]",
    );

    let desired = desired(&[NODE, &web]);

    assert_eq!(
        outside(&desired).map(|(at, _)| *at).collect::<Vec<_>>(),
        [frontend("192.0.2.11", 80)]
    );
}

#[test]
fn services_of_others_are_left_alone() {
    for (from, to) in [
        (
            "  type: LoadBalancer",
            "  type: LoadBalancer\n  loadBalancerClass: example.com/other",
        ),
        (
            "  type: LoadBalancer",
            "  type: LoadBalancer\n  clusterIP: None",
        ),
        (
            "  type: LoadBalancer",
            "  type: ExternalName\n  externalIPs: [192.0.2.11]",
        ),
        (
            "{app: web}",
            "{service.kubernetes.io/service-proxy-name: other}",
        ),
        ("{app: web}", "{service.kubernetes.io/headless: ''}"),
    ] {
        let web = WEB.replace(from, to);
        assert_ne!(web, WEB);

        let desired = desired(&[NODE, &web, SLICE]);

        assert!(desired.services.is_empty(), "{to}");
        assert_eq!(desired.conditions, [], "{to}");
    }
    let ours = WEB.replace(
        "  type: LoadBalancer",
        "  type: LoadBalancer\n  loadBalancerClass: io.cilium/bgp-control-plane",
    );
    assert_eq!(outside(&desired(&[NODE, &ours])).count(), 1);
}

#[test]
fn a_protocol_that_is_not_balanced_leaves_the_other_ports() {
    let web = WEB.replace("{name: http, port: 80}", "{name: http, port: 80}, {name: s, port: 81, protocol: SCTP}, {name: u, port: 80, protocol: UDP}");

    let desired = desired(&[NODE, &web]);

    let frontends: Vec<_> = outside(&desired).map(|(at, _)| at.to_string()).collect();
    assert_eq!(frontends, ["192.0.2.10:80/tcp", "192.0.2.10:80/udp"]);
    assert_eq!(
        said(&desired, "ProtocolUnsupported"),
        ["port 81: SCTP is not balanced; use TCP or UDP"]
    );
}

#[test]
fn a_host_on_another_port_is_translated_for() {
    let slice = SLICE.replace("port: 80", "port: 8080");

    let desired = desired(&[NODE, WEB, &slice]);

    let service = &desired.services[&frontend("192.0.2.10", 80)];
    assert_eq!(service.forwarding, Forwarding::Nat);
    assert_eq!(service.backends.len(), 3);
    assert_eq!(desired.conditions, []);
}

#[test]
fn a_host_on_another_port_that_shall_answer_clients_itself_is_left_out() {
    let slice = SLICE.replace("port: 80", "port: 8080");
    let labels = "labels: {app: web}";
    let annotated = format!("{labels}, annotations: {{fairlead.io/forwarding: dsr-l2}}");

    let desired = desired(&[NODE, &WEB.replace(labels, &annotated), &slice]);

    assert!(
        desired.services[&frontend("192.0.2.10", 80)]
            .backends
            .is_empty()
    );
    assert_eq!(only(&desired).object, "EndpointSlice default/web-1");
    assert_eq!(only(&desired).reason, "PortRemapUnsupported");
    assert_eq!(only(&desired).origin, "2.yaml:2");
    assert!(
        only(&desired)
            .message
            .starts_with("its port 8080 differs from port 80 of Service default/web: "),
        "{:?}",
        desired.conditions
    );
}

#[test]
fn an_endpoint_is_where_its_node_is_and_may_listen_on_a_port_of_its_own_there() {
    let slice = SLICE
        .replace("port: 80", "port: 8080")
        .replace("[10.1.1.10]", "[10.1.1.10], nodeName: node1")
        .replace("[10.1.2.10]", "[10.1.2.10], nodeName: node2");

    let desired = desired(&[NODE, WEB, &slice]);

    let backends = &desired.services[&frontend("192.0.2.10", 80)].backends;
    let homes: Vec<_> = backends
        .iter()
        .map(|(at, backend)| (at.to_string(), backend.home))
        .collect();
    assert_eq!(
        homes,
        [
            ("10.1.1.10:8080".to_owned(), Home::Here),
            ("10.1.2.10:8080".to_owned(), Home::Elsewhere),
            ("10.1.3.10:8080".to_owned(), Home::Bare),
        ]
    );
    assert_eq!(desired.conditions, []);
}

#[test]
fn ports_are_matched_by_name_and_slices_by_namespace() {
    let renamed = SLICE.replace("name: http", "name: other");
    let elsewhere = SLICE.replace("name: web-1", "name: web-1, namespace: prod");
    for slice in [renamed, elsewhere] {
        let desired = desired(&[NODE, WEB, &slice]);

        assert!(
            desired.services[&frontend("192.0.2.10", 80)]
                .backends
                .is_empty()
        );
    }
}

#[test]
fn backends_of_the_other_family_are_a_condition() {
    let slice = SLICE
        .replace("IPv4", "IPv6")
        .replace("10.1.1.10", "'fd00::1'")
        .replace("10.1.2.10", "'fd00::2'")
        .replace("10.1.3.10", "'fd00::3'");

    let desired = desired(&[NODE, WEB, &slice]);

    assert!(
        desired.services[&frontend("192.0.2.10", 80)]
            .backends
            .is_empty()
    );
    assert_eq!(only(&desired).reason, "FamilyMismatch");
    assert!(
        only(&desired)
            .message
            .starts_with("192.0.2.10:80/tcp: its backends are all of the other address family")
    );
}

#[test]
fn a_slice_without_a_service_or_addresses_is_a_condition() {
    let orphan = SLICE.replace("labels: {kubernetes.io/service-name: web}", "labels: {}");
    assert_eq!(
        only(&desired(&[NODE, &orphan])).message,
        "the label kubernetes.io/service-name is missing, so it belongs to no service; add it"
    );
    let names = SLICE.replace("IPv4", "FQDN");
    assert_eq!(
        said(&desired(&[NODE, WEB, &names]), "AddressTypeUnsupported"),
        ["addressType FQDN names no addresses; use IPv4 or IPv6"]
    );
}

#[test]
fn the_older_of_two_services_with_one_address_wins() {
    let old = WEB.replace(
        "name: web,",
        "name: z-old, creationTimestamp: '2024-01-01T00:00:00Z',",
    );
    let new = WEB.replace(
        "name: web,",
        "name: a-new, creationTimestamp: '2025-01-01T00:00:00Z',",
    );

    let desired = desired(&[
        NODE,
        &new,
        &old,
        &endpoints_of("z-old"),
        &endpoints_of("a-new"),
    ]);

    assert_eq!(
        desired.services[&frontend("192.0.2.10", 80)].object.name,
        "z-old"
    );
    assert_eq!(only(&desired).object, "Service default/a-new");
    assert_eq!(
        only(&desired).message,
        "192.0.2.10:80/tcp belongs to Service default/z-old, which is older or comes first by name; give one of them another address or port"
    );
}

#[test]
fn of_two_services_of_one_age_the_first_by_name_wins() {
    let desired = desired(&[
        NODE,
        &WEB.replace("name: web", "name: b"),
        &WEB.replace("name: web", "name: a"),
        &endpoints_of("a"),
        &endpoints_of("b"),
    ]);

    assert_eq!(
        desired.services[&frontend("192.0.2.10", 80)].object.name,
        "a"
    );
    assert_eq!(only(&desired).reason, "AddressConflict");
}

#[test]
fn a_service_that_nobody_serves_is_said_once_for_each_port() {
    let web = WEB.replace(
        "{name: http, port: 80}",
        "{name: http, port: 80}, {name: tls, port: 443}",
    );

    let desired = desired(&[NODE, &web, SLICE]);

    assert_eq!(
        said(&desired, "NoEndpoints"),
        [
            "port 443 has no endpoint, so its packets are dropped (service-no-backend); add an EndpointSlice with the label kubernetes.io/service-name and a port named \"tls\""
        ]
    );
    assert_eq!(outside(&desired).count(), 2);
}

#[test]
fn values_that_the_api_server_would_refuse_are_refused_with_their_line() {
    for (text, from, to, origin, says) in [
        (
            WEB,
            "192.0.2.10",
            "192.0.2.999",
            "1.yaml:7",
            "spec.loadBalancerIP: \"192.0.2.999\" is not an IP address",
        ),
        (
            WEB,
            "port: 80",
            "port: 0",
            "1.yaml:8",
            "spec.ports[0].port: 0 is not within 1 to 65535",
        ),
        (
            WEB,
            "  type: LoadBalancer",
            "  externalIPs: [a]",
            "1.yaml:6",
            "spec.externalIPs[0]: \"a\" is not an IP address",
        ),
        (
            WEB,
            "spec:\n",
            "status: {loadBalancer: {ingress: [{ip: b}]}}\nspec:\n",
            "1.yaml:5",
            "status.loadBalancer.ingress[0].ip: \"b\" is not an IP address",
        ),
        (
            WEB,
            "port: 80",
            "port: 80, nodePort: 70000",
            "1.yaml:8",
            "spec.ports[0].nodePort: 70000 is not within 1 to 65535",
        ),
        (
            WEB,
            "  type: LoadBalancer",
            "  clusterIPs: [x]",
            "1.yaml:6",
            "spec.clusterIPs[0]: \"x\" is not an IP address",
        ),
        (
            WEB,
            "  type: LoadBalancer",
            "  healthCheckNodePort: -1",
            "1.yaml:6",
            "spec.healthCheckNodePort: -1 is not within 1 to 65535",
        ),
        (
            WEB,
            "  type: LoadBalancer",
            "  externalTrafficPolicy: local",
            "1.yaml:6",
            "spec.externalTrafficPolicy: \"local\" is neither Cluster nor Local",
        ),
        (
            WEB,
            "  type: LoadBalancer",
            "  sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}",
            "1.yaml:6",
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: 86401 is not within 1 to 86400",
        ),
        (
            SLICE,
            "10.1.1.10",
            "web.example",
            "1.yaml:8",
            "endpoints[0].addresses[0]: \"web.example\" is not an IP address",
        ),
        (
            SLICE,
            "10.1.1.10",
            "'fd00::1'",
            "1.yaml:8",
            "endpoints[0].addresses[0]: fd00::1 is not of addressType IPv4; use a slice per family",
        ),
        (
            SLICE,
            "IPv4",
            "IPv5",
            "1.yaml:5",
            "addressType: \"IPv5\" is not one of IPv4, IPv6 and FQDN",
        ),
        (
            SLICE,
            "port: 80",
            "port: 65536",
            "1.yaml:6",
            "ports[0].port: 65536 is not within 1 to 65535",
        ),
        (
            &NODE.replace("node1", "node2"),
            "podCIDR: 10.1.1.0/24",
            "podCIDR: pods",
            "1.yaml:5",
            "spec.podCIDR: \"pods\" is not a prefix such as 10.1.0.0/24",
        ),
        (
            &NODE.replace("node1", "node2"),
            "10.0.1.2",
            "n1",
            "1.yaml:6",
            "status.addresses[1].address: \"n1\" is not an IP address",
        ),
    ] {
        let broken = text.replace(from, to);
        assert_ne!(broken, text);

        let desired = desired(&[NODE, &broken]);

        assert_eq!(only(&desired).reason, "Unreadable");
        assert_eq!(only(&desired).origin, origin);
        assert_eq!(only(&desired).message, says);
    }
}
